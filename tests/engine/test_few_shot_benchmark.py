"""Cells of a table: planned, trained once each, gone on with after a failure, and averaged."""

import json
import math
import threading
from functools import partial

import pytest
import torch
from thread_workers import ThreadWorkers
from tiny_detection import tiny_opts, write_boxes

from dyn_d2.engine import workers
from dyn_d2.engine.few_shot_benchmark import (
    Cell,
    base_results,
    cell_results,
    cells,
    nap_curves,
    plan_cells,
    run_cells,
    summarise,
)
from dyn_d2.engine.job_queue import numbers, pending
from dyn_d2.engine.stages import DONE, StageError
from dyn_d2.evaluation.aggregate import estimate


@pytest.fixture
def opts(tmp_path) -> list[str]:
    return tiny_opts(write_boxes(tmp_path / "data"), tmp_path / "out", FEW_SHOT__METHOD="tfa_cos")


class Trainings:
    """Takes the place of ``run_stage``: leaves what a training leaves, with numbers that one can follow."""

    def __init__(self, monkeypatch, fail_at: str = "") -> None:
        self.folders: list[str] = []
        self.fail_at = fail_at
        self._lock = threading.Lock()
        monkeypatch.setattr(workers, "run_stage", self)

    def __call__(self, stage, config_file, opts, launcher, train) -> None:
        with self._lock:
            self.folders.append(stage.folder.name)
        assert all(parent.finished() for parent in stage.parents)
        if stage.folder.name == self.fail_at:
            raise StageError(f"stage {stage.name} ended with status 1")
        few = stage.cfg.FEW_SHOT
        assert opts[-8:] == Cell(few.METHOD, few.SPLIT, few.SHOTS, few.SEED).opts() or stage.name == "base"
        metrics = {"AP": 30.0, "bAP": 30.0, "bAP50": 50.0, "AP-red": 1.0}
        if stage.name == "finetune":
            novel = 10.0 * few.SHOTS + few.SEED + (5.0 if few.METHOD == "tfa_cos" else 0.0)
            metrics = {"AP": 20.0 + few.SEED, "bAP": 28.0, "nAP": novel, "nAP50": None}
        stage.folder.mkdir(parents=True)
        (stage.folder / "results.json").write_text(json.dumps({"metrics": {"val": {"bbox": metrics}}}))
        (stage.folder / "metrics.json").write_text('{"iteration": 9, "time": 0.5}\n{"iteration": 9, "bbox/AP": 1.0}\n')
        torch.save({"model": {}}, stage.weights)
        (stage.folder / DONE).write_text(json.dumps({"fingerprint": stage.fingerprint()}))


def test_cells_vary_seeds_slowest() -> None:
    wanted = cells(["ft_full", "tfa_cos"], [1], [1, 5], [0, 1])
    assert len(wanted) == 8 and [cell.seed for cell in wanted] == [0] * 4 + [1] * 4
    assert wanted[1].opts() == [
        "FEW_SHOT.METHOD", "ft_full", "FEW_SHOT.SPLIT", "1", "FEW_SHOT.SHOTS", "5", "FEW_SHOT.SEED", "0"
    ]  # fmt: skip
    assert cells(["ft"], [1, 1], [1], [0]) == [Cell("ft", 1, 1, 0)]
    with pytest.raises(ValueError, match="unknown method tfa_cosine: use joint_shots, ft, ft_full, tfa_fc, tfa_cos"):
        cells(["tfa_cosine", "ft"], [1], [1], [0])
    with pytest.raises(ValueError, match="not a single seed"):
        cells(["ft"], [1], [1], [])


def test_numbers() -> None:
    assert numbers("0-2,5") == [0, 1, 2, 5] and numbers("3") == [3] and numbers("1,1,0-1") == [1, 0]
    for wrong in ("3-1", "a", "", "1,,2"):
        with pytest.raises(ValueError):
            numbers(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 3])
def test_each_training_is_run_once_and_new_seeds_add_to_it(opts, monkeypatch, jobs) -> None:
    trainings = Trainings(monkeypatch)
    wanted = cells(["ft_full", "tfa_cos"], [1], [1, 2], [0])
    plans = plan_cells("", opts, wanted)
    run_cells("", opts, plans, partial(ThreadWorkers, jobs))
    assert trainings.folders[0] == "base_split1" and len(trainings.folders) == 5 == len(set(trainings.folders))
    assert not pending(plans)
    run_cells("", opts, plan_cells("", opts, wanted), partial(ThreadWorkers, jobs))
    assert len(trainings.folders) == 5
    more = plan_cells("", opts, cells(["ft_full", "tfa_cos"], [1], [1, 2], [0, 1]))
    starts = []
    run_cells("", opts, more, partial(ThreadWorkers, jobs), on_start=lambda stage: starts.append(stage.folder.name))
    assert sorted(starts) == sorted(trainings.folders[5:]) and len(starts) == 4
    assert all(name.endswith("seed1") for name in starts)


