"""Mutated Pascal VOC folders: xml files, lists and images."""

import random
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
from json_judge import config
from odd_values import damage_text
from outcomes import SILENT, UNCLEAR, Case, Finding, attempt, expect, same
from PIL import Image

from dyn_d2.data.check import check_dataset
from dyn_d2.data.check_report import REMEDIES
from dyn_d2.data.few_shot.sources import forget, load_source
from dyn_d2.evaluation.perfect import perfect_score

from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.data.datasets import load_voc_instances, register_pascal_voc

WIDTH, HEIGHT = 40, 30
CLASSES = ("ant", "bee", "cow")
TEXTS = [
    "", " ", "0", "1", "2", "-1", "abc", "nan", "inf", "1e400", "12.5", "1_0", " 7 ", "\n 5 \n", "0x10", "1,5",
    "ant", " ant ", "ANT",
    "Unspecified", "true", "yes", "９", "3.0", "1e1", "+4", "--4", "99999999999999999999", "٣", "ünïcode", "&", "<",
    "3 4", "None",
]  # fmt: skip
PATHS = [
    "size", "size/width", "size/height", "size/depth", "object", "object/name", "object/difficult",
    "object/truncated", "object/bndbox",
    "object/bndbox/xmin", "object/bndbox/ymin", "object/bndbox/xmax", "object/bndbox/ymax", "filename", "folder",
    "segmented",
]  # fmt: skip


def sound(rng: random.Random, image: str) -> ET.Element:
    """An annotation as VOC writes it."""
    root = ET.Element("annotation")
    ET.SubElement(root, "folder").text = "VOC2007"
    ET.SubElement(root, "filename").text = f"{image}.jpg"
    size = ET.SubElement(root, "size")
    for tag, value in (("width", WIDTH), ("height", HEIGHT), ("depth", 3)):
        ET.SubElement(size, tag).text = str(value)
    ET.SubElement(root, "segmented").text = "0"
    for _ in range(rng.randrange(1, 4)):
        item = ET.SubElement(root, "object")
        ET.SubElement(item, "name").text = rng.choice(CLASSES)
        ET.SubElement(item, "pose").text = "Unspecified"
        ET.SubElement(item, "truncated").text = "0"
        if rng.random() < 0.8:
            ET.SubElement(item, "difficult").text = rng.choice(["0", "0", "0", "1"])
        x, y = rng.randrange(1, WIDTH - 12), rng.randrange(1, HEIGHT - 12)
        _box(item, (x, y, x + rng.randrange(3, 12), y + rng.randrange(3, 12)))
        if rng.random() < 0.2:
            part = ET.SubElement(item, "part")
            ET.SubElement(part, "name").text = "head"
            _box(part, (x, y, x + 2, y + 2))
    return root


def _box(item: ET.Element, box: tuple) -> None:
    bounds = ET.SubElement(item, "bndbox")
    for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
        ET.SubElement(bounds, tag).text = str(value)


def mutate(case: Case, root: ET.Element) -> None:
    """One change of the tree."""
    rng = case.rng
    path = rng.choice(PATHS + [p for p in PATHS if "object/" in p])
    places = root.findall(path)
    if not places:
        return
    place = rng.choice(places)
    parent = next(e for e in root.iter() if place in list(e))
    how = rng.choice(
        ("text, text, text, gone, twice, other twice, tag, spaces, child, attribute, number, comment, swap").split(", ")
    )
    case.note(f"{path}: {how}")
    if how == "text":
        place.text = rng.choice(TEXTS)
        case.note(repr(place.text))
    elif how == "gone":
        parent.remove(place)
    elif how == "twice":
        parent.append(place)
    elif how == "other twice":
        copy = ET.fromstring(ET.tostring(place))
        copy.text = rng.choice(TEXTS) if not len(copy) else copy.text
        parent.append(copy)
    elif how == "tag":
        place.tag = rng.choice([place.tag.upper(), f"{place.tag}s", "x", f"ns-{place.tag}"])
    elif how == "spaces":
        place.text = f"\n\t  {place.text or ''} \n"
    elif how == "child":
        ET.SubElement(place, rng.choice(["b", place.tag])).text = rng.choice(TEXTS)
    elif how == "attribute":
        place.set("id", "1")
    elif how == "number":
        place.text = str(rng.choice([0, 1, -3, 0.5, 5.25, WIDTH, WIDTH + 1, WIDTH + 0.9, WIDTH + 2, 10**6, 1e-9]))
        case.note(place.text)
    elif how == "comment":
        place.insert(0, ET.Comment("checked"))
    elif how == "swap" and len(place) > 3:
        place[:] = [place[2], place[3], place[0], place[1], *place[4:]]


