"""A calibrated IDK cascade in the checkpoint of its first model, under the entry "cascade"."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dyn_d2.checkpoint import CheckpointError, read_checkpoint
from dyn_d2.data.classification import ensure_classes
from dyn_d2.utils.atomic import atomic_write

from . import answers
from .execution import IDKCascade
from .members import is_checkpoint, load_member
from .rules import Rule, rule_from_state
from .sizes import split_checkpoint

ENTRY = "cascade"


@dataclass(frozen=True)
class Member:
    """A model of a stored IDK cascade: its checkpoint or file of answers, relative to the folder of the first one, or
    what else it is named by, and its hash."""

    name: str
    weights: str
    weights_hash: str


def store(weights: str | os.PathLike, members: Sequence[Member], rules: Sequence[Rule], about: dict[str, Any]) -> None:
    """Write an IDK cascade into the checkpoint of its first model, in place of an older one; the rest of it stays.

    Args:
        weights: a .pth file.
        about: how it was calibrated and what is expected of it, as numbers and text.

    Raises:
        CheckpointError: the file is none that can be written to, or cannot be read.
    """
    path = Path(weights)
    if path.suffix != ".pth" or not path.is_file():
        raise CheckpointError(f"{path} cannot carry an IDK cascade: it has to be a .pth file on this machine.")
    data = read_checkpoint(str(path))
    data[ENTRY] = {
        "members": [vars(member).copy() for member in members],
        "rules": [rule.state() for rule in rules],
        "about": about,
    }
    with atomic_write(path, "wb") as file:
        torch.save(data, file)


def read_stored(weights: str | os.PathLike) -> tuple[list[Member], list[Rule], dict[str, Any]]:
    """What ``store`` wrote.

    Raises:
        FileNotFoundError, CheckpointError: no such file, or it carries no IDK cascade, or a broken one.
    """
    entry = read_checkpoint(str(weights)).get(ENTRY)
    if entry is None:
        raise CheckpointError(f"{weights} carries no IDK cascade: calibrate one with dyn-d2 calibrate.")
    try:
        members = [Member(**member) for member in entry["members"]]
        rules = [rule_from_state(state) for state in entry["rules"]]
        if not members or len(rules) != len(members) - 1:
            raise ValueError(f"{len(rules)} IDK classifiers of {len(members)} models")
        if not all(isinstance(value, str) for member in members for value in vars(member).values()):
            raise ValueError("a model is named by something else than text")
        return members, rules, dict(entry["about"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the IDK cascade in {weights} cannot be read ({error}): calibrate it again.") from error


def stored_path(weights: str | os.PathLike, first: str | os.PathLike) -> str:
    """How a later model is stored: its path relative to the folder of the first one; a model of timm by its name."""
    text = str(weights)
    prefix = answers.PREFIX if text.startswith(answers.PREFIX) else ""
    if not prefix and not is_checkpoint(text):
        return text
    return prefix + os.path.relpath(Path(text.removeprefix(prefix)).resolve(), Path(first).resolve().parent)


def found_path(stored: str, first: str | os.PathLike) -> str:
    """The inverse of ``stored_path``."""
    prefix = answers.PREFIX if stored.startswith(answers.PREFIX) else ""
    if not prefix and not is_checkpoint(stored):
        return stored
    return prefix + os.path.normpath(Path(first).resolve().parent / stored.removeprefix(prefix))


def load_idk_cascade(
    weights: str | os.PathLike, dataset: str, opts: Sequence[str] = ()
) -> tuple[IDKCascade, dict[str, Any]]:
    """The IDK cascade that a checkpoint carries, ready to run, and what ``store`` was told about it.

    Args:
        dataset: of the records that it will be given; "" for records that hold an image under "image".
        opts: ``KEY VALUE ...`` that change the config of each model.

    Raises:
        FileNotFoundError: the checkpoint of a later model is not where it was.
        CheckpointError: no IDK cascade, or a model is no longer the one that was calibrated.
    """
    members, rules, about = read_stored(weights)
    first, _ = split_checkpoint(members[0].weights)
    models = []
    for member in members:
        path, (file, how) = found_path(member.weights, weights), split_checkpoint(member.weights)
        if file == first:  # it may have been renamed
            path = f"{weights}@{how}" if how else str(weights)
        model = load_member(path, dataset, member.name, opts)
        if dataset:
            model.fit_classes(dataset, ensure_classes(dataset))
        if model.weights_hash() != member.weights_hash:
            raise CheckpointError(
                f"{path} holds other weights than those that the IDK cascade in {weights} was calibrated with: "
                "calibrate it again."
            )
        models.append(model)
    return IDKCascade(models, rules), about
