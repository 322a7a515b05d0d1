"""ROI heads without a box head: masks for the boxes that another detector finds, such as those of RetinaMask."""

from typing import Any

from torch import Tensor

from dyn_d2.config.applied import NoticesKeys

from detectron2.modeling import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.structures import ImageList, Instances


@ROI_HEADS_REGISTRY.register()
class MaskROIHeads(NoticesKeys, StandardROIHeads):
    """The mask leg of StandardROIHeads. Boxes and classes come from the detector before it, which in training gives
    proposals, labelled and sampled as in any ROI heads (MODEL.ROI_HEADS), and in evaluation its detections."""

    @classmethod
    def _init_box_head(cls, cfg, input_shape) -> dict[str, Any]:
        return {
            "box_in_features": cfg.MODEL.ROI_HEADS.IN_FEATURES,
            "box_pooler": None,
            "box_head": None,
            "box_predictor": None,
        }

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """
        Args:
            images: the normalised batch; not looked at.
            features: (N, C, H, W) maps by name.
            proposals: of each image; in training proposal_boxes and objectness_logits, otherwise detections with
                pred_boxes and pred_classes.
            targets: ground truth of each image; in training only.

        Returns:
            In training (the sampled proposals, losses of the masks); otherwise (the detections with pred_masks, {}).

        Raises:
            ValueError: the model around it leaves the detection to these heads.
        """
        if self.training:
            assert targets is not None, "training needs the ground truth"
            proposals = self.label_and_sample_proposals(proposals, targets)
            losses = self._forward_mask(features, proposals)
            assert isinstance(losses, dict)  # as it is in training
            return proposals, losses
        if not all(x.has("pred_boxes") for x in proposals):
            raise ValueError(
                f"{type(self).__name__} detects nothing by itself: set MODEL.META_ARCHITECTURE to RetinaMask, or "
                "MODEL.ROI_HEADS.NAME to DynROIHeads or another that detects."
            )
        return self.forward_with_given_boxes(features, proposals), {}