def _spoil_text(case: Case, text: str) -> str:
    """A change of the text of an xml."""
    rng = case.rng
    how = rng.choice(
        [
            "entity",
            "bomb",
            "external",
            "doctype",
            "declaration",
            "windows-1252",
            "cdata",
            "character",
            "namespace",
            "root",
        ]
    )
    case.note(f"xml: {how}")
    if how == "entity":
        return f'<!DOCTYPE a [<!ENTITY n "ant">]>{text.replace("<name>ant<", "<name>&n;<")}'
    if how == "bomb":
        levels = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 12))
        return f'<!DOCTYPE a [<!ENTITY e0 "ha">{levels}]>{text.replace("<name>ant<", "<name>&e11;<")}'
    if how == "external":
        return f'<!DOCTYPE a [<!ENTITY n SYSTEM "file:///etc/hostname">]>{text.replace("<name>ant<", "<name>&n;<")}'
    if how == "doctype":
        return f'<?xml version="1.0"?><!DOCTYPE annotation SYSTEM "x.dtd">{text}'
    if how == "declaration":
        encoding = rng.choice(["utf-8", "UTF-16", "ascii", "latin-1", "nonsense", "gbk"])
        return f'<?xml version="1.0" encoding="{encoding}"?>{text}'
    if how == "windows-1252":
        return text.replace("VOC2007", "Bücher–")
    if how == "cdata":
        return text.replace("<name>ant<", "<name><![CDATA[ant]]><")
    if how == "character":
        return text.replace(
            "<name>ant<", rng.choice(["<name>&#97;nt<", "<name>a\0nt<", "<name>&nbsp;ant<", "<name>&amp;ant<"])
        )
    if how == "namespace":
        return text.replace("<annotation>", '<annotation xmlns="http://x/">')
    return rng.choice(
        [f"<annotations>{text}</annotations>", text.replace("annotation>", "x>"), f"{text}{text}", f"{text}\n\n"]
    )


LISTS = {
    "flags": lambda ids: "".join(f"{i} {'-1' if n else ' 1'}\n" for n, i in enumerate(ids)),
    "Windows": lambda ids: "\r\n".join(ids) + "\r\n",
    "no last end": lambda ids: "\n".join(ids),
    "blank lines": lambda ids: "\n\n".join(ids) + "\n \n",
    "byte order mark": lambda ids: "\ufeff" + "\n".join(ids),
    "twice": lambda ids: "\n".join([*ids, ids[0]]),
    "suffix": lambda ids: "\n".join(f"{i}.jpg" for i in ids),
    "folder": lambda ids: "\n".join(f"JPEGImages/{i}" for i in ids),
    "Windows' folder": lambda ids: "\n".join(f"JPEGImages\\{i}" for i in ids),
    "up": lambda ids: "..\n",
    "unknown": lambda ids: "\n".join([*ids, "nobody"]),
    "empty": lambda ids: "",
    "spaces": lambda ids: "\n".join(f"  {i}\t" for i in ids),
    "zero": lambda ids: "\n".join(f"{i}\0" for i in ids),
    "other spaces": lambda ids: "\n".join(f"{i}\u00a01" for i in ids),
    "comma": lambda ids: ",".join(ids),
    "form feed": lambda ids: "\x0c".join(ids),
}


