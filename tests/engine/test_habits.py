"""Habits of training: any optimizer of torch, an average of the weights, the best checkpoint, an early end, writers."""

import json
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from own_folders import write_class_folders
from tool_runs import ROOT, train_net_here
from torch import nn

from dyn_d2.config.derive import build_cfg
from dyn_d2.data.pixel_changes import PixelChanges, parsed
from dyn_d2.engine.average import WeightAverage, averaged
from dyn_d2.engine.best import problems_of_best
from dyn_d2.engine.optimizers import chosen_optimizer, optimizer_names
from dyn_d2.engine.preflight import PreflightError
from dyn_d2.engine.trainer import DynTrainer
from dyn_d2.engine.writers import chosen_writers
from dyn_d2.utils.errors import UserError

from detectron2.utils.events import EventStorage


def solver(**keys):
    return build_cfg("", [str(part) for key, value in keys.items() for part in (f"SOLVER.{key}", value)])


def groups_of(layer: nn.Linear) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        [{"params": [layer.weight], "lr": 0.1, "weight_decay": 0.5}, {"params": [layer.bias]}], lr=0.01
    )


def test_any_optimizer_of_torch_by_name():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    cfg = solver(OPTIMIZER="AdamW", OPTIMIZER_OPTIONS="['betas=(0.8, 0.9)']", BASE_LR=0.01)
    optimizer = chosen_optimizer(cfg, groups_of(ours))
    weight = {"params": [theirs.weight], "lr": 0.1, "weight_decay": 0.5}
    expected = torch.optim.AdamW([weight, {"params": [theirs.bias], "weight_decay": 0.0}], lr=0.01, betas=(0.8, 0.9))
    for _ in range(3):
        for layer, steps in ((ours, optimizer), (theirs, expected)):
            steps.zero_grad()
            layer(torch.arange(3.0)).square().sum().backward()
            steps.step()
    assert torch.equal(ours.weight, theirs.weight) and torch.equal(ours.bias, theirs.bias)
    assert {"AdamW", "Adam", "SGD", "RMSprop", "NAdam"} <= set(optimizer_names()) and "LBFGS" not in optimizer_names()


def test_gradients_are_clipped_for_all_of_them():
    layer = nn.Linear(3, 2)
    keys = {"CLIP_GRADIENTS.ENABLED": True, "CLIP_GRADIENTS.CLIP_TYPE": "norm", "CLIP_GRADIENTS.CLIP_VALUE": 0.25}
    optimizer = chosen_optimizer(solver(OPTIMIZER="Adam", **keys), groups_of(layer))
    (1000 * layer(torch.ones(3)).sum()).backward()
    optimizer.step()
    assert layer.weight.grad.norm() == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"OPTIMIZER": "Lion"}, "SOLVER.OPTIMIZER is 'Lion': use one of .*AdamW"),
        ({"OPTIMIZER": "AdamW", "OPTIMIZER_OPTIONS": "['beta=1']"}, "AdamW takes no beta there, but betas"),
        ({"OPTIMIZER": "AdamW", "OPTIMIZER_OPTIONS": "['betas 1']"}, "use NAME=VALUE"),
        ({"OPTIMIZER": "AdamW", "OPTIMIZER_OPTIONS": "['eps=-1.0']"}, "AdamW cannot train this model"),
        ({"OPTIMIZER_OPTIONS": "['eps=1.0']"}, "SGD has SOLVER.MOMENTUM"),
    ],
)
def test_what_is_no_optimizer(keys, said):
    with pytest.raises(ValueError, match=said):
        chosen_optimizer(solver(**keys), groups_of(nn.Linear(3, 2)))


def test_the_average_is_that_of_a_loop(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    hook = WeightAverage(model, 0.75, checkpointer=None)
    mean = None
    for step in range(4):
        with torch.no_grad():
            for tensor in (*model.parameters(), model[1].running_mean):
                tensor.add_(step + 1.0)
        hook.after_step()
        now = {name: value.clone() for name, value in model.state_dict().items()}
        mean = (
            now
            if mean is None
            else {k: 0.75 * mean[k] + 0.25 * v if v.is_floating_point() else v for k, v in now.items()}
        )
    versions = [parameter._version for parameter in model.parameters()]
    with averaged(model):
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, mean[name])
        assert all(p._version > before for p, before in zip(model.parameters(), versions, strict=True))
    assert all(torch.equal(value, now[name]) for name, value in model.state_dict().items())
    other = WeightAverage(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), 0.75, None)
    other.load_state_dict(hook.state_dict())
    torch.testing.assert_close(other.state_dict()["weights"], hook.state_dict()["weights"])


