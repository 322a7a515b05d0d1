#!/usr/bin/env python3
"""Do gates in an ONNX file save time? A gated classifier against the plain one in onnxruntime, side by side.

    python benchmarks/export.py                                        # ResNet-18 at 224 px, half of the blocks open
    python benchmarks/export.py --depth 50 --rounds 40 --output export.json

Both are exported by dyn_d2.export with the same weights; in the gated file each block is an If. Its gates are real and
computed (MODEL.POLICY convnet_aig with random weights); their biases are set so that each of them is open for the given
share of made-up images, so that every image takes a route of its own. In each round both files see the same image, one
after another in alternating order, one image at a time. Printed are

    FLOPs     multiply-adds of the gated network, gates included / of the plain one (mean of the images)
    time      the same for seconds (of each image the median of its rounds, then the mean of the images)
    realised  (1 - time) / (1 - FLOPs): the share of the saved multiply-adds that was saved on the clock
    of CPU    the same for the seconds of the processor, which other programs on the machine disturb less
    all open  seconds of the gated file where every gate is open / of the plain one: what an If costs
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

from dyn_d2.config import add_dyn_d2_config
from dyn_d2.export import export_onnx
from dyn_d2.export.compare import trial_image
from dyn_d2.gating import recording
from dyn_d2.utils.atomic import write_json
from dyn_d2.utils.measure import describe_machine, realised, time_call, turns

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

POLICY = "convnet_aig"


def config(backbone: str, depth: int) -> CfgNode:
    """An image classifier with ten classes."""
    cfg = get_cfg()
    add_dyn_d2_config(cfg)
    keys = {
        "MODEL.DEVICE": "cpu",
        "MODEL.META_ARCHITECTURE": "ImageClassifier",
        "MODEL.IMAGE_CLASSIFIER.NUM_CLASSES": 10,
        "MODEL.BACKBONE.NAME": backbone,
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.RESNETS.DEPTH": depth,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64 if depth < 50 else 256,
        "MODEL.RESNETS.NORM": "BN",
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.RESNETS.OUT_FEATURES": ["res5"],
        "MODEL.POLICY.NAME": POLICY,
        "MODEL.PIXEL_STD": [60.0, 60.0, 60.0],
    }
    cfg.merge_from_list([part for pair in keys.items() for part in pair])
    return cfg


def build(depth: int) -> tuple[nn.Module, nn.Module]:
    """The gated network and the plain one with the same weights."""
    torch.manual_seed(0)
    gated = build_model(config("build_gated_resnet_backbone", depth)).eval()
    plain = build_model(config("build_resnet_backbone", depth)).eval()
    plain.load_state_dict({name: value for name, value in gated.state_dict().items() if ".policy." not in name})
    return gated, plain


@torch.no_grad()
def set_share(gated: Any, images: list[Tensor], share: float) -> None:
    """Have each gate open for that share of the images; which ones depends on what is in them."""
    for number, gate in enumerate(gated.backbone.policy.gates):
        nn.init.normal_(gate.scores.weight)
        scores = []
        for image in images:
            with recording() as trace:
                gated.backbone((image[None] - gated.pixel_mean) / gated.pixel_std)
            prob = trace.steps[number].decision.prob
            assert prob is not None
            scores.append(float(torch.logit(prob, eps=1e-6)))
        between = statistics.quantiles(scores, n=100)[min(max(round(100 * (1 - share)), 1), 99) - 1]
        gate.scores.bias[1] -= between


@torch.no_grad()
def flops_share(gated: Any, image: Tensor) -> float:
    """Executed multiply-adds of an image, gates included, as a share of the plain network's."""
    route = gated([{"image": image}])[0]["route"]
    return route.executed / route.dense


