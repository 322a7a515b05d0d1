"""CDB: which channel groups of each block run, by controllers that see what was decided before them.

Su et al., "Context-aware Dynamic Block", sections 3.2 and 3.3. A controller pools the input of its block, adds what the
controller before it knew (Eq. 4 to 6), and chooses for each group by arg-max after Gaussian noise (Eq. 9). Losses draw
execution rates and multiply-adds to a target (Eq. 10 to 14) and make each controller tell coarse categories apart
(Eq. 7, 8).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dyn_d2.gating import Decision, Trace, Unit
from dyn_d2.gating.cost import linear_cost
from dyn_d2.gating.decisions import hard_threshold, noisy_argmax
from dyn_d2.gating.losses import category_loss, executed_cost, execution_loss, flops_loss
from dyn_d2.utils.modules import ModuleListOf

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from .base import FIXED, POLICY_REGISTRY, Policy
from .gate_layers import ValidArea, apply_linear, check_rate, check_threshold, pool_valid, valid_area


@dataclass
class CDBState:
    """Of one forward pass: the area of each image, the last h (N, d), and of each controller so far the category scores
    (N, K) and the gates that evaluation would take (both in training only)."""

    valid: ValidArea | None
    hidden: Tensor | None = None
    category_scores: list[Tensor] = field(default_factory=list)
    settled: list[Tensor] = field(default_factory=list)


class Controller(nn.Module):
    """The controller of one block (Fig. 3b).

    Args:
        channels: of the block's input.
        size: number of groups, 1 for a whole block.
        width: d.
        context: whether it hears of the controller before it.
        categories: K; 0 for no category head.
        bias: of the score of running, at first.
    """

    def __init__(self, channels: int, size: int, width: int, context: bool, categories: int, bias: float = 0.0) -> None:
        super().__init__()
        self.embed = nn.Linear(channels, width)
        self.context = nn.Linear(width, width) if context else None
        self.scores = nn.Linear(width, 2 * size)
        self.category = nn.Linear(width, categories) if categories else None
        with torch.no_grad():
            self.scores.bias.copy_(torch.tensor([0.0, bias]).repeat(size))

    def forward(self, pooled: Tensor, before: Tensor | None) -> Tensor:
        """h_l (N, d) of Eq. 6 from pooled features (N, channels) and h_{l-1}."""
        hidden = F.relu(apply_linear(self.embed, pooled))
        if self.context is not None:
            assert before is not None  # there is a controller before it
            hidden = hidden + F.relu(apply_linear(self.context, before))
        return hidden

    def cost(self) -> float:
        """Multiply-adds in evaluation, without the category head."""
        layers = [self.embed, self.scores] + ([] if self.context is None else [self.context])
        return linear_cost(*layers)


@POLICY_REGISTRY.register_as("cdb")
class CDB(Policy):
    """Context-aware group controllers; of whole blocks too."""

    KINDS = ("group", "block")
    STAGES = ("learn", FIXED)
    FROZEN_STAGES = (FIXED,)
    PROBABILITIES = True
    categories: Tensor

    def __init__(
        self,
        units: Sequence[Unit],
        *,
        target: float,
        width: int = 32,
        context: bool = True,
        categories: Sequence[int] = (),
        category_weights: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1),
        noise: float = 1.0,
        threshold: float = 0.5,
        resource_weight: float = 1.0,
        noisy_rates: bool = False,
        init_bias: float = 0.0,
    ) -> None:
        """
        Args:
            units: groups or blocks.
            target: r of Eq. 12 and e of Eq. 10, in (0, 1].
            width: d, of the controllers' hidden layer.
            context: hand h on from block to block (Eq. 6); "CA" of Table 5.
            categories: the category of each class, from 0; empty for no category loss ("CS" of Table 5).
            category_weights: alpha_l of Eq. 8 by stage; stages after the last use the last.
            noise: standard deviation of the noise of Eq. 9.
            threshold: in evaluation a group runs where its probability is greater; 0.5 is the arg-max.
            resource_weight: of L_res in Eq. 15.
            noisy_rates: whether L_res counts the decisions with noise. Noise draws rates to a half: a network that was
                held at 70 % with it ran 82 % without.
            init_bias: what the score of running has ahead of that of not running, at first.
        """
        super().__init__(units)
        self.target = check_rate("TARGET_RATE", target)
        self.threshold = check_threshold(threshold)
        if noise < 0:
            raise ValueError(f"MODEL.POLICY.CDB.NOISE is {noise}: a standard deviation cannot be negative.")
        self.noise, self.resource_weight, self.noisy_rates = noise, resource_weight, noisy_rates
        if categories and (min(categories) < 0 or not category_weights):
            raise ValueError("MODEL.POLICY.CDB.CATEGORIES count from 0, and need CATEGORY_WEIGHTS.")
        self.category_weights = [
            category_weights[min(unit.stage, len(category_weights) - 1)] for unit in self.units if categories
        ]
        self.register_buffer("categories", torch.tensor(list(categories), dtype=torch.int64), persistent=False)
        count = max(categories, default=-1) + 1
        self.controllers = ModuleListOf(
            # h_0 is 0, so the first controller has nothing to hear.
            Controller(unit.channels, unit.size, width, context and index > 0, count, init_bias)
            for index, unit in enumerate(self.units)
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, units: Sequence[Unit]) -> dict[str, Any]:
        policy = cfg.MODEL.POLICY
        return {
            "target": policy.TARGET_RATE,
            "width": policy.CDB.WIDTH,
            "context": policy.CDB.CONTEXT,
            "categories": _categories(cfg) if policy.CDB.CATEGORY else (),
            "category_weights": tuple(policy.CDB.CATEGORY_WEIGHTS),
            "noise": policy.CDB.NOISE,
            "threshold": policy.THRESHOLD,
            "resource_weight": policy.CDB.RESOURCE_WEIGHT,
            "noisy_rates": policy.CDB.RATES == "noisy",
            "init_bias": policy.CDB.INIT_BIAS,
        }

    @classmethod
    def to_carry(cls, cfg: CfgNode) -> dict[str, Any]:
        """Superclasses of the training set's classes, by its name."""
        found = _superclasses(cfg)
        return {"superclasses": {cfg.DATASETS.TRAIN[0]: found}} if found else {}

    @classmethod
    def take_carried(cls, described: Mapping[str, Any]) -> None:
        carried = described.get("superclasses")
        for name, numbers in (carried if isinstance(carried, Mapping) else {}).items():
            if isinstance(numbers, list) and all(isinstance(number, int) for number in numbers):
                _CARRIED[str(name)] = numbers

    def begin(self, images: Tensor, image_sizes: Sequence[tuple[int, int]] | None) -> CDBState:
        return CDBState(valid_area(images, image_sizes))

    def decide(self, index: int, features: Tensor, state: CDBState) -> Decision:
        controller = self.controllers[index]
        state.hidden = controller(pool_valid(features, state.valid), state.hidden)
        logits = apply_linear(controller.scores, state.hidden).reshape(*self.gate_shape(index, features), 2)
        if not self.training:
            return hard_threshold(logits.softmax(-1)[..., 1], self.threshold)
        if controller.category is not None:
            state.category_scores.append(apply_linear(controller.category, state.hidden))
        if not self.noisy_rates:
            state.settled.append(hard_threshold(logits.softmax(-1)[..., 1], self.threshold).gate)
        return noisy_argmax(logits, self.noise)

    def decision_cost(self, index: int, height: int, width: int) -> float:
        return self.controllers[index].cost()

    def losses(self, trace: Trace, task: dict[str, Tensor]) -> dict[str, Tensor]:
        """L_exec, L_flops and, where images have labels, L_ctg of Eq. 15."""
        settled = trace.context.state.settled
        gates = settled or [step.decision.gate for step in trace.steps]
        unit_costs = [step.unit_cost for step in trace.steps if step.unit_cost is not None]  # groups have them
        executed = executed_cost(gates, unit_costs)
        losses = {
            "loss_execution": self.resource_weight * execution_loss(gates, self.target),
            "loss_flops": self.resource_weight * flops_loss(executed, trace.dense(), self.target),
        }
        if len(self.categories) and trace.context.labels is not None:
            categories = self.categories[trace.context.labels]
            scores = trace.context.state.category_scores
            losses["loss_category"] = category_loss(scores, categories, self.category_weights)
        return losses


