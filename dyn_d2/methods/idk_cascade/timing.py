"""Milliseconds of models and IDK cascades, measured in turns: a slow minute of the machine hits all of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dyn_d2.utils.measure import turns

from .execution import IDKCascade, IDKCascadeModel, Run, batches, check_count, spent_on, take, timed

KINDS = ("milliseconds", "with_preparing", "cpu_milliseconds")


def runs_alone(model: IDKCascadeModel, images: Any) -> Run:
    """One batch through one model, reported as the run of an IDK cascade of one."""
    inputs, preparing = timed(lambda: model.prepare(images), "cpu")
    answers, taken, processor = spent_on(lambda: model.answer(inputs), model.device)
    check_count(model, answers, len(images))
    seconds = np.array([taken + len(images) * model.own_milliseconds / 1000])
    costs = model.costs(inputs, answers)
    return Run(list(answers), np.zeros(len(images), dtype=np.int64), costs, seconds, 0.0, preparing, processor)


def in_turns(
    runners: Mapping[str, IDKCascade | IDKCascadeModel | Sequence[IDKCascade | IDKCascadeModel]],
    images: Any,
    batch: int,
    rounds: int,
    groups: Sequence[np.ndarray] | None = None,
) -> dict[str, dict[str, float]]:
    """
    Each batch is run by everybody before the next one comes, in alternating order, ``rounds`` times; of a batch the
    least time counts, as other work of the machine can only add to it. The first batch has a round that is not counted.

    Args:
        runners: name -> who runs; a sequence of them takes a group each.
        images: n of them.
        batch: images at a time.
        groups: image numbers; batches are made within each. None: one group of all.

    Returns:
        name -> "milliseconds" an image (models and IDK classifiers), "with_preparing" (decoding and resizing too; an
        IDK cascade does both again for each model that it asks), and "cpu_milliseconds", the processor time of the
        first, all threads together: on a shared machine the steadier number; of no use on a GPU.
    """
    groups = [np.arange(len(images))] if groups is None else list(groups)
    spent, order, warm = {name: np.zeros(3) for name in runners}, list(runners), False
    for number, group in enumerate(groups):
        for rows in (group[part] for part in batches(len(group), batch)):
            part = take(images, rows)
            least = {name: np.full(3, np.inf) for name in runners}
            for _, name, counts in turns(order, rounds, 0 if warm else 1):
                runner = runners[name]
                run = _run(runner[number] if isinstance(runner, Sequence) else runner, part)
                own = float(run.seconds.sum()) + run.deciding
                if counts:
                    least[name] = np.minimum(least[name], [own, own + run.preparing, run.processor])
            for name in runners:
                spent[name] += least[name]
            warm = True
            order.reverse()  # with one round, too, nobody is always the first
    count = sum(len(group) for group in groups)
    return {name: dict(zip(KINDS, (1000 * total / count).tolist(), strict=True)) for name, total in spent.items()}


def _run(runner: IDKCascade | IDKCascadeModel, images: Any) -> Run:
    return runner(images) if isinstance(runner, IDKCascade) else runs_alone(runner, images)
