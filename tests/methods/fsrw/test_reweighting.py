"""Class vectors from support images, and Eq. 6.1 with and without feature maps for each class."""

import numpy as np
import pytest
import torch
from fsrw_toy import support
from torch import nn
from torch.nn import functional as F

from dyn_d2.methods.fsrw.reweighting import (
    FORMS,
    ClassVectors,
    ReweightingNet,
    predict_reweighted,
    reweight,
    reweighted_share,
)


def test_reweighting_multiplies_channel_by_channel():
    features, vectors = torch.randn(2, 5, 3, 4), torch.randn(3, 5)
    result = reweight(features, vectors)
    assert result.shape == (6, 5, 3, 4)
    for b in range(2):
        for i in range(3):
            depthwise = F.conv2d(features[b : b + 1], vectors[i][:, None, None, None], groups=5)  # as Wang 2020 has it
            torch.testing.assert_close(result[b * 3 + i], depthwise[0])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("width", [5, 3], ids=["all", "some"])
def test_vectors_in_the_weights_give_what_feature_maps_give(width, bias):
    features, vectors = torch.randn(2, 5, 3, 4).double(), torch.randn(3, width).double().requires_grad_()
    predictor = nn.Conv2d(5, 7, 1, bias=bias).double()
    fast = predict_reweighted(features, vectors, predictor)
    slow = predictor(reweight(features, vectors)).view(2, 3, 7, 3, 4)
    torch.testing.assert_close(fast, slow)
    weight = torch.randn_like(slow)
    gradients = [torch.autograd.grad((x * weight).sum(), [vectors, predictor.weight]) for x in (fast, slow)]
    torch.testing.assert_close(*gradients)


def test_channels_beyond_the_vector_are_shared():
    features = torch.randn(1, 5, 2, 2)
    assert torch.equal(reweight(features, torch.zeros(2, 3))[:, 3:], features[:, 3:].expand(2, -1, -1, -1))
    with pytest.raises(ValueError, match="width 6 cannot re-weight 5"):
        reweight(features, torch.zeros(2, 6))
    assert reweighted_share(1024, 0.5) == 512
    for wrong in (0.0, 1.5):
        with pytest.raises(ValueError, match="SHARE"):
            reweighted_share(10, wrong)


@pytest.mark.parametrize("form", FORMS)
def test_the_module_sees_what_its_form_names(form):
    net = ReweightingNet(20, width=0.1, form=form).eval()
    given = support(3)
    images, masks, boxes = given["image"][:, :3].float() / 255, given["image"][:, 3:], given["boxes"]
    assert net(images, masks, boxes).shape == (3, 20)
    arranged = net.arrange(images, masks, boxes)
    assert arranged.shape == (3, FORMS[form], 64, 64) and torch.equal(arranged[:, :3], images)
    if "mask" in form:
        assert torch.equal(arranged[:, 3], masks[:, 0].float())
    elsewhere = net.arrange(images, masks * 0, boxes + 7)
    assert torch.equal(arranged, elsewhere) == (form == "image")
    if "object" in form:  # the crop: its mean is that of the box
        crop = images[0, :, 10:40, 5:30].mean((1, 2))
        torch.testing.assert_close(arranged[0, -3:].mean((1, 2)), crop, atol=0.02, rtol=0)


def test_the_object_makes_the_vector():
    net = ReweightingNet(20, width=0.1).eval()
    given = support(2)
    images = given["image"][:1, :3].float().expand(2, -1, -1, -1) / 255
    masks = given["image"][:, 3:].clone()
    masks[1] = masks[1].flip(2)
    first, second = net(images, masks, given["boxes"])
    assert not torch.allclose(first, second)
    with pytest.raises(ValueError, match="SUPPORT_FORM is 'picture'"):
        ReweightingNet(20, form="picture")


def test_seven_convolutions_and_six_poolings():
    net = ReweightingNet(1024)
    assert [(layer.in_channels, layer.out_channels) for layer in net.convs] == [
        (4, 32), (32, 64), (64, 128), (128, 256), (256, 512), (512, 1024), (1024, 1024)
    ]  # fmt: skip
    sizes = []
    net.convs[-1].register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[-2:]))
    with torch.no_grad():
        net.eval()(torch.rand(1, 3, 416, 416), torch.zeros(1, 1, 416, 416), torch.zeros(1, 4))
    assert sizes == [(6, 6)]


def test_vectors_go_to_a_file_and_back(tmp_path):
    vectors = ClassVectors.mean_of(
        {"a": torch.randn(3, 4), "ä b": torch.randn(1, 4)}, "abc", [["7/1", "7/2", "9/0"], ["8/5"]]
    )
    vectors.save(tmp_path / "v.npz")
    again = ClassVectors.load(tmp_path / "v.npz")
    assert again.classes == ["a", "ä b"] and torch.equal(again.vectors, vectors.vectors) and again.detector == "abc"
    assert all(torch.equal(x, y) for x, y in zip(again.samples, vectors.samples, strict=True))
    assert again.supports == vectors.supports
    chosen = again.select(["ä b"])
    assert chosen.samples[0].shape == (1, 4) and chosen.supports == [["8/5"]] and chosen.detector == "abc"
    with np.load(tmp_path / "v.npz", allow_pickle=False) as file:
        assert file["vectors"].shape == (2, 4)
    bare = ClassVectors(["a"], torch.ones(1, 4))
    bare.save(tmp_path / "bare.npz")
    assert ClassVectors.load(tmp_path / "bare.npz").samples == [] == ClassVectors.load(tmp_path / "bare.npz").supports
    with pytest.raises(ValueError, match="no support image of b"):
        ClassVectors.mean_of({"a": torch.ones(1, 4), "b": torch.ones(0, 4)})


@pytest.mark.parametrize("spoil", [
    {"vectors": np.array([[1.0, np.nan], [0.0, 1.0]], np.float32)}, {"vectors": np.array([["a", "b"]])},
    {"classes": np.array(["a", "a"])}, {"counts": np.array([1, -1])}, {"counts": np.array(["x"])}, {"supports": None},
    {"samples": np.full((2, 2), np.inf, np.float32)}, {"detector": None}, {"counts": np.array([[1, 1]])},
], ids=str)  # fmt: skip
def test_files_of_vectors_that_are_none_are_named(tmp_path, spoil) -> None:
    path = tmp_path / "v.npz"
    ClassVectors(["a", "b"], torch.ones(2, 2), [torch.ones(1, 2)] * 2, [["1/1"], ["2/1"]]).save(path)
    content = path.read_bytes()
    with np.load(path) as file:
        arrays = {**file, **spoil}
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    with pytest.raises(ValueError, match="v.npz is no file of class vectors: "):
        ClassVectors.load(path)
    for end in (0, 1, 40, len(content) // 2, len(content) - 5):
        path.write_bytes(content[:end])
        with pytest.raises(ValueError, match="v.npz is no file of class vectors: "):
            ClassVectors.load(path)
