"""What was computed for each image of a data set: multiply-adds, execution rates, module usage per class.

A FLOP here is a multiply-add, as in the papers; a GFLOP is 1e9 of them.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dyn_d2.gating import Route, Unit
from dyn_d2.gating.meta_arch.classifier import ImageClassifier
from dyn_d2.gating.meta_arch.dynamic import find_policy
from dyn_d2.utils.atomic import atomic_write, write_json
from dyn_d2.utils.own_files import arrays_of

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

logger = logging.getLogger(__name__)

NOT_COUNTED = (
    "normalisation", "activations and soft-max", "pooling", "residual additions", "resizing",
    "what follows the backbone, unless the model records it",
)  # fmt: skip
_COSTS = ("executed", "expected", "dense", "gates")
_FORMAT = 1


@dataclass
class RouteTable:
    """The routes of N images.

    Attributes:
        dataset: its registered name.
        class_names: of the labels; empty where images have none.
        unit_names, unit_kinds, unit_sizes, unit_stages: of the U units, see :class:`dyn_d2.gating.Unit`.
        bits: (N, B) uint8; for each unit in turn its decisions, packed by ``np.packbits`` to whole bytes.
        executed, expected, dense, gates: (N,) float64, multiply-adds.
        file_names, image_ids: (N,) strings, "" where the record has none.
        heights, widths: (N,) of the images as they went in.
        labels, predictions: (N,) class numbers, -1 where there is none.
        level_names: of the L knowledge levels that modules take; empty where they take none.
        level_modules: names of the modules that take them.
        level_bits: (N, B) uint8; for each module in turn the levels it took, packed as ``bits``.
    """

    dataset: str
    class_names: np.ndarray
    unit_names: np.ndarray
    unit_kinds: np.ndarray
    unit_sizes: np.ndarray
    unit_stages: np.ndarray
    bits: np.ndarray
    executed: np.ndarray
    expected: np.ndarray
    dense: np.ndarray
    gates: np.ndarray
    file_names: np.ndarray
    image_ids: np.ndarray
    heights: np.ndarray
    widths: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray
    level_names: np.ndarray = field(default_factory=partial(np.array, [], dtype=str))
    level_modules: np.ndarray = field(default_factory=partial(np.array, [], dtype=str))
    level_bits: np.ndarray = field(default_factory=partial(np.zeros, (0, 0), dtype=np.uint8))

    def __len__(self) -> int:
        return len(self.executed)

    @property
    def correct(self) -> np.ndarray | None:
        """(N,) bool; None without labels or predictions."""
        known = len(self) > 0 and (self.labels >= 0).all() and (self.predictions >= 0).all()
        return self.labels == self.predictions if known else None

    def opened(self, unit: int) -> np.ndarray:
        """(N, size) bool: the decisions about one unit."""
        widths = [-(-size // 8) for size in self.unit_sizes]
        start = sum(widths[:unit])
        packed = self.bits[:, start : start + widths[unit]]
        return np.unpackbits(packed, axis=1, count=int(self.unit_sizes[unit])).astype(bool)

    def rates(self) -> np.ndarray:
        """(N, U) share of each unit's elements that were open."""
        columns = [self.opened(unit).mean(1) for unit in range(len(self.unit_names))]
        return np.stack(columns, 1) if columns else np.zeros((len(self), 0))

    def levels(self) -> np.ndarray:
        """(N, modules, L) bool: which levels each module took for each image."""
        count = len(self.level_names)
        packed = self.level_bits.reshape(-1, len(self.level_modules), -(-count // 8))
        return np.unpackbits(packed, axis=2, count=count).astype(bool)

    def element_rates(self, chosen: np.ndarray | slice = slice(None)) -> list[np.ndarray]:
        """For each unit (size,) how often each element was open, among the images ``chosen``."""
        return [self.opened(unit)[chosen].mean(0) for unit in range(len(self.unit_names))]

    def members(self) -> dict[str, np.ndarray]:
        """Class name -> indices of its images, in the order of the classes; empty classes are left out."""
        numbers = [int(label) for label in np.unique(self.labels) if label >= 0]
        names = [str(self.class_names[i]) if i < len(self.class_names) else f"class {i}" for i in numbers]
        return {name: np.flatnonzero(self.labels == i) for name, i in zip(names, numbers, strict=True)}

    def save(self, path: str | Path) -> None:
        """Write an .npz file, atomically."""
        with atomic_write(path, "wb") as file:
            np.savez_compressed(file, format=_FORMAT, **{f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def load(cls, path: str | Path) -> "RouteTable":
        """Read what ``save`` wrote.

        Raises:
            FileNotFoundError, ValueError: there is no such file, or it is none of this kind.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} does not exist: evaluate a gated model, it writes inference/routes.npz.")
        with arrays_of(path, "file of routes") as file:
            # Files from before there were levels lack these.
            arrays = {f.name: file[f.name] for f in fields(cls) if f.default_factory is MISSING or f.name in file}
            version = int(file["format"])
            if version == _FORMAT:
                _check_arrays(arrays)
        if version != _FORMAT:
            raise ValueError(f"{path} has format {version}, this version of dyn_d2 reads {_FORMAT}: evaluate again.")
        return cls(**{**arrays, "dataset": str(arrays["dataset"])})


def _check_arrays(arrays: Mapping[str, np.ndarray]) -> None:
    """
    Raises:
        ValueError: types or lengths are not those of a table of routes.
    """
    texts = ("class_names", "unit_names", "unit_kinds", "file_names", "image_ids", "level_names", "level_modules")
    for name in (*texts, "dataset"):
        given = arrays.get(name, np.array([], str))
        if given.size and given.dtype.kind != "U" or given.ndim != (name in texts) and name in arrays:
            raise ValueError(f"{name} is no {'list of ' if name in texts else ''}text")
    images, units = arrays["executed"].size, arrays["unit_names"].size
    for name in (*_COSTS, "heights", "widths", "labels", "predictions", "file_names", "image_ids"):
        if arrays[name].shape != (images,):
            raise ValueError(f"{name} has the shape {arrays[name].shape} for {images} images")
    for name in ("unit_kinds", "unit_sizes", "unit_stages"):
        if arrays[name].shape != (units,):
            raise ValueError(f"{name} has the shape {arrays[name].shape} for {units} units")
    for name in _COSTS:
        if arrays[name].dtype.kind not in "fiu" or not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} is not made of finite numbers")
    if any(arrays[name].dtype.kind not in "iu" for name in ("unit_sizes", "unit_stages", "labels", "predictions")):
        raise ValueError("sizes, stages, labels or predictions are no whole numbers")
    if (arrays["unit_sizes"] < 1).any():
        raise ValueError("a unit has no elements")
    if "level_bits" in arrays:
        wanted = (images, len(arrays["level_modules"]) * -(-len(arrays["level_names"]) // 8))
        if arrays["level_bits"].dtype != np.uint8 or wanted[1] and arrays["level_bits"].shape != wanted:
            raise ValueError(f"the levels have the shape {arrays['level_bits'].shape}, not {wanted}")
    width = int(sum(-(-arrays["unit_sizes"] // 8)))
    if arrays["bits"].dtype != np.uint8 or arrays["bits"].shape != (images, width):
        raise ValueError(f"the decisions have the shape {arrays['bits'].shape}, not {(images, width)}")


def summarise(table: RouteTable) -> dict[str, Any]:
    """What ``routes.json`` holds: costs in GFLOPs (1e9 multiply-adds), rates in percent."""
    rates, correct = table.rates(), table.correct
    names = [str(name) for name in table.unit_names]
    summary: dict[str, Any] = {
        "dataset": table.dataset,
        "images": len(table),
        "unit": "GFLOPs are 1e9 multiply-adds; rates and shares in percent",
        **{cost: _statistics(getattr(table, cost) / 1e9) for cost in _COSTS},
        "executed_percent": _percent(table.executed.sum(), table.dense.sum()),
        "gates_percent": _percent(table.gates.sum(), table.executed.sum()),
        "not_counted": list(NOT_COUNTED),
        "units": {
            name: {
                "kind": str(table.unit_kinds[i]),
                "size": int(table.unit_sizes[i]),
                "stage": int(table.unit_stages[i]),
                "rate": 100 * float(rates[:, i].mean()),
            }
            for i, name in enumerate(names)
        },
        "levels": _level_use(table),
        "classes": {},
    }
    for label, chosen in table.members().items():
        per_unit = (100 * rates[chosen].mean(0)).tolist()
        summary["classes"][label] = {
            "images": len(chosen),
            "executed": _statistics(table.executed[chosen] / 1e9),
            "executed_percent": _percent(table.executed[chosen].sum(), table.dense[chosen].sum()),
            "accuracy": None if correct is None else 100 * float(correct[chosen].mean()),
            "rates": dict(zip(names, per_unit, strict=True)),
        }
    return summary


def _level_use(table: RouteTable) -> dict[str, dict[str, Any]]:
    """For each knowledge level, for how many images some module took it, in percent, and each module."""
    if not len(table.level_names):
        return {}
    taken, modules = table.levels(), [str(name) for name in table.level_modules]
    return {
        str(name): {
            "rate": 100 * float(taken[:, :, i].any(1).mean()),
            "modules": dict(zip(modules, (100 * taken[:, :, i].mean(0)).tolist(), strict=True)),
        }
        for i, name in enumerate(table.level_names)
    }


def _statistics(values: np.ndarray) -> dict[str, float]:
    return {name: float(getattr(values, name)()) for name in ("mean", "std", "min", "max")}


def _percent(part: float, whole: float) -> float:
    return 100 * float(part) / float(whole) if whole else 0.0


def flat_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """The part of a summary that stands beside the metrics of the task, one level deep. "GFLOPs" is what was executed
    on average; all GFLOPs are 1e9 multiply-adds, rates are percent; "blocks_run" is how many gated blocks ran for an
    image."""
    executed = summary["executed"]
    flat = {
        "GFLOPs": executed["mean"],
        **{f"GFLOPs_{name}": executed[name] for name in ("std", "min", "max")},
        "GFLOPs_expected": summary["expected"]["mean"],
        "GFLOPs_dense": summary["dense"]["mean"],
        "executed_percent": summary["executed_percent"],
        "gates_percent": summary["gates_percent"],
    }
    whole = summary.get("whole_model")
    if whole:
        flat |= {"GFLOPs_whole_model": whole["executed"], "GFLOPs_whole_model_dense": whole["dense"]}
    blocks = [unit["rate"] for unit in summary["units"].values() if unit["kind"] == "block"]
    if blocks:
        flat["blocks_run"] = sum(blocks) / 100
    # With a "-" in its name a metric is not printed, but it is in results.json.
    return flat | {f"rate-{name}": unit["rate"] for name, unit in summary["units"].items()}


def rest_cost(model: nn.Module, inputs: list[dict[str, Any]]) -> float:
    """Multiply-adds that one evaluation of ``inputs`` spends outside of the gated network, as torch counts them.

    Random numbers are left as they were.
    """
    bottom_up = getattr(getattr(model, "backbone", None), "bottom_up", None)
    gated = "backbone.bottom_up" if find_policy(bottom_up) is not None else "backbone"
    device = torch.device(getattr(model, "device", "cpu"))
    devices = [device] if device.type == "cuda" else []
    with FlopCounterMode(display=False, depth=9) as counter, torch.no_grad(), torch.random.fork_rng(devices):
        model(inputs)
    inside = counter.get_flop_counts().get(f"{type(model).__name__}.{gated}", {})
    return (counter.get_total_flops() - sum(inside.values())) / 2


class RouteEvaluator(DatasetEvaluator):
    """Reads the "route" of each output. Its results are {"routes": numbers}, see ``flat_metrics``.

    In the output folder it leaves ``routes.npz`` (:class:`RouteTable`: every image) and ``routes.json``
    (``summarise``).
    """

    MEASURED = 2  # images whose cost outside of the backbone is measured

    def __init__(
        self, dataset_name: str, output_dir: str | None = None, *, model: nn.Module | None = None, stem: str = "routes"
    ) -> None:
        """
        Args:
            output_dir: where the files go; None for no files.
            model: the gated model; tells the kinds of the units, and, where its trace covers the backbone alone, what
                the rest costs.
            stem: of the names of the files.
        """
        self._metadata = MetadataCatalog.get(dataset_name)
        self._folder, self._stem = output_dir, stem
        policy = find_policy(getattr(model, "backbone", None))
        self._units = {unit.name: unit for unit in policy.units} if policy is not None else {}
        self._units |= {unit.name: unit for unit in _head_units(model)}
        whole = getattr(model, "whole_trace", False)
        self._model = None if whole or isinstance(model, ImageClassifier) else model
        self._not_counted = list(NOT_COUNTED[:-1] if whole else NOT_COUNTED)
        self.reset()

    def reset(self) -> None:
        self._parts: list[dict[str, Any]] = []
        self._rest: list[float] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """
        Raises:
            ValueError: an output has no route.
        """
        if not inputs:
            return
        routes: list[Route] = [output["route"] for output in outputs if output.get("route") is not None]
        if len(routes) < len(outputs):
            raise ValueError(
                'the model gives no "route" with its outputs: set MODEL.META_ARCHITECTURE to DynamicRCNN, '
                "DynamicRetinaNet, DynamicSegmentor or ImageClassifier, and a gated backbone."
            )
        packed = [np.packbits(np.stack([r.open[name] for r in routes]), axis=1) for name in routes[0].open]
        self._parts.append(
            {
                "units": {name: len(value) for name, value in routes[0].open.items()},
                "bits": np.concatenate(packed, 1) if packed else np.zeros((len(routes), 0), np.uint8),
                "level_names": routes[0].level_names,
                "level_modules": list(routes[0].levels),
                "level_bits": _packed_levels(routes),
                **{cost: [getattr(route, cost) for route in routes] for cost in _COSTS},
                "file_names": [_found_anywhere(str(record.get("file_name", ""))) for record in inputs],
                "image_ids": [str(record.get("image_id", "")) for record in inputs],
                "heights": [_size(record)[0] for record in inputs],
                "widths": [_size(record)[1] for record in inputs],
                "labels": [int(record.get("label", -1)) for record in inputs],
                "predictions": [int(o["scores"].argmax()) if "scores" in o else -1 for o in outputs],
            }
        )
        if self._model is not None and comm.is_main_process():
            for record in inputs[: self.MEASURED - len(self._rest)]:
                self._rest.append(rest_cost(self._model, [record]))

    def evaluate(self) -> dict[str, dict[str, float]]:
        parts = [part for parts in comm.gather(self._parts) for part in parts]
        if not comm.is_main_process():
            return {}
        if not parts:
            logger.warning("There was no image: no routes to report.")
            return {"routes": {}}
        table = self._merge(parts)
        summary = summarise(table) | {"not_counted": self._not_counted}
        if self._rest:
            rest = float(np.mean(self._rest)) / 1e9
            summary["whole_model"] = {
                "rest": rest,
                "executed": summary["executed"]["mean"] + rest,
                "dense": summary["dense"]["mean"] + rest,
                "how": f"rest: what torch counted outside of the gated network on the first {len(self._rest)} images",
            }
        if self._folder:
            folder = Path(self._folder)
            table.save(folder / f"{self._stem}.npz")
            write_json(folder / f"{self._stem}.json", summary)
            logger.info(f"Routes of {len(table)} images are in {folder / self._stem}.npz and .json.")
        mean, dense = (f"{summary[cost]['mean']:.4g}" for cost in ("executed", "dense"))
        logger.info(
            f"executed: {mean} of {dense} GFLOPs (1e9 multiply-adds), {summary['executed_percent']:.1f} %, "
            f"of which gates {summary['gates_percent']:.2f} %"
        )
        logger.info(f"Not counted as multiply-adds: {', '.join(self._not_counted)}.")
        return {"routes": flat_metrics(summary)}

    def _merge(self, parts: Sequence[Mapping[str, Any]]) -> RouteTable:
        sizes = parts[0]["units"]
        units = [self._units.get(name) or _guessed(name, size) for name, size in sizes.items()]
        columns = {
            key: np.concatenate([np.asarray(part[key]) for part in parts])
            for key in ("file_names", "image_ids", "heights", "widths", "labels", "predictions")
        }
        return RouteTable(
            dataset=self._metadata.name,
            class_names=np.array(self._metadata.get("thing_classes", None) or [], dtype=str),
            unit_names=np.array([unit.name for unit in units], dtype=str),
            unit_kinds=np.array([unit.kind for unit in units], dtype=str),
            unit_sizes=np.array(list(sizes.values()), dtype=int),
            unit_stages=np.array([unit.stage for unit in units], dtype=int),
            bits=np.concatenate([part["bits"] for part in parts]),
            level_names=np.array(parts[0]["level_names"], dtype=str),
            level_modules=np.array(parts[0]["level_modules"], dtype=str),
            level_bits=np.concatenate([part["level_bits"] for part in parts]),
            **{cost: np.concatenate([np.asarray(part[cost], dtype=float) for part in parts]) for cost in _COSTS},
            **columns,
        )


def _found_anywhere(name: str) -> str:
    """The name of a file as one that any working directory can use; addresses and what is no file stay."""
    return str(Path(name).resolve()) if name and Path(name).is_file() else name


def _packed_levels(routes: Sequence[Route]) -> np.ndarray:
    """(images, B) uint8, see ``RouteTable.level_bits``."""
    if not routes[0].levels:
        return np.zeros((len(routes), 0), np.uint8)
    taken = np.stack([np.stack(list(route.levels.values())) for route in routes])
    return np.packbits(taken, axis=2).reshape(len(routes), -1)


def _head_units(model: nn.Module | None) -> Iterable[Unit]:
    """The units of a dynamic semantic head."""
    return getattr(getattr(model, "sem_seg_head", None), "units", {}).values()


def _size(record: Mapping[str, Any]) -> tuple[int, int]:
    return tuple(record["image"].shape[-2:]) if "image" in record else (0, 0)


def _guessed(name: str, size: int) -> Unit:
    digits = "".join(c for c in name.partition(".")[0] if c.isdigit())
    return Unit(name, "block" if size == 1 else "channel", 0, size, int(digits or 0))
