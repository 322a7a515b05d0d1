"""Region proposal network (Ren et al., Faster R-CNN).

Shapes: N images, L feature maps, A anchors per position, Hi x Wi positions of map i, Ri = Hi * Wi * A, R = sum of Ri.
Names: "deltas" parametrise a box relative to its anchor, "logits" are objectness scores before the sigmoid, "labels"
are 1 (object), 0 (background), -1 (takes no part in the loss).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, cat
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from detectron2.utils.memory import retry_if_cuda_oom
from detectron2.utils.registry import Registry

from ..anchor_generator import build_anchor_generator
from ..box_regression import Box2BoxTransform, _dense_box_regression_loss
from ..matcher import Matcher
from ..sampling import subsample_labels
from .build import PROPOSAL_GENERATOR_REGISTRY
from .proposal_utils import find_top_rpn_proposals

RPN_HEAD_REGISTRY = Registry("RPN_HEAD")
RPN_HEAD_REGISTRY.__doc__ = "RPN heads by name; an entry is called with (cfg, list of ShapeSpec)."


def build_rpn_head(cfg: CfgNode, input_shape: list[ShapeSpec]) -> nn.Module:
    """Build the head that ``cfg.MODEL.RPN.HEAD_NAME`` names."""
    return RPN_HEAD_REGISTRY.get(cfg.MODEL.RPN.HEAD_NAME)(cfg, input_shape)


def _the_one(values: Sequence[int], what: str) -> int:
    """The value that all feature maps share."""
    if len(set(values)) != 1:
        raise ValueError(f"RPN runs one head on all feature maps, so they need the same {what}; got {list(values)}")
    return values[0]


@RPN_HEAD_REGISTRY.register()
class StandardRPNHead(nn.Module):
    """3x3 convolutions, then one 1x1 convolution for logits and one for deltas; shared by all feature maps."""

    @configurable
    def __init__(self, *, in_channels: int, num_anchors: int, box_dim: int = 4, conv_dims: Sequence[int] = (-1,)):
        """
        Args:
            in_channels: of every feature map.
            num_anchors: anchors per position, A.
            box_dim: deltas per anchor.
            conv_dims: output channels of each 3x3 convolution; -1 keeps the number of its input.

        Raises:
            ValueError: ``conv_dims`` has a value that is neither positive nor -1.
        """
        super().__init__()
        convs = []
        for dim in conv_dims:
            if dim <= 0 and dim != -1:
                raise ValueError(f"MODEL.RPN.CONV_DIMS: channels must be positive, or -1 for 'as the input'; got {dim}")
            out = in_channels if dim == -1 else dim
            convs.append(Conv2d(in_channels, out, kernel_size=3, padding=1, activation=nn.ReLU(inplace=True)))
            in_channels = out
        # One convolution is "conv" itself, several are "conv.conv0" and so on: so checkpoints name them.
        if len(convs) == 1:
            self.conv = convs[0]
        else:
            self.conv = nn.Sequential()
            for i, conv in enumerate(convs):
                self.conv.add_module(f"conv{i}", conv)
        self.objectness_logits = nn.Conv2d(in_channels, num_anchors, kernel_size=1)
        self.anchor_deltas = nn.Conv2d(in_channels, num_anchors * box_dim, kernel_size=1)
        for conv in (*convs, self.objectness_logits, self.anchor_deltas):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        anchors = build_anchor_generator(cfg, input_shape)
        return {
            "in_channels": _the_one([shape.channels for shape in input_shape], "number of channels"),
            "num_anchors": _the_one(anchors.num_anchors, "number of anchors per position"),
            "box_dim": anchors.box_dim,
            "conv_dims": cfg.MODEL.RPN.CONV_DIMS,
        }

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits (N, A, Hi, Wi) and deltas (N, A * box_dim, Hi, Wi) of each feature map (N, C, Hi, Wi)."""
        hidden = [self.conv(x) for x in features]
        return [self.objectness_logits(t) for t in hidden], [self.anchor_deltas(t) for t in hidden]


