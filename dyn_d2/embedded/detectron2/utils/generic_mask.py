"""One object's mask in any of its forms, for drawing."""

import numpy as np
import pycocotools.mask as mask_util
from contourpy import FillType, contour_generator


class GenericMask:
    """The mask of one object, given as COCO RLE, as polygons or as an array, and readable as any of them."""

    def __init__(self, mask_or_polygons: dict | list | np.ndarray, height: int, width: int):
        """
        Args:
            mask_or_polygons: an RLE dict (compressed or not), a list of polygons [x0, y0, x1, y1, ...], or an array
                (height, width).

        Raises:
            ValueError: it is none of them, or of another size.
        """
        self.height, self.width = height, width
        self._mask: np.ndarray | None = None
        self._polygons: list[np.ndarray] | None = None
        value = mask_or_polygons
        if isinstance(value, dict) and {"counts", "size"} <= value.keys():
            if isinstance(value["counts"], list):
                value = mask_util.frPyObjects(value, *value["size"])
            self._mask = mask_util.decode(value)
        elif isinstance(value, list):
            self._polygons = [np.asarray(polygon, dtype=float).reshape(-1) for polygon in value]
        elif isinstance(value, np.ndarray) and value.ndim == 2:
            self._mask = value.astype(np.uint8)
        else:
            raise ValueError(f"A mask is an RLE dict, a list of polygons or a 2-d array, not a {type(value).__name__}.")
        if self._mask is not None and self._mask.shape != (height, width):
            raise ValueError(f"The mask's size is {self._mask.shape}, but the image's is {(height, width)}.")

    @property
    def mask(self) -> np.ndarray:
        """(height, width) uint8, 0 or 1."""
        if self._mask is None:
            valid = [polygon.tolist() for polygon in self._polygons if len(polygon) >= 6]
            if valid:
                self._mask = mask_util.decode(mask_util.merge(mask_util.frPyObjects(valid, self.height, self.width)))
            else:
                self._mask = np.zeros((self.height, self.width), np.uint8)
        return self._mask

    @property
    def parts(self) -> list[list[np.ndarray]]:
        """The closed outlines (N, 2) of each connected part: the outer one, then those of its holes."""
        if self._polygons is not None:
            return [[np.concatenate([p, p[:2]]).reshape(-1, 2)] for p in self._polygons if len(p) >= 6]
        # A border of zeros closes the outlines at the image's edge; they run between pixel centres.
        contours = contour_generator(z=np.pad(self._mask.astype(np.float32), 1), fill_type=FillType.OuterOffset)
        outlines, offsets = contours.filled(0.5, np.inf)
        return [np.split(p - 0.5, o[1:-1].astype(int)) for p, o in zip(outlines, offsets, strict=True)]

    @property
    def polygons(self) -> list[np.ndarray]:
        """All outlines, those of holes included, as [x0, y0, x1, y1, ...]."""
        if self._polygons is not None:
            return self._polygons
        return [outline.reshape(-1) for part in self.parts for outline in part]

    def area(self) -> int:
        """In pixels."""
        return int(self.mask.sum())

    def bbox(self) -> np.ndarray:
        """x0, y0, x1, y1; all 0 for an empty mask."""
        rows, columns = np.nonzero(self.mask)
        if not len(rows):
            return np.zeros(4)
        return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], dtype=float)
