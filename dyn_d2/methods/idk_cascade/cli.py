"""Calibrate an IDK cascade: trained models, cheapest first, of which expensive ones run only where cheap ones do not
know.

    dyn-d2 calibrate --weights fast/model_final.pth slow/model_final.pth \\
        --held-out digits_train_held_out --test digits_test --accuracy 97.5 --output output/cascade
    dyn-d2 calibrate --weights ... --held-out ... --budget 0.5 --output output/cascade

"model_final.pth@192" is a checkpoint asked at another size than its config says, "model_final.pth@192,KEY=VALUE" with
another key too; what one checkpoint gives in two ways are two models. Instead of a checkpoint a model may be
"timm:NAME", a pretrained classifier of timm ("timm:NAME@PIXELS" at another size), or "answers:FILE", the answers of a
person or of anything else (see dyn_d2.methods.idk_cascade.answers).

Thresholds are chosen on the held-out set; the test split and sets that a model was trained on are refused. Every method
of --methods is calibrated and compared; the best one is stored in the checkpoint of the first model, from which
dyn_d2.methods.idk_cascade.load_idk_cascade takes it. With --test the IDK cascade then really runs on the test images:
realised accuracy, multiply-adds and time stand beside the expected ones; the time is taken in turns with the models.
Writes cascade.json, cascade.md, curves.png,
uncertainty.png and, of classifiers, models.png (Fig. 4.2) and entropies.png (Fig. 4.5, with --seen on training images
too).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dyn_d2.data.parts import HELD_OUT, TEST, TRAIN
from dyn_d2.methods.idk_cascade.calibration import Member, store, stored_path
from dyn_d2.methods.idk_cascade.calibrators import FOR_CLASSIFIERS, FOR_DETECTORS, METHODS
from dyn_d2.methods.idk_cascade.execution import IDKCascadeModel
from dyn_d2.methods.idk_cascade.figures import (
    draw_curves,
    draw_entropies,
    draw_model_statistics,
    draw_time,
    draw_uncertainty,
)
from dyn_d2.methods.idk_cascade.members import is_checkpoint, load_members
from dyn_d2.methods.idk_cascade.report import (
    Measured,
    answer_all,
    check_models,
    check_order,
    compare_methods,
    curves_of,
    report,
    sweep,
    time_curve,
    time_in_turns,
    to_markdown,
)
from dyn_d2.methods.idk_cascade.search import Candidate, Goal
from dyn_d2.methods.idk_cascade.sizes import split_checkpoint
from dyn_d2.utils.atomic import atomic_write, write_json

from detectron2.utils.logger import setup_logger

# The networks are left out: each of their lambdas is a training.
USUAL = tuple(name for name in FOR_CLASSIFIERS if not name.endswith("network"))


def add_goal(parser: argparse.ArgumentParser, accuracy: str) -> None:
    """What a search for thresholds aims at; ``accuracy`` is the help of that option."""
    goal = parser.add_mutually_exclusive_group()
    goal.add_argument("--accuracy", type=float, help=accuracy)
    goal.add_argument("--budget", type=float, help="most it may cost, as a share of the last model's cost")


def check_goal(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with a usage message where ``--weights`` or ``add_goal``'s options cannot be meant so."""
    if len(args.weights) < 2:
        parser.error("--weights needs two or more models, the cheapest first")
    if args.accuracy is not None and 0 < args.accuracy <= 1:
        parser.error(f"--accuracy is in percent: {100 * args.accuracy:g}, not {args.accuracy:g}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs="+", required=True, help="models, from the cheapest to the most expensive")
    parser.add_argument("--held-out", required=True, help="registered data set that thresholds are chosen on")
    parser.add_argument("--seen", default="", help="registered data set that models were trained on, for entropies.png")
    parser.add_argument("--test", default="", help="registered data set to run the IDK cascade on")
    add_goal(parser, "percent that the IDK cascade has to keep (default: the last model's)")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), help="ways to calibrate that are compared")
    parser.add_argument("--lambdas", nargs="+", type=float, default=[], help="of the cost-aware objective (Eq. 4.12)")
    parser.add_argument("--stage-wise", action="store_true", help="one level after the other instead of jointly")
    parser.add_argument("--batch", type=int, default=1, help="images that are run at a time")
    parser.add_argument(
        "--rounds", type=int, default=1, help="times that each batch of --test is run by all, in turns, for their times"
    )
    parser.add_argument("--limit", type=int, default=0, help="use so many images of each set; 0 for all")
    parser.add_argument(
        "--time-points", type=int, default=5, help="IDK cascades of the curve over time; detectors only"
    )
    parser.add_argument("--no-store", action="store_true", help="leave the checkpoint of the first model as it is")
    parser.add_argument("--output", required=True, help="folder for the report and the figures")
    args = parser.parse_args(argv)
    check_goal(parser, args)
    if min(args.batch, args.rounds) < 1:
        parser.error("--batch and --rounds have to be at least 1")
    return args


