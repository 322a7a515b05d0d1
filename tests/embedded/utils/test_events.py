"""Storage and writers of a run's numbers."""

import json
import logging

import numpy as np
import pytest
import torch

from detectron2.utils.events import (
    CommonMetricPrinter,
    EventStorage,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
    has_event_storage,
)


def test_the_innermost_storage_is_current():
    assert not has_event_storage()
    with pytest.raises((RuntimeError, AssertionError)):
        get_event_storage()
    with EventStorage() as outer, EventStorage(5) as inner:
        assert get_event_storage() is inner and inner.iter == inner.iteration == 5
        assert outer is not inner
    assert not has_event_storage()


def test_smoothing_is_a_median_over_iterations():
    storage = EventStorage()
    values = np.random.default_rng(0).random(60)
    for value in values:
        storage.put_scalars(noisy=torch.tensor(value), cur_iter=None)
        storage.put_scalar("exact", value, smoothing_hint=False)
        storage.step()
    latest = storage.latest_with_smoothing_hint(20)
    assert latest["noisy"] == (pytest.approx(np.median(values[-20:])), 59)
    assert latest["exact"] == (pytest.approx(values[-1]), 59)
    assert storage.count_samples("noisy", 20) == 20 and storage.count_samples("noisy", 1000) == 60
    assert storage.smoothing_hints() == {"noisy": True, "exact": False}
    with pytest.raises(KeyError, match="absent"):
        storage.history("absent")
    with pytest.raises((ValueError, AssertionError), match="noisy"):
        storage.put_scalar("noisy", 1, smoothing_hint=False)


def test_sparse_scalars_count_by_iteration():
    storage = EventStorage()
    for step in range(0, 100, 10):
        storage.put_scalar("rare", step, cur_iter=step)
    assert storage.count_samples("rare", 20) == 2
    assert storage.latest()["rare"] == (90.0, 90)


def test_name_scope_ends_with_its_block():
    storage = EventStorage()
    with storage.name_scope("rpn/"):
        storage.put_scalar("loss", 1)
    storage.put_scalar("loss", 2)
    assert set(storage.histories()) == {"rpn/loss", "loss"}


def test_json_lines_are_written_once_and_appended(tmp_path):
    file = str(tmp_path / "metrics.json")
    for start in (0, 3):
        writer = JSONWriter(file)
        with EventStorage(start) as storage:
            for _ in range(3):
                storage.put_scalar("a", storage.iter, smoothing_hint=False)
                writer.write()
                writer.write()
                storage.step()
        writer.close()
    lines = [json.loads(line) for line in open(file)]
    assert lines == [{"a": float(i), "iteration": i} for i in range(6)]


def test_json_splits_by_iteration(tmp_path):
    file = str(tmp_path / "metrics.json")
    with EventStorage(4) as storage:
        storage.put_scalar("AP", 30.0, smoothing_hint=False, cur_iter=2)
        storage.put_scalar("loss", 1.0)
        writer = JSONWriter(file)
        writer.write()
        writer.close()
    assert [json.loads(line)["iteration"] for line in open(file)] == [2, 4]


def test_tensorboard_takes_images(tmp_path):
    writer = TensorboardXWriter(str(tmp_path))
    writer.close()
    assert not list(tmp_path.iterdir())
    with EventStorage() as storage:
        storage.put_scalar("loss", 1.0)
        storage.put_image("picture", np.zeros((3, 4, 5), np.uint8))
        writer.write()
        assert not storage._vis_data
    writer.close()
    assert list(tmp_path.iterdir())


def test_printer_shows_progress(caplog):
    logger = logging.getLogger("detectron2.utils.events")
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO, logger.name), EventStorage(9) as storage:
            printer = CommonMetricPrinter(max_iter=20)
            storage.put_scalars(loss_cls=0.25, total_loss=1.5, accuracy=0.5)
            storage.put_scalar("[metric]/x", 3)
            storage.put_scalar("time", 2.0)
            storage.put_scalar("data_time", 0.5)
            storage.put_scalar("lr", 0.001, smoothing_hint=False)
            printer.write()
            storage.iter = 20
            printer.write()
    finally:
        logger.removeHandler(caplog.handler)
    assert len({record.getMessage() for record in caplog.records}) == 1
    message = caplog.records[0].getMessage()
    for part in (
        "eta: 0:00:20",
        "iter: 9",
        "loss_cls: 0.25",
        "total_loss: 1.5",
        "[metric]/x: 3",
        "time: 2.0000",
        "data_time: 0.5000",
        "lr: 0.001",
    ):
        assert part in message
    assert "accuracy" not in message
