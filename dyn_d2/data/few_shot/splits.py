"""Which classes of a benchmark are base and which are novel, as data (Wang et al., Frustratingly Simple Few-Shot Object
Detection, ICML 2020)."""

import difflib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# The three random splits of Kang et al., ICCV 2019.
VOC_NOVEL = {
    1: ("bird", "bus", "cow", "motorbike", "sofa"),
    2: ("aeroplane", "bottle", "cow", "horse", "sofa"),
    3: ("boat", "cat", "motorbike", "sheep", "sofa"),
}

# The 20 classes that COCO shares with VOC.
COCO_NOVEL = {
    1: (
        "person",
        "bicycle",
        "car",
        "motorcycle",
        "airplane",
        "bus",
        "train",
        "boat",
        "bird",
        "cat",
        "dog",
        "horse",
        "sheep",
        "cow",
        "bottle",
        "chair",
        "couch",
        "potted plant",
        "dining table",
        "tv",
    )
}

DIGIT_SCENES_NOVEL = {
    1: ("seven", "eight", "nine"),
    2: ("zero", "three", "six"),
    3: ("two", "four", "five"),
}

LVIS_V0_5_CLASSES = 1230
# Zero-based positions of the 454 rare classes (1 to 10 training images) of LVIS v0.5.
_LVIS_V0_5_RARE = """
    0, 6, 9, 13-15, 20, 21, 30, 37-39, 41, 45, 48, 50, 51, 63, 64, 69, 71, 73, 82, 85, 93, 99, 100, 104-106, 112,
    115, 116, 119, 121, 124, 126, 129, 130, 135, 139, 141-143, 146, 149, 154, 158, 160, 162, 163, 166, 168, 172,
    180, 181, 183, 195, 198, 202, 204, 205, 208, 212, 213, 216-218, 225, 226, 230, 235, 237, 238, 240-242, 244, 245,
    248-252, 254, 257, 258, 264, 265, 269, 270, 272, 279, 283, 286, 290, 292, 294, 295, 297, 299, 302, 303, 305,
    306, 309, 310, 312, 315-317, 319-321, 323, 325, 327-329, 334, 335, 341, 343, 349, 350, 353, 355-360, 365,
    367-369, 371, 377, 378, 384, 385, 387, 388, 392, 393, 401-403, 405, 407, 410, 412, 413, 416, 419, 420, 422, 426,
    429, 432-434, 437, 438, 440, 441, 445, 453-455, 461, 463, 468, 472, 475-477, 482, 484, 485, 487, 488, 492, 494,
    495, 497, 508, 509, 511, 513-515, 517, 520, 523-526, 529, 533, 540-542, 544, 547, 550-552, 554, 555, 561, 563,
    568, 571, 572, 580, 581, 583-586, 589, 591-593, 595, 596, 599, 601, 604, 608, 609, 611, 612, 615, 616, 625, 626,
    628-630, 633, 635, 642, 644, 645, 649, 655, 657, 658, 662-664, 670, 673, 675, 676, 682, 683, 685, 689, 695, 697,
    699, 702, 711, 712, 715, 721-724, 726, 729, 731, 733, 734, 738, 740, 741, 744, 748, 754, 758, 764, 766-768, 771,
    772, 774, 776, 777, 781, 782, 784, 789, 790, 794-796, 798, 799, 803, 805-808, 815, 817, 820-822, 824, 825, 827,
    832, 833, 835, 836, 840, 842, 844, 846, 856, 862-866, 868-872, 875, 877, 882, 886, 892, 893, 897, 898, 900, 901,
    904, 905, 907, 915, 918-922, 926, 927, 930, 931, 933, 939, 940, 944-946, 948, 950, 951, 953-956, 958, 959,
    961-963, 969, 974, 975, 988, 990, 991, 998, 999, 1001, 1003, 1005, 1008-1010, 1012, 1015, 1020, 1022, 1025,
    1026, 1028, 1029, 1032, 1033, 1046-1050, 1055, 1066-1068, 1072, 1073, 1076, 1077, 1086, 1094, 1099, 1103, 1111,
    1132, 1135, 1137-1140, 1144, 1146, 1148, 1150, 1152, 1153, 1156, 1158, 1165-1169, 1171, 1178-1180, 1186-1189,
    1203-1205, 1213, 1215, 1218, 1224, 1225, 1227
"""


@dataclass(frozen=True)
class ClassSplit:
    """Base and novel class names, each in the order of the data set, and disjoint.

    Attributes:
        classes: base and novel classes together, in the order of the data set: the rows of an all-classes predictor.
    """

    classes: tuple[str, ...]
    base: tuple[str, ...]
    novel: tuple[str, ...]

    def subset(self, which: str) -> tuple[str, ...]:
        """Classes of "base", "novel" or "all"."""
        return {"base": self.base, "novel": self.novel, "all": self.classes}[which]


def lvis_v0_5_rare() -> tuple[int, ...]:
    """Zero-based positions of the rare classes of LVIS v0.5, ascending; position = category id - 1."""
    positions: list[int] = []
    for part in _LVIS_V0_5_RARE.replace("\n", " ").split(","):
        first, _, last = part.strip().partition("-")
        positions.extend(range(int(first), int(last or first) + 1))
    return tuple(positions)


def split_classes(classes: Sequence[str], novel: Iterable[str], base: Iterable[str] | None = None) -> ClassSplit:
    """Divide the classes of a data set.

    Args:
        classes: every class of the data set, in its order.
        novel: names of the novel classes.
        base: names of the base classes; None: all that are not novel. Classes in neither list are not used.

    Raises:
        ValueError: a name that the data set does not have, that occurs twice, or in both lists; an empty list.
    """
    novel = list(novel)
    base = [name for name in classes if name not in set(novel)] if base is None else list(base)
    problems = [f"the data set has two classes named {name!r}" for name in _repeated(classes)]
    for label, names in (("base", base), ("novel", novel)):
        problems += [f"the {label} class {name!r} is listed twice" for name in _repeated(names)]
        problems += [_unknown(label, name, classes) for name in names if name not in set(classes)]
        if not names:
            problems.append(f"there is no {label} class")
    problems += [f"{name!r} is both a base and a novel class" for name in base if name in set(novel)]
    if problems:
        raise ValueError("The split into base and novel classes is not usable: " + "; ".join(problems) + ".")
    kept = set(base) | set(novel)
    return ClassSplit(
        classes=tuple(name for name in classes if name in kept),
        base=tuple(name for name in classes if name in set(base)),
        novel=tuple(name for name in classes if name in set(novel)),
    )


def _repeated(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _unknown(label: str, name: str, classes: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, classes, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(classes[:20])}" + " ..." * (len(classes) > 20)
    return f"the data set has no class {name!r}, which is listed as {label} ({hint})"
