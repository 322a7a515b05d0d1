"""Checkpoints: written whole or not at all, read without running code, and never half loaded in silence."""

import os
import pickle
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
from numpy._core import multiarray
from torch import nn

import dyn_d2
from dyn_d2.method import PublishedNames, methods
from dyn_d2.utils import restricted_pickle
from dyn_d2.utils.atomic import atomic_write

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager

from . import torchvision_names
from .files import no_file
from .labels import ENTRY, describe_labels
from .validate import CheckpointError, require_description, require_sound_file, require_trainer_state, require_weights

_TORCHVISION = PublishedNames("torchvision", torchvision_names.from_torchvision, torchvision_names.settings)

METADATA = "dyn_d2"  # the entry of a checkpoint that describes it
PACKED = "packed"  # the entry of a file of ``model_zoo.pack``

_REBUILD = (multiarray._reconstruct, multiarray.scalar)
# What a file of numpy arrays needs besides tensors; numpy 1 wrote its functions under another module name.
ARRAY_PARTS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    np.ndarray,
    np.dtype,
    *_REBUILD,
    *((function, f"numpy.core.multiarray.{function.__name__}") for function in _REBUILD),
    *(type(np.dtype(name)) for name in ("float32", "float64", "int32", "int64", "uint8", "bool")),
]


def describe(cfg, model: nn.Module | None = None) -> dict[str, Any]:
    """The ``dyn_d2`` entry of the checkpoints that a run with ``cfg`` writes, what methods say of ``model`` included.

    Class names come from the metadata of the first training set, in the order of the predictor's rows.
    """
    import torchvision

    from detectron2 import __version__ as detectron2_version

    names = list(cfg.DATASETS.TRAIN) or list(cfg.DATASETS.TEST)
    metadata = MetadataCatalog.get(names[0]) if names else None
    described = {
        "classes": list(metadata.get("thing_classes", [])) if metadata else [],
        "stuff_classes": list(metadata.get("stuff_classes", [])) if metadata else [],
        ENTRY: describe_labels(list(dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]))),
        "base_classes": list(metadata.get("base_classes", [])) if metadata else [],
        "novel_classes": list(metadata.get("novel_classes", [])) if metadata else [],
        "stage": cfg.FEW_SHOT.STAGE if cfg.FEW_SHOT.BENCHMARK else "",
        "classifier": cfg.MODEL.ROI_BOX_HEAD.CLASSIFIER,
        "few_shot": {**metadata.get("few_shot", {}), "shots_hash": metadata.get("shots_hash")} if metadata else {},
        "config": cfg.dump(),
        "versions": {
            "dyn_d2": dyn_d2.__version__,
            "detectron2": detectron2_version,
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
        },
    }
    if model is not None:
        for method in methods():
            described |= method.describe(cfg, model)
    return described


def read_checkpoint(path: str, packed: bool = False) -> dict[str, Any]:
    """Read a checkpoint file from disk or from an address that Detectron2's PathManager knows.

    ``.pkl`` files go through the restricted unpickler, formats of methods through their readers, all others through
    ``torch.load(weights_only=True)``: none can run code.

    Args:
        packed: whether a file of ``model_zoo.pack`` is wanted, whose numbers are no weights before they are unpacked.

    Returns:
        A dict with "model" (name -> tensor or array); files in Caffe2 or torchvision naming also have
        "matching_heuristics": True, as Detectron2 has it.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: the file is damaged, is no checkpoint, or holds more than numbers and text.
    """
    local = PathManager.get_local_path(path)
    if not os.path.isfile(local):
        raise FileNotFoundError(no_file(path))
    for accepts, read in (form for method in methods() for form in method.file_formats):
        if accepts(local):
            try:
                return {"model": read(local)}
            except ValueError as error:
                raise CheckpointError(f"checkpoint {error}") from error
    if local.endswith(".pkl"):
        data = _arrange_pickle(_read_pickle(local), path)
        require_weights(data["model"], path)
        if METADATA in data:
            data[METADATA] = require_description(data[METADATA], path)
        return data
    require_sound_file(local)
    data = _read_torch(local)
    if local.endswith(".pyth") and "model_state" in data:  # pycls
        model = {key: value for key, value in data["model_state"].items() if not key.endswith("num_batches_tracked")}
        return {"model": model, "__author__": "pycls", "matching_heuristics": True}
    data = _unwrapped(data)
    require_weights(data["model"], path)
    if isinstance(entry := data.get(PACKED), Mapping) and entry.get("bits") == 8 and not packed:
        raise CheckpointError(
            f"checkpoint {path} is a packed model of 8 bits, whose numbers are no weights yet: dyn_d2.model_zoo.load "
            "reads it (a shipped one: zoo:NAME), and training starts from the checkpoint that it was packed from."
        )
    if METADATA in data:
        data[METADATA] = require_description(data[METADATA], path)
    return data


