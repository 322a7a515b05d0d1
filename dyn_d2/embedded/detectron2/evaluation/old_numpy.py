"""Lets packages that were written for older numpy run on a current one."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np


class _OldNumpy:
    """numpy with names that it has dropped and lvis 0.5.3 and cityscapesscripts 2.3 still use."""

    float = float  # until 1.23
    in1d = staticmethod(lambda *args, **kwargs: np.isin(*args, **kwargs).ravel())  # until 2.3

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


@contextmanager
def old_numpy_in(module: ModuleType) -> Iterator[None]:
    """Give one module the old names while the block runs; numpy itself stays as it is."""
    numpy = module.np
    module.np = _OldNumpy()
    try:
        yield
    finally:
        module.np = numpy
