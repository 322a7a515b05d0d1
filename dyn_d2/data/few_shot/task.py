"""Which data a few-shot run needs, read from the keys of FEW_SHOT."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from .benchmarks import FewShotBenchmark, get_benchmark
from .sampling import UNITS
from .splits import ClassSplit
from .stages import BASE, FINETUNE, JOINT_SHOTS, NOVEL, ON_ALL_DATA, STAGES

PROTOCOLS = ("gfsod", "fsod")


@dataclass(frozen=True)
class FewShotTask:
    """Everything about a few-shot run that decides its data; see the keys of FEW_SHOT.

    Attributes:
        keep_empty: train on images without any annotation too, where a stage has all data
            (DATALOADER.FILTER_EMPTY_ANNOTATIONS False).
        frequencies_apart: the base stage has a record of an image for each frequency of classes.
    """

    benchmark: FewShotBenchmark
    split: ClassSplit
    split_number: int
    stage: str
    protocol: str
    shots: int
    seed: int
    unit: str
    group_by_image: bool
    shots_dir: str
    run_dir: Path
    keep_empty: bool = False
    frequencies_apart: bool = False
    max_objects: int = 0

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "FewShotTask":
        """Read and check ``cfg.FEW_SHOT``.

        Raises:
            ValueError: a value that is not allowed; the message names the key and what is.
        """
        keys = cfg.FEW_SHOT
        for key, allowed in (("PROTOCOL", PROTOCOLS), ("STAGE", STAGES), ("SHOTS_UNIT", tuple(UNITS))):
            if keys[key] not in allowed:
                raise ValueError(f"FEW_SHOT.{key}={keys[key]!r} is unknown: use {', '.join(allowed)}.")
        if keys.SHOTS < 0 or keys.SEED < 0:
            raise ValueError(f"FEW_SHOT.SHOTS={keys.SHOTS} and FEW_SHOT.SEED={keys.SEED} must not be negative.")
        benchmark = get_benchmark(cfg)
        if keys.FREQUENCIES_APART and benchmark.evaluator_type != "lvis":
            raise ValueError(
                f"FEW_SHOT.FREQUENCIES_APART is for LVIS, whose json states how frequent a class is: benchmark "
                f"{benchmark.name!r} has no such data; leave it False."
            )
        return cls(
            benchmark=benchmark,
            split=benchmark.split(keys.SPLIT),
            split_number=keys.SPLIT,
            stage=keys.STAGE,
            protocol=keys.PROTOCOL,
            shots=keys.SHOTS,
            seed=keys.SEED,
            unit=keys.SHOTS_UNIT,
            group_by_image=keys.GROUP_BY_IMAGE or keys.SHOTS_UNIT == "whole_image",
            shots_dir=keys.SHOTS_DIR,
            run_dir=Path(cfg.OUTPUT_DIR) / "few_shot",
            max_objects=keys.MAX_OBJECTS,
            keep_empty=not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            frequencies_apart=keys.FREQUENCIES_APART and keys.STAGE == BASE,
        )

    @property
    def which(self) -> str:
        """Classes that the detector of this stage knows: "base", "novel" or "all"."""
        if self.stage in (BASE, NOVEL):
            return self.stage
        return "novel" if self.stage == FINETUNE and self.protocol == "fsod" else "all"

    @property
    def classes(self) -> tuple[str, ...]:
        """The detector's classes, in the order of its predictor's rows."""
        return self.split.subset(self.which)

    @property
    def shot_classes(self) -> tuple[str, ...]:
        """Classes of which only K shots are used; empty where everything is."""
        if self.shots == 0 or self.stage in ON_ALL_DATA:
            return ()
        return self.split.novel if self.stage == JOINT_SHOTS else self.classes

    @property
    def train_name(self) -> str:
        """Name of the derived training set."""
        parts = [self.benchmark.name, f"split{self.split_number}", self.stage]
        if self.stage == FINETUNE:
            parts.append(self.protocol)
        if self.shot_classes:
            parts += [f"{self.shots}shot{UNITS[self.unit]}", f"seed{self.seed}"]
        return "_".join([*parts, "train"])

    @property
    def shots_file(self) -> Path:
        """Where the run keeps the list of the objects that it was trained on."""
        return self.run_dir / f"{self.train_name}.json"

    def metadata(self) -> dict[str, Any]:
        """Fields that all derived data sets have."""
        return {
            "thing_classes": list(self.classes),
            "base_classes": list(self.split.base),
            "novel_classes": list(self.split.novel),
            "evaluator_type": self.benchmark.evaluator_type,
            "tolerated_defects": ["empty_box"] if self.benchmark.published else [],
            "few_shot": {
                "benchmark": self.benchmark.name,
                "stage": self.stage,
                "protocol": self.protocol,
                "split": self.split_number,
                "shots": self.shots,
                "seed": self.seed,
                **(self._how_drawn() if self.shot_classes else {}),
            },
        }

    def _how_drawn(self) -> dict[str, Any]:
        return {"unit": self.unit, "max_objects": self.max_objects, "group_by_image": self.group_by_image}
