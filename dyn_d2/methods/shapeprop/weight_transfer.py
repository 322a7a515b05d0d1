"""Mask^X R-CNN (Hu et al., Learning to segment every thing, CVPR 2018): what is known of a class from boxes tells how
to predict its masks. A baseline of Table 8.1.

Shape shorthand: R regions, K foreground classes, d width of the box feature, D channels before the mask predictor.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dyn_d2.modeling.roi_heads.partial_mask import PartialMaskHead

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers

SOURCES = ("cls", "box", "cls+box")
NEGATIVE_SLOPE = 0.02


def detection_weights(predictor: FastRCNNOutputLayers, source: str) -> Tensor:
    """What a box predictor knows of each class, w_det: (K, d) for "cls", (K, 4 d) for "box", (K, 5 d) for "cls+box".

    Without gradient: masks shall not change what boxes taught, least of all that of classes without masks.
    """
    classes = predictor.cls_score.out_features - 1
    parts = []
    if "cls" in source:
        parts.append(predictor.cls_score.weight[:classes])
    if "box" in source:
        parts.append(predictor.bbox_pred.weight.reshape(classes, -1))
    return torch.cat(parts, dim=1).detach()


@ROI_MASK_HEAD_REGISTRY.register()
class WeightTransferMaskHead(PartialMaskHead):
    """PartialMaskHead whose predictor, a 1x1 convolution for each class, is a function of the class's box weights.

    The function, two layers with a leaky ReLU, is learnt from the classes that have masks and serves all; the predictor
    has no bias. The box predictor is that of the ROI heads "DynROIHeads" or "DynRes5ROIHeads", which call
    :meth:`connect`. The paper's additional fully connected mask branch is not part of it.
    """

    serves_classes_without_masks = True

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, transfer_from: str = "cls+box", **head: Any) -> None:
        """
        Args:
            input_shape: of a pooled region.
            transfer_from: "cls", "box" or "cls+box".
            head: arguments of PartialMaskHead.
        """
        super().__init__(input_shape, **head)
        if transfer_from not in SOURCES:
            raise ValueError(f"MODEL.ROI_MASK_HEAD.TRANSFER_FROM is {transfer_from!r}: use one of {list(SOURCES)}.")
        if self.predictor.out_channels == 1:
            raise ValueError(
                "WeightTransferMaskHead predicts by class: set MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK False."
            )
        self.transfer_from = transfer_from
        self._width = self.predictor.in_channels
        self._classes = self.predictor.out_channels
        del self.predictor
        self._connected: tuple[FastRCNNOutputLayers, ...] = ()

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec) -> dict[str, Any]:
        keys = cfg.MODEL.ROI_MASK_HEAD
        if keys.CLS_AGNOSTIC_MASK:
            raise ValueError(f"{cls.__name__} predicts by class: set MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK to False.")
        return {**super().from_config(cfg, input_shape), "transfer_from": keys.TRANSFER_FROM}

    def connect(self, predictor: FastRCNNOutputLayers) -> None:
        """Take class weights from ``predictor``, which stays a part of the ROI heads."""
        rows = predictor.cls_score.out_features - 1
        if rows != self._classes:
            raise ValueError(f"The box predictor has {rows} classes, the mask head {self._classes}.")
        if "box" in self.transfer_from and predictor.bbox_pred.out_features != 4 * rows:
            raise ValueError(
                "MODEL.ROI_MASK_HEAD.TRANSFER_FROM needs a box regressor for each class: set it to 'cls', or "
                "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG to False."
            )
        self._connected = (predictor,)  # in a tuple, so that its parameters are not counted twice
        inputs = detection_weights(predictor, self.transfer_from).shape[1]
        self.transfer = nn.Sequential(
            nn.Linear(inputs, self._width), nn.LeakyReLU(NEGATIVE_SLOPE), nn.Linear(self._width, self._width)
        )

    def mask_weights(self) -> Tensor:
        """w_seg, (K, D).

        Raises:
            RuntimeError: :meth:`connect` was not called.
        """
        if not self._connected:
            raise RuntimeError("WeightTransferMaskHead works in MODEL.ROI_HEADS.NAME DynROIHeads and DynRes5ROIHeads.")
        return self.transfer(detection_weights(self._connected[0], self.transfer_from))

    def layers(self, x: Tensor) -> Tensor:
        """(R, C, h, w) region features -> (R, K, 2h, 2w) logits."""
        for layer in (*self.conv_norm_relus, self.deconv, self.deconv_relu):
            x = layer(x)
        return F.conv2d(x, self.mask_weights()[:, :, None, None])
