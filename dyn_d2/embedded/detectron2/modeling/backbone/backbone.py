"""The interface of all backbones."""

from abc import ABCMeta, abstractmethod

from torch import Tensor, nn

from detectron2.layers import ShapeSpec


class Backbone(nn.Module, metaclass=ABCMeta):
    """A network that turns a batch of images into named feature maps.

    Subclasses that set ``_out_features``, ``_out_feature_channels`` and ``_out_feature_strides`` inherit
    :meth:`output_shape`; others override it.
    """

    @abstractmethod
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images (N, C, H, W) to a dict of feature name -> tensor (N, Ci, Hi, Wi)."""

    @property
    def size_divisibility(self) -> int:
        """Height and width of the input must be multiples of this number; 0 means any size will do."""
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Further wishes for padding, with the optional keys ``size_divisibility`` (it goes before the property of that
        name) and ``square_size`` (> 0: pad to a square of that side)."""
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every feature map that :meth:`forward` returns."""
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }
