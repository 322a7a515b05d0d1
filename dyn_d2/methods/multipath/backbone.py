"""A tree of multi-scale layers with exits, through which a policy sends each image ("Deciding How to Decide").

In training every layer sees every image, and losses are weighted by path probabilities; in evaluation a layer sees only
the images that were sent to it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from dyn_d2.config.applied import notices_keys
from dyn_d2.gating import Cost, Decision, Step, Trace, Unit, current_trace
from dyn_d2.gating.cost import conv_cost
from dyn_d2.gating.policies.base import Policy, build_policy
from dyn_d2.gating.trace import spread
from dyn_d2.modeling.shapes import channels_of

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, Backbone

from .paths import EXIT, PathTree, greedy_paths

TOPOLOGIES = ("chain", "tree", "static")


def _conv(in_channels: int, out_channels: int, side: int, bias: bool) -> nn.Conv2d:
    """3x3, no larger than the map; Gaussian weights of deviation 1 / (support * sqrt(in_channels))."""
    kernel = 3 if side >= 3 else 1
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=bias)
    nn.init.normal_(conv.weight, std=1 / (kernel * in_channels**0.5))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


class PyramidLayer(nn.Module):
    """From a pyramid to the next: at each scale a convolution of the map before plus, except at the finest scale, one
    of the finer scale's result after pooling; then batch norm and ReLU.

    u_0 = conv(x_0), u_i = conv(x_i) + conv(maxpool2(u_{i-1})), y_i = ReLU(BN(u_i)).
    """

    def __init__(self, sides: Sequence[int], in_channels: int, channels: int) -> None:
        """
        Args:
            sides: of the maps that it gives, the finest first; of a larger pyramid it takes the coarsest.
            in_channels, channels: of every scale.
        """
        super().__init__()
        self.sides, self.channels = tuple(sides), channels
        across = [_conv(in_channels, channels, side, bias=True) for side in sides]
        down = [_conv(channels, channels, side, bias=False) for side in sides[1:]]
        self.across, self.down = nn.ModuleList(across), nn.ModuleList(down)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels, eps=1e-6) for _ in sides)
        pairs = zip([*across, *down], [*sides, *sides[1:]], strict=True)
        self._cost = sum(conv_cost(conv, side, side)[0] for conv, side in pairs)

    def forward(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        own = pyramid[-len(self.sides) :]
        sums = [self.across[0](own[0])]
        for i in range(1, len(own)):
            sums.append(self.across[i](own[i]) + self.down[i - 1](F.max_pool2d(sums[-1], 2)))
        return [F.relu(norm(u)) for norm, u in zip(self.norms, sums, strict=True)]

    def cost(self) -> float:
        """Multiply-adds per image."""
        return self._cost

    @property
    def features(self) -> int:
        """Numbers in the coarsest map, which routers and exits see."""
        return self.channels * self.sides[-1] ** 2


@dataclass
class ExitFeatures:
    """What reached an exit: the coarsest map, flattened (n, F), of the images ``rows`` (n,); None for all."""

    layer: int
    features: Tensor
    rows: Tensor | None


class MultiPathNetwork(Backbone):
    """The layers of a :class:`~dyn_d2.methods.multipath.paths.PathTree` and the policy at its junctions.

    Attributes:
        tree, layers: alike numbered.
        policy: decides about one unit of kind "path" for each junction; its elements are the junction's sinks.
        features: numbers in the coarsest map of each layer.
        costs: multiply-adds of each layer.
    """

    policy: Policy

    def __init__(
        self,
        tree: PathTree,
        *,
        in_channels: int,
        side: int,
        scales: Sequence[int],
        channels: Sequence[int],
        make_policy: Callable[[list[Unit]], Policy],
    ) -> None:
        """
        Args:
            side: images are resized to a square of this side, the finest scale; each further one is half as large.
            scales: how many scales the layers of each level of the tree give, never more than the level before.
            channels: of every scale of the layers of each level.

        Raises:
            ValueError: levels without scales or channels, scales that grow, or a side that cannot be halved so often.
        """
        super().__init__()
        depth = max(tree.levels) + 1
        if not depth == len(scales) == len(channels):
            raise ValueError(
                f"MODEL.MULTIPATH: {depth} levels need as many SCALES and CHANNELS, not {len(scales)} and "
                f"{len(channels)}."
            )
        if list(scales) != sorted(scales, reverse=True) or scales[-1] < 1 or side % 2 ** (scales[0] - 1):
            raise ValueError(
                f"MODEL.MULTIPATH.SCALES {list(scales)} have to fall and be 1 or more, and SIDE {side} has to be "
                f"divisible by {2 ** (scales[0] - 1)}."
            )
        self.tree, self._sides = tree, [side // 2**i for i in range(scales[0])]
        parent = {child: layer for layer, children in enumerate(tree.children) for child in children}
        layers: list[PyramidLayer] = []
        for layer, level in enumerate(tree.levels):
            before = channels[tree.levels[parent[layer]]] if layer else in_channels
            layers.append(PyramidLayer(self._sides[-scales[level] :], before, channels[level]))
        self.layers = nn.ModuleList(layers)
        self.features, self.costs = [layer.features for layer in layers], [layer.cost() for layer in layers]
        self.junctions = tree.junctions
        self.policy = make_policy(
            [
                Unit(f"layers.{layer}", "path", self.features[layer], len(tree.sinks(layer)), tree.levels[layer])
                for layer in self.junctions
            ]
        )

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Of the flattened map of each exit."""
        exits = [layer for layer, has_exit in enumerate(self.tree.exits) if has_exit]
        return {f"exit{layer}": ShapeSpec(channels=self.features[layer]) for layer in exits}

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """(N, C, side, side) of each scale, by bilinear resizing."""
        size = tuple(images.shape[-2:])
        return [
            images if size == (side, side) else F.interpolate(images, (side, side), mode="bilinear", antialias=True)
            for side in self._sides
        ]

    # A map by name would not do: each exit has images of its own.
    def forward(self, images: Tensor) -> list[ExitFeatures]:  # type: ignore[override]
        """What reaches each exit; in training all images reach all of them. The trace gets decisions and costs."""
        trace = current_trace() or Trace()
        trace.context.images = len(images)
        trace.context.state = self.policy.begin(images, None)
        waiting: dict[int, tuple[list[Tensor], Tensor | None]] = {0: (self.pyramid(images), None)}
        found: list[ExitFeatures] = []
        decisions: dict[int, Decision] = {}
        visits: dict[int, Tensor] = {}
        for layer in range(len(self.layers)):
            if layer not in waiting:
                continue
            pyramid, rows = waiting.pop(layer)
            output = self.layers[layer](pyramid)
            visits[layer] = spread(images.new_ones(len(output[-1])), rows, len(images))
            flat, sinks, choice = output[-1].flatten(1), self.tree.sinks(layer), None
            if len(sinks) > 1:
                decision = self.policy.decide(self.junctions.index(layer), flat[:, :, None, None], trace.context.state)
                decisions[layer] = _spread_decision(decision, rows, len(images))
                choice = None if self.training else decision.gate.argmax(1)
            for number, sink in enumerate(sinks):
                here = None if choice is None else (choice == number).nonzero().squeeze(1)
                if here is not None and not len(here):
                    continue
                own = _chosen(rows, here)
                if sink == EXIT:
                    found.append(ExitFeatures(layer, flat if here is None else flat[here], own))
                else:
                    waiting[sink] = (output if here is None else [part[here] for part in output], own)
        self._record(trace, decisions, visits, images)
        return found

    def _record(self, trace: Trace, decisions: dict[int, Decision], visits: dict[int, Tensor], images: Tensor) -> None:
        """Decisions and costs. Training runs all layers; its trace is that of the path that the decisions choose."""
        nothing = images.new_zeros(len(images))
        for index, layer in enumerate(self.junctions):
            unit = self.policy.units[index]
            absent = Decision(images.new_zeros(len(images), unit.size))
            trace.steps.append(Step(unit, decisions.get(layer, absent)))
        if self.training:
            gates = {layer: decision.gate for layer, decision in decisions.items()}
            visits = dict(enumerate(greedy_paths(self.tree, gates, images).layers))
        for layer, cost in enumerate(self.costs):
            seen = visits.get(layer, nothing)
            dense = cost if layer in self.tree.deepest else 0.0
            trace.costs.append(Cost(f"layers.{layer}", dense, cost * seen))
            if layer in self.junctions:
                own = self.policy.decision_cost(self.junctions.index(layer), 1, 1)
                trace.costs.append(Cost(f"routers.{layer}", 0.0, own * seen, gate=True))