_WRAPPERS = ("model", "state_dict", "model_state_dict")  # where others put the weights
_PARALLEL = "module."  # what (Distributed)DataParallel puts in front of each name


def _unwrapped(data: dict[str, Any]) -> dict[str, Any]:
    """The weights of a file of torch.save as its "model", under the names that they have in the bare model."""
    inside = next((key for key in _WRAPPERS if isinstance(data.get(key), Mapping)), None)
    weights = data[inside] if inside else data
    rest = {key: value for key, value in data.items() if key != inside} if inside else {}
    if weights and all(str(name).startswith(_PARALLEL) for name in weights):
        weights = {name.removeprefix(_PARALLEL): value for name, value in weights.items()}
    return {**rest, "model": weights}


def _read_pickle(path: str) -> Any:
    try:
        with open(path, "rb") as file:
            return restricted_pickle.load(file)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"checkpoint {path}: {error}") from error


def _arrange_pickle(data: Any, path: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise CheckpointError(f"checkpoint {path} holds a {type(data).__name__}, not a dict of arrays.")
    if "model" in data and "__author__" in data:
        return data
    blobs = data.get("blobs", data)
    weights = {key: value for key, value in blobs.items() if not key.endswith("_momentum")}
    return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}


def _read_torch(path: str) -> dict[str, Any]:
    try:
        with torch.serialization.safe_globals(ARRAY_PARTS):
            data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a different type for each way in which a file can be broken
        raise CheckpointError(
            f"checkpoint {path} was refused{_reason(error)}. It is damaged, or holds objects other than tensors, "
            "numbers and text; if you trust its author, save its state_dict alone with torch.save."
        ) from error
    if not isinstance(data, dict):
        raise CheckpointError(f"checkpoint {path} holds a {type(data).__name__}, not a dict of tensors.")
    return data


def _reason(error: Exception) -> str:
    """What torch says of a file, without its advice to load it in a way that runs code."""
    text = str(error)
    names = dict.fromkeys(re.findall(r"GLOBAL ([\w.]+) was", text))
    if names:
        return f": it asks for {', '.join(names)}"
    first = text.splitlines()[0] if text else type(error).__name__
    return "" if re.search(r"weights_only|safe_globals|arbitrary code", first) else f": {first.rstrip('. ')}"


