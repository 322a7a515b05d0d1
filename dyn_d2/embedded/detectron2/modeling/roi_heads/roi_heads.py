"""ROI heads: which proposals are trained on, and what is predicted for each region."""

import inspect
from collections.abc import Sequence
from statistics import fmean

import torch
from torch import nn

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.left_out import left_out
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from detectron2.utils.registry import Registry

from ..backbone.resnet import BottleneckBlock, ResNet
from ..matcher import Matcher
from ..poolers import ROIPooler
from ..proposal_generator.proposal_utils import add_ground_truth_to_proposals
from ..sampling import subsample_labels
from .box_head import build_box_head
from .fast_rcnn import FastRCNNOutputLayers
from .mask_head import build_mask_head

ROI_HEADS_REGISTRY = Registry("ROI_HEADS")
ROI_HEADS_REGISTRY.__doc__ = """
Everything that a model computes for each region, chosen by MODEL.ROI_HEADS.NAME. Called with
(cfg, {feature name: ShapeSpec}); the module that comes back is an :class:`ROIHeads` or is called like one.
"""

Features = dict[str, torch.Tensor]
Losses = dict[str, torch.Tensor]


def build_roi_heads(cfg, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """The heads that MODEL.ROI_HEADS.NAME names, for backbone features of the given shapes."""
    return ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME)(cfg, input_shape)


def select_foreground_proposals(
    proposals: list[Instances], bg_label: int
) -> tuple[list[Instances], list[torch.Tensor]]:
    """Of each image the proposals whose gt_classes is neither ``bg_label`` nor -1 (ignored), and the (Ri,) bool masks
    that select them."""
    masks = [(x.gt_classes != bg_label) & (x.gt_classes != -1) for x in proposals]
    return [x[mask.nonzero()[:, 0]] for x, mask in zip(proposals, masks, strict=True)], masks


def _build_pooler(head_cfg, in_features: Sequence[str], input_shape: dict[str, ShapeSpec]) -> ROIPooler:
    """The pooler that a node like MODEL.ROI_BOX_HEAD describes."""
    return ROIPooler(
        output_size=head_cfg.POOLER_RESOLUTION,
        scales=tuple(1.0 / input_shape[name].stride for name in in_features),
        sampling_ratio=head_cfg.POOLER_SAMPLING_RATIO,
        pooler_type=head_cfg.POOLER_TYPE,
    )


def _pooled_shape(head_cfg, in_features: Sequence[str], input_shape: dict[str, ShapeSpec]) -> ShapeSpec:
    channels = {input_shape[name].channels for name in in_features}
    if len(channels) != 1:
        raise ValueError(f"One head reads all of {list(in_features)}, but their channels differ: {sorted(channels)}.")
    side = head_cfg.POOLER_RESOLUTION
    return ShapeSpec(channels=channels.pop(), height=side, width=side)


