"""Weights of torchvision's networks under the names that the same parameters have in gated backbones."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

_PIXELS = {  # what these networks were trained with; Detectron2's defaults are those of other weights
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
}
_RESNET = (
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"^fc\.", "linear."),
)
# Blocks in each stage of MobileNetV2, a stage for each power of two in the stride.
_MOBILENET_BLOCKS = (1, 2, 3, 7, 4)


def from_torchvision(weights: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Renamed weights of a ResNet (``layer1.0.bn1.weight`` -> ``res2.0.conv1.norm.weight``) of MobileNetV2, or of a
    VGG (whose names are ours).

    Counters of batches are left out; the last layer is named ``linear``.

    Returns:
        None where the names are those of another network.
    """
    if {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer4.0.conv1.weight"} <= weights.keys():
        rename = _resnet_name
    elif {"features.0.0.weight", "features.1.conv.0.0.weight", "features.18.1.running_mean"} <= weights.keys():
        rename = _mobilenet_name
    elif {"features.0.weight", "features.28.weight", "classifier.6.weight"} <= weights.keys():
        rename = _same_name
    else:
        return None
    return {rename(name, value): value for name, value in weights.items() if not name.endswith("num_batches_tracked")}


def settings(weights: Mapping[str, Any]) -> dict[str, Any]:
    """What a network of torchvision was trained with, as keys of the config: pixels, and in a bottleneck block the
    stride in its 3x3 convolution.

    Args:
        weights: under torchvision's names, or under Detectron2's.
    """
    bottleneck = any(name.startswith(("layer1.0.conv3.", "res2.0.conv3.")) for name in weights)
    return {**_PIXELS, "MODEL.RESNETS.STRIDE_IN_1X1": False} if bottleneck else dict(_PIXELS)


def _resnet_name(name: str, value: Tensor) -> str:
    name = re.sub(r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}.", name)
    for pattern, replacement in _RESNET:
        name = re.sub(pattern, replacement, name)
    return name


def _same_name(name: str, value: Tensor) -> str:
    return name


def _mobilenet_name(name: str, value: Tensor) -> str:
    if not name.startswith("features."):
        return name.replace("classifier.1.", "linear.")
    number, rest = name.removeprefix("features.").split(".", 1)
    *path, parameter = rest.removeprefix("conv.").split(".")
    if len(path) == 2 or not rest.startswith("conv."):  # "conv.1.0.weight", "0.weight": pairs of convolution and norm
        layer, norm = int(path[0]) + 1 if len(path) == 2 else 1, path[-1] == "1"
    else:  # "conv.2.weight", "conv.3.weight": the last pair of a block is not nested
        norm = value.dim() == 1
        layer = int(path[0]) + (0 if norm else 1)
    return f"{_mobilenet_block(int(number))}.groups.0.conv{layer}.{'norm.' if norm else ''}{parameter}"


def _mobilenet_block(number: int) -> str:
    if number == 0:
        return "stem"
    for stage, count in enumerate(_MOBILENET_BLOCKS, 1):
        if number <= count:
            return f"stage{stage}.{number - 1}"
        number -= count
    return "last.0"
