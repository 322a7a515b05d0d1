"""Many cells (method, split, shots, seed) of the few-shot procedure: each stage is trained once, then a table."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from dyn_d2.data.few_shot.stages import BASE
from dyn_d2.evaluation.aggregate import Estimate, aggregate, estimate, headline, table, write_benchmark
from dyn_d2.evaluation.convergence import training_seconds
from dyn_d2.evaluation.figures import draw_ap_against_shots
from dyn_d2.evaluation.results import read_results
from dyn_d2.method import few_shot_methods

from .few_shot import plan
from .job_queue import quiet, run_pending
from .stages import Stage
from .workers import LocalWorkers, Training, Workers

SECONDS = "tuning_seconds"  # of the last stage's steps, without evaluations
METRICS = ("AP", "bAP", "nAP", "AP50", "bAP50", "nAP50", SECONDS)


@dataclass(frozen=True)
class Cell:
    """One fine-tuned model. ``method`` is a value of FEW_SHOT.METHOD."""

    method: str
    split: int
    shots: int
    seed: int

    def opts(self) -> list[str]:
        """The cell as KEY VALUE pairs."""
        keys = {"METHOD": self.method, "SPLIT": self.split, "SHOTS": self.shots, "SEED": self.seed}
        return [part for key, value in keys.items() for part in (f"FEW_SHOT.{key}", str(value))]


def cells(methods: Sequence[str], splits: Sequence[int], shots: Sequence[int], seeds: Sequence[int]) -> list[Cell]:
    """All combinations; seeds vary slowest, so that every row of the table has its first number early.

    Raises:
        ValueError: an unknown method, or nothing of one kind.
    """
    known = few_shot_methods()
    unknown = sorted(set(methods) - known.keys())
    if unknown:
        raise ValueError(f"unknown method {', '.join(unknown)}: use {', '.join(known)}.")
    for what, values in (("method", methods), ("split", splits), ("number of shots", shots), ("seed", seeds)):
        if not values:
            raise ValueError(f"not a single {what} is given.")
    return list(dict.fromkeys(Cell(m, s, k, seed) for seed, s, m, k in product(seeds, splits, methods, shots)))


# ------------------------------------------------------------------------------------------------------------- running


def plan_cells(config_file: str, opts: Iterable[str], wanted: Sequence[Cell]) -> dict[Cell, list[Stage]]:
    """The stages of each cell; see ``few_shot.plan`` for the arguments and errors."""
    opts = list(opts)
    with quiet():
        return {cell: plan(config_file, [*opts, *cell.opts()]) for cell in wanted}


def run_cells(
    config_file: str,
    opts: Iterable[str],
    plans: Mapping[Cell, Sequence[Stage]],
    workers: Callable[[], Workers] = LocalWorkers,
    launcher: Iterable[str] = (),
    on_start: Callable[[Stage], None] | None = None,
) -> None:
    """Train what is not trained yet.

    Args:
        config_file, opts: those that the plans were made from.
        launcher: options of ``dyn-d2 train`` such as ``--num-gpus 2``.
        workers, on_start: see ``run_pending``.

    Raises:
        StageError: a training failed; what is finished stays finished.
    """
    opts, launcher = tuple(opts), tuple(launcher)

    def training(stage: Stage, cell: Cell) -> Training:
        return Training(plan, config_file, (*opts, *cell.opts()), stage.folder, launcher)

    run_pending(plans, training, workers, on_start)


# ------------------------------------------------------------------------------------------------------------- results


def cell_results(plans: Mapping[Cell, Sequence[Stage]]) -> dict[Cell, dict[str, float]]:
    """Metrics of the fine-tuned models, which have to be trained already, and the SECONDS that this stage trained."""
    return {
        cell: {**headline(read_results(stages[-1].folder)), SECONDS: training_seconds(stages[-1].folder)}
        for cell, stages in plans.items()
    }


def base_results(plans: Mapping[Cell, Sequence[Stage]]) -> dict[tuple[int, str], dict[str, float]]:
    """(split, name of the row) -> metrics of the base models on their own classes, one for all seeds and shots.

    Their mean over all classes that they know is no mean over the classes of the fine-tuned models, so only the base
    metrics are kept.
    """
    found: dict[tuple[int, str], dict[str, float]] = {}
    for cell, (base, *_) in plans.items():
        if base.name != BASE:  # a method of one stage
            continue
        name = "base only" + " (cosine)" * (base.cfg.MODEL.ROI_BOX_HEAD.CLASSIFIER == "cosine")
        detector = few_shot_methods()[cell.method].detector
        name += f" ({detector})" if detector else ""
        if (cell.split, name) not in found:
            metrics = headline(read_results(base.folder))
            found[cell.split, name] = {key: value for key, value in metrics.items() if key.startswith("b")}
    return found


def summarise(
    output: Path, plans: Mapping[Cell, Sequence[Stage]], seeds: Sequence[int], metrics: Sequence[str] = METRICS
) -> str:
    """Write benchmark.json, benchmark.md and a figure a split (nAP against K); returns the table.

    Raises:
        ValueError: a cell lacks one of the seeds.
    """
    results = cell_results(plans)
    by_cell: dict[tuple[int, str, int], dict[int, dict[str, float]]] = defaultdict(dict)
    for cell, found in results.items():
        by_cell[cell.split, cell.method, cell.shots][cell.seed] = found
    means = aggregate(by_cell, seeds)
    rows = [
        ((str(split), name, "-"), {metric: estimate([value]) for metric, value in found.items()})
        for (split, name), found in base_results(plans).items()
    ]
    titles = {name: method.title for name, method in few_shot_methods().items()}
    rows += [((str(split), titles[method], str(shots)), values) for (split, method, shots), values in means.items()]
    order = {title: place for place, title in enumerate(titles.values())}
    rows.sort(key=lambda row: (int(row[0][0]), order.get(row[0][1], -1), row[0][1], int(row[0][2].replace("-", "0"))))
    for split in {cell.split for cell in plans}:
        curves = nap_curves(means, split)
        if curves:
            draw_ap_against_shots(curves, output / f"nAP_split{split}.png")
    text = table(rows, ("split", "method", "K"), metrics)
    record = {
        "seeds": list(seeds),
        "cells": {
            "/".join(names): {metric: value.as_json() for metric, value in values.items()} for names, values in rows
        },
        "single": {f"{c.split}/{c.method}/{c.shots}/seed{c.seed}": found for c, found in results.items()},
    }
    write_benchmark(output, record, caption(seeds), text)
    return text


def caption(seeds: Sequence[int]) -> str:
    """What the numbers of the table are."""
    if len(seeds) == 1:
        return f"AP in percent, 1 seed ({seeds[0]}), so there is no interval."
    return f"AP in percent, mean ± 95 % confidence interval over {len(seeds)} seeds ({', '.join(map(str, seeds))})."


def nap_curves(
    means: Mapping[tuple[int, str, int], Mapping[str, Estimate]], split: int
) -> dict[str, dict[int, tuple[float, float]]]:
    """Method name -> K -> (mean nAP, half width of its interval), in the order of the table; what has no nAP left out.

    Args:
        means: (split, method, K) -> metric -> estimate.
    """
    curves: dict[str, dict[int, tuple[float, float]]] = {}
    for name, method in few_shot_methods().items():
        points = {
            shots: (values["nAP"].mean, values["nAP"].half_width)
            for (s, m, shots), values in sorted(means.items())
            if (s, m) == (split, name) and "nAP" in values and not math.isnan(values["nAP"].mean)
        }
        if points:
            curves[method.title] = points
    return curves
