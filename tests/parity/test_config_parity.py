"""Both backends have the same keys, defaults and published configs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("config_parity_worker.py")
ROOT = Path(__file__).parents[2]


def run(backend, out, names=()):
    environment = {
        **os.environ,
        "DYN_D2_BACKEND": backend,
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(out.parent / "cache"),
    }
    process = subprocess.run(
        [sys.executable, str(WORKER), str(out), *names], env=environment, capture_output=True, text=True
    )
    if process.returncode and backend == "detectron2":
        pytest.skip(f"no real Detectron2 can be imported: {process.stderr.strip().splitlines()[-1]}")
    assert process.returncode == 0, process.stderr
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def backends(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    embedded = run("embedded", folder / "embedded.json")
    names = [name for name in embedded if name != "defaults"]
    return embedded, run("detectron2", folder / "detectron2.json", names)


@pytest.mark.slow
def test_defaults_agree_key_by_key(backends):
    embedded, real = backends
    assert embedded["defaults"] == real["defaults"]


def test_published_configs_agree_key_by_key(backends):
    embedded, real = backends
    assert len(embedded) > 35
    for name in embedded:
        assert embedded[name] == real[name], name
