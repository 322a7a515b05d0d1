"""The multi-path classifier: the losses of its policies, what it runs in evaluation, and the rates of its gradients."""

import pytest
import torch
from multipath_models import COMPUTE_WEIGHT, batch_of, dense, multipath_model
from torch.nn import functional as F

from dyn_d2.methods.multipath.paths import EXIT, costs_to_go, path_probabilities
from dyn_d2.utils.errors import UserError

from detectron2.utils.events import EventStorage

POLICIES = ["path_actor", "path_critic", "path_optimistic_critic"]


def _settled(model, batch):
    """Statistics of batch norm that are those of ``batch``, so that both modes compute the same."""
    for norm in model.modules():
        if isinstance(norm, torch.nn.modules.batchnorm._BatchNorm):
            norm.momentum = 1.0
    with torch.no_grad(), EventStorage():
        model.train()(batch)
    return model


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("topology", ["chain", "tree"])
def test_evaluation_runs_only_the_chosen_paths(policy, topology):
    batch = batch_of(12)
    model = _settled(multipath_model(policy, topology), batch).eval()
    with torch.no_grad():
        scores, logits = dense(model, batch)
        outputs = model(batch)
    tree, seen = model.backbone.tree, []
    for image, output in enumerate(outputs):
        layer, cost = 0, 0.0
        while True:
            cost += model._layer_costs()[layer]
            sinks = tree.sinks(layer)
            sink = sinks[int(scores[layer][image].argmax())] if len(sinks) > 1 else sinks[0]
            if sink == EXIT:
                break
            layer = sink
        seen.append(layer)
        assert torch.allclose(output["scores"], logits[layer][image].softmax(0), atol=1e-5)
        assert output["route"].executed == pytest.approx(cost + model._exit_costs[layer])
    assert len(set(seen)) > 1
    alone = torch.stack([model([entry])[0]["scores"] for entry in batch])
    assert torch.allclose(alone, torch.stack([output["scores"] for output in outputs]), atol=1e-5)


@pytest.mark.parametrize("topology", ["chain", "tree"])
@pytest.mark.parametrize("policy", POLICIES)
def test_losses_are_those_of_the_definition(policy, topology):
    batch = batch_of()
    model = _settled(multipath_model(policy, topology), batch)
    with EventStorage(), torch.no_grad():
        losses = model(batch)
        scores, logits = dense(model, batch)
    tree, labels = model.backbone.tree, torch.tensor([entry["label"] for entry in batch])
    tau = 1.0 if policy == "path_actor" else 0.1
    p = path_probabilities(tree, scores, tau, labels)
    errors = {layer: F.cross_entropy(rows, labels, reduction="none") for layer, rows in logits.items()}
    assert float(losses["loss_cls"]) == pytest.approx(
        float(sum((p.exits[i] * e).mean() for i, e in errors.items())), rel=1e-4
    )
    costs, ends = model._layer_costs(), model._exit_costs
    if policy == "path_actor":
        spent = sum(q * c for q, c in zip(p.layers, costs, strict=True)) + sum(p.exits[i] * c for i, c in ends.items())
        assert float(losses["loss_compute"]) == pytest.approx(COMPUTE_WEIGHT * float(spent.mean()), rel=1e-4)
        squares = sum((p.layers[i] * r.square().sum(1)).mean() for i, r in scores.items())
        assert float(losses["loss_decisions"]) == pytest.approx(0.01 * float(squares), rel=1e-4)
    else:
        ends = {i: errors[i] + COMPUTE_WEIGHT * c for i, c in ends.items()}
        targets = costs_to_go(tree, scores, ends, [COMPUTE_WEIGHT * c for c in costs], "optimistic" in policy)
        misses = sum((p.layers[i] * (r + targets[i]).square().sum(1)).mean() for i, r in scores.items())
        assert float(losses["loss_routers"]) == pytest.approx(0.001 * float(misses), rel=1e-4)


def test_only_the_actor_learns_from_the_classification_loss():
    for policy, learns in (("path_actor", True), ("path_critic", False)):
        model = multipath_model(policy)
        with EventStorage():
            model(batch_of())["loss_cls"].backward()
        last = model.backbone.policy.routers[0].layers[-1].weight.grad
        assert (last is not None and bool(last.abs().sum() > 0)) == learns


def test_gradients_of_rarely_used_parts_are_scaled_up():
    torch.manual_seed(0)
    plain, adjusted = multipath_model(MODEL__MULTIPATH__ADJUST_RATES=False), multipath_model()
    adjusted.load_state_dict(plain.state_dict())
    batch, grads = batch_of(), []
    for model in (plain, adjusted):
        with EventStorage():
            sum(model(batch).values()).backward()
        grads.append([model.backbone.layers[i].across[0].weight.grad for i in range(3)])
    with EventStorage():
        scores, _ = dense(plain.train(), batch)
    shares = path_probabilities(plain.backbone.tree, scores, 1.0, torch.zeros(6)).layers
    for i, (before, after) in enumerate(zip(*grads, strict=True)):
        assert torch.allclose(after, before / shares[i].square().mean().sqrt(), rtol=1e-3, atol=1e-6)
    assert not torch.allclose(grads[0][2], grads[1][2], rtol=1e-2)


