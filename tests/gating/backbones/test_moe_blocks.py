"""DeepMoE's gated blocks: training and evaluation agree, parameters and costs are the published ones."""

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from gated_nets import Forced, build, gated_cfg
from torch import nn

from dyn_d2.gating import Decision, Router
from dyn_d2.gating.backbones.moe_blocks import MoEBasicBlock, MoEBottleneckA, MoEBottleneckB

from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock

pytestmark = pytest.mark.usefixtures("channel_conv_paths")


def make(kind, cin=12, cout=24, **kwargs):
    if kind is not MoEBasicBlock:
        kwargs["bottleneck_channels"] = 6
    block = kind(cin, cout, **kwargs)
    block.name = "res3.1"
    for layer in block.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for vector in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                nn.init.uniform_(vector, 0.5, 1.5)
    return block


def router_for(block, x, gates) -> Router:
    return Router(Forced(block.units(1), map(Decision, gates)), x)


def run(block, x, gates):
    router = router_for(block, x, gates)
    return block(x, router), router.trace


def random_gates(block, n: int, rate: float) -> list[torch.Tensor]:
    sizes = [unit.size for unit in block.units(1)]
    return [(torch.rand(n, size) < rate) * (0.5 + torch.rand(n, size)) for size in sizes]


def with_running_statistics(block):
    block.train()
    for layer in block.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
    return block


