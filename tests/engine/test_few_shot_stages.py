"""The chain base -> surgery -> novel -> surgery -> fine-tuning, and what is skipped when."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from tiny_detection import tiny_opts, write_boxes

from dyn_d2.config.derive import build_cfg
from dyn_d2.engine import stages
from dyn_d2.engine.few_shot import plan
from dyn_d2.engine.stages import StageError, train_stages
from dyn_d2.engine.trainer import DynTrainer


@pytest.fixture
def opts(tmp_path) -> list[str]:
    return tiny_opts(write_boxes(tmp_path / "data"), tmp_path / "out", FEW_SHOT__METHOD="tfa_cos", FEW_SHOT__SHOTS=2)


def test_the_base_model_is_shared_by_shots_seeds_and_methods(opts) -> None:
    first = plan("", opts)
    for more in (
        ["FEW_SHOT.SHOTS", "1"],
        ["FEW_SHOT.SEED", "3"],
        ["FEW_SHOT.METHOD", "ft_full"],
        ["FEW_SHOT.FINETUNE.MAX_ITER", "9"],
        ["DATALOADER.NUM_WORKERS", "2"],
    ):
        other = plan("", [*opts, *more])
        assert other[0].folder == first[0].folder and other[0].fingerprint() == first[0].fingerprint()
    assert plan("", [*opts, "FEW_SHOT.SHOTS", "1"])[-1].folder != first[-1].folder
    changed = plan("", [*opts, "MODEL.RPN.NMS_THRESH", "0.6"])
    assert all(a.fingerprint() != b.fingerprint() for a, b in zip(first, changed, strict=True))


def test_the_novel_stage_is_shared_by_methods_on_one_base_model(opts) -> None:
    plans = {
        method: plan("", [*opts, "FEW_SHOT.INIT", "novel", "FEW_SHOT.METHOD", method])
        for method in ("tfa_cos", "tfa_fc", "ft_full", "ft_full_fc")
    }
    assert all([stage.name for stage in stages] == ["base", "novel", "finetune"] for stages in plans.values())
    novel = [stages[1] for stages in plans.values()]
    assert {stage.folder.name for stage in novel} == {"novel_split1_2shot_seed0"}
    assert len({stage.fingerprint() for stage in novel}) == 1
    assert all(stage.cfg.MODEL.ROI_BOX_HEAD.CLASSIFIER == "linear" for stage in novel)
    longer = plan("", [*opts, "FEW_SHOT.INIT", "novel", "FEW_SHOT.NOVEL.MAX_ITER", "9"])
    assert longer[1].fingerprint() != novel[0].fingerprint()
    assert plan("", [*opts, "FEW_SHOT.INIT", "novel", "FEW_SHOT.SEED", "3"])[1].folder != novel[0].folder
    cosine = plan("", [*opts, "FEW_SHOT.INIT", "novel", "MODEL.ROI_BOX_HEAD.CLASSIFIER", "cosine"])
    assert [stage.folder.name for stage in cosine][:2] == ["base_cosine_split1", "novel_cosine_split1_2shot_seed0"]


def test_a_single_stage_is_not_for_the_chain(opts) -> None:
    with pytest.raises(ValueError, match="FEW_SHOT.STAGE is given as 'joint'.*dyn-d2 train"):
        plan("", [*opts, "FEW_SHOT.STAGE", "joint"])


def test_methods_of_one_stage(opts) -> None:
    (joint,), (shots,) = (plan("", [*opts, "FEW_SHOT.METHOD", name]) for name in ("joint", "joint_shots"))
    assert joint.name == "joint" and joint.folder.name == "joint_split1" and not joint.parents
    assert shots.name == "joint_shots" and shots.folder.name == "joint_shots_split1_2shot_seed0" and not shots.parents
    assert shots.cfg.MODEL.ROI_HEADS.NUM_CLASSES == 4 and "joint_shots_2shot" in shots.cfg.DATASETS.TRAIN[0]
    for key, value, same in (("FEW_SHOT.SEED", 1, False), ("FEW_SHOT.SHOTS", 1, False), ("TEST.EVAL_PERIOD", 9, True)):
        again = [plan("", [*opts, key, str(value), "FEW_SHOT.METHOD", name])[0] for name in ("joint", "joint_shots")]
        assert again[0].fingerprint() == joint.fingerprint()
        assert (again[1].fingerprint() == shots.fingerprint()) is same


@pytest.mark.slow
def test_chain_is_run_once_and_stages_keep_what_is_frozen(opts, monkeypatch) -> None:
    commands = []

    def train_here(command: list[str]) -> int:
        """dyn-d2 train without its process."""
        commands.append(command)
        cfg = build_cfg("", command[command.index("OUTPUT_DIR") :])
        Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
        Path(cfg.OUTPUT_DIR, "config.yaml").write_text(cfg.dump())
        trainer = DynTrainer(cfg)
        trainer.cfg.DATASETS.TEST = ()
        trainer.resume_or_load(resume="--resume" in command)
        trainer.train()
        return 0

    monkeypatch.setattr(stages, "run_process", train_here)
    opts = [*opts, "SOLVER.MAX_ITER", "2", "FEW_SHOT.INIT", "novel"]
    last = train_stages(plan, "", opts)
    assert len(commands) == 3 and all("--resume" not in command for command in commands)
    models = [torch.load(stage.weights, weights_only=True) for stage in plan("", opts)]
    features = [name for name in models[0]["model"] if not name.startswith("roi_heads.box_predictor")]
    assert all(torch.equal(models[0]["model"][name], model["model"][name]) for model in models for name in features)
    assert [len(model["dyn_d2"]["classes"]) for model in models] == [3, 1, 4]
    assert [model["dyn_d2"]["stage"] for model in models] == ["base", "novel", "finetune"]
    start = torch.load(last.folder / "initial.pth", weights_only=True)
    rows = "roi_heads.box_predictor.cls_score.weight"
    assert torch.equal(start["model"][rows][3], models[1]["model"][rows][0])

    train_stages(plan, "", opts)
    assert len(commands) == 3
    train_stages(plan, "", [*opts, "FEW_SHOT.INIT", "random"])
    assert len(commands) == 4 and "finetune" in commands[-1]
    with pytest.raises(StageError, match="another config:\n  MODEL.RPN.NMS_THRESH: 0.7 -> 0.6\n"):
        train_stages(plan, "", [*opts, "MODEL.RPN.NMS_THRESH", "0.6"])
    pretend_that_keys_are_new(last, "MODEL.TIMM")
    train_stages(plan, "", opts)
    assert len(commands) == 4
    (last.folder / stages.DONE).unlink()  # killed after the last checkpoint
    record = last.folder / "initial.json"
    kept = record.read_text()
    record.write_text(json.dumps({**json.loads(kept), "base": "0" * 16}))
    with pytest.raises(StageError, match="was begun from other weights than those of stage base now"):
        train_stages(plan, "", opts)
    record.write_text(kept)
    train_stages(plan, "", opts)
    assert len(commands) == 5 and "--resume" in commands[-1]


def pretend_that_keys_are_new(stage: stages.Stage, node: str) -> None:
    """Make the folder of a finished stage that of an older version, which lacked the keys below ``node``."""
    config, done = stage.folder / "config.yaml", stage.folder / stages.DONE
    keys = yaml.safe_load(config.read_text())
    section, name = node.split(".")
    del keys[section][name]
    config.write_text(yaml.safe_dump(keys))
    done.write_text(json.dumps({**json.loads(done.read_text()), "fingerprint": "0123456789abcdef"}))


def test_failed_stage_is_named(opts, monkeypatch) -> None:
    monkeypatch.setattr(stages, "run_process", lambda command: 3)
    with pytest.raises(StageError, match="stage base ended with status 3"):
        train_stages(plan, "", opts)
    assert not list(Path(opts[1]).rglob(stages.DONE))


def test_too_few_objects_are_told_before_the_base_model_is_trained(opts, monkeypatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(stages, "run_process", commands.append)
    with pytest.raises(ValueError, match="Not enough usable objects for 1000 shots"):
        train_stages(plan, "", [*opts, "FEW_SHOT.SHOTS", "1000"])
    assert not commands
