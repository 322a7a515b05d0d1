"""Judge IDK cascades of models that nobody trains here: labelled images alone, thresholds by cross-fitting.

    dyn-d2 cross-calibrate --weights timm:tf_efficientnet_lite0 timm:tf_efficientnet_lite2 \\
        --images imagenette160_val --budget 0.68 --output output/lite

One random half of the images chooses the thresholds and the other half judges them, both ways, --repeats times. Beside
each cascade stand the difference of its accuracy to the last model's, with a paired bootstrap interval over the images,
and its multiply-adds as a share of the last model's. Of detectors accuracy is the mean average precision within an
image; the metric of the data set, such as COCO's AP, stands beside it. With more than two models every row of them that
ends with the last one is judged, and so is the row that the choosing half takes. With --rounds the cascades of the
first method and the first halves really run, in turns with the models, at each batch size of --batch. Writes
cross_fit.json, cross_fit.md and, of classifiers, models.png (Fig. 4.2), and keeps the models' answers in answers.npz.

Models are written as for dyn-d2 calibrate.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from tabulate import tabulate

from dyn_d2.data.classification import ensure_classes
from dyn_d2.data.parts import HELD_OUT, trained_problem
from dyn_d2.data.registered import registered_records, unregistered
from dyn_d2.methods.idk_cascade.calibrators import FOR_CLASSIFIERS, FOR_DETECTORS
from dyn_d2.methods.idk_cascade.cli import add_goal, check_goal, methods_of
from dyn_d2.methods.idk_cascade.cross_fit import Choice, CrossFit, cross_fit, part_cascades, summary
from dyn_d2.methods.idk_cascade.execution import IDKCascade, IDKCascadeModel
from dyn_d2.methods.idk_cascade.figures import draw_model_statistics
from dyn_d2.methods.idk_cascade.kept_answers import answers_of
from dyn_d2.methods.idk_cascade.members import load_members
from dyn_d2.methods.idk_cascade.networks import NetworkModel
from dyn_d2.methods.idk_cascade.outcome import oracle
from dyn_d2.methods.idk_cascade.report import check_kinds, check_order, judge
from dyn_d2.methods.idk_cascade.search import Goal, GoalNotReachedError
from dyn_d2.methods.idk_cascade.table import PredictionTable
from dyn_d2.methods.idk_cascade.timing import in_turns
from dyn_d2.utils.atomic import atomic_write, write_json
from dyn_d2.utils.measure import describe_machine

from detectron2.utils.logger import setup_logger

METHODS = tuple(name for name in FOR_CLASSIFIERS if not name.endswith("network") and name != "oblivious")
TAKEN = "taken by the choosing half"


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs="+", required=True, help="models, from the cheapest to the most expensive")
    parser.add_argument("--images", required=True, help="registered data set, which no model was trained on")
    add_goal(parser, "percent that the choosing half has to show (default: the last model's there)")
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, *FOR_DETECTORS], help="ways to calibrate")
    parser.add_argument("--repeats", type=int, default=10, help="random halves (default: %(default)s)")
    parser.add_argument("--batch", nargs="+", type=int, default=[1], help="batch sizes to take times at")
    parser.add_argument("--rounds", type=int, default=0, help="times that each batch is run by all; 0: no times")
    parser.add_argument("--time-limit", type=int, default=0, help="take times of so many images; 0 for all")
    parser.add_argument("--output", required=True, help="folder for the report and the models' answers")
    args = parser.parse_args(argv)
    check_goal(parser, args)
    if args.repeats < 1 or min(args.batch) < 1 or args.rounds < 0 or args.time_limit < 0:
        parser.error("--repeats and --batch have to be at least 1, --rounds and --time-limit at least 0")
    return args


def goal_of(args: argparse.Namespace, table: PredictionTable) -> Goal:
    if args.accuracy is None and args.budget is None:
        return Goal.as_the_last(table)
    return Goal(None if args.accuracy is None else args.accuracy / 100, args.budget)


def load(args: argparse.Namespace) -> tuple[list[IDKCascadeModel], list[dict[str, Any]]]:
    """The models, and the records of the images.

    Raises:
        ValueError: the data set is not registered; classifiers and detectors mixed; a model that was trained on the
            images; other classes.
    """
    if said := unregistered([args.images]):
        raise ValueError(said)
    models = load_members(args.weights, args.images)
    check_kinds(models)
    for model in models:
        if problem := trained_problem(args.images, model.trained_on, model.trained_data):
            raise ValueError(f"{model.name}: {problem}")
        model.fit_classes(args.images, ensure_classes(args.images))
    records = registered_records(args.images)
    for model in models:
        model.check_images(records)
    return models, records


def judge_all(args: argparse.Namespace, table: PredictionTable) -> dict[tuple[str, str], CrossFit | str]:
    """(method, row of models) -> what was judged, or why there is nothing."""
    parts = part_cascades(len(table.names))
    rows = {" + ".join(table.names[i] for i in part): [part] for part in parts}
    if len(parts) > 1:
        rows[TAKEN] = parts
    found: dict[tuple[str, str], CrossFit | str] = {}
    for method in args.methods:
        for name, allowed in rows.items():
            try:
                found[method, name] = cross_fit(table, method, lambda own: goal_of(args, own), allowed, args.repeats)
            except GoalNotReachedError as error:
                found[method, name] = str(error)
    return found


def set_metric(
    each: CrossFit, table: PredictionTable, judge_of: Callable[..., dict[str, Any]], last: dict[str, Any]
) -> dict[str, Any]:
    """The data set's own metric of a cascade of detectors, mean and deviation over the repeats.

    Args:
        judge_of: ``judge`` for these images; takes ``run``, the answers.
        last: what it says of the last detector.
    """
    mixed = [[table.outputs[m][i] for i, m in enumerate(row.tolist())] for row in each.models]
    values = [judge_of(run=answers)["value"] for answers in mixed]
    return {
        "name": last["name"], "value": float(np.mean(values)), "deviation_over_repeats": float(np.std(values)),
        "difference": float(np.mean(values)) - last["value"],
    }  # fmt: skip


def running(choice: Choice, models: list[IDKCascadeModel]) -> IDKCascade | IDKCascadeModel:
    members = [models[number] for number in choice.models]
    return IDKCascade(members, choice.rules) if choice.rules else members[0]


def take_times(
    args: argparse.Namespace, models: list[IDKCascadeModel], records: list, found: dict[tuple[str, str], CrossFit | str]
) -> dict[str, dict[str, dict[str, float]]]:
    """Batch size -> models and cascades -> milliseconds; a cascade runs on the half that it was not chosen on."""
    timed = {key: each for key, each in found.items() if isinstance(each, CrossFit) and key[0] == args.methods[0]}
    if not timed or not args.rounds:
        return {}
    share = args.time_limit / len(records) if 0 < args.time_limit < len(records) else 1.0
    judged = next(iter(timed.values())).halves[0][::-1]  # the second half is judged by what the first has chosen
    groups = [half[np.linspace(0, len(half) - 1, max(1, round(share * len(half)))).astype(int)] for half in judged]
    runners: dict[str, Any] = {model.name: model for model in models}
    for (method, row), each in timed.items():
        runners[f"{method}: {row}"] = [running(choice, models) for choice in each.choices[0]]
    return {str(batch): in_turns(runners, records, batch, args.rounds, groups) for batch in args.batch}


def relative_times(times: dict[str, dict[str, float]], name: str, last: str) -> dict[str, float]:
    """Each kind of time, as a share of the last model's."""
    return {kind: times[name][kind] / times[last][kind] for kind in times[name]}


