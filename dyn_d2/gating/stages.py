"""The stages in which a policy is trained (Policy.STAGES), e.g. SkipNet's "sp" and "hrl", and the weights that each of
them may start from. What a stage changes in the config is in setup.py."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from dyn_d2.checkpoint import CheckpointError, LoadReport
from dyn_d2.config.derive import build_cfg
from dyn_d2.config.read import flatten, read_cfg, read_yaml
from dyn_d2.engine.stages import Stage, StageError
from dyn_d2.gating.meta_arch.dynamic import find_policy
from dyn_d2.gating.policies.base import FIXED, check_plan, policy_class

from detectron2.config import CfgNode

logger = logging.getLogger(__name__)


class PolicyStage(Stage):
    """A value of MODEL.POLICY.STAGE."""

    KEY = "MODEL.POLICY.STAGE"

    def later_keys(self) -> tuple[str, ...]:
        fixed = () if self.name == FIXED else ("SOLVER.FIXED_STAGE", "MODEL.POLICY.PLAN")
        policy = policy_class(self.cfg)
        # A plan may begin with a later stage, which reads its keys then too.
        return (*fixed, "SOLVER.SECOND_STAGE", *policy.LATER_KEYS) if self.name == policy.STAGES[0] else fixed

    def _other_start(self, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
        """As the first stage of another plan it started from new gates: from nothing, or from MODEL.WEIGHTS itself."""
        saved, label = self.folder / "config.yaml", "MODEL.WEIGHTS"
        if not self.parents or not saved.is_file():
            return super()._other_start(old, new)
        before = flatten(read_yaml(str(saved))).get(label, "")
        own = before in ("", self.cfg.MODEL.WEIGHTS)
        return [f"{label}: {before or 'none'} -> the result of stage {self.parents[-1].name}"] if own else []

    def initial_weights(self, resume: bool) -> Path | None:
        """The model of the stage before."""
        return self.parents[-1].weights if self.parents else None


def plan(config_file: str, opts: Iterable[str]) -> list[Stage]:
    """The stages of the policy MODEL.POLICY.NAME, each in OUTPUT_DIR/STAGE.

    Raises:
        StageError: the policy has one stage only, and MODEL.POLICY.PLAN names none.
        ValueError: there is no such policy.
    """
    opts = list(opts)
    stages: list[Stage] = []
    cfg = read_cfg(config_file, opts)
    check_plan(cfg)
    names = list(cfg.MODEL.POLICY.PLAN) or [name for name in policy_class(cfg).STAGES if name != FIXED]
    if len(names) < 2 and not cfg.MODEL.POLICY.PLAN:
        raise StageError(
            f"MODEL.POLICY.NAME {cfg.MODEL.POLICY.NAME} is trained in one stage: use dyn-d2 train, or name stages in "
            "MODEL.POLICY.PLAN."
        )
    for name in names:
        cfg = build_cfg(config_file, [*opts, PolicyStage.KEY, name])
        stages.append(PolicyStage(name, Path(cfg.OUTPUT_DIR) / name, cfg, stages[-1:]))
    return stages


def describe_policy(cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
    """What the ``dyn_d2`` entry of a checkpoint says about the policy: name and stage, {} where nothing is gated."""
    if find_policy(getattr(model, "backbone", None)) is None:
        return {}
    return {"name": cfg.MODEL.POLICY.NAME, "stage": cfg.MODEL.POLICY.STAGE or policy_class(cfg).STAGES[0]}


def previous_stages(cfg: CfgNode) -> tuple[str, ...]:
    """The stages whose result stage MODEL.POLICY.STAGE may start from, the nearest first; () for the first stage."""
    stages, stage = policy_class(cfg).STAGES, cfg.MODEL.POLICY.STAGE
    if stage not in stages[1:]:
        return ()
    before = stages[: stages.index(stage)][::-1]
    return before if stage == FIXED else before[:1]


def begins_with(cfg: CfgNode) -> bool:
    """Whether MODEL.POLICY.PLAN begins with stage MODEL.POLICY.STAGE, and the policy can."""
    stage = cfg.MODEL.POLICY.STAGE
    return list(cfg.MODEL.POLICY.PLAN[:1]) == [stage] and stage in policy_class(cfg).MAY_BEGIN


def warn_of_other_stage(cfg: CfgNode, report: LoadReport) -> None:
    """Say so where a model is evaluated as one of another stage than it was trained in: some policies decide nothing in
    their first."""
    first = policy_class(cfg).STAGES[0]
    trained, stage = report.metadata.get("policy") or {}, cfg.MODEL.POLICY.STAGE or first
    if trained and trained["name"] == cfg.MODEL.POLICY.NAME and (trained["stage"] or first) != stage:
        logger.warning(
            f"{report.source} was trained in stage {trained['stage']} of {trained['name']}, but is evaluated as one of "
            f"stage {stage}: add MODEL.POLICY.STAGE {trained['stage']}."
        )


def enter_stage(cfg: CfgNode, model: nn.Module, report: LoadReport) -> None:
    """Begin the stage MODEL.POLICY.STAGE with the weights that were loaded, unless they are of that stage already.

    Args:
        report: of what was loaded.

    Raises:
        CheckpointError: a later stage that the plan does not begin with, and the weights are not those of the stage
            before it.
    """
    policy, before, own = find_policy(getattr(model, "backbone", None)), previous_stages(cfg), cfg.MODEL.POLICY
    if policy is None or not before:
        return
    first, trained = policy_class(cfg).STAGES[0], report.metadata.get("policy") or {}
    new = report.source == "nothing" or bool(report.gates)
    if new and begins_with(cfg) and trained.get("name", "all_open") == "all_open":
        logger.info(f"stage {own.STAGE} of {own.NAME} starts from new gates, as MODEL.POLICY.PLAN begins with it")
        return
    named = " or ".join(before)
    remedy = f"set MODEL.WEIGHTS to the model_final.pth of stage {named}, or let dyn-d2 stages run both"
    if new and own.STAGE in policy_class(cfg).MAY_BEGIN:
        remedy += f", or begin with new gates by MODEL.POLICY.PLAN \"['{own.STAGE}']\""
    if report.source == "nothing":
        raise CheckpointError(
            f"MODEL.POLICY.STAGE {own.STAGE} of {own.NAME} starts from the result of stage {named}, but MODEL.WEIGHTS "
            f"is empty: {remedy}."
        )
    if trained and (trained["name"] != own.NAME or (trained["stage"] or first) not in (*before, own.STAGE)):
        raise CheckpointError(
            f"{report.source} is of {trained['name']}, stage {trained['stage'] or '(the only one)'}, but "
            f"MODEL.POLICY.STAGE {own.STAGE} of {own.NAME} starts from its stage {named}: {remedy}."
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
