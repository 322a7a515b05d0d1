"""What holds for every registered policy and every kind of unit that it decides about."""

import pytest
import torch
from toy_gated import ask, features_for, gates, make, policy_cfg, units

from dyn_d2.gating import Context, Trace
from dyn_d2.gating.policies import POLICY_REGISTRY, build_policy

# Units of other kinds are decided about in networks of their own.
KINDS = ("block", "group", "channel")
CASES = [(name, kind) for name, policy in POLICY_REGISTRY for kind in policy.KINDS if kind in KINDS]
STAGED = [(name, kind, stage) for name, kind in CASES for stage in POLICY_REGISTRY.get(name).STAGES]


def _losses(policy, trace: Trace) -> dict[str, torch.Tensor]:
    """With made-up losses and accuracies of the images, on a made-up greedy path where the policy wants one."""
    images = len(gates(trace)[0])
    trace.context.image_losses, trace.context.accuracies = torch.rand(images), torch.rand(images)
    for rollout in getattr(trace.context.state, "rollouts", {}).values():
        rollout.accuracy = torch.rand(images)
    if policy.wants_greedy:
        trace.context.greedy = Trace(trace.steps, context=Context(accuracies=torch.rand(images)))
    return policy.training_losses(trace, {"loss_cls": trace.context.image_losses.mean()})


@pytest.mark.parametrize(("name", "kind"), CASES)
@pytest.mark.parametrize("count", [0, 1, 5])
def test_decisions_have_the_shape_of_the_unit_and_are_hard_in_evaluation(name, kind, count):
    policy = make(name, kind=kind).eval()
    trace = ask(policy, features_for(policy, count))
    for gate in gates(trace):
        assert gate.shape == ((count,) if kind == "block" else (count, 3))
        assert gate.dtype == torch.float32
        assert kind == "channel" or set(gate.unique().tolist()) <= {0.0, 1.0}
    assert len(trace.routes()) == count


@pytest.mark.parametrize(("name", "kind", "stage"), STAGED)
def test_a_training_step_gives_finite_losses_and_gradients(name, kind, stage):
    policy = make(name, "STAGE", stage, kind=kind).train()
    labels = torch.tensor([0, 1, 2, 9, 4])
    trace = ask(policy, features_for(policy), labels=labels)
    losses = _losses(policy, trace)
    assert all(key.startswith("loss_") and value.isfinite() for key, value in losses.items())
    if losses:
        sum(losses.values()).backward()
    grads = [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]
    assert all(grad.isfinite().all() for grad in grads)
    assert bool(grads) == bool(losses)


@pytest.mark.parametrize(("name", "kind", "stage"), STAGED)
def test_a_single_image_can_be_trained_on(name, kind, stage):
    policy = make(name, "STAGE", stage, kind=kind).train()
    trace = ask(policy, features_for(policy, 1, 2, 2), images=torch.randn(1, 3, 8, 8))
    assert all(value.isfinite() for value in _losses(policy, trace).values())


@pytest.mark.parametrize(("name", "kind"), [case for case in CASES if case[0] != "random_skip"])
def test_evaluation_is_the_same_for_an_image_alone_and_in_a_batch(name, kind):
    policy = make(name, kind=kind).eval()
    features, images = features_for(policy, 6), torch.randn(6, 3, 32, 32)
    together = gates(ask(policy, features, images))
    for n in range(6):
        alone = gates(ask(policy, [x[n : n + 1] for x in features], images[n : n + 1]))
        for a, b in zip(alone, together, strict=True):
            assert torch.allclose(a[0], b[n], atol=1e-6)


