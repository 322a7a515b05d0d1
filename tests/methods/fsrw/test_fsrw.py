"""FSRW, YOLOv2 and LSTD as models: what they predict, learn from, and refuse."""

import pytest
import torch
from fsrw_toy import KEYS, support

from dyn_d2.config.applied import KeyNotApplied
from dyn_d2.config.read import read_cfg
from dyn_d2.methods.fsrw.lstd import background_depression
from dyn_d2.methods.fsrw.meta_arch import FSRW
from dyn_d2.methods.fsrw.reweighting import ClassVectors, reweight
from dyn_d2.methods.fsrw.yolo import Objects, Predictions
from dyn_d2.methods.fsrw.yolo.layers import OBJECT_PRIOR

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

CLASSES = 3
LAYERS = {"conv13": 26, "conv20": 51, "conv22": 51}


def config(name: str = "FSRW", **more) -> CfgNode:
    keys = {"MODEL__META_ARCHITECTURE": name, "MODEL__RETINANET__NUM_CLASSES": CLASSES, **KEYS, **more}
    pairs = {key.replace("__", "."): value for key, value in keys.items() if not key.startswith("FEW_SHOT")}
    return read_cfg("", [str(word) for pair in pairs.items() for word in pair])


def batch(classes: int = CLASSES, boxes: bool = True) -> list[dict]:
    found = []
    for i in range(2):
        truth = Instances((60, 90))
        corners = torch.tensor([[5.0, 5, 40, 50], [30, 10, 80, 40]]) if boxes else torch.zeros(0, 4)
        truth.gt_boxes, truth.gt_classes = Boxes(corners), torch.tensor([i % CLASSES, 2])[: len(corners)]
        image = torch.randint(0, 255, (3, 60, 90), dtype=torch.uint8)
        found.append({"image": image, "instances": truth, "height": 120, "width": 180, "file_name": f"{i}.jpg"})
    found[0]["support"] = support(classes)
    return found


