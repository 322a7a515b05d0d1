"""Label maps of a segmentor on a concept tree."""

import numpy as np
import pytest
import torch
from semantic_sets import dsspn_opts
from tool_runs import demo_of_noise

from dyn_d2.checkpoint import DynCheckpointer, describe
from dyn_d2.config.read import read_cfg
from dyn_d2.engine.predictor import load_predictor
from dyn_d2.evaluation.label_figures import class_map
from dyn_d2.hierarchy import Hierarchy, load_hierarchy, save_hierarchy
from dyn_d2.methods.dsspn.figures import level_maps
from dyn_d2.methods.dsspn.label_plan import LabelPlan

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

TREE = Hierarchy({"all": ["animal", "sky"], "animal": ["cat", "dog"]}, {"pets": {"c": "cat", "d": "dog", "s": "sky"}})
CONCEPTS = ("cat", "dog", "sky")


def test_each_depth_has_its_shares_and_a_label_one_colour():
    labels = torch.tensor([[0, 0, 1, 2], [0, 0, 1, 1]])
    scores, colours = torch.nn.functional.one_hot(labels, 3).permute(2, 0, 1), ["#111111", "#222222", "#333333"]
    classes = class_map(scores, ["c", "d", "s"], colours)
    (depth,) = level_maps(LabelPlan(TREE, CONCEPTS).levels(labels), TREE, CONCEPTS, classes)
    assert (depth.title, depth.shares()) == ("depth 1", {"animal": 87.5, "sky": 12.5})
    assert depth.colours[TREE.concepts.index("sky")] == "#333333"
    assert depth.colours[TREE.concepts.index("animal")] not in colours


def test_the_demo_shows_every_level_of_the_tree(squares, tmp_path):
    cfg = read_cfg("", dsspn_opts(squares, squares))
    model = build_model(cfg)
    for name, parameter in model.named_parameters():
        if "neurons" in name:  # else all pixels take the same way
            torch.nn.init.normal_(parameter, std=0.5)
    DynCheckpointer(model, str(tmp_path), metadata=describe(cfg, model)).save("model_final")
    tree = load_hierarchy("digit_scenes")
    shares = demo_of_noise(tmp_path)
    assert list(shares) == ["depth 1", "depth 2", "classes"]  # labels of the first test set
    assert len(shares["classes"]) > 1 and shares["classes"].keys() <= set(tree.labels("digit_scenes_digits"))
    digits = sum(share for name, share in shares["classes"].items() if name not in ("clutter", "scenery"))
    assert shares["depth 1"].get("digit", 0) == pytest.approx(digits, abs=0.1)
    shares = demo_of_noise(tmp_path, "DATASETS.TEST", f"('{squares[1]}',)")
    assert list(shares) == ["depth 1", "depth 2", "depth 3", "classes"]
    assert shares["classes"].keys() <= set(tree.labels("digit_scenes_places"))


def test_labels_and_tree_travel_with_the_checkpoint(squares, tmp_path):
    """The tree is the user's file; neither it nor the data sets are there where the checkpoint is used."""
    file = tmp_path / "mine.yaml"
    save_hierarchy(load_hierarchy("digit_scenes"), file)
    cfg = read_cfg("", [*dsspn_opts(squares, squares), "MODEL.DSSPN.TREE", str(file)])
    model = build_model(cfg)
    DynCheckpointer(model, str(tmp_path), metadata=describe(cfg, model)).save("model_final")
    wanted = [MetadataCatalog.get(name).stuff_classes for name in squares]
    file.unlink()
    for name in squares:
        MetadataCatalog.remove(name)
        DatasetCatalog.remove(name)
    shares = demo_of_noise(tmp_path)
    assert list(shares) == ["depth 1", "depth 2", "classes"] and shares["classes"].keys() <= set(wanted[0])
    predictor = load_predictor(str(tmp_path / "model_final.pth"), opts=["DATASETS.TEST", f"('{squares[1]}',)"])
    assert list(predictor(np.zeros((20, 30, 3), np.uint8))[-1].names) == list(wanted[1])
    for name in squares:  # the fixture takes them away again
        DatasetCatalog.register(name, list)