@dataclass
class LoadReport:
    """What a checkpoint gave to a model.

    Attributes:
        source: the file.
        loaded: parameters and buffers taken from the file.
        missing: those of the model that the file lacks.
        gates: those among ``missing`` that belong to a policy the file knows nothing of: weights of a plain network.
        mismatched: (name, shape in the file, shape in the model) of those that do not fit.
        unused: what the file has and the model lacks.
        metadata: the file's ``dyn_d2`` entry, empty for files of others.
        settings: of a network that others published: what it was trained with, as keys of the config.
        entries: what the file holds beside the model.
    """

    source: str = ""
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    gates: list[str] = field(default_factory=list)
    mismatched: list[tuple[str, tuple, tuple]] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    entries: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return not self.missing and not self.mismatched

    def reinitialised(self) -> list[str]:
        """Names in the model that did not come from the file."""
        return sorted([*self.missing, *(name for name, _, _ in self.mismatched)])

    def table(self) -> str:
        """A summary for the log: counts, and the re-initialised and unused ones by module."""
        gates = set(self.gates)
        fresh = [name for name in self.reinitialised() if name not in gates]
        lines = [
            f"weights from {self.source}: {len(self.loaded)} loaded, {len(fresh)} re-initialised, "
            f"{len(self.unused)} unused"
        ]
        if gates:
            lines.append(f"  new: {len(gates)} parameters of the gates, which the file of a plain network lacks")
        missing = [name for name in self.missing if name not in gates]
        lines += [f"  re-initialised (missing): {text}" for text in _by_module(missing)]
        lines += [
            f"  re-initialised (shape): {name} is {old} in the file, {new} in the model"
            for name, old, new in self.mismatched
        ]
        lines += [f"  unused: {text}" for text in _by_module(self.unused)]
        return "\n".join(lines)

    def class_count_problem(self) -> str:
        """One sentence if the predictor of the file has another number of classes than the model's, else ""."""
        for name, old, new in self.mismatched:
            if name.endswith("box_predictor.cls_score.weight") and old[1:] == new[1:]:
                names = self.metadata.get("classes")
                listed = f" ({', '.join(names[:30])}{', ...' if len(names) > 30 else ''})" if names else ""
                return (
                    f"{self.source} has a head for {old[0] - 1} classes{listed}, but MODEL.ROI_HEADS.NUM_CLASSES is "
                    f"{new[0] - 1}: set that key to {old[0] - 1}, or fit the checkpoint with dyn-d2 surgery."
                )
        return ""

    def check_complete(self) -> None:
        """
        Raises:
            CheckpointError: the model is not wholly from the file; lists what is missing or of another shape.
        """
        if self.complete:
            return
        reasons = [self.class_count_problem()] if self.class_count_problem() else []
        reasons += [f"shape {old} in the file, {new} in the model: {name}" for name, old, new in self.mismatched]
        reasons += [f"missing in the file: {text}" for text in _by_module(self.missing)]
        raise CheckpointError(
            f"{self.source} does not hold the whole model, so its scores would mean nothing:\n  "
            + "\n  ".join(reasons)
            + "\nCheck MODEL.WEIGHTS and the config (TEST.ALLOW_PARTIAL_WEIGHTS True scores the model all the same)."
        )


def _by_module(names: list[str], shown: int = 20) -> list[str]:
    """Parameter names folded into one line a module, at most ``shown`` lines."""
    counts = Counter(name.rpartition(".")[0] or name for name in names)
    leaves = {
        prefix: sorted(n.rpartition(".")[2] for n in names if (n.rpartition(".")[0] or n) == prefix)
        for prefix in list(counts)[:shown]
    }
    lines = [f"{prefix}.{{{', '.join(parts)}}}" if parts != [prefix] else prefix for prefix, parts in leaves.items()]
    return lines + ([f"... and {len(counts) - shown} more modules"] if len(counts) > shown else [])


