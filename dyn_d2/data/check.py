"""Checks of annotations and images before anything is trained on them, on the CPU and without a model.

``check_coco_json``, ``check_voc`` and ``check_dataset_dicts`` look at one data set each and list every defect at once;
``check_dataset`` finds out which of them fits a registered name; ``check_config`` goes through all that a config uses.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dyn_d2.data.annotation_files import voc_record
from dyn_d2.data.few_shot.sources import require_source
from dyn_d2.data.registered import registered_records

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.data.detection_utils import read_image

from .check_report import Problem, Report, summary
from .classification import check_classification, has_labels
from .clean import clean_json
from .semantic import check_label_maps, has_label_maps
from .validity.annotation import box_defect
from .validity.coco import CocoContent, DataError, annotations_by_image, examine, image_file, looks_like_lvis, read_json
from .validity.consumers import BOXES, EVALUATION, IMAGES, LABELS, LOADER, MASK_EVALUATION, MASKS, spoils
from .validity.ground_truth import missing_lvis_fields
from .validity.images import DeepImageError, instead_of, opening_error, require_readable
from .validity.records import examine_records
from .validity.values import flag, identity, is_integer, shown
from .validity.voc import image_ids, image_list

__all__ = [
    "Problem",
    "Report",
    "check_coco_json",
    "check_config",
    "check_dataset",
    "check_dataset_dicts",
    "check_voc",
    "clean_json",
    "concerning",
    "consumers_of",
    "summary",
]

# Large sets have a few objects in the first pixel of an image; in one whose boxes are fractions, many lie there.
_FEW_FRACTIONS = ("fraction_box", 0.01, "the box lies within the first pixel of the image")

ImageFile = tuple[str, Any, int | None, int | None]  # path, image id, width, height


def check_coco_json(
    json_file: str,
    image_root: str | None = None,
    *,
    read_images: bool = True,
    base: Sequence[str] = (),
    novel: Sequence[str] = (),
    lvis: bool | None = None,
) -> Report:
    """Check a json of COCO's or LVIS's format.

    Args:
        image_root: folder of the images; None skips them.
        read_images: open every image; False only looks whether it is there.
        base, novel: names of base and novel classes, checked against the file and against each other.
        lvis: judge it as Detectron2's loader and evaluator of LVIS read it; by default where its images have lists of
            categories as those of LVIS have.
    """
    report = Report(str(json_file))
    try:
        content = read_json(json_file)
    except (OSError, ValueError) as error:
        report.add("bad_json", str(json_file), str(error).removeprefix(f"{json_file} "))
        return report
    lvis = looks_like_lvis(content) if lvis is None else lvis
    found = examine(content, str(json_file), lvis=lvis)
    report.problems, report.notes = found.problems, found.notes
    report.images = len(content["images"]) if isinstance(content.get("images"), list) else 0
    if lvis:
        _check_lvis(report, found)
    for objects in annotations_by_image(found.annotations).values():
        report.count((found.names[a["category_id"]], bool(a["iscrowd"])) for a in objects)
    _check_roles(report, str(json_file), base, novel, list(found.names.values()))
    report.allow_few(*_FEW_FRACTIONS)
    if image_root is not None:
        named = {i: image_file(image, lvis) for i, image in found.images.items() if image_file(image, lvis)}
        sizes = {i: (found.images[i]["width"], found.images[i]["height"]) for i in named}
        files = [(os.path.join(image_root, name), i, *sizes[i]) for i, name in named.items()]
        report.problems += check_image_files(files, read_images)
    return report.finish(found.names.values())


def _check_lvis(report: Report, found: CocoContent) -> None:
    """What LVIS has and COCO has not; ``found`` notes lists of categories that are none."""
    if list(found.names) != list(range(1, len(found.names) + 1)):
        what = f"category ids are {shown(found.names)}: LVIS counts them from 1 without gaps"
        report.add("bad_category", report.title, what)
    report.notes += missing_lvis_fields(found)


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

    listed = image_list(dirname, split)
    try:
        ids = image_ids(listed, repeated=True)
    except DataError as error:
        report.add("cannot_load", str(listed), str(error).removeprefix(f"{listed} "))
        return report
    if not ids:
        report.add("no_images", str(listed), "lists no image")
    report.images = len(ids)
    for image_id, times in Counter(ids).items():
        where = str(Path(dirname) / "Annotations" / f"{image_id}.xml")
        if times > 1:
            report.add("duplicate_image", where, f"the image set lists it {times} times", image_id)
        try:
            record = voc_record(dirname, image_id, tuple(classes))
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
        report.count((classes[a["category_id"]], False) for a in record["annotations"])
    report.allow_few(*_FEW_FRACTIONS)
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
    report.problems += examine_records(dicts, len(classes), metadata.name)
    dicts = [record for record in dicts if isinstance(record, dict)]
    for record in dicts:
        report.count(_objects(record, classes))
    report.allow_few(*_FEW_FRACTIONS)
    # A K-shot set has several records of one image.
    ids = Counter(identity(record.get("image_id")) for record in dicts)
    if metadata.get("few_shot") is None:
        for image_id in [i for i, times in ids.items() if times > 1 and i is not None]:
            report.add("duplicate_image", f"{metadata.name}, image {image_id!r}", "its id occurs twice", image_id)
    if read_images:
        report.problems += check_record_images(dicts)
    return report.finish(classes)


def check_record_images(dicts: Iterable[Any]) -> list[Problem]:
    """Open the images of records, each file once."""
    files = {
        r["file_name"]: (r["file_name"], r.get("image_id"), r.get("width"), r.get("height"))
        for r in dicts
        if isinstance(r, dict) and isinstance(r.get("file_name"), str)
    }
    return check_image_files(list(files.values()), read_images=True)


def _objects(record: dict[str, Any], classes: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Class and crowd flag of the annotations that have both."""
    annotations = record.get("annotations", ())
    for annotation in annotations if isinstance(annotations, list | tuple) else ():
        category = annotation.get("category_id") if isinstance(annotation, dict) else None
        if is_integer(category) and 0 <= category < len(classes):
            yield classes[category], bool(flag(annotation.get("iscrowd")))


