"""DSSPN in several processes that wake different neurons."""

from pathlib import Path

import pytest
from tool_runs import TIMEOUT, start


@pytest.mark.slow
def test_neurons_of_either_process_are_trained_and_agree(tmp_path):
    log = tmp_path / "log.txt"
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    job = start(log, Path(__file__).with_name("neurons_in_two_processes.py"), launcher=torchrun)
    assert job.wait(TIMEOUT) == 0, log.read_text()[-3000:]
    neurons = ["everything", "digit", "nature", "open digit", "round digit", "scenery"]  # "plant" kept its weights
    expected = f"moved: {sorted([*(f'<{name}>' for name in neurons), 'transition'])}"
    assert log.read_text().count(expected) == 2, log.read_text()[-3000:]
