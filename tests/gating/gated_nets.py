"""Gated backbones with decisions that the test gives, and the obvious way to compute the same."""

import torch
from torch import nn

from dyn_d2.config import add_dyn_d2_config
from dyn_d2.gating.decisions import fixed
from dyn_d2.gating.policies.base import Policy

from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone


class Forced(Policy):
    """Opens what the test says: ``choices[i]`` are the decisions (N,), (N, G) or (N, C) about unit i."""

    def __init__(self, units, choices=()):
        super().__init__(units)
        self.choices = list(choices)

    def decide(self, index, features, state):
        choice = self.choices[index]
        return choice if hasattr(choice, "gate") else fixed(choice)


def gated_cfg(name: str = "build_gated_resnet_backbone", **keys) -> CfgNode:
    """The config of a gated ResNet-18 with all of its features; ``keys`` with "__" for the dots."""
    cfg = get_cfg()
    add_dyn_d2_config(cfg)
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = name, 0
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.NORM = 18, 64, "BN"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.POLICY.NAME = "all_open"
    for key, value in keys.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def build(cfg: CfgNode) -> nn.Module:
    return build_backbone(cfg, ShapeSpec(channels=3))


def force(backbone: nn.Module, choices) -> None:
    """Let ``choices`` decide in a gated backbone, which may be under an FPN."""
    backbone = getattr(backbone, "bottom_up", backbone)
    backbone.policy = Forced(backbone.policy.units, choices)


def random_choices(backbone: nn.Module, images: int, rate: float = 0.5) -> list[torch.Tensor]:
    """Open with probability ``rate``, for all units."""
    units = getattr(backbone, "bottom_up", backbone).policy.units
    shapes = [(images,) if unit.kind == "block" else (images, unit.size) for unit in units]
    return [torch.rand(shape) < rate for shape in shapes]


def settle(module: nn.Module) -> nn.Module:
    """Give batch norms statistics and affine parameters that are neither 0 nor 1."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.7, 1.3)
            nn.init.uniform_(layer.weight, 0.7, 1.3)
            nn.init.normal_(layer.bias, std=0.1)
    return module