def options(folder, **more) -> list[str]:
    keys = {
        "MODEL.DEVICE": "cpu", "MODEL.RESNETS.DEPTH": 8, "SOLVER.MAX_ITER": 40, "SOLVER.STEPS": "()", "SEED": 3,
        "SOLVER.IMS_PER_BATCH": 4, "SOLVER.REFERENCE_BATCH": 4, "SOLVER.BASE_LR": 1e-9, "SOLVER.PREFLIGHT": False,
        "DATASETS.CUSTOM.FORMAT": "folders", "DATASETS.CUSTOM.ROOT": folder, "DATASETS.CUSTOM.TRAIN": "train",
        "DATASETS.CUSTOM.TEST": "test", "DATASETS.CUSTOM.HOLD_OUT": 0.25, "TEST.EVAL_PERIOD": 2,
        "INPUT.CLASSIFICATION.RECIPE": "digits", "SOLVER.BEST.METRIC": "classification/top1_accuracy",
        "SOLVER.BEST.PATIENCE": 2, **more,
    }  # fmt: skip
    return [str(part) for pair in keys.items() for part in pair]


CONFIG = ("--config-file", str(ROOT / "configs" / "_BASE_" / "classifier.yaml"))


def test_training_stops_early_with_the_best_model(tmp_path, monkeypatch):
    folder, out = write_class_folders(tmp_path / "data"), tmp_path / "out"
    train_net_here(monkeypatch, *CONFIG, *options(folder, **{"OUTPUT_DIR": out, "SOLVER.EMA": 0.5}))
    log = (out / "log.txt").read_text()
    chosen = int(re.search(r"the model is that after (\d+) iterations", log)[1])
    done = int(re.search(r"training stops after (\d+) of 40 iterations", log)[1])
    assert done == chosen + 4 < 40  # two looks that are no better
    best, final = (torch.load(out / f"model_{name}.pth", weights_only=True) for name in ("best", "final"))
    assert all(torch.equal(value, final["model"][name]) for name, value in best["model"].items())
    assert "trainer" in final and "trainer" not in best and best["dyn_d2"]["classes"] == ["bright", "dark"]
    record, validation = (json.loads((path / "results.json").read_text()) for path in (out, out / "validation"))
    assert record["iteration_evaluated"] == done and set(record["metrics"]) == {"custom_test"}
    assert set(validation["metrics"]) == {"custom_train_held_out"}
    assert not (out / "model_ema.pth").exists()  # the best is of averaged weights already
    rows = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    scores = validation["metrics"]["custom_train_held_out"]["classification"]
    (last,) = (row for row in rows if "stopped_after" in row)
    assert last["stopped_after"] == done and last["val/classification/top1_accuracy"] == scores["top1_accuracy"]


def test_what_best_needs(tmp_path, monkeypatch):
    folder = write_class_folders(tmp_path / "data")
    cfg = build_cfg("", ["SOLVER.BEST.METRIC", "bbox/AP"])
    assert len(problems_of_best(cfg)) == 2  # no data, no period
    cfg = build_cfg("", ["SOLVER.BEST.PATIENCE", "3"])
    assert "needs SOLVER.BEST.METRIC" in problems_of_best(cfg)[0]
    more = {"OUTPUT_DIR": tmp_path / "out", "DATASETS.CUSTOM.HOLD_OUT": 0.0, "DATASETS.VAL": "['custom_test']"}
    with pytest.raises((PreflightError, SystemExit), match="DATASETS.VAL has custom_test"):
        train_net_here(monkeypatch, *CONFIG, *options(folder, **more))
    more = {"OUTPUT_DIR": tmp_path / "out2", "SOLVER.BEST.METRIC": "bbox/AP"}
    with pytest.raises((UserError, SystemExit), match="does not give, but classification/top1_error"):
        train_net_here(monkeypatch, *CONFIG, *options(folder, **more))
    more = {"OUTPUT_DIR": tmp_path / "out3", "SOLVER.BEST.METRIC": "bbox/AP", "SOLVER.PREFLIGHT": True}
    with pytest.raises((PreflightError, SystemExit), match="does not give, but classification/top1_error"):
        train_net_here(monkeypatch, *CONFIG, *options(folder, **more))  # and before the first step


