"""The objects of a COCO json as images, one folder a class: what DATASETS.CUSTOM.FORMAT folders trains a classifier on.

    dyn-d2 prepare crops --json instances_train.json --images train/ --output crops/train --size 160

Each box is cut out with some context and resized to a square. Crowds (VOC's difficult objects) are left out. Files are
OUTPUT/CLASS/ID.jpg, ID being the annotation's. OUTPUT has to be new or empty: crops of another run would be trained on.
"""

import argparse
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from dyn_d2.data.object_crops import Crop, add_crop_options, crop_options, crops_of
from dyn_d2.utils.errors import UserError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_crop_options(parser)
    parser.add_argument("--output", type=Path, required=True, help="the folder of the classes")
    args = parser.parse_args(argv)
    options = crop_options(args, parser)
    if args.output.is_file():
        raise UserError(f"--output {args.output} is a file: name a folder.")
    if args.output.is_dir() and any(args.output.iterdir()):
        raise UserError(f"--output {args.output} holds files already: name a new folder, or remove it first.")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    partial = args.output.with_name(f".{args.output.name}.partial")  # a half of them would look like all
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        counts = _write(crops_of(args.json, args.images, options), partial)
        os.replace(partial, args.output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{args.output}: {counts.total()} crops, " + ", ".join(f"{name} {n}" for name, n in sorted(counts.items())))
    return 0


def _write(crops: Iterable[Crop], folder: Path) -> Counter[str]:
    """Each crop into the folder of its class; returns how many there are of each.

    Raises:
        UserError: a class has a name that no folder can have.
    """
    counts: Counter[str] = Counter()
    for crop in crops:
        if not _is_folder_name(crop.name):
            raise UserError(f"{crop.name!r} is no name of a folder: rename the category.")
        path = folder / crop.name / f"{crop.annotation['id']}.jpg"
        counts[crop.name] += 1
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(crop.pixels).save(path, format="jpeg", quality=95)
    return counts


def _is_folder_name(name: str) -> bool:
    return Path(name).name == name and not name.startswith(".") and not set(name) & set('\\/:*?"<>|')
