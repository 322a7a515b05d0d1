#!/usr/bin/env python3
"""Does what was not computed save time? Dynamic segmentation against the dense computation, side by side.

    python benchmarks/segmentation.py                                  # all cases
    python benchmarks/segmentation.py --case region_conv --size 65 --rounds 20 --output region.json
    python benchmarks/segmentation.py --case region_stage --train      # a training step in place of evaluation
    python benchmarks/segmentation.py --case dsspn --train --labels coco_stuff --size 24 --batch 4

Cases:

    region_conv   single convolutions (with their norm folded in) on 10, 25, 50 and 100 % of the pixels
    region_stage  stages 2 and 3 (res4 and res5) of a dilated ResNet-50, or of --net, on so many pixels, and all that
                  belongs to it: finding the pixels in the mask, gathering, tables of neighbours, residuals
    dsspn         DSSPN on the universal tree, with images that wake 6 to 10 neurons each. Training: a step of the fixed
                  structure (dense: all neurons that the labels need) and of the dynamic one, forward, backward and SGD;
                  of the neurons alone, of the head (transition and neurons) and of the whole model (backbone and head).
                  Evaluation: the fixed structure, and a flat head (DeepLab's atrous pyramid straight to the classes),
                  against the dynamic one

All ways of computing the same run in turns, so that a slow minute of the machine hits all. Dense is the fastest of
several: torch's layers in both memory layouts, and oneDNN with packed weights. Printed are

    FLOPs     multiply-adds / those of the dense computation
    time      the same for seconds (median of the rounds)
    realised  (1 - time) / (1 - FLOPs): the share of the saved multiply-adds that was saved on the clock
    memory    most memory that tensors took, weights and inputs not counted, in MB: dense and dynamic

Regions are blobs, as segmentation leaves them; weights are random. DSSPN in evaluation computes everything, but
label maps tell where pixels go.
"""

import argparse
import copy
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from dyn_d2.config import add_dyn_d2_config
from dyn_d2.hierarchy import load_hierarchy
from dyn_d2.methods.dsspn import region_inference
from dyn_d2.methods.dsspn.head import DSSPNHead
from dyn_d2.methods.dsspn.label_plan import LabelPlan
from dyn_d2.methods.layer_cascade.pixels import restrict
from dyn_d2.methods.pmn.head import AtrousPyramid
from dyn_d2.ops.packed_conv import PackedConv
from dyn_d2.ops.region_conv import Region, RegionMatrix, map_rows, region_conv, to_map
from dyn_d2.utils.atomic import write_json
from dyn_d2.utils.errors import run_tool
from dyn_d2.utils.measure import describe_machine, peak_memory, realised, time_call, turns

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
# Input and output channels, side of the kernel, dilation: the layers of res4 and res5, and the hidden layer of a head.
LAYERS = ((256, 256, 3, 2), (512, 512, 3, 4), (1024, 256, 1, 1), (256, 1024, 1, 1), (1024, 256, 3, 1))

FLAT_RATES = (6, 12, 18, 24)  # DeepLab v2


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
    """Convolutions: dense on a map, and from rows to rows of the chosen pixels, as the layers of Layer Cascade run;
    "map to map" gathers from a whole map and scatters into one of zeros."""
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
    """Stages of Layer Cascade on maps, in evaluation as layers in two layouts and as it runs, and on chosen pixels."""
    cfg = get_cfg()
    add_dyn_d2_config(cfg)
    kind, keys = "resnet", ["MODEL.RESNETS.DEPTH", args.depth]
    if args.net:
        kind, keys = "mobile", ["MODEL.TIMM.NAME", args.net]
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", f"build_cascade_{kind}_backbone", "MODEL.BACKBONE.FREEZE_AT", 0, *keys])
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
            f"stage {stage + 1} of {args.net or f'ResNet-{args.depth}'}, {ratio:.0%}",
            dense,
            {"region": partial(pixels, given)},
            ratio,
        )


def _run(compute: Callable[[Tensor], Tensor], train: bool, x: Tensor) -> None:
    if not train:
        compute(x)
        return
    with torch.enable_grad():
        compute(x.detach().requires_grad_()).sum().backward()


def dsspn_cases(args: argparse.Namespace) -> Iterator[Comparison]:
    """DSSPN over a ResNet of output stride 8; see the head of this file."""
    for labels in args.labels:
        yield from _dsspn_cases_of(labels, args)


