"""Images that are run with the gate embeddings of others (Fig. 3.4 of DeepMoE)."""

import json

import pytest
import torch
from route_tables import classifier_cfg

from dyn_d2.checkpoint import DynCheckpointer, describe
from dyn_d2.gating.cli.shuffle_embeddings import chosen, main
from dyn_d2.gating.reports.embedding_shuffle import accuracy_with, embeddings_of, policy_of, shuffled_accuracies
from dyn_d2.utils.errors import UserError

from detectron2.modeling import build_model


@pytest.fixture
def model():
    torch.manual_seed(0)
    cfg = classifier_cfg("deepmoe")
    cfg.MODEL.GATED.UNIT = "channel"
    built = build_model(cfg).eval()
    for head in built.backbone.policy.heads:  # gates that differ from image to image
        torch.nn.init.normal_(head.weight)
    built.linear.weight.data *= 40
    built.cfg_of_test = cfg
    return built


def _inputs(count: int, label: int = 3):
    return [{"image": torch.randint(0, 255, (3, 8, 8), dtype=torch.uint8), "label": label} for _ in range(count)]


def test_with_its_own_embedding_an_image_is_answered_as_always(model):
    inputs = _inputs(7)
    embeddings = embeddings_of(model, inputs, batch=3)
    with torch.no_grad():
        plain = [int(output["scores"].argmax()) for output in model(inputs)]
        policy = policy_of(model)
        whole = policy.begin(model.preprocess_image(inputs).tensor, None)
    assert torch.allclose(embeddings, whole, atol=1e-5)
    for answer in range(10):
        labelled = [{**entry, "label": answer} for entry in inputs]
        assert accuracy_with(model, labelled, embeddings, batch=4) == pytest.approx(plain.count(answer) / 7)


def test_embeddings_of_others_are_those_that_run(model):
    ours, theirs = _inputs(5), _inputs(1, label=6)
    pool = embeddings_of(model, theirs)
    expected = accuracy_with(model, ours, pool.repeat(5, 1))
    found = shuffled_accuracies(model, {3: ours, 6: theirs}, 3, [6], repeats=2)
    assert found[6] == pytest.approx(expected) and set(found) == {3, 6}
    assert "begin" not in vars(policy_of(model))


def test_groups_are_the_category_and_the_rest():
    groups = chosen(4, [0, 0, 0, 1, 1, 1, 1], 7, 2)
    assert set(groups) == {"in group", "out of group"} and set(groups["in group"]) < {3, 5, 6}
    assert set(groups["out of group"]) < {0, 1, 2} and groups == chosen(4, [0, 0, 0, 1, 1, 1, 1], 7, 2)
    assert list(chosen(4, None, 7, 9)) == ["other classes"] and len(chosen(4, None, 7, 9)["other classes"]) == 6


def test_command(model, tmp_path, capsys):
    cfg = model.cfg_of_test
    DynCheckpointer(model, str(tmp_path), metadata=describe(cfg, model)).save("model_final")
    options = ["--weights", str(tmp_path / "model_final.pth"), "--dataset", "digits_test", "--output", str(tmp_path)]
    sizes = ["--others", "2", "--repeats", "2", "--limit", "4"]
    assert main([*options, "--class", "3", *sizes]) == 0
    record = json.loads((tmp_path / "shuffle.json").read_text())
    assert record["images"] == 4 and len(record["groups"]["other classes"]) == 2
    assert "own embedding" in capsys.readouterr().out and (tmp_path / "shuffle.png").stat().st_size > 3000
    with pytest.raises(ValueError, match="no class 'crow'"):
        main([*options, "--class", "crow"])
    with pytest.raises(UserError, match="MODEL.POLICY.NAME deepmoe"):
        policy_of(build_model(classifier_cfg("all_open")))
