"""Mask heads (He et al., Mask R-CNN, 2017): one small square mask for each region.

Letters for shapes: R regions of the whole batch, K foreground classes (1 for a class-agnostic head), M side of a mask.
"""

from collections.abc import Callable, Sequence

import torch
from fvcore.nn import weight_init
from torch import nn
from torch.nn import functional as F

from detectron2.config import configurable
from detectron2.layers import Conv2d, ConvTranspose2d, ShapeSpec, cat, get_norm
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from detectron2.utils.registry import Registry

ROI_MASK_HEAD_REGISTRY = Registry("ROI_MASK_HEAD")
ROI_MASK_HEAD_REGISTRY.__doc__ = """
Mask heads, chosen by MODEL.ROI_MASK_HEAD.NAME. Called with (cfg, ShapeSpec of a pooled region); the module that comes
back is called with (region features, list of Instances) and returns losses in training, the Instances with "pred_masks"
otherwise.
"""


def build_mask_head(cfg, input_shape: ShapeSpec) -> nn.Module:
    """The head that MODEL.ROI_MASK_HEAD.NAME names, for regions of the given shape."""
    return ROI_MASK_HEAD_REGISTRY.get(cfg.MODEL.ROI_MASK_HEAD.NAME)(cfg, input_shape)


def _of_class(masks: torch.Tensor, classes: list[torch.Tensor]) -> torch.Tensor:
    """(R, M, M): of each region's K masks that of its class, or the only one of a class-agnostic head."""
    if masks.shape[1] == 1:
        return masks[:, 0]
    return masks[torch.arange(len(masks), device=masks.device), cat(classes).long()]


def mask_rcnn_loss(pred_mask_logits: torch.Tensor, instances: list[Instances], vis_period: int = 0) -> torch.Tensor:
    """Mean binary cross-entropy of each region's mask for its true class (Mask R-CNN, Sec. 3).

    The truth is cropped to the proposal box and resized to M x M. Accuracy and the rates of false positives and
    negatives, at probability 0.5, go to the event storage under "mask_rcnn/".

    Args:
        pred_mask_logits: (R, K, M, M).
        instances: foreground regions of each image, R together, in the order of the logits, with proposal_boxes,
            gt_classes and gt_masks.
        vis_period: every so many iterations each prediction is stored as an image beside its truth; 0 is never.

    Returns:
        A scalar; 0 with a gradient path where there are no regions.

    Raises:
        ValueError: the masks are not square, or an image with objects has no gt_masks.
    """
    side = pred_mask_logits.shape[2]
    if pred_mask_logits.shape[3] != side:
        raise ValueError(f"The mask head has to predict square masks, not {tuple(pred_mask_logits.shape[2:])}.")
    instances = [x for x in instances if len(x) > 0]
    if not instances:
        return pred_mask_logits.sum() * 0
    if not all(x.has("gt_masks") for x in instances):
        raise ValueError(
            "A mask head is trained, but a training image has objects without masks: "
            "give its annotations a 'segmentation', or set MODEL.MASK_ON to False."
        )
    device = pred_mask_logits.device
    truth = cat([x.gt_masks.crop_and_resize(x.proposal_boxes.tensor, side).to(device) for x in instances])
    logits = _of_class(pred_mask_logits, [x.gt_classes for x in instances])
    inside = truth if truth.dtype == torch.bool else truth > 0.5
    truth = truth.to(torch.float32)

    storage = get_event_storage()
    _log_mask_stats(storage, logits.detach() > 0, inside)
    if vis_period > 0 and storage.iter % vis_period == 0:
        pairs = torch.cat([logits.detach().sigmoid(), truth], dim=2)
        for k, pair in enumerate(pairs):
            storage.put_image(f"Left: mask prediction;   Right: mask GT ({k})", pair.expand(3, -1, -1))
    return F.binary_cross_entropy_with_logits(logits, truth)


def _log_mask_stats(storage, predicted: torch.Tensor, truth: torch.Tensor) -> None:
    """Both are (R, M, M) bool. The three counts cross from the GPU together, since each crossing waits for it."""
    wrong = predicted != truth
    positives, misses, mistakes = torch.stack([truth.sum(), (wrong & truth).sum(), wrong.sum()]).tolist()
    storage.put_scalar("mask_rcnn/accuracy", 1 - mistakes / max(wrong.numel(), 1))
    storage.put_scalar("mask_rcnn/false_positive", (mistakes - misses) / max(wrong.numel() - positives, 1))
    storage.put_scalar("mask_rcnn/false_negative", misses / max(positives, 1))


