"""What the cells of a few-shot benchmark amount to: means over seeds, differences of methods, figures."""

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dyn_d2.data.few_shot.stages import BASE
from dyn_d2.evaluation.aggregate import (
    INTERVALS,
    Estimate,
    aggregate,
    cumulative,
    estimate,
    headline,
    paired_difference,
    table,
    write_benchmark,
)
from dyn_d2.evaluation.class_groups import COCO_METRICS, RECALLS, TITLES
from dyn_d2.evaluation.convergence import training_seconds
from dyn_d2.evaluation.figures import draw_ap_against_shots, draw_over_seeds
from dyn_d2.evaluation.results import read_results
from dyn_d2.method import few_shot_methods

from detectron2.data import MetadataCatalog

from .few_shot_benchmark import Cell, check_methods
from .stages import Stage

logger = logging.getLogger(__name__)

SECONDS = "tuning_seconds"  # of the last stage's steps, without evaluations
METRICS = ("AP", "bAP", "nAP", "AP50", "bAP50", "nAP50", SECONDS)
BY_FREQUENCY = ("APr", "APc", "APf")  # LVIS
LVIS_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", *BY_FREQUENCY, SECONDS)

Row = tuple[int, str, int]  # split, method, K
BySeed = Mapping[Row, Mapping[int, Mapping[str, float]]]  # row -> seed -> metric -> value
Plans = Mapping[Cell, Sequence[Stage]]


@dataclass(frozen=True)
class TableStyle:
    """What a table shows.

    Attributes:
        metrics: its columns; () for the usual ones of the data set.
        interval: see ``aggregate.half_width``.
        pairs: (method, method) whose difference is shown, over the seeds that both have.
    """

    metrics: Sequence[str] = ()
    interval: str = "t"
    pairs: Sequence[tuple[str, str]] = ()


USUAL = TableStyle()


# ---------------------------------------------------------------------------------------------------------- arguments


def known_metrics() -> list[str]:
    """What a column may be."""
    groups = [form for form, title in TITLES.items() if title in ("all", "base", "novel")]
    return [form.format(m) for form in groups for m in (*COCO_METRICS, *RECALLS)] + ["hAP", *BY_FREQUENCY, SECONDS]


def read_metrics(text: str) -> tuple[str, ...]:
    """ "AP,nAP75" -> metrics.

    Raises:
        ValueError: there is no such metric.
    """
    found, known = tuple(text.split(",")), known_metrics()
    unknown = [name for name in found if name not in known]
    if unknown:
        raise ValueError(f"unknown metric {', '.join(unknown)}: use {', '.join(known)}.")
    return found


def read_pairs(text: str, methods: Iterable[str]) -> list[tuple[str, str]]:
    """ "ft_full:ft,ft_full:joint" -> pairs of methods.

    Raises:
        ValueError: no pairs, or a method that is not one of ``methods``.
    """
    methods = list(methods)
    pairs = [(first, second) for first, _, second in (part.partition(":") for part in text.split(","))]
    if not all(first and second for first, second in pairs):
        raise ValueError(f"{text!r} are no differences: use METHOD:METHOD, such as {methods[-1]}:{methods[0]}.")
    check_methods(name for pair in pairs for name in pair)
    absent = sorted({name for pair in pairs for name in pair} - set(methods))
    if absent:
        raise ValueError(f"the difference asks for {', '.join(absent)}, which the table does not have.")
    return pairs


# ------------------------------------------------------------------------------------------------------------- results


def cell_results(plans: Plans) -> dict[Cell, dict[str, float]]:
    """Metrics of the fine-tuned models, which have to be trained already, and the SECONDS that this stage trained."""
    return {
        cell: {**headline(read_results(stages[-1].folder)), SECONDS: training_seconds(stages[-1].folder)}
        for cell, stages in plans.items()
    }


def base_results(plans: Plans) -> dict[tuple[int, str], dict[str, float]]:
    """(split, name of the row) -> metrics of the base models on their own classes, one for all seeds and shots.

    Their mean over all classes that they know is no mean over the classes of the fine-tuned models, so only the base
    metrics are kept.
    """
    found: dict[tuple[int, str], dict[str, float]] = {}
    looked_at = set()
    for cell, (base, *_) in plans.items():
        if base.name != BASE:  # a method of one stage
            continue
        name = "base only" + " (cosine)" * (base.cfg.MODEL.ROI_BOX_HEAD.CLASSIFIER == "cosine")
        detector = few_shot_methods()[cell.method].detector
        name += f" ({detector})" if detector else ""
        if (cell.split, name) in looked_at:
            continue
        looked_at.add((cell.split, name))
        if keys := base.other_results():
            logger.warning(f"the row of {base.folder} is left out: {', '.join(keys)}")
            continue
        metrics = headline(read_results(base.folder))
        found[cell.split, name] = {key: value for key, value in metrics.items() if key.startswith("b")}
    return found


