"""Which training runs when: fakes that leave a file."""

import logging
from pathlib import Path

import pytest
from fake_cells import FakeStage, training_of
from thread_workers import ThreadWorkers

from dyn_d2.engine.job_queue import pending, run_pending
from dyn_d2.engine.stages import StageError
from dyn_d2.engine.workers import Training


class Table:
    """Two base models and what starts from them; ``log`` has the trainings as they began."""

    def __init__(self, folder: Path) -> None:
        self.log: list[str] = []
        one, two = FakeStage(folder / "base1"), FakeStage(folder / "base2")
        novel = FakeStage(folder / "novel1", [one])
        self.plans = {
            "a": [one, novel, FakeStage(folder / "a", [one, novel])],
            "b": [one, FakeStage(folder / "b", [one])],
            "c": [two, FakeStage(folder / "c", [two])],
        }
        self.stages = {stage.folder: stage for stages in self.plans.values() for stage in stages}
        self.opened: list[ThreadWorkers] = []
        self.broken: dict[str, BaseException] = {}

    def train(self, training: Training) -> float:
        stage = self.stages[training.folder]
        self.log.append(stage.folder.name)
        assert all(parent.finished() for parent in stage.parents)
        if stage.folder.name in self.broken:
            raise self.broken[stage.folder.name]
        stage.folder.mkdir()
        (stage.folder / "model").touch()
        return 2.0

    def run(self, jobs: int = 1, **more) -> None:
        def workers() -> ThreadWorkers:
            self.opened.append(ThreadWorkers(jobs, self.train))
            return self.opened[-1]

        run_pending(self.plans, training_of, workers, **more)


@pytest.fixture
def table(tmp_path) -> Table:
    return Table(tmp_path)


def test_base_models_first_and_each_once(table) -> None:
    table.run()
    assert table.log == ["base1", "base2", "novel1", "b", "c", "a"] and not pending(table.plans)
    table.run()
    assert len(table.log) == 6 and len(table.opened) == 1  # no workers for nothing


def test_several_at_a_time_share_the_machine(table) -> None:
    table.run(jobs=3)
    assert sorted(table.log) == ["a", "b", "base1", "base2", "c", "novel1"]
    (workers,) = table.opened
    assert workers.beside[:2] == [2, 2] and max(workers.beside) <= 3


def test_nothing_waits_for_another_branch(table, tmp_path) -> None:
    """What starts from a base model that is there does not wait for other base models."""
    table.stages[tmp_path / "base1"].folder.mkdir()
    (tmp_path / "base1" / "model").touch()
    table.run()
    assert table.log[:2] == ["novel1", "base2"] or table.log[:2] == ["base2", "novel1"]


def test_a_failure_ends_it_and_the_same_call_goes_on(table) -> None:
    table.broken = {"novel1": StageError("novel1 failed")}
    with pytest.raises(StageError, match="novel1 failed"):
        table.run()
    assert table.log == ["base1", "base2", "novel1"] and not table.opened[0].stopped
    table.broken = {}
    table.run()
    assert table.log[3:] == ["novel1", "b", "c", "a"]


def test_an_interruption_ends_what_runs(table) -> None:
    table.broken = {"b": KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        table.run()
    assert table.opened[0].stopped and table.log[-1] == "b"
    table.broken = {}
    table.run()
    assert sorted(table.log[4:]) == ["a", "b", "c"]


def test_a_result_that_is_not_seen(table, monkeypatch) -> None:
    """As of a worker on another machine, whose OUTPUT_DIR is its own."""
    monkeypatch.setattr(table, "train", lambda training: 1.0)
    with pytest.raises(StageError, match="base1 on .* lacks the result .*: OUTPUT_DIR has to be on a storage that all"):
        table.run()


def test_lines_of_progress(table, caplog) -> None:
    caplog.set_level(logging.INFO, "dyn_d2")
    table.run()
    lines = [record.message for record in caplog.records]
    assert lines[:3] == ["3 cells: 6 trainings to do", "training 1 of 6: base1",
                         "1 of 6 trainings done: base1 in 2 s (0.0 min passed)"]  # fmt: skip
    # None of the third kind, that with two trainings before it, has been seen while one is left.
    assert not any("left" in line for line in lines)
    table.run()
    assert caplog.records[-1].message == "all 3 cells are done"


def test_time_left(tmp_path, caplog) -> None:
    table = Table(tmp_path)
    del table.plans["a"]
    table.train = lambda training, train=table.train: 60 * train(training)
    caplog.set_level(logging.INFO, "dyn_d2")
    table.run()
    assert [record.message for record in caplog.records][6::2] == [
        "3 of 4 trainings done: b in 120 s (0.0 min passed, about 2.0 min left)",
        "4 of 4 trainings done: c in 120 s (0.0 min passed)",
    ]
