"""Ground truth for the APIs of COCO and LVIS, from which everything is taken out that their C code stumbles over.

pycocotools takes a match with an annotation whose id is 0 for none, loses all but the last of those that share an id,
sorts ids of images with numpy, and hangs or reads foreign memory at a damaged run-length mask. What is built here has
annotation ids from 1, flags and areas everywhere, and sound masks only; of the others a message is kept, for the
evaluation of masks to raise (:func:`require_masks`) and for that of boxes not to care.
"""

import io
import logging
import os
from collections.abc import Collection
from contextlib import redirect_stdout
from typing import Any

import numpy as np

from . import rle
from .annotation import annotation_area, flagged_mask_defect
from .coco import LVIS_LISTS, CocoContent, DataError, examine, is_masked, read_json, refuse
from .consumers import EVALUATION

logger = logging.getLogger(__name__)

FREQUENCIES = ("r", "c", "f")
UNMASKED = "unmasked"  # a kind of problem: an object without a mask, which spoils the evaluation of masks alone
# Up to how many training images a category is rare, and common (LVIS, Gupta et al., CVPR 2019).
RARE, COMMON = 10, 100


def coco_api(source: str | os.PathLike | dict[str, Any], title: str = "") -> Any:
    """``pycocotools.coco.COCO`` of a json, or of the content of one.

    Raises:
        FileNotFoundError: no such file.
        DataError: the content cannot be evaluated; names file, entries and remedy.
    """
    from pycocotools.coco import COCO

    found = _examined(source, title, lvis=False)
    api = COCO()
    api.dataset, api.mask_problems = _dataset(found, lvis=False)
    with redirect_stdout(io.StringIO()):
        api.createIndex()
    api.title = found.title
    return api


def lvis_api(source: str | os.PathLike | dict[str, Any], title: str = "") -> Any:
    """``lvis.LVIS`` of a json, or of the content of one; see :func:`coco_api`."""
    from lvis import LVIS

    found = _examined(source, title, lvis=True)
    api = LVIS.__new__(LVIS)
    api.logger = logging.getLogger("lvis")
    api.dataset, api.mask_problems = _dataset(found, lvis=True)
    api.dataset.setdefault("annotations", [])
    api._create_index()
    api.title = found.title
    return api


def require_masks(api: Any) -> None:
    """Refuse to evaluate masks where some of the ground truth are damaged or missing.

    Raises:
        DataError: lists those that are damaged, or says how many are missing.
    """
    unmasked = [problem for problem in api.mask_problems if problem.kind == UNMASKED]
    refuse([problem for problem in api.mask_problems if problem.kind != UNMASKED], api.title)
    if unmasked:
        objects = sum(not annotation["iscrowd"] for annotation in api.dataset["annotations"])
        more = f" and {len(unmasked) - 1:,} more" if len(unmasked) > 1 else ""
        raise DataError(
            f"{unmasked[0].where}{more} of {objects:,} objects: no segmentation. Masks are evaluated where each object "
            "has one; only those of DATASETS.TRAIN may lack some. Add them to the images of DATASETS.TEST and VAL "
            "(DATASETS.CUSTOM.HOLD_OUT takes images whose objects all have masks, if there are enough), or set "
            "MODEL.MASK_ON to False."
        )


def without_detections(api: Any) -> Any:
    """What ``api.loadRes`` would give for a model that found nothing, if it did not fail at an empty list."""
    from pycocotools.coco import COCO

    found = COCO()
    found.dataset = {**api.dataset, "annotations": []}
    with redirect_stdout(io.StringIO()):
        found.createIndex()
    return found


def nothing_found(api: Any, task: str) -> list[dict[str, Any]]:
    """One detection that covers no pixel, and so no object: what lvis, which fails at an empty list, evaluates for a
    model that found nothing.

    Args:
        task: "bbox" or "segm".
    """
    image, category = api.dataset["images"][0], api.dataset["categories"][0]
    found = {"image_id": image["id"], "category_id": category["id"], "score": 0.0}
    if task == "bbox":
        return [found | {"bbox": [0.0, 0.0, 0.0, 0.0]}]
    sides = [image["height"], image["width"]]
    return [found | {"segmentation": {"size": sides, "counts": rle.compress(np.array([sides[0] * sides[1]]))}}]


def lvis_eval_class() -> type:
    """``lvis.LVISEval`` for which a category may have no frequency: it is in none of the three groups then."""
    import lvis

    class Evaluation(lvis.LVISEval):
        def _prepare_freq_group(self):
            groups: list[list[int]] = [[] for _ in self.params.img_count_lbl]
            for row, category in enumerate(self.lvis_gt.load_cats(self.params.cat_ids)):
                if category.get("frequency") in FREQUENCIES:
                    groups[self.params.img_count_lbl.index(category["frequency"])].append(row)
            return groups

    return Evaluation


