"""An unpickler whose time and memory are bounded by the size of the file, for files that strangers made.

Python's own reserves what a file declares before it reads it, hashes whatever is a key (a few hundred bytes of nested
tuples take for ever), and hands out classes to call with any arguments. Here keys are plain values, calls go through a
function that the subclass gives, and what is declared has to be in the file. The pure Python implementation of the
standard library does the reading; a subclass decides what names mean.
"""

import io
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import IO, Any, ClassVar

import numpy as np

UnpicklingError = pickle.UnpicklingError

DEPTH = 100  # of containers in one another
SPARE = 1 << 20  # work that every file may ask for, however small it is
_SMALL_INTEGER = 2**61 - 1  # from here on, different integers share a hash


class Name:
    """A module's attribute that a pickle asks for; not the thing itself, so that nothing can call it but us."""

    def __init__(self, module: str, name: str) -> None:
        self.path = f"{module}.{name}"

    def __repr__(self) -> str:
        return self.path


class _Measured:
    """A file of which no more is asked for than it has."""

    def __init__(self, file: IO[bytes], end: int) -> None:
        self._file, self._end = file, end

    def _require(self, count: int) -> None:
        left = self._end - self._file.tell()
        if count > left:
            raise UnpicklingError(f"it declares {count} bytes where {left} are left: it is cut off or damaged")

    def read(self, count: int) -> bytes:
        self._require(count)
        return self._file.read(count)

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readline(self) -> bytes:
        return self._file.readline(self._end)


