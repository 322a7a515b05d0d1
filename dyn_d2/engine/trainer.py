"""DynTrainer: Detectron2's DefaultTrainer with freezing, safe checkpoints and exact resume."""

import logging
import os
import warnings
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dyn_d2.checkpoint import DynCheckpointer, describe
from dyn_d2.checkpoint.files import FINAL
from dyn_d2.checkpoint.fits import require_same_classes, warn_of_settings
from dyn_d2.checkpoint.model import model_of
from dyn_d2.config.applied import note_optimizer
from dyn_d2.data.fingerprint import forget_fingerprints
from dyn_d2.data.resumable import EvaluationLoader, ResumableLoader, build_resumable_train_loader
from dyn_d2.method import methods
from dyn_d2.modeling.backbone.timm import OWN_WEIGHTS
from dyn_d2.modeling.build import build_model
from dyn_d2.modeling.freeze import VerifyFrozen, has_frozen_parts
from dyn_d2.utils.atomic import atomic_write, remove_leftovers
from dyn_d2.utils.seeds import seed_all

from detectron2.data import MetadataCatalog
from detectron2.engine import AMPTrainer, DefaultTrainer, HookBase, SimpleTrainer, TrainerBase
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, get_event_storage, has_event_storage

from .average import WeightAverage, averaged
from .best import KeepBest, stopped_after
from .feature_cache import FreshFeatures, evaluated_from_cache, predictor_alone
from .frozen_maps import keep_frozen
from .hooks import DivergenceError, FirstSteps, LossAverages, LossGuard, StepSeeds
from .inputs import inputs_of
from .lr_schedules import HALVING, POLY, halving_schedule, poly_schedule, warn_of_long_warm_up
from .optimizers import chosen_optimizer
from .param_groups import scale_backbone_rate
from .resume import (
    KeepScalars,
    check_same_run,
    checkpoint_to_resume,
    drop_metrics_from,
    load_to_resume,
    write_final_model,
)
from .writers import chosen_writers

logger = logging.getLogger(__name__)


