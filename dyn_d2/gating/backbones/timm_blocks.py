"""Residual blocks of timm's models: found by what they do, gated in place, their multiply-adds counted.

A block has an identity path if its output is its input, where that is positive, as soon as all of its parameters are
zero: then nothing is left of its branch, and an activation after the sum changes nothing. So no list of classes is
needed, and parameters keep their names.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from dyn_d2.gating import Router, Unit
from dyn_d2.gating.cost import unit_costs
from dyn_d2.gating.execution import run_whole

from detectron2.layers import FrozenBatchNorm2d

if TYPE_CHECKING:
    from dyn_d2.modeling.backbone.timm_models import TimmNetwork

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_MOST_PREFIX = 8  # tokens that are no place in the image: of the class, registers


@dataclass(frozen=True)
class Layout:
    """How a block's input holds its feature map.

    Attributes:
        kind: "NCHW", "NHWC", or "NLC": tokens, row by row.
        stride: of the map.
        prefix: tokens that come before those of the map.
    """

    kind: str
    stride: int
    prefix: int = 0

    def channels(self, x: Tensor) -> int:
        """Of an input."""
        return x.shape[1 if self.kind == "NCHW" else -1]

    def view(self, x: Tensor, height: int) -> Tensor:
        """The map of an input as (N, C, H, W), without a copy; ``height`` is that of the images."""
        if self.kind == "NCHW":
            return x
        if self.kind == "NHWC":
            return x.permute(0, 3, 1, 2)
        return x[:, self.prefix :].unflatten(1, (height // self.stride, -1)).permute(0, 3, 1, 2)


@dataclass
class Block:
    """A residual block with an identity path, and the layout of its input, which is that of its output."""

    name: str
    layout: Layout
    channels: int


@dataclass
class _Call:
    """The first call of a module, and how many there were."""

    inputs: tuple[Any, ...]
    named: dict[str, Any]
    output: Any
    count: int = 1


def residual_blocks(module: nn.Module, run: Callable[[int], Any], size: tuple[int, int]) -> list[Block]:
    """The residual blocks of a model that have an identity path, in the order in which they run.

    Of blocks inside of others, the outer one is taken, unless it is a stage that is made of the inner ones. Left out
    are blocks that run more than once, that get other things of each image beside their input, and whose input is no
    map of the whole image (windows of attention).

    Args:
        module: the model, in evaluation mode.
        run: runs it on that many images.
        size: (height, width) of these images.
    """
    calls: dict[str, _Call] = {}

    def note(name: str) -> Callable:
        def hook(_: nn.Module, inputs: tuple, named: dict, output: Any) -> None:
            if name in calls:
                calls[name].count += 1
            else:
                calls[name] = _Call(inputs, named, output)

        return hook

    parts = {
        name: part
        for name, part in module.named_modules()
        if name and not isinstance(part, _CONTAINERS) and next(part.children(), None) is not None
    }
    hooks = [part.register_forward_hook(note(name), with_kwargs=True) for name, part in parts.items()]
    try:
        with torch.no_grad():
            run(2)
    finally:
        for hook in hooks:
            hook.remove()
    found: dict[str, Block] = {}
    for name in sorted(calls, key=lambda name: -name.count(".")):  # what is inside comes first
        call, inside = calls[name], [other for other in found if other.startswith(f"{name}.")]
        if call.count > 1 or _holds_most(parts[name], [parts[other] for other in inside]):
            continue
        layout = _layout(call, size)
        if layout is not None and _is_residual(parts[name], call):
            found = {other: block for other, block in found.items() if other not in inside}
            found[name] = Block(name, layout, layout.channels(call.inputs[0]))
    return [found[name] for name in calls if name in found]


def _holds_most(part: nn.Module, blocks: list[nn.Module]) -> bool:
    """Whether ``blocks`` inside of ``part`` have nearly all of its parameters, so that it is a stage made of them."""
    inside = sum(parameter.numel() for block in blocks for parameter in block.parameters())
    return inside > 0.9 * sum(parameter.numel() for parameter in part.parameters())


def _layout(call: _Call, size: tuple[int, int]) -> Layout | None:
    """Of the input of a call, where the output has the same; None where it is no map, or not the only input."""
    x = call.inputs[0] if call.inputs else None
    if not isinstance(x, Tensor) or not isinstance(call.output, Tensor) or x.shape != call.output.shape or len(x) != 2:
        return None
    others = [other for other in (*call.inputs[1:], *call.named.values()) if isinstance(other, Tensor)]
    if any(other.dim() and len(other) == len(x) for other in others):
        return None
    for stride in (1, 2, 4, 8, 16, 32, 64):
        height, width = size[0] // stride, size[1] // stride
        if x.dim() == 4:
            for kind, shape in (("NCHW", x.shape[2:]), ("NHWC", x.shape[1:3])):
                if tuple(shape) == (height, width):
                    return Layout(kind, stride)
        elif x.dim() == 3 and 0 <= x.shape[1] - height * width <= _MOST_PREFIX:
            return Layout("NLC", stride, x.shape[1] - height * width)
    return None


@torch.no_grad()
def _is_residual(block: nn.Module, call: _Call) -> bool:
    parameters = list(block.parameters())
    if not any(parameter.dim() > 1 for parameter in parameters):  # no layer that computes anything
        return False
    x, saved = call.inputs[0].abs() + 0.5, [parameter.data for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.data = torch.zeros_like(parameter)
        out = block(x.clone(), *call.inputs[1:], **call.named)  # some work in place
    finally:
        for parameter, data in zip(parameters, saved, strict=True):
            parameter.data = data
    after = [part(x.clone()) for part in block.children() if _is_activation(part)]
    return any(end.shape == out.shape and torch.equal(out, end) for end in (x, *after))


@dataclass
class Pass:
    """One forward pass of a gated model: its router, multiply-adds of the blocks, and (height, width) of the images."""

    router: Router
    costs: Mapping[str, float]
    size: tuple[int, int]


_current: ContextVar[Pass | None] = ContextVar("dyn_d2_timm_pass", default=None)


@contextmanager
def routed(current: Pass) -> Iterator[None]:
    """Inside the block, gated blocks ask the router of ``current``."""
    token = _current.set(current)
    try:
        yield
    finally:
        _current.reset(token)


class _Gated(nn.Module):
    """Goes before the class of a block in the list of bases; outside of ``routed`` the block is the plain one."""

    gated: Block

    def forward(self, x: Tensor, *others: Any, **named: Any) -> Tensor:
        current, plain = _current.get(), super().forward
        if current is None:
            return plain(x, *others, **named)
        block, cost = self.gated, current.costs[self.gated.name]
        unit_cost = unit_costs(cost, 1, x.device)
        decision = current.router.decide(block.layout.view(x, current.size[0]), unit_cost)
        current.router.record_units(block.name, decision, unit_cost, cost)
        return run_whole(lambda part: plain(part, *others, **named), x, decision, owner=self)


@cache
def _gated_class(plain: type) -> type:
    return type(f"Gated{plain.__name__}", (_Gated, plain), {"__doc__": f"{plain.__name__}, run as a whole or not."})


def gate(module: nn.Module, blocks: list[Block]) -> list[Unit]:
    """Make blocks of ``module`` ask for decisions, in place; the units, in the order in which they ask."""
    strides = sorted({block.layout.stride for block in blocks})
    units = []
    for block in blocks:
        part = module.get_submodule(block.name)
        part.__class__ = _gated_class(type(part))  # type: ignore[arg-type]  # a class is hashable
        assert isinstance(part, _Gated)
        part.gated = block
        stage = strides.index(block.layout.stride)
        units.append(Unit(block.name, "block", block.channels, 1, stage, block.channels))
    return units


def _is_activation(layer: nn.Module) -> bool:
    return "activation" in type(layer).__module__ and next(layer.parameters(), None) is None


def _hand_through(x: Tensor) -> Tensor:
    return x


@dataclass
class MultiplyAdds:
    """Counts the multiply-adds of convolutions, linear layers and attention of a model, from shapes alone.

    Attributes:
        module: a copy of the model whose parameters have no values.
        blocks: names of the blocks that are counted by themselves.
    """

    module: "TimmNetwork"
    blocks: list[str]
    _known: dict[tuple[int, ...], tuple[float, dict[str, float]]] = field(default_factory=dict)

    @classmethod
    def of(cls, module: "TimmNetwork", blocks: list[str]) -> "MultiplyAdds":
        """For a model on any device."""
        module = copy.deepcopy(module).to("meta").eval()
        for layer in module.modules():  # what costs nothing takes most of the time without values
            if isinstance(layer, _BatchNorm | FrozenBatchNorm2d) or _is_activation(layer):
                layer.forward = _hand_through
        return cls(module, blocks)

    def __call__(
        self, run: Callable[["TimmNetwork", Tensor], Any], shape: tuple[int, int, int]
    ) -> tuple[float, dict[str, float]]:
        """Multiply-adds per image outside of the blocks, and of each block.

        Args:
            run: runs the model that it is given on images.
            shape: (C, H, W) of an image.
        """
        if shape not in self._known:
            if len(self._known) >= 4096:
                self._known.clear()
            with ThreadPoolExecutor(1) as other:  # where no counter of the user sees it
                self._known[shape] = other.submit(self._count, run, shape).result()
        return self._known[shape]

    def _count(
        self, run: Callable[["TimmNetwork", Tensor], Any], shape: tuple[int, int, int]
    ) -> tuple[float, dict[str, float]]:
        costs: dict[str, float] = {}
        hooks = []
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            for name in self.blocks:
                block = self.module.get_submodule(name)

                def before(_, __, name=name) -> None:
                    costs[name] = -counter.get_total_flops() / 2

                def after(_, __, ___, name=name) -> None:
                    costs[name] += counter.get_total_flops() / 2

                hooks += [block.register_forward_pre_hook(before), block.register_forward_hook(after)]
            try:
                run(self.module, torch.empty(1, *shape, device="meta"))
            finally:
                for hook in hooks:
                    hook.remove()
        return counter.get_total_flops() / 2 - sum(costs.values()), costs
