"""Training of a policy in stages: one command, resumable in every stage, and refused from the wrong weights."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_detection import tiny_opts, write_boxes

from dyn_d2.checkpoint import CheckpointError
from dyn_d2.config.derive import build_cfg
from dyn_d2.engine import stages
from dyn_d2.engine.job_queue import pending
from dyn_d2.engine.stages import StageError, train_stages
from dyn_d2.engine.trainer import DynTrainer
from dyn_d2.gating.stages import plan, warn_of_other_stage
from dyn_d2.modeling.freeze import VerifyFrozen, frozen_fingerprint
from dyn_d2.utils.atomic import write_json

from detectron2.engine import HookBase

POLICIES = {"skipnet_rnn": "block", "deepmoe": "channel"}


def opts_of(folder: Path, policy: str, **more) -> list[str]:
    data = folder / "data" / "instances.json"
    return tiny_opts(
        data if data.is_file() else write_boxes(folder / "data", 4), folder / "out",
        MODEL__META_ARCHITECTURE="DynamicRCNN", MODEL__BACKBONE__NAME="build_gated_fpn_backbone",
        MODEL__POLICY__NAME=policy, MODEL__GATED__UNIT=POLICIES.get(policy, "block"), SOLVER__MAX_ITER=4,
        SOLVER__STEPS=[3], SOLVER__SECOND_STAGE__MAX_ITER=3, SOLVER__SECOND_STAGE__BASE_LR=0.002,
        SOLVER__CHECKPOINT_PERIOD=1, **more,
    )  # fmt: skip


class Kill(HookBase):
    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def before_step(self) -> None:
        if self.trainer.iter == self.iteration:
            raise KeyboardInterrupt


class Runs:
    """Takes the place of the processes: trains here, and dies where it is told to."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.kill: dict[str, int] = {}  # stage -> iteration before which its first run dies

    def __call__(self, command: list[str]) -> int:
        self.commands.append(command)
        trainer = DynTrainer(build_cfg("", command[command.index("OUTPUT_DIR") :]))
        trainer.cfg.DATASETS.TEST = ()
        trainer.resume_or_load(resume="--resume" in command)
        iteration = self.kill.pop(trainer.cfg.MODEL.POLICY.STAGE, None)
        if iteration is not None:
            trainer.register_hooks([Kill(iteration)])
        try:
            trainer.train()
        except KeyboardInterrupt:
            return 137
        return 0


@pytest.fixture
def runs(monkeypatch) -> Runs:
    found = Runs()
    monkeypatch.setattr(stages, "run_process", found)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_a_kill_in_each_stage_changes_nothing(policy, runs, tmp_path) -> None:
    more = {"MODEL__POLICY__SKIPNET__HRL_TEMPERATURE": 0.5}
    unbroken = train_stages(plan, "", opts_of(tmp_path, policy, **more))
    assert len(runs.commands) == 2 and all("--resume" not in command for command in runs.commands)

    opts = [*opts_of(tmp_path, policy, **more), "OUTPUT_DIR", str(tmp_path / "killed")]
    first, second = [stage.name for stage in plan("", opts)]
    runs.kill = {first: 2, second: 1}
    for name in (first, second):
        with pytest.raises(StageError, match=f"stage {name} ended with status 137"):
            train_stages(plan, "", opts)
    last = train_stages(plan, "", opts)
    resumed = [("--resume" in command, command[command.index("MODEL.POLICY.STAGE") + 1]) for command in runs.commands]
    assert resumed[2:] == [(False, first), (True, first), (False, second), (True, second)]

    for one, other in zip(plan("", opts), (unbroken.folder.parent / name for name in (first, second)), strict=True):
        a, b = torch.load(one.weights, weights_only=True), torch.load(other / stages.FINAL, weights_only=True)
        assert all(torch.equal(a["model"][key], b["model"][key]) for key in a["model"])
        assert a["dyn_d2"]["policy"] == {"name": policy, "stage": one.name}
    train_stages(plan, "", opts)
    assert len(runs.commands) == 6  # nothing is left to do

    models = [torch.load(stage.weights, weights_only=True)["model"] for stage in plan("", opts)]
    gates = [name for name in models[0] if ".policy." in name]
    same = [torch.equal(models[0][name], models[1][name]) for name in gates]
    assert gates and (all(same) if policy == "deepmoe" else not any(same))
    with pytest.raises(StageError, match="another config"):
        train_stages(plan, "", [*opts, "SOLVER.SECOND_STAGE.BASE_LR", "0.001"])
    assert last.folder.name == second


