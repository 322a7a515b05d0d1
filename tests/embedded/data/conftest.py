"""Tiny generated data sets. Names given to the catalogs are forgotten after each test."""

import json

import pytest
from data_files import write_image

from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog


@pytest.fixture(autouse=True)
def catalogs():
    before = set(DatasetCatalog.list()), set(MetadataCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before[0]:
        DatasetCatalog.remove(name)
    for name in set(MetadataCatalog.list()) - before[1]:
        MetadataCatalog.remove(name)


def coco_content(sizes: list[tuple[int, int]]) -> dict:
    """Two objects in each image (w, h), one per category; ids of images descend, category ids have a gap."""
    images, annotations = [], []
    for i, (width, height) in enumerate(sizes):
        image_id = 100 - i
        images.append({"id": image_id, "file_name": f"{i}.png", "width": width, "height": height})
        for k, category in enumerate((7, 2)):
            x, y = 3.5 + k, 4.25 + k
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": [x, y, 12.0, 8.0],
                    "area": 96.0,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + 12, y, x + 12, y + 8, x, y + 8]],
                }
            )
    categories = [{"id": 7, "name": "late"}, {"id": 2, "name": "early"}]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def coco(tmp_path):
    """(json path, image folder, content) of four images, two of them wide and two high."""
    content = coco_content([(40, 30), (24, 36), (44, 30), (28, 36)])
    for i, image in enumerate(content["images"]):
        write_image(tmp_path / "images" / image["file_name"], image["width"], image["height"], seed=i)
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    return str(path), str(tmp_path / "images"), content


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MIN_SIZE_TRAIN = (20, 24)
    cfg.INPUT.MAX_SIZE_TRAIN = 64
    cfg.INPUT.MIN_SIZE_TEST = 20
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SEED = 3
    return cfg
