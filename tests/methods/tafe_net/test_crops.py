"""Features of the boxes of a COCO json."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dyn_d2.methods.tafe_net.crops import CropOptions, crop_features, cut
from dyn_d2.modeling.backbone.timm_models import TimmModel

COLOURS = {"red": (250, 0, 0), "green": (0, 250, 0)}


class MeanColour(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))


@pytest.fixture
def boxes(tmp_path) -> str:
    """Two pictures with a red square at the left and a green one at the right; crowds and tiny boxes beside them."""
    annotations = []
    for number in (2, 1):
        picture = np.zeros((40, 60, 3), np.uint8)
        picture[5:25, 4:24], picture[10:30, 30:50] = COLOURS["red"], COLOURS["green"]
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
        for category, box in ((1, [4, 5, 20, 20]), (2, [30, 10, 20, 20]), (2, [0, 0, 3, 30])):
            annotations.append({"image_id": number, "category_id": category, "bbox": box, "iscrowd": 0, "area": 400})
        annotations.append({"image_id": number, "category_id": 1, "bbox": [0, 0, 40, 40], "iscrowd": 1, "area": 1600})
    for i, annotation in enumerate(annotations):
        annotation["id"] = i + 1
    images = [{"id": i, "file_name": f"{i}.png", "width": 60, "height": 40} for i in (1, 2)]
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(COLOURS)]
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return str(path)


def test_each_box_is_seen_as_its_model_wants_it(boxes, tmp_path) -> None:
    model = TimmModel("toy", MeanColour(), {}, (10.0, 10.0, 10.0), (2.0, 4.0, 8.0))
    found = crop_features(model, boxes, tmp_path, CropOptions(size=20, context=0.0, batch=3))
    assert found["labels"].tolist() == ["red", "green"] * 2
    assert found["images"].tolist() == ["1.png", "1.png", "2.png", "2.png"]
    assert found["boxes"][1].tolist() == [30, 10, 20, 20] and found["features"].dtype == np.float16
    for label, feature in zip(found["labels"], found["features"], strict=True):
        assert np.allclose(feature, (np.array(COLOURS[label]) - 10) / np.array([2, 4, 8]), atol=0.1)


def test_context_stays_inside_the_image() -> None:
    image = np.arange(40 * 60 * 3, dtype=np.uint32).reshape(40, 60, 3).astype(np.uint8)
    whole = cut(image, [0, 0, 60, 40], CropOptions(size=32, context=0.0))
    assert np.array_equal(cut(image, [0, 0, 60, 40], CropOptions(size=32, context=0.5)), whole)
    assert not np.array_equal(cut(image, [20, 10, 20, 20], CropOptions(size=32, context=0.5)), whole)


def test_nothing_to_see(boxes, tmp_path) -> None:
    model = TimmModel("toy", MeanColour(), {}, (0.0,) * 3, (1.0,) * 3)
    with pytest.raises(ValueError, match=r"no object of 99 pixels .*lower --least"):
        crop_features(model, boxes, tmp_path, CropOptions(least=99))


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
