"""A benchmark of instance segmentation with few masks: run the trainings, then a table and a figure.

Which trainings there are is in trainings.py.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

from dyn_d2.engine.job_queue import run_pending
from dyn_d2.engine.stages import Stage
from dyn_d2.engine.workers import LocalWorkers, Training, Workers
from dyn_d2.evaluation.aggregate import Estimate, estimate, headline, table, write_benchmark
from dyn_d2.evaluation.figures import draw_bars_by_group
from dyn_d2.evaluation.results import read_results

from .trainings import CATEGORY, Cell, Method, Schedule, plan_cell

BASELINE, BOUND = "mask_rcnn", "oracle"
# Columns of the table of "category", and of that of the other settings; the first is the setting's main metric.
METRICS = {
    True: (
        "AP_without_masks", "AP50_without_masks", "AP75_without_masks", "AP_with_masks", "AP",
        "share_without_masks", "share_with_masks", "saliency_IoU_without_masks", "shape_IoU_without_masks",
    ),
    False: ("AP", "AP50", "AP75", "share", "saliency_IoU", "shape_IoU"),
}  # fmt: skip


def run(
    config_file: str,
    opts: Iterable[str],
    plans: Mapping[Cell, Sequence[Stage]],
    schedule: Schedule,
    known: Mapping[str, Method],
    workers: Callable[[], Workers] = LocalWorkers,
    launcher: Iterable[str] = (),
) -> None:
    """Train what is not trained yet; see ``run_pending``.

    Args:
        config_file, opts, schedule, known: those that the plans were made from.
        launcher: options of ``dyn-d2 train`` such as ``--num-gpus 2``.

    Raises:
        StageError: a training failed; what is finished stays finished.
    """
    opts, launcher = tuple(opts), tuple(launcher)

    def training(stage: Stage, cell: Cell) -> Training:
        planned = partial(plan_cell, cell=cell, schedule=schedule, known=dict(known))
        return Training(planned, config_file, opts, stage.folder, launcher)

    run_pending(plans, training, workers)


# ------------------------------------------------------------------------------------------------------------- results


def read_cells(plans: Mapping[Cell, Sequence[Stage]]) -> dict[Cell, dict[str, float]]:
    """Metrics of the masks of the models that are trained, "box_AP", and how good saliency and shape activation are
    where the method has them, all in percent."""
    found = {}
    for cell, stages in plans.items():
        if stages[-1].finished():
            record = read_results(stages[-1].folder)
            found[cell] = headline(record, "segm") | {"box_AP": headline(record)["AP"]}
            for task in ("shape", "true_boxes"):
                if task in next(iter(record["metrics"].values())):
                    found[cell] |= headline(record, task)
    return found


@dataclass(frozen=True)
class Row:
    """A method in a setting.

    Attributes:
        metrics: means over the row's seeds.
        gain: of the setting's main metric over the baseline, seed by seed; None without the baseline.
        gap_closed: the gain as a share of the gain of the oracle (percent, of the means), both over the seeds that
            baseline, method and oracle have; None where there is none.
    """

    setting: str
    method: str
    metrics: dict[str, Estimate]
    gain: Estimate | None
    gap_closed: float | None


def main_metric(setting: str) -> str:
    """AP of the masks of classes without masks in "category", of all classes otherwise."""
    return METRICS[setting == CATEGORY][0]


def rows(results: Mapping[Cell, Mapping[str, float]], known: Mapping[str, Method]) -> list[Row]:
    """A row for each method and setting, in the order of ``known`` and of the settings."""
    by_row: dict[tuple[str, str], dict[int, Mapping[str, float]]] = {}
    for cell, metrics in results.items():
        by_row.setdefault((cell.setting, cell.method), {})[cell.seed] = metrics

    def gain(setting: str, method: str, among: Collection[int]) -> Estimate | None:
        own, base = by_row.get((setting, method), {}), by_row.get((setting, BASELINE), {})
        metric = main_metric(setting)
        shared = [own[seed][metric] - base[seed][metric] for seed in own if seed in base and seed in among]
        return estimate(shared) if shared and method != BASELINE else None

    made = []
    settings = list(dict.fromkeys(setting for setting, _ in by_row))
    for setting, method in product(settings, known):
        seeds = by_row.get((setting, method), {})
        if not seeds:
            continue
        shared = [name for name in next(iter(seeds.values())) if all(name in metrics for metrics in seeds.values())]
        means = {name: estimate([metrics[name] for metrics in seeds.values()]) for name in shared}
        common = seeds.keys() & by_row.get((setting, BOUND), {}).keys()
        own, bound = gain(setting, method, common), gain(setting, BOUND, common)
        closed = 100 * own.mean / bound.mean if own and bound and bound.mean > 0 and method != BOUND else None
        made.append(Row(setting, method, means, gain(setting, method, seeds), closed))
    return made


def as_table(made: Sequence[Row], known: Mapping[str, Method]) -> str:
    """A markdown table for each kind of setting."""
    texts = []
    for category in (True, False):
        metrics = [*METRICS[category], "box_AP"]
        chosen = [row for row in made if (row.setting == CATEGORY) == category]
        metrics = [name for name in metrics if any(name in row.metrics for row in chosen)]
        lines = [
            (
                (row.setting, known[row.method].title, str(next(iter(row.metrics.values())).count)),
                {name: row.metrics.get(name, "-") for name in metrics}
                | {
                    "gain": row.gain or "-",
                    "gap closed": "-" if row.gap_closed is None else f"{row.gap_closed:.0f} %",
                },
            )
            for row in chosen
        ]
        if lines:
            texts.append(table(lines, ("setting", "method", "seeds"), [*metrics, "gain", "gap closed"]))
    return "\n\n".join(texts)


CAPTION = (
    "AP of masks in percent, mean ± 95 % confidence interval over the seeds; AP alone is over all classes. Gain: of "
    "the first column over training on the masks that there are (mask_rcnn), seed by seed. Gap closed: the gain as a "
    "share of what all masks bring (oracle), over the seeds that all three have. share: of objects above an IoU of 0.5 "
    "to 0.95, in their true boxes. saliency_IoU, shape_IoU: best overlap of the maps with the objects' masks "
    "(Wang 2020, section 8.4)."
)


def summarise(
    output: Path, plans: Mapping[Cell, Sequence[Stage]], schedule: Schedule, known: Mapping[str, Method]
) -> str:
    """Write benchmark.json, benchmark.md and benchmark.png about what is trained; returns the table."""
    results = read_cells(plans)
    made = rows(results, known)
    record = {
        "schedule": vars(schedule),
        "methods": {cell.method: list(known[cell.method].opts) for cell in plans},
        "rows": {
            f"{row.setting}/{row.method}": {
                **{name: value.as_json() for name, value in row.metrics.items()},
                "gain": row.gain.as_json() if row.gain else None,
                "gap_closed": row.gap_closed,
            }
            for row in made
        },
        "single": {f"{c.setting}/{c.method}/seed{c.seed}": found for c, found in results.items()},
    }
    text = as_table(made, known)
    write_benchmark(output, record, CAPTION, text)
    bars: dict[str, dict[str, tuple[float, float]]] = {}
    for row in made:
        value = row.metrics[main_metric(row.setting)]
        group = f"{row.setting}\n{main_metric(row.setting).replace('_', ' ')}"
        bars.setdefault(group, {})[known[row.method].title] = value.mean, value.half_width
    if bars:
        draw_bars_by_group(bars, output / "benchmark.png", "AP of masks (%)")
    return text
