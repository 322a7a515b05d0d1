"""What a checkpoint file has to be before anything of it is used.

``torch.load(weights_only=True)`` runs no code of a file, but it hashes whatever is a key, reserves what a file
declares, and returns sparse or meta tensors, text or nothing where weights should be. :func:`require_sound_file` goes
through the instructions of a file without making a tensor; :func:`require_weights` and :func:`require_trainer_state`
look at what was read.
"""

import math
import os
import zipfile
from collections.abc import Mapping
from typing import IO, Any

import numpy as np
import torch

from dyn_d2.utils.bounded_pickle import BoundedUnpickler, Name, UnpicklingError, load_bounded, require_plain
from dyn_d2.utils.errors import UserError
from dyn_d2.utils.restricted_pickle import CALLS, build_numpy

_ITEM_SIZES = {
    **dict.fromkeys(("Untyped", "Char", "Byte", "Bool"), 1),
    **dict.fromkeys(("Half", "BFloat16", "Short"), 2),
    **dict.fromkeys(("Float", "Int"), 4),
    **dict.fromkeys(("Double", "Long", "ComplexFloat"), 8),
    "ComplexDouble": 16,
}
_MAPPINGS = {"collections.Counter": "builtins.dict", "collections.defaultdict": "collections.OrderedDict"}
_DENSE = {f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3")}
_PARAMETERS = {f"torch._utils._rebuild_parameter{ending}" for ending in ("", "_with_state")}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# A tensor may show one number many times; up to here it costs nothing worth mentioning.
_EXPANDED = 1 << 24


class CheckpointError(UserError):
    """A checkpoint cannot be read, or does not fit the model; the message names the remedy."""


class InvalidCheckpoint(CheckpointError):
    """A file that is no checkpoint; the message names it and what is wrong with it."""


class _Stub:
    """What a call would have made."""

    def __init__(self, path: str, numel: int = 0) -> None:
        self.path, self.numel = path, numel


class _Scanner(BoundedUnpickler):
    """Goes through the instructions of a pickle of torch.save without making a tensor.

    Attributes:
        storages: key -> bytes that the tensors of the file need.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.storages: dict[str, int] = {}

    def persistent_load(self, pid: Any) -> _Stub:
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], Name):
            raise UnpicklingError("it refers to something that is no storage")
        kind = pid[1].path.rpartition(".")[2].removesuffix("Storage")
        key, location, numel = pid[2:5]
        if kind not in _ITEM_SIZES or type(numel) is not int or numel < 0 or not isinstance(key, str | int):
            raise UnpicklingError(f"it has a tensor of the type {pid[1]}, which no weights of a model have")
        if not isinstance(location, str) or location.startswith("meta"):
            raise UnpicklingError("it has tensors without numbers (of the device meta)")
        size = numel * _ITEM_SIZES[kind]
        self.storages[str(key)] = max(size, self.storages.get(str(key), 0))
        return _Stub("storage", numel)

    def call(self, function: Name, arguments: tuple) -> Any:
        path = function.path
        if path.replace("numpy.core.", "numpy._core.") in CALLS:
            return CALLS[path.replace("numpy.core.", "numpy._core.")](self, *arguments)
        if path in _MAPPINGS:
            return CALLS[_MAPPINGS[path]](self, *[a for a in arguments if isinstance(a, dict)])
        if path in (
            "torch._utils._rebuild_tensor_v2",
            "torch._utils._rebuild_tensor",
            "torch._utils._rebuild_tensor_v3",
        ):
            return _tensor(*arguments)
        if path in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
            return arguments[0]
        if path.startswith("torch._utils._rebuild") or ".sparse." in path:
            kind = path.rpartition(".")[2].removeprefix("_rebuild_")
            raise UnpicklingError(f"it has a tensor of the kind {kind}, which no weights of a model are")
        return _Stub(path)

    def build(self, instance: Any, state: Any) -> None:
        if not isinstance(instance, _Stub):
            build_numpy(self, instance, state)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Stub:
    """Whether a view lies within its storage."""
    whole = [offset, *size, *stride] if isinstance(size, tuple) and isinstance(stride, tuple) else [None]
    if not isinstance(storage, _Stub) or len(size) != len(stride) or len(size) > 64:
        raise UnpicklingError("it has a tensor without numbers")
    if not all(type(number) is int and number >= 0 for number in whole):
        raise UnpicklingError("it has a tensor whose size is none")
    numel = math.prod(size)
    last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
    if numel and last >= storage.numel:
        raise UnpicklingError(f"it has a tensor of size {size}, whose numbers are not there")
    if numel > max(storage.numel, _EXPANDED):
        raise UnpicklingError(f"it has a tensor of size {size}, made of {storage.numel} numbers")
    return _Stub("tensor", numel)


def require_sound_file(path: str | os.PathLike) -> None:
    """Look at a file of ``torch.save`` before ``torch.load`` does.

    Raises:
        FileNotFoundError: no such file.
        InvalidCheckpoint: it is none, declares more than it holds, has compressed parts, or parts that no weights need.
    """
    with open(path, "rb"):  # whoever cannot open it learns why
        pass
    try:
        if zipfile.is_zipfile(path):
            _scan_zip(path)
        else:
            _scan_legacy(path)
    except Exception as error:  # zipfile raises errors of many types at damaged archives
        what = str(error).removeprefix("its content ").removeprefix("is refused: ").rstrip(".")
        raise InvalidCheckpoint(f"checkpoint {path} was refused: {_kind_of_file(path)}{what}.") from error


def _kind_of_file(path: str | os.PathLike) -> str:
    """What a refused file seems to be, in words; "" where the reason alone says enough."""
    with open(path, "rb") as file:
        start = file.read(4)
    if start == b"PK\x03\x04" and not zipfile.is_zipfile(path):
        return "it is cut off, as by a copy or download that did not end: "
    return "" if start[:1] == b"\x80" or start[:2] == b"PK" or not start else "it is no file of torch.save: "


def _scan_zip(path: str | os.PathLike) -> None:
    size = os.path.getsize(path)
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise UnpicklingError("it has compressed parts, which torch.save does not write")
        if sum(entry.file_size for entry in entries) > size:
            raise UnpicklingError(f"it declares more bytes than the {size} it has")
        sizes = {entry.filename: entry.file_size for entry in entries}
        for entry in entries:
            folder, _, name = entry.filename.rpartition("/")
            if name != "data.pkl":
                continue
            with archive.open(entry) as file:
                scanner = _scan(file)
            for key, needed in scanner.storages.items():
                there = sizes.get(f"{folder}/data/{key}")
                if there is None or there < needed:
                    raise UnpicklingError(
                        f"a tensor needs {needed} bytes, of which {there or 0} are there: it is damaged"
                    )


def _scan_legacy(path: str | os.PathLike) -> None:
    """Five pickles one after the other, then the numbers."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        if _scan(file, plain=False) != _LEGACY_MAGIC:
            raise UnpicklingError("it is neither of the formats of torch.save")
        for _ in range(2):  # version and machine
            _scan(file, plain=False)
        scanner = _scan(file)
        if sum(scanner.storages.values()) > size:
            raise UnpicklingError(f"it declares {sum(scanner.storages.values())} bytes of numbers, but has {size}")


def _scan(file: IO[bytes], plain: bool = True) -> Any:
    """The scanner of a pickle that holds what a checkpoint may hold; with ``plain`` False, what the pickle holds."""
    scanner = _Scanner(file)
    value = load_bounded(scanner, "its content")
    if not plain:
        return value
    require_plain(value, leaf=lambda part: isinstance(part, _Stub | Name))
    return scanner


def require_weights(weights: Any, path: str | os.PathLike) -> dict[str, Any]:
    """The name -> tensor or array of a model, if that is what ``weights`` is.

    Raises:
        InvalidCheckpoint: it is no dict, or an entry is no dense tensor of numbers; names up to five.
    """
    if not isinstance(weights, Mapping):
        raise InvalidCheckpoint(f"checkpoint {path} holds a {type(weights).__name__} in place of weights by name.")
    wrong = [(name, what) for name, value in weights.items() if (what := _what_is_wrong(name, value))]
    if wrong:
        listed = "; ".join(f"{name!r:.80} is {what}" for name, what in wrong[:5])
        more = f" (and {len(wrong) - 5} more)" if len(wrong) > 5 else ""
        raise InvalidCheckpoint(
            f"checkpoint {path} has entries that are no weights: {listed}{more}. Save the state_dict of the model anew."
        )
    return dict(weights)


def _what_is_wrong(name: Any, value: Any) -> str:
    if not isinstance(name, str):
        return f"named by a {type(name).__name__}"
    if isinstance(value, np.ndarray | np.generic):
        return "" if value.dtype.kind in "biuf" else f"an array of {value.dtype}"
    if not isinstance(value, torch.Tensor):
        return f"a {type(value).__name__}"
    if value.layout is not torch.strided:
        return "a sparse tensor"
    if value.is_meta:
        return "a tensor without numbers"
    if value.is_quantized or value.is_nested:
        return "a quantised or nested tensor"
    return ""


_LISTS_OF_NAMES = ("classes", "stuff_classes", "base_classes", "novel_classes")
_TEXTS = ("config", "stage", "classifier")
_TABLES = ("few_shot", "versions", "inputs", "policy")


def require_description(described: Any, path: str | os.PathLike) -> dict[str, Any]:
    """The "dyn_d2" entry of a checkpoint, if it is one that we could have written; {} where there is none.

    Raises:
        InvalidCheckpoint: it is no table, or a part of it is of another type.
    """
    if described is None:
        return {}
    wrong = _wrong_part(described) if isinstance(described, Mapping) else f"is a {type(described).__name__}"
    if wrong:
        raise InvalidCheckpoint(
            f'checkpoint {path}: its entry "dyn_d2", which says what it was trained for, {wrong}. The file was damaged '
            'or edited; without that entry (torch.load, del data["dyn_d2"], torch.save) it counts as one of others.'
        )
    return dict(described)


def _wrong_part(described: Mapping) -> str:
    for key in _LISTS_OF_NAMES:
        value = described.get(key)
        names = isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)
        if value is not None and not names:
            return f"has no list of names as {key!r}"
    for key, kind, said in [(key, str, "text") for key in _TEXTS] + [(key, Mapping, "table") for key in _TABLES]:
        value = described.get(key)
        if value is not None and not isinstance(value, kind):
            return f"has no {said} as {key!r}"
    if described.get("inputs") and not are_inputs(described["inputs"]):
        return "has no tables of fingerprints as 'inputs'"
    return ""


