"""Training data by position: what iteration i sees depends on the seed and i only.

Detectron2's loaders draw from generators whose state is lost when a run is killed. Here the order of the samples and
the random numbers of each sample's augmentation are functions of (SEED, position), so that a resumed run goes on with
exactly the batches that an unbroken one would have seen, whatever the number of workers, and without loading the
images before them. Batches are formed for all processes together and then divided, so that n processes see the same
images in an iteration as one does.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from dyn_d2.config.applied import note_loader
from dyn_d2.method import BatchExtension, methods
from dyn_d2.utils.errors import UserError
from dyn_d2.utils.seeds import derive_seed

from detectron2.data import DatasetMapper, build_detection_test_loader
from detectron2.data.common import DatasetFromList
from detectron2.data.detection_utils import SizeMismatchError, build_augmentation
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.utils import comm

from .classification import ClassificationMapper, has_labels, is_classification
from .partial_masks import PartialMaskMapper, partly_masked
from .pixel_changes import PixelChanges
from .random_scale import scale_crop_flip
from .sound_dicts import sound_dicts
from .views import evaluation_mapper

REPLACEMENTS = 10  # other samples to try where a mapper declines one


@contextmanager
def isolated_random(*seed: int | str) -> Iterator[None]:
    """Inside the block all generators are seeded with ``seed``; after it they go on as if nothing had been drawn."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    _seed_generators(*seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _seed_generators(*seed: int | str) -> None:
    number = derive_seed(*seed)
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.default_generator.manual_seed(number)  # torch.manual_seed would also reset the GPU's generator for good


@dataclass(frozen=True)
class SampleOrder:
    """The endless sequence of sample numbers, epoch after epoch.

    Attributes:
        size: samples in the data set.
        seed: of the shuffling.
        repeats: how often each sample occurs in an epoch; the fraction is rounded up or down at random in each epoch
            (repeat-factor sampling, LVIS). None: once.
        subset: use only this part of the samples, a fixed random choice; 1.0 for all.
    """

    size: int
    seed: int
    repeats: torch.Tensor | None = None
    subset: float = 1.0

    def epoch(self, number: int) -> list[int]:
        """Sample numbers of one epoch in their order."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", number))
        if self.repeats is not None:
            counts = (self.repeats + torch.rand(self.size, generator=generator)).floor().long()
            samples = torch.repeat_interleave(torch.arange(self.size), counts)
        else:
            chooser = torch.Generator().manual_seed(derive_seed(self.seed, "subset"))
            samples = torch.randperm(self.size, generator=chooser)[: max(1, round(self.size * self.subset))]
        return samples[torch.randperm(len(samples), generator=generator)].tolist()

    def __iter__(self) -> Iterator[int]:
        number = 0
        while True:
            yield from self.epoch(number)
            number += 1


class BatchesByPosition(Sampler[list[tuple[int, int]]]):
    """Endless batches of (position, sample number) for this process.

    Samples of one group (wide or tall images) are batched together, the rest waits for more of its kind. A data set
    smaller than the batch is gone through several times for a batch.

    Attributes:
        start: the iteration to begin with; set it before iterating.
    """

    def __init__(
        self, order: SampleOrder, batch: int, *, groups: Sequence[int] | None = None, rank: int = 0, world: int = 1
    ) -> None:
        """
        Args:
            order: the samples.
            batch: images in an iteration, all processes together.
            groups: group number of each sample; None for one group.
            rank, world: this process and how many there are.
        """
        if batch % world:
            raise ValueError(f"SOLVER.IMS_PER_BATCH {batch} has to be a multiple of the {world} processes.")
        self.order, self.batch, self.groups = order, batch, groups
        self.share = slice(rank * batch // world, (rank + 1) * batch // world)
        self.start = 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        waiting: dict[int, list[tuple[int, int]]] = {}
        made = 0
        for position, sample in enumerate(self.order):
            group = waiting.setdefault(self.groups[sample] if self.groups is not None else 0, [])
            group.append((position, sample))
            if len(group) < self.batch:
                continue
            if made >= self.start:
                yield group[self.share]
            group.clear()
            made += 1


@dataclass(frozen=True)
class Unreadable:
    """Takes the place of a sample whose image cannot be used; workers cannot raise errors with a readable message."""

    file: str
    reason: str


def readable(mapper: Callable[[dict], Any], record: dict) -> Any:
    """What ``mapper`` makes of a record, or Unreadable."""
    try:
        return mapper(record)
    except (OSError, SyntaxError, SizeMismatchError) as error:  # SyntaxError: PIL, of broken PNG files
        return Unreadable(str(record.get("file_name", f"image {record.get('image_id')}")), str(error))


def check_readable(batch: list[dict | Unreadable]) -> list[dict]:
    """``batch``, if all of it could be read.

    Raises:
        UserError: names the images that could not.
    """
    broken = [item for item in batch if isinstance(item, Unreadable)]
    if broken:
        raise UserError(
            f"{len(broken)} of the {len(batch)} images of this batch cannot be used: "
            + "; ".join(f"{item.file} ({item.reason})" for item in broken)
            + ". dyn-d2 check-data finds all such images, and its --clean leaves them out of a json."
        )
    return [item for item in batch if not isinstance(item, Unreadable)]


class MappedByPosition(Dataset):
    """Maps a data set dict to model input, with random numbers that depend on seed and position only.

    Attributes:
        records: the data set dicts.
        mapper: what makes inputs of them; may be replaced before the first batch.
        extensions: of each batch, in this order.
    """

    def __init__(
        self,
        records: Any,
        mapper: Callable[[dict], dict | None],
        seed: int,
        extensions: Sequence[BatchExtension] = (),
    ) -> None:
        self.records, self.mapper, self._seed, self.extensions = records, mapper, seed, extensions

    def __getitem__(self, key: tuple[int, int]) -> dict | Unreadable:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[dict | Unreadable]:
        """A batch, as DataLoader asks for it: to keep the generators' states costs more than to map a small image."""
        with isolated_random():
            batch = [self._map(*key) for key in keys]
            for extension in self.extensions:
                batch = extension.add(batch, keys[0][0], readable)
            return batch

    def _map(self, position: int, sample: int) -> dict | Unreadable:
        _seed_generators(self._seed, "sample", position)
        for _ in range(REPLACEMENTS):
            mapped = readable(self.mapper, self.records[sample])
            if mapped is not None:
                return mapped
            sample = random.randrange(len(self.records))
        raise RuntimeError(f"the mapper declined {REPLACEMENTS} samples in a row, the last one being number {sample}.")


