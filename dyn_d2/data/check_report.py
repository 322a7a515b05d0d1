"""What a data check found: problems that name file, annotation and remedy, and how often each class occurs."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

# Kind of problem -> what to do about it.
REMEDIES = {
    "bad_json": "write the file again; it has to be a COCO-style json object",
    "no_images": "name the file that has them",
    "bad_entry": "add or correct the field",
    "bad_category": 'give every category an integer as "id" and a "name"',
    "bad_flag": "write 0 or 1, without quotes",
    "ignore_flag": 'use "iscrowd", or remove the field or the annotation',
    "file_name": "give the path of the image below the image folder",
    "bad_xml": "correct the file, or take its image out of the image set",
    "duplicate_image": "give every image its own id and one entry",
    "repeated_file": "keep one of the entries, with the annotations of both",
    "duplicate_annotation": "give each its own id; `dyn-d2 check-data --json FILE --clean OUT` renumbers them",
    "mixed_ids": "write all ids of images as numbers, or all as texts",
    "image_type": "write the id as its image has it",
    "duplicate_category": "give every category its own id and its own name",
    "unknown_category": 'add the category to "categories", or correct the annotation\'s category_id',
    "category_range": "use category ids 0 .. number of classes - 1 in data set dicts",
    "label_range": "use labels 0 .. number of classes - 1",
    "unknown_image": "add the image, or remove the annotation",
    "bad_box": 'give four numbers: "bbox": [x, y, width, height] in pixels',
    "non_finite": "replace NaN and infinity by numbers, or remove the annotation",
    "empty_box": "draw the box again or remove the annotation",
    "fraction_box": "multiply by the width and height of the image: boxes are in pixels",
    "all_crowd": 'set "iscrowd" to 0 where the annotation is one object: crowds are neither trained on nor scored',
    "outside": "move the box into the image: boxes are in pixels, and width and height must be those of the image",
    "bad_mask": "give polygons of at least 3 points, or a run-length encoding of the image's size",
    "bad_area": 'give the number of pixels, or remove the "area"',
    "empty_mask": "draw the mask again, or remove it to train on the box alone",
    "mask_outside": "clip the polygons to the image, or remove them to train on the box alone",
    "no_mask": 'add the "segmentation", or remove the flag',
    "unmasked": 'add the "segmentation", or set MODEL.MASK_ON to False',
    "missing_image": "copy the image to that place, or correct file_name or the image folder",
    "unreadable_image": "replace the file by one that opens, or remove the image and its annotations",
    "deep_image": "convert the image to 8 bits a channel",
    "bad_label_map": "write a grey PNG of 8 bits and of the image's size with one class a pixel, from 0 on",
    "beyond_tree": "add the labels of these numbers to the tree and to its label set, or write other numbers",
    "absent_class": "write the numbers of the classes, from 0 on, or set ignore_label to a number that is no class",
    "ignore_label": "set both to the number that the label maps have where nothing counts",
    "imperfect": "correct what the message names; no model can score more",
    "size_mismatch": "correct width and height (of the image after its EXIF rotation)",
    "class_overlap": "list each class either as base or as novel",
    "unknown_class": "use the names in the categories of the file",
    "cannot_load": "correct what the message names",
}


@dataclass(frozen=True)
class Problem:
    """One defect.

    Attributes:
        kind: a key of ``REMEDIES``.
        where: file, and image or annotation in it.
        what: the defect, with the offending value.
        image, annotation: ids in the file, None where the defect does not belong to one.
        position: of the entry in the "annotations" of the file, or in its "images" where ``annotation`` is None; None
            where that is not known.
    """

    kind: str
    where: str
    what: str
    image: Any = None
    annotation: Any = None
    position: int | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.what} -> {REMEDIES[self.kind]}"


@dataclass
class Report:
    """Result of the check of one data set.

    Attributes:
        counts: class name -> Counter with "objects", "crowd" and "images".
        roles: class name -> "base" or "novel", where the data set has such classes.
        notes: remarks that are no defects.
        counted: whether it looked at the objects; one of scores alone says neither how many nor that they are sound.
    """

    title: str
    problems: list[Problem] = field(default_factory=list)
    counts: dict[str, Counter] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    images: int = 0
    counted: bool = True

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.problems

    def add(
        self, kind: str, where: str, what: str, image: Any = None, annotation: Any = None, position: int | None = None
    ) -> None:
        """Note a problem."""
        self.problems.append(Problem(kind, where, what, image, annotation, position))

    def count(self, names: Iterable[tuple[str, bool]]) -> None:
        """Count the objects of one image, given as (class name, is a crowd)."""
        seen = set()
        for name, crowd in names:
            counter = self.counts.setdefault(name, Counter())
            counter["crowd" if crowd else "objects"] += 1
            counter["images"] += name not in seen
            seen.add(name)

    def finish(self, classes: Iterable[str]) -> "Report":
        """Add the classes that do not occur, and say so."""
        self.counts = {name: self.counts.get(name, Counter()) for name in classes}
        absent = [name for name, counter in self.counts.items() if not counter["objects"]]
        if absent:
            what = "1 class has" if len(absent) == 1 else f"{len(absent)} classes have"
            self.notes.append(f"{what} no object: {', '.join(absent)}")
        return self

    def allow_few(self, kind: str, share: float, why: str) -> None:
        """Turn the problems of a kind into a note where they are less than ``share`` of all objects."""
        found = [problem for problem in self.problems if problem.kind == kind]
        objects = sum(counter["objects"] + counter["crowd"] for counter in self.counts.values())
        if found and len(found) < share * objects:
            self.problems = [problem for problem in self.problems if problem.kind != kind]
            self.notes.append(f"{len(found)} of {objects} objects: {why}, the first: {found[0].where}: {found[0].what}")

    def tolerate(self, kinds: Collection[str]) -> None:
        """Turn problems of these kinds, which the data loader deals with, into a note."""
        tolerated = [problem for problem in self.problems if problem.kind in kinds]
        if tolerated:
            self.problems = [problem for problem in self.problems if problem.kind not in kinds]
            self.notes.append(f"{len(tolerated)} known defects are left out of training: {tolerated[0]} ...")

    def table(self) -> str:
        """Objects, images and crowds of each class."""
        width = max([len("class"), *map(len, self.counts)])
        rows = [f"{'class':<{width}}  {'objects':>8}  {'images':>8}  {'crowd':>6}  role"]
        for name, counter in self.counts.items():
            role = self.roles.get(name, "")
            numbers = f"{counter['objects']:>8}  {counter['images']:>8}  {counter['crowd']:>6}"
            rows.append(f"{name:<{width}}  {numbers}  {role}".rstrip())
        return "\n".join(rows)

    def text(self, per_kind: int = 20) -> str:
        """The whole report; ``per_kind`` problems of each kind are written out, 0 means all."""
        objects = f", {sum(c['objects'] for c in self.counts.values())} objects" if self.counted else ""
        lines = [f"== {self.title}: {self.images} images{objects}"]
        if self.counts:
            lines.append(self.table())
        lines += [f"note: {note}" for note in self.notes]
        if self.counted or self.problems:
            lines.append(summary(self.problems, per_kind))
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """For json."""
        return {
            "title": self.title,
            "ok": self.ok,
            "images": self.images,
            "counts": {name: dict(counter) for name, counter in self.counts.items()},
            "notes": self.notes,
            "problems": [{**asdict(problem), "fix": REMEDIES[problem.kind]} for problem in self.problems],
        }


def summary(problems: Collection[Problem], per_kind: int = 20) -> str:
    """All problems, grouped by kind, with their number; at most ``per_kind`` of a kind are written out (0: all)."""
    if not problems:
        return "no problems found"
    groups = defaultdict(list)
    for problem in problems:
        groups[problem.kind].append(problem)
    lines = ["1 problem:" if len(problems) == 1 else f"{len(problems)} problems:"]
    for kind, found in groups.items():
        shown = found[: per_kind or None]
        lines.append(f"  {kind} ({len(found)})")
        lines += [f"    {problem}" for problem in shown]
        if len(shown) < len(found):
            lines.append(f"    ... and {len(found) - len(shown)} more")
    return "\n".join(lines)
