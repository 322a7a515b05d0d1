"""From names of data sets to data loaders."""

import itertools
import logging
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.utils.data as torchdata
from tabulate import tabulate
from termcolor import colored

from detectron2.config import configurable
from detectron2.left_out import left_out
from detectron2.utils.comm import get_world_size
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import log_first_n

from .catalog import DatasetCatalog, MetadataCatalog
from .common import AspectRatioGroupedDataset, DatasetFromList, MapDataset, ToIterableDataset
from .dataset_mapper import DatasetMapper
from .detection_utils import check_metadata_consistency
from .paths import require
from .samplers import InferenceSampler, RandomSubsetTrainingSampler, RepeatFactorTrainingSampler, TrainingSampler

logger = logging.getLogger(__name__)


def filter_images_with_only_crowd_annotations(dataset_dicts: list[dict]) -> list[dict]:
    """The records that have at least one annotation that is no crowd."""
    kept = [record for record in dataset_dicts if any(not ann.get("iscrowd", 0) for ann in record["annotations"])]
    logger.info(f"Removed {len(dataset_dicts) - len(kept)} images with no usable annotations. {len(kept)} images left.")
    return kept


def print_instances_class_histogram(dataset_dicts: list[dict], class_names: list[str]) -> None:
    """Log how many instances each class has, crowds not counted.

    Raises:
        ValueError: an annotation has a class that does not exist; the message names the image.
    """
    counts = np.zeros(len(class_names), dtype=int)
    for record in dataset_dicts:
        for ann in record["annotations"]:
            category = ann["category_id"]
            if ann.get("iscrowd", 0):
                continue
            if not 0 <= category < len(class_names):
                raise ValueError(
                    f"Image {record.get('file_name', record.get('image_id'))} has an annotation with category_id="
                    f"{category}, but the data set has {len(class_names)} classes (0 to {len(class_names) - 1})."
                )
            counts[category] += 1
    # Three classes side by side; long names, as LVIS has them, are cut.
    short = (name if len(name) <= 13 else name[:11] + ".." for name in class_names)
    cells = list(zip(short, counts.tolist(), strict=True))
    if len(cells) > 1:
        cells.append(("total", int(counts.sum())))
    columns = min(3, len(cells))
    rows = [sum(cells[i : i + columns], ()) for i in range(0, len(cells), columns)]
    table = tabulate(
        rows, headers=["category", "#instances"] * columns, tablefmt="pipe", numalign="left", stralign="center"
    )
    log_first_n(
        logging.INFO,
        f"Distribution of instances among all {len(class_names)} categories:\n" + colored(table, "cyan"),
        key="message",
    )


def _check_images_exist(name: str, dicts: list[dict]) -> None:
    """Look for the first image, so that a wrong folder is reported before training and not by a worker in it.

    Only for data sets whose metadata name a folder; others may keep anything in "file_name".
    """
    metadata = MetadataCatalog.get(name)
    folder = metadata.get("image_root") or metadata.get("image_dir") or metadata.get("dirname")
    first = dicts[0].get("file_name")
    if folder and first:
        require(first, f"The first image of dataset '{name}'")


def get_detection_dataset_dicts(
    names: str | list[str],
    filter_empty: bool = True,
    min_keypoints: int = 0,
    proposal_files: list[str] | None = None,
    check_consistency: bool = True,
) -> list[dict] | torchdata.Dataset:
    """Load data sets for detection or segmentation and put them one after the other.

    Args:
        names: registered names.
        filter_empty: leave out images without annotations, or with crowds only.
        min_keypoints, proposal_files: have to be 0 and empty; keypoints and precomputed proposals are left out.
        check_consistency: check that all have the same classes, and log their distribution.

    Returns:
        List of records; a torch Dataset where the first name is registered with one.

    Raises:
        KeyError: a name is not registered.
        ValueError: nothing is left, or class lists differ.
        FileNotFoundError: the images are not where the metadata say.
    """
    if min_keypoints or proposal_files:
        raise left_out("min_keypoints, proposal_files", "keypoints and precomputed proposals")
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise ValueError("No data set is given: fill DATASETS.TRAIN / DATASETS.TEST.")
    loaded = [DatasetCatalog.get(name) for name in names]
    if isinstance(loaded[0], torchdata.Dataset):
        return loaded[0] if len(loaded) == 1 else torchdata.ConcatDataset(loaded)
    for name, dicts in zip(names, loaded, strict=True):
        if not dicts:
            raise ValueError(f"Dataset '{name}' is empty!")
        _check_images_exist(name, dicts)
    dataset_dicts = list(itertools.chain.from_iterable(loaded))
    has_instances = "annotations" in dataset_dicts[0]
    if filter_empty and has_instances:
        dataset_dicts = filter_images_with_only_crowd_annotations(dataset_dicts)
    if check_consistency and has_instances:
        try:
            check_metadata_consistency("thing_classes", names)
            print_instances_class_histogram(dataset_dicts, MetadataCatalog.get(names[0]).thing_classes)
        except AttributeError:
            logger.info(f"The classes of {', '.join(names)} are unknown; their distribution is not shown.")
    if not dataset_dicts:
        raise ValueError(f"No image of {', '.join(names)} has annotations to train on.")
    return dataset_dicts


