"""Class vectors as a file: what is left of the re-weighting module at inference (Wang 2020, 6.2)."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dyn_d2.utils.atomic import atomic_write
from dyn_d2.utils.own_files import arrays_of

logger = logging.getLogger(__name__)

FILE = "class_vectors.npz"  # in OUTPUT_DIR, those of the last evaluation


def _check(classes: list[str], vectors: Tensor, samples: Tensor, counts: list[int], supports: list[str]) -> None:
    """
    Raises:
        ValueError: the arrays of a file do not fit each other, a class comes twice, or a number is none.
    """
    if vectors.ndim != 2 or len(vectors) != len(classes) or sum(counts) != len(samples):
        raise ValueError(f"{len(classes)} classes, vectors of shape {tuple(vectors.shape)}")
    if counts and (len(counts) != len(classes) or min(counts) < 0 or samples.shape[1:] != vectors.shape[1:]):
        raise ValueError(f"{len(counts)} counts of samples of shape {tuple(samples.shape)} for {len(classes)} classes")
    if supports and sum(counts) != len(supports):
        raise ValueError(f"{len(supports)} names of {sum(counts)} support images")
    twice = sorted({name for name in classes if classes.count(name) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} comes twice")
    broken = [name for name, row in zip(classes, vectors, strict=True) if not torch.isfinite(row).all()]
    if broken or not torch.isfinite(samples).all():
        raise ValueError(f"those of {', '.join(broken) or 'support images'} have NaN or infinity: export them anew")


@dataclass
class ClassVectors:
    """One vector for each class, the mean of those of its support images.

    Attributes:
        classes: names, in the order of the rows.
        vectors: (N, m) float32.
        samples: the vector of each support image: (Mi, m) for each class, in the order of ``classes``.
        supports: which objects these are, Mi for each class: "number of the image/number of the annotation".
        detector: fingerprint of the detector that they were made for, "" where nobody knows.
    """

    classes: list[str]
    vectors: Tensor
    samples: list[Tensor] = field(default_factory=list, repr=False)
    supports: list[list[str]] = field(default_factory=list, repr=False)
    detector: str = ""

    @property
    def width(self) -> int:
        """m."""
        return self.vectors.shape[1]

    @classmethod
    def mean_of(
        cls, samples: dict[str, Tensor], detector: str = "", supports: Sequence[list[str]] = ()
    ) -> "ClassVectors":
        """From the vectors of each class's support images; the other arguments as the attributes.

        Raises:
            ValueError: a class has none.
        """
        empty = [name for name, found in samples.items() if not len(found)]
        if empty:
            raise ValueError(f"no support image of {', '.join(empty)}: a class vector needs at least one.")
        means = torch.stack([found.mean(0) for found in samples.values()])
        return cls(list(samples), means, list(samples.values()), list(supports), detector)

    def select(self, classes: Sequence[str]) -> "ClassVectors":
        """Those of ``classes``, in that order.

        Raises:
            ValueError: a class has no vector.
        """
        missing = [name for name in classes if name not in self.classes]
        if missing:
            raise ValueError(
                f"no class vector of {', '.join(missing)} (there are those of {', '.join(self.classes)}): make them "
                "with dyn-d2 vectors export, and name all files in MODEL.REWEIGHTING.VECTORS."
            )
        rows = [self.classes.index(name) for name in classes]
        samples = [self.samples[row] for row in rows] if self.samples else []
        supports = [self.supports[row] for row in rows] if self.supports else []
        return ClassVectors(list(classes), self.vectors[rows], samples, supports, self.detector)

    def save(self, path: str | os.PathLike) -> None:
        """Write an ``.npz`` of plain arrays, whole or not at all."""
        arrays: dict[str, Any] = {
            "classes": np.array(self.classes),
            "vectors": self.vectors.numpy(),
            "samples": torch.cat(self.samples).numpy() if self.samples else self.vectors.numpy()[:0],
            "counts": np.array([len(found) for found in self.samples], dtype=np.int64),
            "supports": np.array([name for names in self.supports for name in names], dtype=str),
            "detector": np.array(self.detector),
        }
        with atomic_write(path, "wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "ClassVectors":
        """Read a file that ``save`` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it is no such file.
        """
        if not os.path.isfile(path):
            raise FileNotFoundError(f"class vectors {path} do not exist: dyn-d2 vectors export makes them.")
        with arrays_of(path, "file of class vectors") as file:
            for name in ("classes", "supports", "detector"):
                if file[name].dtype.kind != "U":
                    raise ValueError(f"its {name} are no text")
            if any(file[name].dtype.kind not in "fiu" for name in ("vectors", "samples")):
                raise ValueError("its vectors or samples are no real numbers")
            classes, vectors = [str(name) for name in file["classes"]], torch.from_numpy(file["vectors"])
            samples, counts = torch.from_numpy(file["samples"]), file["counts"].tolist()
            supports, detector = file["supports"].tolist(), str(file["detector"])
            _check(classes, vectors, samples, counts, supports)
        names = iter(supports)
        of_class = [list(islice(names, count)) for count in counts] if supports else []
        return cls(classes, vectors.float(), list(samples.float().split(counts)) if counts else [], of_class, detector)

    @classmethod
    def load_all(cls, paths: Sequence[str]) -> "ClassVectors":
        """The classes of all files together; each keeps its vector as it is.

        Raises:
            FileNotFoundError, ValueError: from ``load``; a class is in two files; the widths differ.
        """
        parts = [cls.load(path) for path in paths]
        for path, part in zip(paths[1:], parts[1:], strict=True):
            if part.width != parts[0].width:
                raise ValueError(
                    f"class vectors {path} have width {part.width}, those of {paths[0]} {parts[0].width}: they belong "
                    "to different detectors."
                )
        names = [name for part in parts for name in part.classes]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} has a class vector in more than one of {', '.join(map(str, paths))}.")
        made_for = {part.detector for part in parts} - {""}
        if len(made_for) > 1:
            logger.warning("%s were made for different detectors.", ", ".join(map(str, paths)))
        samples = [found for part in parts for found in part.samples]
        supports = [found for part in parts for found in part.supports]
        return cls(
            names,
            torch.cat([part.vectors for part in parts]),
            samples if len(samples) == len(names) else [],
            supports if len(supports) == len(names) else [],
            made_for.pop() if len(made_for) == 1 else "",
        )