class ResumableLoader:
    """Endless batches (lists of dicts) for training; set ``start_iter`` before iterating to begin there.

    Attributes:
        dataset: what batches are made of.
        instances: annotated objects of each class number in the data set, crowds not counted.

    Raises:
        UserError: while iterating, at an image that cannot be read.
    """

    def __init__(
        self, dataset: Dataset, batches: BatchesByPosition, num_workers: int = 0, instances: Counter | None = None
    ) -> None:
        self.dataset, self._batches, self._num_workers = dataset, batches, num_workers
        self.instances = instances or Counter()

    @property
    def start_iter(self) -> int:
        return self._batches.start

    @start_iter.setter
    def start_iter(self, iteration: int) -> None:
        self._batches.start = iteration

    def __iter__(self) -> Iterator[list[dict]]:
        # The loader draws a seed for its workers; that draw must not shift the numbers of the training step.
        with isolated_random("loader"):
            batches = iter(
                DataLoader(
                    self.dataset, batch_sampler=self._batches, num_workers=self._num_workers, collate_fn=_as_list
                )
            )
        yield from map(check_readable, batches)


def _as_list(batch: list[dict]) -> list[dict]:
    return batch


def aspect_groups(records: Sequence[dict]) -> list[int]:
    """1 for images that are wider than tall, else 0, from the data set dicts alone.

    Raises:
        ValueError: a record lacks its size.
    """
    for record in records:
        if "width" not in record or "height" not in record:
            raise ValueError(
                f"{record.get('file_name', 'a record')} has no width and height, which grouping by aspect ratio needs: "
                "add them to the data set, or set DATALOADER.ASPECT_RATIO_GROUPING False."
            )
    return [int(record["width"] > record["height"]) for record in records]


def _sample_order(cfg, records: list[dict], seed: int) -> SampleOrder:
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name == "TrainingSampler":
        return SampleOrder(len(records), seed)
    if name == "RandomSubsetTrainingSampler":
        return SampleOrder(len(records), seed, subset=cfg.DATALOADER.RANDOM_SUBSET_RATIO)
    if name == "RepeatFactorTrainingSampler":
        options = {"sqrt": cfg.DATALOADER.REPEAT_SQRT} if "REPEAT_SQRT" in cfg.DATALOADER else {}
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            records, cfg.DATALOADER.REPEAT_THRESHOLD, **options
        )
        return SampleOrder(len(records), seed, repeats=factors)
    raise ValueError(
        f"DATALOADER.SAMPLER_TRAIN is {name!r}: use TrainingSampler, RepeatFactorTrainingSampler or "
        "RandomSubsetTrainingSampler."
    )


