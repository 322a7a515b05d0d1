"""BENCHMARK "custom": anyone's own boxes as a few-shot benchmark.

The data are those of DATASETS.CUSTOM (see dyn_d2.data.custom), or what FEW_SHOT.CUSTOM names itself: COCO jsons, or a
folder as Pascal VOC has it.
"""

from pathlib import Path

from dyn_d2.data.validity.voc import image_list

from detectron2.config import CfgNode

from .benchmarks import BENCHMARKS, FewShotBenchmark

_JSON = ("TRAIN_JSON", "TRAIN_IMAGES", "TEST_JSON", "TEST_IMAGES")
_CLASSES = ("BASE_CLASSES", "NOVEL_CLASSES")


def custom_benchmark(cfg: CfgNode) -> FewShotBenchmark:
    """The benchmark of a config, whose data sets are registered here, in place of earlier ones of the same name.

    Raises:
        ValueError: keys are missing, contradict each other, or NAME is that of a benchmark.
        FileNotFoundError: files or folders are missing.
        DataError: an annotation file cannot be used.
    """
    from dyn_d2.data.custom import custom_sets, register_custom  # which reads the sources of this package

    custom, data = cfg.FEW_SHOT.CUSTOM, cfg.DATASETS.CUSTOM
    given = [f"FEW_SHOT.CUSTOM.{key}" for key in (*_JSON, "VOC_FOLDER") if custom[key]]
    if data.FORMAT and given:
        raise ValueError(f"DATASETS.CUSTOM names the data, but {', '.join(given)} is given too: choose one.")
    if not data.FORMAT:
        _require_own(custom)
        cfg = with_own_data(cfg)
        data = cfg.DATASETS.CUSTOM
    _require(custom, _CLASSES)
    sets = custom_sets(cfg)
    if "test" not in sets:
        raise ValueError("FEW_SHOT.BENCHMARK='custom' needs data to be scored on: give DATASETS.CUSTOM.TEST.")
    register_custom(cfg)
    return FewShotBenchmark(
        name=data.NAME,
        train_sets=(sets["train"],),
        test_sets=(sets["test"],),
        evaluator_type="pascal_voc" if data.FORMAT == "voc" else "coco",
        novel={1: tuple(custom.NOVEL_CLASSES)},
        base=tuple(custom.BASE_CLASSES),
        published=False,
    )


def with_own_data(cfg: CfgNode) -> CfgNode:
    """A copy of ``cfg`` whose DATASETS.CUSTOM has what FEW_SHOT.CUSTOM names."""
    custom, copy = cfg.FEW_SHOT.CUSTOM, cfg.clone()
    copy.defrost()
    data = copy.DATASETS.CUSTOM
    data.NAME = custom.NAME
    if custom.VOC_FOLDER:
        data.FORMAT, data.ROOT, data.TRAIN, data.TEST = "voc", custom.VOC_FOLDER, custom.VOC_TRAIN, custom.VOC_TEST
        return copy
    data.FORMAT = "coco"
    data.TRAIN, data.TRAIN_IMAGES = custom.TRAIN_JSON, custom.TRAIN_IMAGES
    data.TEST, data.TEST_IMAGES = custom.TEST_JSON, custom.TEST_IMAGES
    return copy


def _require_own(custom: CfgNode) -> None:
    voc = bool(custom.VOC_FOLDER)
    given = [f"FEW_SHOT.CUSTOM.{key}" for key in _JSON if custom[key]]
    if voc and given:
        raise ValueError(f"FEW_SHOT.CUSTOM.VOC_FOLDER holds all data, but {', '.join(given)} is given too: choose one.")
    other = "" if voc else " (or DATASETS.CUSTOM, for folders of other formats too, in place of jsons)"
    _require(custom, ("NAME", *(("VOC_TRAIN", "VOC_TEST") if voc else _JSON), *_CLASSES), other)
    if custom.NAME in BENCHMARKS:
        raise ValueError(f"FEW_SHOT.CUSTOM.NAME={custom.NAME!r} is the name of a benchmark: choose another one.")
    paths = {key: Path(custom[key]) for key in (("VOC_FOLDER",) if voc else _JSON)}
    if voc and paths["VOC_FOLDER"].exists():
        paths |= {key: image_list(custom.VOC_FOLDER, custom[key]) for key in ("VOC_TRAIN", "VOC_TEST")}
    missing = [f"FEW_SHOT.CUSTOM.{key}={str(path)!r}" for key, path in paths.items() if not path.exists()]
    if missing:
        raise FileNotFoundError(f"Not found: {', '.join(missing)} (relative paths start at {Path.cwd()}).")


def _require(custom: CfgNode, keys: tuple[str, ...], other: str = "") -> None:
    empty = [f"FEW_SHOT.CUSTOM.{key}" for key in keys if not custom[key]]
    if empty:
        raise ValueError(f"FEW_SHOT.BENCHMARK='custom' needs a value for {', '.join(empty)}{other}.")
