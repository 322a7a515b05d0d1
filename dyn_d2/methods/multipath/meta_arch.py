"""Image classification by a network of many paths, each of which ends in an exit with a classifier of its own."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dyn_d2.gating import Cost, Trace, current_trace
from dyn_d2.gating.cost import linear_cost
from dyn_d2.gating.meta_arch.classifier import labels_of
from dyn_d2.gating.meta_arch.dynamic import DynamicModel

from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.utils import comm

from .backbone import ExitFeatures, MultiPathNetwork
from .paths import PathShares, greedy_paths, path_probabilities, throughput_rate
from .policy import Exits, LastSink, PathPolicy, PathState

logger = logging.getLogger(__name__)

_RATE = "gradient_rate"
FLOOR = 1e-6  # of probabilities in the loss of an exit, as in the authors' code


@META_ARCH_REGISTRY.register()
class MultiPathClassifier(DynamicModel, nn.Module):
    """Exits are linear classifiers of the flattened coarsest map.

    Losses of a training step: ``loss_cls``, the cross entropy of all exits weighted by path probabilities;
    ``loss_weights``, k_l2 times the squared weights of each part, weighted by its share of the images; and those of the
    policy. The whole trace, exits included, is recorded.
    """

    backbone: MultiPathNetwork
    pixel_mean: Tensor
    pixel_std: Tensor
    whole_trace = True
    OWN_SIZE = "MODEL.MULTIPATH.SIDE"  # the key that says what every image is resized to

    classifies_images = True

    @configurable
    def __init__(
        self,
        *,
        backbone: MultiPathNetwork,
        num_classes: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        weight_penalty: float = 1e-4,
        adjust_rates: bool = True,
    ) -> None:
        """
        Args:
            backbone: the layers and their policy.
            num_classes: K.
            pixel_mean, pixel_std: one number a channel.
            weight_penalty: k_l2.
            adjust_rates: multiply the gradient of each part by 1 / sqrt(mean p^2) (TALR).

        Raises:
            ValueError: the backbone has no paths, or K < 2.
        """
        super().__init__()
        if not isinstance(backbone, MultiPathNetwork):
            raise ValueError(
                "MODEL.META_ARCHITECTURE MultiPathClassifier needs MODEL.BACKBONE.NAME build_multipath_backbone."
            )
        if num_classes < 2:
            raise ValueError(f"MODEL.IMAGE_CLASSIFIER.NUM_CLASSES is {num_classes}: a classifier needs 2 or more.")
        self.backbone, self.num_classes, self.weight_penalty = backbone, num_classes, weight_penalty
        self.exits = nn.ModuleDict()
        self._exit_costs: dict[int, float] = {}
        for layer, has_exit in enumerate(backbone.tree.exits):
            if has_exit:
                linear = nn.Linear(backbone.features[layer], num_classes)
                nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
                nn.init.zeros_(linear.bias)
                self.exits[str(layer)], self._exit_costs[layer] = linear, linear_cost(linear)
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.adjust_rates = adjust_rates
        if adjust_rates:
            for part in [*backbone.layers, *self.exits.values(), *getattr(backbone.policy, "routers", [])]:
                _scale_gradients(part)

    @classmethod
    def from_config(cls, cfg) -> dict[str, Any]:
        if cfg.SOLVER.WEIGHT_DECAY and cfg.MODEL.MULTIPATH.WEIGHT_PENALTY:
            logger.warning(
                "squared weights cost twice, by SOLVER.WEIGHT_DECAY and by MODEL.MULTIPATH.WEIGHT_PENALTY: set one of "
                "them to 0 (the paper has the latter alone)."
            )
        return {
            "backbone": build_backbone(cfg),
            "num_classes": cfg.MODEL.IMAGE_CLASSIFIER.NUM_CLASSES,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "weight_penalty": cfg.MODEL.MULTIPATH.WEIGHT_PENALTY,
            "adjust_rates": cfg.MODEL.MULTIPATH.ADJUST_RATES,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def export_problem(self) -> str:
        """See ``modeling/answers.py``."""
        return "routers send images down paths of their own in Python, which no graph says."

    def force_open(self) -> None:
        """Send every image down the deepest path: what the routes are compared with."""
        self.backbone.policy = LastSink(self.backbone.policy.units).eval()

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> Tensor:
        """(N, C, H, W): images of one size, as routers would see padding.

        Raises:
            ValueError: they differ in size.
        """
        images = [(entry["image"].to(self.device) - self.pixel_mean) / self.pixel_std for entry in batched_inputs]
        sizes = {tuple(image.shape) for image in images}
        if len(sizes) > 1:
            raise ValueError(
                f"a multi-path network takes images of one size, not {', '.join(map(str, sorted(sizes)))}: crop them "
                "(INPUT.CLASSIFICATION.RANDOM_RESIZED_CROP, CROP_TEST)."
            )
        return torch.stack(images)

    def forward_task(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Inputs and outputs are those of ``ImageClassifier``."""
        images = self.preprocess_image(batched_inputs)
        trace = current_trace()
        found: list[ExitFeatures] = self.backbone(images)
        if not self.training:
            scores = images.new_zeros(len(images), self.num_classes)
            for exit_ in found:
                own = self.exits[str(exit_.layer)](exit_.features).float().softmax(1)
                rows = torch.arange(len(images), device=self.device) if exit_.rows is None else exit_.rows
                scores = scores.index_copy(0, rows, own)
                self._record_exit(trace, exit_, rows)
            return [{"scores": row} for row in scores]
        assert trace is not None  # forward() records one
        return self._train(trace, images, found, labels_of(batched_inputs, self.num_classes, self.device))

    def _record_exit(self, trace: Trace | None, exit_: ExitFeatures, rows: Tensor) -> None:
        if trace is not None:
            cost = self._exit_costs[exit_.layer]
            dense = cost if exit_.layer == self.backbone.tree.deepest[-1] else 0.0
            executed = torch.zeros(trace.context.images, device=self.device).index_fill(0, rows, cost)
            trace.costs.append(Cost(f"exits.{exit_.layer}", dense, executed))

    def _train(self, trace: Trace, images: Tensor, found: list[ExitFeatures], labels: Tensor) -> dict[str, Tensor]:
        tree, policy = self.backbone.tree, self.backbone.policy
        logits = {exit_.layer: self.exits[str(exit_.layer)](exit_.features).float() for exit_ in found}
        losses = {layer: floored_cross_entropy(rows, labels) for layer, rows in logits.items()}
        wrong = {layer: (rows.argmax(1) != labels).float() for layer, rows in logits.items()}
        weights_learn = False
        if isinstance(policy, PathPolicy):
            state: PathState = trace.context.state
            shares, weights_learn = policy.shares(state, tree, images), policy.weighs_with_gradient
            state.exits = Exits(tree, shares, losses, wrong, self._layer_costs(), self._exit_costs)
        else:
            shares = path_probabilities(tree, {}, 1.0, images)
        fixed = shares.detached()
        weights = (shares if weights_learn else fixed).exits
        each = torch.stack([weights[layer] * loss for layer, loss in losses.items()]).sum(0)
        trace.context.image_losses = each.detach()
        self._record_greedy(trace, found, wrong)
        if self.adjust_rates:
            self._set_rates(fixed)
        return {"loss_cls": each.mean(), "loss_weights": self._squared_weights(fixed)}

    def _record_greedy(self, trace: Trace, found: list[ExitFeatures], wrong: dict[int, Tensor]) -> None:
        """Exit costs and accuracy of the paths that the decisions choose."""
        tree = self.backbone.tree
        gates = {layer: step.decision.gate for layer, step in zip(tree.junctions, trace.steps, strict=True)}
        taken = greedy_paths(tree, gates, found[0].features).exits
        trace.context.accuracies = torch.stack([part * (1 - wrong[layer]) for layer, part in taken.items()]).sum(0)
        for exit_ in found:
            self._record_exit(trace, exit_, taken[exit_.layer].nonzero().squeeze(1))

    def _layer_costs(self) -> list[float]:
        """Multiply-adds of each layer with its router."""
        network = self.backbone
        costs = list(network.costs)
        for index, layer in enumerate(network.junctions):
            costs[layer] += network.policy.decision_cost(index, 1, 1)
        return costs

    def _parts(self, shares: PathShares) -> list[tuple[nn.Module, Tensor]]:
        """Layers, routers and exits, each with the share (N,) of the images."""
        network = self.backbone
        parts: list[tuple[nn.Module, Tensor]] = list(zip(network.layers, shares.layers, strict=True))
        parts += [(self.exits[str(layer)], p) for layer, p in shares.exits.items()]
        routers = getattr(network.policy, "routers", [])
        return parts + [(r, shares.layers[layer]) for r, layer in zip(routers, network.junctions, strict=False)]

    def _squared_weights(self, shares: PathShares) -> Tensor:
        """k_l2 sum over parts of mean p * |W|^2; biases and batch norm do not count."""
        total = torch.zeros((), device=self.device)
        for part, p in self._parts(shares):
            layers = [m for m in part.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
            total = total + p.mean() * sum(layer.weight.square().sum() for layer in layers)
        return self.weight_penalty * total

    def _set_rates(self, shares: PathShares) -> None:
        """1 / sqrt(mean p^2) over the images of all processes, for the gradients of this step."""
        parts = self._parts(shares)
        squares = torch.stack([throughput_rate(p) ** -2 for _, p in parts])
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(squares)
            squares = squares / comm.get_world_size()
        for (part, _), rate in zip(parts, squares.rsqrt().unbind(), strict=True):
            setattr(part, _RATE, rate)


def floored_cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """(n,) -log(floor / K + (1 - floor) p_y), floor = 1e-6: however sure an exit is of a wrong class, its loss is at
    most log(K / floor) nats (16.1 for ten classes), so that one image cannot outweigh the others of a path.

    Args:
        scores: (n, K) before the soft-max.
    """
    right = F.log_softmax(scores.float(), 1).gather(1, labels[:, None]).squeeze(1)
    least = right.new_tensor(FLOOR / scores.shape[1]).log()
    return -torch.logaddexp(least.expand_as(right), right + math.log1p(-FLOOR))


def _scale_gradients(part: nn.Module) -> None:
    """Multiply the gradients of a part by its attribute ``gradient_rate``, where it has one, as they come: before
    momentum sees them."""

    def scaled(gradient: Tensor) -> Tensor:
        return gradient * getattr(part, _RATE, 1.0)

    for parameter in part.parameters():
        parameter.register_hook(scaled)