def test_command_line(monkeypatch, caplog, tmp_path) -> None:
    trained = []

    def plan_of(config_file: str, opts: list[str]) -> list[stages.Stage]:
        assert (config_file, opts) == ("a.yaml", ["SEED", "3"])
        return [stages.Stage(name, tmp_path / name, None) for name in ("first", "last")]

    monkeypatch.setattr("sys.argv", ["dyn-d2 stages", "--config-file", "a.yaml", "--num-gpus", "2", "SEED", "3"])
    monkeypatch.setattr(stages, "read_cfg", lambda *_: None)
    monkeypatch.setattr(stages, "say_needs", lambda cfg: None)
    monkeypatch.setattr(stages, "run_stage", lambda stage, *how: trained.append((stage.name, *how)))
    caplog.set_level("INFO", "dyn_d2")
    assert stages.train_all(plan_of, "...") == 0
    assert trained == [(name, "a.yaml", ["SEED", "3"], ["--num-gpus", "2"]) for name in ("first", "last")]
    folder = tmp_path / "last"
    assert f"model: {folder / stages.FINAL}\nresults: {folder / 'results.json'}" in caplog.text


def test_keys_of_the_second_stage(tmp_path) -> None:
    opts = opts_of(tmp_path, "deepmoe", SOLVER__SECOND_STAGE__WARMUP_ITERS=0, MODEL__FREEZE=["backbone.bottom_up.stem"])
    first, second = (stage.cfg for stage in plan("", opts))
    schedules = [
        (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS) for cfg in (first, second)
    ]
    assert schedules == [(4, 0.01, (3,), 2), (3, 0.002, (), 0)]
    assert first.MODEL.FREEZE == second.MODEL.FREEZE == ["backbone.bottom_up.stem"]
    yaml = tmp_path / "deepmoe.yaml"
    yaml.write_text(
        "MODEL: {POLICY: {NAME: deepmoe}, FREEZE: [backbone.stem]}\nSOLVER: {SECOND_STAGE: {MAX_ITER: 30}}\n"
    )
    first, second = (build_cfg(str(yaml), ["MODEL.POLICY.STAGE", stage]) for stage in ("joint", "finetune"))
    assert (first.SOLVER.MAX_ITER, second.SOLVER.MAX_ITER) == (40000, 30)
    assert first.MODEL.FREEZE == second.MODEL.FREEZE == ["backbone.stem"]
    again = build_cfg(str(yaml), ["MODEL.POLICY.STAGE", "finetune", "SOLVER.MAX_ITER", "9"])
    assert again.SOLVER.MAX_ITER == 9
    given = ["SOLVER.SECOND_STAGE.MAX_ITER", "1000", "SOLVER.SECOND_STAGE.BASE_LR", "0.01"]
    small = ["SOLVER.REFERENCE_BATCH", "128", "SOLVER.IMS_PER_BATCH", "32"]
    scaled, kept = (
        build_cfg(str(yaml), ["MODEL.POLICY.STAGE", "finetune", *small, *more]).SOLVER for more in ([], given)
    )
    assert (scaled.MAX_ITER, kept.MAX_ITER, kept.BASE_LR) == (120, 1000, 0.01)


