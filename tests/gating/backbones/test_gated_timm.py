"""Gated models of timm: the plain model with open gates, and nothing of a block that is closed."""

import copy

import pytest
import torch
from gated_nets import Forced, force, random_choices
from timm_nets import FAMILIES, PYRAMID, build_timm, saved_weights, timm_cfg
from tiny_tasks import batch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dyn_d2.gating import recording
from dyn_d2.gating.backbones.timm import GatedTimmBackbone
from dyn_d2.gating.backbones.timm_blocks import Layout, residual_blocks
from dyn_d2.gating.decisions import Decision
from dyn_d2.gating.policies.base import Policy
from dyn_d2.modeling.backbone.timm import own_pixels
from dyn_d2.modeling.backbone.timm_folding import FoldedConv2d
from dyn_d2.modeling.backbone.timm_models import build_timm_model

from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

GATED = "build_gated_timm_backbone"
UNITS = {  # how many blocks keep size and channels, and the first of them
    "tf_efficientnet_lite0": (9, "blocks.1.1"),
    "mobilenetv3_small_050": (7, "blocks.1.1"),
    "test_resnet": (1, "layer1.0"),
    "regnetx_002": (9, "s3.b2"),
    "test_convnext": (9, "stages.0.blocks.0"),
    "test_vit": (6, "blocks.0"),
}


def pair(name: str, folder) -> tuple[nn.Module, nn.Module]:
    """A gated and a plain backbone with the same weights, in evaluation mode."""
    weights = saved_weights(name, folder)
    return tuple(build_timm(name, kind, MODEL__TIMM__WEIGHTS=weights).eval() for kind in (GATED, "build_timm_backbone"))


def masked(plain: nn.Module, gated: nn.Module, choices) -> nn.Module:
    """``plain`` with every block computed for all images, and its output replaced by its input where it is closed."""
    plain = copy.deepcopy(plain)
    for unit, choice in zip(gated.policy.units, choices, strict=True):

        def mask(_, inputs, output, choice=choice):
            return torch.where(choice.reshape(-1, *[1] * (output.dim() - 1)), output, inputs[0])

        plain.model.get_submodule(unit.name).register_forward_hook(mask)
    return plain


