"""Backbones in stages that can go on with some of the pixels only (Li et al., Deep Layer Cascade, CVPR 2017).

The first stage sees the whole image and ends at a stride of 8; later stages keep that stride, so that a pixel of one is
a pixel of the next. A head that classifies after each stage decides which pixels the next one is for.
"""

import torch
from torch import Tensor, nn

from dyn_d2.gating import Cost, current_trace

from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import Backbone

from .pixels import Features, pixel_cost

STRIDE = 8
STAGES = ("stage1", "stage2", "stage3")


class StageFeatures(dict):
    """Feature maps of a :class:`LayerCascadeBackbone` by the name of the stage. A stage runs when its map is asked for;
    or ``resume`` runs it on chosen pixels."""

    def __init__(self, backbone: "LayerCascadeBackbone", first: Tensor) -> None:
        super().__init__({STAGES[0]: first})
        self._backbone = backbone

    def __missing__(self, name: str) -> Tensor:
        if name not in STAGES:
            raise KeyError(f"this backbone has the features {', '.join(STAGES)}, not {name}.")
        self[name] = self.resume(name, self[STAGES[STAGES.index(name) - 1]])
        return self[name]

    def resume(self, name: str, x: Features) -> Features:
        """Run a stage after the first one.

        Args:
            x: what the stage before gave, for all pixels or for those that remain.

        Returns:
            The output for the same pixels.
        """
        return self._backbone.run_later(STAGES.index(name), x)


class LayerCascadeBackbone(Backbone):
    """Base class: subclasses run the stages and say what they cost.

    It is an ordinary backbone with the features "stage1", "stage2" and "stage3", all of stride 8, whose maps are
    computed when they are asked for. What runs is written into the current trace
    (:func:`dyn_d2.gating.recording`).
    """

    channels: tuple[int, int, int]

    @property
    def size_divisibility(self) -> int:
        return STRIDE

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {name: ShapeSpec(channels=c, stride=STRIDE) for name, c in zip(STAGES, self.channels, strict=True)}

    def forward(self, images: Tensor) -> StageFeatures:
        """(N, C, H, W) -> name -> feature map; H and W are multiples of 8."""
        cost = self.first_cost(*images.shape[-2:])
        record_cost(STAGES[0], cost, images)
        return StageFeatures(self, self.run_first(images))

    def run_later(self, stage: int, x: Features) -> Features:
        """Stage number ``stage``, 1 or 2, on a map or on the pixels that remain."""
        parts = self.later_parts(stage)
        record_pixels(STAGES[stage], sum(map(pixel_cost, parts)), x)
        return self.run_parts(stage, parts, x)

    def run_first(self, images: Tensor) -> Tensor:
        """Images to the map of the first stage."""
        raise NotImplementedError

    def first_cost(self, height: int, width: int) -> float:
        """Multiply-adds of the first stage for one image."""
        raise NotImplementedError

    def later_parts(self, stage: int) -> list[nn.Module]:
        """The modules of a later stage, each convolution of which runs once for each pixel."""
        raise NotImplementedError

    def run_parts(self, stage: int, parts: list[nn.Module], x: Features) -> Features:
        """A later stage; by default its modules one after another."""
        for part in parts:
            x = part(x)
        return x


def record_cost(name: str, cost: float, like: Tensor) -> None:
    """Write into the current trace what ran for all images of a batch, like (N, ...), alike."""
    trace = current_trace()
    if trace is not None:
        trace.add_fixed(name, cost, like)


def record_pixels(name: str, cost: float, x: Features) -> None:
    """The same for what costs ``cost`` multiply-adds for each pixel and ran on x. Dense is all pixels of the maps; of
    chosen pixels it is those of the images, where somebody said how large these are, as padding is never chosen."""
    trace = current_trace()
    if trace is None:
        return
    if isinstance(x, Tensor):
        trace.add_fixed(name, cost * x.shape[-2] * x.shape[-1], x)
        return
    region = x.region
    _, height, width = region.size
    sizes = trace.context.image_sizes
    dense: float | list[float] = cost * height * width
    if sizes is not None:
        dense = [cost * -(-h // STRIDE) * -(-w // STRIDE) for h, w in sizes]
    trace.costs.append(Cost(name, dense, lambda: region.counts().to(torch.float32) * cost))
