"""What has to be known of a feature map to build on it."""

from detectron2.layers import ShapeSpec


def channels_of(shape: ShapeSpec) -> int:
    """How many channels the feature map has.

    Raises:
        ValueError: nobody said.
    """
    return _known(shape, "channels", shape.channels)


def stride_of(shape: ShapeSpec) -> int:
    """Pixels of the image for one of the feature map.

    Raises:
        ValueError: nobody said.
    """
    return _known(shape, "stride", shape.stride)


def _known(shape: ShapeSpec, name: str, value: int | None) -> int:
    if value is None:
        raise ValueError(f"{shape} does not tell {name}: output_shape() of the backbone has to give them.")
    return value