def test_squared_weights_count_by_their_share():
    model = multipath_model("all_open", "static", MODEL__MULTIPATH__WEIGHT_PENALTY=0.5)
    with EventStorage():
        losses = model(batch_of())
    slow = sum(p.square().sum() for n, p in model.named_parameters() if n.endswith("weight") and "norms" not in n)
    assert losses.keys() == {"loss_cls", "loss_weights"}
    assert float(losses["loss_weights"]) == pytest.approx(0.5 * float(slow), rel=1e-4)


def test_static_networks_have_one_path():
    model = multipath_model("all_open", "static", MODEL__MULTIPATH__DEPTH=2).eval()
    assert len(model.backbone.layers) == 2 and list(model.exits) == ["1"]
    with torch.no_grad():
        (output,) = model(batch_of(1))
    assert output["route"].executed == output["route"].dense == sum(model._layer_costs()) + model._exit_costs[1]


def test_forced_open_is_the_deepest_path():
    batch = batch_of(4)
    model = _settled(multipath_model("path_actor", "tree"), batch).eval()
    model.force_open()
    with torch.no_grad():
        outputs = model(batch)
    assert all(output["route"].executed == pytest.approx(output["route"].dense) for output in outputs)


def test_temperature_follows_the_iteration():
    policy = multipath_model(MODEL__POLICY__PATHS__HALVING=10).backbone.policy.train()
    with EventStorage(20):
        assert policy.temperature() == pytest.approx(0.25)
    assert multipath_model("path_critic").backbone.policy.temperature() == pytest.approx(0.1)


def test_routers_keep_full_precision_where_the_rest_does_not():
    router = multipath_model().backbone.policy.routers[0].eval()
    features = torch.randn(5, router.layers[0].in_features)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = router(features)
    with torch.no_grad():
        assert torch.equal(mixed, router(features))


def test_class_error_as_target():
    model = multipath_model(
        "path_critic", MODEL__POLICY__PATHS__CLASS_ERROR=True, MODEL__POLICY__PATHS__COMPUTE_WEIGHT=0.0
    )
    batch = batch_of()
    _settled(model, batch)
    with EventStorage(), torch.no_grad():
        losses = model(batch)
        scores, logits = dense(model, batch)
    labels = torch.tensor([entry["label"] for entry in batch])
    wrong = {i: (rows.argmax(1) != labels).float() for i, rows in logits.items()}
    targets = costs_to_go(model.backbone.tree, scores, wrong, [0.0] * 3)
    p = path_probabilities(model.backbone.tree, scores, 0.1, labels).layers
    misses = sum((p[i] * (r + targets[i]).square().sum(1)).mean() for i, r in scores.items())
    assert float(losses["loss_routers"]) == pytest.approx(0.001 * float(misses), rel=1e-4)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="TOPOLOGY is 'ring'"):
        multipath_model(topology="ring")
    with pytest.raises(ValueError, match="CHANNELS for 1 to 3 levels"):
        multipath_model(MODEL__MULTIPATH__DEPTH=4)
    with pytest.raises(ValueError, match="have to fall"):
        multipath_model(MODEL__MULTIPATH__SCALES=[1, 2, 1])
    for policy in ("skipnet_ffgate1", "all_open"):
        with pytest.raises(ValueError, match="decides about"):
            multipath_model(policy)
    with pytest.raises(ValueError, match="needs MODEL.BACKBONE.NAME build_multipath_backbone"):
        multipath_model("all_open", MODEL__BACKBONE__NAME="build_gated_resnet_backbone")
    model = multipath_model()
    with pytest.raises(ValueError, match="images of one size"):
        model([*batch_of(1), *batch_of(1, 16)])
    with EventStorage(), pytest.raises(ValueError, match="two images or more"):
        model(batch_of(1))
    with EventStorage(), pytest.raises(ValueError, match="the label of an image is 10"):
        model([{**entry, "label": 10} for entry in batch_of(2)])
    from dyn_d2.gating import Context, Trace
    from dyn_d2.methods.multipath.policy import PathState

    with pytest.raises(UserError, match="MODEL.META_ARCHITECTURE MultiPathClassifier"):
        model.backbone.policy.losses(Trace(context=Context(state=PathState())), {})


def test_two_weight_penalties_are_named(caplog):
    with caplog.at_level("WARNING"):
        multipath_model(SOLVER__WEIGHT_DECAY=0.0)
        assert "cost twice" not in caplog.text
        multipath_model(SOLVER__WEIGHT_DECAY=1e-4)
    assert "SOLVER.WEIGHT_DECAY" in caplog.text and "MODEL.MULTIPATH.WEIGHT_PENALTY" in caplog.text
