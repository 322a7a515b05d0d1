"""A model from a config and its checkpoint."""

import pytest
import torch
from tiny_tasks import task_opts

from dyn_d2.checkpoint import CheckpointError, describe
from dyn_d2.checkpoint.model import load_model, model_of
from dyn_d2.config.read import read_cfg
from dyn_d2.data.few_shot.sources import forget
from dyn_d2.data.registered import registered_records, unregistered
from dyn_d2.modeling.build import build_model

from detectron2.data import DatasetCatalog, MetadataCatalog


def test_the_checkpoint_fills_the_model(tmp_path) -> None:
    opts = task_opts("classifier", MODEL__BACKBONE__NAME="build_resnet_backbone")
    cfg, path = read_cfg("", opts), str(tmp_path / "model.pth")
    weights = build_model(cfg).state_dict()
    torch.save({"model": weights}, path)
    model, report = model_of(cfg, path)
    assert not model.training and report.complete and report.source == path
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    with pytest.raises(CheckpointError, match="set MODEL.WEIGHTS"):
        model_of(cfg)
    torch.save({"model": {name: value for name, value in weights.items() if name != "linear.bias"}}, path)
    with pytest.raises(CheckpointError, match="missing in the file: linear"):
        model_of(cfg, path)
    _, report = model_of(read_cfg("", [*opts, "MODEL.WEIGHTS", path, "TEST.ALLOW_PARTIAL_WEIGHTS", "True"]))
    assert report.missing == ["linear.bias"]


def test_the_checkpoint_names_classes_that_nobody_here_has(tmp_path) -> None:
    opts = task_opts("classifier", MODEL__BACKBONE__NAME="build_resnet_backbone", DATASETS__TRAIN=("pets_train",))
    cfg, path = read_cfg("", opts), str(tmp_path / "model.pth")
    model = build_model(cfg)
    try:
        MetadataCatalog.get("pets_train").thing_classes = ["dog", "ape", "cat"]
        torch.save({"model": model.state_dict(), "dyn_d2": describe(cfg, model)}, path)
        forget("pets_train")
        load_model(path)
        assert MetadataCatalog.get("pets_train").thing_classes == ["dog", "ape", "cat"]
        forget("pets_train")
        DatasetCatalog.register("pets_train", list)  # its file is not read yet, which brings the names
        load_model(path)
        assert not MetadataCatalog.get("pets_train").get("thing_classes")
    finally:
        forget("pets_train")


def test_modules_of_the_command_line_are_imported_and_those_of_a_checkpoint_named(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dyn_d2.data.imports._left_out", {})
    for name in ("first", "second"):
        register = f"DatasetCatalog.register('of_{name}', lambda: [])"
        (tmp_path / f"{name}.py").write_text(f"from detectron2.data import DatasetCatalog\n{register}\n")
    opts = task_opts("classifier", MODEL__BACKBONE__NAME="build_resnet_backbone")
    cfg, path = read_cfg("", opts), str(tmp_path / "model.pth")
    cfg.DATASETS.IMPORT = ["first.py"]
    model = build_model(cfg)
    torch.save({"model": model.state_dict(), "dyn_d2": describe(cfg, model)}, path)
    load_model(path)
    assert "of_first" not in DatasetCatalog
    with pytest.raises(KeyError, match=r"of_first, not registered.*DATASETS.IMPORT .{,3}first.py.*command line"):
        registered_records("of_first")
    load_model(path, opts=["DATASETS.IMPORT", "['second.py']"])
    assert "of_second" in DatasetCatalog and "of_first" not in DatasetCatalog
    load_model(path, opts=["DATASETS.IMPORT", "['first.py']"])
    assert registered_records("of_first") == [] and "first.py" not in unregistered(["of_third"])
    for name in ("of_first", "of_second"):
        forget(name)


def test_the_config_says_what_is_frozen_and_how_weights_lie_in_memory() -> None:
    opts = task_opts("classifier", MODEL__BACKBONE__NAME="build_resnet_backbone", MODEL__CHANNELS_LAST=True)
    model = build_model(read_cfg("", [*opts, "MODEL.FREEZE", "['backbone']"]))
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {"linear"}
    assert next(p for p in model.parameters() if p.ndim == 4 and p.shape[1] > 1).is_contiguous(
        memory_format=torch.channels_last
    )
