"""Data set wrappers between a list of dicts and the batches of a data loader."""

import copy
import itertools
import logging
import pickle
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils import data
from torch.utils.data import Sampler

from detectron2.utils.serialize import PicklableWrapper

logger = logging.getLogger(__name__)


class _MapIterableDataset(data.IterableDataset):
    """What :class:`MapDataset` becomes over an iterable: elements that map to None are left out."""

    def __init__(self, dataset: Any, map_func: Callable):
        self._dataset = dataset
        self._map_func = PicklableWrapper(map_func)

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator:
        return (x for x in map(self._map_func, self._dataset) if x is not None)


class MapDataset(data.Dataset):
    """Apply ``map_func`` to the elements of ``dataset``, map-style or iterable (the result is then iterable too).

    ``map_func`` may return None to leave an element out: an iterable goes on with the next one, a map-style data set
    returns a randomly chosen other element in its place.

    Raises:
        RuntimeError: no element of a map-style data set is left.
    """

    def __new__(cls, dataset: Any, map_func: Callable):
        if isinstance(dataset, data.IterableDataset):
            return _MapIterableDataset(dataset, map_func)
        return super().__new__(cls)

    def __init__(self, dataset: Any, map_func: Callable):
        self._dataset = dataset
        self._map_func = PicklableWrapper(map_func)  # so that lambdas reach spawned workers
        self._rng = random.Random(42)
        self._candidates: set[int] | None = None  # made at the first failure

    def __getnewargs__(self) -> tuple:
        return self._dataset, self._map_func

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, idx: int) -> Any:
        current = int(idx)
        for attempt in itertools.count(1):
            result = self._map_func(self._dataset[current])
            if result is not None:
                if self._candidates is not None:
                    self._candidates.add(current)
                return result
            if self._candidates is None:
                self._candidates = set(range(len(self._dataset)))
            self._candidates.discard(current)
            if not self._candidates:
                raise RuntimeError(f"The mapper returned None for every one of {len(self._dataset)} elements.")
            current = self._rng.sample(list(self._candidates), k=1)[0]
            if attempt >= 3:
                logger.warning(f"The mapper returned None {attempt} times in a row, starting from index {idx}.")


class _TorchSerializedList:
    """A read-only list kept as one byte tensor, so that worker processes share its memory.

    A plain list of dicts is copied page by page into each forked worker, since reading it changes reference counts.
    """

    def __init__(self, items: list):
        blobs = [pickle.dumps(x, protocol=-1) for x in items]
        self._ends = torch.from_numpy(np.cumsum([len(b) for b in blobs], dtype=np.int64))
        self._bytes = torch.from_numpy(np.frombuffer(bytearray().join(blobs), dtype=np.uint8))
        logger.info(f"Serialized {len(items)} dataset records: {len(self._bytes) / 1024**2:.2f} MiB.")

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, idx: int) -> Any:
        start = 0 if idx == 0 else int(self._ends[idx - 1])
        # Written by __init__ of this very process (or its parent): nothing foreign is unpickled.
        return pickle.loads(memoryview(self._bytes[start : int(self._ends[idx])].numpy()))


class DatasetFromList(data.Dataset):
    """A list as a map-style data set.

    Args:
        lst: the elements.
        copy: return a deep copy of an element, so that changing it leaves the list alone (serialised ones always are).
        serialize: keep the elements pickled in shared memory; a callable replaces the default storage.
    """

    def __init__(self, lst: list, copy: bool = True, serialize: bool | Callable = True):
        if not (isinstance(serialize, bool) or callable(serialize)):
            raise TypeError(f"DatasetFromList(serialize=) takes a bool or a callable, not {serialize!r}.")
        self._copy = copy and serialize is False
        storage = serialize if callable(serialize) else _TorchSerializedList
        self._lst = storage(lst) if serialize else lst

    def __len__(self) -> int:
        return len(self._lst)

    def __getitem__(self, idx: int) -> Any:
        element = self._lst[idx]
        return copy.deepcopy(element) if self._copy else element


class ToIterableDataset(data.IterableDataset):
    """A map-style data set, read in the order of ``sampler``.

    Args:
        dataset: map-style.
        sampler: cheap to iterate; every worker process runs through all of it.
        shard_sampler: keep only this worker's share; False where the sampler does so itself.
        shard_chunk_size: how many consecutive indices go to one worker (the batch size, so that a batch
            made in one worker holds the images that a single process would have put together).
    """

    def __init__(self, dataset: data.Dataset, sampler: Sampler, shard_sampler: bool = True, shard_chunk_size: int = 1):
        if isinstance(dataset, data.IterableDataset) or not isinstance(sampler, Sampler):
            raise TypeError(f"Needs a map-style dataset and a Sampler, got {type(dataset)} and {type(sampler)}.")
        self.dataset = dataset
        self.sampler = sampler
        self.shard_sampler = shard_sampler
        self.shard_chunk_size = shard_chunk_size

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator:
        worker = data.get_worker_info()
        shards = worker.num_workers if worker is not None and self.shard_sampler else 1
        for position, idx in enumerate(self.sampler):
            if shards == 1 or position // self.shard_chunk_size % shards == worker.id:
                yield self.dataset[idx]


class AspectRatioGroupedDataset(data.IterableDataset):
    """Lists of ``batch_size`` elements that are all wider than high, or all not, so that batches need little padding.

    ``dataset`` yields dicts with "width" and "height". Elements left over at its end are dropped.
    """

    def __init__(self, dataset: Any, batch_size: int):
        self.dataset = dataset
        self.batch_size = batch_size
        self._buckets: list[list] = [[], []]

    def __iter__(self) -> Iterator[list]:
        for element in self.dataset:
            group = int(element["width"] <= element["height"])
            self._buckets[group].append(element)
            if len(self._buckets[group]) == self.batch_size:
                # Emptied before the yield: the consumer may never come back to this generator.
                batch, self._buckets[group] = self._buckets[group], []
                yield batch
