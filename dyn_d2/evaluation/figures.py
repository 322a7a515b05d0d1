"""Results as pictures: predictions beside ground truth, precision against recall, novel AP against shots."""

import contextlib
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from dyn_d2.data.registered import registered_records
from dyn_d2.utils.atomic import atomic_write
from dyn_d2.utils.own_files import read_json_of

from detectron2.data import Metadata, MetadataCatalog
from detectron2.data import detection_utils as utils
from detectron2.structures import BoxMode

from .boxes_on_image import draw_objects
from .palette import class_colour

BASE_COLOUR, NOVEL_COLOUR = "#4477aa", "#cc3311"


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a picture at 130 dots an inch, without empty margins, as a whole or not at all.

    Args:
        path: its suffix says in which format: ".png", ".pdf", ".svg".

    Returns:
        ``path``.

    Raises:
        ValueError: there is no such format.
    """
    path = Path(path)
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format=path.suffix[1:], dpi=130, bbox_inches="tight")
    return path


def _read_detections(results_file: str | Path) -> list[dict[str, Any]]:
    if not Path(results_file).is_file():
        raise FileNotFoundError(f"{results_file} does not exist: evaluate the model first, COCO's evaluator writes it.")
    found = read_json_of(results_file, "list of detections of COCO's evaluator", list)
    if not all(isinstance(entry, dict) and {"image_id", "category_id", "score"} <= entry.keys() for entry in found):
        raise ValueError(f"{results_file} is no list of detections: each has an image_id, category_id and score.")
    return found


# ------------------------------------------------------------------------------------- predictions beside ground truth


def draw_predictions(
    dataset: str, results_file: str | Path, path: str | Path, images: int = 6, threshold: float = 0.5
) -> Path:
    """A grid of test images, each with its ground truth on the left and the detections on the right.

    Base and novel classes differ in colour; where the data set has no such division, all classes do.

    Args:
        dataset: a registered test set.
        results_file: what COCOEvaluator wrote about it (``coco_instances_results.json``).
        images: how many, spread evenly over the set.
        threshold: detections below this score are not drawn; where none reaches it, the best one is.

    Raises:
        FileNotFoundError: ``results_file`` does not exist.
    """
    metadata = MetadataCatalog.get(dataset)
    detections = defaultdict(list)
    for detection in _read_detections(results_file):
        detections[detection["image_id"]].append(detection)
    dicts = registered_records(dataset)
    chosen = [dicts[i] for i in np.unique(np.linspace(0, len(dicts) - 1, images).astype(int))]
    cells = _pair_axes(figure := Figure(), len(chosen), float(np.mean([r["width"] / r["height"] for r in chosen])))
    for axes, record in zip(cells, chosen, strict=True):
        _draw_pair(axes, record, detections[record["image_id"]], metadata, threshold)
    if set(metadata.get("novel_classes", ())) & set(metadata.thing_classes):
        handles = [Patch(color=BASE_COLOUR, label="base class"), Patch(color=NOVEL_COLOUR, label="novel class")]
        figure.legend(handles=handles, loc="upper center", ncols=2, frameon=False, fontsize=9)
    return save_figure(figure, path)


def _pair_axes(figure: Figure, pairs: int, aspect: float) -> list[tuple[Axes, Axes]]:
    """Places for pairs of images of about width / height = ``aspect``, two pairs in a row where there are many."""
    columns = 2 if pairs > 3 else 1
    rows = -(-pairs // columns)
    height = 2.6
    width = height * min(max(aspect, 0.5), 2.0)
    ratios = [1, 1, 0.15, 1, 1][: 3 * columns - 1]
    size = 1.06 * width * sum(ratios), 1.12 * height * rows + 0.5
    figure.set_size_inches(size)
    grid = figure.add_gridspec(
        rows, len(ratios), width_ratios=ratios, left=0.01, right=0.99, bottom=0.01, top=1 - 0.65 / size[1],
        wspace=0.04, hspace=0.12,
    )  # fmt: skip
    places = [(row, column) for row in range(rows) for column in (0, 3)[:columns]][:pairs]
    return [(figure.add_subplot(grid[r, c]), figure.add_subplot(grid[r, c + 1])) for r, c in places]


def _draw_pair(
    axes: Sequence[Axes], record: dict, detections: list[dict], metadata: Metadata, threshold: float
) -> None:
    image = utils.read_image(record["file_name"], "RGB")
    size = image.shape[:2]
    ranked = sorted(detections, key=lambda d: -d["score"])
    shown = [d for d in ranked if d["score"] >= threshold] or ranked[:1]
    with_masks = bool(shown) and all("segmentation" in d for d in shown)
    truth = [a for a in record.get("annotations", ()) if not a.get("iscrowd", 0)]
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in truth]
    classes = [a["category_id"] for a in truth]
    names = metadata.thing_classes
    draw_objects(
        axes[0], image, np.array(boxes), [names[c] for c in classes], _colours(classes, metadata),
        _decode([a["segmentation"] for a in truth], size) if with_masks else None,
    )  # fmt: skip
    axes[0].set_title("ground truth", fontsize=8)

    to_class = metadata.get("thing_dataset_id_to_contiguous_id", None)
    boxes = [BoxMode.convert(d["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) for d in shown]
    classes = [to_class[d["category_id"]] if to_class else d["category_id"] for d in shown]
    labels = [f"{names[c]} {d['score']:.2f}" for c, d in zip(classes, shown, strict=True)]
    draw_objects(
        axes[1], image, np.array(boxes), labels, _colours(classes, metadata),
        _decode([d["segmentation"] for d in shown], size) if with_masks else None,
    )  # fmt: skip
    title = f"predicted, score ≥ {threshold:g}"
    if not ranked:
        title = "predicted: nothing"
    elif ranked[0]["score"] < threshold:
        title = f"predicted: nothing ≥ {threshold:g}, the best one is shown"
    axes[1].set_title(title, fontsize=8)


def _colours(classes: Sequence[int], metadata: Metadata) -> list[str]:
    novel = set(metadata.get("novel_classes", ()))
    if not novel:
        return [class_colour(c) for c in classes]
    return [NOVEL_COLOUR if metadata.thing_classes[c] in novel else BASE_COLOUR for c in classes]


def _decode(segmentations: Sequence[Any], size: tuple[int, int]) -> np.ndarray:
    """(N, H, W) masks of COCO polygons or run lengths."""
    from pycocotools import mask as coco_mask

    def runs(value: Any) -> Any:
        if isinstance(value, list):
            return coco_mask.merge(coco_mask.frPyObjects(value, *size))
        return coco_mask.frPyObjects(value, *size) if isinstance(value["counts"], list) else value

    return np.array([coco_mask.decode(runs(value)) for value in segmentations], dtype=bool).reshape(-1, *size)


# --------------------------------------------------------------------------------------------------- precision, recall


def precision_recall_curves(dataset: str, results_file: str | Path) -> dict[str, np.ndarray]:
    """COCO's precision of boxes at IoU 0.5 by class name, at recall 0, 0.01 ... 1 (all areas, 100 detections an image).

    Classes without ground truth are left out.

    Raises:
        ValueError: there is no detection at all, no ground truth, or the data set has no COCO json.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if not _read_detections(results_file):
        raise ValueError(f"{results_file} holds no detection: there is no precision-recall curve to draw.")
    metadata = MetadataCatalog.get(dataset)
    if not metadata.get("json_file", None):
        raise ValueError(f"{dataset} has no COCO json (metadata json_file): its precision-recall curve is not drawn.")
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints a page
        truth = COCO(metadata.json_file)
        run = COCOeval(truth, truth.loadRes(str(results_file)), "bbox")
        run.evaluate()
        run.accumulate()
    precision = run.eval["precision"][0, :, :, 0, -1]  # (recall, class)
    to_class = metadata.get("thing_dataset_id_to_contiguous_id", None) or {i: i for i in run.params.catIds}
    curves = {
        metadata.thing_classes[to_class[category]]: precision[:, k]
        for k, category in enumerate(run.params.catIds)
        if category in to_class and (precision[:, k] > -1).all()
    }
    if not curves:
        raise ValueError(f"{metadata.json_file} holds no object: there is no precision-recall curve to draw.")
    return curves


