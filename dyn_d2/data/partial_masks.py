"""Boxes for every object and masks for some of them: the data of semi-supervised instance segmentation (Zhou et al.,
Learning Saliency Propagation for Semi-Supervised Instance Segmentation, CVPR 2020).

An annotation has a mask if it has a "segmentation". It may say so itself by "has_mask": True, which then is checked, or
False, which leaves the segmentation unused. Which of the masks that a data set has are trained on is decided by keys,
on the records and not in a json: those of some classes (``INPUT.PARTIAL_MASKS.CLASSES``, category-wise supervision),
those of some images (``FRACTION``, ``SEED``, image-wise), or both. What is left without one may get a pseudo-mask
(``PSEUDO``, see pseudo_masks.py).
"""

import difflib
import logging
from collections import Counter
from collections.abc import Collection, Sequence
from functools import wraps
from typing import Any, NoReturn

import pycocotools.mask as mask_util
import torch

from dyn_d2.config.applied import note_partial_masks
from dyn_d2.data.digit_scenes.polygons import mask_to_polygons
from dyn_d2.data.few_shot.splits import COCO_NOVEL
from dyn_d2.data.few_shot.stages import is_fine_tuning
from dyn_d2.utils.seeds import derive_seed

from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.data.detection_utils import annotations_to_instances, transform_instance_annotations
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY

from .pseudo_masks import add_pseudo_masks
from .validity.annotation import flagged_mask_defect
from .validity.coco import is_masked

logger = logging.getLogger(__name__)

Record = dict[str, Any]

VOC_CLASSES = COCO_NOVEL[1]
# Short names of class lists; "non-" before one means every class of the data set that it does not name.
CLASS_GROUPS = {"voc": VOC_CLASSES}


class MaskError(ValueError):
    """A mask that contradicts its image or its flag; the message names image and annotation."""


