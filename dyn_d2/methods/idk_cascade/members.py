"""Members of an IDK cascade as a user names them: "FILE.pth" or "timm:NAME", both with "@PIXELS" at another size (a
checkpoint with ",KEY=VALUE" too), or "answers:FILE"."""

from collections.abc import Sequence

from dyn_d2.gating.reports.route_statistics import run_names

from . import answers, timm_classifiers
from .answers import FiledAnswers
from .execution import IDKCascadeModel
from .networks import NetworkModel, default_name
from .timm_classifiers import TimmClassifier


def is_checkpoint(text: str) -> bool:
    """Whether ``text`` names a checkpoint, and not one of the other kinds."""
    return not text.startswith((timm_classifiers.PREFIX, answers.PREFIX))


def load_member(text: str, dataset: str, name: str = "", opts: Sequence[str] = ()) -> IDKCascadeModel:
    """
    Args:
        text: see above.
        dataset: of the records that it will be given; "" for records that hold an image.
        name: of a checkpoint, in tables.
        opts: ``KEY VALUE ...`` that change the config of a checkpoint.

    Raises:
        FileNotFoundError, CheckpointError: no such checkpoint or file, or it does not carry its config.
        UserError, ValueError: a model of timm that cannot be had, or a file of answers that cannot be read.
    """
    if text.startswith(timm_classifiers.PREFIX):
        return TimmClassifier.of(text)
    if text.startswith(answers.PREFIX):
        return FiledAnswers(text.removeprefix(answers.PREFIX))
    return NetworkModel.load(text, dataset, name, opts)


def load_members(texts: Sequence[str], dataset: str) -> list[IDKCascadeModel]:
    """All of them, with names that tell them apart.

    Raises:
        ValueError: the same one twice; and as of ``load_member``.
    """
    if len(set(texts)) < len(texts):
        raise ValueError("an IDK cascade asks each model once: " + ", ".join(sorted(t for t in texts)))
    checkpoints = [text for text in texts if is_checkpoint(text)]
    short = [default_name(path) for path in checkpoints]
    names = dict(zip(checkpoints, short if len(set(short)) == len(short) else run_names(checkpoints), strict=True))
    return [load_member(text, dataset, names.get(text, "")) for text in texts]
