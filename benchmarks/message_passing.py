#!/usr/bin/env python3
"""The compiled message passing against a loop of unfold, multiply and sum, as the published code has it.

    python benchmarks/message_passing.py                      # 100 maps of 24 channels, 14 x 14 and 28 x 28
    python benchmarks/message_passing.py --size 28 --threads 1 --rounds 9 --output numbers.json

Both sides get the same tensors, take max(H, W) steps and normalise the weights themselves. They run in turns, so that
a slow minute of the machine hits both. Printed are medians:

    forward   without gradients
    training  forward and backward, with gradients of the maps and of the weights
    memory    the most that tensors took in a training step, inputs not counted
    limit     the time that a copy takes for as many bytes as have to be read and written once (maps, weights, and in
              training their gradients), as a share of the compiled side's time: forward, training
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor
from torch.nn import functional as F

from dyn_d2.ops.message_passing import load, message_passing
from dyn_d2.utils.atomic import write_json
from dyn_d2.utils.measure import describe_machine, peak_memory, time_call

MODES = ("forward", "training")


def unfold_loop(x: Tensor, weights: Tensor, eps: float = 1e-5) -> Tensor:
    """Message passing as a chain of torch operators, which keeps r * r copies of every state for the backward pass."""
    window = int(weights.shape[2] ** 0.5)
    kernels = weights / (weights.sum(2, keepdim=True) + eps)
    for _ in range(max(x.shape[2:])):
        neighbours = F.unfold(x, window, padding=window // 2).view(*x.shape[:2], window**2, *x.shape[2:])
        x = (neighbours * kernels).sum(2)
    return x


SIDES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"loop": unfold_loop, "compiled": message_passing}


def measure(
    size: int,
    *,
    instances: int = 100,
    channels: int = 24,
    window: int = 3,
    shared: bool = False,
    rounds: int = 7,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> dict:
    """Seconds and memory of both sides on maps of ``size`` x ``size``.

    Args:
        shared: one kernel for all channels.
        rounds: how often each side is timed, after one further time.

    Returns:
        "seconds" and "speedup" of "forward" and "training", "memory_mb" and "memory_ratio", "limit" of both modes, and
        "difference": the largest one between the results, as a share of the largest result.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(instances, channels, size, size, generator=generator).to(device, dtype)
    weights = torch.rand(instances, 1 if shared else channels, window**2, size, size, generator=generator)
    weights = weights.to(device, dtype)
    seconds: dict[tuple[str, str], list[float]] = {(mode, side): [] for mode in MODES for side in SIDES}
    for number in range(rounds + 1):
        order = list(seconds) if number % 2 == 0 else list(seconds)[::-1]
        for mode, side in order:
            elapsed = time_call(partial(_run, mode, side, x, weights), device)
            if number:
                seconds[mode, side].append(elapsed)
    medians = {mode: {side: statistics.median(seconds[mode, side]) for side in SIDES} for mode in MODES}
    memory = {side: peak_memory(partial(_run, "training", side, x, weights), device) for side in SIDES}
    expected, got = unfold_loop(x, weights), message_passing(x, weights)
    # Maps in, maps out, weights; then the gradient that comes in, maps and weights again, and their gradients.
    least = {"forward": 2 * x.nbytes + weights.nbytes, "training": 5 * x.nbytes + 3 * weights.nbytes}
    per_byte = _seconds_per_byte(device)
    return {
        "size": size,
        "instances": instances,
        "channels": channels,
        "window": window,
        "shared": shared,
        "seconds": medians,
        "speedup": {mode: medians[mode]["loop"] / medians[mode]["compiled"] for mode in MODES},
        "memory_mb": memory,
        "memory_ratio": memory["loop"] / memory["compiled"],
        "limit": {mode: least[mode] * per_byte / medians[mode]["compiled"] for mode in MODES},
        "difference": float((got - expected).abs().max() / expected.abs().max()),
    }


def _run(mode: str, side: str, x: Tensor, weights: Tensor) -> None:
    if mode == "forward":
        with torch.no_grad():
            SIDES[side](x, weights)
        return
    leaves = (x.detach().requires_grad_(), weights.detach().requires_grad_())
    out = SIDES[side](*leaves)
    torch.autograd.grad(out, leaves, x)  # any gradient will do that is there already


def _seconds_per_byte(device: str) -> float:
    """Of a copy, each byte of which is read once and written once."""
    source = torch.zeros(2**26 if device.startswith("cuda") else 2**24, device=device)
    target = torch.empty_like(source)
    times = [time_call(partial(target.copy_, source), device) for _ in range(6)]
    return statistics.median(times[1:]) / (2 * source.nbytes)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", action="append", type=int, help="height and width of the maps; default: 14 and 28")
    parser.add_argument("--instances", type=int, default=100)
    parser.add_argument("--channels", type=int, default=24)
    parser.add_argument("--window", type=int, default=3)
    parser.add_argument("--shared", action="store_true", help="one kernel for all channels")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=("float64", "float32", "bfloat16", "float16"))
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0: torch's choice")
    parser.add_argument("--output", default="", help="json file for the numbers")
    args = parser.parse_args(argv)
    if min(args.rounds, args.instances, args.channels, *(args.size or [1])) < 1 or args.window % 2 == 0:
        parser.error("--rounds, --instances, --channels and --size have to be at least 1, and --window odd")
    if args.threads:
        torch.set_num_threads(args.threads)
    if not load(args.device.partition(":")[0]):
        print("The operator could not be compiled: its reference runs on the compiled side.", file=sys.stderr)
    dtype = getattr(torch, args.dtype)
    names = ("instances", "channels", "window", "shared", "rounds", "device")
    settings = {name: getattr(args, name) for name in names}
    results = [measure(size, dtype=dtype, **settings) for size in args.size or [14, 28]]
    print(tabulate([_row(numbers) for numbers in results], disable_numparse=True,
                   headers=["maps", "forward ms", "", "training ms", "", "memory MB", "", "limit"]))  # fmt: skip
    machine = describe_machine(args.device, dtype)
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    if args.output:
        write_json(Path(args.output), {"machine": machine, "results": results})
    return 0


def _row(numbers: dict) -> list[str]:
    row = [f"{numbers['instances']} x {numbers['channels']} x {numbers['size']} x {numbers['size']}"]
    for mode in MODES:
        loop, compiled = (1000 * numbers["seconds"][mode][side] for side in SIDES)
        row += [f"{loop:.1f} / {compiled:.2f}", f"{numbers['speedup'][mode]:.1f}x"]
    loop, compiled = (numbers["memory_mb"][side] for side in SIDES)
    row += [f"{loop:.0f} / {compiled:.0f}", f"1/{numbers['memory_ratio']:.1f}"]
    return [*row, " / ".join(f"{numbers['limit'][mode]:.0%}" for mode in MODES)]


if __name__ == "__main__":
    sys.exit(main())
