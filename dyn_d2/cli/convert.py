"""Annotations of other programs as a json in COCO's format, which DATASETS.CUSTOM reads.

    dyn-d2 convert annotations.xml --images pictures --output mine.json
    dyn-d2 convert labelme_folder --test 0.2 --output mine.json          mine_train.json and mine_test.json

Reads Pascal VOC's xml, YOLO's txt, LabelMe, CVAT, Label Studio, and COCO's format as Roboflow and others write it; more
formats through Datumaro (pip install 'dyn_d2[convert]'): --from datumaro:FORMAT. Polygons become masks. Images are
found by name, whatever folders the annotations put before it. VOC and YOLO folders need no conversion to be trained on.
"""

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from dyn_d2.data.convert import READERS, Converted, coco_of_items, read
from dyn_d2.utils.atomic import write_json
from dyn_d2.utils.seeds import derive_seed


def main(argv: list[str] | None = None) -> int:
    """``dyn-d2 convert``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", type=Path, help="a file or folder")
    parser.add_argument("--output", type=Path, required=True, metavar="OUT.json", help="what is written")
    parser.add_argument("--images", type=Path, help="folder of the images (default: that of the annotations)")
    parser.add_argument("--from", dest="kind", default="", metavar="FORMAT",
                        help=f"{', '.join(READERS)} or datumaro:FORMAT (default: found out)")  # fmt: skip
    parser.add_argument("--classes", nargs="+", default=[], help="names of classes, in the order of their numbers")
    parser.add_argument("--test", type=float, default=0.0, metavar="SHARE", help="write two files, with this share of "
                        "the images in OUT_test.json")  # fmt: skip
    args = parser.parse_args(argv)
    if not 0 <= args.test < 1:
        parser.error(f"--test {args.test} is no share, from 0 to 1")
    folder = args.images or (args.annotations if args.annotations.is_dir() else args.annotations.parent)
    if not folder.is_dir():
        raise FileNotFoundError(f"--images {folder} is no folder.")
    result = coco_of_items(read(args.annotations, args.kind, args.classes), folder)
    parts = _divided(result.content, args.test, args.output) if args.test else {args.output: result.content}
    for path, content in parts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content, indent=None)
    _report(result, parts, folder)
    return 0


def _divided(content: dict[str, Any], share: float, output: Path) -> dict[Path, dict[str, Any]]:
    """The images in two parts, at random but always alike."""
    images = content["images"]
    order = np.random.default_rng(derive_seed("convert", len(images))).permutation(len(images))
    test = {images[i]["id"] for i in order[: max(1, round(share * len(images)))]}

    def part(held_out: bool) -> dict[str, Any]:
        return {
            "images": [i for i in images if (i["id"] in test) == held_out],
            "annotations": [a for a in content["annotations"] if (a["image_id"] in test) == held_out],
            "categories": content["categories"],
        }

    named = {name: output.with_name(f"{output.stem}_{name}{output.suffix}") for name in ("train", "test")}
    return {named["train"]: part(False), named["test"]: part(True)}


def _report(result: Converted, parts: dict[Path, dict[str, Any]], folder: Path) -> None:
    names = {c["id"]: c["name"] for c in result.content["categories"]}
    for path, content in parts.items():
        counts = Counter(names[a["category_id"]] for a in content["annotations"])
        masks = sum("segmentation" in a for a in content["annotations"])
        print(
            f"wrote {path}: {len(content['images'])} images, {counts.total()} objects ({masks} with masks): "
            + ", ".join(f"{name} {counts[name]}" for name in names.values())
        )
    if result.missing:
        print(f"left out {len(result.missing)} images that are not below {folder}: {', '.join(result.missing[:5])}")
    if result.empty:
        print(f"left out {result.empty} objects without area inside of their image")
    if result.cut:
        print(f"{result.cut} objects reached beyond their image, and were cut")
    if result.left_out:
        kinds = ", ".join(f"{count} {kind}" for kind, count in result.left_out.items() if count)
        print(f"left out, as no detector learns from it: {kinds}") if kinds else None
    train, test = next(iter(parts)), list(parts)[-1]
    print(
        "to train on it: DATASETS.CUSTOM.FORMAT coco "
        f"DATASETS.CUSTOM.TRAIN {train} DATASETS.CUSTOM.TRAIN_IMAGES {folder}"
        + (f" DATASETS.CUSTOM.TEST {test} DATASETS.CUSTOM.TEST_IMAGES {folder}" if len(parts) > 1 else "")
    )
