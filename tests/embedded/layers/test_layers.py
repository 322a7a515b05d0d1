"""Layers against plain torch."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import roi_align as torchvision_roi_align

from detectron2 import layers
from detectron2.layers import (
    CNNBlockBase,
    Conv2d,
    FrozenBatchNorm2d,
    ROIAlign,
    ShapeSpec,
    batched_nms,
    cat,
    cross_entropy,
    get_norm,
    nms,
    nonzero_tuple,
)
from detectron2.layers.batch_norm import CycleBatchNormList


def frozen(channels: int = 4) -> FrozenBatchNorm2d:
    norm = FrozenBatchNorm2d(channels)
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(norm, name).copy_(torch.rand(channels) + 0.5)
    return norm


def test_frozen_norm_is_an_affine_map_of_constants() -> None:
    norm, x = frozen(), torch.randn(2, 4, 5, 6)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    expected = (x - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(norm(x), expected)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(norm(leaf), expected)
    norm(leaf).sum().backward()
    torch.testing.assert_close(leaf.grad, scale[:, None, None].expand_as(x).contiguous())
    assert not list(norm.parameters())
    torch.testing.assert_close(FrozenBatchNorm2d(4)(x), x)


@pytest.mark.parametrize("bias", [False, True])
def test_conv_with_frozen_norm_trains_as_if_apart(bias: bool) -> None:
    conv, x = Conv2d(3, 4, 3, bias=bias, norm=frozen()), torch.randn(2, 3, 6, 5, requires_grad=True)
    leaves = [x, *conv.parameters()]
    output = conv(x)
    expected = conv.norm(F.conv2d(x, conv.weight, conv.bias))
    torch.testing.assert_close(output, expected)
    target = torch.randn_like(output)
    ours, apart = (torch.autograd.grad((y * target).sum(), leaves) for y in (output, expected))
    torch.testing.assert_close(ours, apart)


def test_frozen_norm_takes_files_without_statistics() -> None:
    norm = FrozenBatchNorm2d(3)
    norm.load_state_dict({"weight": torch.full((3,), 2.0), "bias": torch.ones(3)})
    x = torch.randn(1, 3, 2, 2)
    torch.testing.assert_close(norm(x), 2 * x + 1, atol=1e-4, rtol=1e-4)
    assert set(norm.state_dict()) == {"weight", "bias", "running_mean", "running_var"}


def test_conversion_freezes_every_batch_norm_and_keeps_the_output() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=1e-3), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))
    net(torch.randn(8, 3, 4, 4))
    x = torch.randn(2, 3, 4, 4)
    before = net.eval()(x)
    assert FrozenBatchNorm2d.convert_frozen_batchnorm(net) is net
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    torch.testing.assert_close(net.train()(x), before)
    assert isinstance(FrozenBatchNorm2d.convert_frozen_batchnorm(nn.SyncBatchNorm(4)), FrozenBatchNorm2d)


def test_frozen_block_has_nothing_to_train() -> None:
    class Block(CNNBlockBase):
        def __init__(self) -> None:
            super().__init__(3, 4, 1)
            self.conv = Conv2d(3, 4, 1, norm=get_norm("BN", 4))

    block = Block().freeze()
    assert (block.in_channels, block.out_channels, block.stride) == (3, 4, 1)
    assert isinstance(block.conv.norm, FrozenBatchNorm2d) and not any(p.requires_grad for p in block.parameters())


@pytest.mark.parametrize("name", ["BN", "FrozenBN", "GN", "LN", "naiveSyncBN", "naiveSyncBN_N"])
def test_norms_by_name_normalise(name: str) -> None:
    norm, x = get_norm(name, 32), torch.randn(4, 32, 5, 5) * 3 + 2
    out = norm(x)
    assert out.shape == x.shape
    axes = {"GN": None, "LN": 1}.get(name, (0, 2, 3))
    if name == "FrozenBN":
        torch.testing.assert_close(out, x)
    elif name == "GN":
        torch.testing.assert_close(out, F.group_norm(x, 32))
    else:
        assert out.mean(axes).abs().max() < 1e-4 and (out.std(axes, unbiased=False) - 1).abs().max() < 1e-3


def test_norms_that_are_not_names() -> None:
    assert get_norm("", 3) is None and get_norm(None, 3) is None
    assert isinstance(get_norm(nn.InstanceNorm2d, 3), nn.InstanceNorm2d)
    assert isinstance(get_norm("SyncBN", 3), nn.SyncBatchNorm)
    with pytest.raises((ValueError, KeyError), match="NoSuchNorm"):
        get_norm("NoSuchNorm", 3)


def test_cycled_norms_keep_statistics_apart() -> None:
    norms = CycleBatchNormList(2, num_features=3)
    for _ in range(60):
        norms(torch.randn(4, 3, 5, 5) + 5)
        norms(torch.randn(4, 3, 5, 5) - 5)
    assert norms[0].running_mean.min() > 4 and norms[1].running_mean.max() < -4
    assert {name for name, _ in norms.named_parameters()} == {"weight", "bias"}


def test_conv_applies_norm_then_activation() -> None:
    conv = Conv2d(3, 8, 3, padding=1, norm=nn.BatchNorm2d(8), activation=F.relu).eval()
    x = torch.randn(2, 3, 7, 7)
    plain = F.conv2d(x, conv.weight, conv.bias, padding=1)
    torch.testing.assert_close(conv(x), F.relu(conv.norm(plain)))


def test_empty_batch_flows_backward() -> None:
    conv = Conv2d(3, 4, 3, activation=F.relu)
    conv(torch.zeros(0, 3, 9, 9)).sum().backward()
    assert conv.weight.grad.abs().sum() == 0
    logits = torch.zeros(0, 5, requires_grad=True)
    loss = cross_entropy(logits, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss == 0 and logits.grad.shape == (0, 5)
    logits, target = torch.randn(3, 5), torch.tensor([0, 4, 2])
    for reduction in ("mean", "sum", "none"):
        expected = F.cross_entropy(logits, target, reduction=reduction)
        torch.testing.assert_close(cross_entropy(logits, target, reduction=reduction), expected)


def test_roi_align_of_a_ramp_reads_the_centres_of_its_bins() -> None:
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)
    out = ROIAlign((2, 4), 0.5, 2, aligned=True)(ramp, torch.tensor([[0.0, 4, 4, 20, 12]]))
    # The box covers cells 2 to 10 along x; cell i is centred at i + 0.5, so the ramp at x is x - 0.5.
    torch.testing.assert_close(out[0, 0], torch.tensor([2.5, 4.5, 6.5, 8.5]).expand(2, 4).contiguous())


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [1, 2, 3])
def test_roi_align_by_cells_is_that_of_torchvision(ratio: int, aligned: bool) -> None:
    corner = torch.rand(60, 2) * 300 - 60  # boxes inside, across the border, outside and inverted
    rois = torch.cat([torch.randint(0, 3, (60, 1)), corner, corner + torch.rand(60, 2) * 200 - 20], dim=1)
    for size in ((9, 13), (1, 1), (30, 40)):
        maps = torch.randn(3, 5, *size, requires_grad=True)
        got = ROIAlign((7, 4), 1 / 8, ratio, aligned)(maps, rois)
        want = torchvision_roi_align(maps, rois, (7, 4), 1 / 8, ratio, aligned)
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
        direction = torch.randn_like(want)
        gradients = [torch.autograd.grad(out, maps, direction)[0] for out in (got, want)]
        torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


def test_regions_keep_their_precision_on_maps_of_16_bits() -> None:
    ramp = torch.arange(256.0).expand(1, 1, 4, 256)
    rois = torch.tensor([[0.0, 200.3, 0, 201.1, 4]])
    pooled = ROIAlign((1, 1), 1.0, 1)(ramp.to(torch.bfloat16), rois)
    assert pooled.dtype == torch.bfloat16
    assert abs(pooled.item() - (200.7 - 0.5)) <= 0.5  # 16 bits of the result; the box alone would be off by a cell
    assert ROIAlign((1, 1), 1.0, 1)(ramp, torch.full((1, 5), float("nan")).index_fill_(1, torch.tensor(0), 0)).isnan()


def test_batched_nms_is_nms_within_each_class() -> None:
    corner = torch.rand(60, 2) * 40
    boxes = torch.cat((corner, corner + 10 + torch.rand(60, 2) * 20), dim=1)
    scores, classes = torch.rand(60), torch.randint(0, 3, (60,))
    kept = torch.cat(
        [torch.where(classes == c)[0][nms(boxes[classes == c], scores[classes == c], 0.5)] for c in range(3)]
    )
    expected = kept[scores[kept].argsort(descending=True)]
    assert torch.equal(batched_nms(boxes, scores, classes, 0.5), expected)
    assert batched_nms(boxes[:0], scores[:0], classes[:0], 0.5).numel() == 0
    # Half precision could not tell the offset boxes of many classes apart.
    far = torch.tensor([[0.0, 0, 1000, 1000], [0, 0, 1000, 990]]).half()
    assert len(batched_nms(far, torch.tensor([0.9, 0.8]), torch.tensor([79, 0]), 0.5)) == 2


def test_small_helpers() -> None:
    lone = torch.rand(2)
    assert cat([lone]) is lone and cat([lone, lone]).shape == (4,)
    assert [x.tolist() for x in nonzero_tuple(torch.tensor([[0, 1], [1, 0]]))] == [[0, 1], [1, 0]]
    spec = ShapeSpec(channels=3, stride=4)
    assert (spec.channels, spec.height, spec.width, spec.stride) == (3, None, None, 4)


@pytest.mark.embedded
@pytest.mark.parametrize("name", ["ASPP", "DeformConv", "ROIAlignRotated", "diou_loss"])
def test_what_is_left_out_says_so(name: str) -> None:
    with pytest.raises(ImportError, match=f"{name}.*leaves out"):
        getattr(layers, name)
