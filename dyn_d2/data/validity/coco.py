"""COCO and LVIS json: what is wrong with one, and its sound content, as every reader of it takes it.

One pass over the file serves the check, the loaders and the evaluators: :func:`examine`. What can be read in one way
only is read that way and is no problem: sizes of 96.0, flags and areas that are null, boxes of integers, annotation ids
that are 0 or texts, a missing "iscrowd" or "area". What cannot be read so is a problem of a kind of
:data:`~.consumers.SPOILS`, and its entry is left out of the sound content.
"""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from dyn_d2.data.check_report import Problem, summary

from . import rle
from .annotation import XYWH, area_defect, box_defect, crowd_defect, empty_mask, flagged_mask_defect
from .consumers import LOADER, spoils
from .values import LONGEST_SIDE, MOST_PIXELS, brief, flag, identity, size, whole

SECTIONS = ("images", "annotations", "categories")
# The lists of an LVIS image, in which its evaluation looks up whether a detection counts.
_OTHER_FORMATS = (".xml", ".txt", ".yaml", ".yml")
LVIS_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")


class DataError(ValueError):
    """A data set cannot be used; the message names file, entries and remedy."""


@dataclass
class CocoContent:
    """What a COCO or LVIS json holds.

    Attributes:
        title: of the file, for messages.
        names: category id -> name, in the order of the ids.
        categories: category id -> its entry.
        images: image id -> its entry with "id", "width" and "height" as integers.
        annotations: those that have an image, a category and a sound box, as copies with "id", "image_id",
            "category_id", "bbox" (floats) and "iscrowd" (0 or 1). Their "segmentation" is what the file has.
        annotated: whether the file has a section "annotations"; that of a test set may have none.
        problems, notes: what is wrong, and remarks that are no defects.
    """

    title: str
    names: dict[int, str] = field(default_factory=dict)
    categories: dict[int, dict] = field(default_factory=dict)
    images: dict[int | str, dict] = field(default_factory=dict)
    annotations: list[dict] = field(default_factory=list)
    annotated: bool = True
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(
        self, kind: str, where: str, what: str, image: Any = None, annotation: Any = None, position: int | None = None
    ) -> None:
        """Note a problem, see ``Problem``."""
        self.problems.append(Problem(kind, where, what, image, annotation, position))

    def require(self, consumers: Collection[str] = (LOADER,)) -> "CocoContent":
        """Itself, if nothing in it spoils any of the ``consumers``.

        Raises:
            DataError: lists the problems.
        """
        refuse([p for p in self.problems if spoils(p.kind, consumers)], self.title)
        return self


