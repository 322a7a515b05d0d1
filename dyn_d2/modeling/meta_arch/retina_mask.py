"""RetinaMask: a single-stage detector with masks (Fu et al., RetinaMask: Learning to predict masks improves
state-of-the-art single-shot detection for free, arXiv 1901.03353).

Shape shorthand: N images, K classes, Ri anchors on feature map i.
"""

from typing import Any

import torch
from torch import Tensor, nn

from dyn_d2.config.applied import NoticesKeys
from dyn_d2.modeling.roi_heads.mask_only import MaskROIHeads

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY, RetinaNet, build_roi_heads, detector_postprocess
from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals
from detectron2.structures import ImageList, Instances


@META_ARCH_REGISTRY.register()
class RetinaMask(NoticesKeys, RetinaNet):
    """RetinaNet whose detections get masks from ROI heads of their own: "MaskROIHeads", or others
    derived from them (MODEL.ROI_HEADS.NAME).

    In training the mask branch sees the best predictions of the current step and the true boxes, sampled and labelled
    by MODEL.ROI_HEADS (foreground from an IoU of 0.5 on); in evaluation the detections. Box losses, anchors and
    detections are RetinaNet's: the paper's self-adjusting smooth L1 loss and its matching of low-overlap anchors are
    not part of it. The mask branch reads MODEL.ROI_HEADS.IN_FEATURES, which need not be among those with anchors.
    """

    @configurable
    def __init__(self, *, roi_heads: nn.Module | None = None, num_proposals: int = 100, **retinanet: Any) -> None:
        """
        Args:
            roi_heads: the mask branch, called like ROI heads; None for a plain RetinaNet.
            num_proposals: predictions of each image that the mask branch is trained on, beside the true boxes.
            retinanet: arguments of RetinaNet.
        """
        super().__init__(**retinanet)
        if num_proposals < 0:
            raise ValueError(f"MODEL.RETINA_MASK.PROPOSALS is {num_proposals}: it must not be negative.")
        self.roi_heads, self.num_proposals = roi_heads, num_proposals

    @classmethod
    def from_config(cls, cfg) -> dict[str, Any]:
        arguments = super().from_config(cfg)
        heads = build_mask_branch(cfg, arguments["backbone"].output_shape()) if cfg.MODEL.MASK_ON else None
        return {**arguments, "roi_heads": heads, "num_proposals": cfg.MODEL.RETINA_MASK.PROPOSALS}

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Inputs and outputs are RetinaNet's; in training with the losses of the masks, otherwise the instances have
        ``pred_masks``, (Ri, height, width) bool."""
        if self.roi_heads is None:
            return super().forward(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        maps = [features[name] for name in self.head_in_features]
        predictions = self.head(maps)
        if self.training:
            truth = [inputs["instances"].to(self.device) for inputs in batched_inputs]
            losses = self.forward_training(images, maps, predictions, truth)
            proposals = self.propose(images, maps, predictions)
            return {**losses, **self.roi_heads(images, features, proposals, truth)[1]}
        detections = [_inside(found) for found in self.forward_inference(images, maps, predictions)]
        detections, _ = self.roi_heads(images, features, detections)
        return [
            {
                "instances": detector_postprocess(
                    found, inputs.get("height", found.image_size[0]), inputs.get("width", found.image_size[1])
                )
            }
            for found, inputs in zip(detections, batched_inputs, strict=True)
        ]

    @torch.no_grad()
    def propose(self, images: ImageList, features: list[Tensor], predictions: list[list[Tensor]]) -> list[Instances]:
        """The best predicted boxes of each image after NMS, whatever their class: their objects teach the mask branch.

        Args:
            images: the normalised batch.
            features, predictions: of the maps with anchors; the logits (N, A * K, Hi, Wi) and deltas (N, A * 4, Hi, Wi)
                of the head.

        Returns:
            For each image at most ``num_proposals`` proposal_boxes inside the image, with objectness_logits, the score
            of their best class.
        """
        logits, deltas = self._transpose_dense_predictions(predictions, [self.num_classes, 4])
        boxes = [
            self.box2box_transform.apply_deltas(d.flatten(0, 1), anchors.tensor.repeat(len(d), 1)).view_as(d)
            for anchors, d in zip(self.anchor_generator(features), deltas, strict=True)
        ]
        return find_top_rpn_proposals(
            boxes,
            [x.float().amax(dim=2) for x in logits],
            list(images.image_sizes),
            self.test_nms_thresh,
            self.test_topk_candidates,
            self.num_proposals,
            min_box_size=0.0,
            training=False,  # a diverged box is left out: the trainer reports the loss, with the images
        )


def _inside(found: Instances) -> Instances:
    """Detections cut to their image, as they will be shown: a mask belongs to the box that it was predicted in."""
    found.pred_boxes.clip(found.image_size)
    return found[found.pred_boxes.nonempty()]


def build_mask_branch(cfg, shapes: dict[str, ShapeSpec]) -> MaskROIHeads:
    """The ROI heads that MODEL.ROI_HEADS.NAME names, for MODEL.RETINANET.NUM_CLASSES classes.

    Args:
        shapes: the backbone's feature maps.

    Raises:
        ValueError: they are no mask-only heads, or MODEL.ROI_HEADS.IN_FEATURES names a map that does not exist.
    """
    keys = cfg.MODEL.ROI_HEADS
    heads = ROI_HEADS_REGISTRY.get(keys.NAME)
    if not (isinstance(heads, type) and issubclass(heads, MaskROIHeads)):
        raise ValueError(
            f"MODEL.ROI_HEADS.NAME is {keys.NAME}, but RetinaMask has its boxes already: set it to MaskROIHeads or "
            "heads derived from them, or MODEL.MASK_ON to False."
        )
    missing = [name for name in keys.IN_FEATURES if name not in shapes]
    if missing:
        raise ValueError(
            f"MODEL.ROI_HEADS.IN_FEATURES names {', '.join(missing)}, of which masks shall be made, but the backbone "
            f"gives {', '.join(shapes)}: choose among these, or add levels by MODEL.FPN.IN_FEATURES."
        )
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES
    built = build_roi_heads(cfg, shapes)
    assert isinstance(built, MaskROIHeads)  # see above
    return built
