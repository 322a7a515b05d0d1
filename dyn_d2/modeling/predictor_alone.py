"""A detector of which only the box predictor learns: all before it is a function of image and view, which is computed
once and kept, or computed at each step, with the same numbers.

Shape shorthand: P proposals of an image after non-maximum suppression, G true boxes, d width of the box feature, R
sampled regions of an image.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from dyn_d2.data.views import View
from dyn_d2.utils.tensor_store import Tensors, in_16_bits

from detectron2.modeling import GeneralizedRCNN, StandardROIHeads
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage

from .roi_heads import DynROIHeads

BEFORE_PREDICTOR = ("backbone", "proposal_generator", "roi_heads.box_head")
_REMEMBERED = 5_000  # inputs whose proposals are matched with their objects already
_BLOCK = 1024  # regions that the box head gets at once


def other_form(model: Any) -> str:
    """Why detections of ``model`` are no function of proposals and box features alone; "" where they are."""
    if type(model) is not GeneralizedRCNN:
        return f"the model is a {type(model).__name__}, not Faster R-CNN"
    heads = model.roi_heads
    if type(heads) not in (StandardROIHeads, DynROIHeads) or type(model.proposal_generator) is not RPN:
        return f"its heads are {type(heads).__name__} behind {type(model.proposal_generator).__name__}"
    if getattr(heads, "mask_on", False) or getattr(heads, "keypoint_on", False):
        return "the masks of sampled regions need feature maps"
    for module in model.modules():
        if getattr(module, "skips_parameters", False):
            return f"{type(module).__name__} decides for each input what it computes"
    return ""


def not_predictor_alone(model: nn.Module) -> str:
    """Why more of ``model`` than its box predictor changes in training, or it has another form; "" where neither
    holds."""
    if problem := other_form(model):
        return problem
    learning = [name for name, p in model.named_parameters() if p.requires_grad and ".box_predictor." not in name]
    if learning:
        return f"{len(learning)} parameters before the predictor learn, such as {learning[0]}"
    for part in map(model.get_submodule, BEFORE_PREDICTOR):
        for module in part.modules():
            if module.training and next(module.children(), None) is None:
                return f"{type(module).__name__} is not frozen by MODEL.FREEZE"
    return ""


class Cache(Protocol):
    """Where tensors of a view are kept, those for training and those for evaluation apart."""

    @property
    def usable(self) -> bool:
        """Whether more can be kept."""
        ...

    def refresh(self) -> None:
        """The weights may be others now."""
        ...

    def say(self) -> None:
        """What was read and what was not there, in the log."""
        ...

    def read(self, view: View, training: bool) -> Tensors | None:
        """What is kept of the view, mapped; None for nothing."""
        ...

    def write(self, view: View, training: bool, tensors: Tensors) -> bool:
        """Keep it; False where that is not possible."""
        ...


@dataclass
class Regions:
    """The proposals of a view, and the true boxes that may be appended to them.

    Attributes:
        size: (height, width) of the view.
        boxes: (P, 4) proposals in pixels of the view, best first.
        logits: (P,) their objectness.
        truth: (G, 4) true boxes.
        features: gives the (R, d) box features of regions by their numbers, in 16 bits where their range allows it; the
            true boxes have P to P + G - 1.
    """

    size: tuple[int, int]
    boxes: Tensor
    logits: Tensor
    truth: Tensor
    features: Callable[[Tensor], Tensor]


class _Candidates(NamedTuple):
    """The regions of an input, labelled with its own objects.

    Attributes:
        number: of each among the Regions.
        boxes: (P + G, 4), the objects of the record after the proposals.
        labels: (P + G,) class, the number of classes for background, -1 to be left out.
        truth: (P + G, 4) the object that fits each best; None where there is no object.
        foreground, background: which of them are.
    """

    regions: Regions
    number: Tensor
    boxes: Tensor
    labels: Tensor
    truth: Tensor | None
    foreground: Tensor
    background: Tensor


def draw(pools: Sequence[Tensor], count: int, positive_fraction: float, seed: int) -> Tensor:
    """Up to ``count`` regions, foreground first, as Detectron2 chooses them, but from a seed of their own.

    Args:
        pools: numbers of foreground and of background regions.
        count: how many to choose, if there are that many.
        positive_fraction: the largest part that may be foreground.
        seed: of the choice.
    """
    generator = torch.Generator().manual_seed(seed)
    foreground, background = pools
    positive = min(len(foreground), int(count * positive_fraction))
    counts = positive, min(len(background), count - positive)
    drawn = [pool[torch.randperm(len(pool), generator=generator)[:n]] for pool, n in zip(pools, counts, strict=True)]
    return torch.cat(drawn)


class PredictorAlone:
    """Takes the place of the forward pass of a Faster R-CNN whose box predictor alone learns (``not_predictor_alone``).

    Its inputs are those of ``data/views.py``. In training the losses are those of the predictor: a frozen proposal
    network has nothing to learn from its own. Images are padded one by one, and the regions of each are drawn from a
    seed that comes with it, so that the numbers are the same whether features are kept or not. In evaluation inputs
    without a view go through the whole model.

    Attributes:
        cache: where features are kept; None where they are computed at each step.
    """

    def __init__(self, model: nn.Module, cache: Cache | None = None, training: bool = True) -> None:
        """
        Args:
            model: the detector.
            cache: see above.
            training: whether it keeps training views too, or test views only.
        """
        self._model: Any = model
        self.cache, self._training = cache, training
        self._matched: OrderedDict[tuple, _Candidates] = OrderedDict()

    def __call__(self, inputs: list[dict[str, Any]]) -> Any:
        model = self._model
        if model.training:
            return self._losses(inputs)
        if self.cache is None or any("view" not in x for x in inputs):
            return type(model).forward(model, inputs)
        return self._detections(inputs)

    def refresh(self) -> None:
        """The weights may be others now."""
        self._matched.clear()
        if self.cache:
            self.cache.refresh()

    # ---------------------------------------------------------------------------------------------------- training

    def _losses(self, inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        heads, device = self._model.roi_heads, self._model.device
        features, sampled, background = [], [], 0
        for x in inputs:
            found = self._candidates(x)
            pools = found.foreground, found.background
            rows = draw(pools, heads.batch_size_per_image, heads.positive_fraction, x["sampling_seed"])
            region = Instances(found.regions.size, proposal_boxes=Boxes(found.boxes[rows].to(device)))
            region.gt_classes = found.labels[rows].to(device)
            if found.truth is not None:
                region.gt_boxes = Boxes(found.truth[rows].to(device))
            background += int((found.labels[rows] == heads.num_classes).sum())
            features.append(found.regions.features(found.number[rows]).to(device))
            sampled.append(region)
        storage, total = get_event_storage(), sum(map(len, sampled))
        storage.put_scalar("roi_head/num_fg_samples", (total - background) / len(inputs))
        storage.put_scalar("roi_head/num_bg_samples", background / len(inputs))
        return heads.box_predictor.losses(heads.box_predictor(_joined(features)), sampled)

    def _candidates(self, x: dict[str, Any]) -> _Candidates:
        """The labelled regions of an input, remembered where their features are kept."""
        if x["identity"] in self._matched:
            self._matched.move_to_end(x["identity"])
            return self._matched[x["identity"]]
        own = x["instances"].gt_boxes.tensor.cpu()
        regions, kept = self._training_regions(x, own)
        found = self._match(regions, x["instances"], own)
        if kept:
            self._matched[x["identity"]] = found
            if len(self._matched) > _REMEMBERED:
                self._matched.popitem(last=False)
        return found

    def _training_regions(self, x: dict[str, Any], own: Tensor) -> tuple[Regions, bool]:
        """Regions with those of the (M, 4) boxes ``own`` among the true ones, and whether their features are kept."""
        cache, view = self.cache if self._training else None, x["view"]
        stored = cache.read(view, True) if cache else None
        if stored is not None and _numbers(stored["truth"], own) is not None:
            return _stored_regions(stored), True
        boxes = [x["objects"], own] if stored is None else [stored["truth"], x["objects"], own]
        regions = self._compute(x, _unique(torch.cat(boxes)), training=True)
        if cache is None or not cache.usable:
            return regions, False
        tensors = _tensors(regions)
        kept = cache.write(view, True, tensors)
        return _stored_regions((kept and cache.read(view, True)) or tensors), kept

    def _match(self, regions: Regions, truth: Instances, own: Tensor) -> _Candidates:
        heads, classes = self._model.roi_heads, truth.gt_classes.cpu()
        number = torch.arange(len(regions.boxes))
        boxes = regions.boxes
        if heads.proposal_append_gt and len(own):
            appended = _numbers(regions.truth, own)
            assert appended is not None  # _training_regions has seen to it
            number, boxes = torch.cat([number, appended + len(boxes)]), torch.cat([boxes, own])
        matches, fits = heads.proposal_matcher(pairwise_iou(Boxes(own), Boxes(boxes)))
        if len(own):
            labels = classes[matches]
            labels[fits == 0] = heads.num_classes
            labels[fits == -1] = -1
        else:
            labels = torch.full((len(boxes),), heads.num_classes)
        background = labels == heads.num_classes
        pools = ((labels != -1) & ~background).nonzero()[:, 0], background.nonzero()[:, 0]
        return _Candidates(regions, number, boxes, labels, own[matches] if len(own) else None, *pools)

    # -------------------------------------------------------------------------------------------------- evaluation

    def _detections(self, inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        model = self._model
        predictor, device = model.roi_heads.box_predictor, model.device
        features, proposals = [], []
        for x in inputs:
            regions = self._test_regions(x)
            features.append(regions.features(torch.arange(len(regions.boxes))).to(device))
            found = Instances(regions.size, proposal_boxes=Boxes(regions.boxes.to(device)))
            found.objectness_logits = regions.logits.to(device)
            proposals.append(found)
        detections, _ = predictor.inference(predictor(_joined(features)), proposals)
        return type(model)._postprocess(detections, inputs, [x["view"].size for x in inputs])

    def _test_regions(self, x: dict[str, Any]) -> Regions:
        assert self.cache is not None
        stored = self.cache.read(x["view"], False)
        if stored is None:
            stored = _tensors(self._compute(x, torch.zeros(0, 4), training=False))
            self.cache.write(x["view"], False, stored)
        return _stored_regions(stored)

    # --------------------------------------------------------------------------------------------------- computing

    @torch.no_grad()
    def _compute(self, x: dict[str, Any], truth: Tensor, training: bool) -> Regions:
        """Regions of an image whose features are computed when they are asked for."""
        model = self._model
        images: ImageList = model.preprocess_image([{"image": x["image"]}])
        with in_evaluation(model), proposals_as_in(training, model.proposal_generator):
            maps = model.backbone(images.tensor)
            (proposals,), _ = model.proposal_generator(images, maps, None)
        boxes = proposals.proposal_boxes.tensor
        every = torch.cat([boxes, truth.to(boxes)])
        features = partial(self._features, [maps[name] for name in model.roi_heads.box_in_features], every)
        height, width = images.image_sizes[0]
        return Regions((height, width), boxes.float().cpu(), proposals.objectness_logits.float().cpu(), truth, features)

    @torch.no_grad()
    def _features(self, maps: list[Tensor], boxes: Tensor, rows: Tensor) -> Tensor:
        heads = self._model.roi_heads
        with in_evaluation(self._model):
            found = [
                heads.box_head(heads.box_pooler(maps, [Boxes(boxes[block.to(boxes.device)])])).flatten(1).float()
                for block in rows.split(_BLOCK)
            ]
        return in_16_bits(torch.cat(found)) if found else boxes.new_zeros(0, heads.box_predictor.cls_score.in_features)


@contextmanager
def in_evaluation(model: Any) -> Iterator[None]:
    """All before the predictor is in evaluation mode inside the block."""
    parts = [*map(model.get_submodule, BEFORE_PREDICTOR), model.roi_heads.box_pooler]
    training = [module for part in parts for module in part.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def proposals_as_in(training: bool, rpn: RPN) -> Iterator[None]:
    """A proposal network in evaluation mode proposes as many boxes as in training, without its losses."""
    limits = ("pre_nms_topk", "post_nms_topk")
    before = {name: getattr(rpn, name) for name in limits}
    try:
        if training:
            for name in limits:
                setattr(rpn, name, {True: before[name][True], False: before[name][True]})
        yield
    finally:
        for name in limits:
            setattr(rpn, name, before[name])


def _tensors(regions: Regions) -> Tensors:
    """What is kept of regions."""
    features = regions.features(torch.arange(len(regions.boxes) + len(regions.truth)))
    return {
        "size": torch.tensor(regions.size),
        "boxes": regions.boxes,
        "logits": regions.logits,
        "truth": regions.truth,
        "features": features.cpu(),
    }


def _joined(features: list[Tensor]) -> Tensor:
    """All features one below the other, in 32 bits: mixed precision on a CPU knows no float16."""
    joined = features[0].new_empty(sum(map(len, features)), features[0].shape[1], dtype=torch.float32)
    for part, block in zip(features, joined.split([len(part) for part in features]), strict=True):
        block.copy_(part)
    return joined


def _stored_regions(stored: Tensors) -> Regions:
    features = stored["features"]
    height, width = stored["size"].tolist()

    def rows(numbers: Tensor) -> Tensor:
        return features.index_select(0, numbers)

    return Regions((height, width), stored["boxes"], stored["logits"], stored["truth"], rows)


def _unique(boxes: Tensor) -> Tensor:
    return torch.unique(boxes, dim=0) if len(boxes) else boxes.reshape(0, 4)


def _numbers(boxes: Tensor, wanted: Tensor) -> Tensor | None:
    """Where each of the (M, 4) boxes ``wanted`` stands among ``boxes``; None where one is not among them."""
    equal = (wanted[:, None] == boxes[None]).all(dim=2)
    if len(wanted) and not bool(equal.any(dim=1).all()):
        return None
    return equal.int().argmax(dim=1) if len(wanted) else torch.zeros(0, dtype=torch.long)