class _WithoutTraceback(logging.Filter):
    """The loop logs every error with its traceback. Where one of our commands runs the loop, its last message tells
    what there is to tell (``utils/errors.py``); elsewhere Python shows the traceback anyway."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.exc_info


logging.getLogger(TrainerBase.__module__).addFilter(_WithoutTraceback())


class DynTrainer(DefaultTrainer):
    """Trains what ``cfg`` describes; use it as DefaultTrainer.

    The state of a run is (weights, optimizer, schedule, iteration): data and random numbers follow from SEED and the
    iteration, so that a killed run that resumes gives the numbers of an unbroken one. ``cfg.SEED`` must be set.

    Several processes share the batch of one, so that rate and schedule stay as they are, and give its numbers but for
    three things: each pads its own images to one size, has its own batch statistics (norms "BN"; "FrozenBN", "GN" and
    "SyncBN" do not differ), and draws by itself which anchors and regions enter the losses.
    """

    stopped = False

    def __init__(self, cfg) -> None:
        # Not DefaultTrainer's: it cannot wrap a CPU model for several processes, and has its own checkpointer.
        TrainerBase.__init__(self)
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        seed_all(cfg.SEED, "model")
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        predictor_alone(cfg, model, data_loader)
        keep_frozen(cfg, model, data_loader)
        wrapped = distribute(model, cfg.SOLVER.FIND_UNUSED_PARAMETERS)
        on_gpu = next(model.parameters()).is_cuda
        if cfg.SOLVER.AMP.ENABLED and not on_gpu:
            train_in_bfloat16(model)
        trainer = AMPTrainer if cfg.SOLVER.AMP.ENABLED and on_gpu else SimpleTrainer
        self._trainer = trainer(wrapped, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        metadata = describe(cfg, model)
        if comm.is_main_process():
            forget_fingerprints()
            metadata["inputs"] = inputs_of(cfg, cfg.DATASETS.TRAIN)
        self.checkpointer = DynCheckpointer(model, cfg.OUTPUT_DIR, metadata=metadata, trainer=weakref.proxy(self))
        self.start_iter, self.max_iter, self.cfg = 0, cfg.SOLVER.MAX_ITER, cfg
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_model(cls, cfg) -> nn.Module:
        """The model of ``cfg`` with the parts of MODEL.FREEZE frozen."""
        model = build_model(cfg)
        _note_model(cfg, model)
        return model

    @classmethod
    def build_optimizer(cls, cfg, model: nn.Module) -> torch.optim.Optimizer:
        """Detectron2's or Adam, with the backbone (SOLVER.BACKBONE_LR_FACTOR) and what methods set apart in groups of
        their own."""
        optimizer = chosen_optimizer(cfg, super().build_optimizer(cfg, model))
        backbone = getattr(model, "backbone", None)
        if backbone is not None and cfg.SOLVER.BACKBONE_LR_FACTOR != 1:
            scale_backbone_rate(optimizer, backbone, cfg.SOLVER.BACKBONE_LR_FACTOR)
        for method in methods():
            method.parameter_groups(cfg, model, optimizer)
        note_optimizer(optimizer)
        return optimizer

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        """Detectron2's, "WarmupPolyLR" or "HalvingLR"."""
        if cfg.SOLVER.LR_SCHEDULER_NAME == HALVING:
            return halving_schedule(cfg, optimizer)
        if cfg.SOLVER.LR_SCHEDULER_NAME == POLY:
            return poly_schedule(cfg, optimizer)
        return super().build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg) -> ResumableLoader:
        return build_resumable_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name: str) -> EvaluationLoader:
        return EvaluationLoader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
        """The evaluator that the data set's ``evaluator_type`` asks for; files go to ``output_folder``, by default
        OUTPUT_DIR/inference."""
        from dyn_d2.evaluation import build_evaluator

        return build_evaluator(cfg, dataset_name, output_folder or os.path.join(cfg.OUTPUT_DIR, "inference"))

    @classmethod
    def test(
        cls, cfg, model: nn.Module, evaluators: DatasetEvaluator | list[DatasetEvaluator] | None = None
    ) -> OrderedDict[str, Any]:
        """Evaluate as the parent does, with what methods evaluate too, and write OUTPUT_DIR/results.json beside it."""
        from dyn_d2.evaluation import prepare_evaluation, with_evaluators_of_model
        from dyn_d2.evaluation.results import RESULTS_FILE, evaluation_record, write_results

        bare, done = getattr(model, "module", model), _iterations_done(cfg)
        with averaged(bare):
            prepare_evaluation(cfg, bare)
            if evaluators is None:
                evaluators = [
                    with_evaluators_of_model(cls.build_evaluator(cfg, name), cfg, bare, name)
                    for name in cfg.DATASETS.TEST
                ]
            with evaluated_from_cache(cfg, bare, final=done in (None, cfg.SOLVER.MAX_ITER)):
                results = super().test(cfg, model, evaluators)
            if comm.is_main_process() and cfg.DATASETS.TEST:
                record = evaluation_record(cfg, bare, results, done)
                write_results(os.path.join(cfg.OUTPUT_DIR, RESULTS_FILE), record)
        return results

    def build_hooks(self) -> list[HookBase | None]:
        cfg = self.cfg
        self._writers: list[EventWriter] = []  # filled where the parent builds its hooks, in the main process
        self._guard = LossGuard(self.model, _batch_hint(cfg))
        self._scalars = KeepScalars(self._writers, cfg.TEST.EVAL_PERIOD)
        own = [StepSeeds(cfg.SEED), self._guard, LossAverages(self.checkpointer.model), self._scalars]
        own.append(FirstSteps())
        if cfg.SOLVER.EMA:
            own.append(WeightAverage(self.checkpointer.model, cfg.SOLVER.EMA, self.checkpointer))
        if cfg.SOLVER.BEST.METRIC:  # before what saves and evaluates, which take the best
            own.append(KeepBest(cfg, self.checkpointer.model, self.checkpointer, self.test))
        if has_frozen_parts(self.checkpointer.model):
            own += [VerifyFrozen(self.checkpointer.model), FreshFeatures(self.checkpointer.model)]
        for method in methods():
            own += method.hooks(cfg, self.checkpointer.model)
        return own + super().build_hooks()

    def build_writers(self) -> list[EventWriter]:
        self._writers += [*super().build_writers(), *chosen_writers(self.cfg)]
        return self._writers

    def stop(self) -> None:
        """Take the step at hand for the last one; what there is left of the loop does nothing."""
        self.stopped = True
        self.iter = self.storage.iter = self.max_iter - 1

    def before_step(self) -> None:
        if not self.stopped:
            super().before_step()

    def after_step(self) -> None:
        if not self.stopped:
            super().after_step()

    def after_train(self) -> None:
        self.iter = min(self.iter, self.max_iter)  # where no step is left, an installed Detectron2 counts one more
        super().after_train()

    def run_step(self) -> None:
        if self.stopped:
            return
        try:
            super().run_step()
        except DivergenceError:
            raise
        except FloatingPointError as error:  # Detectron2's own checks, e.g. of the proposals
            raise self._guard.explain(str(error).rstrip(".")) from error

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on from the last checkpoint of OUTPUT_DIR, or start from MODEL.WEIGHTS; the log says which.

        Raises:
            CheckpointError, OutputDirError, ChangedInputs: ``resume`` without a checkpoint that this run can go on
                from, see ``engine/resume.py``; weights for other classes, or that a method does not start from.
            FileNotFoundError: MODEL.WEIGHTS does not exist.
        """
        weights, folder = self.cfg.MODEL.WEIGHTS, self.cfg.OUTPUT_DIR
        if comm.is_main_process():
            remove_leftovers(folder)
        if not resume:
            self.checkpointer.load(weights, checkpointables=[])
            model, report = self.checkpointer.model, self.checkpointer.report
            require_same_classes(model, report, self.cfg.DATASETS.TRAIN, start=True)
            warn_of_settings(self.cfg, report)
            warn_of_long_warm_up(self.cfg)
            for method in methods():
                method.start(self.cfg, model, report)
            if comm.is_main_process():  # a kill before the first checkpoint must not resume what was here before
                Path(folder, "last_checkpoint").unlink(missing_ok=True)
                drop_metrics_from(os.path.join(folder, "metrics.json"), 0)
            logger.info(f"FRESH from {weights or _start_without(self.cfg, model)}: iteration 0 of {self.max_iter}")
            return
        path = checkpoint_to_resume(folder)
        load_to_resume(self, path)
        require_same_classes(self.checkpointer.model, self.checkpointer.report, self.cfg.DATASETS.TRAIN)
        check_same_run(self.cfg, self.checkpointer.report, self.iter + 1)
        self._keep_inputs(self.checkpointer.report.metadata.get("inputs"))
        self.start_iter = self.iter + 1
        self.data_loader.start_iter = self.start_iter
        written = -1
        if comm.is_main_process():
            metrics = os.path.join(folder, "metrics.json")
            written = drop_metrics_from(metrics, self.start_iter, self._scalars.last_steps())
        self._scalars.resume_after(comm.all_gather(written)[0])  # an evaluation needs all processes
        logger.info(f"RESUME iter {self.start_iter} from {path} (MODEL.WEIGHTS {weights or '(none)'} ignored)")
        if self.start_iter >= self.max_iter and os.path.basename(path) != FINAL:
            write_final_model(self)

    def _keep_inputs(self, began: dict[str, Any] | None) -> None:
        """Checkpoints say what the run began with, not what lies there when it goes on, unless that is allowed."""
        metadata = self.checkpointer.metadata
        if began and metadata and "inputs" in metadata:
            allowed = metadata["inputs"] if self.cfg.SOLVER.ALLOW_CHANGED_INPUTS else began
            metadata["inputs"] = {**allowed, "weights": began.get("weights", {})}


def evaluate(cfg) -> dict[str, Any]:
    """Results of MODEL.WEIGHTS on DATASETS.TEST.

    Raises:
        CheckpointError: the weights do not fill the whole model (unless TEST.ALLOW_PARTIAL_WEIGHTS), or are for other
            classes than those of the data.
    """
    model, report = model_of(cfg)
    require_same_classes(model, report, cfg.DATASETS.TEST)
    warn_of_settings(cfg, report)
    for method in methods():
        method.check_loaded(cfg, report)
    shots_hash = report.metadata.get("few_shot", {}).get("shots_hash")
    if shots_hash and cfg.DATASETS.TRAIN:  # the objects that these weights have seen; they are not drawn again here
        MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).set(shots_hash=shots_hash)
    results = DynTrainer.test(cfg, distribute(model))
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def _iterations_done(cfg) -> int | None:
    """Iterations that the model under training has seen; None outside of training."""
    if not has_event_storage():
        return None
    return stopped_after() or min(get_event_storage().iter + 1, cfg.SOLVER.MAX_ITER)


def _start_without(cfg, model: nn.Module) -> str:
    """What a model starts from that has no MODEL.WEIGHTS."""
    own = any(getattr(module, OWN_WEIGHTS, False) for module in model.modules())
    return f"MODEL.TIMM.WEIGHTS {cfg.MODEL.TIMM.WEIGHTS}, all else from random weights" if own else "random weights"


def _note_model(cfg, model: nn.Module) -> None:
    """Its size in the log, and all of its modules, hundreds of lines, in OUTPUT_DIR/model.txt."""
    parameters = list(model.parameters())
    learned = sum(p.numel() for p in parameters if p.requires_grad)
    path = Path(cfg.OUTPUT_DIR, "model.txt")
    if comm.is_main_process() and path.parent.is_dir():
        with atomic_write(path) as file:
            file.write(f"{model}\n")
    logger.info(
        f"Model: {type(model).__name__}, {sum(p.numel() for p in parameters):,} parameters, {learned:,} of them learn; "
        f"its modules are in {path}"
    )


def _batch_hint(cfg) -> str:
    reference = cfg.SOLVER.REFERENCE_BATCH
    if reference in (0, cfg.SOLVER.IMS_PER_BATCH):
        return ""
    return f" The rate was chosen for a batch of {reference}, this run has {cfg.SOLVER.IMS_PER_BATCH}."


def train_in_bfloat16(model: nn.Module) -> None:
    """Mixed precision on a CPU: the forward pass in training runs under autocast to bfloat16, which needs no scaling of
    the loss. Weights, and evaluation, stay in float32."""
    forward = model.forward

    def mixed(*args, **kwargs):
        with torch.autocast("cpu", torch.bfloat16, enabled=model.training):
            return forward(*args, **kwargs)

    model.forward = mixed


def distribute(model: nn.Module, find_unused_parameters: bool = False) -> nn.Module:
    """``model`` wrapped for several processes, on GPU or CPU; itself where there is only one.

    Models with a part that skips parts of itself (attribute ``skips_parameters``) have DDP look for unused parameters.
    """
    if comm.get_world_size() == 1:
        return model
    on_gpu = next(model.parameters()).is_cuda
    with warnings.catch_warnings():
        # torch 2.15 calls broadcast_buffers old, torch 2.6 does not know the new name.
        warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)
        return DistributedDataParallel(
            model,
            device_ids=[torch.cuda.current_device()] if on_gpu else None,
            broadcast_buffers=False,
            find_unused_parameters=find_unused_parameters
            or any(getattr(module, "skips_parameters", False) for module in model.modules()),
        )
