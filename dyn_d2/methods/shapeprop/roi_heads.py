"""ShapeProp: what boxes teach about shapes, propagated to whole objects by what few masks teach (Zhou et al., CVPR
2020).

    region features -> saliency S, learnt from labels of boxes     (multiple-instance learning, Eq. 8.1 to 8.3)
                    -> propagation weights W
    M = S of the region's class -> latent encoding -> message passing with W (Eq. 8.4) -> decoding -> shape activation
    [region features, encoding of the shape activation] -> class-agnostic mask head

Where Wang 2020 and the published code differ, this follows the code: Eq. 8.3 has no finite minimum, so the bags are
classified by a soft-max over all classes and background; the mask head gets an encoding of the activation.

Shape shorthand: R regions of the whole batch, C channels of their features, K foreground classes (label K is
background), h x w their resolution, L latent channels, r window.
"""

from typing import Any, NamedTuple

import torch
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F

from dyn_d2.modeling.roi_heads import DynROIHeads, MaskROIHeads
from dyn_d2.modeling.roi_heads.partial_mask import select_masked
from dyn_d2.modeling.shapes import channels_of
from dyn_d2.ops.message_passing import message_passing

from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec, cat, get_norm
from detectron2.modeling import ROI_HEADS_REGISTRY, build_mask_head
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import StandardROIHeads, select_foreground_proposals
from detectron2.structures import Instances

EPSILON = 1e-5
INTEGRATIONS = ("encoding", "activation", "none")
NORMALIZATIONS = ("random_walk", "symmetric")


def bag_scores(saliency: Tensor) -> Tensor:
    """(R, K + 1) scores of bags (regions) from (R, K + 1, h, w) scores of their pixels: sigma of Eq. 8.3, the mean."""
    return saliency.float().mean(dim=(2, 3))


def saliency_loss(saliency: Tensor, labels: Tensor) -> Tensor:
    """Multiple-instance loss: mean cross-entropy of the bag scores.

    The label of a region says for which class it is a positive bag (IoU with a box of the class of at least 0.5,
    Eq. 8.2, which is how ROI heads label proposals); for all others it is a negative one. It is Eq. 8.3 with a bound.

    Args:
        saliency: (R, K + 1, h, w).
        labels: (R,), 0 to K; -1 is ignored.

    Returns:
        A scalar; 0 with a gradient path where there is no region.
    """
    total = F.cross_entropy(bag_scores(saliency), labels, ignore_index=-1, reduction="sum")
    return total / (labels >= 0).sum().clamp(min=1)


def saliency_of(saliency: Tensor, labels: Tensor) -> Tensor:
    """(R, 1, h, w): the map M of each region's class from (R, K + 1, h, w), or the only one of (R, 1, h, w)."""
    if saliency.shape[1] == 1:
        return saliency
    return saliency[torch.arange(len(saliency), device=saliency.device), labels][:, None]


def shape_loss(shape: Tensor, instances: list[Instances]) -> Tensor:
    """Mean binary cross-entropy of shape activations (8.3, "reconstruction loss").

    Args:
        shape: (R, 1, h, h) logits.
        instances: the regions of each image, R together, all with masks: proposal_boxes, gt_masks.

    Returns:
        A scalar; 0 with a gradient path where there is no region.
    """
    logits = shape[:, 0].float()
    truth = [x.gt_masks.crop_and_resize(x.proposal_boxes.tensor, shape.shape[-1]) for x in instances if len(x)]
    if not truth:
        return logits.sum() * 0
    return F.binary_cross_entropy_with_logits(logits, cat(truth).to(logits))


def normalized_activation(shape: Tensor) -> Tensor:
    """(R, 1, h, w) logits -> [0, 1): negative values cut off, the largest of each region about 1."""
    positive = shape.float().relu()
    return (positive / (positive.amax(dim=(2, 3), keepdim=True) + EPSILON)).to(shape.dtype)


def _conv(inputs: int, outputs: int, kernel: int = 3, norm: str = "", activation: nn.Module | None = None) -> Conv2d:
    layer = Conv2d(
        inputs,
        outputs,
        kernel,
        padding=kernel // 2,
        bias=not norm,
        norm=get_norm(norm, outputs),
        activation=activation,
    )
    # As published: by fan-out where a convolution looks at neighbours, uniformly by fan-in where it looks at one place.
    (weight_init.c2_xavier_fill if kernel == 1 else weight_init.c2_msra_fill)(layer)
    return layer


