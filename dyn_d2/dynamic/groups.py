"""Sparse execution of blocks that are a sum of groups: skip + sum of gate_n F_n(x), where each image has its own gates.

Shape shorthand: N images, G groups of a block, each a chain of convolutions with w channels inside.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dyn_d2.ops import channel_conv

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


def weights_outweigh(x: Tensor, weight: Tensor) -> bool:
    """Whether a convolution in evaluation is better run by the compiled kernel, which reads weights where they lie:
    torch lays them out anew at each call, which is most of the work where they are many and the image is small."""
    plain = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    return plain and weight.numel() >= 4 * x.numel() > 0 and channel_conv.load()


class _Folded:
    """The convolutions of all groups with their batch norms folded in. Groups that run for the same images run as one
    chain of convolutions; its weights are kept for the last few choices of groups, since to put them together anew in
    every pass would cost more than is saved where weights are larger than images.

    Attributes:
        weights: per convolution; (G w, ...) stacked along the output channels, of the last one (C', G w, ...) along the
            input channels.
        biases: (G w,) of every convolution but the last; of that (G, C').
    """

    KEPT = 8  # choices; each takes the memory of the groups that it opens

    def __init__(self, branches: Sequence[GroupBranch], layout: torch.memory_format) -> None:
        self.layout = layout
        self.activation, self.convs = branches[0].activation, branches[0].convs()
        self.groups = len(branches)
        layers = [[_fold(conv) for conv in branch.convs()] for branch in branches]
        *inner, last = zip(*layers, strict=True)
        self.weights = [torch.cat([weight for weight, _ in layer]) for layer in inner]
        self.weights.append(torch.cat([weight for weight, _ in last], 1))
        self.weights = [weight.contiguous(memory_format=layout) for weight in self.weights]
        self.biases = [torch.cat([bias for _, bias in layer]) for layer in inner]
        self.biases.append(torch.stack([bias for _, bias in last]))
        self._choices: OrderedDict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = OrderedDict()

    def run(self, x: Tensor, chosen: tuple[int, ...]) -> Tensor:
        """The sum of the groups with these numbers, in ascending order."""
        if chosen in self._choices:
            self._choices.move_to_end(chosen)
        else:
            self._choices[chosen] = self._put_together(chosen)
            if len(self._choices) > self.KEPT:
                self._choices.popitem(last=False)
        last = len(self.convs) - 1
        for i, (conv, (weight, bias)) in enumerate(zip(self.convs, self._choices[chosen], strict=True)):
            # The first convolution reads what all groups share, the last sums over them.
            groups = conv.groups if i in (0, last) else conv.groups * len(chosen)
            x = self._conv(x, weight, bias, conv, groups)
            if i < last:
                x = self.activation(x)
        return x

    def _conv(self, x: Tensor, weight: Tensor, bias: Tensor, conv: nn.Conv2d, groups: int) -> Tensor:
        if groups > 1 or not weights_outweigh(x, weight):
            return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, groups)
        geometry = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation}
        out = channel_conv.channel_conv(x.contiguous(), weight, bias, relu=False, **geometry)
        return out.contiguous(memory_format=self.layout)

    def _put_together(self, chosen: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of each convolution for these groups; views where they lie next to each other."""
        layers = []
        for i, conv in enumerate(self.convs):
            weight, bias, last = self.weights[i], self.biases[i], i == len(self.convs) - 1
            width, dim = (conv.in_channels, 1) if last else (conv.out_channels, 0)
            bias = bias[list(chosen)].sum(0) if last else _stretches(bias, chosen, width, 0)
            weight = _stretches(weight, chosen, width, dim).contiguous(memory_format=self.layout)
            layers.append((weight, bias))
        return layers


def _stretches(values: Tensor, chosen: tuple[int, ...], width: int, dim: int) -> Tensor:
    """The parts ``chosen`` of ``values``, each ``width`` long along ``dim``."""
    if chosen == tuple(range(chosen[0], chosen[-1] + 1)):
        return values.narrow(dim, chosen[0] * width, len(chosen) * width)
    return torch.cat([values.narrow(dim, n * width, width) for n in chosen], dim)


class _Watch:
    """Tells whether the parameters, buffers or norms of some convolutions changed since it was made: which tensor is in
    each place, where its values lie, and how often they were written."""

    def __init__(self, convs: Sequence[nn.Conv2d]) -> None:
        parts = [part for conv in convs for part in (conv, conv.norm) if part is not None]
        self._norms = [(conv._modules, conv._modules.get("norm")) for conv in convs]
        stores = [store for part in parts for store in (part._parameters, part._buffers)]
        self._places = [(store, name) for store in stores for name, tensor in store.items() if tensor is not None]
        self._stamp = self._look()

    def _look(self) -> list[tuple[int, int]]:
        tensors = [store[name] for store, name in self._places]
        return [(tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in tensors]

    def unchanged(self) -> bool:
        return all(modules.get("norm") is norm for modules, norm in self._norms) and self._look() == self._stamp


_cache: WeakKeyDictionary[nn.Module, tuple[_Watch, _Folded]] = WeakKeyDictionary()


def _folded(branches: Sequence[GroupBranch], x: Tensor) -> _Folded | None:
    """The folded convolutions, made anew where a parameter changed; None if a norm does not fold into a convolution."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    layout = torch.channels_last if last else torch.contiguous_format
    if branches[0] in _cache:
        watch, folded = _cache[branches[0]]
        if folded.layout == layout and watch.unchanged():
            return folded
    convs = [conv for branch in branches for conv in branch.convs()]
    if any(conv.norm is not None and getattr(conv.norm, "running_mean", None) is None for conv in convs):
        return None
    folded = _Folded(branches, layout)
    _cache[branches[0]] = _Watch(convs), folded
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
            part = folded.run(x, (n,))
            out = part if out is None else out.add_(part)
        elif rows:
            _add_rows(out, rows, folded.run(gather(x, rows), (n,)))
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
    """The same groups for all images of x, in one go."""
    chosen = tuple(n for n, is_open in enumerate(opened) if is_open)
    if not chosen:
        return finish(skip if overwrite else skip.clone())
    total = folded.run(x, chosen)
    if skip is not None:
        total = skip.add_(total) if overwrite else total.add_(skip)
    return finish(total)


def _views_pay(folded: _Folded, x: Tensor) -> bool:
    """Whether running images one by one, as views of the batch, is faster than copying those that chose a group.

    On a CPU it is as long as an image is larger than the weights, which are read anew for each image.
    """
    return x.device.type == "cpu" and x[0].numel() >= sum(weight.numel() for weight in folded.weights)