@PROPOSAL_GENERATOR_REGISTRY.register()
class RPN(nn.Module):
    """Scores and refines anchors, learns from a sample of them, and proposes the best."""

    @configurable
    def __init__(
        self,
        *,
        in_features: Sequence[str],
        head: nn.Module,
        anchor_generator: nn.Module,
        anchor_matcher: Matcher,
        box2box_transform: Box2BoxTransform,
        batch_size_per_image: int,
        positive_fraction: float,
        pre_nms_topk: tuple[int, int],
        post_nms_topk: tuple[int, int],
        nms_thresh: float = 0.7,
        min_box_size: float = 0.0,
        anchor_boundary_thresh: float = -1.0,
        loss_weight: float | dict[str, float] = 1.0,
        box_reg_loss_type: str = "smooth_l1",
        smooth_l1_beta: float = 0.0,
    ) -> None:
        """
        Args:
            in_features: names of the feature maps to use, fine to coarse.
            head: gives logits and deltas, see :class:`StandardRPNHead`.
            anchor_generator, anchor_matcher: give the anchors of each feature map, and label them by IoU.
            box2box_transform: how deltas and boxes belong together.
            batch_size_per_image, positive_fraction: anchors per image in the loss; how many may be objects at most.
            pre_nms_topk, post_nms_topk: (training, test) numbers, see :func:`find_top_rpn_proposals`.
            nms_thresh, min_box_size: see :func:`find_top_rpn_proposals`.
            anchor_boundary_thresh: >= 0: anchors that reach further than this beyond the image take no part.
            loss_weight: of both losses, or by the names "loss_rpn_cls" and "loss_rpn_loc".
            box_reg_loss_type, smooth_l1_beta: "smooth_l1" with its beta, or "giou", "diou", "ciou".
        """
        super().__init__()
        self.in_features, self.rpn_head, self.anchor_generator = in_features, head, anchor_generator
        self.anchor_matcher, self.box2box_transform = anchor_matcher, box2box_transform
        self.batch_size_per_image, self.positive_fraction = batch_size_per_image, positive_fraction
        self.pre_nms_topk = dict(zip((True, False), pre_nms_topk, strict=True))  # by self.training
        self.post_nms_topk = dict(zip((True, False), post_nms_topk, strict=True))
        self.nms_thresh, self.min_box_size = nms_thresh, float(min_box_size)
        self.anchor_boundary_thresh = anchor_boundary_thresh
        if not isinstance(loss_weight, dict):
            loss_weight = dict.fromkeys(("loss_rpn_cls", "loss_rpn_loc"), loss_weight)
        self.loss_weight = loss_weight
        self.box_reg_loss_type, self.smooth_l1_beta = box_reg_loss_type, smooth_l1_beta

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        rpn = cfg.MODEL.RPN
        shapes = [input_shape[name] for name in rpn.IN_FEATURES]
        return {
            "in_features": rpn.IN_FEATURES,
            "head": build_rpn_head(cfg, shapes),
            "anchor_generator": build_anchor_generator(cfg, shapes),
            "anchor_matcher": Matcher(rpn.IOU_THRESHOLDS, rpn.IOU_LABELS, allow_low_quality_matches=True),
            "box2box_transform": Box2BoxTransform(weights=rpn.BBOX_REG_WEIGHTS),
            "batch_size_per_image": rpn.BATCH_SIZE_PER_IMAGE,
            "positive_fraction": rpn.POSITIVE_FRACTION,
            "pre_nms_topk": (rpn.PRE_NMS_TOPK_TRAIN, rpn.PRE_NMS_TOPK_TEST),
            "post_nms_topk": (rpn.POST_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TEST),
            "nms_thresh": rpn.NMS_THRESH,
            "min_box_size": cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE,
            "anchor_boundary_thresh": rpn.BOUNDARY_THRESH,
            "loss_weight": {
                "loss_rpn_cls": rpn.LOSS_WEIGHT,
                "loss_rpn_loc": rpn.BBOX_REG_LOSS_WEIGHT * rpn.LOSS_WEIGHT,
            },
            "box_reg_loss_type": rpn.BBOX_REG_LOSS_TYPE,
            "smooth_l1_beta": rpn.SMOOTH_L1_BETA,
        }

    def _subsample_labels(self, label: Tensor) -> Tensor:
        """Keep a random sample of the labels 1 and 0 and set all others to -1, in place."""
        positives, negatives = subsample_labels(label, self.batch_size_per_image, self.positive_fraction, 0)
        label.fill_(-1)
        label[positives] = 1
        label[negatives] = 0
        return label

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Label the anchors of each image.

        Args:
            anchors: of each feature map.
            gt_instances: of each image, with ``gt_boxes``.

        Returns:
            for each image the labels (R,), and the ground-truth box (R, 4) of each anchor, which means something
            where the label is 1.
        """
        anchors = Boxes.cat(anchors)
        all_labels, all_boxes = [], []
        for gt in gt_instances:
            # Anchors by objects can be too much for a GPU; the results are small and come back.
            quality = retry_if_cuda_oom(pairwise_iou)(gt.gt_boxes, anchors)
            matches, labels = (r.to(anchors.device) for r in retry_if_cuda_oom(self.anchor_matcher)(quality))
            del quality
            if self.anchor_boundary_thresh >= 0:
                labels[~anchors.inside_box(gt.image_size, self.anchor_boundary_thresh)] = -1
            all_labels.append(self._subsample_labels(labels))
            boxes = gt.gt_boxes.tensor
            all_boxes.append(boxes[matches] if len(boxes) else torch.zeros_like(anchors.tensor))
        return all_labels, all_boxes

    def losses(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """Binary cross-entropy of the sampled anchors and regression loss of the positive ones, per sampled anchor.

        Args:
            anchors: of each feature map.
            pred_objectness_logits: (N, Ri) of each feature map.
            gt_labels, gt_boxes: what :meth:`label_and_sample_anchors` returned.
            pred_anchor_deltas: (N, Ri, 4) of each feature map.

        Returns:
            "loss_rpn_cls" and "loss_rpn_loc".
        """
        num_images = len(gt_labels)
        labels = torch.stack(gt_labels)
        positive = labels == 1
        sampled = (labels >= 0).nonzero(as_tuple=True)
        num_positive = int(positive.sum())
        storage = get_event_storage()
        storage.put_scalar("rpn/num_pos_anchors", num_positive / num_images)
        storage.put_scalar("rpn/num_neg_anchors", (len(sampled[0]) - num_positive) / num_images)

        losses = {
            "loss_rpn_cls": F.binary_cross_entropy_with_logits(
                cat(pred_objectness_logits, dim=1)[sampled], labels[sampled].float(), reduction="sum"
            ),
            "loss_rpn_loc": _dense_box_regression_loss(
                anchors,
                self.box2box_transform,
                pred_anchor_deltas,
                gt_boxes,
                positive,
                self.box_reg_loss_type,
                self.smooth_l1_beta,
            ),
        }
        per_anchor = 1.0 / (self.batch_size_per_image * num_images)
        return {name: loss * (self.loss_weight.get(name, 1.0) * per_anchor) for name, loss in losses.items()}

    def forward(
        self, images: ImageList, features: dict[str, Tensor], gt_instances: list[Instances] | None = None
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Propose boxes, and in training give the losses.

        Args:
            images: the N input images; their sizes are used.
            features: feature maps (N, C, Hi, Wi) by name.
            gt_instances: the ground truth of each image; needed in training.

        Returns:
            for each image ``proposal_boxes`` and ``objectness_logits``, see :func:`find_top_rpn_proposals`; and the
            losses, empty in evaluation.
        """
        maps = [features[name] for name in self.in_features]
        anchors = self.anchor_generator(maps)
        logits, deltas = self.rpn_head(maps)
        # (N, A * K, H, W) -> (N, H * W * A, K), the order of the anchors
        logits = [x.permute(0, 2, 3, 1).flatten(1) for x in logits]
        box_dim = self.anchor_generator.box_dim
        deltas = [x.permute(0, 2, 3, 1).reshape(len(x), -1, box_dim) for x in deltas]
        losses = {}
        if self.training:
            if gt_instances is None:
                raise ValueError("RPN needs gt_instances in training: the data has no annotations")
            gt_labels, gt_boxes = self.label_and_sample_anchors(anchors, gt_instances)
            losses = self.losses(anchors, logits, gt_labels, deltas, gt_boxes)
        return self.predict_proposals(anchors, logits, deltas, images.image_sizes), losses

    @torch.no_grad()
    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """Decode the best anchors of each level and choose proposals among them, see :func:`find_top_rpn_proposals`.

        No gradient flows through proposals: they are data to the heads behind.
        """
        topk = self.pre_nms_topk[self.training]
        boxes, scores = [], []
        for level, logits, deltas in zip(anchors, pred_objectness_logits, pred_anchor_deltas, strict=True):
            # Only what can survive is decoded: a few thousand of some hundred thousand anchors.
            level_scores, index = logits.topk(min(topk, logits.shape[1]), dim=1)
            chosen = deltas.gather(1, index[..., None].expand(-1, -1, deltas.shape[2]))
            decoded = self.box2box_transform.apply_deltas(chosen.flatten(0, 1), level.tensor[index.flatten()])
            boxes.append(decoded.view(chosen.shape))
            scores.append(level_scores)
        return find_top_rpn_proposals(
            boxes,
            scores,
            image_sizes,
            self.nms_thresh,
            topk,
            self.post_nms_topk[self.training],
            self.min_box_size,
            self.training,
        )