def limit_masks(
    records: Sequence[Record], classes: Collection[int] | None = None, fraction: float = 1.0, seed: int = 0
) -> list[Record]:
    """Take away the masks that shall not be trained on; boxes stay.

    Args:
        records: data set dicts, some of which may be without "annotations"; left unchanged.
        classes: masks of these category ids stay; None for all.
        fraction: masks of this share of the images that have any stay, at least of one unless it is 0. The choice
            depends on the seed and the images' ids only, and those of a smaller share are among those of a larger.
        seed: of that choice.

    Raises:
        ValueError: ``fraction`` is not within [0, 1].
        MaskError: see :func:`has_mask`.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"INPUT.PARTIAL_MASKS.FRACTION is {fraction}: it has to be within 0 and 1.")
    flags = [_flags(record) for record in records]
    with_masks = {_image(record) for record, of_record in zip(records, flags, strict=True) if any(of_record)}
    ordered = sorted(with_masks, key=lambda image: derive_seed(seed, "masks", image))
    count = max(round(fraction * len(ordered)), int(fraction > 0))
    chosen = set(ordered[:count])

    def limited(record: Record, of_record: list[bool]) -> Record:
        if "annotations" not in record:
            return record
        annotations = [
            annotation
            if flag and _image(record) in chosen and (classes is None or annotation["category_id"] in classes)
            else {key: value for key, value in annotation.items() if key not in ("segmentation", "has_mask")}
            for annotation, flag in zip(record["annotations"], of_record, strict=True)
        ]
        return {**record, "annotations": annotations}

    return [limited(record, of_record) for record, of_record in zip(records, flags, strict=True)]


def _image(record: Record) -> int | str:
    return record["image_id"] if "image_id" in record else record.get("file_name", "")


def _flags(record: Record) -> list[bool]:
    return [
        not annotation.get("iscrowd", 0) and has_mask(annotation, record, number)
        for number, annotation in enumerate(record.get("annotations", ()))
    ]


def has_mask(annotation: Record, record: Record, number: int) -> bool:
    """Whether an annotation has a mask to train on.

    Args:
        annotation: with "segmentation" (polygons or RLE), "has_mask", both or neither.
        record: its image's data set dict; the mask is held against "width" and "height" if they are there.
        number: position of the annotation in the image.

    Raises:
        MaskError: it is flagged as masked without a mask, the mask is malformed or of another size than the image, or a
            polygon lies outside the image.
    """
    if not is_masked(annotation) and not annotation.get("has_mask"):
        return False
    if defect := flagged_mask_defect(annotation, record.get("width"), record.get("height")):
        where = f"{record.get('file_name', f'image {_image(record)}')}, annotation {annotation.get('id', number)}"
        remedy = {
            "no_mask": "Add the mask, or remove the flag.",
            "bad_flag": "Write true or false, without quotes.",
        }.get(defect[0], "Correct the mask, or remove it to train on the box alone.")
        raise MaskError(f"{where}: {defect[1]}. {remedy}")
    return True


def masked_classes(
    names: Sequence[str],
    thing_classes: Sequence[str],
    absent: Collection[str] = (),
    key: str = "INPUT.PARTIAL_MASKS.CLASSES",
) -> frozenset[int] | None:
    """Category ids of ``INPUT.PARTIAL_MASKS.CLASSES`` or another key of that kind.

    Args:
        names: classes of the data set; "voc" for the 20 of COCO that VOC has, "non-voc" for all but these; empty for
            no restriction.
        thing_classes: the data set's classes.
        absent: classes that may be named although the data set lacks them, those of other few-shot stages.
        key: that holds the names.

    Returns:
        Their positions in ``thing_classes``, None for no restriction.

    Raises:
        ValueError: a class that the data set does not have, or a group of which it has none.
    """
    if not names:
        return None
    known = [*thing_classes, *absent]
    wanted: list[str] = []
    for name in names:
        group = CLASS_GROUPS.get(name.removeprefix("non-"), ())
        if name in known or not group:
            wanted.append(name)
        elif name.startswith("non-"):
            _require(group, known, key, name)
            wanted += [other for other in known if other not in group]
        else:
            wanted += group
    _require(wanted, known, key)
    if not wanted:
        raise ValueError(
            f"{key} {list(names)} means none of the data set's classes ({', '.join(known[:20])}), so that no mask is "
            "left: name classes that shall keep theirs, or give [] for all."
        )
    return frozenset(thing_classes.index(name) for name in wanted if name in thing_classes)


def _require(names: Sequence[str], known: Sequence[str], key: str, group: str = "") -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, [*known, "voc", "non-voc"], n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(known[:20])}"
            of_group = f" (of {group!r})" if group else ""
            raise ValueError(f"{key} names {name!r}{of_group}, which the data set does not have ({hint}).")


def apply_partial_masks(cfg, records: Sequence[Record]) -> Sequence[Record]:
    """``partly_masked`` for a loader that is not of dyn_d2: its trainer has applied INPUT.PARTIAL_MASKS then."""
    note_partial_masks(cfg)
    return partly_masked(cfg, records)


def partly_masked(cfg, records: Sequence[Record]) -> Sequence[Record]:
    """``records`` with the masks that INPUT.PARTIAL_MASKS leaves or makes, if the model is trained on masks at all.

    Raises:
        ValueError: unknown classes; no mask is left; or objects lack masks and the mask head needs one of every object.
        MaskError: see :func:`has_mask`.
        UserError, FileNotFoundError: see :func:`~dyn_d2.data.pseudo_masks.add_pseudo_masks`.
    """
    limited = with_masks_left(cfg, records)
    if limited is records:
        return records
    names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes", [])
    objects, masks = _count(limited)
    if masks.total() < objects.total():
        # The novel stage of few-shot training may have none: only its box predictor learns.
        if not masks and not is_fine_tuning(cfg):
            _refuse_without_masks(cfg, records, names)
        without = _named([c for c in sorted(objects) if not masks[c]], names)
        _check_head(cfg, f"{objects.total() - masks.total():,} of {objects.total():,} objects", without)
    return limited


def with_masks_left(cfg, records: Sequence[Record]) -> Sequence[Record]:
    """``partly_masked`` whether or not the model can be trained on the result; its log says how many masks are left."""
    if not cfg.MODEL.MASK_ON or not any("annotations" in record for record in records):
        return records
    keys = cfg.INPUT.PARTIAL_MASKS
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    names = metadata.get("thing_classes", [])
    of_other_stages = {*metadata.get("base_classes", ()), *metadata.get("novel_classes", ())} - {*names}
    classes = masked_classes(keys.CLASSES, names, sorted(of_other_stages))
    limited = add_pseudo_masks(cfg, limit_masks(records, classes, keys.FRACTION, keys.SEED))
    logger.info(words_on_masks(limited))
    return limited


def words_on_masks(limited: Sequence[Record]) -> str:
    """How many objects of what ``with_masks_left`` gave have masks, and how many of these are pseudo-masks."""
    objects, masks = _count(limited)
    images = sum(any("segmentation" in a for a in record.get("annotations", ())) for record in limited)
    pseudo = sum(a.get("pseudo_mask", False) for record in limited for a in record.get("annotations", ()))
    return f"{masks.total():,} of {objects.total():,} objects have masks, in {images:,} of {len(limited):,} images" + (
        f"; {pseudo:,} of these masks are pseudo-masks" if pseudo else ""
    )


def _count(limited: Sequence[Record]) -> tuple[Counter[int], Counter[int]]:
    """Objects and masks of each class, of what ``limit_masks`` left."""
    annotations = [a for record in limited for a in record.get("annotations", ())]
    objects = Counter(a["category_id"] for a in annotations if not a.get("iscrowd", 0))
    return objects, Counter(a["category_id"] for a in annotations if "segmentation" in a)


def _named(classes: Collection[int], names: Sequence[str]) -> list[str]:
    return [names[c] if c < len(names) else str(c) for c in classes]


def _refuse_without_masks(cfg, records: Sequence[Record], names: Sequence[str]) -> NoReturn:
    """No object has a mask: say which would have one, did INPUT.PARTIAL_MASKS not take it away."""
    keys, sets = cfg.INPUT.PARTIAL_MASKS, ", ".join(cfg.DATASETS.TRAIN)
    masked = {
        annotation["category_id"]
        for record in records
        for annotation, flag in zip(record.get("annotations", ()), _flags(record), strict=True)
        if flag
    }
    if not masked:
        raise ValueError(
            f"no object of {sets} has a mask, but MODEL.MASK_ON is True: add masks, let INPUT.PARTIAL_MASKS.PSEUDO "
            "make them, or set MODEL.MASK_ON to False."
        )
    shown = ", ".join(_named(sorted(masked)[:20], names)) + (", ..." if len(masked) > 20 else "")
    less = f" and FRACTION {keys.FRACTION:g}" if keys.FRACTION < 1 else ""
    raise ValueError(
        f"INPUT.PARTIAL_MASKS.CLASSES {list(keys.CLASSES)}{less} leave no mask to train on; the objects of {sets} that "
        f"have one are of {shown}: name one of these"
        + (", raise FRACTION" if less else "")
        + ", or set MODEL.MASK_ON to False."
    )


def _check_head(cfg, what: str, classes_without: list[str]) -> None:
    """Whether the mask head can do with fewer masks than objects."""
    keys = cfg.MODEL.ROI_MASK_HEAD
    head = ROI_MASK_HEAD_REGISTRY.get(keys.NAME)
    if not getattr(head, "partial_masks", False):
        raise ValueError(
            f"{what} of {', '.join(cfg.DATASETS.TRAIN)} have no mask, but MODEL.ROI_MASK_HEAD.NAME {keys.NAME} needs "
            "one of every object: set it to PartialMaskHead, which is trained on those that have one, or "
            "MODEL.MASK_ON to False."
        )
    if classes_without and not (keys.CLS_AGNOSTIC_MASK or getattr(head, "serves_classes_without_masks", False)):
        logger.warning(
            f"no object of {', '.join(classes_without[:10])}{', ...' if len(classes_without) > 10 else ''} has a mask, "
            "and the mask head predicts by class, so that theirs will not be trained: set "
            "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK to True."
        )


def as_polygons(mask: dict[str, Any]) -> list[list[float]]:
    """Polygons that cover exactly the pixels of a run-length code, compressed or not; none for an empty one."""
    height, width = mask["size"]
    code = mask_util.frPyObjects(mask, height, width) if isinstance(mask["counts"], list) else mask
    x, y, w, h = map(int, mask_util.toBbox(code))
    if not w * h:
        return []
    polygons = mask_to_polygons(mask_util.decode(code)[y : y + h, x : x + w].astype(bool))
    return [[side + (y if i % 2 else x) for i, side in enumerate(polygon)] for polygon in polygons]


class PartialMaskMapper(DatasetMapper):
    """Detectron2's mapper where objects without a mask may stand beside others, in any mixture.

    Instances get ``gt_has_mask`` (N,) bool; ``gt_masks`` has an empty mask where it is False. Run lengths become
    polygons where INPUT.MASK_FORMAT asks for these. Nothing else changes: where every object has a mask, the result is
    that of the parent.
    """

    def _transform_annotations(self, dataset_dict: Record, transforms: Any, image_shape: tuple[int, int]) -> None:
        """Replace "annotations" by "instances", without crowds and what the augmentation left empty."""
        annotations, flags = [], []
        for number, annotation in enumerate(dataset_dict.pop("annotations")):
            if annotation.get("iscrowd", 0):
                continue
            flag = has_mask(annotation, dataset_dict, number)
            unused = {"keypoints"} if flag else {"keypoints", "segmentation"}
            used = {key: value for key, value in annotation.items() if key not in unused}
            if flag and self.instance_mask_format == "polygon" and isinstance(used["segmentation"], dict):
                used["segmentation"] = as_polygons(used["segmentation"])
            moved = transform_instance_annotations(used, transforms, image_shape)
            annotations.append(moved if flag else moved | {"segmentation": []})
            flags.append(flag)
        try:
            instances = annotations_to_instances(annotations, image_shape, mask_format=self.instance_mask_format)
        except ValueError as error:
            raise MaskError(f"{dataset_dict['file_name']}: {error}") from error
        instances.gt_has_mask = torch.tensor(flags, dtype=torch.bool)
        keep = torch.ones(len(instances), dtype=torch.bool)
        if instances.has("gt_masks"):
            if self.recompute_boxes:
                tight = instances.gt_masks.get_bounding_boxes().tensor
                boxes = instances.gt_boxes.tensor
                instances.gt_boxes.tensor = torch.where(instances.gt_has_mask[:, None], tight.to(boxes), boxes)
            keep = ~instances.gt_has_mask | instances.gt_masks.nonempty()
        keep &= instances.gt_boxes.nonempty(threshold=1e-5)
        dataset_dict["instances"] = instances if keep.all() else instances[keep]


def _name_this_mapper() -> None:
    """Let Detectron2's mapper say what to do where some objects of an image have no mask: it ends in a KeyError there,
    or, where it is the first that has none, goes on without masks."""
    transform_all = DatasetMapper._transform_annotations

    @wraps(transform_all)
    def transform(self: DatasetMapper, dataset_dict: Record, transforms: Any, image_shape: tuple[int, int]) -> None:
        objects = [annotation for annotation in dataset_dict["annotations"] if not annotation.get("iscrowd", 0)]
        masked = sum("segmentation" in annotation for annotation in objects)
        if self.use_instance_mask and 0 < masked < len(objects):
            raise MaskError(
                f"{dataset_dict.get('file_name')}: {masked} of its {len(objects)} objects have a mask, DatasetMapper "
                "needs all or none: use dyn_d2.data.partial_masks.PartialMaskMapper, or set MODEL.MASK_ON False."
            )
        transform_all(self, dataset_dict, transforms, image_shape)

    DatasetMapper._transform_annotations = transform  # type: ignore[method-assign]


_name_this_mapper()
