"""What models say about themselves."""

from types import SimpleNamespace

import pytest
from torch import nn

from dyn_d2.modeling.answers import any_score, head_classes, label_maps, label_set_problems, open_for_images


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.roi_heads = nn.Module()
        self.roi_heads.box_predictor = nn.Module()
        self.roi_heads.box_predictor.cls_score = nn.Linear(2, 5)
        self.roi_heads.box_predictor.test_score_thresh = 0.5


class Opened(Detector):
    head_classes = None

    def open_for_images(self, cfg) -> list[str]:
        return cfg.names

    def label_maps(self, inputs, output, classes) -> list:
        return [classes, inputs, output]


def test_models_of_detectron2_are_understood() -> None:
    model = Detector()
    assert head_classes(model) == 4 and head_classes(SimpleNamespace(num_classes=3)) == 3
    assert head_classes(nn.Linear(1, 1)) is None
    assert open_for_images(model, SimpleNamespace(names=["a"])) is None
    assert label_maps(model, {}, {}, "classes") == ["classes"]


def test_a_model_may_know_better() -> None:
    model = Opened()
    assert head_classes(model) is None and open_for_images(model, SimpleNamespace(names=["a"])) == ["a"]
    assert label_maps(model, {"a": 1}, {"b": 2}, "classes") == ["classes", {"a": 1}, {"b": 2}]


def test_thresholds_come_back() -> None:
    predictor = (model := Detector()).roi_heads.box_predictor
    with pytest.raises(RuntimeError), any_score(model):
        assert predictor.test_score_thresh == 0
        raise RuntimeError
    assert predictor.test_score_thresh == 0.5


def test_model_or_head_judges_label_sets() -> None:
    class Head(nn.Module):
        def label_set_problem(self, datasets, one_per_batch) -> str | None:
            return f"{datasets[0]} has no labels." if len(datasets) > 1 else None

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sem_seg_head: nn.Module = Head()

    model = Model()
    assert label_set_problems(model, ["a"], True) == [] and label_set_problems(model, "ab", True) == [
        "a has no labels."
    ]
    model.label_set_problem = lambda datasets, one_per_batch: None if one_per_batch else "no."
    assert label_set_problems(model, ["a", "b"], True) == [] and label_set_problems(model, ["a"], False) == ["no."]
    del model.label_set_problem
    model.sem_seg_head = nn.Identity()
    assert label_set_problems(model, ["a", "b"], True) is None
