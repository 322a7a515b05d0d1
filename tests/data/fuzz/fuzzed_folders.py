"""Mutated image classification sets: one folder a class."""

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
from fuzzed_images import readable, unusual
from json_judge import config
from odd_values import NAMES
from outcomes import SILENT, UNCLEAR, Case, Finding, attempt, expect, same
from PIL import Image

from dyn_d2.data.check import check_dataset
from dyn_d2.data.check_report import REMEDIES
from dyn_d2.data.classification.mapper import decode
from dyn_d2.data.classification.sets import register_folders
from dyn_d2.data.few_shot.sources import forget
from dyn_d2.evaluation.perfect import perfect_score

from detectron2.data import DatasetCatalog, MetadataCatalog

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")


def spoil(rng: random.Random, root: Path, classes: list[str]) -> str:
    """One change of the folders; returns what."""
    folder = root / rng.choice(classes)
    files = sorted(p for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else []
    how = rng.choice(
        (
            "image, image, image, image gone, empty class, class gone, file above, hidden folder, text file, "
            "hidden file, below, unicode, suffix, tif, loop, broken link, folder like an image, no classes, "
            "a file for a class, Thumbs, Mac's files, class of nothing, linked class"
        ).split(", ")
    )
    target = rng.choice(files) if files else folder / "x.png"
    if how == "image" and files:
        kind, data = unusual(rng)
        if data is not None:
            target.write_bytes(data)
        return f"{target.name}: {kind}"
    if how == "image gone" and files:
        target.unlink()
    elif how == "empty class":
        for file in files:
            file.unlink()
    elif how == "class gone" and not any(p.is_dir() for p in folder.rglob("*")) and folder.is_dir():
        for file in files:
            file.unlink()
        for left in folder.iterdir():
            left.unlink()
        folder.rmdir()
    elif how == "file above":
        (root / "readme.txt").write_text("x")
    elif how in ("hidden folder", "class of nothing"):
        (root / (".git" if how == "hidden folder" else "zebra")).mkdir(exist_ok=True)
    elif how == "a file for a class":
        (root / "dog.png").write_text("x")
    elif how == "linked class" and not (root / "link").exists():
        (root / "link").symlink_to(folder)
    elif folder.is_dir():
        _spoil_class(rng, how, folder, target)
    return f"{folder.name}: {how}"


def _spoil_class(rng: random.Random, how: str, folder: Path, target: Path) -> None:
    if how == "text file":
        (folder / "notes.txt").write_text("x")
    elif how == "hidden file":
        (folder / ".hidden.png").write_bytes(b"x")
    elif how == "Mac's files":
        (folder / "._a.png").write_bytes(b"\0\5\x16\7")
        (folder / ".DS_Store").write_bytes(b"x")
    elif how == "Thumbs":
        (folder / "Thumbs.db").write_bytes(b"x")
    elif how == "below":
        (folder / "day1").mkdir(exist_ok=True)
        picture(folder / "day1/deep.png", 3)
    elif how == "unicode":
        path = folder / rng.choice(NAMES)
        path.parent.mkdir(exist_ok=True)
        picture(path, 4)
    elif how == "suffix" and target.is_file():
        target.rename(target.with_suffix(rng.choice([".PNG", ".Jpg", ".JPEG", "", ".txt", ".tiff", ".gif", ".avi"])))
    elif how == "tif":
        picture(folder / rng.choice(["a.tif", "b.tiff", "c.gif"]), 5)
    elif how == "loop" and not (folder / "loop").exists():
        (folder / "loop").symlink_to(folder)
    elif how == "broken link" and not os.path.lexists(folder / "lost.png"):
        (folder / "lost.png").symlink_to(folder / "nowhere.png")
    elif how == "folder like an image":
        (folder / "album.png").mkdir(exist_ok=True)


def picture(path: Path, seed: int) -> None:
    """Write an image."""
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (9, 8, 3), dtype=np.uint8)).save(path)


def run(case: Case) -> None:
    """
    Raises:
        Finding: a case did not end right.
    """
    rng, root = case.rng, case.folder / "set"
    classes = rng.choice(
        [["cat", "dog"], ["n01440764", "n02102040", "n03000684"], ["Äpfel", "a b", "狐"], ["0", "1", "10"], ["one"]]
    )
    for position, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(rng.randrange(1, 4)):
            picture(root / name / f"{i}.png", 10 * position + i)
    for _ in range(rng.choice([0, 1, 1, 1, 2])):
        case.note(spoil(rng, root, classes))
    judge(root)


def judge(root: Path) -> None:
    """Check, loader and evaluation beside the reference."""
    classes = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    right: list[tuple] = []
    odd_files, said = 0, ""
    for number, name in enumerate(classes):
        for folder, _, files in sorted(os.walk(root / name)):
            for file in files:
                path = Path(folder) / file
                if file.startswith("."):
                    continue
                if path.suffix.lower() in SUFFIXES:
                    right.append((str(path), number))
                else:
                    odd_files += 1
    right.sort(key=lambda pair: (pair[1], Path(pair[0])))
    wrong = "" if classes and right else "no image"
    for path, _ in right:
        if readable(Path(path)) is None:
            said = f"{path} cannot be opened"
    name = f"fuzz_{root}"
    register_folders(name, root)
    try:
        _judge(name, root, classes, right, wrong, said, odd_files)
    finally:
        forget(name)


def _judge(name: str, root: Path, classes: list, right: list, wrong: str, said: str, odd_files: int) -> None:
    names = [str(root)]
    report, message = attempt("the check", lambda: check_dataset(name)[0], names)
    if report is not None:
        for problem in report.problems:
            if REMEDIES[problem.kind] not in str(problem) or str(root) not in str(problem):
                raise Finding(UNCLEAR, f"the check says {problem}")
        message = "" if report.ok else report.text()
        if odd_files and not wrong and "left out" not in report.text():
            raise Finding(SILENT, f"{odd_files} files are left out without a word")
    expect("the check", message, not wrong and not said, wrong or said)
    records, message = attempt("the loader", lambda: DatasetCatalog.get(name), names)
    expect("the loader", message, not wrong, wrong)
    if records is None:
        return
    same("the classes", list(MetadataCatalog.get(name).thing_classes), classes)
    same("the loader", [(r["file_name"], r["label"]) for r in records], right)
    found, message = attempt("the evaluation", lambda: perfect_score(name, config(False)), names)
    expect("the evaluation", message, True)
    same("the score", {k: round(v, 6) for k, v in found.scores.items()}, {"classification": 100.0})
    for record in records:
        pixels, message = attempt("decoding", lambda record=record: decode(record), [record["file_name"]])
        wanted: Any = readable(Path(record["file_name"]))
        expect("decoding", message, wanted is not None)
        if pixels is not None and not np.array_equal(pixels, wanted):
            raise Finding(SILENT, f"{record['file_name']} is read as other pixels")
