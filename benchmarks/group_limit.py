#!/usr/bin/env python3
"""How much of the multiply-adds that closed groups save can a CPU save on the clock? Bare convolutions, nothing else.

    python benchmarks/group_limit.py                                 # the blocks of CDB-50 with four groups, batch 32
    python benchmarks/group_limit.py --batch 1 --rounds 20 --output limit.json

Half of the groups of each image are open. The convolutions of one block of each stage run (1x1, 3x3, 1x1, packed, on
images of 224 pixels), in turns:

    dense     all groups at once for all images
    choices   images with the same open groups together, as dyn_d2 runs them: six pairs of groups, a sixth of the images
              each, as wide as two groups
    groups    each group alone for the half of the images that open it

Gathering images, adding up and everything else is left out, so that no layout of the same convolutions saves more.
Printed is (1 - time) / (1 - FLOPs), as benchmarks/dynamic.py has it, for each stage and for all blocks together. Time
is processor time, all threads together: other work of the machine does not lengthen it.
"""

import argparse
import time
from collections.abc import Callable

import torch
from tabulate import tabulate

from dyn_d2.ops.packed_conv import PackedConv
from dyn_d2.utils.atomic import write_json
from dyn_d2.utils.measure import describe_machine, realised, turns

GROUPS = 4
# Of CDB-50: blocks behind the first, width of a group, channels of the trunk, side of the maps.
STAGES = {"res2": (2, 24, 256, 56), "res3": (3, 48, 512, 28), "res4": (5, 96, 1024, 14), "res5": (2, 192, 2048, 7)}


def chain(images: int, groups: int, width: int, trunk: int, side: int) -> Callable[[], object]:
    """The convolutions of ``groups`` groups for so many images."""
    inner = groups * width
    convs = [
        PackedConv(torch.randn(inner, trunk, 1, 1), torch.randn(inner), stride=(1, 1), padding=(0, 0),
                   dilation=(1, 1), groups=1),
        PackedConv(torch.randn(inner, width, 3, 3), torch.randn(inner), stride=(1, 1), padding=(1, 1),
                   dilation=(1, 1), groups=groups),
        PackedConv(torch.randn(trunk, inner, 1, 1), torch.randn(trunk), stride=(1, 1), padding=(0, 0),
                   dilation=(1, 1), groups=1),
    ]  # fmt: skip
    x = torch.randn(images, trunk, side, side).contiguous(memory_format=torch.channels_last)

    def run() -> torch.Tensor:
        y = x
        for conv in convs[:2]:
            y = conv(y, relu=True)
        return convs[2](y, None, relu=False)

    return run


def split(images: int, parts: int) -> list[int]:
    """Images in each of ``parts``, as even as can be; empty parts are left out."""
    return [n for n in (images // parts + (i < images % parts) for i in range(parts)) if n]


def ways(images: int, width: int, trunk: int, side: int) -> dict[str, list[Callable[[], object]]]:
    return {
        "dense": [chain(images, GROUPS, width, trunk, side)],
        "choices": [chain(n, GROUPS // 2, width, trunk, side) for n in split(images, 6)],
        "groups": [chain(n, 1, width, trunk, side) for n in split(images * GROUPS // 2, GROUPS)],
    }


@torch.inference_mode()
def measure(images: int, rounds: int) -> dict[str, dict[str, float]]:
    """Stage -> way -> the least processor seconds of one block."""
    found = {}
    for name, (_, *shape) in STAGES.items():
        runs = ways(images, *shape)
        least = dict.fromkeys(runs, float("inf"))
        for _, way, counts in turns(list(runs), rounds, 1):
            before = time.process_time()
            for run in runs[way]:
                run()
            taken = time.process_time() - before
            least[way] = min(least[way], taken) if counts else least[way]
        found[name] = least
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's choice")
    parser.add_argument("--output", help="write the numbers as json")
    args = parser.parse_args(argv)
    if min(args.batch, args.rounds) < 1:
        parser.error("--batch and --rounds have to be at least 1")
    if args.threads:
        torch.set_num_threads(args.threads)
    found = measure(args.batch, args.rounds)
    blocks = {name: stage[0] for name, stage in STAGES.items()}
    found["all blocks"] = {
        way: sum(blocks[name] * found[name][way] for name in STAGES) for way in ("dense", "choices", "groups")
    }
    rows = []
    for name, seconds in found.items():
        ratios = {way: seconds[way] / seconds["dense"] for way in ("choices", "groups")}
        shares = {f"realised, {way}": realised(ratio, 0.5) for way, ratio in ratios.items()}
        rows.append({"blocks": name, "dense_ms": 1000 * seconds["dense"], **ratios, **shares})
    print(tabulate(rows, headers="keys", floatfmt=".3f"))
    if args.output:
        record = {"batch": args.batch, "rounds": args.rounds, "rows": rows,
                  "machine": describe_machine("cpu", torch.float32)}  # fmt: skip
        write_json(args.output, record)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
