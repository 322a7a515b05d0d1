"""Executed multiply-adds by hand, tables that survive a file, and the same numbers from several processes."""

import json

import numpy as np
import pytest
import torch
from gated_nets import force
from route_tables import ALWAYS, LINEAR, RES3, RES4, SIZE, black_images, classifier_cfg, route_table
from torch import nn
from two_processes import results_of_two

from dyn_d2.evaluation import build_evaluator, with_evaluators_of_model
from dyn_d2.gating import Route, recording
from dyn_d2.gating.reports.route_page import write_page
from dyn_d2.gating.reports.route_statistics import (
    class_similarity,
    columns,
    executed_percent,
    extremes,
    load_images,
    run_names,
    use_of_elements,
)
from dyn_d2.gating.reports.routes import RouteEvaluator, RouteTable, rest_cost

from detectron2.evaluation import DatasetEvaluators
from detectron2.modeling import build_model

CHOICES = [torch.tensor([True, False, True]), torch.tensor([False, False, True])]
EXECUTED = [ALWAYS + RES3, ALWAYS, ALWAYS + RES3 + RES4]


@pytest.fixture
def model():
    model = build_model(classifier_cfg()).eval()
    force(model.backbone, CHOICES)
    return model


def test_executed_is_what_a_hand_computes(model, tmp_path):
    evaluator = RouteEvaluator("digits_test", str(tmp_path), model=model)
    with torch.no_grad():
        evaluator.process(black_images(), model(black_images()))
    found = evaluator.evaluate()["routes"]
    assert found["GFLOPs"] == pytest.approx(np.mean(EXECUTED) / 1e9, rel=1e-6)
    assert found["GFLOPs_std"] == pytest.approx(np.std(EXECUTED) / 1e9, rel=1e-4)
    assert found["GFLOPs_min"] == pytest.approx(ALWAYS / 1e9, rel=1e-6)
    assert found["GFLOPs_dense"] == pytest.approx((ALWAYS + RES3 + RES4) / 1e9, rel=1e-6)
    assert found["executed_percent"] == pytest.approx(100 * np.mean(EXECUTED) / (ALWAYS + RES3 + RES4), rel=1e-6)
    assert found["rate-res3.0"] == pytest.approx(200 / 3) and found["rate-res4.0"] == pytest.approx(100 / 3)
    assert found["gates_percent"] == 0 and all(isinstance(value, float) for value in found.values())

    summary = json.loads((tmp_path / "routes.json").read_text())
    assert summary["classes"]["1"]["rates"] == {"res3.0": 50.0, "res4.0": 50.0}
    assert summary["classes"]["0"]["rates"] == {"res3.0": 100.0, "res4.0": 0.0}
    assert summary["units"]["res3.0"] == {"kind": "block", "size": 1, "stage": 1, "rate": pytest.approx(200 / 3)}
    assert "pooling" in summary["not_counted"] and "whole_model" not in summary

    table = RouteTable.load(tmp_path / "routes.npz")
    np.testing.assert_allclose(table.executed, EXECUTED, rtol=1e-6)
    assert [table.opened(unit)[:, 0].tolist() for unit in (0, 1)] == [choice.tolist() for choice in CHOICES]
    assert table.labels.tolist() == [0, 1, 1] and table.image_ids.tolist() == ["0", "1", "2"]
    assert table.correct is not None and table.heights.tolist() == [SIZE] * 3


def test_only_gated_models_get_it(model):
    cfg = classifier_cfg()
    own = build_evaluator(cfg, "digits_test")
    assert isinstance(with_evaluators_of_model(own, cfg, model, "digits_test"), DatasetEvaluators)
    plain = nn.Module()
    plain.backbone = nn.Conv2d(3, 8, 3)
    assert with_evaluators_of_model(own, cfg, plain, "digits_test") is own


def _route(number: int) -> Route:
    opened = {"res2.1": np.array([number % 2 == 0]), "res2.2": np.arange(11) < number}
    return Route(opened, 200.0, 50.0 + number, 60.0 + number, 1.0)


def _batches(sizes=(2, 3, 2)):
    """Inputs and outputs of batches; every image has another route."""
    numbers = iter(range(sum(sizes)))
    inputs, outputs = [], []
    for size in sizes:
        own = [next(numbers) for _ in range(size)]
        inputs.append([{"image_id": n, "label": n % 3} for n in own])
        outputs.append([{"scores": torch.eye(3)[n % 2], "route": _route(n)} for n in own])
    return inputs, outputs


