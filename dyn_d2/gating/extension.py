"""Gating's answers to the platform: it plugs in as methods do."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import nn
from torch.optim import Optimizer

from dyn_d2.checkpoint.checkpointer import LoadReport
from dyn_d2.config.derive import SetKey
from dyn_d2.engine.optimizers import train_by_adam
from dyn_d2.engine.schedules import own_schedule
from dyn_d2.method import Method, register_method

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.evaluation import DatasetEvaluator

from . import config
from .hooks import GateCollapse, separate_gates
from .meta_arch import find_policy
from .policies.base import FIXED, POLICY_REGISTRY, Policy, check_plan, policy_class


@register_method
class Gating(Method):
    name = "gating"
    ranges = config.RANGES

    def add_keys(self, cfg: CfgNode) -> None:
        config.add_keys(cfg)

    def derive(self, cfg: CfgNode, given: set[str], set_key: SetKey) -> None:
        """MODEL.POLICY.STAGE -> SOLVER keys of SOLVER.SECOND_STAGE or FIXED_STAGE."""
        stage = cfg.MODEL.POLICY.STAGE
        check_plan(cfg)
        if stage not in policy_class(cfg).STAGES[1:]:
            return
        node, decay = "FIXED_STAGE" if stage == FIXED else "SECOND_STAGE", cfg.SOLVER.WEIGHT_DECAY
        for key, value in own_schedule(cfg.SOLVER[node]).items():
            if f"SOLVER.{node}.{key}" in given:  # the more special one wins
                cfg.SOLVER[key] = value
                given.add(f"SOLVER.{key}")  # and is not scaled to the batch either
            else:
                set_key(f"SOLVER.{key}", value, "stage " + stage)
        # Decays that were the same stay so. Norms without any beside weights without any say nothing of each other.
        if decay not in (0, cfg.SOLVER.WEIGHT_DECAY):
            for key in ("WEIGHT_DECAY_NORM", "WEIGHT_DECAY_BIAS"):
                if cfg.SOLVER[key] == decay:
                    set_key(f"SOLVER.{key}", cfg.SOLVER.WEIGHT_DECAY, "SOLVER.WEIGHT_DECAY of stage " + stage)

    def describe(self, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        from .stages import describe_policy

        return {"policy": describe_policy(cfg, model), **policy_class(cfg).to_carry(cfg)}

    def restore(self, described: Mapping[str, Any]) -> None:
        for _, policy in POLICY_REGISTRY:
            policy.take_carried(described)

    def parts_of_plain_weights(self, model: nn.Module) -> set[str]:
        return {
            f"{path}.{name}"
            for path, policy in model.named_modules()
            if isinstance(policy, Policy)
            for name in policy.state_dict()
            if not name.endswith("num_batches_tracked")
        }

    def export_problem(self, model: nn.Module, form: str) -> str | None:
        policy = find_policy(getattr(model, "backbone", None))
        if policy is not None and policy.stops:
            return f"{type(policy).__name__} stops images for good, which no operator of ONNX says."
        if policy is not None and policy.draws:
            return f"{type(policy).__name__} draws its decisions at random: no file could be compared with it."
        return None

    def chooses(self, model: nn.Module) -> bool:
        return find_policy(getattr(model, "backbone", None)) is not None

    def exporting(self, model: nn.Module, form: str) -> AbstractContextManager[Any]:
        from .exporting import exporting

        return exporting(form)

    def parameter_groups(self, cfg: CfgNode, model: nn.Module, optimizer: Optimizer) -> None:
        policy = find_policy(getattr(model, "backbone", None))
        if policy is not None:
            separate_gates(optimizer, policy, cfg.SOLVER.GATE_LR_FACTOR, cfg.SOLVER.GATE_WEIGHT_DECAY)
            if cfg.SOLVER.POLICY_OPTIMIZER == "Adam" and cfg.SOLVER.OPTIMIZER == "SGD":
                train_by_adam(optimizer, policy.parameters())

    def hooks(self, cfg: CfgNode, model: nn.Module) -> list[HookBase]:
        return [GateCollapse()] if find_policy(getattr(model, "backbone", None)) is not None else []

    def start(self, cfg: CfgNode, model: nn.Module, report: LoadReport) -> None:
        from .stages import enter_stage

        enter_stage(cfg, model, report)

    def check_loaded(self, cfg: CfgNode, report: LoadReport) -> None:
        from .stages import warn_of_other_stage

        warn_of_other_stage(cfg, report)

    def evaluators_of_model(
        self, cfg: CfgNode, model: nn.Module, dataset_name: str, folder: str
    ) -> list[DatasetEvaluator]:
        """The routes of models whose backbone is gated, or whose head is dynamic: routes.npz and routes.json, or
        routes_DATASET where DATASETS.TEST has several sets."""
        from .reports.routes import RouteEvaluator

        if find_policy(getattr(model, "backbone", None)) is None and not getattr(model, "whole_trace", False):
            return []
        stem = "routes" if len(cfg.DATASETS.TEST) == 1 else f"routes_{dataset_name}"
        return [RouteEvaluator(dataset_name, folder, model=model, stem=stem)]