def metric_heads(record: dict[str, Any]) -> list[str]:
    """The data set's own metric, where one was taken."""
    return [model["metric"]["name"] for model in record["models"][:1] if "metric" in model]


def metric_cells(entry: dict[str, Any]) -> list[str]:
    """The same of a model or of a cascade."""
    metric = entry.get("metric")
    if not metric:
        return []
    return [f"{metric['value']:.2f}" + (f" ({metric['difference']:+.2f})" if "difference" in metric else "")]


def to_markdown(record: dict[str, Any]) -> str:
    """Two tables, and what the numbers are."""
    last = record["models"][-1]["name"]
    single = [
        [m["name"], f"{m['gflops']:.4g}", f"{m['relative_cost']:.3f}", f"{100 * m['accuracy']:.2f}", *metric_cells(m),
         *(f"{t[m['name']]['milliseconds']:.2f} ({t[m['name']]['cpu_milliseconds']:.2f})"
           for t in record["times"].values())]
        for m in record["models"]
    ]  # fmt: skip
    rows = []
    for entry in record["cascades"]:
        if "problem" in entry:
            rows.append([entry["method"], entry["models"], "goal not reached", ""])
            continue
        low, high = (100 * value for value in entry["difference_interval_95"])
        rows.append(
            [entry["method"], entry["models"], f"{100 * entry['accuracy']:.2f}",
             f"{100 * entry['difference']:+.2f} [{low:+.2f}, {high:+.2f}]", *metric_cells(entry),
             f"{entry['relative_cost']:.3f}",
             *(f"{share['milliseconds']:.3f} ({share['cpu_milliseconds']:.3f})"
               for share in entry["relative_time"].values())]
        )  # fmt: skip
    batches = list(record["times"])
    heads = ["model", "GFLOPs", "relative cost", record["measure"], *metric_heads(record),
             *(f"ms/image, batch {b}" for b in batches)]  # fmt: skip
    cascade_heads = ["IDK classifier", "models", record["measure"], f"difference to {last} [95 %]",
                     *metric_heads(record), "relative cost",
                     *(f"relative time, batch {b}" for b in batches)]  # fmt: skip
    machine = record["machine"]
    return "\n\n".join(
        [
            tabulate(single, headers=heads, tablefmt="pipe", disable_numparse=True),
            tabulate(rows, headers=cascade_heads, tablefmt="pipe", disable_numparse=True),
            f"{record['images']}: {record['count']} images, judged by thresholds of the other half, means over "
            f"{record['repeats']} random halves; intervals by bootstrap over images, paired. Times in turns, the least "
            f"of {record['rounds']} for each batch, without decoding (in brackets processor time, which other work of "
            f"the machine does not lengthen): {machine['device']}, {machine['threads']} "
            f"thread(s), load {machine['load']:.1f}.",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    setup_logger(name="dyn_d2")
    output = Path(args.output)
    models, records = load(args)
    args.methods = methods_of(args.methods, models, METHODS)
    table = answers_of(models, records, output / "answers.npz", HELD_OUT)
    check_order(table)
    found = judge_all(args, table)
    times = take_times(args, models, records, found)
    judge_of = partial(judge, cast(NetworkModel, models[0]), args.images, records=records, folder=output / "inference")
    metrics = [] if models[0].classifies else [judge_of(run=answers) for answers in table.outputs]
    own: list[dict[str, Any]] = [{"metric": metric} for metric in metrics] or [{}] * len(models)
    cascades = []
    for (method, row), each in found.items():
        entry: dict[str, Any] = {"method": method, "models": row}
        if isinstance(each, str):
            cascades.append({**entry, "problem": each})
            continue
        timed = times if method == args.methods[0] else {}
        shares = {b: relative_times(t, f"{method}: {row}", models[-1].name) for b, t in timed.items()}
        entry |= {**summary(each, table), "relative_time": shares}
        if metrics:
            entry["metric"] = set_metric(each, table, judge_of, metrics[-1])
        cascades.append(entry)
    record = {
        "goal": {"accuracy": args.accuracy, "budget": args.budget}, "images": args.images, "count": len(records),
        "measure": "accuracy (%)" if models[0].classifies else "AP within an image (%)",
        "repeats": args.repeats, "rounds": args.rounds, "time_limit": args.time_limit,
        "models": [
            {"name": model.name, "weights": model.weights, "gflops": float(cost) / 1e9,
             "relative_cost": float(cost / table.costs[-1]), "accuracy": float(accuracy), **metric}
            for model, cost, accuracy, metric in zip(models, table.costs, table.accuracies, own, strict=True)
        ],
        "cascades": cascades, "oracle": oracle(table).record(), "times": times,
        "machine": describe_machine(models[0].device, models[0].dtype),
    }  # fmt: skip
    write_json(output / "cross_fit.json", record)
    with atomic_write(output / "cross_fit.md") as file:
        file.write(to_markdown(record) + "\n")
    throughput = {b: [1000 / t[model.name]["milliseconds"] for model in models] for b, t in times.items()}
    if models[0].classifies:
        draw_model_statistics(table, throughput, output / "models.png")
    print(f"\n{to_markdown(record)}")
    return 0