def measure(depth: int, size: int, share: float, images: int, rounds: int, warm_up: int = 3) -> dict[str, Any]:
    """The numbers of the table, and the seconds of each round."""
    gated, plain = build(depth)
    made = [_varied(trial_image(3, (size, size)), number) for number in range(images)]
    set_share(gated, made, share)
    opened = copy.deepcopy(gated)
    for gate in opened.backbone.policy.gates:  # type: ignore[union-attr]
        nn.init.constant_(gate.scores.bias[1:], 1e4)
    networks = {"plain": plain, "gated": gated, "all open": opened}
    with tempfile.TemporaryDirectory() as folder:
        run = {name: _runner(name, network, depth, size, Path(folder)) for name, network in networks.items()}
        seconds: dict[str, list[float]] = {name: [] for name in networks}
        busy: dict[str, list[float]] = {name: [] for name in networks}
        for number, name, counts in turns(list(networks), rounds, warm_up):
            before = time.process_time()
            elapsed = time_call(lambda name=name, image=made[number % images]: run[name](image), "cpu")
            if counts:
                seconds[name].append(elapsed)
                busy[name].append(time.process_time() - before)
    medians = {name: mean_of_images(values, images) for name, values in seconds.items()}
    of_cpu = {name: mean_of_images(values, images) for name, values in busy.items()}
    shares = [flops_share(gated, image) for image in made]
    flops = statistics.mean(shares)
    time_ratio = medians["gated"] / medians["plain"]
    return {
        "depth": depth,
        "size": size,
        "share": share,
        "flops_ratio": flops,
        "flops_of_images": shares,
        "time_ratio": time_ratio,
        "realised": realised(time_ratio, flops),
        "realised_of_cpu": realised(of_cpu["gated"] / of_cpu["plain"], flops),
        "all_open_ratio": medians["all open"] / medians["plain"],
        "all_open_ratio_of_cpu": of_cpu["all open"] / of_cpu["plain"],
        "seconds": medians,
        "cpu_seconds": of_cpu,
        "rounds": seconds,
        "cpu_rounds": busy,
    }


def mean_of_images(values: list[float], images: int) -> float:
    """The mean of the images' medians; rounds go through the images in turns."""
    return statistics.mean(statistics.median(values[image::images]) for image in range(min(images, len(values))))


def _varied(image: Tensor, number: int) -> Tensor:
    """Another image for each number."""
    generator = torch.Generator().manual_seed(number)
    return (image * torch.rand(3, 1, 1, generator=generator) * 2).clamp(0, 255).roll(17 * number, 2)


def _runner(name: str, network: nn.Module, depth: int, size: int, folder: Path) -> Callable[[Tensor], Any]:
    import onnxruntime

    file = folder / f"{name}.onnx"
    backbone = "build_resnet_backbone" if name == "plain" else "build_gated_resnet_backbone"
    export_onnx(config(backbone, depth), network, file, size=(size, size))  # compared with the network, too
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"image": image[None].numpy()})


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=18, help="of the ResNet")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--share", type=float, default=0.5, help="of the images for which a gate is open")
    parser.add_argument("--images", type=int, default=8, help="made-up images")
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0: torch's choice")
    parser.add_argument("--output", default="", help="json file for the numbers")
    args = parser.parse_args(argv)
    if min(args.size, args.images - 1) < 1 or args.rounds < args.images or not 0 < args.share < 1:
        parser.error("--size is at least 1, --images at least 2, --rounds as many or more, and --share between 0 and 1")
    if args.threads:
        torch.set_num_threads(args.threads)
    numbers = measure(args.depth, args.size, args.share, args.images, args.rounds)
    milliseconds = [f"{1000 * numbers['seconds'][name]:.1f}" for name in ("plain", "gated")]
    keys = ("flops_ratio", "time_ratio", "realised", "realised_of_cpu", "all_open_ratio")
    ratios = [f"{numbers[key]:.2f}" for key in keys]
    headers = ["plain ms", "gated ms", "FLOPs", "time", "realised", "of CPU", "all open"]
    print(tabulate([[*milliseconds, *ratios]], headers=headers, disable_numparse=True))
    machine = describe_machine("cpu", torch.float32)
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    if args.output:
        write_json(Path(args.output), {"machine": machine, "results": [numbers]})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
