# ruff: noqa: F401
"""Backbones and their registry."""

from detectron2.left_out import refusal_of

from .backbone import Backbone
from .build import BACKBONE_REGISTRY, build_backbone
from .fpn import FPN
from .resnet import BasicStem, BottleneckBlock, ResNet, ResNetBlockBase, build_resnet_backbone, make_stage

__getattr__ = refusal_of(__name__)
