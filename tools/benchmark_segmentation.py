#!/usr/bin/env python3
"""Does what was not computed save time? Dynamic segmentation against the dense computation, side by side.

    python tools/benchmark_segmentation.py                                  # all cases
    python tools/benchmark_segmentation.py --case region_conv --size 65 --rounds 20 --output region.json
    python tools/benchmark_segmentation.py --case region_stage --train      # a training step in place of evaluation

Cases:

    region_conv   single convolutions (with their norm folded in) on 10, 25, 50 and 100 % of the pixels
    region_stage  res4 and res5 of a dilated ResNet-50 on so many pixels, and all that belongs to it: finding the pixels
                  in the mask, gathering, tables of neighbours, residuals

All ways of computing the same run in turns, so that a slow minute of the machine hits all. Dense is the fastest of
several: torch's layers in both memory layouts, and oneDNN with packed weights. Printed are

    FLOPs     multiply-adds / those of the dense computation
    time      the same for seconds (median of the rounds)
    realised  (1 - time) / (1 - FLOPs): the share of the saved multiply-adds that was saved on the clock
    memory    most memory that tensors took, weights and inputs not counted, in MB: dense and dynamic

Regions are blobs, as segmentation leaves them; weights are random.
"""

import argparse
import copy
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor
from torch.nn import functional as F

from dyn_d2.config import add_dyn_d2_config
from dyn_d2.dynamic.pixels import restrict
from dyn_d2.ops.packed_conv import PackedConv
from dyn_d2.ops.region_conv import Region, RegionMatrix, map_rows, region_conv, to_map
from dyn_d2.utils.atomic import write_json
from dyn_d2.utils.measure import describe_machine, peak_memory, realised, time_call, turns

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
# Input and output channels, side of the kernel, dilation: the layers of res4 and res5, and the hidden layer of a head.
LAYERS = ((256, 256, 3, 2), (512, 512, 3, 4), (1024, 256, 1, 1), (256, 1024, 1, 1), (1024, 256, 3, 1))


@dataclass(frozen=True)
class Comparison:
    """Ways of computing the same thing.

    Attributes:
        name: what is computed.
        dense, dynamic: name -> function that does it; of either the fastest is taken.
        flops_ratio: multiply-adds of the dynamic ways / those of the dense ones.
    """

    name: str
    dense: dict[str, Callable[[], object]]
    dynamic: dict[str, Callable[[], object]]
    flops_ratio: float


def measure(comparison: Comparison, *, rounds: int, warm_up: int, device: str) -> dict:
    """Time and memory of all ways.

    Returns:
        "name", "flops_ratio", "time_ratio", "realised", "fastest", and "seconds" (median) and "memory_mb" of the
        fastest of "dense" and "dynamic"; "ways": the median seconds of all of them.
    """
    calls = comparison.dense | comparison.dynamic
    seconds: dict[str, list[float]] = {way: [] for way in calls}
    for _, way, counts in turns(list(calls), rounds, warm_up):
        elapsed = time_call(calls[way], device)
        if counts:
            seconds[way].append(elapsed)
    medians = {way: statistics.median(values) for way, values in seconds.items()}
    sides = {"dense": comparison.dense, "dynamic": comparison.dynamic}
    fastest = {side: min(ways, key=medians.__getitem__) for side, ways in sides.items()}
    time_ratio = medians[fastest["dynamic"]] / medians[fastest["dense"]]
    return {
        "name": comparison.name,
        "flops_ratio": comparison.flops_ratio,
        "time_ratio": time_ratio,
        "realised": realised(time_ratio, comparison.flops_ratio),
        "fastest": fastest,
        "seconds": {side: medians[way] for side, way in fastest.items()},
        "memory_mb": {side: peak_memory(calls[way], device) for side, way in fastest.items()},
        "ways": medians,
    }