def run(case: Case) -> None:
    """
    Raises:
        Finding: a case did not end right.
    """
    rng, folder = case.rng, case.folder
    ids = rng.choice([["a", "b", "c"], ["000001", "000002", "2008_000003"], ["ä", "狐", "x-y.z"]])
    for sub in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / sub).mkdir(parents=True)
    for i in ids:
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 90, np.uint8)).save(folder / f"JPEGImages/{i}.jpg")
        (folder / f"Annotations/{i}.xml").write_text(ET.tostring(sound(rng, i), encoding="unicode"), encoding="utf-8")
    _spoil_files(case, ids)
    lines = "\n".join(ids) + "\n"
    if rng.random() < 0.3:
        how = rng.choice(sorted(LISTS))
        case.note(f"list: {how}")
        lines = LISTS[how](ids)
    path = folder / "ImageSets/Main/all.txt"
    path.write_bytes(lines.encode())
    if rng.random() < 0.06:
        case.note(damage_text(rng, path))
    if rng.random() < 0.02:
        path.unlink()
    judge(case, folder)


def _spoil_files(case: Case, ids: list[str]) -> None:
    rng = case.rng
    for _ in range(rng.choice([0, 1, 1, 1, 2])):
        i = rng.choice(ids)
        path = case.folder / f"Annotations/{i}.xml"
        what = rng.random()
        case.note(path.name)
        if what < 0.7:
            try:
                root = ET.fromstring(path.read_text(encoding="utf-8"))
            except (ET.ParseError, OSError, UnicodeDecodeError):
                continue
            for _ in range(rng.choice([1, 1, 2])):
                mutate(case, root)
            text = ET.tostring(root, encoding="unicode")
            path.write_text(text, encoding="utf-8")
        elif what < 0.85 and path.is_file():
            path.write_text(_spoil_text(case, path.read_bytes().decode("utf-8", "replace")), encoding="utf-8")
        elif what < 0.95 and path.is_file():
            case.note(damage_text(rng, path))
        elif path.is_file():
            case.note("gone")
            path.unlink()
            if rng.random() < 0.3:
                path.mkdir()


# ---------------------------------------------------------------------------------------------------------- reference


def _one(element: ET.Element, tag: str) -> ET.Element:
    found = [child for child in element if child.tag == tag]
    if len(found) != 1:
        raise ValueError(f"{len(found)} <{tag}>")
    return found[0]


def _text(element: ET.Element) -> str:
    if any(isinstance(child.tag, str) for child in element):
        raise ValueError(f"<{element.tag}> has elements inside")
    return "".join([element.text or "", *(child.tail or "" for child in element)]).strip()


def _value(element: ET.Element) -> float:
    text = _text(element)
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text, re.ASCII) or abs(float(text)) == float("inf"):
        raise ValueError(f"{text!r} is no number")
    return float(text)


def read_image(path: Path) -> tuple:
    """Width, height and objects (class, box from 1, difficult) of an xml."""
    root = ET.parse(path).getroot()
    size = _one(root, "size")
    sides = [_value(_one(size, side)) for side in ("width", "height")]
    if any(side < 1 or side > 2**20 or side != int(side) for side in sides):
        raise ValueError(f"size {sides}")
    objects = []
    for item in root:
        if item.tag != "object":
            continue
        name = _text(_one(item, "name"))
        if name not in CLASSES:
            raise ValueError(f"class {name!r}")
        bounds = _one(item, "bndbox")
        box = [_value(_one(bounds, side)) for side in ("xmin", "ymin", "xmax", "ymax")]
        marks = [_text(child) for child in item if child.tag == "difficult"]
        if len(marks) > 1:
            raise ValueError("difficult twice")
        mark = marks[0].lower() if marks else ""
        if mark not in ("", "unspecified") and float(mark) not in (0, 1):
            raise ValueError(f"difficult {mark}")
        objects.append((name, box, mark not in ("", "unspecified") and float(mark) == 1))
    return int(sides[0]), int(sides[1]), objects


def read_list(path: Path) -> list[str]:
    """Names in a list."""
    text = path.read_bytes().decode("utf-8").removeprefix("\ufeff")
    if any(ord(c) < 32 and c not in "\t\r\n" or c in "\x85\u2028\u2029" for c in text):
        raise ValueError("a control character")
    ids = [line.strip() for line in re.split(r"\r\n|\n|\r", text) if line.strip()]
    if all(len(i.split()) > 1 and i.split()[-1] in ("-1", "0", "1") for i in ids):
        ids = [i[: i.rindex(i.split()[-1])].strip() for i in ids]
    if len(set(ids)) < len(ids) or any("/" in i or "\\" in i for i in ids):
        raise ValueError("a name twice, or with a folder")
    return ids


