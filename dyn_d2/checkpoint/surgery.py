"""Checkpoint surgery between the stages of TFA (thesis 7.2): predictor rows are moved by class name, not by position.

    base checkpoint (base classes) ----------------------------> all classes, novel rows random
    base checkpoint + novel checkpoint (novel classes) --------> all classes, novel rows fine-tuned
    base checkpoint --> novel classes only (start of the novel stage, or of the "fsod" protocol)

The background row stays last and comes from the base model; a novel-only predictor starts with a random one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dyn_d2.utils.atomic import atomic_write
from dyn_d2.utils.seeds import derive_seed

from .checkpointer import METADATA, CheckpointError, read_checkpoint

BOX = "roi_heads.box_predictor."
MASK = "roi_heads.mask_head.predictor."
SALIENCY = "roi_heads.shape_prop.saliency."
YOLO = "class_score."


class Rows(NamedTuple):
    """Layout of a tensor that has rows for each class."""

    per_class: int  # 0: as many as there are anchors
    background: int  # rows after those of the classes
    std: float  # of randomly started rows


# The published surgery starts new box regression rows with the classifier's 0.01 too; 0.001 is Detectron2's for masks.
LAYOUT = {
    BOX + "cls_score.weight": Rows(1, 1, 0.01),
    BOX + "cls_score.bias": Rows(1, 1, 0.0),
    BOX + "bbox_pred.weight": Rows(4, 0, 0.01),
    BOX + "bbox_pred.bias": Rows(4, 0, 0.0),
    MASK + "weight": Rows(1, 0, 0.001),
    MASK + "bias": Rows(1, 0, 0.0),
    SALIENCY + "weight": Rows(1, 1, 0.01),
    SALIENCY + "bias": Rows(1, 1, 0.0),
    YOLO + "weight": Rows(0, 0, 0.01),
    YOLO + "bias": Rows(0, 0, 0.0),
}


@dataclass
class Source:
    """A checkpoint to take rows from: its tensors and the class of each row."""

    path: str
    model: dict[str, Tensor]
    classes: list[str]
    metadata: dict[str, Any]

    @classmethod
    def read(cls, path: str, classes: Sequence[str] = ()) -> "Source":
        """Read a checkpoint.

        Args:
            path: the file.
            classes: class names in row order, for files that do not hold them.

        Raises:
            CheckpointError: no predictor, no class names, or not as many names as rows.
        """
        checkpoint = read_checkpoint(path)
        model = {name.removeprefix("module."): torch.as_tensor(value) for name, value in checkpoint["model"].items()}
        metadata = checkpoint.get(METADATA) or {}
        classes = list(classes or metadata.get("classes", []))
        if YOLO + "weight" in model and classes:
            count = len(model[YOLO + "weight"])
            if count % len(classes):
                raise CheckpointError(f"{path} has {count} rows for {len(classes)} classes: {classes}.")
            return cls(path, model, classes, metadata)
        if BOX + "cls_score.weight" not in model:
            raise CheckpointError(
                f"{path} holds no {BOX}cls_score.weight: surgery needs a Faster or Mask R-CNN, or a YOLOv2 "
                "that names its classes."
            )
        rows = len(model[BOX + "cls_score.weight"]) - 1
        if not classes:
            raise CheckpointError(
                f"{path} does not name its {rows} classes: give them in row order (--base-classes, --novel-classes)."
            )
        if len(classes) != rows:
            raise CheckpointError(f"{path} has rows for {rows} classes, but {len(classes)} are named: {classes}.")
        return cls(path, model, classes, metadata)

    @property
    def classifier(self) -> str:
        """ "linear" or "cosine"; only a linear classifier has a bias."""
        return "linear" if {BOX + "cls_score.bias", YOLO + "bias"} & self.model.keys() else "cosine"

    def per_class(self, name: str) -> int:
        """Rows of each class in tensor ``name``."""
        return LAYOUT[name].per_class or len(self.model[name]) // len(self.classes)

    def class_specific(self, name: str) -> bool:
        """Whether tensor ``name`` has its own rows for each class (always true of the classifier)."""
        layout = LAYOUT[name]
        rows = len(self.model[name])
        if not layout.per_class:
            return True
        if rows != layout.per_class * len(self.classes) + layout.background and rows != layout.per_class:
            raise CheckpointError(f"{self.path}: the {rows} rows of {name} do not fit {len(self.classes)} classes.")
        key = "CLS_AGNOSTIC_MASK" if name.startswith(MASK) else "CLS_AGNOSTIC_BBOX_REG"
        if len(self.classes) == 1 and layout.background == 0:  # the two layouts look alike: the config tells
            return f"{key}: true" not in self.metadata.get("config", "")
        return rows != layout.per_class

    def rows(self, name: str, cls: str) -> Tensor:
        """The rows of class ``cls`` in tensor ``name``."""
        count = self.per_class(name)
        start = self.classes.index(cls) * count
        return self.model[name][start : start + count]


def operate(
    base: Source,
    classes: Sequence[str],
    novel_classes: Sequence[str],
    *,
    novel: Source | None = None,
    classifier: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The checkpoint from which the next stage starts.

    Args:
        base: the base model.
        classes: classes of the next stage, in the order of its predictor's rows: all, or the novel ones only.
        novel_classes: those of them that are new.
        novel: a model of the novel classes, whose rows they start from; None for random rows, N(0, 0.01).
        classifier: the head of the next stage, default the base model's. A linear base may become cosine (its rows
            serve as prototypes, its bias is dropped), not the other way round.
        seed: of the random rows; each class's rows depend on seed, tensor and class name only.

    Returns:
        A checkpoint without optimizer, scheduler and iteration.

    Raises:
        CheckpointError: class names or heads do not fit together.
    """
    classifier = classifier or base.classifier
    only_novel = set(classes) == set(novel_classes)
    _check_classes(base, classes, novel_classes, only_novel, novel)
    _check_heads(base, novel, classifier)
    model = {name: tensor.clone() for name, tensor in base.model.items()}
    if classifier == "cosine":
        model.pop(BOX + "cls_score.bias", None)
    sources = [source for source in (None if only_novel else base, novel) if source is not None]
    for name in LAYOUT.keys() & model.keys():
        if base.class_specific(name):
            model[name] = _rebuild(name, classes, sources, model[name], base.per_class(name), seed)
    metadata = {
        **base.metadata,
        "classes": list(classes),
        "base_classes": [name for name in classes if name not in set(novel_classes)],
        "novel_classes": [name for name in classes if name in set(novel_classes)],
        "stage": "surgery",
        "classifier": classifier,
        "surgery": {"base": base.path, "novel": novel.path if novel else "", "seed": seed},
    }
    return {"model": model, METADATA: metadata}


