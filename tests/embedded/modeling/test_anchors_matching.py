"""Anchors, their assignment to ground truth, and the sampling of both."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator, build_anchor_generator
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.sampling import subsample_labels

BAD_INPUT = (ValueError, AssertionError, IndexError)


def test_anchors_have_the_sizes_and_places_that_were_asked_for():
    sizes, ratios, stride, offset = [32, 50.5], [0.5, 1.0, 3.0], 8, 0.25
    generator = DefaultAnchorGenerator(sizes=sizes, aspect_ratios=ratios, strides=[stride], offset=offset)
    (anchors,) = generator([torch.zeros(2, 1, 3, 4)])
    assert generator.num_anchors == [6] and generator.box_dim == 4
    rows = iter(anchors.tensor.tolist())
    for y in range(3):
        for x in range(4):
            for size in sizes:
                for ratio in ratios:
                    x1, y1, x2, y2 = next(rows)
                    assert (x1 + x2) / 2 == pytest.approx((x + offset) * stride, abs=1e-4)
                    assert (y1 + y2) / 2 == pytest.approx((y + offset) * stride, abs=1e-4)
                    assert math.sqrt((x2 - x1) * (y2 - y1)) == pytest.approx(size, rel=1e-5)
                    assert (y2 - y1) / (x2 - x1) == pytest.approx(ratio, rel=1e-5)
    assert next(rows, None) is None


def test_one_list_serves_all_feature_maps():
    maps = [torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 2)]
    flat = DefaultAnchorGenerator(sizes=[32, 64], aspect_ratios=[1.0], strides=[8, 16])(maps)
    nested = DefaultAnchorGenerator(sizes=[[32, 64], [32, 64]], aspect_ratios=[[1.0]], strides=[8, 16])(maps)
    for a, b in zip(flat, nested, strict=True):
        torch.testing.assert_close(a.tensor, b.tensor)
    assert [len(a) for a in flat] == [32, 8]
    with pytest.raises(BAD_INPUT):
        DefaultAnchorGenerator(sizes=[[32], [64], [128]], aspect_ratios=[1.0], strides=[8, 16])
    with pytest.raises(BAD_INPUT):
        DefaultAnchorGenerator(sizes=[], aspect_ratios=[1.0], strides=[8])
    with pytest.raises(BAD_INPUT):
        DefaultAnchorGenerator(sizes=[32], aspect_ratios=[1.0], strides=[8], offset=1.0)


def test_anchors_move_with_the_model_and_stay_out_of_checkpoints():
    generator = build_anchor_generator(get_cfg(), [ShapeSpec(stride=16)])
    assert [name for name, _ in generator.named_buffers()] == ["cell_anchors.0"] and not generator.state_dict()
    assert generator.num_cell_anchors == [15]


def label_by_hand(quality, thresholds, labels, low_quality):
    matches, result = [], []
    for column in range(quality.shape[1]):
        values = quality[:, column].tolist()
        best = max(range(len(values)), key=lambda m: values[m])
        matches.append(best)
        result.append(labels[sum(values[best] >= t for t in torch.tensor(thresholds).tolist())])
    if low_quality:
        for row in quality.tolist():
            for column, value in enumerate(row):
                if value == max(row):
                    result[column] = 1
    return matches, result


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 12), st.booleans(), st.integers(0, 10**6))
def test_matcher_against_loops(num_gt, num_pred, low_quality, seed):
    quality = torch.rand(num_gt, num_pred, generator=torch.Generator().manual_seed(seed))
    thresholds, labels = [0.3, 0.7], [0, -1, 1]
    matches, result = Matcher(thresholds, labels, low_quality)(quality)
    want_matches, want = label_by_hand(quality, thresholds, labels, low_quality)
    assert matches.tolist() == want_matches and result.tolist() == want
    assert matches.dtype == torch.int64 and result.dtype == torch.int8


def test_thresholds_belong_to_the_level_above():
    _, labels = Matcher([0.25, 0.5], [0, -1, 1])(torch.tensor([[0.0, 0.2499, 0.25, 0.4999, 0.5, 1.0]]))
    assert labels.tolist() == [0, 0, -1, -1, 1, 1]


@pytest.mark.parametrize("lowest", [0, -1])
def test_without_ground_truth_all_are_of_the_lowest_level(lowest):
    matches, labels = Matcher([0.5], [lowest, 1], True)(torch.zeros(0, 5))
    assert matches.tolist() == [0] * 5 and labels.tolist() == [lowest] * 5
    assert [len(x) for x in Matcher([0.5], [0, 1])(torch.zeros(3, 0))] == [0, 0]


def test_matcher_refuses_nonsense():
    for thresholds, labels in (
        ([0.7, 0.3], [0, -1, 1]),
        ([0.5], [0, 1, 1]),
        ([0.5], [0, 2]),
        ([-0.5], [0, 1]),
        ([], [0]),
    ):
        with pytest.raises(BAD_INPUT):
            Matcher(thresholds, labels)
    with pytest.raises(BAD_INPUT):
        Matcher([0.5], [0, 1])(torch.tensor([[float("nan"), 0.5]]))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.sampled_from([-1, 0, 1, 2, 7]), max_size=60),
    st.integers(0, 40),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.sampled_from([0, 7]),
)
def test_sample_has_the_right_kinds_and_numbers(labels, num, fraction, background):
    labels = torch.tensor(labels, dtype=torch.int64)
    positives, negatives = subsample_labels(labels, num, fraction, background)
    all_positive = int(((labels != -1) & (labels != background)).sum())
    all_negative = int((labels == background).sum())
    assert len(positives) == min(all_positive, int(num * fraction))
    assert len(negatives) == min(all_negative, num - len(positives))
    assert ((labels[positives] != -1) & (labels[positives] != background)).all()
    assert (labels[negatives] == background).all()
    assert len(positives.unique()) == len(positives) and len(negatives.unique()) == len(negatives)


def test_sampling_follows_the_global_seed():
    labels = torch.randint(-1, 2, (500,))
    draws = []
    for _ in range(2):
        torch.manual_seed(4)
        draws.append(torch.cat(subsample_labels(labels, 64, 0.5, 0)))
    assert torch.equal(*draws)
    torch.manual_seed(4)
    positives = (labels == 1).nonzero()[:, 0]
    assert torch.equal(draws[0][:32], positives[torch.randperm(len(positives))[:32]])