def judge(case: Case, folder: Path) -> None:
    """Check, loaders and evaluation beside the reference."""
    wrong, said, images = "", "", {}
    try:
        for i in read_list(folder / "ImageSets/Main/all.txt"):
            images[i] = read_image(folder / f"Annotations/{i}.xml")
    except Exception as error:  # the reference says in any way that it is not obvious
        wrong = f"{type(error).__name__} {error}"
    if not images:
        said = "no image"
    for i, (width, height, objects) in images.items():
        for _, (x0, y0, x1, y1), _ in objects:
            if not (x1 > x0 - 1 and y1 > y0 - 1 and x0 >= 0 and y0 >= 0 and x1 <= width + 1 and y1 <= height + 1):
                said = f"a box of {i} is empty or outside"
            elif x1 <= 1 and y1 <= 1 and (x0, y0, x1, y1) != (1, 1, 1, 1) and x0 >= 1 and y0 >= 1:
                said = "a fraction"
        if (width, height) != (WIDTH, HEIGHT) or not (folder / f"JPEGImages/{i}.jpg").is_file():
            said = f"image {i}"
    name = f"fuzz_{folder}"
    forget(name)
    register_pascal_voc(name, str(folder), "all", 2012, CLASSES)
    MetadataCatalog.get(name).evaluator_type = "pascal_voc"
    try:
        _judge(name, folder, images, wrong, said)
    finally:
        forget(name)


def _judge(name: str, folder: Path, images: dict, wrong: str, said: str) -> None:
    names = [str(folder)]
    reports, message = attempt("the check", lambda: check_dataset(name), names)
    if reports is not None:
        for problem in reports[0].problems:
            if REMEDIES[problem.kind] not in str(problem) or str(folder) not in str(problem):
                raise Finding(UNCLEAR, f"the check says {problem}")
        message = "" if reports[0].ok else reports[0].text()
    expect("the check", message, not wrong and not said, wrong or said)
    for what, load in (
        ("our loader", lambda: load_source(name)),
        ("Detectron2's loader", lambda: load_voc_instances(str(folder), "all", CLASSES)),
    ):
        records, message = attempt(what, load, names)
        expect(what, message, not wrong, wrong)
        if records is not None:
            same(what, [_plain(r) for r in records], [_right(i, *image) for i, image in images.items()])
    found, message = attempt("the evaluation", lambda: perfect_score(name, config(False)), names)
    if wrong or not images:
        return
    expect("the evaluation", message, True)
    twice = any(len({(n, *box) for n, box, _ in objects}) < len(objects) for _, _, objects in images.values())
    over = "leave their images" in "".join(found.reasons)  # by less than a pixel, but an object is small
    if not found.ok and (not (said or twice or over) or "no object explains" in found.reasons[0]):
        raise Finding(SILENT, f"perfect predictions score {found.scores}: {found.reasons}")
    if not said and not twice and not over and any(not d for _, _, objects in images.values() for *_, d in objects):
        same("the score", {k: round(v, 3) for k, v in found.scores.items()}, {"bbox": 100.0})
    if not said:
        mapper = DatasetMapper(True, augmentations=[], image_format="BGR")
        for record, (_, _, objects) in zip(load_source(name), images.values(), strict=True):
            same("the objects in training", len(mapper(record)["instances"]), len(objects))


def _plain(record: dict[str, Any]) -> tuple:
    objects = [(a["category_id"], list(map(float, a["bbox"]))) for a in record["annotations"]]
    return record["image_id"], record["width"], record["height"], objects


def _right(image: str, width: int, height: int, objects: list) -> tuple:
    return image, width, height, [(CLASSES.index(n), [x0 - 1, y0 - 1, x1, y1]) for n, (x0, y0, x1, y1), _ in objects]
