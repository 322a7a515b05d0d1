"""Names in config files -> Python objects."""

import pydoc
from typing import Any

from fvcore.common.registry import Registry

__all__ = ["Registry", "locate"]


def locate(name: str) -> Any:
    """Return the object with the dotted path ``name``, e.g. ``torch.optim.sgd.SGD``.

    Raises:
        ImportError: nothing importable has that path.
    """
    found = pydoc.locate(name)
    if found is None:
        raise ImportError(f"'{name}' cannot be imported: check its spelling and that its package is installed.")
    return found
