"""Instance segmentation with few masks: methods x settings x seeds, trained once each, then a table and a figure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from dyn_d2.evaluation.aggregate import Estimate, estimate, headline, table
from dyn_d2.evaluation.figures import draw_bars_by_group
from dyn_d2.evaluation.results import read_results, versions, write_results
from dyn_d2.utils.atomic import atomic_write

from detectron2.config import CfgNode

from .job_queue import quiet, run_pending
from .setup import build_cfg, read_cfg
from .stages import Stage, run_stage

# Detectors from which several methods may start: their config without masks.
DETECTORS = {"faster_rcnn": ("MODEL.ROI_HEADS.NAME", "DynROIHeads")}


@dataclass(frozen=True)
class Method:
    """How masks are learnt.

    Attributes:
        title: its row of the table.
        opts: KEY VALUE pairs.
        all_masks: it has all masks, whatever the setting: an upper bound.
        detector: key of DETECTORS.
    """

    title: str
    opts: tuple[str, ...]
    all_masks: bool = False
    detector: str = "faster_rcnn"


_PLAIN = ("MODEL.ROI_HEADS.NAME", "DynROIHeads")
_SHAPE_PROP = ("MODEL.ROI_HEADS.NAME", "ShapePropROIHeads", "MODEL.SHAPE_PROP.OUTPUT_MAPS", "True")
# In the order of the table. Rows of Tables 8.1 to 8.3 and the ablation of Table 8.4.
METHODS = {
    "mask_rcnn": Method("Mask R-CNN", _PLAIN),
    "mask_x": Method(
        "Mask^X R-CNN",
        (
            *_PLAIN,
            "MODEL.ROI_MASK_HEAD.NAME",
            "WeightTransferMaskHead",
            "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK",
            "False",
        ),
    ),
    "shapeprop": Method("Mask R-CNN + ShapeProp", _SHAPE_PROP),
    "no_mil": Method("ShapeProp without MIL", (*_SHAPE_PROP, "MODEL.SHAPE_PROP.MIL", "False")),
    "no_propagation": Method("ShapeProp without propagation", (*_SHAPE_PROP, "MODEL.SHAPE_PROP.PROPAGATION", "False")),
    "no_integration": Method("ShapeProp without integration", (*_SHAPE_PROP, "MODEL.SHAPE_PROP.INTEGRATION", "none")),
    "oracle": Method("Mask R-CNN, all masks", _PLAIN, all_masks=True),
    "oracle_shapeprop": Method("Mask R-CNN + ShapeProp, all masks", _SHAPE_PROP, all_masks=True),
}
BASELINE, BOUND = "mask_rcnn", "oracle"
CATEGORY = "category"
# Columns of the table of "category", and of that of the other settings; the first is the setting's main metric.
METRICS = {
    True: (
        "AP_without_masks", "AP50_without_masks", "AP75_without_masks", "AP_with_masks", "AP",
        "saliency_IoU_without_masks", "shape_IoU_without_masks",
    ),
    False: ("AP", "AP50", "AP75", "saliency_IoU", "shape_IoU"),
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One final model: a name of a method, "category" or "image_P" (masks of P percent of the images), and a seed."""

    method: str
    setting: str
    seed: int


@dataclass(frozen=True)
class Schedule:
    """How long is trained.

    Attributes:
        mask_iterations: with masks.
        box_iterations: before that without, once a seed for all methods; 0: each starts from MODEL.WEIGHTS.
        mask_rate: SOLVER.BASE_LR with masks; None: the config's.
    """

    mask_iterations: int
    box_iterations: int = 0
    mask_rate: float | None = None


@dataclass
class MaskStage(Stage):
    """One training of the benchmark; ``given`` are the keys in which it differs from the others."""

    given: list[str] = field(default_factory=list)

    def opts(self) -> list[str]:
        return self.given

    def initial_weights(self, resume: bool) -> Path | None:
        """The detector without masks, if there is one."""
        return self.parents[-1].weights if self.parents else None