@pytest.mark.parametrize("source", ["nowhere", "yaml", "command line"])
def test_the_second_stage_freezes_gates_wherever_other_parts_are_frozen(source, tmp_path) -> None:
    parts, yaml, frozen = ["backbone.bottom_up.stem"], tmp_path / "freeze.yaml", {}
    yaml.write_text(f"MODEL: {{FREEZE: {parts if source == 'yaml' else []}}}\n")
    more = {"MODEL__FREEZE": parts} if source == "command line" else {}
    for stage in ("joint", "finetune"):
        trainer = DynTrainer(build_cfg(str(yaml), opts_of(tmp_path, "deepmoe", MODEL__POLICY__STAGE=stage, **more)))
        backbone = trainer.model.train().backbone.bottom_up
        frozen[stage] = [
            not any(p.requires_grad for p in part.parameters()) for part in (backbone.stem, backbone.policy)
        ]
        assert any(module.training for module in backbone.policy.modules()) == (stage == "joint")
        watched = frozen_fingerprint(trainer.model)
        assert ("backbone.bottom_up.policy.embedding.norms.0.running_mean" in watched) == (stage == "finetune")
        verified = any(isinstance(hook, VerifyFrozen) for hook in trainer._hooks)
        assert verified == any(frozen[stage])
    given = source != "nowhere"
    assert frozen == {"joint": [given, False], "finetune": [given, True]}


def test_the_first_stage_is_shared_by_what_only_later_ones_read(tmp_path) -> None:
    opts = opts_of(tmp_path, "skipnet_rnn")
    one = plan("", opts)
    other = plan("", [*opts, "MODEL.POLICY.SKIPNET.ALPHA", "0.5", "SOLVER.SECOND_STAGE.BASE_LR", "0.01"])
    assert one[0].fingerprint() == other[0].fingerprint() and one[1].fingerprint() != other[1].fingerprint()
    assert plan("", [*opts, "MODEL.POLICY.SKIPNET.INIT_BIAS", "1.0"])[0].fingerprint() != one[0].fingerprint()


@pytest.mark.parametrize("before", ["", "https://somewhere/a.pth", "a.pth"])
@pytest.mark.parametrize("now", ["", "https://somewhere/b.pth", "b.pth"])
def test_other_weights_to_start_from_are_another_model(tmp_path, before, now) -> None:
    for number, name in enumerate(("a.pth", "b.pth")):
        torch.save({"model": {"x": torch.full((2,), number)}}, tmp_path / name)

    def first(weights: str):
        path = str(tmp_path / weights) if weights and "://" not in weights else weights
        return plan("", [*opts_of(tmp_path, "skipnet_rnn"), "MODEL.WEIGHTS", path])[0]

    done = first(before)
    done.folder.mkdir(parents=True)
    torch.save({"model": {}}, done.weights)
    (done.folder / "config.yaml").write_text(done.cfg.dump())
    entries = {"stage": done.name, "fingerprint": done.fingerprint(), "weights": "model_final.pth"}
    write_json(done.folder / stages.DONE, {**entries, "inputs": done.inputs()})
    assert first(before).finished()
    if before != now:
        with pytest.raises(StageError, match="of other data or weights:\n  MODEL.WEIGHTS: "):
            first(now).finished()


def test_results_taken_in_another_way_are_not_the_same_ones(tmp_path) -> None:
    """The model would be the same, what it scores would not."""

    def first(*opts: str):
        return plan("", [*opts_of(tmp_path, "skipnet_rnn"), *opts])[0]

    done = first()
    done.folder.mkdir(parents=True)
    torch.save({"model": {}}, done.weights)
    (done.folder / "config.yaml").write_text(done.cfg.dump())
    entries = {"stage": done.name, "fingerprint": done.fingerprint(), "weights": "model_final.pth"}
    write_json(done.folder / stages.DONE, {**entries, "inputs": done.inputs()})
    assert first("TEST.EVAL_PERIOD", "7", "TEST.IMS_PER_BATCH", "3", "MODEL.DEVICE", "cuda").finished()
    assert not first("TEST.EVAL_PERIOD", "7", "TEST.IMS_PER_BATCH", "3").other_results()
    other = first("TEST.DETECTIONS_PER_IMAGE", "5")
    assert other.finished()  # for what only starts from its model
    with pytest.raises(StageError, match="taken in another way:\n  TEST.DETECTIONS_PER_IMAGE: 100 -> 5\n.*evaluate"):
        stages.run_stages([other], "", [])
    with pytest.raises(StageError, match="taken in another way"):
        pending({"cell": [other]})
    with pytest.raises(StageError, match="SOLVER.BEST"):
        first("SOLVER.BEST.METRIC", "a/b", "TEST.EVAL_PERIOD", "7").finished()


