"""What the Dynamic* meta-architectures add to their parents: losses, scalars, routes, and the greedy pass."""

import pytest
import torch
from tiny_tasks import TASKS, batch, task_opts

from dyn_d2.config.read import read_cfg
from dyn_d2.gating import current_trace
from dyn_d2.gating.meta_arch.dynamic import find_policy, put_scalars
from dyn_d2.utils.errors import UserError
from dyn_d2.utils.seeds import seed_all

from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

STOCK = {"DynamicRCNN": "GeneralizedRCNN", "DynamicRetinaNet": "RetinaNet", "DynamicSegmentor": "SemanticSegmentor"}
PLAIN = {
    "build_gated_fpn_backbone": "build_resnet_fpn_backbone",
    "build_gated_retinanet_fpn_backbone": "build_retinanet_resnet_fpn_backbone",
    "build_gated_resnet_backbone": "build_resnet_backbone",
}
HRL = {
    "MODEL__POLICY__NAME": "skipnet_rnn",
    "MODEL__POLICY__STAGE": "hrl",
    "MODEL__POLICY__SKIPNET__BASELINE": "self_critical",
}


def build(task: str, **more) -> torch.nn.Module:
    seed_all("model")
    return build_model(read_cfg("", task_opts(task, **more)))


@pytest.mark.parametrize("task", [task for task in TASKS if task != "classifier"])
def test_over_a_plain_backbone_they_are_their_parents(task) -> None:
    dynamic = TASKS[task]["MODEL.META_ARCHITECTURE"]
    outputs = []
    for name in (dynamic, STOCK[dynamic]):
        plain = PLAIN[TASKS[task]["MODEL.BACKBONE.NAME"]]
        model = build(task, MODEL__BACKBONE__NAME=plain, MODEL__META_ARCHITECTURE=name)
        seed_all("batch")
        inputs = batch()
        with EventStorage():
            losses = model(inputs)
        model.eval()
        with torch.no_grad():
            outputs.append((losses, model(inputs)))
    (losses, results), (stock_losses, stock_results) = outputs
    assert losses == stock_losses
    for result, stock in zip(results, stock_results, strict=True):
        assert result.keys() == stock.keys()
        a, b = (x["sem_seg"] if "sem_seg" in x else x["instances"].scores for x in (result, stock))
        assert torch.equal(a, b)


def test_a_plain_classifier_has_no_route() -> None:
    model = build("classifier", MODEL__BACKBONE__NAME="build_resnet_backbone")
    with EventStorage() as storage:
        assert model(batch()).keys() == {"loss_cls"}
    assert not storage.latest()
    model.eval()
    with torch.no_grad():
        assert [result.keys() for result in model(batch())] == [{"scores"}] * 2


@pytest.mark.parametrize("task", ["rcnn_fpn", "retinanet", "semantic_fpn"])
def test_a_stock_meta_architecture_would_lose_the_losses(task) -> None:
    stock = STOCK[TASKS[task]["MODEL.META_ARCHITECTURE"]]
    model = build(task, MODEL__META_ARCHITECTURE=stock, **HRL)
    with EventStorage(), pytest.raises(UserError, match="SkipNetRNN.*MODEL.META_ARCHITECTURE to DynamicRCNN"):
        model(batch())
    model.eval()
    with torch.no_grad():
        assert "route" not in model(batch())[0]
    # A policy that is not trained loses nothing.
    model = build(task, MODEL__META_ARCHITECTURE=stock, MODEL__POLICY__NAME="random_skip")
    with EventStorage():
        assert model(batch())


def test_the_trace_knows_labels_and_sizes(monkeypatch) -> None:
    model = build("classifier", MODEL__POLICY__NAME="all_open", MODEL__BACKBONE__FREEZE_AT=0)
    seen = []
    policy = find_policy(model.backbone)
    monkeypatch.setattr(policy, "begin", lambda images, sizes: seen.append((current_trace(), sizes)))
    losses = model(batch(3))
    (trace, sizes) = seen.pop()
    assert trace.context.labels.tolist() == [0, 1, 2] and sizes == [(64, 64), (64, 64), (48, 64)]
    assert trace.context.image_losses.shape == (3,) and not trace.context.image_losses.requires_grad
    assert losses["loss_cls"].item() == pytest.approx(trace.context.image_losses.mean().item())
    model([{**inputs, "image": inputs["image"][:, :48]} for inputs in batch(2)])
    assert seen.pop()[1] is None  # nothing is padded
    model.eval()
    model([{"image": inputs["image"]} for inputs in batch(2)])
    assert seen.pop()[0].context.labels is None


