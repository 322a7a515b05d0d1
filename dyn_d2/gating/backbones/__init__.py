"""Gated and dilated backbones; importing this package registers them in Detectron2's BACKBONE registry."""

from . import cifar_resnet, dilated_vgg, drn, fpn, mobilenet, resnet, timm, vgg  # noqa: F401  only registration
