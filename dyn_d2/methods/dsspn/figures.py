"""DSSPN in pictures: the concepts of pixels at each depth of the tree."""

from collections.abc import Sequence

from torch import Tensor

from dyn_d2.evaluation.label_figures import LabelMap
from dyn_d2.evaluation.palette import class_colour
from dyn_d2.hierarchy import Hierarchy


def level_maps(levels: Tensor, tree: Hierarchy, concepts: Sequence[str], classes: LabelMap) -> list[LabelMap]:
    """ "depth 1" and so on, to the last but one, as the deepest level is the labels themselves.

    Args:
        levels: (depth + 1, H, W) numbers in ``tree.concepts``, root first.
        concepts: of the labels.
        classes: the map of the labels; a concept that is a label's keeps its colour.
    """
    own = dict(zip(concepts, classes.colours, strict=True))
    colours = [own.get(name) or class_colour(len(concepts) + i) for i, name in enumerate(tree.concepts)]
    inner = levels.cpu().numpy()[1:-1]  # at the root all are equal
    return [LabelMap(f"depth {depth}", level, tree.concepts, colours) for depth, level in enumerate(inner, 1)]
