"""Backbones from timm: any of its models that gives feature maps, alone or under a feature pyramid."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dyn_d2.config.applied import notices_keys
from dyn_d2.modeling.shapes import channels_of

from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN, Backbone

from .fpn import convolved_levels, pooled_level
from .timm_folding import fold_norms
from .timm_models import TimmModel, build_timm_model, check_features
from .timm_norms import convert_norms, freeze_norms

logger = logging.getLogger(__name__)

OWN_WEIGHTS = "has_own_weights"  # attribute of a module whose weights come from elsewhere than MODEL.WEIGHTS


class OwnPixels(nn.Module):
    """Images as a meta-architecture of Detectron2 normalises them -> images as the model of timm wants them.

    Attributes:
        reverse: whether channels come as blue, green, red; timm wants red first.
        scale, shift: (C, 1, 1), what each channel is multiplied by and then gets added; None where nothing changes.
    """

    scale: Tensor | None
    shift: Tensor | None

    def __init__(
        self,
        reverse: bool,
        given: tuple[Sequence[float], Sequence[float]],
        own: tuple[Sequence[float], Sequence[float]],
    ) -> None:
        """
        Args:
            reverse: see above.
            given: mean and standard deviation that the meta-architecture uses, in the order of its channels.
            own: those that the model wants, in the same order.
        """
        super().__init__()
        self.reverse = reverse
        mean, std, own_mean, own_std = (torch.tensor(values, dtype=torch.float64) for values in (*given, *own))
        scale, shift = std / own_std, (mean - own_mean) / own_std
        same = bool((scale == 1).all() and (shift == 0).all())
        for name, value in (("scale", scale), ("shift", shift)):
            self.register_buffer(name, None if same else value.float().reshape(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        if self.scale is not None and self.shift is not None:
            images = images * self.scale.to(images.dtype) + self.shift.to(images.dtype)
        return images.flip(1) if self.reverse else images


def _listed(values: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in values) + "]"


def own_pixels(cfg: CfgNode, model: TimmModel) -> OwnPixels:
    """What makes the model see what it was trained on: its own mean and standard deviation, unless the config has
    other values for MODEL.PIXEL_MEAN or PIXEL_STD than Detectron2's defaults; then those. The log says which.

    Raises:
        ValueError: INPUT.FORMAT is neither RGB nor BGR.
    """
    mean, std = list(cfg.MODEL.PIXEL_MEAN), list(cfg.MODEL.PIXEL_STD)
    if len(mean) != 3:
        return OwnPixels(False, (mean, std), (mean, std))
    if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
        raise ValueError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}: models of timm take colours, use RGB or BGR.")
    reverse = cfg.INPUT.FORMAT == "BGR"
    default = get_cfg().MODEL
    if (mean, std) != (list(default.PIXEL_MEAN), list(default.PIXEL_STD)):
        logger.info(
            f"images of timm's {model.name} are normalised with MODEL.PIXEL_MEAN {_listed(mean)} and PIXEL_STD "
            f"{_listed(std)} in INPUT.FORMAT {cfg.INPUT.FORMAT}, as the config says; its own are mean "
            f"{_listed(model.mean)} and standard deviation {_listed(model.std)} of red, green and blue"
        )
        return OwnPixels(reverse, (mean, std), (mean, std))
    logger.info(
        f"images of timm's {model.name} are normalised with its own mean {_listed(model.mean)} and standard deviation "
        f"{_listed(model.std)} of red, green and blue: MODEL.PIXEL_MEAN and PIXEL_STD are Detectron2's defaults"
    )
    order = -1 if reverse else 1
    return OwnPixels(reverse, (mean, std), (model.mean[::order], model.std[::order]))


class TimmBackbone(Backbone):
    """A model of timm. Parameters have timm's names, after "model."

    Attributes:
        model: the module of timm.
        pixels: adapts the normalisation of images.
    """

    def __init__(
        self,
        model: TimmModel,
        out_features: Sequence[str],
        *,
        pixels: OwnPixels,
        norm: str = "FrozenBN",
        freeze_at: int = 0,
    ) -> None:
        """
        Args:
            model: see ``build_timm_model``.
            out_features: names of the features to return.
            pixels: see ``own_pixels``.
            norm: of the batch norms, one of ``timm_norms.NORMS``.
            freeze_at: 1 freezes the stem, k > 1 all that "res<k>" depends on: no gradients, batch norms as constants.

        Raises:
            ValueError: unknown features or norm.
        """
        super().__init__()
        check_features(model.name, list(model.levels), out_features, "MODEL.RESNETS.OUT_FEATURES")
        self._out_features = [name for name in model.levels if name in out_features]
        self._out_feature_channels = {name: level.channels for name, level in model.levels.items()}
        self._out_feature_strides = {name: level.stride for name, level in model.levels.items()}
        self._timm, self.pixels = model, pixels
        frozen = self._reached_by(freeze_at)
        self.model = model.module = convert_norms(model.module, norm)
        setattr(self.model, OWN_WEIGHTS, model.pretrained)  # frozen parts of it need no MODEL.WEIGHTS
        self._freeze(frozen)

    def _reached_by(self, freeze_at: int) -> set[str]:
        """Names of the parameters that the features up to "res<freeze_at>" depend on; at least the stem's."""
        if freeze_at < 1:
            return set()
        early = [name for name, level in self._timm.levels.items() if level.stride <= 1 << freeze_at]
        if not early:  # models whose first map is that of a stage
            return self._timm.stem()
        named = {name: value for name, value in self._timm.module.named_parameters() if value.requires_grad}
        with torch.enable_grad():
            features = self._timm.trial()
            total = torch.stack([features[name].sum() for name in early]).sum()
        found = torch.autograd.grad(total, list(named.values()), allow_unused=True)
        return {name for name, gradient in zip(named, found, strict=True) if gradient is not None}

    def _freeze(self, names: set[str]) -> None:
        for name, parameter in self.model.named_parameters():
            if name in names:
                parameter.requires_grad_(False)
        owners = {name.rpartition(".")[0] for name in names}
        freeze_norms(self.model, lambda name: name in owners)

    @property
    def size_divisibility(self) -> int:
        return max(level.stride for level in self._timm.levels.values())

    @property
    def padding_constraints(self) -> dict[str, int]:
        size = self._timm.size
        return {} if size is None else {"square_size": max(size)}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, C, H, W), normalised as the config says -> name -> feature map, as ``output_shape`` has them.

        Raises:
            ValueError: images of a size that the model does not take.
        """
        return self._wanted(self._timm.features(self._prepare(images)))

    def _prepare(self, images: Tensor) -> Tensor:
        size = self._timm.size
        if size is not None and tuple(images.shape[-2:]) != size:
            raise ValueError(
                f"MODEL.TIMM.NAME {self._timm.name} takes images of {size[0]} x {size[1]} only, not of "
                f"{images.shape[-2]} x {images.shape[-1]}: set INPUT.MIN_SIZE_TRAIN, MIN_SIZE_TEST, MAX_SIZE_TRAIN and "
                f"MAX_SIZE_TEST to at most {min(size)}, or choose another model."
            )
        # Channels last: a third of the time of EfficientNet-Lite0 on a CPU is saved.
        return self.pixels(images).contiguous(memory_format=torch.channels_last)

    def _wanted(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: features[name] for name in self._out_features}


@BACKBONE_REGISTRY.register()
@notices_keys
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """The model MODEL.TIMM.NAME with the features MODEL.RESNETS.OUT_FEATURES; MODEL.TIMM has the other keys.

    Layers up to "res<k>" are frozen with MODEL.BACKBONE.FREEZE_AT k, the stem with 1.

    Raises:
        ValueError, UserError, FileNotFoundError: from ``build_timm_model``.
    """
    model = build_timm_model(cfg, channels_of(input_shape), cfg.MODEL.RESNETS.OUT_FEATURES)
    backbone = TimmBackbone(model, **timm_arguments(cfg, model))
    fold_norms(model)
    return backbone


def timm_arguments(cfg: CfgNode, model: TimmModel) -> dict:
    """What ``TimmBackbone`` is made with, besides the model."""
    if cfg.MODEL.TIMM.NORM == "FrozenBN" and not cfg.MODEL.TIMM.WEIGHTS and not cfg.MODEL.WEIGHTS:
        logger.warning(
            "MODEL.TIMM.NORM is FrozenBN, but neither MODEL.TIMM.WEIGHTS nor MODEL.WEIGHTS gives statistics: to train "
            "from random numbers, set MODEL.TIMM.NORM BN."
        )
    return {
        "out_features": cfg.MODEL.RESNETS.OUT_FEATURES,
        "pixels": own_pixels(cfg, model),
        "norm": cfg.MODEL.TIMM.NORM,
        "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
    }


def _pyramid(cfg: CfgNode, input_shape: ShapeSpec, top_block) -> FPN:
    bottom_up, fpn = build_timm_backbone(cfg, input_shape), cfg.MODEL.FPN
    check_features(cfg.MODEL.TIMM.NAME, list(bottom_up.output_shape()), fpn.IN_FEATURES, "MODEL.FPN.IN_FEATURES")
    square = bottom_up.padding_constraints.get("square_size", 0)
    return FPN(
        bottom_up,
        fpn.IN_FEATURES,
        fpn.OUT_CHANNELS,
        fpn.NORM,
        top_block(bottom_up),
        fuse_type=fpn.FUSE_TYPE,
        square_pad=square,
    )


@BACKBONE_REGISTRY.register()
@notices_keys
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The pyramid of Faster and Mask R-CNN on ``build_timm_backbone``: its levels and a pooled one.

    Raises:
        ValueError: the model has no such features, or has no pyramid at all.
    """
    return _pyramid(cfg, input_shape, lambda bottom_up: pooled_level(bottom_up, cfg.MODEL.FPN.IN_FEATURES))


@BACKBONE_REGISTRY.register()
@notices_keys
def build_timm_retinanet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The pyramid of RetinaNet on ``build_timm_backbone``: P6 and P7 from its coarsest feature.

    Raises:
        ValueError: the model has no such features, or has no pyramid at all.
    """
    fpn = cfg.MODEL.FPN
    return _pyramid(cfg, input_shape, lambda bottom_up: convolved_levels(bottom_up, fpn.IN_FEATURES, fpn.OUT_CHANNELS))
