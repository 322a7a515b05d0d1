"""Sparse execution of blocks against running everything and masking."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dyn_d2.gating.decisions import Decision, bernoulli, fixed, hard_threshold, soft
from dyn_d2.gating.execution import (
    gather,
    move_to_front,
    run_block,
    run_by_choice,
    running_statistics,
    scatter,
    without_gradient,
)

LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
CHOICES = {"none": [0, 0, 0, 0], "one": [0, 0, 1, 0], "some": [1, 0, 1, 1], "all": [1, 1, 1, 1]}


class Residual(nn.Module):
    def __init__(self, stride: int = 1):
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(4, 4, 3, stride, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        nn.init.normal_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)
        self.images = 0

    def branch(self, x):
        self.images += len(x)
        return self.last(self.norm(self.conv(x)))

    def fused(self, x, skip):
        return skip.add_(self.branch(x)).relu_()

    def sparse(self, x, decision, skip=None, *, fused=False, **options):
        options["fused"] = self.fused if fused and not self.training else None
        return run_block(self.branch, x, x if skip is None else skip, decision, owner=self, **options)

    def masked(self, x, gate, skip=None):
        """Every image in the batch; only for norms that treat each image by itself."""
        skip = x if skip is None else skip
        gate = gate.reshape(-1, 1, 1, 1)
        return gate * F.relu(self.branch(x) + skip) + (1 - gate) * skip


fused_or_not = pytest.mark.parametrize("fused", [True, False], ids=["fused", "layers"])


@fused_or_not
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_evaluation_equals_masking(choice, layout, fused):
    block = Residual().eval().to(memory_format=layout)
    x = torch.randn(4, 4, 5, 6).contiguous(memory_format=layout)
    gate, kept = torch.tensor(choice), x.clone()
    expected = block.masked(x, gate.float())
    with torch.no_grad():
        out = block.sparse(x, fixed(gate), fused=fused)
        assert torch.equal(x, kept)
        copy = x.clone(memory_format=torch.preserve_format)
        overwritten = block.sparse(copy, fixed(gate), fused=fused, overwrite=True)
    for result in (out, overwritten, block.sparse(x, fixed(gate))):  # the last one with gradients
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)
        assert fused or result.is_contiguous(memory_format=layout)


@fused_or_not
@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_evaluation_with_a_projection_of_another_size(choice, fused):
    block = Residual(stride=2).eval()
    x, skip, gate = torch.randn(4, 4, 6, 6), torch.randn(4, 4, 3, 3), torch.tensor(choice)
    expected = block.masked(x, gate.float(), skip)
    with torch.no_grad():
        torch.testing.assert_close(block.sparse(x, fixed(gate), skip.clone(), fused=fused), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("training, fused", [(False, True), (False, False), (True, False)])
def test_only_open_images_run(choice, training, fused):
    block = Residual().train(training)
    with torch.set_grad_enabled(training):
        block.sparse(torch.randn(4, 4, 5, 5), fixed(torch.tensor(choice)), fused=fused)
    assert block.images == sum(choice)


def test_sampled_gates_run_only_open_images_in_training():
    block = Residual()
    decision = bernoulli(torch.tensor([0.5] * 8, requires_grad=True))
    block.sparse(torch.randn(8, 4, 5, 5), decision)
    assert block.images == int(decision.gate.sum())


def _slow_training(block: Residual, x, prob):
    """Image by image: batch statistics of the open ones, running statistics and no gradient for the closed ones."""
    gate = (prob > 0.5).float() + prob - prob.detach()
    rows = [i for i in range(len(x)) if prob[i] > 0.5]
    statistics = block.norm.running_mean.clone(), block.norm.running_var.clone()
    opened = F.relu(block.branch(torch.stack([x[i] for i in rows])) + torch.stack([x[i] for i in rows]))
    out = []
    for i in range(len(x)):
        if i in rows:
            full = opened[rows.index(i)]
        else:
            with torch.no_grad():
                hidden = F.batch_norm(block.conv(x[i : i + 1]), *statistics, block.norm.weight, block.norm.bias)
                full = F.relu(block.last(hidden) + x[i : i + 1])[0]
        out.append(gate[i] * full + (1 - gate[i]) * x[i])
    return torch.stack(out)


def test_training_equals_the_slow_reference_with_gradients_of_gates():
    torch.manual_seed(1)
    block, slow = Residual(), Residual()
    slow.load_state_dict(block.state_dict())
    results = []
    for module in (block, slow):
        generator = torch.Generator().manual_seed(3)
        x = torch.randn(5, 4, 4, 4, generator=generator, requires_grad=True)
        prob = torch.tensor([0.9, 0.2, 0.6, 0.4, 0.8], requires_grad=True)
        if module is block:
            # What closed images are computed with is what the norm had before this step.
            before = block.norm.running_mean.clone()
            out = module.sparse(x, hard_threshold(prob))
            assert not torch.equal(before, block.norm.running_mean)
        else:
            out = _slow_training(module, x, prob)
        (out * torch.randn(out.shape, generator=generator)).sum().backward()
        results.append([out, x.grad, prob.grad, *(p.grad for p in module.parameters()), *module.buffers()])
    assert block.images == 5
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("relaxed", [True, False])
def test_batch_statistics_do_not_see_skipped_images(relaxed):
    block, alone = Residual(), Residual()
    alone.load_state_dict(block.state_dict())
    x, prob = torch.randn(4, 4, 5, 5), torch.tensor([0.9, 0.1, 0.8, 0.2], requires_grad=relaxed)
    block.sparse(x, hard_threshold(prob))
    alone.sparse(x[[0, 2]], fixed(torch.ones(2)))
    for name, value in block.norm.state_dict().items():
        torch.testing.assert_close(value, alone.norm.state_dict()[name])


def test_all_closed_in_training_gives_the_input_and_gates_a_gradient():
    block = Residual()
    x, prob = torch.randn(3, 4, 5, 5), torch.full((3,), 0.3, requires_grad=True)
    before = block.norm.running_mean.clone()
    out = block.sparse(x, hard_threshold(prob))
    out.square().sum().backward()
    assert torch.equal(out, x) and torch.equal(before, block.norm.running_mean)
    assert (prob.grad != 0).all() and block.conv.weight.grad is None and block.norm.training


def test_soft_gates_weigh():
    block = Residual().eval()
    x, prob = torch.randn(3, 4, 5, 5), torch.tensor([0.2, 0.0, 1.0])
    expected = block.masked(x, prob)
    for decision in (soft(prob), soft(prob.clone().requires_grad_())):
        for training in (False, True):
            block.train(training)
            with running_statistics(block):
                torch.testing.assert_close(block.sparse(x, decision), expected, atol=1e-5, rtol=0)


def test_one_pixel_of_one_image_uses_running_statistics_in_training():
    block = Residual()
    x = torch.randn(3, 4, 1, 1)
    before = block.norm.running_mean.clone()
    out = block.sparse(x, fixed(torch.tensor([0, 1, 0])))
    assert torch.equal(before, block.norm.running_mean) and torch.isfinite(out).all()
    torch.testing.assert_close(out, block.eval().masked(x, torch.tensor([0.0, 1, 0])), atol=1e-5, rtol=0)


@pytest.mark.parametrize("training", [False, True])
def test_empty_batch(training):
    block = Residual().train(training)
    x = torch.zeros(0, 4, 5, 5, requires_grad=True)
    prob = torch.zeros(0, requires_grad=True)
    out = block.sparse(x, hard_threshold(prob))
    out.sum().backward()
    assert out.shape == x.shape and block.images == 0 and x.grad.shape == x.shape


def test_weights_that_are_cast_without_gradient_get_one_afterwards():
    conv = torch.nn.Conv2d(2, 2, 1)
    with torch.autocast("cpu", torch.bfloat16):
        with without_gradient():
            assert not conv(torch.ones(1, 2, 1, 1)).requires_grad
        conv(torch.ones(1, 2, 1, 1)).float().sum().backward()
    assert torch.equal(conv.weight.grad, torch.ones_like(conv.weight))


def test_half_precision_branches_keep_their_gradients():
    block = Residual()
    x, prob = torch.randn(4, 4, 5, 5), torch.tensor([0.9, 0.1, 0.8, 0.2], requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = block.sparse(x, hard_threshold(prob))
    out.float().square().sum().backward()
    assert torch.isfinite(prob.grad).all() and block.conv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("in_place", [False, True])
def test_gather_and_scatter_are_indexing_that_keeps_the_layout(layout, in_place):
    x = torch.randn(5, 3, 4, 4).contiguous(memory_format=layout)
    part = gather(x, [3, 0])
    assert torch.equal(part, x[[3, 0]]) and part.is_contiguous(memory_format=layout)
    expected = x.clone()
    expected[[3, 0]] = -part
    out = scatter(x, [3, 0], -part, in_place=in_place)
    assert torch.equal(out, expected) and out.is_contiguous(memory_format=layout)
    assert (out is x) == in_place


def test_gradient_through_what_was_chosen_only():
    block = Residual().eval()
    x = torch.randn(3, 4, 5, 5, requires_grad=True)
    gate = torch.tensor([1.0, 0.0, 1.0])
    block.sparse(x, Decision(gate)).sum().backward()
    ours, x.grad = x.grad, None
    block.masked(x, gate).sum().backward()
    torch.testing.assert_close(ours, x.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("stay", [[0, 0, 0], [1, 1, 1], [0, 1, 1, 0, 0, 1], [1, 1, 0, 0], [0, 0, 1, 1], []])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_images_that_stay_move_to_the_front(stay, layout):
    x = torch.randn(len(stay), 3, 4, 5).contiguous(memory_format=layout)
    before, stay = x.clone(), torch.tensor(stay, dtype=torch.bool)
    front, order = move_to_front(x, stay)
    assert sorted(order.tolist()) == stay.nonzero().flatten().tolist()
    assert torch.equal(front, before[order]) and front.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    assert not len(stay) or front.is_contiguous(memory_format=layout)
    moved = sum(place != image for place, image in enumerate(order.tolist()))
    assert moved <= int((~stay).sum())


def test_on_a_cpu_images_run_in_few_different_numbers(monkeypatch):
    seen = set()

    def run(x, _, skip):
        seen.add(len(x))
        return skip.add_(1)

    for count in range(1, 100):
        x = torch.randn(count, 3, 4, 4).contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(run_by_choice(run, x, x, [True] * count), x + 1)
    assert seen == set(range(1, 17))
    monkeypatch.setattr("dyn_d2.gating.execution.PIECE", 5 * 48)
    seen.clear()
    torch.testing.assert_close(run_by_choice(run, x, x, [True] * len(x)), x + 1)
    assert seen == {5, 4}
