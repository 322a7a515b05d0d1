"""Weighted predictions of PMN's modules in a classifier, against loops over images and modules."""

import pytest
import torch
from tiny_tasks import batch, task_opts

from dyn_d2.checkpoint import describe
from dyn_d2.checkpoint.model import load_model
from dyn_d2.config.read import read_cfg
from dyn_d2.engine.trainer import DynTrainer
from dyn_d2.gating import recording
from dyn_d2.gating.reports.tradeoff import force_open
from dyn_d2.methods.pmn.levels import KnowledgeLevels
from dyn_d2.methods.pmn.module_predictions import WeightedAverage
from dyn_d2.methods.pmn.rollout import GREEDY, SAMPLED, ModuleOutput, PMNState, Prediction, Rollout
from dyn_d2.utils.errors import UserError

from detectron2.data import MetadataCatalog
from detectron2.utils.events import EventStorage


def classifier(**more):
    keys = {
        "MODEL__BACKBONE__NAME": "build_gated_cifar_resnet_backbone", "MODEL__RESNETS__DEPTH": 14,
        "MODEL__RESNETS__OUT_FEATURES": ["res4"], "MODEL__GATED__FIRST_BLOCK": True, "MODEL__POLICY__NAME": "pmn",
        "MODEL__POLICY__STAGE": "joint", "MODEL__POLICY__PMN__WIDTH": 8, "MODEL__POLICY__PMN__INIT_BIAS": 1.0,
    }  # fmt: skip
    return DynTrainer.build_model(read_cfg("", task_opts("classifier", **(keys | more))))


def slow_logits(state, name, n, scores, children, off_level):
    """Eq. 6 for image n; ``scores`` (module, image) -> (K,)."""
    total, count = 0, 0
    for output in state.outputs:
        prediction = output.predictions[name]
        for i, row in enumerate(output.rows.tolist()):
            if row != n or not prediction.predicts[i]:
                continue
            beta = torch.tensor([
                1.0 if prediction.plain[i] or any(prediction.levels[i, j] and children[j, c]
                                                  for j in range(len(children))) else off_level
                for c in range(children.shape[1])
            ])  # fmt: skip
            total, count = total + beta * scores[output.module, n], count + 1
    assert count == state.rollouts[name].counts[n]
    return total / count


def random_state(images=7, modules=5, levels=3, features=4) -> PMNState:
    rows = torch.arange(images)
    rollouts = {name: Rollout.begin(images, levels, rows.device) for name in (GREEDY, SAMPLED)}
    state = PMNState(None, rows, rollouts, (SAMPLED,))
    for k in range(modules):
        predictions = {}
        for name, rollout in rollouts.items():
            going = (torch.rand(images) < 0.7) & rollout.going
            taken = (torch.rand(images, levels) < 0.4) & going[:, None]
            predictions[name] = rollout.step(rows, going, taken, k == modules - 1, None)
        needed = torch.stack([p.predicts for p in predictions.values()]).any(0).nonzero()[:, 0]
        own = {name: prediction.part(needed) for name, prediction in predictions.items()}
        state.outputs.append(ModuleOutput(k, needed, torch.randn(len(needed), features), own))
    return state


@pytest.mark.parametrize("weigh", ["logits", "probabilities"])
def test_the_weighted_average_is_equation_6_for_each_rollout(weigh):
    state, children = random_state(), torch.rand(3, 6) < 0.5
    linear = torch.nn.Linear(4, 6)
    found = WeightedAverage(children, 0.8, weigh)(state, lambda features, rows: linear(features))
    scores = {}
    for output in state.outputs:
        for features, n in zip(output.features, output.rows.tolist(), strict=True):
            own = linear(features)
            scores[output.module, n] = own.softmax(0) if weigh == "probabilities" else own
    for name in (GREEDY, SAMPLED):
        for n in range(7):
            expected = slow_logits(state, name, n, scores, children, 0.8)
            if weigh == "probabilities":
                torch.testing.assert_close(found[name][n].softmax(0), expected / expected.sum())
            else:
                torch.testing.assert_close(found[name][n], expected)
    assert found[SAMPLED].requires_grad and not found[GREEDY].requires_grad


