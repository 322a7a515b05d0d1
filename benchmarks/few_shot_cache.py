#!/usr/bin/env python3
"""Few-shot fine-tuning with and without kept features (FEW_SHOT.CACHE), side by side.

    python benchmarks/few_shot_cache.py                                     # DigitScenes, random weights
    python benchmarks/few_shot_cache.py --config-file TFA/voc07_lite0.yaml --base output/base_split1/model_final.pth

    step  one step of fine-tuning: both sides run the same iterations in turns, after the features of their views were
          computed once ("filling": seconds for each view)
    cell  a process of `dyn-d2 train` that builds the model, trains --cell-steps steps and evaluates: without the cache,
          with an empty one ("first"), and with the one that is left then ("kept")

Printed are seconds, ratios, the most memory of the process of each cell, what the cache takes on disk, and the AP of
the cells. Without --base the weights are random, and AP means nothing.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tabulate import tabulate

from dyn_d2.checkpoint import DynCheckpointer, describe
from dyn_d2.checkpoint.surgery import Source, save
from dyn_d2.config.derive import build_cfg
from dyn_d2.engine.few_shot import starting_checkpoint
from dyn_d2.engine.trainer import DynTrainer
from dyn_d2.evaluation.aggregate import headline
from dyn_d2.evaluation.results import read_results
from dyn_d2.modeling.build import build_model
from dyn_d2.utils.atomic import write_json
from dyn_d2.utils.measure import describe_machine, turns

from detectron2.utils.events import EventStorage

SIDES = ("off", "on")
METHOD = "tfa_cos"


def starting_weights(config_file: str, opts: Sequence[str], base: str, folder: Path) -> Path:
    """The file that a cell starts from: surgery on ``base``, or on random weights where it is ""."""
    if not base:
        cfg = build_cfg(config_file, [*opts, "FEW_SHOT.STAGE", "base"])
        model = build_model(cfg)
        DynCheckpointer(model, str(folder), metadata=describe(cfg, model)).save("base")
        base = str(folder / "base.pth")
    path = folder / "initial.pth"
    cfg = build_cfg(config_file, [*opts, "FEW_SHOT.STAGE", "finetune"])
    save(starting_checkpoint(cfg, Source.read(base)), str(path))
    return path


class Steps:
    """A trainer whose steps are run from outside."""

    def __init__(self, config_file: str, opts: Sequence[str]) -> None:
        cfg = build_cfg(config_file, opts)
        Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
        self.trainer = DynTrainer(cfg)
        self.trainer.resume_or_load(False)
        self.trainer.iter = 0
        self.trainer.storage = EventStorage(0)
        self._quiet = [hook for hook in self.trainer._hooks if type(hook).__name__ in ("StepSeeds", "LRScheduler")]
        with self.trainer.storage:
            for hook in self._quiet:
                hook.before_train()

    def run(self, steps: int) -> float:
        """Seconds of a step."""
        start = time.perf_counter()
        with self.trainer.storage:
            for _ in range(steps):
                for hook in self._quiet:
                    hook.before_step()
                self.trainer.run_step()
                for hook in self._quiet:
                    hook.after_step()
                self.trainer.iter += 1
                self.trainer.storage.step()
        return (time.perf_counter() - start) / steps


def measure_steps(config_file: str, opts: Sequence[str], folder: Path, steps: int, rounds: int) -> dict:
    """Median seconds of a step of both sides, and what filling took."""

    def side(name: str, cache: str) -> Steps:
        keys = ["FEW_SHOT.CACHE", cache, "FEW_SHOT.CACHE_DIR", str(folder / "cache"), "OUTPUT_DIR", str(folder / name)]
        return Steps(config_file, [*opts, *keys])

    filling = side("filling", "on").run(steps * (rounds + 1))
    views = len(list((folder / "cache").rglob("*.tensors")))
    runs = {name: side(name, name) for name in SIDES}
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    for _, name, counts in turns(list(SIDES), rounds, 1):
        elapsed = runs[name].run(steps)
        if counts:
            seconds[name].append(elapsed)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    states = [runs[name].trainer.checkpointer.model.state_dict() for name in SIDES]
    return {
        "seconds": medians,
        "ratio": medians["off"] / medians["on"],
        "rounds": seconds,
        "filling_seconds_a_view": max(0.0, filling - medians["on"]) * steps * (rounds + 1) / max(views, 1),
        "furthest_weights": max(float((states[0][name] - states[1][name]).abs().max()) for name in states[0]),
    }


def run_cell(config_file: str, opts: Sequence[str], folder: Path) -> dict:
    """Seconds, memory and AP of a process that trains and evaluates."""
    command = [sys.executable, "-m", "dyn_d2", "train", "--config-file", config_file, *opts, "OUTPUT_DIR", str(folder)]
    start = time.perf_counter()
    with open(folder.with_suffix(".log"), "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"a cell has failed:\n{folder.with_suffix('.log').read_text()[-3000:]}")
    metrics = headline(read_results(folder))
    return {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "memory_mb": usage.ru_maxrss / 1024,
        "AP": metrics.get("AP"),
        "nAP": metrics.get("nAP"),
    }


def measure_cells(config_file: str, opts: Sequence[str], folder: Path) -> dict:
    """The cell without the cache, with an empty one, and with a filled one."""
    cache = folder / "cells"
    found = {}
    for name, how in (("off", "off"), ("first", "on"), ("kept", "on")):
        keys = ["FEW_SHOT.CACHE", how, "FEW_SHOT.CACHE_DIR", str(cache)]
        found[name] = run_cell(config_file, [*opts, *keys], folder / f"cell_{name}")
    entries = [path.stat().st_size for path in cache.rglob("*.tensors")]
    found["ratio"] = found["off"]["seconds"] / found["kept"]["seconds"]
    found["cache"] = {"views": len(entries), "megabytes": sum(entries) / 1e6}
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="TFA/digit_scenes.yaml", metavar="FILE")
    parser.add_argument("--base", default="", metavar="FILE", help="a base model; random weights without it")
    parser.add_argument("--steps", type=int, default=5, help="of a turn")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--cell-steps", type=int, default=1000, help="of a cell; 0: no cells")
    parser.add_argument("--output", type=Path, help="json file for the numbers")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs of the config")
    args = parser.parse_args(argv)
    if args.steps < 1 or args.rounds < 1 or args.cell_steps < 0:
        parser.error("--steps and --rounds have to be 1 or more, --cell-steps 0 or more")
    opts = [*args.opts, "FEW_SHOT.METHOD", METHOD]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = starting_weights(args.config_file, opts, args.base, folder)
        opts += ["FEW_SHOT.STAGE", "finetune", "MODEL.WEIGHTS", str(weights)]
        results = {"step": measure_steps(args.config_file, opts, folder, args.steps, args.rounds)}
        show_steps(results["step"])
        if args.cell_steps:
            steps = ["SOLVER.MAX_ITER", str(args.cell_steps), "SOLVER.STEPS", "()"]
            results["cell"] = measure_cells(args.config_file, [*opts, *steps], folder)
            show_cells(results["cell"])
    if args.output:
        machine = describe_machine("cpu", torch.float32)
        write_json(args.output, {"machine": machine, "arguments": vars(args) | {"output": ""}, "results": results})
    return 0


def show_steps(step: dict) -> None:
    """One line."""
    print(
        f"step: {1000 * step['seconds']['off']:.1f} ms without, {1000 * step['seconds']['on']:.1f} ms with the cache: "
        f"{step['ratio']:.1f} times; filling: {1000 * step['filling_seconds_a_view']:.0f} ms a view; weights differ by "
        f"{step['furthest_weights']:.1e}",
        flush=True,
    )


def show_cells(cell: dict) -> None:
    """A table."""
    rows = [[name, *(cell[name][key] for key in cell["off"])] for name in ("off", "first", "kept")]
    print(tabulate(rows, ["cell", *cell["off"]], floatfmt=".4g"))
    cache = cell["cache"]
    print(f"{cell['ratio']:.1f} times; the cache holds {cache['views']} views in {cache['megabytes']:.0f} MB")


if __name__ == "__main__":
    sys.exit(main())
