"""Processes that do one training after the other."""

import argparse
import logging
import time
from dataclasses import replace

import fake_cells
import pytest
import torch
from fake_cells import FakeStage, training_of
from tiny_detection import tiny_opts, write_boxes

from dyn_d2.backend import describe_backend
from dyn_d2.config.read import read_cfg
from dyn_d2.engine.few_shot import plan
from dyn_d2.engine.stages import StageError
from dyn_d2.engine.workers import LocalWorkers, Training, add_options, run_cell, workers_of
from dyn_d2.utils.lock import is_held


def _workers(*arguments: str):
    parser = argparse.ArgumentParser()
    add_options(parser)
    return workers_of(parser.parse_args(arguments), read_cfg())


def test_options() -> None:
    with _workers("--jobs", "3")() as workers:
        assert isinstance(workers, LocalWorkers) and workers.at_a_time == 3
    with pytest.raises(ValueError, match="--jobs is for one machine without --cluster"):
        _workers("--jobs", "3", "--cluster", "auto")
    with pytest.raises(ValueError, match="--cores is for --cluster"):
        _workers("--cores", "3")


def test_a_folder_that_other_machines_do_not_have(tmp_path) -> None:
    training = replace(training_of(FakeStage(tmp_path / "a")), cwd=str(tmp_path / "gone"))
    with pytest.raises(StageError, match="there is no folder .*gone on .*: start the command in a folder of a storage"):
        run_cell(training)


class FakeLocalWorkers(LocalWorkers):
    run = staticmethod(fake_cells.in_a_process)


@pytest.mark.slow
def test_one_process_for_many_and_a_killed_one(tmp_path) -> None:
    one, two, endless = (FakeStage(tmp_path / name) for name in ("one", "two", "long"))
    with FakeLocalWorkers() as workers:
        for stage in (one, two):
            assert workers.collect(stage, workers.submit(training_of(stage), 1)) >= 0
        assert one.tries() == two.tries()
        future = workers.submit(training_of(endless), 1)
        while not (endless.folder / "tries").is_file():
            time.sleep(0.05)
        workers.stop()
        with pytest.raises(StageError, match="a process that trained was killed, .* goes on from here"):
            workers.collect(endless, future)


@pytest.mark.slow
def test_one_training_after_the_other(tmp_path, monkeypatch) -> None:
    """The second has its own log, the folder of the first is free, and its numbers do not depend on what was before."""
    opts = tiny_opts(write_boxes(tmp_path / "data", 2), tmp_path / "out", FEW_SHOT__METHOD="tfa_cos")
    opts += ["SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "[]", "FEW_SHOT.SHOTS", "1"]
    base, tuned = plan("", opts)
    monkeypatch.setattr(logging.getLogger("dyn_d2"), "handlers", [])  # those of other tests
    with pytest.raises(StageError, match="base_split1 .* lacks the result"):
        run_cell(Training(plan, "", tuple(opts), tuned.folder))
    models = []
    for stage in (base, tuned, tuned):
        assert run_cell(Training(plan, "", tuple(opts), stage.folder)) > 0 and stage.finished()
        models.append(torch.load(stage.weights, weights_only=True)["model"])
        if stage is tuned:
            stage.folder.rename(tmp_path / f"tuned{len(models)}")
    assert all(torch.equal(models[1][name], models[2][name]) for name in models[1])
    assert not logging.getLogger("dyn_d2").handlers
    assert not is_held(base.folder) and (base.folder / ".lock").is_file()
    logs = [(folder / "log.txt").read_text() for folder in (base.folder, tmp_path / "tuned2", tmp_path / "tuned3")]
    assert [log.count(describe_backend()) for log in logs] == [1, 1, 1]

    broken = [*opts, "MODEL.DEVICE", "cuda"]
    if not torch.cuda.is_available():
        with pytest.raises(StageError, match=r"tfa_cos_split1_1shot_seed0 failed: MODEL.DEVICE is cuda, .*log.txt"):
            run_cell(Training(plan, "", tuple(broken), tuned.folder))
