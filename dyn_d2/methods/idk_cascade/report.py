"""An IDK cascade of networks, from checkpoints to a report: calibrated on held-out images, run on the test images.

The report puts what was expected from the held-out images beside what the running IDK cascade realised on the test
images.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate

from dyn_d2.data.classification import ensure_classes
from dyn_d2.data.parts import HELD_OUT, held_out_problem, trained_problem
from dyn_d2.data.registered import registered_records
from dyn_d2.evaluation.build import build_evaluator
from dyn_d2.evaluation.results import main_metric
from dyn_d2.utils.measure import describe_machine

from detectron2.data import DatasetCatalog

from .calibrators import calibrate, candidates, check_method
from .execution import IDKCascade, IDKCascadeModel, Run, collect, realised
from .networks import NetworkModel
from .outcome import Outcome, evaluate, oracle
from .search import Candidate, Goal, GoalNotReachedError, front
from .table import PredictionTable
from .timing import in_turns

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """The models of an IDK cascade on a data set: records, table, and the milliseconds (N,) of an image of each
    model."""

    dataset: str
    records: list[dict[str, Any]]
    table: PredictionTable
    milliseconds: np.ndarray


def check_models(models: Sequence[IDKCascadeModel], held_out: str, test: str = "") -> None:
    """
    Raises:
        KeyError: a data set is not registered.
        ValueError: classifiers and detectors mixed, other classes, or ``held_out`` is no held-out set of theirs.
    """
    for dataset in filter(None, (held_out, test)):
        if dataset not in DatasetCatalog.list():
            raise KeyError(f"data set {dataset} is not registered: see datasets/README.md for those that are.")
    check_kinds(models)
    for dataset in filter(None, (held_out, test)):
        names = ensure_classes(dataset)
        for model in models:
            model.fit_classes(dataset, names)
    tested = {name for model in models for name in model.tested_on} | ({test} if test else set())
    if held_out == test:
        raise ValueError(f"{test} cannot be both the held-out and the test set.")
    if problem := held_out_problem(held_out, (), tested):
        raise ValueError(problem)
    for model in models:
        if problem := trained_problem(held_out, model.trained_on, model.trained_data):
            raise ValueError(f"{model.name}: {problem}")


def check_kinds(models: Sequence[IDKCascadeModel]) -> None:
    """
    Raises:
        ValueError: classifiers and detectors mixed.
    """
    if len({model.classifies for model in models}) > 1:
        raise ValueError("an IDK cascade is of classifiers or of detectors: " + ", ".join(
            f"{model.name} is a {'classifier' if model.classifies else 'detector'}" for model in models))  # fmt: skip


def check_order(table: PredictionTable) -> None:
    """
    Raises:
        ValueError: a model costs more than a later one.
    """
    if (np.diff(table.costs) < 0).any():
        ordered = [table.names[i] for i in np.argsort(table.costs, kind="stable")]
        raise ValueError(
            f"{', '.join(table.names)} do not go from the cheapest model to the most expensive, which is what a "
            f"IDK cascade saves by: give them as {', '.join(ordered)}."
        )


def answer_all(models: Sequence[IDKCascadeModel], dataset: str, split: str, batch: int, limit: int = 0) -> Measured:
    """Run each model on all images of a registered data set, or on ``limit`` of them, evenly spread.

    Raises:
        ValueError: the set is empty.
    """
    records = registered_records(dataset)
    if limit and limit < len(records):
        records = [records[i] for i in np.linspace(0, len(records) - 1, limit).astype(int)]
    if not records:
        raise ValueError(f"{dataset} is empty: there is nothing to {'calibrate' if split == HELD_OUT else 'test'} on.")
    for model in models:
        model.check_images(records)
    logger.info(f"{dataset}: {len(records)} images, {len(models)} models")
    table, ms = collect(models, records, lambda m, answers: m.losses(records, answers), split, batch)
    return Measured(dataset, records, table, ms)


def time_in_turns(
    models: Sequence[IDKCascadeModel], cascades: Mapping[str, Candidate], test: Measured, batch: int, rounds: int
) -> tuple[Measured, dict[str, float]]:
    """``test`` with milliseconds of the models, and those of each of ``cascades``, all taken in turns."""
    runners: dict[str, Any] = {f"{i}: {model.name}": model for i, model in enumerate(models)}  # names may be equal
    runners |= {f"IDK cascade {name}": IDKCascade(models, chosen.rules) for name, chosen in cascades.items()}
    taken = [each["milliseconds"] for each in in_turns(runners, test.records, batch, rounds).values()]
    own, of_cascades = taken[: len(models)], taken[len(models) :]
    return replace(test, milliseconds=np.array(own)), dict(zip(cascades, of_cascades, strict=True))


def sweep(
    held_out: PredictionTable, methods: Sequence[str], joint: bool, lambdas: Sequence[float] = ()
) -> dict[str, list[Candidate]]:
    """For each method all its ``candidates``, made once for the choice and for the curves.

    Raises:
        ValueError: from ``check_method``, before anything is trained.
    """
    for method in methods:
        check_method(held_out, method, joint)
    return {method: candidates(held_out, method, lambdas=lambdas) for method in methods}


def compare_methods(
    held_out: PredictionTable,
    swept: Mapping[str, Sequence[Candidate]],
    goal: Goal,
    joint: bool,
    lambdas: Sequence[float] = (),
) -> dict[str, Candidate | str]:
    """For each method the calibrated IDK cascade, or why there is none.

    Raises:
        ValueError: not a single method reaches the goal.
    """
    found: dict[str, Candidate | str] = {}
    for method, among in swept.items():
        try:
            found[method] = calibrate(held_out, method, goal, joint=joint, lambdas=lambdas, among=among)
        except GoalNotReachedError as error:
            found[method] = str(error)
    if not any(isinstance(entry, Candidate) for entry in found.values()):
        raise GoalNotReachedError("; ".join(f"{method}: {why}" for method, why in found.items()))
    return found


def curves_of(swept: Mapping[str, Sequence[Candidate]], test: PredictionTable | None) -> dict[str, list[Outcome]]:
    """The curve of each method: its IDK cascades as they were found on held-out images, what they give on ``test``."""
    curves = {}
    for method, found in swept.items():
        found = found if len(found[0].rules) == 1 else front(found)
        curves[method] = [c.outcome if test is None else evaluate(test, c.rules) for c in found]
    return curves


def judge(
    model: NetworkModel, dataset: str, run: Sequence[Any] | np.ndarray, records: Sequence[dict], folder: Path
) -> dict[str, Any]:
    """The main metric of answers by the data set's own evaluator: top-1 accuracy, or COCO's AP."""
    evaluator = build_evaluator(model.cfg, dataset, str(folder))
    evaluator.reset()
    outputs = [{"scores": torch.from_numpy(answer)} for answer in run] if model.classifies else list(run)
    evaluator.process(list(records), outputs)
    return main_metric(evaluator.evaluate() or {})


def plain_metric(accuracy: float) -> dict[str, Any]:
    """Top-1 accuracy of models that bring no evaluator, as ``judge`` gives it."""
    return {"task": "classification", "name": "top1_accuracy", "value": 100 * accuracy}


def expected_row(name: str, outcome: Outcome, milliseconds: np.ndarray, images: int) -> dict[str, Any]:
    """A row of the report from a table: costs of 1e9 multiply-adds, time by how many images reach each model."""
    return {
        "images": name, "count": images, **outcome.record(), "gflops": outcome.cost / 1e9,
        "milliseconds": float(np.array(outcome.reach) @ milliseconds),
    }  # fmt: skip


def realised_row(name: str, run: Run, test: Measured, milliseconds: float) -> dict[str, Any]:
    """The same from a run; ``milliseconds`` are taken in turns with the models."""
    return {
        **expected_row(name, realised(run, test.table), test.milliseconds, len(run.answers)),
        "milliseconds": milliseconds,
        "deciding_milliseconds": 1000 * run.deciding / len(run.answers),
    }


def run_on_test(
    models: Sequence[IDKCascadeModel], chosen: Candidate, test: Measured, batch: int, folder: Path
) -> tuple[Run, dict[str, Any]]:
    """Run the IDK cascade on the test images, judged by their evaluator."""
    cascade = IDKCascade(models, chosen.rules)
    cascade(test.records[:batch])  # warm
    run = cascade.run(test.records, batch)
    own = [model for model in models if isinstance(model, NetworkModel)]
    if len(own) < len(models):  # they may differ in the classes that they know
        return run, plain_metric(realised(run, test.table).accuracy)
    return run, judge(own[0], test.dataset, run.answers, test.records, folder)


def time_curve(
    models: Sequence[NetworkModel],
    found: Sequence[Candidate],
    test: Measured,
    batch: int,
    folder: Path,
    points: int,
    rounds: int,
) -> list[dict[str, Any]]:
    """The test metric against measured milliseconds: each model alone, and ``points`` IDK cascades of ``found``, from
    the cheapest to the most expensive that were not beaten on the held-out images, all of them run, in turns."""
    best = front(found)
    spread = {str(i): best[i] for i in np.unique(np.linspace(0, len(best) - 1, points).astype(int))}
    test, taken = time_in_turns(models, spread, test, batch, rounds)
    rows = [
        {
            "name": model.name,
            "milliseconds": float(ms),
            "metric": judge(model, test.dataset, answers, test.records, folder),
        }
        for model, ms, answers in zip(models, test.milliseconds, test.table.outputs, strict=True)
    ]
    for number, chosen in spread.items():
        run, metric = run_on_test(models, chosen, test, batch, folder)
        name = f"IDK cascade, {chosen.outcome.relative_cost:.2f} expected"
        rows.append({"name": name, **realised_row("test", run, test, taken[number]), "metric": metric})
    return rows


def report(
    models: Sequence[IDKCascadeModel],
    held_out: Measured,
    test: Measured | None,
    found: dict[str, Candidate | str],
    batch: int,
    folder: Path,
    milliseconds: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Everything that was expected and measured, as plain numbers and text.

    Args:
        test, milliseconds: from ``time_in_turns``; None where nothing is tested.
    """
    milliseconds = milliseconds or {}
    sets = [held_out] if test is None else [held_out, test]
    described = []
    for i, model in enumerate(models):
        entry = {"name": model.name, "weights": model.weights, "gflops": float(held_out.table.costs[i]) / 1e9}
        entry["sets"] = {
            part.dataset: {"accuracy": float(part.table.accuracies[i]), "milliseconds": float(part.milliseconds[i])}
            for part in sets
        }
        if test is not None:
            entry["metric"] = (
                judge(model, test.dataset, test.table.outputs[i], test.records, folder)
                if isinstance(model, NetworkModel)
                else plain_metric(float(test.table.accuracies[i]))
            )
        described.append(entry)
    return {
        "models": described,
        "oracle": {part.dataset: oracle(part.table).record() for part in sets},
        "methods": {
            name: _of_method(models, held_out, test, chosen, batch, folder, milliseconds.get(name))
            for name, chosen in found.items()
        },
        "batch": batch,
        "machine": describe_machine(models[0].device, models[0].dtype),
    }


