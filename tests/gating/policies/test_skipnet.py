"""SkipNet: costs of the gates, relaxations, sampling, reward and its baseline."""

import pytest
import torch
from torch import nn
from toy_gated import ask, features_for, gates, make, policy_cfg, units

from dyn_d2.config.derive import build_cfg
from dyn_d2.gating import Context, Trace, Unit
from dyn_d2.gating.cost import chain_cost
from dyn_d2.gating.policies import build_policy

NAMES = ["skipnet_ffgate1", "skipnet_ffgate2", "skipnet_rnn"]


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("skipnet_ffgate1", 0.156, 0.1563),  # the thesis says 19 %; its layers give 5/32 (docs/skipnet.md)
        ("skipnet_ffgate2", 0.125, 0.1255),
        ("skipnet_rnn", 0.0002, 0.00031),  # the thesis says 0.04 %
    ],
)
@pytest.mark.parametrize(("channels", "size"), [(16, 32), (32, 16), (64, 8)])
def test_gates_cost_what_the_thesis_says_of_a_cifar_block(name, low, high, channels, size):
    policy = build_policy(policy_cfg(name), [Unit("b", "block", channels)])
    block = chain_cost([nn.Conv2d(channels, channels, 3, padding=1)] * 2, size, size)[0]
    assert low <= policy.decision_cost(0, size, size) / block <= high


def test_the_recurrent_gate_shares_its_lstm_and_hears_of_earlier_blocks():
    policy = make("skipnet_rnn").eval()
    assert len(policy.projections) == 4 and len(list(policy.lstm.parameters())) == 4
    features = features_for(policy)
    changed = [features[0] + 3.0, *features[1:]]
    first, second = (ask(policy, x).steps[-1].decision.prob for x in (features, changed))
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("sizes", [None, [(20, 32), (32, 12), (7, 7)]])
def test_without_gradients_the_recurrent_gate_runs_in_numpy_and_says_the_same(sizes):
    policy = make("skipnet_rnn", "SKIPNET.INIT_BIAS", 0.3).eval()
    features = [x[:3] for x in features_for(policy)]
    images = torch.zeros(3, 3, 32, 32)

    def probs() -> torch.Tensor:
        state = policy.begin(images, sizes)
        assert (state.folded is None) == torch.is_grad_enabled()
        return torch.stack([policy.decide(i, x, state).prob for i, x in enumerate(features)])

    before = probs().detach()
    with torch.no_grad():
        assert torch.allclose(probs(), before, atol=1e-6) and before.std() > 1e-3
        policy.projections[1].weight.mul_(-3.0)  # what was folded is folded anew
        policy.lstm.bias_hh.add_(1.0)
        changed = probs()
    assert torch.allclose(changed, probs().detach(), atol=1e-6) and not torch.allclose(changed, before, atol=1e-3)
    with torch.no_grad():
        assert policy.train().begin(images, sizes).folded is None


def test_the_recurrent_gate_computes_what_torchs_lstm_does():
    policy = make("skipnet_rnn").eval()
    features = features_for(policy)
    lstm = nn.LSTM(10, 10)
    for name, parameter in policy.lstm.named_parameters():
        getattr(lstm, f"{name}_l0").data.copy_(parameter)
    pooled = [layer(x.mean((2, 3))) for layer, x in zip(policy.projections, features, strict=True)]
    expected = torch.sigmoid(policy.score(lstm(torch.stack(pooled))[0]))[..., 0]
    probs = torch.stack([step.decision.prob for step in ask(policy, features).steps])
    assert torch.allclose(probs, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["skipnet_ffgate1", "skipnet_ffgate2"])
