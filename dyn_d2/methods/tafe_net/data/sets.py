"""Registers the data sets whose classes have descriptions. Nothing is read before a data set is used.

Metadata: evaluator_type, which says how it is evaluated ("zero_shot", "unseen_pairs" or "low_shot"); described, the
name of its benchmark; thing_classes, once ``ensure_classes`` has looked.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from dyn_d2.data.classification.sets import existing, root
from dyn_d2.data.few_shot.sources import forget

from detectron2.data import DatasetCatalog, MetadataCatalog

from . import compositions, low_shot, proposed_splits
from .described_set import DescribedSet
from .digits import UNSEEN, UNSEEN_NUMBERS, read_digit_attributes, read_number_attributes

CUSTOM = "custom_described"
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Benchmark:
    """A training and a test set.

    Attributes:
        files: below the root of the data sets.
        address: where they are published.
        read: their paths -> the data.
        evaluator_type: how it is evaluated.
    """

    files: Sequence[str]
    address: str
    read: Callable[[Sequence[Path]], DescribedSet]
    evaluator_type: str = "zero_shot"


def _without_files(read: Callable[[str], DescribedSet], split: str) -> Callable[[Sequence[Path]], DescribedSet]:
    return lambda _: read(split)


def _benchmarks() -> dict[str, Benchmark]:
    found: dict[str, Benchmark] = {}
    for split in UNSEEN:
        found[f"digit_attributes_{split}"] = Benchmark([], "", _without_files(read_digit_attributes, split))
    for split in UNSEEN_NUMBERS:
        found[f"number_attributes_{split}"] = Benchmark([], "", _without_files(read_number_attributes, split))
        by_place = partial(read_number_attributes, one_hot=True)
        found[f"number_one_hot_{split}"] = Benchmark([], "", _without_files(by_place, split))
    for name, folder in proposed_splits.FOLDERS.items():
        files = [f"xlsa17/data/{folder}/{file}" for file in ("res101.mat", "att_splits.mat")]
        for suffix, tune in (("", False), ("_tune", True)):
            read = partial(proposed_splits.read_proposed_split, tune=tune)
            found[f"{name}_zero_shot{suffix}"] = Benchmark(files, proposed_splits.ADDRESS, read)
    for name, (_, words) in compositions.FOLDERS.items():
        for features in compositions.FEATURES:
            for suffix, one_hot in (("", False), ("_one_hot", True)):
                found[f"{name}_{features}{suffix}"] = Benchmark(
                    compositions.files_of(name, features, one_hot),
                    compositions.ADDRESS,
                    partial(compositions.read_compositions, words=words),
                    "unseen_pairs",
                )
    for shots in low_shot.SHOTS:
        for experiment in low_shot.EXPERIMENTS:
            for suffix, tune in (("", False), ("_tune", True)):
                found[f"imagenet_low_shot_{shots}_exp{experiment}{suffix}"] = Benchmark(
                    low_shot.files_of(experiment),
                    low_shot.ADDRESS,
                    partial(low_shot.read_low_shot, shots=shots, tune=tune),
                    "low_shot",
                )
    return found


BENCHMARKS = _benchmarks()


def register_described_sets() -> None:
    """Register all benchmarks, as {name}_train and {name}_test."""
    for name, benchmark in BENCHMARKS.items():
        register_benchmark(name, benchmark)


def register_benchmark(name: str, benchmark: Benchmark) -> None:
    """Register {name}_train and {name}_test; what the names meant before is forgotten."""
    BENCHMARKS[name] = benchmark
    for split in SPLITS:
        full = f"{name}_{split}"
        forget(full)
        DatasetCatalog.register(full, partial(_records, full))
        MetadataCatalog.get(full).set(
            evaluator_type=benchmark.evaluator_type,
            described=name,
            list_classes=partial(_classes, full),
        )


def is_described(name: str) -> bool:
    """Whether the classes of a registered data set have descriptions."""
    return name in DatasetCatalog.list() and bool(MetadataCatalog.get(name).get("described"))


def described_set(name: str) -> DescribedSet:
    """The data behind a registered name, both splits.

    Raises:
        KeyError: no such data set, or one without descriptions.
        FileNotFoundError: names the files, the environment variable, and where they are published.
        ValueError: a file is not what it should be.
    """
    if not is_described(name):
        raise KeyError(f"{name} is no registered data set whose classes have descriptions: see docs/tafe_net.md.")
    benchmark = MetadataCatalog.get(name).described
    files = [root() / file for file in BENCHMARKS[benchmark].files]
    existing(name, files, BENCHMARKS[benchmark].address)
    return _read(benchmark, tuple((path, path.stat().st_mtime_ns) for path in files))


@lru_cache(maxsize=4)  # the features of the largest take gigabytes
def _read(benchmark: str, files: tuple[tuple[Path, int], ...]) -> DescribedSet:
    return BENCHMARKS[benchmark].read([path for path, _ in files])


def _classes(name: str) -> list[str]:
    return list(described_set(name).classes)


def _records(name: str) -> list[dict[str, Any]]:
    """One dict an image: "feature", a float32 array; "label", the class number; "image_id", the place in the split."""
    part = described_set(name).parts[name.rpartition("_")[2]]
    return [
        {"feature": feature, "label": label, "image_id": i}
        for i, (feature, label) in enumerate(zip(part.features, part.labels.tolist(), strict=True))
    ]