def are_inputs(value: Any) -> bool:
    """Whether ``value`` has the form of what ``engine/inputs.py`` says of data, files, weights; parts may be absent."""
    if not isinstance(value, Mapping):
        return False
    data = value.get("data", {})
    tables = [data, *(data.values() if isinstance(data, Mapping) else ())]
    texts = [*tables[1:], value.get("files", {}), value.get("weights", {})]
    return all(isinstance(table, Mapping) for table in (*tables, *texts)) and all(
        isinstance(key, str) and isinstance(text, str) for table in texts for key, text in table.items()
    )


def require_trainer_state(state: Any, optimizer: torch.optim.Optimizer | None, path: str | os.PathLike) -> None:
    """Whether the "trainer" entry of a checkpoint is what a trainer with ``optimizer`` can go on from.

    Raises:
        InvalidCheckpoint: it is of another form, or of another model's parameters.
    """
    remedy = "it cannot be resumed; give it as MODEL.WEIGHTS to start anew from its weights"
    iteration = state.get("iteration") if isinstance(state, Mapping) else None
    if not isinstance(iteration, int) or isinstance(iteration, bool) or iteration < -1:
        raise InvalidCheckpoint(f'checkpoint {path} has no trainer state with an "iteration": {remedy}.')
    inner = state.get("_trainer", state)
    hooks = state.get("hooks", {})
    saved = inner.get("optimizer") if isinstance(inner, Mapping) else None
    if (
        not isinstance(hooks, Mapping)
        or not isinstance(saved, Mapping)
        or not saved.keys() >= {"state", "param_groups"}
    ):
        raise InvalidCheckpoint(f"checkpoint {path} has a trainer state without that of the optimizer: {remedy}.")
    if optimizer is not None and (what := _other_optimizer(saved, optimizer)):
        raise InvalidCheckpoint(f"checkpoint {path}: the state of the optimizer {what}: {remedy}.")


