"""Semantic segmentation from the modules that PMN's policy chooses (Liang, CVPR 2019, sections 3.2 and 4.1).

Shape shorthand: N images, n of them at a module, K classes.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dyn_d2.config.applied import NoticesKeys
from dyn_d2.gating import current_trace
from dyn_d2.modeling.shapes import channels_of, stride_of

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY

from .module_predictions import WeightedAverage
from .rollout import GREEDY, PMNState, state_of


class AtrousPyramid(nn.Module):
    """ASPP of DeepLab v2: the sum of 3x3 convolutions with different dilations, each straight to the classes."""

    def __init__(self, in_channels: int, num_classes: int, rates: Sequence[int]) -> None:
        super().__init__()
        if not rates or min(rates) < 1:
            raise ValueError(f"MODEL.SEM_SEG_HEAD.ASPP_RATES is {list(rates)}: give one positive rate or more.")
        convs = [nn.Conv2d(in_channels, num_classes, 3, padding=rate, dilation=rate) for rate in rates]
        for conv in convs:
            nn.init.normal_(conv.weight, std=0.01)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
        self.convs = nn.ModuleList(convs)

    def forward(self, x: Tensor) -> Tensor:
        total = self.convs[0](x)
        for conv in self.convs[1:]:
            total = total + conv(x)
        return total


@SEM_SEG_HEADS_REGISTRY.register()
class PMNHead(NoticesKeys, nn.Module):
    """F_Phi, shared by all modules: a 1x1 convolution with ReLU to a common width, one for each number of channels,
    then an atrous pyramid. Only images that a module predicts for pass it there.

    It reads the features of the modules from the trace; the feature maps of the backbone tell it the channels only.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        num_classes: int,
        width: int,
        rates: Sequence[int],
        combine: WeightedAverage,
        common_stride: int = 8,
        loss_weight: float = 1.0,
        ignore_value: int = 255,
    ) -> None:
        """
        Args:
            input_shape: the feature maps of the stages that consist of modules.
            num_classes: K.
            width: of the features that are classified.
            rates: dilations of the pyramid.
            combine: weighted average of the modules' predictions.
            common_stride: the smallest of these maps, at which predictions are averaged; the average is enlarged by it.
            loss_weight: factor of the loss.
            ignore_value: label of pixels that count neither in the loss nor in the reward.

        Raises:
            ValueError: no stage is given, or the smallest stride is another one.
        """
        super().__init__()
        strides = {name: stride_of(shape) for name, shape in input_shape.items()}
        self.finest = min(strides, key=lambda name: strides[name], default="")
        if not strides or strides[self.finest] != common_stride:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.COMMON_STRIDE is {common_stride}, but MODEL.SEM_SEG_HEAD.IN_FEATURES, which names "
                f"the stages that consist of modules, has the strides {strides}: set it to the smallest."
            )
        self.common_stride, self.loss_weight, self.ignore_value = common_stride, loss_weight, ignore_value
        channels = sorted({channels_of(shape) for shape in input_shape.values()})
        convs = {str(c): nn.Conv2d(c, width, 1) for c in channels}
        for conv in convs.values():
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
        self.projections = nn.ModuleDict(convs)
        self.aspp = AtrousPyramid(width, num_classes + combine.inner, rates)
        self.combine = combine

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": {name: shape for name, shape in input_shape.items() if name in head.IN_FEATURES},
            "num_classes": head.NUM_CLASSES,
            "width": head.CONVS_DIM,
            "rates": head.ASPP_RATES,
            "combine": WeightedAverage.from_config(cfg, head.NUM_CLASSES, "stuff_classes"),
            "common_stride": head.COMMON_STRIDE,
            "loss_weight": head.LOSS_WEIGHT,
            "ignore_value": head.IGNORE_VALUE,
        }

    def export_problem(self) -> str:
        """See ``modeling/answers.py``."""
        return "the policy chooses in Python which modules an image is segmented from, which no graph says."

    def forward(
        self, features: dict[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """In training (None, {"loss_sem_seg"}) for the (N, H, W) class map ``targets``; otherwise the logits
        (N, K, H', W') of the greedy rollout at the size of the images, padding included, and {}.

        Raises:
            UserError: the policy is not "pmn", or its decisions were not recorded.
        """
        trace = current_trace()
        state = state_of(trace)
        height, width = features[self.finest].shape[-2:]
        logits = self.combine(state, partial(self._scores, (height, width)))
        if not self.training:
            return self._enlarged(logits[GREEDY]), {}
        if targets is None:
            raise ValueError("Training a semantic segmentation head needs 'sem_seg' in every input.")
        self._measure(state, logits, targets)
        losses = torch.stack([self._losses(logits[name], targets) for name in state.trained]).mean(0)
        assert trace is not None  # state_of() has found it
        trace.context.image_losses = losses.detach()
        return None, {"loss_sem_seg": losses.mean() * self.loss_weight}

    def _scores(self, size: tuple[int, int], features: Tensor, rows: Tensor) -> Tensor:
        """F_Phi at the common stride; the maps of that stride have the ``size``."""
        key = str(features.shape[1])
        if key not in self.projections:
            raise ValueError(
                f"a module gives {key} channels, MODEL.SEM_SEG_HEAD.IN_FEATURES has {', '.join(self.projections)}: it "
                "has to name all stages that consist of modules (the last MODEL.POLICY.PMN.STAGES)."
            )
        scores = self.aspp(F.relu(self.projections[key](features)))
        if scores.shape[-2:] == size:
            return scores
        return F.interpolate(scores, size=size, mode="bilinear", align_corners=False)

    def _enlarged(self, logits: Tensor) -> Tensor:
        return F.interpolate(logits, scale_factor=self.common_stride, mode="bilinear", align_corners=False)

    def _losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(N,) mean cross-entropy over the pixels of each image that count; 0 where there are none."""
        height, width = targets.shape[-2:]
        logits = self._enlarged(logits)[..., :height, :width]
        each = F.cross_entropy(logits, targets, reduction="none", ignore_index=self.ignore_value)
        return each.sum((1, 2)) / (targets != self.ignore_value).sum((1, 2)).clamp(min=1)

    @torch.no_grad()
    def _measure(self, state: PMNState, logits: dict[str, Tensor], targets: Tensor) -> None:
        """The pixel accuracy of each rollout, at the resolution of the predictions."""
        half = self.common_stride // 2  # the pixel in the middle of what a prediction stands for
        target = targets[:, half :: self.common_stride, half :: self.common_stride]
        counts = target != self.ignore_value
        for name, rollout in state.rollouts.items():
            found = logits[name].argmax(1)[:, : target.shape[1], : target.shape[2]]
            right = (found == target[:, : found.shape[1], : found.shape[2]]) & counts
            rollout.accuracy = right.sum((1, 2)) / counts.sum((1, 2)).clamp(min=1)
