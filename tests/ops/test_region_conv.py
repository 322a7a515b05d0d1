"""Region convolution against the dense one on the same pixels."""

import pytest
import torch
from torch.nn import functional as F

from dyn_d2.ops import region_conv as module
from dyn_d2.ops import region_depthwise
from dyn_d2.ops.grouped_region import GroupedRegionMatrix, dense_depthwise
from dyn_d2.ops.region_conv import Region, RegionMatrix, map_rows, region_conv, region_max_pool, to_map

SIZE = (3, 9, 11)
GEOMETRIES = [
    ((1, 1), (1, 1)),
    ((3, 3), (1, 1)),
    ((3, 3), (2, 2)),
    ((3, 3), (4, 4)),
    ((1, 7), (2, 2)),
    ((5, 3), (1, 3)),
]


def _masks() -> dict[str, torch.Tensor]:
    different = torch.rand(SIZE) < torch.tensor([0.0, 0.2, 0.9])[:, None, None]
    return {"empty": torch.zeros(SIZE, dtype=torch.bool), "full": torch.ones(SIZE, dtype=torch.bool), "some": different}


def _dense(x, weight, bias, dilation):
    padding = [dilation[i] * (weight.shape[2 + i] // 2) for i in (0, 1)]
    return F.conv2d(x, weight, bias, 1, padding, dilation)


def _problem(kernel, dtype=torch.float64):
    x = torch.randn(SIZE[0], 6, *SIZE[1:], dtype=dtype)
    return x, torch.randn(5, 6, *kernel, dtype=dtype), torch.randn(5, dtype=dtype)


@pytest.fixture(params=["onednn", "torch"])
def both_ways(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(module, "_available", lambda: False)
    elif not module._available():
        pytest.skip("torch was built without oneDNN")


@pytest.mark.parametrize("name", ["empty", "full", "some"])
@pytest.mark.parametrize(("kernel", "dilation"), GEOMETRIES)
def test_reads_the_whole_map_and_gives_the_dense_values(kernel, dilation, name):
    region = Region.of(_masks()[name])
    x, weight, bias = _problem(kernel)
    taps = region.taps(kernel, dilation)
    out = region_conv(map_rows(x), weight, bias, taps)
    torch.testing.assert_close(out, map_rows(_dense(x, weight, bias, dilation))[region.index])


@pytest.mark.parametrize("name", ["empty", "full", "some"])
@pytest.mark.parametrize(("kernel", "dilation"), GEOMETRIES)
def test_reads_its_own_pixels_as_a_masked_map(kernel, dilation, name, both_ways):
    region = Region.of(_masks()[name])
    x, weight, bias = _problem(kernel, torch.float32)
    rows = map_rows(x)[region.index]
    expected = map_rows(_dense(x * region.mask[:, None], weight, bias, dilation))[region.index]
    taps = None if kernel == (1, 1) else region.taps(kernel, dilation, region)
    torch.testing.assert_close(region_conv(rows, weight, bias, taps), expected, atol=1e-5, rtol=1e-5)
    total = torch.randn_like(expected)
    packed, summed = RegionMatrix(weight, bias), F.relu(total + expected)
    torch.testing.assert_close(packed(rows, taps), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(packed(rows, taps, relu=True), F.relu(expected), atol=1e-5, rtol=1e-5)
    assert packed(rows, taps, total, relu=True) is total
    torch.testing.assert_close(total, summed, atol=1e-5, rtol=1e-5)


def test_reads_another_region():
    outer = Region.of(torch.rand(SIZE) < 0.7)
    inner = outer.subset(torch.rand(len(outer)) < 0.4)
    x, weight, bias = _problem((3, 3))
    out = region_conv(map_rows(x)[outer.index], weight, bias, inner.taps((3, 3), (2, 2), outer))
    expected = _dense(x * outer.mask[:, None], weight, bias, (2, 2))
    torch.testing.assert_close(out, map_rows(expected)[inner.index])
    assert torch.equal(outer.index[inner.rows_in(outer)], inner.index)


@pytest.mark.parametrize("pixels", [31, 32, 33, 256, 300, 700])
def test_many_pixels_are_worked_on_in_pieces(pixels, both_ways):
    mask = torch.zeros(1, 27, 27, dtype=torch.bool)
    mask.view(-1)[torch.randperm(27 * 27)[:pixels]] = True
    region = Region.of(mask)
    x, weight, bias = torch.randn(1, 4, 27, 27), torch.randn(3, 4, 3, 3), torch.randn(3)
    expected = map_rows(_dense(x, weight, bias, (1, 1)))[region.index]
    taps = region.taps((3, 3), (1, 1))
    total = torch.ones_like(expected)
    torch.testing.assert_close(RegionMatrix(weight, bias)(map_rows(x), taps), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(RegionMatrix(weight, bias)(map_rows(x), taps, total), expected + 1, atol=1e-5, rtol=1e-5)
    point = torch.randn(7, 4, 1, 1)
    rows = map_rows(x)[region.index]
    torch.testing.assert_close(RegionMatrix(point)(rows, None), rows @ point[:, :, 0, 0].t(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["empty", "full", "some"])
@pytest.mark.parametrize(("kernel", "dilation"), GEOMETRIES)
def test_gradients_are_those_of_the_dense_one(kernel, dilation, name):
    region = Region.of(_masks()[name])
    x, weight, bias = (each.requires_grad_() for each in _problem(kernel))
    taps = None if kernel == (1, 1) else region.taps(kernel, dilation)
    rows = map_rows(x)[region.index] if taps is None else map_rows(x)
    out = region_conv(rows, weight, bias, taps)
    target = torch.randn_like(out)
    own = torch.autograd.grad((out * target).sum(), (x, weight, bias))
    dense = map_rows(_dense(x, weight, bias, dilation))[region.index]
    for one, other in zip(own, torch.autograd.grad((dense * target).sum(), (x, weight, bias)), strict=True):
        torch.testing.assert_close(one, other)


def test_gradcheck():
    region = Region.of(torch.rand(1, 4, 5) < 0.5)
    rows = torch.randn(len(region), 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda r, w: region_conv(r, w, None, region.taps((3, 3), (1, 1), region)), (rows, weight)
    )


@pytest.mark.parametrize("name", ["empty", "full", "some"])
@pytest.mark.parametrize("dilation", [1, 2])
def test_max_pool(name, dilation):
    region = Region.of(_masks()[name])
    x = torch.randn(SIZE[0], 4, *SIZE[1:])
    expected = F.max_pool2d(F.pad(x, (dilation,) * 4, value=float("-inf")), 3, 1, 0, dilation)
    out = region_max_pool(map_rows(x), region.taps((3, 3), (dilation, dilation)))
    assert torch.equal(out, map_rows(expected)[region.index])


def test_rows_and_maps():
    region = Region.of(_masks()["some"])
    x = torch.randn(SIZE[0], 4, *SIZE[1:])
    rows = map_rows(x)[region.index]
    torch.testing.assert_close(to_map(rows, region), x * region.mask[:, None])
    torch.testing.assert_close(to_map(rows, region, map_rows(x)), x)
    assert region.counts().tolist() == region.mask.flatten(1).sum(1).tolist()
    last = x.contiguous(memory_format=torch.channels_last)
    assert map_rows(last).data_ptr() == last.data_ptr()


@pytest.mark.parametrize("groups", [2, 6])
@pytest.mark.parametrize("name", ["empty", "full", "some"])
@pytest.mark.parametrize(("kernel", "dilation"), [((1, 1), (1, 1)), ((3, 3), (2, 2)), ((5, 3), (1, 3))])
def test_groups(kernel, dilation, name, groups, monkeypatch):
    """Depthwise with as many groups as channels; values, sums, rectifiers and gradients."""
    region = Region.of(_masks()[name])
    x = torch.randn(SIZE[0], 6, *SIZE[1:], dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 6 // groups, *kernel, dtype=torch.float64, requires_grad=True)
    padding = [dilation[i] * (kernel[i] // 2) for i in (0, 1)]
    dense = F.conv2d(x * region.mask[:, None], weight, None, 1, padding, dilation, groups)
    expected = map_rows(dense)[region.index]
    rows, taps = map_rows(x)[region.index], None if kernel == (1, 1) else region.taps(kernel, dilation, region)
    out = region_conv(rows, weight, None, taps, groups)
    torch.testing.assert_close(out, expected)
    target = torch.randn_like(out)
    own = torch.autograd.grad((out * target).sum(), (x, weight), retain_graph=True)
    for one, other in zip(own, torch.autograd.grad((expected * target).sum(), (x, weight)), strict=True):
        torch.testing.assert_close(one, other)
    bias, expected = torch.randn(6), expected.detach().float()
    for compiled in (True, False):
        if not compiled:
            monkeypatch.setattr(region_depthwise, "load", lambda: False)
        single = [value.detach().float().requires_grad_() for value in (rows, weight)]
        out = region_conv(single[0], single[1], None, taps, groups)
        exact = torch.autograd.grad((region_conv(rows, weight, None, taps, groups) * target).sum(), (rows, weight))
        for one, other in zip(torch.autograd.grad((out * target.float()).sum(), single), exact, strict=True):
            torch.testing.assert_close(one, other.float(), atol=1e-4, rtol=1e-4)
        packed = GroupedRegionMatrix(weight.float(), bias, groups)
        close = {"atol": 1e-5, "rtol": 1e-5}
        torch.testing.assert_close(packed(rows.detach().float(), taps), expected + bias, **close)
        found = packed(rows.detach().float(), taps, relu=6.0)
        torch.testing.assert_close(found, (expected + bias).clamp(0, 6), **close)
        total = torch.ones_like(expected)
        assert packed(rows.detach().float(), taps, total, relu=True) is total
        torch.testing.assert_close(total, (expected + bias + 1).relu(), **close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dilated_depthwise_of_whole_maps(dtype):
    """With gradients, in the type of the map, also in channels that fill no vector."""
    x = torch.randn(2, 70, 7, 9, dtype=dtype, requires_grad=True)
    weight = torch.randn(70, 1, 5, 3, requires_grad=True)
    with torch.inference_mode():  # what it keeps of an evaluation may be needed in training
        dense_depthwise(x.detach(), weight, (2, 4))
    out = dense_depthwise(x, weight, (2, 4))
    expected = F.conv2d(x.float(), weight, None, 1, (4, 4), (2, 4), 70)
    assert out.dtype == dtype and out.is_contiguous(memory_format=torch.channels_last)
    close = {"atol": 1e-4, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.02}
    torch.testing.assert_close(out.float(), expected, **close)
    target = torch.randn_like(expected)
    own = torch.autograd.grad((out * target).sum(), (x, weight))
    for one, other in zip(own, torch.autograd.grad((expected * target).sum(), (x, weight)), strict=True):
        torch.testing.assert_close(one.float(), other.float(), **close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_depthwise_region_without_pixels(dtype):
    """Compiled and not."""
    rows = torch.randn(6, 3, dtype=dtype, requires_grad=True)
    weight = torch.randn(3, 1, 3, 3, dtype=dtype, requires_grad=True)
    nobody = Region.of(torch.zeros(1, 2, 3, dtype=torch.bool))
    region_conv(rows, weight, None, nobody.taps((3, 3), (1, 1)), 3).sum().backward()
    assert rows.grad.shape == (6, 3) and not rows.grad.any() and not weight.grad.any()


def test_what_does_not_fit_is_said():
    region = Region.of(torch.ones(1, 4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="2 x 2"):
        region.taps((2, 2), (1, 1))
    rows = torch.randn(16, 4)
    with pytest.raises(ValueError, match="groups"):
        region_conv(rows, torch.randn(8, 2, 3, 3), None, region.taps((3, 3), (1, 1)))
    with pytest.raises(ValueError, match="9 taps"):
        region_conv(rows, torch.randn(8, 4, 1, 1), None, region.taps((3, 3), (1, 1)))