def _examined(source: Any, title: str, lvis: bool) -> CocoContent:
    content = source if isinstance(source, dict) else read_json(source)
    found = examine(content, title or str(source), lvis=lvis, masks=False)
    return found.require((EVALUATION,))


def _dataset(found: CocoContent, lvis: bool) -> tuple[dict[str, Any], list]:
    """The content for an API, and the problems of its masks."""
    count = len(found.problems)
    annotations = [_ground_truth(found, annotation, i) for i, annotation in enumerate(found.annotations, 1)]
    problems = found.problems[count:]
    for annotation in annotations if lvis else ():
        # lvis counts areas above 0 only; an object with a box is one, whatever its "area" says.
        annotation["area"] = max(annotation["area"], 1e-6)
    dataset: dict[str, Any] = {
        "info": {},
        "images": list(found.images.values()),
        "categories": [_category(found, number, lvis) for number in found.names],
    }
    for note in missing_lvis_fields(found) if lvis else ():
        logger.warning(f"{found.title}: {note}.")
    if found.annotated:
        dataset["annotations"] = annotations
    return dataset, problems


def _ground_truth(found: CocoContent, annotation: dict, number: int) -> dict[str, Any]:
    """An annotation as the APIs need it; notes what is wrong with its mask."""
    image = found.images[annotation["image_id"]]
    sides = image["height"], image["width"]
    mask = annotation.get("segmentation") if is_masked(annotation) else None
    where = f"{found.title}, annotation {annotation['id']!r}"
    defect = flagged_mask_defect(annotation, sides[1], sides[0])
    if defect is None and mask is None and not annotation["iscrowd"]:
        defect = UNMASKED, "it has no segmentation"
    if defect is None:
        mask = _sound_mask(mask, annotation, *sides)
    elif annotation["iscrowd"]:
        mask = _box_mask(annotation["bbox"], *sides)
    else:
        found.add(defect[0], where, defect[1], image["id"], annotation["id"])
        mask = None
    result = {
        "id": number,
        **{key: annotation[key] for key in ("image_id", "category_id", "bbox", "iscrowd")},
        "area": annotation_area({**annotation, "segmentation": mask}, *sides),
    }
    return result if mask is None else result | {"segmentation": mask}


def _sound_mask(mask: Any, annotation: dict, height: int, width: int) -> Any:
    if mask is None:  # of a crowd
        return _box_mask(annotation["bbox"], height, width)
    if not isinstance(mask, dict):
        return [[float(side) for side in polygon] for polygon in mask]
    return {"size": [height, width], "counts": rle.compress(rle.canonical(rle.run_lengths(mask, height, width)))}


def _box_mask(box: Collection[float], height: int, width: int) -> dict[str, Any]:
    """All pixels of a box: where a crowd has no usable mask, this is where it is."""
    x0, y0, w, h = box
    left, right = (round(min(max(x, 0), width)) for x in (x0, x0 + w))
    top, bottom = (round(min(max(y, 0), height)) for y in (y0, y0 + h))
    inside, columns = bottom - top, right - left
    if inside <= 0 or columns <= 0:
        lengths = np.array([height * width])
    else:
        lengths = np.tile([height - inside, inside], columns)  # before and in the box, column by column
        lengths[0] = left * height + top
        lengths = np.append(lengths, height * width - lengths.sum())
    return {"size": [height, width], "counts": rle.compress(rle.canonical(lengths))}


def _category(found: CocoContent, number: int, lvis: bool) -> dict[str, Any]:
    entry = {**found.categories[number], "id": number}
    if lvis and entry.get("frequency") not in FREQUENCIES:
        images = entry.get("image_count")
        entry["frequency"] = None
        if isinstance(images, int) and not isinstance(images, bool) and images >= 0:
            entry["frequency"] = FREQUENCIES[int(images > RARE) + int(images > COMMON)]
    return entry


def missing_lvis_fields(found: CocoContent) -> list[str]:
    """What an LVIS json lacks that changes what is counted."""
    notes = [
        f'no image has "{key}"; it is taken for empty'
        for key in LVIS_LISTS
        if found.images and not any(image[key] for image in found.images.values())
    ]
    rows = [number for number in found.names if _category(found, number, True)["frequency"] is None]
    if rows:
        notes.append(
            f'{len(rows)} categories have neither "frequency" (r, c, f) nor "image_count"; they count in AP, but in '
            "none of APr, APc and APf"
        )
    return notes
