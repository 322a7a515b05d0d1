"""Bit masks as polygons that decode to exactly the same bits, in Detectron2's default mask format."""

import numpy as np
from scipy import ndimage


def mask_to_polygons(mask: np.ndarray) -> list[list[int]]:
    """Polygons along pixel edges whose union, rasterised by pycocotools, is ``mask``.

    COCO polygons have no holes: a component with a hole is cut in two through the middle of the hole.

    Args:
        mask: (H, W) bool.

    Returns:
        Each polygon as [x0, y0, x1, y1, ...] in absolute pixels, pixel (x, y) covering x..x+1 and y..y+1.
        Empty for an empty mask.
    """
    labels, _ = ndimage.label(mask)
    polygons = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        component = labels[rows, columns] == number
        holes = ndimage.binary_fill_holes(component) & ~component
        if not holes.any():
            polygons.append(_outline(component, columns.start, rows.start))
            continue
        inside = np.flatnonzero(holes.any(axis=0))
        cut = int(inside[len(inside) // 2])
        # Cutting at a column that crosses the hole opens it in both halves; the cut is never at the border.
        for first, last in ((0, cut), (cut, component.shape[1])):
            part = np.zeros_like(mask)
            part[rows, columns][:, first:last] = component[:, first:last]
            polygons += mask_to_polygons(part)
    return polygons


def _outline(component: np.ndarray, left: int, top: int) -> list[int]:
    """Corners of a 4-connected component without holes: it has one outline, which never touches itself."""
    padded = np.pad(component, 1).astype(np.int8)
    following: dict[tuple[int, int], tuple[int, int]] = {}
    # Keep the inside on the right: along top edges to the right, along right edges down, and so on.
    across = np.diff(padded, axis=0)[:, 1:-1]
    for y, x in np.argwhere(across):
        start, end = ((x, y), (x + 1, y)) if across[y, x] > 0 else ((x + 1, y), (x, y))
        following[start] = end
    down = np.diff(padded, axis=1)[1:-1]
    for y, x in np.argwhere(down):
        start, end = ((x, y + 1), (x, y)) if down[y, x] > 0 else ((x, y), (x, y + 1))
        following[start] = end
    corners: list[int] = []
    begin = point = next(iter(following))
    before = None
    while before is None or point != begin:
        after = following[point]
        step = (after[0] - point[0], after[1] - point[1])
        if step != before:
            corners += [int(point[0]) + left, int(point[1]) + top]
        before, point = step, after
    return corners