def test_feed_forward_gates_are_a_soft_max_over_skip_and_run(name):
    policy = make(name).eval()
    gate, x = policy.gates[0], torch.randn(3, 6, 9, 7)
    y = nn.functional.max_pool2d(x, 2) if gate.pool else x
    for conv, norm in zip(gate.convs, gate.norms, strict=True):
        y = norm(conv(y)).relu()
    expected = gate.scores(y.mean((2, 3))).softmax(1)[:, 1]
    assert torch.allclose(ask(policy, [x] * 4).steps[0].decision.prob, expected, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_hard_and_soft_relaxation_differ_in_training_only(name):
    hard, soft = make(name), make(name, "SKIPNET.RELAXATION", "soft")
    soft.load_state_dict(hard.state_dict())
    features = features_for(hard)
    assert set(torch.cat(gates(ask(hard, features))).unique().tolist()) <= {0.0, 1.0}
    between = torch.cat(gates(ask(soft, features)))
    assert ((between > 0) & (between < 1)).all()
    soft.load_state_dict(hard.state_dict())  # statistics that training changed
    assert all(map(torch.equal, gates(ask(hard.eval(), features)), gates(ask(soft.eval(), features))))


def test_the_first_stage_trains_the_gates_through_the_task_alone():
    policy = make("skipnet_rnn")
    trace = ask(policy, features_for(policy))
    assert policy.losses(trace, {}) == {} and not policy.adds_losses
    sum(gate.sum() for gate in gates(trace)).backward()
    assert all(parameter.grad is not None for parameter in policy.parameters())


def test_the_second_stage_samples_in_training_and_thresholds_in_evaluation():
    policy = make("skipnet_rnn", "STAGE", "hrl")
    features = [x.expand(4000, -1, -1, -1) for x in features_for(policy, 1, 2, 2)]
    steps = ask(policy, features, torch.zeros(4000, 3, 4, 4)).steps
    first = steps[0].decision
    assert abs(first.gate.mean() - first.prob[0]).item() < 0.05
    assert all(not step.decision.relaxed and step.decision.log_prob is not None for step in steps)
    again = [gates(ask(policy.eval(), features, torch.zeros(4000, 3, 4, 4))) for _ in range(2)]
    assert all(map(torch.equal, *again))


def slow_loss(trace, losses, alpha, weight, beta=None):
    total, count = 0.0, len(trace.steps)
    for n, loss in enumerate(losses):
        for i, step in enumerate(trace.steps):
            saved = sum(1 - later.decision.gate[n].item() for later in trace.steps[i:])
            used = alpha / count if beta is None else beta
            total -= step.decision.log_prob[n].item() * -(used * float(loss) - alpha / count * saved)
    return weight * total / len(losses)


def test_loss_is_the_weighted_policy_gradient_with_the_loss_of_each_image():
    policy = make("skipnet_ffgate2", "STAGE", "hrl", "SKIPNET.ALPHA", 0.7, "SKIPNET.BETA", 0.0, "SKIPNET.WEIGHT", 0.5)
    trace = ask(policy, features_for(policy))
    trace.context.image_losses = torch.rand(5) * 3
    loss = policy.losses(trace, {"loss_cls": trace.context.image_losses.mean()})["loss_policy"]
    assert loss.item() == pytest.approx(slow_loss(trace, trace.context.image_losses, 0.7, 0.5), abs=1e-5)
    policy.beta = 1.0
    loss = policy.losses(trace, {})["loss_policy"]
    assert loss.item() == pytest.approx(slow_loss(trace, trace.context.image_losses, 0.7, 0.5, beta=1.0), abs=1e-5)


def test_where_the_task_has_no_loss_per_image_each_image_gets_that_of_the_batch():
    policy = make("skipnet_rnn", "STAGE", "hrl", "SKIPNET.ALPHA", 2.0, "SKIPNET.BETA", 0.0)
    trace = ask(policy, features_for(policy))
    task = {"loss_box": torch.tensor(1.5, requires_grad=True), "loss_cls": torch.tensor(0.5)}
    loss = policy.losses(trace, task)["loss_policy"]
    assert loss.item() == pytest.approx(slow_loss(trace, [2.0] * 5, 2.0, 1.0), abs=1e-5)
    loss.backward()
    assert task["loss_box"].grad is None  # the reward is a number


def test_reinforcement_makes_blocks_that_pay_off_more_likely_and_others_less():
    """One gate; running costs a loss of 5 in one network and saves 5 in the other."""
    for worth, rises in ((5.0, True), (-5.0, False)):
        policy = make("skipnet_rnn", "STAGE", "hrl", "SKIPNET.ALPHA", 1.0, "SKIPNET.WEIGHT", 1.0, count=1)
        features = [torch.ones(256, 6, 2, 2)]
        before = ask(policy.eval(), features).steps[0].decision.prob[0].item()
        optimizer = torch.optim.SGD(policy.parameters(), 0.02)
        policy.train()
        for _ in range(20):
            trace = ask(policy, features, torch.zeros(256, 3, 4, 4))
            trace.context.image_losses = 5 - worth * trace.steps[0].decision.gate
            optimizer.zero_grad()
            policy.losses(trace, {})["loss_policy"].backward()
            optimizer.step()
        after = ask(policy.eval(), features).steps[0].decision.prob[0].item()
        assert (after > before + 0.02) if rises else (after < before - 0.02)


def logits_where_skipping_is_free(policy, rate, iterations):
    """Their mean before each step of REINFORCE; the task's loss is the same whatever runs."""
    features, images = [torch.ones(64, 6, 2, 2)] * 4, torch.zeros(64, 3, 4, 4)
    optimizer = torch.optim.SGD(policy.parameters(), rate, momentum=0.9)
    logits = []
    for _ in range(iterations):
        trace = ask(policy, features, images)
        logits.append(torch.stack([torch.logit(step.decision.prob[0].detach()) for step in trace.steps]).mean().item())
        trace.context.image_losses = torch.full((64,), 0.5)
        optimizer.zero_grad()
        policy.losses(trace, {})["loss_policy"].backward()
        optimizer.step()
    return logits


def test_the_default_weight_moves_the_policy_by_whole_logits_where_skipping_is_free():
    """The rate is that of the yaml for digits."""
    logits = logits_where_skipping_is_free(make("skipnet_rnn", "STAGE", "hrl", "SKIPNET.INIT_BIAS", 2.0), 0.03, 150)
    assert logits[0] > 1.0 and logits[-1] < logits[0] - 2.0


def test_the_yaml_for_cifar_moves_the_policy_by_whole_logits_where_skipping_is_free():
    """A hundredth of its iterations at a hundred times its rate; with the authors' ALPHA 0.1 it is half a logit."""
    cfg = build_cfg("SkipNet/cifar.yaml", ["MODEL.POLICY.STAGE", "hrl"])
    policy = build_policy(cfg, units())
    logits = logits_where_skipping_is_free(policy, 100 * cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER // 100)
    assert len(logits) == 100 and logits[-1] < logits[0] - 2.0


def test_new_recurrent_gates_see_the_image():
    """Published initialisation N(0, 2 / 10): the spread of the first logits over images is several times that of a
    default linear layer."""
    torch.manual_seed(0)
    policy = make("skipnet_rnn", channels=64, count=8).eval()
    assert policy.projections[0].weight.std().item() == pytest.approx(0.2**0.5, rel=0.1)
    features = [torch.rand(200, 64, 1, 1) for _ in policy.units]

    def spread() -> float:
        return torch.stack([torch.logit(s.decision.prob) for s in ask(policy, features).steps]).std(1).mean().item()

    published = spread()
    for projection in policy.projections:
        projection.reset_parameters()
    assert published > 0.1 and published > 3 * spread()


def test_noisy_gates_try_the_other_way_in_training_as_often_as_their_probability_says():
    policy = make("skipnet_rnn", "SKIPNET.RELAXATION", "noisy", "SKIPNET.INIT_BIAS", 1.0)
    features = [x.expand(4000, -1, -1, -1) for x in features_for(policy, 1, 2, 2)]
    first = ask(policy, features, torch.zeros(4000, 3, 4, 4)).steps[0].decision
    assert set(first.gate.unique().tolist()) == {0.0, 1.0} and first.relaxed
    assert abs(first.gate.mean() - first.prob[0]).item() < 0.05
    again = ask(policy.eval(), features, torch.zeros(4000, 3, 4, 4)).steps[0].decision
    assert torch.equal(again.gate.detach(), (again.prob > 0.5).float())


def test_self_critical_baseline_subtracts_the_return_of_the_greedy_path():
    policy = make("skipnet_rnn", "STAGE", "hrl", "SKIPNET.BASELINE", "self_critical")
    assert policy.wants_greedy and not make("skipnet_rnn", "STAGE", "hrl").wants_greedy
    features = features_for(policy)
    trace = ask(policy, features)
    trace.context.image_losses = torch.rand(5)
    with pytest.raises(ValueError, match="self_critical needs the greedy pass"):
        policy.losses(trace, {})
    trace.context.greedy = Trace(steps=trace.steps, context=Context(image_losses=trace.context.image_losses))
    assert policy.losses(trace, {})["loss_policy"].item() == 0.0  # the sampled path is no better
    policy.eval()
    greedy = ask(policy, features)
    policy.train()
    greedy.context.image_losses = torch.rand(5)
    trace.context.greedy = greedy
    expected = slow_loss(trace, trace.context.image_losses, 1.0, 1.0, beta=1.0)
    mixed = Trace(steps=[], context=Context(image_losses=greedy.context.image_losses))
    for sampled, step in zip(trace.steps, greedy.steps, strict=True):
        step.decision.log_prob = sampled.decision.log_prob
        mixed.steps.append(step)
    expected -= slow_loss(mixed, greedy.context.image_losses, 1.0, 1.0, beta=1.0)
    assert policy.losses(trace, {})["loss_policy"].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_entering_the_second_stage_sharpens_the_policy_once(name):
    plain = make(name, "STAGE", "hrl").eval()
    sharp = make(name, "STAGE", "hrl", "SKIPNET.HRL_TEMPERATURE", 0.25).eval()
    sharp.load_state_dict(plain.state_dict())
    plain.enter_stage()
    sharp.enter_stage()
    features = features_for(plain)
    for a, b in zip(ask(plain, features).steps, ask(sharp, features).steps, strict=True):
        assert torch.allclose(torch.logit(b.decision.prob), 4 * torch.logit(a.decision.prob), atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_temperature_and_start_of_the_gates(name):
    warm = make(name, "TEMPERATURE", 2.0, "SKIPNET.INIT_BIAS", 3.0).eval()
    for layer in warm.last_layers():
        nn.init.zeros_(layer.weight)
    prob = ask(warm, features_for(warm)).steps[0].decision.prob
    assert torch.allclose(prob, torch.sigmoid(torch.tensor(1.5)).expand(5))


def test_a_map_too_small_for_the_pooling_is_an_error_that_names_the_unit():
    policy = make("skipnet_ffgate1").eval()
    with pytest.raises(ValueError, match=r"gate of res2.0 pools 2x2, but its feature map is 1x7"):
        ask(policy, features_for(policy, 2, 1, 7))
    for name in ("skipnet_ffgate2", "skipnet_rnn"):
        policy = make(name)
        ask(policy, features_for(policy, 2, 1, 1))


def test_bad_values_name_their_key():
    with pytest.raises(ValueError, match="MODEL.POLICY.SKIPNET.RELAXATION is 'medium'"):
        make("skipnet_rnn", "SKIPNET.RELAXATION", "medium")
    with pytest.raises(ValueError, match="MODEL.POLICY.SKIPNET.BASELINE is 'mean'"):
        make("skipnet_rnn", "SKIPNET.BASELINE", "mean")
    with pytest.raises(ValueError, match="MODEL.POLICY.TEMPERATURE is 0.0"):
        make("skipnet_rnn", "TEMPERATURE", 0.0)
