"""Reading ``.pkl`` checkpoints that strangers made, without giving them a way to run code."""

import importlib
import pickle
from typing import IO, Any

# All that a checkpoint of arrays needs. A name that is not listed is not imported, so a pickle cannot call it.
_ALLOWED = {
    "builtins": {"set", "frozenset", "slice", "complex", "bytearray", "bytes", "list", "dict", "tuple", "int", "float"},
    "collections": {"OrderedDict"},
    "_codecs": {"encode"},
    "numpy": {"ndarray", "dtype"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.numeric": {"_frombuffer"},
}
# Files written by Python 2 and by numpy 1 use the old module names.
_RENAMED = {
    "__builtin__": "builtins",
    "numpy.core.multiarray": "numpy._core.multiarray",
    "numpy.core.numeric": "numpy._core.numeric",
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = _RENAMED.get(module, module)
        if name not in _ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(
                f"refused: the pickle asks for {module}.{name}, which a checkpoint of arrays does not need. "
                "It may try to run code; convert it to a .pth of tensors if you trust its author."
            )
        return getattr(importlib.import_module(module), name)


def load(file: IO[bytes]) -> Any:
    """Unpickle numbers, text, containers and numpy arrays from ``file``.

    Python 2 pickles (Caffe2, MSRA weights) are decoded as latin-1.

    Raises:
        pickle.UnpicklingError: the file asks for anything else, or is no pickle.
    """
    try:
        return _Unpickler(file, encoding="latin1").load()
    except (EOFError, ValueError, IndexError, KeyError, AttributeError, UnicodeDecodeError) as error:
        name = getattr(file, "name", "the file")
        raise pickle.UnpicklingError(f"{name} is not a readable pickle: {error}") from error