def blobs(size: tuple[int, int, int], share: float, generator: torch.Generator) -> Tensor:
    """(N, H, W) bool: that share of all pixels, in blobs of a few pixels."""
    noise = torch.rand(size[0], 1, *size[1:], generator=generator)
    smooth = F.avg_pool2d(noise, 7, 1, 3, count_include_pad=False).flatten() + 1e-4 * noise.flatten()
    mask = torch.zeros(smooth.numel(), dtype=torch.bool)
    mask[smooth.topk(round(share * smooth.numel())).indices] = True
    return mask.view(size)


def region_conv_cases(args: argparse.Namespace) -> Iterator[Comparison]:
    """Convolutions: dense on a map, and from rows to rows of the chosen pixels, as the layers of a cascade run; "map to
    map" gathers from a whole map and scatters into one of zeros."""
    generator = torch.Generator().manual_seed(0)
    for (inputs, outputs, side, dilation), share in ((layer, share) for layer in LAYERS for share in args.share):
        x = torch.randn(args.batch, inputs, args.size, args.size, generator=generator).to(args.device)
        weight = torch.randn(outputs, inputs, side, side, generator=generator).to(args.device)
        weight, bias = weight / (inputs * side * side) ** 0.5, torch.zeros(outputs, device=args.device)
        region = Region.of(blobs((args.batch, args.size, args.size), share, generator).to(args.device))
        name = f"{side}x{side} {inputs} to {outputs}, dilation {dilation}, {len(region) / region.mask.numel():.0%}"
        make = _trained_conv if args.train else _evaluated_conv
        yield Comparison(name, *make(x, weight, bias, dilation, region), len(region) / region.mask.numel())


