"""Predictor surgery by class name."""

import itertools

import pytest
import torch

from dyn_d2.checkpoint import CheckpointError
from dyn_d2.checkpoint.surgery import BOX, MASK, Source, operate, save

BASE, NOVEL = ["cat", "dog", "bus"], ["owl", "fox"]


def source(
    classes: list[str], head: str = "linear", agnostic: bool = False, masks: bool = False, offset: int = 0
) -> Source:
    """A model in which every row's values say which class it is for."""

    def rows(count: int, *rest: int) -> torch.Tensor:
        numbers = torch.arange(count, dtype=torch.float32) + offset
        return numbers.view(-1, *[1] * len(rest)).expand(count, *rest).clone()

    boxes = 4 if agnostic else 4 * len(classes)
    model = {
        "backbone.weight": torch.randn(3),
        BOX + "cls_score.weight": rows(len(classes) + 1, 5),
        BOX + "bbox_pred.weight": rows(boxes, 5),
        BOX + "bbox_pred.bias": rows(boxes),
    }
    if head == "linear":
        model[BOX + "cls_score.bias"] = rows(len(classes) + 1)
    if masks:
        model |= {MASK + "weight": rows(len(classes), 2, 1, 1), MASK + "bias": rows(len(classes))}
    return Source("base.pth", model, classes, {"classes": classes, "classifier": head})


@pytest.mark.parametrize("order", list(itertools.permutations(BASE + NOVEL))[::17])
def test_rows_follow_names_whatever_the_order(order: tuple[str, ...]) -> None:
    base = source(BASE, masks=True)
    result = operate(base, order, NOVEL)
    model = result["model"]
    for name in BASE:
        old, new = BASE.index(name), order.index(name)
        for key, rows in (
            (BOX + "cls_score.weight", 1),
            (BOX + "cls_score.bias", 1),
            (BOX + "bbox_pred.weight", 4),
            (BOX + "bbox_pred.bias", 4),
            (MASK + "weight", 1),
            (MASK + "bias", 1),
        ):
            moved, original = model[key][new * rows :][:rows], base.model[key][old * rows :][:rows]
            assert torch.equal(moved, original)
    assert torch.equal(model[BOX + "cls_score.weight"][-1], base.model[BOX + "cls_score.weight"][-1])
    assert model[BOX + "cls_score.weight"].shape == (6, 5) and model[BOX + "bbox_pred.weight"].shape == (20, 5)
    assert torch.equal(model["backbone.weight"], base.model["backbone.weight"])
    assert result["dyn_d2"]["classes"] == list(order)
    assert set(result["dyn_d2"]["novel_classes"]) == set(NOVEL)
    assert set(result) == {"model", "dyn_d2"}


def test_random_rows_depend_on_seed_and_name_only() -> None:
    key = BOX + "cls_score.weight"
    one = operate(source(BASE), [*BASE, *NOVEL], NOVEL, seed=1)["model"][key]
    other = operate(source(BASE), [*NOVEL[::-1], *BASE], NOVEL, seed=1)["model"][key]
    assert torch.equal(one[3], other[1]) and torch.equal(one[4], other[0])
    assert not torch.equal(one[3], operate(source(BASE), [*BASE, *NOVEL], NOVEL, seed=2)["model"][key][3])


def test_random_rows_have_the_published_spread() -> None:
    base = source(BASE)
    base.model[BOX + "cls_score.weight"] = torch.zeros(4, 20000)
    rows = operate(base, [*BASE, *NOVEL], NOVEL)["model"][BOX + "cls_score.weight"][3:5]
    assert rows.std().item() == pytest.approx(0.01, rel=0.05) and abs(rows.mean().item()) < 1e-3


def test_novel_rows_and_background_of_the_base_model() -> None:
    base, novel = source(BASE), source(NOVEL[::-1], offset=100)
    model = operate(base, [*NOVEL, *BASE], NOVEL, novel=novel)["model"]
    scores = model[BOX + "cls_score.weight"][:, 0].tolist()
    assert scores == [101, 100, 0, 1, 2, 3]
    assert model[BOX + "bbox_pred.bias"].tolist()[:8] == [104, 105, 106, 107, 100, 101, 102, 103]


def test_class_agnostic_regression_is_kept() -> None:
    base = source(BASE, agnostic=True)
    model = operate(base, [*NOVEL, *BASE], NOVEL)["model"]
    assert torch.equal(model[BOX + "bbox_pred.weight"], base.model[BOX + "bbox_pred.weight"])


def test_one_class_is_told_from_agnostic_by_the_config() -> None:
    one = source(["cat"])
    assert operate(one, ["cat", "owl"], ["owl"])["model"][BOX + "bbox_pred.bias"].shape == (8,)
    one.metadata["config"] = "MODEL:\n  ROI_BOX_HEAD:\n    CLS_AGNOSTIC_BBOX_REG: true\n"
    assert operate(one, ["cat", "owl"], ["owl"])["model"][BOX + "bbox_pred.bias"].shape == (4,)


