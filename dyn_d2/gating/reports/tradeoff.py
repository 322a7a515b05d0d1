"""What a gated network gives for what it costs: accuracy against multiply-adds and against measured milliseconds."""

import hashlib
import itertools
import json
import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tabulate import tabulate
from torch import nn

from dyn_d2.checkpoint.model import model_of
from dyn_d2.config.derive import build_cfg
from dyn_d2.config.read import as_yaml, flatten
from dyn_d2.engine.inputs import inputs_of
from dyn_d2.engine.trainer import DynTrainer
from dyn_d2.evaluation.figures import save_figure
from dyn_d2.evaluation.results import main_metric
from dyn_d2.gating.meta_arch.dynamic import gated_network
from dyn_d2.gating.policies.all_open import AllOpen
from dyn_d2.utils.atomic import write_json
from dyn_d2.utils.measure import time_call
from dyn_d2.utils.own_files import is_number, read_json_of

from detectron2.config import CfgNode

logger = logging.getLogger(__name__)

DENSE = "dense"


def force_open(model: Any) -> None:
    """Put ``AllOpen`` in the place of the policy of a model, or whatever the model or its policy does by itself to run
    all of it (``force_open``): the dense run of a dynamic network's weights.

    Raises:
        ValueError: nothing in the model is gated.
    """
    if hasattr(model, "force_open"):
        model.force_open()
        return
    gated: Any = gated_network(getattr(model, "backbone", None))
    if gated is None:
        raise ValueError(
            "MODEL.BACKBONE.NAME is no gated backbone: there is no trade-off to measure. Use build_gated_..._backbone."
        )
    if not gated.policy.force_open():
        gated.policy = AllOpen(gated.policy.units).eval()


@dataclass(frozen=True)
class Point:
    """One measurement: a checkpoint under some config values.

    Attributes:
        weights: path of the checkpoint.
        config: path of its yaml.
        opts: KEY, VALUE, ... that change the config.
        dense: whether everything is forced open.
    """

    weights: str
    config: str
    opts: tuple[str, ...] = ()
    dense: bool = False

    @property
    def name(self) -> str:
        """Without the path of the weights."""
        values = [
            f"{key.rpartition('.')[2].lower()} {value}"
            for key, value in zip(self.opts[::2], self.opts[1::2], strict=True)
        ]
        return DENSE if self.dense else ", ".join(values) or "gated"


def plan(weights: Sequence[str], sweep: Mapping[str, Sequence[str]], config_file: str | None = None) -> list[Point]:
    """For each checkpoint the dense run, then one run for every combination of the values of ``sweep``'s keys.

    Args:
        config_file: the yaml of all checkpoints; None: each has its own, the config.yaml that its training left.
    """
    choices = [[(key, value) for value in values] for key, values in sweep.items()]
    combinations = [tuple(itertools.chain(*pairs)) for pairs in itertools.product(*choices)]
    pairs = [(w, config_file or str(Path(w).with_name("config.yaml"))) for w in weights]
    return [
        point for pair in pairs for point in (Point(*pair, dense=True), *(Point(*pair, opts) for opts in combinations))
    ]


def measure(point: Point, opts: Sequence[str], folder: str | Path) -> dict[str, Any]:
    """Evaluate a point; what was evaluated before under the same settings is read from its file.

    Args:
        folder: for what evaluation writes, a folder a point.
    """
    settings = _settings(point, opts)
    own = Path(folder) / _digest(settings)
    done = own / "point.json"
    if done.is_file():
        logger.info(f"{point.weights}, {point.name}: evaluated before, see {done}")
        return read_point(done)
    cfg, model = _load(point, opts, own)
    results = DynTrainer.test(cfg, model)
    results = results if len(cfg.DATASETS.TEST) == 1 else results[cfg.DATASETS.TEST[0]]
    record = {
        "weights": point.weights,
        "point": point.name,
        "dense": point.dense,
        "metric": main_metric(results),
        "routes": {key: value for key, value in results["routes"].items() if "-" not in key},
        "settings": settings,
    }
    write_json(done, record)
    return record


def read_point(path: Path) -> dict[str, Any]:
    """What ``measure`` has written.

    Raises:
        ValueError: it was cut off or edited; names the file.
    """
    record = read_json_of(path, f"evaluated point (remove {path.parent} to evaluate it again)")
    texts, tables = ("weights", "point"), ("metric", "routes", "settings")
    metric = record.get("metric")
    sound = (
        all(isinstance(record.get(key), str) for key in texts)
        and isinstance(record.get("dense"), bool)
        and all(isinstance(record.get(key), dict) for key in tables)
        and all(isinstance(metric.get(key), str) for key in ("task", "name"))
        and all(is_number(value) for value in (metric.get("value"), *record["routes"].values()))
    )
    if not sound:
        raise ValueError(f"{path} is no evaluated point any more: remove {path.parent} to evaluate it again.")
    return record


