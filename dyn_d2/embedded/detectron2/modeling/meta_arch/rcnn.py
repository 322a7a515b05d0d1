"""Meta-architectures of the R-CNN family: regions are proposed from a feature map, then looked at one by one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from detectron2.config import configurable
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage

from ..backbone import Backbone
from ..postprocessing import detector_postprocess
from ..proposal_generator import build_proposal_generator
from ..roi_heads import build_roi_heads
from .build import META_ARCH_REGISTRY
from .image_model import ImageModel, image_model_config, output_size


@META_ARCH_REGISTRY.register()
class GeneralizedRCNN(ImageModel):
    """Backbone, then region proposals, then heads for each region.

    Args:
        backbone: see :class:`ImageModel`, like ``pixel_mean`` and ``pixel_std``.
        proposal_generator: called with (images, features, ground truth or None), returns (proposals, losses).
        roi_heads: called with (images, features, proposals, ground truth or None), returns (detections, losses).
        input_format: meaning of the channels, such as "BGR"; only the visualisation needs it.
        vis_period: every so many iterations the proposals are drawn into the event storage; 0 is never.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        proposal_generator: nn.Module,
        roi_heads: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str | None = None,
        vis_period: int = 0,
    ):
        super().__init__(backbone, pixel_mean, pixel_std)
        if vis_period > 0 and input_format is None:
            raise ValueError("vis_period > 0 draws the input images: input_format has to be given.")
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads
        self.input_format = input_format
        self.vis_period = vis_period

    @classmethod
    def from_config(cls, cfg):
        args = image_model_config(cfg)
        shapes = args["backbone"].output_shape()
        args["proposal_generator"] = build_proposal_generator(cfg, shapes)
        args["roi_heads"] = build_roi_heads(cfg, shapes)
        return {**args, "input_format": cfg.INPUT.FORMAT, "vis_period": cfg.VIS_PERIOD}

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, torch.Tensor] | list[dict[str, Instances]]:
        """
        Args:
            batched_inputs: one dict an image: "image", a (C, H, W) tensor; in training "instances", its ground truth
                in pixels of that tensor; "height" and "width", the size that the detections are wanted in.

        Returns:
            In training, a dict of losses. Otherwise one dict an image, whose "instances" have pred_boxes, scores,
            pred_classes and, with a mask head, pred_masks.
        """
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        targets = self.gathered(batched_inputs, "instances")
        features = self.backbone(images.tensor)
        proposals, proposal_losses = self.proposal_generator(images, features, targets)
        _, detector_losses = self.roi_heads(images, features, proposals, targets)
        if self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0:
            self.visualize_training(batched_inputs, proposals)
        return {**detector_losses, **proposal_losses}

    def inference(
        self,
        batched_inputs: list[dict[str, Any]],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[dict[str, Instances]] | list[Instances]:
        """Detect objects; needs evaluation mode.

        Args:
            batched_inputs: as in :meth:`forward`.
            detected_instances: known pred_boxes and pred_classes of each image, in pixels of the network's input. The
                search for boxes is then left out, and the other heads (masks) look at these boxes.
            do_postprocess: bring the detections to the wanted output size.

        Returns:
            As :meth:`forward` in evaluation mode; without post-processing the Instances of each image themselves, in
            pixels of the network's input and with (N, 1, M, M) mask probabilities.
        """
        if self.training:
            raise RuntimeError("inference() needs evaluation mode: call model.eval() first.")
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        if detected_instances is None:
            proposals, _ = self.proposal_generator(images, features, None)
            results, _ = self.roi_heads(images, features, proposals, None)
        else:
            known = [x.to(self.device) for x in detected_instances]
            results = self.roi_heads.forward_with_given_boxes(features, known)
        return self._postprocess(results, batched_inputs, images.image_sizes) if do_postprocess else results

    @staticmethod
    def _postprocess(instances, batched_inputs, image_sizes) -> list[dict[str, Instances]]:
        return _resized(instances, batched_inputs, image_sizes, "instances")

    def visualize_training(self, batched_inputs: list[dict[str, Any]], proposals: list[Instances]) -> None:
        """Put the first image of the batch into the event storage twice, side by side: with its ground-truth boxes, and
        with the 20 first (best) proposals."""
        title = "Left: GT bounding boxes;  Right: Predicted proposals"
        self.store_drawing(title, batched_inputs[0], proposals[0].proposal_boxes[:20], axis=1)


@META_ARCH_REGISTRY.register()
class ProposalNetwork(ImageModel):
    """Backbone and proposal generator alone. Arguments as in :class:`GeneralizedRCNN`."""

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        proposal_generator: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ):
        super().__init__(backbone, pixel_mean, pixel_std)
        self.proposal_generator = proposal_generator

    @classmethod
    def from_config(cls, cfg):
        args = image_model_config(cfg)
        return {**args, "proposal_generator": build_proposal_generator(cfg, args["backbone"].output_shape())}

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, torch.Tensor] | list[dict[str, Instances]]:
        """Inputs as in :meth:`GeneralizedRCNN.forward`. Returns the losses in training, otherwise one dict an image,
        whose "proposals" have proposal_boxes and objectness_logits."""
        images = self.preprocess_image(batched_inputs)
        targets = self.gathered(batched_inputs, "instances")
        proposals, losses = self.proposal_generator(images, self.backbone(images.tensor), targets)
        return losses if self.training else _resized(proposals, batched_inputs, images.image_sizes, "proposals")


def _resized(instances, batched_inputs, image_sizes, key: str) -> list[dict[str, Instances]]:
    """Results of each image at the size that its input asks for, under ``key``."""
    return [
        {key: detector_postprocess(found, *output_size(inputs, size))}
        for found, inputs, size in zip(instances, batched_inputs, image_sizes, strict=True)
    ]