def build_resumable_train_loader(cfg, mapper: Callable[[dict], dict | None] | None = None) -> ResumableLoader:
    """The training loader of ``cfg``: Detectron2's ``build_detection_train_loader``, but by position.

    Args:
        cfg: DATASETS.TRAIN, DATALOADER.*, SOLVER.IMS_PER_BATCH, SEED (must be set) are read.
        mapper: data set dict -> model input; default the one that ``build_mapper`` chooses. It may return None to
            decline a sample, another one is then drawn.
    """
    if cfg.SEED < 0:
        raise ValueError("SEED has to be set (>= 0) for data by position; dyn_d2.engine.setup draws one if it is not.")
    if not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty: name a registered data set, or set FEW_SHOT.BENCHMARK.")
    if cfg.MODEL.LOAD_PROPOSALS or cfg.MODEL.KEYPOINT_ON:
        raise ValueError("dyn_d2 trains neither on precomputed proposals (MODEL.LOAD_PROPOSALS) nor on keypoints.")
    records = list(partly_masked(cfg, _records(cfg)))
    labels = has_labels(cfg.DATASETS.TRAIN[0])
    batches = BatchesByPosition(
        _sample_order(cfg, records, cfg.SEED),
        cfg.SOLVER.IMS_PER_BATCH,
        groups=_groups(cfg, records, labels),
        rank=comm.get_rank(),
        world=comm.get_world_size(),
    )
    mapper = mapper or build_mapper(cfg, cfg.DATASETS.TRAIN[0], is_train=True)
    kept = _kept(records)
    mapped = MappedByPosition(kept, mapper, cfg.SEED, _extensions(cfg, records, kept))
    loader = ResumableLoader(mapped, batches, cfg.DATALOADER.NUM_WORKERS, _count_classes(records, labels))
    note_loader(loader, cfg)
    return loader


def _extensions(cfg, records: list[dict], kept: Dataset) -> list[BatchExtension]:
    found = [method.batch_extension(cfg, records, kept) for method in methods()]
    return [extension for extension in found if extension is not None]


def _records(cfg) -> list[dict]:
    """The training records; with ONE_DATASET_PER_BATCH, or one data set, each says of which ("dataset") it is."""
    names, filter_empty = list(cfg.DATASETS.TRAIN), cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    if len(names) > 1 and not cfg.DATALOADER.ONE_DATASET_PER_BATCH:
        return sound_dicts(names, filter_empty)
    return [{**record, "dataset": name} for name in names for record in sound_dicts([name], filter_empty)]


def _groups(cfg, records: list[dict], labels: bool) -> list[int] | None:
    """Group numbers of the samples that may share a batch: of one data set, where that is asked for, and of one aspect.
    As a batch is made when its last image comes up, each data set gets batches in proportion to its size."""
    aspects = aspect_groups(records) if cfg.DATALOADER.ASPECT_RATIO_GROUPING and not labels else None
    if not cfg.DATALOADER.ONE_DATASET_PER_BATCH:
        return aspects
    number = {name: i for i, name in enumerate(cfg.DATASETS.TRAIN)}
    return [2 * number[r["dataset"]] + (aspects[i] if aspects else 0) for i, r in enumerate(records)]


def build_mapper(cfg, dataset_name: str, is_train: bool) -> Callable[[dict], dict | None]:
    """The mapper that fits the data set: of images with a label, that of a method, or Detectron2's of images with
    objects, in training on masks the one for which some objects may have none."""
    changes = [PixelChanges(cfg.INPUT.ALBUMENTATIONS)] if is_train and cfg.INPUT.ALBUMENTATIONS else []
    if is_classification(dataset_name):
        return ClassificationMapper(cfg, is_train=is_train)
    if is_train and cfg.INPUT.RANDOM_SCALE:
        return DatasetMapper(cfg, is_train=True, augmentations=[*changes, *scale_crop_flip(cfg)])
    for method in methods():
        own = method.mapper(cfg, dataset_name, is_train)
        if own is not None:
            if changes:
                raise ValueError(
                    f"INPUT.ALBUMENTATIONS is not read by {type(own).__name__}, which maps {dataset_name}."
                )
            return own
    mapper = PartialMaskMapper if is_train and cfg.MODEL.MASK_ON else DatasetMapper
    if not changes:
        return mapper(cfg, is_train=is_train)
    return mapper(cfg, is_train=True, augmentations=[*changes, *build_augmentation(cfg, is_train=True)])


def _kept(records: list[dict]) -> Dataset:
    """Serialized, so that workers share them; images in memory are shared anyway, and would only be copied."""
    return DatasetFromList(records, copy=False, serialize=not {"image", "feature"} & records[0].keys())


def _count_classes(records: list[dict], labels: bool) -> Counter:
    if labels:
        return Counter(record["label"] for record in records)
    return Counter(
        annotation["category_id"]
        for record in records
        for annotation in record.get("annotations", ())
        if not annotation.get("iscrowd", 0)
    )


class EvaluationLoader:
    """Each image of a data set once, in batches, spread over the processes.

    Raises:
        UserError: while iterating, at an image that cannot be read.
    """

    def __init__(self, cfg, dataset_name: str, mapper: Callable[[dict], dict | None] | None = None) -> None:
        """
        Args:
            cfg: TEST.IMS_PER_BATCH, images of a process in a batch, and DATALOADER.NUM_WORKERS are read.
            mapper: default the one that ``build_mapper`` chooses.
        """
        records = [{**record, "dataset": dataset_name} for record in sound_dicts([dataset_name], filter_empty=False)]
        mapper = mapper or evaluation_mapper(build_mapper(cfg, dataset_name, is_train=False), len(records))
        self._batches = build_detection_test_loader(
            _kept(records),
            mapper=partial(readable, mapper),
            batch_size=cfg.TEST.IMS_PER_BATCH,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )
        self.dataset = self._batches.dataset

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[dict]]:
        yield from map(check_readable, self._batches)