def _other_optimizer(saved: Mapping, optimizer: torch.optim.Optimizer) -> str:
    groups, states = saved["param_groups"], saved["state"]
    if not isinstance(groups, list) or not all(
        isinstance(g, Mapping) and isinstance(g.get("params"), list) for g in groups
    ):
        return "has no groups of parameters"
    if not isinstance(states, Mapping):
        return "is no table of parameters"
    if len(groups) != len(optimizer.param_groups):
        return f"has {len(groups)} groups of parameters, this run {len(optimizer.param_groups)}"
    for i, (old, new) in enumerate(zip(groups, optimizer.param_groups, strict=True)):
        if len(old["params"]) != len(new["params"]):
            return f"has {len(old['params'])} parameters in group {i}, this run {len(new['params'])}"
        absent = [key for key in new if key != "params" and key not in old]
        if absent:
            return f"lacks {', '.join(absent)} of group {i}"
        odd = [key for key in new if isinstance(new[key], int | float) and not _like(old[key], new[key])]
        if odd:
            return f"has {odd[0]} {old[odd[0]]!r:.40} in group {i}"
        for number, parameter in zip(old["params"], new["params"], strict=True):
            if not isinstance(number, int):
                return f"names a parameter {number!r:.40}"
            own = states.get(number, {})  # one that never had a gradient has none
            if not isinstance(own, Mapping):
                return f"has a {type(own).__name__} for parameter {number}"
            for name, value in own.items():
                count = name == "step" and isinstance(value, int | float)  # which older torch kept as a number
                if value is not None and not count and not isinstance(value, torch.Tensor):
                    return f"has a {type(value).__name__} as {name} of parameter {number}"
                if not isinstance(value, torch.Tensor):
                    continue
                if value.dim() and value.shape != parameter.shape:
                    return f"has {name} of shape {tuple(value.shape)} for a parameter of {tuple(parameter.shape)}"
                if value.dtype.is_complex or value.dtype is torch.bool:
                    return f"has {name} of type {value.dtype} for parameter {number}"
    return ""


def _like(old: Any, new: float) -> bool:
    """Whether a saved number of an optimizer may stand for the one that it has."""
    if isinstance(new, bool):
        return isinstance(old, bool)
    return isinstance(old, int | float) and not isinstance(old, bool) and math.isfinite(old)
