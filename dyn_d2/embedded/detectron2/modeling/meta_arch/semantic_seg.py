"""Semantic segmentation: the meta-architecture, and the head of Panoptic FPN (Kirillov et al., 2019, Sec. 3.1)."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from fvcore.nn import weight_init
from torch import nn
from torch.nn import functional as F

from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.structures import ImageList
from detectron2.utils.registry import Registry

from ..backbone import Backbone
from ..postprocessing import sem_seg_postprocess
from .build import META_ARCH_REGISTRY
from .image_model import ImageModel, image_model_config, output_size

SEM_SEG_HEADS_REGISTRY = Registry("SEM_SEG_HEADS")
SEM_SEG_HEADS_REGISTRY.__doc__ = """
Semantic segmentation heads, chosen by MODEL.SEM_SEG_HEAD.NAME. Called with (cfg, {feature name: ShapeSpec}); the module
that comes back maps (features, targets or None) to (scores, losses) and has the attribute ``ignore_value``.
"""


def build_sem_seg_head(cfg, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """The head that MODEL.SEM_SEG_HEAD.NAME names, for backbone features of the given shapes."""
    return SEM_SEG_HEADS_REGISTRY.get(cfg.MODEL.SEM_SEG_HEAD.NAME)(cfg, input_shape)


@META_ARCH_REGISTRY.register()
class SemanticSegmentor(ImageModel):
    """A backbone and a semantic segmentation head; other arguments as in :class:`ImageModel`."""

    @configurable
    def __init__(
        self, *, backbone: Backbone, sem_seg_head: nn.Module, pixel_mean: Sequence[float], pixel_std: Sequence[float]
    ):
        super().__init__(backbone, pixel_mean, pixel_std)
        self.sem_seg_head = sem_seg_head

    @classmethod
    def from_config(cls, cfg):
        args = image_model_config(cfg)
        return {**args, "sem_seg_head": build_sem_seg_head(cfg, args["backbone"].output_shape())}

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, torch.Tensor] | list[dict[str, torch.Tensor]]:
        """
        Args:
            batched_inputs: one dict an image: "image", a (C, H, W) tensor; in training "sem_seg", an (H, W) int64 class
                map; "height" and "width", the size that the result is wanted in.

        Returns:
            In training, a dict of losses. Otherwise one dict an image, whose "sem_seg" are (K, height, width) logits.
        """
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        targets = self.gathered(batched_inputs, "sem_seg")
        if targets is not None:  # the padding of a target is a region to ignore
            padding = self.backbone.size_divisibility, self.sem_seg_head.ignore_value, self.backbone.padding_constraints
            targets = ImageList.from_tensors(targets, *padding).tensor
        scores, losses = self.sem_seg_head(features, targets)
        if self.training:
            return losses
        return [
            {"sem_seg": sem_seg_postprocess(score, size, *output_size(inputs, size))}
            for score, inputs, size in zip(scores, batched_inputs, images.image_sizes, strict=True)
        ]


@SEM_SEG_HEADS_REGISTRY.register()
class SemSegFPNHead(nn.Module):
    """Each pyramid level passes 3x3 convolutions, each followed by 2x bilinear upsampling until the common stride is
    reached; the levels are added, and a 1x1 convolution classifies each position.

    Args:
        input_shape: channels and stride of each level.
        num_classes: K.
        conv_dims: channels of the convolutions in between.
        common_stride: stride at which the levels are added; the logits are upsampled by this factor.
        loss_weight: factor of the loss.
        norm: normalisation after each 3x3 convolution, see :func:`detectron2.layers.get_norm`.
        ignore_value: label of pixels that do not count in the loss.

    Raises:
        ValueError: no level is given.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        num_classes: int,
        conv_dims: int,
        common_stride: int,
        loss_weight: float = 1.0,
        norm: str | Callable | None = None,
        ignore_value: int = -1,
    ):
        super().__init__()
        if not input_shape:
            raise ValueError("SemSegFPNHead has no input: MODEL.SEM_SEG_HEAD.IN_FEATURES names no backbone feature.")
        self.in_features = sorted(input_shape, key=lambda name: input_shape[name].stride)
        self.common_stride = common_stride
        self.loss_weight = loss_weight
        self.ignore_value = ignore_value
        self.scale_heads = []  # the same modules are registered by the name of their level
        for name in self.in_features:
            self.scale_heads.append(self._scale_head(input_shape[name], conv_dims, norm))
            self.add_module(name, self.scale_heads[-1])
        self.predictor = Conv2d(conv_dims, num_classes, kernel_size=1)
        weight_init.c2_msra_fill(self.predictor)

    def _scale_head(self, shape: ShapeSpec, conv_dims: int, norm) -> nn.Sequential:
        doublings = (shape.stride // self.common_stride).bit_length() - 1  # log2 of their ratio; -1 for a finer level
        layers = []
        for k in range(max(1, doublings)):
            channels = shape.channels if k == 0 else conv_dims
            kind = {"bias": not norm, "norm": get_norm(norm, conv_dims), "activation": F.relu}
            conv = Conv2d(channels, conv_dims, kernel_size=3, padding=1, **kind)
            weight_init.c2_msra_fill(conv)
            layers.append(conv)
            if shape.stride != self.common_stride:
                layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
        return nn.Sequential(*layers)

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": {name: shape for name, shape in input_shape.items() if name in head.IN_FEATURES},
            "num_classes": head.NUM_CLASSES,
            "conv_dims": head.CONVS_DIM,
            "common_stride": head.COMMON_STRIDE,
            "loss_weight": head.LOSS_WEIGHT,
            "norm": head.NORM,
            "ignore_value": head.IGNORE_VALUE,
        }

    def forward(
        self, features: dict[str, torch.Tensor], targets: torch.Tensor | None = None
    ) -> tuple[torch.Tensor | None, dict[str, torch.Tensor]]:
        """In training (None, losses) for the (N, H, W) class map ``targets``; otherwise ((N, K, H, W) logits, {})."""
        logits = self.layers(features)
        if not self.training:
            return self._upsampled(logits), {}
        if targets is None:
            raise ValueError("Training a semantic segmentation head needs 'sem_seg' in every input.")
        return None, self.losses(logits, targets)

    def layers(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """(N, K, H / common_stride, W / common_stride) logits."""
        scaled = (head(features[name]) for name, head in zip(self.in_features, self.scale_heads, strict=True))
        return self.predictor(functools.reduce(torch.add, scaled))

    def losses(self, predictions: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        """Mean cross-entropy over the pixels of ``targets`` that are not ``ignore_value``, at full resolution.

        It is 0 where every pixel is ignored: a mean over no pixels would be NaN and spoil all weights.
        """
        logits = self._upsampled(predictions.float())
        total = F.cross_entropy(logits, targets, reduction="sum", ignore_index=self.ignore_value)
        counted = (targets != self.ignore_value).sum().clamp(min=1)
        return {"loss_sem_seg": total / counted * self.loss_weight}

    def _upsampled(self, logits: torch.Tensor) -> torch.Tensor:
        return F.interpolate(logits, scale_factor=self.common_stride, mode="bilinear", align_corners=False)
