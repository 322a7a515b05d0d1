"""RetinaNet: labels, focal loss, decoding, and the whole model."""

import pytest
import torch
from torchvision.ops import batched_nms, sigmoid_focal_loss

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import EventStorage

CLASSES = 3


def retinanet(**keys):
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[x, x * 1.4] for x in (32, 64, 128, 256, 512)]
    cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.RETINANET.NUM_CONVS = CLASSES, 1
    for key, value in keys.items():
        cfg.MODEL.RETINANET[key] = value
    return build_model(cfg)


def inputs(*counts: int) -> list[dict]:
    records = []
    for count in counts:
        corner = torch.rand(count, 2) * 50
        boxes = Boxes(torch.cat([corner, corner + 20 + torch.rand(count, 2) * 40], dim=1))
        classes = torch.randint(CLASSES, (count,))
        gt = Instances((96, 128), gt_boxes=boxes, gt_classes=classes)
        records.append({"image": torch.rand(3, 96, 128) * 255, "instances": gt, "height": 48, "width": 64})
    return records


def test_permutation_keeps_anchors_of_a_position_together():
    x = torch.randn(2, 3 * 4, 5, 6)
    y = permute_to_N_HWA_K(x, 4)
    assert y.shape == (2, 5 * 6 * 3, 4)
    torch.testing.assert_close(y[1, (2 * 6 + 3) * 3 + 1], x[1, 4:8, 2, 3])


def test_labels_are_classes_background_or_ignored():
    model = retinanet()
    anchors = model.anchor_generator([torch.zeros(1, 1, 12, 16)] + [torch.zeros(1, 1, 1, 1)] * 4)
    gt = [record["instances"] for record in inputs(4, 0)]
    labels, boxes = model.label_anchors(anchors, gt)
    quality, matches = pairwise_iou(gt[0].gt_boxes, Boxes.cat(anchors)).max(dim=0)
    sure = quality >= 0.5
    assert torch.equal(labels[0][sure], gt[0].gt_classes[matches[sure]])
    torch.testing.assert_close(boxes[0][sure], gt[0].gt_boxes.tensor[matches[sure]])
    assert set(labels[0][quality < 0.4].tolist()) <= {CLASSES, *gt[0].gt_classes.tolist()}
    assert (labels[1] == CLASSES).all() and boxes[1].shape == boxes[0].shape


@pytest.mark.parametrize("counts", [(3, 2), (0, 0)])
def test_losses_are_their_definition(counts):
    model, records = retinanet().train(), inputs(*counts)
    with EventStorage() as storage:
        losses = model(records)
    images = model.preprocess_image(records)
    named = model.backbone(images.tensor)
    features = [named[name] for name in model.head_in_features]
    logits, deltas = (
        torch.cat([permute_to_N_HWA_K(x, k) for x in maps], dim=1)
        for maps, k in zip(model.head(features), (CLASSES, 4), strict=True)
    )
    anchors = model.anchor_generator(features)
    labels, boxes = (torch.stack(x) for x in model.label_anchors(anchors, [r["instances"] for r in records]))
    one_hot = torch.nn.functional.one_hot(labels.clamp(min=0), CLASSES + 1)[..., :CLASSES].float()
    focal = sigmoid_focal_loss(logits, one_hot, alpha=0.25, gamma=2)[labels >= 0].sum()
    positive = (labels >= 0) & (labels < CLASSES)
    normalizer = 0.9 * 100 + 0.1 * max(int(positive.sum()), 1)
    torch.testing.assert_close(losses["loss_cls"], focal / normalizer)
    source = torch.stack([Boxes.cat(anchors).tensor] * 2)[positive]
    error = (deltas[positive] - model.box2box_transform.get_deltas(source, boxes[positive])).abs()
    smooth = torch.where(error < 0.1, error**2 / 0.2, error - 0.05).sum()
    torch.testing.assert_close(losses["loss_box_reg"], smooth / normalizer)
    assert storage.latest()["num_pos_anchors"][0] == int(positive.sum()) / 2
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_normalizer_is_a_running_average():
    model = retinanet().train()
    assert model._ema_update("loss_normalizer", 50, 100) == pytest.approx(95)
    assert model._ema_update("loss_normalizer", 50, 100) == pytest.approx(90.5)
    assert not any("loss_normalizer" in key for key in model.state_dict())


