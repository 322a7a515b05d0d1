"""Names in config files -> classes and functions."""

from fvcore.common.registry import Registry as Registry