def _evaluated_conv(x: Tensor, weight: Tensor, bias: Tensor, dilation: int, region: Region) -> tuple[dict, dict]:
    kernel, geometry = tuple(weight.shape[2:]), {"padding": dilation * (weight.shape[2] // 2), "dilation": dilation}
    maps = {layout: x.contiguous(memory_format=form) for layout, form in LAYOUTS.items()}
    weights = {layout: weight.contiguous(memory_format=form) for layout, form in LAYOUTS.items()}
    pairs = {key: (value, value) for key, value in geometry.items()}
    dense = {layout: partial(F.conv2d, maps[layout], weights[layout], bias, **geometry) for layout in LAYOUTS}
    dense["packed"] = partial(PackedConv(weight, bias, stride=(1, 1), **pairs), maps["NHWC"])
    matrix, table = RegionMatrix(weight, bias), map_rows(maps["NHWC"])
    rows = table[region.index]
    taps = None if kernel == (1, 1) else region.taps(kernel, pairs["dilation"], region)
    around = None if kernel == (1, 1) else region.taps(kernel, pairs["dilation"])

    def map_to_map() -> Tensor:
        chosen = table.index_select(0, region.index) if around is None else table
        return to_map(matrix(chosen, around), region)

    return dense, {"region": partial(matrix, rows, taps), "region, map to map": map_to_map}


def _trained_conv(x: Tensor, weight: Tensor, bias: Tensor, dilation: int, region: Region) -> tuple[dict, dict]:
    kernel, geometry = tuple(weight.shape[2:]), {"padding": dilation * (weight.shape[2] // 2), "dilation": dilation}

    def step(compute: Callable[[Tensor, Tensor], Tensor], values: Tensor, own: Tensor) -> None:
        with torch.enable_grad():
            out = compute(values, own)
        torch.autograd.grad(out, (values, own), torch.ones_like(out))

    dense = {
        layout: partial(
            step,
            lambda values, own: F.conv2d(values, own, **geometry),
            x.contiguous(memory_format=form).requires_grad_(),
            weight.contiguous(memory_format=form).requires_grad_(),
        )
        for layout, form in LAYOUTS.items()
    }
    rows = map_rows(x)[region.index].requires_grad_()
    taps = None if kernel == (1, 1) else region.taps(kernel, (dilation, dilation), region)
    own = weight.detach().clone().requires_grad_()
    return dense, {"region": partial(step, lambda values, w: region_conv(values, w, None, taps), rows, own)}


def region_stage_cases(args: argparse.Namespace) -> Iterator[Comparison]:
    """Stages of the cascade on maps, in evaluation as layers in two layouts and as it runs, and on chosen pixels."""
    cfg = get_cfg()
    add_dyn_d2_config(cfg)
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", "build_cascade_resnet_backbone", "MODEL.RESNETS.DEPTH", args.depth])
    torch.manual_seed(0)
    net = build_backbone(cfg, ShapeSpec(channels=3)).to(args.device).train(args.train)
    generator = torch.Generator().manual_seed(0)
    for stage, share in ((stage, share) for stage in (1, 2) for share in args.share):
        x = torch.randn(args.batch, net.channels[stage - 1], args.size, args.size, generator=generator)
        x = x.relu().to(args.device)
        mask = blobs((args.batch, args.size, args.size), share, generator).to(args.device)
        given = x.contiguous(memory_format=torch.channels_last)
        pixels = partial(_run, lambda x, s=stage, m=mask: net.run_later(s, restrict(x, Region.of(m))).rows, args.train)
        whole = partial(_run, lambda x, s=stage: net.run_later(s, x), args.train)
        dense = {"as it runs": partial(whole, given)}
        for layout, form in LAYOUTS.items():
            layers = copy.deepcopy(net).to(memory_format=form).train()  # frozen batch norm: not folded, else the same
            plain = partial(_run, lambda x, s=stage, layers=layers: layers.run_later(s, x), args.train)
            dense[layout] = partial(plain, x.contiguous(memory_format=form))
        ratio = float(mask.float().mean())
        yield Comparison(
            f"res{3 + stage} of ResNet-{args.depth}, {ratio:.0%}", dense, {"region": partial(pixels, given)}, ratio
        )


def _run(compute: Callable[[Tensor], Tensor], train: bool, x: Tensor) -> None:
    if not train:
        compute(x)
        return
    with torch.enable_grad():
        compute(x.detach().requires_grad_()).sum().backward()


CASES = {"region_conv": region_conv_cases, "region_stage": region_stage_cases}


@torch.no_grad()
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--share", nargs="+", type=float, default=[0.1, 0.25, 0.5, 1.0], help="of the pixels")
    parser.add_argument("--size", type=int, default=65, help="height and width of the maps")
    parser.add_argument("--batch", type=int, default=1, help="images")
    parser.add_argument("--depth", type=int, default=50, help="of the ResNet")
    parser.add_argument("--train", action="store_true", help="forward and backward")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0: torch's choice")
    parser.add_argument("--output", default="", help="json file for the numbers")
    args = parser.parse_args(argv)
    if min(args.rounds, args.size, args.batch) < 1 or not all(0 < share <= 1 for share in args.share):
        parser.error("--rounds, --size and --batch have to be at least 1, --share above 0 and up to 1")
    if args.threads:
        torch.set_num_threads(args.threads)
    results = []
    for case in args.case:
        for comparison in CASES[case](args):
            numbers = measure(comparison, rounds=args.rounds, warm_up=args.warm_up, device=args.device)
            results.append({"case": case, "size": args.size, "batch": args.batch, "train": args.train, **numbers})
            print(f"{case}, {comparison.name}: time {numbers['time_ratio']:.3f}", file=sys.stderr, flush=True)
    machine = describe_machine(args.device, torch.float32)
    heads = ["case", "what", "dense ms", "dynamic ms", "FLOPs", "time", "realised", "memory MB"]
    print(tabulate(map(_row, results), headers=heads, disable_numparse=True))
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    if args.output:
        write_json(Path(args.output), {"machine": machine, "results": results})
    return 0


def _row(numbers: dict) -> list[str]:
    sides = [f"{1000 * numbers['seconds'][side]:.2f} ({numbers['fastest'][side]})" for side in ("dense", "dynamic")]
    ratios = [
        "-" if numbers[key] is None else f"{numbers[key]:.3f}" for key in ("flops_ratio", "time_ratio", "realised")
    ]
    memory = " / ".join(f"{numbers['memory_mb'][side]:.1f}" for side in ("dense", "dynamic"))
    return [numbers["case"], numbers["name"], *sides, *ratios, memory]


if __name__ == "__main__":
    sys.exit(main())