def build_batch_data_loader(
    dataset: torchdata.Dataset,
    sampler: torchdata.Sampler | None,
    total_batch_size: int,
    *,
    aspect_ratio_grouping: bool = False,
    num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
    drop_last: bool = True,
    single_gpu_batch_size: int | None = None,
    prefetch_factor: int | None = 2,
    persistent_workers: bool = False,
    pin_memory: bool = False,
    seed: int | None = None,
    **kwargs: Any,
) -> Any:
    """A data loader that yields lists of elements, this process' share of each batch.

    Args:
        dataset: map-style, or iterable (then ``sampler`` is None).
        total_batch_size: over all processes; or give ``single_gpu_batch_size``, of this one, and 0 here.
        aspect_ratio_grouping: see :class:`AspectRatioGroupedDataset`.
        seed: of the generator that seeds the workers.
        kwargs: further arguments of ``torch.utils.data.DataLoader``, as are those not named here.
    """
    if single_gpu_batch_size and total_batch_size:
        raise ValueError("Give either total_batch_size or single_gpu_batch_size, not both.")
    world_size = get_world_size()
    if not single_gpu_batch_size and (total_batch_size <= 0 or total_batch_size % world_size):
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH={total_batch_size} is no positive multiple of the {world_size} processes."
        )
    batch_size = single_gpu_batch_size or total_batch_size // world_size
    logger.info(f"Making batched data loader with batch_size={batch_size}")

    if not isinstance(dataset, torchdata.IterableDataset):
        dataset = ToIterableDataset(dataset, sampler, shard_chunk_size=batch_size)
    elif sampler is not None:
        raise ValueError("An iterable dataset has its own order: sampler has to be None.")
    generator = torch.Generator().manual_seed(seed) if seed is not None else None
    shared = kwargs | {
        "num_workers": num_workers,
        "worker_init_fn": worker_init_reset_seed,
        "prefetch_factor": prefetch_factor if num_workers > 0 else None,
        "persistent_workers": persistent_workers,
        "pin_memory": pin_memory,
        "generator": generator,
    }
    if not aspect_ratio_grouping:
        shared["collate_fn"] = collate_fn or trivial_batch_collator
        return torchdata.DataLoader(dataset, batch_size=batch_size, drop_last=drop_last, **shared)
    if not drop_last:
        raise ValueError("aspect_ratio_grouping drops incomplete batches: it needs drop_last=True.")
    # Elements arrive one by one and are grouped in this process.
    elements = torchdata.DataLoader(dataset, collate_fn=operator.itemgetter(0), **shared)
    grouped = AspectRatioGroupedDataset(elements, batch_size)
    return grouped if collate_fn is None else MapDataset(grouped, collate_fn)