class ROIHeads(nn.Module):
    """Matching and sampling of proposals for training; a subclass adds :meth:`forward`.

    Args:
        num_classes: foreground classes K; label K is background.
        batch_size_per_image: proposals sampled from each image for training.
        positive_fraction: at most this share of them is foreground.
        proposal_matcher: assigns an object, or background, to each proposal by their IoU.
        proposal_append_gt: take the true boxes as proposals too. Early in training hardly any other proposal is good
            enough to be a foreground example.
    """

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        batch_size_per_image: int,
        positive_fraction: float,
        proposal_matcher: Matcher,
        proposal_append_gt: bool = True,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.batch_size_per_image, self.positive_fraction = batch_size_per_image, positive_fraction
        self.proposal_matcher, self.proposal_append_gt = proposal_matcher, proposal_append_gt

    @classmethod
    def from_config(cls, cfg):
        if cfg.MODEL.KEYPOINT_ON:
            raise left_out("MODEL.KEYPOINT_ON", "keypoints")
        heads = cfg.MODEL.ROI_HEADS
        return {
            "num_classes": heads.NUM_CLASSES,
            "batch_size_per_image": heads.BATCH_SIZE_PER_IMAGE,
            "positive_fraction": heads.POSITIVE_FRACTION,
            "proposal_matcher": Matcher(heads.IOU_THRESHOLDS, heads.IOU_LABELS, allow_low_quality_matches=False),
            "proposal_append_gt": heads.PROPOSAL_APPEND_GT,
        }

    def _sample_proposals(
        self, matched_idxs: torch.Tensor, matched_labels: torch.Tensor, gt_classes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Label the proposals of one image and draw some of them.

        Args:
            matched_idxs: (P,) index of the object that fits each proposal best.
            matched_labels: (P,) 1 where it fits, 0 where it does not, -1 where the proposal shall be ignored.
            gt_classes: (M,) classes of the objects.

        Returns:
            Indices of the drawn proposals, foreground first, and their classes.
        """
        if gt_classes.numel() > 0:
            labels = gt_classes[matched_idxs]
            labels[matched_labels == 0] = self.num_classes
            labels[matched_labels == -1] = -1
        else:
            labels = torch.full_like(matched_idxs, self.num_classes)
        drawn = torch.cat(subsample_labels(labels, self.batch_size_per_image, self.positive_fraction, self.num_classes))
        return drawn, labels[drawn]

    @torch.no_grad()
    def label_and_sample_proposals(self, proposals: list[Instances], targets: list[Instances]) -> list[Instances]:
        """Draw the proposals to train on and give them their truth.

        Args:
            proposals: of each image, with proposal_boxes and objectness_logits.
            targets: ground truth of each image, with gt_boxes, gt_classes and any other gt_* fields.

        Returns:
            At most ``batch_size_per_image`` proposals an image with gt_classes (K is background). In an image with
            objects they also get the other gt_* fields of the best-fitting object, meaningless for background.

        Raises:
            ValueError: a class of the ground truth is not below ``num_classes``.
        """
        if self.proposal_append_gt:
            proposals = add_ground_truth_to_proposals(targets, proposals)
        sampled, counts = [], []
        for candidates, truth in zip(proposals, targets, strict=True):
            iou = pairwise_iou(truth.gt_boxes, candidates.proposal_boxes)
            matches, match_labels = self.proposal_matcher(iou)
            drawn, classes = self._sample_proposals(matches, match_labels, truth.gt_classes)
            chosen = candidates[drawn]
            chosen.gt_classes = classes
            if len(truth) > 0:
                for name, value in truth.get_fields().items():
                    if name.startswith("gt_") and not chosen.has(name):
                        chosen.set(name, value[matches[drawn]])
            sampled.append(chosen)
            num_background = (classes == self.num_classes).sum()
            counts.append(torch.stack([num_background, (truth.gt_classes >= self.num_classes).sum()]))
        self._log_samples(torch.stack(counts).tolist(), sampled)
        return sampled

    def _log_samples(self, counts: list[list[int]], sampled: list[Instances]) -> None:
        """``counts``: of each image the background samples and the objects of unknown class."""
        if any(unknown for _, unknown in counts):
            raise ValueError(
                f"The ground truth has classes beyond the {self.num_classes} of the model (labels 0 to "
                f"{self.num_classes - 1}): set MODEL.ROI_HEADS.NUM_CLASSES to the number of classes of the data set."
            )
        storage = get_event_storage()
        foreground = [len(x) - background for x, (background, _) in zip(sampled, counts, strict=True)]
        storage.put_scalar("roi_head/num_fg_samples", fmean(foreground))
        storage.put_scalar("roi_head/num_bg_samples", fmean(background for background, _ in counts))

    def forward(
        self, images: ImageList, features: Features, proposals: list[Instances], targets: list[Instances] | None = None
    ) -> tuple[list[Instances], Losses]:
        """
        Args:
            images: the normalised batch.
            features: (N, C, H, W) maps by name.
            proposals: of each image, with proposal_boxes and objectness_logits.
            targets: ground truth of each image; in training only.

        Returns:
            In training (anything, losses); otherwise (detections of each image, {}).
        """
        raise NotImplementedError(f"{type(self).__name__} has to define forward().")

    def _labelled(self, proposals: list[Instances], targets: list[Instances] | None) -> list[Instances]:
        if not targets:
            raise ValueError("Training ROI heads needs ground truth: 'instances' in every input.")
        return self.label_and_sample_proposals(proposals, targets)


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeads(ROIHeads):
    """The heads of a "C4" model: pooled regions pass the last stage of the ResNet, whose output the box predictor and
    the mask head share (He et al., Deep residual learning, 2016, Appendix A).

    Args:
        in_features: name of the one feature map that is pooled.
        pooler: crops the regions.
        res5: computes the shared features of a region.
        box_predictor: called with their spatial mean; see :class:`FastRCNNOutputLayers`.
        mask_head: called with the shared features themselves; None for detection alone.
        kwargs: see :class:`ROIHeads`.
    """

    @configurable
    def __init__(
        self,
        *,
        in_features: list[str],
        pooler: ROIPooler,
        res5: nn.Module | Sequence[nn.Module],
        box_predictor: nn.Module,
        mask_head: nn.Module | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.in_features = in_features
        self.pooler = pooler
        self.res5 = res5 if isinstance(res5, nn.Module) else nn.Sequential(*res5)
        self.box_predictor = box_predictor
        self.mask_on = mask_head is not None
        if self.mask_on:
            self.mask_head = mask_head

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        in_features = cfg.MODEL.ROI_HEADS.IN_FEATURES
        if len(in_features) != 1:
            raise ValueError(f"Res5ROIHeads pools one feature map: MODEL.ROI_HEADS.IN_FEATURES is {in_features}.")
        args = super().from_config(cfg)
        args["in_features"] = in_features
        args["pooler"] = _build_pooler(cfg.MODEL.ROI_BOX_HEAD, in_features, input_shape)
        args["res5"], channels = cls._build_res5_block(cfg)
        args["box_predictor"] = FastRCNNOutputLayers(cfg, ShapeSpec(channels=channels, height=1, width=1))
        if cfg.MODEL.MASK_ON:
            side = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
            args["mask_head"] = build_mask_head(cfg, ShapeSpec(channels=channels, height=side, width=side))
        return args

    @classmethod
    def _build_res5_block(cls, cfg) -> tuple[nn.Sequential, int]:
        """The stage and its number of output channels."""
        resnet = cfg.MODEL.RESNETS
        if resnet.DEFORM_ON_PER_STAGE[-1]:
            raise left_out("MODEL.RESNETS.DEFORM_ON_PER_STAGE", "deformable convolution")
        growth = 2**3  # channels double with each stage after res2
        channels = resnet.RES2_OUT_CHANNELS * growth
        blocks = ResNet.make_stage(
            BottleneckBlock,
            3,
            stride_per_block=[2, 1, 1],
            in_channels=channels // 2,
            out_channels=channels,
            bottleneck_channels=resnet.NUM_GROUPS * resnet.WIDTH_PER_GROUP * growth,
            num_groups=resnet.NUM_GROUPS,
            norm=resnet.NORM,
            stride_in_1x1=resnet.STRIDE_IN_1X1,
        )
        return nn.Sequential(*blocks), channels

    def _shared_roi_transform(self, features: list[torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
        return self.res5(self.pooler(features, boxes))

    def forward(
        self, images: ImageList, features: Features, proposals: list[Instances], targets: list[Instances] | None = None
    ) -> tuple[list[Instances], Losses]:
        """See :meth:`ROIHeads.forward`."""
        if self.training:
            proposals = self._labelled(proposals, targets)
        maps = [features[name] for name in self.in_features]
        shared = self._shared_roi_transform(maps, [x.proposal_boxes for x in proposals])
        predictions = self.box_predictor(shared.mean(dim=[2, 3]))
        if not self.training:
            detections, _ = self.box_predictor.inference(predictions, proposals)
            return self.forward_with_given_boxes(features, detections), {}
        losses = self.box_predictor.losses(predictions, proposals)
        if self.mask_on:
            foreground, masks = select_foreground_proposals(proposals, self.num_classes)
            losses.update(self.mask_head(shared[torch.cat(masks)], foreground))
        return [], losses

    def forward_with_given_boxes(self, features: Features, instances: list[Instances]) -> list[Instances]:
        """Masks for known boxes: gives each image's instances, which have pred_boxes and pred_classes, "pred_masks"."""
        if not self.mask_on:
            return instances
        maps = [features[name] for name in self.in_features]
        return self.mask_head(self._shared_roi_transform(maps, [x.pred_boxes for x in instances]), instances)


@ROI_HEADS_REGISTRY.register()
class StandardROIHeads(ROIHeads):
    """Heads that share nothing but the feature maps: each pools its regions and works on them by itself.

    A subclass replaces one leg: ``_init_box_head`` or ``_init_mask_head`` to build it, ``_forward_box`` or
    ``_forward_mask`` to run it.

    Args:
        box_in_features, box_pooler, box_head, box_predictor: names of the feature maps, what crops the regions, what
            turns a region into a vector, and what predicts from it (see :class:`FastRCNNOutputLayers`).
        mask_in_features, mask_pooler, mask_head: likewise for masks; no mask head where ``mask_in_features`` is None.
            Without a pooler the mask head is called with the dict of feature maps.
        train_on_pred_boxes: the mask head is trained on the boxes that the box head predicts instead of the proposals.
        kwargs: see :class:`ROIHeads`.
    """

    @configurable
    def __init__(
        self,
        *,
        box_in_features: list[str],
        box_pooler: ROIPooler,
        box_head: nn.Module,
        box_predictor: nn.Module,
        mask_in_features: list[str] | None = None,
        mask_pooler: ROIPooler | None = None,
        mask_head: nn.Module | None = None,
        train_on_pred_boxes: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.in_features = self.box_in_features = box_in_features
        self.box_pooler, self.box_head, self.box_predictor = box_pooler, box_head, box_predictor
        self.mask_on = mask_in_features is not None
        if self.mask_on:
            self.mask_in_features, self.mask_pooler, self.mask_head = mask_in_features, mask_pooler, mask_head
        self.train_on_pred_boxes = train_on_pred_boxes

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        args = super().from_config(cfg)
        args["train_on_pred_boxes"] = cfg.MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES
        for build in (cls._init_box_head, cls._init_mask_head):
            # Subclasses of Detectron2's early days override these by instance methods and call them in __init__.
            if inspect.ismethod(build):
                args.update(build(cfg, input_shape))
        return args

    @classmethod
    def _init_box_head(cls, cfg, input_shape: dict[str, ShapeSpec]):
        node, in_features = cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_HEADS.IN_FEATURES
        box_head = build_box_head(cfg, _pooled_shape(node, in_features, input_shape))
        return {
            "box_in_features": in_features,
            "box_pooler": _build_pooler(node, in_features, input_shape),
            "box_head": box_head,
            "box_predictor": FastRCNNOutputLayers(cfg, box_head.output_shape),
        }

    @classmethod
    def _init_mask_head(cls, cfg, input_shape: dict[str, ShapeSpec]):
        if not cfg.MODEL.MASK_ON:
            return {}
        node, in_features = cfg.MODEL.ROI_MASK_HEAD, cfg.MODEL.ROI_HEADS.IN_FEATURES
        if node.POOLER_TYPE:
            pooler = _build_pooler(node, in_features, input_shape)
            shape = _pooled_shape(node, in_features, input_shape)
        else:
            pooler, shape = None, {name: input_shape[name] for name in in_features}
        return {
            "mask_in_features": in_features,
            "mask_pooler": pooler,
            "mask_head": build_mask_head(cfg, shape),
        }

    def forward(
        self, images: ImageList, features: Features, proposals: list[Instances], targets: list[Instances] | None = None
    ) -> tuple[list[Instances], Losses]:
        """See :meth:`ROIHeads.forward`; in training the sampled proposals come back with the losses."""
        if not self.training:
            detections = self._forward_box(features, proposals)
            return self.forward_with_given_boxes(features, detections), {}
        proposals = self._labelled(proposals, targets)
        losses = self._forward_box(features, proposals)
        losses.update(self._forward_mask(features, proposals))
        losses.update(self._forward_keypoint(features, proposals))
        return proposals, losses

    def forward_with_given_boxes(self, features: Features, instances: list[Instances]) -> list[Instances]:
        """Masks for known boxes: gives each image's instances, which have pred_boxes and pred_classes, "pred_masks"."""
        return self._forward_keypoint(features, self._forward_mask(features, instances))

    def _forward_box(self, features: Features, proposals: list[Instances]) -> Losses | list[Instances]:
        """Losses in training, otherwise the detections of each image."""
        regions = self.box_pooler(
            [features[name] for name in self.box_in_features], [x.proposal_boxes for x in proposals]
        )
        predictions = self.box_predictor(self.box_head(regions))
        if not self.training:
            return self.box_predictor.inference(predictions, proposals)[0]
        losses = self.box_predictor.losses(predictions, proposals)
        if self.train_on_pred_boxes:  # only now: the losses refer to the boxes that were pooled
            with torch.no_grad():
                refined = self.box_predictor.predict_boxes_for_gt_classes(predictions, proposals)
            for x, boxes in zip(proposals, refined, strict=True):
                x.proposal_boxes = Boxes(boxes)
        return losses

    def _forward_mask(self, features: Features, instances: list[Instances]) -> Losses | list[Instances]:
        """In training the losses of the foreground proposals, otherwise the detections, now with masks."""
        if not self.mask_on:
            return {} if self.training else instances
        if self.training:
            instances, _ = select_foreground_proposals(instances, self.num_classes)
        if self.mask_pooler is None:
            return self.mask_head({name: features[name] for name in self.mask_in_features}, instances)
        boxes = [x.proposal_boxes if self.training else x.pred_boxes for x in instances]
        regions = self.mask_pooler([features[name] for name in self.mask_in_features], boxes)
        return self.mask_head(regions, instances)

    def _forward_keypoint(self, features: Features, instances: list[Instances]) -> Losses | list[Instances]:
        """Adds nothing, since there are no keypoint heads; subclasses with a forward() of their own call it."""
        return {} if self.training else instances