def load(args: argparse.Namespace) -> list[IDKCascadeModel]:
    """The models, fit for each other and for the data."""
    models = load_members(args.weights, args.held_out)
    check_models(models, args.held_out, args.test)
    return models


def methods_of(asked: Sequence[str] | None, models: list[IDKCascadeModel], usual: Sequence[str]) -> tuple[str, ...]:
    """What --methods names, or what is usual for these models (``usual`` for classifiers).

    Raises:
        ValueError: it names methods of the other kind.
    """
    kind, known = ("classifiers", FOR_CLASSIFIERS) if models[0].classifies else ("detectors", FOR_DETECTORS)
    methods = tuple(asked or (usual if models[0].classifies else known))
    if not set(methods) <= set(known):
        raise ValueError(f"--methods for {kind} are {', '.join(known)}; not {', '.join(set(methods) - set(known))}.")
    return methods


def goal_of(args: argparse.Namespace, held_out: Measured) -> Goal:
    if args.accuracy is None and args.budget is None:
        return Goal.as_the_last(held_out.table)
    return Goal(None if args.accuracy is None else args.accuracy / 100, args.budget)


def draw(args, models, swept, held_out: Measured, test: Measured | None, record: dict) -> None:
    """The figures; for detectors AP against time, which runs further IDK cascades, goes into the record too."""
    folder, shown = Path(args.output), test or held_out
    label = "accuracy (%)" if models[0].classifies else "mean AP within an image (%)"
    curves = curves_of(swept, test.table if test else None)
    draw_curves(curves, shown.table, folder / "curves.png", label=f"{label}, {shown.dataset}")
    tables = {part.dataset: part.table for part in (held_out, test) if part}
    draw_uncertainty(tables, "entropy" if models[0].classifies else "box_entropy_sum", folder / "uncertainty.png")
    if models[0].classifies:
        if args.seen:
            seen = answer_all(models, args.seen, TRAIN, args.batch, args.limit)
            tables = {seen.dataset: seen.table, **tables}
        draw_entropies(tables, "entropy", folder / "entropies.png")
        speed = {str(args.batch): (1000 / shown.milliseconds).tolist()}
        draw_model_statistics(shown.table, speed, folder / "models.png")
    if test and not models[0].classifies:
        inference = folder / "inference"
        among = swept[record["stored"]]
        points = time_curve(models, among, test, args.batch, inference, args.time_points, args.rounds)
        record["time_curve"] = points
        name = f"{points[0]['metric']['name']} on {test.dataset}"
        draw_time(
            [(p["name"], p["milliseconds"], p["metric"]["value"]) for p in points], folder / "ap_against_time.png", name
        )


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    setup_logger(name="dyn_d2")
    output = Path(args.output)
    models = load(args)
    methods = methods_of(args.methods, models, USUAL)
    held_out = answer_all(models, args.held_out, HELD_OUT, args.batch, args.limit)
    check_order(held_out.table)
    goal = goal_of(args, held_out)
    joint = not args.stage_wise
    swept = sweep(held_out.table, methods, joint, args.lambdas)
    found = compare_methods(held_out.table, swept, goal, joint, args.lambdas)
    test = answer_all(models, args.test, TEST, args.batch, args.limit) if args.test else None
    reached = {name: chosen for name, chosen in found.items() if isinstance(chosen, Candidate)}
    taken: dict[str, float] = {}
    if test:
        test, taken = time_in_turns(models, reached, test, args.batch, args.rounds)
    measured = report(models, held_out, test, found, args.batch, output / "inference", taken)
    record = {"goal": vars(goal), **measured, "rounds": args.rounds if test else 0}
    best = goal.choose(list(reached.values()))
    record["stored"] = next(name for name, chosen in reached.items() if chosen is best)
    draw(args, models, swept, held_out, test, record)
    write_json(output / "cascade.json", record)
    with atomic_write(output / "cascade.md") as file:
        file.write(to_markdown(record) + "\n")
    print(f"\n{to_markdown(record)}\n\nbest on the held-out images: {record['stored']}")
    if not args.no_store and not is_checkpoint(args.weights[0]):
        print(f"not stored: {args.weights[0]} is no checkpoint that could carry it")
    elif not args.no_store:
        members = [
            Member(model.name, stored_path(path, args.weights[0]), model.weights_hash())
            for model, path in zip(models, args.weights, strict=True)
        ]
        about = {"method": record["stored"], "goal": record["goal"], "held_out": args.held_out,
                 **record["methods"][record["stored"]]}  # fmt: skip
        first, _ = split_checkpoint(args.weights[0])
        store(first, members, best.rules, about)
        print(f"stored in {first}")
    return 0