def test_weights_of_one_are_a_plain_average():
    state = random_state()
    children = torch.zeros(3, 6, dtype=torch.bool)
    scores = lambda features, rows: features @ torch.arange(24.0).reshape(4, 6)  # noqa: E731
    plain = WeightedAverage(children, 1.0)(state, scores)
    everything = WeightedAverage(~children, 0.8)(state, scores)
    torch.testing.assert_close(plain[GREEDY], everything[GREEDY])
    with pytest.raises(ValueError, match="OFF_LEVEL_WEIGHT is 0"):
        WeightedAverage(children, 0)


def test_a_class_gets_the_scores_of_all_concepts_above_it():
    state, children, above = random_state(), torch.rand(3, 6) < 0.5, torch.rand(2, 4) < 0.6
    linear = torch.nn.Linear(4, 6)
    combine = WeightedAverage(children, 0.8, above=above)
    found = combine(state, lambda features, rows: linear(features))
    scores = {
        (output.module, n): linear(features)
        for output in state.outputs
        for features, n in zip(output.features, output.rows.tolist(), strict=True)
    }
    assert combine.inner == 2
    for n in range(7):
        mean = slow_logits(state, SAMPLED, n, scores, children, 0.8)
        expected = [mean[k] + sum(mean[4 + i] for i in range(2) if above[i, k]) for k in range(4)]
        torch.testing.assert_close(found[SAMPLED][n], torch.stack(expected))
    with pytest.raises(ValueError, match="OUTPUT to classes"):
        WeightedAverage(children, 0.8, "probabilities", above)


def test_concepts_are_learnt_in_classification_and_cost_what_they_do():
    keys = {"MODEL__POLICY__PMN__TREE": "digits", "MODEL__IMAGE_CLASSIFIER__NUM_CLASSES": 10}
    model = classifier(**keys, MODEL__POLICY__PMN__OUTPUT="concepts").train()
    inner = model.module_classifier.inner
    assert inner.out_features == 4  # of the 15 concepts of the tree neither root nor class
    with EventStorage():
        losses = model(batch(4))
    sum(losses.values()).backward()
    assert inner.weight.grad.abs().sum() > 0 and model.linear.weight.grad.abs().sum() > 0


def test_predictions_have_a_part():
    prediction = Prediction(torch.tensor([True, False]), torch.ones(2, 1).bool(), torch.tensor([False, True]))
    assert prediction.part(torch.tensor([1])).plain.tolist() == [True]


def test_the_classifier_shares_its_linear_layer_among_modules():
    model = classifier().eval()
    assert set(model.module_classifier.projections) == {"16", "32"} and model.linear.in_features == 64
    inputs = batch(4)
    with recording() as trace, torch.no_grad():
        trace.context.image_sizes = [tuple(item["image"].shape[-2:]) for item in inputs]
        outputs = model.forward_task(inputs)
    state, cost = trace.context.state, torch.zeros(4)
    scores = {}
    for output in state.outputs:
        for features, n in zip(output.features, output.rows.tolist(), strict=True):
            height = inputs[n]["image"].shape[1] * features.shape[1] // 64  # the last image is padded
            pooled = features[:, :height].mean((1, 2))
            if len(pooled) != 64:
                layer = model.module_classifier.projections[str(len(pooled))]
                cost[n] += len(pooled) * 64
                pooled = layer(pooled).relu()
            scores[output.module, n] = model.linear(pooled)
            cost[n] += 64 * 3
    for n, output in enumerate(outputs):
        expected = slow_logits(state, GREEDY, n, scores, torch.ones(1, 3).bool(), 0.8)
        torch.testing.assert_close(output["scores"], expected.softmax(0), atol=1e-5, rtol=1e-4)
    (linear,) = [part for part in trace.costs if part.name == "linear"]
    assert torch.equal(linear.executed, cost) and linear.dense == 64 * 3


@pytest.mark.parametrize("train_on", ["sampled", "both"])
def test_a_step_trains_network_and_policy(train_on):
    model = classifier(MODEL__POLICY__PMN__TRAIN_ON=train_on)
    inputs = batch(6)
    with EventStorage():
        losses = model(inputs)
    sum(losses.values()).backward()
    assert set(losses) == {"loss_cls", "loss_policy"} and model.linear.weight.grad.any()
    assert model.backbone.stem.conv1.weight.grad.any()
    assert all(parameter.grad is not None for parameter in model.backbone.policy.parameters())


