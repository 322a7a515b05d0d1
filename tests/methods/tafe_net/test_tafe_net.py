"""TAFE-Net as a meta-architecture: losses over the tasks of a step, candidates, added classes, what it refuses."""

import json

import pytest
import torch
from described_files import write_custom
from tool_runs import ROOT, train_net_here
from torch.nn import functional as F

from dyn_d2.config.applied import KeyNotApplied
from dyn_d2.config.derive import build_cfg
from dyn_d2.engine.trainer import DynTrainer
from dyn_d2.methods.tafe_net.data import described_set
from dyn_d2.methods.tafe_net.meta_arch import TAFENet
from dyn_d2.methods.tafe_net.task_weights import embedding_loss, hinged_cosine

from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

MODEL = [
    "MODEL.META_ARCHITECTURE", "TAFENet", "MODEL.DEVICE", "cpu", "MODEL.TAFE_NET.FC_DIMS", "[8, 6]",
    "MODEL.TAFE_NET.CLASSIFIER_DIMS", "[5]", "MODEL.TAFE_NET.TASK_HIDDEN", "7", "MODEL.TAFE_NET.DROPOUT", "0.0",
    "MODEL.TAFE_NET.INIT", "fan_in",
]  # fmt: skip
DIGITS = ["DATASETS.TRAIN", "('digit_attributes_1_train',)", "DATASETS.TEST", "('digit_attributes_1_test',)"]


def build(*opts: str) -> TAFENet:
    return build_model(build_cfg("", [*MODEL, *DIGITS, *opts]))


def batch(labels: list[int], **more) -> list[dict]:
    return [{"feature": torch.rand(1, 8, 8), "label": label, "image_id": i, **more} for i, label in enumerate(labels)]


@pytest.mark.parametrize(("which", "tasks"), [("batch", [0, 3, 7]), ("seen", [0, 1, 3, 4, 5, 6, 7, 8])])
@pytest.mark.parametrize("conv", ["[]", "[4]"])
def test_losses_against_the_obvious_way(which, tasks, conv) -> None:
    keys = ["MODEL.TAFE_NET.TRAIN_TASKS", which, "MODEL.TAFE_NET.CONV_CHANNELS", conv]
    model, inputs = build(*keys, "MODEL.TAFE_NET.EMBEDDING_WEIGHT", "0.3"), batch([3, 7, 0, 3])
    losses = model(inputs)
    assert model.descriptions[:, 0].tolist() == [1, 0, 1, 1, 0, 1, 0, 1, 1, 1]  # "top bar"
    embedded, weights = model.meta_learner(model.descriptions[tasks])
    logits, tafe = model.network(torch.stack([item["feature"] for item in inputs]), weights)
    own = torch.tensor([tasks.index(item["label"]) for item in inputs])
    assert losses["loss_cls"].item() == pytest.approx(F.cross_entropy(logits, own).item(), rel=1e-4)
    expected = 0.3 * embedding_loss(hinged_cosine(tafe, embedded), own, balanced=True)
    assert losses["loss_emb"].item() == pytest.approx(expected.item(), rel=1e-4)
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not model.state_dict().keys() & {"descriptions", "seen"}


def test_scores_of_a_batch_and_in_small_passes(monkeypatch) -> None:
    model = build().eval()
    inputs = batch([2, 9, 5])
    outputs = model(inputs)
    assert all(output["scores"].shape == (10,) for output in outputs)
    monkeypatch.setattr("dyn_d2.methods.tafe_net.meta_arch.ROWS", 7)
    again = model(inputs[:1]) + model(inputs[1:])
    for one, other in zip(outputs, again, strict=True):
        assert torch.allclose(one["scores"], other["scores"], atol=1e-5)


def test_only_candidates_are_tried(monkeypatch) -> None:
    model = build().eval()
    data = described_set("digit_attributes_1_test")
    monkeypatch.setitem(data.__dict__, "candidates", torch.tensor([2, 9]).numpy())
    (output,) = model(batch([2], dataset="digit_attributes_1_test"))
    assert torch.isfinite(output["scores"]).nonzero()[:, 0].tolist() == [2, 9]


def test_a_class_is_added_by_its_vector_alone(tmp_path) -> None:
    """The checkpoint stays as it is, and so do the scores of the other classes."""
    keys = write_custom(tmp_path)
    cfg = build_cfg("", [*MODEL, *keys])
    before = DynTrainer.build_model(cfg).eval()
    (tmp_path / "more.json").write_text(
        json.dumps({"elk": described_set("custom_described_test").descriptions[1].tolist()})
    )
    after = DynTrainer.build_model(
        build_cfg("", [*MODEL, *keys, "ZERO_SHOT.CLASSES", str(tmp_path / "more.json")])
    ).eval()
    after.load_state_dict(before.state_dict())
    assert after.classes == [*before.classes, "elk"]
    inputs = [{"feature": torch.rand(6), "dataset": "custom_described_test"} for _ in range(3)]
    for old, new in zip(before(inputs), after(inputs), strict=True):
        assert torch.allclose(old["scores"], new["scores"][:-1], atol=1e-6)
        assert torch.allclose(new["scores"][-1], new["scores"][1], atol=1e-6)  # it has bee's vector


def test_own_descriptions_of_a_step_replace_those_of_the_table() -> None:
    model = build()
    inputs = batch([3, 7, 3])
    vectors = torch.rand(3, model.descriptions.shape[1])
    for item, vector in zip(inputs, vectors, strict=True):
        item["task"] = vector
    found = model._task_vectors(torch.tensor([3, 7]), torch.tensor([0, 1, 0]), inputs)
    assert torch.equal(found, vectors[:2])


