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
COCO_IMAGES = "images: https://cocodataset.org, 2017 train and val images"


@dataclass(frozen=True)
class SemanticSet:
    """A published data set as it lies below ``$DETECTRON2_DATASETS``.

    Attributes:
        label_set: name of its labels in the universal concept tree, which also gives the names of the classes.
        splits: split -> (folder of images, folder of label maps).
        download: what to download from where.
        prepared: whether the label maps are written by dyn-d2 prepare semantic, not published.
    """

    label_set: str
    splits: Mapping[str, tuple[str, str]]
    download: str
    prepared: bool = True


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
    tree = load_hierarchy("universal")
    for name, data in PUBLISHED.items():
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
        MetadataCatalog.get(f"cityscapes_fine_sem_seg_{split}").set(hierarchy=tree.name, label_set="cityscapes")


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
    return load_pairs(images, maps)
