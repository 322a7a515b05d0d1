"""BDD100K with boxes for 70,000 images and masks for 7,000 of them, as Zhou et al., CVPR 2020, train on it.

Its detection labels (2020) and its instance segmentation labels belong to two sets of images that overlap. They are
merged into one json in COCO's format, which ``dyn-d2 prepare bdd100k`` writes: an image with instance labels has
these, any other the boxes of its detection labels. Formats: https://doc.bdd100k.com/format.html and Scalabel's.
"""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from matplotlib.path import Path as Curve
from PIL import Image
from tqdm import tqdm

from dyn_d2.data.few_shot.sources import forget
from dyn_d2.data.pseudo_masks import encode
from dyn_d2.utils.atomic import write_json

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

logger = logging.getLogger(__name__)

Record = dict[str, Any]

CLASSES = ("pedestrian", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")  # 1 to 8 in bitmasks
ALIASES = {"person": "pedestrian", "bike": "bicycle", "motor": "motorcycle", "caravan": "car", "van": "car"}
# What nobody can tell apart: neither to be learnt nor to be counted as a mistake.
IGNORED = {"other person": "pedestrian", "other vehicle": "car", "trailer": "truck"}
NOT_SEGMENTED = ("traffic light", "traffic sign")  # classes of the detection labels only
SPLITS = ("train", "val")
PREPARE_COMMAND = "dyn-d2 prepare bdd100k"
WHERE = "https://bdd-data.berkeley.edu"


def default_root() -> Path:
    """``$DETECTRON2_DATASETS/bdd100k``."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser() / "bdd100k"


def register_bdd100k(root: Path | None = None) -> None:
    """Register ``bdd100k_train`` (boxes and some masks), ``bdd100k_train_masks`` (its images with masks) and
    ``bdd100k_val`` (all with masks)."""
    root = root or default_root()
    for name, split in (("train", "train"), ("train_masks", "train"), ("val", "val")):
        name, json_file, images = f"bdd100k_{name}", annotation_file(root, split), root / "images"
        forget(name)
        DatasetCatalog.register(name, partial(_load, name, str(json_file), str(images)))
        MetadataCatalog.get(name).set(
            evaluator_type="coco",
            json_file=str(json_file),
            image_root=str(images),
            thing_classes=list(CLASSES),
            thing_dataset_id_to_contiguous_id={number + 1: number for number in range(len(CLASSES))},
            prepare_command=PREPARE_COMMAND,
        )


def annotation_file(root: Path, split: str) -> Path:
    """The json that :func:`prepare` writes."""
    return root / "annotations" / f"instances_{split}.json"


def _load(name: str, json_file: str, images: str) -> list[Record]:
    if not os.path.isfile(json_file):
        raise FileNotFoundError(
            f"BDD100K is not there: {json_file} does not exist. Make it with `{PREPARE_COMMAND}` from the published "
            "files, or set DETECTRON2_DATASETS to the folder that holds bdd100k/."
        )
    records = load_coco_json(json_file, images, name)
    masks_only = name.endswith("_masks")
    return [r for r in records if not masks_only or any("segmentation" in a for a in r["annotations"])]


def prepare(root: Path, masks: str = "auto") -> dict[str, dict[str, int]]:
    """Merge the published labels below ``root`` and write both splits.

    The training set leaves out images that the instance labels use for validation: the two sets of images are divided
    differently.

    Args:
        masks: "bitmasks" (png), "polygons" (json), or "auto": bitmasks where they are, as their publishers suggest.

    Returns:
        For each split the numbers of images, of images with instance labels, of objects and of masks.

    Raises:
        FileNotFoundError: lists what is missing, with what to download.
        ValueError: a file is not of the published format.
    """
    if masks == "auto":
        masks = "bitmasks" if (root / "labels/ins_seg/bitmasks").is_dir() else "polygons"
    _require(root, masks)
    segmented = {split: dict(_segmented(root, split, masks)) for split in SPLITS}
    counts = {}
    for split in SPLITS:
        images = {f"10k/{split}/{name}": objects for name, objects in segmented[split].items()}
        if split == "train":
            used = segmented["train"].keys() | segmented["val"].keys()
            boxes = _frames(root / "labels/det_20/det_train.json")
            images |= {f"100k/train/{name}": list(_boxes(frame)) for name, frame in boxes.items() if name not in used}
        counts[split] = _write(annotation_file(root, split), root / "images", images)
        counts[split]["images with instance labels"] = len(segmented[split])
    return counts


def _require(root: Path, masks: str) -> None:
    labels, images = root / "labels", root / "images"
    needed = {"Detection 2020 Labels": [labels / "det_20/det_train.json"], "100K Images": [images / "100k/train"]}
    needed["10K Images"] = [images / f"10k/{split}" for split in SPLITS]
    kinds = {
        "bitmasks": [labels / f"ins_seg/bitmasks/{split}" for split in SPLITS],
        "polygons": [labels / f"ins_seg/polygons/ins_seg_{split}.json" for split in SPLITS],
    }
    if masks not in kinds:
        raise ValueError(f"masks is {masks!r}: use one of {['auto', *kinds]}.")
    needed["Instance Segmentation"] = kinds[masks]
    lines = [
        f"  {path} (package '{package}')" for package, paths in needed.items() for path in paths if not path.exists()
    ]
    if lines:
        raise FileNotFoundError(
            f"BDD100K is not complete below {root}. Download these packages from {WHERE} and unpack them in "
            f"{root.parent}:\n" + "\n".join(lines)
        )


# --------------------------------------------------------------------------------------------------- published formats


def _frames(path: Path) -> dict[str, Record]:
    """Image name -> frame of a Scalabel json."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        frames = content["frames"] if isinstance(content, dict) else content
        return {Path(frame["name"]).name: frame for frame in frames}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no list of labelled frames ({type(error).__name__}: {error}).") from error


def _object(category: str, where: str) -> Record | None:
    """category_id and iscrowd of a class name; None for classes without instance labels."""
    name = ALIASES.get(category, category)
    if name in NOT_SEGMENTED:
        return None
    if name not in CLASSES and name not in IGNORED:
        raise ValueError(f"{where}: unknown category {category!r}.")
    return {"category_id": CLASSES.index(IGNORED.get(name, name)) + 1, "iscrowd": int(name in IGNORED)}


def _boxes(frame: Record) -> Iterator[Record]:
    for label in frame.get("labels") or []:
        box, what = label.get("box2d"), _object(label["category"], frame["name"])
        if box is None or what is None:
            continue
        crowd = what["iscrowd"] or int(bool((label.get("attributes") or {}).get("crowd")))
        width, height = box["x2"] - box["x1"], box["y2"] - box["y1"]
        if width > 0 and height > 0:
            bbox = [box["x1"], box["y1"], width, height]
            yield {**what, "iscrowd": crowd, "bbox": bbox, "area": width * height}


def _segmented(root: Path, split: str, masks: str) -> Iterator[tuple[str, list[Record]]]:
    """Image name and objects of every image with instance labels."""
    if masks == "bitmasks":
        for path in tqdm(sorted((root / f"labels/ins_seg/bitmasks/{split}").glob("*.png")), desc=f"{split} bitmasks"):
            yield f"{path.stem}.jpg", list(_of_bitmask(path))
        return
    frames = _frames(root / f"labels/ins_seg/polygons/ins_seg_{split}.json")
    for name, frame in tqdm(frames.items(), desc=f"{split} polygons"):
        with Image.open(_existing(root / f"images/10k/{split}" / name)) as image:
            yield name, list(_of_polygons(frame, *image.size))


def _of_bitmask(path: Path) -> Iterator[Record]:
    """R: category from 1, 0 for none. G: bits 3 to 0 for truncated, occluded, crowd, ignore. B and A: instance."""
    with Image.open(path) as image:
        if image.mode != "RGBA":
            raise ValueError(f"{path} is {image.mode}, not RGBA: it is none of the bitmasks of BDD100K.")
        pixels = np.asarray(image)
    code = np.ascontiguousarray(pixels).view(np.uint32)[..., 0]
    for value in np.unique(code[pixels[..., 0] > 0]):
        category, attributes = (int(part) for part in np.array([value]).view(np.uint8)[:2])
        if category > len(CLASSES):
            raise ValueError(f"{path} has category {category}: the instance labels have 1 to {len(CLASSES)}.")
        yield _masked({"category_id": category, "iscrowd": int(bool(attributes & 0b11))}, encode(code == value))


def _of_polygons(frame: Record, width: int, height: int) -> Iterator[Record]:
    for label in frame.get("labels") or []:
        what = _object(label["category"], frame["name"])
        polygons = [flatten_curve(part["vertices"], part["types"]) for part in label.get("poly2d") or []]
        polygons = [polygon for polygon in polygons if len(polygon) >= 6]
        if what is None or not polygons:
            continue
        what["iscrowd"] = what["iscrowd"] or int(bool((label.get("attributes") or {}).get("crowd")))
        rle = mask_util.merge(mask_util.frPyObjects(polygons, height, width))
        if mask_util.area(rle):
            yield _masked(what, {"size": [height, width], "counts": rle["counts"].decode("ascii")})


def flatten_curve(vertices: Sequence[Sequence[float]], types: str) -> list[float]:
    """A closed outline of lines ("L") and cubic Bezier curves ("CCC": two control points and the end) as a polygon,
    [x0, y0, x1, y1, ...]."""
    codes = [Curve.MOVETO] + [Curve.CURVE4 if kind == "C" else Curve.LINETO for kind in types[1:]]
    outlines = Curve([*vertices, vertices[0]], [*codes, Curve.CLOSEPOLY]).to_polygons()
    return np.asarray(outlines[0]).ravel().tolist() if outlines else []


def _masked(what: Record, rle: Record) -> Record:
    return {
        **what,
        "bbox": [float(side) for side in mask_util.toBbox(rle)],
        "area": int(mask_util.area(rle)),
        "segmentation": rle,
    }


def _existing(image: Path) -> Path:
    if not image.is_file():
        raise FileNotFoundError(f"{image} has labels, but does not exist: unpack the packages of images again.")
    return image


def _write(path: Path, folder: Path, images: dict[str, list[Record]]) -> dict[str, int]:
    listed: list[Record] = []
    annotations: list[Record] = []
    for number, (name, objects) in enumerate(tqdm(images.items(), desc=path.stem), 1):
        with Image.open(_existing(folder / name)) as image:  # reads the size only
            width, height = image.size
        listed.append({"id": number, "file_name": name, "width": width, "height": height})
        for found in objects:
            annotations.append({"id": len(annotations) + 1, "image_id": number, **found})
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
    write_json(path, {"images": listed, "annotations": annotations, "categories": categories}, indent=None)
    masks = sum("segmentation" in a for a in annotations)
    return {"images": len(listed), "objects": len(annotations), "masks": masks}


register_bdd100k()