@pytest.mark.parametrize("init", ["published", "fan_in"])
def test_init_and_groups_of_parameters(init) -> None:
    rates = ["SOLVER.OPTIMIZER", "Adam", "SOLVER.TASK_LR_FACTOR", "0.1", "SOLVER.BASE_LR", "0.01"]
    cfg = build_cfg("", [*MODEL, *DIGITS, "MODEL.TAFE_NET.INIT", init, *rates])
    model = DynTrainer.build_model(cfg)
    if init == "published":
        assert 0.0005 < model.network.linears[0].shared.weight.std() < 0.0015
        assert 0.007 < model.meta_learner.embedding[0].weight.std() < 0.013
    else:
        assert model.meta_learner.generators[0].bias.tolist() == [1.0] * 8
    optimizer = DynTrainer.build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.Adam)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        slow = name.startswith("meta_learner.embedding")
        assert rates[id(parameter)] == pytest.approx(0.001 if slow else 0.01), name


def test_what_is_refused() -> None:
    for key, value, message in (
        ("LOSS", "hinge", "LOSS is 'hinge': use 'softmax' or 'bce'"),
        ("TRAIN_TASKS", "all", "TRAIN_TASKS is 'all': use 'batch' or 'seen'"),
        ("INIT", "zero", "INIT is 'zero'"),
        ("EMBEDDING_WEIGHT", "-1.0", "EMBEDDING_WEIGHT is -1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            build(f"MODEL.TAFE_NET.{key}", value)
    model = build()
    with pytest.raises(ValueError, match="all 2 images of a training batch are of class 3"):
        model(batch([3, 3]))
    for label in (2, 11, None):  # 2 is unseen
        with pytest.raises(ValueError, match=f"label of image 1 is {label}, which is none of the 8 classes"):
            model(batch([3, label]))
    inputs = batch([3, 4])
    inputs[1]["feature"] = torch.rand(64)
    with pytest.raises(ValueError, match="features of one batch have different shapes"):
        model(inputs)
    for opts, message in (
        (["SOLVER.OPTIMIZER", "Lion"], "SOLVER.OPTIMIZER is 'Lion': use one of .*AdamW"),
        (["SOLVER.TASK_LR_FACTOR", "-1.0"], "SOLVER.TASK_LR_FACTOR is -1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            DynTrainer.build_optimizer(build_cfg("", [*MODEL, *DIGITS, *opts]), model)


def test_train_net_trains_evaluates_and_takes_another_class(tmp_path, monkeypatch) -> None:
    keys = [
        *write_custom(tmp_path),
        *MODEL,
        "MODEL.TAFE_NET.TRAIN_TASKS",
        "seen",
        "OUTPUT_DIR",
        str(tmp_path / "a"),
    ]
    config = ["--config-file", str(ROOT / "configs" / "TAFENet" / "digits.yaml")]
    train_net_here(monkeypatch, *config, *keys, "SOLVER.MAX_ITER", "4", "SOLVER.STEPS", "()")
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    assert results["metrics"]["custom_described_test"]["zero_shot"].keys() == {"T1", "u", "s", "H"}
    predictions = tmp_path / "a" / "inference" / "custom_described_test_predictions.json"
    first = {row["image_id"]: row for row in json.loads(predictions.read_text())}
    (tmp_path / "more.json").write_text(json.dumps({"elk": [1.0, 2.0, 3.0]}))
    weights = ["--eval-only", "MODEL.WEIGHTS", str(tmp_path / "a" / "model_final.pth")]
    train_net_here(monkeypatch, *config, *weights, *keys, "ZERO_SHOT.CLASSES", str(tmp_path / "more.json"))
    for row in json.loads(predictions.read_text()):
        scores = dict(zip(row["best"], row["scores"], strict=True))
        assert scores.keys() == {"ant", "bee", "cat", "dog", "elk"}
        old = first[row["image_id"]]
        for name, score in zip(old["best"], old["scores"], strict=True):
            assert scores[name] == pytest.approx(score, abs=1e-4)
    (tmp_path / "more.json").write_text(json.dumps({"elk": [1.0, 2.0]}))
    with pytest.raises(SystemExit, match="the vector of class elk has 2 numbers"):
        train_net_here(monkeypatch, *config, *weights, *keys, "ZERO_SHOT.CLASSES", str(tmp_path / "more.json"))


def test_train_net_says_what_is_missing_and_where_it_is_published(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    config = ["--config-file", str(ROOT / "configs" / "TAFENet" / "zero_shot.yaml")]
    with pytest.raises(SystemExit, match=r"xlsa17/data/AWA2/res101\.mat.*is published at .*xlsa17\.zip"):
        train_net_here(monkeypatch, *config, "MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path / "a"))


def test_a_foreign_trainer_is_told_of_its_keys() -> None:
    keys = {"SOLVER.TASK_LR_FACTOR": "0.1", "MODEL.FREEZE": "['network']"}
    plain = build_model(build_cfg("", [*MODEL, *DIGITS, *(word for pair in keys.items() for word in pair)]))
    with EventStorage(0), pytest.raises(KeyNotApplied, match="(?s)MODEL.FREEZE.*SOLVER.TASK_LR_FACTOR"):
        plain.train()(batch([3]))
