"""Means over seeds: hand-computed, never over other seeds than asked for, and honest about what was not measured."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dyn_d2.evaluation.aggregate import (
    Difference,
    Estimate,
    aggregate,
    cumulative,
    estimate,
    headline,
    paired_difference,
    table,
)


def test_interval_by_hand():
    # Mean 4; squared deviations 9 + 1 + 0 + 16 = 26, sample variance 26 / 3.
    result = estimate([1, 3, 4, 8], "normal")
    assert result.mean == 4 and result.count == 4
    assert result.half_width == pytest.approx(1.96 * math.sqrt(26 / 3) / 2)
    assert str(Estimate(12.34, 0.56, 5)) == "12.3 ± 0.6"
    with pytest.raises(ValueError, match="unknown interval 'z': use t or normal"):
        estimate([1, 2], "z")


@pytest.mark.parametrize("count, factor", [(2, 12.706), (3, 4.303), (5, 2.776), (10, 2.262), (30, 2.045)])
def test_interval_of_few_values_is_students(count, factor):
    """Factors of a printed table of the t distribution (0.975, count - 1 degrees of freedom)."""
    values = [float(k % 2) for k in range(count)]
    mean = sum(values) / count
    s = math.sqrt(sum((v - mean) ** 2 for v in values) / (count - 1))
    assert estimate(values).half_width == pytest.approx(factor * s / math.sqrt(count), rel=2e-4)


def test_cumulative_means():
    found = cumulative([2.0, 4.0, 9.0], "normal")
    assert [e.mean for e in found] == [2, 3, 5] and [e.count for e in found] == [1, 2, 3]
    assert math.isnan(found[0].half_width) and found[2] == estimate([2.0, 4.0, 9.0], "normal")


def test_paired_differences_do_not_see_what_both_share():
    first, second = {0: 11.0, 1: 52.0, 2: 33.0, 7: 0.0}, {2: 30.0, 1: 50.0, 0: 10.0, 9: 99.0}
    difference, single = paired_difference(first, second)
    assert single == {0: 1.0, 1: 2.0, 2: 3.0} and difference.mean == 2 and difference.count == 3
    assert difference.half_width == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert str(difference) == "+2.0 ± 2.5" and str(Difference(-1.26, 0.5, 3)) == "-1.3 ± 0.5"
    assert str(Difference(math.nan, math.nan, 3)) == "-"
    with pytest.raises(ValueError, match=r"no seed in common: \[0\] and \[1\]"):
        paired_difference({0: 1.0}, {1: 1.0})


@given(st.lists(st.floats(0, 100), min_size=2, max_size=10), st.floats(-50, 50))
def test_interval_does_not_move_with_the_mean_and_shrinks_with_repetition(values, shift):
    first, moved = estimate(values), estimate([v + shift for v in values])
    assert moved.mean == pytest.approx(first.mean + shift, abs=1e-6)
    assert moved.half_width == pytest.approx(first.half_width, abs=1e-6)
    assert estimate(values * 4).half_width <= first.half_width + 1e-9


def test_one_value_has_no_interval():
    single = estimate([7.25])
    assert single.mean == 7.25 and math.isnan(single.half_width) and str(single) == "7.2"
    assert str(estimate([float("nan"), 1.0])) == "-"
    with pytest.raises(ValueError, match="nothing to average"):
        estimate([])


def test_aggregate_by_hand():
    results = {
        ("tfa_cos", 1, 5): {0: {"AP": 10.0, "nAP": 2.0}, 1: {"AP": 14.0, "nAP": 4.0}, 2: {"AP": 99.0, "nAP": 99.0}},
        ("base",): {0: {"AP": 30.0}, 1: {"AP": 30.0}},
    }
    means = aggregate(results, [0, 1])
    assert means["tfa_cos", 1, 5]["AP"].mean == 12 and means["tfa_cos", 1, 5]["nAP"].mean == 3
    assert means["tfa_cos", 1, 5]["AP"].half_width == pytest.approx(12.7062 * math.sqrt(8) / math.sqrt(2), rel=1e-4)
    assert means["base",] == {"AP": Estimate(30.0, 0.0, 2)}


def test_missing_seeds_are_named_and_nothing_is_averaged():
    complete = {seed: {"AP": 1.0} for seed in range(4)}
    results = {("tfa_fc", 1, 5): {0: {"AP": 1.0}, 3: {"AP": 2.0}}, ("tfa_cos", 2, 5): complete}
    with pytest.raises(ValueError, match=r"nothing is averaged: tfa_fc/1/5: \[1, 2\]\."):
        aggregate(results, [0, 1, 2, 3])
    with pytest.raises(ValueError, match="no seed"):
        aggregate(results, [])


def test_headline_leaves_out_classes_and_reads_null_as_nan():
    record = {"metrics": {"val": {"bbox": {"AP": 1, "nAP": None, "AP-cat": 5.0}, "segm": {"AP": 2.0}}}}
    found = headline(record)
    assert found.keys() == {"AP", "nAP"} and found["AP"] == 1.0 and math.isnan(found["nAP"])
    assert headline(record, "segm") == {"AP": 2.0}
    with pytest.raises(ValueError, match=r"no 'sem_seg' results, only \['bbox', 'segm'\]"):
        headline(record, "sem_seg")


def test_table_says_what_was_not_predicted():
    rows = [
        (("1", "base only"), {"bAP": estimate([31.26])}),
        (("1", "TFA w/ cos"), {"bAP": estimate([30.0, 31.0]), "nAP": estimate([10.0, 12.0])}),
    ]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in
             table(rows, ("split", "method"), ("bAP", "nAP", "nAR1")).splitlines()]  # fmt: skip
    assert lines[0] == ["split", "method", "bAP", "nAP", "nAR1"]
    assert lines[2] == ["1", "base only", "31.3", "not predicted", "not measured"]  # VOC's evaluator has no recall
    assert lines[3] == ["1", "TFA w/ cos", "30.5 ± 6.4", "11.0 ± 12.7", "not measured"]
