from itertools import islice

import pytest
import torch

from detectron2.data.samplers import (
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.utils import comm


def take(sampler, n: int) -> list[int]:
    return list(islice(iter(sampler), n))


def test_each_epoch_is_a_permutation_and_epochs_differ() -> None:
    indices = take(TrainingSampler(20, seed=1), 60)
    epochs = [indices[i : i + 20] for i in (0, 20, 40)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert indices == take(TrainingSampler(20, seed=1), 60) != take(TrainingSampler(20, seed=2), 60)


def test_order_is_that_of_torch_permutations() -> None:
    generator = torch.Generator().manual_seed(5)
    expected = [*torch.randperm(9, generator=generator).tolist(), *torch.randperm(9, generator=generator).tolist()]
    assert take(TrainingSampler(9, seed=5), 18) == expected


def test_without_shuffling_indices_count_up() -> None:
    assert take(TrainingSampler(3, shuffle=False, seed=0), 7) == [0, 1, 2, 0, 1, 2, 0]


def test_processes_share_one_stream(monkeypatch) -> None:
    whole = take(TrainingSampler(10, seed=4), 30)
    for world in (2, 3):
        monkeypatch.setattr(comm, "get_world_size", lambda world=world: world)
        for rank in range(world):
            monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
            assert take(TrainingSampler(10, seed=4), 10) == whole[rank::world][:10]


@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError)])
def test_bad_size(size, error) -> None:
    with pytest.raises(error):
        TrainingSampler(size, seed=0)


def test_subset_is_fixed_and_of_the_right_size() -> None:
    sampler = RandomSubsetTrainingSampler(40, 0.25, seed_shuffle=1, seed_subset=2)
    indices = take(sampler, 30)
    epochs = [set(indices[i : i + 10]) for i in (0, 10, 20)]
    assert len(epochs[0]) == 10 and epochs[0] == epochs[1] == epochs[2]
    other_order = take(RandomSubsetTrainingSampler(40, 0.25, seed_shuffle=9, seed_subset=2), 10)
    assert set(other_order) == epochs[0]
    for ratio in (0.0, 1.5, 0.001):
        with pytest.raises((ValueError, AssertionError)):
            RandomSubsetTrainingSampler(40, ratio, seed_shuffle=1, seed_subset=2)


def test_repeat_factors_by_hand() -> None:
    """Class 0 is in all four images, class 1 in one; t = 1 gives r(1) = sqrt(1 / (1/4)) = 2."""
    records = [{"annotations": [{"category_id": c} for c in classes]} for classes in ([0], [0, 0], [0, 1, 1], [0])]
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency
    assert factors(records, 1.0).tolist() == [1, 1, 2, 1]
    assert factors(records, 1.0, sqrt=False).tolist() == [1, 1, 4, 1]
    assert factors(records, 0.1).tolist() == [1, 1, 1, 1]
    assert factors([*records, {"annotations": []}], 0.0).tolist() == [1] * 5


def test_repeats_are_met_on_average_and_whole_parts_exactly() -> None:
    wanted = torch.tensor([1.0, 2.5, 3.0, 0.25])
    sampler = RepeatFactorTrainingSampler(wanted, seed=0, shuffle=False)
    counts = torch.zeros(4)
    indices = iter(sampler)
    epochs = 0
    while epochs < 400:  # index 0 occurs exactly once per epoch, at its start
        index = next(indices)
        epochs += index == 0
        counts[index] += 1
    assert torch.allclose(counts / 400, wanted, atol=0.1)
    assert abs(counts[2] - 3 * counts[0]) <= 3


def test_factors_of_one_visit_each_index_once_per_epoch() -> None:
    indices = take(RepeatFactorTrainingSampler(torch.ones(12), seed=3), 24)
    assert sorted(indices[:12]) == sorted(indices[12:]) == list(range(12))


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_inference_covers_everything_once(size: int, world: int) -> None:
    shares = [list(InferenceSampler._get_local_indices(size, world, rank)) for rank in range(world)]
    assert sum(shares, []) == list(range(size))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_inference_sampler_has_a_length() -> None:
    assert len(InferenceSampler(5)) == 5 and list(InferenceSampler(5)) == [0, 1, 2, 3, 4]
    with pytest.raises((ValueError, AssertionError)):
        InferenceSampler(0)
