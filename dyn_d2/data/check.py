"""Checks of annotations and images before anything is trained on them, on the CPU and without a model.

``check_coco_json``, ``check_voc`` and ``check_dataset_dicts`` look at one data set each and list every defect at once;
``check_dataset`` finds out which of them fits a registered name; ``check_config`` goes through all that a config uses.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dyn_d2.data.few_shot.sources import read_json, read_voc_record, require_source, voc_image_ids

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode

from .check_report import Problem, Report, summary
from .classification import check_classification, has_labels
from .defects import area_defect, box_defect, flagged_mask_defect, is_integer

__all__ = [
    "Problem",
    "Report",
    "check_coco_json",
    "check_config",
    "check_dataset",
    "check_dataset_dicts",
    "check_voc",
    "clean_json",
    "summary",
]

ImageFile = tuple[str, Any, int, int]  # path, image id, width, height


def check_coco_json(
    json_file: str,
    image_root: str | None = None,
    *,
    read_images: bool = True,
    base: Sequence[str] = (),
    novel: Sequence[str] = (),
) -> Report:
    """Check a json of COCO's or LVIS's format.

    Args:
        image_root: folder of the images; None skips them.
        read_images: open every image; False only looks whether it is there.
        base, novel: names of base and novel classes, checked against the file and against each other.
    """
    report = Report(str(json_file))
    try:
        content = read_json(json_file)
    except (OSError, ValueError) as error:
        report.add("bad_json", str(json_file), str(error))
        return report
    sections = {}
    for key in ("images", "annotations", "categories"):
        entries = content.get(key)
        if not isinstance(entries, list):
            report.add("bad_json", str(json_file), f'there is no list "{key}"')
            entries = []
        sections[key] = [entry for entry in entries if isinstance(entry, dict)]
        if len(sections[key]) < len(entries):
            report.add("bad_entry", str(json_file), f'"{key}" has entries that are no objects')
    names = _check_categories(report, sections["categories"])
    images = _check_images(report, sections["images"])
    _check_annotations(report, sections["annotations"], images, names)
    _check_roles(report, str(json_file), base, novel, list(names.values()))
    if image_root is not None:
        files = [(str(_image_path(image_root, image)), i, *_size(image)) for i, image in images.items()]
        report.problems += check_image_files(files, read_images)
    return report.finish(names.values())


def _check_categories(report: Report, categories: list[dict]) -> dict[int, str]:
    """Category id -> name, of usable categories in the order of their ids."""
    names: dict[int, str] = {}
    for category in categories:
        number, name = category.get("id"), category.get("name")
        where = f"{report.title}, category {number!r}"
        if not is_integer(number) or not isinstance(name, str) or not name:
            report.add("bad_entry", where, f'needs an integer "id" and a "name", has {number!r} and {name!r}')
        elif number in names or name in names.values():
            report.add("duplicate_category", where, f"id or name {name!r} is used twice")
        else:
            names[number] = name
    if names and sorted(names) != list(range(1, len(names) + 1)):
        report.notes.append(
            f"category ids are {min(names)} .. {max(names)} for {len(names)} categories; they are renumbered from 0 in "
            "their order"
        )
    return dict(sorted(names.items()))


def _check_images(report: Report, images: list[dict]) -> dict[Any, dict]:
    """Image id -> usable entry."""
    found: dict[Any, dict] = {}
    files: Counter = Counter()
    for image in images:
        number, name = image.get("id"), image.get("file_name") or image.get("coco_url")
        where = f"{report.title}, image {number!r} ({name})"
        if not isinstance(number, int | str) or not isinstance(name, str):
            report.add("bad_entry", where, 'needs an "id" and a "file_name"', number)
            continue
        if not all(is_integer(size) and size > 0 for size in _size(image)):
            report.add("bad_entry", where, f'"width" and "height" are {_size(image)}, not positive integers', number)
            continue
        files[name] += 1
        if number in found or files[name] > 1:
            report.add("duplicate_image", where, "its id or its file occurs twice", number)
            continue
        found[number] = image
    report.images = len(images)
    return found


def _check_annotations(report: Report, annotations: list[dict], images: dict, names: dict[int, str]) -> None:
    seen: set = set()
    listed = {image["id"] for image in images.values()}
    objects = defaultdict(list)
    for position, annotation in enumerate(annotations):
        number, image_id = annotation.get("id"), annotation.get("image_id")
        named = isinstance(number, int | str)
        where = f"{report.title}, annotation {repr(number) if named else f'at position {position}'}"
        if not named:
            number = f"position {position}"
            report.add("bad_entry", where, 'has no "id"', image_id, number)
        elif number in seen:
            report.add("duplicate_annotation", where, "its id occurs twice", image_id, number)
        else:
            seen.add(number)
        if not isinstance(image_id, int | str) or image_id not in listed:
            report.add("unknown_image", where, f"its image {image_id!r} is not usable or not listed", image_id, number)
            continue
        image = images[image_id]
        where += f" (image {image_id!r}, {image.get('file_name') or image.get('coco_url')})"
        category = annotation.get("category_id")
        if not is_integer(category) or category not in names:
            report.add("unknown_category", where, f"category_id {category!r} is not listed", image_id, number)
        else:
            objects[image_id].append((names[category], bool(annotation.get("iscrowd", 0))))
        found = [box_defect(annotation.get("bbox"), BoxMode.XYWH_ABS, *_size(image)), area_defect(annotation)]
        found.append(flagged_mask_defect(annotation, *_size(image)))
        for kind, what in filter(None, found):
            report.add(kind, where, what, image_id, number)
    for image_objects in objects.values():
        report.count(image_objects)


def _check_roles(report: Report, where: str, base: Sequence[str], novel: Sequence[str], known: Sequence[str]) -> None:
    for name in sorted(set(base) & set(novel)):
        report.add("class_overlap", where, f"{name!r} is both a base and a novel class")
    for name in [name for name in (*base, *novel) if name not in known]:
        report.add("unknown_class", where, f"there is no class {name!r}")
    report.roles = {**dict.fromkeys(base, "base"), **dict.fromkeys(novel, "novel")}


def check_voc(dirname: str, split: str, classes: Sequence[str], *, read_images: bool = True) -> Report:
    """Check one image set of a VOC folder."""
    report = Report(f"{dirname} ({split})")
    files: list[ImageFile] = []

    def thin(box: Sequence[float]) -> bool:
        return box[2] - box[0] <= 1 or box[3] - box[1] <= 1

    ids = voc_image_ids(dirname, split)
    report.images = len(ids)
    for image_id, times in Counter(ids).items():
        where = str(Path(dirname) / "Annotations" / f"{image_id}.xml")
        if times > 1:
            report.add("duplicate_image", where, f"the image set lists it {times} times", image_id)
        try:
            record = read_voc_record(dirname, image_id, tuple(classes))
        except (OSError, ValueError) as error:
            report.add("bad_xml", where, str(error).removeprefix(f"{where}: "), image_id)
            continue
        size = record["width"], record["height"]
        files.append((record["file_name"], image_id, *size))
        for position, annotation in enumerate(record["annotations"]):
            if defect := box_defect(annotation["bbox"], annotation["bbox_mode"], *size):
                report.add(defect[0], f"{where}, object {position}", defect[1], image_id, annotation["id"])
            elif thin(annotation["bbox"]):
                # xmin = xmax is one pixel in VOC's way of counting: it can be trained on, but nobody meant it.
                report.notes.append(f"{where}, object {position}: the box {annotation['bbox']} is one pixel thin")
        report.count((classes[annotation["category_id"]], False) for annotation in record["annotations"])
    report.problems += check_image_files(files, read_images)
    return report.finish(classes)


def check_dataset_dicts(
    dicts: Iterable[dict[str, Any]], metadata: Metadata, read_images: bool = False
) -> list[Problem]:
    """Check records in Detectron2's format, as a data loader would get them.

    Args:
        metadata: of the data set; ``thing_classes`` gives the range of category ids.
        read_images: open every image too; otherwise images are not looked at.
    """
    return check_records(list(dicts), metadata, read_images).problems


def check_records(dicts: Sequence[dict[str, Any]], metadata: Metadata, read_images: bool = False) -> Report:
    """The same as ``check_dataset_dicts`` with counts."""
    report = Report(metadata.name, images=len(dicts))
    classes = metadata.get("thing_classes") or []
    base, novel = metadata.get("base_classes") or (), metadata.get("novel_classes") or ()
    _check_roles(report, metadata.name, base, novel, [*base, *novel])
    for position, record in enumerate(dicts):
        where = f"{metadata.name}, {record.get('file_name', f'record {position}')}"
        image_id = record.get("image_id")
        if "file_name" not in record or image_id is None:
            report.add("bad_entry", where, "the record has no file_name or no image_id", image_id)
        objects = []
        for number, annotation in enumerate(record.get("annotations", [])):
            identity = annotation.get("id", number)
            place = f"{where}, annotation {identity!r}"
            category = annotation.get("category_id")
            if not is_integer(category) or not 0 <= category < len(classes):
                what = f"category_id {category!r} is not in 0 .. {len(classes) - 1}"
                what += " (do the ids start at 1?)" if category == len(classes) else ""
                report.add("category_range", place, what, image_id, identity)
            else:
                objects.append((classes[category], bool(annotation.get("iscrowd", 0))))
            size = record.get("width"), record.get("height")
            found = box_defect(annotation.get("bbox"), annotation.get("bbox_mode"), *size)
            for kind, what in filter(None, (found, flagged_mask_defect(annotation, *size))):
                report.add(kind, place, what, image_id, identity)
        report.count(objects)
    # A K-shot set has several records of one image.
    ids = Counter(record.get("image_id") for record in dicts)
    if metadata.get("few_shot") is None:
        for image_id in [i for i, times in ids.items() if times > 1 and i is not None]:
            report.add("duplicate_image", f"{metadata.name}, image {image_id!r}", "its id occurs twice", image_id)
    if read_images:
        files = {
            r["file_name"]: (r["file_name"], r.get("image_id"), r.get("width"), r.get("height"))
            for r in dicts
            if "file_name" in r
        }
        report.problems += check_image_files(list(files.values()), read_images=True)
    return report.finish(classes)


def check_image_files(files: Sequence[ImageFile], read_images: bool) -> list[Problem]:
    """Look whether images are there and, with ``read_images``, whether they open and have the size that is noted."""

    def look(file: ImageFile) -> Problem | None:
        path, image_id, width, height = file
        if not Path(path).is_file():
            return Problem("missing_image", path, "not found", image_id)
        if not read_images:
            return None
        try:
            shape = read_image(path, format="BGR").shape
        except Exception as error:  # decoders raise whatever they like; none of it is usable
            return Problem("unreadable_image", path, f"cannot be opened ({error})", image_id)
        if (width, height) not in ((shape[1], shape[0]), (None, None)):
            what = f"is {shape[1]} x {shape[0]}, but the annotations say {width} x {height}"
            return Problem("size_mismatch", path, what, image_id)
        return None

    with ThreadPoolExecutor() as pool:
        return [problem for problem in pool.map(look, files) if problem is not None]


def check_dataset(name: str, read_images: bool = True) -> list[Report]:
    """Check a registered data set; one that few-shot code derived is checked together with those it is made from.

    Raises:
        KeyError, FileNotFoundError: it is not registered, or not there.
    """
    if has_labels(name):
        return [check_classification(name, read_images)]
    meta = MetadataCatalog.get(name)
    if meta.get("few_shot") is None:
        require_source(name)
        if meta.get("json_file"):
            return [check_coco_json(meta.json_file, meta.get("image_root"), read_images=read_images)]
        if meta.get("dirname"):
            return [check_voc(meta.dirname, meta.split, meta.thing_classes, read_images=read_images)]
    reports = [report for source in meta.get("sources") or () for report in check_dataset(source, read_images)]
    for report in reports:
        report.tolerate(meta.get("tolerated_defects") or ())
    try:
        records = DatasetCatalog.get(name)
    except Exception as error:  # the loader may be anyone's; what it says is the problem
        report = Report(name)
        report.add("cannot_load", name, f"{type(error).__name__}: {error}")
        return [*reports, report]
    return [*reports, check_records(records, meta, read_images and not reports)]


def check_config(cfg: CfgNode, read_images: bool = True) -> list[Report]:
    """Check every data set of DATASETS.TRAIN and DATASETS.TEST, each once."""
    reports: dict[str, Report] = {}
    for name in dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)):
        for report in check_dataset(name, read_images):
            reports.setdefault(report.title, report)
    return list(reports.values())


def clean_json(content: dict[str, Any], problems: Iterable[Problem]) -> dict[str, Any]:
    """A copy of a COCO json without the annotations and images that have problems.

    Problems of the file as a whole (categories, missing sections) are not mended.
    """
    problems = list(problems)
    annotations = {problem.annotation for problem in problems if problem.annotation is not None}
    images = {problem.image for problem in problems if problem.annotation is None and problem.image is not None}
    kept = [image for image in content["images"] if image["id"] not in images]
    ids = {image["id"] for image in kept}
    return {
        **content,
        "images": kept,
        "annotations": [
            a for a in content["annotations"] if a.get("id") not in annotations | {None} and a.get("image_id") in ids
        ],
    }


def _size(image: dict[str, Any]) -> tuple[Any, Any]:
    return image.get("width"), image.get("height")


def _image_path(root: str, image: dict[str, Any]) -> Path:
    """Place of an image; LVIS tells it by the last two parts of the address."""
    path = Path(root) / image.get("file_name", "")
    if "coco_url" in image and not path.is_file():
        by_address = Path(root).joinpath(*image["coco_url"].split("/")[-2:])
        return by_address if by_address.is_file() or "file_name" not in image else path
    return path