def slow(model: FSRW, images: torch.Tensor, vectors: torch.Tensor) -> Predictions:
    """Wang 2020 as it is written: everything behind the re-weighted layer, for one class after the other."""
    outputs = []
    for vector in vectors[:, None]:
        maps = model.backbone(images)
        if model.layer == "conv13":
            conv13 = reweight(maps["conv13"], vector)
            features = model.layers.join(conv13, model.layers.deepen(model.backbone.last_stage(conv13)))
        elif model.layer == "conv20":
            features = model.layers.join(maps["conv13"], reweight(model.layers.deepen(maps["conv18"]), vector))
        else:
            features = reweight(model.layers(maps), vector)
        outputs.append(model.predictor(features))
    return Predictions.by_class(torch.stack(outputs, 1), len(model.anchors))


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("layer", LAYERS)
def test_any_layer_can_be_reweighted(layer, share):
    model = build_model(config(MODEL__REWEIGHTING__LAYER=layer, MODEL__REWEIGHTING__SHARE=share)).eval()
    assert model.reweighted_channels == round(LAYERS[layer] * share)
    images, vectors = torch.rand(2, 3, 96, 96), torch.rand(CLASSES, model.reweighted_channels)
    with torch.no_grad():
        fast, expected = model.predict_for(images, vectors), slow(model, images, vectors)
    for part in ("offsets", "objectness", "classes"):
        torch.testing.assert_close(getattr(fast, part), getattr(expected, part), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("boxes", [True, False], ids=["objects", "none"])
@pytest.mark.parametrize("class_loss", ["softmax", "multi_binary", "single_binary"])
def test_every_parameter_gets_a_gradient(class_loss, boxes):
    model = build_model(config(MODEL__REWEIGHTING__CLASS_LOSS=class_loss))
    with EventStorage():
        losses = model(batch(boxes=boxes))
    assert losses.keys() == {"loss_class", "loss_box", "loss_objectness"}
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("name", ["FSRW", "YOLOv2"])
def test_it_learns_to_find_what_it_is_shown(name):
    model, given = build_model(config(name)), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for iteration in range(60):
        with EventStorage(250 + iteration):
            losses = model(given)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    # By chance 2.2; with all objectness at 0, the easiest answer, that loss is about 2.
    assert losses["loss_class"] < 0.3 and losses["loss_box"] < 0.3
    assert losses["loss_objectness"] < 1


@pytest.mark.parametrize("name", ["FSRW", "YOLOv2"])
def test_objectness_starts_near_zero(name):
    model = build_model(config(name)).eval()
    if name == "FSRW":
        model.use_vectors(ClassVectors(["a", "b"], torch.rand(2, 51)))
    with torch.no_grad():
        found = model.predict(torch.rand(1, 3, 96, 96))
    assert found.objectness.sigmoid().mean().item() == pytest.approx(OBJECT_PRIOR, abs=0.002)
    assert found.offsets.mean().abs() < 0.05 and found.classes.mean().abs() < 0.05


def test_detections_come_in_the_frame_of_the_image():
    model = build_model(config()).eval()
    model.use_vectors(ClassVectors(["a", "b"], torch.rand(2, 51)))
    with torch.no_grad():
        found = model(batch())[0]["instances"]
    assert found.image_size == (120, 180) and set(found.pred_classes.tolist()) == {0, 1} and len(found) > 0
    squares = build_model(config("YOLOv2"))
    objects = squares.objects(batch()[:1], cells=3)
    assert objects.boxes[0].tolist() == pytest.approx([22.5 / 30, 27.5 / 20, 35 / 30, 45 / 20])


def test_a_class_number_is_a_row():
    model = build_model(config()).eval()
    vectors, given = torch.rand(3, 51), batch()
    with torch.no_grad():
        model.use_vectors(ClassVectors(list("abc"), vectors))
        first = model(given)[0]["instances"]
        model.use_vectors(ClassVectors(list("cab"), vectors[[2, 0, 1]]))
        second = model(given)[0]["instances"]
    torch.testing.assert_close(first.scores, second.scores)
    assert torch.equal((first.pred_classes + 1) % 3, second.pred_classes)


def test_what_does_not_fit_is_named():
    model = build_model(config())
    with EventStorage(), pytest.raises(ValueError, match="no support set"):
        model([{key: value for key, value in inputs.items() if key != "support"} for inputs in batch()])
    with (
        EventStorage(),
        pytest.raises(ValueError, match="0.jpg shows class number 2, but the support set has 2 classes"),
    ):
        model(batch(classes=2))
    with pytest.raises(ValueError, match="no class vectors yet"):
        model.eval()(batch())
    with pytest.raises(ValueError, match="have width 9, but this detector re-weights 51"):
        model.use_vectors(ClassVectors(["a"], torch.rand(1, 9)))
    without = build_model(config(MODEL__REWEIGHTING__VECTORS=["x.npz"]))
    assert not [name for name in without.state_dict() if name.startswith("reweighting")]
    with EventStorage(), pytest.raises(ValueError, match="built for given class vectors"):
        without(batch())
    for key, value, text in (
        ("MODEL__REWEIGHTING__LAYER", "conv21", "LAYER is 'conv21'"),
        ("MODEL__REWEIGHTING__CLASS_LOSS", "hinge", "CLASS_LOSS is 'hinge'"),
        ("MODEL__REWEIGHTING__SUPPORT_SIZE", 32, "SUPPORT_SIZE is 32"),
        ("MODEL__YOLO__SIZE", 100, "multiples of 32"),
        ("MODEL__YOLO__ANCHORS", [[1.0, 0.0]], "ANCHORS"),
        ("MODEL__BACKBONE__NAME", "build_resnet_backbone", "IN_FEATURES has to name these two, not conv13, conv18"),
    ):
        with pytest.raises(ValueError, match=text):
            build_model(config(**{key: value}))
    with EventStorage(), pytest.raises(ValueError, match="class number 2, but MODEL.RETINANET.NUM_CLASSES is 2"):
        build_model(config("YOLOv2", MODEL__RETINANET__NUM_CLASSES=2))(batch())


def test_the_fingerprint_is_of_the_detector_alone():
    model = build_model(config())
    before = model.fingerprint()
    with torch.no_grad():
        model.reweighting.convs[0].weight.add_(1)
    assert model.fingerprint() == before
    with torch.no_grad():
        model.predictor.weight.add_(1)
    assert model.fingerprint() != before


def test_plain_yolo_and_lstd_train():
    model = build_model(config("YOLOv2"))
    with EventStorage():
        losses = model(batch())
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    lstd = build_model(config("LSTDYOLOv2"))
    with EventStorage():
        losses = lstd(batch())
    assert losses.keys() == {"loss_class", "loss_box", "loss_objectness", "loss_background", "loss_transfer"}
    sum(losses.values()).backward()
    assert all((p.grad is None) == name.startswith("teacher.") for name, p in lstd.named_parameters())
    assert not lstd.teacher.training
    with EventStorage():
        nothing = lstd(batch(boxes=False))
    assert nothing["loss_transfer"] == 0 and torch.isfinite(nothing["loss_background"])


def test_background_is_what_lies_outside_of_the_boxes():
    features = torch.rand(2, 5, 4, 6)
    objects = Objects(torch.tensor([1]), torch.tensor([0]), torch.tensor([0]), torch.tensor([[2.0, 1.0, 2.0, 2.0]]))
    total, count = 0.0, 0
    for image in range(2):
        for y in range(4):
            for x in range(6):
                if image == 0 or not (1 < x + 0.5 < 3 and 0 < y + 0.5 < 2):
                    total, count = total + features[image, :, y, x].square().mean().item(), count + 1
    assert background_depression(features, objects).item() == pytest.approx(total / count)


@pytest.mark.parametrize("name", ["FSRW", "YOLOv2"])
def test_a_foreign_trainer_is_told_of_its_keys(name) -> None:
    model = build_model(config(name, SOLVER__OPTIMIZER="Adam", INPUT__JITTER__HUE=0.1)).train()
    with EventStorage(0), pytest.raises(KeyNotApplied, match="(?s)SOLVER.OPTIMIZER.*INPUT.JITTER"):
        model(batch())
