"""PMN on a frozen network learns from kept means of feature maps what it learns from the maps."""

import json
import logging
from pathlib import Path

import pytest
import torch
from gated_nets import settle

from dyn_d2.checkpoint import DynCheckpointer, describe
from dyn_d2.config.derive import build_cfg
from dyn_d2.engine.feature_cache import CacheError
from dyn_d2.engine.trainer import DynTrainer
from dyn_d2.gating import recording

STEPS = 30
BLOCKS = ["backbone.stem", "backbone.res*"]


def config(start: Path, output: Path, mode: str, *more):
    keys = {
        "MODEL.RESNETS.DEPTH": 14, "MODEL.POLICY.STAGE": "joint", "MODEL.FREEZE": BLOCKS, "MODEL.WEIGHTS": start,
        "MODEL.POLICY.PMN.LAMBDA": 0.5, "INPUT.CLASSIFICATION.FLIP": True, "SOLVER.IMS_PER_BATCH": 16,
        "SOLVER.MAX_ITER": STEPS, "SOLVER.BASE_LR": 0.05, "SOLVER.PREFLIGHT": False, "SEED": 5,
        "DATALOADER.NUM_WORKERS": 0, "DATASETS.TEST": "()", "FEATURE_CACHE.MODE": mode,
        "FEATURE_CACHE.DIR": output.parent / "kept", "OUTPUT_DIR": output,
    }  # fmt: skip
    return build_cfg("PMN/digits.yaml", [*(str(part) for pair in keys.items() for part in pair), *more])


def save_start(folder: Path, *more) -> Path:
    """A network with its gates, whose batch norms do something."""
    cfg = config(Path(), folder / "out", "off", *more, "MODEL.WEIGHTS", "", "MODEL.FREEZE", "[]")
    torch.manual_seed(3)
    model = settle(DynTrainer.build_model(cfg))
    DynCheckpointer(model, str(folder), metadata=describe(cfg, model)).save("start")
    return folder / "start.pth"


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    return save_start(tmp_path_factory.mktemp("start"))


def trained(start: Path, output: Path, mode: str, *more) -> tuple[list[dict], DynTrainer]:
    """The losses and scalars of each step, and the trainer after the last."""
    cfg = config(start, output, mode, *more)
    output.mkdir(parents=True)
    trainer = DynTrainer(cfg)
    trainer.resume_or_load(False)
    found, plain = [], trainer.run_step

    def run_step() -> None:
        plain()
        latest = trainer.storage.latest()
        found.append({k: v for k, (v, at) in latest.items() if at == trainer.iter and not k.endswith("time")})

    trainer.run_step = run_step
    trainer.train()
    return found, trainer


def same(one: tuple[list[dict], DynTrainer], other: tuple[list[dict], DynTrainer]) -> None:
    assert len(one[0]) == len(other[0]) == STEPS
    for mine, theirs in zip(one[0], other[0], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)
    states = [trainer.checkpointer.model.state_dict() for _, trainer in (one, other)]
    assert states[0].keys() == states[1].keys()
    torch.testing.assert_close(states[0], states[1], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("INPUT.CLASSIFICATION.FLIP", "False", "MODEL.GATED.FIRST_BLOCK", "False"),
        ("MODEL.POLICY.PMN.ACTIONS", "stop"),
        ("MODEL.POLICY.PMN.ACTIONS", "fixed", "MODEL.POLICY.PMN.MODULES", "4"),
        ("MODEL.POLICY.PMN.ACTIONS", "random", "MODEL.POLICY.PMN.MODULES", "3"),
        ("MODEL.POLICY.PMN.ACTIONS", "distribute", "MODEL.POLICY.PMN.MODULES", "3"),
    ],
    ids=["levels", "plain block first", "stop", "fixed", "random", "distribute"],
)
def test_losses_scalars_and_weights_are_those_of_running_blocks(tmp_path, more):
    start = save_start(tmp_path, *more)
    plain, kept = (trained(start, tmp_path / mode, mode, *more) for mode in ("off", "on"))
    same(plain, kept)
    assert any(scalars["gates/executed_share"] < 0.99 for scalars in kept[0])
    moved = {name: value for name, value in kept[1].checkpointer.model.state_dict().items() if "policy.score" in name}
    before = torch.load(start, weights_only=False)["model"]
    assert all((value - before[name]).abs().max() > 0.01 for name, value in moved.items() if name in before)


def test_half_precision_keeps_what_it_computes(start, tmp_path):
    more = ("SOLVER.AMP.ENABLED", "True", "MODEL.CHANNELS_LAST", "True", "MODEL.POLICY.PMN.STOP_ALPHA", "1.0",
            "MODEL.POLICY.PMN.INIT_BIAS", "9.0")  # fmt: skip
    plain, kept = (trained(start, tmp_path / mode, mode, *more) for mode in ("off", "on"))
    assert [s["loss_cls"] for s in kept[0][:5]] == pytest.approx([s["loss_cls"] for s in plain[0][:5]], abs=1e-4)


