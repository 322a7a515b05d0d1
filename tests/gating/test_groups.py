"""Groups: what runs sparsely has to equal what runs in full and is masked."""

import copy

import pytest
import torch
from gated_nets import settle
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dyn_d2.gating.backbones.block import conv_norm
from dyn_d2.gating.cost import chain_cost
from dyn_d2.gating.decisions import Decision, fixed, hard_threshold
from dyn_d2.gating.groups import GroupBranch, run_groups

IMAGES, GROUPS, CHANNELS, SIZE = 6, 4, 8, 5


def make_branches(norm="BN", width: int = 3, count: int = GROUPS) -> nn.ModuleList:
    sizes = (CHANNELS, width, 1), (width, width, 3), (width, CHANNELS, 1)
    branches = [GroupBranch([conv_norm(*size, norm) for size in sizes], torch.relu_) for _ in range(count)]
    return settle(nn.ModuleList(branches))


def masked(branches, x, skip, gate):
    """Everything is computed, and multiplied by its gate."""
    out = skip
    for n, branch in enumerate(branches):
        out = out + gate[:, n, None, None, None] * branch(x)
    return torch.relu(out)


def all_patterns() -> torch.Tensor:
    return torch.tensor([[bool(code >> n & 1) for n in range(GROUPS)] for code in range(2**GROUPS)])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("norm", ["BN", "FrozenBN", "", "GN"])