def mask_rcnn_inference(pred_mask_logits: torch.Tensor, pred_instances: list[Instances]) -> None:
    """Give each image's instances the field "pred_masks": (Ri, 1, M, M) probabilities for their predicted class.

    Args:
        pred_mask_logits: (R, K, M, M).
        pred_instances: detections of each image, R together, in the order of the logits, with pred_classes.
    """
    probabilities = _of_class(pred_mask_logits, [x.pred_classes for x in pred_instances])[:, None].sigmoid()
    for found, masks in zip(pred_instances, probabilities.split([len(x) for x in pred_instances]), strict=True):
        found.pred_masks = masks


class BaseMaskRCNNHead(nn.Module):
    """Loss and inference of Mask R-CNN; a subclass adds :meth:`layers`.

    Args:
        loss_weight: factor of the loss.
        vis_period: see :func:`mask_rcnn_loss`.
    """

    @configurable
    def __init__(self, *, loss_weight: float = 1.0, vis_period: int = 0):
        super().__init__()
        self.loss_weight = loss_weight
        self.vis_period = vis_period

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec):
        return {"vis_period": cfg.VIS_PERIOD}

    def forward(self, x: torch.Tensor, instances: list[Instances]) -> dict[str, torch.Tensor] | list[Instances]:
        """For region features ``x``: in training ``{"loss_mask": scalar}``, see :func:`mask_rcnn_loss`; otherwise the
        instances themselves, now with masks, see :func:`mask_rcnn_inference`."""
        logits = self.layers(x)
        if self.training:
            return {"loss_mask": mask_rcnn_loss(logits, instances, self.vis_period) * self.loss_weight}
        mask_rcnn_inference(logits, instances)
        return instances

    def layers(self, x: torch.Tensor) -> torch.Tensor:
        """Region features -> (R, K, M, M) logits."""
        raise NotImplementedError(f"{type(self).__name__} has to define layers().")


@ROI_MASK_HEAD_REGISTRY.register()
class MaskRCNNConvUpsampleHead(BaseMaskRCNNHead, nn.Sequential):
    """3x3 convolutions, a 2x2 transposed convolution that doubles the resolution, and a 1x1 predictor.

    A Sequential: a subclass that adds layers has to add them in the order of their use.

    Args:
        input_shape: channels of a pooled region.
        num_classes: K; 1 for a class-agnostic head.
        conv_dims: output channels of each convolution, that of the transposed one last.
        conv_norm: normalisation of the 3x3 convolutions, see :func:`detectron2.layers.get_norm`.

    Raises:
        ValueError: ``conv_dims`` is empty.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int,
        conv_dims: Sequence[int],
        conv_norm: str | Callable = "",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not conv_dims:
            raise ValueError("conv_dims has to name at least the channels of the transposed convolution.")
        *plain_dims, upsampled_dim = conv_dims
        channels = input_shape.channels

        self.conv_norm_relus = []
        for k, dim in enumerate(plain_dims, start=1):
            norm = get_norm(conv_norm, dim)
            conv = Conv2d(channels, dim, 3, padding=1, bias=not conv_norm, norm=norm, activation=nn.ReLU())
            self.add_module(f"mask_fcn{k}", conv)
            self.conv_norm_relus.append(conv)
            channels = dim
        self.deconv = ConvTranspose2d(channels, upsampled_dim, kernel_size=2, stride=2)
        self.deconv_relu = nn.ReLU()
        self.predictor = Conv2d(upsampled_dim, num_classes, kernel_size=1)

        for layer in (*self.conv_norm_relus, self.deconv):
            weight_init.c2_msra_fill(layer)
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.predictor.bias)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec):
        head = cfg.MODEL.ROI_MASK_HEAD
        return {
            **super().from_config(cfg, input_shape),
            "input_shape": input_shape,
            "num_classes": 1 if head.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "conv_dims": [head.CONV_DIM] * (head.NUM_CONV + 1),
            "conv_norm": head.NORM,
        }

    def layers(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self:
            x = layer(x)
        return x
