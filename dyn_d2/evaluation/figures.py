"""Results as pictures: predictions beside ground truth, precision against recall, novel AP against shots."""

import contextlib
import io
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data import detection_utils as utils
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.visualizer import Visualizer
from matplotlib.figure import Figure

from dyn_d2.utils.atomic import atomic_write

BASE_COLOUR, NOVEL_COLOUR = "#4477aa", "#cc3311"


def _save(figure: Figure, path: str | Path) -> Path:
    path = Path(path)
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format=path.suffix[1:], dpi=110, bbox_inches="tight")
    return path


def _instances(
    detections: Sequence[Mapping[str, Any]], size: tuple[int, int], to_class: Mapping[int, int]
) -> Instances:
    """COCO results of one image -> Instances of image ``size`` (H, W)."""
    instances = Instances(size)
    boxes = np.array([d["bbox"] for d in detections], dtype=np.float64).reshape(-1, 4)
    instances.pred_boxes = Boxes(torch.as_tensor(BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)))
    instances.scores = torch.tensor([d["score"] for d in detections])
    instances.pred_classes = torch.tensor([to_class[d["category_id"]] for d in detections], dtype=torch.int64)
    if detections and all("segmentation" in d for d in detections):
        from pycocotools import mask as coco_mask

        instances.pred_masks = torch.as_tensor(np.stack([coco_mask.decode(d["segmentation"]) for d in detections]))
    return instances


def draw_predictions(
    dataset: str, results_file: str | Path, path: str | Path, images: int = 6, threshold: float = 0.5
) -> Path:
    """A grid of validation images, ground truth on the left and detections on the right of each pair.

    Args:
        dataset: a registered test set.
        results_file: what COCOEvaluator wrote about it (``coco_instances_results.json``).
        images: how many, spread evenly over the set.
        threshold: detections below this score are not drawn; where none reaches it, the best one is.
    """
    metadata = MetadataCatalog.get(dataset)
    dicts = DatasetCatalog.get(dataset)
    detections = defaultdict(list)
    for detection in json.loads(Path(results_file).read_text()):
        detections[detection["image_id"]].append(detection)
    to_class = dict(getattr(metadata, "thing_dataset_id_to_contiguous_id", {})) or {
        i: i for i in range(len(metadata.thing_classes))
    }
    chosen = [dicts[i] for i in np.unique(np.linspace(0, len(dicts) - 1, images).astype(int))]
    columns = 2 if len(chosen) > 3 else 1
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(6.4 * columns, 3.3 * rows))
    axes = figure.subplots(rows, 2 * columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for position, record in enumerate(chosen):
        image = utils.read_image(record["file_name"], "RGB")
        scale = max(1.0, 480 / max(image.shape[:2]))
        ranked = sorted(detections[record["image_id"]], key=lambda d: -d["score"])
        shown = [d for d in ranked if d["score"] >= threshold] or ranked[:1]
        predicted = _instances(shown, image.shape[:2], to_class)
        truth = Visualizer(image, metadata, scale=scale).draw_dataset_dict(record)
        drawn = Visualizer(image, metadata, scale=scale).draw_instance_predictions(predicted)
        for axis, picture, title in zip(
            axes[2 * position :], (truth, drawn), ("ground truth", f"predicted (score ≥ {threshold:g})"), strict=False
        ):
            axis.imshow(picture.get_image())
            axis.set_title(title, fontsize=8)
    return _save(figure, path)


def _coco_precision(json_file: str, results_file: str | Path) -> tuple[np.ndarray, list[int]]:
    """(T, R, K) precision of boxes over all areas with 100 detections an image, and the category ids of K."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints a page
        truth = COCO(json_file)
        run = COCOeval(truth, truth.loadRes(str(results_file)), "bbox")
        run.evaluate()
        run.accumulate()
    return run.eval["precision"][..., 0, -1], run.params.catIds


def draw_precision_recall(dataset: str, results_file: str | Path, path: str | Path) -> Path:
    """Precision against recall at IoU 0.5 for each class, base and novel in two panels, with each group's mean in bold.

    Raises:
        ValueError: there is no detection at all, so that there is no curve.
    """
    metadata = MetadataCatalog.get(dataset)
    if not json.loads(Path(results_file).read_text()):
        raise ValueError(f"{results_file} holds no detection: there is no precision-recall curve to draw.")
    precision, categories = _coco_precision(metadata.json_file, results_file)
    to_class = metadata.thing_dataset_id_to_contiguous_id
    curves = {
        metadata.thing_classes[to_class[category]]: precision[0, :, k]
        for k, category in enumerate(categories)
        if (precision[0, :, k] > -1).all()
    }
    groups = _groups(metadata, curves)
    figure = Figure(figsize=(5.4 * len(groups), 4.6))
    recall = np.linspace(0, 1, precision.shape[1])
    for axis, (title, names) in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups.items(), strict=True):
        colours = matplotlib.colormaps["tab10" if len(names) <= 10 else "viridis"].resampled(max(len(names), 10))
        for k, name in enumerate(names):
            label = f"{name} {100 * curves[name].mean():.1f}" if len(names) <= 12 else None
            axis.plot(recall, curves[name], color=colours(k), linewidth=1, label=label)
        mean = np.mean([curves[name] for name in names], axis=0)
        axis.plot(recall, mean, color="black", linewidth=2.5, label=f"mean {100 * mean.mean():.1f}")
        axis.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision", title=f"{title}: AP50 by class")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, loc="lower left")
    return _save(figure, path)


def _groups(metadata: Metadata, names: Mapping[str, Any]) -> dict[str, list[str]]:
    groups = {
        title: [name for name in names if name in set(metadata.get(key, ()))]
        for title, key in (("base classes", "base_classes"), ("novel classes", "novel_classes"))
    }
    return {title: members for title, members in groups.items() if members} or {"all classes": list(names)}


def draw_ap_against_shots(
    curves: Mapping[str, Mapping[int, tuple[float, float]]], path: str | Path, metric: str = "nAP"
) -> Path:
    """One line a method: mean of ``metric`` against K, with its 95 % confidence interval as a band.

    Args:
        curves: method -> K -> (mean, half width of the interval, NaN for one seed).
    """
    figure = Figure(figsize=(6, 4.2))
    axis = figure.subplots()
    all_shots = sorted({k for points in curves.values() for k in points})
    for method, points in curves.items():
        shots = sorted(points)
        places = [all_shots.index(k) for k in shots]
        mean = np.array([points[k][0] for k in shots])
        half = np.nan_to_num([points[k][1] for k in shots])
        (line,) = axis.plot(places, mean, marker="o", label=method)
        axis.fill_between(places, mean - half, mean + half, color=line.get_color(), alpha=0.2, linewidth=0)
    axis.set_xticks(range(len(all_shots)), [str(k) for k in all_shots])
    axis.set(xlabel="K, annotated objects a class", ylabel=f"{metric} (%)", ylim=(0, None))
    axis.grid(alpha=0.3)
    axis.legend()
    return _save(figure, path)
