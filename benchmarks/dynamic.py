#!/usr/bin/env python3
"""Does what was not computed save time? Dense against gated networks with forced decisions, side by side.

    python benchmarks/dynamic.py                            # all cases at 224 px, batch 1 and 32
    python benchmarks/dynamic.py --case blocks --batch 1 --rounds 30 --output blocks.json

In each round every image gets new random decisions, which keep half of what can be switched off, and each network runs
once in both memory layouts, in turns, so that a slow minute of the machine hits all. Printed are

    FLOPs     multiply-adds of the gated network / of the dense one (mean over the rounds)
    time      the same for seconds (median of the rounds; each side in its faster memory layout)
    realised  (1 - time) / (1 - FLOPs): the share of the saved multiply-adds that was saved on the clock
    memory    most memory that tensors took during a forward pass, weights not counted, in MB: dense and gated

Both sides have the same weights. Gates are not computed: decisions are given. What dense is:

    blocks, groups  the gated network with everything open, which on a CPU runs as folded and packed convolutions too
    stops           the same; each image stops at a block of its own, as with PMN, and nothing behind it runs
    channels        Detectron2's ResNet, whose batch norms are layers; the gated side does them on the way
"""

import argparse
import copy
import statistics
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor, nn

from dyn_d2.config import add_dyn_d2_config
from dyn_d2.gating import Decision, recording
from dyn_d2.gating.decisions import fixed
from dyn_d2.gating.policies.base import Policy
from dyn_d2.utils.atomic import write_json
from dyn_d2.utils.measure import describe_machine, peak_memory, realised, time_call, turns

from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


@dataclass(frozen=True)
class Case:
    """A network to measure.

    Attributes:
        keys: config keys of the gated network.
        dense: backbone that the gated one is compared with; "" for the gated one with everything open.
        share: of what can be switched off that stays open.
        stops: whether images stop for good instead of skipping blocks.
    """

    keys: dict = field(default_factory=dict)
    dense: str = ""
    share: float = 0.5
    stops: bool = False


CASES = {
    "blocks": Case(),
    "stops": Case({"MODEL.GATED.FIRST_BLOCK": True}, stops=True),
    "groups": Case({"MODEL.GATED.UNIT": "group", "MODEL.GATED.GROUPS": 4}),
    "channels": Case({"MODEL.GATED.UNIT": "channel", "MODEL.GATED.WIDEN": 1.0}, dense="build_resnet_backbone"),
}


class Forced(Policy):
    """Opens what ``draw`` has drawn."""

    def draw(self, images: int, share: float, generator: torch.Generator, device: str) -> None:
        """New decisions: of each image that share of the blocks, or of each unit's groups or channels."""
        if all(unit.kind == "block" for unit in self.units):
            choices = list(_random_subset(images, len(self.units), share, generator).unbind(1))
        else:
            choices = [_random_subset(images, unit.size, share, generator) for unit in self.units]
        self._decisions = [fixed(choice.to(device)) for choice in choices]

    def decide(self, index: int, features: Tensor, state: None) -> Decision:
        return self._decisions[index]


class ForcedStops(Policy):
    """Stops each image behind the block that ``draw`` has drawn."""

    stops = True

    def draw(self, images: int, share: float, generator: torch.Generator, device: str) -> None:
        """New blocks to stop behind, evenly spread around ``share`` of all."""
        most = max(round(2 * share * len(self.units)) - 1, 1)
        self._last = torch.randint(1, most + 1, (images,), generator=generator).to(device)

    def begin(self, images: Tensor, image_sizes: list | None) -> dict[str, Tensor]:
        return {"left": self._last}

    def stay(self, index: int, features: Tensor, state: dict[str, Tensor]) -> Tensor | None:
        if index in (0, len(self.units)):
            return None
        return state["left"] > index

    def keep(self, kept: Tensor, state: dict[str, Tensor]) -> None:
        state["left"] = state["left"][kept]

    def decide(self, index: int, features: Tensor, state: dict[str, Tensor]) -> Decision:
        return fixed(torch.ones(len(features), device=features.device))


def _random_subset(rows: int, count: int, share: float, generator: torch.Generator) -> Tensor:
    """(rows, count) bool: in each row a random subset of ``share * count`` elements, rounded up or down at random."""
    ranks = torch.rand(rows, count, generator=generator).argsort(1).argsort(1)
    return ranks < (share * count + torch.rand(rows, 1, generator=generator)).floor()


def build_networks(case: Case, device: str, dtype: torch.dtype, opts: list[str]) -> dict[str, nn.Module]:
    """The networks "dense" and "gated", with equal weights, in evaluation mode.

    Args:
        opts: KEY VALUE pairs of the config that go before those of the case.
    """
    torch.manual_seed(0)
    gated_cfg = _config(opts, {"MODEL.BACKBONE.NAME": "build_gated_resnet_backbone", **case.keys})
    gated = build_backbone(gated_cfg, ShapeSpec(channels=3))
    if case.dense:
        dense = build_backbone(_config(opts, {"MODEL.BACKBONE.NAME": case.dense}), ShapeSpec(channels=3))
    else:
        dense = build_backbone(gated_cfg, ShapeSpec(channels=3))
    dense.load_state_dict(gated.state_dict())
    gated.policy = (ForcedStops if case.stops else Forced)(gated.policy.units)
    return {name: net.to(device, dtype).eval() for name, net in (("dense", dense), ("gated", gated))}


