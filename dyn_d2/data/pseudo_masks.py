"""Masks that a program makes for objects which have boxes only: what two baselines of Zhou et al., Learning Saliency
Propagation for Semi-Supervised Instance Segmentation, CVPR 2020, train on (BDD100K).

``INPUT.PARTIAL_MASKS.PSEUDO`` is "grabcut" (GrabCut Mask R-CNN: the object is cut out of its box by its colours; Rother
et al., GrabCut, SIGGRAPH 2004) or the path of a json of predicted masks (Progressive Mask R-CNN: dyn-d2 pseudo-masks
lets a model that was trained on the masks there are predict the others). Its annotation gets "pseudo_mask": True.

GrabCut runs once: its masks are kept in a folder, each under its image file, box and settings.
"""

import functools
import hashlib
import json
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from tqdm import tqdm

from dyn_d2.utils.atomic import write_json
from dyn_d2.utils.errors import UserError

from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode
from detectron2.utils import comm

from .validity.annotation import mask_defect
from .validity.rle import run_lengths

logger = logging.getLogger(__name__)

Record = dict[str, Any]
Rle = dict[str, Any]  # size (height, width), counts (text)
ObjectKey = tuple[str, tuple[float, ...]]

NONE, GRABCUT = "none", "grabcut"
CACHE_FILES = 256
MIN_PIXELS = 25  # of foreground and of background: five for each of GrabCut's colours


@dataclass(frozen=True)
class GrabCut:
    """How GrabCut is run.

    Attributes:
        iterations: of estimating colours and cutting.
        margin: what around a box counts as background, as a share of the box's sides.
        core: the middle of a box that is held to be the object, as a share of the sides. Without it, half of 55 objects
            of COCO came out as less than a tenth of their box; with it 5 % did.
        max_side: larger surroundings are shrunk to this many pixels before they are cut.
        min_side: of boxes in pixels; smaller ones get no mask.
        min_share: of the box; smaller masks count as failed.
    """

    iterations: int = 5
    margin: float = 0.5
    core: float = 0.5
    max_side: int = 160
    min_side: int = 8
    min_share: float = 0.1

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.margin <= 0:
            raise ValueError(
                f"INPUT.PARTIAL_MASKS.GRABCUT has ITERATIONS {self.iterations} and MARGIN {self.margin}: both have to "
                "be positive."
            )


DEFAULT = GrabCut()


def add_pseudo_masks(cfg, records: Sequence[Record]) -> Sequence[Record]:
    """``records`` where objects without "segmentation" have the pseudo-masks that INPUT.PARTIAL_MASKS.PSEUDO asks for.

    Objects for which none can be made stay as they are; crowds get none.

    Raises:
        UserError: OpenCV is not there.
        FileNotFoundError, ValueError: the json of predicted masks is missing, broken, or of other data.
    """
    source = cfg.INPUT.PARTIAL_MASKS.PSEUDO
    if source == NONE:
        return records
    if source == GRABCUT:
        masks = grabcut_masks(cfg, records)
    else:
        masks = read_masks(source)
    result = [
        {**record, "annotations": [_with_mask(a, record, masks) for a in record["annotations"]]}
        if "annotations" in record
        else record
        for record in records
    ]
    lacking = sum(1 for record in records for _ in without_mask(record))
    made = sum(a.get("pseudo_mask", False) for record in result for a in record.get("annotations", ()))
    logger.info(f"pseudo-masks ({source}): {made:,} of {lacking:,} objects without a mask got one")
    if lacking and not made and source != GRABCUT:
        raise ValueError(
            f"INPUT.PARTIAL_MASKS.PSEUDO {source} has no mask for any of the {lacking:,} objects of "
            f"{', '.join(cfg.DATASETS.TRAIN)} that need one: make it with dyn-d2 pseudo-masks for these data."
        )
    return result


def without_mask(record: Record) -> list[Record]:
    """The annotations of ``record`` that have no mask, crowds left out."""
    return [a for a in record.get("annotations", ()) if "segmentation" not in a and not a.get("iscrowd", 0)]


def object_key(record: Record, annotation: Record) -> ObjectKey:
    """Which object it is, in files of pseudo-masks: the id of its image, and its box (XYWH, hundredths of pixels)."""
    box = BoxMode.convert([float(side) for side in annotation["bbox"]], annotation["bbox_mode"], BoxMode.XYWH_ABS)
    return str(record.get("image_id", record.get("file_name"))), tuple(round(side, 2) for side in box)


