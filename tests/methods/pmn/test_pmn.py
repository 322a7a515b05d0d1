"""PMN: actions, rewards and gradients against loops over single images."""

import itertools
import math

import pytest
import torch
from toy_gated import ask, features_for, make, policy_cfg, units

from dyn_d2.gating import Unit
from dyn_d2.gating.policies import build_policy
from dyn_d2.methods.pmn.levels import KnowledgeLevels
from dyn_d2.methods.pmn.module_predictions import WeightedAverage
from dyn_d2.methods.pmn.policy import PMN, usage_reward
from dyn_d2.methods.pmn.rollout import GREEDY, SAMPLED
from dyn_d2.utils.errors import UserError

# Level 0 leads to 1 and, in two steps, to 2; level 3 is apart, and where to begin.
START = [True, False, False, True]
REACH = [[0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
LEVELS = KnowledgeLevels("abcd", "xy", torch.tensor(START), torch.tensor(REACH).bool(), torch.ones(4, 2).bool())


def pmn(count: int = 4, levels: KnowledgeLevels = LEVELS, **arguments) -> PMN:
    return PMN(units(count=count), stage="joint", levels=levels, width=8, **arguments)


def with_probabilities(policy: PMN, q: torch.Tensor, p: torch.Tensor) -> PMN:
    """q (N, K) and p (N, K, M) in place of those of the network."""
    policy.probabilities = lambda module, features, state: (q[state.rows, module], p[state.rows, module])
    return policy


def slow_space(taken: set[int], overlap: bool) -> set[int]:
    if not taken:
        return {j for j in range(4) if START[j]}
    below = {j for i in taken for j in range(4) if REACH[i][j]}
    return below | taken if overlap else below - taken


def slow_greedy(q, p, overlap):
    """For one image: m, a_k as sets, and the modules that predict, counted from 0."""
    taken, actions, predicting, count = set(), [], [], len(q)
    for k in range(count):
        goes = q[k] > 0.5
        chosen = {j for j in slow_space(taken, overlap) if p[k][j] > 0.5} if goes else set()
        actions.append(chosen)
        taken |= chosen
        if chosen:
            predicting.append(k)
        if not goes or k == count - 1:
            if not predicting:
                predicting.append(k)
            return k + 1, actions, predicting
    raise AssertionError


def test_the_reward_is_equation_7():
    stops, accuracy = torch.randint(1, 27, (6,)), torch.rand(6)
    found = usage_reward(stops, 26, accuracy, 0.5)
    for n in range(6):
        expected = 0.5 * (1 - (stops[n].item() / 26) ** 2) + accuracy[n].item()
        assert found[n].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("overlap", [True, False])
def test_greedy_actions_are_those_of_one_image_after_the_other(overlap):
    images, count = 60, 4
    q, p = 0.3 + torch.rand(images, count), torch.rand(images, count, 4)
    policy = with_probabilities(pmn(overlap=overlap), q, p).eval()
    trace = ask(policy, features_for(policy, images))
    rollout = trace.context.state.rollouts[GREEDY]
    predicting = {n: [] for n in range(images)}
    for output in trace.context.state.outputs:
        for n in output.rows[output.predictions[GREEDY].predicts].tolist():
            predicting[n].append(output.module)
    for n in range(images):
        stop, actions, expected = slow_greedy(q[n].tolist(), p[n].tolist(), overlap)
        assert rollout.stops[n] == stop and predicting[n] == expected and rollout.counts[n] == len(expected)
        found = [set(levels[n].nonzero()[:, 0].tolist()) for levels in rollout.levels]
        assert found == actions + [set()] * (count - len(actions))
        assert [bool(step.decision.open[n]) for step in trace.steps] == [k < stop for k in range(count)]
        route = trace.routes()[n]
        assert [set(taken.nonzero()[0].tolist()) for taken in route.levels.values()] == found
    assert route.level_names == tuple("abcd") and list(route.levels) == [unit.name for unit in policy.units]


@pytest.mark.parametrize("actions", ["levels", "modules", "stop"])
def test_log_probabilities_are_those_of_the_actions_that_were_taken(actions):
    images, count, alpha, stop_alpha = 40, 4, 0.8, 0.9
    levels = LEVELS if actions == "levels" else KnowledgeLevels.flat()
    m = len(levels)
    q, p = torch.rand(images, count), torch.rand(images, count, m)
    policy = pmn(levels=levels, actions=actions, alpha=alpha, stop_alpha=stop_alpha)
    trace = ask(with_probabilities(policy, q, p).train(), features_for(policy, images))
    rollout = trace.context.state.rollouts[SAMPLED]
    found = torch.stack(rollout.log_probs, 1)
    for n in range(images):
        taken, stop = set(), int(rollout.stops[n])
        for k in range(count):
            if k >= stop:
                assert found[n, k] == 0 and not rollout.levels[k][n].any()
                continue
            bound = stop_alpha * q[n, k] + (1 - stop_alpha) * (1 - q[n, k])
            went = k < stop - 1 or bool(rollout.going[n])
            expected = math.log(bound if went else 1 - bound)
            chosen = set(rollout.levels[k][n].nonzero()[:, 0].tolist())
            if actions == "stop":
                assert chosen == ({0} if went else set())
            elif went:
                space = slow_space(taken, True) if actions == "levels" else {0}
                assert chosen <= space
                for j in space:
                    bound = float(alpha * p[n, k, j] + (1 - alpha) * (1 - p[n, k, j]))
                    expected += math.log(bound if j in chosen else 1 - bound)
            else:
                assert not chosen
            taken |= chosen
            assert found[n, k].item() == pytest.approx(expected, abs=1e-5)


def test_both_rollouts_share_what_runs():
    policy = pmn().train()
    trace = ask(policy, features_for(policy, 30))
    sampled, greedy = (trace.context.state.rollouts[name] for name in (SAMPLED, GREEDY))
    opened = torch.stack([step.decision.open for step in trace.steps], 1).sum(1)
    assert torch.equal(opened, torch.maximum(sampled.stops, greedy.stops))


def test_the_policy_gradient_is_in_expectation_that_of_the_enumerated_reward():
    """Eq. 8 to 12 with two modules and one level: all paths by hand, against the mean of many samples."""
    images, alpha, weight = 100_000, 0.8, 0.5
    logit_q = torch.tensor([0.4, -0.3], requires_grad=True)
    logit_p = torch.tensor([-0.2, 0.7], requires_grad=True)

    def accuracy(stop: int, first: bool, second: bool) -> float:  # any function of the path
        return 0.1 + 0.2 * stop + 0.5 * first - 0.3 * second

    def bound(prob):
        return alpha * prob + (1 - alpha) * (1 - prob)

    q, p = bound(torch.sigmoid(logit_q)), bound(torch.sigmoid(logit_p))
    expected = torch.zeros(())
    for t0, a0, t1, a1 in itertools.product((0, 1), repeat=4):
        if (a0 and not t0) or (t1 and not t0) or (a1 and not t1):
            continue
        prob = q[0] if t0 else 1 - q[0]
        if t0:
            prob = prob * (p[0] if a0 else 1 - p[0]) * (q[1] if t1 else 1 - q[1])
        if t1:
            prob = prob * (p[1] if a1 else 1 - p[1])
        stop = 2 if t0 else 1
        expected = expected + prob * (weight * (1 - (stop / 2) ** 2) + accuracy(stop, bool(a0), bool(a1)))
    expected.backward()
    wanted = torch.cat([logit_q.grad, logit_p.grad])

    logit_q.grad = logit_p.grad = None
    policy = pmn(2, KnowledgeLevels.flat(), alpha=alpha, stop_alpha=alpha, usage_weight=weight).train()
    q, p = torch.sigmoid(logit_q).expand(images, 2), torch.sigmoid(logit_p).expand(images, 2)[..., None]
    torch.manual_seed(0)
    trace = ask(with_probabilities(policy, q, p), features_for(policy, images, 1, 1))
    for rollout in trace.context.state.rollouts.values():
        first, second = (levels[:, 0].float() for levels in rollout.levels)
        rollout.accuracy = 0.1 + 0.2 * rollout.stops + 0.5 * first - 0.3 * second
    policy.losses(trace, {})["loss_policy"].backward()
    found = -torch.cat([logit_q.grad, logit_p.grad])
    torch.testing.assert_close(found, wanted, atol=0.006, rtol=0)


def test_the_recurrent_policy_is_torchs_lstm_over_pooled_features():
    policy = pmn().eval()
    torch.nn.init.constant_(policy.score.bias, 5.0)  # nobody stops
    features = features_for(policy)
    trace = ask(policy, features)
    lstm = torch.nn.LSTM(8, 8)
    for name, parameter in policy.lstm.named_parameters():
        getattr(lstm, f"{name}_l0").data.copy_(parameter)
    # What a module gives is the input of the next block; the toy gives the last block's input once more.
    given = [*features[1:], features[-1]]
    inputs = torch.stack([policy.projections[0](x.mean((2, 3))).relu() for x in given])
    torch.testing.assert_close(trace.context.state.hidden[0], lstm(inputs)[0][-1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("actions", "number", "running", "predicting"),
    [
        ("fixed", 3, [0, 1, 2], [2]),
        ("fixed", 0, [0, 1, 2, 3, 4, 5], [5]),
        ("distribute", 3, [1, 3, 5], [1, 3, 5]),
        ("distribute", 2, [2, 5], [2, 5]),
    ],
)
def test_heuristics_run_and_predict_as_the_paper_says(actions, number, running, predicting):
    for training in (True, False):
        policy = pmn(6, KnowledgeLevels.flat(), actions=actions, num_modules=number).train(training)
        trace = ask(policy, features_for(policy, 3))
        assert [i for i, step in enumerate(trace.steps) if step.decision.open.all()] == running
        assert all(step.decision.open.all() or not step.decision.open.any() for step in trace.steps)
        assert [output.module for output in trace.context.state.outputs] == predicting
        assert not list(policy.parameters()) and policy.losses(trace, {}) == {} and not policy.adds_losses


def test_random_modules_are_drawn_once_and_belong_to_the_model():
    first = pmn(12, KnowledgeLevels.flat(), actions="random", num_modules=5)
    assert int(first.selected.sum()) == 5
    second = pmn(12, KnowledgeLevels.flat(), actions="random", num_modules=5)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.selected, second.selected)
    trace = ask(second.eval(), features_for(second, 2))
    assert [output.module for output in trace.context.state.outputs] == second.selected.nonzero()[:, 0].tolist()


def test_pre_training_runs_everything_and_predicts_last():
    policy = make("pmn", "PMN.WIDTH", 8).train()
    trace = ask(policy, features_for(policy))
    assert all(step.decision.open.all() for step in trace.steps)
    (output,) = trace.context.state.outputs
    assert output.module == 3 and not output.predictions[GREEDY].plain.any()
    assert policy.losses(trace, {}) == {} and trace.gates().sum() == 0


def test_the_last_stages_alone_can_be_modules():
    policy = make("pmn", "STAGE", "joint", "PMN.STAGES", 1, "PMN.WIDTH", 8).eval()
    torch.nn.init.constant_(policy.score.bias, -5.0)  # everybody stops at once
    trace = ask(policy, features_for(policy, 2))
    assert [step.decision.open.tolist()[0] for step in trace.steps] == [True, True, True, False]
    assert trace.context.state.rollouts[GREEDY].stops.tolist() == [1, 1]
    assert [output.module for output in trace.context.state.outputs] == [0]  # nothing else has predicted
    assert trace.context.state.outputs[0].predictions[GREEDY].plain.all()


def test_each_number_of_channels_has_a_projection():
    stages = [Unit("a", "block", 6, 1, 0, 6), Unit("b", "block", 6, 1, 1, 9), Unit("c", "block", 9, 1, 2, 12)]
    policy = build_policy(policy_cfg("pmn", "STAGE", "joint", "PMN.WIDTH", 5), stages).train()
    assert policy.module_channels == [6, 9, 12]
    assert [layer.in_features for layer in policy.projections] == [6, 9, 12]
    assert policy.stay_cost(0) == 0 and policy.stay_cost(3) == 12 * 5 + 5 * 2 + 4 * 5 * 10


def test_the_cost_of_deciding_is_counted_for_images_that_are_asked():
    images, count = 3, 4
    q = torch.ones(images, count)
    q[0, 0] = q[1, 2] = 0.0
    policy = with_probabilities(pmn(), q, torch.rand(images, count, 4)).eval()
    trace = ask(policy, features_for(policy, images))
    each = policy.stay_cost(1)
    assert trace.gates().tolist() == [each, 3 * each, 4 * each]
    assert trace.executed().tolist() == [10 + each, 60 + 3 * each, 100 + 4 * each]
    assert trace.dense() == 100.0


def test_what_cannot_be_is_said():
    for keys, message in (
        (("PMN.ACTIONS", "all"), "PMN.ACTIONS is 'all'"),
        (("PMN.ALPHA", 0.4), "PMN.ALPHA is 0.4"),
        (("PMN.STOP_ALPHA", 1.1), "PMN.STOP_ALPHA is 1.1"),
        (("PMN.MODULES", 9), "there are 4 modules"),
        (("PMN.STAGES", 5), "2 stages"),
        (("PMN.TRAIN_ON", "greedy"), "TRAIN_ON"),
    ):
        with pytest.raises(ValueError, match=message):
            make("pmn", *keys)
    policy = make("pmn", "STAGE", "joint").train()
    with pytest.raises(UserError, match="DynamicSegmentor with MODEL.SEM_SEG_HEAD.NAME PMNHead"):
        policy.losses(ask(policy, features_for(policy)), {})


def test_trees_come_from_the_config():
    policy = make("pmn", "PMN.TREE", "cifar10", "PMN.WIDTH", 8)
    assert len(policy.levels) == 7 and policy.levels.names[0] == "thing" and policy.score.out_features == 8
    assert len(make("pmn", "PMN.TREE", "cifar10", "PMN.ACTIONS", "modules").levels) == 1


def test_what_a_module_scores_in_pretraining_is_its_rollout():
    policy = PMN(units(count=3), stage="pretrain", levels=LEVELS, width=8, pretrain="all").train()
    state = ask(policy, features_for(policy, 2)).context.state
    own = iter([torch.full((2, 2), float(module)) for module in range(3)])
    found = WeightedAverage(torch.ones(4, 2).bool(), 0.8)(state, lambda features, rows: next(own))
    means = {name: logits.mean().item() for name, logits in found.items()}
    assert means == {"greedy": 2.0, "module 0": 0.0, "module 1": 1.0}
    assert state.trained == tuple(found)
    policy.eval()
    assert [output.module for output in ask(policy, features_for(policy, 2)).context.state.outputs] == [2]
