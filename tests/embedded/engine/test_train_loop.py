"""The loop, its hooks and what a checkpoint keeps of them, on a model of one weight."""

import itertools

import pytest
import torch
from torch import nn

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import BestCheckpointer, EvalHook, HookBase, LRScheduler, PeriodicCheckpointer, SimpleTrainer
from detectron2.engine.hooks import CallbackHook, IterationTimer, PeriodicWriter
from detectron2.utils.events import EventWriter, get_event_storage


class _Squares(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(4.0))

    def forward(self, x):
        return {"loss_a": (self.weight * x) ** 2, "loss_b": self.weight * 0.0}


def _trainer(data=None) -> SimpleTrainer:
    model = _Squares()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return SimpleTrainer(model, data if data is not None else itertools.repeat(1.0), optimizer)


class _Recorder(HookBase):
    def __init__(self):
        self.calls = []

    def __getattribute__(self, name):
        if name in ("before_train", "after_train", "before_step", "after_backward", "after_step"):
            return lambda: self.calls.append((name, self.trainer.iter))
        return super().__getattribute__(name)


def test_order_of_hooks_and_final_iteration():
    trainer, recorder = _trainer(), _Recorder()
    trainer.register_hooks([None, recorder])
    trainer.train(3, 5)
    step = ("before_step", "after_backward", "after_step")
    expected = [("before_train", 3), *((n, 3) for n in step), *((n, 4) for n in step), ("after_train", 5)]
    assert recorder.calls == expected


def test_losses_are_stored_and_gradients_followed():
    trainer = _trainer()
    seen = []
    trainer.register_hooks([CallbackHook(after_step=lambda t: seen.append(t.storage.latest()["loss_a"][0]))])
    trainer.train(0, 3)
    weight, velocity, expected = 4.0, 0.0, []
    for _ in range(3):
        expected.append(weight**2)
        velocity = 0.9 * velocity + 2 * weight
        weight -= 0.1 * velocity
    assert seen == pytest.approx(expected, rel=1e-5)
    assert trainer.model.weight.item() == pytest.approx(weight, rel=1e-5)
    assert trainer.storage.latest()["total_loss"][0] == pytest.approx(expected[-1])


def test_after_train_runs_when_a_step_fails():
    trainer, recorder = _trainer(data=iter([1.0])), _Recorder()
    trainer.register_hooks([recorder])
    with pytest.raises(StopIteration):
        trainer.train(0, 5)
    assert recorder.calls[-1] == ("after_train", 1)


def test_nan_loss_stops():
    trainer = _trainer(data=itertools.chain([1.0], itertools.repeat(float("nan"))))
    with pytest.raises(FloatingPointError, match="iteration"):
        trainer.train(0, 5)


def test_schedule_and_optimizer_go_through_a_checkpoint(tmp_path):
    def make():
        trainer = _trainer()
        trainer.scheduler = torch.optim.lr_scheduler.StepLR(trainer.optimizer, 2, gamma=0.5)
        checkpointer = DetectionCheckpointer(trainer.model, str(tmp_path), trainer=trainer)
        trainer.register_hooks([LRScheduler(), PeriodicCheckpointer(checkpointer, 3)])
        return trainer, checkpointer

    whole, _ = make()
    whole.train(0, 7)
    for file in tmp_path.iterdir():
        file.unlink()
    first, _ = make()
    first.train(0, 3)
    second, checkpointer = make()
    checkpointer.resume_or_load("", resume=True)
    second.train(second.iter + 1, 7)
    assert second.model.weight.item() == whole.model.weight.item()
    assert second.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"] == 0.1 * 0.5**3


def test_evaluation_and_best_checkpoint(tmp_path):
    trainer = _trainer()
    values = iter([0.5, 0.9, 0.7])
    checkpointer = DetectionCheckpointer(trainer.model, str(tmp_path))
    trainer.register_hooks(
        [EvalHook(2, lambda: {"bbox": {"AP": next(values)}}), BestCheckpointer(2, checkpointer, "bbox/AP", "max")]
    )
    trainer.train(0, 6)
    assert torch.load(tmp_path / "model_best.pth", weights_only=True)["iteration"] == 3
    assert next(values, None) is None


def test_evaluation_that_gives_no_numbers_is_an_error():
    trainer = _trainer()
    trainer.register_hooks([EvalHook(0, lambda: {"bbox": {"AP": "high"}})])
    with pytest.raises(ValueError, match="bbox/AP"):
        trainer.train(0, 1)


def test_writers_write_on_time_and_close():
    class Writer(EventWriter):
        def __init__(self):
            self.iterations, self.closed = [], False

        def write(self):
            self.iterations.append(get_event_storage().iter)

        def close(self):
            self.closed = True

    trainer, writer = _trainer(), Writer()
    trainer.register_hooks([IterationTimer(warmup_iter=1), PeriodicWriter([writer], period=2)])
    trainer.train(0, 5)
    assert writer.iterations == [1, 3, 4, 5] and writer.closed
    assert trainer.storage.latest()["time"][0] >= 0


def test_model_left_in_eval_mode_is_an_error():
    trainer = _trainer()
    trainer.register_hooks([CallbackHook(before_step=lambda t: t.model.eval())])
    with pytest.raises((RuntimeError, AssertionError), match="eval mode"):
        trainer.train(0, 1)


def test_data_loader_can_be_replaced():
    trainer = _trainer()
    trainer.register_hooks([CallbackHook(before_step=lambda t: t.reset_data_loader(lambda: itertools.repeat(0.0)))])
    trainer.train(0, 1)
    assert trainer.storage.latest()["loss_a"][0] == 0.0
