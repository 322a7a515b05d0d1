"""The cosine-similarity box classifier of TFA (Wang et al., ICML 2020).

Shape shorthand: R sampled or proposed boxes, d width of the box feature, C foreground classes (class C is background).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dyn_d2.modeling.roi_heads import BOX_CLASSIFIERS

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers

EPSILON = 1e-5


def unit_rows(rows: Tensor, eps: float = EPSILON) -> Tensor:
    """(N, d) -> each row over its norm plus ``eps``."""
    return rows / (torch.linalg.vector_norm(rows, dim=1, keepdim=True) + eps)


def cosine_scores(features: Tensor, prototypes: Tensor, scale: Tensor | float, eps: float = EPSILON) -> Tensor:
    """Scaled cosine similarity, Eq. 7.2: ``scale * <x_i, w_j> / ((|x_i| + eps) (|w_j| + eps))``.

    ``eps`` stands outside the norms, as in the published code. A zero vector scores 0 and gets gradient 0 through
    its norm; gradients flow through both norms otherwise.

    Args:
        features: (R, d), R may be 0.
        prototypes: (C + 1, d), one row for each class, background last.

    Returns:
        (R, C + 1) scores within [-scale, scale].
    """
    return scale * F.linear(unit_rows(features, eps), unit_rows(prototypes, eps))


class CosineOutputLayers(FastRCNNOutputLayers):
    """Detectron2's box predictor with cosine scores in place of linear ones.

    Background has a prototype like any class, there is no bias, and the box regressor stays linear on the feature
    as it is (not normalised). Losses and inference are the parent's. Give it as ``box_predictor`` to any ROI heads.

    In training each forward pass first overwrites the prototypes with those of norm 1, and no gradient flows through
    their norm, as in the published code: the rate then means the same angle whatever norm the rows came with. (Through
    the norm a row would turn by the inverse square of its own norm.) In evaluation the scores are the same, and
    nothing is overwritten.

    Attributes:
        scale: alpha of Eq. 7.2; a parameter only where it is learned, so that checkpoints of the fixed kind hold
            exactly ``cls_score.weight``, ``bbox_pred.weight`` and ``bbox_pred.bias``.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec | int,
        *,
        cosine_scale: float = 20.0,
        cosine_scale_learnable: bool = False,
        **predictor: Any,
    ) -> None:
        """
        Args:
            input_shape: shape of the box feature.
            cosine_scale: alpha; must be positive.
            cosine_scale_learnable: train alpha, starting from ``cosine_scale``.
            predictor: arguments of FastRCNNOutputLayers (``box2box_transform``, ``num_classes``, ...).
        """
        super().__init__(input_shape, **predictor)
        if cosine_scale <= 0:
            raise ValueError(f"MODEL.ROI_BOX_HEAD.COSINE_SCALE is {cosine_scale}: it has to be positive.")
        linear = self.cls_score
        self.cls_score = nn.Linear(linear.in_features, linear.out_features, bias=False)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        self.scale = nn.Parameter(torch.tensor(float(cosine_scale))) if cosine_scale_learnable else float(cosine_scale)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec) -> dict[str, Any]:
        head = cfg.MODEL.ROI_BOX_HEAD
        return {
            **super().from_config(cfg, input_shape),
            "cosine_scale": head.COSINE_SCALE,
            "cosine_scale_learnable": head.COSINE_SCALE_LEARNABLE,
        }

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            x: (R, d) box features, or (R, c, h, w) with c h w = d.

        Returns:
            (R, C + 1) class scores, and (R, 4C) box deltas, (R, 4) for class-agnostic regression.
        """
        x = torch.flatten(x, start_dim=1)
        prototypes = self.cls_score.weight
        if not (self.training and prototypes.requires_grad):
            return cosine_scores(x, prototypes, self.scale), self.bbox_pred(x)
        # Unit rows stay what they are, so that autograd need not be told: what an earlier pass has saved still holds.
        prototypes.data.copy_(unit_rows(prototypes.data))
        return self.scale * F.linear(unit_rows(x), prototypes), self.bbox_pred(x)


BOX_CLASSIFIERS["cosine"] = CosineOutputLayers
