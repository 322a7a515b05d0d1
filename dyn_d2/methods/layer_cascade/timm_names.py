"""Weights of Inception-ResNet-v2, as timm and others publish them, under the names of our parameters."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

_SETTINGS = {
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": [127.5, 127.5, 127.5],
    "MODEL.PIXEL_STD": [127.5, 127.5, 127.5],
    "MODEL.INCEPTION_RESNET.BLOCKS": [10, 20, 10],
}


def settings(weights: Mapping[str, Any]) -> dict[str, Any]:
    """What this network was trained with, as keys of the config."""
    return dict(_SETTINGS)


def from_timm(weights: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Renamed weights: ``repeat.0.branch0.conv.weight`` -> ``repeat.0.branch0.0.weight``, ``.bn.`` -> ``.norm.``.

    Counters of batches are left out. With fewer blocks the first ones of each kind are taken.

    Returns:
        None where the names are those of another network.
    """
    if not {"conv2d_1a.conv.weight", "mixed_6a.branch0.conv.weight", "block8.conv2d.weight"} <= weights.keys():
        return None
    return {_name(name): value for name, value in weights.items() if not name.endswith("num_batches_tracked")}


def _name(name: str) -> str:
    name = name.replace("mixed_5b.branch3.1.", "mixed_5b.branch3.0.")  # the pooling before it is a layer there
    name = re.sub(r"\.branch(\d)\.(conv|bn)\.", r".branch\1.0.\2.", name)  # branches of a single convolution
    return name.replace(".conv.", ".").replace(".bn.", ".norm.")