def _with_mask(annotation: Record, record: Record, masks: dict[ObjectKey, Rle]) -> Record:
    if "segmentation" in annotation or annotation.get("iscrowd", 0):
        return annotation
    mask = masks.get(object_key(record, annotation))
    if mask is None:
        return annotation
    if defect := mask_defect(mask, record.get("width"), record.get("height")):
        raise ValueError(
            f"INPUT.PARTIAL_MASKS.PSEUDO: {record.get('file_name')} gets a {defect[1]}: make the masks anew."
        )
    return {**annotation, "segmentation": mask, "pseudo_mask": True}


def encode(mask: np.ndarray) -> Rle:
    """(H, W) bool -> run lengths that json can hold."""
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def read_masks(path: str) -> dict[ObjectKey, Rle]:
    """Masks of a json that dyn-d2 pseudo-masks has written.

    Raises:
        FileNotFoundError, ValueError: it is not there, or no such file.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"INPUT.PARTIAL_MASKS.PSEUDO is {path!r}: there is no such file. It has to be {NONE!r}, {GRABCUT!r}, or "
            "a json that dyn-d2 pseudo-masks has written."
        )
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        found: dict[ObjectKey, Rle] = {}
        for annotation in content["annotations"]:
            x, y, width, height = (round(float(side), 2) for side in annotation["bbox"])
            run_lengths(annotation["segmentation"])
            found[str(annotation["image_id"]), (x, y, width, height)] = annotation["segmentation"]
        return found
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"INPUT.PARTIAL_MASKS.PSEUDO {path} is no json of masks ({type(error).__name__}: {error}): write it anew "
            "with dyn-d2 pseudo-masks."
        ) from error


# -------------------------------------------------------------------------------------------------------------- GrabCut


@functools.cache
def _opencv() -> ModuleType:
    try:
        import cv2
    except ImportError as error:  # absent, or a server without libGL
        raise UserError(
            f"INPUT.PARTIAL_MASKS.PSEUDO {GRABCUT} needs OpenCV, which does not load here ({error}): "
            "pip install opencv-python-headless."
        ) from error
    return cv2


def grabcut_mask(image: np.ndarray, box: Sequence[float], settings: GrabCut = DEFAULT) -> np.ndarray | None:
    """The object in a box, as far as its colours differ from those around the box.

    Pixels outside of the box are background, those in its middle foreground, for the others their colours decide.

    Args:
        image: (H, W, 3) uint8.
        box: XYXY in pixels.

    Returns:
        (H, W) bool, False outside of the box. None where GrabCut has nothing to go by (a tiny box, no surroundings) or
        finds (almost) nothing: a mask that is wrong for sure teaches less than none.
    """
    cv2 = _opencv()
    height, width = image.shape[:2]
    x0, y0, x1, y1 = (round(min(max(side, 0), end)) for side, end in zip(box, (width, height) * 2, strict=True))
    if min(x1 - x0, y1 - y0) < settings.min_side:
        return None
    across, down = (max(int(settings.margin * side), settings.min_side) for side in (x1 - x0, y1 - y0))
    left, top, right, bottom = max(x0 - across, 0), max(y0 - down, 0), min(x1 + across, width), min(y1 + down, height)
    window = np.ascontiguousarray(image[top:bottom, left:right])
    labels = np.full(window.shape[:2], cv2.GC_BGD, np.uint8)
    labels[y0 - top : y1 - top, x0 - left : x1 - left] = cv2.GC_PR_FGD
    dx, dy = (round((1 - settings.core) / 2 * side) for side in (x1 - x0, y1 - y0))
    labels[y0 - top + dy : y1 - top - dy, x0 - left + dx : x1 - left - dx] = cv2.GC_FGD
    shrink = settings.max_side / max(labels.shape)
    if shrink < 1:
        window = cv2.resize(window, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        labels = cv2.resize(labels, window.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    outside = (labels == cv2.GC_BGD).sum()
    if min(outside, labels.size - outside) < MIN_PIXELS:
        return None
    cv2.setRNGSeed(0)  # of this thread: colours are clustered from random starts
    cv2.grabCut(window, labels, None, np.zeros((1, 65)), np.zeros((1, 65)), settings.iterations, cv2.GC_INIT_WITH_MASK)
    found = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    mask = np.zeros((height, width), dtype=bool)
    mask[top:bottom, left:right] = cv2.resize(found, (right - left, bottom - top), interpolation=cv2.INTER_NEAREST)
    inside = mask[y0:y1, x0:x1].copy()
    mask[:] = False
    mask[y0:y1, x0:x1] = inside
    return mask if inside.mean() >= settings.min_share else None


def default_cache() -> Path:
    """Where GrabCut's masks are kept if no key says otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dyn_d2" / "pseudo_masks"