def _spread_decision(decision: Decision, rows: Tensor | None, count: int) -> Decision:
    """With zeros for the images that have not come here."""
    if rows is None:
        return decision
    prob = None if decision.prob is None else spread(decision.prob, rows, count)
    return Decision(spread(decision.gate, rows, count), prob)


def _chosen(rows: Tensor | None, here: Tensor | None) -> Tensor | None:
    """The rows ``here`` of the images ``rows``, None standing for all."""
    if here is None:
        return rows
    return here if rows is None else rows[here]


@BACKBONE_REGISTRY.register()
@notices_keys
def build_multipath_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> MultiPathNetwork:
    """The network of MODEL.MULTIPATH with the policy MODEL.POLICY.NAME.

    Raises:
        ValueError: an unknown topology, or from ``MultiPathNetwork``.
    """
    keys = cfg.MODEL.MULTIPATH
    if keys.TOPOLOGY not in TOPOLOGIES:
        raise ValueError(f"MODEL.MULTIPATH.TOPOLOGY is {keys.TOPOLOGY!r}: use one of {', '.join(TOPOLOGIES)}.")
    depth = keys.DEPTH or len(keys.CHANNELS)
    if not 1 <= depth <= len(keys.CHANNELS):
        raise ValueError(f"MODEL.MULTIPATH.DEPTH is {depth}: there are CHANNELS for 1 to {len(keys.CHANNELS)} levels.")
    trees: dict[str, Callable[[int], PathTree]] = {
        "chain": PathTree.chain,
        "static": PathTree.static,
        "tree": partial(PathTree.branching, splits=keys.SPLITS),
    }
    return MultiPathNetwork(
        trees[keys.TOPOLOGY](depth),
        in_channels=channels_of(input_shape),
        side=keys.SIDE,
        scales=list(keys.SCALES)[:depth],
        channels=list(keys.CHANNELS)[:depth],
        make_policy=partial(build_policy, cfg),
    )
