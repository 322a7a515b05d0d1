"""The semantic head and its meta-architecture."""

import math

import pytest
import torch
from torch import nn

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY, build_model
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead

SHAPES = {"p3": ShapeSpec(channels=4, stride=8), "p2": ShapeSpec(channels=4, stride=4)}


def head(**kwargs):
    defaults = {"num_classes": 5, "conv_dims": 8, "common_stride": 4, "norm": "", "ignore_value": 255}
    return SemSegFPNHead(SHAPES, **{**defaults, **kwargs})


def features(height=8, width=16):
    return {"p2": torch.randn(2, 4, height // 4, width // 4), "p3": torch.randn(2, 4, height // 8, width // 8)}


def test_levels_are_added_at_the_common_stride():
    model, x = head().eval(), features(16, 32)
    fine = model.p2[0](x["p2"])
    coarse = nn.functional.interpolate(model.p3[0](x["p3"]), scale_factor=2, mode="bilinear", align_corners=False)
    logits = model.predictor(fine + coarse)
    torch.testing.assert_close(model.layers(x), logits)
    result, losses = model(x)
    assert losses == {} and result.shape == (2, 5, 16, 32)
    torch.testing.assert_close(result, nn.functional.interpolate(logits, scale_factor=4, mode="bilinear"))


def test_parameter_names_and_depth():
    shapes = {f"p{k}": ShapeSpec(channels=4, stride=2**k) for k in (5, 2, 4)}
    model = SemSegFPNHead(shapes, num_classes=3, conv_dims=32, common_stride=4, norm="GN")
    names = [key for key in model.state_dict() if key.endswith("norm.weight")]
    levels = [("p2", 0), ("p4", 0), ("p4", 2), ("p5", 0), ("p5", 2), ("p5", 4)]
    assert names == [f"{name}.{k}.norm.weight" for name, k in levels]
    assert model.in_features == ["p2", "p4", "p5"] and model.predictor.weight.shape == (3, 32, 1, 1)
    assert "p2.0.bias" not in model.state_dict()


def test_loss_is_the_mean_cross_entropy_of_the_counted_pixels():
    model = head(loss_weight=0.5, common_stride=1)
    logits = torch.randn(1, 5, 2, 3)
    target = torch.tensor([[[0, 4, 255], [2, 255, 1]]])
    terms = []
    for row in range(2):
        for column in range(3):
            if target[0, row, column] != 255:
                scores = [math.exp(v) for v in logits[0, :, row, column].tolist()]
                terms.append(-math.log(scores[target[0, row, column]] / sum(scores)))
    loss = model.losses(logits, target)["loss_sem_seg"]
    assert loss.item() == pytest.approx(0.5 * sum(terms) / len(terms), rel=1e-5)


@pytest.mark.embedded
def test_an_unlabelled_batch_gives_a_zero_loss_with_gradients():
    model = head().train()
    _, losses = model(features(), torch.full((2, 8, 16), 255))
    losses["loss_sem_seg"].backward()
    assert losses["loss_sem_seg"] == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    with pytest.raises(ValueError, match="sem_seg"):
        model(features())


def test_no_input_level_is_an_error():
    with pytest.raises(ValueError):
        SemSegFPNHead({}, num_classes=5, conv_dims=8, common_stride=4)


def segmentor_config():
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 6, 32
    return cfg


def test_segmentor_trains_and_segments_at_the_wanted_size():
    model = build_model(segmentor_config())
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((40, 70), (64, 50))]
    inputs = [{"image": x, "sem_seg": torch.randint(0, 6, x.shape[1:])} for x in images]
    losses = model.train()(inputs)
    losses["loss_sem_seg"].backward()
    assert losses["loss_sem_seg"].isfinite() and model.sem_seg_head.predictor.weight.grad.any()
    with torch.no_grad():
        first, second = model.eval()([{"image": images[0], "height": 20, "width": 30}, {"image": images[1]}])
    assert first["sem_seg"].shape == (6, 20, 30) and second["sem_seg"].shape == (6, 64, 50)


def test_padding_does_not_count_in_the_loss():
    class PixelHead(nn.Module):
        ignore_value = 255

        def __init__(self, cfg, input_shape):
            super().__init__()

        def forward(self, features, targets=None):
            self.seen = targets
            return None, {}

    SEM_SEG_HEADS_REGISTRY._do_register("PixelTestHead", PixelHead)
    cfg = segmentor_config()
    cfg.MODEL.SEM_SEG_HEAD.NAME = "PixelTestHead"
    model = build_model(cfg).train()
    model([{"image": torch.zeros(3, 40, 70, dtype=torch.uint8), "sem_seg": torch.ones(40, 70, dtype=torch.long)}])
    seen = model.sem_seg_head.seen
    assert seen.shape == (1, 64, 96) and (seen == 1).sum() == 40 * 70 and (seen == 255).sum() == 64 * 96 - 40 * 70
