"""Reading ``.pkl`` checkpoints that strangers made: they get no way to run code, to hang or to fill the memory."""

import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from .bounded_pickle import BoundedUnpickler, Name, load_bounded, require_key, require_keys, require_plain, title_of

# Files written by Python 2 and by numpy 1 use the old module names.
_RENAMED = {
    "__builtin__": "builtins",
    "numpy.core.multiarray": "numpy._core.multiarray",
    "numpy.core.numeric": "numpy._core.numeric",
}
_ENCODINGS = ("latin1", "latin-1", "iso-8859-1", "ascii", "utf8", "utf-8")
# Kinds of numbers and fixed texts, with their size in bytes (texts: in characters).
_DTYPE = re.compile(r"[|<>=]?(?:\?|[biufc]\d{1,2}|[SU]\d{1,5})")


class _Unpickler(BoundedUnpickler):
    """Numbers, text, containers and numpy arrays."""

    def find_class(self, module: str, name: str) -> Name:
        found = Name(_RENAMED.get(module, module), name)
        if found.path not in CALLS and found.path != "numpy.ndarray":
            raise pickle.UnpicklingError(
                f"the pickle asks for {module}.{name}, which a checkpoint of arrays does not need. "
                "It may try to run code; convert it to a .pth of tensors if you trust its author."
            )
        return found

    def call(self, function: Name, arguments: tuple) -> Any:
        if function.path not in CALLS:
            raise pickle.UnpicklingError(f"it calls {function}")
        return CALLS[function.path](self, *arguments)

    def build(self, instance: Any, state: Any) -> None:
        build_numpy(self, instance, state)


def build_numpy(reader: BoundedUnpickler, instance: Any, state: Any) -> None:
    """Set the state of an array, a dtype, or the attributes of an OrderedDict.

    Raises:
        UnpicklingError: ``state`` is of another form than numpy writes, or declares more than it holds.
    """
    if isinstance(instance, np.ndarray):
        _, shape, dtype, _, data = state
        data = data.encode("latin1") if isinstance(data, str) else data
        _require_size(shape, dtype, data)
        if instance.size:
            raise pickle.UnpicklingError("it writes over an array")
        reader.spend(len(data))
        instance.__setstate__((1, shape, dtype, bool(state[3]), bytes(data)))  # type: ignore[arg-type]  # Python's bool
    elif isinstance(instance, np.dtype):
        plain = isinstance(state, tuple) and 8 <= len(state) <= 9 and state[0] in (3, 4) and state[2:5] == (None,) * 3
        if not plain or state[1] not in ("<", ">", "|", "=") or state[5] not in (-1, instance.itemsize):
            raise pickle.UnpicklingError("it describes a structure of numbers")
        instance.__setstate__((*state[:5], state[5], state[6], 0))  # type: ignore[attr-defined]
    elif isinstance(instance, OrderedDict) and isinstance(state, dict) and all(type(k) is str for k in state):
        vars(instance).update(state)
    elif state:
        raise pickle.UnpicklingError(f"it sets the state of {type(instance).__name__}")


def _require_size(shape: Any, dtype: Any, data: Any) -> None:
    if not isinstance(dtype, np.dtype) or dtype.itemsize == 0 or dtype.hasobject:
        raise pickle.UnpicklingError("it has an array of objects or of nothing")
    if not isinstance(shape, tuple) or len(shape) > 32 or not all(type(n) is int and n >= 0 for n in shape):
        raise pickle.UnpicklingError("it has an array whose shape is none")
    count = 1
    for side in shape:
        count *= side
    if not isinstance(data, bytes | bytearray) or count * dtype.itemsize != len(data):
        raise pickle.UnpicklingError(
            f"it declares an array of shape {shape}, whose {count * dtype.itemsize} bytes are not there"
        )


def _bytes(kind: type) -> Callable:
    def make(reader: BoundedUnpickler, value: Any = b"", encoding: Any = "latin1", errors: Any = "strict") -> Any:
        if isinstance(value, str):
            value = _encode(reader, value, encoding)
        if not isinstance(value, bytes | bytearray | list | tuple):
            raise pickle.UnpicklingError(f"it makes {kind.__name__} of a {type(value).__name__}")
        reader.spend(len(value))
        return kind(value)

    return make


def _encode(reader: BoundedUnpickler, text: Any, encoding: Any = "utf-8", errors: Any = "strict") -> bytes:
    if not isinstance(text, str) or encoding not in _ENCODINGS:
        raise pickle.UnpicklingError(f"it encodes {type(text).__name__} as {encoding!r}")
    reader.spend(len(text))
    return text.encode(encoding)


