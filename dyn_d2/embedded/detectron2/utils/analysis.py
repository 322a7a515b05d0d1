"""Counts of operations and parameters of models that take Detectron2's inputs."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import fvcore.nn
import torch
from fvcore.nn import parameter_count as parameter_count
from fvcore.nn import parameter_count_table as parameter_count_table
from torch import nn


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested containers, ``Instances`` and structures with a field ``tensor``."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif hasattr(value, "get_fields"):
        yield from _tensors(value.get_fields())
    elif hasattr(value, "tensor"):
        yield value.tensor


def _replaced(value: Any, tensors: Iterator[torch.Tensor]) -> Any:
    """``value`` (nested dicts, lists and tuples) with its tensors exchanged, in the order of ``_tensors``."""
    if isinstance(value, torch.Tensor):
        return next(tensors)
    if isinstance(value, dict):
        return {key: _replaced(part, tensors) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_replaced(part, tensors) for part in value)
    return value


class _FlatModel(nn.Module):
    """A model as tracing wants it: tensors in, tensors out."""

    def __init__(self, model: nn.Module, inputs: Any):
        super().__init__()
        self.model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        self._inputs = inputs if isinstance(inputs, tuple) else (inputs,)
        self.flat_inputs = tuple(_tensors(self._inputs))

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(_tensors(self.model(*_replaced(self._inputs, iter(tensors)))))


class FlopCountAnalysis(fvcore.nn.FlopCountAnalysis):
    """fvcore's analysis for models that take and return more than tensors.

    One multiply-add counts as one. What a detector computes depends on its input: average over several.
    """

    def __init__(self, model: nn.Module, inputs: Any):
        """``inputs``: the argument of the model (e.g. a list of data dicts), or a tuple of its arguments."""
        flat = _FlatModel(model, inputs)
        super().__init__(flat, flat.flat_inputs)
        # Left out, since it can be folded into the convolution, and a frozen one is done by other operators.
        self.set_op_handle("aten::batch_norm", lambda inputs, outputs: Counter())
        self.unsupported_ops_warnings(False).uncalled_modules_warnings(False)


def flop_count_operators(model: nn.Module, inputs: list) -> dict[str, float]:
    """Operator -> 10^9 multiply-adds, in evaluation mode, for one list of data dicts."""
    was_training = model.training
    model.eval()
    try:
        return {name: count / 1e9 for name, count in FlopCountAnalysis(model, inputs).by_operator().items()}
    finally:
        model.train(was_training)
