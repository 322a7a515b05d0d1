"""Gated, staged and dilated backbones; importing this package registers them in Detectron2's BACKBONE registry."""

from . import (  # noqa: F401  only registration
    cascade_resnet,
    darknet,
    dilated_vgg,
    gated_cifar_resnet,
    gated_drn,
    gated_fpn,
    gated_mobilenet,
    gated_resnet,
    gated_vgg,
    inception_resnet,
    multipath,
)
