"""DigitScenes under two other label sets, to train one model on data sets that differ in what they tell apart.

"digits" has the ten digits, and everything that the photographs show is scenery; "places" has what they show, and every
digit is a digit. Each has half of the training images, so that each knows what the other one does not. The labels
are those of the concept tree ``digit_scenes``.
"""

import os
from pathlib import Path

from dyn_d2.data.semantic.label_maps import IGNORE, LabelTable, read_label_map, write_label_map
from dyn_d2.hierarchy import Hierarchy, load_hierarchy

from .generate import SPLITS

TREE = FINE = "digit_scenes"
# Variant -> the first of its training images; it has every second one from there. Test images are the same for all.
VARIANTS = {"digits": 0, "places": 1}


def label_set(variant: str) -> str:
    """Its name in the concept tree."""
    return f"{FINE}_{variant}"


def coarser(tree: Hierarchy, fine: str, coarse: str) -> LabelTable:
    """From labels of one data set to those of another that stand on the same concepts or above; others are ignored."""
    number = {concept: position for position, concept in enumerate(tree.labels(coarse).values())}
    table = {IGNORE: IGNORE}
    for position, concept in enumerate(tree.labels(fine).values()):
        above = (number[name] for name in (concept, *tree.ancestors(concept)) if name in number)
        table[position] = next(above, IGNORE)
    return LabelTable(table)


def map_folder(root: str | os.PathLike, variant: str, split: str) -> Path:
    """Where :func:`write_variants` puts the label maps."""
    return Path(root) / f"semantic_{variant}" / split


def write_variants(root: str | os.PathLike) -> int:
    """Write the label maps of both variants beside those of a DigitScenes folder; what is there already is kept.

    Returns:
        How many were written.
    """
    tree, written = load_hierarchy(TREE), 0
    for variant in VARIANTS:
        table = coarser(tree, FINE, label_set(variant))
        for split in SPLITS:
            for source in sorted((Path(root) / "semantic" / split).glob("*.png")):
                target = map_folder(root, variant, split) / source.name
                if not target.exists():
                    write_label_map(target, table.apply(read_label_map(source), source))
                    written += 1
    return written
