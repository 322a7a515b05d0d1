"""What has to come of a COCO or LVIS json: of the check, the command, the loaders, the evaluators and of training."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
from coco_reference import FILE, MASK, SAID, SCORE, TRAIN, Reading, read
from outcomes import SILENT, UNCLEAR, Finding, attempt, expect, same
from PIL import Image

from dyn_d2.cli import check_data
from dyn_d2.config import add_dyn_d2_config
from dyn_d2.data.check import check_coco_json
from dyn_d2.data.check_report import REMEDIES
from dyn_d2.data.few_shot.sources import forget, load_source
from dyn_d2.evaluation.perfect import perfect_score

from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.datasets import load_coco_json, load_lvis_json
from detectron2.structures import polygons_to_bitmask


class _TwiceError(ValueError):
    pass


def read_file(path: Path, lvis: bool) -> Reading:
    """The reference's reading of a file."""

    def once(pairs: list) -> dict:
        if len(dict(pairs)) < len(pairs):
            raise _TwiceError
        return dict(pairs)

    try:
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
        content = json.loads(data.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError, OSError) as error:
        return Reading([(FILE, f"no json, {type(error).__name__}")])
    return read(content, lvis)


def image_fault(root: Path, image: tuple, reading: Reading) -> None:
    name, _, width, height, _ = image
    if not isinstance(name, str) or not name or "\0" in name:
        return
    try:
        with Image.open(root / name) as picture:
            picture.load()
            if picture.size != (width, height):
                reading.faults.append((SAID, f"image {name} has another size"))
    except (OSError, ValueError):
        reading.faults.append((SAID, f"image {name} cannot be opened"))


def judge_json(path: Path, images: Path, reading: Reading, lvis: bool) -> None:
    """Check, loaders, evaluators and mappers on a json, beside the reference's reading of it."""
    names = [str(path), path.name]
    report, _ = attempt("the check", lambda: check_coco_json(str(path), str(images), lvis=lvis), names)
    message = "" if report.ok else report.text()
    expect("the check", message, not reading.faults, reading.faults[:3])
    for problem in report.problems:
        if REMEDIES[problem.kind] not in str(problem) or not any(n in str(problem) for n in (*names, str(images))):
            raise Finding(UNCLEAR, f"the check says {problem}")
    name = f"fuzz_{path}"
    metadata = {"json_file": str(path), "image_root": str(images), "evaluator_type": "lvis" if lvis else "coco"}
    forget(name)
    MetadataCatalog.get(name).set(**metadata)
    DatasetCatalog.register(name, lambda: load_source(name))
    try:
        _judge_loaded(name, path, images, reading, lvis)
    finally:
        forget(name)
        forget(f"{name}_theirs")


def judge_command(path: Path, images: Path, reading: Reading) -> None:
    """The command on a json, with a cleaned copy: exit status, message, and what is kept."""
    out, said = path.with_name("clean.json"), io.StringIO()

    def call() -> int:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            return check_data.main(["--json", str(path), "--images", str(images), "--clean", str(out)])

    status, _ = attempt("the command", call, ["nothing"])
    lvis = looks_like_lvis(path)
    explained = "imperfect" in said.getvalue() and "leave their images" in said.getvalue()
    if not lvis and not explained:
        expect("the command", "" if status == 0 else said.getvalue(), not reading.faults, reading.faults[:3])
    if status == 2 and path.name not in said.getvalue():
        raise Finding(UNCLEAR, f"the command says {said.getvalue()}")
    if not out.exists():
        return
    cleaned = read_file(out, lvis)
    of_file = ("category", "categories", "image", "ids", "no images", "file", "images", "annotations")
    left = [what for what in cleaned.faulty(FILE, SCORE, TRAIN, MASK) if not what.startswith((*of_file, "all crowds"))]
    if left and not any(what.startswith(of_file) for _, what in reading.faults):
        raise Finding(SILENT, f"the cleaned copy still has {left[:3]}")
    kept, before = (sum(len(image[4]) for image in r.records) for r in (cleaned, reading))
    if kept < before - len(reading.faults) and not any(what.startswith(of_file) for _, what in reading.faults):
        raise Finding(SILENT, f"the cleaned copy has {kept} of {before} objects, for {len(reading.faults)} faults")


def looks_like_lvis(path: Path) -> bool:
    """As the command decides."""
    return b"neg_category_ids" in path.read_bytes()


def _judge_loaded(name: str, path: Path, images: Path, reading: Reading, lvis: bool) -> None:
    names = [str(path), path.name]
    theirs = load_lvis_json if lvis else load_coco_json
    loaders: dict[str, Callable] = {
        "our loader": lambda: load_source(name),
        "Detectron2's loader": lambda: theirs(str(path), str(images), f"{name}_theirs"),
    }
    wrong = reading.faulty(FILE)
    for what, load in loaders.items():
        records, message = attempt(what, load, names)
        expect(what, message, not wrong, wrong[:3])
        if records is not None:
            same(what, [_plain(r, lvis) for r in records], [_expected(r, images) for r in reading.records])
            _compare_masks(what, records, reading)
    if wrong:
        return
    same("the class names", list(MetadataCatalog.get(name).thing_classes), reading.names)
    for masks in (False, True):
        _judge_score(name, names, reading, masks)
    if not reading.faults:
        _judge_mapper(load_source(name), reading)