def _dsspn_cases_of(label_set: str, args: argparse.Namespace) -> Iterator[Comparison]:
    torch.manual_seed(0)
    net = _dilated_resnet(args.depth, args.device)
    head = tree_head(label_set, net.output_shape()).to(args.device)
    heads = {"fixed": copy.deepcopy(head), "dynamic": head}
    heads["fixed"].dynamic = False
    generator = torch.Generator().manual_seed(0)
    labels, awake = label_maps(head.plan, args.batch, args.size, generator)
    images = torch.randn(args.batch, 3, 8 * args.size, 8 * args.size, generator=generator).to(args.device)
    make = _dsspn_steps if args.train else _dsspn_evaluations
    for name, dense, dynamic in make(net, heads, images, labels.to(args.device)):
        name += f", {label_set}, {sum(awake) / len(awake):.1f} of {len(head.plan.needed)} neurons an image"
        yield Comparison(name, dense, dynamic, _flops(*dynamic.values()) / _flops(*dense.values()))


def _dilated_resnet(depth: int, device: str) -> nn.Module:
    cfg = get_cfg()
    add_dyn_d2_config(cfg)
    keys = {"NAME": "build_cascade_resnet_backbone", "FREEZE_AT": 0}
    cfg.merge_from_list([item for key, value in keys.items() for item in (f"MODEL.BACKBONE.{key}", value)])
    cfg.MODEL.RESNETS.DEPTH = depth
    return build_backbone(cfg, ShapeSpec(channels=3)).to(device)


def tree_head(labels: str, shapes: dict[str, ShapeSpec]) -> DSSPNHead:
    """DSSPN on the universal tree over the last stage, for the labels of one of the tree's data sets, or "leaves": all
    concepts without children, which need every neuron of the tree."""
    tree = load_hierarchy("universal")
    concepts = tree.leaves if labels == "leaves" else tuple(tree.labels(labels).values())
    return DSSPNHead({"stage3": shapes["stage3"]}, tree=tree, labels={labels: concepts}, train_sets=[labels])


def label_maps(plan: LabelPlan, batch: int, size: int, generator: torch.Generator) -> tuple[Tensor, list[int]]:
    """(N, size, size) labels, and how many neurons each image wakes: 6 to 10, where the map is not too small.

    Labels are added at random as long as they wake no more neurons than were drawn; each has some patches of 4 x 4.
    """
    maps, side = [], -(-size // 4)
    for most in torch.randint(6, 11, (batch,), generator=generator).tolist():
        chosen: list[int] = []
        for label in torch.randperm(len(plan.concepts), generator=generator).tolist():
            if len(chosen) < side * side and awake_neurons(plan, [*chosen, label]) <= most:
                chosen.append(label)
        patches = torch.tensor(chosen).repeat(side * side)[: side * side]
        patches = patches[torch.randperm(side * side, generator=generator)].view(side, side)
        maps.append(patches.repeat_interleave(4, 0).repeat_interleave(4, 1)[:size, :size])
    return torch.stack(maps), [awake_neurons(plan, found.unique().tolist()) for found in maps]


def awake_neurons(plan: LabelPlan, labels: list[int]) -> int:
    """How many neurons run for an image that shows these labels."""
    present = torch.zeros(1, len(plan.concepts), dtype=torch.bool)
    present[0, labels] = True
    return int(plan.active(present)[1].sum())


def _dsspn_steps(net: nn.Module, heads: dict[str, DSSPNHead], images: Tensor, labels: Tensor) -> Iterator[tuple]:
    """Name, and dense and dynamic ways, of training steps."""
    targets = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)
    features = net(images)["stage3"]
    x0 = heads["dynamic"].transition(features).requires_grad_()  # what comes before a part needs its gradient
    features.requires_grad_()
    parts: dict[str, tuple] = {
        "neurons": (x0, lambda head: head.neurons, lambda head, x: head.losses(x, targets)),
        "head": (features, lambda head: head, lambda head, x: head({"stage3": x}, targets)[1]),
        "whole model": (images, lambda head: nn.ModuleList([head, net]), lambda head, x: head(net(x), targets)[1]),
    }
    for name, (x, owner, loss) in parts.items():
        ways = {side: _training_step(owner(head), partial(loss, head), x) for side, head in heads.items()}
        yield f"step of the {name}", {"fixed": ways["fixed"]}, {"dynamic": ways["dynamic"]}