def _make_train_sampler(cfg: Any, dataset: Any) -> torchdata.Sampler | None:
    if isinstance(dataset, torchdata.IterableDataset):
        return None
    name = cfg.DATALOADER.SAMPLER_TRAIN
    logger.info(f"Using training sampler {name}")
    if name == "TrainingSampler":
        return TrainingSampler(len(dataset), seed=cfg.SEED)
    if name == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dataset, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
        )
        return RepeatFactorTrainingSampler(factors, seed=cfg.SEED)
    if name == "RandomSubsetTrainingSampler":
        return RandomSubsetTrainingSampler(len(dataset), cfg.DATALOADER.RANDOM_SUBSET_RATIO)
    known = "TrainingSampler, RepeatFactorTrainingSampler, RandomSubsetTrainingSampler"
    raise ValueError(f"DATALOADER.SAMPLER_TRAIN={name!r} is unknown; this engine has {known}.")


def _train_loader_from_config(
    cfg: Any, mapper: Callable | None = None, *, dataset: Any = None, sampler: torchdata.Sampler | None = None
) -> dict[str, Any]:
    if dataset is None:
        dataset = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        )
    return {
        "dataset": dataset,
        "sampler": _make_train_sampler(cfg, dataset) if sampler is None else sampler,
        "mapper": DatasetMapper(cfg, True) if mapper is None else mapper,
        "total_batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "aspect_ratio_grouping": cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
    }


def _mapped(dataset: Any, mapper: Callable | None) -> torchdata.Dataset:
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    return dataset if mapper is None else MapDataset(dataset, mapper)


@configurable(from_config=_train_loader_from_config)
def build_detection_train_loader(
    dataset: list | torchdata.Dataset,
    *,
    mapper: Callable | None,
    sampler: torchdata.Sampler | None = None,
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
    **kwargs: Any,
) -> Any:
    """An endless data loader; call it with these arguments, or with ``cfg`` (and any of them to override it).

    Args:
        dataset: list of records, or a torch data set.
        mapper: from a record to what the model takes; with ``cfg`` by default ``DatasetMapper(cfg, True)``.
        sampler: default :class:`TrainingSampler`; None for an iterable data set.
        total_batch_size, aspect_ratio_grouping, num_workers, collate_fn, kwargs: see :func:`build_batch_data_loader`.

    Returns:
        Iterable of lists of mapped elements, of length total_batch_size / number of processes.
    """
    dataset = _mapped(dataset, mapper)
    if sampler is None and not isinstance(dataset, torchdata.IterableDataset):
        sampler = TrainingSampler(len(dataset))
    kwargs |= {"aspect_ratio_grouping": aspect_ratio_grouping, "num_workers": num_workers, "collate_fn": collate_fn}
    return build_batch_data_loader(dataset, sampler, total_batch_size, **kwargs)


def _test_loader_from_config(cfg: Any, dataset_name: str | list[str], mapper: Callable | None = None) -> dict[str, Any]:
    names = [dataset_name] if isinstance(dataset_name, str) else list(dataset_name)
    return {
        "dataset": get_detection_dataset_dicts(names, filter_empty=False),
        "mapper": DatasetMapper(cfg, False) if mapper is None else mapper,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
    }


@configurable(from_config=_test_loader_from_config)
def build_detection_test_loader(
    dataset: list | torchdata.Dataset,
    *,
    mapper: Callable | None,
    sampler: torchdata.Sampler | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
) -> torchdata.DataLoader:
    """A data loader that passes each image once, spread over all processes; ``(cfg, dataset_name)`` also does.

    Args:
        dataset: list of records, or a torch data set.
        mapper: with ``cfg`` by default ``DatasetMapper(cfg, False)``.
        sampler: default :class:`InferenceSampler`; None for an iterable data set.
        batch_size: per process; 1 is the usual for timing.
    """
    dataset = _mapped(dataset, mapper)
    if isinstance(dataset, torchdata.IterableDataset):
        if sampler is not None:
            raise ValueError("An iterable dataset has its own order: sampler has to be None.")
    elif sampler is None:
        sampler = InferenceSampler(len(dataset))
    return torchdata.DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=False,
        num_workers=num_workers,
        collate_fn=collate_fn or trivial_batch_collator,
    )


def trivial_batch_collator(batch: list) -> list:
    """The batch as a list, as it is: images differ in size."""
    return batch


def worker_init_reset_seed(worker_id: int) -> None:
    """Seed numpy and Python in a worker from torch's seed; otherwise all workers would draw the same augmentations."""
    seed_all_rng(torch.initial_seed() % 2**31 + worker_id)
