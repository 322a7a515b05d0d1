"""What ``dyn-d2 train`` does in each process of a job, and how one process does it several times."""

import argparse
import gc
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from dyn_d2.checkpoint.files import tagged
from dyn_d2.config.names import find_config
from dyn_d2.utils.errors import TRACEBACK, UserError, message_of, note_in_log_files, wrong_input
from dyn_d2.utils.lock import released_after

from detectron2.utils import logger as log_files
from detectron2.utils.logger import setup_logger

from .launch import make_parser, parse_args, run_here
from .preflight import check_files, check_trainer
from .setup import setup
from .trainer import DynTrainer, evaluate


def train(args: argparse.Namespace) -> dict[str, Any] | None:
    """One process of the job. Returns the results of the last evaluation on the main process."""
    with wrong_input():
        if args.config_file:
            args.config_file = find_config(args.config_file)  # Detectron2 opens it once more for the log
        cfg = setup(args, check_files)
        if args.eval_only:
            return evaluate(cfg)
        trainer = DynTrainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        if cfg.SOLVER.PREFLIGHT and not args.resume:
            check_trainer(trainer)
    try:
        return trainer.train()
    except KeyboardInterrupt as stop:
        last = tagged(cfg.OUTPUT_DIR)
        raise KeyboardInterrupt(*[f"`dyn-d2 train ... --resume` goes on from {last}"] * bool(last)) from stop


def train_in_this_process(arguments: Sequence[str]) -> None:
    """``dyn-d2 train ARGUMENTS`` as a process of its own would run it, to be called any number of times: seeds and
    switches of torch are set by each training, and logs, locks and memory are given back after it.

    Args:
        arguments: such as ``--config-file FILE --num-gpus 2 KEY VALUE``; with several GPUs each has a process.

    Raises:
        UserError: the training failed; its log has the message too.
    """
    args = parse_args(make_parser(), arguments)
    with released_after(), _logs_closed_after():
        try:
            run_here(train, args)
        except Exception as error:
            if os.environ.get(TRACEBACK):
                raise
            message = message_of(error)  # now, as a traceback is left beside the log
            note_in_log_files(message)
            if isinstance(error, UserError):
                raise
            raise UserError(message) from error
        finally:
            gc.collect()
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()


@contextmanager
def _logs_closed_after() -> Iterator[None]:
    """Handlers of logging that are added inside the block are removed: the next training's lines are not this one's."""
    before = {id(handler) for logger in _loggers() for handler in logger.handlers}
    try:
        yield
    finally:
        for logger in _loggers():
            for handler in [handler for handler in logger.handlers if id(handler) not in before]:
                logger.removeHandler(handler)
                stream = getattr(handler, "stream", None)
                handler.close()
                # A file that the handler did not open itself.
                if stream is not None and os.path.isfile(str(getattr(stream, "name", ""))):
                    stream.close()
        for cached in (setup_logger, getattr(log_files, "_cached_log_stream", None)):
            getattr(cached, "cache_clear", lambda: None)()  # Detectron2 sets up a folder's log only once


def _loggers() -> list[logging.Logger]:
    known = logging.root.manager.loggerDict.values()
    return [logging.root, *(logger for logger in known if isinstance(logger, logging.Logger))]