@pytest.mark.parametrize(("name", "kind"), [case for case in CASES if case[0] != "random_skip"])
def test_decisions_do_not_depend_on_padding(name, kind):
    """An image of 16x24 (a map of 4x6) in a batch of 32x32, with rubbish in the padding, decides as it does alone."""
    policy = make(name, kind=kind).eval()
    small, image = features_for(policy, 1, 4, 6), torch.randn(1, 3, 16, 24)
    alone = gates(ask(policy, small, image, [(16, 24)]))
    padded = torch.full((2, 3, 32, 32), 50.0)
    padded[0, :, :16, :24] = image[0]
    maps = []
    for x in small:
        full = torch.full((2, x.shape[1], 8, 8), 100.0)
        full[0, :, :4, :6] = x[0]
        maps.append(full)
    together = gates(ask(policy, maps, padded, [(16, 24), (32, 32)]))
    for a, b in zip(alone, together, strict=True):
        assert torch.allclose(a[0], b[0], atol=1e-5)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_half_precision_gives_float32_probabilities(name, kind):
    policy = make(name, kind=kind).train()
    features = features_for(policy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trace = ask(policy, [x.bfloat16() for x in features])
    for step in trace.steps:
        assert step.decision.gate.dtype == torch.float32
        assert step.decision.prob is None or step.decision.prob.dtype == torch.float32


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_model_in_half_precision_decides(name, kind):
    policy = make(name, kind=kind).eval().bfloat16()
    images = torch.randn(3, 3, 32, 32, dtype=torch.bfloat16)
    trace = ask(policy, [x.bfloat16() for x in features_for(policy, 3)], images)
    assert all(gate.dtype == torch.float32 for gate in gates(trace))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_nothing_of_one_forward_pass_stays_in_the_module(name, kind):
    policy = make(name, kind=kind).eval()
    features, images = features_for(policy), torch.randn(5, 3, 32, 32)
    before = {key: value.clone() for key, value in policy.state_dict().items()}
    torch.manual_seed(3)
    first = gates(ask(policy, features, images))
    torch.manual_seed(3)
    second = gates(ask(policy, features, images))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(before[key], value) for key, value in policy.state_dict().items())


@pytest.mark.parametrize("name", [key for key, _ in POLICY_REGISTRY])
def test_every_policy_says_which_units_it_cannot_decide_about(name):
    for kind in set(KINDS) - set(POLICY_REGISTRY.get(name).KINDS):
        with pytest.raises(ValueError, match=f"{name} decides about .* offers {kind} units"):
            build_policy(policy_cfg(name), units(kind))


def test_unknown_names_and_stages_are_named_with_the_remedy():
    with pytest.raises(ValueError, match="MODEL.POLICY.NAME is 'skipnt': use one of all_open, blockdrop, cdb"):
        make("skipnt")
    with pytest.raises(ValueError, match="MODEL.POLICY.STAGE is 'joint': skipnet_rnn has the stages sp, hrl"):
        make("skipnet_rnn", "STAGE", "joint")
    with pytest.raises(ValueError, match="one stage, leave it empty"):
        make("random_skip", "STAGE", "sp")


@pytest.mark.parametrize("name", ["cdb", "convnet_aig", "random_skip", "fixed"])
@pytest.mark.parametrize("rate", [0.0, -0.5, 1.01])
def test_target_rates_outside_of_0_to_1_are_refused(name, rate):
    with pytest.raises(ValueError, match="MODEL.POLICY.TARGET_RATE"):
        make(name, "TARGET_RATE", rate)


@pytest.mark.parametrize("name", ["cdb", "convnet_aig", "skipnet_rnn"])
@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_thresholds_outside_of_0_to_1_are_refused(name, threshold):
    with pytest.raises(ValueError, match="MODEL.POLICY.THRESHOLD"):
        make(name, "THRESHOLD", threshold)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_training_stage_loads_the_weights_of_the_one_before(name, kind):
    stages = POLICY_REGISTRY.get(name).STAGES
    policies = [make(name, "STAGE", stage, "DEEPMOE.MU", 1.0, kind=kind) for stage in stages]
    for before, after in zip(policies, policies[1:], strict=False):
        after.load_state_dict(before.state_dict())
