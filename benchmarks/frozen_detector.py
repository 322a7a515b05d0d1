#!/usr/bin/env python3
"""What makes a detector on a frozen backbone of timm faster on a CPU, side by side:

    plain    batch norms of the backbone work by themselves, regions are pooled by torchvision's operator
    regions  regions are pooled by rows of cells (the embedded Detectron2's ROIAlign)
    folded   the batch norms are folded into the frozen convolutions before them
    both     as dyn_d2 runs

    python benchmarks/frozen_detector.py --config-file TFA/voc07_lite0.yaml

A training step (forward, backward, no update) and inference of the same random images with eight objects each; weights
are random but for the backbone's. Printed are milliseconds and what is left of "plain".
"""

import argparse
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tabulate import tabulate
from torch import nn

from dyn_d2.config.derive import build_cfg
from dyn_d2.modeling.backbone.timm_norms import FrozenBatchNormAct2d
from dyn_d2.modeling.build import build_model
from dyn_d2.utils.atomic import write_json
from dyn_d2.utils.measure import describe_machine, peak_memory, time_call, turns

from detectron2.layers import ROIAlign
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

SIDES = {"plain": (False, False), "regions": (True, False), "folded": (False, True), "both": (True, True)}


@contextmanager
def as_side(model: nn.Module, name: str) -> Iterator[None]:
    """Within, ``model`` runs as that side does."""
    by_cells, folds = SIDES[name]
    own = ROIAlign._by_cells
    folded = {norm: norm.folded for norm in model.modules() if isinstance(norm, FrozenBatchNormAct2d)}
    convolutions = [conv for layers in folded.values() for conv in layers]
    try:
        if not by_cells:
            ROIAlign._by_cells = lambda self, input: False
        if not folds:
            for norm in folded:
                norm.folded = ()
            for conv in convolutions:
                conv._weights = lambda input, conv=conv: (conv.weight, conv.bias)
        yield
    finally:
        ROIAlign._by_cells = own
        for norm, conv in folded.items():
            norm.folded = conv
        for conv in convolutions:
            conv.__dict__.pop("_weights", None)


def images_of(count: int, height: int, width: int, classes: int) -> list[dict]:
    """Random images with eight objects each."""
    batch = []
    for _ in range(count):
        corner = torch.rand(8, 2) * torch.tensor([width, height]) * 0.6
        boxes = torch.cat([corner, corner + 16 + torch.rand(8, 2) * torch.tensor([width, height]) * 0.3], dim=1)
        truth = Instances((height, width), gt_boxes=Boxes(boxes), gt_classes=torch.randint(0, classes, (8,)))
        batch.append({"image": torch.randint(0, 256, (3, height, width)).float(), "instances": truth})
    return batch


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="TFA/voc07_lite0.yaml", metavar="FILE")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, nargs=2, default=(240, 320), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--rounds", type=int, default=6, help="turns of each side")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="json file for the numbers")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs of the config")
    args = parser.parse_args(argv)
    if min(args.batch, *args.size, args.rounds, args.threads) < 1:
        parser.error("--batch, --size, --rounds and --threads have to be 1 or more")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    cfg = build_cfg(args.config_file, [*args.opts, "MODEL.DEVICE", "cpu"])
    model = build_model(cfg)
    batch = images_of(args.batch, *args.size, cfg.MODEL.ROI_HEADS.NUM_CLASSES)

    def step() -> None:
        with EventStorage(0), torch.autocast("cpu", torch.bfloat16, enabled=cfg.SOLVER.AMP.ENABLED):
            sum(model(batch).values()).backward()
        model.zero_grad()

    def inference() -> None:
        with torch.no_grad():
            model(batch)

    rows = []
    for name, compute in (("step", step), ("inference", inference)):
        model.train(name == "step")
        seconds: dict[str, list[float]] = {side: [] for side in SIDES}
        for _, side, counts in turns(list(SIDES), args.rounds, 1):
            with as_side(model, side):
                elapsed = time_call(compute, "cpu")
            if counts:
                seconds[side].append(elapsed)
        medians = {side: statistics.median(values) for side, values in seconds.items()}
        for side, value in medians.items():
            with as_side(model, side):
                memory = peak_memory(compute, "cpu")
            row = {"what": name, "side": side, "ms": 1000 * value, "ratio": value / medians["plain"], "mb": memory}
            rows.append(row)
    print(tabulate(rows, headers="keys", floatfmt=".3g"))
    if args.output:
        machine = describe_machine("cpu", torch.bfloat16 if cfg.SOLVER.AMP.ENABLED else torch.float32)
        write_json(args.output, {"machine": machine, "arguments": vars(args) | {"output": ""}, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
