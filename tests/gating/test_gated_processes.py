"""Gated networks trained by several processes."""

import re
from pathlib import Path

import pytest
from tool_runs import TIMEOUT, start


@pytest.mark.slow
def test_all_gates_closed_in_one_of_two_processes(tmp_path) -> None:
    log = tmp_path / "log.txt"
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    job = start(log, Path(__file__).with_name("gates_closed_in_one_process.py"), launcher=torchrun)
    assert job.wait(TIMEOUT) == 0, log.read_text()[-3000:]
    moved = re.findall(r"(\d+) of (\d+) parameters moved, all agree", log.read_text())
    assert len(moved) == 8 and all(int(some) > int(total) / 2 for some, total in moved)