class DynCheckpointer(DetectionCheckpointer):
    """DetectionCheckpointer with atomic files, safe reading, self-describing checkpoints and a load report.

    Attributes:
        report: what the last ``load`` did; empty before.
        metadata: the ``dyn_d2`` entry of what is saved.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, metadata: dict[str, Any] | None = None, **others: Any
    ) -> None:
        """
        Args:
            model: the model to save and load.
            save_dir: where checkpoints go.
            metadata: the ``dyn_d2`` entry to write, see ``describe``.
            others: ``save_to_disk`` and checkpointables, as in the parent.
        """
        super().__init__(model, save_dir, **others)
        self.metadata = metadata
        self.report = LoadReport(source="nothing")
        self._resumes = False

    def save(self, name: str, **extra: Any) -> None:
        """Write ``save_dir/name.pth`` and tag it as the last one; each file is replaced in one step.

        A run that is killed between the two goes on from the checkpoint before, or starts afresh where there is none.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict(), **{k: v.state_dict() for k, v in self.checkpointables.items()}}
        if self.metadata is not None:
            data[METADATA] = self.metadata
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        with atomic_write(path, "wb") as file:
            torch.save({**data, **extra}, file)
        self.tag_last_checkpoint(os.path.basename(path))

    def save_weights(self, name: str) -> None:
        """Write ``save_dir/name.pth`` with the model alone: nothing to go on from, and not the last checkpoint."""
        if not self.save_dir or not self.save_to_disk:
            return
        described = {} if self.metadata is None else {METADATA: self.metadata}
        with atomic_write(os.path.join(self.save_dir, f"{name}.pth"), "wb") as file:
            torch.save({"model": self.model.state_dict(), **described}, file)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with atomic_write(os.path.join(self.save_dir, "last_checkpoint")) as file:
            file.write(last_filename_basename)

    def load(self, path: str, checkpointables: list[str] | None = None, *, strict: bool = False) -> dict[str, Any]:
        """Load model and checkpointables as the parent does, and log what was loaded and what was not.

        Args:
            path: file or address; "" loads nothing.
            checkpointables: which of them to load; None for all.
            strict: every parameter of the model must come from the file.

        Returns:
            What else the file holds.

        Raises:
            CheckpointError: unreadable, or incomplete under ``strict``; the model is then not to be used.
            FileNotFoundError: no such file.
        """
        self.report = LoadReport(source=path or "nothing")
        self._resumes = checkpointables is None and "trainer" in self.checkpointables
        if not path:
            self.report.missing = sorted(self.model.state_dict())
            if strict:
                raise CheckpointError("no weights to evaluate: set MODEL.WEIGHTS to a checkpoint.")
        elif "://" not in path and not PathManager.isfile(file := path.partition("?")[0]):
            raise FileNotFoundError(no_file(file))
        try:
            rest = super().load(path, checkpointables=checkpointables)
        except URLError as error:
            raise CheckpointError(
                f"checkpoint {path} cannot be downloaded ({error.reason}): fetch it elsewhere and give its local path."
            ) from error
        if strict:
            self.report.check_complete()
        return rest

    def _load_file(self, filename: str) -> dict[str, Any]:
        data = read_checkpoint(filename)
        if self._resumes and "trainer" in data:
            require_trainer_state(data["trainer"], self.checkpointables["trainer"]._trainer.optimizer, filename)
        if "matching_heuristics=True" in self.report.source.partition("?")[2]:
            data["matching_heuristics"] = True
        foreign = [_TORCHVISION, *(names for method in methods() for names in method.published_names)]
        for origin, rename, settings in foreign:
            renamed = rename(data["model"])
            if renamed and not data["model"].keys() & self.model.state_dict().keys():
                self.report.settings = settings(data["model"])
                listed = ", ".join(f"{key} {value}" for key, value in self.report.settings.items())
                self.logger.info(f"{filename} is a network of {origin}, which was trained with {listed}.")
                data["model"], data["matching_heuristics"] = renamed, True
                break
        if not self.report.settings and str(data.get("__author__", "")).lower().startswith("torchvision"):
            self.report.settings = torchvision_names.settings(data["model"])  # renamed already
        return data

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        self.report.metadata = checkpoint.get(METADATA) or {}
        self.report.entries = sorted(map(str, checkpoint.keys() - {"model"}))
        result = super()._load_model(checkpoint)
        wrong = {name for name, _, _ in result.incorrect_shapes}
        tensors = self.model.state_dict(keep_vars=True)
        absent = {name for name in result.missing_keys if name not in wrong and name in tensors}
        self.report.loaded = sorted(tensors.keys() - wrong - absent)
        # A module that is used twice has two names for one tensor: either of them in the file is enough.
        filled = {id(tensors[name]) for name in self.report.loaded}
        # num_batches_tracked: a counter that only cumulative batch norm reads; old checkpoints lack it.
        self.report.missing = sorted(
            name for name in absent if id(tensors[name]) not in filled and not name.endswith("num_batches_tracked")
        )
        gates = set().union(*(method.parts_of_plain_weights(self.model) for method in methods()))
        if not gates & {*self.report.loaded, *wrong}:
            self.report.gates = [name for name in self.report.missing if name in gates]
        self.report.mismatched = sorted(result.incorrect_shapes)
        self.report.unused = sorted(result.unexpected_keys)
        self._require_numbers(tensors)
        return result

    def _require_numbers(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Nothing that came from the file is NaN: such a model predicts nothing, which reads like an AP of 0."""
        loaded = [name for name in self.report.loaded if not tensors[name].is_meta]
        bad = [name for name in loaded if tensors[name].is_floating_point() and tensors[name].isnan().any()]
        if bad:
            raise CheckpointError(
                f"checkpoint {self.report.source} holds NaN in {len(bad)} tensors, {bad[0]} the first: the training "
                "that wrote it diverged. Take an earlier checkpoint, or train with a lower SOLVER.BASE_LR."
            )

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        expected = set(self.report.reinitialised()) <= set(self.report.gates)
        log = self.logger.info if expected else self.logger.warning
        log(self.report.table())
