"""The K-shot lists that others published (Kang et al., ICCV 2019; Wang et al., ICML 2020), where a user has them.

    VOC   box_{K}shot_{class}_train.txt            paths of images; may hold more than K objects of the class
    COCO  full_box_{K}shot_{class}_trainval.json   COCO json of K annotations
          full_box_{K}shot_{class}_trainval.txt    paths of images, classes in VOC's spelling (Kang et al.)
    LVIS  lvis_shots.json                          LVIS json, up to 10 annotations of each class

Seed 0 lies in the folder itself, seed n in its sub-folder seed{n}.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from .benchmarks import FewShotBenchmark
from .sampling import Candidate, ObjectId, ShotSet, draw_order
from .sources import read_json

logger = logging.getLogger(__name__)

VOC_SPELLING = {  # of COCO's classes
    "airplane": "aeroplane",
    "couch": "sofa",
    "dining table": "diningtable",
    "motorcycle": "motorbike",
    "potted plant": "pottedplant",
    "tv": "tvmonitor",
}


def find_published(
    benchmark: FewShotBenchmark, folder: Path, seed: int, shots: int, classes: Sequence[str]
) -> dict[str, Path]:
    """Files of a published K-shot list: class name -> file; empty where the folder holds none for this seed and K.

    Raises:
        FileNotFoundError: lists of some classes are there and those of others are not.
    """
    folder = folder if seed == 0 else folder / f"seed{seed}"
    if benchmark.evaluator_type == "lvis":
        path = folder / "lvis_shots.json"
        return {name: path for name in classes} if path.exists() and shots == 10 else {}
    if benchmark.evaluator_type == "pascal_voc":
        kinds = [{name: folder / f"box_{shots}shot_{name}_train.txt" for name in classes}]
    else:
        begin = f"full_box_{shots}shot_"
        kinds = [
            {name: folder / f"{begin}{name}_trainval.json" for name in classes},
            {name: folder / f"{begin}{VOC_SPELLING.get(name, name)}_trainval.txt" for name in classes},
        ]
    for paths in kinds:
        missing = [str(path) for path in paths.values() if not path.exists()]
        if missing and len(missing) < len(paths):
            raise FileNotFoundError(
                f"The published K-shot list in {folder} is incomplete, it lacks {', '.join(missing)}."
            )
        if not missing:
            return paths
    return {}


def read_published(
    benchmark: FewShotBenchmark,
    paths: Mapping[str, Path],
    candidates: Mapping[str, Sequence[Candidate]],
    seed: int,
    shots: int,
) -> ShotSet:
    """Turn published files into a K-shot set.

    Where a file lists more than K objects, K are drawn by the seed (the original code drew anew in every process);
    objects marked difficult are taken only where there are not K others. Fewer than K are accepted, with a warning.

    Raises:
        ValueError: a file lists nothing that the data sets have.
    """
    objects: dict[str, tuple[ObjectId, ...]] = {}
    annotations = {path: _annotation_ids(path) for path in set(paths.values()) if path.suffix == ".json"}
    for name, path in paths.items():
        if path in annotations:
            listed = [found for found in candidates[name] if found.id.annotation in annotations[path]]
        else:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            images = {_image_id(line.strip()) for line in lines if line.strip()}
            listed = [found for found in candidates[name] if str(found.id.image) in images]
        usable = draw_order((found.id for found in listed if found.usable), seed, name)
        difficult = draw_order((found.id for found in listed if found.difficult), seed, name)
        drawn = (usable + difficult)[:shots]
        if not drawn:
            raise ValueError(
                f"{path} lists no object of class {name!r} that {', '.join(benchmark.train_sets)} has: "
                "it belongs to another data set, or the images are another version."
            )
        if len(drawn) < shots and not benchmark.at_most:
            logger.warning("%s holds %d objects of class %r, not %d.", path, len(drawn), name, shots)
        objects[name] = tuple(drawn)
    folder = next(iter(paths.values())).parent
    return ShotSet(benchmark.name, seed, shots, "instance", objects, origin=str(folder))


def _image_id(path: str) -> str:
    """The id of an image, from its path: the name of the file, or its number in COCO."""
    stem = Path(path).stem
    number = re.fullmatch(r"COCO_\w+_(\d{12})", stem)
    return str(int(number[1])) if number else stem


def _annotation_ids(path: Path) -> set[int]:
    content = read_json(path)
    try:
        return {annotation["id"] for annotation in content["annotations"]}
    except (KeyError, TypeError) as error:
        raise ValueError(f'{path} has no list of "annotations" with ids.') from error
