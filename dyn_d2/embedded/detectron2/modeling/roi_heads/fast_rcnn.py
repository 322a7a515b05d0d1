"""The box predictor of Fast R-CNN (Girshick, 2015): class scores and box offsets of each region, their losses, and the
detections that remain after non-maximum suppression.

Letters for shapes: R regions of the whole batch, Ri those of image i, K foreground classes. Label K means background.
"Deltas" are the offsets (dx, dy, dw, dh) of :class:`detectron2.modeling.box_regression.Box2BoxTransform`.
"""

import torch
from torch import nn
from torch.nn import functional as F

from detectron2.config import configurable
from detectron2.layers import ShapeSpec, batched_nms, cat, cross_entropy
from detectron2.left_out import left_out
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage

from ..box_regression import Box2BoxTransform, _dense_box_regression_loss


def fast_rcnn_inference(
    boxes: list[torch.Tensor],
    scores: list[torch.Tensor],
    image_shapes: list[tuple[int, int]],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[list[Instances], list[torch.Tensor]]:
    """:func:`fast_rcnn_inference_single_image` for each image; the lists have one entry an image."""
    found = [
        fast_rcnn_inference_single_image(*image, score_thresh, nms_thresh, topk_per_image)
        for image in zip(boxes, scores, image_shapes, strict=True)
    ]
    return [instances for instances, _ in found], [kept for _, kept in found]


def fast_rcnn_inference_single_image(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    image_shape: tuple[int, int],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[Instances, torch.Tensor]:
    """The detections of one image, best first.

    Args:
        boxes: (Ri, 4 * K) boxes of each class, or (Ri, 4) for class-agnostic regression, in pixels.
        scores: (Ri, K + 1) probabilities, background last.
        image_shape: (height, width); boxes are clipped to it.
        score_thresh: only scores above it count.
        nms_thresh: of two boxes of one class with a larger IoU the better one stays.
        topk_per_image: at most so many detections; below 0 there is no limit.

    Returns:
        Instances with pred_boxes, scores and pred_classes; and for each of them the index of its region in [0, Ri).
        Regions with a box or score that is not finite give no detection.
    """
    usable = boxes.isfinite().all(dim=1) & scores.isfinite().all(dim=1)
    candidates = (scores[:, :-1] > score_thresh) & usable[:, None]
    regions, classes = candidates.nonzero(as_tuple=True)
    boxes_per_region = boxes.shape[1] // 4
    columns = classes if boxes_per_region > 1 else 0
    candidate_boxes = Boxes(boxes.reshape(len(boxes), boxes_per_region, 4)[regions, columns])
    candidate_boxes.clip(image_shape)
    candidate_scores = scores[regions, classes]

    keep = batched_nms(candidate_boxes.tensor, candidate_scores, classes, nms_thresh)
    if topk_per_image >= 0:
        keep = keep[:topk_per_image]
    detections = Instances(
        image_shape, pred_boxes=candidate_boxes[keep], scores=candidate_scores[keep], pred_classes=classes[keep]
    )
    return detections, regions[keep]


def _log_classification_stats(pred_logits: torch.Tensor, gt_classes: torch.Tensor, prefix: str = "fast_rcnn") -> None:
    """Store the accuracy over all regions, over the foreground, and the share of foreground taken for background.

    The counts cross from the GPU together, since each crossing waits for it.
    """
    if gt_classes.numel() == 0:
        return
    background = pred_logits.shape[1] - 1
    predicted = pred_logits.argmax(dim=1)
    right = predicted == gt_classes
    foreground = (gt_classes >= 0) & (gt_classes < background)
    missed = foreground & (predicted == background)
    counts = torch.stack([x.sum() for x in (right, foreground, right & foreground, missed)]).tolist()
    num_right, num_foreground, num_right_foreground, num_missed = counts
    storage = get_event_storage()
    storage.put_scalar(f"{prefix}/cls_accuracy", num_right / gt_classes.numel())
    if num_foreground > 0:
        storage.put_scalar(f"{prefix}/fg_cls_accuracy", num_right_foreground / num_foreground)
        storage.put_scalar(f"{prefix}/false_negative", num_missed / num_foreground)


class FastRCNNOutputLayers(nn.Module):
    """One linear layer for class scores and one for deltas.

    Args:
        input_shape: shape of one region's features; an int is a number of channels.
        box2box_transform: turns deltas into boxes and back.
        num_classes: K.
        test_score_thresh, test_nms_thresh, test_topk_per_image: see :func:`fast_rcnn_inference_single_image`.
        cls_agnostic_bbox_reg: one box for a region instead of one for each class.
        smooth_l1_beta: where the "smooth_l1" loss turns from quadratic to linear; 0 is plain L1.
        box_reg_loss_type: "smooth_l1", "giou", "diou" or "ciou".
        loss_weight: factor of both losses, or a dict with factors for "loss_cls" and "loss_box_reg" (1 where absent).
        use_sigmoid_ce: a binary cross-entropy for each class in place of softmax.
        use_fed_loss: left out; has to be False.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec | int,
        *,
        box2box_transform: Box2BoxTransform,
        num_classes: int,
        test_score_thresh: float = 0.0,
        test_nms_thresh: float = 0.5,
        test_topk_per_image: int = 100,
        cls_agnostic_bbox_reg: bool = False,
        smooth_l1_beta: float = 0.0,
        box_reg_loss_type: str = "smooth_l1",
        loss_weight: float | dict[str, float] = 1.0,
        use_fed_loss: bool = False,
        use_sigmoid_ce: bool = False,
    ):
        super().__init__()
        if use_fed_loss:
            raise left_out("MODEL.ROI_BOX_HEAD.USE_FED_LOSS", "federated losses")
        shape = ShapeSpec(channels=input_shape) if isinstance(input_shape, int) else input_shape
        size = shape.channels * (shape.height or 1) * (shape.width or 1)
        self.cls_score = nn.Linear(size, num_classes + 1)
        self.bbox_pred = nn.Linear(size, 4 if cls_agnostic_bbox_reg else 4 * num_classes)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

        self.num_classes, self.box2box_transform = num_classes, box2box_transform
        self.test_score_thresh, self.test_nms_thresh = test_score_thresh, test_nms_thresh
        self.test_topk_per_image = test_topk_per_image
        self.box_reg_loss_type, self.smooth_l1_beta = box_reg_loss_type, smooth_l1_beta
        if not isinstance(loss_weight, dict):
            loss_weight = {"loss_cls": loss_weight, "loss_box_reg": loss_weight}
        self.loss_weight = loss_weight
        self.use_sigmoid_ce = use_sigmoid_ce

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec):
        head, heads = cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_HEADS
        return {
            "input_shape": input_shape,
            "box2box_transform": Box2BoxTransform(weights=head.BBOX_REG_WEIGHTS),
            "num_classes": heads.NUM_CLASSES,
            "test_score_thresh": heads.SCORE_THRESH_TEST,
            "test_nms_thresh": heads.NMS_THRESH_TEST,
            "test_topk_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "cls_agnostic_bbox_reg": head.CLS_AGNOSTIC_BBOX_REG,
            "smooth_l1_beta": head.SMOOTH_L1_BETA,
            "box_reg_loss_type": head.BBOX_REG_LOSS_TYPE,
            "loss_weight": {"loss_box_reg": head.BBOX_REG_LOSS_WEIGHT},
            "use_fed_loss": head.USE_FED_LOSS,
            "use_sigmoid_ce": head.USE_SIGMOID_CE,
        }

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(R, ...) features -> (R, K + 1) class logits, and (R, 4 * K) or, class-agnostic, (R, 4) deltas."""
        x = x.flatten(start_dim=1)
        return self.cls_score(x), self.bbox_pred(x)

    def losses(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]
    ) -> dict[str, torch.Tensor]:
        """
        Args:
            predictions: what :meth:`forward` returned.
            proposals: regions of each image with proposal_boxes, gt_classes and, where the image has objects, gt_boxes.

        Returns:
            "loss_cls" and "loss_box_reg", weighted; without regions both are 0.
        """
        logits, deltas = predictions
        if proposals:
            gt_classes = cat([x.gt_classes for x in proposals])
            proposal_boxes = cat([x.proposal_boxes.tensor for x in proposals])
            # An image without objects has only background, whose box is never compared with anything.
            gt_boxes = cat([x.get("gt_boxes" if x.has("gt_boxes") else "proposal_boxes").tensor for x in proposals])
        else:
            gt_classes = torch.zeros(0, dtype=torch.long, device=logits.device)
            proposal_boxes = gt_boxes = deltas.new_zeros(0, 4)
        _log_classification_stats(logits, gt_classes)
        classification_loss = self.sigmoid_cross_entropy_loss if self.use_sigmoid_ce else cross_entropy
        losses = {
            "loss_cls": classification_loss(logits, gt_classes),
            "loss_box_reg": self.box_reg_loss(proposal_boxes, gt_boxes, deltas, gt_classes),
        }
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    def sigmoid_cross_entropy_loss(self, pred_class_logits: torch.Tensor, gt_classes: torch.Tensor) -> torch.Tensor:
        """Binary cross-entropy of (R, K + 1) logits, whose last column plays no part: summed over classes, mean over
        regions. A background region is a negative for every class."""
        if pred_class_logits.numel() == 0:
            return pred_class_logits.sum() * 0
        target = torch.zeros_like(pred_class_logits)
        target[torch.arange(len(target), device=target.device), gt_classes] = 1
        loss = F.binary_cross_entropy_with_logits(pred_class_logits[:, :-1], target[:, :-1], reduction="sum")
        return loss / len(target)

    def box_reg_loss(
        self,
        proposal_boxes: torch.Tensor,
        gt_boxes: torch.Tensor,
        pred_deltas: torch.Tensor,
        gt_classes: torch.Tensor,
    ) -> torch.Tensor:
        """Regression loss of the foreground regions, summed and divided by the number R of *all* regions.

        Each foreground region then weighs the same, whether its batch has one of them or a hundred.

        Args:
            proposal_boxes, gt_boxes: (R, 4).
            pred_deltas: (R, 4 * K), or (R, 4) for class-agnostic regression.
            gt_classes: (R,).
        """
        foreground = ((gt_classes >= 0) & (gt_classes < self.num_classes)).nonzero()[:, 0]
        if pred_deltas.shape[1] == 4:
            deltas = pred_deltas[foreground]
        else:
            deltas = pred_deltas.view(-1, self.num_classes, 4)[foreground, gt_classes[foreground]]
        total = _dense_box_regression_loss(
            [proposal_boxes[foreground]],
            self.box2box_transform,
            [deltas[None]],
            [gt_boxes[foreground]],
            ...,
            self.box_reg_loss_type,
            self.smooth_l1_beta,
        )
        return total / max(gt_classes.numel(), 1)

    def inference(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]
    ) -> tuple[list[Instances], list[torch.Tensor]]:
        """Detections of each image from what :meth:`forward` returned; see :func:`fast_rcnn_inference_single_image`."""
        boxes, scores = self.predict_boxes(predictions, proposals), self.predict_probs(predictions, proposals)
        limits = self.test_score_thresh, self.test_nms_thresh, self.test_topk_per_image
        return fast_rcnn_inference(boxes, scores, [x.image_size for x in proposals], *limits)

    def predict_boxes(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]
    ) -> tuple[torch.Tensor, ...]:
        """Boxes of each image in pixels: (Ri, 4 * K), or (Ri, 4) for class-agnostic regression."""
        if not proposals:
            return ()
        proposal_boxes = cat([x.proposal_boxes.tensor for x in proposals])
        boxes = self.box2box_transform.apply_deltas(predictions[1], proposal_boxes)
        return boxes.split([len(x) for x in proposals])

    def predict_boxes_for_gt_classes(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]
    ) -> tuple[torch.Tensor, ...]:
        """Boxes of each image, (Ri, 4), for the class that a region belongs to; for background any class will do."""
        if not proposals:
            return ()
        boxes = torch.cat(self.predict_boxes(predictions, proposals))
        if boxes.shape[1] > 4:
            per_class = boxes.view(len(boxes), boxes.shape[1] // 4, 4)
            classes = cat([x.gt_classes for x in proposals]).clamp(0, per_class.shape[1] - 1)
            boxes = per_class[torch.arange(len(boxes), device=boxes.device), classes]
        return boxes.split([len(x) for x in proposals])

    def predict_probs(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]
    ) -> tuple[torch.Tensor, ...]:
        """(Ri, K + 1) class probabilities of each image."""
        logits = predictions[0]
        probabilities = logits.sigmoid() if self.use_sigmoid_ce else logits.softmax(dim=-1)
        return probabilities.split([len(x) for x in proposals])