def usual_metrics(plans: Plans) -> tuple[str, ...]:
    """The columns of published tables."""
    tests = next(iter(plans.values()))[-1].cfg.DATASETS.TEST
    lvis = bool(tests) and MetadataCatalog.get(tests[0]).get("evaluator_type", "") == "lvis"
    return LVIS_METRICS if lvis else METRICS


def _of_one_model(plans: Plans) -> set[str]:
    """Methods whose cells of a split are all the same training, whatever the seed and K: ``joint`` draws no shots."""
    folders: dict[tuple[str, int], set[Path]] = defaultdict(set)
    for cell, stages in plans.items():
        folders[cell.method, cell.split].add(stages[-1].folder)
    return {method for (method, _), own in folders.items() if len(own) == 1}


def summarise(
    output: Path,
    plans: Plans,
    seeds: Sequence[int] | Mapping[str, Sequence[int]],
    style: TableStyle = USUAL,
) -> str:
    """Write benchmark.json, benchmark.md and figures; returns the table, and under it that of the differences.

    The figures of a split, for each metric of novel classes in the table: against K, and, of several seeds, its
    cumulative mean over them (Fig. 7.3 of Wang, X., PhD thesis, UC Berkeley, 2020).

    Args:
        seeds: of all methods, or of each.

    Raises:
        ValueError: a cell lacks one of the seeds, or the two methods of a difference have none in common.
    """
    metrics, titles = tuple(style.metrics) or usual_metrics(plans), _titles()
    results = cell_results(plans)
    by_row: dict[Row, dict[int, dict[str, float]]] = defaultdict(dict)
    own = {cell.method: list(seeds[cell.method] if isinstance(seeds, Mapping) else seeds) for cell in plans}
    for method in _of_one_model(plans):  # which is one value, however many seeds were asked for
        own[method] = own[method][:1]
    for cell, found in results.items():
        if cell.seed in own[cell.method]:
            by_row[cell.split, cell.method, cell.shots][cell.seed] = found
    means: dict[Row, dict[str, Estimate]] = {}
    for method, several in own.items():
        means |= aggregate({row: found for row, found in by_row.items() if row[1] == method}, several, style.interval)
    rows = _rows(plans, means)
    text = table(rows, ("split", "method", "K"), metrics)
    differences = _differences(by_row, style)
    if differences:
        text += "\n\n" + table(
            [
                ((str(split), f"{titles[a]} - {titles[b]}", str(k), str(next(iter(values.values())).count)), values)
                for (split, (a, b), k), (values, _) in differences.items()
            ],
            ("split", "difference", "K", "seeds"),
            [metric for metric in metrics if metric != SECONDS],
        )
    over_seeds = _over_seeds(by_row, own, [m for m in metrics if m.startswith("n")], style.interval)
    _draw(output, plans, means, over_seeds, metrics)
    record = {
        "interval": INTERVALS[style.interval],
        "seeds": list(one) if (one := _one_for_all(own)) else {m: list(s) for m, s in own.items()},
        "cells": {
            "/".join(names): {metric: value.as_json() for metric, value in values.items()} for names, values in rows
        },
        "differences": _differences_as_json(differences),
        "over_seeds": {
            f"{split}/{method}/{k}": {
                metric: {"mean": [e.mean for e in values], "half_width_95": [e.half_width for e in values]}
                for metric, values in found.items()
            }
            for (split, method, k), found in over_seeds.items()
        },
        "single": {f"{c.split}/{c.method}/{c.shots}/seed{c.seed}": found for c, found in results.items()},
    }
    write_benchmark(output, record, caption(seeds, style), text)
    return text


def _titles() -> dict[str, str]:
    return {name: method.title for name, method in few_shot_methods().items()}


def _rows(plans: Plans, means: Mapping[Row, Mapping[str, Estimate]]) -> list[tuple[tuple[str, str, str], Any]]:
    """(split, title, K) and its estimates, in the order of published tables, base models first."""
    titles = _titles()
    rows: list[tuple[tuple[str, str, str], Any]] = [
        ((str(split), name, "-"), {metric: estimate([value]) for metric, value in found.items()})
        for (split, name), found in base_results(plans).items()
    ]
    rows += [((str(split), titles[method], str(shots)), values) for (split, method, shots), values in means.items()]
    order = {title: place for place, title in enumerate(titles.values())}
    rows.sort(key=lambda row: (int(row[0][0]), order.get(row[0][1], -1), row[0][1], int(row[0][2].replace("-", "0"))))
    return rows


Differences = dict[tuple[int, tuple[str, str], int], tuple[dict[str, Estimate], dict[str, dict[int, float]]]]


