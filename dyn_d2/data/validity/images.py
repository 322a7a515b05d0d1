"""Image files: which kinds of pixels a detector can be trained on.

Pillow converts grey images of 16 or 32 bits and of floating point by cutting every value above 255, so that a 16-bit
photograph becomes white. Nobody but the user knows which values mean black and white there: such images are refused.
(Colour images of 16 bits a channel are no such case: Pillow scales them when it reads them.)
"""

import os
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any


class DeepImageError(OSError):
    """An image has more than 8 bits a channel."""


def is_deep(image: Any) -> bool:
    """Whether a PIL image has values that do not fit 8 bits a channel."""
    return image.mode in ("I", "F") or image.mode.startswith("I;")


def require_eight_bits(image: Any, path: str | os.PathLike) -> None:
    """Refuse a PIL image of more than 8 bits a channel.

    Raises:
        DeepImageError: names the file and the remedy.
    """
    if is_deep(image):
        what = "floating point" if image.mode == "F" else "16 or 32 bits"
        raise DeepImageError(
            f"{path} is a grey image of {what} (Pillow's mode {image.mode}), whose values would be cut at 255: convert "
            "it to 8 bits, with the range of values that you want to see as black to white."
        )


def require_readable(path: str | os.PathLike) -> None:
    """Open an image's header, where another reader would go on in silence; decode a PNG too: Detectron2 looks for EXIF
    first, which hides that the file is damaged, and then goes on with what is left of it.

    Raises:
        DeepImageError: see :func:`require_eight_bits`.
        Exception: of Pillow, of any type: it is no image, or a damaged PNG.
    """
    from PIL import Image

    with Image.open(path) as image:
        require_eight_bits(image, path)
        if image.format == "PNG":
            image.load()


def opening_error(path: str | os.PathLike, error: Exception) -> str:
    """Why an image cannot be opened, with what to do where that is not seen from Pillow's own message."""
    if type(error).__name__ == "DecompressionBombError":
        return (
            f"{error} Make the image smaller, or, where it comes from somebody you trust, raise the limit with "
            "PIL.Image.MAX_IMAGE_PIXELS in the program that reads it"
        )
    return f"{error}" or type(error).__name__


def instead_of(path: str | os.PathLike) -> str:
    """Where an image that is missing seems to be, as the end of a message: its base name is there, but its folder is
    not ("images/" before it, or missing), or it has the separators of Windows. "" where it is nowhere near."""
    plain = PurePosixPath(os.fspath(path).replace("\\", "/"))
    folder = next((parent for parent in plain.parents if os.path.isdir(parent)), None)
    if folder is None:
        return ""
    found = _by_name(str(folder)).get(plain.name)
    if found is None:
        return ""
    advice = f"; {found} is there: correct file_name, or the folder of images"
    return advice + (" (file_name has \\ of Windows in it)" if "\\" in os.fspath(path) else "")


@lru_cache(maxsize=16)
def _by_name(folder: str) -> dict[str, str]:
    """Base name -> path of the files of a folder and of those in it."""
    found: dict[str, str] = {}
    for entry in sorted(Path(folder).iterdir()):
        files = [entry] if entry.is_file() else sorted(entry.iterdir()) if os.access(entry, os.R_OK | os.X_OK) else []
        for file in files:
            found.setdefault(file.name, str(file))
    return found
