"""The place where Detectron2 had its function before ``coco``; other projects still import it from here."""

from detectron2.left_out import refusal_of

from .coco import register_coco_instances

__all__ = ["register_coco_instances"]
__getattr__ = refusal_of(__name__)