def _differences(by_row: BySeed, style: TableStyle) -> Differences:
    """(split, pair, K) -> metric -> its mean difference, and metric -> seed -> difference."""
    found: Differences = {}
    for pair in style.pairs:
        for split, method, k in sorted(
            row for row in by_row if row[1] == pair[0] and (row[0], pair[1], row[2]) in by_row
        ):
            first, second = by_row[split, method, k], by_row[split, pair[1], k]
            shared = [m for m in next(iter(first.values())) if all(m in v for v in (*first.values(), *second.values()))]
            both = {
                metric: paired_difference(
                    {seed: values[metric] for seed, values in first.items()},
                    {seed: values[metric] for seed, values in second.items()},
                    style.interval,
                )
                for metric in shared
                if metric != SECONDS
            }
            found[split, pair, k] = {m: d for m, (d, _) in both.items()}, {m: single for m, (_, single) in both.items()}
    return found


def _differences_as_json(differences: Differences) -> dict[str, Any]:
    return {
        f"{split}/{a} - {b}/{k}": {
            metric: {**value.as_json(), "single": {f"seed{s}": d for s, d in single[metric].items()}}
            for metric, value in values.items()
        }
        for (split, (a, b), k), (values, single) in differences.items()
    }


def _over_seeds(
    by_row: BySeed, seeds: Mapping[str, Sequence[int]], metrics: Sequence[str], interval: str
) -> dict[Row, dict[str, list[Estimate]]]:
    """Row -> metric -> estimates over its first 1, 2 ... seeds; what has one seed only left out."""
    found: dict[Row, dict[str, list[Estimate]]] = {}
    for row, by_seed in by_row.items():
        order = seeds[row[1]]
        there = [m for m in metrics if all(m in by_seed[s] and math.isfinite(by_seed[s][m]) for s in order)]
        if len(order) > 1 and there:
            found[row] = {m: cumulative([by_seed[s][m] for s in order], interval) for m in there}
    return found


# ------------------------------------------------------------------------------------------------------------- showing


def _draw(
    output: Path,
    plans: Plans,
    means: Mapping[Row, Mapping[str, Estimate]],
    over_seeds: Mapping[Row, Mapping[str, Sequence[Estimate]]],
    metrics: Sequence[str],
) -> None:
    titles = _titles()
    for split in {cell.split for cell in plans}:
        for metric in (m for m in metrics if m.startswith("n")):
            if curves := curves_of(means, split, metric):
                draw_ap_against_shots(curves, output / f"{metric}_split{split}.png", metric)
            panels: dict[int, dict[str, list[tuple[float, float]]]] = defaultdict(dict)
            for name, title in titles.items():
                for (s, method, k), found in sorted(over_seeds.items()):
                    if (s, method) == (split, name) and metric in found:
                        panels[k][title] = [(e.mean, e.half_width) for e in found[metric]]
            if panels:
                draw_over_seeds(panels, output / f"{metric}_over_seeds_split{split}.png", metric)


def _one_for_all(seeds: Sequence[int] | Mapping[str, Sequence[int]]) -> tuple[int, ...] | None:
    """The seeds of all methods; None where they differ."""
    several = {tuple(s) for s in seeds.values()} if isinstance(seeds, Mapping) else {tuple(seeds)}
    return several.pop() if len(several) == 1 else None


def caption(seeds: Sequence[int] | Mapping[str, Sequence[int]], style: TableStyle = USUAL) -> str:
    """What the numbers of the table are."""
    one = _one_for_all(seeds)
    if one and len(one) == 1:
        return f"AP in percent, 1 seed ({one[0]}), so there is no interval."
    by_method = {"": one} if one else {method: tuple(several) for method, several in seeds.items()}  # type: ignore
    titles, groups = _titles(), dict.fromkeys(by_method.values())
    over = "; ".join(
        f"{len(group)} seed{'s' * (len(group) > 1)} ({', '.join(map(str, group))})"
        + " of " * (not one)
        + ", ".join(titles[method] for method, several in by_method.items() if several == group and method)
        for group in groups
    )
    factor = "Student's t" if style.interval == "t" else "1.96 s / sqrt(n)"
    return f"AP in percent, mean ± 95 % confidence interval ({factor}) over {over}."


def curves_of(
    means: Mapping[Row, Mapping[str, Estimate]], split: int, metric: str = "nAP"
) -> dict[str, dict[int, tuple[float, float]]]:
    """Method name -> K -> (mean of ``metric``, half width of its interval), in the order of the table; what has none
    left out."""
    curves: dict[str, dict[int, tuple[float, float]]] = {}
    for name, method in few_shot_methods().items():
        points = {
            shots: (values[metric].mean, values[metric].half_width)
            for (s, m, shots), values in sorted(means.items())
            if (s, m) == (split, name) and metric in values and not math.isnan(values[metric].mean)
        }
        if points:
            curves[method.title] = points
    return curves
