"""Several processes: the numbers of one, and an end with a message where one of them fails or is killed."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from tiny_detection import tiny_opts, write_boxes
from tool_runs import ROOT, TIMEOUT, start, train_net_here

from dyn_d2.engine import launch

TRAIN_NET = ROOT / "tools" / "train_net.py"
# Batch norm over the images of a process differs from that over all of them; and padding, what is drawn at random, and
# means over different numbers of regions must not differ: one size, all anchors, all proposals.
SAME_FOR_ALL = {
    "MODEL__RESNETS__NORM": "GN",
    "MODEL__RPN__POST_NMS_TOPK_TRAIN": 20,
    "MODEL__RPN__NMS_THRESH": 1.0,
    "MODEL__ROI_HEADS__BATCH_SIZE_PER_IMAGE": 64,
    "MODEL__ROI_HEADS__POSITIVE_FRACTION": 1.0,
    "MODEL__RPN__POST_NMS_TOPK_TEST": 200,
    "MODEL__ROI_HEADS__SCORE_THRESH_TEST": 0.0,
    "TEST__DETECTIONS_PER_IMAGE": 400,
    "INPUT__MIN_SIZE_TRAIN": [48],
    "FEW_SHOT__STAGE": "joint",
    "SOLVER__BASE_LR": 0.02,
    "SOLVER__IMS_PER_BATCH": 4,
    "SOLVER__PREFLIGHT": False,
}


@pytest.mark.slow
def test_two_processes_train_and_evaluate_to_the_numbers_of_one(tmp_path, monkeypatch) -> None:
    data = write_boxes(tmp_path / "data")
    log = tmp_path / "two.txt"
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    two = start(log, TRAIN_NET, *tiny_opts(data, tmp_path / "two", **SAME_FOR_ALL), launcher=torchrun)
    train_net_here(monkeypatch, *tiny_opts(data, tmp_path / "one", **SAME_FOR_ALL))
    assert two.wait(TIMEOUT) == 0, log.read_text()[-3000:]

    one, two = (torch.load(tmp_path / name / "model_final.pth", weights_only=True) for name in ("one", "two"))
    moved = 0.0
    start_weights = torch.load(tmp_path / "one" / "model_0000001.pth", weights_only=True)["model"]
    for name, value in one["model"].items():
        assert torch.allclose(value, two["model"][name], rtol=1e-4, atol=1e-6), name
        moved = max(moved, (value - start_weights[name]).abs().max().item())
    assert moved > 1e-3  # a thousand times the tolerance
    losses = [json.loads((tmp_path / name / "metrics.json").read_text().splitlines()[0]) for name in ("one", "two")]
    for name in [name for name in losses[0] if "loss" in name]:
        assert losses[0][name] == pytest.approx(losses[1][name], rel=1e-4), name
    # One process scores the weights that two have trained and scored.
    weights = str(tmp_path / "two" / "model_final.pth")
    opts = tiny_opts(data, tmp_path / "evaluated", MODEL__WEIGHTS=weights, **SAME_FOR_ALL)
    train_net_here(monkeypatch, "--eval-only", *opts)
    records = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("two", "evaluated")]
    assert records[0]["weights_hash"] == records[1]["weights_hash"]
    scores = [next(iter(record["metrics"].values()))["bbox"] for record in records]
    assert scores[0]["AP50"] > 0
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def children(process: int) -> list[int]:
    """Process ids of the processes that multiprocessing has spawned for ``process``."""
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the processes in /proc")
def test_one_of_two_processes_is_killed(tmp_path) -> None:
    log, tag = tmp_path / "log.txt", tmp_path / "out" / "last_checkpoint"
    opts = tiny_opts(write_boxes(tmp_path / "data"), tmp_path / "out", SOLVER__MAX_ITER=10**6, SOLVER__PREFLIGHT=False)
    job = start(log, TRAIN_NET, "--num-gpus", "2", *opts)
    try:
        deadline = time.monotonic() + TIMEOUT
        while not tag.exists():
            assert job.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.02)
        first, second = children(job.pid)
        os.kill(second, signal.SIGKILL)
        assert job.wait(TIMEOUT) == 1
    finally:
        job.kill()
    text = log.read_text()
    assert re.search(r"train_net.py: process \d (was ended from outside|of 2 has lost contact).*--resume", text)
    assert "Traceback" not in text
    assert not Path(f"/proc/{first}").exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the processes in /proc")
def test_one_of_two_processes_is_stopped(tmp_path) -> None:
    """The other one ends, within the time that is given, and so does the one that stands still."""
    log, tag = tmp_path / "log.txt", tmp_path / "out" / "last_checkpoint"
    opts = tiny_opts(write_boxes(tmp_path / "data"), tmp_path / "out", SOLVER__MAX_ITER=10**6, SOLVER__PREFLIGHT=False,
                     SOLVER__PROCESS_TIMEOUT=20)  # fmt: skip
    job = start(log, TRAIN_NET, "--num-gpus", "2", *opts)
    try:
        deadline = time.monotonic() + TIMEOUT
        while not tag.exists():
            assert job.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.02)
        both = children(job.pid)
        os.kill(both[1], signal.SIGSTOP)
        assert job.wait(TIMEOUT) == 1
    finally:
        job.kill()
    text = log.read_text()
    assert re.search(r"train_net.py: process .* (was stopped|stands still).*--resume", text), text[-2000:]
    assert "Traceback" not in text
    assert not any(Path(f"/proc/{pid}").exists() for pid in both)


def test_children_that_stand_still_are_killed(monkeypatch) -> None:
    monkeypatch.setattr(launch, "STOPPED", 0.0)
    still, busy = (mp.get_context("spawn").Process(target=time.sleep, args=(60,)) for _ in range(2))
    still.start()
    busy.start()
    try:
        os.kill(still.pid, signal.SIGSTOP)
        with launch.stopped_ones_are_killed() as killed:
            still.join(30)
        assert killed == [still.pid] and still.exitcode == -signal.SIGKILL and busy.is_alive()
    finally:
        busy.kill()


@pytest.mark.slow
def test_nan_in_one_of_two_processes_ends_both_and_names_its_images(tmp_path) -> None:
    log = tmp_path / "log.txt"
    opts = tiny_opts(write_boxes(tmp_path / "data"), tmp_path / "out")
    job = start(log, Path(__file__).with_name("nan_in_one_process.py"), "--num-gpus", "2", *opts)
    assert job.wait(TIMEOUT) == 1, log.read_text()[-3000:]
    text = log.read_text()
    (spoilt,) = re.search("spoilt: (.*)", text).group(1).split()
    (message,) = [line for line in text.splitlines() if line.startswith("nan_in_one_process.py: ")]
    assert "iteration 1:" in message and re.findall(r"\S+\.png", message) == [spoilt]
    assert "Traceback" not in text
