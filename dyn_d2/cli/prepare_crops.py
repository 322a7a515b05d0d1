"""The objects of a COCO json as images, one folder a class: what DATASETS.CUSTOM.FORMAT folders trains a classifier on.

    dyn-d2 prepare crops --json instances_train.json --images train/ --output crops/train --size 160

Each box is cut out with some context and resized to a square. Crowds (VOC's difficult objects) are left out. Files are
OUTPUT/CLASS/ID.jpg, ID being the annotation's. OUTPUT has to be new or empty: crops of another run would be trained on.
"""

import argparse
from collections import Counter
from pathlib import Path

from PIL import Image

from dyn_d2.data.object_crops import add_crop_options, crop_options, crops_of
from dyn_d2.utils.atomic import atomic_write
from dyn_d2.utils.errors import UserError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_crop_options(parser)
    parser.add_argument("--output", type=Path, required=True, help="the folder of the classes")
    args = parser.parse_args(argv)
    options = crop_options(args, parser)
    if args.output.is_dir() and any(args.output.iterdir()):
        raise UserError(f"--output {args.output} holds files already: name a new folder, or remove it first.")
    counts: Counter[str] = Counter()
    for crop in crops_of(args.json, args.images, options):
        if not _is_folder_name(crop.name):
            raise ValueError(f"{args.json}: {crop.name!r} is no name of a folder: rename the category.")
        path = args.output / crop.name / f"{crop.annotation['id']}.jpg"
        counts[crop.name] += 1
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, "wb") as file:
            Image.fromarray(crop.pixels).save(file, format="jpeg", quality=95)
    print(f"{args.output}: {counts.total()} crops, " + ", ".join(f"{name} {n}" for name, n in sorted(counts.items())))
    return 0


def _is_folder_name(name: str) -> bool:
    return Path(name).name == name and not name.startswith(".") and not set(name) & set('\\/:*?"<>|')
