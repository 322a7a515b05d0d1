"""What a training needs beside its data: a GPU, a network."""

import logging

import torch

from detectron2.config import CfgNode

logger = logging.getLogger(__name__)


def require_device(cfg: CfgNode) -> None:
    """MODEL.DEVICE is there.

    Raises:
        ValueError: it is not; names the remedy.
    """
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE}, but torch finds no GPU here: add MODEL.DEVICE cpu to the command, or "
            "see what dyn-d2 doctor says if there should be one."
        )


def say_needs(cfg: CfgNode) -> None:
    """Complain about a missing GPU, and say what will be downloaded, before anything else is done.

    Raises:
        ValueError: from ``require_device``.
    """
    require_device(cfg)
    if "://" in cfg.MODEL.WEIGHTS:
        logger.info(
            f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS} needs a network, unless it was downloaded before; a file of your own "
            "needs none"
        )
