"""Anchors: boxes of fixed sizes and shapes around every position of every feature map."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.left_out import left_out, refusal_of
from detectron2.structures import Boxes
from detectron2.utils.registry import Registry

__getattr__ = refusal_of(__name__)

ANCHOR_GENERATOR_REGISTRY = Registry("ANCHOR_GENERATOR")
ANCHOR_GENERATOR_REGISTRY.__doc__ = "Anchor generators by name; an entry is called with (cfg, list of ShapeSpec)."


class BufferList(nn.Module):
    """A list of tensors that move with the module but are not saved in its state_dict."""

    def __init__(self, buffers: Sequence[Tensor]) -> None:
        super().__init__()
        for i, buffer in enumerate(buffers):
            self.register_buffer(str(i), buffer, persistent=False)

    def __len__(self) -> int:
        return len(self._buffers)

    def __iter__(self):
        return iter(self._buffers.values())


def _per_feature(values: Sequence, num_features: int, name: str) -> list[Sequence[float]]:
    """Give every feature map its list: one list for all of them is repeated."""
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) == 0:
        raise ValueError(f"anchor {name} must be a list that is not empty, got {values!r}")
    lists = list(values) if isinstance(values[0], Sequence) else [values]
    if len(lists) == 1:
        lists = lists * num_features
    if len(lists) != num_features:
        raise ValueError(f"anchor {name} has {len(lists)} lists for {num_features} feature maps: give one, or one each")
    return lists


@ANCHOR_GENERATOR_REGISTRY.register()
class DefaultAnchorGenerator(nn.Module):
    """Axis-aligned anchors of every size and aspect ratio at every position (Ren et al., Faster R-CNN)."""

    box_dim = 4  # numbers in one anchor

    @configurable
    def __init__(self, *, sizes: Sequence, aspect_ratios: Sequence, strides: Sequence[int], offset: float = 0.5):
        """
        Args:
            sizes: square roots of the anchors' areas in pixels of the network's input: a list for all feature maps, or
                a list of lists, one per feature map.
            aspect_ratios: height / width, given like ``sizes``.
            strides: stride of each feature map.
            offset: where in its cell of the feature map an anchor sits, as a fraction of the stride in [0, 1).
        """
        super().__init__()
        if not 0.0 <= offset < 1.0:
            raise ValueError(f"anchor offset must lie in [0, 1), got {offset}")
        self.strides = strides
        self.num_features = len(strides)
        self.offset = offset
        sizes = _per_feature(sizes, self.num_features, "sizes")
        aspect_ratios = _per_feature(aspect_ratios, self.num_features, "aspect_ratios")
        self.cell_anchors = BufferList(
            [self.generate_cell_anchors(s, a).float() for s, a in zip(sizes, aspect_ratios, strict=True)]
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        anchors = cfg.MODEL.ANCHOR_GENERATOR
        return {
            "sizes": anchors.SIZES,
            "aspect_ratios": anchors.ASPECT_RATIOS,
            "strides": [shape.stride for shape in input_shape],
            "offset": anchors.OFFSET,
        }

    @property
    def num_anchors(self) -> list[int]:
        """Anchors at each position, for every feature map."""
        return [len(anchors) for anchors in self.cell_anchors]

    num_cell_anchors = num_anchors  # the older name

    def generate_cell_anchors(
        self, sizes: Sequence[float] = (32, 64, 128, 256, 512), aspect_ratios: Sequence[float] = (0.5, 1, 2)
    ) -> Tensor:
        """Anchors of one position, centred on (0, 0): (len(sizes) * len(aspect_ratios), 4) as x1, y1, x2, y2; the
        aspect ratio varies fastest."""
        half_widths = [(size**2 / ratio) ** 0.5 / 2 for size in sizes for ratio in aspect_ratios]
        ratios = [ratio for _ in sizes for ratio in aspect_ratios]
        return torch.tensor([[-w, -w * r, w, w * r] for w, r in zip(half_widths, ratios, strict=True)])

    def _grid(self, height: int, width: int, stride: int, cell: Tensor) -> Tensor:
        """Place the anchors of one position (A, 4) at all positions: (height * width * A, 4)."""
        xs, ys = (
            (torch.arange(n, dtype=torch.float32, device=cell.device) + self.offset) * stride for n in (width, height)
        )
        out = cell.new_empty(height, width, len(cell), 4)
        out[..., 0::2] = xs[:, None, None] + cell[:, 0::2]
        out[..., 1::2] = ys[:, None, None, None] + cell[:, 1::2]
        return out.view(-1, 4)

    def forward(self, features: list[Tensor]) -> list[Boxes]:
        """Anchors of every feature map (N, C, Hi, Wi): Hi * Wi * Ai boxes each, rows first, then columns, then the
        anchors of a position; in pixels of the network's input."""
        maps = zip(features, self.strides, self.cell_anchors, strict=True)
        return [Boxes(self._grid(*feature.shape[-2:], stride, cell)) for feature, stride, cell in maps]


def build_anchor_generator(cfg: CfgNode, input_shape: list[ShapeSpec]) -> nn.Module:
    """Build the generator that ``cfg.MODEL.ANCHOR_GENERATOR.NAME`` names, for feature maps of these shapes."""
    name = cfg.MODEL.ANCHOR_GENERATOR.NAME
    if name == "RotatedAnchorGenerator" and name not in ANCHOR_GENERATOR_REGISTRY:
        raise left_out(f"MODEL.ANCHOR_GENERATOR.NAME={name}", "rotated boxes")
    return ANCHOR_GENERATOR_REGISTRY.get(name)(cfg, input_shape)
