"""Semantic segmentation sets beyond Detectron2's; importing this package registers them.

A pixel of a label map is a class, its position in metadata.stuff_classes, or metadata.ignore_label, 255 everywhere.
``dyn-d2 prepare semantic`` writes such maps from the published files.
"""

from .check import check_label_maps, has_label_maps, ignore_problems
from .label_maps import IGNORE, LabelTable, count_pixels, load_pairs, read_label_map
from .sets import PUBLISHED, register_semantic_sets

__all__ = [
    "IGNORE",
    "LabelTable",
    "PUBLISHED",
    "check_label_maps",
    "count_pixels",
    "has_label_maps",
    "ignore_problems",
    "load_pairs",
    "read_label_map",
    "register_semantic_sets",
]

register_semantic_sets()
