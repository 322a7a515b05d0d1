"""Models that nobody trained here: classifiers of timm, and answers that stand in a file."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from timm_nets import saved_weights, timm_cfg

from dyn_d2.data.classification import register_folders
from dyn_d2.methods.idk_cascade import cross_cli, kept_answers, timm_classifiers
from dyn_d2.methods.idk_cascade.answers import FiledAnswers, keys_of
from dyn_d2.methods.idk_cascade.calibration import found_path, stored_path
from dyn_d2.methods.idk_cascade.execution import IDKCascadeModel
from dyn_d2.methods.idk_cascade.members import load_members
from dyn_d2.methods.idk_cascade.networks import NetworkModel
from dyn_d2.methods.idk_cascade.timm_classifiers import TimmClassifier
from dyn_d2.modeling.backbone.timm_models import build_timm_classifier
from dyn_d2.utils.errors import UserError

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

timm = pytest.importorskip("timm")
WNIDS = ("n01440764", "n02102040", "n03000684")  # numbers 0, 217 and 491 of ImageNet
RECORDS = [{"file_name": f"/data/{folder}/{i}.jpg", "label": i % 2, "image_id": 10 + i}
           for i, folder in enumerate("aabb")]  # fmt: skip


@pytest.fixture
def photographs(tmp_path):
    rng = np.random.default_rng(0)
    for wnid in WNIDS:
        (tmp_path / "images" / wnid).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(
                tmp_path / "images" / wnid / f"{i}.png"
            )
    register_folders("toy_photographs", tmp_path / "images")
    yield "toy_photographs"
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.remove("toy_photographs")


def _file(tmp_path, **content) -> str:
    path = tmp_path / "person.json"
    path.write_text(json.dumps({"cost": 9.0, "answers": "labels"} | content))
    return str(path)


def test_a_classifier_of_timm_is_timm_s_own(tmp_path):
    weights = saved_weights("test_resnet", tmp_path)
    built = build_timm_classifier("test_resnet", weights)
    plain = timm.create_model("test_resnet").eval()
    plain.load_state_dict(torch.load(weights))
    images = torch.randn(2, 3, 64, 64)
    assert torch.allclose(built.module(images), plain(images), atol=1e-5)
    assert not any(parameter.requires_grad for parameter in built.module.parameters())


def test_it_knows_imagenet_s_classes_and_judges_by_them(tmp_path, photographs):
    model = TimmClassifier("test_resnet", 64, saved_weights("test_resnet", tmp_path))
    assert model.name == "test_resnet@64" and [model.classes.index(w) for w in WNIDS] == [0, 217, 491]
    model.fit_classes(photographs, list(WNIDS))
    records = DatasetCatalog.get(photographs)
    answers = np.zeros((12, 1000))
    answers[np.arange(12), [0] * 4 + [217] * 4 + [0] * 4] = 1
    assert model.losses(records, answers).tolist() == [0] * 8 + [1] * 4
    inputs = model.prepare(records[:3])
    assert inputs.shape == (3, 3, 64, 64) and inputs.dtype == torch.uint8
    found = np.stack(model.answer(inputs))
    assert found.shape == (3, 1000) and np.allclose(found.sum(1), 1)
    assert (model.costs(inputs, found) > 1e6).all() and len(set(model.costs(inputs, found))) == 1
    with pytest.raises(ValueError, match="but not crow of birds"):
        model.fit_classes("birds", ["crow"])


@pytest.mark.parametrize("name", ["test_resnet", "tf_efficientnetv2_b3.in21k_ft_in1k"])  # crop_mode center, squash
@pytest.mark.parametrize("size", [(330, 270), (200, 390)])
def test_its_pixels_are_those_that_timm_gives_it(tmp_path, name, size):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8))
    image.save(tmp_path / "image.png")
    model = TimmClassifier(name, weights="")
    config = timm.data.resolve_model_data_config(model.module)
    right = timm.data.create_transform(**config, is_training=False)(image)
    own = model.prepare([{"file_name": str(tmp_path / "image.png")}])[0]
    torch.testing.assert_close((own - model._mean) / model._std, right, rtol=0, atol=1e-5)


def test_another_way_of_cropping_is_refused(monkeypatch):
    def built(name, weights):
        model = build_timm_classifier(name, weights)
        model.module.pretrained_cfg["crop_mode"] = "border"
        return model

    monkeypatch.setattr(timm_classifiers, "build_timm_classifier", built)
    with pytest.raises(ValueError, match="timm:test_resnet: timm crops images of this model by 'border'"):
        TimmClassifier("test_resnet", weights="")


def test_attention_is_counted_where_torch_fuses_it():
    model = TimmClassifier("vit_tiny_patch16_224", weights="")
    inputs = torch.zeros(1, 3, 224, 224, dtype=torch.uint8)
    fused = model.costs(inputs, [0])
    plain = TimmClassifier("vit_tiny_patch16_224", weights="")
    for layer in plain.module.modules():
        if hasattr(layer, "fused_attn"):
            layer.fused_attn = False
    assert fused == plain.costs(inputs, [0]) and round(fused[0] / 1e9, 4) == 1.2537


def test_a_plain_transformer_costs_what_the_gated_one_costs_with_open_gates():
    image = [{"image": torch.zeros(3, 64, 64), "height": 64, "width": 64}]
    cfg = timm_cfg("test_vit", "build_timm_backbone")
    plain = NetworkModel("plain", cfg, build_model(cfg), "digits_test")
    gated = build_model(timm_cfg("test_vit", "build_gated_timm_backbone")).eval()
    dense = gated(image)[0]["route"].dense
    assert plain.costs(image, plain.answer(image)).tolist() == [dense] and dense > 0


def test_kept_answers_of_another_format_are_made_anew(tmp_path, monkeypatch):
    calls = []
    models = [
        IDKCascadeModel(name, lambda images: calls.append(1) or np.full((len(images), 2), 0.5), 3) for name in "ab"
    ]
    for model in models:
        model.weights = model.name
    kept = tmp_path / "answers.npz"
    for number in (kept_answers._FORMAT - 1, kept_answers._FORMAT, kept_answers._FORMAT):
        monkeypatch.setattr(kept_answers, "_FORMAT", number)
        kept_answers.answers_of(models, RECORDS, kept, "held_out")
    assert len(calls) == 2 * 2 * 2  # two runs of each, of two calls, the first of which warms


@pytest.mark.parametrize("text", ["timm:test_resnet@", "timm:test_resnet@x", "timm:test_resnet@5"])
def test_a_size_that_is_none(text):
    with pytest.raises(ValueError, match="side of the images in pixels"):
        TimmClassifier.of(text)


def test_answers_by_name_number_and_probability(tmp_path):
    given = {"a/0.jpg": "owl", "1.jpg": 0, "b/2.jpg": [0.25, 0.75], "13": "crow"}
    model = FiledAnswers(_file(tmp_path, answers=given, milliseconds=500))
    model.fit_classes("birds", ["crow", "owl"])
    model.check_images(RECORDS)
    assert model.answer(RECORDS).tolist() == [[0, 1], [1, 0], [0.25, 0.75], [1, 0]]
    assert model.costs(RECORDS, [0] * 4).tolist() == [9.0] * 4 and model.own_milliseconds == 500
    assert keys_of(RECORDS[0])[-3:] == ["a/0.jpg", "0.jpg", "10"]


def test_somebody_who_is_always_right(tmp_path):
    model = FiledAnswers(_file(tmp_path))
    model.fit_classes("birds", ["crow", "owl"])
    assert model.losses(RECORDS, model.answer(RECORDS)).sum() == 0
    other = FiledAnswers(_file(tmp_path, classes=["owl", "jay", "crow"]))
    other.fit_classes("birds", ["crow", "owl"])
    assert other.answer(RECORDS[:2]).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert other.losses(RECORDS, other.answer(RECORDS)).sum() == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"answers": 3}, '"answers" has to be a table'),
        ({"cost": 0}, '"cost" is 0'),
        ({"cost": "much"}, '"cost" is .much.'),
        ({"milliseconds": -1}, '"milliseconds" is -1'),
        ({"answers": {"a/0.jpg": 0}}, "has no answer to 11"),
        ({"answers": {str(i): "jay" for i in range(10, 14)}}, "answers 10 with 'jay'"),
        ({"answers": {str(i): True for i in range(10, 14)}}, "answers 10 with True"),
        ({"answers": {str(i): [0.1, 0.1] for i in range(10, 14)}}, "answers 10 with no probabilities"),
        ({"answers": {str(i): [1.0] for i in range(10, 14)}}, "1 probabilities of 10, not 2"),
    ],
)
def test_damaged_files_of_answers(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        model = FiledAnswers(_file(tmp_path, **content))
        model.fit_classes("birds", ["crow", "owl"])
        model.check_images(RECORDS)


def test_where_a_stored_cascade_finds_its_later_models(tmp_path):
    first = tmp_path / "fast" / "model_final.pth"
    for text in ("timm:test_resnet@64", f"answers:{tmp_path}/person.json", f"{tmp_path}/slow/model_final.pth"):
        assert found_path(stored_path(text, first), first) == text
    with pytest.raises(ValueError, match="asks each model once"):
        load_members(["timm:test_resnet", "timm:test_resnet"], "digits_test")


def test_cross_calibrate_with_a_person_at_the_end(tmp_path, photographs, monkeypatch, capsys):
    """Two sizes of a network of random weights before somebody who is always right; what is kept is not run again."""
    weights = saved_weights("test_resnet", tmp_path)
    monkeypatch.setattr(
        TimmClassifier, "of", classmethod(lambda cls, text: cls("test_resnet", int(text[-2:]), weights))
    )
    person = _file(tmp_path, cost=1e12, milliseconds=2000)
    models = ["timm:test_resnet@32", "timm:test_resnet@64", f"answers:{person}"]
    arguments = ["--weights", *models, "--images", photographs, "--output", str(tmp_path / "out"), "--repeats", "2",
                 "--methods", "margin"]  # fmt: skip
    assert cross_cli.main([*arguments, "--rounds", "1", "--batch", "1", "4", "--time-limit", "6"]) == 0
    record = json.loads((tmp_path / "out" / "cross_fit.json").read_text())
    assert [model["accuracy"] for model in record["models"]] == [0, 0, 1]
    rows = {entry["models"]: entry for entry in record["cascades"]}
    assert list(rows) == ["test_resnet@32 + person", "test_resnet@64 + person",
                          "test_resnet@32 + test_resnet@64 + person", "taken by the choosing half"]  # fmt: skip
    for entry in rows.values():  # both networks are always wrong: what is right was asked of the person
        assert entry["accuracy"] == pytest.approx(entry["relative_cost"], abs=1e-4)
        assert set(entry["relative_time"]) == {"1", "4"}
    taken = rows["taken by the choosing half"]
    assert taken["taken"] == {"person": 1.0} and taken["accuracy"] == 1 and taken["difference_interval_95"] == [0, 0]
    for times in record["times"].values():
        assert times["person"]["milliseconds"] >= 2000 and times["test_resnet@64"]["milliseconds"] > 0
    assert (tmp_path / "out" / "models.png").stat().st_size > 5000
    monkeypatch.setattr(TimmClassifier, "answer", lambda *_: pytest.fail("the answers are kept"))
    assert cross_cli.main([*arguments, "--budget", "1e-9"]) == 0  # less than the smallest network takes
    assert "goal not reached" in capsys.readouterr().out
