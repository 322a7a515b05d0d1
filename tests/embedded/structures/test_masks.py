"""Masks against point-in-polygon and per-pixel references."""

import numpy as np
import pytest
import torch
from matplotlib.path import Path

from detectron2.structures import BitMasks, Boxes, PolygonMasks, ROIMasks, polygons_to_bitmask
from detectron2.structures.masks import polygon_area, rasterize_polygons_within_box


def ellipse(x: float, y: float, a: float, b: float, corners: int = 24) -> np.ndarray:
    angle = np.arange(corners) * 2 * np.pi / corners
    return np.stack((x + a * np.cos(angle), y + b * np.sin(angle)), axis=1).reshape(-1)


def inside(polygon: np.ndarray, height: int, width: int) -> np.ndarray:
    """Which pixel centres lie in a polygon."""
    y, x = np.mgrid[:height, :width] + 0.5
    return Path(polygon.reshape(-1, 2)).contains_points(np.stack((x.ravel(), y.ravel()), 1)).reshape(height, width)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


def test_polygon_area() -> None:
    assert polygon_area(np.array([0.0, 4, 4, 0]), np.array([0.0, 0, 3, 3])) == 12
    masks = PolygonMasks([[np.array([0.0, 0, 4, 0, 0, 3])], [ellipse(50, 50, 20, 10, 400), ellipse(9, 9, 2, 2, 400)]])
    np.testing.assert_allclose(masks.area().numpy(), [6, np.pi * (200 + 4)], rtol=1e-3)


def test_rasterised_polygon_is_where_pixels_are_inside() -> None:
    polygon = ellipse(40, 30, 25, 18)
    drawn = polygons_to_bitmask([polygon], 60, 80)
    assert drawn.dtype == bool and iou(drawn, inside(polygon, 60, 80)) > 0.93
    both = polygons_to_bitmask([polygon, ellipse(70, 50, 5, 5)], 60, 80)
    assert both.sum() > drawn.sum() and (both & drawn).sum() == drawn.sum()
    assert not polygons_to_bitmask([], 6, 8).any()


def test_polygon_in_a_box_is_the_polygon_in_the_coordinates_of_the_box() -> None:
    polygon = ellipse(40, 30, 25, 18)
    box = np.array([20.0, 10.0, 70.0, 50.0])
    moved = ((polygon.reshape(-1, 2) - box[:2]) * 28 / (box[2:] - box[:2])).reshape(-1)
    target = rasterize_polygons_within_box([polygon], box, 28).numpy()
    assert iou(target, inside(moved, 28, 28)) > 0.9
    assert polygon[0] == ellipse(40, 30, 25, 18)[0]  # the input is left alone


def test_targets_from_polygons_and_bitmaps_agree() -> None:
    polygons = PolygonMasks([[ellipse(40, 30, 25, 18)], [ellipse(60, 60, 15, 30), ellipse(20, 80, 9, 9)]])
    bitmaps = BitMasks.from_polygon_masks(polygons, 100, 100)
    boxes = polygons.get_bounding_boxes().tensor + torch.tensor([[-3.0, 2, 4, 5], [1, -6, 2, 3]])
    first, second = polygons.crop_and_resize(boxes, 28), bitmaps.crop_and_resize(boxes, 28)
    assert first.dtype == second.dtype == torch.bool and first.shape == second.shape == (2, 28, 28)
    for a, b in zip(first.numpy(), second.numpy(), strict=True):
        assert iou(a, b) > 0.9
    with pytest.raises((ValueError, AssertionError)):
        bitmaps.crop_and_resize(boxes[:1], 28)


def test_bounding_boxes_are_tight() -> None:
    pixels = torch.zeros(3, 9, 12, dtype=torch.bool)
    pixels[0, 2:5, 3:11] = True
    pixels[2, 8, 0] = True
    masks = BitMasks(pixels)
    assert masks.get_bounding_boxes().tensor.tolist() == [[3, 2, 11, 5], [0, 0, 0, 0], [0, 8, 1, 9]]
    assert masks.nonempty().tolist() == [True, False, True]
    polygons = PolygonMasks([[ellipse(40, 30, 25, 18, 400)]])
    np.testing.assert_allclose(polygons.get_bounding_boxes().tensor[0], [15, 12, 65, 48], atol=0.1)


@pytest.mark.parametrize("kind", ["bitmaps", "polygons"])
def test_indexing_and_cat(kind: str) -> None:
    polygons = PolygonMasks([[ellipse(10 + 5 * i, 20, 5, 6)] for i in range(4)])
    masks = polygons if kind == "polygons" else BitMasks.from_polygon_masks(polygons, 40, 40)

    def left_edges(part: BitMasks | PolygonMasks) -> list[int]:
        return [round(float(x)) for x in part.get_bounding_boxes().tensor[:, 0]]

    assert left_edges(masks) == [5, 10, 15, 20]
    assert left_edges(masks[1]) == [10] and left_edges(masks[1:3]) == [10, 15]
    assert left_edges(masks[torch.tensor([3, 0])]) == [20, 5] and left_edges(masks[[2]]) == [15]
    assert left_edges(masks[torch.tensor([True, False, False, True])]) == [5, 20]
    assert left_edges(type(masks).cat([masks[3], masks[:1]])) == [20, 5]
    assert len(masks[[]]) == 0 and len(list(masks)) == 4 and masks.device == torch.device("cpu")


def test_no_objects() -> None:
    for masks in (PolygonMasks([]), BitMasks(torch.zeros(0, 5, 6)), BitMasks.from_polygon_masks([], 5, 6)):
        assert masks.crop_and_resize(torch.zeros(0, 4), 14).shape == (0, 14, 14)
        assert masks.get_bounding_boxes().tensor.shape == (0, 4) and masks.nonempty().shape == (0,)


def test_polygons_are_checked() -> None:
    with pytest.raises(ValueError, match="coordinates"):
        PolygonMasks([[np.zeros(5)]])
    with pytest.raises(ValueError, match="list"):
        PolygonMasks(np.zeros((1, 1, 6)))
    with pytest.raises(ValueError):
        PolygonMasks([[np.zeros(6)]])[torch.tensor([0.5])]


def test_roi_masks_fill_their_boxes() -> None:
    masks = ROIMasks(torch.ones(2, 14, 14))
    boxes = Boxes([[2, 3, 10, 9], [0, 0, 20, 4]])
    full = masks.to_bitmasks(boxes, 12, 20)
    assert full.get_bounding_boxes().tensor.tolist() == boxes.tensor.tolist()
    assert full.tensor.flatten(1).sum(1).tolist() == [48, 80]
    assert len(masks[:1]) == 1 and masks[torch.tensor([False, True])].tensor.shape == (1, 14, 14)
