"""Zero-shot, composition and low-shot scores against counting by hand."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from dyn_d2.config import add_dyn_d2_config
from dyn_d2.evaluation import build_evaluator
from dyn_d2.methods.tafe_net.data import DescribedSet, Part
from dyn_d2.methods.tafe_net.evaluator import (
    DescribedEvaluator,
    average_precision,
    composition_metrics,
    harmonic_mean,
    low_shot_metrics,
    per_class_accuracy,
    top_k_accuracy,
    zero_shot_metrics,
)

from detectron2.config import get_cfg


def made(seen: list[int], candidates: list[int], count: int = 6) -> DescribedSet:
    part = Part(np.zeros((len(seen), 2), np.float32), np.array(seen))
    return DescribedSet("toy", [f"c{i}" for i in range(count)], np.eye(count), {"train": part}, np.array(candidates))


def test_zero_shot_scores_by_hand() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.random((60, 6)), rng.integers(0, 5, 60)  # no image of class 5
    found = zero_shot_metrics(scores, labels, made([0, 1, 2], [0, 1, 2, 3, 4, 5]), [])

    def by_hand(classes, answers):
        accuracies = []
        for number in classes:
            own = [i for i in range(60) if labels[i] == number]
            accuracies.append(np.mean([max(answers, key=lambda c, i=i: scores[i, c]) == number for i in own]))
        return 100 * np.mean(accuracies)

    u, s = by_hand([3, 4], range(6)), by_hand([0, 1, 2], range(6))
    assert found == pytest.approx({"T1": by_hand([3, 4], [3, 4, 5]), "u": u, "s": s, "H": 2 * u * s / (u + s)})
    assert harmonic_mean(0.0, 0.0) == 0.0 and harmonic_mean(36.7, 90.6) == pytest.approx(52.2, abs=0.05)  # AWA2


def test_each_class_counts_the_same() -> None:
    labels = np.array([0] * 98 + [1] * 2)
    assert per_class_accuracy(np.tile([1.0, 0.0], (100, 1)), labels, [0, 1]) == 50.0
    assert np.isnan(per_class_accuracy(np.zeros((0, 2)), np.zeros(0, int), [0, 1]))


def test_composition_scores_by_hand() -> None:
    rng = np.random.default_rng(1)
    scores, labels = rng.normal(size=(40, 6)), rng.choice([3, 4, 5], 40)
    found = composition_metrics(scores, labels, made([0, 1, 2], [3, 4, 5]), [])
    shares = np.exp(scores[:, 3:]) / np.exp(scores[:, 3:]).sum(1, keepdims=True)
    expected = [100 * average_precision_score(labels == c, shares[:, c - 3]) for c in (3, 4, 5)]
    assert found["retrieval_mAP"] == pytest.approx(np.mean(expected))
    right = [shares[i].argmax() == label - 3 for i, label in enumerate(labels)]
    by_class = [np.mean([r for r, label in zip(right, labels, strict=True) if label == c]) for c in (3, 4, 5)]
    assert found["per_class_top1"] == pytest.approx(100 * np.mean(by_class))
    for k in (1, 2, 3):
        hits = [label in sorted((3, 4, 5), key=lambda c, i=i: -scores[i, c])[:k] for i, label in enumerate(labels)]
        assert found[f"top{k}"] == pytest.approx(100 * np.mean(hits))
    assert found["top3"] == 100 and np.isnan(average_precision(scores[:, 0], np.zeros(40, bool)))


def test_low_shot_scores_by_hand() -> None:
    rng = np.random.default_rng(2)
    scores, labels = rng.normal(size=(50, 8)), rng.integers(0, 8, 50)
    found = low_shot_metrics(scores, labels, made([0, 1, 2], list(range(8)), 8), [])
    rank = [(scores[i] > scores[i, labels[i]]).sum() for i in range(50)]
    novel = labels > 2
    for name, own in (("novel", novel), ("base", ~novel), ("all", novel | ~novel)):
        assert found[f"top5-{name}"] == pytest.approx(
            100 * np.mean([r < 5 for r, o in zip(rank, own, strict=True) if o])
        )
        assert found[f"top1-{name}"] == pytest.approx(
            100 * np.mean([r < 1 for r, o in zip(rank, own, strict=True) if o])
        )
    assert top_k_accuracy(scores[:, :3], np.minimum(labels, 2), 5) == 100


def feed(evaluator: DescribedEvaluator, scores: torch.Tensor, labels: list[int]) -> None:
    inputs = [{"image_id": i, "label": label} for i, label in enumerate(labels)]
    evaluator.process(inputs, [{"scores": row} for row in scores])


def test_evaluator(tmp_path) -> None:
    cfg = get_cfg()
    add_dyn_d2_config(cfg)
    cfg.DATASETS.TEST = ("digit_attributes_1_test",)
    (tmp_path / "more.json").write_text(json.dumps({"hash": [1.0] * 20}))
    evaluator = build_evaluator(cfg, "digit_attributes_1_test", str(tmp_path))
    feed(evaluator, torch.eye(10), list(range(10)))
    assert evaluator.evaluate() == {"zero_shot": {"T1": 100.0, "u": 100.0, "s": 100.0, "H": 100.0}}
    rows = json.loads((tmp_path / "digit_attributes_1_test_predictions.json").read_text())
    assert rows[4]["class"] == rows[4]["best"][0] == "4" and len(rows[4]["scores"]) == 5
    cfg.ZERO_SHOT.CLASSES = str(tmp_path / "more.json")
    evaluator = build_evaluator(cfg, "digit_attributes_1_test", str(tmp_path))
    scores = torch.cat([torch.eye(10), torch.zeros(10, 1)], 1)
    scores[9, 10] = 2.0  # a nine is taken for the class that was added
    feed(evaluator, scores, list(range(10)))
    assert evaluator.evaluate()["zero_shot"] == pytest.approx({"T1": 50.0, "u": 50.0, "s": 100.0, "H": 200 / 3})


def test_bad_scores() -> None:
    evaluator = DescribedEvaluator("digit_attributes_1_test", "zero_shot")
    with pytest.raises(ValueError, match="needs 10 scores an image, the model gives .*for image 0"):
        feed(evaluator, torch.zeros(1, 9), [0])
    with pytest.raises(ValueError, match="NaN: the model has diverged"):
        feed(evaluator, torch.full((1, 10), torch.nan), [0])
    with pytest.raises(ValueError, match="nothing was evaluated"):
        evaluator.evaluate()
