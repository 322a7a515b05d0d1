"""A run that is killed and resumes gives the numbers of an unbroken one; RESUME and FRESH are said and checked."""

import json
import logging
import time
from pathlib import Path

import pytest
import torch
from tiny_detection import tiny_opts, write_boxes
from tool_runs import ROOT, TIMEOUT, start, train_net_here

from dyn_d2.checkpoint import CheckpointError
from dyn_d2.config.derive import build_cfg
from dyn_d2.config.output_dir import OutputDirError, check_is_folder, check_output_dir
from dyn_d2.engine.resume import drop_metrics_from
from dyn_d2.engine.trainer import DynTrainer

TRAIN_NET = ROOT / "tools" / "train_net.py"


def final(folder: Path) -> tuple[dict, dict]:
    checkpoint = torch.load(folder / "model_final.pth", weights_only=True)
    return checkpoint["model"], checkpoint["trainer"]["_trainer"]["optimizer"]


@pytest.mark.slow
def test_killed_run_resumes_to_the_same_numbers(tmp_path, monkeypatch) -> None:
    data = write_boxes(tmp_path / "data")

    def opts(name: str, **more) -> list[str]:
        return tiny_opts(data, tmp_path / name, SOLVER__MAX_ITER=8, SOLVER__PREFLIGHT=False, **more)

    killed_log, log = tmp_path / "killed.txt", tmp_path / "resumed.txt"
    killed = start(killed_log, TRAIN_NET, *opts("killed"))
    tag = tmp_path / "killed" / "last_checkpoint"
    while not tag.exists() and killed.poll() is None:
        time.sleep(0.005)
    killed.kill()  # kill -9: no handler runs
    assert killed.wait(TIMEOUT) == -9, killed_log.read_text()[-2000:]
    assert "FRESH from random weights: iteration 0 of 8" in killed_log.read_text()
    assert not (tmp_path / "killed" / "model_final.pth").exists()
    # Another number of workers: neither it nor the images that were loaded ahead may matter.
    resumed = start(log, TRAIN_NET, "--resume", *opts("killed", DATALOADER__NUM_WORKERS=2))
    train_net_here(monkeypatch, *opts("unbroken"))
    assert resumed.wait(TIMEOUT) == 0, log.read_text()[-2000:]
    assert "RESUME iter" in log.read_text() and "ignored)" in log.read_text()

    (model, optimizer), (model2, optimizer2) = final(tmp_path / "unbroken"), final(tmp_path / "killed")
    assert all(torch.equal(model[name], model2[name]) for name in model)
    momentum = [[state["momentum_buffer"] for state in o["state"].values()] for o in (optimizer, optimizer2)]
    assert all(map(torch.equal, *momentum))
    assert optimizer["param_groups"][0]["lr"] == optimizer2["param_groups"][0]["lr"]
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("unbroken", "killed")]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert results[0]["weights_hash"] == results[1]["weights_hash"]