def read_times(path: Path, points: int, batches: Sequence[str]) -> list[dict[str, Any]]:
    """What ``time_points`` has written of so many points and batches.

    Raises:
        ValueError: it was cut off or edited; names the file.
    """
    times = read_json_of(path, "table of times (remove it to time again)", list)
    if len(times) != points or not all(_is_timed(time, batches) for time in times):
        raise ValueError(f"{path} is no table of times any more: remove it to time again.")
    return times


def _is_timed(time: Any, batches: Sequence[str]) -> bool:
    if not isinstance(time, dict) or not isinstance(time.get("milliseconds"), dict):
        return False
    columns = [time["milliseconds"].get(batch) for batch in batches]
    return all(isinstance(c, dict) and all(is_number(c.get(key)) for key in ("median", "p90")) for c in columns)


def time_points(
    points: Sequence[Point],
    opts: Sequence[str],
    folder: str | Path,
    batches: Sequence[int],
    timed: int,
) -> list[dict[str, Any]]:
    """Time all points together, in turns, so that a slow moment of the machine hits them all; what was timed together
    before is read from its file.

    Args:
        batches: sizes of the batches.
        timed: calls of each model that are timed at each size.

    Returns:
        For each point "milliseconds" (batch size -> {"median", "p90"}, per image), "device", "dtype" and "threads".
    """
    everything = [[_settings(point, opts) for point in points], list(batches), timed]
    done = Path(folder) / f"times_{_digest(everything)}.json"
    if done.is_file():
        logger.info(f"timed before, see {done}")
        return read_times(done, len(points), [str(batch) for batch in batches])
    loaded = [_load(point, opts, Path(folder) / "times") for point in points]
    columns = {str(batch): time_models(loaded, batch, timed) for batch in batches}
    times = [
        {
            "milliseconds": {batch: column[i] for batch, column in columns.items()},
            "device": device_name(model),
            "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
        }
        for i, (_, model) in enumerate(loaded)
    ]
    write_json(done, times)
    return times


_ELSEWHERE = ("OUTPUT_DIR", "MODEL.WEIGHTS")  # said by the point, or of no matter


def _settings(point: Point, opts: Sequence[str]) -> dict[str, Any]:
    """What a measurement depends on: weights, all keys, and the data."""
    if not Path(point.config).is_file():
        raise FileNotFoundError(f"{point.config} does not exist.")
    cfg = build_cfg(point.config, [*opts, *point.opts])
    keys = {key: value for key, value in flatten(as_yaml(cfg)).items() if key not in _ELSEWHERE}
    return {
        "weights": _identity(point.weights),
        "dense": point.dense,
        "keys": _digest(keys),
        "inputs": inputs_of(cfg, cfg.DATASETS.TEST, {}),
    }


def _digest(settings: Any) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def _identity(path: str) -> list[Any]:
    """Tells a file from another one that takes its place."""
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    return [str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns]


def _load(point: Point, opts: Sequence[str], output: Path) -> tuple[CfgNode, nn.Module]:
    cfg = build_cfg(point.config, [*opts, *point.opts, "MODEL.WEIGHTS", point.weights, "OUTPUT_DIR", str(output)])
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    cfg.SEED = max(cfg.SEED, 0)
    cfg.freeze()
    model, _ = model_of(cfg)
    static = gated_network(getattr(model, "backbone", None)) is None and not hasattr(model, "force_open")
    if point.dense or static:
        force_open(model)
    return cfg, model


