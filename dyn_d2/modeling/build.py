"""From a config to a model."""

import logging

import torch
from torch import nn

from detectron2.config import CfgNode
from detectron2.modeling import build_model as build_plain_model

from .freeze import freeze
from .precision import keep_precise

logger = logging.getLogger(__name__)


def build_model(cfg: CfgNode) -> nn.Module:
    """Detectron2's ``build_model``, in the memory layout of MODEL.CHANNELS_LAST, with the parts of MODEL.FREEZE frozen.

    Raises:
        ValueError: MODEL.FREEZE names no module, or all.
    """
    model = build_plain_model(cfg)
    if cfg.MODEL.CHANNELS_LAST:  # convolutions hand the layout of their weights on to their outputs
        model.to(memory_format=torch.channels_last)
    keep_precise(cfg, model)
    frozen = freeze(model, cfg.MODEL.FREEZE)
    if frozen:
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        total, still = sum(sizes.values()), sum(sizes[name] for name in frozen)
        logger.info(f"frozen: {list(cfg.MODEL.FREEZE)}, {len(frozen)} tensors, {still:,} of {total:,} parameters")
    return model
