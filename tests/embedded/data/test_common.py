import pickle

import pytest
from torch.utils.data import DataLoader, IterableDataset

from detectron2.data import DatasetFromList, MapDataset, ToIterableDataset
from detectron2.data.common import AspectRatioGroupedDataset
from detectron2.data.samplers import InferenceSampler, TrainingSampler


class Counting(IterableDataset):
    def __init__(self, n: int):
        self.n = n

    def __iter__(self):
        return iter(range(self.n))


@pytest.mark.parametrize("serialize", [True, False])
def test_list_gives_equal_elements_that_can_be_changed(serialize: bool) -> None:
    items = [{"a": [1, 2]}, {"b": "text"}, {}]
    dataset = DatasetFromList(items, serialize=serialize)
    assert len(dataset) == 3 and [dataset[i] for i in range(3)] == items
    dataset[0]["a"].append(3)
    assert dataset[0] == {"a": [1, 2]} == items[0]


def test_list_without_copy_gives_the_element_itself_and_storage_can_be_replaced() -> None:
    items = [[1], [2]]
    assert DatasetFromList(items, copy=False, serialize=False)[1] is items[1]
    assert DatasetFromList(items, serialize=lambda lst: lst[::-1])[0] == [2]
    with pytest.raises(TypeError):
        DatasetFromList(items, serialize="yes")


def test_list_survives_pickling() -> None:
    copy = pickle.loads(pickle.dumps(DatasetFromList([{"a": 1}, {"b": 2}])))
    assert copy[1] == {"b": 2}


def test_map_replaces_elements_that_the_mapper_declines() -> None:
    dataset = MapDataset(DatasetFromList(list(range(10))), lambda x: x if x % 3 else None)
    results = [dataset[i] for i in range(10)]
    assert all(r % 3 for r in results) and [results[i] for i in (1, 2, 4, 5, 7, 8)] == [1, 2, 4, 5, 7, 8]
    again = MapDataset(DatasetFromList(list(range(10))), lambda x: x if x % 3 else None)
    assert results == [again[i] for i in range(10)]


@pytest.mark.embedded
def test_map_that_declines_everything_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="every one of 3"):
        MapDataset([1, 2, 3], lambda x: None)[0]


def test_map_over_an_iterable_is_iterable_and_skips_what_is_declined() -> None:
    dataset = MapDataset(Counting(6), lambda x: x * 10 if x % 2 else None)
    assert isinstance(dataset, IterableDataset) and list(dataset) == [10, 30, 50]


def test_map_with_a_lambda_travels_between_processes() -> None:
    copy = pickle.loads(pickle.dumps(MapDataset([1, 2], lambda x: x + 1)))
    assert copy[1] == 3 and len(copy) == 2


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("batch", [1, 2])
def test_workers_together_read_each_index_once_and_in_order(workers: int, batch: int) -> None:
    dataset = ToIterableDataset(list(range(13)), InferenceSampler(13), shard_chunk_size=batch)
    loader = DataLoader(dataset, batch_size=batch, num_workers=workers, collate_fn=list)
    read = [x for b in loader for x in b]
    assert sorted(read) == list(range(13))
    if workers < 2:
        assert read == list(range(13))
    else:  # full rounds of all workers come in the sampler's order
        rounds = 13 // (workers * batch) * workers * batch
        assert read[:rounds] == list(range(rounds))


def test_without_sharding_each_worker_reads_all() -> None:
    dataset = ToIterableDataset(list(range(4)), InferenceSampler(4), shard_sampler=False)
    assert sorted(DataLoader(dataset, batch_size=None, num_workers=2)) == sorted([*range(4)] * 2)


def test_iterable_needs_a_map_style_data_set_and_a_sampler() -> None:
    with pytest.raises((TypeError, AssertionError)):
        ToIterableDataset(Counting(3), TrainingSampler(3, seed=0))
    with pytest.raises((TypeError, AssertionError)):
        ToIterableDataset([1], [0])


def test_batches_hold_one_aspect_ratio_group() -> None:
    shapes = [(5, 3), (3, 5), (4, 4), (6, 2), (2, 6), (7, 1), (9, 1)]
    elements = [{"width": w, "height": h, "i": i} for i, (w, h) in enumerate(shapes)]
    batches = [[e["i"] for e in batch] for batch in AspectRatioGroupedDataset(elements, 2)]
    assert batches == [[1, 2], [0, 3], [5, 6]]  # a square counts as high; element 4 is left over