class BoundedUnpickler(pickle._Unpickler):
    """Reads one pickle from a file that can be positioned.

    Subclasses give ``call`` and may give ``build`` and ``persistent_load``.
    """

    # What the parent has and type checkers do not know.
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]

    def __init__(self, file: IO[bytes]) -> None:
        start = file.tell()
        end = file.seek(0, io.SEEK_END)
        file.seek(start)
        super().__init__(_Measured(file, end), encoding="latin1")
        self._work = 4 * (end - start) + SPARE

    def find_class(self, module: str, name: str) -> Name:
        return Name(module, name)

    def call(self, function: Name, arguments: tuple) -> Any:
        """What a pickle gets for a call of ``function``."""
        raise UnpicklingError(f"it calls {function}")

    def build(self, instance: Any, state: Any) -> None:
        """Give ``instance`` its state."""
        raise UnpicklingError(f"it sets the state of {type(instance).__name__}")

    def spend(self, amount: int) -> None:
        """Count work that is done for one instruction.

        Raises:
            UnpicklingError: together it is more than a file of this size needs.
        """
        self._work -= amount
        if self._work < 0:
            raise UnpicklingError("it asks for far more memory than its size: it is made to exhaust the machine")

    # ------------------------------------------------------------------------------------------------- instructions
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)

    def _reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack[-1]
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise UnpicklingError("it calls something that is no function")
        self.stack[-1] = self.call(function, arguments)

    def _new_object(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise UnpicklingError("it makes an object of something that is no class")
        self.append(self.call(function, arguments))

    def _build(self) -> None:
        state, instance = self.stack.pop(), self.stack[-1]
        self.build(instance, state)

    def _refused(self) -> None:
        raise UnpicklingError("it has an instruction that arrays, numbers and text do not need")

    def _set_items(self, pairs: Iterator[tuple[Any, Any]]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise UnpicklingError("it writes items into something that is no dict")
        for key, value in pairs:
            require_key(key)
            target[key] = value

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items(iter([(key, value)]))

    def _set_many(self) -> None:
        items = self.pop_mark()
        self._set_items(_pairs(items))

    def _dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set_items(_pairs(items))

    def _append(self) -> None:
        value = self.stack.pop()
        self._extend([value])

    def _append_many(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, values: list) -> None:
        if type(self.stack[-1]) is not list:
            raise UnpicklingError("it appends to something that is no list")
        self.stack[-1].extend(values)

    def _add_many(self) -> None:
        items = self.pop_mark()
        if type(self.stack[-1]) is not set:
            raise UnpicklingError("it adds to something that is no set")
        self.stack[-1].update(require_keys(items))

    def _frozenset(self) -> None:
        items = self.pop_mark()
        self.append(frozenset(require_keys(items)))

    def _bytearray(self) -> None:
        count = int.from_bytes(self.read(8), "little")
        self.append(bytearray(self.read(count)))

    def _bytes8(self) -> None:
        self.append(self.read(int.from_bytes(self.read(8), "little")))

    for _opcode, _method in {
        pickle.REDUCE: _reduce,
        pickle.NEWOBJ: _new_object,
        pickle.BUILD: _build,
        pickle.SETITEM: _set_item,
        pickle.SETITEMS: _set_many,
        pickle.DICT: _dict,
        pickle.APPEND: _append,
        pickle.APPENDS: _append_many,
        pickle.ADDITEMS: _add_many,
        pickle.FROZENSET: _frozenset,
        pickle.BYTEARRAY8: _bytearray,
        pickle.BINBYTES8: _bytes8,
        **dict.fromkeys(
            (pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER,
             pickle.READONLY_BUFFER),
            _refused,
        ),
    }.items():  # fmt: skip
        dispatch[_opcode[0]] = _method
    del _opcode, _method


def _pairs(items: list) -> Iterator[tuple[Any, Any]]:
    if len(items) % 2:
        raise UnpicklingError("it has a key without a value")
    return zip(items[::2], items[1::2], strict=True)


def require_key(key: Any) -> Any:
    """``key``, if its hash is cheap and hard to collide with.

    Raises:
        UnpicklingError: it is another thing than text, bytes, a moderate integer, None, or a short tuple of these.
    """
    kind = type(key)
    if kind is str or kind is bytes or key is None or kind is bool:
        return key
    if kind is int and -_SMALL_INTEGER < key < _SMALL_INTEGER:
        return key
    if kind is tuple and len(key) <= 8 and all(type(part) is not tuple for part in key):
        for part in key:
            require_key(part)
        return key
    raise UnpicklingError(f"a key of type {kind.__name__} is refused: keys are text or numbers")


def require_keys(items: Any) -> list:
    """A list of ``items``, each of which may be a key."""
    return [require_key(item) for item in items]


def load_bounded(reader: BoundedUnpickler, title: str) -> Any:
    """What ``reader`` reads.

    Raises:
        UnpicklingError: for whatever reason it cannot be read; names ``title``.
    """
    try:
        return reader.load()
    except UnpicklingError as error:
        raise UnpicklingError(f"{title} is refused: {error}") from error
    except (EOFError, ValueError, LookupError, AttributeError, TypeError, OverflowError, AssertionError) as error:
        raise UnpicklingError(f"{title} is not a readable pickle: {str(error) or type(error).__name__}") from error
    except (MemoryError, RecursionError) as error:
        raise UnpicklingError(f"{title} is refused: {type(error).__name__} while reading it") from error
    except Exception as error:  # struct.error, UnicodeError and what else a damaged byte leads to
        raise UnpicklingError(f"{title} is not a readable pickle: {error}") from error


Check = Callable[[Any], bool]

_LEAVES = (type(None), bool, int, float, complex, str, bytes, bytearray, slice, np.ndarray, np.generic)


def require_plain(value: Any, leaf: Check = lambda value: False) -> None:
    """Refuse a value that is made of anything but containers and plain values, that contains itself, is nested deeper
    than ``DEPTH``, or would have more than 50 million parts if those that occur several times were written out.

    Args:
        leaf: whether a value of another type is welcome.

    Raises:
        UnpicklingError: says which.
    """
    sizes: dict[int, int] = {}  # of containers that are done
    open_: set[int] = set()  # containers that we are in
    stack: list[tuple[Any, Iterator, list[int]]] = []

    def enter(container: Any) -> None:
        if id(container) in open_:
            raise UnpicklingError("it holds a container that contains itself")
        if len(stack) >= DEPTH:
            raise UnpicklingError(f"it is nested more than {DEPTH} deep")
        open_.add(id(container))
        stack.append((container, _parts(container), [1]))

    roots = [value]
    enter(roots)
    while stack:
        container, parts, count = stack[-1]
        for part in parts:
            if isinstance(part, list | tuple | dict | set | frozenset):
                if id(part) not in sizes:
                    enter(part)
                    break
                count[0] += sizes[id(part)]
            elif isinstance(part, _LEAVES) or leaf(part):
                count[0] += 1
            else:
                raise UnpicklingError(f"it holds {part if isinstance(part, Name) else type(part).__name__}")
            if count[0] > 50_000_000:
                raise UnpicklingError("it repeats its parts in one another until they are more than memory can hold")
        else:
            stack.pop()
            open_.discard(id(container))
            sizes[id(container)] = count[0]
            if stack:
                stack[-1][2][0] += count[0]


def _parts(container: Any) -> Iterator[Any]:
    if isinstance(container, dict):
        extra = vars(container) if isinstance(container, OrderedDict) else {}
        for mapping in (container, extra):
            for key, value in mapping.items():
                yield key
                yield value
    else:
        yield from container


def title_of(file: Any) -> str:
    """Name of a file, for messages."""
    name = getattr(file, "name", None)
    return os.fspath(name) if isinstance(name, str | os.PathLike) else "the file"
