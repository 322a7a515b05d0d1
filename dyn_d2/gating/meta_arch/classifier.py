"""Image classification: one label for the whole image."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dyn_d2.data.classification.views import VIEW
from dyn_d2.engine.feature_cache import ALONE
from dyn_d2.gating import current_trace
from dyn_d2.gating.cost import linear_cost
from dyn_d2.gating.kept_units import KeptUnits, keep_units
from dyn_d2.gating.policies.base import UnitClassifier
from dyn_d2.modeling.shapes import channels_of, stride_of

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.structures import ImageList

from .dynamic import DynamicModel, find_policy


@META_ARCH_REGISTRY.register()
class ImageClassifier(DynamicModel):
    """Backbone, global average pooling, and one linear layer; the backbone may be gated or not.

    The multiply-adds of the linear layer are part of the trace, as they are of the numbers that papers give.
    """

    classifies_images = True
    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        num_classes: int,
        in_feature: str = "",
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        modules: UnitClassifier | None = None,
    ) -> None:
        """
        Args:
            backbone: of any kind.
            num_classes: K.
            in_feature: which of its feature maps to classify; "" for the last.
            pixel_mean, pixel_std: one number a channel; the input becomes ``(image - pixel_mean) / pixel_std``.
            modules: classifies the features of units that the policy chooses, instead of the last map.

        Raises:
            ValueError: the backbone has no such feature map, or K < 2.
        """
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"MODEL.IMAGE_CLASSIFIER.NUM_CLASSES is {num_classes}: a classifier needs 2 or more.")
        shapes = backbone.output_shape()
        in_feature = in_feature or list(shapes)[-1]
        if in_feature not in shapes:
            raise ValueError(
                f"MODEL.IMAGE_CLASSIFIER.IN_FEATURE is {in_feature!r}: the backbone gives {', '.join(shapes)}."
            )
        self.backbone, self.num_classes, self.in_feature = backbone, num_classes, in_feature
        self.module_classifier = modules
        self._stride = stride_of(shapes[in_feature])
        self.linear = nn.Linear(channels_of(shapes[in_feature]), num_classes)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg) -> dict[str, Any]:
        backbone = build_backbone(cfg)
        policy = find_policy(backbone)
        return {
            "backbone": backbone,
            "modules": policy.build_classifier(cfg) if policy is not None else None,
            "num_classes": cfg.MODEL.IMAGE_CLASSIFIER.NUM_CLASSES,
            "in_feature": cfg.MODEL.IMAGE_CLASSIFIER.IN_FEATURE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalise the (C, H, W) tensors under "image" and pad them to one batch on the model's device."""
        images = [(inputs["image"].to(self.device) - self.pixel_mean) / self.pixel_std for inputs in batched_inputs]
        return ImageList.from_tensors(
            images, self.backbone.size_divisibility, padding_constraints=self.backbone.padding_constraints
        )

    def forward_task(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """
        Args:
            batched_inputs: one dict an image: "image", a (C, H, W) tensor; in training "label", its class number.

        Returns:
            In training {"loss_cls"}, the mean cross-entropy; the trace gets it per image. Otherwise one dict an image,
            whose "scores" are the (K,) probabilities.

        Raises:
            ValueError: a label is missing in training, or is not in [0, K).
        """
        if self.module_classifier is not None:
            return self._from_modules(self.module_classifier, batched_inputs)
        images = self.preprocess_image(batched_inputs)
        feature, trace = self.backbone(images.tensor)[self.in_feature], current_trace()
        logits = self.linear(self._pooled(feature, images))
        if trace is not None:
            trace.add_fixed("linear", linear_cost(self.linear), feature)
        if not self.training:
            return [{"scores": scores} for scores in logits.float().softmax(-1)]
        labels = labels_of(batched_inputs, self.num_classes, self.device)
        losses = F.cross_entropy(logits.float(), labels, reduction="none")
        if trace is not None:
            trace.context.image_losses = losses.detach()
            trace.context.accuracies = (logits.argmax(1) == labels).float()
        return {"loss_cls": losses.mean()}

    def _from_modules(
        self, modules: UnitClassifier, batched_inputs: list[dict[str, Any]]
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """``forward_task`` where the policy chooses what predictions are made from."""
        if _without_pixels(batched_inputs):
            self._kept(batched_inputs)
        else:
            self.backbone(self.preprocess_image(batched_inputs).tensor)
        trace = current_trace()
        if not self.training:
            return [{"scores": scores} for scores in modules.scores(trace, self.linear)]
        labels = labels_of(batched_inputs, self.num_classes, self.device)
        assert trace is not None  # where a policy chooses units, a trace is recorded
        losses = modules.losses(trace, self.linear, labels)
        trace.context.image_losses = losses.detach()
        return {"loss_cls": losses.mean()}

    @property
    def _kept(self) -> KeptUnits:
        """What gives the features of inputs without pixels."""
        return getattr(self, ALONE)

    def keep_features(self, cfg: CfgNode, loader: Any) -> str:
        """See ``modeling/answers.py``."""
        return keep_units(cfg, self, loader)

    def image_sizes(self, batched_inputs: list[dict[str, Any]]) -> list[tuple[int, int]]:
        if _without_pixels(batched_inputs):
            return [self._kept.size] * len(batched_inputs)
        return super().image_sizes(batched_inputs)

    def graph_outputs(self, images: Tensor) -> dict[str, Tensor]:
        """{"scores": (N, K)} of images (N, C, H, W), for export."""
        feature = self.backbone((images - self.pixel_mean) / self.pixel_std)[self.in_feature]
        return {"scores": self.linear(feature.mean((2, 3))).float().softmax(-1)}

    def export_problem(self) -> str | None:
        """See ``modeling.answers``."""
        if self.module_classifier is not None:
            return "the policy chooses in Python which units the classes are predicted from, which no graph says."
        return None

    def _pooled(self, feature: Tensor, images: ImageList) -> Tensor:
        """(N, C) means over the positions of each image; padding does not count."""
        height, width = images.tensor.shape[-2:]
        if all(tuple(size) == (height, width) for size in images.image_sizes):
            return feature.mean((2, 3))
        own = [(-(-h // self._stride), -(-w // self._stride)) for h, w in images.image_sizes]
        return torch.stack([x[:, :h, :w].mean((1, 2)) for x, (h, w) in zip(feature, own, strict=True)])


def _without_pixels(batched_inputs: list[dict[str, Any]]) -> bool:
    return any(VIEW in inputs for inputs in batched_inputs)


def labels_of(batched_inputs: list[dict[str, Any]], num_classes: int, device: torch.device) -> Tensor:
    """(N,) labels of a training batch.

    Raises:
        ValueError: one is missing, or is not in [0, num_classes).
    """
    for inputs in batched_inputs:
        label = inputs.get("label")
        if label is None or not 0 <= int(label) < num_classes:
            name = inputs.get("file_name", "an image")
            raise ValueError(
                f"the label of {name} is {label}, but MODEL.IMAGE_CLASSIFIER.NUM_CLASSES is {num_classes}: "
                f"training needs labels from 0 to {num_classes - 1}."
            )
    return torch.tensor([int(inputs["label"]) for inputs in batched_inputs], device=device)