_CARRIED: dict[str, list[int]] = {}  # training set -> superclasses, of checkpoints whose set is not registered here


def _superclasses(cfg: CfgNode) -> list[int]:
    """What the metadata of the training set give as ``superclass_of``, or a checkpoint has brought; empty where nobody
    does."""
    if not cfg.DATASETS.TRAIN:
        return []
    name = cfg.DATASETS.TRAIN[0]
    found = MetadataCatalog.get(name).get("superclass_of", None)
    return [int(number) for number in (_CARRIED.get(name, ()) if found is None else found)]


def _categories(cfg: CfgNode) -> list[int]:
    """Category of each class: MODEL.POLICY.CDB.CATEGORIES, or those that the training set's metadata give as
    ``superclass_of`` (a list with one number a class), or each class its own.

    Raises:
        ValueError: the list is not as long as there are classes.
    """
    classes = cfg.MODEL.IMAGE_CLASSIFIER.NUM_CLASSES
    categories = list(cfg.MODEL.POLICY.CDB.CATEGORIES) or _superclasses(cfg) or list(range(classes))
    if len(categories) != classes:
        raise ValueError(
            f"MODEL.POLICY.CDB.CATEGORIES (or superclass_of of the training set) gives the categories of "
            f"{len(categories)} classes, MODEL.IMAGE_CLASSIFIER.NUM_CLASSES is {classes}: give one number a class."
        )
    return categories
