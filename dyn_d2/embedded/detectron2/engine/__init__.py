# ruff: noqa: F401, I001
"""The training loop, its hooks and the defaults that command-line tools share."""

from detectron2.left_out import refusal_of

from . import defaults, hooks
from .defaults import DefaultPredictor, DefaultTrainer, create_ddp_model, default_argument_parser, default_setup
from .defaults import default_writers
from .hooks import BestCheckpointer, CallbackHook, EvalHook, IterationTimer, LRScheduler, PeriodicCheckpointer
from .hooks import PeriodicWriter, PreciseBN
from .launch import DEFAULT_TIMEOUT, launch
from .train_loop import AMPTrainer, HookBase, SimpleTrainer, TrainerBase

__getattr__ = refusal_of(__name__)