def test_pre_training_is_the_plain_network():
    model, plain = classifier(MODEL__POLICY__STAGE="pretrain"), classifier(MODEL__POLICY__NAME="all_open",
                                                                          MODEL__POLICY__STAGE="")  # fmt: skip
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "policy" not in k and "module" not in k})
    inputs = batch(3, 32)
    with torch.no_grad():
        for mode in (True, False):
            found, expected = model.train(mode)(inputs), plain.train(mode)(inputs)
            if mode:
                torch.testing.assert_close(found, expected)
            else:
                for a, b in zip(found, expected, strict=True):
                    torch.testing.assert_close(a["scores"], b["scores"])
                    assert a["route"].executed == b["route"].executed == b["route"].dense


def test_labels_of_the_tree_are_those_of_the_data_set():
    MetadataCatalog.pop("pmn_toy", None)
    MetadataCatalog.get("pmn_toy").set(thing_classes=[str(i) for i in range(10)][::-1])
    keys = {"MODEL__POLICY__PMN__TREE": "digits", "MODEL__IMAGE_CLASSIFIER__NUM_CLASSES": 10}
    model = classifier(**keys, DATASETS__TRAIN=("pmn_toy",))
    from dyn_d2.hierarchy import load_hierarchy

    expected = KnowledgeLevels.of_tree(load_hierarchy("digits"), "digits").children.flip(1)
    assert torch.equal(model.module_classifier.combine.classes_below, expected)
    MetadataCatalog.pop("pmn_toy")
    with pytest.raises(ValueError, match="10 classes, the head predicts 4"):
        classifier(**(keys | {"MODEL__IMAGE_CLASSIFIER__NUM_CLASSES": 4}))


def test_a_checkpoint_keeps_the_order_of_classes_where_nobody_has_registered_them(tmp_path):
    keys = {
        "MODEL__BACKBONE__NAME": "build_gated_cifar_resnet_backbone", "MODEL__RESNETS__DEPTH": 14,
        "MODEL__RESNETS__OUT_FEATURES": ["res4"], "MODEL__GATED__FIRST_BLOCK": True, "MODEL__POLICY__NAME": "pmn",
        "MODEL__POLICY__STAGE": "joint", "MODEL__POLICY__PMN__WIDTH": 8, "MODEL__POLICY__PMN__TREE": "digits",
        "MODEL__IMAGE_CLASSIFIER__NUM_CLASSES": 10, "DATASETS__TRAIN": ("pmn_toy",),
    }  # fmt: skip
    cfg, path = read_cfg("", task_opts("classifier", **keys)), str(tmp_path / "model.pth")
    MetadataCatalog.pop("pmn_toy", None)
    try:
        MetadataCatalog.get("pmn_toy").set(thing_classes=[str(i) for i in range(10)][::-1])
        model = DynTrainer.build_model(cfg)
        torch.save({"model": model.state_dict(), "dyn_d2": describe(cfg, model)}, path)
        MetadataCatalog.pop("pmn_toy")
        loaded = load_model(path).model
    finally:
        MetadataCatalog.pop("pmn_toy", None)
    assert torch.equal(loaded.module_classifier.combine.classes_below, model.module_classifier.combine.classes_below)


def test_the_dense_run_is_that_of_the_last_module():
    model = classifier(MODEL__POLICY__PMN__INIT_BIAS=-5.0).eval()
    inputs = batch(3, 32)
    with torch.no_grad():
        assert all(result["route"].executed < 0.5 * result["route"].dense for result in model(inputs))  # all stop
        force_open(model)
        found = model(inputs)
        model.module_classifier = None  # the last feature map and the linear layer are left
        expected = model(inputs)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a["scores"], b["scores"])
        assert a["route"].executed == a["route"].dense == b["route"].dense and a["route"].gates == 0


def test_without_a_record_the_head_says_so():
    model = classifier().eval()
    with pytest.raises(UserError, match="MODEL.POLICY.NAME pmn chooses"):
        model.forward_task(batch(1))
