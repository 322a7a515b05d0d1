"""Instance masks of one image as bitmaps, polygons, or small masks within boxes."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from torch import Tensor

from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.layers.roi_align import ROIAlign

from .boxes import Boxes
from .tensor_rows import TensorRows


def polygon_area(x: np.ndarray, y: np.ndarray) -> float:
    """Area within a polygon's corners (x[i], y[i]), by the shoelace formula."""
    return 0.5 * np.abs(x @ np.roll(y, 1) - y @ np.roll(x, 1))


def polygons_to_bitmask(polygons: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """Union of the polygons of one object, each [x0, y0, x1, y1, ...], as a (height, width) bool array."""
    if not polygons:
        return np.zeros((height, width), dtype=bool)
    return mask_util.decode(mask_util.merge(mask_util.frPyObjects(polygons, height, width))).astype(bool)


def rasterize_polygons_within_box(polygons: list[np.ndarray], box: np.ndarray, mask_size: int) -> Tensor:
    """Target of a mask head: what of one object lies in ``box``, drawn on a grid over that box.

    Args:
        polygons: [x0, y0, x1, y1, ...] each, in the coordinates of ``box``.
        box: (4,) XYXY; a side shorter than 0.1 counts as 0.1.

    Returns:
        (mask_size, mask_size) bool.
    """
    origin = box[:2]
    scale = mask_size / np.maximum(box[2:] - origin, 0.1)
    within = [((p.reshape(-1, 2) - origin) * scale).reshape(-1) for p in polygons]
    return torch.from_numpy(polygons_to_bitmask(within, mask_size, mask_size))


class BitMasks(TensorRows):
    """N masks as a bool tensor (N, H, W), ``tensor``; ``image_size`` is (H, W)."""

    def __init__(self, tensor: Tensor | np.ndarray):
        tensor = torch.as_tensor(tensor).to(torch.bool)
        if tensor.dim() != 3:
            raise ValueError(f"BitMasks takes (N, H, W), got shape {tuple(tensor.shape)}.")
        self.image_size = tensor.shape[1:]
        self.tensor = tensor

    @staticmethod
    def from_polygon_masks(
        polygon_masks: "PolygonMasks | list[list[np.ndarray]]", height: int, width: int
    ) -> "BitMasks":
        """Rasterise polygons into an image of the given size."""
        masks = [polygons_to_bitmask(polygons, height, width) for polygons in polygon_masks]
        return BitMasks(np.stack(masks) if masks else torch.zeros(0, height, width))

    def nonempty(self) -> Tensor:
        """(N,) bool: the mask has a pixel."""
        return self.tensor.flatten(1).any(dim=1)

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """Targets of a mask head: the i-th mask within the i-th of ``boxes`` (N, 4), by RoIAlign.

        Returns:
            (N, mask_size, mask_size) bool, on the device of the masks.
        """
        if len(boxes) != len(self):
            raise ValueError(f"{len(boxes)} boxes do not fit {len(self)} masks.")
        boxes = boxes.to(self.device)
        rois = torch.cat((torch.arange(len(boxes)).to(boxes)[:, None], boxes), dim=1)
        pooled = ROIAlign((mask_size, mask_size), 1.0, 0, aligned=True)(self.tensor[:, None].float(), rois)
        return pooled[:, 0] >= 0.5

    def get_bounding_boxes(self) -> Boxes:
        """Tight boxes (on the CPU); an empty mask has the box (0, 0, 0, 0)."""
        ends = []
        for any_pixel in (self.tensor.any(dim=1), self.tensor.any(dim=2)):  # per column, per row
            any_pixel = any_pixel.to("cpu", torch.uint8)
            size = any_pixel.shape[1]
            if size == 0 or len(any_pixel) == 0:
                return Boxes(torch.zeros(len(self), 4))
            ends.append((any_pixel.argmax(1), size - any_pixel.flip(1).argmax(1)))
        (x0, x1), (y0, y1) = ends
        boxes = torch.stack((x0, y0, x1, y1), dim=1).float()
        return Boxes(boxes * self.nonempty().cpu()[:, None])


class PolygonMasks:
    """N masks as lists of polygons, each a float64 array [x0, y0, x1, y1, ...]. They always live on the CPU."""

    def __init__(self, polygons: list[list[Tensor | np.ndarray]]):
        """``polygons``: per object a list of polygons of at least three corners.

        Raises:
            ValueError: not lists of lists, or a polygon with an odd number of or fewer than 6 coordinates.
        """
        if not isinstance(polygons, list):
            raise ValueError(f"PolygonMasks takes a list of lists of polygons, not {type(polygons).__name__}.")
        self.polygons: list[list[np.ndarray]] = [self._checked(instance) for instance in polygons]

    @staticmethod
    def _checked(instance: list[Tensor | np.ndarray]) -> list[np.ndarray]:
        if not isinstance(instance, list):
            raise ValueError(f"Each object of PolygonMasks is a list of polygons, not {type(instance).__name__}.")
        arrays = [np.array(p.cpu() if isinstance(p, Tensor) else p, dtype=np.float64) for p in instance]
        for array in arrays:
            if len(array) % 2 or len(array) < 6:
                raise ValueError(f"A polygon has at least 3 corners (x, y), got {len(array)} coordinates.")
        return arrays

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def to(self, *args: Any, **kwargs: Any) -> "PolygonMasks":
        return self

    def __len__(self) -> int:
        return len(self.polygons)

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        """Yield the polygons of one object after another."""
        return iter(self.polygons)

    def __repr__(self) -> str:
        return f"PolygonMasks(num_instances={len(self)})"

    def __getitem__(self, item: int | slice | list[int] | np.ndarray | Tensor) -> "PolygonMasks":
        """Masks selected by int (one mask), slice, list, index vector or boolean mask."""
        if isinstance(item, slice):
            return PolygonMasks(self.polygons[item])
        if isinstance(item, (Tensor, np.ndarray)):
            indices = torch.as_tensor(item).cpu()
            if indices.is_floating_point():
                raise ValueError(f"PolygonMasks is indexed by integers or booleans, not {indices.dtype}.")
            item = (indices.nonzero()[:, 0] if indices.dtype == torch.bool else indices).tolist()
        indices = item if isinstance(item, (list, tuple)) else [item]
        return PolygonMasks([self.polygons[i] for i in indices])

    @staticmethod
    def cat(polymasks_list: Sequence["PolygonMasks"]) -> "PolygonMasks":
        return PolygonMasks(list(chain.from_iterable(polymasks_list)))

    def nonempty(self) -> Tensor:
        """(N,) bool: the object has a polygon."""
        return torch.tensor([len(instance) > 0 for instance in self.polygons], dtype=torch.bool)

    def area(self) -> Tensor:
        """(N,) sums of the polygons' areas (overlaps count twice)."""
        areas = [sum(polygon_area(p[0::2], p[1::2]) for p in each) for each in self.polygons]
        return torch.tensor(areas, dtype=torch.float64)

    def get_bounding_boxes(self) -> Boxes:
        """Tight boxes; an object without polygons has the box (0, 0, 0, 0)."""
        boxes = np.zeros((len(self), 4), dtype=np.float32)
        for box, instance in zip(boxes, self.polygons, strict=True):
            if instance:
                corners = np.concatenate(instance).reshape(-1, 2)
                box[:2], box[2:] = corners.min(axis=0), np.maximum(corners.max(axis=0), 0)
        return Boxes(boxes)

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """Targets of a mask head: the i-th object within the i-th of ``boxes`` (N, 4).

        Returns:
            (N, mask_size, mask_size) bool, on the device of ``boxes``.
        """
        if len(boxes) != len(self):
            raise ValueError(f"{len(boxes)} boxes do not fit {len(self)} masks.")
        drawn = torch.zeros(len(self), mask_size, mask_size, dtype=torch.bool)
        for slot, polygons, box in zip(drawn, self.polygons, boxes.detach().cpu().numpy(), strict=True):
            slot.copy_(rasterize_polygons_within_box(polygons, box, mask_size))
        return drawn.to(boxes.device)


class ROIMasks(TensorRows):
    """N square soft masks (N, M, M), each defined within a box that is kept elsewhere."""

    def __init__(self, tensor: Tensor):
        if tensor.dim() != 3:
            raise ValueError(f"ROIMasks takes (N, M, M), got shape {tuple(tensor.shape)}.")
        self.tensor = tensor

    def to_bitmasks(self, boxes: Boxes, height: int, width: int, threshold: float = 0.5) -> BitMasks:
        """Paste each mask into its box in an image of the given size."""
        # On a GPU, full-size masks of many objects are what runs out of memory first.
        from detectron2.utils.memory import retry_if_cuda_oom

        paste = retry_if_cuda_oom(paste_masks_in_image)
        return BitMasks(paste(self.tensor, boxes.tensor, (height, width), threshold=threshold))
