"""What most command-line tools and trainings have in common."""

import argparse
import logging
import os
import sys
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader, build_detection_train_loader
from detectron2.data import transforms as T
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format, verify_results
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger

from . import hooks
from .train_loop import AMPTrainer, SimpleTrainer, TrainerBase


def create_ddp_model(model: nn.Module, *, fp16_compression: bool = False, **kwargs) -> nn.Module:
    """``model`` in DistributedDataParallel when there are several processes, otherwise itself.

    Args:
        fp16_compression: send gradients in half precision.
        kwargs: go to DistributedDataParallel; ``device_ids`` is this process's GPU for a model on one.
    """
    if comm.get_world_size() == 1:
        return model
    if next(model.parameters()).is_cuda:
        kwargs.setdefault("device_ids", [comm.get_local_rank()])
    parallel = DistributedDataParallel(model, **kwargs)
    if fp16_compression:
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

        parallel.register_comm_hook(state=None, hook=fp16_compress_hook)
    return parallel


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """The options that training tools share. ``epilog`` is shown at the end of the help text."""
    tool = sys.argv[0]
    parser = argparse.ArgumentParser(
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=epilog
        or f"One machine, 8 GPUs:   {tool} --config-file CONFIG.yaml --num-gpus 8\n"
        f"Other values for keys: {tool} --config-file CONFIG.yaml SOLVER.BASE_LR 0.001 MODEL.WEIGHTS FILE.pth\n"
        f"Several machines:      {tool} --num-machines 2 --machine-rank 0 --dist-url tcp://HOST:PORT ...\n"
        "                       and the same with --machine-rank 1 on the second",
    )
    # A port that is fixed for a user shows a forgotten training by being taken.
    port = 49152 + (os.getuid() if hasattr(os, "getuid") else 1) % 16384
    parser.add_argument(
        "--config-file", metavar="FILE", default="", help="yaml file with what differs from the defaults"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, train nothing")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes on this machine, one for each GPU")
    parser.add_argument("--num-machines", type=int, default=1, help="machines that take part")
    parser.add_argument("--machine-rank", type=int, default=0, help="number of this machine, from 0")
    parser.add_argument("--dist-url", default=f"tcp://127.0.0.1:{port}", help="where the processes meet")
    parser.add_argument("opts", nargs=argparse.REMAINDER, default=None, help="KEY VALUE pairs that change the config")
    return parser


def _set_float32_precision(precision: str) -> None:
    if precision and torch.cuda.is_available():
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = precision != "highest"


