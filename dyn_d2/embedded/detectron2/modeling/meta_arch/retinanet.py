"""RetinaNet (Lin et al., Focal Loss for Dense Object Detection).

Shapes: N images, A anchors per position, K classes, Ri = Hi * Wi * A anchors on feature map i, R = sum of Ri.
Labels of anchors are 0 ... K - 1 for objects, K for background, -1 where they take no part in the loss.
"""

import logging
import math
from collections.abc import Callable, Sequence

import torch
from fvcore.nn import sigmoid_focal_loss_jit
from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.layers import CycleBatchNormList, ShapeSpec, batched_nms, cat, get_norm
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage

from ..anchor_generator import build_anchor_generator
from ..backbone import Backbone
from ..box_regression import Box2BoxTransform, _dense_box_regression_loss
from ..matcher import Matcher
from .build import META_ARCH_REGISTRY
from .dense_detector import DenseDetector
from .image_model import image_model_config


@META_ARCH_REGISTRY.register()
class RetinaNet(DenseDetector):
    """Classifies and refines every anchor of a feature pyramid, trained with the focal loss."""

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: Sequence[str],
        anchor_generator: nn.Module,
        box2box_transform: Box2BoxTransform,
        anchor_matcher: Matcher,
        num_classes: int,
        focal_loss_alpha: float = 0.25,
        focal_loss_gamma: float = 2.0,
        smooth_l1_beta: float = 0.0,
        box_reg_loss_type: str = "smooth_l1",
        test_score_thresh: float = 0.05,
        test_topk_candidates: int = 1000,
        test_nms_thresh: float = 0.5,
        max_detections_per_image: int = 100,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        vis_period: int = 0,
        input_format: str = "BGR",
    ) -> None:
        """
        Args:
            backbone, head, head_in_features, pixel_mean, pixel_std: see :class:`DenseDetector`.
            anchor_generator, anchor_matcher: give the anchors of each feature map, and label them by IoU.
            box2box_transform: how deltas and boxes belong together.
            num_classes: K.
            focal_loss_alpha, focal_loss_gamma: weight of the positives (< 0: none), and the focus on hard examples.
            smooth_l1_beta, box_reg_loss_type: "smooth_l1" with its beta, or "giou", "diou", "ciou".
            test_score_thresh: detections must score higher than this.
            test_topk_candidates: candidates of each feature map before NMS.
            test_nms_thresh: IoU above which the lower score of two boxes of one class is dropped.
            max_detections_per_image: how many the best may be.
            vis_period: see :class:`DenseDetector`.
            input_format: meaning of the channels, for the visualisation.
        """
        super().__init__(backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.num_classes, self.anchor_generator, self.anchor_matcher = num_classes, anchor_generator, anchor_matcher
        self.box2box_transform = box2box_transform
        self.focal_loss_alpha, self.focal_loss_gamma = focal_loss_alpha, focal_loss_gamma
        self.box_reg_loss_type, self.smooth_l1_beta = box_reg_loss_type, smooth_l1_beta
        self.test_score_thresh, self.test_nms_thresh = test_score_thresh, test_nms_thresh
        self.test_topk_candidates, self.max_detections_per_image = test_topk_candidates, max_detections_per_image
        self.vis_period, self.input_format = vis_period, input_format

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        args, net = image_model_config(cfg), cfg.MODEL.RETINANET
        all_shapes = args["backbone"].output_shape()
        shapes = [all_shapes[name] for name in net.IN_FEATURES]
        return {
            **args,
            "head": RetinaNetHead(cfg, shapes),
            "head_in_features": net.IN_FEATURES,
            "anchor_generator": build_anchor_generator(cfg, shapes),
            "box2box_transform": Box2BoxTransform(weights=net.BBOX_REG_WEIGHTS),
            "anchor_matcher": Matcher(net.IOU_THRESHOLDS, net.IOU_LABELS, allow_low_quality_matches=True),
            "num_classes": net.NUM_CLASSES,
            "focal_loss_alpha": net.FOCAL_LOSS_ALPHA,
            "focal_loss_gamma": net.FOCAL_LOSS_GAMMA,
            "smooth_l1_beta": net.SMOOTH_L1_LOSS_BETA,
            "box_reg_loss_type": net.BBOX_REG_LOSS_TYPE,
            "test_score_thresh": net.SCORE_THRESH_TEST,
            "test_topk_candidates": net.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": net.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "vis_period": cfg.VIS_PERIOD,
            "input_format": cfg.INPUT.FORMAT,
        }

    def forward_training(
        self, images: ImageList, features: list[Tensor], predictions: list[list[Tensor]], gt_instances: list[Instances]
    ) -> dict[str, Tensor]:
        """See :meth:`losses`."""
        logits, deltas = self._transpose_dense_predictions(predictions, [self.num_classes, 4])
        anchors = self.anchor_generator(features)
        gt_labels, gt_boxes = self.label_anchors(anchors, gt_instances)
        return self.losses(anchors, logits, gt_labels, deltas, gt_boxes)

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """Focal loss of all labelled anchors and regression loss of the positive ones, per positive anchor.

        Args:
            anchors: of each feature map.
            pred_logits: (N, Ri, K) of each feature map.
            gt_labels, gt_boxes: what :meth:`label_anchors` returned.
            pred_anchor_deltas: (N, Ri, 4) of each feature map.

        Returns:
            "loss_cls" and "loss_box_reg".
        """
        num_images = len(gt_labels)
        labels = torch.stack(gt_labels)
        labelled = labels >= 0
        positive = labelled & (labels != self.num_classes)
        num_positive = int(positive.sum())
        get_event_storage().put_scalar("num_pos_anchors", num_positive / num_images)
        normalizer = self._ema_update("loss_normalizer", max(num_positive, 1), 100)

        logits = cat(pred_logits, dim=1)[labelled]
        target = torch.zeros_like(logits)
        # Only the few positives have a 1 in their row; writing these is cheaper than a one-hot code of all anchors.
        target[positive[labelled].nonzero()[:, 0], labels[positive]] = 1
        loss_cls = sigmoid_focal_loss_jit(
            logits, target, alpha=self.focal_loss_alpha, gamma=self.focal_loss_gamma, reduction="sum"
        )
        loss_box_reg = _dense_box_regression_loss(
            anchors,
            self.box2box_transform,
            pred_anchor_deltas,
            gt_boxes,
            positive,
            self.box_reg_loss_type,
            self.smooth_l1_beta,
        )
        return {"loss_cls": loss_cls / normalizer, "loss_box_reg": loss_box_reg / normalizer}

    @torch.no_grad()
    def label_anchors(self, anchors: list[Boxes], gt_instances: list[Instances]) -> tuple[list[Tensor], list[Tensor]]:
        """Label the anchors of each image.

        Args:
            anchors: of each feature map.
            gt_instances: of each image, with ``gt_boxes`` and ``gt_classes``.

        Returns:
            for each image the labels (R,), and the ground-truth box (R, 4) of each anchor, which means something
            where the label is that of an object.
        """
        anchors = Boxes.cat(anchors)
        all_labels, all_boxes = [], []
        for gt in gt_instances:
            matches, kind = self.anchor_matcher(pairwise_iou(gt.gt_boxes, anchors))
            if len(gt) == 0:
                all_labels.append(torch.full_like(matches, self.num_classes))
                all_boxes.append(torch.zeros_like(anchors.tensor))
                continue
            labels = gt.gt_classes[matches].masked_fill_(kind == 0, self.num_classes)
            all_labels.append(labels.masked_fill_(kind == -1, -1))
            all_boxes.append(gt.gt_boxes.tensor[matches])
        return all_labels, all_boxes

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: list[list[Tensor]]
    ) -> list[Instances]:
        """See :meth:`inference_single_image`, for all images."""
        logits, deltas = self._transpose_dense_predictions(predictions, [self.num_classes, 4])
        anchors = self.anchor_generator(features)
        return [
            self.inference_single_image(anchors, [x[i].sigmoid() for x in logits], [x[i] for x in deltas], image_size)
            for i, image_size in enumerate(images.image_sizes)
        ]

    def inference_single_image(
        self, anchors: list[Boxes], box_cls: list[Tensor], box_delta: list[Tensor], image_size: tuple[int, int]
    ) -> Instances:
        """Detections of one image after NMS within each class.

        Args:
            anchors: of each feature map.
            box_cls: (Ri, K) probabilities of each feature map.
            box_delta: (Ri, 4).
            image_size: (height, width).

        Returns:
            pred_boxes, scores and pred_classes, highest score first.
        """
        found = self._decode_multi_level_predictions(
            anchors, box_cls, box_delta, self.test_score_thresh, self.test_topk_candidates, image_size
        )
        keep = batched_nms(found.pred_boxes.tensor, found.scores, found.pred_classes, self.test_nms_thresh)
        return found[keep[: self.max_detections_per_image]]


