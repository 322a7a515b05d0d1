"""Writes DigitScenes to disk: COCO-format json, JPEG images, label maps, and a manifest that says what is there."""

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from dyn_d2.utils.atomic import write_json
from dyn_d2.utils.lock import one_at_a_time

from .polygons import mask_to_polygons
from .scene import CLASS_NAMES, SEMANTIC_CLASSES, Scene, SceneOptions, render_scene

VERSION = 1  # raise it with every change that alters a pixel or an annotation
SPLITS = ("train", "val")
_JPEG_QUALITY = 92


@dataclass(frozen=True)
class DigitScenesSpec:
    """Everything that the content of the data set depends on.

    Attributes:
        num_train, num_val: numbers of images. A larger data set begins with the images of a smaller one.
        seed: of all that is random.
        scene: what the images look like.
    """

    num_train: int = 1000
    num_val: int = 200
    seed: int = 0
    scene: SceneOptions = field(default_factory=SceneOptions)

    def __post_init__(self) -> None:
        if min(self.num_train, self.num_val) < 1:
            raise ValueError(f"DigitScenes: {self.num_train} train and {self.num_val} val images; at least 1 of each.")

    def manifest(self) -> dict[str, Any]:
        """As it is written to, and compared with, manifest.json."""
        return json.loads(json.dumps({"name": "DigitScenes", "version": VERSION, **asdict(self)}))


def annotation_file(root: str | os.PathLike, split: str) -> Path:
    """The COCO json of a split."""
    return Path(root) / "annotations" / f"instances_{split}.json"


def generate_digit_scenes(
    root: str | os.PathLike, spec: DigitScenesSpec | None = None, overwrite: bool = False, quiet: bool = False
) -> bool:
    """Make the data set in the folder ``root``, unless it is there already.

    All files are written to a folder beside ``root`` that takes its name at the end, so ``root`` is whole or absent.
    What a killed run has left is removed by the next one; of two runs at a time the second one waits for the first.

    Args:
        overwrite: replace a DigitScenes of other parameters instead of refusing.
        quiet: show no progress bar.

    Returns:
        True if something was written, False if ``root`` holds exactly this data set already.

    Raises:
        FileExistsError: ``root`` holds something else: other files, or DigitScenes of other parameters.
    """
    spec = spec or DigitScenesSpec()
    # Through a link, the folder behind it is replaced, not the link.
    root = Path(os.path.realpath(os.path.expanduser(root)))
    root.parent.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(root.parent / f".{root.name}.lock"):
        if _is_finished(root, spec, overwrite):
            return False
        partial, old = (root.with_name(f".{root.name}.{state}") for state in ("partial", "old"))
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)
        for split, count in zip(SPLITS, (spec.num_train, spec.num_val), strict=True):
            _write_split(partial, split, count, spec, quiet)
        write_json(partial / "manifest.json", spec.manifest())
        if root.exists():
            root.rename(old)
        partial.rename(root)
        shutil.rmtree(old, ignore_errors=True)
    return True


def _is_finished(root: Path, spec: DigitScenesSpec, overwrite: bool) -> bool:
    """Whether ``root`` holds this data set, all files of it; FileExistsError if it must not be replaced."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / "manifest.json").read_text())
        ours = found.get("name") == "DigitScenes"
    except (OSError, ValueError, AttributeError):
        ours = False
    if not ours:
        raise FileExistsError(f"{root} holds files, but no manifest.json of DigitScenes: choose another folder.")
    wanted = spec.manifest()
    if found == wanted:
        counts = {"train": spec.num_train, "val": spec.num_val}
        return all(
            annotation_file(root, split).is_file()
            and all(_count_files(root / kind / split) == count for kind in ("images", "semantic"))
            for split, count in counts.items()
        )
    if not overwrite:
        changes = ", ".join(
            f"{key} {found.get(key)!r} instead of {wanted[key]!r}" for key in wanted if found.get(key) != wanted[key]
        )
        raise FileExistsError(
            f"{root} holds DigitScenes with {changes}. "
            "Add --overwrite to replace it, or choose another folder with --root."
        )
    return False


def _count_files(folder: Path) -> int:
    return len(os.listdir(folder)) if folder.is_dir() else 0


def _write_split(root: Path, split: str, count: int, spec: DigitScenesSpec, quiet: bool) -> None:
    folders = {kind: root / kind / split for kind in ("images", "semantic")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in tqdm(range(count), desc=f"DigitScenes {split}", unit=" images", disable=quiet, mininterval=0.5):
        scene = render_scene(split, index, spec.seed, spec.scene)
        name = f"{index:06d}"
        Image.fromarray(scene.image).save(folders["images"] / f"{name}.jpg", quality=_JPEG_QUALITY)
        Image.fromarray(scene.semantic).save(folders["semantic"] / f"{name}.png")
        height, width = scene.semantic.shape
        images.append({"id": index + 1, "file_name": f"{name}.jpg", "height": height, "width": width})
        for record in scene_annotations(scene):
            annotations.append({"id": len(annotations) + 1, "image_id": index + 1, **record})
    content = {
        "info": {"description": f"DigitScenes {split}", **spec.manifest()},
        "licenses": [],
        "categories": [
            {"id": number, "name": name, "supercategory": "digit"} for number, name in enumerate(CLASS_NAMES, 1)
        ],
        "semantic_categories": list(SEMANTIC_CLASSES),
        "images": images,
        "annotations": annotations,
    }
    write_json(annotation_file(root, split), content, indent=None)


def scene_annotations(scene: Scene) -> list[dict[str, Any]]:
    """COCO annotations of a scene, without ids: boxes (x, y, w, h) tight around the visible ink, in absolute pixels."""
    records = []
    for digit, source, visible, mask in zip(scene.classes, scene.sources, scene.visible, scene.masks, strict=True):
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        left, top = int(columns[0]), int(rows[0])
        records.append(
            {
                "category_id": digit + 1,
                "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
                "area": int(mask.sum()),
                "iscrowd": 0,
                "segmentation": mask_to_polygons(mask),
                "source": source,  # position in sklearn.datasets.load_digits()
                "visible": round(visible, 3),  # part of the digit's ink that is seen
            }
        )
    return records
