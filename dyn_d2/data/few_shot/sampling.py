"""K-shot sets: exactly K annotated objects of each class, a pure function of seed and class name.

For every class the usable objects are put into an order that depends on the seed, the class name and the objects'
own ids; the K-shot set is its first K. Hence K shots are part of K' > K shots, classes do not influence each other,
and the set does not change with the order of the file, the version of numpy, or the split.

``sample_whole_images`` draws images and uses all of their objects. It depends on the classes of the data set and on K.
"""

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dyn_d2.utils.atomic import write_json

from detectron2.structures import BoxMode

from .sources import read_json

FORMAT = "dyn_d2 few-shot set 1"
# What K counts -> how the names of such sets end.
UNITS = {"instance": "", "image": "_images", "whole_image": "_whole_images"}


class ObjectId(NamedTuple):
    """One annotated object: its data set, its image and its annotation id there."""

    source: str
    image: int | str
    annotation: int | str


class Candidate(NamedTuple):
    """An object that may be drawn if it is ``usable``; ``difficult`` are those that only this mark makes unusable."""

    id: ObjectId
    usable: bool
    difficult: bool = False


class NotEnoughShots(ValueError):
    """A class has fewer usable objects than asked for."""


@dataclass(frozen=True)
class ShotSet:
    """The objects that may be used for few-shot training.

    Attributes:
        benchmark: its name.
        seed, shots: which sample, and K.
        unit: "instance": K objects of each class; "image": all usable objects of the class in K images; "whole_image":
            those of all classes in them.
        objects: class name -> objects, in the order in which they were drawn.
        origin: "sampled", or the folder that a published list was read from.
        max_objects: how many objects an image has at most, all of which are used; 0: objects were drawn, not images.
    """

    benchmark: str
    seed: int
    shots: int
    unit: str
    objects: Mapping[str, tuple[ObjectId, ...]] = field(repr=False)
    origin: str = "sampled"
    max_objects: int = 0

    @property
    def hash(self) -> str:
        """Fingerprint of which objects belong to which class; equal sets have equal hashes."""
        content = {name: sorted(map(str, map(tuple, ids))) for name, ids in self.objects.items()}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def restrict(self, classes: Iterable[str]) -> "ShotSet":
        """The same set with these classes only.

        Raises:
            KeyError: the set lacks one of them.
        """
        classes = list(classes)
        missing = [name for name in classes if name not in self.objects]
        if missing:
            raise KeyError(f"the K-shot set ({self.origin}) has no objects of {', '.join(missing)}")
        objects = {name: self.objects[name] for name in classes}
        return replace(self, objects=objects)

    def to_dict(self) -> dict[str, Any]:
        """The content of the json file."""
        return {
            "format": FORMAT,
            "benchmark": self.benchmark,
            "seed": self.seed,
            "shots": self.shots,
            "unit": self.unit,
            "origin": self.origin,
            **({"max_objects": self.max_objects} if self.max_objects else {}),
            "hash": self.hash,
            "image_ids": sorted({str(i.image) for ids in self.objects.values() for i in ids}),
            "objects": {name: [list(i) for i in ids] for name, ids in self.objects.items()},
        }

    def save(self, path: str | os.PathLike) -> None:
        """Write the set as json, atomically."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike) -> "ShotSet":
        """Read a file that ``save`` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not such a file, or one that was edited (its hash does not fit).
        """
        value = read_json(path)
        if value.get("format") != FORMAT:
            raise ValueError(f'{path} is not a K-shot set of dyn_d2 (its "format" is not {FORMAT!r}).')
        try:
            objects = {name: tuple(ObjectId(*i) for i in ids) for name, ids in value["objects"].items()}
            shots = cls(
                **{key: value[key] for key in ("benchmark", "seed", "shots", "unit", "origin")},
                objects=objects,
                max_objects=value.get("max_objects", 0),
            )
            expected = value["hash"]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is a damaged K-shot set: {error!r}.") from error
        if shots.hash != expected:
            raise ValueError(f"{path}: the objects do not fit its hash; it was edited. Sample it again.")
        return shots


def collect_candidates(
    records: Mapping[str, Sequence[dict[str, Any]]], classes: Sequence[str]
) -> dict[str, list[Candidate]]:
    """Every object of each class.

    Args:
        records: data set name -> its records from ``load_source``; ``category_id`` counts in ``classes``.
        classes: all class names of the data sets.

    Returns:
        Class name -> its objects. Objects whose id is not unique within its data set are never usable.
    """
    candidates: dict[str, list[Candidate]] = {name: [] for name in classes}
    for source, source_records in records.items():
        times = Counter(annotation["id"] for record in source_records for annotation in record["annotations"])
        for record in source_records:
            for annotation in record["annotations"]:
                proper = is_single(annotation) and has_area(annotation) and times[annotation["id"]] == 1
                difficult = bool(annotation.get("difficult", 0))
                identity = ObjectId(source, record["image_id"], annotation["id"])
                candidate = Candidate(identity, proper and not difficult, proper and difficult)
                candidates[classes[annotation["category_id"]]].append(candidate)
    return candidates


def has_area(annotation: dict[str, Any]) -> bool:
    """Whether the box has finite coordinates and a positive width and height."""
    x0, y0, x1, y1 = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
    return bool(np.isfinite([x0, y0, x1, y1]).all()) and x1 > x0 and y1 > y0


def is_single(annotation: dict[str, Any]) -> bool:
    """Whether the annotation is one object and not a crowd."""
    return not annotation.get("iscrowd", 0)


def draw_order(ids: Iterable[ObjectId], seed: int, name: str) -> list[ObjectId]:
    """``ids`` in the random order of (seed, class name); the order of the argument does not matter.

    Sorting by a keyed hash is a permutation that needs no random generator, and so no version of one.
    """
    return sorted(set(ids), key=lambda i: _key(seed, name, *i))


def _key(*parts: int | str) -> bytes:
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()


def draw(candidates: Sequence[Candidate], seed: int, name: str, shots: int, unit: str = "instance") -> list[ObjectId]:
    """Up to ``shots`` usable objects of one class, or all usable objects of up to ``shots`` images."""
    usable = [candidate.id for candidate in candidates if candidate.usable]
    if unit == "instance":
        return draw_order(usable, seed, name)[:shots]
    images = defaultdict(list)
    for identity in draw_order(usable, seed, name):
        images[identity.source, identity.image].append(identity)
    chosen = sorted(images, key=lambda image: _key(seed, name, *image))[:shots]
    return [identity for image in chosen for identity in images[image]]


def sample_shots(
    candidates: Mapping[str, Sequence[Candidate]],
    *,
    benchmark: str,
    seed: int,
    shots: int,
    unit: str = "instance",
    at_most: bool = False,
) -> ShotSet:
    """Draw a balanced K-shot set.

    Args:
        candidates: class name -> its objects, from ``collect_candidates``; all of these classes are drawn.
        shots: K, at least 1.
        unit: one of ``UNITS``, see ``ShotSet``.
        at_most: accept classes that have fewer than K, but at least one.

    Raises:
        NotEnoughShots: classes have fewer usable objects (images) than K; names each with its count.
        ValueError: K < 1 or an unknown unit.
    """
    if shots < 1:
        raise ValueError(f"FEW_SHOT.SHOTS={shots}: a K-shot set needs K >= 1.")
    if unit not in UNITS:
        raise ValueError(f"FEW_SHOT.SHOTS_UNIT={unit!r} is unknown: use {', '.join(UNITS)}.")
    objects = {name: tuple(draw(found, seed, name, shots, unit)) for name, found in candidates.items()}
    lacking = []
    for name, drawn in objects.items():
        count = len(drawn) if unit == "instance" else len({(i.source, i.image) for i in drawn})
        if count < (1 if at_most else shots):
            lacking.append(f"{name} ({count})")
    if lacking:
        raise NotEnoughShots(
            f"Not enough usable objects for {shots} shots ({_counted(unit)}s that are neither crowd nor difficult nor "
            f"empty): {', '.join(lacking)}. Lower FEW_SHOT.SHOTS or leave these classes out."
        )
    if unit == "whole_image":
        objects = _all_in_images(candidates, seed, {(i.source, i.image) for ids in objects.values() for i in ids})
    return ShotSet(benchmark, seed, shots, unit, objects)


def _counted(unit: str) -> str:
    return "instance" if unit == "instance" else "image"


def _all_in_images(
    candidates: Mapping[str, Sequence[Candidate]], seed: int, images: Container[tuple[str, int | str]]
) -> dict[str, tuple[ObjectId, ...]]:
    found = {}
    for name, ofclass in candidates.items():
        shown = [c.id for c in ofclass if c.usable and (c.id.source, c.id.image) in images]
        found[name] = tuple(draw_order(shown, seed, name))
    return found


ORDERS = 20  # how many orders of the images are tried


def sample_whole_images(
    candidates: Mapping[str, Sequence[Candidate]], *, benchmark: str, seed: int, shots: int, max_objects: int
) -> ShotSet:
    """Draw images until their objects are exactly K of each class, so that nothing in them stays unlabelled (the rule
    of the lists of Kang et al., ICCV 2019).

    Images come in the order of the seed; one that would bring a class above K is passed over. Where this leaves a class
    below K, another order is tried, in which the images that show such a class come first.

    Args:
        candidates: class name -> its objects, of *all* classes of the data set.
        shots: K, at least 1.
        max_objects: images with more are not drawn, nor are those with a crowd, a difficult or an empty object.

    Raises:
        NotEnoughShots: no order gave K objects of each class; names the classes that the last one left short.
        ValueError: K < 1.
    """
    if shots < 1:
        raise ValueError(f"FEW_SHOT.SHOTS={shots}: a K-shot set needs K >= 1.")
    images: dict[tuple[str, int | str], list[tuple[str, Candidate]]] = defaultdict(list)
    for name, found in candidates.items():
        for candidate in found:
            images[candidate.id.source, candidate.id.image].append((name, candidate))
    proper = [image for image, found in images.items() if len(found) <= max_objects and all(c.usable for _, c in found)]
    lacking: Counter[str] = Counter()
    scarce: set[str] = set()
    for order in range(ORDERS):
        objects: dict[str, list[ObjectId]] = {name: [] for name in candidates}
        lacking = Counter(dict.fromkeys(candidates, shots))
        places = {
            image: (scarce.isdisjoint(name for name, _ in images[image]), _key(seed, "whole images", order, *image))
            for image in proper
        }
        for image in sorted(proper, key=places.__getitem__):
            shown = Counter(name for name, _ in images[image])
            if any(count > lacking[name] for name, count in shown.items()):
                continue
            for name, candidate in images[image]:
                objects[name].append(candidate.id)
            lacking -= shown  # a Counter drops what has come to 0
            if not lacking:
                drawn = {name: tuple(draw_order(ids, seed, name)) for name, ids in objects.items()}
                return ShotSet(benchmark, seed, shots, "instance", drawn, max_objects=max_objects)
        scarce |= set(lacking)
    short = ", ".join(f"{name} ({shots - count})" for name, count in lacking.items())
    raise NotEnoughShots(
        f"Images with at most {max_objects} objects, all of them usable, do not give {shots} shots of each class: "
        f"{short}. Lower FEW_SHOT.SHOTS, raise FEW_SHOT.MAX_OBJECTS, or set it to 0 to draw objects in place of images."
    )


def shots_path(
    folder: str | os.PathLike, benchmark: str, seed: int, shots: int, unit: str = "instance", max_objects: int = 0
) -> Path:
    """Where a K-shot set lies below FEW_SHOT.SHOTS_DIR."""
    suffix = UNITS[unit] + (f"_whole{max_objects}" if max_objects else "")
    return Path(folder) / benchmark / f"seed{seed}" / f"{shots}shot{suffix}.json"
