"""Rules of CONTRIBUTING.md that a program can check."""

import ast
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dyn_d2.config import add_dyn_d2_config

from detectron2.config import get_cfg

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [p for folder in ("benchmarks", "dyn_d2", "tools", "datasets") for p in (ROOT / folder).rglob("*.py")]


def _keys(node, prefix: str = "") -> set[str]:
    found = set()
    for key, value in node.items():
        found |= _keys(value, f"{prefix}{key}.") if hasattr(value, "items") else {prefix + key}
    return found


def _own_keys() -> set[str]:
    before, cfg = get_cfg(), get_cfg()
    add_dyn_d2_config(cfg)
    return _keys(cfg) - _keys(before)


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff(command):
    run = subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:]


def test_every_key_of_ours_is_read_by_code():
    text = "\n".join(path.read_text() for path in SOURCES if path.name != "config.py" and path.parent.name != "keys")
    unread = [key for key in _own_keys() if not re.search(rf"\b{key.rpartition('.')[2]}\b", text)]
    assert not unread


def _values(path: Path) -> dict[str, str]:
    flat: dict[str, str] = {}

    def walk(node, prefix: str) -> None:
        for key, value in node.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")
            else:
                flat[prefix + key] = str(value)

    walk(yaml.safe_load(path.read_text()), "")
    return flat


def test_no_two_yaml_files_differ_in_one_value_only():
    files = {path: _values(path) for path in (ROOT / "configs").rglob("*.yaml")}
    for (first, a), (second, b) in itertools.combinations(files.items(), 2):
        different = [key for key in a.keys() | b.keys() if a.get(key) != b.get(key)]
        assert len(different) > 1, f"{first} and {second} differ in {different} only: make it a key"


def test_only_backend_asks_which_detectron2_runs():
    for path in (ROOT / "dyn_d2").rglob("*.py"):
        if "embedded" in path.parts or path.name == "backend.py":
            continue
        text = path.read_text()
        assert "EMBEDDED_PATH" not in text and 'DYN_D2_BACKEND"' not in text, f"{path} depends on which Detectron2 runs"


def test_setup_does_not_import_torch():
    tree = ast.parse((ROOT / "setup.py").read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names == {"shutil", "subprocess", "sys", "pathlib", "setuptools", "setuptools.command.build_py"}


@pytest.mark.slow
def test_types():
    """mypy, with the settings of pyproject.toml."""
    run = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:]
