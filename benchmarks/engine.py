#!/usr/bin/env python3
"""Throughput of a config: data loading, training, inference; of both engines side by side where both are there.

    python benchmarks/engine.py --zoo COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml MODEL.DEVICE cpu
    python benchmarks/engine.py --config-file configs/TFA/digit_scenes.yaml
    python benchmarks/engine.py --config-file configs/ShapeProp/digit_scenes.yaml \\
        --against MODEL.ROI_HEADS.NAME DynROIHeads --batch 8 MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0

Each engine runs in a process of its own, in turns (embedded, detectron2, detectron2, embedded, ...), so that a slow
minute of the machine hits both. Printed are medians over the rounds, the ratio embedded / detectron2 of images per
second (above 1: the embedded engine is faster) and the peak memory. With --against it is one engine, with the config as
given and changed: what ShapeProp costs, above. The data set of the config has to be there. Weights are random unless
MODEL.WEIGHTS is given; a random model detects little, which makes its inference faster (a score threshold of 0 has it
detect as much as is allowed).
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

from tabulate import tabulate

MEASURES = ("data loading", "training", "inference")


def _build_cfg(args: argparse.Namespace, folder: str):
    import torch

    from dyn_d2.config.derive import build_cfg

    from detectron2 import model_zoo

    cfg = build_cfg(
        model_zoo.get_config_file(args.zoo) if args.zoo else args.config_file, ["OUTPUT_DIR", folder, *args.opts]
    )
    if "MODEL.WEIGHTS" not in args.opts:
        cfg.MODEL.WEIGHTS = ""
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    cfg.SOLVER.IMS_PER_BATCH = args.batch
    cfg.freeze()
    return cfg


def _loading_time(loader, count: int, warm_up: int) -> float:
    """Mean seconds of a batch: worker processes deliver in bursts, so that a median would flatter them."""
    for _ in range(warm_up):
        next(loader)
    start = time.perf_counter()
    for _ in range(count):
        next(loader)
    return (time.perf_counter() - start) / count


def _timed(step, count: int, warm_up: int, device: str) -> float:
    """Seconds of one call of ``step(i)``: the median of ``count`` calls after ``warm_up`` others."""
    import torch

    times = []
    for i in range(warm_up + count):
        start = time.perf_counter()
        step(i)
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[warm_up:])


def measure(args: argparse.Namespace, folder: str) -> dict[str, float]:
    """Images per second of each measure, and peak memory in MB, of the engine that this process runs.

    Args:
        folder: for the files that few-shot data sets derive.
    """
    import torch

    import dyn_d2  # noqa: F401  chooses the engine
    from dyn_d2.engine.trainer import DynTrainer

    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.data import build_detection_test_loader, build_detection_train_loader
    from detectron2.solver import build_optimizer
    from detectron2.utils.events import EventStorage

    torch.manual_seed(0)
    cfg = _build_cfg(args, folder)
    device = cfg.MODEL.DEVICE
    loader = iter(build_detection_train_loader(cfg))
    loading = _loading_time(loader, args.iterations, 2 + 2 * cfg.DATALOADER.NUM_WORKERS)
    batches = list(islice(loader, 4))
    tests = list(islice(iter(build_detection_test_loader(cfg, cfg.DATASETS.TEST[0])), 8))
    model = DynTrainer.build_model(cfg)  # with the parts of MODEL.FREEZE frozen
    DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    optimizer = build_optimizer(cfg, model)
    for group in optimizer.param_groups:
        group["lr"] = 1e-6  # with random weights a real rate would diverge; the time is the same

    def train(i: int) -> None:
        losses = sum(model(batches[i % len(batches)]).values())
        optimizer.zero_grad()
        losses.backward()
        optimizer.step()

    with EventStorage():
        training = _timed(train, args.iterations, 2, device)
    model.eval()
    with torch.no_grad():
        inference = _timed(lambda i: model(tests[i % len(tests)]), args.iterations, 2, device)
    if device.startswith("cuda"):
        memory = torch.cuda.max_memory_allocated() / 2**20
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {
        "data loading": args.batch / loading,
        "training": args.batch / training,
        "inference": 1 / inference,
        "memory": memory,
    }


def _detectron2_is_installed() -> bool:
    code = "import dyn_d2"
    env = {**os.environ, "DYN_D2_BACKEND": "detectron2"}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True).returncode == 0


def _run_worker(engine: str, argv: list[str]) -> dict[str, float]:
    env = {**os.environ, **({"DYN_D2_BACKEND": engine} if engine else {})}
    run = subprocess.run([sys.executable, __file__, "--worker", *argv], env=env, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"{f'the {engine} engine' if engine else 'a run'} failed:\n{run.stderr[-3000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def _in_turns(sides: dict[str, tuple[str, list[str]]], rounds: int) -> tuple[dict, dict]:
    """Medians and single runs of each side: its name -> measure -> value, and its name -> [measure -> value, ...].

    Args:
        sides: name -> (engine, "" for the usual one; arguments).
    """
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in sides if number % 2 == 0 else reversed(sides):
            print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
            runs[name].append(_run_worker(*sides[name]))
    medians = {name: {key: statistics.median(r[key] for r in rs) for key in rs[0]} for name, rs in runs.items()}
    return medians, runs


def _table(medians: dict[str, dict[str, float]]) -> str:
    rows = []
    for key in (*MEASURES, "memory"):
        values = [of_side[key] for of_side in medians.values()]
        ratio = f"{values[0] / values[1]:.2f}" if len(values) == 2 else "-"
        rows.append([f"{key}, {'MB' if key == 'memory' else 'images/s'}", *(f"{v:.2f}" for v in values), ratio])
    return tabulate(rows, headers=["", *medians, "ratio"], disable_numparse=True)


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="")
    parser.add_argument("--zoo", default="", help="a name of Detectron2's model zoo instead of a file")
    parser.add_argument("--batch", type=int, default=2, help="images of a training batch")
    parser.add_argument("--iterations", type=int, default=10, help="timed calls of each measure and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine", choices=("embedded", "detectron2"), help="measure only this one")
    parser.add_argument("--against", nargs="+", default=[], metavar="KEY VALUE",
                        help="compare the config with itself changed by these; an option has to follow")  # fmt: skip
    parser.add_argument("--output", default="", help="json file for the numbers")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that change the config")
    args = parser.parse_args(argv)
    if bool(args.config_file) == bool(args.zoo):
        parser.error("give either --config-file or --zoo")
    if min(args.rounds, args.iterations, args.batch) < 1:
        parser.error("--rounds, --iterations and --batch have to be at least 1")
    if len(args.against) % 2:
        parser.error("--against needs pairs of KEY VALUE, and another option after them")
    if args.worker:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(args, folder)))
        return 0

    if args.against:  # the last value of a key wins
        engine = args.engine or ""
        sides = {"as given": (engine, argv), "changed": (engine, [*argv, *args.against])}
    else:
        engines = [args.engine] if args.engine else ["embedded", *["detectron2"] * _detectron2_is_installed()]
        sides = {engine: (engine, argv) for engine in engines}
    medians, runs = _in_turns(sides, args.rounds)
    print(_table(medians))
    if len(sides) == 1 and not args.engine:
        print("No other Detectron2 is installed here: there is nothing to compare with.")
    if args.output:
        from dyn_d2.utils.atomic import write_json

        write_json(Path(args.output), {"arguments": argv, "medians": medians, "rounds": runs})
    return 0


if __name__ == "__main__":
    sys.exit(main())
