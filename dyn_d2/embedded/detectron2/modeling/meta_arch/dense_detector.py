"""What detectors share that predict at every position of their feature maps, without proposals."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage

from ..backbone import Backbone
from ..postprocessing import detector_postprocess
from .image_model import ImageModel, output_size


def permute_to_N_HWA_K(tensor: Tensor, K: int) -> Tensor:
    """(N, A * K, H, W) -> (N, H * W * A, K), the order of the anchors."""
    return tensor.permute(0, 2, 3, 1).reshape(len(tensor), -1, K)


class DenseDetector(ImageModel):
    """Backbone and one head. A subclass defines :meth:`forward_training` and :meth:`forward_inference`, and
    ``box2box_transform`` if it uses the decoding below."""

    vis_period = 0  # draw training results every so many iterations; 0: never
    input_format = "BGR"

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: Sequence[str] | None = None,
        *,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        """
        Args:
            backbone: see :class:`ImageModel`, like ``pixel_mean`` and ``pixel_std``.
            head: maps the list of feature maps to predictions.
            head_in_features: names of the feature maps, fine to coarse; None: all of the backbone's.
        """
        super().__init__(backbone, pixel_mean, pixel_std)
        self.head = head
        if head_in_features is None:
            shapes = backbone.output_shape()
            head_in_features = sorted(shapes, key=lambda name: shapes[name].stride)
        self.head_in_features = head_in_features

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """
        Args:
            batched_inputs: one dict an image: "image", a (C, H, W) tensor; in training "instances", its ground truth
                in pixels of that tensor; "height" and "width", the size that the detections are wanted in.

        Returns:
            In training, a dict of losses. Otherwise one dict an image, whose "instances" have pred_boxes, scores and
            pred_classes.
        """
        images = self.preprocess_image(batched_inputs)
        named = self.backbone(images.tensor)
        features = [named[name] for name in self.head_in_features]
        predictions = self.head(features)
        if self.training:
            targets = self.gathered(batched_inputs, "instances")
            if targets is None:
                raise ValueError("the inputs have no 'instances', the ground truth that training needs")
            if self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0:
                with torch.no_grad():
                    results = self.forward_inference(images, features, predictions)
                self.visualize_training(batched_inputs, results)
            return self.forward_training(images, features, predictions, targets)
        results = self.forward_inference(images, features, predictions)
        return [
            {"instances": detector_postprocess(found, *output_size(inputs, size))}
            for found, inputs, size in zip(results, batched_inputs, images.image_sizes, strict=True)
        ]

    def forward_training(
        self, images: ImageList, features: list[Tensor], predictions: list[list[Tensor]], gt_instances: list[Instances]
    ) -> dict[str, Tensor]:
        """The losses of a batch."""
        raise NotImplementedError

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: list[list[Tensor]]
    ) -> list[Instances]:
        """The detections of each image, in pixels of the network's input."""
        raise NotImplementedError

    def _transpose_dense_predictions(
        self, predictions: list[list[Tensor]], dims_per_anchor: list[int]
    ) -> list[list[Tensor]]:
        """:func:`permute_to_N_HWA_K` on every feature map of every kind of prediction."""
        return [
            [permute_to_N_HWA_K(x, dim) for x in maps] for maps, dim in zip(predictions, dims_per_anchor, strict=True)
        ]

    def _ema_update(self, name: str, value: float, initial_value: float, momentum: float = 0.9) -> float:
        """Blend ``value`` into the running average that the attribute ``name`` holds, and return it.

        It steadies the normaliser of a loss: the number of positives of a small batch varies much. The average starts
        at ``initial_value`` and is not part of the state_dict.
        """
        new = momentum * getattr(self, name, initial_value) + (1 - momentum) * value
        setattr(self, name, new)
        return new

    def _decode_multi_level_predictions(
        self,
        anchors: list[Boxes],
        pred_scores: list[Tensor],
        pred_deltas: list[Tensor],
        score_thresh: float,
        topk_candidates: int,
        image_size: tuple[int, int],
    ) -> Instances:
        """Boxes of the best (anchor, class) pairs of one image.

        Args:
            anchors, pred_scores, pred_deltas: (Ri, 4), probabilities (Ri, K) and (Ri, 4) of each feature map.
            score_thresh, topk_candidates: pairs must score higher; pairs that each feature map may bring.
            image_size: (height, width).

        Returns:
            pred_boxes, scores and pred_classes, best first within each feature map, before NMS.
        """
        chosen = []
        for level, level_scores, level_deltas in zip(anchors, pred_scores, pred_deltas, strict=True):
            flat = level_scores.flatten()
            pairs = (flat > score_thresh).nonzero()[:, 0]
            scores, best = flat[pairs].topk(min(len(pairs), topk_candidates))
            pairs = pairs[best]
            index = pairs // level_scores.shape[1]
            chosen.append((level.tensor[index], level_deltas[index], scores, pairs % level_scores.shape[1]))
        boxes, deltas, scores, classes = (torch.cat(parts) for parts in zip(*chosen, strict=True))
        boxes = Boxes(self.box2box_transform.apply_deltas(deltas, boxes))
        return Instances(image_size, pred_boxes=boxes, scores=scores, pred_classes=classes)

    def visualize_training(self, batched_inputs: list[dict[str, Any]], results: list[Instances]) -> None:
        """Put the first image of the batch into the event storage twice, one above the other: with its ground-truth
        boxes, and with the 20 first of its detections ``results``."""
        found = detector_postprocess(results[0], *batched_inputs[0]["image"].shape[1:]).pred_boxes[:20]
        title = "Top: GT bounding boxes; Bottom: 20 Highest Scoring Results"
        self.store_drawing(title, batched_inputs[0], found, axis=0)