def _training_step(owner: nn.Module, loss: Callable[[Tensor], dict[str, Tensor]], x: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(owner.parameters(), lr=0.0, momentum=0.9)  # at a rate of 0 all rounds do the same

    def run() -> None:
        with torch.enable_grad():
            loss(x.detach().requires_grad_(x.requires_grad))["loss_sem_seg"].backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def _dsspn_evaluations(net: nn.Module, heads: dict[str, DSSPNHead], images: Tensor, labels: Tensor) -> Iterator[tuple]:
    """Name, and dense and dynamic ways, of evaluations; scores are enlarged to the size of the images."""
    net.eval()
    fixed, dynamic = (heads[side].eval() for side in ("fixed", "dynamic"))
    features = {"stage3": net(images)["stage3"]}
    classes = len(dynamic.plan.concepts)
    pyramid = AtrousPyramid(features["stage3"].shape[1], classes, FLAT_RATES).to(images.device).eval()

    def flat(features: Mapping[str, Tensor]) -> Tensor:
        return F.interpolate(pyramid(features["stage3"]), scale_factor=8, mode="bilinear", align_corners=False)

    for name, given in (("head", lambda: features), ("whole model", lambda: net(images))):
        tree = {"dynamic": lambda given=given: told(dynamic, given(), labels)}
        yield f"{name}, {classes} classes", {"fixed": lambda given=given: told(fixed, given(), labels)}, tree
        yield f"{name}, {classes} classes", {"flat head": lambda given=given: flat(given())}, tree


def told(head: DSSPNHead, features: Mapping[str, Tensor], labels: Tensor) -> Tensor:
    """The scores of ``head``, which computes all it needs to find the way of each pixel, but is then told the way to
    ``labels``: with random weights all images would wake all neurons."""
    patches = (_leading(kind, head.plan, labels) for kind in (region_inference._Regions, region_inference._Everywhere))
    with next(patches), next(patches):
        return head(features)[0]


def _leading(kind: type, plan: LabelPlan, labels: Tensor):
    """Inside this context the logits that ``kind`` computes are largest on the way to ``labels``."""
    compute = kind.logits

    def logits(self, name: str, rows: Tensor) -> Tensor:
        below = plan.below[:, plan.decisions[name].columns]
        return compute(self, name, rows).sigmoid() + 10 * below[labels.flatten()[rows]]

    return mock.patch.object(kind, "logits", logits)


def _flops(compute: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops()


CASES = {"region_conv": region_conv_cases, "region_stage": region_stage_cases, "dsspn": dsspn_cases}
SIZES = {"region_conv": (65, 1), "region_stage": (65, 1), "dsspn": (24, 4)}  # of the maps, and of the batch


@torch.no_grad()
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--share", nargs="+", type=float, default=[0.1, 0.25, 0.5, 1.0], help="of the pixels")
    parser.add_argument("--size", type=int, help="height and width of the maps; default: 65, DSSPN 24 (192 pixels)")
    parser.add_argument("--batch", type=int, help="images; default: 1, DSSPN 4")
    labels = ["leaves", *load_hierarchy("universal").datasets]
    parser.add_argument("--labels", nargs="+", default=["coco_stuff", "leaves"], choices=labels,
                        help="of DSSPN: data sets of the universal tree, whose neurons alone the fixed structure runs, "
                        "as in the paper, or all leaves with all neurons")  # fmt: skip
    parser.add_argument("--depth", type=int, default=50, help="of the ResNet")
    parser.add_argument("--net", default="", help="region_stage: a network of timm with depthwise convolutions, such "
                        "as tf_efficientnet_lite0")  # fmt: skip
    parser.add_argument("--train", action="store_true", help="forward and backward")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0: torch's choice")
    parser.add_argument("--output", default="", help="json file for the numbers")
    args = parser.parse_args(argv)
    if min(n for n in (args.rounds, args.size, args.batch) if n is not None) < 1 or not all(
        0 < share <= 1 for share in args.share
    ):
        parser.error("--rounds, --size and --batch have to be at least 1, --share above 0 and up to 1")
    if args.threads:
        torch.set_num_threads(args.threads)
    results = []
    for case in args.case:
        size, batch = (own or default for own, default in zip((args.size, args.batch), SIZES[case], strict=True))
        for comparison in CASES[case](argparse.Namespace(**{**vars(args), "size": size, "batch": batch})):
            numbers = measure(comparison, rounds=args.rounds, warm_up=args.warm_up, device=args.device)
            results.append({"case": case, "size": size, "batch": batch, "train": args.train, **numbers})
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
    run_tool(main)
