"""From the keys of FEW_SHOT to registered data sets: records to train on and ground truth to test with."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dyn_d2.data.validity.annotation import annotation_area
from dyn_d2.data.validity.coco import LVIS_LISTS, examine
from dyn_d2.data.validity.consumers import EVALUATION, LOADER
from dyn_d2.data.views import OBJECTS
from dyn_d2.utils.atomic import write_json

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from .benchmarks import FewShotBenchmark
from .published import find_published, read_published
from .sampling import (
    ObjectId,
    ShotSet,
    collect_candidates,
    has_area,
    is_single,
    sample_shots,
    sample_whole_images,
    shots_path,
)
from .sources import (
    forget,
    json_categories,
    load_source,
    read_json,
    require_source,
    source_classes,
    source_files,
)
from .task import FewShotTask

logger = logging.getLogger(__name__)

Record = dict[str, Any]


def apply_few_shot(cfg: CfgNode) -> None:
    """Register the data sets that ``cfg.FEW_SHOT`` describes and point ``cfg`` at them; call it before freezing.

    Sets DATASETS.TRAIN, DATASETS.TEST and the class counts of ROI heads and RetinaNet. Nothing is loaded but the ground
    truth that has to be restricted to some classes. Does nothing where FEW_SHOT.BENCHMARK is empty.

    Raises:
        ValueError: a value of FEW_SHOT that is not allowed, or a split that the data set does not allow.
        FileNotFoundError: files that FEW_SHOT.CUSTOM names are missing.
    """
    if not cfg.FEW_SHOT.BENCHMARK:
        return
    task = FewShotTask.from_config(cfg)
    _register(
        task.train_name,
        lambda: load_training_records(task),
        {
            **task.metadata(),
            "sources": list(task.benchmark.train_sets),
            **(
                {"shots_file": str(task.shots_file), "list_files": partial(list_files, task)}
                if task.shot_classes
                else {}
            ),
        },
    )
    tests = tuple(_register_test(task, source) for source in task.benchmark.test_sets)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (task.train_name,), tests
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = len(task.classes)
    logger.info(
        "Few-shot %s, split %d (%d base + %d novel classes), stage %s, protocol %s: DATASETS.TRAIN=%s, "
        "DATASETS.TEST=%s, NUM_CLASSES=%d (%s)%s",
        task.benchmark.name,
        task.split_number,
        len(task.split.base),
        len(task.split.novel),
        task.stage,
        task.protocol,
        cfg.DATASETS.TRAIN,
        cfg.DATASETS.TEST,
        len(task.classes),
        task.which,
        f", {task.shots} {task.unit}s per class, seed {task.seed}" if task.shot_classes else "",
    )
    if task.shot_classes and task.benchmark.shots and task.shots not in task.benchmark.shots:
        published = ", ".join(map(str, task.benchmark.shots))
        logger.warning("FEW_SHOT.SHOTS=%d has no published result: the tables have K = %s.", task.shots, published)


def _register(name: str, load: Callable[[], list[Record]], metadata: dict[str, Any]) -> None:
    # One process may run many cells of a table: the latest call decides what a name means.
    forget(name)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(**metadata)


# --------------------------------------------------------------------------------------------------- training records


def load_training_records(task: FewShotTask) -> list[Record]:
    """Records of the stage's training set; ``category_id`` counts in ``task.classes``.

    Images without any object to learn from are left out, except that ``task.keep_empty`` keeps those without any
    annotation where a stage has all data; boxes of other classes are left out. K-shot records hold one
    object each (or, with GROUP_BY_IMAGE, the drawn objects of one image); what else is in the picture is background.

    Raises:
        FileNotFoundError: data or K-shot lists are missing.
        ValueError: the data sets differ in their classes, or a K-shot list does not fit them.
        NotEnoughShots: a class has fewer than K usable objects.
    """
    sources = load_sources(task.benchmark)
    shots = find_shots(task, sources) if task.shot_classes else None
    if shots is not None and comm.is_main_process():
        shots.save(task.shots_file)
    if shots is not None:
        MetadataCatalog.get(task.train_name).set(shots_hash=shots.hash)
    drawn = {i for ids in shots.objects.values() for i in ids} if shots else set()
    limited = set(task.shot_classes)
    all_classes = task.benchmark.classes()
    number = {name: position for position, name in enumerate(task.classes)}

    def wanted(source: str, record: Record, annotation: Record) -> bool:
        name = all_classes[annotation["category_id"]]
        if name in limited:
            return ObjectId(source, record["image_id"], annotation["id"]) in drawn
        return name in number

    result: list[Record] = []
    for source, records in sources.items():
        for record in records:
            kept = [
                {**annotation, "category_id": number[all_classes[annotation["category_id"]]]}
                for annotation in record["annotations"]
                if wanted(source, record, annotation)
            ]
            if limited and kept:  # features of any sample of shots serve all others of the image
                objects = [(a["bbox"], a["bbox_mode"]) for a in record["annotations"] if is_single(a)]
                record = {**record, OBJECTS: objects}
            # Objects of the base classes are not split up where their images are fully annotated.
            if limited == set(task.classes) and not task.group_by_image:
                result += [{**record, "annotations": [annotation]} for annotation in kept]
            elif any(map(is_single, kept)) or (task.keep_empty and not limited and not record["annotations"]):
                result.append({**record, "annotations": kept})
    return _frequencies_apart(task, result) if task.frequencies_apart else result


def _frequencies_apart(task: FewShotTask, records: list[Record]) -> list[Record]:
    """The records of frequent classes, then those of common ones: an image with both comes twice.

    Raises:
        ValueError: no json of the benchmark states the frequency of a class.
    """
    frequency = task.benchmark.frequencies()
    unknown = [name for name in task.classes if not frequency.get(name)]
    if unknown:
        raise ValueError(
            f"FEW_SHOT.FREQUENCIES_APART: no json of {', '.join(task.benchmark.train_sets)} states the frequency of "
            f"{', '.join(unknown[:10])}."
        )
    kinds = [frequency[name] or "" for name in task.classes]
    result = []
    for kind in sorted(set(kinds), key="fcr".find):
        for record in records:
            kept = [annotation for annotation in record["annotations"] if kinds[annotation["category_id"]] == kind]
            if any(map(is_single, kept)):
                result.append({**record, "annotations": kept})
    return result + [record for record in records if not record["annotations"]]


def load_sources(benchmark: FewShotBenchmark) -> dict[str, list[Record]]:
    """Data set name -> records of all training sets of a benchmark, ``category_id`` in ``benchmark.classes()``.

    Raises:
        ValueError: the data sets have different classes, or one is listed twice.
    """
    if len(set(benchmark.train_sets)) < len(benchmark.train_sets):
        raise ValueError(f"FEW_SHOT.TRAIN_SETS lists a data set twice: {', '.join(benchmark.train_sets)}.")
    sources = {name: load_source(name) for name in benchmark.train_sets}
    for name in sources:
        if source_classes(name) != benchmark.classes():
            raise ValueError(f"{name} and {benchmark.train_sets[0]} have different classes: they cannot be joined.")
    if benchmark.published:
        sources = {name: _without_known_defects(name, records) for name, records in sources.items()}
    return sources


def _without_known_defects(name: str, records: list[Record]) -> list[Record]:
    empty = [
        annotation["id"]
        for record in records
        for annotation in record["annotations"]
        if is_single(annotation) and not has_area(annotation)
    ]
    if not empty:
        return records
    logger.warning("%s: left out %d annotations whose boxes have no area: %s", name, len(empty), empty[:20])
    return [
        {**record, "annotations": [a for a in record["annotations"] if not is_single(a) or has_area(a)]}
        for record in records
    ]


def find_shots(task: FewShotTask, sources: dict[str, list[Record]]) -> ShotSet:
    """The K-shot set of a task: from FEW_SHOT.SHOTS_DIR where that is set, else drawn.

    Raises:
        FileNotFoundError: the folder has neither a sampled nor a published list for this benchmark, seed and K.
        ValueError: the list names objects that the data sets do not have.
    """
    candidates = collect_candidates(sources, task.benchmark.classes())
    wanted = {name: candidates[name] for name in task.shot_classes}
    if not task.shots_dir and task.max_objects:
        drawn = sample_whole_images(
            candidates,
            benchmark=task.benchmark.name,
            seed=task.seed,
            shots=task.shots,
            max_objects=task.max_objects,
        )
        return drawn.restrict(task.shot_classes)
    if not task.shots_dir:
        # Images of one class show others, too: they are the same in every stage.
        names = task.split.subset("all") if task.unit == "whole_image" else task.shot_classes
        drawn = sample_shots(
            {name: candidates[name] for name in names},
            benchmark=task.benchmark.name,
            seed=task.seed,
            shots=task.shots,
            unit=task.unit,
            at_most=task.benchmark.at_most,
        )
        return drawn.restrict(task.shot_classes)
    folder = Path(task.shots_dir)
    path = shots_path(folder, task.benchmark.name, task.seed, task.shots, task.unit, task.max_objects)
    if path.exists():
        shots = ShotSet.load(path)
        _check_list(task, shots, path)
        shots = shots.restrict(task.shot_classes)
    elif published := find_published(task.benchmark, folder, task.seed, task.shots, task.shot_classes):
        _check_published(task)
        shots, path = read_published(task.benchmark, published, wanted, task.seed, task.shots), folder
    else:
        raise FileNotFoundError(
            f"FEW_SHOT.SHOTS_DIR={task.shots_dir!r} has neither {path} nor a published list of {task.shots} shots, "
            f"seed {task.seed}. dyn-d2 prepare few-shot writes such files; an empty SHOTS_DIR draws them anew."
        )
    for name, ids in shots.objects.items():
        unknown = set(ids) - {candidate.id for candidate in candidates[name]}
        if unknown:
            raise ValueError(
                f"{path}: {len(unknown)} objects of class {name!r} are not in {', '.join(task.benchmark.train_sets)}, "
                f"for example {tuple(min(unknown, key=str))}."
            )
    return shots


def list_files(task: FewShotTask) -> list[Path]:
    """The K-shot lists below FEW_SHOT.SHOTS_DIR that ``find_shots`` reads."""
    if not task.shots_dir:
        return []
    folder = Path(task.shots_dir)
    path = shots_path(folder, task.benchmark.name, task.seed, task.shots, task.unit, task.max_objects)
    if path.exists():
        return [path]
    return sorted(set(find_published(task.benchmark, folder, task.seed, task.shots, task.shot_classes).values()))


def _check_published(task: FewShotTask) -> None:
    asked = {"SHOTS_UNIT": (task.unit, "instance"), "MAX_OBJECTS": (task.max_objects, 0)}
    for key, (value, counted) in asked.items():
        if value != counted:
            raise ValueError(
                f"FEW_SHOT.SHOTS_DIR={task.shots_dir!r} has published lists, which count objects, but FEW_SHOT.{key} "
                f"is {value}: set it to {counted}, or leave SHOTS_DIR empty to draw shots by it."
            )


def _check_list(task: FewShotTask, shots: ShotSet, path: Path) -> None:
    """
    Raises:
        ValueError: the list in the file is not the one that its place says.
    """
    wanted = {
        "benchmark": task.benchmark.name,
        "seed": task.seed,
        "shots": task.shots,
        "unit": task.unit,
        "max_objects": task.max_objects,
    }
    other = [f"{key} {getattr(shots, key)!r}, not {value!r}" for key, value in wanted.items()
             if getattr(shots, key) != value]  # fmt: skip
    if other:
        raise ValueError(
            f"{path} is the K-shot list of {'; '.join(other)}: it was copied or renamed. dyn-d2 prepare few-shot "
            "writes the one that FEW_SHOT asks for."
        )


# --------------------------------------------------------------------------------------------------------- test sets


def _register_test(task: FewShotTask, source: str) -> str:
    """Register the ground truth of ``source``, restricted to the classes of the task, and return its name."""
    name = f"{source}_split{task.split_number}_{task.which}"
    files = source_files(source)
    original = MetadataCatalog.get(source)
    metadata = {**task.metadata(), "sources": [source]}
    for key in ("image_root", "dirname", "split", "year", "evaluator_type"):
        if original.get(key) is not None:
            metadata[key] = original.get(key)
    # Where the file is missing, loading the data set says so; a configuration can be looked at without any data.
    if original.get("json_file") and files[0].exists():
        ids = category_ids(files[0], source, task.classes)
        metadata["json_file"] = str(_ground_truth(task, name, files[0], ids))
        metadata["thing_dataset_id_to_contiguous_id"] = {ids[c]: position for position, c in enumerate(task.classes)}
    _register(name, lambda: load_test_records(task, source), metadata)
    return name


def load_test_records(task: FewShotTask, source: str) -> list[Record]:
    """All images of a test set with the objects of the task's classes, possibly none.

    Raises:
        ValueError: the test set lacks one of the classes.
    """
    require_source(source)
    classes = source_classes(source)
    missing = [name for name in task.classes if name not in classes]
    if missing:
        raise ValueError(f"Data set {source!r} lacks the classes {', '.join(missing)}.")
    number = {classes.index(name): position for position, name in enumerate(task.classes)}
    return [
        {
            **record,
            "annotations": [
                {**annotation, "category_id": number[annotation["category_id"]]}
                for annotation in record["annotations"]
                if annotation["category_id"] in number
            ],
        }
        for record in load_source(source)
    ]


def category_ids(json_file: Path, source: str, classes: Sequence[str]) -> dict[str, int]:
    """Class name -> category id in a json.

    The names are those of the data set, which belong to the sorted ids (LVIS calls its categories by a synonym).

    Raises:
        ValueError: the json lacks one of ``classes``.
    """
    categories = json_categories(json_file)
    names = source_classes(source)
    if len(names) == len(categories):
        ids = {name: category["id"] for name, category in zip(names, categories, strict=True)}
    else:
        ids = {category["name"]: category["id"] for category in categories}
    missing = [name for name in classes if name not in ids]
    if missing:
        raise ValueError(
            f'{json_file} lacks the categories {", ".join(missing)}: add them to its "categories" (annotations are not '
            "needed), with the names that the training data uses."
        )
    return {name: ids[name] for name in classes}


def _ground_truth(task: FewShotTask, name: str, json_file: Path, ids: dict[str, int]) -> Path:
    """A json with exactly the categories of the task; the original where that is one."""
    if task.benchmark.published and len(ids) == len(json_categories(json_file)):
        return json_file
    stat = json_file.stat()
    identity = f"{json_file.resolve()} {stat.st_mtime_ns} {stat.st_size} {sorted(ids.values())}"
    path = task.run_dir / f"{name}_{hashlib.sha256(identity.encode()).hexdigest()[:10]}.json"
    if not path.exists():
        lvis = task.benchmark.evaluator_type == "lvis"
        write_json(path, restrict_json(read_json(json_file), set(ids.values()), str(json_file), lvis), indent=None)
    return path


def restrict_json(
    content: dict[str, Any], category_ids: set[int], title: str = "the json", lvis: bool = False
) -> dict[str, Any]:
    """COCO or LVIS ground truth for some categories: their annotations, all images.

    Annotations without the "area" and "iscrowd" that COCO's evaluation reads get those of their mask or box. Without a
    section "annotations" the result has none either.

    Raises:
        DataError: the content cannot be evaluated.
    """
    found = examine(content, title, lvis=lvis, masks=False).require((LOADER, EVALUATION))

    def image(value: dict[str, Any]) -> dict[str, Any]:
        return {**value, **{key: [i for i in value[key] if i in category_ids] for key in LVIS_LISTS if key in value}}

    def complete(annotation: dict[str, Any]) -> dict[str, Any]:
        of = found.images[annotation["image_id"]]
        return {**annotation, "area": annotation_area(annotation, of["height"], of["width"])}

    result = {
        "info": content.get("info", {}),
        "licenses": content.get("licenses", []),
        "images": [image(value) for value in found.images.values()],
        "categories": [found.categories[number] for number in found.names if number in category_ids],
    }
    if found.annotated:
        result["annotations"] = [complete(a) for a in found.annotations if a["category_id"] in category_ids]
    return result
