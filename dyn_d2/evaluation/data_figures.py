"""A data set in a picture: images in a grid with boxes, masks, label maps or classes, as training gets them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dyn_d2.data.classification.mapper import decode
from dyn_d2.data.semantic.label_maps import IGNORE, read_label_map

from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode

from .boxes_on_image import draw_objects
from .label_figures import LEGEND, OPACITY
from .palette import class_colour

CELL, COLUMNS, MOST_OBJECTS = 2.6, 4, 40  # inches; images in a row; objects drawn in one image
Record = dict[str, Any]


def draw_records(records: Sequence[Record], metadata: Any, columns: int = COLUMNS, title: str = "") -> Figure:
    """A grid of records in Detectron2's format, or of classification.

    Args:
        records: each is one cell.
        metadata: of their data set; names of classes, and which value of label maps does not count.
        title: above all.

    Raises:
        OSError, ValueError: an image or label map cannot be read.
    """
    columns = max(1, min(columns, len(records)))
    rows = -(-len(records) // columns)
    seen: dict[int, None] = {}
    maps = any("sem_seg_file_name" in record for record in records)
    figure = Figure(figsize=(columns * CELL, rows * (CELL + 0.25) + 0.4 + 0.6 * maps), dpi=110)
    axes = figure.subplots(rows, columns, squeeze=False)
    top = 1 - 0.4 / figure.get_figheight()
    figure.subplots_adjust(0.01, 0.01 + 0.6 * maps / figure.get_figheight(), 0.99, top - 0.02, 0.04, 0.14)
    figure.suptitle(title, y=1 - 0.1 / figure.get_figheight(), va="top", fontsize=10)
    for axis in axes.flat:
        axis.axis("off")
    for axis, record in zip(axes.flat, records, strict=False):
        seen |= dict.fromkeys(_draw(axis, record, metadata))
    if maps:
        _legend(figure, sorted(seen), list(metadata.stuff_classes))
    return figure


def _draw(axis: Axes, record: Record, metadata: Any) -> list[int]:
    """Fill a cell; returns the classes of its label map."""
    names = list(metadata.get("thing_classes", None) or [])
    name = str(record.get("file_name", record.get("image_id", "")))
    axis.set_title(name.rsplit("/", 1)[-1][-30:], fontsize=6, pad=2)
    if "sem_seg_file_name" in record:
        return _label_map(axis, record, len(metadata.stuff_classes), metadata.get("ignore_label", IGNORE))
    if "label" in record:
        axis.imshow(decode(record), interpolation="nearest")
        axis.set_title(names[record["label"]], fontsize=8, pad=2)
        return []
    image = read_image(record["file_name"], "RGB")
    objects = record.get("annotations", [])[:MOST_OBJECTS]
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]
    labels = [names[a["category_id"]] + " (crowd)" * bool(a.get("iscrowd")) for a in objects]
    size = image.shape[:2]
    found = [object_mask(a.get("segmentation"), *size) for a in objects]
    masks = [np.zeros(size, bool) if mask is None else mask for mask in found]
    colours = [class_colour(a["category_id"]) for a in objects]
    draw_objects(axis, image, np.array(boxes), labels, colours, np.array(masks) if masks else None, font_size=5)
    return []


def object_mask(segmentation: Any, height: int, width: int) -> np.ndarray | None:
    """Polygons or RLE as a mask (H, W) bool; None where an object has none."""
    if not segmentation:
        return None
    codes = mask_util.frPyObjects(segmentation, height, width) if isinstance(segmentation, list) else segmentation
    if isinstance(codes, dict) and isinstance(codes["counts"], list):
        codes = mask_util.frPyObjects(codes, height, width)
    code = mask_util.merge(codes) if isinstance(codes, list) else codes
    return mask_util.decode(code).astype(bool)


def _label_map(axis: Axes, record: Record, classes: int, ignore: int) -> list[int]:
    image, labels = read_image(record["file_name"], "RGB"), read_label_map(record["sem_seg_file_name"])
    if labels.shape != image.shape[:2]:
        raise ValueError(
            f"{record['sem_seg_file_name']} has another size than its image: dyn-d2 check-data lists all of them."
        )
    table = np.zeros((256, 3))
    table[:classes] = [to_rgb(class_colour(number)) for number in range(classes)]
    mixed = (1 - OPACITY) * image / 255 + OPACITY * table[labels]
    mixed[labels == ignore] = image[labels == ignore] / 255  # what does not count stays as it is
    axis.imshow(mixed, interpolation="nearest")
    return [int(number) for number in np.unique(labels) if number < classes and number != ignore]


def _legend(figure: Figure, seen: Sequence[int], names: Sequence[str]) -> None:
    handles = [Patch(color=class_colour(number), label=names[number]) for number in seen[: 2 * LEGEND]]
    if len(seen) > 2 * LEGEND:
        handles.append(Patch(color="none", label=f"and {len(seen) - 2 * LEGEND} more"))
    columns = max(1, int(figure.get_figwidth() / 1.3))
    figure.legend(handles=handles, loc="lower center", ncols=columns, fontsize=6, frameon=False)
