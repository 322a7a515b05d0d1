"""Writes label maps from the published files of the semantic segmentation sets (``sets.PUBLISHED``)."""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import loadmat
from tqdm import tqdm

from dyn_d2.hierarchy import load_hierarchy

from .label_maps import IGNORE, LabelTable, write_label_map
from .sets import PUBLISHED

MAPILLARY_UNLABELED = 65  # the 66th class, which is not evaluated


@dataclass(frozen=True)
class Job:
    """One label map to write: ``convert(source)`` returns it as (H, W) uint8."""

    source: Path
    target: Path
    convert: Callable[[Path], np.ndarray]

    def run(self) -> None:
        write_label_map(self.target, self.convert(self.source))


def prepare(
    name: str, root: Path, splits: Sequence[str] = (), overwrite: bool = False, jobs: int = 1
) -> dict[str, tuple[int, int]]:
    """Write the label maps of a data set; those that are there already are kept.

    Args:
        name: a key of ``PUBLISHED`` whose maps are not published.
        root: the folder of all data sets.
        splits: empty means all.
        jobs: processes.

    Returns:
        Split -> (number of label maps, how many of them were written now).

    Raises:
        FileNotFoundError: published files are missing; names what to download.
        ValueError: a file is not of the published format, or its ids are not; or there is no such split.
    """
    data = PUBLISHED[name]
    unknown = set(splits) - set(data.splits)
    if unknown:
        raise ValueError(f"{name} has no split {', '.join(sorted(unknown))}, only {', '.join(data.splits)}.")
    counts = {}
    for split in splits or data.splits:
        todo = list(_JOBS[name](root, split))
        waiting = [job for job in todo if overwrite or not job.target.is_file()]
        with ExitStack() as stack:
            run = map if jobs < 2 else stack.enter_context(ProcessPoolExecutor(jobs)).map
            for _ in tqdm(run(Job.run, waiting), total=len(waiting), desc=f"{name} {split}", disable=not waiting):
                pass
        counts[split] = len(todo), len(waiting)
    return counts


def preparable() -> list[str]:
    """The data sets that :func:`prepare` knows."""
    return list(_JOBS)


def _needed(name: str, *paths: Path) -> None:
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise FileNotFoundError(
            f"{name}: {', '.join(map(str, missing))} not found. Download {PUBLISHED[name].download}. "
            "--root, or DETECTRON2_DATASETS, names the folder that holds all."
        )


def _target(name: str, root: Path, split: str) -> Path:
    return root / PUBLISHED[name].splits[split][1]


def _from_png(table: LabelTable, path: Path) -> np.ndarray:
    with Image.open(path) as image:
        if image.mode not in ("L", "P", "I", "I;16"):  # P: ids are the numbers of colours
            raise ValueError(f"{path} is a PNG of mode {image.mode}: ids were expected, not colours.")
        return table.apply(np.array(image), path)


def _ade20k(root: Path, split: str) -> Iterator[Job]:
    """0 is anything else, 1 to 150 are the classes."""
    target = _target("ade20k_sem_seg", root, split)
    source = root / "ADEChallengeData2016" / "annotations" / target.name
    _needed("ade20k_sem_seg", source)
    table = LabelTable({0: IGNORE} | {number + 1: number for number in range(150)})
    return (Job(path, target / path.name, partial(_from_png, table)) for path in sorted(source.glob("*.png")))


def _mapillary(root: Path, split: str) -> Iterator[Job]:
    """0 to 64 are the classes, 65 is unlabelled; later packages have the labels of v1.2 in a folder of that name."""
    target = _target("mapillary_vistas", root, split)
    folder = root / "mapillary_vistas" / target.name
    source = folder / "v1.2" / "labels" if (folder / "v1.2").is_dir() else folder / "labels"
    _needed("mapillary_vistas", source)
    table = LabelTable({number: number for number in range(MAPILLARY_UNLABELED)} | {MAPILLARY_UNLABELED: IGNORE})
    return (Job(path, target / path.name, partial(_from_png, table)) for path in sorted(source.glob("*.png")))


def _coco_stuff_10k(root: Path, split: str) -> Iterator[Job]:
    folder, target = root / "coco_stuff_10k", _target("coco_stuff_10k", root, split)
    names, source = folder / "imageLists" / f"{split}.txt", folder / "annotations"
    _needed("coco_stuff_10k", names, source)
    for name in names.read_text().split():
        yield Job(source / f"{name}.mat", target / f"{name}.png", _coco_stuff_map)


def _coco_stuff_map(path: Path) -> np.ndarray:
    """S: 0 is unlabelled, 1 to 182 are the classes. Version 1.0 has other ids, of 171 classes."""
    content = loadmat(path, variable_names=["S", "names"])
    if "S" not in content or ("names" in content and content["names"].size < 182):
        raise ValueError(f"{path} is no annotation of COCO-Stuff 10k v1.1; v1.0 has other ids and cannot be used.")
    return LabelTable({0: IGNORE} | {n + 1: n for n in range(182)}).apply(content["S"].astype(np.int64), path)