def test_detections_against_plain_steps():
    model, size = retinanet(TOPK_CANDIDATES_TEST=15, SCORE_THRESH_TEST=0.3).eval(), (96, 128)
    anchors = model.anchor_generator([torch.zeros(1, 1, n, n) for n in (4, 2, 1, 1, 1)])
    scores = [torch.rand(len(a), CLASSES) for a in anchors]
    deltas = [torch.randn(len(a), 4) * 0.3 for a in anchors]
    found = model.inference_single_image(anchors, scores, deltas, size)
    rows = []
    for level, s, d in zip(anchors, scores, deltas, strict=True):
        pairs = [(s[i, k].item(), i, k) for i in range(len(s)) for k in range(CLASSES) if s[i, k] > 0.3]
        for score, i, k in sorted(pairs, reverse=True)[:15]:
            box = model.box2box_transform.apply_deltas(d[i : i + 1], level.tensor[i : i + 1])
            rows.append((score, k, box))
    boxes = torch.cat([box for *_, box in rows])
    all_scores, classes = torch.tensor([r[0] for r in rows]), torch.tensor([r[1] for r in rows])
    keep = batched_nms(boxes, all_scores, classes, 0.5)[:100]
    torch.testing.assert_close(found.scores, all_scores[keep])
    torch.testing.assert_close(found.pred_boxes.tensor, boxes[keep])
    assert torch.equal(found.pred_classes, classes[keep])


def test_model_returns_detections_of_the_wanted_size():
    model = retinanet(SCORE_THRESH_TEST=0.0).eval()
    with torch.no_grad():
        results = model(inputs(0, 0))
    for result in results:
        found = result["instances"]
        assert found.image_size == (48, 64) and 0 < len(found) <= 100
        assert (found.scores.diff() <= 0).all() and found.pred_boxes.tensor[:, 2].max() <= 64
    model.test_score_thresh = 0.9999
    with torch.no_grad():
        assert len(model(inputs(0))[0]["instances"]) == 0


def test_fresh_head_gives_every_class_the_prior():
    shapes = [ShapeSpec(channels=8, stride=8)] * 2
    head = RetinaNetHead(input_shape=shapes, num_classes=5, num_anchors=2, conv_dims=[8, 8], prior_prob=0.05)
    logits, deltas = head([torch.zeros(1, 8, 4, 4), torch.zeros(1, 8, 2, 2)])
    torch.testing.assert_close(logits[0].sigmoid(), torch.full((1, 10, 4, 4), 0.05))
    assert deltas[1].shape == (1, 8, 2, 2)
    with pytest.raises((ValueError, AssertionError)):
        head([torch.zeros(1, 8, 4, 4)])


@pytest.mark.parametrize("norm", ["", "BN", "GN"])
def test_norm_of_the_head(norm):
    shapes = [ShapeSpec(channels=32, stride=8)] * 3
    head = RetinaNetHead(input_shape=shapes, num_classes=2, num_anchors=1, conv_dims=[32], norm=norm).train()
    logits, _ = head([torch.randn(2, 32, 4, 4) for _ in shapes])
    sum(x.sum() for x in logits).backward()
    keys = [key for key in head.state_dict() if key.startswith("cls_subnet.1")]
    # BN: one set of statistics per feature map, one affine map for all
    assert len([key for key in keys if "running_mean" in key]) == (3 if norm == "BN" else 0)
    assert ("cls_subnet.1.weight" in keys) == bool(norm)


def test_training_without_annotations_is_refused():
    model, records = retinanet().train(), inputs(1)
    del records[0]["instances"]
    with pytest.raises((ValueError, AssertionError)), EventStorage():
        model(records)


@pytest.mark.embedded  # Detectron2 0.6 reads VIS_PERIOD but draws nothing for RetinaNet
def test_training_is_drawn_every_so_many_iterations(monkeypatch):
    model, records, drawn = retinanet().train(), inputs(1, 2), []
    monkeypatch.setattr(model, "visualize_training", lambda batch, results: drawn.append((batch, results)))
    model.vis_period = 2
    with EventStorage() as storage:
        for _ in range(3):
            losses = model(records)
            storage.step()
    assert len(drawn) == 2 and drawn[0][0] is records and all(isinstance(r, Instances) for r in drawn[0][1])
    sum(losses.values()).backward()


@pytest.mark.embedded
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.META_ARCHITECTURE", "PanopticFPN"),
        ("MODEL.META_ARCHITECTURE", "FCOS"),
        ("MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator"),
        ("MODEL.PROPOSAL_GENERATOR.NAME", "RRPN"),
        ("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, False, True, True]),
        ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignRotated"),
    ],
)
def test_parts_that_the_engine_leaves_out_say_so(key, value):
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.merge_from_list([key, value])
    with pytest.raises(NotImplementedError, match="leaves out"):
        build_model(cfg)


def test_unknown_architecture():
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "NoSuchNet"
    with pytest.raises(KeyError, match="NoSuchNet"):
        build_model(cfg)
