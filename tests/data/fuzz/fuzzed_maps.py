"""Mutated sets of semantic segmentation: images and label maps."""

import io
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from json_judge import config
from outcomes import SILENT, UNCLEAR, Case, Finding, attempt, expect
from PIL import Image, ImageOps

from dyn_d2.data.check import check_dataset
from dyn_d2.data.check_report import REMEDIES
from dyn_d2.data.few_shot.sources import forget
from dyn_d2.evaluation.perfect import perfect_score

from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.datasets import load_sem_seg

WIDTH, HEIGHT = 20, 16
CLASSES = ["sky", "tree", "road"]
Pixels = Any


def png(pixels: Pixels) -> bytes:
    """A PNG file."""
    file = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(file, format="PNG")
    return file.getvalue()


def huge_header(data: bytes, width: int = 60000, height: int = 60000) -> bytes:
    """A PNG whose header promises other sides than the file has, with a right checksum."""
    header = data[12:16] + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def palette(labels: np.ndarray, identical: bool) -> Image.Image:
    """Labels as an image with a palette, in which the brightness of each colour is the label itself or not."""
    image = Image.fromarray(labels).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette([v for i in range(256) for v in ((i, i, i) if identical else (255 - i, 7 * i % 256, i))])
    return image


def turned(labels: Pixels) -> bytes:
    """A file with an EXIF mark that turns it by 180 degrees."""
    image, file = Image.fromarray(labels), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 3
    image.save(file, format="PNG", exif=exif)
    return file.getvalue()


def spoiled_map(rng: random.Random, labels: np.ndarray) -> tuple[str, bytes | None]:
    """How a label map was changed, and its bytes; None for one that is gone."""
    data = png(labels)
    place = rng.randrange(len(data))
    other = labels.copy()
    other[rng.randrange(HEIGHT), rng.randrange(WIDTH)] = rng.choice([3, 4, 100, 254, 255])
    ways: dict[str, Any] = {
        "a value": lambda: png(other),
        "from 1": lambda: png(np.where(labels == 255, 255, labels + 1).astype(np.uint8)),
        "0 and 255": lambda: png(np.where(labels == 1, 255, 0).astype(np.uint8)),
        "all ignored": lambda: png(np.full_like(labels, 255)),
        "a row less": lambda: png(labels[:-1]),
        "turned on its side": lambda: png(np.ascontiguousarray(labels.T)),
        "twice as large": lambda: png(labels.repeat(2, 0).repeat(2, 1)),
        "16 bits": lambda: png(labels.astype(np.uint16)),
        "16 bits, large": lambda: png(labels.astype(np.uint16) + 300),
        "32 bits": lambda: _saved(Image.fromarray(labels.astype(np.int32)), "TIFF"),
        "RGB": lambda: png(np.dstack([labels] * 3)),
        "colours": lambda: png(np.dstack([labels * 50, labels * 3, 90 - labels])),
        "RGBA": lambda: png(np.dstack([labels] * 3 + [np.full_like(labels, 255)])),
        "grey and alpha": lambda: png(np.dstack([labels, np.full_like(labels, 255)])),
        "one bit": lambda: png(labels > 0),
        "palette of greys": lambda: png(palette(labels, True)),
        "palette of colours": lambda: png(palette(labels, False)),
        "cut off": lambda: data[:place],
        "a byte": lambda: data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :],
        "no bytes": lambda: b"",
        "text": lambda: b"0 0 0 1 1 1",
        "header": lambda: huge_header(data),
        "header of 0": lambda: huge_header(data, 0, 0),
        "gone": lambda: None,
        "EXIF": lambda: turned(labels),
        "JPEG inside": lambda: _saved(Image.fromarray(labels), "JPEG", quality=50),
        "GIF inside": lambda: _saved(Image.fromarray(labels), "GIF"),
    }
    how = rng.choice(sorted(ways))
    return how, ways[how]()


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


