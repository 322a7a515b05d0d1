"""Which path an image takes through a multi-path network: the actor and the two critics of "Deciding How to Decide".

A router at each junction scores its sinks; the greatest score is taken in evaluation. Training weights all losses by
path probabilities (soft-max at a falling temperature). The *actor* learns by the gradient of the expected cost through
these probabilities; a *critic*'s scores regress the negative cost of what follows, under the routers' present choices
(pragmatic) or under the best ones (optimistic).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dyn_d2.gating import Decision, Trace, Unit
from dyn_d2.gating.cost import linear_cost
from dyn_d2.gating.policies.base import POLICY_REGISTRY, Policy
from dyn_d2.gating.policies.gate_layers import check_positive
from dyn_d2.utils.errors import UserError

from detectron2.config import CfgNode
from detectron2.utils.events import get_event_storage, has_event_storage

from .paths import PathShares, PathTree, costs_to_go, path_probabilities


@dataclass
class Exits:
    """What a meta-architecture tells the policy about one training step.

    Attributes:
        tree: whose junctions are the policy's units, in their order.
        shares: path probabilities of this step, with gradient.
        losses: (N,) of each exit, by its layer.
        wrong: (N,) 0 or 1, whether the exit's answer is.
        layer_costs: multiply-adds of each layer with its router.
        exit_costs: of each exit.
    """

    tree: PathTree
    shares: PathShares
    losses: dict[int, Tensor]
    wrong: dict[int, Tensor]
    layer_costs: list[float]
    exit_costs: dict[int, float]


@dataclass
class PathState:
    """Of one forward pass: the scores (n, n_l) of each junction that was reached, by the number of its unit, and what a
    multiply-add costs, for all images or for each (N,)."""

    scores: dict[int, Tensor] = field(default_factory=dict)
    exits: Exits | None = None
    price: float | Tensor = 0.0


class Router(nn.Module):
    """Scores of a junction's sinks; equal at the start, as the last weights are 0."""

    def __init__(self, features: int, sinks: int, widths: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, width in zip((features, *widths), widths, strict=False):
            linear = nn.Linear(before, width)
            nn.init.normal_(linear.weight, std=before**-0.5)
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.BatchNorm1d(width, eps=1e-6), nn.ReLU()]
        last = nn.Linear((features, *widths)[-1], sinks)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, features: Tensor) -> Tensor:
        # A critic regresses differences of a hundredth, which half precision rounds away.
        with torch.autocast(features.device.type, enabled=False):
            return self.layers(features.float())

    def cost(self) -> float:
        """Multiply-adds per image."""
        return linear_cost(*(layer for layer in self.layers if isinstance(layer, nn.Linear)))


