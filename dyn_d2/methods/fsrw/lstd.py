"""LSTD on YOLOv2: the baseline of Table 6.1 after Chen et al., "LSTD: a low-shot transfer detector" (AAAI 2018).

Wang 2020 says that background depression and transfer knowledge were put on YOLOv2, and not how. Here is how we do it.
"""

from typing import Any

from torch import Tensor

from dyn_d2.checkpoint.surgery import Source
from dyn_d2.methods.fsrw.yolo.loss import assign
from dyn_d2.modeling.freeze import freeze_whole

from detectron2.config import configurable
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY

from .yolo import Objects, pointwise
from .yolov2 import STRIDE, YOLOv2


@META_ARCH_REGISTRY.register()
class LSTDYOLOv2(YOLOv2):
    """YOLOv2 whose fine-tuning is held back by two more losses.

    Background depression: the mean square of the features (output of convolution 22) at cells outside of all boxes.
    Transfer knowledge: at the anchors that own an object, a branch for the classes of the base model ("source_score")
    shall say what the base model ("teacher", frozen) says there, both softened by a temperature. Branch and teacher
    serve training only; the checkpoint of the surgery holds both.
    """

    @configurable
    def __init__(
        self,
        *,
        teacher: YOLOv2,
        background_weight: float = 0.5,
        transfer_weight: float = 0.5,
        temperature: float = 2.0,
        **detector: Any,
    ) -> None:
        """
        Args:
            teacher: the base model, becomes frozen.
            background_weight, transfer_weight: factors of the two losses.
            temperature: divides the logits of both sides of the second.
            detector: arguments of YOLOv2.
        """
        super().__init__(**detector)
        self.teacher = teacher
        freeze_whole(teacher)
        self.background_weight, self.transfer_weight = background_weight, transfer_weight
        self.temperature = temperature
        outputs = teacher.num_classes * len(self.anchors)
        self.source_score = pointwise(self.layers.channels["conv22"], outputs)

    @classmethod
    def from_config(cls, cfg) -> dict[str, Any]:
        names = list(cfg.DATASETS.TRAIN)
        base = MetadataCatalog.get(names[0]).get("base_classes", ()) if names else ()
        arguments = YOLOv2.from_config(cfg)
        keys = cfg.MODEL.LSTD
        known = keys.SOURCE_CLASSES or len(base) or arguments["num_classes"]
        teacher = YOLOv2(**{**YOLOv2.from_config(cfg), "num_classes": known})
        return {
            **arguments,
            "teacher": teacher,
            "background_weight": keys.BACKGROUND,
            "transfer_weight": keys.TRANSFER,
            "temperature": keys.TEMPERATURE,
        }

    def training_losses(self, batched_inputs: list[dict[str, Any]], side: int) -> dict[str, Tensor]:
        images = [inputs["image"] for inputs in batched_inputs]
        objects = self.objects(batched_inputs, side // STRIDE)
        features = self.layers(self.feature_maps(images, side))
        source = self.teacher.predict_from_maps(self.teacher.feature_maps(images, side)).classes
        return {
            **self.losses(features, objects),
            "loss_background": self.background_weight * background_depression(features, objects),
            "loss_transfer": self.transfer_weight * self.transfer(features, source, objects),
        }

    def transfer(self, features: Tensor, source: Tensor, objects: Objects) -> Tensor:
        """Cross-entropy between the softened class probabilities of base model and branch, mean over the objects.

        Args:
            features: (B, C, H, W) output of convolution 22.
            source: (B, N', A, H, W) logits of the base model.
        """
        ours = self.source_score(features).unflatten(1, (-1, len(self.anchors)))
        height, width = features.shape[-2:]
        anchor, row, column = assign(objects, self.anchors, (height, width)).T
        index = (objects.image, slice(None), anchor, row, column)
        wanted = (source[index].float() / self.temperature).softmax(1)
        log_given = (ours[index].float() / self.temperature).log_softmax(1)
        return -(wanted * log_given).sum() / max(1, len(objects))


def background_depression(features: Tensor, objects: Objects) -> Tensor:
    """Mean square of the features at cells whose middle lies in no box.

    Args:
        features: (B, C, H, W).
        objects: with boxes in cells.
    """
    height, width = features.shape[-2:]
    free = features.new_ones(len(features), height, width)
    for image, (x, y, w, h) in zip(objects.image.tolist(), objects.boxes.tolist(), strict=True):
        rows = slice(max(0, round(y - h / 2)), max(0, round(y + h / 2)))
        columns = slice(max(0, round(x - w / 2)), max(0, round(x + w / 2)))
        free[image, rows, columns] = 0
    squares = features.float().square().mean(1) * free
    return squares.sum() / free.sum().clamp(min=1)


def add_teacher(checkpoint: dict[str, Any], base: Source) -> None:
    """Put a whole YOLOv2 into the result of ``surgery.operate`` as "teacher", and a copy of its class scores as
    "source_score"."""
    model = checkpoint["model"]
    model |= {f"teacher.{name}": tensor.clone() for name, tensor in base.model.items()}
    for part in ("weight", "bias"):
        model[f"source_score.{part}"] = base.model[f"class_score.{part}"].clone()