@pytest.mark.slow
def test_running_average_of_retinanet_survives_a_resume(tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"
    opts = tiny_opts(
        write_boxes(tmp_path / "data", 4), out, MODEL__META_ARCHITECTURE="RetinaNet", MODEL__RETINANET__NUM_CONVS=1,
        MODEL__RETINANET__IN_FEATURES=["p3", "p4", "p5", "p6"], SOLVER__PREFLIGHT=False,
    )  # fmt: skip
    train_net_here(monkeypatch, *opts)
    whole = torch.load(out / "model_final.pth", weights_only=True)
    average = whole["trainer"]["hooks"]["LossAverages"][""]
    (out / "last_checkpoint").write_text("model_0000001.pth")  # as if killed after it
    train_net_here(monkeypatch, "--resume", *opts)
    resumed = torch.load(out / "model_final.pth", weights_only=True)
    assert resumed["trainer"]["hooks"]["LossAverages"][""] == average and 0 < average < 100
    assert all(torch.equal(whole["model"][name], resumed["model"][name]) for name in whole["model"])


def run_briefly(opts: list[str]) -> DynTrainer:
    trainer = DynTrainer(build_cfg("", [*opts, "SOLVER.MAX_ITER", "2", "SOLVER.CHECKPOINT_PERIOD", "1"]))
    Path(trainer.cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    Path(trainer.cfg.OUTPUT_DIR, "config.yaml").write_text(trainer.cfg.dump())
    trainer.cfg.DATASETS.TEST = ()
    trainer.resume_or_load(resume=False)
    trainer.train()
    return trainer


def test_output_directory_of_another_run(tmp_path, caplog) -> None:
    opts = tiny_opts(write_boxes(tmp_path / "data"), tmp_path / "out")
    with pytest.raises(CheckpointError, match="--resume was given.*holds no checkpoint"):
        DynTrainer(build_cfg("", opts)).resume_or_load(resume=True)
    run_briefly(opts)
    check_output_dir(build_cfg("", [*opts, "SOLVER.MAX_ITER", "9", "MODEL.WEIGHTS", "x"]), resume=True)
    for more, named in (
        (["SOLVER.IMS_PER_BATCH", "4"], "SOLVER.IMS_PER_BATCH: 2 -> 4"),
        (["FEW_SHOT.STAGE", "finetune"], "FEW_SHOT.STAGE: base -> finetune"),
    ):
        for resume in (True, False):
            with pytest.raises(OutputDirError, match=named):
                check_output_dir(build_cfg("", [*opts, *more]), resume)
    finetune = DynTrainer(
        build_cfg(
            "",
            [
                *opts,
                "FEW_SHOT.STAGE",
                "joint",
                "FEW_SHOT.CUSTOM.BASE_CLASSES",
                "['red', 'green']",
                "FEW_SHOT.CUSTOM.NOVEL_CLASSES",
                "['blue']",
            ],
        )
    )
    with pytest.raises(CheckpointError, match="stage base, FEW_SHOT.STAGE is joint"):
        finetune.resume_or_load(resume=True)


def test_fresh_start_forgets_the_old_run(tmp_path) -> None:
    opts = tiny_opts(write_boxes(tmp_path / "data"), tmp_path / "out")
    run_briefly(opts)
    assert (tmp_path / "out" / "last_checkpoint").exists()
    DynTrainer(build_cfg("", opts)).resume_or_load(resume=False)
    assert not (tmp_path / "out" / "last_checkpoint").exists()
    assert (tmp_path / "out" / "metrics.json").read_text() == ""


def test_a_fresh_start_names_the_weights_of_the_backbone(tmp_path, caplog) -> None:
    weights = tmp_path / "backbone.pth"
    torch.save(pytest.importorskip("timm").create_model("test_resnet").state_dict(), weights)
    opts = tiny_opts(
        write_boxes(tmp_path / "data"), tmp_path / "out", MODEL__BACKBONE__NAME="build_timm_fpn_backbone",
        MODEL__TIMM__NAME="test_resnet", MODEL__TIMM__WEIGHTS=weights,
    )  # fmt: skip
    caplog.set_level(logging.INFO)
    trainer = DynTrainer(build_cfg("", opts))
    trainer.resume_or_load(resume=False)
    assert f"FRESH from MODEL.TIMM.WEIGHTS {weights}, all else from random weights: iteration 0 of 6" in caplog.text
    trainer = DynTrainer(build_cfg("", [*opts, "MODEL.TIMM.WEIGHTS", ""]))
    trainer.resume_or_load(resume=False)
    assert "FRESH from random weights: iteration 0 of 6" in caplog.text


def test_metrics_are_cut_where_the_run_goes_on(tmp_path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 3}\n{"iteration": 7}\n{"iteration": 11}\n{"itera')
    drop_metrics_from(str(path), 11)
    assert path.read_text() == '{"iteration": 3}\n{"iteration": 7}\n'
    drop_metrics_from(str(path), 0)
    assert path.read_text() == ""
    drop_metrics_from(str(tmp_path / "none.json"), 0)


@pytest.mark.parametrize(
    ("rows", "iteration", "kept", "left"),
    [
        ([7, 3, 11, 9], 11, (), [7, 3, 9]),
        ([7, 3, 19, 9], 8, (7, 3), [7, 3]),
        ([7, 19], 20, (19, 9), [7]),  # cut off between the rows of one writing: it is written anew
        ([7, 19], 20, (19, 5), [7, 19]),  # 5 was left out long ago, and 7 could not be written again
        ([7], 20, (19,), [7]),
    ],
)
def test_metrics_in_any_order(tmp_path, rows, iteration, kept, left) -> None:
    path = tmp_path / "metrics.json"
    lines = {row: json.dumps({"iteration": row, "loss": row / 7}) + "\n" for row in rows}
    path.write_text("".join(lines.values()))
    assert drop_metrics_from(str(path), iteration, kept) == max(left)
    assert path.read_text() == "".join(lines[row] for row in left)


def test_an_output_folder_below_a_file(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    check_is_folder(str(tmp_path / "new" / "folder"))
    for folder in ("file", "file/below/it"):
        with pytest.raises(OutputDirError, match=f"{tmp_path}/file is a file"):
            check_is_folder(str(tmp_path / folder))
