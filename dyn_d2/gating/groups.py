"""Sparse execution of blocks that are a sum of groups: skip + sum of gate_n F_n(x), where each image has its own gates.

Shape shorthand: N images, G groups of a block, each a chain of convolutions with w channels inside.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dyn_d2.ops.packed_conv import PackedConv

from detectron2.layers import Conv2d

from .cost import chain_cost, geometry
from .decisions import Decision
from .execution import gather, run_by_choice, running_statistics, without_gradient
from .exporting import added, is_exporting
from .folding import fold, folds, kept, may_fold

Layer = Callable[[Tensor], Tensor]


class GroupBranch(nn.Module):
    """One group F_n: convolutions ``conv1``, ``conv2``, ..., each with its ``norm``, an activation after all but the
    last."""

    def __init__(self, convs: Sequence[Conv2d], activation: Layer) -> None:
        """``activation`` may work in place."""
        super().__init__()
        for i, conv in enumerate(convs, 1):
            self.add_module(f"conv{i}", conv)
        self.activation = activation

    def convs(self) -> list[Conv2d]:
        """In the order in which they run."""
        return [conv for conv in self._modules.values() if isinstance(conv, Conv2d)]

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
    relu: bool = True,
    overwrite: bool = False,
) -> Tensor:
    """ReLU(skip + sum over n of gate_n F_n(x)); a group is computed for the images for which its gate is open.

    In training, where the gates carry a gradient, closed pairs of image and group are computed as well, but without
    gradient and with the running statistics of batch norm: only the gradient of their gate (which is 0) needs them.

    Args:
        branches: F_1 ... F_G, of equal shapes.
        x: (N, C, H, W).
        skip: (N, C', H', W'), the identity (``x`` itself) or a projection of the caller's making, which may be
            overwritten; None for 0, then the first group has to be open for every image.
        decision: of shape (N, G).
        training: the mode of the block.
        relu: whether ReLU follows the sum.
        overwrite: whether ``x`` may be overwritten. Used only without gradients.

    Returns:
        (N, C', H', W').
    """
    if is_exporting():
        return _in_graph(branches, x, skip, decision.gate, relu)
    gates = decision.gate.detach().tolist()
    opened = [[gate != 0 for gate in each] for each in gates]
    hard = all(gate in (0, 1) for each in gates for gate in each)
    if not training and opened and hard and may_fold(x) and (folded := _folded(branches)):
        chosen = [tuple(n for n, is_open in enumerate(each) if is_open) for each in opened]
        return run_by_choice(partial(folded.run, relu=relu), x, skip, chosen, overwrite=overwrite)
    size, out = chain_cost(branches[0].convs(), *x.shape[-2:])[1:], skip
    for n, branch in enumerate(branches):
        rows = [i for i, each in enumerate(opened) if each[n]]
        others = [i for i, each in enumerate(opened) if not each[n]]
        if others and decision.relaxed and training:
            with without_gradient(), running_statistics(branch):
                part = branch(x if not rows else gather(x, others))
            out = _add(out, others, part, decision.gate[:, n])
        if rows or out is None:
            # Batch norm cannot take statistics of one value.
            with running_statistics(branch, training and len(rows) * size[0] * size[1] <= 1):
                part = branch(x if not others else gather(x, rows))
            out = _add(out, rows, part, decision.gate[:, n])
    assert out is not None  # without skip, the first group is open for somebody
    out = out.clone() if out is skip else out
    return out.relu_() if relu else out


def _in_graph(branches: Sequence[GroupBranch], x: Tensor, skip: Tensor | None, gate: Tensor, relu: bool) -> Tensor:
    """``run_groups`` for a graph. Without skip the first group is the sum to begin with, as it is always open."""
    numbers = range(len(branches))
    total = branches[0](x) if skip is None else skip
    for n in numbers[1:] if skip is None else numbers:
        total = added(branches[n], x, total, gate[:, n])
    return F.relu(total) if relu else total


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
    """The convolutions of all groups with their batch norms folded in. Groups that run for the same images run as one
    chain of convolutions, whose weights are kept for the last few choices of groups."""

    KEPT = 8  # choices; each takes the memory of the groups that it opens

    def __init__(self, branches: Sequence[GroupBranch]) -> None:
        self.convs, self.activation = branches[0].convs(), branches[0].activation
        self._layers = list(zip(*([fold(conv) for conv in branch.convs()] for branch in branches), strict=True))
        self._choices: OrderedDict[tuple[int, ...], list[PackedConv]] = OrderedDict()

    def run(self, x: Tensor, chosen: tuple[int, ...], total: Tensor | None, *, relu: bool) -> Tensor:
        """``total`` plus the groups with these numbers, in place; ``relu``: and ReLU after that."""
        if not chosen:
            assert total is not None  # without skip, some group is open
            return total.relu_() if relu else total
        if chosen in self._choices:
            self._choices.move_to_end(chosen)
        else:
            self._choices[chosen] = self._put_together(chosen)
            if len(self._choices) > self.KEPT:
                self._choices.popitem(last=False)
        fused = self.activation is F.relu_
        *inner, last = self._choices[chosen]
        for conv in inner:
            x = conv(x, relu=fused)
            x = x if fused else self.activation(x)
        return last(x, total, relu=relu)

    def _put_together(self, chosen: tuple[int, ...]) -> list[PackedConv]:
        """The convolutions of these groups. The first reads what all groups share, the last sums over them."""
        layers = []
        for i, (conv, groups) in enumerate(zip(self.convs, self._layers, strict=True)):
            last = i == len(self.convs) - 1
            stride, padding, dilation = geometry(conv)
            weights, biases = zip(*(groups[n] for n in chosen), strict=True)
            layers.append(
                PackedConv(
                    torch.cat(weights, 1 if last else 0),
                    torch.stack(biases).sum(0) if last else torch.cat(biases),
                    stride=stride,
                    padding=padding,
                    dilation=dilation,
                    groups=conv.groups * (1 if last or i == 0 else len(chosen)),
                )
            )
        return layers


def _folded(branches: Sequence[GroupBranch]) -> _Folded | None:
    convs = [conv for branch in branches for conv in branch.convs()]
    return kept(branches[0], convs, lambda: _Folded(branches) if all(folds(conv) for conv in convs) else None)
