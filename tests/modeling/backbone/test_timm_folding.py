"""Constant batch norms that frozen convolutions of timm's models do the work of."""

import copy

import pytest
import torch
from timm_nets import FAMILIES, build_timm
from torch import nn

from dyn_d2.modeling.backbone.timm_folding import FoldedConv2d, fold_norms
from dyn_d2.modeling.backbone.timm_norms import FrozenBatchNormAct2d

pytest.importorskip("timm")


def _folded(module: nn.Module) -> list[FoldedConv2d]:
    return [layer for layer in module.modules() if isinstance(layer, FoldedConv2d)]


def _with_statistics(backbone: nn.Module) -> nn.Module:
    for layer in backbone.modules():
        if isinstance(layer, FrozenBatchNormAct2d):
            layer.running_var.uniform_(0.5, 2.0)
            layer.running_mean.normal_(0, 0.1)
            layer.bias.normal_(0, 0.1)
    return backbone


def _unfolded(backbone: nn.Module) -> nn.Module:
    """A copy in which each batch norm works by itself."""
    plain = copy.deepcopy(backbone)
    for layer in _folded(plain):
        layer.weight.requires_grad_(True)
        assert not layer.folds
    return plain


def _relative(found: dict, wanted: dict) -> float:
    return max(((found[name] - wanted[name]).abs().max() / wanted[name].abs().max()).item() for name in wanted)


@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_the_same(name):
    backbone = _with_statistics(build_timm(name, MODEL__BACKBONE__FREEZE_AT=5).eval())
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        assert _relative(backbone(images), _unfolded(backbone)(images)) < 1e-4
    if name == "tf_efficientnet_lite0":
        norms = [layer for layer in backbone.modules() if isinstance(layer, FrozenBatchNormAct2d)]
        assert len(_folded(backbone)) == len(norms) > 40


def test_names_stay_and_loaded_weights_are_folded_anew():
    backbone = build_timm("tf_efficientnet_lite0", MODEL__BACKBONE__FREEZE_AT=5).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        backbone(images)  # folds the first weights
        other = _with_statistics(build_timm("tf_efficientnet_lite0", MODEL__BACKBONE__FREEZE_AT=0).eval())
        assert backbone.state_dict().keys() == other.state_dict().keys()
        backbone.load_state_dict(other.state_dict())
        assert _relative(backbone(images), other(images)) < 1e-4
        assert _relative(copy.deepcopy(backbone)(images), other(images)) < 1e-4


def test_learning_layers_are_left_alone():
    backbone = build_timm("tf_efficientnet_lite0", MODEL__BACKBONE__FREEZE_AT=2)
    frozen = {name for name, value in backbone.model.named_parameters() if not value.requires_grad}
    folded = {name for name, layer in backbone.model.named_modules() if isinstance(layer, FoldedConv2d)}
    assert folded and {f"{name}.weight" for name in folded} <= frozen
    total = sum(value.sum() for value in backbone(torch.randn(2, 3, 64, 64)).values())
    total.backward()
    learning = [value for value in backbone.model.parameters() if value.requires_grad]
    assert learning and all(value.grad is not None for value in learning)


def test_in_16_bits_the_folded_weights_are():
    backbone = build_timm("tf_efficientnet_lite0", MODEL__BACKBONE__FREEZE_AT=5).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = backbone(images)
    assert all(layer._folded[0].dtype == torch.bfloat16 for layer in _folded(backbone))
    with torch.no_grad():
        assert _relative({name: value.float() for name, value in found.items()}, backbone(images)) < 0.2
    assert all(layer._folded[0].dtype == torch.float32 for layer in _folded(backbone))  # of the second pass


def test_a_traced_model_computes_the_same():
    backbone = _with_statistics(build_timm("tf_efficientnet_lite0", MODEL__BACKBONE__FREEZE_AT=5).eval())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        program = torch.export.export(backbone, (images,))
        found = program.module()(images)
        assert _relative(found, backbone(images)) < 1e-4


class _Crossed(nn.Module):
    """Its layers do not run in the order in which they stand."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1).requires_grad_(False)
        self.norm = FrozenBatchNormAct2d(3, 1e-5, nn.Identity(), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.norm(x))


def test_layers_that_run_in_another_order_stay_as_they_are():
    class Model:
        module = _Crossed()

        def trial(self):
            return {"res2": self.module(torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)))}

    model = Model()  # whose norm is the identity, as before its weights are loaded
    before = model.trial()["res2"]
    assert fold_norms(model) == 0 and not _folded(model.module)
    torch.testing.assert_close(model.trial()["res2"], before)
