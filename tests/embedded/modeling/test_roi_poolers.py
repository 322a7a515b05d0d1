"""ROI pooling from a pyramid."""

import math

import pytest
import torch
from torchvision.ops import roi_align, roi_pool

from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels, convert_boxes_to_pooler_format
from detectron2.structures import Boxes

SCALES = [1 / 4, 1 / 8, 1 / 16, 1 / 32]


def pyramid(n: int = 2, channels: int = 3):
    return [torch.randn(n, channels, 128 // 2**i, 128 // 2**i, requires_grad=True) for i in range(4)]


def random_boxes(n: int, size: float) -> Boxes:
    corner = torch.rand(n, 2) * 300
    return Boxes(torch.cat([corner, corner + 1 + torch.rand(n, 2) * size], dim=1))


def test_levels_follow_equation_1_of_fpn():
    sides = [0.0, 10.0, 112.0, 223.0, 224.0, 447.0, 448.0, 10000.0]
    boxes = Boxes(torch.tensor([[0.0, 0.0, s, s] for s in sides]))
    levels = assign_boxes_to_levels([boxes], 2, 5, 224, 4)
    want = [min(max(math.floor(4 + math.log2(s / 224 + 1e-8)), 2), 5) - 2 for s in sides]
    assert levels.tolist() == want and levels.dtype == torch.int64


def test_boxes_carry_the_index_of_their_image():
    boxes = [random_boxes(2, 9), random_boxes(0, 9), random_boxes(1, 9)]
    joined = convert_boxes_to_pooler_format(boxes)
    assert joined[:, 0].tolist() == [0, 0, 2]
    torch.testing.assert_close(joined[:, 1:], torch.cat([b.tensor for b in boxes]))


@pytest.mark.parametrize("kind", ["ROIAlignV2", "ROIAlign", "ROIPool"])
def test_every_box_is_pooled_from_its_level_and_image(kind):
    features, boxes = pyramid(), [random_boxes(7, 400), random_boxes(5, 60)]
    pooled = ROIPooler(5, SCALES, 2, kind)(features, boxes)
    levels = assign_boxes_to_levels(boxes, 2, 5, 224, 4).tolist()
    assert len(set(levels)) > 1
    for got, level, roi in zip(pooled, levels, convert_boxes_to_pooler_format(boxes), strict=True):
        if kind == "ROIPool":
            want = roi_pool(features[level], roi[None], 5, SCALES[level])
        else:
            want = roi_align(features[level], roi[None], 5, SCALES[level], 2, aligned=kind == "ROIAlignV2")
        torch.testing.assert_close(got, want[0], atol=1e-4, rtol=1e-4)


def test_a_single_map_and_an_oblong_output():
    features, boxes = pyramid()[:1], [random_boxes(3, 90), random_boxes(1, 90)]
    pooled = ROIPooler((4, 6), SCALES[:1], 0, "ROIAlignV2")(features, boxes)
    assert pooled.shape == (4, 3, 4, 6)


def test_no_boxes_still_connect_all_maps():
    features = pyramid()
    pooled = ROIPooler(7, SCALES, 0, "ROIAlignV2")(features, [random_boxes(0, 9)] * 2)
    assert pooled.shape == (0, 3, 7, 7)
    pooled.sum().backward()
    assert all(f.grad is not None and (f.grad == 0).all() for f in features)


def test_maps_without_boxes_get_a_gradient():
    features = pyramid()
    ROIPooler(7, SCALES, 0, "ROIAlignV2")(features, [random_boxes(3, 20), random_boxes(0, 9)]).sum().backward()
    assert all(f.grad is not None for f in features) and features[0].grad.abs().sum() > 0


def test_wrong_use_is_refused():
    bad = (ValueError, AssertionError, RuntimeError)
    for scales, kind in (([1 / 4, 1 / 16], "ROIAlignV2"), ([1 / 5], "ROIAlignV2"), (SCALES, "ROIWarp")):
        with pytest.raises(bad):
            ROIPooler(7, scales, 0, kind)
    with pytest.raises(bad):
        ROIPooler(7, SCALES, 0, "ROIAlignV2")(pyramid(), [random_boxes(1, 9)])
    with pytest.raises(bad):
        ROIPooler(7, SCALES, 0, "ROIAlignV2")(pyramid()[:2], [random_boxes(1, 9)] * 2)