def assert_equal(found: dict, right: dict) -> None:
    assert found.keys() == right.keys()
    for key, value in found.items():
        scale = right[key].abs().max()
        torch.testing.assert_close(value / scale, right[key] / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_with_open_gates_it_is_the_plain_model(name, tmp_path):
    gated, plain = pair(name, tmp_path)
    units = gated.policy.units
    assert (len(units), units[0].name) == UNITS[name]
    assert all(unit.kind == "block" and unit.channels == unit.out_channels > 0 for unit in units)
    assert gated.state_dict().keys() == plain.state_dict().keys()  # this policy has no parameters
    assert gated.output_shape() == plain.output_shape() and gated.size_divisibility == plain.size_divisibility
    images = torch.randn(3, 3, 64, 96)
    with torch.no_grad():
        assert_equal(gated(images), plain(images))


@pytest.mark.parametrize("name", FAMILIES)
def test_sparse_execution_equals_masked_execution(name, tmp_path):
    gated, plain = pair(name, tmp_path)
    choices = random_choices(gated, 4)
    choices[0][:] = torch.tensor([True, False, True, False])
    force(gated, choices)
    images = torch.randn(4, 3, 64, 96)
    given = images.clone()
    with torch.no_grad():
        assert_equal(gated(images), masked(plain, gated, choices)(images))
    assert torch.equal(images, given)


def test_frozen_norms_are_folded_and_maps_are_channels_last_as_in_the_plain_model(tmp_path):
    keys = {"MODEL__TIMM__WEIGHTS": saved_weights("tf_efficientnet_lite0", tmp_path), "MODEL__BACKBONE__FREEZE_AT": 5}
    gated, plain = (build_timm("tf_efficientnet_lite0", kind, **keys).eval() for kind in (GATED, "build_timm_backbone"))
    folded = [sum(isinstance(layer, FoldedConv2d) for layer in backbone.modules()) for backbone in (gated, plain)]
    assert folded[0] == folded[1] > 40
    choices = random_choices(gated, 4)
    force(gated, choices)
    images, seen = torch.randn(4, 3, 64, 96), []
    gated.model.conv_stem.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    with torch.no_grad():
        assert_equal(gated(images), masked(plain, gated, choices)(images))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_of_a_closed_block_is_computed_and_the_trace_counts_what_ran(name):
    gated = build_timm(name, GATED).eval()
    choices = random_choices(gated, 3)
    choices[0][:], choices[-1][:] = False, True
    force(gated, choices)
    ran = {unit.name: 0 for unit in gated.policy.units}
    for unit in gated.policy.units:
        block = gated.model.get_submodule(unit.name)
        first = next(layer for layer in block.modules() if isinstance(layer, nn.Conv2d | nn.Linear))
        key = unit.name
        first.register_forward_hook(lambda _, inputs, __, key=key: ran.update({key: ran[key] + len(inputs[0])}))
    for size in ((64, 96), (96, 64)):
        with torch.no_grad(), recording() as trace, FlopCounterMode(display=False) as counter:
            gated(torch.randn(3, 3, *size))
        assert counter.get_total_flops() == 2 * float(trace.executed().double().sum())
    opened = [int(choice.sum()) for choice in choices]
    assert list(ran.values()) == [2 * count for count in opened]
    assert [step.unit.name for step in trace.steps] == list(ran)
    costs = {cost.name: cost.dense for cost in trace.costs}
    right = costs.pop("model") + sum(
        choice.float() * cost for choice, cost in zip(choices, costs.values(), strict=True)
    )
    torch.testing.assert_close(trace.executed(), right)


def test_frozen_batch_norms_and_another_device_count_the_same():
    dense = []
    for norm in ("BN", "FrozenBN"):
        gated = build_timm("mobilenetv3_small_050", GATED, MODEL__TIMM__NORM=norm).eval()
        for part in (gated, copy.deepcopy(gated)):
            with torch.no_grad(), recording() as trace:
                part(torch.randn(1, 3, 64, 64))
            dense.append(trace.dense())
    assert len(set(dense)) == 1 and dense[0] > 0


class Halves(Policy):
    """Gates of 0.5, with a gradient, for the first image, 0 for the others."""

    def __init__(self, units):
        super().__init__(units)
        self.gates = nn.Parameter(torch.full((len(units),), 0.5))

    def decide(self, index, features, state):
        assert features.shape[1] == self.units[index].channels and features.dim() == 4
        return Decision(self.gates[index] * (torch.arange(len(features)) == 0))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_training_step_reaches_gates_and_blocks(name, tmp_path):
    gated = pair(name, tmp_path)[0].train()  # new blocks add 0, so that their gates would get no gradient
    gated.policy = Halves(gated.policy.units)
    sum(value.square().mean() for value in gated(torch.randn(3, 3, 64, 96)).values()).backward()
    assert gated.policy.gates.grad.isfinite().all() and (gated.policy.gates.grad != 0).all()
    assert all(parameter.grad.isfinite().all() for parameter in gated.model.parameters())


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "test_vit"])
@pytest.mark.parametrize(
    ("policy", "stage"),
    [
        ("skipnet_ffgate1", "sp"),
        ("skipnet_ffgate2", "sp"),
        ("skipnet_rnn", "sp"),
        ("skipnet_rnn", "hrl"),
        ("convnet_aig", ""),
        ("blockdrop", "joint"),
        ("random_skip", ""),
        ("fixed", ""),
    ],
)
def test_policies_train_and_decide(name, policy, stage):
    keys = {"MODEL__POLICY__NAME": policy, "MODEL__POLICY__STAGE": stage, "MODEL__BACKBONE__FREEZE_AT": 1}
    model = build_model(timm_cfg(name, GATED, **keys))
    with EventStorage():
        losses = model(batch(3))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    grads = [parameter.grad for parameter in model.backbone.policy.parameters()]
    assert not grads or any(grad is not None and grad.abs().sum() > 0 for grad in grads)
    with torch.no_grad():
        results = model.eval()(batch(3))
    routes = [result["route"] for result in results]
    assert all(len(route.open) == len(model.backbone.policy.units) for route in routes)
    assert all(0 < route.executed - route.gates <= route.dense for route in routes)


