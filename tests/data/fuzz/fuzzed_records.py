"""Mutated records, as Python code registers them."""

import copy
import fractions
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from coco_reference import finite, identity, integer, run_lengths, shoelace
from fuzzed_coco import HEIGHT, WIDTH, segmentation
from json_judge import config
from odd_values import odd
from outcomes import SILENT, UNCLEAR, Case, Finding, attempt, expect, same

from dyn_d2.data.check import check_dataset
from dyn_d2.data.check_report import REMEDIES
from dyn_d2.data.few_shot.sources import forget, load_source
from dyn_d2.data.sound_dicts import sound_dicts
from dyn_d2.evaluation.perfect import perfect_score

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

CLASSES = ("ant", "bee", "cow")


def sound(rng: random.Random) -> list[dict]:
    """Records that nothing is wrong with."""
    as_text = rng.random() < 0.3
    records = []
    for i in range(3):
        record: dict[str, Any] = {
            "file_name": f"/x/{i}.png",
            "image_id": f"im{i}" if as_text else i,
            "width": WIDTH,
            "height": HEIGHT,
        }
        record["annotations"] = []
        for _ in range(rng.randrange(1, 4)):
            x, y, w, h = rng.randrange(0, 25), rng.randrange(0, 18), rng.randrange(3, 12), rng.randrange(3, 12)
            xywh = rng.random() < 0.5
            box: Any = [x, y, w, h] if xywh else [x, y, x + w, y + h]
            box = rng.choice(
                [lambda b: b, lambda b: tuple(map(float, b)), lambda b: np.array(b), lambda b: np.array(b, np.float32)]
            )(box)
            annotation = {
                "bbox": box,
                "bbox_mode": BoxMode.XYWH_ABS if xywh else BoxMode.XYXY_ABS,
                "category_id": rng.randrange(3),
            }
            kind = rng.choice(["polygons", "runs", "lengths", "arrays", "none"])
            if kind == "arrays":
                annotation["segmentation"] = [np.array(p) for p in segmentation("polygons", x, y, w, h)]
            elif kind != "none":
                annotation["segmentation"] = segmentation(kind, x, y, w, h)
                if kind == "runs" and rng.random() < 0.5:
                    annotation["segmentation"]["counts"] = annotation["segmentation"]["counts"].encode()
            if rng.random() < 0.3:
                annotation["iscrowd"] = rng.choice([0, 0, np.int64(0), False, 1])
            record["annotations"].append(annotation)
        records.append(record)
    return records


def strange(rng: random.Random) -> Any:
    """Any value that Python has."""
    return rng.choice(
        [
            np.int64(1), np.float32(1.5), np.float64("nan"), np.bool_(True), np.array([1, 2, 3, 4]), np.array([]),
            np.array(5), np.zeros((2, 2)),
            np.array(["a"]), torch.tensor(1), torch.tensor([1.0, 2, 3, 4]), object(), Path("x"), b"abc", {1, 2}, (1,
            2), (1, 2, 30, 20), 1j,
            fractions.Fraction(1, 2), range(4), lambda: 1, BoxMode.XYXY_REL, BoxMode.XYWHA_ABS, BoxMode.XYWH_ABS, 0,
            1, ..., slice(1), str, [np.nan] * 4,
            [np.float32(1), 2, np.int8(9), 9], np.array([1, 2, 9, 9], object), iter([1, 2, 3, 4]),
            [torch.tensor(1.0)] * 4,
        ]
        + [odd(rng) for _ in range(20)]
    )  # fmt: skip


def mutate(case: Case, records: Any) -> Any:
    """One change."""
    rng = case.rng
    how = rng.choice(["field"] * 8 + ["record", "twice", "annotations", "gone", "entry", "tuple"])
    place = rng.randrange(len(records))
    record = records[place]
    case.note(f"record {place}: {how}")
    if how == "record":
        records[place] = strange(rng)
    elif how == "twice":
        records.append(copy.copy(record))
    elif how == "tuple" and isinstance(record, dict) and isinstance(record.get("annotations"), list):
        record["annotations"] = tuple(record["annotations"])
    elif isinstance(record, dict):
        value = strange(rng)
        if how == "annotations":
            record["annotations"] = value
        elif how == "gone":
            record.pop(rng.choice(["file_name", "image_id", "width", "height", "annotations"]), None)
        elif how == "entry" and isinstance(record.get("annotations"), list):
            record["annotations"].append(value)
        elif how == "field":
            inner = record.get("annotations")
            if rng.random() < 0.6 and isinstance(inner, list) and inner and isinstance(inner[0], dict):
                key = rng.choice(["bbox", "bbox_mode", "category_id", "segmentation", "iscrowd", "has_mask", "id"])
                inner[0][key] = value
            else:
                key = rng.choice(["file_name", "image_id", "width", "height"])
                record[key] = value
            case.note(key)
        case.note(f"{type(value).__name__} {value!r:.60}")
    return records