def default_setup(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Open the log, record environment, arguments and config in it and in OUTPUT_DIR, and seed the generators."""
    rank, output_dir = comm.get_rank(), cfg.OUTPUT_DIR
    if output_dir and comm.is_main_process():
        PathManager.mkdirs(output_dir)
    setup_logger(output_dir, distributed_rank=rank, name="fvcore")
    logger = setup_logger(output_dir, distributed_rank=rank)
    logger.info("Process %d of %d", rank, comm.get_world_size())
    logger.info("Environment:\n%s", collect_env_info())
    logger.info("Arguments: %s", args)
    if config_file := getattr(args, "config_file", ""):
        logger.info("%s:\n%s", config_file, PathManager.open(config_file).read())
    if output_dir and comm.is_main_process():
        path = Path(output_dir) / "config.yaml"
        partial = path.with_suffix(".yaml.tmp")
        partial.write_text(cfg.dump())
        partial.replace(path)
        logger.info("The full config is in %s", path)
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    if not getattr(args, "eval_only", False):
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    _set_float32_precision(cfg.FLOAT32_PRECISION)


def default_writers(output_dir: str, max_iter: int | None = None) -> list[EventWriter]:
    """Writers to the console (with the time left), ``metrics.json`` and TensorBoard."""
    PathManager.mkdirs(output_dir)
    metrics = os.path.join(output_dir, "metrics.json")
    return [CommonMetricPrinter(max_iter), JSONWriter(metrics), TensorboardXWriter(output_dir)]


class DefaultPredictor:
    """A model with weights, for one image at a time.

    Takes an image as (H, W, 3) uint8 in BGR order and returns the model's output for it; resizing and channel order
    follow ``cfg.INPUT``, weights come from ``cfg.MODEL.WEIGHTS``.
    """

    def __init__(self, cfg: CfgNode):
        self.cfg = cfg.clone()
        self.input_format = cfg.INPUT.FORMAT
        if self.input_format not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT {self.input_format!r} is unknown: use RGB or BGR.")
        self.model = build_model(self.cfg).eval()
        if len(cfg.DATASETS.TEST):
            self.metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
        DetectionCheckpointer(self.model).load(cfg.MODEL.WEIGHTS)
        self.aug = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)

    @torch.no_grad()
    def __call__(self, original_image: np.ndarray) -> dict:
        height, width = original_image.shape[:2]
        image = original_image[:, :, ::-1] if self.input_format == "RGB" else original_image
        image = self.aug.get_transform(image).apply_image(image)
        tensor = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32))
        return self.model([{"image": tensor, "height": height, "width": width}])[0]


class DefaultTrainer(TrainerBase):
    """Model, data, optimizer, schedule, checkpoints, evaluation and logs as a config says.

    Override one of the ``build_*`` class methods to replace a part.

    Attributes:
        checkpointer: saves the model together with the trainer's state in ``cfg.OUTPUT_DIR``.
        scheduler: the learning-rate schedule.
    """

    def __init__(self, cfg: CfgNode):
        super().__init__()
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()  # a notebook that skipped default_setup still wants to see something
        self.cfg = cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        # Buffers are not broadcast: frozen statistics are equal anyway, and SyncBN keeps its own in step.
        model = create_ddp_model(model, broadcast_buffers=False)
        self._trainer = (AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer)(model, loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = DetectionCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    # The inner trainer owns these three.
    model = property(lambda self: self._trainer.model, lambda self, value: setattr(self._trainer, "model", value))
    data_loader = property(
        lambda self: self._trainer.data_loader, lambda self, value: setattr(self._trainer, "data_loader", value)
    )
    optimizer = property(
        lambda self: self._trainer.optimizer, lambda self, value: setattr(self._trainer, "optimizer", value)
    )

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on from the last checkpoint in OUTPUT_DIR (``resume`` and there is one), else load MODEL.WEIGHTS."""
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if resume and self.checkpointer.has_checkpoint():
            self.start_iter = self.iter + 1  # the checkpoint names the iteration that was done last

    def build_hooks(self) -> list[hooks.HookBase | None]:
        """Timing, schedule, precise BatchNorm, checkpoints, evaluation, writers: in this order.

        Statistics are made before they are saved, a checkpoint is saved before an evaluation can fail, and writers
        come last so that they see what the others stored.
        """
        cfg = self.cfg
        precise_bn = None
        if cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(self.model):
            loader_cfg = cfg.clone()
            loader_cfg.defrost()
            loader_cfg.DATALOADER.NUM_WORKERS = 0
            loader = self.build_train_loader(loader_cfg)
            precise_bn = hooks.PreciseBN(cfg.TEST.EVAL_PERIOD, self.model, loader, cfg.TEST.PRECISE_BN.NUM_ITER)

        def evaluate() -> dict:
            self._last_eval_results = self.test(self.cfg, self.model)
            return self._last_eval_results

        main = comm.is_main_process()
        return [
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            precise_bn,
            hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD) if main else None,
            hooks.EvalHook(cfg.TEST.EVAL_PERIOD, evaluate),
            hooks.PeriodicWriter(self.build_writers(), period=20) if main else None,
        ]

    def build_writers(self) -> list[EventWriter]:
        return default_writers(self.cfg.OUTPUT_DIR, self.max_iter)

    def train(self) -> OrderedDict | None:
        """Train; returns the last evaluation's results when ``TEST.EXPECTED_RESULTS`` are given (and checked)."""
        super().train(self.start_iter, self.max_iter)
        if len(self.cfg.TEST.EXPECTED_RESULTS) and comm.is_main_process():
            if not hasattr(self, "_last_eval_results"):
                raise RuntimeError("TEST.EXPECTED_RESULTS is set, but nothing was evaluated during this training.")
            verify_results(self.cfg, self._last_eval_results)
            return self._last_eval_results
        return None

    def run_step(self) -> None:
        self._trainer.iter = self.iter
        self._trainer.run_step()

    def after_train(self) -> None:
        super().after_train()
        self._trainer.concurrent_executor.shutdown(wait=True)

    def state_dict(self) -> dict:
        return super().state_dict() | {"_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = build_model(cfg)
        logging.getLogger(__name__).info("Model:\n%s", model)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer):
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable:
        return build_detection_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable:
        return build_detection_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """The evaluator of one test set; a subclass defines it, for it depends on the task."""
        raise NotImplementedError("To evaluate, a trainer needs its own build_evaluator(cfg, dataset_name).")

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: DatasetEvaluator | list[DatasetEvaluator] | None = None
    ) -> OrderedDict:
        """Evaluate ``model`` on each of ``cfg.DATASETS.TEST``.

        Args:
            evaluators: one for each test set; ``build_evaluator`` makes them when None.

        Returns:
            dataset name -> results; the results alone when there is one test set.
        """
        logger = logging.getLogger(__name__)
        names = cfg.DATASETS.TEST
        if isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        if evaluators is not None and len(evaluators) != len(names):
            raise ValueError(f"{len(evaluators)} evaluators do not fit the {len(names)} sets of DATASETS.TEST.")
        results = OrderedDict()
        for position, name in enumerate(names):
            try:
                evaluator = evaluators[position] if evaluators is not None else cls.build_evaluator(cfg, name)
            except NotImplementedError as error:
                logger.warning("%s is not evaluated: %s", name, error)
                results[name] = {}
                continue
            results[name] = inference_on_dataset(model, cls.build_test_loader(cfg, name), evaluator)
            if comm.is_main_process():
                if not isinstance(results[name], dict):
                    raise TypeError(f"The evaluator of {name} returned {type(results[name]).__name__}, not a dict.")
                logger.info("Results on %s:", name)
                print_csv_format(results[name])
        return next(iter(results.values())) if len(results) == 1 else results

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """A config for ``num_workers`` processes with the batch of each that ``SOLVER.REFERENCE_WORLD_SIZE`` implies.

        Batch and rate grow with the number of processes, iterations shrink (Goyal et al. 2017, linear scaling). The
        config comes back as it is when REFERENCE_WORLD_SIZE is 0 or equals ``num_workers``.
        """
        reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
        if reference in (0, num_workers):
            return cfg
        if cfg.SOLVER.IMS_PER_BATCH % reference:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} is no multiple of REFERENCE_WORLD_SIZE {reference}."
            )
        scaled = cfg.clone()
        scaled.defrost()
        solver, factor = scaled.SOLVER, num_workers / reference
        solver.IMS_PER_BATCH = round(solver.IMS_PER_BATCH * factor)
        solver.BASE_LR *= factor
        for key in ("MAX_ITER", "WARMUP_ITERS", "CHECKPOINT_PERIOD"):
            solver[key] = round(solver[key] / factor)
        scaled.TEST.EVAL_PERIOD = round(scaled.TEST.EVAL_PERIOD / factor)
        solver.STEPS = tuple(round(step / factor) for step in solver.STEPS)
        solver.REFERENCE_WORLD_SIZE = num_workers
        logging.getLogger(__name__).info(
            "Scaled from %d to %d processes: batch %d, learning rate %g, %d iterations, warm-up %d",
            reference, num_workers, solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER, solver.WARMUP_ITERS,
        )  # fmt: skip
        if cfg.is_frozen():
            scaled.freeze()
        return scaled
