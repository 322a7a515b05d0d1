"""What each stage settles: counted by hand on a tiny image."""

import json

import pytest
import torch
from layer_cascade_toy import NAME, SIZE, toy_layer_cascade

from dyn_d2.methods.layer_cascade.evaluator import LayerCascadeEvaluator

from detectron2.data import DatasetCatalog
from detectron2.evaluation.sem_seg_evaluation import load_image_into_numpy_array


def test_counts(tmp_path):
    with toy_layer_cascade(tmp_path):
        evaluator = LayerCascadeEvaluator(NAME, str(tmp_path))
        record = {**DatasetCatalog.get(NAME)[0], "image": torch.zeros(3, SIZE, SIZE)}
        truth = torch.as_tensor(load_image_into_numpy_array(record["sem_seg_file_name"], dtype=int))
        stages = torch.zeros(8, 8, dtype=torch.uint8)
        stages[:2], stages[2:4] = 1, 2
        scores = torch.nn.functional.one_hot(truth, 3).permute(2, 0, 1).float()
        scores[:, :16] = scores[:, :16].roll(1, 0)  # stage 2 is always wrong
        evaluator.process([record], [{"settled_by": stages, "sem_seg": scores}])
        results = evaluator.evaluate()["layer_cascade"]
    assert results == {
        "settled_stage1": 50.0, "settled_stage2": 25.0, "settled_stage3": 25.0,
        "accuracy_stage1": 100.0, "accuracy_stage2": 0.0, "accuracy_stage3": 100.0,
    }  # fmt: skip
    saved = json.loads((tmp_path / f"{NAME}_stages.json").read_text())
    share = float((truth[:32] == 1).sum() / (truth == 1).sum())
    of_class = saved["settled_of_class"]["class 1"]
    assert of_class["stage1"] == pytest.approx(100 * (1 - share)) and sum(of_class.values()) == pytest.approx(100)


def test_other_sizes_and_no_labels(tmp_path):
    with toy_layer_cascade(tmp_path):
        evaluator = LayerCascadeEvaluator(NAME)
        record = {**DatasetCatalog.get(NAME)[1], "image": torch.zeros(3, 20, 20)}  # it went in smaller
        stages = torch.tensor([[0, 0, 2], [0, 0, 2], [2, 2, 2]], dtype=torch.uint8)
        evaluator.process([record], [{"settled_by": stages, "sem_seg": torch.zeros(3, SIZE, SIZE)}])
        assert evaluator.evaluate()["layer_cascade"]["settled_stage1"] == pytest.approx(100 * (52 / 64) ** 2)
        evaluator.reset()
        assert evaluator.evaluate()["layer_cascade"] == {f"settled_stage{i}": 0.0 for i in (1, 2, 3)}