def cells(
    methods: Sequence[str], settings: Sequence[str], seeds: Sequence[int], known: Mapping[str, Method]
) -> list[Cell]:
    """All combinations; seeds vary slowest, so that every row of the table has its first number early.

    Raises:
        ValueError: a method or setting that there is not, or nothing of one kind.
    """
    unknown = sorted(set(methods) - known.keys())
    if unknown:
        raise ValueError(f"unknown method {', '.join(unknown)}: use {', '.join(known)}, or define it by --method.")
    for what, values in (("method", methods), ("setting", settings), ("seed", seeds)):
        if not values:
            raise ValueError(f"not a single {what} is given.")
    for setting in settings:
        _image_share(setting)
    return list(dict.fromkeys(Cell(m, setting, seed) for seed, setting, m in product(seeds, settings, methods)))


def _image_share(setting: str) -> float:
    """Share of the images whose masks are used.

    Raises:
        ValueError: no such setting.
    """
    if setting == CATEGORY:
        return 1.0
    kind, _, percent = setting.partition("_")
    try:
        share = float(percent) / 100
        if kind != "image" or not 0 < share <= 1:
            raise ValueError
    except ValueError:
        raise ValueError(
            f"unknown setting {setting!r}: use {CATEGORY}, or image_10 for masks of 10 percent of the images."
        ) from None
    return share


# ------------------------------------------------------------------------------------------------------------- running


def plan(
    config_file: str, opts: Iterable[str], wanted: Sequence[Cell], schedule: Schedule, known: Mapping[str, Method]
) -> dict[Cell, list[Stage]]:
    """The stages of each cell: the common detector, if there is one, and the training with masks.

    A method with all masks has one training a seed, in whatever settings it is asked for. "category" uses the masks of
    the config's INPUT.PARTIAL_MASKS.CLASSES, and every evaluation of the benchmark tells these classes from the others.

    Raises:
        ValueError: "category" is asked for, but the config names no classes.
    """
    opts = list(opts)
    cfg = read_cfg(config_file, opts)
    if any(cell.setting == CATEGORY for cell in wanted) and not cfg.INPUT.PARTIAL_MASKS.CLASSES:
        raise ValueError(
            "setting category: INPUT.PARTIAL_MASKS.CLASSES is empty, so that no class would lack masks. Name those "
            "that have masks."
        )
    with quiet():
        return {cell: _stages(cfg, config_file, opts, cell, known[cell.method], schedule) for cell in wanted}


def _stages(
    cfg: CfgNode, config_file: str, opts: list[str], cell: Cell, method: Method, schedule: Schedule
) -> list[Stage]:
    def stage(name: str, own: dict, more: Iterable[str], parents: list[Stage]) -> MaskStage:
        own |= {"SEED": cell.seed, "INPUT.PARTIAL_MASKS.SEED": cell.seed}
        given = [str(part) for pair in own.items() for part in pair] + list(more)
        stage_cfg = build_cfg(config_file, [*opts, *given])
        folder = Path(cfg.OUTPUT_DIR) / name
        return MaskStage(name, folder, stage_cfg, parents, given)

    parents: list[Stage] = []
    if schedule.box_iterations:
        own = {"MODEL.MASK_ON": False, **_partial_masks([], 1.0), **_solver(cfg, schedule.box_iterations)}
        parents = [stage(f"box_{method.detector}_seed{cell.seed}", own, DETECTORS[method.detector], [])]
    masked = list(cfg.INPUT.PARTIAL_MASKS.CLASSES)
    if method.all_masks:
        data, name = _partial_masks([], 1.0), f"{cell.method}_seed{cell.seed}"
    else:
        data = _partial_masks(masked if cell.setting == CATEGORY else [], _image_share(cell.setting))
        name = f"{cell.method}_{cell.setting}_seed{cell.seed}"
    own = {**data, **_solver(cfg, schedule.mask_iterations), "TEST.MASKED_CLASSES": masked}
    if schedule.mask_rate is not None:
        own["SOLVER.BASE_LR"] = schedule.mask_rate
    return [*parents, stage(name, own, method.opts, parents)]


def _partial_masks(classes: list[str], fraction: float) -> dict:
    return {"INPUT.PARTIAL_MASKS.CLASSES": classes, "INPUT.PARTIAL_MASKS.FRACTION": fraction}


