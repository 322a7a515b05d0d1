"""The registry of meta-architectures: whole models."""

import torch
from torch import nn

from detectron2.config import CfgNode
from detectron2.left_out import left_out
from detectron2.utils.registry import Registry

META_ARCH_REGISTRY = Registry("META_ARCH")
META_ARCH_REGISTRY.__doc__ = "Whole models by name; an entry is called with (cfg) and returns an `nn.Module`."

_LEFT_OUT = ("FCOS", "PanopticFPN")


def build_model(cfg: CfgNode) -> nn.Module:
    """Build the model that ``cfg.MODEL.META_ARCHITECTURE`` names, on ``cfg.MODEL.DEVICE``; loads no weights."""
    name = cfg.MODEL.META_ARCHITECTURE
    if name in _LEFT_OUT and name not in META_ARCH_REGISTRY:
        raise left_out("MODEL.META_ARCHITECTURE", name)
    return META_ARCH_REGISTRY.get(name)(cfg).to(torch.device(cfg.MODEL.DEVICE))