def test_policies_without_stages_say_so(tmp_path) -> None:
    with pytest.raises(StageError, match="random_skip is trained in one stage: use dyn-d2 train"):
        plan("", opts_of(tmp_path, "random_skip"))
    with pytest.raises(ValueError, match="MODEL.POLICY.NAME is 'skipnet': use one of .*skipnet_rnn"):
        plan("", opts_of(tmp_path, "skipnet"))
    with pytest.raises(ValueError, match="MODEL.POLICY.STAGE is 'joint': skipnet_rnn has the stages sp, hrl"):
        build_cfg("", opts_of(tmp_path, "skipnet_rnn", MODEL__POLICY__STAGE="joint"))


def trainer_of(folder: Path, policy: str, stage: str, **more) -> DynTrainer:
    return DynTrainer(build_cfg("", opts_of(folder, policy, MODEL__POLICY__STAGE=stage, **more)))


def test_a_later_stage_needs_the_weights_of_the_one_before(tmp_path) -> None:
    hrl = trainer_of(tmp_path, "skipnet_rnn", "hrl")
    with pytest.raises(CheckpointError, match="hrl of skipnet_rnn starts from .* stage sp, but MODEL.WEIGHTS is empty"):
        hrl.resume_or_load(resume=False)

    def start(policy: str, stage: str) -> None:
        trainer = trainer_of(tmp_path, policy, stage, OUTPUT_DIR=tmp_path / policy / stage)
        (tmp_path / policy / stage).mkdir(parents=True, exist_ok=True)
        trainer.checkpointer.save("model_final")
        weights = str(tmp_path / policy / stage / "model_final.pth")
        trainer_of(tmp_path, "skipnet_rnn", "hrl", MODEL__WEIGHTS=weights).resume_or_load(resume=False)

    start("skipnet_rnn", "sp")
    start("skipnet_rnn", "hrl")  # goes on with the same stage
    with pytest.raises(CheckpointError, match="is of skipnet_ffgate2, stage sp, but .* starts from its stage sp: set"):
        start("skipnet_ffgate2", "sp")
    with pytest.raises(CheckpointError, match="is of all_open, stage .the only one., but"):
        start("all_open", "")
    plain = tmp_path / "plain.pth"
    state = hrl.checkpointer.model.state_dict()
    torch.save({"model": {name: value for name, value in state.items() if ".policy." not in name}}, plain)
    with pytest.raises(CheckpointError, match="plain.pth lacks gates that .* hrl .*policy.*dyn-d2 stages.*PLAN"):
        trainer_of(tmp_path, "skipnet_rnn", "hrl", MODEL__WEIGHTS=plain).resume_or_load(resume=False)
    # The first stage takes any weights.
    trainer_of(tmp_path, "skipnet_rnn", "sp", MODEL__WEIGHTS=plain).resume_or_load(resume=False)


def test_a_plan_may_begin_with_reinforcement_from_new_gates(runs, tmp_path) -> None:
    plan_of_one = {"MODEL__POLICY__PLAN": ["hrl"]}
    last = train_stages(plan, "", opts_of(tmp_path, "skipnet_rnn", **plan_of_one))
    assert last.name == "hrl" and last.finished() and len(runs.commands) == 1
    assert torch.load(last.weights, weights_only=True)["dyn_d2"]["policy"]["stage"] == "hrl"
    command = runs.commands[0]
    (last.folder / "config.yaml").write_text(build_cfg("", command[command.index("OUTPUT_DIR") :]).dump())
    with pytest.raises(StageError, match="MODEL.WEIGHTS: none -> the result of stage sp"):
        plan("", opts_of(tmp_path, "skipnet_rnn"))[1].finished()


