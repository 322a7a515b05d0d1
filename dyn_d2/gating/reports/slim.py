"""What ``dyn-d2 slim`` shows: the gated network beside its control, against multiply-adds and milliseconds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from dyn_d2.gating.reports.route_figures import draw_routes
from dyn_d2.gating.reports.route_page import write_page
from dyn_d2.gating.reports.routes import RouteTable
from dyn_d2.gating.reports.tradeoff import Point, draw, executed_gflops, measure, read_point, time_points
from dyn_d2.gating.slim import Slimmed
from dyn_d2.utils.atomic import atomic_write, write_json

GATED, CONTROL, START = "gated", "control (no gates, as many iterations)", "start (no gates)"


def report(done: Slimmed, output: Path, batches: Sequence[int] = (1, 8), timed: int = 50) -> dict[str, Any]:
    """Measure all networks on DATASETS.TEST and in turns on the clock; write slim.json, slim.md, slim.png and
    routes/index.html.

    Args:
        done: what was trained.
        output: folder for all of it.
        batches: sizes to time.
        timed: calls at each size.

    Returns:
        What slim.json holds.
    """
    stages = {GATED: done.gated, CONTROL: done.control} | ({START: done.start} if done.start else {})
    points = [
        Point(str(stage.weights), str(stage.folder / "config.yaml"), dense=name != GATED)
        for name, stage in stages.items()
    ]
    folder = output / "points"
    records = [measure(point, [], folder) for point in points]
    times = time_points(points, [], folder, list(batches), timed)
    records = [{**record, **own} for record, own in zip(records, times, strict=True)]
    found = {**summary(records[0], records[1]), "threshold": done.calibrated.threshold,
             "share_on_training_images": done.calibrated.share,
             "networks": dict(zip(stages, records, strict=True))}  # fmt: skip
    write_json(output / "slim.json", found)
    with atomic_write(output / "slim.md") as file:
        file.write(f"{table(found['networks'], found)}\n")
    draw(records, {record["weights"]: name for record, name in zip(records, stages, strict=True)}, output / "slim.png")
    _show_routes(done, folder, records[0], output / "routes")
    return found


def summary(gated: Mapping[str, Any], control: Mapping[str, Any]) -> dict[str, Any]:
    """The comparison in numbers: difference of the metric in points, share of the multiply-adds, and for each batch the
    share of time and what of the saved multiply-adds was saved on the clock ("realised")."""
    executed, dense = executed_gflops(gated["routes"]), executed_gflops(control["routes"])
    shares = {
        batch: gated["milliseconds"][batch]["median"] / control["milliseconds"][batch]["median"]
        for batch in gated["milliseconds"]
    }
    saved = 1 - executed / dense
    return {
        "metric": gated["metric"]["name"],
        "difference": gated["metric"]["value"] - control["metric"]["value"],
        "share_of_network": gated["routes"]["executed_percent"] / 100,
        "share_of_model": executed / dense,
        "share_of_time": shares,
        "realised": {batch: (1 - share) / saved if saved > 0 else 0.0 for batch, share in shares.items()},
    }


def table(networks: Mapping[str, Mapping[str, Any]], found: Mapping[str, Any]) -> str:
    """A markdown table of all networks; what is meant by each number below it."""
    batches = list(found["share_of_time"])
    rows = [
        [name, f"{record['metric']['value']:.2f}", f"{1000 * executed_gflops(record['routes']):.4g}",
         *(f"{record['milliseconds'][batch]['median']:.3g}" for batch in batches)]
        for name, record in networks.items()
    ]  # fmt: skip
    heads = [found["metric"], "multiply-adds (M)", *(f"ms an image, batch {batch}" for batch in batches)]
    text = tabulate(rows, headers=["network", *heads], tablefmt="pipe", disable_numparse=True)
    clock = ", ".join(
        f"{found['share_of_time'][b]:.1%} at batch {b} ({found['realised'][b]:.2f} of what the count says)"
        for b in batches
    )
    return (
        f"{text}\n\nGated against control: {found['difference']:+.2f} {found['metric']} at "
        f"{found['share_of_network']:.1%} of the gated network's and {found['share_of_model']:.1%} of the whole "
        f"model's multiply-adds, gates included. Time: {clock}."
    )


def _show_routes(done: Slimmed, folder: Path, gated: Mapping[str, Any], output: Path) -> None:
    found = [path for path in folder.glob("*/inference/routes*.npz") if _is_of(path, gated)]
    tables = {path.stem: RouteTable.load(path) for path in found}
    for name, routes in tables.items():
        draw_routes(routes, output, f"{name}_" if len(tables) > 1 else "")
    write_page(tables, output / "index.html")


def _is_of(path: Path, record: Mapping[str, Any]) -> bool:
    point = path.parent.parent / "point.json"
    return point.is_file() and read_point(point)["settings"] == record["settings"]