def _plain(record: dict, lvis: bool) -> tuple:
    objects = [
        (a["category_id"], [float(s) for s in a["bbox"]], 0 if lvis else a.get("iscrowd", 0))
        for a in record["annotations"]
    ]
    return record["file_name"], record["image_id"], record["width"], record["height"], objects


def _expected(image: tuple, images: Path) -> tuple:
    name, number, width, height, objects = image
    return f"{images}/{name}", number, width, height, [o[:3] for o in objects]


def _compare_masks(what: str, records: list[dict], reading: Reading) -> None:
    for record, image in zip(records, reading.records, strict=True):
        for annotation, (_, _, _, mask) in zip(record["annotations"], image[4], strict=True):
            found = annotation.get("segmentation")
            if isinstance(mask, np.ndarray):
                run_lengths = (
                    found if not isinstance(found["counts"], list) else mask_util.frPyObjects(found, *found["size"])
                )
                if not np.array_equal(mask_util.decode(run_lengths).astype(bool), mask):
                    raise Finding(SILENT, f"{what} gives another mask than the file has: {found}")
            elif isinstance(mask, list):
                same(f"{what}: a mask", found, mask)


def _judge_score(name: str, names: list[str], reading: Reading, masks: bool) -> None:
    what = f"the evaluation{' of masks' if masks else ''}"
    wrong = reading.faulty(FILE, SCORE)
    if masks:
        wrong += reading.faulty(MASK) if any(o[3] is None for r in reading.records for o in r[4] if not o[2]) else []
        wrong += [] if reading.masked else ["no mask"]
    found, message = attempt(what, lambda: perfect_score(name, config(masks)), [*names, name])
    if not any(r[4] for r in reading.records) and masks or found is not None and found.skipped:
        return
    expect(what, message, not wrong, wrong[:3])
    if found is None:
        return
    if not reading.faults and not (found.ok or found.reasons and "no object explains" not in found.reasons[0]):
        raise Finding(SILENT, f"{what} of perfect predictions of sound data gives {found.scores}: {found.reasons}")
    if not found.ok and (not found.reasons or "no object explains" in found.reasons[0]):
        raise Finding(SILENT, f"{what} of perfect predictions gives {found.scores}, and nothing explains it")
    counted = [o for r in reading.records for o in r[4] if not o[2]]
    if counted and found.ok and not found.skipped and any(s != s for s in found.scores.values()):
        raise Finding(SILENT, f"{what} counts none of {len(counted)} objects: {found.scores}")


def _judge_mapper(records: list[dict], reading: Reading) -> None:
    """Training gets the objects of the file."""
    for masks in (None, "polygon", "bitmask") if reading.masked else (None,):
        if masks == "polygon" and any(isinstance(o[3], np.ndarray) for r in reading.records for o in r[4]):
            continue
        mapper = DatasetMapper(
            True, augmentations=[], image_format="BGR", use_instance_mask=masks is not None,
            instance_mask_format=masks or "polygon"
        )  # fmt: skip
        for record, (name, _, width, height, objects) in zip(records, reading.records, strict=True):
            given = mapper(record)["instances"]
            wanted = [o for o in objects if not o[2]]
            boxes = [
                [min(max(x, 0), width), min(max(y, 0), height), min(x + w, width), min(y + h, height)]
                for _, (x, y, w, h), _, _ in wanted
            ]
            same(f"the classes of {name} in training", given.gt_classes.tolist(), [o[0] for o in wanted])
            if not np.allclose(given.gt_boxes.tensor.numpy().reshape(-1, 4), np.reshape(boxes, (-1, 4)), atol=1e-4):
                raise Finding(
                    SILENT, f"the boxes of {name} in training are {given.gt_boxes.tensor.tolist()}, not {boxes}"
                )
            if masks == "bitmask" and wanted:
                for found, (_, _, _, mask) in zip(given.gt_masks.tensor.numpy(), wanted, strict=True):
                    right = (
                        mask
                        if isinstance(mask, np.ndarray)
                        else polygons_to_bitmask([np.array(p, float) for p in mask], height, width)
                    )
                    if not np.array_equal(found, right):
                        raise Finding(SILENT, f"a mask of {name} in training is another than that of the file")


def config(masks: bool) -> CfgNode:
    """Defaults."""
    if masks not in _CONFIGS:
        cfg = _CONFIGS[masks] = get_cfg()
        add_dyn_d2_config(cfg)
        cfg.MODEL.MASK_ON = masks
    return _CONFIGS[masks]


_CONFIGS: dict[bool, CfgNode] = {}
