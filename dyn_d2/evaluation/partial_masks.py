"""AP of classes with and without masks in training, as the published protocol has it: COCO's AP of each class, and then
their arithmetic mean (Zhou et al., Learning Saliency Propagation for Semi-Supervised Instance Segmentation, CVPR 2020,
experiments on COCO)."""

from collections.abc import Sequence

from dyn_d2.data.partial_masks import masked_classes
from dyn_d2.data.registered import registered_records

from detectron2.config import CfgNode
from detectron2.data import Metadata


def mask_groups(cfg: CfgNode, metadata: Metadata) -> dict[str, Sequence[str]]:
    """The classes with and without masks as groups (see class_groups.py).

    They are those of TEST.MASKED_CLASSES, or of INPUT.PARTIAL_MASKS.CLASSES where it is empty.

    Returns:
        {} for a model without masks, or where these keys do not divide the data set's classes.

    Raises:
        ValueError: a class that neither the data set has nor, in few-shot, its other stages.
    """
    if not cfg.MODEL.MASK_ON:
        return {}
    key = "TEST.MASKED_CLASSES" if cfg.TEST.MASKED_CLASSES else "INPUT.PARTIAL_MASKS.CLASSES"
    names = cfg.TEST.MASKED_CLASSES or cfg.INPUT.PARTIAL_MASKS.CLASSES
    if not names:
        return {}
    if not metadata.get("thing_classes"):
        registered_records(metadata.name)  # registered from a json, whose first reading brings the names
    classes = metadata.thing_classes
    of_other_stages = {*metadata.get("base_classes", ()), *metadata.get("novel_classes", ())} - {*classes}
    masked = masked_classes(names, classes, sorted(of_other_stages), key) or ()
    groups: dict[str, Sequence[str]] = {
        "{}_with_masks": [name for row, name in enumerate(classes) if row in masked],
        "{}_without_masks": [name for row, name in enumerate(classes) if row not in masked],
    }
    return groups if all(groups.values()) else {}
