"""What a multiply-add costs as an input of the routers, the floor of an exit's loss, and the hybrid data set."""

import math

import numpy as np
import pytest
import torch
from multipath_models import batch_of, dense, multipath_model
from torch.nn import functional as F

from dyn_d2.methods.multipath import hybrid
from dyn_d2.methods.multipath.meta_arch import floored_cross_entropy
from dyn_d2.methods.multipath.paths import costs_to_go, path_probabilities

from detectron2.utils.events import EventStorage

PRICES = {"MODEL__POLICY__PATHS__COMPUTE_WEIGHTS": [0.0, 1e-5], "MODEL__POLICY__PATHS__COMPUTE_SCALE": 1e5}


def test_the_loss_of_an_exit_has_a_floor():
    scores, labels = torch.randn(6, 4) * 3, torch.tensor([0, 1, 2, 3, 0, 1])
    p = scores.softmax(1)[torch.arange(6), labels]
    assert torch.allclose(floored_cross_entropy(scores, labels), -(1e-6 / 4 + (1 - 1e-6) * p).log(), atol=1e-5)
    far = floored_cross_entropy(torch.tensor([[200.0, 0.0]]), torch.tensor([1]))
    assert float(far) == pytest.approx(math.log(2 / 1e-6), rel=1e-4)
    assert float(floored_cross_entropy(torch.tensor([[200.0, 0.0]]), torch.tensor([0]))) == pytest.approx(0, abs=2e-6)


@pytest.mark.parametrize("policy", ["path_actor", "path_critic"])
def test_each_image_of_a_step_draws_a_price_and_pays_it(policy):
    batch = batch_of(8)
    model = multipath_model(policy, **PRICES)
    routers = model.backbone.policy.routers
    assert [r.layers[0].in_features for r in routers] == [
        model.backbone.features[layer] + 1 for layer in model.backbone.junctions
    ]
    with EventStorage(), torch.no_grad():
        model.train()
        torch.manual_seed(3)
        losses = model(batch)
        torch.manual_seed(3)
        state = model.backbone.policy.begin(torch.zeros(8, 3, 8, 8), None)
        assert set((state.price / 1e-5).round().tolist()) == {0.0, 1.0}
        own = [router.forward for router in routers]
        for router, forward in zip(routers, own, strict=True):  # with the price behind the features
            router.forward = lambda flat, f=forward: f(torch.cat([flat, 1e5 * state.price[:, None]], 1))
        scores, logits = dense(model, batch)
    tree, price, labels = model.backbone.tree, state.price, torch.tensor([entry["label"] for entry in batch])
    p = path_probabilities(tree, scores, 1.0 if policy == "path_actor" else 0.1, labels)
    costs, ends = model._layer_costs(), model._exit_costs
    if policy == "path_actor":
        spent = sum(q * c for q, c in zip(p.layers, costs, strict=True)) + sum(p.exits[i] * c for i, c in ends.items())
        assert float(losses["loss_compute"]) == pytest.approx(float((price * spent).mean()), rel=1e-3)
        return
    errors = {layer: F.cross_entropy(rows, labels, reduction="none") for layer, rows in logits.items()}
    targets = costs_to_go(tree, scores, {i: errors[i] + price * c for i, c in ends.items()}, [price * c for c in costs])
    misses = sum((p.layers[i] * (r + targets[i]).square().sum(1)).mean() for i, r in scores.items())
    assert float(losses["loss_routers"]) == pytest.approx(0.001 * float(misses), rel=1e-3)


def test_evaluation_has_one_price_for_all_images():
    features, scores = torch.empty(0), []
    for price in (0.0, 1e-5):
        torch.manual_seed(0)
        policy = multipath_model(**PRICES, MODEL__POLICY__PATHS__COMPUTE_WEIGHT=price).eval().backbone.policy
        features = features if scores else torch.rand(5, policy.units[0].channels, 1, 1)
        state = policy.begin(torch.zeros(9, 3, 8, 8), None)  # of nine images five come here
        assert state.price == price
        policy.decide(0, features, state)
        scores.append(state.scores[0])
    assert scores[0].shape == (5, 2) and not torch.allclose(*scores)


def test_as_many_digits_as_photographs(monkeypatch):
    photographs = [{"image": np.zeros((32, 32, 3), np.uint8), "label": i % 10, "image_id": i} for i in range(60)]
    monkeypatch.setattr(hybrid, "registered_records", lambda name: photographs)
    records = hybrid.hybrid_records("test")
    labels = [record["label"] for record in records]
    assert [labels.count(label) for label in range(10)] == [6] * 10
    assert [record["image_id"] for record in records] == list(range(60))
    first, again = (r["image"] for r in (records[30], hybrid.hybrid_records("test")[30]))
    assert first.shape == (32, 32, 3) and first.dtype == np.uint8 and np.array_equal(first, again)
    assert not np.array_equal(first, hybrid.hybrid_records("train")[30]["image"])


def test_colours_differ():
    generator = np.random.default_rng(0)
    for _ in range(30):
        image = hybrid.coloured(np.array([[0.0, 1.0]]), generator) / 255
        assert np.linalg.norm(image[0, 0] - image[0, 1]) >= hybrid.DISTANCE - 0.02