def _solver(cfg: CfgNode, iterations: int) -> dict:
    """The config's schedule, squeezed or stretched; the warm-up keeps its length where it fits in."""
    share = iterations / cfg.SOLVER.MAX_ITER
    return {
        "SOLVER.MAX_ITER": iterations,
        "SOLVER.STEPS": tuple(round(step * share) for step in cfg.SOLVER.STEPS),
        "SOLVER.WARMUP_ITERS": min(cfg.SOLVER.WARMUP_ITERS, iterations // 4),
    }


def run(
    config_file: str,
    opts: Iterable[str],
    plans: Mapping[Cell, Sequence[Stage]],
    jobs: int = 1,
    launcher: Iterable[str] = (),
) -> None:
    """Train what is not trained yet; see ``run_pending``.

    Raises:
        StageError: a training failed; what is finished stays finished.
    """
    opts, launcher = list(opts), list(launcher)
    run_pending(plans, lambda stage, _: run_stage(stage, config_file, opts, launcher), jobs)


# ------------------------------------------------------------------------------------------------------------- results


def read_cells(plans: Mapping[Cell, Sequence[Stage]]) -> dict[Cell, dict[str, float]]:
    """Metrics of the masks of the models that are trained, "box_AP", and how good saliency and shape activation are
    where the method has them, all in percent."""
    found = {}
    for cell, stages in plans.items():
        if stages[-1].finished():
            record = read_results(stages[-1].folder)
            found[cell] = headline(record, "segm") | {"box_AP": headline(record)["AP"]}
            if "shape" in next(iter(record["metrics"].values())):
                found[cell] |= headline(record, "shape")
    return found


@dataclass(frozen=True)
class Row:
    """A method in a setting.

    Attributes:
        metrics: means over the row's seeds.
        gain: of the setting's main metric over the baseline, seed by seed; None without the baseline.
        gap_closed: that gain as a share of the gain of the oracle (percent, of the means); None where there is none.
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

    def gain(setting: str, method: str) -> Estimate | None:
        own, base = by_row.get((setting, method), {}), by_row.get((setting, BASELINE), {})
        metric = main_metric(setting)
        shared = [own[seed][metric] - base[seed][metric] for seed in own if seed in base]
        return estimate(shared) if shared and method != BASELINE else None

    made = []
    settings = list(dict.fromkeys(setting for setting, _ in by_row))
    for setting, method in product(settings, known):
        seeds = by_row.get((setting, method), {})
        if not seeds:
            continue
        shared = [name for name in next(iter(seeds.values())) if all(name in metrics for metrics in seeds.values())]
        means = {name: estimate([metrics[name] for metrics in seeds.values()]) for name in shared}
        own, bound = gain(setting, method), gain(setting, BOUND)
        closed = 100 * own.mean / bound.mean if own and bound and bound.mean > 0 and method != BOUND else None
        made.append(Row(setting, method, means, own, closed))
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
    "the first column over Mask R-CNN, seed by seed. Gap closed: that gain as a share of the gain that all masks bring "
    "to Mask R-CNN. saliency_IoU, shape_IoU: best overlap of the maps with the objects' masks (thesis 8.4)."
)


def summarise(
    output: Path, plans: Mapping[Cell, Sequence[Stage]], schedule: Schedule, known: Mapping[str, Method]
) -> str:
    """Write benchmark.json, benchmark.md and benchmark.png about what is trained; returns the table."""
    results = read_cells(plans)
    made = rows(results, known)
    record = {
        "interval": "1.96 s / sqrt(n)",
        "schedule": vars(schedule),
        "methods": {cell.method: list(known[cell.method].opts) for cell in plans},
        "rows": {
            f"{row.setting}/{row.method}": {
                **{name: _as_json(value) for name, value in row.metrics.items()},
                "gain": _as_json(row.gain) if row.gain else None,
                "gap_closed": row.gap_closed,
            }
            for row in made
        },
        "single": {f"{c.setting}/{c.method}/seed{c.seed}": found for c, found in results.items()},
        "versions": versions(),
    }
    text = as_table(made, known)
    write_results(output / "benchmark.json", record)
    with atomic_write(output / "benchmark.md") as file:
        file.write(f"{CAPTION}\n\n{text}\n")
    bars: dict[str, dict[str, tuple[float, float]]] = {}
    for row in made:
        value = row.metrics[main_metric(row.setting)]
        group = f"{row.setting}\n{main_metric(row.setting).replace('_', ' ')}"
        bars.setdefault(group, {})[known[row.method].title] = value.mean, value.half_width
    if bars:
        draw_bars_by_group(bars, output / "benchmark.png", "AP of masks (%)")
    return text


def _as_json(value: Estimate) -> dict[str, float]:
    return {"mean": value.mean, "half_width_95": value.half_width, "seeds": value.count}
