"""Training data by position: a function of seed and iteration, for any number of workers and processes."""

import random
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch

from dyn_d2.data.resumable import (
    BatchesByPosition,
    MappedByPosition,
    ResumableLoader,
    SampleOrder,
    aspect_groups,
    isolated_random,
)


def noisy(record: int) -> dict:
    """A mapper that draws from all three generators, as augmentations do."""
    return {"record": record, "noise": (random.random(), np.random.rand(), torch.rand(1).item())}


def loader(
    batch: int = 4, workers: int = 0, groups=None, rank: int = 0, world: int = 1, size: int = 10
) -> ResumableLoader:
    batches = BatchesByPosition(SampleOrder(size, seed=3), batch, groups=groups, rank=rank, world=world)
    return ResumableLoader(MappedByPosition(list(range(size)), noisy, 3), batches, workers)


def first(source: ResumableLoader, count: int, start: int = 0) -> list[list[dict]]:
    source.start_iter = start
    return list(islice(iter(source), count))


def test_every_epoch_has_every_sample_once() -> None:
    order = SampleOrder(10, seed=0)
    assert sorted(order.epoch(0)) == sorted(order.epoch(5)) == list(range(10))
    assert order.epoch(0) != order.epoch(1) and order.epoch(1) == SampleOrder(10, seed=0).epoch(1)
    assert order.epoch(0) != SampleOrder(10, seed=1).epoch(0)


@pytest.mark.parametrize("groups", [None, [0, 1] * 5])
def test_starting_later_gives_the_same_batches(groups) -> None:
    whole = first(loader(groups=groups), 9)
    assert first(loader(groups=groups), 4, start=5) == whole[5:]


def test_workers_do_not_matter() -> None:
    assert first(loader(workers=2), 5, start=2) == first(loader(), 5, start=2)


def test_processes_share_the_batch_of_one() -> None:
    whole = first(loader(groups=[0, 1] * 5), 6)
    parts = [first(loader(groups=[0, 1] * 5, rank=rank, world=2), 6) for rank in (0, 1)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole
    with pytest.raises(ValueError, match="multiple of the 3 processes"):
        loader(world=3)


def test_batches_hold_one_group() -> None:
    groups = [0, 0, 1, 0, 1, 0, 0, 0, 0, 0]
    seen = Counter()
    for batch in first(loader(groups=groups), 25):
        assert len({groups[item["record"]] for item in batch}) == 1
        seen.update(item["record"] for item in batch)
    assert set(seen) == set(range(10)) and max(seen.values()) - min(seen.values()) <= 4


def test_data_set_smaller_than_the_batch() -> None:
    batch = first(loader(batch=8, size=3), 1)[0]
    assert Counter(item["record"] for item in batch).most_common()[-1][1] >= 2
    assert len({item["noise"] for item in batch}) == 8  # the same image again, augmented anew


def test_loading_leaves_the_generators_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first(loader(), 3)
    assert torch.equal(torch.rand(1), expected)
    with isolated_random("x"):
        inside = random.random(), np.random.rand()
    with isolated_random("x"):
        assert inside == (random.random(), np.random.rand())


def test_repeat_factors_hold_on_average_and_differ_by_epoch() -> None:
    order = SampleOrder(3, seed=0, repeats=torch.tensor([1.0, 1.5, 3.0]))
    counts = Counter(sample for epoch in range(400) for sample in order.epoch(epoch))
    assert counts[0] == 400 and counts[2] == 1200 and counts[1] == pytest.approx(600, abs=50)


def test_subset_stays_the_same_over_epochs() -> None:
    order = SampleOrder(20, seed=0, subset=0.25)
    assert len(order.epoch(0)) == 5 and set(order.epoch(0)) == set(order.epoch(7))


def test_declined_samples_are_replaced_in_the_same_way_each_time() -> None:
    def even_only(record: int) -> dict | None:
        return noisy(record) if record % 2 == 0 else None

    mapped = MappedByPosition(list(range(10)), even_only, 0)
    results = [mapped[(position, 1)] for position in range(20)]
    assert all(item["record"] % 2 == 0 for item in results)
    assert results == [mapped[(position, 1)] for position in range(20)]
    with pytest.raises(RuntimeError, match="declined"):
        MappedByPosition([1], even_only, 0)[(0, 0)]


def test_groups_need_sizes() -> None:
    assert aspect_groups([{"width": 3, "height": 2}, {"width": 2, "height": 2}]) == [1, 0]
    with pytest.raises(ValueError, match="b.png.*ASPECT_RATIO_GROUPING"):
        aspect_groups([{"file_name": "b.png"}])