def _evaluate_half(rank: int, folder: str, inputs: list, outputs: list) -> dict:
    """Process 0 has two batches, process 1 the third."""
    evaluator = RouteEvaluator("digits_test", folder)
    for number in ((0, 1), (2,))[rank]:
        evaluator.process(inputs[number], outputs[number])
    return evaluator.evaluate()


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(tmp_path):
    inputs, outputs = _batches()
    alone = RouteEvaluator("digits_test", str(tmp_path / "alone"))
    for given, output in zip(inputs, outputs, strict=True):
        alone.process(given, output)
    expected = alone.evaluate()
    results = results_of_two(_evaluate_half, tmp_path, str(tmp_path), inputs, outputs)
    assert results == [expected, {}]
    one, two = RouteTable.load(tmp_path / "alone" / "routes.npz"), RouteTable.load(tmp_path / "routes.npz")
    for name, value in vars(one).items():
        np.testing.assert_array_equal(getattr(two, name), value)
    assert one.opened(1).sum(1).tolist() == list(range(7))
    assert one.correct.tolist() == [n % 3 == n % 2 for n in range(7)]


def test_without_images_labels_or_routes(tmp_path):
    evaluator = RouteEvaluator("digits_test", str(tmp_path))
    assert evaluator.evaluate() == {"routes": {}} and not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="set MODEL.META_ARCHITECTURE to DynamicRCNN"):
        evaluator.process([{"image_id": 0}], [{"scores": torch.ones(3)}])
    evaluator.process([], [])
    evaluator.process([{"image_id": 0, "file_name": "a.jpg"}], [{"instances": None, "route": _route(3)}])
    assert evaluator.evaluate()["routes"]["GFLOPs"] == 53 / 1e9
    table = RouteTable.load(tmp_path / "routes.npz")
    assert table.correct is None and table.members() == {} and table.file_names.tolist() == ["a.jpg"]


def test_unreadable_files_say_what_they_are_not(tmp_path):
    with pytest.raises(FileNotFoundError, match="evaluate a gated model"):
        RouteTable.load(tmp_path / "routes.npz")
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "other.npz", bits=np.zeros(3))
    np.savez(tmp_path / "pickle.npz", dataset=np.array([object()]))
    for name in ("text", "other", "pickle"):
        with pytest.raises(ValueError, match="is no file of routes"):
            RouteTable.load(tmp_path / f"{name}.npz")


@pytest.mark.parametrize("spoil", [
    {"labels": np.zeros(1, int)}, {"bits": np.zeros((2, 9), np.uint8)}, {"executed": np.array([1.0, np.nan])},
    {"unit_sizes": np.array(["a", "b"])}, {"labels": np.array([0.5, 1.0])}, {"format": np.array("one")},
    {"dense": None},
], ids=lambda spoil: next(iter(spoil)))  # fmt: skip
def test_tables_whose_parts_do_not_fit_are_named(tmp_path, spoil):
    path = tmp_path / "routes.npz"
    route_table({"res2.0": 1, "res3.0": 9}, images=2, classes=2).save(path)
    RouteTable.load(path)
    with np.load(path) as file:
        arrays = {**file, **spoil}
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    with pytest.raises(ValueError, match="routes.npz is no file of routes: "):
        RouteTable.load(path)


@pytest.mark.parametrize("keep", [0, 1, 30, 0.5, 0.9, 0.99])
def test_a_table_that_is_cut_off_is_named(tmp_path, keep):
    path = tmp_path / "routes.npz"
    route_table({"res2.0": 1, "res3.0": 9}, images=2, classes=2).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match="routes.npz is no file of routes"):
        RouteTable.load(path)


def test_names_of_classes_do_not_blank_the_page(tmp_path):
    """`<!--<script>` in a script element hides everything up to its end, that of the page's own script included."""
    table = route_table({"res2.0": 1, "res3.0": 9}, images=2, classes=2)
    table.class_names = np.array(["<!--<script>", "</script><b>"])
    text = write_page({"<!--": table}, tmp_path / "page.html").read_text()
    data = text.partition('id="data">')[2].partition("</script>")[0]
    assert "<" not in data
    assert [found["name"] for found in json.loads(data)["runs"][0]["classes"]] == ["<!--<script>", "</script><b>"]


