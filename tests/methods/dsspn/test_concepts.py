"""Adding and pruning concepts: everything else stays bit by bit, and what is old computes what it did."""

import sys

import pytest
import torch
import yaml
from semantic_sets import dsspn_opts

from dyn_d2.checkpoint import CheckpointError, read_checkpoint
from dyn_d2.config.read import read_cfg
from dyn_d2.hierarchy import Hierarchy, load_hierarchy, save_hierarchy
from dyn_d2.methods.dsspn import cli
from dyn_d2.methods.dsspn.head import DSSPNHead
from dyn_d2.methods.dsspn.surgery import backbone_alone, fit_concepts

from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model

OLD = {"all": ["animal", "sky"], "animal": ["cat", "dog"]}
PLUS = {"all": ["animal", "sky", "train"], "animal": ["cat", "dog"], "dog": ["pug", "collie"]}
BETWEEN = {"all": ["thing", "sky"], "thing": ["animal", "train"], "animal": ["cat", "dog"]}


def _head(children, **options) -> DSSPNHead:
    small = {"width": 4, "bottleneck": 5, "transition_channels": 3, "rates": (1,)}
    tree = Hierarchy(children)
    return DSSPNHead(
        {"p2": ShapeSpec(channels=2, stride=1)},
        tree=tree, labels={"a": ["cat", "dog", "sky"]}, train_sets=["a"], **(small | options),
    )  # fmt: skip


def _checkpoint(head) -> dict:
    model = {f"sem_seg_head.{name}": value for name, value in head.state_dict().items()}
    return {"model": {**model, "backbone.weight": torch.rand(3)}, "dyn_d2": {"config": "x"}, "iteration": 7}


def _load(head, checkpoint) -> DSSPNHead:
    prefix = "sem_seg_head."
    head.load_state_dict({n.removeprefix(prefix): v for n, v in checkpoint["model"].items() if n.startswith(prefix)})
    return head


def test_adding_concepts_keeps_the_rest_bit_by_bit():
    old = _checkpoint(_head(OLD))
    new, changes = fit_concepts(old, _head(PLUS))
    assert all(torch.equal(new["model"][name], value) for name, value in old["model"].items())
    added = new["model"].keys() - old["model"].keys()
    assert all("<train>" in name or name.startswith("sem_seg_head.neurons.<dog>.") for name in added)
    assert changes.added == ["all > train", "dog > collie", "dog > pug"] and changes.new_neurons == ["dog"]
    assert "iteration" not in new and new["dyn_d2"]["config"] == "x"
    again, _ = fit_concepts(old, _head(PLUS))
    assert all(torch.equal(value, again["model"][name]) for name, value in new["model"].items())
    other, _ = fit_concepts(old, _head(PLUS), seed=1)
    name = "sem_seg_head.neurons.<all>.classify.<train>.weight"
    assert not torch.equal(other["model"][name], new["model"][name])


def test_pruning_gives_the_old_checkpoint_back():
    old = _checkpoint(_head(OLD))
    grown, _ = fit_concepts(old, _head(PLUS))
    back, changes = fit_concepts(grown, _head(OLD))
    assert back["model"].keys() == old["model"].keys()
    assert all(torch.equal(back["model"][name], value) for name, value in old["model"].items())
    assert changes.removed == ["all > train", "dog > collie", "dog > pug"] and changes.gone_neurons == ["dog"]
    assert "2 kept" not in str(changes) and "4 children kept, 0 added, 3 removed" in str(changes)


def test_what_is_old_computes_what_it_did():
    before, x = _head(OLD), torch.rand(1, 2, 5, 5)
    for children in (PLUS, BETWEEN):
        after = _load(_head(children), fit_concepts(_checkpoint(before), _head(children))[0])
        for name in ("all", "animal"):
            results = []
            for head in (before, after):
                maps = {"transition": head.transition(x)}
                for neuron in head.names:
                    sources = [maps[source] for source in ("transition", *head.above[neuron])]
                    maps[neuron] = head.neuron(neuron)(head.combine(neuron, sources))
                results.append(maps[name])
            assert torch.allclose(*results, atol=1e-6), (children, name)


def test_what_does_not_fit_is_named():
    old = _checkpoint(_head(OLD))
    with pytest.raises(CheckpointError, match=r"evolve.weight is \(4, 5, 3, 3\) in the checkpoint and \(6, 5, 3, 3\)"):
        fit_concepts(old, _head(OLD, width=6))
    with pytest.raises(CheckpointError, match="BLOCK has to be the same"):
        fit_concepts(old, _head(OLD, block="sum"))
    with pytest.raises(CheckpointError, match="'animal' reads none .*BLOCK parent"):
        fit_concepts(_checkpoint(_head(OLD, block="parent")), _head(BETWEEN, block="parent"))
    with pytest.raises(CheckpointError, match="holds no DSSPN"):
        fit_concepts({"model": {"backbone.weight": torch.zeros(1)}}, _head(OLD))


def test_the_backbone_alone():
    weights = {
        "module.backbone.stem.weight": torch.ones(2),
        "sem_seg_head.x": torch.zeros(1),
        "pixel_mean": torch.ones(3),
    }
    checkpoint, count = backbone_alone({"model": weights, "iteration": 7})
    assert count == 1 and checkpoint == {"model": {"backbone.stem.weight": weights["module.backbone.stem.weight"]}}
    with pytest.raises(CheckpointError, match="no backbone"):
        backbone_alone({"model": {"sem_seg_head.x": torch.zeros(1)}})


def test_tool(squares, tmp_path, monkeypatch, capsys):
    opts = dsspn_opts(squares, squares)
    model = build_model(read_cfg("", opts))
    torch.save({"model": model.state_dict()}, tmp_path / "old.pth")
    content = load_hierarchy("digit_scenes").as_dict()
    content["concepts"]["nature"].append("mountain")
    (tmp_path / "tree.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    save_hierarchy(load_hierarchy(tmp_path / "tree.yaml"), tmp_path / "tree.yaml")
    files = ["--checkpoint", str(tmp_path / "old.pth"), "--output", str(tmp_path / "new.pth")]
    monkeypatch.setattr(sys, "argv", ["", *files, *opts, "MODEL.DSSPN.TREE", str(tmp_path / "tree.yaml")])
    cli.main()
    assert "added: nature > mountain" in capsys.readouterr().out
    new = read_checkpoint(str(tmp_path / "new.pth"))["model"]
    assert all(torch.equal(new[name], value) for name, value in model.state_dict().items())