def draw_precision_recall(dataset: str, results_file: str | Path, path: str | Path) -> Path:
    """Precision against recall at IoU 0.5 for each class, base and novel in two panels, with each group's mean in bold.

    Raises:
        ValueError: from ``precision_recall_curves``.
    """
    curves = precision_recall_curves(dataset, results_file)
    groups = _groups(MetadataCatalog.get(dataset), curves)
    figure = Figure(figsize=(5.4 * len(groups), 4.6))
    for axis, (title, names) in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups.items(), strict=True):
        colours = matplotlib.colormaps["tab10" if len(names) <= 10 else "viridis"].resampled(max(len(names), 10))
        for k, name in enumerate(sorted(names, key=lambda n: -curves[n].mean())):
            label = f"{name} {100 * curves[name].mean():.1f}" if len(names) <= 12 else None
            axis.plot(np.linspace(0, 1, len(curves[name])), curves[name], color=colours(k), linewidth=1.2, label=label)
        mean = np.mean([curves[name] for name in names], axis=0)
        recall = np.linspace(0, 1, len(mean))
        axis.plot(recall, mean, color="black", linewidth=2.5, label=f"mean {100 * mean.mean():.1f}")
        axis.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision", title=f"{title}: AP50 (%) in legend")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, loc="best", framealpha=0.7)
    return save_figure(figure, path)


def _groups(metadata: Metadata, names: Mapping[str, Any]) -> dict[str, list[str]]:
    groups = {
        title: [name for name in names if name in set(metadata.get(key, ()))]
        for title, key in (("base classes", "base_classes"), ("novel classes", "novel_classes"))
    }
    return {title: members for title, members in groups.items() if members} or {"all classes": list(names)}


# ------------------------------------------------------------------------------------------------------------ AP, shots


