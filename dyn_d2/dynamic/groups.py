"""Sparse execution of blocks that are a sum of groups: skip + sum of gate_n F_n(x), where each image has its own gates.

Shape shorthand: N images, G groups of a block, each a chain of convolutions with w channels inside.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cost import chain_cost
from .decisions import Decision
from .execution import gather, running_statistics

Layer = Callable[[Tensor], Tensor]


class GroupBranch(nn.Module):
    """One group F_n: convolutions ``conv1``, ``conv2``, ..., each with its ``norm``, an activation after all but the
    last."""

    def __init__(self, convs: Sequence[nn.Conv2d], activation: Layer) -> None:
        """``convs`` are ``detectron2.layers.Conv2d``; ``activation`` may work in place."""
        super().__init__()
        for i, conv in enumerate(convs, 1):
            self.add_module(f"conv{i}", conv)
        self.activation = activation

    def convs(self) -> list[nn.Conv2d]:
        """In the order in which they run."""
        return list(self.children())

    def forward(self, x: Tensor) -> Tensor:
        *first, last = self.convs()
        for conv in first:
            x = self.activation(conv(x))
        return last(x)


def run_groups(
    branches: Sequence[GroupBranch],
    x: Tensor,
    skip: Tensor | None,
    decision: Decision,
    *,
    training: bool,
    finish: Layer = F.relu_,
    overwrite: bool = False,
) -> Tensor:
    """finish(skip + sum over n of gate_n F_n(x)); a group is computed for the images for which its gate is open.

    In training, where the gates carry a gradient, closed pairs of image and group are computed as well, but without
    gradient and with the running statistics of batch norm: only the gradient of their gate (which is 0) needs them.

    Args:
        branches: F_1 ... F_G, of equal shapes.
        x: (N, C, H, W).
        skip: (N, C', H', W'), the identity (``x`` itself) or a projection of the caller's making, which may be
            overwritten; None for 0, then the first group has to be open for every image.
        decision: of shape (N, G).
        training: the mode of the block.
        finish: applied to the sum, in place.
        overwrite: whether ``x`` may be overwritten. Used only without gradients.

    Returns:
        (N, C', H', W').
    """
    gates = decision.gate.detach().tolist()
    opened = [[gate != 0 for gate in each] for each in gates]
    if not training and opened and not torch.is_grad_enabled() and not torch.is_autocast_enabled(x.device.type):
        folded = _folded(branches, x)
        if folded is not None and all(gate in (0, 1) for each in gates for gate in each):
            return _run_folded(folded, x, skip, opened, finish, overwrite or skip is not x)
    size, out = chain_cost(branches[0].convs(), *x.shape[-2:])[1:], skip
    for n, branch in enumerate(branches):
        rows = [i for i, each in enumerate(opened) if each[n]]
        others = [i for i, each in enumerate(opened) if not each[n]]
        if others and decision.relaxed and training:
            with torch.no_grad(), running_statistics(branch):
                part = branch(x if not rows else gather(x, others))
            out = _add(out, others, part, decision.gate[:, n])
        if rows or out is None:
            # Batch norm cannot take statistics of one value.
            with running_statistics(branch, training and len(rows) * size[0] * size[1] <= 1):
                part = branch(x if not others else gather(x, rows))
            out = _add(out, rows, part, decision.gate[:, n])
    return finish(skip.clone() if out is skip else out)


def _add(out: Tensor | None, rows: list[int], part: Tensor, gate: Tensor) -> Tensor:
    """out with gate * part added to the images ``rows``."""
    whole = len(rows) == len(gate)
    index = torch.tensor(rows, dtype=torch.long, device=part.device)
    weights = (gate if whole else gate[index]).to(part.dtype)
    if weights.requires_grad or bool((weights != 1).any()):
        part = part * weights.reshape(-1, 1, 1, 1)
    if out is None:
        return part
    return out + part if whole else out.to(part.dtype).index_add(0, index, part)


class _Folded:
    """The convolutions of all groups with their batch norms folded in, such that groups next to each other are slices.

    Attributes:
        stamp: of the parameters from which it was made.
        weights: per convolution; (G w, ...) stacked along the output channels, of the last one (C', G w, ...) along the
            input channels.
        biases: (G w,) of every convolution but the last.
        last_bias: of the last one, (C',), for every stretch (first, end) of groups.
    """

    def __init__(self, branches: Sequence[GroupBranch], stamp: tuple, layout: torch.memory_format) -> None:
        self.stamp, self.layout = stamp, layout
        self.activation, self.convs = branches[0].activation, branches[0].convs()
        self.groups = len(branches)
        layers = [[_fold(conv) for conv in branch.convs()] for branch in branches]
        *inner, last = zip(*layers, strict=True)
        self.weights = [torch.cat([weight for weight, _ in layer]) for layer in inner]
        self.weights.append(torch.cat([weight for weight, _ in last], 1))
        self.weights = [weight.contiguous(memory_format=layout) for weight in self.weights]
        self.biases = [torch.cat([bias for _, bias in layer]) for layer in inner]
        # Of the last convolution one for each stretch of groups, which is little memory, and no sum in each pass.
        count = len(branches)
        stretches = [(first, end) for end in range(1, count + 1) for first in range(end)]
        self._last: dict[tuple[int, int], Tensor] = {}
        self.last_bias = {key: sum(bias for _, bias in last[slice(*key)]) for key in stretches}

    def run(self, x: Tensor, first: int, end: int) -> Tensor:
        """The sum of the groups first ... end - 1, which is one chain of convolutions."""
        for i, conv in enumerate(self.convs):
            weight, groups = self.weights[i], conv.groups
            if i < len(self.convs) - 1:
                stretch = slice(first * conv.out_channels, end * conv.out_channels)
                weight, bias = weight[stretch], self.biases[i][stretch]
                groups = groups if i == 0 else groups * (end - first)
            else:
                weight, bias = self._last_weight(first, end), self.last_bias[first, end]
            x = F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, groups)
            if i < len(self.convs) - 1:
                x = self.activation(x)
        return x

    def _last_weight(self, first: int, end: int) -> Tensor:
        """A convolution would copy the slice in every pass, which counts where weights are larger than images. Up to 4
        groups the copies, made when first needed, are at most 5 times the layer."""
        if (first, end) == (0, self.groups):
            return self.weights[-1]
        if (first, end) not in self._last:
            width = self.convs[-1].in_channels
            weight = self.weights[-1][:, first * width : end * width].contiguous(memory_format=self.layout)
            if self.groups > 4:
                return weight
            self._last[first, end] = weight
        return self._last[first, end]


_cache: WeakKeyDictionary[nn.Module, _Folded] = WeakKeyDictionary()


def _folded(branches: Sequence[GroupBranch], x: Tensor) -> _Folded | None:
    """The folded convolutions, made anew where a parameter changed; None if a norm does not fold into a convolution."""
    if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        layout = torch.channels_last
    else:
        layout = torch.contiguous_format
    convs = [conv for branch in branches for conv in branch.convs()]
    stamp = tuple(
        (tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)
        for conv in convs
        for part in (conv, conv.norm)
        if part is not None
        for tensors in (part._parameters, part._buffers)
        for tensor in tensors.values()
        if tensor is not None
    )
    known = _cache.get(branches[0])
    if known is not None and known.stamp == stamp and known.layout == layout:
        return known
    if any(conv.norm is not None and getattr(conv.norm, "running_mean", None) is None for conv in convs):
        return None
    _cache[branches[0]] = folded = _Folded(branches, stamp, layout)
    return folded


def _fold(conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with the batch norm that follows it, in evaluation."""
    norm, bias = conv.norm, conv.bias
    bias = conv.weight.new_zeros(conv.out_channels) if bias is None else bias
    if norm is None:
        return conv.weight, bias
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = 0 if norm.bias is None else norm.bias
    return conv.weight * scale.reshape(-1, 1, 1, 1), (bias - norm.running_mean) * scale + shift


def _run_folded(
    folded: _Folded, x: Tensor, skip: Tensor | None, opened: list[list[bool]], finish: Layer, overwrite: bool
) -> Tensor:
    if all(each == opened[0] for each in opened):
        return _run_alike(folded, x, skip, opened[0], finish, overwrite)
    if skip is not None and _views_pay(folded, x):
        out = skip if overwrite else skip.clone()
        for i, each in enumerate(opened):
            _run_alike(folded, x[i : i + 1], out[i : i + 1], each, finish, True)
        return out
    out = skip.clone() if skip is x else skip  # later groups read x
    for n in range(folded.groups):
        rows = [i for i, each in enumerate(opened) if each[n]]
        if len(rows) == len(opened):
            part = folded.run(x, n, n + 1)
            out = part if out is None else out.add_(part)
        elif rows:
            _add_rows(out, rows, folded.run(gather(x, rows), n, n + 1))
    return finish(out)


def _add_rows(out: Tensor, rows: list[int], part: Tensor) -> None:
    if out.device.type == "cpu":  # image by image, as index_add_ is slow in channels_last
        for row, values in zip(rows, part, strict=True):
            out[row].add_(values)
    else:
        out.index_add_(0, torch.tensor(rows, device=out.device), part)


def _run_alike(
    folded: _Folded, x: Tensor, skip: Tensor | None, opened: list[bool], finish: Layer, overwrite: bool
) -> Tensor:
    """The same groups for all images of x: neighbours among them together."""
    total = None
    for first, end in _runs(opened):
        part = folded.run(x, first, end)
        total = part if total is None else total.add_(part)
    if total is None:
        total = skip if overwrite else skip.clone()
    elif skip is not None:
        total = skip.add_(total) if overwrite else total.add_(skip)
    return finish(total)


def _runs(opened: list[bool]) -> list[tuple[int, int]]:
    """(first, end) of each stretch of open groups."""
    runs, position = [], 0
    for is_open, stretch in groupby(opened):
        length = len(list(stretch))
        if is_open:
            runs.append((position, position + length))
        position += length
    return runs


def _views_pay(folded: _Folded, x: Tensor) -> bool:
    """Whether running images one by one, as views of the batch, is faster than copying those that chose a group.

    On a CPU it is as long as an image is larger than the weights, which are read anew for each image.
    """
    return x.device.type == "cpu" and x[0].numel() >= sum(weight.numel() for weight in folded.weights)
