"""Features of the boxes of a COCO json."""

import numpy as np
import pytest
import torch
from torch import nn
from two_squares import COLOURS, write_boxes

from dyn_d2.data.object_crops import CropOptions
from dyn_d2.methods.tafe_net.crops import crop_features
from dyn_d2.modeling.backbone.timm_models import TimmModel


class MeanColour(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))


@pytest.fixture
def boxes(tmp_path) -> str:
    return write_boxes(tmp_path)


def test_each_box_is_seen_as_its_model_wants_it(boxes, tmp_path) -> None:
    model = TimmModel("toy", MeanColour(), {}, (10.0, 10.0, 10.0), (2.0, 4.0, 8.0))
    found = crop_features(model, boxes, tmp_path, CropOptions(size=20, context=0.0))
    assert found["labels"].tolist() == ["red", "green"] * 2
    assert found["images"].tolist() == ["1.png", "1.png", "2.png", "2.png"]
    assert found["boxes"][1].tolist() == [30, 10, 20, 20] and found["features"].dtype == np.float16
    for label, feature in zip(found["labels"], found["features"], strict=True):
        assert np.allclose(feature, (np.array(COLOURS[label]) - 10) / np.array([2, 4, 8]), atol=0.1)


def test_a_pooled_model_of_timm_gives_what_its_classifier_sees(tmp_path) -> None:
    timm = pytest.importorskip("timm")
    from timm_nets import saved_weights

    from dyn_d2.modeling.backbone.timm_models import build_pooled_model

    weights = saved_weights("test_resnet", tmp_path)
    model = build_pooled_model("test_resnet", weights)
    plain = timm.create_model("test_resnet").eval()
    plain.load_state_dict(torch.load(weights, weights_only=True))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(plain.get_classifier()(model.module(images)), plain(images), atol=1e-4)
    assert not any(parameter.requires_grad for parameter in model.module.parameters())


def test_command(boxes, tmp_path) -> None:
    pytest.importorskip("timm")
    from timm_nets import saved_weights

    from dyn_d2.methods.tafe_net.cli.prepare_crops import main

    weights = saved_weights("test_resnet", tmp_path)
    output = tmp_path / "crops" / "train.npz"
    options = ["--model", "test_resnet", "--weights", weights, "--size", "64"]
    assert main(["--json", boxes, "--images", str(tmp_path), "--output", str(output), *options]) == 0
    with np.load(output) as found:
        assert found["features"].shape[0] == 4 and np.isfinite(found["features"]).all()
