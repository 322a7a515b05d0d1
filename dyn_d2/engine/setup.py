"""From a command line to a frozen config: what every training and evaluation does first."""

import argparse
import logging
import os
from collections.abc import Callable
from pathlib import Path

from dyn_d2.backend import describe_backend
from dyn_d2.config.derive import derive
from dyn_d2.config.output_dir import OutputDirError, check_is_folder, check_output_dir
from dyn_d2.config.read import read_cfg, read_yaml
from dyn_d2.utils.atomic import atomic_write
from dyn_d2.utils.lock import hold_folder

from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from .needs import say_needs

logger = logging.getLogger(__name__)


def _choose_seed(cfg: CfgNode, resume: bool) -> None:
    """Give SEED a value: on resume that of the first run, else, where it is negative, a random one."""
    saved = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
    if resume and os.path.isfile(saved):
        old = read_yaml(saved).get("SEED")
        if not isinstance(old, int) or isinstance(old, bool):
            raise OutputDirError(
                f"{saved} has no SEED any more: bring the file back, or remove it to resume without it."
            )
        if cfg.SEED not in (-1, old):
            raise OutputDirError(f"SEED is {cfg.SEED}, the run in {cfg.OUTPUT_DIR} has {old}: give that one to resume.")
        cfg.SEED = old
    elif cfg.SEED < 0:
        cfg.SEED = comm.shared_random_seed() % 2**31
        logger.info(f"SEED: {cfg.SEED} (drawn at random; set SEED to repeat this run)")


def setup(args: argparse.Namespace, check: Callable[[CfgNode], None] = lambda cfg: None) -> CfgNode:
    """The frozen config of a command line (Detectron2's ``default_argument_parser``), with logging and seeds set up
    and the config written to OUTPUT_DIR.

    Args:
        check: looks at the config before it is logged as a whole; what it raises is the last that is said.

    Raises:
        KeyError, ValueError: from ``build_cfg``, or MODEL.DEVICE is not there.
        OutputDirError: OUTPUT_DIR belongs to another run, or cannot be a folder.
        FolderInUse: another process trains into OUTPUT_DIR now.
    """
    cfg = read_cfg(args.config_file, args.opts)
    check_is_folder(cfg.OUTPUT_DIR)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="dyn_d2")
    logger.info(describe_backend())
    say_needs(cfg)
    derive(cfg, [*args.opts[::2], *getattr(args, "given", ())])
    resume, evaluate = getattr(args, "resume", False), getattr(args, "eval_only", False)
    _choose_seed(cfg, resume)
    if not evaluate:
        if comm.is_main_process():
            hold_folder(cfg.OUTPUT_DIR)
        check_output_dir(cfg, resume)
    cfg.freeze()
    check(cfg)
    saved = Path(cfg.OUTPUT_DIR, "config.yaml")
    before = saved.read_text(encoding="utf-8") if evaluate and saved.is_file() else None
    comm.synchronize()  # default_setup writes the file that all processes have just read
    default_setup(cfg, args)
    if before is not None and comm.is_main_process():
        with atomic_write(saved) as file:  # evaluation must not rewrite what a training run is resumed with
            file.write(before)
    return cfg
