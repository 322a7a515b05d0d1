"""Tools run from tests: in processes of their own, or in this one where a process would only cost time."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from PIL import Image
from warm_processes import run_warm

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 120  # seconds after which a process counts as hanging


def environment() -> dict[str, str]:
    """This process's, with dyn_d2 importable and nothing that could set other numbers."""
    paths = filter(None, [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH")])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def load_benchmark(name: str) -> ModuleType:
    """benchmarks/NAME.py as a module."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def start(log: Path, script: Path, *arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    """A script in a process; all that it prints goes to ``log``."""
    with open(log, "w") as file:
        return subprocess.Popen(
            [sys.executable, *launcher, str(script), *arguments], stdout=file, stderr=subprocess.STDOUT,
            env=environment(),
        )  # fmt: skip


def run_tool(name: str, *arguments: str | Path) -> subprocess.CompletedProcess:
    """tools/NAME.py in a process, to its end."""
    return run_warm([str(ROOT / "tools" / f"{name}.py"), *arguments], Path.cwd(), environment(), TIMEOUT)


def train_net_here(monkeypatch, *arguments: str) -> None:
    """``dyn-d2 train`` in this process, command line and all; a failure is a SystemExit with the message."""
    from dyn_d2.cli.train import main

    monkeypatch.setattr(sys, "argv", ["train_net.py", *arguments])
    main()


def demo_of_noise(folder: Path, *opts: str, config: str = "") -> dict[str, dict[str, float]]:
    """``dyn-d2 demo`` with the segmentor of FOLDER/model_final.pth on an image that is no square: percent of pixels
    by map and label."""
    from dyn_d2.cli.demo import main

    Image.effect_noise((90, 60), 90).convert("RGB").save(folder / "noise.png")
    arguments = [str(folder / "noise.png"), "--weights", str(folder / "model_final.pth"), "--config-file", config]
    assert main([*arguments, "--output", str(folder / "out"), "--opts", *opts]) == 0
    with Image.open(folder / "out" / "noise.png") as picture:
        assert min(picture.size) > 200
    (shares,) = json.loads((folder / "out" / "detections.json").read_text()).values()
    assert all(abs(sum(of_map.values()) - 100) < 0.1 for of_map in shares.values())
    return shares
