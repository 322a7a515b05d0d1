"""Registers COCO, LVIS, Cityscapes and Pascal VOC under $DETECTRON2_DATASETS. Nothing is read until it is used.

Your own data are registered in your own code or config, not here; see ``register_coco_instances``.
"""

import os
from functools import partial

from ..catalog import DatasetCatalog, MetadataCatalog
from ..paths import datasets_root
from .builtin_meta import _get_builtin_metadata
from .cityscapes import load_cityscapes_instances, load_cityscapes_semantic
from .coco import load_sem_seg, register_coco_instances
from .lvis import register_lvis_instances
from .pascal_voc import register_pascal_voc

# name: (image folder, annotation file); below coco/ and coco/annotations/
_COCO = {
    "coco_2014_train": ("train2014", "instances_train2014.json"),
    "coco_2014_val": ("val2014", "instances_val2014.json"),
    "coco_2014_minival": ("val2014", "instances_minival2014.json"),
    "coco_2014_valminusminival": ("val2014", "instances_valminusminival2014.json"),
    "coco_2017_train": ("train2017", "instances_train2017.json"),
    "coco_2017_val": ("val2017", "instances_val2017.json"),
    "coco_2017_test": ("test2017", "image_info_test2017.json"),
    "coco_2017_test-dev": ("test2017", "image_info_test-dev2017.json"),
    "coco_2017_val_100": ("val2017", "instances_val2017_100.json"),
}
# Splits with a folder panoptic_stuff_{split}
_COCO_PANOPTIC = {"coco_2017_train": "train2017", "coco_2017_val": "val2017", "coco_2017_val_100": "val2017_100"}
# The json files below lvis/ are named like the data sets, except that those without annotations have "image_info".
_LVIS = {
    "lvis_v1": ("train", "val", "image_info_test_dev", "image_info_test_challenge"),
    "lvis_v0.5": ("train", "val", "val_rand_100", "image_info_test"),
}
_VOC = {2007: ("trainval", "train", "val", "test"), 2012: ("trainval", "train", "val")}


def register_all_coco(root: str) -> None:
    """Register the COCO splits, and the stuff maps made from the panoptic annotations."""
    coco = os.path.join(root, "coco")
    for name, (images, json_file) in _COCO.items():
        register_coco_instances(
            name,
            _get_builtin_metadata("coco"),
            os.path.join(coco, "annotations", json_file),
            os.path.join(coco, images),
        )
    for name, split in _COCO_PANOPTIC.items():
        # Label maps in which 0 is every thing, 1 to 53 are the stuff classes and 255 is ignored.
        images, maps = MetadataCatalog.get(name).image_root, os.path.join(coco, f"panoptic_stuff_{split}")
        semantic = f"{name}_panoptic_stuffonly"
        DatasetCatalog.register(semantic, partial(load_sem_seg, maps, images))
        MetadataCatalog.get(semantic).set(
            image_root=images,
            sem_seg_root=maps,
            ignore_label=255,
            evaluator_type="sem_seg",
            **_get_builtin_metadata("coco_panoptic_separated"),
        )


def register_all_lvis(root: str) -> None:
    """Register LVIS v1 and v0.5, whose images are COCO's."""
    images = os.path.join(root, "coco/")
    for version, splits in _LVIS.items():
        for split in splits:
            name = f"{version}_{split.removeprefix('image_info_')}"
            register_lvis_instances(name, {}, os.path.join(root, "lvis", f"{version}_{split}.json"), images)


def register_all_cityscapes(root: str) -> None:
    """Register ``cityscapes_fine_{instance_seg,sem_seg}_{train,val,test}``."""
    for split in ("train", "val", "test"):
        image_dir, gt_dir = (os.path.join(root, "cityscapes", kind, split, "") for kind in ("leftImg8bit", "gtFine"))
        meta = {"image_dir": image_dir, "gt_dir": gt_dir, **_get_builtin_metadata("cityscapes")}
        name = f"cityscapes_fine_instance_seg_{split}"
        DatasetCatalog.register(name, partial(load_cityscapes_instances, image_dir, gt_dir))
        MetadataCatalog.get(name).set(evaluator_type="cityscapes_instance", **meta)
        name = f"cityscapes_fine_sem_seg_{split}"
        DatasetCatalog.register(name, partial(load_cityscapes_semantic, image_dir, gt_dir))
        MetadataCatalog.get(name).set(evaluator_type="cityscapes_sem_seg", ignore_label=255, **meta)


def register_all_pascal_voc(root: str) -> None:
    """Register ``voc_2007_{trainval,train,val,test}`` and ``voc_2012_{trainval,train,val}``."""
    for year, splits in _VOC.items():
        for split in splits:
            name = f"voc_{year}_{split}"
            register_pascal_voc(name, os.path.join(root, f"VOC{year}"), split, year)
            MetadataCatalog.get(name).evaluator_type = "pascal_voc"


_root = datasets_root()
register_all_coco(_root)
register_all_lvis(_root)
register_all_cityscapes(_root)
register_all_pascal_voc(_root)
