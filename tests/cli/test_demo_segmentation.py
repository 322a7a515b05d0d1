"""tools/demo.py with semantic segmentors: label maps, levels of the tree, stages of a cascade."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from sem_seg_toy import KEYS, NAME, SIZE, toy_cascade
from semantic_sets import dsspn_opts

from dyn_d2.checkpoint import DynCheckpointer, describe
from dyn_d2.cli.demo import main
from dyn_d2.config.read import read_cfg
from dyn_d2.hierarchy import load_hierarchy

from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model


def _save(folder: Path, opts: list[str]) -> None:
    cfg = read_cfg("", opts)
    model = build_model(cfg)
    for name, parameter in model.named_parameters():
        if "neurons" in name:  # else all pixels take the same way
            torch.nn.init.normal_(parameter, std=0.5)
    DynCheckpointer(model, str(folder), metadata=describe(cfg, model)).save("model_final")


def _demo(folder: Path, *opts: str, config: str = "") -> dict[str, dict[str, float]]:
    """Percent of the pixels by map and label, of an image that is not square."""
    Image.effect_noise((90, 60), 90).convert("RGB").save(folder / "noise.png")
    arguments = [str(folder / "noise.png"), "--weights", str(folder / "model_final.pth"), "--config-file", config]
    assert main([*arguments, "--output", str(folder / "out"), "--opts", *opts]) == 0
    with Image.open(folder / "out" / "noise.png") as picture:
        assert min(picture.size) > 200
    (shares,) = json.loads((folder / "out" / "detections.json").read_text()).values()
    assert all(sum(of_map.values()) == pytest.approx(100, abs=0.1) for of_map in shares.values())
    return shares


def test_every_level_of_the_tree(squares, tmp_path):
    _save(tmp_path, dsspn_opts(squares, squares))
    tree = load_hierarchy("digit_scenes")
    shares = _demo(tmp_path)
    assert list(shares) == ["depth 1", "depth 2", "classes"]  # labels of the first test set
    assert len(shares["classes"]) > 1 and shares["classes"].keys() <= set(tree.labels("digit_scenes_digits"))
    digits = sum(share for name, share in shares["classes"].items() if name not in ("clutter", "scenery"))
    assert shares["depth 1"].get("digit", 0) == pytest.approx(digits, abs=0.1)
    shares = _demo(tmp_path, "DATASETS.TEST", f"('{squares[1]}',)")
    assert list(shares) == ["depth 1", "depth 2", "depth 3", "classes"]
    assert shares["classes"].keys() <= set(tree.labels("digit_scenes_places"))


def test_stages_of_a_cascade(tmp_path):
    with toy_cascade(tmp_path):
        config = str(tmp_path / "config.yaml")
        shares = _demo(tmp_path, "MODEL.LAYER_CASCADE.THRESHOLDS", "[0.0]", config=config)
        assert shares["settled by"] == {"stage1": 100.0} and list(shares) == ["classes", "settled by"]
        assert _demo(tmp_path, "MODEL.LAYER_CASCADE.THRESHOLDS", "[1.0]", config=config)["settled by"] == {
            "stage3": 100.0
        }


def test_names_come_from_the_checkpoint_where_the_data_set_is_gone(tmp_path):
    keys = KEYS | {"MODEL.META_ARCHITECTURE": "SemanticSegmentor", "INPUT.MIN_SIZE_TEST": SIZE // 2}
    with toy_cascade(tmp_path):
        MetadataCatalog.remove(NAME)
        MetadataCatalog.get(NAME).set(stuff_classes=["sand", "sea", "sky"])
        _save(tmp_path, [str(part) for pair in keys.items() for part in pair])
    shares = _demo(tmp_path)
    assert list(shares) == ["classes"] and shares["classes"].keys() <= {"sand", "sea", "sky"}
