"""FEW_SHOT.CUSTOM: anyone's own data as a benchmark, from COCO jsons or a folder as Pascal VOC has it."""

from functools import lru_cache
from pathlib import Path

from dyn_d2.data.validity.coco import DataError
from dyn_d2.data.validity.voc import image_ids, image_list, read_xml

from detectron2.config import CfgNode
from detectron2.data.datasets import register_coco_instances, register_pascal_voc

from .benchmarks import BENCHMARKS, FewShotBenchmark
from .sources import forget, json_categories

_JSON = ("TRAIN_JSON", "TRAIN_IMAGES", "TEST_JSON", "TEST_IMAGES")
_CLASSES = ("BASE_CLASSES", "NOVEL_CLASSES")


def custom_benchmark(custom: CfgNode) -> FewShotBenchmark:
    """The benchmark of ``custom``, whose data sets are registered here, in place of earlier ones of the same name.

    Raises:
        ValueError: keys are missing, contradict each other, or NAME is that of a benchmark.
        FileNotFoundError: files or folders are missing.
        DataError: an annotation file cannot be used.
    """
    voc = bool(custom.VOC_FOLDER)
    given = [f"FEW_SHOT.CUSTOM.{key}" for key in _JSON if custom[key]]
    if voc and given:
        raise ValueError(f"FEW_SHOT.CUSTOM.VOC_FOLDER holds all data, but {', '.join(given)} is given too: choose one.")
    needed = ("NAME", *(("VOC_TRAIN", "VOC_TEST") if voc else _JSON), *_CLASSES)
    empty = [f"FEW_SHOT.CUSTOM.{key}" for key in needed if not custom[key]]
    if empty:
        other = "" if voc else " (or VOC_FOLDER, for a folder as Pascal VOC has it, in place of jsons)"
        raise ValueError(f"FEW_SHOT.BENCHMARK='custom' needs a value for {', '.join(empty)}{other}.")
    if custom.NAME in BENCHMARKS:
        raise ValueError(f"FEW_SHOT.CUSTOM.NAME={custom.NAME!r} is the name of a benchmark: choose another one.")
    (_register_voc if voc else _register_jsons)(custom)
    return FewShotBenchmark(
        name=custom.NAME,
        train_sets=(f"{custom.NAME}_train",),
        test_sets=(f"{custom.NAME}_test",),
        evaluator_type="pascal_voc" if voc else "coco",
        novel={1: tuple(custom.NOVEL_CLASSES)},
        base=tuple(custom.BASE_CLASSES),
        published=False,
    )


def _require(files: dict[str, Path]) -> None:
    missing = [f"FEW_SHOT.CUSTOM.{key}={str(path)!r}" for key, path in files.items() if not path.exists()]
    if missing:
        raise FileNotFoundError(f"Not found: {', '.join(missing)} (relative paths start at {Path.cwd()}).")


def _register_jsons(custom: CfgNode) -> None:
    _require({key: Path(custom[key]) for key in _JSON})
    for part in ("train", "test"):
        name, path = f"{custom.NAME}_{part}", custom[f"{part.upper()}_JSON"]
        classes = [category["name"] for category in json_categories(path)]
        forget(name)
        register_coco_instances(name, {"thing_classes": classes}, path, custom[f"{part.upper()}_IMAGES"])


def _register_voc(custom: CfgNode) -> None:
    folder, splits = Path(custom.VOC_FOLDER), {"train": custom.VOC_TRAIN, "test": custom.VOC_TEST}
    _require({"VOC_FOLDER": folder})
    _require({f"VOC_{part.upper()}": image_list(folder, split) for part, split in splits.items()})
    classes = sorted({name for split in splits.values() for name in _voc_classes(folder, split)})
    for part, split in splits.items():
        name = f"{custom.NAME}_{part}"
        forget(name)
        # The year decides how precision is averaged: as since 2010, over all recalls.
        register_pascal_voc(name, str(folder), split, 2012, classes)


def _voc_classes(folder: Path, split: str) -> frozenset[str]:
    path = image_list(folder, split)
    return _named(str(path), path.stat().st_mtime_ns, str(folder / "Annotations"))


@lru_cache(maxsize=16)  # a config is derived several times, and the files are many
def _named(path: str, mtime: int, annotations: str) -> frozenset[str]:
    """Classes of the objects in all images of a list."""
    files = [Path(annotations, f"{image}.xml") for image in image_ids(path)]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise DataError(f"{path} lists images without annotations: {', '.join(missing[:3])} not found.")
    return frozenset(found.name for file in files for found in read_xml(file, sized=False).objects)
