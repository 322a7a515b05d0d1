"""The evaluation loop, evaluators in company, and what is done with results."""

import logging
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from small_dataset import SmallDataset, run
from torch import nn
from two_processes import results_of_two

from detectron2.config import get_cfg
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    inference_context,
    inference_on_dataset,
    print_csv_format,
    verify_results,
)
from detectron2.evaluation.testing import flatten_results_dict


class Sum(DatasetEvaluator):
    def __init__(self, name: str = "sum"):
        self.name = name

    def reset(self) -> None:
        self.total = 0.0

    def process(self, inputs: list, outputs: list) -> None:
        assert not torch.is_grad_enabled()
        self.total += float(sum(outputs))

    def evaluate(self) -> dict:
        return {self.name: {"total": self.total}}


class Double(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.modes: list[bool] = []

    def forward(self, batch: list[int]) -> list[torch.Tensor]:
        self.modes.append(self.training)
        return [torch.tensor(2.0 * x) for x in batch]


LOADER = [[1, 2], [3], [4], [5], [6], [7], [8], [9]]


@pytest.mark.parametrize("evaluators", [Sum(), [Sum(), Sum("again")], DatasetEvaluators([Sum()])])
def test_loop_feeds_every_batch_in_eval_mode(evaluators: object) -> None:
    model = Double()
    results = inference_on_dataset(model, LOADER, evaluators)
    assert all(numbers == {"total": 90} for numbers in results.values()) and "sum" in results
    assert model.modes == [False] * len(LOADER) and model.training


def test_loop_without_evaluator_or_module_or_batches() -> None:
    assert inference_on_dataset(Double(), LOADER, None) == {}
    assert inference_on_dataset(lambda batch: batch, LOADER[:1], Sum())["sum"]["total"] == 3


def test_callbacks_are_called_around_each_batch() -> None:
    calls: list[str] = []
    names = ["on_start", "before_inference", "after_inference", "on_end"]
    inference_on_dataset(Double(), LOADER[:2], Sum(), {name: lambda name=name: calls.append(name) for name in names})
    assert calls == [names[0], *names[1:3] * 2, names[3]]


def test_time_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("detectron2.evaluation.evaluator")
    logger.addHandler(caplog.handler)
    logger.setLevel(logging.INFO)
    try:
        inference_on_dataset(Double(), LOADER, Sum())
    finally:
        logger.removeHandler(caplog.handler)
    assert "Start inference on 8 batches" in caplog.text and "Total inference pure compute time" in caplog.text


def test_context_restores_the_mode() -> None:
    for training in (True, False):
        model = Double().train(training)
        with inference_context(model):
            assert not model.training
        assert model.training == training


def test_two_evaluators_may_not_share_a_task() -> None:
    with pytest.raises((ValueError, AssertionError), match="sum"):
        inference_on_dataset(Double(), LOADER, [Sum(), Sum()])


def test_flat_results() -> None:
    assert flatten_results_dict({"bbox": {"AP": 1, "deep": {"x": 2}}, "y": 3}) == {
        "bbox/AP": 1,
        "bbox/deep/x": 2,
        "y": 3,
    }


def test_printed_results_leave_out_single_classes(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("detectron2.evaluation.testing")
    logger.addHandler(caplog.handler)
    logger.setLevel(logging.INFO)
    try:
        print_csv_format(OrderedDict(bbox={"AP": 12.34567, "AP-dog": 5.0, "AP50": float("nan")}))
    finally:
        logger.removeHandler(caplog.handler)
    assert "AP,AP50" in caplog.text and "12.3457,nan" in caplog.text and "dog" not in caplog.text


def test_expected_results() -> None:
    cfg = get_cfg()
    results = {"bbox": {"AP": 30.0, "AP50": float("nan")}}
    assert verify_results(cfg, results)
    cfg.TEST.EXPECTED_RESULTS = [["bbox", "AP", 31.0, 2.0]]
    assert verify_results(cfg, results)
    for row in (["bbox", "AP", 31.0, 0.5], ["bbox", "AP50", 31.0, 100.0], ["bbox", "AP75", 31.0, 100.0]):
        cfg.TEST.EXPECTED_RESULTS = [row]
        with pytest.raises(SystemExit):
            verify_results(cfg, results)


def _evaluate_half(rank: int, folder: Path) -> dict:
    own = folder / str(rank)
    own.mkdir()
    dataset = SmallDataset(own)
    evaluator = COCOEvaluator(dataset.name, use_fast_impl=False)
    return run(evaluator, dataset.inputs[rank::2], dataset.outputs[rank::2])


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path: Path) -> None:
    found = results_of_two(_evaluate_half, tmp_path, tmp_path)
    dataset = SmallDataset(tmp_path)
    alone = run(COCOEvaluator(dataset.name, use_fast_impl=False), dataset.inputs, dataset.outputs)
    assert found[1] == {} and found[0].keys() == alone.keys()
    for task in alone:
        np.testing.assert_allclose(list(found[0][task].values()), list(alone[task].values()))
