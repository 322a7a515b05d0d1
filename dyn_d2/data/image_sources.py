"""Images from wherever somebody has them: files, folders, patterns, videos, addresses."""

import glob
import logging
import shutil
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import cv2
import numpy as np

from dyn_d2.utils.errors import UserError

from detectron2.data.detection_utils import read_image

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
TIMEOUT, LARGEST = 30, 1 << 30  # seconds of silence, bytes

logger = logging.getLogger(__name__)


class Shown(NamedTuple):
    """
    Attributes:
        name: file or address; of a frame with "#" and its number.
        image: (H, W, 3) uint8, RGB; None where it cannot be read.
        video: the file that a frame is of; "" for an image.
    """

    name: str
    image: np.ndarray | None
    video: str = ""


def is_address(text: str) -> bool:
    """Whether it is to be fetched with HTTP."""
    return urlsplit(text).scheme in ("http", "https")


def is_video(text: str) -> bool:
    """Whether its name is that of a video."""
    path = urlsplit(text).path if is_address(text) else text
    return path.lower().endswith(VIDEOS)


def expand(sources: Sequence[str]) -> list[str]:
    """Files and addresses of files, folders (their images and videos, also of folders in them), patterns with ``*``
    and addresses, each in alphabetical order.

    Raises:
        UserError: there is no such file, or nothing in a folder or for a pattern.
    """
    found: list[str] = []
    for source in sources:
        path = Path(source)
        if is_address(source) or path.is_file():
            found.append(source)
        elif path.is_dir():
            inside = sorted(str(p) for p in path.rglob("*") if p.suffix.lower() in IMAGES + VIDEOS and p.is_file())
            if not inside:
                raise UserError(f"there is no image or video in the folder {source} ({', '.join(IMAGES)}).")
            found += inside
        elif glob.has_magic(source):
            matching = sorted(name for name in glob.glob(source, recursive=True) if Path(name).is_file())
            if not matching:
                raise UserError(f"no file matches {source}.")
            found += matching
        else:
            raise UserError(f"no such image: {source}")
    return list(dict.fromkeys(found))


def read(sources: Sequence[str], every: int = 1) -> Iterator[Shown]:
    """The images of what ``expand`` gave, one by one, so that a video needs no memory.

    Args:
        every: of a video only every so manieth frame.
    """
    for source in sources:
        if not is_address(source):
            yield from _read_file(source, source, every)
            continue
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / (Path(urlsplit(source).path).name or "image")
            try:
                _fetch(source, local)
            except UserError as error:
                logger.error("%s", error)
                yield Shown(source, None)
                continue
            yield from _read_file(str(local), source, every)


def _read_file(file: str, name: str, every: int) -> Iterator[Shown]:
    if is_video(name):
        yield from _frames(file, name, every)
        return
    try:
        yield Shown(name, np.asarray(read_image(file, "RGB")))
    except (OSError, ValueError, SyntaxError) as error:
        logger.error("%s cannot be read: %s", name, error)
        yield Shown(name, None)


def _frames(file: str, name: str, every: int) -> Iterator[Shown]:
    video = cv2.VideoCapture(file)
    number = 0
    try:
        while video.grab():
            if number % every == 0:
                good, frame = video.retrieve()
                if good:
                    yield Shown(f"{name}#{number}", cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), name)
            number += 1
    finally:
        video.release()
    if not number:
        logger.error("%s cannot be read: OpenCV finds no frame in it", name)
        yield Shown(name, None)


def frames_per_second(file: str) -> float:
    """Of a video on this machine; 25 where nobody knows."""
    video = cv2.VideoCapture(file)
    rate = video.get(cv2.CAP_PROP_FPS)
    video.release()
    return float(rate) if rate and np.isfinite(rate) else 25.0


def _fetch(address: str, local: Path) -> None:
    request = urllib.request.Request(address, headers={"User-Agent": "dyn_d2"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer, open(local, "wb") as file:
            length = int(answer.headers.get("Content-Length") or 0)
            if length > LARGEST:
                raise UserError(f"{address} has {length} bytes, more than is fetched: download it yourself.")
            shutil.copyfileobj(answer, file)
    except (OSError, ValueError) as error:  # urllib's errors are OSErrors
        raise UserError(f"{address} cannot be fetched: {getattr(error, 'reason', error)}.") from error