class RetinaNetHead(nn.Module):
    """Two towers of 3x3 convolutions, one for classes and one for boxes, shared by all feature maps."""

    @configurable
    def __init__(
        self,
        *,
        input_shape: list[ShapeSpec],
        num_classes: int,
        num_anchors: int,
        conv_dims: list[int],
        norm: str | Callable = "",
        prior_prob: float = 0.01,
    ) -> None:
        """
        Args:
            input_shape: of each feature map; all have the same channels.
            num_classes, num_anchors: K and A.
            conv_dims: output channels of each convolution of a tower.
            norm: normalisation within the towers, as for ``layers.get_norm``; "BN" and "SyncBN" keep statistics of
                their own for each feature map, since maps differ in theirs.
            prior_prob: probability that a fresh classifier gives to each class (section 4.1 of the paper).
        """
        super().__init__()
        self._num_features = len(input_shape)
        make_norm = self._norm_maker(norm)
        towers: tuple[list[nn.Module], list[nn.Module]] = ([], [])
        channels = input_shape[0].channels
        for dim in conv_dims:
            for tower in towers:
                tower.append(nn.Conv2d(channels, dim, kernel_size=3, padding=1))
                if norm:
                    tower.append(make_norm(dim))
                tower.append(nn.ReLU(inplace=True))
            channels = dim
        self.cls_subnet, self.bbox_subnet = (nn.Sequential(*tower) for tower in towers)
        self.cls_score = nn.Conv2d(channels, num_anchors * num_classes, kernel_size=3, padding=1)
        self.bbox_pred = nn.Conv2d(channels, num_anchors * 4, kernel_size=3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
        nn.init.constant_(self.cls_score.bias, -math.log((1 - prior_prob) / prior_prob))

    def _norm_maker(self, norm: str | Callable) -> Callable[[int], nn.Module | None]:
        separate = {"BN": nn.BatchNorm2d, "SyncBN": nn.SyncBatchNorm}
        if isinstance(norm, str) and norm in separate:
            return lambda channels: CycleBatchNormList(self._num_features, separate[norm], num_features=channels)
        if "BN" in type(get_norm(norm, 32)).__name__:
            logging.getLogger(__name__).warning(
                f"MODEL.RETINANET.NORM={norm}: feature maps of different statistics share this normalisation; "
                "GN, BN or SyncBN suit RetinaNet better"
            )
        return lambda channels: get_norm(norm, channels)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        num_anchors = build_anchor_generator(cfg, input_shape).num_anchors
        if len(set(num_anchors)) != 1:
            raise ValueError(f"RetinaNet needs the same number of anchors on all feature maps, got {num_anchors}")
        net = cfg.MODEL.RETINANET
        return {
            "input_shape": input_shape,
            "num_classes": net.NUM_CLASSES,
            "num_anchors": num_anchors[0],
            "conv_dims": [input_shape[0].channels] * net.NUM_CONVS,
            "norm": net.NORM,
            "prior_prob": net.PRIOR_PROB,
        }

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits (N, A * K, Hi, Wi) and deltas (N, A * 4, Hi, Wi) of each feature map (N, C, Hi, Wi)."""
        if len(features) != self._num_features:
            raise ValueError(f"RetinaNetHead was made for {self._num_features} feature maps, got {len(features)}")
        logits = [self.cls_score(self.cls_subnet(x)) for x in features]
        return logits, [self.bbox_pred(self.bbox_subnet(x)) for x in features]