def test_images_that_are_chosen_on_are_no_others(tmp_path, monkeypatch):
    """Whatever the sets are called."""
    folder = write_class_folders(tmp_path / "data")
    (folder / "val").symlink_to(folder / "test")
    more = {"OUTPUT_DIR": tmp_path / "out", "DATASETS.CUSTOM.HOLD_OUT": 0.0, "DATASETS.CUSTOM.VAL": "val"}
    with pytest.raises((PreflightError, SystemExit), match="images of DATASETS.VAL are reported too"):
        train_net_here(monkeypatch, *CONFIG, *options(folder, **more, **{"SOLVER.PREFLIGHT": True}))


def test_what_precedes_an_evaluation_sees_the_average(monkeypatch, tmp_path):
    """Such as FSRW's vectors of classes, which have to be those of the weights that are scored."""
    model = nn.Linear(1, 1, bias=False)
    hook = WeightAverage(model, 0.5, checkpointer=None)
    for value in (1.0, 2.0):
        nn.init.constant_(model.weight, value)
        hook.after_step()
    seen = []
    monkeypatch.setattr("dyn_d2.evaluation.prepare_evaluation", lambda cfg, bare: seen.append(bare.weight.item()))
    cfg = build_cfg("", ["OUTPUT_DIR", str(tmp_path), "DATASETS.TEST", "()", "MODEL.DEVICE", "cpu"])
    DynTrainer.test(cfg, model)
    assert seen == [1.5] and model.weight.item() == 2.0


def test_scalars_go_to_other_writers_once(tmp_path, monkeypatch):
    sent: list = []
    run = SimpleNamespace(
        log=lambda values, step: sent.append(("wandb", step, values)), finish=lambda: sent.append("end")
    )
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **about: sent.append(about) or run))
    mlflow = SimpleNamespace(
        set_experiment=lambda name: sent.append(name), start_run=lambda run_name: None,
        log_params=lambda keys: sent.append(len(keys)), end_run=lambda: sent.append("end"),
        log_metrics=lambda values, step: sent.append(("mlflow", step, values)),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    cfg = solver(WRITERS="['wandb', 'mlflow']", PROJECT="birds")
    writers = chosen_writers(cfg)
    assert sent[0]["project"] == sent[1] == "birds" and sent[0]["config"]["SOLVER.PROJECT"] == "birds"
    assert all(count <= 100 for count in sent[2:]) and sum(sent[2:]) == len(sent[0]["config"])
    sent.clear()
    with EventStorage(5) as storage:
        storage.put_scalar("loss", 2.0)
        for writer in writers * 2:
            writer.write()
        storage.iter = 6
        storage.put_scalar("other", 3.0)
        writers[0].write()
    for writer in writers:
        writer.close()
    assert sent == [
        ("wandb", 5, {"loss": 2.0}),
        ("mlflow", 5, {"loss": 2.0}),
        ("wandb", 6, {"other": 3.0}),
        "end",
        "end",
    ]


def test_changes_of_pixels_are_written_as_in_python():
    assert parsed("GaussianBlur(p=0.3, blur_limit=(3, 5))") == ("GaussianBlur", {"p": 0.3, "blur_limit": (3, 5)})
    assert parsed("CLAHE") == ("CLAHE", {})
    for wrong in ("GaussianBlur(3)", "a.b()", "x = 3", "f(p=open('a'))"):
        with pytest.raises(ValueError, match="INPUT.ALBUMENTATIONS has"):
            parsed(wrong)


def test_albumentations_changes_pixels_alone():
    np = pytest.importorskip("numpy")
    pytest.importorskip("albumentations")
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)
    changes = PixelChanges(["GaussianBlur(p=1.0)", "RandomBrightnessContrast(p=1.0)"])

    def changed(seed: int):
        np.random.seed(seed)
        return changes.get_transform(image)

    first, again, other = (changed(seed).apply_image(image) for seed in (1, 1, 2))
    assert first.shape == image.shape and first.dtype == np.uint8 and np.array_equal(first, again)
    assert not np.array_equal(first, image) and not np.array_equal(first, other)
    box = np.array([[1.0, 2.0, 30.0, 20.0]])
    assert np.array_equal(changed(1).apply_box(box), box)
    for text, said in (("HorizontalFlip(p=1.0)", "may move pixels"), ("Nothing()", "does not have")):
        with pytest.raises(ValueError, match=said):
            PixelChanges([text])
