"""Drawing of annotations and predictions with matplotlib.

Coordinates are (x, y) in pixels of the image, with pixel centres at half integers. Colours are anything that matplotlib
understands.
"""

import colorsys
import os
from collections.abc import Sequence
from enum import Enum
from typing import Any

import matplotlib.colors as mplc
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Polygon, Rectangle
from matplotlib.path import Path
from PIL import Image

from detectron2.data import MetadataCatalog
from detectron2.left_out import left_out
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks

from .colormap import colormap, random_color
from .file_io import PathManager, atomic_open
from .generic_mask import GenericMask

_OFF_WHITE = (1.0, 1.0, 0.94)
_SMALL_AREA = 1000  # square pixels; labels of smaller objects stand beside them


class ColorMode(Enum):
    """How instances are coloured."""

    IMAGE = 0  # each instance in a colour of its own
    SEGMENTATION = 1  # similar colours for a class (metadata.thing_colors), little transparency
    IMAGE_BW = 2  # as IMAGE, on a grey image outside of the masks


def _numpy(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _inches(pixels: float, dpi: float) -> float:
    """matplotlib rounds down: where that would lose a row, 0.01 pixels more keep it. Not elsewhere, since before 3.11 a
    fraction of a pixel shifts the picture by a row."""
    more = (pixels + 1e-2) / dpi
    return more if int(pixels / dpi * dpi) < int(more * dpi) else pixels / dpi


class VisImage:
    """An image that can be drawn on."""

    def __init__(self, img: np.ndarray, scale: float = 1.0):
        """
        Args:
            img: (H, W, 3) RGB in [0, 255].
            scale: size of the output, as a multiple of the image's.
        """
        self.img, self.scale = img, scale
        self.height, self.width = img.shape[:2]
        self.fig = Figure(frameon=False)
        self.dpi = self.fig.get_dpi()
        self.fig.set_size_inches([_inches(side * scale, self.dpi) for side in (self.width, self.height)])
        self.canvas = FigureCanvasAgg(self.fig)
        self.ax = self.fig.add_axes((0.0, 0.0, 1.0, 1.0))
        self.ax.axis("off")
        self.reset_image(img)

    def reset_image(self, img: np.ndarray) -> None:
        """Put another image of the same size below the drawing."""
        self.ax.imshow(img.astype(np.uint8), extent=(0, self.width, self.height, 0), interpolation="nearest")

    def save(self, filepath: str) -> None:
        """Write it to a file whose ending says the format, e.g. .png, .jpg, .pdf."""
        kind = os.path.splitext(filepath)[1].lstrip(".") or "png"
        with atomic_open(filepath) as file:
            self.fig.savefig(file, format=kind)

    def get_image(self) -> np.ndarray:
        """(H * scale, W * scale, 3) RGB, uint8."""
        self.canvas.draw()
        return np.asarray(self.canvas.buffer_rgba())[..., :3].copy()


def _labels(
    classes: Sequence[int] | None,
    scores: Sequence[float] | None,
    names: Sequence[str] | None,
    crowd: Sequence[bool] | None = None,
) -> list[str] | None:
    """One text per object, e.g. "person 87%", or None where nothing is known."""
    if classes is None and scores is None:
        return None
    parts = []
    if classes is not None:
        parts.append([names[index] if names else str(index) for index in classes])
    if scores is not None:
        parts.append([f"{float(score):.0%}" for score in scores])
    texts = [" ".join(words) for words in zip(*parts, strict=True)]
    return [text + "|crowd" * bool(c) for text, c in zip(texts, crowd, strict=True)] if crowd else texts


def _brighter(color: Any, factor: float) -> np.ndarray:
    """Change the lightness by ``factor`` (-1: black; 0.7: 70 % lighter)."""
    hue, lightness, saturation = colorsys.rgb_to_hls(*mplc.to_rgb(color))
    return np.clip(colorsys.hls_to_rgb(hue, min(max(lightness * (1 + factor), 0), 1), saturation), 0, 1)


class Visualizer:
    """Draws on one image. Every ``draw_*`` returns the ``VisImage``, on which further ones add."""

    def __init__(
        self,
        img_rgb: np.ndarray,
        metadata: Any = None,
        scale: float = 1.0,
        instance_mode: ColorMode = ColorMode.IMAGE,
        font_size_scale: float = 1.0,
    ):
        """
        Args:
            img_rgb: (H, W, 3) RGB in [0, 255].
            metadata: of the data set; "thing_classes", "thing_colors", "stuff_classes" and "stuff_colors" are used.
            scale: size of the output, as a multiple of the image's.
        """
        self.img = np.asarray(img_rgb).clip(0, 255).astype(np.uint8)
        self.metadata = MetadataCatalog.get("__nonexist__") if metadata is None else metadata
        self.output = VisImage(self.img, scale=scale)
        # Smaller letters could not be read.
        readable = max(np.sqrt(self.output.height * self.output.width) // 90, 10 // scale)
        self._default_font_size = readable * font_size_scale
        self._instance_mode = instance_mode
        self._generator = np.random.default_rng(0)

    def draw_instance_predictions(self, predictions: Instances, jittering: bool = True) -> VisImage:
        """Draw boxes, masks, classes and scores.

        Args:
            predictions: any of the fields pred_boxes, pred_masks, pred_classes, scores.
            jittering: in mode SEGMENTATION, vary the colours of one class a little.
        """
        fields = predictions.get_fields()
        classes = fields["pred_classes"].tolist() if "pred_classes" in fields else None
        scores = fields["scores"].tolist() if "scores" in fields else None
        masks = _numpy(fields["pred_masks"]) if "pred_masks" in fields else None
        alpha = 0.5
        if self._instance_mode == ColorMode.IMAGE_BW:
            grey = np.repeat(self.img.mean(axis=2, keepdims=True), 3, axis=2)
            self.output.reset_image(grey if masks is None else np.where(masks.any(axis=0)[..., None], self.img, grey))
            alpha = 0.3
        colors = self._class_colors(classes, jittering)
        return self.overlay_instances(
            boxes=fields.get("pred_boxes"),
            labels=_labels(classes, scores, self.metadata.get("thing_classes", None)),
            masks=masks,
            assigned_colors=colors,
            alpha=alpha if colors is None else 0.8,
        )

    def draw_sem_seg(
        self,
        sem_seg: torch.Tensor | np.ndarray,
        area_threshold: int | None = None,
        alpha: float = 0.8,
        draw_text: bool = True,
        edge_color: Any = _OFF_WHITE,
    ) -> VisImage:
        """Draw a semantic map.

        Args:
            sem_seg: (H, W), class of each pixel; labels beyond the metadata's stuff_classes are not drawn.
            area_threshold: pixels; smaller parts are not drawn.
        """
        sem_seg = _numpy(sem_seg)
        names, colors = self.metadata.stuff_classes, self.metadata.get("stuff_colors", None) or []
        labels, areas = np.unique(sem_seg, return_counts=True)
        for label in labels[np.argsort(-areas)].tolist():
            if 0 <= label < len(names):
                self.draw_binary_mask(
                    sem_seg == label,
                    color=np.divide(colors[label], 255) if label < len(colors) else None,
                    edge_color=edge_color,
                    text=names[label] if draw_text else None,
                    alpha=alpha,
                    area_threshold=area_threshold,
                )
        return self.output

    def draw_dataset_dict(self, dic: dict) -> VisImage:
        """Draw "annotations" and "sem_seg" (or its file) of one image, as data sets and mappers give them."""
        if annotations := dic.get("annotations"):
            classes = [a["category_id"] for a in annotations]
            has_masks = all("segmentation" in a for a in annotations)
            self.overlay_instances(
                boxes=np.array([BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]),
                labels=_labels(
                    classes, None, self.metadata.get("thing_classes", None), [a.get("iscrowd", 0) for a in annotations]
                ),
                masks=[a["segmentation"] for a in annotations] if has_masks else None,
                assigned_colors=self._class_colors(classes, True),
            )
        sem_seg = dic.get("sem_seg")
        if sem_seg is None and "sem_seg_file_name" in dic:
            with PathManager.open(dic["sem_seg_file_name"], "rb") as file:
                sem_seg = np.asarray(Image.open(file))
        if sem_seg is not None:
            self.draw_sem_seg(sem_seg, area_threshold=0, alpha=0.5)
        return self.output

    def overlay_instances(
        self,
        *,
        boxes: Boxes | np.ndarray | None = None,
        labels: Sequence[str] | None = None,
        masks: Any = None,
        keypoints: None = None,
        assigned_colors: Sequence | None = None,
        alpha: float = 0.5,
    ) -> VisImage:
        """Draw N objects, the largest first.

        Args:
            boxes: (N, 4) x0, y0, x1, y1.
            labels: N texts.
            masks: PolygonMasks, BitMasks, or N of what ``GenericMask`` takes.
            keypoints: left out in this engine.
            assigned_colors: N colours; all different by default.
            alpha: opacity of the masks.

        Raises:
            ValueError: the arguments are of different lengths.
            NotImplementedError: keypoints are given.
        """
        if keypoints is not None:
            raise left_out("overlay_instances(keypoints=...)", "keypoints")
        boxes = None if boxes is None else _numpy(boxes.tensor if isinstance(boxes, Boxes) else boxes).reshape(-1, 4)
        masks = None if masks is None else self._generic_masks(masks)
        lengths = {len(part) for part in (boxes, masks, labels, assigned_colors) if part is not None}
        if len(lengths) > 1:
            raise ValueError(f"Boxes, masks, labels and colours differ in number: {sorted(lengths)}")
        if boxes is None and masks is None:
            return self.output
        extents = boxes if boxes is not None else np.array([mask.bbox() for mask in masks]).reshape(-1, 4)
        colors = colormap(rgb=True, maximum=1) if assigned_colors is None else assigned_colors
        areas = np.prod(extents[:, 2:] - extents[:, :2], axis=1)
        for i in np.argsort(-areas, kind="stable").tolist():
            color = colors[i % len(colors)]
            if boxes is not None:
                self.draw_box(boxes[i], edge_color=color)
            if masks is not None:
                self._draw_mask(masks[i], color, alpha=alpha)
            if labels is not None and (boxes is not None or masks[i].area()):
                self._label_object(labels[i], extents[i], None if boxes is not None else masks[i], color)
        return self.output

    def draw_text(
        self,
        text: str,
        position: Sequence[float],
        *,
        font_size: float | None = None,
        color: Any = "g",
        horizontal_alignment: str = "center",
        rotation: float = 0,
    ) -> VisImage:
        """Write on a dark ground. ``position``: (x, y) of its top; ``rotation``: degrees counter-clockwise."""
        color = np.maximum(mplc.to_rgb(color), 0.2)  # bright enough for the ground
        color[color.argmax()] = max(color.max(), 0.8)
        self.output.ax.text(
            *position,
            text,
            color=color,
            rotation=rotation,
            zorder=10,
            family="sans-serif",
            size=(font_size or self._default_font_size) * self.output.scale,
            horizontalalignment=horizontal_alignment,
            verticalalignment="top",
            bbox={"facecolor": "black", "alpha": 0.8, "pad": 0.7, "edgecolor": "none"},
        )
        return self.output

    def draw_box(
        self, box_coord: Sequence[float], alpha: float = 0.5, edge_color: Any = "g", line_style: str = "-"
    ) -> VisImage:
        """Draw the outline of x0, y0, x1, y1."""
        x0, y0, x1, y1 = box_coord
        width = max(self._default_font_size / 4, 1) * self.output.scale
        self.output.ax.add_patch(
            Rectangle(
                (x0, y0),
                x1 - x0,
                y1 - y0,
                fill=False,
                edgecolor=edge_color,
                linewidth=width,
                alpha=alpha,
                linestyle=line_style,
            )
        )
        return self.output

    def draw_binary_mask(
        self,
        binary_mask: np.ndarray,
        color: Any = None,
        *,
        edge_color: Any = None,
        text: str | None = None,
        alpha: float = 0.5,
        area_threshold: float | None = 10,
    ) -> VisImage:
        """Draw a mask (H, W); connected parts with less than ``area_threshold`` pixels are left out."""
        color = random_color(rgb=True, maximum=1) if color is None else mplc.to_rgb(color)
        mask = GenericMask(np.asarray(binary_mask), self.output.height, self.output.width)
        drawn = self._draw_mask(mask, color, edge_color, alpha, area_threshold or 0)
        if text is not None and drawn:
            self._text_in_mask(text, mask.mask, color)
        return self.output

    def draw_polygon(self, segment: np.ndarray, color: Any, edge_color: Any = None, alpha: float = 0.5) -> VisImage:
        """Draw a filled polygon (N, 2)."""
        self.output.ax.add_patch(Polygon(segment, **self._fill(color, edge_color, alpha)))
        return self.output

    def get_output(self) -> VisImage:
        """The image with everything that was drawn."""
        return self.output

    def _fill(self, color: Any, edge_color: Any, alpha: float) -> dict[str, Any]:
        if edge_color is None:  # darker than a fill that hides the image
            edge_color = _brighter(color, -0.7) if alpha > 0.8 else color
        width = max(self._default_font_size // 15 * self.output.scale, 1)
        return {
            "fill": True,
            "facecolor": (*mplc.to_rgb(color), alpha),
            "edgecolor": mplc.to_rgb(edge_color),
            "linewidth": width,
        }

    def _draw_mask(
        self, mask: GenericMask, color: Any, edge_color: Any = None, alpha: float = 0.5, area_threshold: float = 0
    ) -> bool:
        """Draw the parts that are large enough; whether there were any."""
        style = self._fill(color, edge_color, alpha)
        parts = [part for part in mask.parts if abs(sum(map(_signed_area, part))) >= area_threshold]
        for part in parts:
            paths = [Path(outline, closed=True) for outline in part]
            self.output.ax.add_patch(PathPatch(Path.make_compound_path(*paths), **style))
        return bool(parts)

    def _text_in_mask(self, text: str, mask: np.ndarray, color: Any) -> None:
        # The median lies inside of most shapes and is not drawn away by small far parts.
        rows, columns = np.nonzero(mask)
        self.draw_text(text, (np.median(columns), np.median(rows)), color=_brighter(color, 0.7))

    def _label_object(self, text: str, extent: np.ndarray, mask: GenericMask | None, color: Any) -> None:
        """Write beside small objects, in the corner of boxes and in the middle of masks."""
        x0, y0, x1, y1 = extent
        scale, align, position = self.output.scale, "left", (x0, y0)
        if mask is not None:
            align, position = "center", np.median(np.nonzero(mask.mask), axis=1)[::-1]
        if (x1 - x0) * (y1 - y0) < _SMALL_AREA * scale or y1 - y0 < 40 * scale:
            position = (x1, y0) if y1 >= self.output.height - 5 else (x0, y1)
        # Letters grow with the object, between 0.6 and 1 of the default.
        height = (y1 - y0) / np.sqrt(self.output.height * self.output.width)
        size = self._default_font_size * np.clip((height - 0.02) / 0.16 + 0.5, 0.6, 1)
        self.draw_text(text, position, color=_brighter(color, 0.7), horizontal_alignment=align, font_size=size)

    def _class_colors(self, classes: Sequence[int] | None, jittering: bool) -> list | None:
        palette = self.metadata.get("thing_colors", None)
        if self._instance_mode != ColorMode.SEGMENTATION or not palette or classes is None:
            return None
        shifts = self._generator.random((len(classes), 3)) * 0.4 - 0.2 if jittering else np.zeros((len(classes), 3))
        return [np.clip(np.divide(palette[c], 255) + shift, 0, 1) for c, shift in zip(classes, shifts, strict=True)]

    def _generic_masks(self, masks: Any) -> list[GenericMask]:
        if isinstance(masks, PolygonMasks):
            masks = masks.polygons
        elif isinstance(masks, BitMasks):
            masks = masks.tensor
        if isinstance(masks, torch.Tensor):
            masks = _numpy(masks)
        size = self.output.height, self.output.width
        return [mask if isinstance(mask, GenericMask) else GenericMask(mask, *size) for mask in masks]


def _signed_area(outline: np.ndarray) -> float:
    """Of a closed polygon (N, 2)."""
    x, y = outline.T
    return 0.5 * float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))
