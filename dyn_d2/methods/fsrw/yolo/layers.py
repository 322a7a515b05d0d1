"""The detection layers of YOLOv2 on DarkNet-19: convolutions 19 to 22, with the passthrough."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, cat, nn
from torch.nn import functional as F

from dyn_d2.methods.fsrw.darknet import conv_unit, scaled
from dyn_d2.modeling.shapes import channels_of

from detectron2.layers import ShapeSpec

OBJECT_PRIOR = 0.01  # objectness at the start of training


def output_layer(channels: int, anchors: int, numbers: int) -> nn.Conv2d:
    """The 1x1 convolution that predicts, of each anchor, four offsets, objectness and what else there is.

    Nearly all anchors have no object. Were their objectness one half at the start, as with a bias of 0, the first
    steps would do nothing but push it down, through the features too, and its sigmoid would saturate.

    Args:
        channels: of the features.
        anchors: A.
        numbers: predicted for an anchor, 5 at least; the output has A times as many channels, ordered by anchor.
    """
    layer = pointwise(channels, anchors * numbers)
    assert layer.bias is not None
    with torch.no_grad():
        layer.bias.view(anchors, numbers)[:, 4] = math.log(OBJECT_PRIOR / (1 - OBJECT_PRIOR))
    return layer


def pointwise(channels: int, outputs: int) -> nn.Conv2d:
    """A 1x1 convolution that starts near 0: weights of deviation 0.01, biases of 0."""
    layer = nn.Conv2d(channels, outputs, 1)
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class DetectionLayers(nn.Module):
    """Two 3x3 convolutions on conv18 (19, 20); a 1x1 convolution on conv13 (21) whose 2x2 neighbourhoods become
    channels (the passthrough); and a 3x3 convolution over both (22), from whose output boxes are predicted.

    The passthrough orders its channels as torch's ``pixel_unshuffle``; released DarkNet weights of convolution 22 have
    another order.

    Attributes:
        channels: name -> number of channels of "conv13", "conv20" and "conv22".
        inputs: names of the backbone's features that stand for conv13 and conv18, of strides 16 and 32.
    """

    def __init__(
        self,
        shapes: dict[str, ShapeSpec],
        width: float = 1.0,
        norm: str = "BN",
        inputs: Sequence[str] = ("conv13", "conv18"),
    ) -> None:
        """
        Args:
            shapes: of the backbone's features.
            width: factor of 1024 and 64 channels.
            norm: of the convolutions.
            inputs: see above.
        """
        super().__init__()
        self.inputs = tuple(inputs)
        wide, narrow = scaled(1024, width), scaled(64, width)
        shallow, deep = (channels_of(shapes[name]) for name in self.inputs)
        self.conv19 = conv_unit(deep, wide, 3, norm)
        self.conv20 = conv_unit(wide, wide, 3, norm)
        self.conv21 = conv_unit(shallow, narrow, 1, norm)
        self.conv22 = conv_unit(wide + 4 * narrow, wide, 3, norm)
        self.channels = {"conv13": shallow, "conv20": wide, "conv22": wide}

    def deepen(self, conv18: Tensor) -> Tensor:
        """The output of convolution 20."""
        return self.conv20(self.conv19(conv18))

    def join(self, conv13: Tensor, conv20: Tensor) -> Tensor:
        """The output of convolution 22.

        Args:
            conv13: (N, C, 2H, 2W).
            conv20: (N, C', H, W).
        """
        return self.conv22(cat([F.pixel_unshuffle(self.conv21(conv13), 2), conv20], dim=1))

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        shallow, deep = (features[name] for name in self.inputs)
        return self.join(shallow, self.deepen(deep))
