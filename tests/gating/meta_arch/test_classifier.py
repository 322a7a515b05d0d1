"""ImageClassifier: pooling, losses, scores, and what it refuses."""

import pytest
import torch
from tiny_tasks import batch, task_opts
from torch.nn import functional as F

from dyn_d2.config.read import read_cfg
from dyn_d2.gating import recording
from dyn_d2.gating.meta_arch.classifier import ImageClassifier

from detectron2.modeling import build_model


def build(**more) -> ImageClassifier:
    return build_model(read_cfg("", task_opts("classifier", MODEL__BACKBONE__NAME="build_resnet_backbone", **more)))


def test_scores_and_loss_against_the_obvious_way() -> None:
    model, inputs = build(), [{**item, "image": item["image"][:, :48, :48]} for item in batch(3)]
    x = torch.stack([item["image"] for item in inputs]).float()
    x = (x - model.pixel_mean) / model.pixel_std
    logits = model.linear(F.adaptive_avg_pool2d(model.backbone.eval()(x)["res5"], 1).flatten(1))
    labels = torch.tensor([item["label"] for item in inputs])
    with recording() as trace:
        loss = model(inputs)["loss_cls"]
    assert loss.item() == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-4)
    assert torch.allclose(trace.context.image_losses, F.cross_entropy(logits, labels, reduction="none"), atol=1e-4)
    model.eval()
    scores = torch.stack([output["scores"] for output in model(inputs)])
    assert torch.allclose(scores, logits.softmax(1), atol=1e-4)


def test_padding_does_not_count() -> None:
    model = build().eval()
    feature = torch.randn(2, 512, 2, 2)
    images = model.preprocess_image([{"image": torch.zeros(3, 64, 64)}, {"image": torch.zeros(3, 20, 33)}])
    pooled = model._pooled(feature, images)
    assert torch.allclose(pooled[0], feature[0].mean((1, 2)))
    assert torch.allclose(pooled[1], feature[1, :, :1, :2].mean((1, 2)))


def test_the_feature_can_be_chosen() -> None:
    assert build(MODEL__RESNETS__OUT_FEATURES=["res3", "res4"]).linear.in_features == 256
    features = {"MODEL__RESNETS__OUT_FEATURES": ["res3", "res4"], "MODEL__IMAGE_CLASSIFIER__IN_FEATURE": "res3"}
    assert build(**features).linear.in_features == 128
    with pytest.raises(ValueError, match="IN_FEATURE is 'p9': the backbone gives res5"):
        build(MODEL__IMAGE_CLASSIFIER__IN_FEATURE="p9")


def test_wrong_labels_and_counts() -> None:
    with pytest.raises(ValueError, match="NUM_CLASSES is 1"):
        build(MODEL__IMAGE_CLASSIFIER__NUM_CLASSES=1)
    model = build()
    for label in (3, -1, None):
        inputs = [{"image": torch.zeros(3, 32, 32), "label": label, "file_name": "a.png"}] * 2
        with pytest.raises(ValueError, match=f"label of a.png is {label}, but MODEL.IMAGE_CLASSIFIER.NUM_CLASSES is 3"):
            model(inputs)
    with pytest.raises(ValueError, match="label of an image is None"):
        model([{"image": torch.zeros(3, 32, 32)}] * 2)