def _container(kind: type) -> Callable:
    def make(reader: BoundedUnpickler, values: Any = ()) -> Any:
        if not isinstance(values, list | tuple | set | frozenset):
            raise pickle.UnpicklingError(f"it makes a {kind.__name__} of a {type(values).__name__}")
        reader.spend(8 * len(values))
        return kind(require_keys(values) if kind in (set, frozenset) else values)

    return make


def _mapping(kind: type) -> Callable:
    def make(reader: BoundedUnpickler, values: Any = ()) -> Any:
        pairs = list(values.items()) if isinstance(values, dict) else values
        if not isinstance(pairs, list | tuple) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
            raise pickle.UnpicklingError(f"it makes a {kind.__name__} of a {type(values).__name__}")
        reader.spend(16 * len(pairs))
        return kind([(require_key(key), value) for key, value in pairs])

    return make


def _number(kind: type) -> Callable:
    def make(reader: BoundedUnpickler, *values: Any) -> Any:
        if len(values) > 2 or not all(
            isinstance(v, int | float) or (isinstance(v, str) and len(v) < 400) for v in values
        ):
            raise pickle.UnpicklingError(f"it makes a {kind.__name__} of something that is no number")
        return kind(*values)

    return make


def _slice(reader: BoundedUnpickler, *values: Any) -> slice:
    if not 1 <= len(values) <= 3 or not all(value is None or type(value) is int for value in values):
        raise pickle.UnpicklingError("it makes a slice of something that is no number")
    return slice(*values)


def _dtype(reader: BoundedUnpickler, name: Any, *flags: Any) -> np.dtype:
    text = name.decode("latin1") if isinstance(name, bytes) else name
    if not isinstance(text, str) or not _DTYPE.fullmatch(text):
        raise pickle.UnpicklingError(f"it has an array of type {name!r:.40}: numbers and fixed texts are taken")
    return np.dtype(text, copy=True)


def _empty_array(reader: BoundedUnpickler, kind: Any, shape: Any, code: Any) -> np.ndarray:
    """What numpy makes first; its state brings shape, type and numbers."""
    if not isinstance(kind, Name) or kind.path != "numpy.ndarray" or shape != (0,):
        raise pickle.UnpicklingError("it has an array that numpy did not write")
    return np.empty(0, np.int8)


def _scalar(reader: BoundedUnpickler, dtype: Any, data: Any) -> np.generic:
    data = data.encode("latin1") if isinstance(data, str) else data
    _require_size((1,), dtype, data)
    return np.frombuffer(data, dtype)[0]


def _from_buffer(reader: BoundedUnpickler, data: Any, dtype: Any, shape: Any, order: Any, *axes: Any) -> np.ndarray:
    _require_size(shape, dtype, data)
    if order not in ("C", "F", "K") or any(axis is not None for axis in axes):
        raise pickle.UnpicklingError("it has an array in an order that is none")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if order == "F" else "C")


# All that a checkpoint of arrays needs. A name that is not listed cannot be called.
CALLS: dict[str, Callable] = {
    **{f"builtins.{kind.__name__}": _container(kind) for kind in (list, tuple, set, frozenset)},
    **{f"builtins.{kind.__name__}": _bytes(kind) for kind in (bytes, bytearray)},
    **{f"builtins.{kind.__name__}": _number(kind) for kind in (int, float, complex)},
    "builtins.dict": _mapping(dict),
    "builtins.slice": _slice,
    "collections.OrderedDict": _mapping(OrderedDict),
    "_codecs.encode": _encode,
    "numpy.dtype": _dtype,
    "numpy._core.multiarray._reconstruct": _empty_array,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy._core.numeric._frombuffer": _from_buffer,
}


def load(file: IO[bytes]) -> Any:
    """Unpickle numbers, text, containers and numpy arrays from ``file``.

    Python 2 pickles (Caffe2, MSRA weights) are decoded as latin-1. Time and memory are bounded by the size of the file.

    Raises:
        pickle.UnpicklingError: the file asks for anything else, or is no pickle.
    """
    title = title_of(file)
    result = load_bounded(_Unpickler(file), title)
    try:
        require_plain(result)
    except pickle.UnpicklingError as error:
        raise pickle.UnpicklingError(f"{title} is refused: {error}") from error
    return result