def grabcut_masks(cfg, records: Iterable[Record]) -> dict[ObjectKey, Rle]:
    """GrabCut's mask of every object without one, from the cache where it was made before.

    Several processes share the work, each with as many threads as DATALOADER.NUM_WORKERS says. A run that is killed
    goes on where it was, but for the files of the cache that it was working on.
    """
    _opencv()
    keys = cfg.INPUT.PARTIAL_MASKS
    settings = GrabCut(keys.GRABCUT.ITERATIONS, keys.GRABCUT.MARGIN)
    digest = hashlib.sha256(repr(astuple(settings)).encode()).hexdigest()[:8]
    folder = Path(keys.CACHE or default_cache()) / f"grabcut-{digest}"
    parts: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        if without_mask(record):
            parts[int(_hash(os.path.realpath(record["file_name"])), 16) % CACHE_FILES].append(record)
    jobs = [(folder / f"{number:02x}.json", parts[number]) for number in sorted(parts)]
    threads = max(cfg.DATALOADER.NUM_WORKERS, 1)
    _fill(jobs[comm.get_rank() :: comm.get_world_size()], settings, threads)
    comm.synchronize()
    found = _fill(jobs, settings, threads)  # all there, unless processes on other machines have another cache
    return {key: mask for of_file in found for key, mask in of_file.items() if mask is not None}


def _fill(jobs: list[tuple[Path, list[Record]]], settings: GrabCut, threads: int) -> list[dict[ObjectKey, Rle | None]]:
    """Make what each file of the cache lacks; returns what they hold of the records."""
    objects = sum(len(without_mask(record)) for _, records in jobs for record in records)
    shown = tqdm(total=objects, desc="GrabCut", unit=" objects", delay=2, disable=not comm.is_main_process())
    with shown, ThreadPoolExecutor(threads) as pool:  # OpenCV lets other threads run
        return list(pool.map(lambda job: _fill_file(job[0], job[1], settings, shown), jobs))


def _fill_file(path: Path, records: list[Record], settings: GrabCut, shown: tqdm) -> dict[ObjectKey, Rle | None]:
    kept = _read_cache(path)
    before = len(kept)
    found: dict[ObjectKey, Rle | None] = {}
    for record in records:
        wanted = {object_key(record, a): a for a in without_mask(record)}
        stamp = os.stat(record["file_name"])
        name = f"{os.path.realpath(record['file_name'])} {stamp.st_size} {stamp.st_mtime_ns}"
        places = {key: _hash(f"{name} {key[1]}") for key in wanted}
        if not places.keys() <= {key for key, place in places.items() if place in kept}:
            image = _read(record)
            for key, annotation in wanted.items():
                if places[key] not in kept:
                    box = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
                    mask = grabcut_mask(image, box, settings)
                    kept[places[key]] = None if mask is None else encode(mask)
        found |= {key: kept[place] for key, place in places.items()}
        shown.update(len(wanted))
    if len(kept) > before:
        write_json(path, kept, indent=None)
    return found


def _read_cache(path: Path) -> dict[str, Rle | None]:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(kept, dict) and all(mask is None or {"size", "counts"} <= mask.keys() for mask in kept.values()):
            return kept
        raise ValueError("no masks by place")
    except FileNotFoundError:
        return {}
    except (AttributeError, RecursionError, ValueError):
        logger.warning(f"{path} is damaged: its masks are made again")
        return {}


def _read(record: Record) -> np.ndarray:
    image = read_image(record["file_name"], format="BGR")
    size = record.get("width", image.shape[1]), record.get("height", image.shape[0])
    if size != (image.shape[1], image.shape[0]):
        raise ValueError(
            f"{record['file_name']} is {image.shape[1]} x {image.shape[0]}, but the annotations say {size[0]} x "
            f"{size[1]}: correct the data set (dyn-d2 check-data lists all such images)."
        )
    return image


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]
