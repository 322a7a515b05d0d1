"""Surgery between the stages of few-shot training: rows of predictors are moved by class name, not by position.

    base checkpoint (base classes) ----------------------------> all classes, novel rows random
    base checkpoint + novel checkpoint (novel classes) --------> all classes, novel rows fine-tuned
    base checkpoint --> novel classes only (start of the novel stage, or of the "fsod" protocol)

The background row stays last and comes from the base model; a novel-only predictor starts with a random one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dyn_d2.method import methods
from dyn_d2.utils.atomic import atomic_write
from dyn_d2.utils.seeds import derive_seed

from .checkpointer import METADATA, CheckpointError, read_checkpoint

BOX = "roi_heads.box_predictor."
MASK = "roi_heads.mask_head.predictor."


class Rows(NamedTuple):
    """Layout of a tensor that has rows for each class.

    Attributes:
        per_class: rows of a class; 0: as many as there are anchors.
        background: rows after those of the classes.
        std: of randomly started rows.
        alone: that of a predictor that has no row of another model, where it differs.
        scores: whether it gives the class scores of a detector that has no box predictor.
    """

    per_class: int
    background: int
    std: float
    scores: bool = False
    alone: float | None = None


# The published surgery starts new box regression rows with the classifier's 0.01 too, beside those of the base model;
# alone they start as Detectron2's do, like those of masks.
LAYOUT = {
    BOX + "cls_score.weight": Rows(1, 1, 0.01),
    BOX + "cls_score.bias": Rows(1, 1, 0.0),
    BOX + "bbox_pred.weight": Rows(4, 0, 0.01, alone=0.001),
    BOX + "bbox_pred.bias": Rows(4, 0, 0.0),
    MASK + "weight": Rows(1, 0, 0.001),
    MASK + "bias": Rows(1, 0, 0.0),
}


def layout() -> dict[str, Rows]:
    """LAYOUT and what methods add to it."""
    found = dict(LAYOUT)
    for method in methods():
        found |= method.class_rows()
    return found


def _score_tensors(model: Mapping[str, Any], part: str) -> list[str]:
    """Names of the tensors in ``model`` that give class scores without a box predictor, "weight" or "bias"."""
    return [name for name, rows in layout().items() if rows.scores and name.endswith(part) and name in model]


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
        for name in _score_tensors(model, "weight") if classes else ():
            count = len(model[name])
            if count % len(classes):
                raise CheckpointError(f"{path} has {count} rows for {len(classes)} classes: {classes}.")
            return cls(path, model, classes, metadata)
        if BOX + "cls_score.weight" not in model:
            raise CheckpointError(
                f"{path} holds no {BOX}cls_score.weight: surgery needs a Faster or Mask R-CNN, or a "
                "detector of another kind that names its classes."
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
        biased = BOX + "cls_score.bias" in self.model or bool(_score_tensors(self.model, "bias"))
        return "linear" if biased else "cosine"

    def per_class(self, name: str) -> int:
        """Rows of each class in tensor ``name``."""
        return layout()[name].per_class or len(self.model[name]) // len(self.classes)

    def class_specific(self, name: str) -> bool:
        """Whether tensor ``name`` has its own rows for each class (always true of the classifier)."""
        expected = layout()[name]
        rows = len(self.model[name])
        if not expected.per_class:
            return True
        if rows != expected.per_class * len(self.classes) + expected.background and rows != expected.per_class:
            raise CheckpointError(f"{self.path}: the {rows} rows of {name} do not fit {len(self.classes)} classes.")
        key = "CLS_AGNOSTIC_MASK" if name.startswith(MASK) else "CLS_AGNOSTIC_BBOX_REG"
        if len(self.classes) == 1 and expected.background == 0:  # the two layouts look alike: the config tells
            return f"{key}: true" not in self.metadata.get("config", "")
        return rows != expected.per_class

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
        novel: a model of the novel classes, whose rows they start from; None for random rows, N(0, 0.01), of unit norm
            where they are prototypes of a cosine classifier.
        classifier: the head of the next stage, default the base model's. Rows of a linear model may become cosine
            (they serve as prototypes, the bias is dropped), not the other way round.
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
    for name in layout().keys() & model.keys():
        if base.class_specific(name):
            unit = classifier == "cosine" and name == BOX + "cls_score.weight"
            model[name] = _rebuild(name, classes, sources, model[name], base.per_class(name), seed, unit)
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
    if classifier != "linear":
        return
    for what, source in (("base", base), ("novel", novel)):
        if source is not None and source.classifier == "cosine":
            raise CheckpointError(
                f"the head of {source.path} is cosine and has no bias, but MODEL.ROI_BOX_HEAD.CLASSIFIER asks for "
                f"linear: use cosine, or a {what} model with a linear head."
            )


def _rebuild(
    name: str, classes: Sequence[str], sources: list[Source], like: Tensor, per_class: int, seed: int, unit: bool
) -> Tensor:
    """Tensor ``name`` for ``classes``: each class from the first source that has it, else random, of norm 1 if
    ``unit``."""
    expected = layout()[name]
    std = expected.std if sources or expected.alone is None else expected.alone

    def random_rows(count: int, cls: str) -> Tensor:
        rows = _random_rows(count, std, like, seed, name, cls)
        return rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True) if unit else rows

    parts = []
    for cls in classes:
        source = next((source for source in sources if cls in source.classes), None)
        parts.append(random_rows(per_class, cls) if source is None else _checked_rows(source, name, cls, like))
    if expected.background and sources:
        parts.append(sources[0].model[name][-1:])
    elif expected.background:
        parts.append(random_rows(1, "(background)"))
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


def save(checkpoint: dict[str, Any], path: str) -> None:
    """Write the result of ``operate``, atomically."""
    with atomic_write(path, "wb") as file:
        torch.save(checkpoint, file)