class _Segmentor(nn.Module):
    """A gated backbone with a head of 64 * 2 * 9 multiply-adds a position."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Conv2d(64, 2, 3, padding=1)

    device = torch.device("cpu")

    def forward(self, inputs):
        with recording() as trace:
            self.head(self.backbone(torch.stack([record["image"].float() for record in inputs]))["res4"])
        return [{"route": route} for route in trace.routes()]


def test_cost_outside_of_the_backbone_is_measured(model, tmp_path):
    head = 64 * 2 * 9 * 4
    force(model.backbone, [torch.tensor([True]), torch.tensor([False])])
    segmentor = _Segmentor(model.backbone).eval()
    before = torch.get_rng_state()
    assert rest_cost(segmentor, black_images()[:1]) == head
    assert torch.equal(torch.get_rng_state(), before)
    evaluator = RouteEvaluator("digits_test", str(tmp_path), model=segmentor)
    for record in black_images():
        with torch.no_grad():
            evaluator.process([record], segmentor([record]))
    found = evaluator.evaluate()["routes"]
    backbone = ALWAYS - LINEAR
    assert found["GFLOPs"] == pytest.approx((backbone + RES3) / 1e9, rel=1e-6)
    assert found["GFLOPs_whole_model"] == pytest.approx((backbone + RES3 + head) / 1e9, rel=1e-6)
    assert found["GFLOPs_whole_model_dense"] == pytest.approx((backbone + RES3 + RES4 + head) / 1e9, rel=1e-6)


# ------------------------------------------------------------------------------------------- what pictures are made of


def test_extremes_are_the_ends_and_never_overlap():
    table = route_table({"res2.0": 1, "res2.1": 1, "res3.0": 4})
    percent = executed_percent(table)
    for name, (easy, hard) in extremes(table, 3).items():
        own = percent[table.members()[name]]
        assert sorted(percent[easy]) == sorted(own)[:3] and sorted(percent[hard]) == sorted(own)[-3:]
        assert (np.diff(percent[easy]) >= 0).all() and (np.diff(percent[hard]) <= 0).all()
    for easy, hard in extremes(table, 999).values():
        assert len(easy) == len(hard) == 5 and not set(easy) & set(hard)
    alone = route_table({"res2.0": 1}, images=1, classes=1)
    assert [len(side) for side in extremes(alone, 4)["number 0"]] == [1, 0]


def test_columns_show_groups_one_by_one_and_channels_by_their_mean():
    table = route_table({"res2.0": 1, "res2.1": 3, "res3.0": 20})
    names, values = columns(table)
    assert names == ["res2.0", "res2.1 group 1", "res2.1 group 2", "res2.1 group 3", "res3.0"]
    np.testing.assert_array_equal(values[:, 1:4], table.opened(1))
    np.testing.assert_allclose(values[:, 4], table.opened(2).mean(1))
    np.testing.assert_allclose(use_of_elements(table).sum(1), 1)


def test_similarity_of_classes():
    table = route_table({"res2.0": 8}, images=4, classes=4)
    table.bits[:, 0] = [0b11110000, 0b11110000, 0b00001111, 0b10101010]
    similarity = class_similarity(table)
    np.testing.assert_allclose(similarity, similarity.T)
    assert similarity[0, 1] == pytest.approx(1) and similarity[0, 2] < 0
    assert np.diag(similarity).tolist() == [1, 1, 1, 1]


def test_names_are_as_short_as_they_can_be():
    assert run_names(["/x/sp/inference/routes.npz", "/x/hrl/inference/routes.npz"]) == ["sp", "hrl"]
    assert run_names(["/x/a/run/inference/routes.npz", "/x/b/run/model_final.pth"]) == ["a/run", "b/run"]
    assert run_names(["/x/a/model_0099.pth", "/x/a/model_0199.pth"]) == ["a/model_0099", "a/model_0199"]


def test_images_come_from_the_data_set_or_their_absence_is_told():
    table = route_table({"res2.0": 1})
    images, problem = load_images(table, [0, 7])
    assert not problem and {image.shape for image in images.values()} == {(8, 8, 3)}
    table = route_table({"res2.0": 1}, dataset="not_registered")
    images, problem = load_images(table, [0])
    assert not images and "not_registered" in problem