def test_scalars_of_a_step(monkeypatch) -> None:
    traces = []
    monkeypatch.setattr(
        "dyn_d2.gating.meta_arch.dynamic.put_scalars", lambda trace: (traces.append(trace), put_scalars(trace))
    )
    model = build("classifier", MODEL__POLICY__NAME="convnet_aig")
    with EventStorage() as storage:
        model(batch(4))
    (trace,) = traces
    values = {name: value for name, (value, _) in storage.latest().items()}
    assert {name for name in values if name.startswith("gate_rate/")} == {f"gate_rate/{n}" for n in trace.rates()}
    assert all(values[f"gate_rate/{name}"] == pytest.approx(rate) for name, rate in trace.rates().items())
    p = torch.stack([step.decision.prob for step in trace.steps]).double()
    entropy = -(p * p.log2() + (1 - p) * (1 - p).log2())
    assert values["gates/entropy"] == pytest.approx(entropy.mean().item(), rel=1e-4)
    assert values["gates/executed_share"] == pytest.approx((trace.executed().mean() / trace.dense()).item())


@pytest.mark.parametrize("task", ["classifier", "retinanet", "rcnn_fpn"])
def test_the_greedy_pass_leaves_no_mark(task) -> None:
    model = build(task, **HRL)
    inputs = batch(3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random_state = torch.get_rng_state()
    with EventStorage() as storage:
        average = getattr(model, "loss_normalizer", None)
        greedy = model._greedy(inputs)
        assert not storage.latest() and getattr(model, "loss_normalizer", None) == average
    assert torch.equal(random_state, torch.get_rng_state())
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert greedy.context.image_losses.shape == (3,) and not greedy.context.image_losses.requires_grad
    if task != "classifier":  # every image has the loss of the batch
        assert len(greedy.context.image_losses.unique()) == 1
    model.eval()
    with torch.no_grad():
        routes = [result["route"] for result in model(inputs)]
    for step in greedy.steps:
        assert step.decision.open.tolist() == [bool(route.open[step.unit.name][0]) for route in routes]
    model.train()
    with EventStorage():
        losses = model(inputs)
    losses["loss_policy"].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in find_policy(model.backbone).parameters())


def test_the_self_critical_return_is_the_difference_of_both_passes() -> None:
    """When the sampled path is the greedy one, nothing is learned from it."""
    model = build("classifier", **HRL, MODEL__POLICY__SKIPNET__INIT_BIAS=40.0, MODEL__RESNETS__NORM="FrozenBN")
    losses = model(batch(3))
    assert losses["loss_policy"].item() == pytest.approx(0, abs=1e-6)
    model = build("classifier", **{**HRL, "MODEL__POLICY__SKIPNET__BASELINE": "none"},
                  MODEL__POLICY__SKIPNET__INIT_BIAS=2.0, MODEL__POLICY__SKIPNET__ALPHA=5.0)  # fmt: skip
    assert abs(model(batch(3))["loss_policy"].item()) > 1e-4


def test_without_supervision_reinforcement_alone_trains_and_the_loss_of_the_task_is_a_number() -> None:
    """Fig. 2.14's row RL: what the gates read learns from the reward, the classifier from nothing."""
    keys = {**HRL, "MODEL__POLICY__SKIPNET__INIT_BIAS": 0.0, "MODEL__POLICY__SKIPNET__SUPERVISED": False}
    model = build("classifier", **keys)
    with EventStorage():
        losses = model(batch(4))
    assert set(losses) == {"loss_cls", "loss_policy"} and not losses["loss_cls"].requires_grad
    sum(losses.values()).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    gates = {name for name, _ in model.named_parameters() if ".policy." in name}
    assert gates <= trained and "backbone.stem.conv1.weight" in trained
    assert not any(name.startswith("linear.") for name in trained)
    first = build("classifier", **{**keys, "MODEL__POLICY__STAGE": "sp"})  # has no other loss than the task's
    with EventStorage():
        assert first(batch(4))["loss_cls"].requires_grad