def _convs(widths: list[int], norm: str = "", last_relu: bool = True) -> nn.Sequential:
    """3x3 convolutions between these widths, with ReLU between them."""
    last = len(widths) - 2
    return nn.Sequential(
        *(
            _conv(widths[i], widths[i + 1], norm=norm, activation=nn.ReLU() if last_relu or i < last else None)
            for i in range(last + 1)
        )
    )


class SaliencyPropagation(nn.Module):
    """From a saliency map to the shape activation, in the same way for all classes."""

    def __init__(
        self,
        channels: int,
        *,
        latent_channels: int = 24,
        window: int = 3,
        steps: int = 0,
        normalize: str = "random_walk",
        channel_agnostic: bool = False,
    ) -> None:
        """
        Args:
            channels: of the features that the propagation weights are predicted from.
            latent_channels: L.
            window: r, odd.
            steps: T of Eq. 8.4; 0 for max(h, w), after which a message can have gone anywhere.
            normalize: of the weights, see :func:`dyn_d2.ops.message_passing.message_passing`.
            channel_agnostic: the same weights for all latent channels.
        """
        super().__init__()
        if window < 1 or window % 2 == 0:
            raise ValueError(f"MODEL.SHAPE_PROP.WINDOW is {window}: it has to be odd.")
        if latent_channels < 1 or steps < 0:
            raise ValueError(
                f"MODEL.SHAPE_PROP.LATENT_CHANNELS is {latent_channels} and STEPS {steps}: LATENT_CHANNELS has to be "
                "positive, STEPS too, or 0 for the side of a region."
            )
        if normalize not in NORMALIZATIONS:
            raise ValueError(f"MODEL.SHAPE_PROP.NORMALIZE is {normalize!r}: use one of {list(NORMALIZATIONS)}.")
        self.window, self.steps, self.normalize = window, steps, normalize
        self.weights = _conv(channels, (1 if channel_agnostic else latent_channels) * window**2, kernel=1)
        self.encoder = _convs([1, *[latent_channels] * 3], last_relu=False)
        self.decoder = _convs([*[latent_channels] * 3, 1], last_relu=False)

    def propagation_weights(self, features: Tensor) -> Tensor:
        """(R, C, h, w) -> (R, L or 1, r * r, h, w) within (0, 1), not normalised."""
        return self.weights(features).sigmoid().unflatten(1, (-1, self.window**2))

    def forward(self, saliency: Tensor, features: Tensor) -> Tensor:
        """
        Args:
            saliency: (R, 1, h, w), M.
            features: (R, C, h, w).

        Returns:
            (R, 1, h, w) logits of the shape activation.
        """
        weights = self.propagation_weights(features)
        latent = message_passing(self.encoder(saliency), weights, self.steps or None, normalize=self.normalize)
        return self.decoder(latent)


class ShapeMaps(NamedTuple):
    """What ShapeProp finds in each region, both (R, 1, h, w): saliency M, and logits of the shape activation."""

    saliency: Tensor
    shape: Tensor