def test_new_gates_of_a_plain_network_are_not_sharpened(tmp_path) -> None:
    plain = trainer_of(tmp_path, "all_open", "", OUTPUT_DIR=tmp_path / "plain")
    (tmp_path / "plain").mkdir(exist_ok=True)
    plain.checkpointer.save("model_final")
    more = {"MODEL__POLICY__PLAN": ["hrl", "fixed"], "MODEL__POLICY__SKIPNET__HRL_TEMPERATURE": 0.25}
    hrl = trainer_of(
        tmp_path, "skipnet_rnn", "hrl", MODEL__WEIGHTS=tmp_path / "plain" / "model_final.pth", SEED=1, **more
    )
    before = {name: value.clone() for name, value in hrl.checkpointer.model.state_dict().items()}
    hrl.resume_or_load(resume=False)
    after, block = hrl.checkpointer.model.state_dict(), "backbone.bottom_up.res2.0.conv1.weight"
    gates = [name for name in after if ".policy." in name]
    assert gates and all(torch.equal(before[name], after[name]) for name in gates)
    assert torch.equal(after[block], plain.checkpointer.model.state_dict()[block])


def test_a_plan_that_begins_with_a_later_stage_depends_on_the_keys_of_that_stage(tmp_path) -> None:
    opts = opts_of(tmp_path, "skipnet_rnn", MODEL__POLICY__PLAN=["hrl", "fixed"])
    prints = {
        plan("", [*opts, *more])[0].fingerprint()
        for more in ([], ["MODEL.POLICY.SKIPNET.ALPHA", "0.5"], ["SOLVER.SECOND_STAGE.BASE_LR", "0.01"])
    }
    assert len(prints) == 3
    assert plan("", [*opts, "SOLVER.FIXED_STAGE.MAX_ITER", "3"])[0].fingerprint() in prints


def test_the_gates_are_sharpened_once_when_a_stage_begins(tmp_path) -> None:
    sp = trainer_of(tmp_path, "skipnet_rnn", "sp", OUTPUT_DIR=tmp_path / "sp")
    (tmp_path / "sp").mkdir(exist_ok=True)
    sp.checkpointer.save("model_final")
    name = "backbone.bottom_up.policy.score.weight"
    more = {"MODEL__POLICY__SKIPNET__HRL_TEMPERATURE": 0.25, "OUTPUT_DIR": tmp_path / "hrl"}
    (tmp_path / "hrl").mkdir(exist_ok=True)
    hrl = trainer_of(tmp_path, "skipnet_rnn", "hrl", MODEL__WEIGHTS=tmp_path / "sp" / "model_final.pth", **more)
    hrl.resume_or_load(resume=False)
    before, after = (trainer.checkpointer.model.state_dict()[name] for trainer in (sp, hrl))
    assert torch.allclose(after, 4 * before)
    hrl.checkpointer.save("model_final")
    again = trainer_of(tmp_path, "skipnet_rnn", "hrl", MODEL__WEIGHTS=tmp_path / "hrl" / "model_final.pth", **more)
    again.resume_or_load(resume=False)
    assert torch.equal(again.checkpointer.model.state_dict()[name], after)


@pytest.mark.parametrize(("stage", "warns"), [("joint", False), ("pretrain", True), ("", True)])
def test_evaluating_in_another_stage_is_said(stage, warns, caplog) -> None:
    cfg = build_cfg("", ["MODEL.POLICY.NAME", "pmn", "MODEL.POLICY.STAGE", stage])
    report = SimpleNamespace(source="model_final.pth", metadata={"policy": {"name": "pmn", "stage": "joint"}})
    with caplog.at_level("WARNING"):
        warn_of_other_stage(cfg, report)
    assert ("add MODEL.POLICY.STAGE joint" in caplog.text) == warns