def time_models(
    models: Sequence[tuple[CfgNode, nn.Module]], batch: int, timed: int, warm_up: int = 3
) -> list[dict[str, float]]:
    """Milliseconds per image of models on batches of their first test set, median and 90th percentile of ``timed``
    calls of each; the loading of images is not part of it. Each call has other images, as long as there are any."""
    count, loaded = batch * min(timed + warm_up, max(1, 512 // batch)), dict[str, list[dict[str, Any]]]()
    keys = [_loader_key(cfg) for cfg, _ in models]
    for key, (cfg, _) in zip(keys, models, strict=True):  # most sweeps differ in what no loader reads
        if key not in loaded:
            loaded[key] = _inputs(cfg, count)
    supplies = [itertools.cycle(loaded[key]) for key in keys]
    times: list[list[float]] = [[] for _ in models]
    turns = list(zip(models, supplies, times, strict=True))
    with torch.no_grad():
        for number in range(warm_up + timed):
            for (_, model), supply, own in turns[:: 1 if number % 2 else -1]:
                call = partial(model, list(itertools.islice(supply, batch)))
                own.append(1000 * time_call(call, _device(model).type) / batch)
    return [
        {"median": statistics.median(own[warm_up:]), "p90": sorted(own[warm_up:])[round(0.9 * (timed - 1))]}
        for own in times
    ]


def _loader_key(cfg: CfgNode) -> str:
    """Equal where loaders give the same images."""
    model = (cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE, cfg.MODEL.LOAD_PROPOSALS, cfg.FEW_SHOT.BENCHMARK)
    return f"{model} {cfg.DATASETS} {cfg.INPUT} {cfg.DATALOADER}"


def _inputs(cfg: CfgNode, count: int) -> list[dict[str, Any]]:
    loader = DynTrainer.build_test_loader(cfg, cfg.DATASETS.TEST[0])
    records = list(itertools.islice(itertools.chain.from_iterable(loader), count))
    if not records:
        raise ValueError(f"{cfg.DATASETS.TEST[0]} is empty: there is nothing to time.")
    return records


def device_name(model: nn.Module) -> str:
    """The GPU's name, or "cpu"."""
    device = _device(model)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def executed_gflops(routes: Mapping[str, float]) -> float:
    """Multiply-adds that an image executed on average, in 1e9: of the whole model where that was counted
    (``flat_metrics``), else of the gated network."""
    return routes.get("GFLOPs_whole_model", routes["GFLOPs"])


def _percent_of_dense(routes: Mapping[str, float]) -> float:
    return 100 * executed_gflops(routes) / routes.get("GFLOPs_whole_model_dense", routes["GFLOPs_dense"])


def table(records: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    """A markdown table of what was measured; GFLOPs are 1e9 multiply-adds.

    Args:
        names: path of a checkpoint -> what to call it.
    """
    batches = list(records[0]["milliseconds"])
    rows = [
        [
            names[r["weights"]], r["point"], f"{r['metric']['value']:.2f}",
            f"{executed_gflops(r['routes']):.4g}", f"{_percent_of_dense(r['routes']):.1f}",
            *(f"{r['milliseconds'][b]['median']:.2f} ({r['milliseconds'][b]['p90']:.2f})" for b in batches),
        ]
        for r in records
    ]  # fmt: skip
    heads = ["weights", "point", records[0]["metric"]["name"], "GFLOPs", "% of dense",
             *(f"ms/image, batch {b}: median (p90)" for b in batches)]  # fmt: skip
    return tabulate(rows, headers=heads, tablefmt="pipe", disable_numparse=True)


def draw(records: Sequence[Mapping[str, Any]], names: Mapping[str, str], path: str | Path) -> Path:
    """Accuracy against GFLOPs and against milliseconds at each batch size; a line a checkpoint, a star a dense run."""
    batches = list(records[0]["milliseconds"])
    figure = Figure(figsize=(4.4 * (1 + len(batches)), 4.2), layout="constrained")
    axes = figure.subplots(1, 1 + len(batches), sharey=True)
    size, letter = (1, "G") if max(executed_gflops(r["routes"]) for r in records) >= 0.1 else (1000, "M")
    _panel(axes[0], records, names, lambda r: size * executed_gflops(r["routes"]))
    axes[0].set(xlabel=f"executed multiply-adds ({letter})", ylabel=records[0]["metric"]["name"])
    for axis, batch in zip(axes[1:], batches, strict=True):
        _panel(axis, records, names, partial(_milliseconds, batch=batch))
        axis.set(xlabel=f"milliseconds per image, batch {batch}")
    devices = " / ".join(dict.fromkeys(f"{r['device']}, {r['dtype']}" for r in records))
    axes[-1].set_title(devices, fontsize=8, loc="right", color="#666666")
    axes[0].legend(fontsize=8, loc="lower right")
    return save_figure(figure, path)


def _milliseconds(record: Mapping[str, Any], batch: str) -> float:
    return record["milliseconds"][batch]["median"]


def _panel(
    axis: Axes,
    records: Sequence[Mapping[str, Any]],
    names: Mapping[str, str],
    cost: Callable[[Mapping[str, Any]], float],
) -> None:
    for number, (path, name) in enumerate(names.items()):
        own = [r for r in records if r["weights"] == path]
        gated = sorted((r for r in own if not r["dense"]), key=cost)
        axis.plot([cost(r) for r in gated], [r["metric"]["value"] for r in gated], "o-", color=f"C{number}", label=name)
        for r in own:
            place = cost(r), r["metric"]["value"]
            if r["dense"]:
                axis.plot(*place, "*", markersize=13, color=f"C{number}", markeredgecolor="black")
            text, below = r["point"].replace(", ", "\n"), r["dense"]  # the dense run often lies right beside another
            axis.annotate(
                text, place, (0, -8 if below else 8), textcoords="offset points", fontsize=7, color="#444444",
                ha="center", va="top" if below else "bottom",
            )  # fmt: skip
    axis.set_xlim(0, 1.18 * max(map(cost, records)))
    axis.margins(y=0.15)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
