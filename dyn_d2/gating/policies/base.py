"""What a policy is: it decides, per image, which units of a backbone run. It knows neither backbone nor task."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fvcore.common.registry import Registry
from torch import Tensor, nn

from dyn_d2.gating import Decision, TakenLevels, Trace, Unit
from dyn_d2.gating.budget import Budget
from dyn_d2.modeling.freeze import freeze_whole

from detectron2.config import CfgNode

logger = logging.getLogger(__name__)

FIXED = "fixed"  # the last stage of policies that learn: they stay as they are, and the network trains on their routes


class PolicyRegistry(Registry):
    """A registry whose entries have a name of their own instead of that of the class."""

    def register_as(self, name: str) -> Callable[[type], type]:
        """Decorator that registers a class under ``name``."""

        def register(policy: type) -> type:
            self._do_register(name, policy)
            return policy

        return register


POLICY_REGISTRY = PolicyRegistry("POLICY")
POLICY_REGISTRY.__doc__ = """Policies by the name that MODEL.POLICY.NAME gives.

A registered class is a Policy with a class method ``from_config(cfg, units)`` that returns constructor arguments.
"""


class UnitClassifier(nn.Module):
    """Classes of images from the features of units that a policy has chosen."""

    def scores(self, trace: Trace | None, linear: nn.Linear) -> Tensor:
        """(N, K) probabilities, and the cost recorded.

        Args:
            trace: of the forward pass of the backbone.
            linear: the classifier of the last feature map.
        """
        raise NotImplementedError

    def losses(self, trace: Trace | None, linear: nn.Linear, labels: Tensor) -> Tensor:
        """(N,) cross-entropy of each image with ``labels`` (N,); arguments as for ``scores``."""
        raise NotImplementedError


class Policy(nn.Module):
    """Base class of all policies.

    Attributes:
        KINDS: the kinds of unit that the policy can decide about.
        STAGES: names of the stages of its training, in order; ("",) where there is one.
        FROZEN_STAGES: those of them in which the policy itself does not change and decides as in evaluation, so that
            the network trains on the routes that evaluation takes; ``build_policy`` sees to it.
        MAY_BEGIN: later stages that MODEL.POLICY.PLAN may begin with, from new gates in a new or a plain network.
        PROBABILITIES: whether its decisions have probabilities, so that it can be drawn to a budget.
        LATER_KEYS: config keys that the first stage does not depend on.
        units: what it decides about, in the order in which a backbone asks.
        stops: whether it ends the computation of some images early, so that ``stay`` is asked before each gated block.
        draws: whether it decides at random in evaluation too.
        own_rate: tells training that SOLVER.BACKBONE_LR_FACTOR is not for its parameters.
        budget: what draws it to a share of the multiply-adds while it learns; None for nothing.
        frozen: whether this is one of the ``FROZEN_STAGES``.
        supervised: whether the losses of the task train the network; without, the policy's own are all that does.
    """

    KINDS: tuple[str, ...] = ("block", "group", "channel")
    STAGES: tuple[str, ...] = ("",)
    FROZEN_STAGES: tuple[str, ...] = ()
    MAY_BEGIN: tuple[str, ...] = ()
    PROBABILITIES: bool = False
    LATER_KEYS: tuple[str, ...] = ()
    stops: bool = False
    draws: bool = False
    own_rate: bool = True
    frozen: bool = False
    supervised: bool = True

    @classmethod
    def to_carry(cls, cfg: CfgNode) -> dict[str, Any]:
        """Entries that a checkpoint needs beside its config to be built where its data sets are not registered."""
        return {}

    @classmethod
    def take_carried(cls, described: Mapping[str, Any]) -> None:
        """Keep what ``to_carry`` gave, from the description in a checkpoint."""

    def __init__(self, units: Sequence[Unit]) -> None:
        super().__init__()
        self.units = tuple(units)
        self.budget: Budget | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode, units: Sequence[Unit]) -> dict[str, Any]:
        """Arguments of the constructor beside ``units``, for ``build_policy``."""
        raise NotImplementedError

    def begin(self, images: Tensor, image_sizes: Sequence[tuple[int, int]] | None) -> Any:
        """The policy's state for one forward pass, None where it has none. Nothing is kept on the module.

        Args:
            images: (N, 3, H, W), normalised and padded.
            image_sizes: (height, width) of each image without padding; None where nothing is padded.
        """
        return None

    def decide(self, index: int, features: Tensor, state: Any) -> Decision:
        """The decision about unit ``index``, hard in evaluation.

        Args:
            features: (N, C, H, W), the input of the block that the unit is in.
            state: of this forward pass; may be changed.
        """
        raise NotImplementedError

    def stay(self, index: int, features: Tensor, state: Any) -> Tensor | None:
        """Which of the n images that have not stopped go on to unit ``index``: bool (n,), None for all.

        Asked once more after the last block, with the number of units as ``index``; then nothing follows.

        Args:
            features: (n, C, H, W), the output of the block before.
            state: of this forward pass; may be changed.
        """
        return None

    def keep(self, kept: Tensor, state: Any) -> None:
        """Called when images have stopped: of the n images of the last ``stay``, ``kept``, int64 (n',), go on, in this
        order, which need not be ascending."""

    def stay_cost(self, index: int) -> float:
        """Multiply-adds per image of ``stay``."""
        return 0.0

    def taken_levels(self, state: Any) -> TakenLevels | None:
        """What each module recognises, asked after the last block; None where that is no decision."""
        return None

    def build_classifier(self, cfg: CfgNode) -> "UnitClassifier | None":
        """What an image classifier predicts with, where the policy decides which units predictions are made from; None
        where the last feature map is classified."""
        return None

    def fixed_route(self) -> Sequence[bool] | None:
        """Which units are open wherever an image gets, where that is the same for all images, and where this policy
        and the classifier that it builds read no more of a feature map than its mean over the image (``pool_valid``):
        the blocks of a frozen backbone then need not run again, see ``gating/kept_units.py``. None elsewhere."""
        return None

    def force_open(self) -> bool:
        """From now on run everything in evaluation, at no cost of its own: the dense run of a model whose head
        predicts from what the policy notes down. False where there is no such head, and ``AllOpen`` can take the
        policy's place."""
        return False

    def gate_shape(self, index: int, features: Tensor) -> tuple[int, ...]:
        """Shape of the decision about unit ``index``: (N,) for a block, else (N, size)."""
        unit = self.units[index]
        return features.shape[:1] if unit.kind == "block" else (features.shape[0], unit.size)

    def begin_cost(self, height: int, width: int) -> float:
        """Multiply-adds per image of ``begin`` on an image of that size."""
        return 0.0

    def decision_cost(self, index: int, height: int, width: int) -> float:
        """Multiply-adds per image of ``decide`` on a feature map of that size."""
        return 0.0

    @property
    def adds_losses(self) -> bool:
        """Whether ``losses`` may return any, so that training without them would go wrong."""
        return type(self).losses is not Policy.losses

    @property
    def adds_to_task(self) -> bool:
        """Whether ``training_losses`` may return any."""
        return not self.frozen and (self.adds_losses or self.budget is not None)

    def training_losses(self, trace: Trace, task: dict[str, Tensor]) -> dict[str, Tensor]:
        """What a training step adds to the losses of the task: ``losses`` and that of the budget; nothing where the
        policy is frozen. Arguments as for ``losses``."""
        if self.frozen:
            return {}
        budget = {} if self.budget is None else {"loss_budget": self.budget(trace)}
        return {**self.losses(trace, task), **budget}

    @property
    def wants_greedy(self) -> bool:
        """Whether ``losses`` needs ``trace.context.greedy``: the trace of another forward pass, without gradient and
        with the backbone in evaluation mode, where policies choose what is most likely. Its context has
        ``image_losses``."""
        return False

    def enter_stage(self) -> None:
        """Called once, when training in stage MODEL.POLICY.STAGE starts from the weights of the stage before it, not
        when it resumes."""

    def losses(self, trace: Trace, task: dict[str, Tensor]) -> dict[str, Tensor]:
        """Further losses of one training step, named ``loss_...`` and weighted already.

        Args:
            trace: of this step's forward pass; its context has ``image_losses`` where the task has a loss per image.
            task: the losses of the task.
        """
        return {}


def policy_class(cfg: CfgNode) -> type[Policy]:
    """The class of the policy MODEL.POLICY.NAME.

    Raises:
        ValueError: no such policy, or it has no stage MODEL.POLICY.STAGE.
    """
    name, stage = cfg.MODEL.POLICY.NAME, cfg.MODEL.POLICY.STAGE
    known = sorted(key for key, _ in POLICY_REGISTRY)
    if name not in known:
        raise ValueError(f"MODEL.POLICY.NAME is {name!r}: use one of {', '.join(known)}.")
    policy = POLICY_REGISTRY.get(name)
    if stage and stage not in policy.STAGES:
        raise ValueError(
            f"MODEL.POLICY.STAGE is {stage!r}: {name} has "
            + (f"the stages {', '.join(policy.STAGES)}." if policy.STAGES != ("",) else "one stage, leave it empty.")
        )
    return policy


def check_plan(cfg: CfgNode) -> None:
    """
    Raises:
        ValueError: MODEL.POLICY.PLAN is no selection of the policy's stages, in their order.
    """
    plan, stages = list(cfg.MODEL.POLICY.PLAN), policy_class(cfg).STAGES
    if plan != [stage for stage in stages if stage and stage in plan]:
        named = [stage for stage in stages if stage]
        raise ValueError(
            f"MODEL.POLICY.PLAN is {plan}: name stages of {cfg.MODEL.POLICY.NAME} in their order "
            + (f"({', '.join(named)})." if named else "(it has none: leave it empty).")
        )


def build_policy(cfg: CfgNode, units: Sequence[Unit]) -> Policy:
    """The policy MODEL.POLICY.NAME for these units, frozen where MODEL.POLICY.STAGE is one of its ``FROZEN_STAGES``.

    Raises:
        ValueError: from ``policy_class``, the policy cannot decide about units of this kind, or has no probabilities
            that MODEL.POLICY.BUDGET could draw to a share.
    """
    chosen = policy_class(cfg)
    kinds = {unit.kind for unit in units}
    if not kinds <= set(chosen.KINDS):
        raise ValueError(
            f"MODEL.POLICY.NAME {cfg.MODEL.POLICY.NAME} decides about {' and '.join(chosen.KINDS)} units, the backbone "
            f"{cfg.MODEL.BACKBONE.NAME} offers {' and '.join(sorted(kinds))} units: choose another policy or another "
            "MODEL.GATED.UNIT."
        )
    policy = chosen(units, **chosen.from_config(cfg, units))
    policy.budget = Budget.of_keys(cfg)
    if policy.budget is not None and (not chosen.PROBABILITIES or "channel" in kinds):
        able = sorted(name for name, entry in POLICY_REGISTRY if entry.PROBABILITIES)
        raise ValueError(
            f"MODEL.POLICY.BUDGET.SHARE is {cfg.MODEL.POLICY.BUDGET.SHARE}, but {cfg.MODEL.POLICY.NAME} has no "
            f"probabilities that could be drawn to it: set it to 0, or choose one of {', '.join(able)}."
        )
    if cfg.MODEL.POLICY.STAGE in chosen.FROZEN_STAGES:
        freeze_whole(policy)
        policy.frozen = True
        logger.info(f"frozen: the policy, in stage {cfg.MODEL.POLICY.STAGE} of {cfg.MODEL.POLICY.NAME}")
    return policy
