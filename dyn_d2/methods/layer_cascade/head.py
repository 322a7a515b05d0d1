"""Layer Cascade (Li et al., Not All Pixels Are Equal, CVPR 2017): a classifier after each stage of a backbone settles
the pixels that it is sure about, and the next stage computes the others only.

For pixel i of the map and stage s, with its probabilities p_i^s: confidence c_i^s = max_k p_ik^s; it is settled if
c_i^s > rho, and M^{s+1} = {i in M^s : c_i^s <= rho}; the last stage settles what is left.

Shape shorthand: N images of H x W, maps of h x w = H/8 x W/8, K classes, n pixels of a map that remain.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dyn_d2.config.applied import NoticesKeys
from dyn_d2.gating import current_trace
from dyn_d2.ops.region_conv import Region

from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from detectron2.utils.events import get_event_storage, has_event_storage

from .backbone import STAGES, STRIDE, StageFeatures, record_pixels
from .pixels import Features, conv, drop, pixel_cost, restrict, rows_of
from .resnet import check_norm


class StageClassifier(nn.Module):
    """A hidden layer of 3x3 convolutions, whose sum passes ReLU, and a 1x1 convolution to the classes."""

    def __init__(self, channels: int, width: int, num_classes: int, norm: str, dilations: Sequence[int] = (1,),
                 dropout: float = 0.0) -> None:  # fmt: skip
        super().__init__()
        self.dropout = dropout
        self.hidden = nn.ModuleList(
            Conv2d(channels, width, 3, padding=d, dilation=d, bias=not norm, norm=get_norm(norm, width))
            for d in dilations
        )
        self.predictor = Conv2d(width, num_classes, 1)
        for layer in (*self.hidden, self.predictor):  # the paper: Gaussian; it does not say how wide
            nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, x: Features) -> Features:
        """Logits of all pixels of x."""
        total: Features | None = None
        for layer in self.hidden:
            total = conv(layer, x, total, relu=layer is self.hidden[-1])
        assert total is not None  # there is a convolution for each dilation
        return conv(self.predictor, drop(total, self.dropout) if self.training else total)


@SEM_SEG_HEADS_REGISTRY.register()
class LayerCascadeHead(NoticesKeys, nn.Module):
    """The classifiers and the decisions of Layer Cascade, for a ``LayerCascadeBackbone``.

    In evaluation nothing is computed for pixels that are settled, from the convolutions of later stages to their
    classifiers. What ran is written into the current trace, for each stage and image.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        num_classes: int,
        width: int,
        norm: str = "",
        thresholds: Sequence[float] = (0.985,),
        train_thresholds: Sequence[float] = (0.985,),
        initial_iters: int = 0,
        stage_weights: Sequence[float] = (1.0, 1.0, 1.0),
        aspp: Sequence[int] = (),
        dropout: float = 0.0,
        loss_weight: float = 1.0,
        ignore_value: int = 255,
    ) -> None:
        """
        Args:
            input_shape: of the features "stage1", "stage2", "stage3".
            num_classes: K.
            width: channels of the hidden layers.
            norm: of the hidden layers, "BN", "FrozenBN" or "".
            thresholds, train_thresholds: rho, for evaluation and training; a value for each stage but the last, or one
                for all of them.
            initial_iters: iterations before ``train_thresholds`` hold; all pixels pass all stages until then.
            stage_weights: factors of the losses of the stages.
            aspp: dilations in the hidden layer of the last stage; () for one convolution without.
            dropout: share of the hidden values that are dropped in training.
            loss_weight: a further factor of all losses.
            ignore_value: label of pixels that do not count in the losses.

        Raises:
            ValueError: an argument does not fit the backbone or has a wrong length; the message names the key.
        """
        super().__init__()
        if not set(STAGES) <= input_shape.keys():
            raise ValueError(
                "LayerCascadeHead classifies after each stage of a backbone: use MODEL.BACKBONE.NAME "
                "build_cascade_resnet_backbone, build_cascade_inception_resnet_backbone or "
                "build_cascade_mobile_backbone."
            )
        check_norm("MODEL.SEM_SEG_HEAD.NORM", norm)
        if len(stage_weights) != len(STAGES):
            raise ValueError(f"MODEL.LAYER_CASCADE.STAGE_WEIGHTS needs {len(STAGES)} values, not {len(stage_weights)}.")
        self.num_classes, self.loss_weight, self.ignore_value = num_classes, loss_weight, ignore_value
        self.thresholds = _for_stages("THRESHOLDS", thresholds)
        self.train_thresholds = _for_stages("TRAIN_THRESHOLDS", train_thresholds)
        self.initial_iters, self.stage_weights = initial_iters, tuple(stage_weights)
        for name in STAGES:
            dilations = tuple(aspp) if aspp and name == STAGES[-1] else (1,)
            channels = input_shape[name].channels
            assert channels is not None  # a backbone knows them
            classifier = StageClassifier(channels, width, num_classes, norm, dilations, dropout)
            self.add_module(name, classifier)

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        head, keys = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.LAYER_CASCADE
        return {
            "input_shape": input_shape,
            "num_classes": head.NUM_CLASSES,
            "width": head.CONVS_DIM,
            "norm": head.NORM,
            "thresholds": keys.THRESHOLDS,
            "train_thresholds": keys.TRAIN_THRESHOLDS,
            "initial_iters": keys.INITIAL_ITERS,
            "stage_weights": keys.STAGE_WEIGHTS,
            "aspp": keys.ASPP,
            "dropout": keys.DROPOUT,
            "loss_weight": head.LOSS_WEIGHT,
            "ignore_value": head.IGNORE_VALUE,
        }

    def export_problem(self) -> str:
        """See ``modeling/answers.py``."""
        return "Layer Cascade leaves out the pixels that are settled, which no operator of ONNX says."

    def forward(
        self, features: StageFeatures, targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """
        Args:
            features: of the backbone; later stages have not run yet.
            targets: (N, H, W) class map, in training.

        Returns:
            In training (None, losses); otherwise ((N, K, H, W) probabilities, {}).
        """
        if self.training and targets is None:
            raise ValueError("Training a semantic segmentation head needs 'sem_seg' in every input.")
        cascade = self.run_stages(features)
        if self.training and targets is not None:
            counts = label_counts(targets, self.num_classes, self.ignore_value)
            return None, self.losses(cascade, counts)
        maps = cascade.merged()
        return F.interpolate(maps, scale_factor=STRIDE, mode="bilinear", align_corners=False), {}

    def run_stages(self, features: StageFeatures) -> "LayerCascadePass":
        """Stage after stage on the pixels that remain."""
        first: Tensor = features[STAGES[0]]
        cascade = LayerCascadePass(_inside(first), (len(first), first.shape[-2], first.shape[-1]))
        x: Features = first
        for name, threshold in zip(STAGES, self.current_thresholds(), strict=True):
            if name != STAGES[0]:
                x = features.resume(name, x)
            classifier = getattr(self, name)
            record_pixels(f"head.{name}", pixel_cost(classifier), x)
            x = cascade.settle(x, classifier(x), threshold)
        self._report(cascade)
        return cascade

    def current_thresholds(self) -> tuple[float | None, ...]:
        """rho of each stage that has one after it, and None for the last."""
        values = self.train_thresholds if self.training else self.thresholds
        if self.training and self.initial_iters and get_event_storage().iter < self.initial_iters:
            values = (1.0,) * len(values)
        return *values, None

    def losses(self, cascade: "LayerCascadePass", counts: Tensor) -> dict[str, Tensor]:
        """For each stage the cross entropy of its pixels with the labels of the pixels of the image that they stand
        for, averaged over these: of ``counts``, (N * h * w, K). That of the last stage is "loss_sem_seg"."""
        found = {}
        for name, weight, (logits, region) in zip(STAGES, self.stage_weights, cascade.stages, strict=True):
            own = counts if region is None else counts[region.index]
            total = -(own * F.log_softmax(logits.float(), 1)).sum() / own.sum().clamp(min=1)
            found[f"loss_sem_seg_{name}"] = total * weight * self.loss_weight
        found["loss_sem_seg"] = found.pop(f"loss_sem_seg_{STAGES[-1]}")
        return found

    def _report(self, cascade: "LayerCascadePass") -> None:
        trace = current_trace()
        if trace is not None:
            trace.context.state = cascade
        if self.training and has_event_storage():
            for name, share in zip(STAGES[1:], cascade.shares()[1:], strict=True):
                get_event_storage().put_scalar(f"layer_cascade/{name}_share", share)


class LayerCascadePass:
    """The state of one pass: what each stage said about which pixels.

    Attributes:
        stages: of each stage that ran, the logits (n, K) and the pixels that they are of; None for all.
    """

    def __init__(self, inside: Tensor | None, size: tuple[int, int, int]) -> None:
        """
        Args:
            inside: (N, h, w) bool, which pixels are not padding; None for all. Padding ends with the first stage.
            size: N, h, w.
        """
        self._inside, self._size = inside, size
        self.stages: list[tuple[Tensor, Region | None]] = []

    def settle(self, x: Features, logits: Features, threshold: float | None) -> Features:
        """Note what a stage says, and settle the pixels of which it is surer than ``threshold``; None: all.

        Returns:
            x of the other pixels.
        """
        rows, region = rows_of(logits), None if isinstance(x, Tensor) else x.region
        self.stages.append((rows, region))
        stay = None if threshold is None else self._stay(rows, threshold, region is None)
        if stay is None:
            return x
        return restrict(x, Region.of(stay.view(self._size)) if region is None else region.subset(stay))

    def _stay(self, rows: Tensor, threshold: float, first: bool) -> Tensor | None:
        """(n,) bool; None for all."""
        inside = self._inside.flatten() if first and self._inside is not None else None
        if threshold >= 1:
            return inside
        confidence = rows.detach().float().softmax(1).amax(1)
        stay = confidence <= threshold
        stay = stay if inside is None else stay & inside
        return None if bool(stay.all()) else stay

    @cached_property
    def settled_by(self) -> Tensor:
        """(N, h, w) uint8: number of the last stage that saw each pixel, from 0."""
        number = torch.zeros(self._size, dtype=torch.uint8, device=self.stages[0][0].device).flatten()
        for stage, (_, region) in enumerate(self.stages):
            number[slice(None) if region is None else region.index] = stage
        return number.view(self._size)

    def shares(self) -> list[float]:
        """For each stage that ran the share of pixels that it saw, without padding."""
        whole = self._size[0] * self._size[1] * self._size[2] if self._inside is None else int(self._inside.sum())
        return [1.0 if region is None else len(region) / max(whole, 1) for _, region in self.stages]

    def merged(self) -> Tensor:
        """(N, K, h, w) float32 probabilities, of each pixel from the stage that settled it."""
        merged: Tensor | None = None
        for logits, region in self.stages:
            prob = logits.float().softmax(1)
            merged = prob if merged is None or region is None else merged.index_copy_(0, region.index, prob)
        images, height, width = self._size
        assert merged is not None  # the first stage always runs
        return merged.view(images, height, width, -1).permute(0, 3, 1, 2)


def label_counts(targets: Tensor, num_classes: int, ignore_value: int) -> Tensor:
    """(N * h * w, K) float32: how often each label occurs among the 8 x 8 pixels that a pixel of the map stands for.

    The cross entropy with these is that of the whole image with logits enlarged to it by repetition: no label is lost,
    as it would be by taking one in 64.

    Args:
        targets: (N, H, W) int64, H and W multiples of 8.
    """
    images, height, width = targets.shape
    cells = torch.arange(height // STRIDE * (width // STRIDE), device=targets.device)
    cells = cells.view(height // STRIDE, width // STRIDE)
    cells = cells.repeat_interleave(STRIDE, 0).repeat_interleave(STRIDE, 1)
    offsets = torch.arange(images, device=targets.device) * (height // STRIDE * (width // STRIDE))
    places = (cells + offsets[:, None, None]) * num_classes + targets
    places = places[targets != ignore_value]
    size = images * (height // STRIDE) * (width // STRIDE) * num_classes
    return torch.bincount(places, minlength=size).view(-1, num_classes).float()


def _inside(x: Tensor) -> Tensor | None:
    """(N, h, w) bool: which pixels of a map lie in the image, not in its padding; None for all, or if nobody knows."""
    trace = current_trace()
    sizes = None if trace is None else trace.context.image_sizes
    if sizes is None or all(-(-h // STRIDE) == x.shape[-2] and -(-w // STRIDE) == x.shape[-1] for h, w in sizes):
        return None
    extent = torch.tensor([[-(-h // STRIDE), -(-w // STRIDE)] for h, w in sizes], device=x.device)
    y, column = (torch.arange(length, device=x.device) for length in x.shape[-2:])
    return (y[:, None] < extent[:, :1, None]) & (column < extent[:, 1:, None])


def _for_stages(key: str, values: Sequence[float]) -> tuple[float, ...]:
    count = len(STAGES) - 1
    if len(values) not in (1, count) or not all(0 <= value <= 1 for value in values):
        raise ValueError(
            f"MODEL.LAYER_CASCADE.{key} is {list(values)}: give one number between 0 and 1, or {count}, one for each "
            "stage but the last."
        )
    return tuple(values) * (count if len(values) == 1 else 1)
