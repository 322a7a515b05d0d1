"""Who reads what of a data set, and which kind of problem spoils whose work.

=============  =========================================================================================================
consumer       reads
=============  =========================================================================================================
loader         COCO, LVIS: "categories" (id, name), "images" (id, width, height; file_name, LVIS also coco_url, the
               lists of categories) and "annotations" (id, image_id, category_id, bbox, iscrowd, segmentation as it is).
               VOC: the first column of the image list; of each xml size, and of each object name, box and difficult.
               Python: file_name, image_id, width, height, annotations (category_id, bbox, bbox_mode, iscrowd).
boxes          training on boxes: the boxes that the loader gives, and which of them are crowds.
masks          training on masks: also "segmentation" and "has_mask".
evaluation     COCO, LVIS: what the loader reads, and "area" (that of mask or box where it is missing or null); ids of
               annotations are renumbered. LVIS: also "frequency" of the categories. VOC: what the loader reads.
mask           evaluation of masks: a sound "segmentation" of every object that is no crowd.
evaluation
images         the image files.
labels         label maps (semantic segmentation), or the label of each image (classification).
=============  =========================================================================================================
"""

from collections.abc import Collection

LOADER, BOXES, MASKS, EVALUATION, MASK_EVALUATION, IMAGES, LABELS = CONSUMERS = (
    "loader", "boxes", "masks", "evaluation", "mask evaluation", "images", "labels"
)  # fmt: skip

_ALL_OBJECTS = (LOADER, BOXES, MASKS, EVALUATION, MASK_EVALUATION)
_BOXES = (BOXES, MASKS)
_MASKS = (MASKS, MASK_EVALUATION)

# Kind of problem (a key of check_report.REMEDIES) -> the consumers that it spoils. What spoils the loader spoils all
# that come after it.
SPOILS: dict[str, tuple[str, ...]] = {
    "bad_json": (*_ALL_OBJECTS, LABELS),
    "bad_entry": (*_ALL_OBJECTS, LABELS),
    "bad_xml": _ALL_OBJECTS,
    "bad_category": _ALL_OBJECTS,
    "bad_flag": _ALL_OBJECTS,
    "ignore_flag": _ALL_OBJECTS,
    "duplicate_image": (*_ALL_OBJECTS, LABELS),
    "duplicate_annotation": _ALL_OBJECTS,
    "duplicate_category": _ALL_OBJECTS,
    "unknown_category": _ALL_OBJECTS,
    "category_range": _ALL_OBJECTS,
    "mixed_ids": _ALL_OBJECTS,
    "image_type": _ALL_OBJECTS,
    "bad_box": _ALL_OBJECTS,
    "non_finite": _ALL_OBJECTS,
    "file_name": (LOADER, BOXES, MASKS, IMAGES),
    "cannot_load": (*_ALL_OBJECTS, LABELS),
    "class_overlap": _ALL_OBJECTS,
    "unknown_class": _ALL_OBJECTS,
    # The annotation is left out, as pycocotools and Detectron2 do.
    "unknown_image": (),
    # Loaded as nothing; what trains or evaluates says so itself.
    "no_images": (),
    # Nothing is lost, but the image counts twice.
    "repeated_file": (),
    # No reader stumbles, but no prediction can fit it.
    "empty_mask": (),
    "empty_box": _BOXES,
    "outside": _BOXES,
    "fraction_box": _BOXES,
    "all_crowd": _BOXES,
    "bad_mask": _MASKS,
    "mask_outside": _MASKS,
    "no_mask": _MASKS,
    "unmasked": (MASK_EVALUATION,),
    "bad_area": (EVALUATION, MASK_EVALUATION),
    "imperfect": (EVALUATION, MASK_EVALUATION),
    "missing_image": (IMAGES,),
    "unreadable_image": (IMAGES,),
    "deep_image": (IMAGES,),
    "size_mismatch": (IMAGES,),
    "label_range": (LABELS,),
    "bad_label_map": (LABELS,),
    "beyond_tree": (LABELS,),
    "absent_class": (LABELS,),
    "ignore_label": (LABELS,),
}


def spoils(kind: str, consumers: Collection[str]) -> bool:
    """Whether problems of this kind spoil the work of any of the ``consumers``."""
    return not set(SPOILS[kind]).isdisjoint(consumers)