def test_goes_on_after_a_failure(opts, monkeypatch) -> None:
    wanted = cells(["ft_full", "tfa_fc", "tfa_cos"], [1], [2], [0])
    failing = Trainings(monkeypatch, fail_at="tfa_fc_split1_2shot_seed0")
    with pytest.raises(StageError, match="status 1"):
        run_cells("", opts, plan_cells("", opts, wanted), ThreadWorkers)
    assert failing.folders == ["base_split1", "ft_full_split1_2shot_seed0", "tfa_fc_split1_2shot_seed0"]
    fixed = Trainings(monkeypatch)
    run_cells("", opts, plan_cells("", opts, wanted), ThreadWorkers)
    assert fixed.folders == ["tfa_fc_split1_2shot_seed0", "tfa_cos_split1_2shot_seed0"]


def test_another_config_in_the_same_folder_is_refused_before_any_training(opts, monkeypatch) -> None:
    trainings = Trainings(monkeypatch)
    wanted = cells(["ft_full"], [1], [2], [0])
    run_cells("", opts, plan_cells("", opts, wanted), ThreadWorkers)
    other = [*opts, "MODEL.RPN.NMS_THRESH", "0.6"]
    with pytest.raises(StageError, match="another config"):
        run_cells("", other, plan_cells("", other, wanted), ThreadWorkers)
    assert len(trainings.folders) == 2


@pytest.mark.slow
def test_table_files_and_numbers_by_hand(opts, monkeypatch, tmp_path) -> None:
    Trainings(monkeypatch)
    seeds = [0, 1, 2]
    plans = plan_cells("", opts, cells(["tfa_cos", "ft_full"], [1], [2, 1], seeds))
    run_cells("", opts, plans, ThreadWorkers)
    assert cell_results(plans)[Cell("tfa_cos", 1, 2, 1)]["nAP"] == 26.0
    assert base_results(plans) == {(1, "base only"): {"bAP": 30.0, "bAP50": 50.0}}
    lines = [[part.strip() for part in line.strip("|").split("|")]
             for line in summarise(tmp_path / "table", plans, seeds, ("AP", "bAP", "nAP")).splitlines()]  # fmt: skip
    # Seeds 0, 1, 2 differ by their number: s = 1, 1.96 / sqrt(3) = 1.13.
    assert lines[2:] == [
        ["1", "base only", "-", "not predicted", "30.0", "not predicted"],
        ["1", "FRCN+ft-full", "1", "21.0 ± 1.1", "28.0 ± 0.0", "11.0 ± 1.1"],
        ["1", "FRCN+ft-full", "2", "21.0 ± 1.1", "28.0 ± 0.0", "21.0 ± 1.1"],
        ["1", "TFA w/ cos", "1", "21.0 ± 1.1", "28.0 ± 0.0", "16.0 ± 1.1"],
        ["1", "TFA w/ cos", "2", "21.0 ± 1.1", "28.0 ± 0.0", "26.0 ± 1.1"],
    ]
    record = json.loads((tmp_path / "table" / "benchmark.json").read_text())
    cell = record["cells"]["1/TFA w/ cos/2"]["nAP"]
    assert cell["mean"] == 26 and cell["seeds"] == 3 and cell["half_width_95"] == pytest.approx(1.96 / math.sqrt(3))
    assert record["single"]["1/ft_full/1/seed2"] == {
        "AP": 22.0, "bAP": 28.0, "nAP": 12.0, "nAP50": None, "tuning_seconds": 5.0
    }  # fmt: skip
    assert record["seeds"] == seeds and "torch" in record["versions"]
    assert "3 seeds (0, 1, 2)" in (tmp_path / "table" / "benchmark.md").read_text()
    assert (tmp_path / "table" / "nAP_split1.png").stat().st_size > 5000
    with pytest.raises(ValueError, match=r"1/tfa_cos/2: \[3\]"):
        summarise(tmp_path / "table", plans, [*seeds, 3])


def test_curves_leave_out_what_has_no_novel_ap() -> None:
    means = {
        (1, "tfa_cos", 5): {"nAP": estimate([4.0, 6.0])},
        (1, "tfa_cos", 1): {"nAP": estimate([2.0])},
        (1, "ft_full", 1): {"nAP": estimate([float("nan")])},
        (1, "tfa_fc", 1): {"bAP": estimate([9.0])},
        (2, "tfa_fc", 1): {"nAP": estimate([3.0])},
    }
    curves = nap_curves(means, 1)
    assert list(curves) == ["TFA w/ cos"] and list(curves["TFA w/ cos"]) == [1, 5]
    assert curves["TFA w/ cos"][5] == (5.0, pytest.approx(1.96))
