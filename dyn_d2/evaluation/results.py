"""The record of an evaluation: numbers together with all that one needs to know to compare them with others."""

import hashlib
import math
import platform
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

import dyn_d2
from dyn_d2.backend import describe_backend
from dyn_d2.data.fingerprint import data_fingerprint
from dyn_d2.utils.atomic import write_json
from dyn_d2.utils.own_files import is_number, read_json_of

import detectron2
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

RESULTS_FILE = "results.json"
VALIDATION = "validation"  # the folder of what was evaluated to choose a checkpoint
# Task of the results -> the metric that stands for it, in the order in which they are looked for.
MAIN_METRICS = {"classification": "top1_accuracy", "segm": "AP", "bbox": "AP", "sem_seg": "mIoU"}


def weights_hash(model: nn.Module) -> str:
    """SHA-256 (first 16 hex digits) over names, types and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy() if array.numel() else b"")
    return digest.hexdigest()[:16]


def code_version() -> str:
    """dyn_d2's version, with the git commit where the package lies in a checkout ("+dirty" with local changes)."""
    root = Path(__file__).resolve().parents[2]
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty=+dirty", "--abbrev=12"],
            cwd=root, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return dyn_d2.__version__
    return f"{dyn_d2.__version__} ({run.stdout.strip()})" if (root / ".git").exists() else dyn_d2.__version__


def versions() -> dict[str, str]:
    """Versions of everything that can move a number."""
    return {
        "dyn_d2": code_version(),
        "detectron2": detectron2.__version__,
        "backend": describe_backend().removeprefix("Detectron2: ").split(" (", 1)[0],
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
    }


def _shots_hash(cfg: CfgNode) -> str | None:
    """Hash of the K-shot set that was drawn for training, or that the checkpoint under evaluation names."""
    return MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("shots_hash", None) if cfg.DATASETS.TRAIN else None


def _device_name(device: str) -> str:
    on_gpu = device.startswith("cuda") and torch.cuda.is_available()
    return torch.cuda.get_device_name() if on_gpu else f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"


def evaluation_record(
    cfg: CfgNode, model: nn.Module, results: Mapping[str, Any], iteration: int | None = None
) -> dict[str, Any]:
    """What ``results.json`` holds.

    Args:
        results: data set -> task -> metric -> value, as ``DefaultTrainer.test`` returns for several sets; or the
            inner part alone when there is one test set.
        iteration: the training iterations that ``model`` has seen; None when it was only loaded.
    """
    names = list(cfg.DATASETS.TEST)
    per_set = {names[0]: results} if len(names) == 1 and names[0] not in results else results
    few_shot = MetadataCatalog.get(names[0]).get("few_shot", None) if names else None
    return {
        "metrics": {name: {task: dict(values) for task, values in sets.items()} for name, sets in per_set.items()},
        "unit": "percent, 0 to 100; GFLOPs: 1e9 multiply-adds",
        "protocol": cfg.FEW_SHOT.PROTOCOL if cfg.FEW_SHOT.BENCHMARK else None,
        "few_shot": dict(few_shot) if few_shot else None,
        "shots_hash": _shots_hash(cfg),
        "test_data": {name: data_fingerprint(name) for name in names},
        "train_sets": list(cfg.DATASETS.TRAIN),
        "batch": cfg.SOLVER.IMS_PER_BATCH,
        "learning_rate": cfg.SOLVER.BASE_LR,
        "iterations": cfg.SOLVER.MAX_ITER,
        "iteration_evaluated": iteration,
        "classifier": cfg.MODEL.ROI_BOX_HEAD.CLASSIFIER,
        "freeze": list(cfg.MODEL.FREEZE),
        "seed": cfg.SEED,
        "weights": cfg.MODEL.WEIGHTS,
        "weights_hash": weights_hash(model),
        "config_hash": hashlib.sha256(cfg.dump().encode()).hexdigest()[:16],
        "versions": versions(),
        "device": _device_name(str(cfg.MODEL.DEVICE)),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def write_results(path: str | Path, record: Mapping[str, Any]) -> None:
    """Write a record as json, atomically. NaN becomes null: the json of other programs has no NaN."""
    write_json(path, _without_nan(record))


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(inner) for inner in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and value != value else value


def read_results(path: str | Path) -> dict[str, Any]:
    """Read a record; ``path`` is the file or the folder that holds it.

    Raises:
        FileNotFoundError, ValueError: no such record, or the file is none.
    """
    path = Path(path)
    file = path / RESULTS_FILE if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist: give a results.json or the OUTPUT_DIR of an evaluation.")
    record = read_json_of(file, "record of an evaluation")
    metrics = record.get("metrics")
    if not isinstance(metrics, dict) or not metrics:
        raise ValueError(f"{file} is no record of an evaluation: it has no 'metrics'.")
    for tasks in metrics.values():
        if not isinstance(tasks, dict) or not all(isinstance(values, dict) for values in tasks.values()):
            raise ValueError(f"{file} is no record of an evaluation: its 'metrics' are not data set -> task -> values.")
        for name, value in (pair for values in tasks.values() for pair in values.items()):
            if value is not None and not is_number(value):
                raise ValueError(f"{file} is no record of an evaluation: {name} is {value!r:.60}, not a number.")
    return record


def main_metric(results: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """{"task", "name", "value"} of what the results are judged by.

    Raises:
        ValueError: no task of ``MAIN_METRICS`` was evaluated.
    """
    for task, name in MAIN_METRICS.items():
        if name in results.get(task, {}):
            value = results[task][name]  # null in a file where it is undefined
            return {"task": task, "name": name, "value": math.nan if value is None else float(value)}
    raise ValueError(f"none of {', '.join(MAIN_METRICS)} was evaluated, only {', '.join(results) or 'nothing'}.")


def flatten(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one level with "/" between the keys."""
    flat: dict[str, Any] = {}
    for key, value in record.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}/") if isinstance(value, Mapping) else {name: value}
    return flat


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(name, first value, second value) of everything in which two records differ; the time of day left out."""
    a, b = flatten(first), flatten(second)
    return [
        (key, a.get(key), b.get(key))
        for key in sorted(a.keys() | b.keys())
        if key != "time" and a.get(key) != b.get(key)
    ]