class PathPolicy(Policy):
    """Routers and their temperature; subclasses say how they learn.

    Attributes:
        weighs_with_gradient: whether the classification loss trains the routers through the path probabilities.
        START_TEMPERATURE: tau at the start of training, unless the config has another.
    """

    KINDS = ("path",)
    START_TEMPERATURE: float
    weighs_with_gradient = False

    def __init__(
        self,
        units: Sequence[Unit],
        *,
        widths: Sequence[int] = (16, 16),
        temperature: float = 1.0,
        halving: int = 20_000,
        compute_weight: float = 0.0,
        score_weight: float = 0.01,
        class_error: bool = False,
        compute_weights: Sequence[float] = (),
        compute_scale: float = 1e7,
    ) -> None:
        """
        Args:
            units: of kind "path".
            widths: of the hidden layers of a router.
            temperature: tau at the start of training.
            halving: iterations in which it is halved.
            compute_weight: k_cpt, what a multiply-add costs, in nats.
            score_weight: k_dec of the actor, k_cre of a critic.
            class_error: critics regress 1 for a wrong answer and 0 for a right one in place of the cross entropy.
            compute_weights: several k_cpt, of which each image of a training step draws one; routers see it.
            compute_scale: alpha, what it is multiplied by there.
        """
        super().__init__(units)
        check_positive("PATHS.TEMPERATURE", temperature)
        check_positive("PATHS.HALVING", halving)
        if min(compute_weight, score_weight, *compute_weights) < 0:
            raise ValueError(
                "MODEL.POLICY.PATHS: COMPUTE_WEIGHT(S), DECISION_WEIGHT and REGRESSION_WEIGHT are 0 or more."
            )
        self._prices, self._scale = [float(price) for price in compute_weights], compute_scale
        seen = 1 if self._prices else 0
        routers = [Router(unit.channels + seen, unit.size, widths) for unit in self.units]
        self.routers, self._router_costs = nn.ModuleList(routers), [router.cost() for router in routers]
        self._temperature, self._halving = temperature, halving
        self.compute_weight, self.score_weight, self._class_error = compute_weight, score_weight, class_error

    @staticmethod
    def score_weight_of(keys: CfgNode) -> float:
        """The weight of the scores' loss, from MODEL.POLICY.PATHS."""
        raise NotImplementedError

    @classmethod
    def from_config(cls, cfg: CfgNode, units: Sequence[Unit]) -> dict[str, Any]:
        keys = cfg.MODEL.POLICY.PATHS
        return {
            "widths": list(keys.WIDTHS),
            "temperature": keys.TEMPERATURE or cls.START_TEMPERATURE,
            "halving": keys.HALVING,
            "compute_weight": keys.COMPUTE_WEIGHT,
            "score_weight": cls.score_weight_of(keys),
            "class_error": keys.CLASS_ERROR,
            "compute_weights": list(keys.COMPUTE_WEIGHTS),
            "compute_scale": keys.COMPUTE_SCALE,
        }

    def begin(self, images: Tensor, image_sizes: Any) -> PathState:
        if not (self._prices and self.training):
            return PathState(price=self.compute_weight)
        prices = images.new_tensor(self._prices, dtype=torch.float32)
        return PathState(price=prices[torch.randint(len(prices), (len(images),), device=images.device)])

    def decide(self, index: int, features: Tensor, state: PathState) -> Decision:
        """One-hot (n, n_l).

        Args:
            features: (n, F, 1, 1), the flattened coarsest map of the layer at the junction.
        """
        if self.training and len(features) == 1:
            raise ValueError(
                "routers have batch norm: SOLVER.IMS_PER_BATCH has to give each process two images or more."
            )
        flat = features.flatten(1)
        if self._prices:  # in training, where each image has its own, all of them come here
            price = torch.as_tensor(state.price, device=flat.device).float() * self._scale
            flat = torch.cat([flat.float(), price.expand(len(flat))[:, None]], 1)
        scores = self.routers[index](flat)
        state.scores[index] = scores
        choice = scores.detach().argmax(1)
        return Decision(F.one_hot(choice, self.units[index].size).float(), (scores / self.temperature()).softmax(1))

    def decision_cost(self, index: int, height: int, width: int) -> float:
        return self._router_costs[index]

    def temperature(self) -> float:
        """tau at this iteration of the training that runs; the start's where none does."""
        iteration = get_event_storage().iter if self.training and has_event_storage() else 0
        return self._temperature * 2 ** (-iteration / self._halving)

    def by_layer(self, state: PathState, tree: PathTree) -> dict[int, Tensor]:
        """The scores by the number of the layer."""
        return {tree.junctions[index]: scores for index, scores in state.scores.items()}

    def shares(self, state: PathState, tree: PathTree, like: Tensor) -> PathShares:
        """Path probabilities, with gradient."""
        return path_probabilities(tree, self.by_layer(state, tree), self.temperature(), like)

    def losses(self, trace: Trace, task: dict[str, Tensor]) -> dict[str, Tensor]:
        exits = trace.context.state.exits
        if exits is None:
            raise UserError(
                f"{type(self).__name__} learns from the losses of exits, which this meta-architecture does not tell: "
                "set MODEL.META_ARCHITECTURE MultiPathClassifier."
            )
        state = trace.context.state
        return self.path_losses(exits, self.by_layer(state, exits.tree), state.price)

    def path_losses(self, exits: Exits, scores: dict[int, Tensor], price: float | Tensor) -> dict[str, Tensor]:
        """
        Args:
            price: k_cpt of all images or of each (N,).
        """
        raise NotImplementedError

    def score_loss(self, exits: Exits, errors: dict[int, Tensor]) -> Tensor:
        """The squared (N, n_l) ``errors`` of each junction's scores, each image by its share of coming there, summed;
        ``score_weight`` times the mean over images."""
        parts = [exits.shares.layers[layer].detach() * error.square().sum(1) for layer, error in errors.items()]
        return self.score_weight * torch.stack(parts).sum(0).mean()


@POLICY_REGISTRY.register_as("path_actor")
class PathActor(PathPolicy):
    """Expected cost over all paths, without sampling; k_dec times the squared scores keeps decisions soft."""

    START_TEMPERATURE = 1.0
    weighs_with_gradient = True

    @staticmethod
    def score_weight_of(keys: CfgNode) -> float:
        return keys.DECISION_WEIGHT

    def path_losses(self, exits: Exits, scores: dict[int, Tensor], price: float | Tensor) -> dict[str, Tensor]:
        shares = exits.shares
        spent = torch.zeros_like(shares.layers[0])
        for p, cost in zip(shares.layers, exits.layer_costs, strict=True):
            spent = spent + p * cost
        for layer, cost in exits.exit_costs.items():
            spent = spent + shares.exits[layer] * cost
        found = {"loss_compute": (price * spent).mean()}
        if scores:
            found["loss_decisions"] = self.score_loss(exits, scores)
        return found


@POLICY_REGISTRY.register_as("path_critic")
class PathCritic(PathPolicy):
    """Pragmatic: scores regress the negative cost of each sink if the routers below it choose as they now do."""

    START_TEMPERATURE = 0.1
    optimistic = False

    @staticmethod
    def score_weight_of(keys: CfgNode) -> float:
        return keys.REGRESSION_WEIGHT

    def path_losses(self, exits: Exits, scores: dict[int, Tensor], price: float | Tensor) -> dict[str, Tensor]:
        if not scores:
            return {}
        answers = exits.wrong if self._class_error else exits.losses
        ends = {layer: answers[layer] + price * cost for layer, cost in exits.exit_costs.items()}
        layers = [price * cost for cost in exits.layer_costs]
        targets = costs_to_go(exits.tree, scores, ends, layers, self.optimistic)
        return {"loss_routers": self.score_loss(exits, {layer: r + targets[layer] for layer, r in scores.items()})}


@POLICY_REGISTRY.register_as("path_optimistic_critic")
class PathOptimisticCritic(PathCritic):
    """Scores regress the negative cost of each sink if the best choices followed."""

    optimistic = True


class LastSink(Policy):
    """Always the last sink: the deepest path, what the others save is measured against it."""

    KINDS = ("path",)

    def decide(self, index: int, features: Tensor, state: None) -> Decision:
        gate = torch.zeros(len(features), self.units[index].size, device=features.device)
        gate[:, -1] = 1
        return Decision(gate)
