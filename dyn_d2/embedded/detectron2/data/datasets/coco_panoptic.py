"""COCO with instance annotations and stuff maps side by side, as Panoptic FPN (arXiv:1901.02446) trains on them."""

from typing import Any

from ..catalog import DatasetCatalog, MetadataCatalog
from .coco import load_coco_json, load_sem_seg

__all__ = ["register_coco_panoptic_separated"]


def register_coco_panoptic_separated(
    name: str,
    metadata: dict[str, Any],
    image_root: str,
    panoptic_root: str,
    panoptic_json: str,
    sem_seg_root: str,
    instances_json: str,
) -> None:
    """Register ``{name}_stuffonly`` (label maps alone) and ``{name}_separated`` (instances and label maps).

    In the maps of ``sem_seg_root`` 0 is every thing, 1 to 53 are the stuff classes, 255 is ignored.
    """
    shared = {"image_root": image_root, "sem_seg_root": sem_seg_root, "ignore_label": 255, **metadata}

    semantic = f"{name}_stuffonly"
    DatasetCatalog.register(semantic, lambda: load_sem_seg(sem_seg_root, image_root))
    MetadataCatalog.get(semantic).set(evaluator_type="sem_seg", **shared)

    separated = f"{name}_separated"

    def load() -> list[dict]:
        maps = {record["file_name"]: record for record in load_sem_seg(sem_seg_root, image_root)}
        return [record | maps[record["file_name"]] for record in load_coco_json(instances_json, image_root, separated)]

    DatasetCatalog.register(separated, load)
    MetadataCatalog.get(separated).set(
        panoptic_root=panoptic_root,
        panoptic_json=panoptic_json,
        json_file=instances_json,
        evaluator_type="coco_panoptic_seg",
        **shared,
    )
