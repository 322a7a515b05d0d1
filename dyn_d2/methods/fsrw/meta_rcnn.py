"""Feature re-weighting on the regions of a Faster R-CNN, as in Meta R-CNN (Yan et al., ICCV 2019).

Letters for shapes: R regions of the batch, N classes of the episode, d width of a region's feature.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dyn_d2.config.applied import NoticesKeys

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers

from .reweighting import ReweightedByClass, ReweightingNet, build_reweighting


class ReweightedOutputLayers(FastRCNNOutputLayers):
    """Detectron2's box predictor, whose class scores and deltas come from the feature z, re-weighted by class.

    The score of class i is <u, z w_i> + b and its deltas V (z w_i), with u and V shared by all classes; the score of
    the background is linear in z itself. Softmax, losses and inference are the parent's, over N + 1 scores. The first
    row of ``cls_score`` is u, the second the background's.
    """

    def __init__(self, input_shape: ShapeSpec | int, **predictor: Any) -> None:
        """
        Args:
            input_shape: shape of the box feature.
            predictor: arguments of FastRCNNOutputLayers; ``num_classes`` is replaced by that of the vectors in use.
        """
        super().__init__(input_shape, **{**predictor, "num_classes": 1, "cls_agnostic_bbox_reg": False})
        self._vectors: Tensor | None = None

    @contextmanager
    def using(self, vectors: Tensor) -> Iterator[None]:
        """Inside the block the classes are those of (N, d) vectors.

        Raises:
            ValueError: the vectors are of another width than the features.
        """
        width = self.cls_score.in_features
        if vectors.shape[1] != width:
            raise ValueError(f"class vectors of width {vectors.shape[1]} cannot re-weight features of width {width}.")
        self._vectors, self.num_classes = vectors, len(vectors)
        try:
            yield
        finally:
            self._vectors = None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            x: (R, d) box features, or (R, c, h, w) with c h w = d.

        Returns:
            (R, N + 1) class scores and (R, 4N) box deltas.

        Raises:
            RuntimeError: outside of ``using``.
        """
        if self._vectors is None:
            raise RuntimeError("class vectors are needed: call inside of using(vectors).")
        x, vectors = x.flatten(1), self._vectors
        # As in FSRW, the vectors go into the weights: no R x N features.
        of_class, background = self.cls_score.weight
        scores = F.linear(x, of_class * vectors, self.cls_score.bias[:1].expand(len(vectors)))
        rest = F.linear(x, background[None], self.cls_score.bias[1:])
        weights = (self.bbox_pred.weight * vectors[:, None]).flatten(0, 1)
        deltas = F.linear(x, weights, self.bbox_pred.bias.repeat(len(vectors)))
        return torch.cat([scores, rest], dim=1), deltas


@META_ARCH_REGISTRY.register()
class MetaRCNN(NoticesKeys, ReweightedByClass, GeneralizedRCNN):
    """A Faster R-CNN (FPN or one map; boxes only) whose regions are re-weighted by class vectors.

    Of the config's ROI heads all stays but the box predictor. The proposal generator knows no classes.
    """

    @configurable
    def __init__(self, *, reweighting: ReweightingNet | None, **rcnn: Any) -> None:
        """
        Args:
            reweighting: makes vectors as wide as the box predictor's input; None where they will be given.
            rcnn: arguments of GeneralizedRCNN; the box predictor of the ROI heads is a ReweightedOutputLayers.

        Raises:
            ValueError: the ROI heads have masks.
        """
        super().__init__(**rcnn)
        if getattr(self.roi_heads, "mask_on", False):
            raise ValueError("MetaRCNN detects boxes only: set MODEL.MASK_ON False.")
        self.init_reweighting(reweighting, self.box_predictor.cls_score.in_features)

    @property
    def box_predictor(self) -> ReweightedOutputLayers:
        predictor = self.roi_heads.box_predictor
        assert isinstance(predictor, ReweightedOutputLayers)
        return predictor

    @classmethod
    def from_config(cls, cfg) -> dict[str, Any]:
        arguments = super().from_config(cfg)
        heads = arguments["roi_heads"]
        width = heads.box_predictor.cls_score.in_features
        heads.box_predictor = ReweightedOutputLayers(**FastRCNNOutputLayers.from_config(cfg, ShapeSpec(channels=width)))
        return {**arguments, "reweighting": build_reweighting(cfg, width)}

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Inputs and outputs are GeneralizedRCNN's; in training the first input carries the support set."""
        vectors = self.episode_vectors(batched_inputs) if self.training else self.given_vectors()
        with self.box_predictor.using(vectors):
            return super().forward(batched_inputs)
