"""Answers that stand in a file: a person, a remote service, a table of somebody else's model.

The file is JSON:

    {"cost": 5e9, "milliseconds": 2000, "classes": ["crow", "owl"],
     "answers": {"birds/0001.jpg": "crow", "birds/0002.jpg": [0.3, 0.7]}}

``cost`` is in the unit of the other models (multiply-adds beside networks), ``milliseconds`` (0 if left out) is what an
answer takes, ``classes`` (those of the data set if left out) says what probabilities count. An image is named by its
file name, with as many folders as tell it from others, or by its "image_id". In place of all answers ``"labels"``
stands for somebody who is always right, as the driver of Table 4.3 of Wang 2020 is taken to be.
"""

from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from dyn_d2.data.fingerprint import file_hash
from dyn_d2.utils.errors import UserError
from dyn_d2.utils.own_files import is_number, read_json_of

from .execution import IDKCascadeModel
from .table import as_probabilities

PREFIX = "answers:"
ALWAYS_RIGHT = "labels"


class FiledAnswers(IDKCascadeModel):
    """A member of an IDK cascade whose answers were given before."""

    def __init__(self, path: str, name: str = "") -> None:
        """
        Args:
            path: of the file.

        Raises:
            FileNotFoundError: it is not there.
            UserError: it is not as this module says.
        """
        data = _parsed(path)
        super().__init__(name or Path(path).stem, self._answer, _number(path, data, "cost", least=1e-12))
        self.own_milliseconds = _number(path, data, "milliseconds", 0.0)
        self.path, self.weights = path, f"{PREFIX}{path}"
        self._hash = file_hash(path)
        self.classes = [str(each) for each in data.get("classes", ())]
        self._given: dict[str, Any] | str = data["answers"]

    def weights_hash(self) -> str:
        return self._hash

    def fit_classes(self, dataset: str, names: Sequence[str]) -> None:
        self.classes = self.classes or list(names)
        super().fit_classes(dataset, names)

    def check_images(self, records: Sequence[dict[str, Any]]) -> None:
        """
        Raises:
            UserError: an answer is missing, or is none.
        """
        self._answer(records)

    def _answer(self, records: Sequence[dict[str, Any]]) -> np.ndarray:
        """(n, k) probabilities."""
        if not self.classes:
            raise UserError(f'{self.path}: "classes" is missing, and the data set names none: give them there.')
        return np.stack([self._probabilities(record) for record in records])

    def _probabilities(self, record: dict[str, Any]) -> np.ndarray:
        if self._given == ALWAYS_RIGHT:
            label = int(record["label"])
            return np.eye(len(self.classes))[label if self._own_numbers is None else self._own_numbers[label]]
        keys = [key for key in keys_of(record) if key in self._given]
        if not keys:
            raise UserError(
                f"{self.path} has no answer to {keys_of(record)[-1]}, nor to its file name alone: answer all images of "
                "the data set."
            )
        given = self._given[keys[0]]  # type: ignore[index]
        if isinstance(given, list):
            return self._distribution(given, keys[0])
        if isinstance(given, str) and given in self.classes:
            return np.eye(len(self.classes))[list(self.classes).index(given)]
        if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < len(self.classes):
            return np.eye(len(self.classes))[given]
        raise UserError(
            f"{self.path} answers {keys[0]} with {given!r}: give one of the {len(self.classes)} classes by name "
            f"({', '.join(self.classes[:5])}, ...) or number, or a probability for each."
        )

    def _distribution(self, given: list[Any], key: str) -> np.ndarray:
        if len(given) != len(self.classes):
            raise UserError(f"{self.path} gives {len(given)} probabilities of {key}, not {len(self.classes)}.")
        try:
            return as_probabilities([[float(value) for value in given]], self.name)[0]
        except (TypeError, ValueError) as error:
            raise UserError(f"{self.path} answers {key} with no probabilities: {error}") from error


def keys_of(record: dict[str, Any]) -> list[str]:
    """By what an image may be named: ever more of its path, then its "image_id"."""
    parts = PurePath(record["file_name"]).parts if record.get("file_name") else ()
    keys = ["/".join(parts[-count:]) for count in range(len(parts), 0, -1)]
    return keys + ([str(record["image_id"])] if "image_id" in record else [])


def _parsed(path: str) -> dict[str, Any]:
    try:
        data = read_json_of(path, "answers of a member of an IDK cascade")
    except ValueError as error:
        raise UserError(str(error)) from error
    answers = data.get("answers")
    if not (isinstance(answers, dict) or answers == ALWAYS_RIGHT):
        raise UserError(f'{path}: "answers" has to be a table from images to answers, or "{ALWAYS_RIGHT}".')
    if not isinstance(data.get("classes", []), list):
        raise UserError(f'{path}: "classes" has to be a list of names.')
    return data


def _number(path: str, data: dict[str, Any], key: str, default: float | None = None, least: float = 0.0) -> float:
    value = data.get(key, default)
    if not is_number(value) or not np.isfinite(value) or float(value) < least:  # type: ignore[arg-type]
        raise UserError(f'{path}: "{key}" is {value!r}: give what an answer takes, as a number.')
    return float(value)  # type: ignore[arg-type]
