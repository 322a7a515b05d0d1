"""Sparse execution of residual blocks: only the images that chose a block go through it.

Shape shorthand: N images of a batch, n of them chose the block.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from .decisions import Decision
from .exporting import chosen as chosen_in_graph
from .exporting import is_exporting

Layer = Callable[[Tensor], Tensor]


@contextmanager
def running_statistics(module: nn.Module, when: bool = True) -> Iterator[None]:
    """Inside the block, the batch norms of ``module`` use their running statistics and do not update them."""
    layers = module.modules() if when else ()
    changed = [layer for layer in layers if isinstance(layer, _BatchNorm) and layer.training]
    for layer in changed:
        layer.training = False
    try:
        yield
    finally:
        for layer in changed:
            layer.training = True


def single_value(like: Tensor) -> bool:
    """Whether (N, C, H, W) has at most one value per channel, from which batch norm cannot take statistics."""
    return like.shape[0] * like.shape[2] * like.shape[3] <= 1


def gather(x: Tensor, rows: Sequence[int] | Tensor) -> Tensor:
    """A copy of the images ``rows`` of x (N, C, H, W), in the memory layout of x."""
    index = torch.as_tensor(rows, dtype=torch.int64, device=x.device)
    if _channels_last(x):  # plain indexing would give the standard layout
        return x.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)
    return x.index_select(0, index)


def scatter(target: Tensor, rows: Sequence[int], values: Tensor, in_place: bool = False) -> Tensor:
    """``target`` (N, C, H, W) with the images ``rows`` replaced by ``values`` (n, C, H, W)."""
    if in_place and target.device.type == "cpu":  # twice as fast as with an index
        for row, value in zip(rows, values, strict=True):
            target[row].copy_(value)
        return target
    index = torch.tensor(rows, device=target.device)
    if in_place:
        target[index] = values.to(target.dtype)
        return target
    target = target.to(values.dtype)
    if _channels_last(target):
        changed = target.permute(0, 2, 3, 1).index_copy(0, index, values.permute(0, 2, 3, 1))
        return changed.permute(0, 3, 1, 2)
    return target.index_copy(0, index, values)


def move_to_front(x: Tensor, stay: Tensor) -> tuple[Tensor, Tensor]:
    """Drops images in place: those that stay and lie behind move to where others leave.

    Where few leave, hardly anything is copied, and no new memory is touched, which costs more than the copy.

    Args:
        x: (N, C, H, W), which is overwritten.
        stay: bool (N,).

    Returns:
        (n, C, H, W), a view of the front of ``x``, and int64 (n,), which images these are, no longer in order.
    """
    count = int(stay.sum())
    order = torch.arange(count, device=x.device)
    free, late = (~stay[:count]).nonzero()[:, 0], stay[count:].nonzero()[:, 0] + count
    order[free] = late
    for target, source in zip(free.tolist(), late.tolist(), strict=True):
        x[target].copy_(x[source])
    return x[:count], order


def run_block(
    branch: Layer,
    x: Tensor,
    skip: Tensor,
    decision: Decision,
    *,
    owner: nn.Module,
    finish: Layer = F.relu_,
    fused: Callable[[Tensor, Tensor], Tensor] | None = None,
    overwrite: bool = False,
) -> Tensor:
    """gate * F + (1 - gate) * skip with F = finish(branch(x) + skip), computed only where the gate is open.

    In training, where the gate carries a gradient, closed images run as well, but without gradient and with the running
    statistics of batch norm: their F enters only through gate * (F - skip), whose gradient is the gate's.

    Args:
        branch: what the block computes beside its skip path; may be called several times, for parts of the batch.
        x: (N, C, H, W), the input.
        skip: (N, C', H', W'), the input or its projection; the output of the block where it is closed.
        decision: of shape (N,).
        owner: the module whose mode and whose batch norms ``branch`` has.
        finish: applied in place to the sum.
        fused: F in one go for (x, skip), which it overwrites; used in evaluation on a CPU.
        overwrite: whether ``x`` may be overwritten. Used only without gradients.

    Returns:
        (N, C', H', W'); may be ``skip`` itself.
    """

    if is_exporting():
        return chosen_in_graph(lambda part, part_skip: finish(branch(part) + part_skip), x, skip, decision.gate)

    def run(part: Tensor, part_skip: Tensor) -> Tensor:
        with running_statistics(owner, owner.training and single_value(part_skip)):
            return finish(branch(part).add_(part_skip))

    return _run_chosen(run, x, skip, decision, owner, fused, overwrite)


def run_whole(block: Layer, x: Tensor, decision: Decision, *, owner: nn.Module) -> Tensor:
    """gate * block(x) + (1 - gate) * x for a block that adds its input by itself, computed only where the gate is open.

    Training is as in ``run_block``.

    Args:
        block: gives its output for parts of the batch, without a mark on them.
        x: (N, ...), of any number of dimensions; is not overwritten.
        decision: of shape (N,).
        owner: the module whose mode and whose batch norms ``block`` has.

    Returns:
        The shape of ``x``; may be ``x`` itself.
    """

    if is_exporting():
        return chosen_in_graph(lambda part, _: block(part), x, x, decision.gate)

    def run(part: Tensor, _: Tensor) -> Tensor:
        with running_statistics(owner, owner.training and part.dim() == 4 and single_value(part)):
            return block(part)

    return _run_chosen(run, x, x, decision, owner)


def _run_chosen(
    run: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    skip: Tensor,
    decision: Decision,
    owner: nn.Module,
    fused: Callable[[Tensor, Tensor], Tensor] | None = None,
    overwrite: bool = False,
) -> Tensor:
    gates = decision.gate.detach().tolist()
    rows = [i for i, gate in enumerate(gates) if gate != 0]
    if decision.relaxed and owner.training and gates:
        return _run_relaxed(run, x, skip, decision.gate, rows, owner)
    if not rows:
        return skip
    hard = all(gates[i] == 1 for i in rows)
    if hard and fused and x.device.type == "cpu":
        opened = [gate != 0 for gate in gates]
        return run_by_choice(lambda x, _, skip: fused(x, skip), x, skip, opened, idle=False, overwrite=overwrite)
    if len(rows) == len(gates) and hard:
        return run(x, skip)
    free, identity = not torch.is_grad_enabled(), skip is x
    if free and identity and not overwrite:
        skip = skip.clone()
    chosen = gather(x, rows)
    chosen_skip = chosen if identity else gather(skip, rows)
    out = run(chosen, chosen_skip)
    if not hard:
        out = _weigh(decision.gate[rows], out, chosen_skip)
    return scatter(skip, rows, out, in_place=free)


VIEWS_FROM = 1 << 18  # values of an image's map
PIECE, MOST = 1 << 20, 16  # values and number of the images that run together


Run = Callable[[Tensor, Any, Any], Tensor]  # images, what they chose, their part of skip


def run_by_choice(
    run: Run,
    x: Tensor,
    skip: Tensor | None,
    chosen: Sequence[Hashable],
    *,
    idle: Hashable = None,
    overwrite: bool = False,
) -> Tensor:
    """Runs images of a batch together that chose the same, without gradients.

    On a CPU, images of large maps run one by one, as views: copying them to another place costs more than it saves.

    Args:
        run: for images x, what they chose, and their part of ``skip`` gives their output, in place of the latter.
        x: (N, C, H, W).
        skip: (N, C', H', W'), ``x`` itself or a tensor that may be overwritten; None if ``run`` needs none.
        chosen: of each image.
        idle: the choice with which ``skip`` is the output; without ``skip`` nobody makes it.
        overwrite: whether ``x`` may be overwritten.

    Returns:
        (N, C', H', W').
    """
    given, identity = x, skip is x
    if x.device.type == "cpu":  # the layout of packed convolutions
        x = x.contiguous(memory_format=torch.channels_last)
    if identity:
        skip = x if overwrite or x is not given else x.clone()
    if len(set(chosen)) == 1 and chosen[0] != idle:
        return _run_in_pieces(run, x, chosen[0], skip)
    if x.device.type == "cpu" and skip is not None and x[0].numel() >= VIEWS_FROM:
        for part, choice, total in zip(x.split(1), chosen, skip.split(1), strict=True):
            if choice != idle:
                run(part, choice, total)
        return skip
    out = skip
    for choice in set(chosen) - {idle}:
        rows = [i for i, each in enumerate(chosen) if each == choice]
        part = gather(x, rows)
        total = part if identity else None if skip is None else gather(skip, rows)
        part = _run_in_pieces(run, part, choice, total)
        out = part.new_empty(len(x), *part.shape[1:]) if out is None else out
        scatter(out, rows, part, in_place=True)
    assert out is not None  # without skip, somebody chose something
    return out


def _run_in_pieces(run: Run, x: Tensor, choice: Hashable, skip: Tensor | None) -> Tensor:
    """``run``, on a CPU for a few images at a time.

    What lies between the layers of a block is then small enough for memory that the process has already: new memory, a
    page at a time, can take as long as the convolutions. There are few sizes of pieces, whatever number of images chose
    the same: oneDNN compiles a kernel for each size that a layer meets, and keeps a limited number of them.
    """
    if x.device.type != "cpu" or skip is None:
        return run(x, choice, skip)
    most = min(max(PIECE // x[0].numel(), 1), MOST)
    for part, total in zip(x.split(most), skip.split(most), strict=True):
        run(part, choice, total)
    return skip


def _run_relaxed(
    run: Callable[[Tensor, Tensor], Tensor], x: Tensor, skip: Tensor, gate: Tensor, rows: list[int], owner: nn.Module
) -> Tensor:
    if len(rows) == len(gate):
        return _weigh(gate, run(x, skip), skip)
    others = sorted(set(range(len(gate))) - set(rows))
    with without_gradient(), running_statistics(owner):
        out = run(gather(x, others), gather(skip, others))
    if rows:
        chosen = run(gather(x, rows), gather(skip, rows))
        out = scatter(scatter(torch.zeros_like(skip), others, out), rows, chosen)
    return _weigh(gate, out, skip)


@contextmanager
def without_gradient() -> Iterator[None]:
    """``torch.no_grad`` for a part of a training step, under autocast too: older torch (2.6) keeps the weights that
    are cast inside for the rest of the step, which then has no gradient for them."""
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_autocast_cache_enabled(cached)


def _weigh(gate: Tensor, out: Tensor, skip: Tensor) -> Tensor:
    gate = gate.to(out.dtype).reshape(-1, *[1] * (out.dim() - 1))
    return gate * out + (1 - gate) * skip


def _channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
