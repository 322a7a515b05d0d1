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
from dyn_d2.engine.few_shot_benchmark import Cell, cells, plan_cells, run_cells, seeds_by_method
from dyn_d2.engine.few_shot_table import (
    TableStyle,
    base_results,
    caption,
    cell_results,
    curves_of,
    known_metrics,
    read_metrics,
    read_pairs,
    summarise,
)
from dyn_d2.engine.job_queue import numbers, pending
from dyn_d2.engine.stages import DONE, StageError
from dyn_d2.evaluation.aggregate import estimate
from dyn_d2.method import few_shot_methods


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
            novel = 10.0 * few.SHOTS + few.SEED + (5.0 + few.SEED % 2 if few.METHOD == "tfa_cos" else 0.0)
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
    with pytest.raises(
        ValueError, match="unknown method tfa_cosine: use joint_shots, ft, ft_full, ft_heads, ft_full_fc, tfa_fc"
    ):
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


def _cells(text: str) -> list[list[str]]:
    return [[part.strip() for part in line.strip("|").split("|")] for line in text.splitlines()]


@pytest.mark.slow
def test_table_files_and_numbers_by_hand(opts, monkeypatch, tmp_path) -> None:
    Trainings(monkeypatch)
    seeds, style = [0, 1, 2], TableStyle(("AP", "bAP", "nAP"), "normal", [("tfa_cos", "ft_full")])
    plans = plan_cells("", opts, cells(["tfa_cos", "ft_full"], [1], [2, 1], seeds))
    run_cells("", opts, plans, ThreadWorkers)
    assert cell_results(plans)[Cell("tfa_cos", 1, 2, 1)]["nAP"] == 27.0
    assert base_results(plans) == {(1, "base only"): {"bAP": 30.0, "bAP50": 50.0}}
    first, second = summarise(tmp_path / "table", plans, seeds, style).split("\n\n")
    # Seeds 0, 1, 2 differ by their number: s = 1, 1.96 / sqrt(3) = 1.13; of 15, 17, 17 s = 2 / sqrt(3).
    assert _cells(first)[2:] == [
        ["1", "base only", "-", "not predicted", "30.0", "not predicted"],
        ["1", "FRCN+ft-full", "1", "21.0 ± 1.1", "28.0 ± 0.0", "11.0 ± 1.1"],
        ["1", "FRCN+ft-full", "2", "21.0 ± 1.1", "28.0 ± 0.0", "21.0 ± 1.1"],
        ["1", "TFA w/ cos", "1", "21.0 ± 1.1", "28.0 ± 0.0", "16.3 ± 1.3"],
        ["1", "TFA w/ cos", "2", "21.0 ± 1.1", "28.0 ± 0.0", "26.3 ± 1.3"],
    ]
    # 5, 6 and 5 points: s = 1 / sqrt(3), whatever the seeds add to both.
    assert _cells(second)[0] == ["split", "difference", "K", "seeds", "AP", "bAP", "nAP"]
    assert _cells(second)[2:] == [
        ["1", "TFA w/ cos - FRCN+ft-full", k, "3", "+0.0 ± 0.0", "+0.0 ± 0.0", "+5.3 ± 0.7"] for k in ("1", "2")
    ]
    record = json.loads((tmp_path / "table" / "benchmark.json").read_text())
    cell = record["cells"]["1/FRCN+ft-full/2"]["nAP"]
    assert cell["mean"] == 21 and cell["seeds"] == 3 and cell["half_width_95"] == pytest.approx(1.96 / math.sqrt(3))
    assert record["single"]["1/ft_full/1/seed2"] == {
        "AP": 22.0, "bAP": 28.0, "nAP": 12.0, "nAP50": None, "tuning_seconds": 5.0
    }  # fmt: skip
    difference = record["differences"]["1/tfa_cos - ft_full/2"]["nAP"]
    assert difference["single"] == {"seed0": 5.0, "seed1": 6.0, "seed2": 5.0} and difference["seeds"] == 3
    assert record["over_seeds"]["1/ft_full/1"]["nAP"]["mean"] == [10.0, 10.5, 11.0]
    assert record["over_seeds"]["1/ft_full/1"]["nAP"]["half_width_95"] == [
        None, pytest.approx(1.96 * math.sqrt(0.5 / 2)), pytest.approx(1.96 / math.sqrt(3))
    ]  # fmt: skip
    assert record["seeds"] == seeds and "torch" in record["versions"] and record["interval"] == "1.96 s / sqrt(n)"
    assert "3 seeds (0, 1, 2)" in (tmp_path / "table" / "benchmark.md").read_text()
    for figure in ("nAP_split1.png", "nAP_over_seeds_split1.png"):
        assert (tmp_path / "table" / figure).stat().st_size > 5000
    with pytest.raises(ValueError, match=r"1/tfa_cos/2: \[3\]"):
        summarise(tmp_path / "table", plans, [*seeds, 3])


