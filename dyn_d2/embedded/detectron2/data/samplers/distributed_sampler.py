"""Which images, in which order. All processes draw the same stream from one seed, and each takes its own share."""

import itertools
import logging
import math
from collections import Counter
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from detectron2.utils import comm

logger = logging.getLogger(__name__)


class _EndlessSampler(Sampler):
    """Epoch after epoch of :meth:`_epoch`, of which process r of R takes the elements r, r + R, r + 2R, ..."""

    def __init__(self, shuffle: bool, seed: int | None):
        self._shuffle = shuffle
        self._seed = int(comm.shared_random_seed() if seed is None else seed)
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()

    def _epoch(self, generator: torch.Generator) -> torch.Tensor:
        """The indices of one epoch, before shuffling."""
        raise NotImplementedError

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        while True:
            indices = self._epoch(generator)
            if self._shuffle:
                indices = indices[torch.randperm(len(indices), generator=generator)]
            yield from indices.tolist()

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(self._infinite_indices(), self._rank, None, self._world_size)


class TrainingSampler(_EndlessSampler):
    """Every index once per epoch, in an order drawn anew for each epoch, without end.

    Args:
        size: number of elements of the data set.
        shuffle: False gives 0, 1, ..., size - 1, 0, 1, ...
        seed: the same in all processes; None agrees on a random one (all processes have to take part).
    """

    def __init__(self, size: int, shuffle: bool = True, seed: int | None = None):
        if not isinstance(size, int):
            raise TypeError(f"A sampler needs the number of images as an int, got {type(size)}.")
        if size <= 0:
            raise ValueError(f"A sampler needs at least one image, got size={size}.")
        self._size = size
        super().__init__(shuffle, seed)

    def _epoch(self, generator: torch.Generator) -> torch.Tensor:
        return torch.arange(self._size)


class RandomSubsetTrainingSampler(TrainingSampler):
    """:class:`TrainingSampler` over a random ``subset_ratio`` of the indices, chosen once by ``seed_subset``."""

    def __init__(
        self,
        size: int,
        subset_ratio: float,
        shuffle: bool = True,
        seed_shuffle: int | None = None,
        seed_subset: int | None = None,
    ):
        super().__init__(size, shuffle, seed_shuffle)
        count = int(size * subset_ratio)
        if not 0 < subset_ratio <= 1 or count == 0:
            raise ValueError(f"subset_ratio={subset_ratio} of {size} images leaves none; it has to lie in (0, 1].")
        generator = torch.Generator()
        generator.manual_seed(int(comm.shared_random_seed() if seed_subset is None else seed_subset))
        self._indexes_subset = torch.randperm(size, generator=generator)[:count]
        logger.info(f"Training on a random subset of {count} of {size} images.")

    def _epoch(self, generator: torch.Generator) -> torch.Tensor:
        return self._indexes_subset


class RepeatFactorTrainingSampler(_EndlessSampler):
    """Index i occurs ``repeat_factors[i]`` times per epoch on average, for data sets with rare classes such as LVIS.

    The fractional part is rounded up or down at random, anew in each epoch, so epochs differ in length.
    """

    def __init__(self, repeat_factors: torch.Tensor, *, shuffle: bool = True, seed: int | None = None):
        super().__init__(shuffle, seed)
        self._int_part = torch.trunc(repeat_factors)
        self._frac_part = repeat_factors - self._int_part

    @staticmethod
    def repeat_factors_from_category_frequency(
        dataset_dicts: list[dict], repeat_thresh: float, sqrt: bool = True
    ) -> torch.Tensor:
        """Repeat factor of each image, from its rarest class (LVIS, arXiv:1908.03195v2, appendix B.2).

        With f(c) the fraction of images that show class c, r(c) = max(1, sqrt(t / f(c))), and an image gets the
        maximum of r(c) over its classes, 1 if it has none.

        Args:
            dataset_dicts: records with "annotations".
            repeat_thresh: t, the frequency below which a class is repeated.
            sqrt: False uses t / f(c) without the root.

        Returns:
            Float tensor of shape (number of images,).
        """
        classes = [{ann["category_id"] for ann in record["annotations"]} for record in dataset_dicts]
        images_with = Counter(c for present in classes for c in present)

        def repeat(count: int) -> float:
            ratio = repeat_thresh / (count / len(classes))
            return max(1.0, math.sqrt(ratio) if sqrt else ratio)

        factor = {c: repeat(n) for c, n in images_with.items()}
        logger.info(f"{sum(r > 1 for r in factor.values())} of {len(factor)} classes are rarer than {repeat_thresh}.")
        return torch.tensor([max((factor[c] for c in present), default=1.0) for present in classes])

    def _epoch(self, generator: torch.Generator) -> torch.Tensor:
        round_up = torch.rand(len(self._frac_part), generator=generator) < self._frac_part
        repeats = (self._int_part + round_up.float()).long()
        return torch.repeat_interleave(torch.arange(len(repeats)), repeats)


class InferenceSampler(Sampler):
    """Each index exactly once over all processes: consecutive blocks, the first ones longer by one if need be."""

    def __init__(self, size: int):
        if size <= 0:
            raise ValueError(f"A sampler needs at least one image, got size={size}.")
        self._local_indices = self._get_local_indices(size, comm.get_world_size(), comm.get_rank())

    @staticmethod
    def _get_local_indices(total_size: int, world_size: int, rank: int) -> range:
        share, longer = divmod(total_size, world_size)
        begin = rank * share + min(rank, longer)
        return range(begin, begin + share + (rank < longer))

    def __iter__(self) -> Iterator[int]:
        return iter(self._local_indices)

    def __len__(self) -> int:
        return len(self._local_indices)