@pytest.mark.parametrize("size", [1, SIZE])  # images smaller and larger than the weights
def test_evaluation_equals_masked_execution(norm, layout, size):
    make_norm = (lambda channels: nn.GroupNorm(1, channels)) if norm == "GN" else norm
    branches = make_branches(make_norm).eval()
    gate = all_patterns()
    x = torch.randn(len(gate), CHANNELS, 4 * size, 4 * size).contiguous(memory_format=layout)
    kept = x.clone()
    with torch.no_grad():
        expected = masked(branches, x, x, gate.float())
        for overwrite in (False, True):
            torch.testing.assert_close(x, kept, rtol=0, atol=0)
            out = run_groups(branches, x, x, fixed(gate), training=False, overwrite=overwrite)
            torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    out = run_groups(branches, kept, kept, fixed(gate), training=False)  # with gradients
    torch.testing.assert_close(out.detach(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pattern", all_patterns().tolist())
def test_one_image_equals_masked_execution(pattern):
    branches, x, gate = make_branches().eval(), torch.randn(1, CHANNELS, SIZE, SIZE), torch.tensor([pattern])
    with torch.no_grad():
        expected = masked(branches, x, x, gate.float())
        torch.testing.assert_close(
            run_groups(branches, x, x, fixed(gate), training=False), expected, rtol=1e-5, atol=1e-5
        )


def test_soft_gates_in_evaluation():
    branches, x, gate = make_branches().eval(), torch.randn(IMAGES, CHANNELS, SIZE, SIZE), torch.rand(IMAGES, GROUPS)
    with torch.no_grad():
        out = run_groups(branches, x, x, Decision(gate), training=False)
        torch.testing.assert_close(out, masked(branches, x, x, gate), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("images", [1, IMAGES])
def test_evaluation_computes_only_open_groups(images):
    branches, x = make_branches().eval(), torch.randn(images, CHANNELS, SIZE, SIZE)
    each = chain_cost(branches[0].convs(), SIZE, SIZE)[0]
    for gate in (torch.rand(images, GROUPS) < 0.5, torch.zeros(images, GROUPS), torch.ones(images, GROUPS)):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            run_groups(branches, x, x, fixed(gate), training=False)
        assert counter.get_total_flops() == 2 * each * int(gate.sum())


def test_folded_weights_follow_the_parameters():
    branches, x = make_branches().eval(), torch.randn(2, CHANNELS, SIZE, SIZE)
    gate = torch.tensor([[True, False, True, True], [False, True, True, False]])

    def check():
        with torch.no_grad():
            out = run_groups(branches, x, x, fixed(gate), training=False)
            torch.testing.assert_close(out, masked(branches, x, x, gate.float()), rtol=1e-5, atol=1e-5)
        return out

    before = check()
    with torch.no_grad():
        branches[2].conv2.weight.mul_(2)
    changed = check()
    assert not torch.equal(before, changed)
    branches[1].conv3.norm.running_mean.add_(1)
    check()
    branches.load_state_dict(make_branches().state_dict(), assign=True)
    check()
    masked(branches.train(), x, x, gate.float())  # changes running statistics
    branches.eval()
    check()
    x = x.double()
    branches.double()
    assert check().dtype == torch.float64
    assert copy.deepcopy(branches).state_dict().keys() == branches.state_dict().keys()


def count_calls(branches) -> list[list[int]]:
    """Per group the number of images of each call."""
    calls = [[] for _ in branches]
    for n, branch in enumerate(branches):
        branch.register_forward_hook(lambda module, args, out, n=n: calls[n].append(len(args[0])))
    return calls


def test_training_without_relaxation_runs_open_pairs_alone():
    branches, x = make_branches().train(), torch.randn(IMAGES, CHANNELS, SIZE, SIZE)
    reference = copy.deepcopy(branches)
    calls = count_calls(branches)
    gate = torch.tensor([[1, 0, 1, 0]] * 3 + [[1, 0, 0, 1]] * 3)
    out = run_groups(branches, x, x, fixed(gate), training=True)
    assert calls == [[6], [], [3], [3]]
    expected = x + reference[0](x)
    expected = expected + torch.cat([reference[2](x[:3]), reference[3](x[3:])])
    torch.testing.assert_close(out, torch.relu(expected), rtol=1e-5, atol=1e-5)
    # Including the running statistics: those of the closed group have not moved.
    for key, value in reference.state_dict().items():
        torch.testing.assert_close(branches.state_dict()[key], value)


def test_training_gradient_of_gates_and_weights():
    branches, x = make_branches().train(), torch.randn(IMAGES, CHANNELS, SIZE, SIZE)
    reference, running = copy.deepcopy(branches), copy.deepcopy(branches).eval()
    prob = torch.tensor([[0.9, 0.1, 0.8, 0.2]] * 3 + [[0.7, 0.3, 0.4, 0.6]] * 3, requires_grad=True)
    weight = torch.randn(IMAGES, CHANNELS, SIZE, SIZE)
    calls = count_calls(branches)
    (run_groups(branches, x, x, hard_threshold(prob), training=True) * weight).sum().backward()
    assert calls == [[6], [6], [3, 3], [3, 3]]

    # Open pairs with their own batch statistics and gradient, closed ones as constants with running statistics.
    same = prob.detach().clone().requires_grad_()
    gate = hard_threshold(same).gate
    out = x
    for n in range(GROUPS):
        rows = gate.detach()[:, n] > 0
        part = running[n](x).detach()
        if rows.any():
            part = part.index_copy(0, rows.nonzero()[:, 0], reference[n](x[rows]))
        out = out + gate[:, n, None, None, None] * part
    (torch.relu(out) * weight).sum().backward()
    torch.testing.assert_close(prob.grad, same.grad, rtol=1e-4, atol=1e-4)
    assert (prob.grad[:, 1] != 0).all()
    for (name, actual), expected in zip(branches.named_parameters(), reference.parameters(), strict=True):
        if expected.grad is None:
            assert actual.grad is None, name
        else:
            torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-4, atol=1e-4)
    for key, value in reference.state_dict().items():
        torch.testing.assert_close(branches.state_dict()[key], value)


@pytest.mark.parametrize("training", [False, True])
def test_no_images(training):
    branches = make_branches().train(training)
    x = torch.randn(0, CHANNELS, SIZE, SIZE, requires_grad=True)
    prob = torch.rand(0, GROUPS, requires_grad=True)
    out = run_groups(branches, x, x, hard_threshold(prob), training=training)
    assert out.shape == x.shape
    out.sum().backward()
    with torch.no_grad():
        assert run_groups(branches, x, x, fixed(torch.ones(0, GROUPS)), training=training).shape == x.shape
        assert run_groups(branches, x, None, fixed(torch.ones(0, GROUPS)), training=training).shape == x.shape


def test_batch_norm_with_a_single_value():
    branches, x = make_branches().train(), torch.randn(2, CHANNELS, 1, 1)
    gate = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1]])
    before = copy.deepcopy(branches.state_dict())
    out = run_groups(branches, x, x, fixed(gate), training=True)
    assert out.isfinite().all()
    assert torch.equal(branches[0].conv1.norm.running_mean, before["0.conv1.norm.running_mean"])
    assert not torch.equal(branches[1].conv1.norm.running_mean, before["1.conv1.norm.running_mean"])


@pytest.mark.parametrize("images", [1, 5])
def test_without_skip_path(images):
    branches, x = make_branches().eval(), torch.randn(images, CHANNELS, SIZE, SIZE)
    gate = torch.rand(images, GROUPS) < 0.5
    gate[:, 0] = True
    expected = masked(branches, x, torch.zeros_like(x), gate.float())
    with torch.no_grad():
        out = run_groups(branches, x, None, fixed(gate), training=False)
    torch.testing.assert_close(out, expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(run_groups(branches, x, None, fixed(gate), training=False), expected)
