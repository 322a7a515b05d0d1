"""The registry of meta-architectures: whole models."""

import torch
from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import nn

META_ARCH_REGISTRY = Registry("META_ARCH")
META_ARCH_REGISTRY.__doc__ = "Whole models by name; an entry is called with (cfg) and returns an `nn.Module`."

_LEFT_OUT = ("FCOS", "PanopticFPN")


def build_model(cfg: CfgNode) -> nn.Module:
    """Build the model that ``cfg.MODEL.META_ARCHITECTURE`` names, on ``cfg.MODEL.DEVICE``; loads no weights."""
    name = cfg.MODEL.META_ARCHITECTURE
    if name in _LEFT_OUT and name not in META_ARCH_REGISTRY:
        raise NotImplementedError(
            f"MODEL.META_ARCHITECTURE: the embedded engine leaves {name} out; install Detectron2 to use it"
        )
    return META_ARCH_REGISTRY.get(name)(cfg).to(torch.device(cfg.MODEL.DEVICE))
