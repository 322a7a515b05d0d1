"""Many cells (method, split, shots, seed) of the few-shot procedure: each stage is trained once. few_shot_table.py
makes a table of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from dyn_d2.method import few_shot_methods

from .few_shot import plan
from .job_queue import numbers, quiet, run_pending
from .stages import Stage
from .workers import LocalWorkers, Training, Workers


@dataclass(frozen=True)
class Cell:
    """One fine-tuned model. ``method`` is a value of FEW_SHOT.METHOD."""

    method: str
    split: int
    shots: int
    seed: int

    def opts(self) -> list[str]:
        """The cell as KEY VALUE pairs."""
        keys = {"METHOD": self.method, "SPLIT": self.split, "SHOTS": self.shots, "SEED": self.seed}
        return [part for key, value in keys.items() for part in (f"FEW_SHOT.{key}", str(value))]


def check_methods(names: Iterable[str]) -> None:
    """
    Raises:
        ValueError: one of them is no value of FEW_SHOT.METHOD.
    """
    known = few_shot_methods()
    unknown = sorted(set(names) - known.keys())
    if unknown:
        raise ValueError(f"unknown method {', '.join(unknown)}: use {', '.join(known)}.")


def seeds_by_method(text: str, seeds: Sequence[int]) -> dict[str, list[int]]:
    """ "ft_full:0-4,ft" -> seeds of each method: those that it names, else ``seeds``.

    Raises:
        ValueError: an unknown method, or no such seeds.
    """
    parts = [part.partition(":") for part in text.split(",")]
    check_methods(name for name, _, _ in parts)
    return {name: numbers(own) if colon else list(seeds) for name, colon, own in parts}


def cells(
    methods: Sequence[str] | Mapping[str, Sequence[int]],
    splits: Sequence[int],
    shots: Sequence[int],
    seeds: Sequence[int],
) -> list[Cell]:
    """All combinations; seeds vary slowest, so that every row of the table has its first number early.

    Args:
        methods: also method -> its own seeds, beside which ``seeds`` are not looked at.

    Raises:
        ValueError: an unknown method, or nothing of one kind.
    """
    check_methods(methods)
    own = methods if isinstance(methods, Mapping) else dict.fromkeys(methods, seeds)
    wanted = dict.fromkeys(seed for several in own.values() for seed in several)
    for what, values in (
        ("method", list(own)), ("split", splits), ("number of shots", shots), ("seed", list(wanted))
    ):  # fmt: skip
        if not values:
            raise ValueError(f"not a single {what} is given.")
    found = (Cell(m, s, k, seed) for seed, s, m, k in product(wanted, splits, own, shots) if seed in own[m])
    return list(dict.fromkeys(found))


# ------------------------------------------------------------------------------------------------------------- running


def plan_cells(config_file: str, opts: Iterable[str], wanted: Sequence[Cell]) -> dict[Cell, list[Stage]]:
    """The stages of each cell; see ``few_shot.plan`` for the arguments and errors."""
    opts = list(opts)
    with quiet():
        return {cell: plan(config_file, [*opts, *cell.opts()]) for cell in wanted}


def run_cells(
    config_file: str,
    opts: Iterable[str],
    plans: Mapping[Cell, Sequence[Stage]],
    workers: Callable[[], Workers] = LocalWorkers,
    launcher: Iterable[str] = (),
    on_start: Callable[[Stage], None] | None = None,
) -> None:
    """Train what is not trained yet.

    Args:
        config_file, opts: those that the plans were made from.
        launcher: options of ``dyn-d2 train`` such as ``--num-gpus 2``.
        workers, on_start: see ``run_pending``.

    Raises:
        StageError: a training failed; what is finished stays finished.
    """
    opts, launcher = tuple(opts), tuple(launcher)

    def training(stage: Stage, cell: Cell) -> Training:
        return Training(plan, config_file, (*opts, *cell.opts()), stage.folder, launcher)

    run_pending(plans, training, workers, on_start)
