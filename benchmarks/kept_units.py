#!/usr/bin/env python3
"""Training a policy on a frozen classifier with and without kept means of its units (FEATURE_CACHE), side by side.

    DETECTRON2_DATASETS=datasets python benchmarks/kept_units.py \\
        DATASETS.TRAIN "('cifar10_jpeg_train_fit',)" MODEL.RESNETS.DEPTH 20 INPUT.CLASSIFICATION.PAD_CROP 0

Both sides run the same training steps in turns, on random weights unless MODEL.WEIGHTS names a checkpoint with gates,
after the means of all views were computed once. Printed are seconds by the clock, and those of the processor, which
other work on the machine hardly changes (not of loader processes: there are none unless DATALOADER.NUM_WORKERS says
so); their ratios, what filling and opening the table took, its size, the share of multiply-adds that ran, which falls
where the policy learns to stop, and how far the weights are apart in the end.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from dyn_d2.checkpoint import DynCheckpointer, describe
from dyn_d2.config.derive import build_cfg
from dyn_d2.engine.feature_cache import FreshFeatures
from dyn_d2.engine.hooks import StepSeeds
from dyn_d2.engine.trainer import DynTrainer
from dyn_d2.gating.meta_arch.dynamic import EXECUTED
from dyn_d2.modeling.build import build_model
from dyn_d2.utils.atomic import write_json
from dyn_d2.utils.measure import describe_machine, turns

from detectron2.utils.events import EventStorage

SIDES = ("off", "on")
FROZEN = "['backbone.stem','backbone.res*']"


def random_start(config_file: str, opts: Sequence[str], folder: Path) -> str:
    """A checkpoint of random weights, gates included."""
    cfg = build_cfg(config_file, opts)
    torch.manual_seed(0)
    model = build_model(cfg)
    DynCheckpointer(model, str(folder), metadata=describe(cfg, model)).save("start")
    return str(folder / "start.pth")


class Steps:
    """A trainer whose steps are run from outside."""

    def __init__(self, config_file: str, opts: Sequence[str]) -> None:
        cfg = build_cfg(config_file, opts)
        Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
        self.trainer = DynTrainer(cfg)
        self.trainer.resume_or_load(False)
        self.trainer.iter = 0
        self.trainer.storage = EventStorage(0)
        self.model = self.trainer.checkpointer.model
        self._seeds = StepSeeds(cfg.SEED)
        self._seeds.trainer = self.trainer

    def fill(self) -> None:
        """Until all means are there."""
        FreshFeatures(self.model).before_train()

    def run(self, steps: int) -> None:
        with self.trainer.storage as storage:
            for _ in range(steps):
                self._seeds.before_step()
                self.trainer.run_step()
                self.trainer.iter += 1
                storage.step()


def timed(compute: Callable[[], None]) -> tuple[float, float]:
    """Seconds by the clock, and seconds of the processor, which other work on the machine does not change."""
    start, busy = time.perf_counter(), time.process_time()
    compute()
    return time.perf_counter() - start, time.process_time() - busy


def measure(config_file: str, opts: Sequence[str], folder: Path, steps: int, rounds: int) -> dict:
    """Seconds of a step of both sides, and what filling took."""
    table = folder / "table"

    def side(name: str) -> Steps:
        keys = ["FEATURE_CACHE.MODE", name, "FEATURE_CACHE.DIR", str(table), "OUTPUT_DIR", str(folder / name)]
        return Steps(config_file, [*opts, *keys])

    runs = {name: side(name) for name in SIDES}
    filling = timed(runs["on"].fill)
    opening = timed(side("on").fill)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in SIDES}
    for _, name, counts in turns(list(SIDES), rounds, 1):
        elapsed = timed(partial(runs[name].run, steps))
        if counts:
            found[name].append(elapsed)
    medians, busy = (
        {name: statistics.median(values[clock] for values in found[name]) / steps for name in SIDES} for clock in (0, 1)
    )
    states = [runs[name].model.state_dict() for name in SIDES]
    executed = runs["on"].trainer.storage.history(EXECUTED).values()
    return {
        "seconds": medians,
        "cpu_seconds": busy,
        "ratio": medians["off"] / medians["on"],
        "cpu_ratio": busy["off"] / busy["on"],
        "turns": found,
        "filling_seconds": filling,
        "opening_seconds": opening,
        "images": len(runs["on"].trainer.data_loader.dataset.records),
        "megabytes": sum(path.stat().st_size for path in table.rglob("*.tensors")) / 1e6,
        "executed_share": statistics.mean(value for value, _ in executed),
        "furthest_weights": max(float((states[0][name] - states[1][name]).abs().max()) for name in states[0]),
    }


def show(found: dict) -> None:
    """Three lines."""
    for clock, number, ratio in (("seconds", 0, "ratio"), ("cpu_seconds", 1, "cpu_ratio")):
        print(
            f"{clock}: a step {found[clock]['off']:.4f} without and {found[clock]['on']:.4f} with kept means, "
            f"{found[ratio]:.1f} times; filling {found['filling_seconds'][number]:.1f}, opening "
            f"{found['opening_seconds'][number]:.1f}"
        )
    print(
        f"{found['images']:,} images, {found['megabytes']:.0f} MB; {found['executed_share']:.0%} of the multiply-adds "
        f"ran; weights differ by {found['furthest_weights']:.1e}"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="PMN/cifar.yaml", metavar="FILE")
    parser.add_argument("--steps", type=int, default=10, help="of a turn")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--output", type=Path, help="json file for the numbers")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs of the config")
    args = parser.parse_args(argv)
    if args.steps < 1 or args.rounds < 1:
        parser.error("--steps and --rounds have to be 1 or more")
    opts = ["MODEL.DEVICE", "cpu", "MODEL.POLICY.STAGE", "joint", "SEED", "0", "MODEL.FREEZE", FROZEN]
    opts += ["DATALOADER.NUM_WORKERS", "0", *args.opts]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "MODEL.WEIGHTS" not in opts:
            opts += ["MODEL.WEIGHTS", random_start(args.config_file, opts, folder)]
        found = measure(args.config_file, opts, folder, args.steps, args.rounds)
    show(found)
    if args.output:
        machine = describe_machine("cpu", torch.float32)
        write_json(args.output, {"machine": machine, "arguments": vars(args) | {"output": ""}, "results": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