def _of_method(
    models: Sequence[IDKCascadeModel],
    held_out: Measured,
    test: Measured | None,
    chosen: Candidate | str,
    batch: int,
    folder: Path,
    milliseconds: float | None,
) -> dict[str, Any]:
    if isinstance(chosen, str):
        return {"problem": chosen}
    timed = held_out if test is None else test
    rows = [expected_row("held-out, expected", chosen.outcome, timed.milliseconds, len(held_out.table))]
    if test is None or milliseconds is None:
        return {"settings": chosen.settings, "rows": rows}
    run, metric = run_on_test(models, chosen, test, batch, folder)
    rows.append(realised_row("test, realised", run, test, milliseconds))
    return {"settings": chosen.settings, "rows": rows, "metric": metric}


def _how_timed(record: dict[str, Any]) -> str:
    one_by_one = "each model once, one after another, so that a slow minute of the machine hits some of them only"
    if not record["rounds"]:
        return f"Times: {one_by_one}."
    held_out, test = record["oracle"]
    return (
        f"Times on {test}, and the expected ones: models and IDK cascades in turns, the least of {record['rounds']} "
        f"for each batch, without decoding. Times on {held_out}: {one_by_one}."
    )


def to_markdown(record: dict[str, Any]) -> str:
    """The report as two tables and a line on how its numbers came about."""
    sets = list(record["oracle"])
    heads = ["model", "GFLOPs", *(f"accuracy (%), ms/image: {name}" for name in sets)]
    single = [
        [model["name"], f"{model['gflops']:.4g}",
         *(f"{100 * own['accuracy']:.2f}, {own['milliseconds']:.2f}" for own in model["sets"].values())]
        for model in record["models"]
    ]  # fmt: skip
    rows = []
    for method, entry in record["methods"].items():
        if "problem" in entry:
            rows.append([method, "goal not reached", *[""] * 6])
        for row in entry.get("rows", ()):
            rates = " / ".join(f"{100 * rate:.1f}" for rate in row["idk_rates"])
            rows.append(
                [method, row["images"], f"{100 * row['accuracy']:.2f}", rates, f"{row['gflops']:.4g}",
                 f"{row['relative_cost']:.3f}", f"{row['milliseconds']:.2f}", row["count"]]
            )  # fmt: skip
    cascade_heads = [
        "IDK classifier",
        "images",
        "accuracy (%)",
        "IDK rate (%)",
        "GFLOPs",
        "relative cost",
        "ms/image",
        "count",
    ]
    best = ", ".join(
        f"{100 * own['accuracy']:.2f} % at {own['relative_cost']:.3f} on {name}"
        for name, own in record["oracle"].items()
    )
    machine = record["machine"]
    unreached = [f"{name}: {entry['problem']}" for name, entry in record["methods"].items() if "problem" in entry]
    return "\n\n".join(
        [
            tabulate(single, headers=heads, tablefmt="pipe", disable_numparse=True),
            tabulate(rows, headers=cascade_heads, tablefmt="pipe", disable_numparse=True),
            f"Oracle: {best}. GFLOPs: 1e9 multiply-adds, mean per image; relative: to the last model's. Batch "
            f"{record['batch']}, {machine['device']}, {machine['threads']} thread(s), load {machine['load']:.1f}; "
            f"the expected time is each model's own by the share of images that reach it. {_how_timed(record)}",
            *unreached,
        ]
    )
