"""How the yaml files of ShapeProp become small: see tests/config_kinds.py."""

SMALL = ("MODEL.SHAPE_PROP.CONV_DIM", 32)