def run(case: Case) -> None:
    """
    Raises:
        Finding: a case did not end right.
    """
    rng, folder = case.rng, case.folder
    for sub in ("images", "maps"):
        (folder / sub).mkdir()
    stems = rng.choice([["a", "b", "c"], ["1", "2", "10"], ["ä", "狐 1", "x.y"]])
    ignore = rng.choice([255, 255, 255, 255, 254, 0])
    for number, stem in enumerate(stems):
        labels = (
            np.random.default_rng(case.seed * 10 + number).choice([0, 1, 2, ignore], (HEIGHT, WIDTH)).astype(np.uint8)
        )
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 40 * number, np.uint8)).save(folder / f"images/{stem}.jpg")
        (folder / f"maps/{stem}.png").write_bytes(png(labels))
        if rng.random() < 0.35:
            how, data = spoiled_map(rng, labels)
            case.note(f"map of {stem}: {how}")
            path = folder / f"maps/{stem}.png"
            path.unlink() if data is None else path.write_bytes(data)
        if rng.random() < 0.05:
            case.note(f"image {stem}: turned")
            exif = Image.Exif()
            exif[0x0112] = 6
            Image.fromarray(np.zeros((WIDTH, HEIGHT, 3), np.uint8)).save(folder / f"images/{stem}.jpg", exif=exif)
    classes = CLASSES if rng.random() < 0.8 else rng.choice([CLASSES[:2], [*CLASSES, "car"], CLASSES[:1]])
    case.note(f"{len(classes)} classes, ignored: {ignore}")
    judge(folder, classes, ignore)


def read_map(path: Path, classes: int, ignore: int) -> np.ndarray:
    """(H, W), if it is an 8-bit grey file with values that are classes."""
    with Image.open(path) as image:
        image.load()
        if image.mode not in ("L", "P"):
            raise ValueError(f"mode {image.mode}")
        if image.getexif().get(0x0112, 1) != 1:
            raise ValueError("turned")
        labels = np.array([[image.getpixel((x, y)) for x in range(image.width)] for y in range(image.height)])
        if image.mode == "P" and not np.array_equal(np.asarray(image.convert("L")), labels):
            raise ValueError("a palette of colours")
    wrong = [value for value in np.unique(labels).tolist() if value >= classes and value != ignore]
    if wrong:
        raise ValueError(f"values {wrong}")
    return labels


def judge(folder: Path, classes: list[str], ignore: int) -> None:
    """Check, training and evaluation beside the reference."""
    records = [
        {"file_name": str(folder / f"images/{path.stem}.jpg"), "sem_seg_file_name": str(path), "image_id": path.stem}
        for path in sorted((folder / "maps").glob("*.png"))
    ]
    maps, wrong = [], "" if records else "nothing there"
    for record in records:
        try:
            labels = read_map(Path(record["sem_seg_file_name"]), len(classes), ignore)
            with Image.open(record["file_name"]) as image:
                size = ImageOps.exif_transpose(image).size
            if size != labels.shape[::-1]:
                raise ValueError("another size")
            maps.append(labels)
        except Exception as error:  # the reference says in any way that it is not obvious
            wrong = wrong or f"{record['sem_seg_file_name']}: {type(error).__name__} {error}"
    counted = {value for labels in maps for value in np.unique(labels).tolist()} - {ignore}
    ignored = any((labels == ignore).any() for labels in maps)
    said = wrong
    if not said and len(classes) > 1 and len(counted) == 1 and ignored:
        said = "one class only"
    name = f"fuzz_{folder}"
    forget(name)
    DatasetCatalog.register(name, lambda: load_sem_seg(str(folder / "maps"), str(folder / "images")))
    MetadataCatalog.get(name).set(evaluator_type="sem_seg", stuff_classes=classes, ignore_label=ignore)
    try:
        _judge(name, folder, records, maps, wrong, said, ignore)
    finally:
        forget(name)


def _judge(name: str, folder: Path, records: list, maps: list, wrong: str, said: str, ignore: int) -> None:
    names = [str(folder)]
    cfg = config(False).clone()
    cfg.defrost()
    cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = ignore
    report, message = attempt("the check", lambda: check_dataset(name, cfg=cfg)[0], names)
    if report is not None:
        for problem in report.problems:
            if REMEDIES[problem.kind] not in str(problem) or str(folder) not in str(problem):
                raise Finding(UNCLEAR, f"the check says {problem}")
        message = "" if report.ok else report.text()
    expect("the check", message, not said, said)
    found, message = attempt("the evaluation", lambda: perfect_score(name, cfg), names)
    if not records:
        return
    expect("the evaluation", message, not wrong, wrong)
    if found is not None and not said and not all(s != s or abs(s - 100) < 1e-6 for s in found.scores.values()):
        raise Finding(SILENT, f"perfect predictions score {found.scores}")
    mapper = DatasetMapper(True, augmentations=[], image_format="BGR")
    if said:
        return
    for record, labels in zip(DatasetCatalog.get(name), maps, strict=True):
        given = mapper(record)["sem_seg"].numpy()
        if not np.array_equal(given, labels):
            raise Finding(SILENT, f"training on {record['sem_seg_file_name']} gets other labels than the file has")
