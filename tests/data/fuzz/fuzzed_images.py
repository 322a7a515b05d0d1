"""Damaged and unusual image files behind a sound json, a VOC list or folders of classes."""

import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from coco_reference import SAID, read
from fuzzed_coco import sound
from fuzzed_maps import huge_header
from json_judge import judge_json
from outcomes import Case
from PIL import Image, ImageOps

WIDTH, HEIGHT = 40, 30


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Bytes of an image file."""
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


def unusual(rng: random.Random) -> tuple[str, bytes | None]:
    """How an image file was made, and its bytes; None for one that is gone."""
    pixels = np.random.default_rng(rng.randrange(10**6)).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    grey16 = Image.fromarray((pixels[..., 0].astype(np.uint16) + 1) * 200)
    data = encoded(image, rng.choice(["PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM"]))
    place = rng.randrange(len(data))
    exif = Image.Exif()
    exif[0x0112] = rng.randrange(0, 12)
    ways: dict[str, Any] = {
        "as it is": lambda: data,
        "grey": lambda: encoded(image.convert("L"), "PNG"),
        "grey and alpha": lambda: encoded(image.convert("LA"), "PNG"),
        "RGBA": lambda: encoded(image.convert("RGBA"), "PNG"),
        "CMYK": lambda: encoded(image.convert("CMYK"), "JPEG"),
        "YCbCr": lambda: encoded(image.convert("YCbCr"), "TIFF"),
        "Lab": lambda: encoded(Image.fromarray(pixels).convert("RGB").convert("P"), "PNG"),
        "one bit": lambda: encoded(image.convert("1"), "PNG"),
        "16 bits": lambda: encoded(grey16, "PNG"),
        "16 bits, TIFF": lambda: encoded(grey16, "TIFF"),
        "16 bits, dark": lambda: encoded(Image.fromarray(pixels[..., 0].astype(np.uint16)), "PNG"),
        "32 bits": lambda: encoded(Image.fromarray(pixels[..., 0].astype(np.int32)), "TIFF"),
        "float": lambda: encoded(Image.fromarray(pixels[..., 0].astype(np.float32) / 255), "TIFF"),
        "big-endian 16 bits": lambda: b"P5 40 30 65535\n" + (pixels[..., 0].astype(">u2") * 200).tobytes(),
        "animated": lambda: encoded(image.convert("P"), "GIF", save_all=True, append_images=[image.convert("P")]),
        "another size": lambda: encoded(image.resize((WIDTH + 1, HEIGHT)), "PNG"),
        "on its side": lambda: encoded(image.transpose(Image.Transpose.ROTATE_90), "PNG"),
        "EXIF": lambda: encoded(image, "JPEG", exif=exif),
        "EXIF on its side": lambda: encoded(image.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif),
        "damaged EXIF": lambda: encoded(image, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
        "cut off": lambda: data[:place],
        "almost whole": lambda: data[: -rng.randrange(1, 30)],
        "a byte": lambda: data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :],
        "a stretch": lambda: data[:place] + bytes(rng.randrange(256) for _ in range(20)) + data[place + 20 :],
        "more": lambda: data + b"garbage" * 10,
        "no bytes": lambda: b"",
        "zeros": lambda: bytes(len(data)),
        "text": lambda: b"<html>404 Not Found</html>",
        "header": lambda: huge_header(encoded(image, "PNG"), *rng.choice([(60000, 60000), (2**31 - 1, 2**31 - 1),
        (100000, 1000), (0, 5), (1, 1)])),
        "gone": lambda: None,
    }  # fmt: skip
    how = rng.choice(sorted(ways))
    return how, ways[how]()


def readable(path: Path) -> np.ndarray | None:
    """(H, W, 3) of an image of 8 bits a channel, upright, or None."""
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode[0] in "IF":
                return None
            try:
                upright = ImageOps.exif_transpose(image)
            except Exception:  # a damaged mark says nothing of the pixels
                upright = image
            return np.asarray(upright.convert("RGB"))
    except Exception:  # Pillow raises what it likes
        return None


def run(case: Case) -> None:
    """
    Raises:
        Finding: a case did not end right.
    """
    rng, folder = case.rng, case.folder
    content = sound(rng, False)
    (folder / "images").mkdir()
    for number, image in enumerate(content["images"]):
        image["file_name"] = f"{number}.{rng.choice(['png', 'jpg', 'JPG', 'tif', 'img'])}"
        path = folder / "images" / image["file_name"]
        how, data = unusual(rng)
        case.note(f"{path.name}: {how}")
        if data is None:
            path.mkdir() if rng.random() < 0.5 else None
        else:
            path.write_bytes(data)
    path = folder / "truth.json"
    path.write_text(json.dumps(content))
    reading = read(content)
    for image in content["images"]:
        pixels = readable(folder / "images" / image["file_name"])
        if pixels is None or pixels.shape != (HEIGHT, WIDTH, 3):
            reading.faults.append((SAID, f"image {image['file_name']}"))
    judge_json(path, folder / "images", reading, False)
    _judge_pixels(folder / "images", content)


def _judge_pixels(folder: Path, content: dict) -> None:
    """Whatever reads images gives these pixels, or a message."""
    from outcomes import SILENT, Finding, attempt

    from detectron2.data.detection_utils import read_image

    for image in content["images"]:
        path = folder / image["file_name"]
        right = readable(path)
        found, message = attempt("read_image", lambda path=path: read_image(str(path), "RGB"), [path.name])
        if right is None and not message:
            raise Finding(SILENT, f"{path.name} is read, as an array of {found.shape}")
        if right is not None and (message or not np.array_equal(found, right)):
            raise Finding(SILENT, f"{path.name} is read as other pixels {message}")
