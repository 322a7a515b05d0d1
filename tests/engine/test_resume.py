"""A run that is killed and resumes gives the numbers of an unbroken one; RESUME and FRESH are said and checked."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_detection import tiny_opts, write_boxes

from dyn_d2.checkpoint import CheckpointError
from dyn_d2.engine.setup import OutputDirError, build_cfg, check_output_dir
from dyn_d2.engine.trainer import DynTrainer, drop_metrics_from

ROOT = Path(__file__).parents[2]
TRAIN_NET = ROOT / "tools" / "train_net.py"


def start(opts: list[str], log: Path, *flags: str) -> subprocess.Popen:
    command = [sys.executable, str(TRAIN_NET), *flags, *opts]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    with open(log, "w") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)


def final(folder: Path) -> tuple[dict, dict]:
    checkpoint = torch.load(folder / "model_final.pth", weights_only=True)
    return checkpoint["model"], checkpoint["trainer"]["_trainer"]["optimizer"]


def test_killed_run_resumes_to_the_same_numbers(tmp_path) -> None:
    data = write_boxes(tmp_path / "data")

    def opts(name: str, **more) -> list[str]:
        return tiny_opts(data, tmp_path / name, SOLVER__MAX_ITER=8, SOLVER__PREFLIGHT=False, **more)

    unbroken = start(opts("unbroken"), tmp_path / "unbroken.txt")
    killed = start(opts("killed"), tmp_path / "killed.txt")
    tag = tmp_path / "killed" / "last_checkpoint"
    while not tag.exists() and killed.poll() is None:
        time.sleep(0.005)
    killed.kill()  # kill -9: no handler runs
    assert killed.wait() == -9, (tmp_path / "killed.txt").read_text()[-2000:]
    assert unbroken.wait() == 0, (tmp_path / "unbroken.txt").read_text()[-2000:]
    assert not (tmp_path / "killed" / "model_final.pth").exists()
    # Another number of workers: neither it nor the images that were loaded ahead may matter.
    resumed = start(opts("killed", DATALOADER__NUM_WORKERS=2), tmp_path / "resumed.txt", "--resume")
    log = tmp_path / "resumed.txt"
    assert resumed.wait() == 0, log.read_text()[-2000:]
    assert "RESUME iter" in log.read_text() and "ignored)" in log.read_text()

    (model, optimizer), (model2, optimizer2) = final(tmp_path / "unbroken"), final(tmp_path / "killed")
    assert all(torch.equal(model[name], model2[name]) for name in model)
    momentum = [[state["momentum_buffer"] for state in o["state"].values()] for o in (optimizer, optimizer2)]
    assert all(map(torch.equal, *momentum))
    assert optimizer["param_groups"][0]["lr"] == optimizer2["param_groups"][0]["lr"]
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("unbroken", "killed")]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert results[0]["weights_hash"] == results[1]["weights_hash"]


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
    for more, named in ((["SOLVER.IMS_PER_BATCH", "4"], "SOLVER.IMS_PER_BATCH: 2 -> 4"),
                        (["FEW_SHOT.STAGE", "finetune"], "FEW_SHOT.STAGE: base -> finetune")):
        for resume in (True, False):
            with pytest.raises(OutputDirError, match=named):
                check_output_dir(build_cfg("", [*opts, *more]), resume)
    finetune = DynTrainer(build_cfg("", [*opts, "FEW_SHOT.STAGE", "joint", "FEW_SHOT.CUSTOM.BASE_CLASSES",
                                         "['red', 'green']", "FEW_SHOT.CUSTOM.NOVEL_CLASSES", "['blue']"]))
    with pytest.raises(CheckpointError, match="stage base, FEW_SHOT.STAGE is joint"):
        finetune.resume_or_load(resume=True)


def test_fresh_start_forgets_the_old_run(tmp_path) -> None:
    opts = tiny_opts(write_boxes(tmp_path / "data"), tmp_path / "out")
    run_briefly(opts)
    assert (tmp_path / "out" / "last_checkpoint").exists()
    DynTrainer(build_cfg("", opts)).resume_or_load(resume=False)
    assert not (tmp_path / "out" / "last_checkpoint").exists()
    assert (tmp_path / "out" / "metrics.json").read_text() == ""


def test_metrics_are_cut_where_the_run_goes_on(tmp_path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 3}\n{"iteration": 7}\n{"iteration": 11}\n{"itera')
    drop_metrics_from(str(path), 11)
    assert path.read_text() == '{"iteration": 3}\n{"iteration": 7}\n'
    drop_metrics_from(str(path), 0)
    assert path.read_text() == ""
    drop_metrics_from(str(tmp_path / "none.json"), 0)
