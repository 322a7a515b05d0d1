"""FSRW and YOLOv2 on a model of timm."""

import pytest
import torch
from fsrw_toy import KEYS
from test_fsrw import batch, config

from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

pytest.importorskip("timm")
ON_TIMM = {
    "MODEL__BACKBONE__NAME": "build_timm_backbone",
    "MODEL__TIMM__NAME": "test_resnet",
    "MODEL__TIMM__NORM": "BN",
    "MODEL__RESNETS__OUT_FEATURES": ["res4", "res5"],
    "MODEL__YOLO__IN_FEATURES": ["res4", "res5"],
    "MODEL__REWEIGHTING__NET": "features",
}


@pytest.mark.parametrize("name", ["FSRW", "YOLOv2", "LSTDYOLOv2"])
def test_its_features_of_strides_16_and_32_are_enough(name) -> None:
    model = build_model(config(name, **ON_TIMM))
    with EventStorage(500):
        losses = model(batch())
    sum(losses.values()).backward()
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert learning and all(torch.isfinite(parameter.grad).all() for parameter in learning)


def test_what_it_lacks_is_named() -> None:
    with pytest.raises(ValueError, match="LAYER conv13 is a layer of DarkNet-19"):
        build_model(config(**ON_TIMM, MODEL__REWEIGHTING__LAYER="conv13"))
    names = KEYS | ON_TIMM | {"MODEL__YOLO__IN_FEATURES": ["res5", "res4"]}
    with pytest.raises(ValueError, match=r"res4 \(stride 16\), res5 \(stride 32\): FSRW needs one feature of stride"):
        build_model(config(**names))
