"""Fixtures: tiny data sets and the configs that read them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from few_shot_files import coco_content, write_image, write_voc

from dyn_d2.config import add_dyn_d2_config
from dyn_d2.data.few_shot.sources import forget

from detectron2.config import CfgNode, get_cfg
from detectron2.data.datasets import register_pascal_voc


@pytest.fixture
def write_coco(tmp_path: Path) -> Callable[..., tuple[str, str]]:
    """Write a COCO json and its images; returns the path of the json and the image folder."""

    def write(content: dict[str, Any], name: str = "train", images: bool = True) -> tuple[str, str]:
        folder = tmp_path / f"{name}_images"
        folder.mkdir(exist_ok=True)
        if images:
            for image in content["images"]:
                write_image(folder / image["file_name"])
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content))
        return str(path), str(folder)

    return write


@pytest.fixture
def few_shot_cfg(tmp_path: Path) -> Callable[..., CfgNode]:
    """A config with FEW_SHOT keys set, as few_shot_cfg(BENCHMARK="voc", SHOTS=1)."""

    def make(**keys: Any) -> CfgNode:
        cfg = get_cfg()
        add_dyn_d2_config(cfg)
        cfg.OUTPUT_DIR = str(tmp_path / "output")
        for key, value in keys.items():
            cfg.FEW_SHOT[key] = value
        return cfg

    return make


@pytest.fixture
def custom_cfg(write_coco: Callable, few_shot_cfg: Callable) -> Callable[..., CfgNode]:
    """A config of the "custom" benchmark on five classes; "sign" is in neither list."""
    names = ["cat", "dog", "bird", "fish", "sign"]
    train = [
        ["cat", "dog", "bird"],
        ["cat", "cat", "fish"],
        ["dog", "bird", "fish"],
        ["bird"],
        ["sign"],
        ["dog", "cat", "sign"],
        ["fish", "bird"],
    ]
    test = [["cat", "bird"], ["fish"], ["dog", "sign"], []]

    def make(**keys: Any) -> CfgNode:
        train_json, train_images = write_coco(coco_content(names, train), "train", images=False)
        test_json, test_images = write_coco(coco_content(names, test), "test", images=False)
        cfg = few_shot_cfg(BENCHMARK="custom", **keys)
        cfg.FEW_SHOT.CUSTOM.merge_from_other_cfg(
            CfgNode(
                {
                    "NAME": "zoo",
                    "TRAIN_JSON": train_json,
                    "TRAIN_IMAGES": train_images,
                    "TEST_JSON": test_json,
                    "TEST_IMAGES": test_images,
                    "BASE_CLASSES": ["dog", "cat"],
                    "NOVEL_CLASSES": ["fish", "bird"],
                }
            )
        )
        return cfg

    return make


@pytest.fixture
def tiny_voc(tmp_path: Path, few_shot_cfg: Callable) -> Callable[..., CfgNode]:
    """A config of the "voc" benchmark on two tiny VOC folders, where every class has three objects, one difficult."""
    from detectron2.data.datasets.pascal_voc import CLASS_NAMES

    box = (1, 1, 10, 12)
    train = {
        f"{position:06d}": [(name, box, 0), (name, (12, 3, 30, 20), 1), (name, (15, 8, 40, 30), 0)]
        for position, name in enumerate(CLASS_NAMES)
    }
    write_voc(tmp_path / "VOC2007", "trainval", train)
    write_voc(tmp_path / "VOC2012", "trainval", {"2008_000001": [("bird", box, 0), ("person", (2, 2, 20, 20), 0)]})
    write_voc(
        tmp_path / "VOC2007",
        "test",
        {
            "009001": [(name, (1 + position, 2, 20 + position, 22), 0) for position, name in enumerate(CLASS_NAMES)],
        },
    )
    sets = {
        "tiny_voc_07": ("VOC2007", "trainval", 2007),
        "tiny_voc_12": ("VOC2012", "trainval", 2012),
        "tiny_voc_test": ("VOC2007", "test", 2007),
    }
    for name, (folder, split, year) in sets.items():
        forget(name)
        register_pascal_voc(name, str(tmp_path / folder), split, year)

    def make(**keys: Any) -> CfgNode:
        return few_shot_cfg(
            BENCHMARK="voc", TRAIN_SETS=["tiny_voc_07", "tiny_voc_12"], TEST_SETS=["tiny_voc_test"], **keys
        )

    return make
