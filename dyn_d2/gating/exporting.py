"""Gates in a form that can be written into a file: the choice is part of the graph, not of Python.

Ordinary execution looks at the decisions in Python and runs what they chose; a graph cannot do that. Inside of
:func:`exporting` the same blocks say it with ``torch.cond``, which ONNX writes as ``If``: the runtime looks at the gate
and runs one of two branches, so that a closed block costs nothing. Such a graph takes one image at a time, as an ``If``
has one condition. The dense form runs everything and multiplies by the gates; it takes batches.

Costs are not counted: sizes may be symbols, and nobody reads the account of a graph.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from dyn_d2.method import DENSE

_form: list[str] = []  # a plain list: torch.cond traces the code that asks


@contextmanager
def exporting(form: str) -> Iterator[None]:
    """Inside the block, gated networks run in a form that can be traced.

    Args:
        form: ``SKIPS`` or ``DENSE``.
    """
    _form.append(form)
    try:
        yield
    finally:
        _form.pop()


def is_exporting() -> bool:
    """Whether ``exporting`` is around."""
    return bool(_form)


def chosen(run: Callable[[Tensor, Tensor], Tensor], x: Tensor, skip: Tensor, gate: Tensor) -> Tensor:
    """gate * run(x, skip) + (1 - gate) * skip, traceable.

    Args:
        run: may neither change its inputs nor ask in Python for values of tensors.
        x: (N, ...), N = 1 where blocks are skipped.
        skip: (N, ...), the shape of what ``run`` gives.
        gate: (N,).
    """
    if _form[-1] == DENSE:
        weight = gate.to(skip.dtype).reshape(-1, *[1] * (skip.dim() - 1))
        return weight * run(x, skip) + (1 - weight) * skip

    def opened(x: Tensor, skip: Tensor) -> Tensor:
        return run(x, skip)

    def closed(x: Tensor, skip: Tensor) -> Tensor:
        return skip.clone()

    return torch.cond(gate[0] != 0, opened, closed, (x, skip))


def added(run: Callable[[Tensor], Tensor], x: Tensor, total: Tensor, gate: Tensor) -> Tensor:
    """total + gate * run(x), traceable; arguments as for ``chosen``."""
    if _form[-1] == DENSE:
        return total + gate.to(total.dtype).reshape(-1, *[1] * (total.dim() - 1)) * run(x)

    def opened(x: Tensor, total: Tensor, gate: Tensor) -> Tensor:
        return total + gate.to(total.dtype) * run(x)

    def closed(x: Tensor, total: Tensor, gate: Tensor) -> Tensor:
        return total.clone()

    return torch.cond(gate[0] != 0, opened, closed, (x, total, gate))
