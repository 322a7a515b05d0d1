"""Few-shot detection by feature re-weighting (Kang et al., ICCV 2019) on YOLOv2.

Letters for shapes: B query images, N classes of the episode, A anchors, m channels that are re-weighted.
"""

from typing import Any

import torch
from torch import Tensor

from dyn_d2.data.few_shot.stages import FINETUNE
from dyn_d2.methods.fsrw.yolo.loss import CLASS_LOSSES
from dyn_d2.modeling.shapes import channels_of

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY

from .darknet import DarkNet19
from .reweighting import (
    FeatureReweightingNet,
    ReweightedByClass,
    ReweightingNet,
    build_reweighting,
    predict_reweighted,
    reweight,
    reweighted_share,
)
from .yolo import Objects, Predictions, YoloLoss, keep_slots, output_layer
from .yolov2 import STRIDE, YoloDetector

LAYERS = ("conv13", "conv20", "conv22")


@META_ARCH_REGISTRY.register()
class FSRW(ReweightedByClass, YoloDetector):
    """A YOLOv2 whose features are re-weighted for each class by a vector made from a support image (Eq. 6.1), and whose
    predictor, shared by all classes, gives each class boxes, objectness and a score of its own (Eq. 6.2).

    It has no parameters of a class: which classes it knows is a matter of their vectors.
    """

    backbone: DarkNet19  # or any with its strides; then convolution 13 cannot be re-weighted

    @configurable
    def __init__(
        self,
        *,
        reweighting: ReweightingNet | FeatureReweightingNet | None,
        layer: str = "conv22",
        share: float = 1.0,
        negatives: float = 1.0,
        **detector: Any,
    ) -> None:
        """
        Args:
            reweighting: makes class vectors; None where they will be given.
            layer: which features are re-weighted, the output of convolution 13, 20 or 22 (Table 6.4).
            share: of its channels, the first ones, that are.
            negatives: how many (image, class) pairs without an object count for each with one, see ``keep_slots``.
            detector: arguments of YoloDetector.
        """
        super().__init__(**detector)
        if layer == "conv13" and not hasattr(self.backbone, "last_stage"):
            raise ValueError("MODEL.REWEIGHTING.LAYER conv13 is a layer of DarkNet-19: use conv20 or conv22.")
        self.init_reweighting(reweighting, reweighted_share(self.layers.channels[_known(layer)], share))
        self.layer, self.negatives = layer, negatives
        self.predictor = output_layer(self.layers.channels["conv22"], len(self.anchors), 6)

    @classmethod
    def from_config(cls, cfg) -> dict[str, Any]:
        keys = cfg.MODEL.REWEIGHTING
        arguments = super().from_config(cfg)
        layers = arguments["layers"]
        channels = layers.channels[_known(keys.LAYER)]
        deepest = channels_of(arguments["backbone"].output_shape()[layers.inputs[-1]])
        if keys.CLASS_LOSS not in CLASS_LOSSES:
            raise ValueError(
                f"MODEL.REWEIGHTING.CLASS_LOSS is {keys.CLASS_LOSS!r}: use one of {', '.join(CLASS_LOSSES)}."
            )
        fine_tuning = cfg.FEW_SHOT.BENCHMARK and cfg.FEW_SHOT.STAGE == FINETUNE
        return {
            **arguments,
            "reweighting": build_reweighting(cfg, reweighted_share(channels, keys.SHARE), deepest),
            "layer": keys.LAYER,
            "share": keys.SHARE,
            "negatives": keys.FINETUNE_NEGATIVES if fine_tuning else keys.NEGATIVES,
            "loss": YoloLoss(keys.CLASS_LOSS, cfg.MODEL.YOLO.OBJECT_SCALE, cfg.MODEL.YOLO.IGNORE_IOU),
        }

    def open_for_images(self, cfg: CfgNode) -> list[str]:
        YoloDetector.open_for_images(self, cfg)
        return ReweightedByClass.open_for_images(self, cfg)

    def predict_from_maps(self, maps: dict[str, Tensor]) -> Predictions:
        return self.predict_from_maps_for(maps, self.given_vectors())

    def predict_for(self, images: Tensor, vectors: Tensor) -> Predictions:
        """Predictions for (B, 3, S, S) normalised images and the classes of (N, m) vectors."""
        return self.predict_from_maps_for(self.backbone(images), vectors)

    def predict_from_maps_for(self, maps: dict[str, Tensor], vectors: Tensor) -> Predictions:
        """Predictions from the backbone's features of B images, for the classes of (N, m) vectors."""
        conv13, conv18 = (maps[name] for name in self.layers.inputs)
        if self.layer == "conv22":
            outputs = predict_reweighted(self.layers(maps), vectors, self.predictor)
            return Predictions.by_class(outputs, len(self.anchors))
        # What follows the re-weighted layer runs once for each class.
        if self.layer == "conv13":
            conv13 = reweight(conv13, vectors)
            conv20 = self.layers.deepen(self.backbone.last_stage(conv13))
        else:
            conv20 = reweight(self.layers.deepen(conv18), vectors)
            conv13 = conv13.repeat_interleave(len(vectors), dim=0)
        outputs = self.predictor(self.layers.join(conv13, conv20)).unflatten(0, (-1, len(vectors)))
        return Predictions.by_class(outputs, len(self.anchors))

    def support_features(self, images: list[Tensor]) -> tuple[Tensor, int]:
        maps = self.feature_maps(images, images[0].shape[-1])
        return maps[self.layers.inputs[-1]], STRIDE

    def training_losses(self, batched_inputs: list[dict[str, Any]], side: int) -> dict[str, Tensor]:
        vectors = self.episode_vectors(batched_inputs)
        maps = self.feature_maps([inputs["image"] for inputs in batched_inputs], side)
        objects = self.objects(batched_inputs, side // STRIDE)
        if self.loss.class_loss == "single_binary":
            vectors, objects = self.one_class(vectors, objects)
        predictions = self.predict_from_maps_for(maps, vectors)
        kept = keep_slots(objects, len(batched_inputs), len(vectors), self.negatives)
        return self.loss(predictions, objects, self.anchors, kept, self.pulls_to_prior())

    @staticmethod
    def one_class(vectors: Tensor, objects: Objects) -> tuple[Tensor, Objects]:
        """The episode of the single binary loss: one class, every other time one that the images show."""
        shown = objects.label.unique().tolist()
        every = list(range(len(vectors)))
        choices = shown if shown and torch.rand(()) < 0.5 else every
        drawn = choices[int(torch.randint(len(choices), ()))]
        of_it = (objects.label == drawn).long()
        return vectors[drawn : drawn + 1], Objects(objects.image, of_it - 1, of_it, objects.boxes)


def _known(layer: str) -> str:
    if layer not in LAYERS:
        raise ValueError(f"MODEL.REWEIGHTING.LAYER is {layer!r}: use one of {', '.join(LAYERS)}.")
    return layer