def refuse(problems: Iterable[Problem], title: str, *, limit: int = 3) -> None:
    """Raise a DataError that lists ``problems``, at most ``limit`` of a kind; nothing where there are none."""
    problems = list(problems)
    if not problems:
        return
    option = "--json" if title.endswith(".json") else "--dataset"
    remedy = f"dyn-d2 check-data {option} {title} lists everything."
    if len(problems) == 1:
        raise DataError(f"{title} cannot be used: {str(problems[0]).removeprefix(f'{title}, ')}. {remedy}")
    raise DataError(f"{title} cannot be used. {summary(problems, limit)}\n{remedy}")


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """A json file whose top level is an object.

    Raises:
        FileNotFoundError: no such file.
        DataError: not json, another top level, or a key that an object has twice; names the file.
    """
    if os.path.isdir(path) or os.path.splitext(path)[1].lower() in _OTHER_FORMATS:
        what = "a folder" if os.path.isdir(path) else "no json"
        raise DataError(
            f"{path} is {what}, and a json in COCO's format is wanted. `dyn-d2 convert {path} --output OUT.json` makes "
            "one of the annotations of other programs; DATASETS.CUSTOM.FORMAT names those that are read as they are."
        )
    try:
        with open(path, encoding="utf-8-sig") as file:  # programs for Windows begin with a byte order mark
            value = json.load(file, object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a text file: {error}. Write it in UTF-8.") from error
    except _TwiceError as error:
        raise DataError(f"{path} has an object with {error}: nobody can tell which of them counts. Keep one.") from None
    except RecursionError:
        raise DataError(f"{path} is not valid json: it is nested too deeply.") from None
    except ValueError as error:  # not json, or an integer of thousands of digits
        raise DataError(f"{path} is not valid json: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} does not hold a json object ({{...}}).")
    return value


class _TwiceError(Exception):
    """A key that an object has twice; json's own parser takes the last without a word."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise _TwiceError(f'"{brief(twice)[1:-1]}" twice (in {brief(value)})')
    return value


def examine(content: dict[str, Any], title: str, *, lvis: bool = False, masks: bool = True) -> CocoContent:
    """Look at all of a json's content, which is left unchanged.

    Args:
        title: the file, for messages.
        lvis: an LVIS json, whose images may be named by "coco_url" and have lists of categories.
        masks: look at every "segmentation" too, which takes the most time; a loader need not where no mask is wanted.
    """
    found = CocoContent(str(title), annotated="annotations" in content)
    sections = {key: _section(found, content, key) for key in SECTIONS}
    _categories(found, sections["categories"])
    if lvis:
        _synonyms(found)
    _images(found, sections["images"], lvis)
    _annotations(found, sections["annotations"], masks, lvis)
    _whole(found, len(sections["annotations"]))
    if "minival" in os.path.basename(found.title):  # the published files of COCO 2014 repeat some ids, without harm
        found.problems = [problem for problem in found.problems if problem.kind != "duplicate_annotation"]
    return found


def _section(found: CocoContent, content: dict[str, Any], key: str) -> list[tuple[int, dict]]:
    """Position and entry of what is an object in a list of the file."""
    entries = content.get(key)
    if key == "annotations" and not found.annotated:
        found.notes.append('there are no "annotations": a test set, whose predictions are written and not scored')
        return []
    if not isinstance(entries, list):
        found.add("bad_json", found.title, f'there is no list "{key}"')
        return []
    kept = [(i, entry) for i, entry in enumerate(entries) if isinstance(entry, dict)]
    if len(kept) < len(entries):
        wrong = next(i for i, entry in enumerate(entries) if not isinstance(entry, dict))
        what = f'"{key}" has entries that are no objects, the first at position {wrong}: {brief(entries[wrong])}'
        found.add("bad_entry", found.title, what)
    return kept


def _categories(found: CocoContent, categories: list[tuple[int, dict]]) -> None:
    for _, category in categories:
        number, name = whole(category.get("id")), category.get("name")
        where = f"{found.title}, category {brief(category.get('id'))}"
        if number is None or identity(number) is None or not isinstance(name, str) or not name.strip():
            hint = _quoted(category.get("id"))
            what = f'needs an integer "id" and a "name", has {brief(category.get("id"))} and {brief(name)}{hint}'
            found.add("bad_category", where, what)
        elif number in found.names or name in found.names.values():
            found.add("duplicate_category", where, f"id or name {brief(name)} is used twice")
        else:
            found.names[number], found.categories[number] = name, category
    numbers = sorted(found.names)
    found.names = {number: found.names[number] for number in numbers}
    if numbers and numbers != list(range(1, len(numbers) + 1)):
        found.notes.append(
            f"category ids are {numbers[0]} .. {numbers[-1]} for {len(numbers)} categories; they are renumbered from 0 "
            "in their order"
        )


def _synonyms(found: CocoContent) -> None:
    for number, name in zip(found.names, lvis_names(found), strict=True):
        if not isinstance(name, str) or not name.strip():
            where = f"{found.title}, category {number}"
            found.add("bad_category", where, f'the first of its "synonyms", which names the class, is {brief(name)}')


def _quoted(value: Any) -> str:
    return "; remove the quotes" if isinstance(value, str) and value.strip().lstrip("-").isdigit() else ""


def _images(found: CocoContent, images: list[tuple[int, dict]], lvis: bool) -> None:
    files: set[str] = set()
    for position, image in images:
        number, file = identity(image.get("id")), image_file(image, lvis)
        name = file or image.get("file_name")
        where = f"{found.title}, image {brief(image.get('id'))} ({brief(name) if name else 'no file name'})"

        def add(kind: str, what: str, where: str = where, place: tuple = (number, None, position)) -> None:
            found.add(kind, where, what, *place)

        if number is None:
            add("bad_entry", f'needs a number or a text as "id", has {brief(image.get("id"))}')
            continue
        if number in found.images:
            add("duplicate_image", "its id occurs twice")
            continue
        given = tuple(image.get(side) for side in ("width", "height"))
        width, height = map(size, given)
        if width is None or height is None:
            add("bad_entry", f'"width" and "height" are {brief(given)}, not positive integers up to {LONGEST_SIDE}')
            continue
        if width * height >= MOST_PIXELS:
            add("bad_entry", f"its {width} x {height} pixels are more than any reader counts")
            continue
        if not file:
            add("file_name", f'needs a "file_name", has {brief(name)}')
        elif file in files:
            add("repeated_file", "its file occurs twice")
        else:
            files.add(file)
        found.images[number] = {**image, "id": number, "width": width, "height": height}
        if lvis:
            _lvis_image(found, found.images[number], where)
    kinds = Counter(type(number).__name__ for number in found.images)
    if len(kinds) > 1:
        what = f"the ids of images are of two types: {kinds['int']} numbers and {kinds['str']} texts"
        found.add("mixed_ids", found.title, what)


def _lvis_image(found: CocoContent, image: dict, where: str) -> None:
    """Category lists of an LVIS image; a missing one is empty."""
    for key in LVIS_LISTS:
        given = image.get(key)
        numbers = [] if given is None else given
        if not isinstance(numbers, list) or any(whole(number) is None for number in numbers):
            found.add("bad_entry", where, f'"{key}" is {brief(given)}, not a list of category ids', image["id"])
            numbers = []
        image[key] = [whole(number) for number in numbers]


def _annotations(found: CocoContent, annotations: list[tuple[int, dict]], masks: bool, lvis: bool) -> None:
    seen: set = set()
    strangers = _other_type(found.images)
    for position, annotation in annotations:
        number = identity(annotation.get("id"))
        where = f"{found.title}, annotation {brief(number) if number is not None else f'at position {position}'}"
        image_id = identity(annotation.get("image_id"))
        place = (image_id, f"position {position}" if number is None else number, position)
        if number is None:
            what = 'has no "id"' if annotation.get("id") is None else f'has the "id" {brief(annotation["id"])}'
            found.add("bad_entry", where, what, *place)
        elif number in seen:
            found.add("duplicate_annotation", where, "its id occurs twice", *place)
        else:
            seen.add(number)
        if image_id not in found.images:
            given = brief(annotation.get("image_id"))
            key = image_id.strip() if isinstance(image_id, str) else image_id
            if key in strangers:
                what = f"its image_id {given} is a {_type(key)}, that of the image a {_type(strangers[key])}"
                found.add("image_type", where, what, *place)
            else:
                found.add("unknown_image", where, f"its image {given} is not usable or not listed", *place)
            continue
        if lvis:  # which has no crowds; its loaders and its evaluation do not look at the field
            annotation = {**annotation, "iscrowd": 0}
        _annotation(found, annotation, found.images[image_id], where, place, masks)


def _type(value: int | str) -> str:
    return "text" if isinstance(value, str) else "number"


def _other_type(images: dict[int | str, dict]) -> dict[int | str, int | str]:
    """What the ids of images would be as the other type -> the ids."""
    result: dict[int | str, int | str] = {}
    for number in images:
        if not isinstance(number, str):
            result[str(number)] = number
        elif number.strip().lstrip("-").isdecimal() and len(number) < 20:
            result[int(number)] = number
    return result


def _annotation(found: CocoContent, annotation: dict, image: dict, where: str, place: tuple, masks: bool) -> None:
    """Problems of one annotation of a usable image; where it is sound, its copy goes to ``found.annotations``.

    Args:
        place: ids of image and annotation, and position in the file.
    """
    where += f" (image {image['id']!r}, {image.get('file_name') or image.get('coco_url')})"
    category, sides = whole(annotation.get("category_id")), (image["width"], image["height"])
    sound = True
    if category not in found.names:
        given = annotation.get("category_id")
        found.add("unknown_category", where, f"category_id {brief(given)} is not listed{_quoted(given)}", *place)
        sound = False
    for defect in (
        box_defect(annotation.get("bbox"), XYWH, *sides),
        area_defect(annotation),
        crowd_defect(annotation),
        (flagged_mask_defect(annotation, *sides) or _empty(annotation)) if masks else None,
    ):
        if defect:
            found.add(defect[0], where, defect[1], *place)
            sound &= not spoils(defect[0], (LOADER,))
    if sound:
        found.annotations.append(
            {
                **annotation,
                "id": place[1],
                "image_id": image["id"],
                "category_id": category,
                "bbox": [float(side) for side in annotation["bbox"]],
                "iscrowd": flag(annotation.get("iscrowd")),
            }
        )


def _empty(annotation: dict) -> tuple[str, str] | None:
    return empty_mask(annotation["segmentation"]) if is_masked(annotation) else None


def _whole(found: CocoContent, count: int) -> None:
    """What only all annotations together show."""
    if not found.images and not found.problems:
        found.add("no_images", found.title, 'its list "images" is empty')
    crowds = sum(annotation["iscrowd"] for annotation in found.annotations)
    if crowds and crowds == len(found.annotations):
        found.add("all_crowd", found.title, f'all of its {crowds} usable annotations have "iscrowd" 1')
    strays = sum(problem.kind == "image_type" for problem in found.problems)
    if count and strays == count:
        found.add("mixed_ids", found.title, "no annotation has an image: their image_id is of another type")


def image_file(image: dict[str, Any], lvis: bool) -> str:
    """Path of an image below the image folder, "" where there is none: its "file_name", in LVIS the last two parts of
    its address, where it has one."""
    name, url = image.get("file_name"), image.get("coco_url")
    if lvis and isinstance(url, str) and url:
        return "/".join(url.split("/")[-2:])
    return name if isinstance(name, str) and "\0" not in name else ""


def lvis_names(found: CocoContent) -> list[str]:
    """Names of the classes of LVIS as Detectron2 has them, by id: the first synonym where there is one."""
    synonyms = (found.categories[number].get("synonyms") for number in found.names)
    return [s[0] if isinstance(s, list) and s else name for s, name in zip(synonyms, found.names.values(), strict=True)]


def looks_like_lvis(content: dict[str, Any]) -> bool:
    """Whether a json has the lists of categories that the images of LVIS have."""
    images = content.get("images")
    return isinstance(images, list) and any(isinstance(i, dict) and LVIS_LISTS[0] in i for i in images[:1000])


def annotations_by_image(annotations: Iterable[dict]) -> dict[int | str, list[dict]]:
    """Image id -> its annotations, in the order of the file."""
    result: dict[int | str, list[dict]] = defaultdict(list)
    for annotation in annotations:
        result[annotation["image_id"]].append(annotation)
    return result


def is_masked(annotation: dict) -> bool:
    """Whether an annotation has a segmentation, of whatever quality, which "has_mask" does not take back."""
    mask, given = annotation.get("segmentation"), annotation.get("has_mask")
    if given is not None and flag(given) == 0:
        return False
    return mask is not None and not (isinstance(mask, list | tuple | dict) and not mask)


def uniform_segmentation(mask: Any) -> Any:
    """Run lengths, compressed if they were not, or the polygons that have at least three points.

    What is no mask is left as it is: whether that matters is known where somebody asks for the mask.
    """
    if isinstance(mask, dict):
        if not isinstance(mask.get("counts"), list):
            return mask
        try:
            lengths = rle.run_lengths(mask)
        except rle.RleError:
            return mask
        return {"size": [int(side) for side in mask["size"]], "counts": rle.compress(lengths)}
    if not isinstance(mask, list):
        return mask
    usable = [part for part in mask if isinstance(part, list) and len(part) % 2 == 0 and len(part) >= 6]
    return usable or mask