def run(case: Case) -> None:
    """
    Raises:
        Finding: a case did not end right.
    """
    records: Any = sound(case.rng)
    for _ in range(case.rng.choice([0, 1, 1, 1, 2])):
        records = mutate(case, records)
    name = f"fuzz_records_{case.folder.name}"
    forget(name)
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(thing_classes=list(CLASSES), evaluator_type="coco")
    try:
        judge(name, records)
    finally:
        forget(name)


# ---------------------------------------------------------------------------------------------------------- reference


def plain(value: Any) -> Any:
    """numpy's numbers and arrays as Python's; anything else that json has not stays strange."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return plain(value.tolist()) if value.ndim == 1 else None
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def read(records: list) -> tuple[list, dict[str, list]]:
    """(image id, objects) of each record, and faults by who has to refuse them."""
    faults: dict[str, list] = {"file": [], "score": [], "mask": [], "said": []}
    result, types = [], set()
    for position, record in enumerate(records):
        if not isinstance(record, dict):
            faults["file"].append(f"record {position}")
            continue
        number = identity(plain(record.get("image_id"))) if not isinstance(record.get("image_id"), np.ndarray) else None
        if number is None or not isinstance(record.get("file_name"), str):
            faults["file"].append(f"record {position}: {number} {record.get('file_name')}")
        types.add(type(number))
        if number in [i for i, _ in result]:
            faults["said"].append("image twice")
            faults["score"].append("image twice")
        sides = [
            plain(record.get(side)) if not isinstance(record.get(side), np.ndarray) else "x"
            for side in ("width", "height")
        ]
        sound_sides = [None if side is None else integer(side) for side in sides]
        if any(s is not None and (i is None or not 0 < i <= 2**20) for s, i in zip(sides, sound_sides, strict=True)):
            faults["file"].append(f"size {sides}")
            sound_sides = [None, None]
        if None in sound_sides:
            faults["score"].append("no size")
        given = record.get("annotations", [])
        if not isinstance(given, list | tuple) or not all(isinstance(a, dict) for a in given):
            faults["file"].append("annotations")
            continue
        result.append((number, [_object(a, sound_sides, faults) for a in given]))
    if len(types - {type(None)}) > 1:
        faults["file"].append("ids of two types")
    return result, faults


def _object(annotation: dict, sides: list, faults: dict[str, list]) -> tuple:
    category = annotation.get("category_id")
    if isinstance(category, bool | np.bool_) or not isinstance(category, int | np.integer) or not 0 <= category < 3:
        faults["file"].append(f"category {category}")
        category = -1
    mode, box, crowd = annotation.get("bbox_mode"), annotation.get("bbox"), annotation.get("iscrowd")
    if isinstance(mode, bool) or not isinstance(mode, int) or mode not in (0, 1):
        faults["file"].append(f"mode {mode}")
    ordered = isinstance(box, list | tuple) or (isinstance(box, np.ndarray) and box.ndim == 1)
    box = [float(s) if isinstance(s, fractions.Fraction) else plain(s) for s in box] if ordered else None
    if not box or len(box) != 4 or not all(finite(s) for s in box):
        faults["file"].append(f"box {box}")
        box = None
    crowd = 0 if crowd is None else plain(crowd) if not isinstance(crowd, np.ndarray) else "x"
    crowd = int(crowd) if isinstance(crowd, bool) else integer(crowd)
    if crowd not in (0, 1):
        faults["file"].append(f"iscrowd {annotation.get('iscrowd')}")
    if box and isinstance(mode, int) and mode in (0, 1) and not isinstance(mode, bool):
        x0, y0, a, b = box
        x1, y1 = (x0 + a, y0 + b) if mode == 1 else (a, b)
        outside = None not in sides and (min(x0, y0) < -1 or x1 > sides[0] + 1 or y1 > sides[1] + 1)
        if x1 <= x0 or y1 <= y0 or outside or (x0 >= 0 and y0 >= 0 and x1 <= 1 and y1 <= 1 and box != [0, 0, 1, 1]):
            faults["said"].append(f"box {box}")
    masked = _mask(annotation, sides, faults)
    return int(category), box, crowd, masked


def _mask(annotation: dict, sides: list, faults: dict[str, list]) -> bool:
    """Whether there is a sound mask; notes what is wrong with one."""
    mask, has = annotation.get("segmentation"), annotation.get("has_mask")
    has = plain(has) if not isinstance(has, np.ndarray) else "x"
    has = has if has is None else int(has) if isinstance(has, bool) else integer(has)
    if annotation.get("has_mask") is not None and has not in (0, 1):
        faults["file"].append("has_mask")
        return False
    if has == 0 and annotation.get("has_mask") is not None:
        return False
    if mask is None or (isinstance(mask, list | tuple | dict) and not mask):
        if has:
            faults["mask"].append("no mask")
        return False
    if isinstance(mask, dict):
        counts = mask.get("counts")
        counts = counts.decode("latin1") if isinstance(counts, bytes) else plain(counts)
        size = plain(mask.get("size"))
        if not isinstance(size, list) or len(size) != 2 or None in (integer(s) for s in size):
            faults["mask"].append("size")
            return False
        own = [integer(size[1]), integer(size[0])]
        wanted = [own_side if side is None else side for side, own_side in zip(sides, own, strict=True)]
        runs = run_lengths({"size": size, "counts": counts}, wanted) if min(wanted) > 0 else None
        if runs is None:
            faults["mask"].append("runs")
            return False
        if not sum(runs[1::2]):
            faults["said"].append("a mask without a pixel")
        return True
    polygons = [plain(p) for p in mask] if isinstance(mask, list | tuple) else None
    if not polygons or not all(
        isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0 and all(finite(c) for c in p) for p in polygons
    ):
        faults["mask"].append("polygons")
        return False
    if None not in sides and any(
        min(p[axis::2]) < -0.05 * sides[axis] or max(p[axis::2]) > 1.05 * sides[axis]
        for p in polygons
        for axis in (0, 1)
    ):
        faults["mask"].append("polygons outside")
        return False
    if not any(shoelace(p) for p in polygons):
        faults["said"].append("a mask without area")
    return True


def judge(name: str, records: list) -> None:
    """Check, loaders and evaluation beside the reference."""
    right, faults = read(records)
    names = [name]
    reports, message = attempt("the check", lambda: check_dataset(name, read_images=False), names)
    report = reports[0]
    for problem in report.problems:
        if REMEDIES[problem.kind] not in str(problem) or name not in str(problem):
            raise Finding(UNCLEAR, f"the check says {problem}")
    wrong = [what for of_kind in (faults["file"], faults["mask"], faults["said"]) for what in of_kind]
    expect("the check", "" if report.ok else report.text(), not wrong, wrong[:3])
    for what, load in (
        ("our loader", lambda: load_source(name)),
        ("the training's loader", lambda: sound_dicts([name], False)),
    ):
        if what != "our loader" and not any(isinstance(r, dict) and "annotations" in r for r in records):
            continue
        found, message = attempt(what, load, names)
        expect(what, message, not faults["file"], faults["file"][:3])
        if found is not None:
            same(
                what,
                [(r["image_id"], _plain(r)) for r in found],
                [(i, [o[:3] for o in objects]) for i, objects in right],
            )
    for masks in (False, True):
        unmasked = [o for _, objects in right for o in objects if not o[2] and not o[3]]
        bad = faults["file"] + faults["score"] + ([str(unmasked)] if masks and unmasked else [])
        found, message = attempt("the evaluation", lambda masks=masks: perfect_score(name, config(masks)), names)
        if any(o for _, objects in right for o in objects):
            expect("the evaluation", message, not bad, bad[:3])
        if found is not None and not wrong and not (found.ok and not any(s != s for s in found.scores.values())):
            if any(not o[2] for _, objects in right for o in objects):
                raise Finding(SILENT, f"perfect predictions score {found.scores}: {found.reasons}")


def _plain(record: dict) -> list[tuple]:
    return [(a["category_id"], a["bbox"], a.get("iscrowd", 0)) for a in record.get("annotations", ())]