def _config(opts: list[str], keys: dict) -> CfgNode:
    cfg = get_cfg()
    add_dyn_d2_config(cfg)
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.NORM, cfg.MODEL.RESNETS.STRIDE_IN_1X1 = "BN", False
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    cfg.merge_from_list(opts)
    cfg.merge_from_list([item for pair in keys.items() for item in pair])
    return cfg


@torch.no_grad()
def measure(
    case: Case,
    *,
    batch: int,
    size: int = 224,
    rounds: int = 10,
    warm_up: int = 64,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    opts: list[str] | None = None,
) -> dict:
    """Time, multiply-adds and memory of both networks of a case.

    Args:
        size: height and width of the images.
        rounds: how often each network is timed, after as many further times as ``warm_up`` images need.

    Returns:
        "flops_ratio", "time_ratio", "realised", "layout" and "seconds" (median) and "memory_mb" of "dense" and "gated",
        and "rounds": the seconds of each round.
    """
    networks = build_networks(case, device, dtype, opts or [])
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, size, size, generator=generator).to(device, dtype)
    seconds: dict[tuple[str, str], list[float]] = {(side, layout): [] for side in networks for layout in LAYOUTS}
    # A network in each layout: changing the layout between two runs would cost memory traffic, and the caches.
    copies = {(side, layout): _in_layout(networks[side], layout) for side, layout in seconds}
    inputs = {layout: images.contiguous(memory_format=LAYOUTS[layout]) for layout in LAYOUTS}
    flops, drawn = [], -1
    untimed = -(-warm_up // batch)  # weights are packed for each choice of groups when it comes for the second time
    for number, (side, layout), counts in turns(list(seconds), rounds, untimed):
        if number > drawn:
            _draw(copies, batch, case.share, generator, device)
            drawn = number
        elapsed, ratio = _timed(copies[side, layout], inputs[layout], device)
        if counts:
            seconds[side, layout].append(elapsed)
            if side == "gated":
                flops.append(ratio)
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    best = {side: min(LAYOUTS, key=lambda layout: medians[side, layout]) for side in networks}
    time_ratio = medians["gated", best["gated"]] / medians["dense", best["dense"]]
    flops_ratio = statistics.mean(flops)
    return {
        "batch": batch,
        "flops_ratio": flops_ratio,
        "time_ratio": time_ratio,
        "realised": realised(time_ratio, flops_ratio),
        "layout": best,
        "seconds": {side: medians[side, best[side]] for side in networks},
        "memory_mb": {
            side: peak_memory(partial(copies[side, best[side]], inputs[best[side]]), device) for side in networks
        },
        "rounds": {f"{side} {layout}": values for (side, layout), values in seconds.items()},
    }


def _in_layout(network: nn.Module, layout: str) -> nn.Module:
    return copy.deepcopy(network).to(memory_format=LAYOUTS[layout])


def _draw(copies: dict, batch: int, share: float, generator: torch.Generator, device: str) -> None:
    """The same new decisions for all gated networks."""
    seed = int(torch.randint(2**31, (1,), generator=generator))
    for (side, _), network in copies.items():
        if side == "gated":
            network.policy.draw(batch, share, torch.Generator().manual_seed(seed), device)


def _timed(network: nn.Module, images: Tensor, device: str) -> tuple[float, float]:
    """Seconds of a forward pass, and its multiply-adds as a share of the network's without gates."""
    with recording() as trace:
        elapsed = time_call(partial(network, images), device)
    return elapsed, float(trace.executed().mean()) / trace.dense() if trace.costs else 1.0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=list(CASES), help="default: all")
    parser.add_argument("--batch", action="append", type=int, help="images of a batch; default: 1 and 32")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=64, help="images before timing starts")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0: torch's choice")
    parser.add_argument("--output", default="", help="json file for the numbers")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that change the config")
    args = parser.parse_args(argv)
    if min(args.rounds, args.size, *(args.batch or [1])) < 1:
        parser.error("--rounds, --size and --batch have to be at least 1")
    if args.threads:
        torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype)
    results, rows = [], []
    for name in args.case or CASES:
        for batch in args.batch or [1, 32]:
            numbers = measure(
                CASES[name], batch=batch, size=args.size, rounds=args.rounds, warm_up=args.warm_up,
                device=args.device, dtype=dtype, opts=args.opts,
            )  # fmt: skip
            results.append({"case": name, "size": args.size, **numbers})
            rows.append(_row(name, numbers))
            print(f"{name}, batch {batch}: realised {numbers['realised']:.2f}", file=sys.stderr, flush=True)
    machine = describe_machine(args.device, dtype)
    print(tabulate(rows, headers=["case", "batch", "dense ms", "gated ms", "FLOPs", "time", "realised", "memory MB"],
                   disable_numparse=True))  # fmt: skip
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    if args.output:
        write_json(Path(args.output), {"machine": machine, "results": results})
    return 0


def _row(name: str, numbers: dict) -> list[str]:
    sides = [f"{1000 * numbers['seconds'][side]:.1f} ({numbers['layout'][side]})" for side in ("dense", "gated")]
    ratios = [f"{numbers[key]:.3f}" for key in ("flops_ratio", "time_ratio", "realised")]
    memory = " / ".join(f"{numbers['memory_mb'][side]:.0f}" for side in ("dense", "gated"))
    return [name, str(numbers["batch"]), *sides, *ratios, memory]


if __name__ == "__main__":
    sys.exit(main())