def _pascal_context(root: Path, split: str) -> Iterator[Job]:
    folder, voc = root / "pascal_context", root / "VOC2010"
    names, ids, source = voc / "ImageSets" / "Main" / f"{split}.txt", folder / "labels.txt", folder / "trainval"
    _needed("pascal_context", names, ids, source)
    table = pascal_context_table(ids)
    for name in names.read_text().split():
        target = _target("pascal_context", root, split) / f"{name}.png"
        yield Job(source / f"{name}.mat", target, partial(_pascal_context_map, table))


def pascal_context_table(labels: Path) -> LabelTable:
    """The table of the 59 classes of ``labels``, a file of 459 lines "id: name"; all else is ignored.

    Raises:
        ValueError: a line is not of this form, or a class is missing.
    """
    names = {}
    for line in labels.read_text(encoding="utf-8").splitlines():
        number, colon, name = line.partition(":")
        if line.strip() and not (colon and number.strip().isdigit()):
            raise ValueError(f"{labels}: {line!r} is not 'id: name'.")
        if line.strip():
            names[name.strip()] = int(number)
    classes = list(load_hierarchy("pascal_context").labels("pascal_context"))
    missing = [name for name in classes if name not in names]
    if missing:
        raise ValueError(f"{labels} has no id for {', '.join(missing)}: it is not the list of the 459 labels.")
    used = {names[name]: position for position, name in enumerate(classes)}
    return LabelTable({0: IGNORE} | {number: used.get(number, IGNORE) for number in names.values()})


def _pascal_context_map(table: LabelTable, path: Path) -> np.ndarray:
    content = loadmat(path, variable_names=["LabelMap"])
    if "LabelMap" not in content:
        raise ValueError(f"{path} has no LabelMap: it is no annotation of Pascal-Context.")
    return table.apply(content["LabelMap"].astype(np.int64), path)


def _coco_panoptic(root: Path, split: str) -> Iterator[Job]:
    coco, target = root / "coco", _target("coco_panoptic_semantic", root, split)
    labels, source = coco / "annotations" / f"panoptic_{split}2017.json", coco / f"panoptic_{split}2017"
    _needed("coco_panoptic_semantic", labels, source)
    content = json.loads(labels.read_text(encoding="utf-8"))
    classes = list(load_hierarchy("coco_panoptic").labels("coco_panoptic"))
    try:
        number = {category["id"]: classes.index(category["name"]) for category in content["categories"]}
        segments = {
            annotation["file_name"]: {s["id"]: number[s["category_id"]] for s in annotation["segments_info"]}
            for annotation in content["annotations"]
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{labels} is no panoptic annotation of COCO ({type(error).__name__}: {error}).") from error
    return (Job(source / name, target / name, partial(_panoptic_map, found)) for name, found in segments.items())


def _panoptic_map(segments: dict[int, int], path: Path) -> np.ndarray:
    """Segment ids, R + 256 G + 256^2 B with 0 for none, as the classes of the segments."""
    with Image.open(path) as image:
        if image.mode != "RGB":
            raise ValueError(f"{path} is a PNG of mode {image.mode}, not RGB: it is no panoptic annotation of COCO.")
        ids, places = np.unique(np.array(image).astype(np.int64) @ [1, 256, 256**2], return_inverse=True)
    unknown = sorted(set(ids.tolist()) - segments.keys() - {0})
    if unknown:
        raise ValueError(f"{path} holds segments {unknown[:10]}, which its json does not describe.")
    classes = np.array([segments.get(number, IGNORE) for number in ids.tolist()], np.uint8)
    return classes[places].reshape(image.size[::-1])


def _voc_2012(name: str, folder: str, list_name: str, root: Path, split: str) -> Iterator[Job]:
    """0 is background, 1 to 20 are the classes, 255 is the border of objects."""
    voc, target = root / "VOC2012", _target(name, root, split)
    names, source = voc / "ImageSets" / "Segmentation" / f"{list_name or split}.txt", voc / folder
    _needed(name, names, source)
    table = LabelTable({number: number for number in range(21)} | {IGNORE: IGNORE})
    for image in names.read_text().split():
        yield Job(source / f"{image}.png", target / f"{image}.png", partial(_from_png, table))


_JOBS: dict[str, Callable[[Path, str], Iterator[Job]]] = {
    "coco_stuff_10k": _coco_stuff_10k,
    "ade20k_sem_seg": _ade20k,
    "mapillary_vistas": _mapillary,
    "pascal_context": _pascal_context,
    "coco_panoptic_semantic": _coco_panoptic,
    "voc_2012_sem_seg": partial(_voc_2012, "voc_2012_sem_seg", "SegmentationClass", ""),
    "voc_2012_aug_sem_seg": partial(_voc_2012, "voc_2012_aug_sem_seg", "SegmentationClassAug", "train_aug"),
}