def check_image_files(files: Sequence[ImageFile], read_images: bool) -> list[Problem]:
    """Look whether images are there and, with ``read_images``, whether they open and have the size that is noted."""

    def look(file: ImageFile) -> Problem | None:
        path, image_id, width, height = file
        if not Path(path).is_file():
            return Problem("missing_image", path, f"not found{instead_of(path)}", image_id)
        if not read_images:
            return None
        try:
            require_readable(path)
            shape = read_image(path, format="BGR").shape
        except DeepImageError as error:
            return Problem("deep_image", path, str(error).removeprefix(f"{path} "), image_id)
        except Exception as error:  # decoders raise whatever they like; none of it is usable
            return Problem("unreadable_image", path, f"cannot be opened ({opening_error(path, error)})", image_id)
        if (width, height) not in ((shape[1], shape[0]), (None, None)):
            what = f"is {shape[1]} x {shape[0]}, but the annotations say {width} x {height}"
            return Problem("size_mismatch", path, what, image_id)
        return None

    with ThreadPoolExecutor() as pool:
        return [problem for problem in pool.map(look, files) if problem is not None]


def check_dataset(name: str, read_images: bool = True, cfg: CfgNode | None = None) -> list[Report]:
    """Check a registered data set; one that few-shot code derived is checked together with those it is made from.

    Args:
        cfg: what it is trained with, where that matters to what is valid.

    Raises:
        KeyError, FileNotFoundError: it is not registered, or not there.
    """
    if has_labels(name):
        return [check_classification(name, read_images)]
    meta = MetadataCatalog.get(name)
    maps = [check_label_maps(name, cfg)] if has_label_maps(meta) and name in DatasetCatalog else []
    if meta.get("few_shot") is None:
        require_source(name)
        if meta.get("json_file"):
            lvis = meta.get("evaluator_type") == "lvis"
            report = check_coco_json(meta.json_file, meta.get("image_root"), read_images=read_images, lvis=lvis)
            return [report, *maps]
        if meta.get("dirname"):
            return [check_voc(meta.dirname, meta.split, meta.thing_classes, read_images=read_images), *maps]
    reports = [report for source in meta.get("sources") or () for report in check_dataset(source, read_images, cfg)]
    for report in reports:
        report.tolerate(meta.get("tolerated_defects") or ())
    try:
        records = registered_records(name)
    except Exception as error:  # the loader may be anyone's; what it says is the problem
        report = Report(name)
        report.add("cannot_load", name, f"{type(error).__name__}: {error}")
        return [*reports, report]
    if maps and not any(isinstance(record, dict) and "annotations" in record for record in records):
        maps[0].problems += check_record_images(records) if read_images else []
        return [*reports, *maps]
    return [*reports, check_records(records, meta, read_images and not reports), *maps]


def check_config(cfg: CfgNode, read_images: bool = True) -> list[Report]:
    """Check every data set of DATASETS.TRAIN, VAL and TEST, each once; of a part of one the whole."""
    reports: dict[str, Report] = {}
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.VAL, *cfg.DATASETS.TEST)
    for name in dict.fromkeys(MetadataCatalog.get(name).get("part_of", None) or name for name in names):
        for report in check_dataset(name, read_images, cfg):
            reports.setdefault(report.title, report)
    return list(reports.values())


def consumers_of(cfg: CfgNode) -> tuple[str, ...]:
    """Who will read the data sets of ``cfg``, see ``validity.consumers``; masks only where they are wanted."""
    masks = (MASKS, MASK_EVALUATION) if cfg.MODEL.MASK_ON else ()
    return (LOADER, BOXES, EVALUATION, IMAGES, LABELS, *masks)


def concerning(problems: Iterable[Problem], cfg: CfgNode) -> list[Problem]:
    """Those of ``problems`` that spoil a training with ``cfg``, or its evaluation."""
    consumers = consumers_of(cfg)
    return [problem for problem in problems if spoils(problem.kind, consumers)]
