"""Boxes, Instances and ImageList against slow, obvious references."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detectron2.structures import (
    Boxes,
    BoxMode,
    ImageList,
    Instances,
    pairwise_ioa,
    pairwise_iou,
)
from detectron2.structures.boxes import matched_pairwise_iou, pairwise_intersection


def some_boxes(count: int) -> Boxes:
    corner = torch.rand(count, 2) * 60
    return Boxes(torch.cat((corner, corner + torch.rand(count, 2) * 40), dim=1))


def area(box: list[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def intersection(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)


def test_pairwise_measures_agree_with_single_pairs() -> None:
    first, second = some_boxes(7), some_boxes(5)
    inter = [[intersection(a, b) for b in second.tensor.tolist()] for a in first.tensor.tolist()]
    iou = [
        [i / (area(a) + area(b) - i) for i, b in zip(row, second.tensor.tolist(), strict=True)]
        for row, a in zip(inter, first.tensor.tolist(), strict=True)
    ]
    ioa = torch.tensor(inter) / torch.tensor([area(b) for b in second.tensor.tolist()])
    torch.testing.assert_close(pairwise_intersection(first, second), torch.tensor(inter), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(pairwise_iou(first, second), torch.tensor(iou), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(pairwise_ioa(first, second), ioa, atol=1e-5, rtol=1e-4)
    diagonal = pairwise_iou(first[:5], second).diagonal()
    torch.testing.assert_close(matched_pairwise_iou(first[:5], second), diagonal)


def test_empty_boxes_overlap_nothing() -> None:
    nothing, point = Boxes(torch.empty(0, 4)), Boxes([[3.0, 3.0, 3.0, 3.0]])
    assert pairwise_iou(nothing, some_boxes(4)).shape == (0, 4)
    assert pairwise_iou(point, point).item() == 0
    assert pairwise_ioa(some_boxes(2), point).sum() == 0
    assert Boxes([]).tensor.shape == (0, 4)


def test_overlap_of_empty_boxes_has_a_gradient() -> None:
    leaf = torch.empty(0, 4, requires_grad=True)
    pairwise_iou(Boxes(leaf), some_boxes(3)).sum().backward()
    assert leaf.grad.shape == (0, 4)


def test_boxes_methods() -> None:
    boxes = Boxes([[-5.0, 1.0, 8.0, 30.0], [2.0, 2.0, 2.0, 9.0]])
    assert boxes.area().tolist() == [13 * 29, 0]
    assert boxes.nonempty().tolist() == [True, False] and boxes.nonempty(20).tolist() == [False, False]
    assert boxes.inside_box((40, 40)).tolist() == [False, True]
    assert boxes.inside_box((40, 40), boundary_threshold=5).tolist() == [True, True]
    assert boxes.get_centers().tolist() == [[1.5, 15.5], [2, 5.5]]
    clipped = boxes.clone()
    clipped.clip((20, 6))
    assert clipped.tensor.tolist() == [[0, 1, 6, 20], [2, 2, 2, 9]]
    clipped.scale(2, 10)
    assert clipped.tensor[0].tolist() == [0, 10, 12, 200]
    assert boxes.tensor[0].tolist() == [-5, 1, 8, 30]
    joined = Boxes.cat([boxes, boxes[1], boxes[torch.tensor([True, False])]])
    assert len(joined) == 4 and joined.tensor[3].tolist() == boxes.tensor[0].tolist()


def test_clip_refuses_what_is_not_finite() -> None:
    with pytest.raises((ValueError, AssertionError), match="infinite or NaN"):
        Boxes([[0.0, 0.0, float("nan"), 1.0]]).clip((5, 5))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-100, 100, width=16), min_size=4, max_size=4))
def test_box_mode_round_trip_keeps_numbers_and_types(box: list[float]) -> None:
    for value in (box, tuple(box), np.array([box]), torch.tensor([box], dtype=torch.float64)):
        wide = BoxMode.convert(value, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
        back = BoxMode.convert(wide, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
        assert type(wide) is type(value)
        np.testing.assert_allclose(np.array(back), np.array(value), atol=1e-3)
        assert np.isclose(np.array(wide).ravel()[2], box[2] - box[0], atol=1e-3)


def test_box_mode_refuses_relative_boxes() -> None:
    assert BoxMode(4) is BoxMode.XYWHA_ABS
    with pytest.raises((NotImplementedError, AssertionError), match="(?i)relative"):
        BoxMode.convert([0.0, 0.0, 1.0, 1.0], BoxMode.XYXY_REL, BoxMode.XYXY_ABS)


def instances() -> Instances:
    return Instances((10, 20), boxes=some_boxes(4), scores=torch.arange(4.0), names=["a", "b", "c", "d"])


def test_instances_index_all_fields() -> None:
    whole = instances()
    assert len(whole) == 4 and whole.image_size == (10, 20) and whole.has("names") and not whole.has("masks")
    for item, expected in ((2, [2]), (-1, [3]), (slice(1, 3), [1, 2])):
        part = whole[item]
        assert part.scores.tolist() == expected
        assert part.names == [whole.names[i] for i in expected]
        assert torch.equal(part.boxes.tensor, whole.boxes.tensor[expected])
    whole.remove("names")
    assert whole[whole.scores > 1.5].scores.tolist() == [2, 3]
    assert len(whole[torch.zeros(4, dtype=torch.bool)]) == 0


def test_instances_cat_is_the_inverse_of_splitting() -> None:
    whole = instances()
    joined = Instances.cat([whole[:1], whole[1:1], whole[1:]])
    assert joined.names == whole.names and torch.equal(joined.boxes.tensor, whole.boxes.tensor)
    assert joined.get_fields().keys() == whole.get_fields().keys()


def test_instances_errors() -> None:
    whole = instances()
    with pytest.raises((ValueError, AssertionError), match="length 3"):
        whole.classes = torch.zeros(3)
    with pytest.raises(AttributeError, match="classes"):
        whole.classes  # noqa: B018
    with pytest.raises(IndexError):
        whole[4]
    with pytest.raises(NotImplementedError):
        iter(whole)
    with pytest.raises(NotImplementedError):
        len(Instances((1, 1)))


def test_instances_survive_copy_pickle_and_move() -> None:
    whole = instances()
    for other in (copy.deepcopy(whole), pickle.loads(pickle.dumps(whole)), whole.to("cpu")):
        assert other.names == whole.names and torch.equal(other.scores, whole.scores)
    assert whole.to("cpu").image_size == (10, 20)
    assert "num_instances=4" in str(whole)


@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        ({}, (52, 41)),
        ({"size_divisibility": 32}, (64, 64)),
        ({"size_divisibility": 32, "padding_constraints": {"square_size": 70}}, (96, 96)),
        ({"padding_constraints": {"square_size": 70, "size_divisibility": 0}}, (70, 70)),
    ],
)
def test_image_list_pads_and_gives_back(arguments: dict, size: tuple[int, int]) -> None:
    images = [torch.rand(3, 30, 41), torch.rand(3, 52, 17)]
    batch = ImageList.from_tensors(images, pad_value=2.0, **arguments)
    assert batch.tensor.shape == (2, 3, *size) and batch.image_sizes == [(30, 41), (52, 17)]
    for i, image in enumerate(images):
        assert torch.equal(batch[i], image)
        padding = batch.tensor[i].numel() - image.numel()
        assert int((batch.tensor[i] == 2.0).sum()) == padding


def test_image_list_of_one_equals_that_of_many() -> None:
    image = torch.rand(3, 30, 41)
    one = ImageList.from_tensors([image], 16)
    assert torch.equal(one.tensor[0], ImageList.from_tensors([image, image], 16).tensor[1])
    assert one.to(torch.float64).tensor.dtype == torch.float64
