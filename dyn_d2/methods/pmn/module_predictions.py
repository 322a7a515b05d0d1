"""Predictions of PMN's modules and their weighted average (Liang, CVPR 2019, Eq. 6), for the heads that make them.

Shape shorthand: N images, n of them at a module, K classes, I concepts above them that are predicted too (0 where the
head predicts classes only); scores are (n, K + I) or (n, K + I, h, w).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dyn_d2.gating.cost import linear_cost
from dyn_d2.gating.policies.base import UnitClassifier
from dyn_d2.gating.policies.gate_layers import check_choice, pool_valid
from dyn_d2.gating.trace import Cost, Trace, spread

from detectron2.data import MetadataCatalog

from .levels import add_weighted, average, build_levels, class_weights
from .rollout import GREEDY, ModuleOutput, PMNState, Prediction, state_of

ScoresOf = Callable[[Tensor, Tensor], Tensor]  # ((n, C, h, w), rows (n,)) -> scores


class WeightedAverage(nn.Module):
    """Eq. 6 for each rollout of a forward pass.

    Where concepts above the classes are predicted, a class's score is the sum of all scores on the way to it, so that
    what a module says about a level counts for all classes below.

    Attributes:
        inner: I.
    """

    classes_below: Tensor
    above: Tensor

    def __init__(
        self, children: Tensor, off_level: float = 0.8, weigh: str = "logits", above: Tensor | None = None
    ) -> None:
        """
        Args:
            children: bool (M, K + I), which classes and concepts are children of which level.
            off_level: beta for the classes that are not below a level that was taken; 1: nothing is weighted.
            weigh: "logits", as the formula has it, or "probabilities". A weight below 1 moves a negative logit up.
            above: bool (I, K), which concepts are above which class; None where classes alone are predicted.

        Raises:
            ValueError: one of them has a value that cannot be.
        """
        super().__init__()
        if not 0 < off_level <= 1:
            raise ValueError(f"MODEL.POLICY.PMN.OFF_LEVEL_WEIGHT is {off_level}: use a value in (0, 1].")
        self.off_level, self.weigh = off_level, check_choice("PMN.WEIGH", weigh, ("logits", "probabilities"))
        self.inner = 0 if above is None else len(above)
        if self.inner and weigh == "probabilities":
            raise ValueError(
                "MODEL.POLICY.PMN.WEIGH probabilities are of classes: set MODEL.POLICY.PMN.OUTPUT to classes, or WEIGH "
                "to logits."
            )
        self.register_buffer("classes_below", children, persistent=False)
        none = torch.zeros(0, children.shape[1], dtype=torch.bool)
        self.register_buffer("above", none if above is None else above, persistent=False)

    @classmethod
    def from_config(cls, cfg, num_classes: int, names: str) -> "WeightedAverage":
        """For MODEL.POLICY.PMN and a head of that many classes.

        Args:
            names: the field of the training set's metadata that names them.
        """
        pmn, sets = cfg.MODEL.POLICY.PMN, cfg.DATASETS.TRAIN
        classes = list(MetadataCatalog.get(sets[0]).get(names, None) or []) if sets else []
        levels = build_levels(cfg)
        if check_choice("PMN.OUTPUT", pmn.OUTPUT, ("classes", "concepts")) == "classes":
            return cls(levels.children_of(num_classes, classes), pmn.OFF_LEVEL_WEIGHT, pmn.WEIGH)
        children, above = levels.concepts_of(num_classes, classes)
        return cls(children, pmn.OFF_LEVEL_WEIGHT, pmn.WEIGH, above)

    def forward(self, state: PMNState, scores_of: ScoresOf) -> dict[str, Tensor]:
        """
        Args:
            scores_of: F_Phi, logits from the features of a module.

        Returns:
            Name of the rollout -> float32 logits (N, K, ...); with a gradient for the rollouts in ``state.trained``.
        """
        totals: dict[str, Tensor] = {}
        images = len(state.rollouts[GREEDY].counts)
        for output in state.outputs:
            scores = self._scores(output, state, scores_of)
            for name, prediction in output.predictions.items():
                index = prediction.predicts.nonzero()[:, 0]
                own = scores[index] if name in state.trained else scores[index].detach()
                weights = self._weights(prediction.part(index))
                totals[name] = add_weighted(totals.get(name), own, output.rows[index], weights, images)
        return {name: self._logits(average(totals[name], rollout.counts)) for name, rollout in state.rollouts.items()}

    def _scores(self, output: ModuleOutput, state: PMNState, scores_of: ScoresOf) -> Tensor:
        """Scores of all images of ``output``; those that only measure the baseline are computed without gradient."""
        learns = torch.stack([output.predictions[name].predicts for name in state.trained]).any(0)
        parts, order = [], []
        for chosen, gradient in ((learns, True), (~learns, False)):
            index = chosen.nonzero()[:, 0]
            if len(index):
                with torch.set_grad_enabled(gradient and torch.is_grad_enabled()):
                    parts.append(scores_of(output.features[index], output.rows[index]).float())
                order.append(index)
        scores = torch.cat(parts)[torch.cat(order).argsort()]
        return scores.softmax(1) if self.weigh == "probabilities" else scores

    def _weights(self, prediction: Prediction) -> Tensor:
        weights = class_weights(prediction.levels, self.classes_below, self.off_level)
        return torch.where(prediction.plain[:, None], 1.0, weights)

    def _logits(self, mean: Tensor) -> Tensor:
        if self.inner:
            classes = self.above.shape[1]
            passed = torch.einsum("ni...,ik->nk...", mean[:, classes:], self.above.to(mean.dtype))
            return mean[:, :classes] + passed
        if self.weigh == "logits":
            return mean
        return (mean / mean.sum(1, keepdim=True)).clamp(min=1e-12).log()


class ModuleClassifier(UnitClassifier):
    """Classes from the features of any module: pooled, brought to the width of the last module where it is another one
    (linear, ReLU), and classified by the linear layer that all modules share; concepts above the classes, where they
    are predicted, by a second one."""

    def __init__(self, channels: Sequence[int], combine: WeightedAverage) -> None:
        """
        Args:
            channels: of the feature map of each module.
        """
        super().__init__()
        self.channels = tuple(channels)
        self.width = self.channels[-1]
        narrower = sorted(set(self.channels) - {self.width})
        projections = {str(channels): nn.Linear(channels, self.width) for channels in narrower}
        self.projections = nn.ModuleDict(projections)
        self._projection_costs = {key: linear_cost(layer) for key, layer in projections.items()}
        self.combine = combine
        self.inner = nn.Linear(self.width, combine.inner) if combine.inner else None
        self._inner_cost = 0.0 if self.inner is None else linear_cost(self.inner)

    def forward(self, trace: Trace | None, linear: nn.Linear) -> dict[str, Tensor]:
        """Name of the rollout -> logits (N, K); records the cost.

        Args:
            trace: of the forward pass of the backbone.
            linear: the classifier of the last module, shared by all.
        """
        state = state_of(trace)

        def scores_of(features: Tensor, rows: Tensor) -> Tensor:
            pooled = pool_valid(features, state.valid_of(rows)).to(linear.weight.dtype)
            key = str(features.shape[1])
            x = F.relu(self.projections[key](pooled)) if key in self.projections else pooled
            return linear(x) if self.inner is None else torch.cat([linear(x), self.inner(x)], 1)

        logits = self.combine(state, scores_of)
        assert trace is not None  # state_of() has found it
        cost = linear_cost(linear) + self._inner_cost
        trace.costs.append(Cost("linear", cost, self._executed(state, linear, trace.context.images)))
        return logits

    def scores(self, trace: Trace | None, linear: nn.Linear) -> Tensor:
        return self(trace, linear)[GREEDY].softmax(-1)

    def losses(self, trace: Trace | None, linear: nn.Linear, labels: Tensor) -> Tensor:
        """The mean over the rollouts that are trained; each rollout is told how right it was."""
        logits, state = self(trace, linear), state_of(trace)
        for name, rollout in state.rollouts.items():
            rollout.accuracy = (logits[name].argmax(1) == labels).float()
        return torch.stack([F.cross_entropy(logits[name], labels, reduction="none") for name in state.trained]).mean(0)

    def _executed(self, state: PMNState, linear: nn.Linear, images: int) -> Tensor:
        total = torch.zeros(images, device=linear.weight.device)
        for output in state.outputs:
            cost = (
                linear_cost(linear) + self._inner_cost + self._projection_costs.get(str(output.features.shape[1]), 0.0)
            )
            total = total + spread(torch.full((len(output.rows),), cost, device=total.device), output.rows, images)
        return total