@pytest.mark.slow
def test_methods_with_seeds_of_their_own(opts, monkeypatch, tmp_path) -> None:
    trainings = Trainings(monkeypatch)
    seeds = seeds_by_method("ft_full:0-1,tfa_cos", [0, 1, 2])
    plans = plan_cells("", opts, cells(seeds, [1], [2], [0, 1, 2]))
    run_cells("", opts, plans, ThreadWorkers)
    assert len(trainings.folders) == 6 and "ft_full_split1_2shot_seed2" not in trainings.folders
    style = TableStyle(("nAP", "nAP75"), pairs=[("tfa_cos", "ft_full")])
    first, second = summarise(tmp_path, plans, seeds, style).split("\n\n")
    # Student's t: 12.71 and 4.30 for 2 and 3 seeds.
    assert _cells(first)[3][3:] == ["20.5 ± 6.4", "not measured"] and _cells(first)[4][3] == "26.3 ± 2.9"
    assert _cells(second)[2][2:5] == ["2", "2", "+5.5 ± 6.4"]
    words = "2 seeds (0, 1) of FRCN+ft-full; 3 seeds (0, 1, 2) of TFA w/ cos"
    assert words in caption(seeds, style) and "Student" in caption(seeds)
    assert json.loads((tmp_path / "benchmark.json").read_text())["seeds"] == {"ft_full": [0, 1], "tfa_cos": [0, 1, 2]}


def test_a_method_without_shots_is_one_value_however_many_seeds(opts, monkeypatch, tmp_path) -> None:
    trainings = Trainings(monkeypatch)
    plans = plan_cells("", opts, cells(["joint", "tfa_cos"], [1], [1, 2], [0, 1, 2]))
    run_cells("", opts, plans, ThreadWorkers)
    assert trainings.folders.count("joint_split1") == 1
    text = summarise(tmp_path, plans, [0, 1, 2], TableStyle(("bAP", "nAP")))
    by_title = {row[1]: row[3] for row in _cells(text)[2:]}
    assert by_title.pop(few_shot_methods()["joint"].title) == "30.0"  # it was "30.0 ± 0.0" of three seeds
    assert all("±" in value for title, value in by_title.items() if "base" not in title)
    assert json.loads((tmp_path / "benchmark.json").read_text())["seeds"] == {"joint": [0], "tfa_cos": [0, 1, 2]}


def test_arguments_of_the_table() -> None:
    assert seeds_by_method("ft,tfa_cos:3", [0, 1]) == {"ft": [0, 1], "tfa_cos": [3]}
    assert read_metrics("nAP50,APr,nAR100,bAP75,hAP") == ("nAP50", "APr", "nAR100", "bAP75", "hAP")
    assert len(set(known_metrics())) == len(known_metrics())
    with pytest.raises(ValueError, match="unknown metric mAP: use AP, AP50.*nARl, hAP, APr"):
        read_metrics("AP,mAP")
    assert read_pairs("tfa_cos:ft", ["ft", "tfa_cos"]) == [("tfa_cos", "ft")]
    for text, message in (("tfa_cos", "use METHOD:METHOD"), ("tfa_cos:tfa", "unknown method tfa"),
                          ("tfa_cos:tfa_fc", "tfa_fc, which the table does not have")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            read_pairs(text, ["ft", "tfa_cos"])


def test_curves_leave_out_what_has_no_novel_ap() -> None:
    means = {
        (1, "tfa_cos", 5): {"nAP": estimate([4.0, 6.0])},
        (1, "tfa_cos", 1): {"nAP": estimate([2.0])},
        (1, "ft_full", 1): {"nAP": estimate([float("nan")])},
        (1, "tfa_fc", 1): {"bAP": estimate([9.0])},
        (2, "tfa_fc", 1): {"nAP": estimate([3.0])},
    }
    curves = curves_of(means, 1)
    assert list(curves) == ["TFA w/ cos"] and list(curves["TFA w/ cos"]) == [1, 5]
    assert curves["TFA w/ cos"][5] == (5.0, pytest.approx(12.706, abs=1e-3))