def _check_classes(
    base: Source, classes: Sequence[str], novel_classes: Sequence[str], only_novel: bool, novel: Source | None
) -> None:
    def listed(what: str, names: Sequence[str]) -> str:
        return f"\n  {what}: {', '.join(names) or '(none)'}"

    overview = listed(f"classes of {base.path}", base.classes) + listed("classes wanted", classes)
    overview += listed("of these novel", novel_classes)
    for what, names in (("wanted", classes), (f"of {base.path}", base.classes)):
        if len(set(names)) != len(names):
            raise CheckpointError(f"a class name occurs twice in the classes {what}.{overview}")
    known = [name for name in novel_classes if name in base.classes]
    if known:
        raise CheckpointError(f"the base model already has the novel classes {', '.join(known)}.{overview}")
    if not only_novel:
        lost = [name for name in base.classes if name not in classes]
        unknown = [name for name in classes if name not in base.classes and name not in novel_classes]
        if lost or unknown:
            raise CheckpointError(
                "the class names do not fit:"
                + (f" the base model's {', '.join(lost)} are not wanted." if lost else "")
                + (f" {', '.join(unknown)} are neither in the base model nor novel." if unknown else "")
                + overview
            )
    if novel is not None and set(novel.classes) != set(novel_classes):
        overview += listed(f"classes of {novel.path}", novel.classes)
        raise CheckpointError(f"the classes of the novel model are not the novel classes.{overview}")


def _check_heads(base: Source, novel: Source | None, classifier: str) -> None:
    if base.classifier == "cosine" and classifier == "linear":
        raise CheckpointError(
            f"the head of {base.path} is cosine and has no bias, but MODEL.ROI_BOX_HEAD.CLASSIFIER asks for linear: "
            "use cosine, or a base model with a linear head."
        )
    if novel is not None and novel.classifier != classifier:
        raise CheckpointError(
            f"the head of {novel.path} is {novel.classifier}, but MODEL.ROI_BOX_HEAD.CLASSIFIER asks for {classifier}: "
            "train the novel stage with the same classifier."
        )


def _rebuild(
    name: str, classes: Sequence[str], sources: list[Source], like: Tensor, per_class: int, seed: int
) -> Tensor:
    """Tensor ``name`` for ``classes``: each class from the first source that has it, else random."""
    layout = LAYOUT[name]
    parts = []
    for cls in classes:
        source = next((source for source in sources if cls in source.classes), None)
        if source is None:
            parts.append(_random_rows(per_class, layout.std, like, seed, name, cls))
        else:
            parts.append(_checked_rows(source, name, cls, like))
    if layout.background and sources:
        parts.append(sources[0].model[name][-1:])
    elif layout.background:
        parts.append(_random_rows(1, layout.std, like, seed, name, "(background)"))
    return torch.cat(parts)


def _checked_rows(source: Source, name: str, cls: str, like: Tensor) -> Tensor:
    if name not in source.model or not source.class_specific(name) or source.model[name].shape[1:] != like.shape[1:]:
        found = tuple(source.model[name].shape) if name in source.model else "absent"
        raise CheckpointError(
            f"{name} is {found} in {source.path} and {tuple(like.shape)} in the base model: both need the same layers."
        )
    return source.rows(name, cls)


def _random_rows(count: int, std: float, like: Tensor, seed: int, *name: str) -> Tensor:
    generator = torch.Generator().manual_seed(derive_seed(seed, "surgery", *name))
    return (torch.randn(count, *like.shape[1:], generator=generator) * std).to(like.dtype)


def add_teacher(checkpoint: dict[str, Any], base: Source) -> None:
    """Put a whole YOLOv2 into the result of ``operate`` as "teacher", and a copy of its class scores as "source_score",
    for LSTD (modeling/meta_arch/lstd.py)."""
    model = checkpoint["model"]
    model |= {f"teacher.{name}": tensor.clone() for name, tensor in base.model.items()}
    for part in ("weight", "bias"):
        model[f"source_score.{part}"] = base.model[YOLO + part].clone()


def save(checkpoint: dict[str, Any], path: str) -> None:
    """Write the result of ``operate``, atomically."""
    with atomic_write(path, "wb") as file:
        torch.save(checkpoint, file)
