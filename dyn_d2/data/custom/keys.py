"""The keys of DATASETS.CUSTOM, with paths put together."""

from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode

KEY = "DATASETS.CUSTOM"
PARTS = ("train", "val", "test")
_VOC_LISTS = {"train": "trainval", "val": "val", "test": "test"}
_WITH_IMAGES = ("coco", "semantic")


@dataclass(frozen=True)
class CustomData:
    """What somebody gave in DATASETS.CUSTOM.

    Attributes:
        name: of the data sets, before ``_train``, ``_val`` and ``_test``.
        format: a value of FORMAT.
        root: where paths start.
        given: part -> as in the key; of "voc" and "yolo" it may be empty.
        images: part -> folder of images, as in the key.
        classes: names, empty where the files are to say.
        ignore, tree, label_set: of label maps.
        chosen: only some classes are used, by name (few-shot sets), so that parts may have others.
    """

    name: str
    format: str
    root: Path
    given: dict[str, str]
    images: dict[str, str]
    classes: tuple[str, ...]
    ignore: int
    tree: str
    label_set: str
    chosen: bool

    @classmethod
    def of(cls, cfg: CfgNode) -> "CustomData | None":
        """Of a config; None where FORMAT is empty."""
        keys = cfg.DATASETS.get("CUSTOM", None)
        if keys is None or not keys.FORMAT:
            return None
        return cls(
            name=keys.NAME,
            format=keys.FORMAT,
            root=Path(keys.ROOT).expanduser(),
            given={part: keys[part.upper()] for part in PARTS},
            images={part: keys[f"{part.upper()}_IMAGES"] for part in PARTS},
            classes=tuple(keys.CLASSES),
            ignore=keys.IGNORE,
            tree=keys.TREE,
            label_set=keys.LABEL_SET,
            chosen=bool(cfg.FEW_SHOT.BENCHMARK),
        )

    @property
    def parts(self) -> tuple[str, ...]:
        """Those that are there."""
        found = {part for part in PARTS if self.given[part]}
        if self.format == "yolo" and "train" not in found:
            from .yolo import parts_of_yaml

            named = parts_of_yaml(self.root)
            if not found:
                return named
            found |= {"train"} & set(named)  # TEST alone replaces what data.yaml has for it
        if self.format == "voc":
            found |= {"train", "test"}
        return tuple(part for part in PARTS if part in found)

    def name_of(self, part: str) -> str:
        """The registered name of a part."""
        return f"{self.name}_{part}"

    def path(self, part: str) -> Path:
        """What TRAIN, VAL or TEST names."""
        return self.root / Path(self.given[part]).expanduser()

    def image_folder(self, part: str) -> Path:
        """What TRAIN_IMAGES, VAL_IMAGES or TEST_IMAGES names."""
        return self.root / Path(self.images[part]).expanduser()

    def voc_list(self, part: str) -> str:
        """The name of a list of ImageSets/Main."""
        return self.given[part] or _VOC_LISTS[part]

    def require_keys(self) -> None:
        """All keys are there that the format needs.

        Raises:
            ValueError: lists those that are not.
        """
        empty = [] if self.parts and self.parts[0] == "train" else [f"{KEY}.TRAIN"]
        if self.format in _WITH_IMAGES:
            empty += [f"{KEY}.{part.upper()}_IMAGES" for part in self.parts if not self.images[part]]
        if self.format == "semantic" and not (self.classes or self.tree):
            empty.append(f"{KEY}.CLASSES (the names, in the order of their numbers; or TREE, which has them)")
        if empty:
            raise ValueError(f"{KEY}.FORMAT {self.format} needs a value for {', '.join(empty)}.")
        unused = [f"{KEY}.{part.upper()}_IMAGES" for part in PARTS if self.images[part]
                  and (self.format not in _WITH_IMAGES or part not in self.parts)]  # fmt: skip
        if unused:
            raise ValueError(f"{', '.join(unused)}: FORMAT {self.format} does not read it here; leave it empty.")