def test_routes_and_costs_of_a_step_are_those_of_running_blocks(start, tmp_path):
    inputs, traces = [], []
    for mode in ("off", "on"):
        cfg = config(start, tmp_path / mode, mode, "MODEL.POLICY.PMN.STOP_ALPHA", "0.7")
        trainer = DynTrainer(cfg)
        trainer.resume_or_load(False)
        inputs.append(next(iter(trainer.data_loader)))
        torch.manual_seed(1)
        with recording() as trace:
            model = trainer.checkpointer.model
            trace.context.image_sizes = model.image_sizes(inputs[-1])
            model.forward_task(inputs[-1])
        traces.append(trace)
    assert "image" in inputs[0][0] and "image" not in inputs[1][0]
    plain, kept = traces
    assert [cost.name for cost in plain.costs] == [cost.name for cost in kept.costs]
    for mine, theirs in zip(plain.costs, kept.costs, strict=True):
        assert (mine.dense, mine.gate) == (theirs.dense, theirs.gate), mine.name
        assert torch.equal(mine.executed, theirs.executed) and torch.equal(mine.expected, theirs.expected), mine.name
    assert plain.rates() == kept.rates()
    assert len(set(plain.executed().tolist())) > 2  # images that stopped in several places
    for mine, theirs in zip(plain.routes(), kept.routes(), strict=True):
        assert mine.levels.keys() == theirs.levels.keys()
        assert all((mine.levels[name] == theirs.levels[name]).all() for name in mine.levels)


def test_one_table_serves_all_actions_and_prices(start, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    steps = ("SOLVER.MAX_ITER", "2")
    trained(start, tmp_path / "first", "on", *steps)
    assert "2,874 views took" in caplog.text and "about 0 s to go" in caplog.text
    caplog.clear()
    trained(start, tmp_path / "price", "on", *steps, "MODEL.POLICY.PMN.LAMBDA", "0.1", "SEED", "6")
    trained(
        start, tmp_path / "fixed", "on", *steps, "MODEL.POLICY.PMN.ACTIONS", "fixed", "MODEL.POLICY.PMN.MODULES", "2"
    )
    assert "views took" not in caplog.text and len(list((tmp_path / "kept").rglob("*.tensors"))) == 1
    trained(start, tmp_path / "bgr", "on", *steps, "INPUT.FORMAT", "BGR")
    assert "views took" in caplog.text and len(list((tmp_path / "kept").rglob("*.tensors"))) == 2


def test_a_run_that_resumes_ends_where_an_unbroken_one_does(start, tmp_path):
    schedule = ("SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.STEPS", "()")
    whole = trained(start, tmp_path / "whole", "on", *schedule)
    short = config(start, tmp_path / "parts", "on", *schedule, "SOLVER.MAX_ITER", "10")
    Path(short.OUTPUT_DIR).mkdir()
    for cfg, resume in ((short, False), (config(start, tmp_path / "parts", "on", *schedule), True)):
        trainer = DynTrainer(cfg)
        trainer.resume_or_load(resume)
        trainer.train()
    states = [one.checkpointer.model.state_dict() for one in (whole[1], trainer)]
    torch.testing.assert_close(states[0], states[1], atol=0, rtol=0)


def test_evaluation_runs_the_blocks(start, tmp_path):
    results = []
    for mode in ("off", "on"):
        more = ("SOLVER.MAX_ITER", "3", "DATASETS.TEST", "('digits_test',)", "SOLVER.PREFLIGHT", "True")
        trained(start, tmp_path / mode, mode, *more)
        results.append(json.loads((tmp_path / mode / "results.json").read_text())["metrics"])
    assert results[0] == results[1]


@pytest.mark.parametrize(
    "more, reason",
    [
        (
            ("MODEL.FREEZE", "['backbone.res*']"),
            "parameters before the policy learn, such as backbone.stem",
        ),
        (("INPUT.CLASSIFICATION.PAD_CROP", "2"), "INPUT.CLASSIFICATION.PAD_CROP"),
        (("VIS_PERIOD", "5"), "VIS_PERIOD"),
        (("FEATURE_CACHE.GB", "0.0001"), "more than FEATURE_CACHE.GB"),
        (
            ("MODEL.POLICY.NAME", "skipnet_rnn", "MODEL.POLICY.STAGE", "hrl"),
            "as MODEL.POLICY.NAME skipnet_rnn does not",
        ),
    ],
)
def test_where_features_change_the_step_is_the_plain_one(start, tmp_path, more, reason, caplog):
    caplog.set_level(logging.INFO)
    trainer = DynTrainer(config(start, tmp_path / "out", "auto", *more))
    assert reason in caplog.text and "image" in next(iter(trainer.data_loader))[0]
    with pytest.raises(CacheError, match=reason):
        DynTrainer(config(start, tmp_path / "out", "on", *more))
