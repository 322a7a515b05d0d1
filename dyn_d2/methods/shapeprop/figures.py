"""What ShapeProp sees in an image: boxes, saliency, shape activation and masks side by side (Wang 2020, Fig. 8.8)."""

from collections.abc import Collection, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from dyn_d2.evaluation.boxes_on_image import draw_objects, labels_of, with_masks
from dyn_d2.evaluation.palette import class_colour

from detectron2.layers import paste_masks_in_image
from detectron2.structures import Instances

from .evaluator import LEVELS, paste_maps

PANELS = ("boxes", "saliency", "shape activation", "masks")
HEIGHT = 3.2  # of a panel, inches


def draw_shapes(
    image: np.ndarray, found: Instances, classes: Sequence[str], without_masks: Collection[str] = ()
) -> Figure:
    """Four panels. Saliency is stretched from its least to its largest value in each box, the shape activation is its
    probability; where boxes overlap, the larger value is shown.

    Args:
        image: (H, W, 3) uint8, RGB.
        found: in the frame of ``image``, with ``pred_masks``, ``pred_saliency`` and ``pred_shape``.
        classes: names.
        without_masks: those of which no mask was trained on; their labels get a star.

    Raises:
        ValueError: the detections lack one of these fields.
    """
    missing = [name for name in ("pred_masks", "pred_saliency", "pred_shape") if not found.has(name)]
    if missing:
        raise ValueError(
            f"the detections have no {' and '.join(missing)}: a model with ShapeProp, masks and "
            "MODEL.SHAPE_PROP.OUTPUT_MAPS is needed."
        )
    size = image.shape[:2]
    width = HEIGHT * size[1] / size[0]
    figure = Figure(figsize=(4 * width + 0.5, HEIGHT + 0.35), dpi=100)
    across, down = width / figure.get_figwidth(), HEIGHT / figure.get_figheight()
    gap = (1 - 4 * across) / 5
    axes = [figure.add_axes((gap + i * (across + gap), 0.01, across, down)) for i in range(4)]
    boxes, kinds = found.pred_boxes.tensor, found.pred_classes.tolist()
    starred = [f"{name}*" if name in without_masks else name for name in classes]
    colours = [class_colour(kind) for kind in kinds]
    draw_objects(axes[0], image, boxes.numpy(), labels_of(found, starred), colours)
    saliency = paste_maps(found.pred_saliency, boxes, size)
    shape = paste_masks_in_image(found.pred_shape[:, 0].float().sigmoid(), found.pred_boxes, size, threshold=-1)
    for axis, maps in ((axes[1], saliency), (axes[2], shape)):
        _draw_heat(axis, image, maps, boxes, colours)
    axes[3].axis("off")
    axes[3].imshow(with_masks(image, np.asarray(found.pred_masks), colours), interpolation="nearest")
    for axis, title in zip(axes, PANELS, strict=True):
        axis.set_title(title, fontsize=9)
    if any(classes[kind] in without_masks for kind in kinds):
        axes[0].set_title("boxes (*: class without masks in training)", fontsize=9)
    return figure


def _draw_heat(axis: Axes, image: np.ndarray, maps: Tensor, boxes: Tensor, colours: Sequence[str]) -> None:
    """(N, H, W) maps, 0 outside of their boxes, over the image in grey."""
    height, width = image.shape[:2]
    heat = torch.cat([torch.zeros(1, height, width, dtype=torch.uint8), maps]).amax(0).numpy()
    extent = (0, width, height, 0)
    axis.axis("off")
    axis.imshow(image.mean(2), cmap="gray", vmin=0, vmax=255, extent=extent)
    axis.imshow(heat, cmap="inferno", vmin=0, vmax=LEVELS - 1, alpha=0.8 * (heat > 0), extent=extent)
    for (x0, y0, x1, y1), colour in zip(boxes.tolist(), colours, strict=True):
        axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=1))
    axis.set(xlim=(0, width), ylim=(height, 0))