def draw_ap_against_shots(
    curves: Mapping[str, Mapping[int, tuple[float, float]]], path: str | Path, metric: str = "nAP"
) -> Path:
    """Mean of ``metric`` against K: a line a method, with its 95 % confidence interval; a bar a method for a single K.

    Args:
        curves: method -> K -> (mean, half width of the interval, NaN for one seed).

    Raises:
        ValueError: there is not a single value.
    """
    all_shots = sorted({k for points in curves.values() for k in points})
    if not all_shots:
        raise ValueError(f"There is no {metric} to draw.")
    figure = Figure(figsize=(6, 4.2))
    axis = figure.subplots()
    if len(all_shots) == 1:
        _draw_bars(axis, {method: points[all_shots[0]] for method, points in curves.items() if points})
        axis.set(title=f"K = {all_shots[0]} annotated object{'s' * (all_shots[0] > 1)} a class")
    else:
        _draw_lines(axis, curves, all_shots)
        axis.set(xlabel="K, annotated objects a class")
        axis.legend()
    axis.set(ylabel=f"{metric} (%)")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3, axis="y")
    return save_figure(figure, path)


def _draw_bars(axis: Axes, values: Mapping[str, tuple[float, float]]) -> None:
    axis.set_axisbelow(True)
    for place, (mean, half) in enumerate(values.values()):
        axis.bar(place, mean, width=0.6, color=f"C{place}", yerr=None if np.isnan(half) else half, capsize=4)
        axis.annotate(f"{mean:.1f}", (place, mean), (8, 3), textcoords="offset points", fontsize=9)
    axis.set_xticks(range(len(values)), list(values))


def _draw_lines(axis: Axes, curves: Mapping[str, Mapping[int, tuple[float, float]]], all_shots: list[int]) -> None:
    for number, (method, points) in enumerate(curves.items()):
        shots = sorted(points)
        places = np.array([all_shots.index(k) for k in shots])
        mean, half = np.array([points[k] for k in shots]).T
        # A little apart, so that the intervals of different methods can be told from each other.
        places = places + 0.04 * (number - (len(curves) - 1) / 2)
        axis.errorbar(places, mean, yerr=np.nan_to_num(half), marker="o", capsize=3, label=method)
    axis.set_xticks(range(len(all_shots)), [str(k) for k in all_shots])


def draw_over_seeds(
    panels: Mapping[int, Mapping[str, Sequence[tuple[float, float]]]], path: str | Path, metric: str = "nAP"
) -> Path:
    """Cumulative mean of ``metric`` over the first 1, 2 ... seeds with its 95 % confidence interval: a panel a K, a
    line a method.

    Args:
        panels: K -> method -> (mean, half width of the interval, NaN for one seed) of the first 1, 2 ... seeds.

    Raises:
        ValueError: there is not a single value.
    """
    if not any(panels.values()):
        raise ValueError(f"There is no {metric} to draw.")
    figure = Figure(figsize=(1 + 3.4 * len(panels), 3.6))
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    colours = {method: f"C{n}" for n, method in enumerate(dict.fromkeys(m for lines in panels.values() for m in lines))}
    for axis, (shots, lines) in zip(axes, sorted(panels.items()), strict=True):
        for method, points in lines.items():
            mean, half = np.array(points).T
            count = np.arange(1, len(points) + 1)
            axis.plot(count, mean, marker=".", color=colours[method], label=method)
            # Two seeds have an interval that would leave room for nothing else.
            axis.fill_between(count[2:], (mean - half)[2:], (mean + half)[2:], alpha=0.2, color=colours[method])
        axis.set(xlabel="seeds", title=f"K = {shots}")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
    axes[0].set(ylabel=f"{metric} (%), cumulative mean")
    axes[0].legend(fontsize=8)
    return save_figure(figure, path)


# ------------------------------------------------------------------------------------------------- methods by settings


def draw_bars_by_group(values: Mapping[str, Mapping[str, tuple[float, float]]], path: str | Path, label: str) -> Path:
    """Groups of bars: one group a setting, one colour a method, each with its 95 % confidence interval.

    Args:
        values: setting -> method -> (mean, half width of the interval, NaN for one seed).
        label: of the axis.
    """
    methods = list(dict.fromkeys(method for bars in values.values() for method in bars))
    figure = Figure(figsize=(1.5 + (0.45 * len(methods) + 0.5) * len(values), 4.2))
    axis = figure.subplots()
    axis.set_axisbelow(True)
    for number, method in enumerate(methods):
        present = [place for place, bars in enumerate(values.values()) if method in bars]
        mean, half = np.array([bars[method] for bars in values.values() if method in bars]).T
        places = np.array(present) + 0.8 * ((number + 0.5) / len(methods) - 0.5)
        axis.bar(
            places, mean, 0.76 / len(methods), yerr=np.nan_to_num(half), capsize=3, color=f"C{number}", label=method
        )
    axis.set_xticks(range(len(values)), list(values))
    axis.set(ylabel=label)
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3, axis="y")
    figure.legend(loc="lower center", bbox_to_anchor=(0.5, 0.95), ncols=2, fontsize=8, frameon=False)
    return save_figure(figure, path)