def test_novel_only_predictor_starts_anew() -> None:
    result = operate(source(BASE), NOVEL, NOVEL)
    weight = result["model"][BOX + "cls_score.weight"]
    assert weight.shape == (3, 5) and weight.abs().max() < 0.1
    assert result["dyn_d2"]["base_classes"] == []


def test_linear_base_becomes_cosine_without_bias() -> None:
    result = operate(source(BASE), [*BASE, *NOVEL], NOVEL, classifier="cosine")
    assert BOX + "cls_score.bias" not in result["model"] and result["dyn_d2"]["classifier"] == "cosine"


def test_heads_that_do_not_fit_are_both_named() -> None:
    with pytest.raises(CheckpointError, match="is cosine.*asks for linear"):
        operate(source(BASE, "cosine"), [*BASE, *NOVEL], NOVEL, classifier="linear")
    with pytest.raises(CheckpointError, match="is cosine.*asks for linear.*a novel model with a linear head"):
        operate(source(BASE), [*BASE, *NOVEL], NOVEL, novel=source(NOVEL, "cosine"), classifier="linear")


def test_one_linear_novel_model_serves_linear_and_cosine_heads() -> None:
    base, novel = source(BASE), source(NOVEL, offset=100)
    linear, cosine = (
        operate(base, [*BASE, *NOVEL], NOVEL, novel=novel, classifier=c)["model"] for c in ("linear", "cosine")
    )
    bias, weight = BOX + "cls_score.bias", BOX + "cls_score.weight"
    assert linear[bias].tolist() == [0, 1, 2, 100, 101, 3] and bias not in cosine
    assert torch.equal(linear[weight], cosine[weight]) and cosine[weight][3:5, 0].tolist() == [100, 101]
    mixed = operate(source(BASE, "cosine"), [*BASE, *NOVEL], NOVEL, novel=novel)["model"]
    assert torch.equal(mixed[weight], cosine[weight]) and bias not in mixed


def test_random_prototypes_have_norm_one() -> None:
    weight = BOX + "cls_score.weight"
    base, classes = source(BASE), [*BASE, *NOVEL]
    linear, cosine = (operate(base, classes, NOVEL, classifier=c)["model"] for c in ("linear", "cosine"))
    torch.testing.assert_close(cosine[weight][3:5].norm(dim=1), torch.ones(2))
    torch.testing.assert_close(torch.nn.functional.normalize(linear[weight][3:5]), cosine[weight][3:5])
    assert torch.equal(linear[weight][:3], cosine[weight][:3])


def test_box_regression_starts_as_detectron2_does_where_it_is_alone() -> None:
    base = source(BASE)
    base.model[BOX + "bbox_pred.weight"] = torch.zeros(12, 20000)
    alone = operate(base, NOVEL, NOVEL)["model"][BOX + "bbox_pred.weight"]
    beside = operate(base, [*BASE, *NOVEL], NOVEL)["model"][BOX + "bbox_pred.weight"][12:]
    assert alone.std().item() == pytest.approx(0.001, rel=0.05) and beside.std().item() == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize(
    "classes, novel, message",
    [
        (["cat", "dog", "owl", "fox"], NOVEL, "base model's bus are not wanted"),
        (["cat", "dog", "bus", "owl", "fox", "elk"], NOVEL, "elk are neither in the base model nor novel"),
        (["cat", "dog", "bus", "cat"], ["owl"], "occurs twice"),
        (BASE + ["owl"], ["cat", "owl"], "already has the novel classes cat"),
    ],
)
def test_names_that_do_not_fit_are_listed(classes: list[str], novel: list[str], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        operate(source(BASE), classes, novel)
    assert "cat, dog, bus" in str(caught.value)


def test_novel_model_of_other_classes_is_refused() -> None:
    with pytest.raises(CheckpointError, match="not the novel classes"):
        operate(source(BASE), [*BASE, *NOVEL], NOVEL, novel=source(["owl", "elk"]))


def test_reading(tmp_path) -> None:
    path = str(tmp_path / "m.pth")
    save(operate(source(BASE), [*BASE, *NOVEL], NOVEL), path)
    assert Source.read(path).classes == [*BASE, *NOVEL]
    torch.save({"model": source(BASE).model}, path)
    assert Source.read(path, BASE).classifier == "linear"
    with pytest.raises(CheckpointError, match="does not name its 3 classes"):
        Source.read(path)
    with pytest.raises(CheckpointError, match="rows for 3 classes, but 2 are named"):
        Source.read(path, NOVEL)
    torch.save({"model": {"backbone.weight": torch.zeros(1)}}, path)
    with pytest.raises(CheckpointError, match="Faster or Mask R-CNN"):
        Source.read(path, BASE)
