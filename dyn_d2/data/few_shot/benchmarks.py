"""The few-shot benchmarks: which data sets they read and how their classes are divided. Schedules are elsewhere."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from detectron2.config import CfgNode

from .sources import json_categories, source_classes, source_files
from .splits import (
    COCO_NOVEL,
    DIGIT_SCENES_NOVEL,
    LVIS_V0_5_CLASSES,
    VOC_NOVEL,
    ClassSplit,
    lvis_v0_5_rare,
    split_classes,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FewShotBenchmark:
    """What stays the same over stages, shots and seeds of a benchmark.

    Attributes:
        name: key of the registry and part of the names of derived data sets.
        train_sets, test_sets: registered data sets that it reads.
        evaluator_type: "coco", "lvis" or "pascal_voc".
        novel: split number -> novel class names; all others are base. Empty for LVIS, which divides by frequency.
        base: base classes where they are listed (custom data), else None.
        shots: K of the published tables; other K work too.
        at_most: take what there is where a class has fewer than K objects (LVIS), instead of refusing.
        published: a data set that thousands have trained on. Its few boxes without area are left out with a line in
            the log; in anyone's own data they are an error.
    """

    name: str
    train_sets: tuple[str, ...]
    test_sets: tuple[str, ...]
    evaluator_type: str = "coco"
    novel: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    base: tuple[str, ...] | None = None
    shots: tuple[int, ...] = ()
    at_most: bool = False
    published: bool = True

    def classes(self) -> tuple[str, ...]:
        """All class names in detector order, those of the first training set.

        Raises:
            KeyError, FileNotFoundError, ValueError: the data set does not tell.
        """
        return source_classes(self.train_sets[0])

    @property
    def splits(self) -> tuple[int, ...]:
        """Numbers of the splits."""
        return tuple(self.novel) or (1,)

    def split(self, number: int) -> ClassSplit:
        """Base and novel classes.

        Raises:
            ValueError: no such split, or the data set lacks some of its classes.
        """
        if number not in self.splits:
            known = ", ".join(map(str, self.splits))
            raise ValueError(f"FEW_SHOT.SPLIT={number}: benchmark {self.name!r} has split {known}.")
        classes = self.classes()
        novel = self.novel[number] if self.novel else _rare_classes(classes, self.test_sets + self.train_sets)
        return split_classes(classes, novel, self.base)

    def frequencies(self) -> dict[str, str | None]:
        """Class name -> "f", "c" or "r" (frequent, common, rare), as LVIS states it; {} where no json is there."""
        return _frequencies(self.classes(), self.test_sets + self.train_sets)[0]


BENCHMARKS: dict[str, FewShotBenchmark] = {}


def register_benchmark(benchmark: FewShotBenchmark) -> None:
    """Make ``benchmark`` available as FEW_SHOT.BENCHMARK.

    Raises:
        ValueError: the name is taken.
    """
    if benchmark.name in BENCHMARKS or benchmark.name == "custom":
        raise ValueError(f"There is a few-shot benchmark {benchmark.name!r} already.")
    BENCHMARKS[benchmark.name] = benchmark


register_benchmark(
    FewShotBenchmark(
        name="voc",
        train_sets=("voc_2007_trainval", "voc_2012_trainval"),
        test_sets=("voc_2007_test",),
        evaluator_type="pascal_voc",
        novel=VOC_NOVEL,
        shots=(1, 2, 3, 5, 10),
    )
)
register_benchmark(
    FewShotBenchmark(
        name="coco",
        # All of train2014 and val2014 but the 5000 images that the tables are measured on.
        train_sets=("coco_2014_train", "coco_2014_valminusminival"),
        test_sets=("coco_2014_minival",),
        novel=COCO_NOVEL,
        shots=(1, 2, 3, 5, 10, 30),
    )
)
register_benchmark(
    FewShotBenchmark(
        name="lvis",
        train_sets=("lvis_v0.5_train",),
        test_sets=("lvis_v0.5_val",),
        evaluator_type="lvis",
        shots=(10,),
        at_most=True,
    )
)
register_benchmark(
    FewShotBenchmark(
        name="digit_scenes",
        train_sets=("digit_scenes_train",),
        test_sets=("digit_scenes_val",),
        novel=DIGIT_SCENES_NOVEL,
        shots=(1, 2, 3, 5, 10),
        published=False,
    )
)


def get_benchmark(cfg: CfgNode) -> FewShotBenchmark:
    """The benchmark that ``cfg.FEW_SHOT`` asks for, with TRAIN_SETS and TEST_SETS put in where they are given.

    Raises:
        ValueError: an unknown name or an incomplete FEW_SHOT.CUSTOM; the message lists what is missing.
    """
    few_shot = cfg.FEW_SHOT
    if few_shot.BENCHMARK == "custom":
        from .custom import custom_benchmark  # which needs what is here

        benchmark = custom_benchmark(cfg)
    elif few_shot.BENCHMARK in BENCHMARKS:
        benchmark = BENCHMARKS[few_shot.BENCHMARK]
    else:
        known = ", ".join([*BENCHMARKS, "custom"])
        raise ValueError(f"FEW_SHOT.BENCHMARK={few_shot.BENCHMARK!r} is unknown. Known: {known}.")
    return replace(
        benchmark,
        train_sets=tuple(few_shot.TRAIN_SETS) or benchmark.train_sets,
        test_sets=tuple(few_shot.TEST_SETS) or benchmark.test_sets,
    )


def _rare_classes(classes: tuple[str, ...], sources: tuple[str, ...]) -> tuple[str, ...]:
    """Rare classes by the ``frequency`` of the first json that is there, or else by the list of LVIS v0.5."""
    listed = {classes[position] for position in lvis_v0_5_rare()} if len(classes) == LVIS_V0_5_CLASSES else None
    frequency, path = _frequencies(classes, sources)
    if not frequency or None in frequency.values():
        if listed is None:
            raise ValueError(f"No json of {', '.join(sources)} states the frequency of its classes, as LVIS does.")
        return tuple(name for name in classes if name in listed)
    rare = {name for name, value in frequency.items() if value == "r"}
    if listed is not None and rare != listed:
        logger.warning(
            "%s: %d rare classes, but LVIS v0.5 has %d; the file's own division is used.", path, len(rare), len(listed)
        )
    return tuple(name for name in classes if name in rare)


def _frequencies(classes: tuple[str, ...], sources: tuple[str, ...]) -> tuple[dict[str, str | None], Path | None]:
    """Class name -> the ``frequency`` in the first json that is there, and which one that is."""
    for path in (path for name in sources for path in source_files(name)):
        if path.suffix == ".json" and path.exists():
            # LVIS numbers its categories from 1 without gaps, in the order of the detector's classes.
            stated = ((c["id"] - 1, c.get("frequency")) for c in json_categories(path))
            return {classes[place]: value for place, value in stated if place < len(classes)}, path
    return {}, None
