"""Mutated COCO and LVIS jsons."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from json_judge import image_fault, judge_command, judge_json, read_file
from odd_values import NAMES, damage_text, dumps, odd, retyped
from outcomes import Case
from PIL import Image

WIDTH, HEIGHT = 40, 30
Content = dict[str, Any]


def sound(rng: random.Random, lvis: bool) -> Content:
    """A file that nothing is wrong with."""
    names = ["1.png", "2.png", "3.png"] if rng.random() < 0.7 else rng.sample(NAMES, 3)
    kind = rng.choice([int, int, int, float, str])
    first = rng.choice([0, 1, 1, 1, 100, 2**53])
    ids = [first + i for i in range(3)] if kind is not float else [i + 1.0 for i in range(3)]
    ids = [f"im{i}" for i in ids] if kind is str else ids
    gap = 1 if lvis else rng.choice([1, 1, 7])
    categories = [{"id": 1 + gap * i, "name": name} for i, name in enumerate(("ant", "bee", "cow"))]
    images = [{"id": i, "file_name": n, "width": WIDTH, "height": HEIGHT} for i, n in zip(ids, names, strict=True)]
    if lvis:
        for image in images:
            image |= {
                "neg_category_ids": [3],
                "not_exhaustive_category_ids": [],
                "coco_url": f"http://x/y/{image['file_name']}",
            }
            image["coco_url"] = f"http://x/y/{Path(image['file_name']).name}"
        for category, frequency in zip(categories, "rcf", strict=True):
            category |= {"frequency": frequency, "synonyms": [category["name"]], "image_count": 3}
    masks = rng.choice(["polygons", "polygons", "runs", "lengths", "mixed", "none"])
    annotations: list[dict] = []
    for i in range(rng.randrange(4, 9)):
        x, y = rng.randrange(0, WIDTH - 12), rng.randrange(0, HEIGHT - 12)
        w, h = rng.randrange(3, 12), rng.randrange(3, 12)
        annotation = {
            "id": i if rng.random() < 0.5 else i + 10,
            "image_id": ids[i % 3],
            "category_id": categories[rng.randrange(2)]["id"],
            "bbox": [x, y, w, h] if rng.random() < 0.3 else [float(s) for s in (x, y, w, h)],
            "area": float(w * h),
            "iscrowd": int(rng.random() < 0.1 and i > 2 and not lvis),
        }
        kind_of_mask = rng.choice(["polygons", "runs", "lengths"]) if masks == "mixed" else masks
        if kind_of_mask != "none":
            annotation["segmentation"] = segmentation(kind_of_mask, x, y, w, h)
        annotations.append(annotation)
    for i, annotation in enumerate(annotations):
        annotation["id"] = i + annotations[0]["id"]
    return {"images": images, "annotations": annotations, "categories": categories, "info": {"year": 2014}}


def segmentation(kind: str, x: int, y: int, w: int, h: int) -> Any:
    """The mask of a box."""
    if kind == "polygons":
        return [[float(s) for s in (x, y, x + w, y, x + w, y + h, x, y + h)]]
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y : y + h, x : x + w] = 1
    if kind == "runs":
        return {"size": [HEIGHT, WIDTH], "counts": mask_util.encode(np.asfortranarray(mask))["counts"].decode()}
    lengths, value = [0], 0
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            lengths.append(0)
            value = pixel
        lengths[-1] += 1
    return {"size": [HEIGHT, WIDTH], "counts": lengths}


FIELDS = {
    "annotations": ["id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "has_mask", "ignore"],
    "images": ["id", "file_name", "width", "height"],
    "categories": ["id", "name"],
}
LVIS_FIELDS = {
    "annotations": [],
    "images": ["neg_category_ids", "not_exhaustive_category_ids", "coco_url"],
    "categories": ["frequency", "synonyms", "image_count"],
}


def mutate(case: Case, content: Content, lvis: bool) -> Any:
    """One change."""
    rng = case.rng
    return rng.choice([_field] * 6 + [_mask, _mask, _box, _box, _entry, _section, _ids, _sizes])(case, content, lvis)


def _section(case: Case, content: Content, lvis: bool) -> Any:
    rng = case.rng
    section = rng.choice(sorted(FIELDS))
    how = rng.choice(["odd", "gone", "dict", "empty", "reversed", "top level", "nested", "null entry", "more keys"])
    case.note(f"{section}: {how}")
    entries = content.get(section)
    if how == "top level":
        return rng.choice([[content], None, 5, "x", [], {}])
    if how == "odd":
        content[section] = odd(rng)
    elif how == "gone":
        content.pop(section, None)
    elif how == "more keys":
        content |= {"licenses": odd(rng), "info": odd(rng), "x": odd(rng)}
    elif isinstance(entries, list):
        changed = {
            "dict": {str(i): e for i, e in enumerate(entries)}, "empty": [], "reversed": entries[::-1],
            "nested": [entries],
            "null entry": [*entries, None],
        }  # fmt: skip
        content[section] = changed[how]
    return content


def _entries(case: Case, content: Any, section: str) -> list[dict]:
    """One entry of a section, or all, that are objects."""
    entries = content.get(section) if isinstance(content, dict) else None
    entries = [e for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []
    return entries if not entries or case.rng.random() < 0.2 else [case.rng.choice(entries)]


def _field(case: Case, content: Content, lvis: bool) -> Any:
    rng = case.rng
    section = rng.choice(["annotations"] * 5 + ["images"] * 3 + ["categories"] * (3 if lvis else 2))
    key = rng.choice(FIELDS[section] + (LVIS_FIELDS[section] * 2 if lvis else []))
    how = rng.choice(["odd", "retyped", "retyped", "gone", "null", "of another"])
    entries = _entries(case, content, section)
    value = odd(rng)
    there = [e[key] for e in content[section] if isinstance(e, dict) and key in e] if entries else []
    other = rng.choice(there) if there else None
    for entry in entries:
        if how == "gone":
            entry.pop(key, None)
        elif how == "retyped":
            value = entry[key] = retyped(rng, entry.get(key))
        else:
            entry[key] = value = {"odd": value, "null": None, "of another": other}[how]
    case.note(f"{section} ({len(entries)}): {key} {how}, {value!r:.100}")
    return content


def _mask(case: Case, content: Content, lvis: bool) -> Any:
    rng = case.rng
    for annotation in _entries(case, content, "annotations"):
        box = annotation.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(s, int | float) for s in box):
            continue
        kind = rng.choice(["polygons", "runs", "lengths"])
        try:
            mask = segmentation(kind, *(int(side) for side in box))
        except (ValueError, OverflowError):
            continue
        how = _spoil_polygons(rng, mask) if kind == "polygons" else _spoil_runs(rng, mask)
        annotation["segmentation"] = mask[0] if how == "flat" else mask
        case.note(f"annotation {annotation.get('id')!r:.30}: mask {kind}, {how}, {annotation['segmentation']!r:.80}")
    return content


def _spoil_polygons(rng: random.Random, mask: list) -> str:
    polygon = mask[0]
    how = rng.choice(
        (
            "odd corner, two points, odd number, empty, flat, closed, points, far, second, line, odd, deep, "
            "clockwise, dict"
        ).split(", ")
    )
    if how == "odd corner":
        polygon[rng.randrange(len(polygon))] = odd(rng)
    elif how == "two points":
        del polygon[4:]
    elif how == "odd number":
        polygon.pop()
    elif how == "empty":
        mask[0] = []
    elif how == "closed":
        polygon += polygon[:2]
    elif how == "points":
        mask[0] = [[polygon[i], polygon[i + 1]] for i in range(0, len(polygon), 2)]
    elif how == "far":
        polygon[rng.randrange(len(polygon))] += rng.choice([0.5, 2, 50, 1e6, 1e300, -1e300])
    elif how == "second":
        mask.append(rng.choice([[], [1, 2], [1, 1, 3, 1, 3, 3], None, "x", odd(rng)]))
    elif how == "line":
        mask[0] = polygon[:4] + polygon[:2]
    elif how == "odd":
        mask[0] = odd(rng)
    elif how == "deep":
        mask[0] = [polygon]
    elif how == "clockwise":
        mask[0] = polygon[6:] + polygon[4:6] + polygon[2:4] + polygon[:2]
    elif how == "dict":
        mask[0] = {"x": polygon[0::2], "y": polygon[1::2]}
    return how


def _spoil_runs(rng: random.Random, mask: dict) -> str:
    counts = mask["counts"]
    how = rng.choice(
        (
            "byte, cut, more, size, swapped, odd counts, odd size, gone, number, empty runs, merged, bytes, floats, "
            "key, none"
        ).split(", ")
    )
    place = rng.randrange(len(counts))
    if how == "byte" and isinstance(counts, str):
        mask["counts"] = counts[:place] + chr(rng.randrange(32, 130)) + counts[place + 1 :]
    elif how == "cut":
        mask["counts"] = counts[:place]
    elif how == "more":
        mask["counts"] = counts + counts[:place]
    elif how == "size":
        mask["size"] = [HEIGHT + rng.choice([-1, 1]), WIDTH]
    elif how == "swapped":
        mask["size"] = [WIDTH, HEIGHT]
    elif how == "odd counts":
        mask["counts"] = odd(rng)
    elif how == "odd size":
        mask["size"] = rng.choice(
            [odd(rng), [odd(rng), WIDTH], [float(HEIGHT), float(WIDTH)], [str(HEIGHT), str(WIDTH)]]
        )
    elif how == "gone":
        del mask[rng.choice(["size", "counts"])]
    elif how == "number" and isinstance(counts, list):
        counts[place] = rng.choice([odd(rng), -counts[place], 2**31, 2**32, 2**32 + counts[place]])
    elif how == "empty runs" and isinstance(counts, list):
        counts[place:place] = [0, 0]
    elif how == "merged" and isinstance(counts, list) and place:
        counts[place - 1 : place + 1] = [counts[place - 1] + counts[place]]
    elif how == "bytes" and isinstance(counts, str):
        mask["counts"] = f"b'{counts}'"
    elif how == "floats" and isinstance(counts, list):
        mask["counts"] = [float(c) for c in counts]
    elif how == "key":
        mask["x"] = 5
    return how


def _box(case: Case, content: Content, lvis: bool) -> Any:
    rng = case.rng
    how = rng.choice(
        (
            "odd side, short, long, fraction, outside, little outside, thin, corners, negative, scaled, texts, tiny, "
            "half"
        ).split(", ")
    )
    for annotation in _entries(case, content, "annotations"):
        box = annotation.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(s, int | float) for s in box):
            continue
        x, y, w, h = box
        place = rng.randrange(4)
        scale = rng.choice([0.01, 3, 1e6, 1e307])
        annotation["bbox"] = {
            "odd side": [*box[:place], odd(rng), *box[place + 1 :]], "short": box[:place], "long": [*box, 1],
            "outside": [x + 35, y, w, h],
            "fraction": [x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT], "little outside": [WIDTH - 3, y,
            rng.choice([3.5, 3.999, 4, 4.01]), h],
            "thin": [x, y, rng.choice([0, 0.0, 1e-20, 0.3]), h], "corners": [x, y, x + w, y + h], "negative": [x, y,
            -w, h],
            "scaled": [s * scale for s in box], "texts": [str(s) for s in box], "tiny": [x, y, 0.4, 0.4],
            "half": [x + 0.5, y + 0.25, w, h],
        }[how]  # fmt: skip
        case.note(f"annotation {annotation.get('id')!r:.30}: bbox {how}, {annotation['bbox']!r:.100}")
    return content


def _entry(case: Case, content: Content, lvis: bool) -> Any:
    rng = case.rng
    section = rng.choice(sorted(FIELDS))
    entries = content.get(section)
    if not isinstance(entries, list) or not entries:
        return content
    place = rng.randrange(len(entries))
    how = rng.choice(["odd", "gone", "twice", "copy with another id", "all twice", "list"])
    entry = entries[place]
    if how == "odd":
        entries[place] = odd(rng)
    elif how == "gone":
        del entries[place]
    elif how == "twice":
        entries.append(json.loads(dumps(entry)))
    elif how == "copy with another id" and isinstance(entry, dict):
        entries.append({**json.loads(dumps(entry)), "id": 999 if isinstance(entry.get("id"), int | float) else "im999"})
    elif how == "all twice":
        content[section] = entries + json.loads(dumps(entries))
    elif isinstance(entry, dict):
        entries[place] = list(entry.values())
    case.note(f"{section} {place}: {how}")
    return content


def _sizes(case: Case, content: Content, lvis: bool) -> Any:
    size = case.rng.choice(
        [
            (65000, 65000),
            (10**6, 1),
            (2**31, 2),
            (10**12, 1),
            (1, 1),
            (2**16, 2**16),
            (HEIGHT, WIDTH),
            (3 * WIDTH, 3 * HEIGHT),
        ]
    )
    for image in _entries(case, content, "images"):
        image |= {"width": size[0], "height": size[1]}
    case.note(f"images of {size}")
    return content


def _ids(case: Case, content: Content, lvis: bool) -> Any:
    """Ids changed in all places where they are, as exporters do."""
    rng = case.rng
    entries = {
        s: [e for e in content.get(s) or [] if isinstance(e, dict)] if isinstance(content.get(s), list) else []
        for s in FIELDS
    }
    how = rng.choice(
        (
            "image texts, annotation ids gone, annotation ids from 0, annotation ids 0, category texts, "
            "image quoted, negative, shuffled, file names"
        ).split(", ")
    )
    case.note(f"ids: {how}")
    for i, annotation in enumerate(entries["annotations"]):
        if how in ("image texts", "image quoted"):
            annotation["image_id"] = str(annotation.get("image_id"))
        elif how == "annotation ids gone":
            annotation.pop("id", None)
        elif how in ("annotation ids from 0", "annotation ids 0"):
            annotation["id"] = i if how.endswith("from 0") else 0
        elif how == "category texts":
            annotation["category_id"] = str(annotation.get("category_id"))
        elif how == "negative" and isinstance(annotation.get("id"), int):
            annotation["id"] = -annotation["id"]
        elif how == "shuffled":
            annotation["id"] = f"{rng.random()}"
        elif how == "file names":
            annotation["image_id"] = next(
                (e.get("file_name") for e in entries["images"] if e.get("id") == annotation.get("image_id")), None
            )
    for image in entries["images"]:
        if how == "image texts":
            image["id"] = str(image.get("id"))
        elif how == "file names":
            image["id"] = image.get("file_name")
    for category in entries["categories"]:
        if how == "category texts":
            category["id"] = str(category.get("id"))
    return content


def run(case: Case, lvis: bool = False) -> None:
    """Write the files of a seed and judge what comes of them.

    Raises:
        Finding: it did not end right.
    """
    rng, folder = case.rng, case.folder
    content = sound(rng, lvis)
    write_images(content, folder / "images", lvis)
    for _ in range(rng.choice([0, 1, 1, 1, 1, 2, 3])):
        content = mutate(case, content, lvis) if isinstance(content, dict) else content
    path = folder / rng.choice(["truth.json", "truth.json", "wahrheit_ä.json", "my truth.json"])
    text = dumps(content)
    if rng.random() < 0.08:
        text = _twice_a_key(case, text)
    path.write_text(text, encoding="utf-8")
    if rng.random() < 0.12:
        case.note(damage_text(rng, path))
    reading = read_file(path, lvis)
    for image in reading.records:
        image_fault(folder / "images", image, reading)
    judge_json(path, folder / "images", reading, lvis)
    if rng.random() < 0.3 and not lvis:
        judge_command(path, folder / "images", reading)


def write_images(content: Content, folder: Path, lvis: bool) -> None:
    for image in content["images"]:
        path = folder / (f"y/{Path(image['file_name']).name}" if lvis else image["file_name"])
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(len(image["file_name"])).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)


def _twice_a_key(case: Case, text: str) -> str:
    key = case.rng.choice(["id", "image_id", "bbox", "annotations", "width", "images"])
    place = text.find(f'"{key}":', case.rng.randrange(len(text)))
    if place < 0:
        return text
    case.note(f"{key} twice")
    return f'{text[:place]}"{key}": {case.rng.choice(["0", "1", "[]", "null"])}, {text[place:]}'
