"""Box heads: from pooled region features to the vector (or map) that the box predictor reads."""

from collections.abc import Callable, Sequence

from fvcore.nn import weight_init
from torch import nn

from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.utils.registry import Registry

ROI_BOX_HEAD_REGISTRY = Registry("ROI_BOX_HEAD")
ROI_BOX_HEAD_REGISTRY.__doc__ = """
Box heads, chosen by MODEL.ROI_BOX_HEAD.NAME. Called with (cfg, ShapeSpec of a pooled region); the module that comes
back maps (R, C, H, W) region features to new ones and describes these by its attribute ``output_shape``, a ShapeSpec.
"""


def build_box_head(cfg, input_shape: ShapeSpec) -> nn.Module:
    """The head that MODEL.ROI_BOX_HEAD.NAME names, for regions of the given shape."""
    return ROI_BOX_HEAD_REGISTRY.get(cfg.MODEL.ROI_BOX_HEAD.NAME)(cfg, input_shape)


@ROI_BOX_HEAD_REGISTRY.register()
class FastRCNNConvFCHead(nn.Sequential):
    """3x3 convolutions, then fully connected layers, each followed by a ReLU.

    Maps (R, C, H, W) features of R regions to (R, D), or to (R, D, H, W) where there is no fully connected layer.

    A Sequential: a subclass that adds layers has to add them in the order of their use.

    Args:
        input_shape: channels, height and width of a pooled region.
        conv_dims: output channels of each convolution.
        fc_dims: output size of each fully connected layer.
        conv_norm: normalisation of the convolutions, see :func:`detectron2.layers.get_norm`.

    Raises:
        ValueError: there is no layer at all.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        conv_dims: Sequence[int],
        fc_dims: Sequence[int],
        conv_norm: str | Callable = "",
    ):
        super().__init__()
        if not conv_dims and not fc_dims:
            raise ValueError("The box head has no layer: set MODEL.ROI_BOX_HEAD.NUM_CONV or NUM_FC above 0.")
        channels, height, width = input_shape.channels, input_shape.height, input_shape.width

        self.conv_norm_relus = []
        for k, dim in enumerate(conv_dims, start=1):
            norm = get_norm(conv_norm, dim)
            conv = Conv2d(channels, dim, 3, padding=1, bias=not conv_norm, norm=norm, activation=nn.ReLU())
            self.add_module(f"conv{k}", conv)
            self.conv_norm_relus.append(conv)
            channels = dim
        self._output_shape = ShapeSpec(channels=channels, height=height, width=width)

        self.fcs = []
        if fc_dims:
            self.add_module("flatten", nn.Flatten())
            size = channels * height * width
            for k, dim in enumerate(fc_dims, start=1):
                self.fcs.append(nn.Linear(size, dim))
                self.add_module(f"fc{k}", self.fcs[-1])
                self.add_module(f"fc_relu{k}", nn.ReLU())
                size = dim
            self._output_shape = ShapeSpec(channels=size)

        for conv in self.conv_norm_relus:
            weight_init.c2_msra_fill(conv)
        for fc in self.fcs:
            weight_init.c2_xavier_fill(fc)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec):
        head = cfg.MODEL.ROI_BOX_HEAD
        return {
            "input_shape": input_shape,
            "conv_dims": [head.CONV_DIM] * head.NUM_CONV,
            "fc_dims": [head.FC_DIM] * head.NUM_FC,
            "conv_norm": head.NORM,
        }

    @property
    def output_shape(self) -> ShapeSpec:
        """Shape of one region's output."""
        return self._output_shape
