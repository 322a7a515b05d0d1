"""What one module needs to know about the tensor that another one gives it."""

from dataclasses import dataclass


@dataclass
class ShapeSpec:
    """Static facts about an NCHW feature map; what is unknown is None.

    ``stride`` is the ratio of input-image pixels to feature-map cells.
    """

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None
