"""YOLOv2 (Redmon and Farhadi, "YOLO9000: better, faster, stronger"), the plain detector that FSRW is built on.

Letters for shapes: B images, N classes, A anchors, M objects of the batch.
"""

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dyn_d2.config.applied import NoticesKeys
from dyn_d2.data.few_shot.stages import is_fine_tuning

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone, detector_postprocess
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage

from .frozen_features import FrozenFeatures, is_frozen
from .yolo import DetectionLayers, Objects, Predictions, YoloLoss, detect, keep_slots, output_layer, pointwise

STRIDE = 32


def sides_at(iteration: int, size: int, sides: Sequence[int], ramp: Sequence[int] = ()) -> list[int]:
    """The sides that training draws from: ``size`` alone up to the iteration ``ramp[0]``, all ``sides`` from
    ``ramp[1]`` on, and in between those within a range around ``size`` that grows evenly; all of them without a ramp.
    """
    if not ramp or iteration >= ramp[1]:
        return list(sides)
    part = max(0.0, (iteration - ramp[0]) / (ramp[1] - ramp[0]))
    low, high = (size + part * (end(sides) - size) for end in (min, max))
    return [side for side in sides if low <= side <= high] or [size]


def _images(batched_inputs: list[dict[str, Any]]) -> list[Tensor]:
    return [inputs["image"] for inputs in batched_inputs]


