"""A detector of which only the ROI heads, or a part of them, learn: feature maps and proposals are functions of image
and view, which are computed once and kept.

Shape shorthand: P proposals of an image after non-maximum suppression; C channels, h x w the size of a feature map.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dyn_d2.utils.tensor_store import Tensors, in_16_bits

from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.modeling.roi_heads import ROIHeads
from detectron2.structures import Boxes, ImageList, Instances

from .freeze import what_moves
from .predictor_alone import Cache, proposals_as_in

BEFORE_HEADS = ("backbone", "proposal_generator")
_MAP = "map_"  # before the name of a kept feature map


def not_heads_alone(model: Any) -> str:
    """Why more of ``model`` than its ROI heads changes in training, or it has another form; "" where neither holds."""
    if type(model) is not GeneralizedRCNN:
        return f"the model is a {type(model).__name__}, not Faster or Mask R-CNN"
    if type(model.proposal_generator) is not RPN or not isinstance(model.roi_heads, ROIHeads):
        return f"its heads are {type(model.roi_heads).__name__} behind {type(model.proposal_generator).__name__}"
    if getattr(model.roi_heads, "in_features", None) is None:
        return f"{type(model.roi_heads).__name__} do not say which feature maps they read"
    for part in map(model.get_submodule, BEFORE_HEADS):
        for module in part.modules():
            if getattr(module, "skips_parameters", False):
                return f"{type(module).__name__} decides for each input what it computes"
    return what_moves(model, BEFORE_HEADS, "the ROI heads")


class HeadsAlone:
    """Takes the place of the forward pass of a detector whose backbone and proposal network are frozen
    (``not_heads_alone``).

    Its inputs are those of ``data/views.py``. In training the losses are those of the ROI heads: a frozen proposal
    network has nothing to learn from its own. Maps and proposals of each image are computed by themselves, in 32 bits,
    and kept in 16 where their range allows it, so that the numbers are the same whether something is kept or not.
    Evaluation of inputs without a view goes through the whole model.

    Attributes:
        cache: where maps and proposals are kept.
    """

    def __init__(self, model: nn.Module, cache: Cache) -> None:
        """
        Args:
            model: the detector.
            cache: see above.
        """
        self._model: Any = model
        self.cache = cache

    def __call__(self, inputs: list[dict[str, Any]]) -> Any:
        model = self._model
        if any("view" not in x for x in inputs):
            return type(model).forward(model, inputs)
        found = [self._before_heads(x, model.training) for x in inputs]
        images = ImageList(torch.empty(len(found), 0), [_size(kept) for kept in found])  # heads read the sizes only
        maps, proposals = self._maps(found), [self._proposals(kept) for kept in found]
        if not model.training:
            results, _ = model.roi_heads(images, maps, proposals, None)
            return type(model)._postprocess(results, inputs, images.image_sizes)
        targets = [x["instances"].to(model.device) for x in inputs]
        _, losses = model.roi_heads(images, maps, proposals, targets)
        return losses

    def refresh(self) -> None:
        """The weights may be others now."""
        self.cache.refresh()

    def _before_heads(self, x: dict[str, Any], training: bool) -> Tensors:
        stored = self.cache.read(x["view"], training)
        if stored is None:
            stored = self._compute(x, training)
            if self.cache.usable:
                self.cache.write(x["view"], training, stored)
        return stored

    @torch.no_grad()
    def _compute(self, x: dict[str, Any], training: bool) -> Tensors:
        model = self._model
        modules = [module for part in map(model.get_submodule, BEFORE_HEADS) for module in part.modules()]
        modes = [module.training for module in modules]
        for module in modules:
            module.training = False
        try:
            with (
                proposals_as_in(training, model.proposal_generator),
                torch.autocast(model.device.type, enabled=False),
            ):
                images: ImageList = model.preprocess_image([{"image": x["image"]}])
                maps = model.backbone(images.tensor)
                (proposals,), _ = model.proposal_generator(images, maps, None)
        finally:
            for module, mode in zip(modules, modes, strict=True):
                module.training = mode
        kept = {_MAP + name: in_16_bits(maps[name][0].float()).cpu() for name in model.roi_heads.in_features}
        return {
            "size": torch.tensor(images.image_sizes[0]),
            "boxes": proposals.proposal_boxes.tensor.float().cpu(),
            "logits": proposals.objectness_logits.float().cpu(),
            **kept,
        }

    def _maps(self, found: Sequence[Tensors]) -> dict[str, Tensor]:
        """(N, C, h, w) maps by name; those of smaller images have zeros behind them."""
        names = [name for name in found[0] if name.startswith(_MAP)]
        return {name.removeprefix(_MAP): _padded([kept[name] for kept in found], self._model.device) for name in names}

    def _proposals(self, kept: Tensors) -> Instances:
        device = self._model.device
        # Copies: what is kept is mapped from a file, and heads may change what they get.
        return Instances(
            _size(kept),
            proposal_boxes=Boxes(kept["boxes"].clone().to(device)),
            objectness_logits=kept["logits"].clone().to(device),
        )


def _size(kept: Tensors) -> tuple[int, int]:
    height, width = kept["size"].tolist()
    return height, width


def _padded(maps: Sequence[Tensor], device: torch.device) -> Tensor:
    """(C, h, w) maps of several sizes as one (N, C, H, W) batch in 32 bits: a CPU pools no others."""
    height, width = (max(values.shape[side] for values in maps) for side in (1, 2))
    batch = torch.zeros(len(maps), maps[0].shape[0], height, width, device=device)
    for row, values in zip(batch, maps, strict=True):
        row[:, : values.shape[1], : values.shape[2]] = values.to(device)
    return batch
