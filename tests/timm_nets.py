"""Small models of timm, a family each, as backbones of this package and as timm itself runs them."""

from pathlib import Path

import pytest
import torch
from tiny_tasks import task_opts

from dyn_d2.config.read import read_cfg

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

timm = pytest.importorskip("timm")

PYRAMID = ["res2", "res3", "res4", "res5"]
# Name -> features. The transformer has one stride; the other models for tests are timm's own smallest ones.
FAMILIES = {
    "tf_efficientnet_lite0": PYRAMID,
    "mobilenetv3_small_050": PYRAMID,
    "test_resnet": PYRAMID,
    "regnetx_002": PYRAMID,
    "test_convnext": PYRAMID,
    "test_vit": ["res4"],
}


def timm_cfg(name: str, backbone: str = "build_timm_backbone", task: str = "classifier", **keys) -> CfgNode:
    """The config of a tiny model of ``task`` on timm's ``name`` with all of its features, batch norms that learn, and
    Detectron2's normalisation; ``keys`` with "__" for the dots."""
    given = {
        "MODEL__BACKBONE__NAME": backbone,
        "MODEL__TIMM__NAME": name,
        "MODEL__TIMM__NORM": "BN",
        "MODEL__RESNETS__OUT_FEATURES": FAMILIES.get(name, PYRAMID),
        "MODEL__PIXEL_STD": [1.0, 1.0, 1.0],
        "MODEL__GATED__BOTTOM_UP": "build_gated_timm_backbone",
        **keys,
    }
    return read_cfg("", task_opts(task, **given))


def build_timm(name: str, backbone: str = "build_timm_backbone", **keys) -> torch.nn.Module:
    """The backbone alone."""
    return build_backbone(timm_cfg(name, backbone, **keys), ShapeSpec(channels=3))


def saved_weights(name: str, folder: Path) -> str:
    """Random weights of a whole model of timm, whose norms are no identity, in a file."""
    model = timm.create_model(name)
    for key, value in model.state_dict().items():
        if value.dim() == 1 and ("bias" in key or "mean" in key):
            torch.nn.init.normal_(value, std=0.1)
        elif value.dim() == 1:
            torch.nn.init.uniform_(value, 0.7, 1.3)
    path = str(folder / f"{name}.pth")
    torch.save(model.state_dict(), path)
    return path


def timm_features(name: str, weights: str) -> torch.nn.Module:
    """timm's own feature extractor with the weights of a file, in evaluation mode."""
    size = {"dynamic_img_size": True} if "vit" in name else {}
    overlay = {"file": weights}
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, features_only=True, **size).eval()