def test_under_a_feature_pyramid():
    keys = {"MODEL__RESNETS__OUT_FEATURES": PYRAMID, "MODEL__POLICY__NAME": "skipnet_rnn"}
    model = build_model(timm_cfg("tf_efficientnet_lite0", "build_gated_fpn_backbone", "rcnn_fpn", **keys))
    with EventStorage():
        sum(model(batch()).values()).backward()
    with torch.no_grad():
        assert all(0 < len(result["route"].open) for result in model.eval()(batch()))
    assert model.backbone.skips_parameters


def test_gates_see_the_place_of_tokens():
    """Of two images that differ in one patch, the view of the policy differs in that place only."""
    gated = build_timm("test_vit", GATED).eval()
    seen = []

    class Watching(Forced):
        def decide(self, index, features, state):
            seen.append(features.clone())
            return super().decide(index, features, state)

    gated.policy = Watching(gated.policy.units, [torch.zeros(2, dtype=torch.bool)] * len(gated.policy.units))
    images = torch.zeros(2, 3, 64, 96)
    images[1, :, 16:32, 48:64] = 1.0  # row 1, column 3
    with torch.no_grad():
        gated(images)
    different = (seen[0][0] - seen[0][1]).abs().sum(0) > 1e-6
    assert different.nonzero().tolist() == [[1, 3]]


def test_layouts():
    x = torch.arange(2 * 4 * 6 * 5.0).reshape(2, 4, 6, 5)
    assert torch.equal(Layout("NHWC", 16).view(x, 64), x.permute(0, 3, 1, 2))
    tokens = torch.cat([torch.zeros(2, 3, 5), x.flatten(1, 2)], 1)
    assert torch.equal(Layout("NLC", 16, 3).view(tokens, 64), x.permute(0, 3, 1, 2))


class Stage(nn.Module):
    """Two residual blocks one after another, and a scaling that is the identity without parameters of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.scale = Added(), Added(), Scaled()

    def forward(self, x):
        return self.scale(self.second(self.first(x)))


class Added(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch, self.act = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), Scaled()), nn.SiLU(inplace=True)

    def forward(self, x):
        return self.act(self.branch(x) + x)


class Scaled(nn.Module):
    """1 + g in place of g: an identity where its parameters are zero, but no block by itself."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        return x * (1 + self.inner(x.mean((2, 3)))[:, :, None, None])


def test_blocks_are_found_by_what_they_do():
    """Activations after the sum, and identities inside of blocks, do not deceive; a stage is no block."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), Stage()).eval()
    weights = copy.deepcopy(module.state_dict())
    blocks = residual_blocks(module, lambda n: module(torch.randn(n, 3, 64, 96)), (64, 96))
    assert [block.name for block in blocks] == ["1.first", "1.second", "1.scale"]
    assert {block.layout for block in blocks} == {Layout("NCHW", 2)} and {block.channels for block in blocks} == {4}
    assert all(torch.equal(value, weights[key]) for key, value in module.state_dict().items())


class Stopping(Policy):
    stops = True


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("test_resnet", {"MODEL__GATED__UNIT": "channel"}, "MODEL.GATED.UNIT is 'channel'"),
        ("test_byobnet", {}, "test_byobnet has no residual block with an identity path up to res5"),
        ("test_resnet", {"MODEL__TIMM__NORM": "SyncBN"}, "synchronised batch norm"),
        ("test_vit", {"MODEL__RESNETS__OUT_FEATURES": PYRAMID}, "test_vit has no pyramid"),
    ],
)
def test_wrong_keys(name, keys, message):
    with pytest.raises(ValueError, match=message):
        build_timm(name, GATED, **keys)


def test_policies_that_stop_images_are_refused():
    cfg = timm_cfg("test_resnet", GATED)
    model = build_timm_model(cfg, 3, ["res5"])
    with pytest.raises(ValueError, match="Stopping stops images for good"):
        GatedTimmBackbone(model, Stopping, ["res5"], pixels=own_pixels(cfg, model))
