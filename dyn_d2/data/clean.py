"""A copy of a COCO json without what is wrong with it, and with nothing else left out.

What has one right reading gets it: annotations without an id, or with one that is taken, are numbered anew (identical
ones stay once), flags lose their quotes, ids of images get the type that the images have, and two entries of one image
file become one. Other entries that have problems are left out, each for itself.
"""

import json
from collections.abc import Iterable
from typing import Any

from .check_report import Problem
from .validity.coco import DataError
from .validity.values import flag, identity, whole

# Kinds of problems whose annotation is kept, and set right by the functions below.
_RENUMBERED = {"duplicate_annotation"}
_REWRITTEN = {"image_type", "bad_flag", "bad_area"}
FLAGS = ("iscrowd", "has_mask", "ignore")


def clean_json(content: dict[str, Any], problems: Iterable[Problem]) -> dict[str, Any]:
    """``content`` without the annotations and images that have ``problems``.

    Problems of the file as a whole (categories, missing sections) stay.

    Args:
        content: of the file in which ``problems`` were found; left unchanged.
        problems: those of a check of it, images included.

    Raises:
        DataError: two images share an id, so that nobody can tell which of them an annotation belongs to.
    """
    problems = list(problems)
    images, moved = _images(content["images"], problems)
    dropped = {p.position for p in problems if p.annotation is not None and not _kept(p, content)}
    by_text = {str(image["id"]): image["id"] for image in images}
    known = {image["id"] for image in images}
    annotations = []
    for position, annotation in enumerate(content.get("annotations", ())):
        if position in dropped or not isinstance(annotation, dict):
            continue
        image_id = identity(annotation.get("image_id"))
        image_id = moved.get(image_id, image_id)
        if image_id not in known:
            image_id = by_text.get(str(image_id))
        if image_id is not None:
            annotations.append(_set_right({**annotation, "image_id": image_id}))
    cleaned = {**content, "images": images}
    return cleaned | ({"annotations": _numbered(annotations)} if "annotations" in content else {})


def _kept(problem: Problem, content: dict[str, Any]) -> bool:
    """Whether the annotation of a problem stays, because :func:`clean_json` removes the problem from it."""
    if problem.kind in _RENUMBERED or problem.kind == "bad_entry":  # the latter has no usable id
        return True
    if problem.kind == "unknown_image":  # decided by the images that are kept
        return True
    if problem.kind not in _REWRITTEN:
        return False
    fixed = _set_right(content["annotations"][problem.position])
    return problem.kind != "bad_flag" or all(flag(fixed.get(key)) is not None for key in FLAGS)


def _images(images: list[Any], problems: list[Problem]) -> tuple[list[dict[str, Any]], dict[Any, Any]]:
    """The images that stay, and for the id of one that does not the id of the entry of the same file that does."""
    of_images = [p for p in problems if p.annotation is None and (p.position is not None or p.image is not None)]
    positions = {p.position for p in of_images if p.kind not in ("repeated_file",)} - {None}
    broken = {p.image for p in of_images if p.position is None}
    kept: dict[Any, dict] = {}
    first: dict[Any, Any] = {}
    moved: dict[Any, Any] = {}
    for position, image in enumerate(images):
        if not isinstance(image, dict) or identity(image.get("id")) is None:
            continue
        number, name = image["id"], image.get("file_name") or image.get("coco_url")
        if number in kept and (kept[number].get("file_name") or kept[number].get("coco_url")) != name:
            raise DataError(
                f"images {kept[number].get('file_name')} and {name} share the id {number!r}: nobody can tell which of "
                "them an annotation belongs to. Merge the files again with new ids for the images of one of them."
            )
        if number in kept or position in positions or number in broken:
            continue
        if name in first:
            moved[number] = first[name]
            continue
        first[name] = number
        kept[number] = image
    return list(kept.values()), moved


def _set_right(annotation: dict[str, Any]) -> dict[str, Any]:
    """Flags without quotes, and no area where it is none."""
    result = dict(annotation)
    for key in FLAGS:
        text = str(result.get(key, "")).strip().lower()
        if isinstance(result.get(key), str) and text in ("0", "1", "true", "false"):
            result[key] = int(text in ("1", "true"))
    area = result.get("area")
    if "area" in result and not (isinstance(area, int | float) and not isinstance(area, bool) and 0 <= area <= 1e10):
        del result["area"]
    return result


def _numbered(annotations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each with an id of its own; of those that are equal in all fields, one."""
    usable = [whole(a.get("id")) for a in annotations]
    free = max((number for number in usable if number is not None), default=0) + 1
    taken: dict[Any, set[str]] = {}
    result = []
    for annotation in annotations:
        number, content = identity(annotation.get("id")), json.dumps(annotation, sort_keys=True)
        if number is not None and content in taken.get(number, ()):
            continue
        if number is None or number in taken:
            taken.setdefault(number, set()).add(content)
            annotation = {**annotation, "id": free}
            number, free = free, free + 1
        taken.setdefault(number, set()).add(content)
        result.append(annotation)
    return result
