#!/usr/bin/env python3
"""What class-dependent layers cost, made as the equations are written and as dyn_d2 makes them, side by side.

    python benchmarks/low_shot.py
    python benchmarks/low_shot.py --case reweighting --classes 80 --images 8 --output low_shot.json

    reweighting  FSRW's predictor: feature maps multiplied by each class's vector (Eq. 6.1), then convolved;
                 against vectors that are multiplied into the convolution's weights
    factors      a task-aware layer of TAFE-Net: a kernel for each task, W_s diag(W_t) (Eq. 5.4), then the product;
                 against the shared product, whose outputs are multiplied by W_t (Eq. 5.5)

Equation numbers are those of Wang, X.: The Design of Dynamic Neural Networks for Efficient Learning and Inference, PhD
thesis, UC Berkeley, 2020.

Both sides have the same inputs and run in turns. Printed are median milliseconds and the most memory that new tensors
took, for a forward pass and for one with gradients of everything.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

from dyn_d2.methods.fsrw.reweighting import predict_reweighted, reweight
from dyn_d2.methods.tafe_net.task_weights import TaskLinear
from dyn_d2.utils.atomic import write_json
from dyn_d2.utils.measure import describe_machine, peak_memory, time_call, turns

MODES = ("forward", "training")
WRITTEN, OURS = "as written", "dyn_d2"
ANCHORS = 5


def reweighting(images: int, classes: int, width: int, grid: int) -> tuple[dict[str, Callable], list[Tensor]]:
    """Both sides, and the tensors that they get and have gradients of."""
    predictor = nn.Conv2d(width, ANCHORS * 6, 1)

    def as_written(features: Tensor, vectors: Tensor) -> Tensor:
        return predictor(reweight(features, vectors)).unflatten(0, (images, classes))

    def ours(features: Tensor, vectors: Tensor) -> Tensor:
        return predict_reweighted(features, vectors, predictor)

    return {WRITTEN: as_written, OURS: ours}, [
        torch.randn(images, width, grid, grid), torch.rand(classes, width), *predictor.parameters()
    ]  # fmt: skip


def factors(images: int, classes: int, width: int, grid: int) -> tuple[dict[str, Callable], list[Tensor]]:
    """The same for a linear layer; ``grid`` is not used."""
    layer = TaskLinear(width, width)

    def as_written(x: Tensor, task_weight: Tensor) -> Tensor:
        kernels = layer.shared.weight * task_weight[:, :, None]  # classes x out x in
        return torch.einsum("ni,toi->nto", x[:, 0], kernels) + layer.shared.bias * task_weight

    return {WRITTEN: as_written, OURS: layer}, [
        torch.randn(images, 1, width), torch.rand(classes, width), *layer.parameters()
    ]  # fmt: skip


CASES = {"reweighting": reweighting, "factors": factors}


def run(compute: Callable, mode: str, tensors: list[Tensor]) -> Tensor:
    """One pass; the first two tensors are arguments, the others parameters."""
    if mode == "forward":
        with torch.no_grad():
            return compute(*tensors[:2])
    out = compute(*tensors[:2])
    torch.autograd.grad(out.sum(), tensors)
    return out.detach()


def measure(case: str, sizes: dict[str, int], rounds: int, device: str) -> dict[str, Any]:
    """Median seconds and peak memory of both sides in both modes, and how much their results differ, as a share of the
    largest number."""
    torch.manual_seed(0)
    with torch.device(device):
        sides, tensors = CASES[case](**sizes)
    tensors = [tensor.requires_grad_() for tensor in tensors]
    keys = [(mode, side) for mode in MODES for side in sides]
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in keys}
    for _, (mode, side), counts in turns(keys, rounds, 1):
        elapsed = time_call(partial(run, sides[side], mode, tensors), device)
        if counts:
            seconds[mode, side].append(elapsed)
    first, second = (run(sides[side], "forward", tensors) for side in sides)
    return {
        "case": case,
        **sizes,
        "seconds": {mode: {side: statistics.median(seconds[mode, side]) for side in sides} for mode in MODES},
        "memory_mb": {
            mode: {side: peak_memory(partial(run, sides[side], mode, tensors), device) for side in sides}
            for mode in MODES
        },
        "difference": float((first - second).abs().max() / first.abs().max()),
    }


def rows(numbers: dict[str, Any]) -> list[list[str]]:
    """The numbers as lines of the table."""
    found = []
    for mode in MODES:
        time, memory = ([numbers[what][mode][side] for side in (WRITTEN, OURS)] for what in ("seconds", "memory_mb"))
        found.append([
            numbers["case"], mode,
            f"{1000 * time[0]:.1f} / {1000 * time[1]:.1f}", f"{time[1] / time[0]:.3f}",
            f"{memory[0]:.1f} / {memory[1]:.1f}", f"{memory[1] / memory[0]:.3f}",
        ])  # fmt: skip
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=CASES, help="default: all")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--width", type=int, default=1024, help="channels of the features")
    parser.add_argument("--grid", type=int, default=13, help="height and width of the feature maps")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", default="", help="json file for the numbers")
    args = parser.parse_args(argv)
    sizes = {name: getattr(args, name) for name in ("images", "classes", "width", "grid")}
    if min(args.rounds, *sizes.values()) < 1:
        parser.error("--rounds, --images, --classes, --width and --grid have to be at least 1")
    results = [measure(case, sizes, args.rounds, args.device) for case in args.case or CASES]
    header = ["case", "", f"ms, {WRITTEN} / {OURS}", "ratio", "memory MB", "ratio"]
    print(tabulate([row for numbers in results for row in rows(numbers)], header, disable_numparse=True))
    machine = describe_machine(args.device, torch.float32)
    print(", ".join(f"{key} {value}" for key, value in {**sizes, **machine}.items()))
    if args.output:
        write_json(Path(args.output), {"machine": machine, "results": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
