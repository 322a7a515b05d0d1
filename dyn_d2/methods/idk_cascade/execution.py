"""An IDK cascade that runs: only the images that a model does not know reach the next one."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dyn_d2.data.fingerprint import Fingerprint
from dyn_d2.utils.measure import time_call

from .outcome import Outcome, outcome_of_levels
from .rules import Rule
from .table import PredictionTable, as_probabilities


class IDKCascadeModel:
    """A member of an IDK cascade: any callable that answers images with class probabilities, such as a network, a
    remote service or a person.

    Attributes:
        name: for messages and tables.
        device: what its time is taken on, "cpu" or "cuda".
        classifies: whether it answers with class probabilities (else with detections).
        classes: what it knows, in the order of its probabilities; empty where nobody says.
        weights: what it was loaded from, as a user names it; "" for a callable.
        trained_on, tested_on: data sets, as far as is known.
        trained_data: fingerprints of those that it was trained on, as its checkpoint keeps them.
        own_milliseconds: an image, that are not taken by a clock here (a person's, a remote service's).
        dtype: of what it computes with, for reports.
    """

    device = "cpu"
    classifies = True
    classes: Sequence[str] = ()
    weights = ""
    trained_on: Sequence[str] = ()
    tested_on: Sequence[str] = ()
    trained_data: Mapping[str, Fingerprint] = {}
    own_milliseconds = 0.0
    dtype = torch.float32
    _own_numbers: np.ndarray | None = None

    def __init__(self, name: str, predict: Callable[[Any], Any], cost: float) -> None:
        """
        Args:
            predict: n images, in the container that the IDK cascade was given (a tensor or array of n rows, else a
                list), -> (n, k) probabilities.
            cost: of an image, in a unit that all models of the IDK cascade share.
        """
        self.name, self._predict, self._cost = name, predict, float(cost)

    def fit_classes(self, dataset: str, names: Sequence[str]) -> None:
        """Hear what the labels of the records of ``dataset`` mean; the model may know more classes.

        Raises:
            ValueError: it lacks one.
        """
        if not self.classes or not names or list(self.classes) == list(names):
            return
        missing = [name for name in names if name not in self.classes]
        if missing:
            raise ValueError(
                f"{self.name} knows {len(self.classes)} classes ({', '.join(self.classes[:5])}, ...), but not "
                f"{', '.join(missing[:5])} of {dataset}: give models that know all {len(names)}."
            )
        self._own_numbers = np.array([list(self.classes).index(name) for name in names])

    def check_images(self, records: Sequence[dict[str, Any]]) -> None:
        """Whether the model can answer these images, before any model runs.

        Raises:
            ValueError: it cannot.
        """

    def weights_hash(self) -> str:
        """Of what its answers depend on; "" where nobody knows."""
        return ""

    def prepare(self, images: Any) -> Any:
        """From images to the input of ``answer``; not part of the time."""
        return images

    def answer(self, inputs: Any) -> Sequence[Any]:
        """n answers."""
        return self._predict(inputs)

    def costs(self, inputs: Any, answers: Sequence[Any]) -> np.ndarray:
        """(n,) what the answers cost."""
        return np.full(len(answers), self._cost)

    def losses(self, records: Sequence[dict[str, Any]], answers: Sequence[Any]) -> np.ndarray:
        """(n,) in [0, 1]: the zero-one losses of class probabilities.

        Args:
            records: with the true class number under "label".
        """
        labels = np.array([int(record["label"]) for record in records])
        labels = labels if self._own_numbers is None else self._own_numbers[labels]
        return (as_probabilities(answers, self.name).argmax(1) != labels).astype(np.float64)


@dataclass(frozen=True)
class Run:
    """What an IDK cascade did with n images.

    Attributes:
        answers: n final answers.
        level: (n,) which model gave them.
        costs: (n,) what was spent on each image, all models together.
        seconds: (N,) that the models ran; IDK classifiers are in ``deciding``.
        deciding: seconds of all IDK classifiers.
        preparing: seconds of decoding and resizing, which are in neither.
        processor: seconds of processor time of the models and IDK classifiers, all threads together.
    """

    answers: list[Any]
    level: np.ndarray
    costs: np.ndarray
    seconds: np.ndarray
    deciding: float
    preparing: float = 0.0
    processor: float = 0.0

    def __repr__(self) -> str:
        shares = ", ".join(f"{100 * share:.0f} %" for share in _shares(self.level, len(self.seconds)))
        mean = float(self.costs.mean()) if len(self.costs) else 0.0
        took = f"mean cost {mean:.4g}, {self.milliseconds:.1f} ms an image"
        return f"Run({len(self.answers)} images, by model: {shares}, {took})"

    @property
    def milliseconds(self) -> float:
        """Mean of an image, decisions included."""
        return 1000 * (float(self.seconds.sum()) + self.deciding) / max(len(self.answers), 1)


class IDKCascade:
    """N models and M = N - 1 rules (Eq. 4.7, for any N)."""

    def __init__(self, models: Sequence[IDKCascadeModel], rules: Sequence[Rule]) -> None:
        """
        Raises:
            ValueError: another number of rules.
        """
        if len(models) < 2 or len(rules) != len(models) - 1:
            raise ValueError(
                f"{len(models)} models and {len(rules)} IDK classifiers are no IDK cascade: N models need N - 1."
            )
        self.models, self.rules = list(models), list(rules)

    def __call__(self, images: Any) -> Run:
        """One batch.

        Args:
            images: n of them: a tensor or array of n rows, or a list of anything that the models' ``prepare`` takes.

        Raises:
            ValueError: a model gives no distributions, or not one answer an image.
        """
        count = len(images)
        answers: list[Any] = [None] * count
        level, costs = np.zeros(count, dtype=np.int64), np.zeros(count)
        seconds, rows = np.zeros(len(self.models)), np.arange(count)
        deciding = preparing = processor = 0.0
        for number, model in enumerate(self.models):
            if not len(rows):
                break
            inputs, taken = timed(partial(model.prepare, take(images, rows)), "cpu")
            preparing += taken
            found, taken, own = spent_on(partial(model.answer, inputs), model.device)
            processor += own
            check_count(model, found, len(rows))
            seconds[number] = taken + len(rows) * model.own_milliseconds / 1000
            costs[rows] += model.costs(inputs, found)
            for row, answer in zip(rows, found, strict=True):
                answers[row] = answer
            level[rows] = number
            if number < len(self.rules):
                h, taken, own = spent_on(partial(self.rules[number], found), "cpu")
                deciding, processor = deciding + taken, processor + own
                rows = rows[np.asarray(h) > 0.5]
        return Run(answers, level, costs, seconds, deciding, preparing, processor)

    def run(self, images: Any, batch: int = 1) -> Run:
        """Many images, ``batch`` at a time; what remains undecided of a batch goes on at once, not with the next."""
        parts = [self(take(images, rows)) for rows in batches(len(images), batch)]
        return Run(
            [answer for part in parts for answer in part.answers],
            np.concatenate([part.level for part in parts] or [np.zeros(0, dtype=np.int64)]),
            np.concatenate([part.costs for part in parts] or [np.zeros(0)]),
            np.sum([part.seconds for part in parts], 0) if parts else np.zeros(len(self.models)),
            float(sum(part.deciding for part in parts)),
            float(sum(part.preparing for part in parts)),
            float(sum(part.processor for part in parts)),
        )


def _shares(level: np.ndarray, models: int) -> np.ndarray:
    """(N,) the share of the images that each model answered."""
    return np.bincount(level, minlength=models)[:models] / max(len(level), 1)


def take(images: Any, rows: np.ndarray) -> Any:
    """Some of the images, in the same kind of container."""
    if isinstance(images, Tensor):
        return images[torch.from_numpy(rows).to(images.device)]
    return images[rows] if isinstance(images, np.ndarray) else [images[row] for row in rows]


def batches(count: int, batch: int) -> list[np.ndarray]:
    """Row numbers, ``batch`` at a time."""
    return [np.arange(start, min(start + batch, count)) for start in range(0, count, batch)]


def timed(compute: Callable[[], Any], device: str) -> tuple[Any, float]:
    """The result of ``compute`` and its seconds."""
    kept: list[Any] = []
    seconds = time_call(lambda: kept.append(compute()), device)
    return kept[0], seconds


def spent_on(compute: Callable[[], Any], device: str) -> tuple[Any, float, float]:
    """The result of ``compute``, its seconds, and its seconds of processor time, all threads together."""
    before = time.process_time()
    result, seconds = timed(compute, device)
    return result, seconds, time.process_time() - before


def check_count(model: IDKCascadeModel, answers: Sequence[Any], count: int) -> None:
    """
    Raises:
        ValueError: not one answer an image.
    """
    if len(answers) != count:
        raise ValueError(f"{model.name} gave {len(answers)} answers to {count} images.")


@dataclass(frozen=True)
class Alone:
    """A model by itself on n images: its answers, their mean cost and mean milliseconds an image."""

    answers: list[Any]
    cost: float
    milliseconds: float


def run_alone(model: IDKCascadeModel, images: Any, batch: int = 1) -> Alone:
    """Run one model on all images, ``batch`` at a time, after one call that is not timed.

    Raises:
        ValueError: there is no image.
    """
    if not len(images):
        raise ValueError(f"there is no image for {model.name} to answer: the calibration or test set is empty.")
    answers, spent, seconds = [], 0.0, 0.0
    for number, rows in enumerate(batches(len(images), batch)):
        inputs = model.prepare(take(images, rows))
        if number == 0:
            model.answer(inputs)
        found, taken = timed(partial(model.answer, inputs), model.device)
        check_count(model, found, len(rows))
        spent += float(model.costs(inputs, found).sum())
        seconds += taken + len(rows) * model.own_milliseconds / 1000
        answers.extend(found)
    return Alone(answers, spent / len(answers), 1000 * seconds / len(answers))


def collect(
    models: Sequence[IDKCascadeModel],
    images: Any,
    losses: Callable[[IDKCascadeModel, list[Any]], np.ndarray],
    split: str,
    batch: int = 1,
) -> tuple[PredictionTable, np.ndarray]:
    """The table of the models on ``images``, each run once, and the milliseconds (N,) of an image of each.

    Args:
        losses: (n,) of the answers of a model, see :class:`~dyn_d2.methods.idk_cascade.table.PredictionTable`.
        split: of the images.
    """
    alone = [run_alone(model, images, batch) for model in models]
    loss = np.stack([losses(model, part.answers) for model, part in zip(models, alone, strict=True)])
    table = PredictionTable(
        tuple(model.name for model in models), tuple(part.answers for part in alone), loss,
        np.array([part.cost for part in alone]), split,
    )  # fmt: skip
    return table, np.array([part.milliseconds for part in alone])


def realised(run: Run, table: PredictionTable) -> Outcome:
    """What a run gave, with the losses and the last model's cost of a table of the same images."""
    counted = outcome_of_levels(run.level, table.losses, table.costs)
    cost = float(run.costs.mean())
    return Outcome(counted.accuracy, counted.idk_rates, counted.reach, cost, cost / float(table.costs[-1]))