class ShapeProp(nn.Module):
    """The layers between region features and the mask head.

    Attributes:
        extra_channels: how many channels :meth:`fuse` adds to the region features.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_classes: int,
        mil: bool = True,
        propagation: bool = True,
        integration: str = "encoding",
        share_features: bool = False,
        num_conv: int = 4,
        conv_dim: int = 256,
        norm: str = "",
        **propagation_options: Any,
    ) -> None:
        """
        Args:
            channels: C.
            num_classes: K.
            mil: saliency is learnt from boxes, one map for each class; otherwise a single map that only masks teach.
            propagation: otherwise the saliency itself serves as shape activation.
            integration: what the mask head gets beside the region features: "encoding" (convolutions of the normalised
                activation, the published code), "activation" (the normalised activation, as Wang 2020 has it) or
                "none" (the losses only).
            share_features: saliency and propagation weights are predicted from the same convolutions.
            num_conv, conv_dim, norm: depth, width and normalisation of each stack of convolutions.
            propagation_options: of :class:`SaliencyPropagation`.
        """
        super().__init__()
        if integration not in INTEGRATIONS:
            raise ValueError(f"MODEL.SHAPE_PROP.INTEGRATION is {integration!r}: use one of {list(INTEGRATIONS)}.")
        if integration == "none" and not (mil or propagation):
            raise ValueError("MODEL.SHAPE_PROP: without MIL, PROPAGATION and INTEGRATION nothing is left of ShapeProp.")
        if num_conv < 1:
            raise ValueError(f"MODEL.SHAPE_PROP.NUM_CONV is {num_conv}: it has to be at least 1.")
        self.mil, self.integration = mil, integration
        stack = [channels, *[conv_dim] * num_conv]
        self.saliency_features = _convs(stack, norm)
        self.saliency = _conv(conv_dim, num_classes + 1 if mil else 1, kernel=1)
        self.propagation = SaliencyPropagation(conv_dim, **propagation_options) if propagation else None
        self.propagation_features = _convs(stack, norm) if propagation and not share_features else None
        self.encoding = None
        if integration == "encoding":
            self.encoding = _convs([1, *[conv_dim] * num_conv], norm, last_relu=False)
        self.extra_channels = {"encoding": conv_dim, "activation": 1, "none": 0}[integration]

    def activate(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """(R, C, h, w) -> saliency of each class, (R, K + 1, h, w) or (R, 1, h, w), and the features behind it."""
        features = self.saliency_features(regions)
        return self.saliency(features), features

    def propagate(self, saliency: Tensor, regions: Tensor, features: Tensor) -> Tensor:
        """Shape activation, (R, 1, h, w) logits.

        Args:
            saliency: (R, 1, h, w), M.
            regions: (R, C, h, w).
            features: of ``regions``, from :meth:`activate`.
        """
        if self.propagation is None:
            return saliency
        return self.propagation(
            saliency, features if self.propagation_features is None else self.propagation_features(regions)
        )

    def fuse(self, regions: Tensor, shape: Tensor) -> Tensor:
        """Input of the mask head: (R, C + extra_channels, h, w)."""
        if self.integration == "none":
            return regions
        activation = normalized_activation(shape)
        extra = activation if self.encoding is None else self.encoding(activation)
        return torch.cat([regions, extra.to(regions.dtype)], dim=1)

    def forward(self, regions: Tensor, labels: Tensor) -> ShapeMaps:
        """Maps of (R, C, h, w) regions for their (R,) classes."""
        scores, features = self.activate(regions)
        saliency = saliency_of(scores, labels)
        return ShapeMaps(saliency, self.propagate(saliency, regions, features))


class ShapePropMasks(StandardROIHeads):
    """Goes before ROI heads like StandardROIHeads in the list of bases, and puts ShapeProp before their mask head.

    In training, saliency is learnt from all sampled proposals, whether their object has a mask or not; shape
    activation and mask from the foreground proposals whose object has one. Losses: ``loss_saliency``, ``loss_shape``,
    ``loss_mask``.
    """

    # Not None where masks are on, without which none of the methods below uses them.
    mask_in_features: list[str]
    mask_pooler: ROIPooler
    mask_head: nn.Module

    @configurable
    def __init__(
        self,
        *,
        shape_prop: ShapeProp | None = None,
        saliency_weight: float = 1.0,
        shape_weight: float = 1.0,
        output_maps: bool = False,
        **heads: Any,
    ) -> None:
        """
        Args:
            shape_prop: None for a model without masks.
            saliency_weight, shape_weight: factors of the losses.
            output_maps: detections get ``pred_saliency`` and ``pred_shape``, (Ri, 1, h, w) logits in their boxes.
            heads: arguments of the ROI heads.
        """
        super().__init__(**heads)
        self.shape_prop = shape_prop
        self.saliency_weight, self.shape_weight, self.output_maps = saliency_weight, shape_weight, output_maps

    @classmethod
    def _init_mask_head(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        if not cfg.MODEL.MASK_ON:
            return {}
        if not cfg.MODEL.ROI_MASK_HEAD.POOLER_TYPE:
            raise ValueError(f"{cls.__name__} pools regions: MODEL.ROI_MASK_HEAD.POOLER_TYPE must not be empty.")
        arguments = super()._init_mask_head(cfg, input_shape)
        channels = channels_of(input_shape[arguments["mask_in_features"][0]])
        side, keys = cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION, cfg.MODEL.SHAPE_PROP
        shape_prop = ShapeProp(
            channels,
            num_classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            mil=keys.MIL,
            propagation=keys.PROPAGATION,
            integration=keys.INTEGRATION,
            share_features=keys.SHARE_FEATURES,
            num_conv=keys.NUM_CONV,
            conv_dim=keys.CONV_DIM,
            norm=keys.NORM,
            latent_channels=keys.LATENT_CHANNELS,
            window=keys.WINDOW,
            steps=keys.STEPS,
            normalize=keys.NORMALIZE,
            channel_agnostic=keys.CHANNEL_AGNOSTIC,
        )
        fused = ShapeSpec(channels=channels + shape_prop.extra_channels, height=side, width=side)
        return {
            **arguments,
            "mask_head": build_mask_head(cfg, fused),
            "shape_prop": shape_prop,
            "saliency_weight": keys.SALIENCY_WEIGHT,
            "shape_weight": keys.SHAPE_WEIGHT,
            "output_maps": keys.OUTPUT_MAPS,
        }

    def _forward_mask(
        self, features: dict[str, Tensor], instances: list[Instances]
    ) -> dict[str, Tensor] | list[Instances]:
        if not self.mask_on:
            return super()._forward_mask(features, instances)
        return self._mask_losses(features, instances) if self.training else self._predict_masks(features, instances)

    @property
    def _layers(self) -> ShapeProp:
        assert self.shape_prop is not None  # built with the mask head
        return self.shape_prop

    def _pool(self, features: dict[str, Tensor], boxes: list) -> Tensor:
        return self.mask_pooler([features[name] for name in self.mask_in_features], boxes)

    def _mask_losses(self, features: dict[str, Tensor], proposals: list[Instances]) -> dict[str, Tensor]:
        """``proposals``: all that were sampled, foreground and background."""
        foreground, rows = select_foreground_proposals(proposals, self.num_classes)
        masked, with_mask = select_masked(foreground)
        chosen = cat(rows).nonzero()[:, 0][with_mask]
        labels = cat([x.gt_classes for x in proposals])
        regions = self._pool(features, [x.proposal_boxes for x in proposals])
        losses: dict[str, Tensor] = {}
        layers = self._layers
        if layers.mil:
            scores, appearance = layers.activate(regions)
            losses["loss_saliency"] = self.saliency_weight * saliency_loss(scores, labels)
            scores, appearance, regions = scores[chosen], appearance[chosen], regions[chosen]
        else:
            regions = regions[chosen]
            scores, appearance = layers.activate(regions)
        shape = layers.propagate(saliency_of(scores, labels[chosen]), regions, appearance)
        if layers.propagation is not None:
            losses["loss_shape"] = self.shape_weight * shape_loss(shape, masked)
        return {**losses, **self.mask_head(layers.fuse(regions, shape), masked)}

    def _predict_masks(self, features: dict[str, Tensor], detections: list[Instances]) -> list[Instances]:
        regions = self._pool(features, [x.pred_boxes for x in detections])
        layers = self._layers
        if layers.integration == "none" and not self.output_maps:
            return self.mask_head(regions, detections)
        maps = layers(regions, cat([x.pred_classes for x in detections]))
        detections = self.mask_head(layers.fuse(regions, maps.shape), detections)
        if self.output_maps:
            sizes = [len(x) for x in detections]
            for found, saliency, shape in zip(detections, *(part.split(sizes) for part in maps), strict=True):
                found.pred_saliency, found.pred_shape = saliency, shape
        return detections


@ROI_HEADS_REGISTRY.register()
class ShapePropROIHeads(ShapePropMasks, DynROIHeads):
    """DynROIHeads (any classifier) with ShapeProp before the mask head."""


@ROI_HEADS_REGISTRY.register()
class ShapePropMaskROIHeads(ShapePropMasks, MaskROIHeads):
    """MaskROIHeads with ShapeProp before the mask head."""