CASES = [
    (MoEBasicBlock, {}),
    (MoEBasicBlock, {"stride": 2, "widen": 1.5}),
    (MoEBasicBlock, {"dilation": 2, "cin": 24}),
    (MoEBottleneckA, {"widen": 2.0}),
    (MoEBottleneckA, {"stride": 2}),
    (MoEBottleneckA, {"stride": 2, "stride_in_1x1": True, "norm": "FrozenBN"}),
    (MoEBottleneckB, {"stride": 2, "widen": 2.0}),
    (MoEBottleneckB, {"dilation": 4, "cin": 24}),
]


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("kind", "kwargs"), CASES)
def test_evaluation_computes_what_training_masks(kind, kwargs, rate):
    block, x = make(kind, **kwargs), torch.randn(3, kwargs.get("cin", 12), 11, 14)
    gates = random_gates(block, 3, rate)
    with torch.no_grad():
        dense, trained = run(with_running_statistics(block), x, gates)
        sparse, evaluated = run(block.eval(), x, gates)
    torch.testing.assert_close(sparse, dense, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(trained.executed(), evaluated.executed())


@pytest.mark.parametrize("cin", [12, 24])
def test_input_is_overwritten_only_where_allowed(cin):
    block, x = make(MoEBottleneckA, cin=cin).eval(), torch.randn(2, cin, 8, 8)
    gates, before = random_gates(block, 2, 0.5), x.clone()
    router = router_for(block, x, gates)
    with torch.no_grad():
        expected, _ = run(block, x, gates)
        torch.testing.assert_close(x, before, rtol=0, atol=0)
        router.overwrite = True
        torch.testing.assert_close(block(x, router), expected)


@pytest.mark.parametrize(("kind", "kwargs"), CASES)
def test_no_image(kind, kwargs):
    block, x = make(kind, **kwargs).eval(), torch.randn(0, kwargs.get("cin", 12), 11, 14)
    stride = kwargs.get("stride", 1)
    with torch.no_grad():
        out, trace = run(block, x, random_gates(block, 0, 0.5))
    assert out.shape == (0, 24, -(-11 // stride), -(-14 // stride)) and trace.executed().shape == (0,)


@pytest.mark.parametrize(("kind", "kwargs"), CASES)
def test_costs_equal_those_of_fvcore_and_of_the_open_channels(kind, kwargs):
    block, x = make(kind, **kwargs), torch.randn(2, kwargs.get("cin", 12), 12, 16)
    with_running_statistics(block)
    sizes = [unit.size for unit in block.units(1)]
    _, opened = run(block, x, [torch.ones(2, size) for size in sizes])

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = block

        def forward(self, x):
            return run(self.block, x, [torch.ones(len(x), size) for size in sizes])[0]

    count = FlopCountAnalysis(Plain(), x[:1]).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert opened.dense() == opened.executed()[0] == count.by_operator()["conv"]

    gates = [torch.zeros(2, size) for size in sizes]
    for gate in gates:
        gate[0, :3] = 1
    _, trace = run(block, x, gates)
    stride, hidden = kwargs.get("stride", 1), sizes[0]
    big, small = 12 * 16, (12 // stride) * (16 // stride)
    before = small if kwargs.get("stride_in_1x1") else big  # pixels of the first 1x1 convolution's output
    cin, shortcut = kwargs.get("cin", 12), 0
    if block.shortcut is not None:
        shortcut = cin * 24 * small
    chain = {
        MoEBasicBlock: cin * 3 * 9 * small + 3 * 24 * 9 * small,
        MoEBottleneckA: cin * 3 * before + 3 * 3 * 9 * small + 3 * 24 * small,
        MoEBottleneckB: cin * 6 * before + 6 * 3 * 9 * small + 3 * 24 * small,
    }[kind]
    nothing = cin * 6 * before if kind is MoEBottleneckB else 0
    assert trace.executed().tolist() == [chain + shortcut, nothing + shortcut] and hidden >= 3


@pytest.mark.parametrize(("kind", "plain"), [(MoEBasicBlock, BasicBlock), (MoEBottleneckA, BottleneckBlock)])
@pytest.mark.parametrize("stride", [1, 2])
def test_weights_of_the_plain_block_load_and_give_its_output(kind, plain, stride):
    more = {} if plain is BasicBlock else {"bottleneck_channels": 6}
    source, block = plain(12, 24, stride=stride, **more).eval(), make(kind, stride=stride).eval()
    block.load_state_dict(source.state_dict())
    x = torch.randn(2, 12, 8, 8)
    with torch.no_grad():
        out, _ = run(block, x, [torch.ones(2, unit.size) for unit in block.units(1)])
        torch.testing.assert_close(out, source(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "million"), [(MoEBottleneckA, 68.8), (MoEBottleneckB, 41.85)])
def test_parameters_of_wide_resnet50(kind, million):
    channels, total = 64, 7 * 7 * 3 * 64 + 2048 * 1000 + 1000  # stem and classifier
    with torch.device("meta"):
        for width, count in ((64, 3), (128, 4), (256, 6), (512, 3)):
            for _ in range(count):
                block = kind(channels, 4 * width, bottleneck_channels=width, widen=2.0)
                total += sum(layer.weight.numel() for layer in block.modules() if isinstance(layer, nn.Conv2d))
                channels = 4 * width
    assert abs(total / 1e6 - million) < 0.05


@pytest.mark.parametrize("kind", [MoEBasicBlock, MoEBottleneckA, MoEBottleneckB])
def test_training_gives_gradients_to_gates_and_weights(kind):
    block, x = make(kind, stride=2), torch.randn(3, 12, 8, 8, requires_grad=True)
    gates = [gate.requires_grad_() for gate in random_gates(block, 3, 0.5)]
    run(block, x, gates)[0].square().sum().backward()
    assert all(gate.grad.abs().sum() > 0 for gate in gates) and x.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in block.parameters())


@pytest.mark.parametrize("images", [0, 1])
def test_training_where_batch_norm_has_no_statistics(images):
    block, x = make(MoEBottleneckA, stride=2), torch.randn(images, 12, 2, 2, requires_grad=True)
    before = {name: value.clone() for name, value in block.state_dict().items()}
    run(block.train(), x, random_gates(block, images, 1.0))[0].sum().backward()
    torch.testing.assert_close(block.state_dict(), before)
    assert x.grad is not None and all(layer.training for layer in block.modules())


def test_units_and_errors():
    block = make(MoEBottleneckA, widen=2.0)
    assert [(u.name, u.kind, u.channels, u.size, u.stage) for u in block.units(1)] == [
        ("res3.1.conv1", "channel", 12, 12, 1),
        ("res3.1.conv2", "channel", 12, 12, 1),
    ]
    assert [(u.name, u.size) for u in make(MoEBottleneckB, widen=2.0).units(1)] == [("res3.1.conv2", 12)]
    with pytest.raises(ValueError, match="GN .* mixes channels"):
        MoEBasicBlock(32, 32, norm="GN")


@pytest.mark.parametrize(("kind", "block"), [("A", MoEBasicBlock), ("B", MoEBottleneckB)])
def test_bottleneck_b_takes_the_place_of_basic_blocks(kind, block):
    """A modified ResNet-18, as Fig. 3.5 has it: hidden layers as wide as the trunk, the 3x3 three times."""
    keys = {"MODEL__GATED__UNIT": "channel", "MODEL__GATED__BOTTLENECK": kind, "MODEL__GATED__WIDEN": 3.0}
    net = build(gated_cfg(**keys)).eval()
    blocks = [module for module in net.modules() if isinstance(module, MoEBasicBlock | MoEBottleneckB)]
    assert len(blocks) == 8 and all(type(each) is block for each in blocks)
    assert [unit.size for unit in net.policy.units] == [3 * w for w in (64, 64, 128, 128, 256, 256, 512, 512)]
    with torch.no_grad():
        assert net(torch.randn(1, 3, 32, 32))["res5"].shape == (1, 512, 1, 1)
    if kind == "B":
        assert [conv.out_channels for conv in (blocks[0].conv1, blocks[0].conv2, blocks[0].conv3)] == [64, 192, 64]
