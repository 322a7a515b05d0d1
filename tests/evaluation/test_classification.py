"""Top-1 and top-5, against counting by hand."""

import json

import numpy as np
import pytest
import torch

from dyn_d2.data.few_shot.sources import forget
from dyn_d2.evaluation import build_evaluator
from dyn_d2.evaluation.classification import ClassificationEvaluator, classification_metrics

from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.utils import comm


@pytest.fixture
def seven():
    MetadataCatalog.get("seven").set(evaluator_type="classification", thing_classes=list("abcdefg"))
    yield "seven"
    forget("seven")


def feed(evaluator: ClassificationEvaluator, scores: torch.Tensor, labels: list[int], first: int = 0) -> None:
    inputs = [{"image_id": first + i, "label": label} for i, label in enumerate(labels)]
    evaluator.process(inputs, [{"scores": row} for row in scores])


def test_against_sorting(seven, tmp_path) -> None:
    scores, labels = torch.rand(40, 7).softmax(1), torch.randint(0, 6, (40,)).tolist()  # no image of class g
    evaluator = build_evaluator(get_cfg(), seven, str(tmp_path))
    feed(evaluator, scores[:25], labels[:25])
    feed(evaluator, scores[25:], labels[25:], first=25)
    evaluator.process([], [])
    result = evaluator.evaluate()["classification"]
    ranks = [sorted(range(7), key=lambda k, row=row: -row[k]).index(y) for row, y in zip(scores, labels, strict=True)]
    assert result["top1_accuracy"] == pytest.approx(100 * np.mean([rank == 0 for rank in ranks]))
    assert result["top5_accuracy"] == pytest.approx(100 * np.mean([rank < 5 for rank in ranks]))
    assert result["top1_error"] == pytest.approx(100 - result["top1_accuracy"])
    assert result["top5_error"] == pytest.approx(100 - result["top5_accuracy"])
    of_b = [rank == 0 for rank, label in zip(ranks, labels, strict=True) if label == 1]
    assert result["accuracy-b"] == pytest.approx(100 * np.mean(of_b)) and "accuracy-g" not in result
    rows = json.loads((tmp_path / "seven_predictions.json").read_text())
    assert len(rows) == 40 and rows[0]["classes"][0] == int(scores[0].argmax()) and len(rows[0]["scores"]) == 5


def test_reset_forgets(seven) -> None:
    evaluator = ClassificationEvaluator(seven)
    feed(evaluator, torch.eye(7), [6, 5, 4, 3, 2, 1, 0])
    evaluator.reset()
    feed(evaluator, torch.eye(7), list(range(7)))
    assert evaluator.evaluate()["classification"]["top1_error"] == 0
    evaluator.reset()
    with pytest.raises(ValueError, match="nothing was evaluated"):
        evaluator.evaluate()


def test_processes_are_put_together(seven, monkeypatch) -> None:
    evaluators = [ClassificationEvaluator(seven) for _ in range(2)]
    feed(evaluators[0], torch.eye(7)[:3], [0, 1, 2])
    feed(evaluators[1], torch.eye(7)[:1], [6], first=3)
    other = evaluators[1]._rows
    monkeypatch.setattr(comm, "gather", lambda rows: [rows, other])
    assert evaluators[0].evaluate()["classification"]["top1_accuracy"] == 75
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert evaluators[1].evaluate() is None


def test_few_classes_have_no_top5() -> None:
    metrics = classification_metrics(np.array([0, 1, 1]), np.array([[0, 1], [0, 1], [1, 0]]), ["no", "yes"])
    assert "top5_error" not in metrics and metrics["top1_accuracy"] == pytest.approx(200 / 3)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({}, "gives none for image 4: use MODEL.META_ARCHITECTURE ImageClassifier"),
        ({"scores": torch.rand(3)}, r"needs 7 scores an image, the model gives \(3,\)"),
        ({"scores": torch.full((7,), float("nan"))}, "not finite"),
    ],
)
def test_outputs_that_are_no_scores(seven, output, message) -> None:
    with pytest.raises(ValueError, match=message):
        ClassificationEvaluator(seven).process([{"image_id": 4, "label": 0}], [output])
