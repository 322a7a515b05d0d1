"""The stages in which a policy is trained (Policy.STAGES), e.g. SkipNet's "sp" and "hrl", and the weights that each of
them may start from. What a stage changes in the config is in setup.py."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from dyn_d2.checkpoint import CheckpointError, LoadReport
from dyn_d2.config.derive import build_cfg
from dyn_d2.config.read import read_cfg
from dyn_d2.engine.stages import Stage, StageError
from dyn_d2.gating.meta_arch.dynamic import find_policy
from dyn_d2.gating.policies.base import policy_class

from detectron2.config import CfgNode

logger = logging.getLogger(__name__)


class PolicyStage(Stage):
    """A value of MODEL.POLICY.STAGE."""

    KEY = "MODEL.POLICY.STAGE"

    def later_keys(self) -> tuple[str, ...]:
        return () if self.parents else ("SOLVER.SECOND_STAGE", *policy_class(self.cfg).LATER_KEYS)

    def initial_weights(self, resume: bool) -> Path | None:
        """The model of the stage before."""
        return self.parents[-1].weights if self.parents else None


def plan(config_file: str, opts: Iterable[str]) -> list[Stage]:
    """The stages of the policy MODEL.POLICY.NAME, each in OUTPUT_DIR/STAGE.

    Raises:
        StageError: the policy has one stage only.
        ValueError: there is no such policy.
    """
    opts = list(opts)
    stages: list[Stage] = []
    cfg = read_cfg(config_file, opts)
    names = policy_class(cfg).STAGES
    if len(names) < 2:
        raise StageError(f"MODEL.POLICY.NAME {cfg.MODEL.POLICY.NAME} is trained in one stage: use dyn-d2 train.")
    for name in names:
        cfg = build_cfg(config_file, [*opts, PolicyStage.KEY, name])
        stages.append(PolicyStage(name, Path(cfg.OUTPUT_DIR) / name, cfg, stages[-1:]))
    return stages


def describe_policy(cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
    """What the ``dyn_d2`` entry of a checkpoint says about the policy: name and stage, {} where nothing is gated."""
    if find_policy(getattr(model, "backbone", None)) is None:
        return {}
    return {"name": cfg.MODEL.POLICY.NAME, "stage": cfg.MODEL.POLICY.STAGE or policy_class(cfg).STAGES[0]}


def previous_stage(cfg: CfgNode) -> str:
    """The stage whose result stage MODEL.POLICY.STAGE starts from; "" for the first."""
    stages, stage = policy_class(cfg).STAGES, cfg.MODEL.POLICY.STAGE
    return stages[stages.index(stage) - 1] if stage in stages[1:] else ""


def warn_of_other_stage(cfg: CfgNode, report: LoadReport) -> None:
    """Say so where a model is evaluated as one of another stage than it was trained in: some policies decide nothing in
    their first."""
    trained, stage = report.metadata.get("policy") or {}, cfg.MODEL.POLICY.STAGE or policy_class(cfg).STAGES[0]
    if trained and trained["name"] == cfg.MODEL.POLICY.NAME and trained["stage"] != stage:
        logger.warning(
            f"{report.source} was trained in stage {trained['stage']} of {trained['name']}, but is evaluated as one of "
            f"stage {stage}: add MODEL.POLICY.STAGE {trained['stage']}."
        )


def enter_stage(cfg: CfgNode, model: nn.Module, report: LoadReport) -> None:
    """Begin the stage MODEL.POLICY.STAGE with the weights that were loaded, unless they are of that stage already.

    Args:
        report: of what was loaded.

    Raises:
        CheckpointError: a later stage, and the weights are not those of the stage before it.
    """
    policy, before, own = find_policy(getattr(model, "backbone", None)), previous_stage(cfg), cfg.MODEL.POLICY
    if policy is None or not before:
        return
    remedy = f"set MODEL.WEIGHTS to the model_final.pth of stage {before}, or let dyn-d2 stages run both"
    if report.source == "nothing":
        raise CheckpointError(
            f"MODEL.POLICY.STAGE {own.STAGE} of {own.NAME} starts from the result of stage {before}, but MODEL.WEIGHTS "
            f"is empty: {remedy}."
        )
    trained = report.metadata.get("policy") or {}
    if trained and (trained["name"] != own.NAME or trained["stage"] not in (before, own.STAGE)):
        raise CheckpointError(
            f"{report.source} is of {trained['name']}, stage {trained['stage'] or '(the only one)'}, but "
            f"MODEL.POLICY.STAGE {own.STAGE} of {own.NAME} starts from its stage {before}: {remedy}."
        )
    gates = {id(parameter) for parameter in policy.parameters()}
    tensors = model.state_dict(keep_vars=True)
    lacking = [name for name in report.reinitialised() if name in tensors and id(tensors[name]) in gates]
    if lacking:
        shown = f"{', '.join(lacking[:3])}{', ...' if len(lacking) > 3 else ''}"
        raise CheckpointError(
            f"{report.source} lacks gates that MODEL.POLICY.STAGE {own.STAGE} of {own.NAME} starts from ({shown}): "
            f"{remedy}."
        )
    if trained.get("stage") != own.STAGE:
        policy.enter_stage()
