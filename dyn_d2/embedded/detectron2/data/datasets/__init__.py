# ruff: noqa: F401, I001
"""Readers of data sets; importing this package registers the built-in ones."""

from detectron2.left_out import refusal_of

from .coco import convert_to_coco_json, load_coco_json, load_sem_seg, register_coco_instances
from .lvis import get_lvis_instances_meta, load_lvis_json, register_lvis_instances
from .pascal_voc import load_voc_instances, register_pascal_voc
from . import builtin as _builtin

__getattr__ = refusal_of(__name__)