class YoloDetector(NoticesKeys, nn.Module):
    """What YOLOv2 and its re-weighted form share: square input, features, ground truth in cells, detections.

    The network sees images squashed to a square, whatever their aspect; detections come back in the frame of the image.
    """

    OWN_SIZE = "MODEL.YOLO.SIZE"  # the key that says what every image is resized to
    backbone: Backbone
    anchors: Tensor
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        *,
        backbone: Backbone,
        layers: DetectionLayers,
        anchors: Sequence[Sequence[float]],
        size: int = 416,
        train_sizes: Sequence[int] = (),
        ramp: Sequence[int] = (),
        loss: YoloLoss,
        prior_iters: int = 0,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        test_score_thresh: float = 0.005,
        test_nms_thresh: float = 0.45,
        test_topk_per_image: int = 100,
        kept_features: FrozenFeatures | None = None,
    ) -> None:
        """
        Args:
            backbone: DarkNet19, or any with feature maps of strides 16 and 32.
            layers: convolutions 19 to 22.
            anchors: (A, 2) widths and heights in cells of 32 pixels.
            size: side of the square in evaluation, a multiple of 32.
            train_sizes: sides to draw from in training, a new one for each batch; () for ``size``.
            ramp: see ``sides_at``.
            loss: on predictions.
            prior_iters: in so many first iterations, anchors without an object learn to predict themselves.
            pixel_mean, pixel_std: one number a channel; the input becomes ``(image - pixel_mean) / pixel_std``.
            test_score_thresh, test_nms_thresh, test_topk_per_image: see ``detect``.
            kept_features: where the features of a frozen backbone are kept; None computes them anew each time.

        Raises:
            ValueError: a size is no multiple of 32, or an anchor has no area.
        """
        super().__init__()
        wrong = [side for side in (size, *train_sizes) if side < STRIDE or side % STRIDE]
        if wrong:
            raise ValueError(f"MODEL.YOLO.SIZE or TRAIN_SIZES is {wrong[0]}: use multiples of {STRIDE}.")
        if len(anchors) == 0 or not all(len(anchor) == 2 and min(anchor) > 0 for anchor in anchors):
            raise ValueError(f"MODEL.YOLO.ANCHORS is {anchors}: use pairs of width and height above 0, in cells.")
        self.backbone, self.layers, self.loss, self.prior_iters = backbone, layers, loss, prior_iters
        self.size, self.train_sizes, self.ramp = size, list(train_sizes) or [size], tuple(ramp)
        self.test_score_thresh, self.test_nms_thresh = test_score_thresh, test_nms_thresh
        self.test_topk_per_image = test_topk_per_image
        self.kept_features = kept_features
        self.register_buffer("anchors", torch.tensor(anchors, dtype=torch.float32), persistent=False)
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg) -> dict[str, Any]:
        keys, dark = cfg.MODEL.YOLO, cfg.MODEL.DARKNET
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        inputs = keys.IN_FEATURES
        if [shapes[name].stride if name in shapes else 0 for name in inputs] != [STRIDE // 2, STRIDE]:
            given = ", ".join(f"{name} (stride {shape.stride})" for name, shape in shapes.items())
            raise ValueError(
                f"MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} gives {given}: {cls.__name__} needs one feature of "
                f"stride 16 and one of stride 32, and MODEL.YOLO.IN_FEATURES has to name these two, not "
                f"{', '.join(inputs)}."
            )
        fine_tuning = is_fine_tuning(cfg)
        return {
            "backbone": backbone,
            "layers": DetectionLayers(shapes, dark.WIDTH, dark.NORM, inputs),
            "kept_features": FrozenFeatures(keys.CACHE, keys.CACHE_GB, inputs) if keys.CACHE else None,
            "anchors": keys.ANCHORS,
            "size": keys.SIZE,
            "train_sizes": keys.TRAIN_SIZES,
            "ramp": keys.RAMP,
            "loss": YoloLoss("softmax", keys.OBJECT_SCALE, keys.IGNORE_IOU),
            "prior_iters": 0 if fine_tuning else keys.PRIOR_ITERS,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "test_score_thresh": keys.SCORE_THRESH_TEST,
            "test_nms_thresh": keys.NMS_THRESH_TEST,
            "test_topk_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def preprocess(self, batched_inputs: list[dict[str, Any]], side: int) -> Tensor:
        """(B, 3, side, side): the normalised (3, H, W) tensors under "image", each squashed to the square."""
        return self.squash([inputs["image"] for inputs in batched_inputs], side)

    def squash(self, images: Sequence[Tensor], side: int) -> Tensor:
        """(B, 3, side, side): normalised (3, H, W) images, each squashed to the square."""
        squares = []
        for given in images:
            image = (given.to(self.device).float() - self.pixel_mean) / self.pixel_std
            if image.shape[-2:] != (side, side):
                image = F.interpolate(image[None], (side, side), mode="bilinear", antialias=True)[0]
            squares.append(image)
        return torch.stack(squares)

    def feature_maps(self, images: Sequence[Tensor], side: int) -> dict[str, Tensor]:
        """The backbone's features of (3, H, W) images, squashed to squares; kept ones where it is frozen."""
        if self.kept_features is None or not is_frozen(self.backbone):
            return self.backbone(self.squash(images, side))
        return self.kept_features(
            self.backbone,
            images,
            f"{side} {self.pixel_mean.tolist()} {self.pixel_std.tolist()}",
            lambda image: self.backbone(self.squash([image], side)),
        )

    def objects(self, batched_inputs: list[dict[str, Any]], cells: int) -> Objects:
        """The ground truth in cells of a ``cells`` x ``cells`` grid; labels are class numbers, and so are slots. Boxes
        without area are left out."""
        images, classes, boxes = [], [], []
        for number, inputs in enumerate(batched_inputs):
            truth = inputs["instances"].to(self.device)
            height, width = truth.image_size
            corners = truth.gt_boxes.tensor.float()
            scale = corners.new_tensor([cells / width, cells / height])
            low, high = corners[:, :2] * scale, corners[:, 2:] * scale
            proper = (high > low).all(1)
            boxes.append(torch.cat([(low + high) / 2, high - low], dim=1)[proper])
            classes.append(truth.gt_classes[proper])
            images.append(torch.full_like(classes[-1], number))
        label = torch.cat(classes)
        return Objects(torch.cat(images), label.clone(), label, torch.cat(boxes))

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """
        Args:
            batched_inputs: as of Detectron2's detectors: "image", (3, H, W); in training "instances"; "height" and
                "width", the frame of the detections.

        Returns:
            In training "loss_class", "loss_box", "loss_objectness"; otherwise one dict an image, whose "instances" have
            pred_boxes, scores and pred_classes.
        """
        if self.training:
            iteration = get_event_storage().iter if self.ramp else 0
            sides = sides_at(iteration, self.size, self.train_sizes, self.ramp)
            return self.training_losses(batched_inputs, random.choice(sides))
        predictions = self.predict_from_maps(self.feature_maps(_images(batched_inputs), self.size))
        limits = {"score_thresh": self.test_score_thresh, "nms_thresh": self.test_nms_thresh}
        found = detect(
            predictions,
            self.anchors,
            (self.size, self.size),
            **limits,
            topk=self.test_topk_per_image,
            softmax=self.loss.class_loss == "softmax",
        )
        return [
            {
                "instances": detector_postprocess(
                    instances,
                    inputs.get("height", inputs["image"].shape[1]),
                    inputs.get("width", inputs["image"].shape[2]),
                )
            }
            for instances, inputs in zip(found, batched_inputs, strict=True)
        ]

    def predict(self, images: Tensor) -> Predictions:
        """In evaluation: predictions for (B, 3, S, S) normalised images."""
        return self.predict_from_maps(self.backbone(images))

    def predict_from_maps(self, maps: dict[str, Tensor]) -> Predictions:
        """In evaluation: predictions from the backbone's features."""
        raise NotImplementedError

    def training_losses(self, batched_inputs: list[dict[str, Any]], side: int) -> dict[str, Tensor]:
        """The losses of a batch, whose images the network sees as squares of ``side`` pixels."""
        raise NotImplementedError

    def open_for_images(self, cfg: CfgNode) -> list[str] | None:
        """Keep no features of single images, which may be frames of a camera. See ``modeling/answers.py``."""
        self.kept_features = None
        return None

    def pulls_to_prior(self) -> bool:
        """Whether this is one of the first iterations."""
        return self.prior_iters > 0 and get_event_storage().iter < self.prior_iters


@META_ARCH_REGISTRY.register()
class YOLOv2(YoloDetector):
    """The plain detector: one box and objectness for each anchor, and softmax over the classes.

    The rows of ``class_score`` are ordered by class, A for each, so that surgery moves them by name.
    """

    @configurable
    def __init__(self, *, num_classes: int, **detector: Any) -> None:
        """
        Args:
            num_classes: N.
            detector: arguments of YoloDetector.
        """
        super().__init__(**detector)
        self.num_classes = num_classes
        channels, anchors = self.layers.channels["conv22"], len(self.anchors)
        self.predictor = output_layer(channels, anchors, 5)
        self.class_score = pointwise(channels, num_classes * anchors)

    @classmethod
    def from_config(cls, cfg) -> dict[str, Any]:
        return {**super().from_config(cfg), "num_classes": cfg.MODEL.RETINANET.NUM_CLASSES}

    def predict_from_maps(self, maps: dict[str, Tensor]) -> Predictions:
        return self.predict_from(self.layers(maps))

    def predict_from(self, features: Tensor) -> Predictions:
        """Predictions from the output of convolution 22."""
        return Predictions.shared(self.predictor(features), self.class_score(features), len(self.anchors))

    def training_losses(self, batched_inputs: list[dict[str, Any]], side: int) -> dict[str, Tensor]:
        features = self.layers(self.feature_maps(_images(batched_inputs), side))
        objects = self.objects(batched_inputs, side // STRIDE)
        return self.losses(features, objects)

    def losses(self, features: Tensor, objects: Objects) -> dict[str, Tensor]:
        """Losses of the output of convolution 22.

        Raises:
            ValueError: an object has a class number that is not below N.
        """
        if len(objects) and int(objects.label.max()) >= self.num_classes:
            raise ValueError(
                f"an object has class number {int(objects.label.max())}, but MODEL.RETINANET.NUM_CLASSES is "
                f"{self.num_classes}."
            )
        objects = Objects(objects.image, torch.zeros_like(objects.label), objects.label, objects.boxes)
        kept = keep_slots(objects, len(features), 1, negatives=-1)
        return self.loss(self.predict_from(features), objects, self.anchors, kept, self.pulls_to_prior())
