"""RetinaMask: its regions against an obvious reference, its losses beside those of Mask R-CNN with ShapeProp, and masks
in the pixels of the image that was asked about."""

import pytest
import torch
from tiny_tasks import COMMON

from dyn_d2.config.read import read_cfg
from dyn_d2.data.partial_masks import apply_partial_masks
from dyn_d2.modeling.answers import head_classes
from dyn_d2.modeling.meta_arch import RetinaMask
from dyn_d2.utils.seeds import seed_all

from detectron2.data import MetadataCatalog
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import META_ARCH_REGISTRY, build_model, build_roi_heads
from detectron2.structures import BitMasks, Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage

CLASSES, HEIGHT, WIDTH = 3, 64, 80
SHAPEPROP, PLAIN = "ShapePropMaskROIHeads", "MaskROIHeads"
TINY = {
    "MODEL.META_ARCHITECTURE": "RetinaMask",
    "MODEL.MASK_ON": True,
    "MODEL.BACKBONE.NAME": "build_retinanet_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16], [32], [48], [64]],
    "MODEL.RETINANET.NUM_CLASSES": CLASSES,
    "MODEL.RETINANET.NUM_CONVS": 1,
    "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
    "MODEL.ROI_HEADS.NAME": SHAPEPROP,
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_MASK_HEAD.NAME": "PartialMaskHead",
    "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": True,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 8,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 6,
    "MODEL.SHAPE_PROP.NUM_CONV": 1,
    "MODEL.SHAPE_PROP.CONV_DIM": 8,
    "MODEL.SHAPE_PROP.LATENT_CHANNELS": 3,
    "TEST.DETECTIONS_PER_IMAGE": 20,
}
BOXES = {"loss_cls", "loss_box_reg"}
MASKS = {SHAPEPROP: {"loss_saliency", "loss_shape", "loss_mask"}, PLAIN: {"loss_mask"}}


def config(**more):
    keys = COMMON | TINY | {key.replace("__", "."): value for key, value in more.items()}
    return read_cfg("", [str(part) for pair in keys.items() for part in pair])


def build(**more) -> torch.nn.Module:
    seed_all("model")
    return build_model(config(**more))


def targets(flags: list[bool]) -> Instances:
    boxes = torch.tensor([[4.0, 4, 30, 34], [30, 10, 70, 50], [8, 36, 28, 60]])[: len(flags)]
    masks = torch.zeros(len(flags), HEIGHT, WIDTH, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y0 : (y0 + y1) // 2, x0:x1] = True
    return Instances(
        (HEIGHT, WIDTH),
        gt_boxes=Boxes(boxes),
        gt_classes=torch.arange(len(flags)) % CLASSES,
        gt_masks=BitMasks(masks),
        gt_has_mask=torch.tensor(flags, dtype=torch.bool),
    )


def batch(flags: list[list[bool]]) -> list[dict]:
    seed_all("batch")
    images = torch.randint(0, 255, (len(flags), 3, HEIGHT, WIDTH), dtype=torch.uint8)
    return [
        {"image": image, "instances": targets(of_image), "height": HEIGHT, "width": WIDTH}
        for image, of_image in zip(images, flags, strict=True)
    ]


def losses_of(model, flags: list[list[bool]]) -> dict[str, torch.Tensor]:
    seed_all("step")
    with EventStorage():
        return model(batch(flags))


def detections_of(model, inputs: list[dict]) -> list[Instances]:
    with torch.no_grad():
        return [output["instances"] for output in model.eval()(inputs)]


# Training

MIXTURES = [
    [[True, False], [False, True, True]],
    [[False], [True]],
    [[False, False], [False]],
    [[], [True]],
    [[], []],
]


CASES = [(flags, 100) for flags in MIXTURES] + [([[], [True]], 0), ([[], []], 0)]


@pytest.mark.parametrize("heads", MASKS)
@pytest.mark.parametrize(("flags", "proposals"), CASES, ids=str)
def test_every_mixture_trains_every_parameter(flags, proposals, heads) -> None:
    """With 0 proposals an image without objects has no region at all."""
    model = build(MODEL__ROI_HEADS__NAME=heads, MODEL__RETINA_MASK__PROPOSALS=proposals)
    losses = losses_of(model, flags)
    assert losses.keys() == BOXES | MASKS[heads] and all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not without
    assert (losses["loss_mask"] > 0) == any(map(any, flags))
    if heads == SHAPEPROP:
        assert (losses["loss_shape"] > 0) == any(map(any, flags))
        assert (losses["loss_saliency"] > 0) == (proposals > 0 or any(flags))


def test_masks_do_not_change_the_losses_of_the_boxes() -> None:
    masks, boxes = build(), build(MODEL__MASK_ON=False)
    boxes.load_state_dict(masks.state_dict(), strict=False)
    a, b = losses_of(masks, MIXTURES[0]), losses_of(boxes, MIXTURES[0])
    assert b.keys() == BOXES and boxes.roi_heads is None
    assert all(torch.equal(a[name], b[name]) for name in BOXES)


def test_a_few_steps_lower_the_losses_of_the_masks() -> None:
    model = build(MODEL__RETINA_MASK__PROPOSALS=0)  # the same regions in each step, the true boxes
    optimizer = torch.optim.Adam(model.parameters(), lr=0.002)
    sums = []
    for _ in range(12):
        losses = losses_of(model, [[True, True]])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        sums.append((losses["loss_mask"] + losses["loss_saliency"] + losses["loss_shape"]).item())
    assert sums[-1] < 0.7 * sums[0]


# Regions


def iou(a: list[float], b: list[float]) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inner = max(w, 0) * max(h, 0)
    return inner / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner)


def predictions_of(model, inputs: list[dict]) -> tuple[ImageList, list, tuple]:
    images = model.preprocess_image(inputs)
    features = model.backbone(images.tensor)
    maps = [features[name] for name in model.head_in_features]
    return images, maps, model.head(maps)


def slow_proposals(model, maps: list, predictions: tuple, image: int) -> list[tuple[float, list[float]]]:
    """(score, box) of the best predictions of one image: every anchor's best class, decoded, cut, greedy NMS."""
    candidates = []
    anchors = model.anchor_generator(maps)
    for level, (logits, deltas) in enumerate(zip(*predictions, strict=True)):
        rows = logits[image].reshape(-1, CLASSES, *logits.shape[2:]).permute(2, 3, 0, 1).flatten(0, 2)
        moves = deltas[image].reshape(-1, 4, *deltas.shape[2:]).permute(2, 3, 0, 1).flatten(0, 2)
        for row, move, anchor in zip(rows, moves, anchors[level].tensor, strict=True):
            x0, y0, x1, y1 = model.box2box_transform.apply_deltas(move[None], anchor[None])[0].tolist()
            box = [min(max(x0, 0), WIDTH), min(max(y0, 0), HEIGHT), min(max(x1, 0), WIDTH), min(max(y1, 0), HEIGHT)]
            if box[2] > box[0] and box[3] > box[1]:
                candidates.append((row.max().item(), box, level))
    kept: list = []
    for score, box, level in sorted(candidates, reverse=True):
        if all(other[2] != level or iou(other[1], box) <= model.test_nms_thresh for other in kept):
            kept.append((score, box, level))
    return [(score, box) for score, box, _ in kept[: model.num_proposals]]


def test_proposals_are_the_best_predictions() -> None:
    model = build(MODEL__RETINA_MASK__PROPOSALS=12)
    with torch.no_grad():
        for layer in (model.head.cls_score, model.head.bbox_pred):
            layer.weight.normal_(std=0.3)
        images, maps, predictions = predictions_of(model, batch([[], []]))
        found = model.propose(images, maps, predictions)
        for image, proposals in enumerate(found):
            expected = slow_proposals(model, maps, predictions, image)
            assert len(proposals) == len(expected) == 12
            scores, boxes = zip(*expected, strict=True)
            torch.testing.assert_close(proposals.objectness_logits, torch.tensor(scores))
            torch.testing.assert_close(proposals.proposal_boxes.tensor, torch.tensor(boxes), rtol=1e-4, atol=1e-3)
            assert not proposals.proposal_boxes.tensor.requires_grad


def test_a_diverged_prediction_shows_in_the_loss() -> None:
    """It does not stop the step, so that the trainer can name the images."""
    model = build()
    torch.nn.init.constant_(model.head.bbox_pred.bias, torch.nan)
    losses = losses_of(model, [[True]])
    assert torch.isnan(losses["loss_box_reg"]) and torch.isfinite(losses["loss_mask"])


def test_regions_are_labelled_by_overlap(monkeypatch) -> None:
    """Predictions and true boxes, foreground from an IoU of 0.5 on, else background."""
    model, seen = build(), []
    branch = model.roi_heads._forward_mask
    monkeypatch.setattr(model.roi_heads, "_forward_mask", lambda f, x: (seen.append((f, x)), branch(f, x))[1])
    losses_of(model, [[True, False, True], []])
    ((features, (sampled, empty)),) = seen
    assert set(model.roi_heads.mask_in_features) <= features.keys()
    truth = targets([True, False, True])
    true_boxes = truth.gt_boxes.tensor.tolist()
    assert 4 < len(sampled) <= 100 + len(truth)
    for box, label, flag in zip(sampled.proposal_boxes, sampled.gt_classes, sampled.gt_has_mask, strict=True):
        overlaps = [iou(box.tolist(), other) for other in true_boxes]
        best = max(range(3), key=overlaps.__getitem__)
        assert label == (truth.gt_classes[best] if overlaps[best] >= 0.5 else CLASSES)
        assert label == CLASSES or flag == truth.gt_has_mask[best]
    listed = sampled.proposal_boxes.tensor.tolist()
    assert all(box in listed for box in true_boxes)
    assert len(empty) and (empty.gt_classes == CLASSES).all()


def test_keys_limit_the_regions() -> None:
    model = build(MODEL__ROI_HEADS__BATCH_SIZE_PER_IMAGE=5, MODEL__ROI_HEADS__POSITIVE_FRACTION=0.4)
    images, maps, predictions = predictions_of(model, batch([[True] * 3]))
    with EventStorage():
        (sampled,) = model.roi_heads.label_and_sample_proposals(
            model.propose(images, maps, predictions), [targets([True] * 3)]
        )
    assert len(sampled) == 5 and (sampled.gt_classes < CLASSES).sum() == 2


def test_the_branch_is_that_of_mask_rcnn() -> None:
    """On the same regions ShapePropROIHeads gives the same losses and masks, and its weights have the same names."""
    model = build()
    heads = model.roi_heads
    keys = {
        "MODEL__ROI_HEADS__NAME": "ShapePropROIHeads",
        "MODEL__ROI_HEADS__NUM_CLASSES": CLASSES,
        "MODEL__ROI_BOX_HEAD__NAME": "FastRCNNConvFCHead",
        "MODEL__ROI_BOX_HEAD__NUM_FC": 1,
        "MODEL__ROI_BOX_HEAD__FC_DIM": 8,
    }
    other = build_roi_heads(config(**keys), model.backbone.output_shape())
    result = other.load_state_dict(heads.state_dict(), strict=False)
    assert not result.unexpected_keys and all(name.startswith("box_") for name in result.missing_keys)
    inputs = batch([[True, False, True], [False, True]])
    truth = [x["instances"] for x in inputs]
    images, maps, predictions = predictions_of(model, inputs)
    features = model.backbone(images.tensor)
    with EventStorage():
        sampled = heads.label_and_sample_proposals(model.propose(images, maps, predictions), truth)
        losses, expected = heads._forward_mask(features, sampled), other._forward_mask(features, sampled)
    assert losses.keys() == expected.keys() == MASKS[SHAPEPROP]
    assert all(torch.equal(losses[name], expected[name]) and losses[name] > 0 for name in losses)
    found = [Instances((HEIGHT, WIDTH), pred_boxes=x.gt_boxes, pred_classes=x.gt_classes) for x in truth]
    with torch.no_grad():
        a, b = (x.eval().forward_with_given_boxes(features, found) for x in (heads, other))
    assert all(torch.equal(one.pred_masks, two.pred_masks) for one, two in zip(a, b, strict=True))


# Inference


@pytest.mark.parametrize("heads", MASKS)
def test_masks_have_the_size_that_was_asked_for(heads) -> None:
    model = build(MODEL__ROI_HEADS__NAME=heads)
    inputs = [{**inputs, "height": 2 * HEIGHT, "width": 3 * WIDTH} for inputs in batch([[], []])]
    inputs[1] = {"image": inputs[1]["image"][:, :48]}
    full, small = detections_of(model, inputs)
    assert 0 < len(full) <= 20 and full.pred_masks.shape == (len(full), 2 * HEIGHT, 3 * WIDTH)
    assert small.pred_masks.shape == (len(small), 48, WIDTH)
    assert full.pred_masks.dtype == torch.bool
    (record, *_) = instances_to_coco_json(full.to("cpu"), 1)
    assert record["segmentation"]["size"] == [2 * HEIGHT, 3 * WIDTH]


def test_masks_fill_the_boxes_that_are_shown() -> None:
    """A mask head that says yes everywhere gives masks that are the boxes, also where RetinaNet's leave the image."""
    model = build()
    with torch.no_grad():
        model.head.bbox_pred.weight.normal_(std=0.3)
        model.roi_heads.mask_head.predictor.bias.fill_(100)
    inputs = batch([[]])
    pooled = []
    handle = model.roi_heads.mask_pooler.register_forward_hook(lambda module, given, _: pooled.extend(given[1]))
    (found,) = detections_of(model, inputs)
    handle.remove()
    torch.testing.assert_close(pooled[0].tensor, found.pred_boxes.tensor)
    assert (found.pred_boxes.tensor >= 0).all() and len(found)
    area = found.pred_masks.sum(dim=(1, 2))
    torch.testing.assert_close(area.float(), found.pred_boxes.area(), rtol=0.25, atol=30)


def test_boxes_are_retina_nets() -> None:
    masks, boxes = build(), build(MODEL__META_ARCHITECTURE="RetinaNet")
    boxes.load_state_dict(masks.state_dict(), strict=False)
    inputs = batch([[], []])
    for a, b in zip(detections_of(masks, inputs), detections_of(boxes, inputs), strict=True):
        torch.testing.assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor)
        assert torch.equal(a.scores, b.scores) and torch.equal(a.pred_classes, b.pred_classes)


@pytest.mark.parametrize("heads", MASKS)
def test_no_detections(heads) -> None:
    model = build(MODEL__ROI_HEADS__NAME=heads, MODEL__RETINANET__SCORE_THRESH_TEST=1.0)
    for found in detections_of(model, batch([[], []])):
        assert len(found) == 0 and found.pred_masks.shape == (0, HEIGHT, WIDTH)


def test_maps_come_with_the_detections_if_asked_for() -> None:
    (found,) = detections_of(build(MODEL__SHAPE_PROP__OUTPUT_MAPS=True), batch([[]]))
    assert found.pred_shape.shape == found.pred_saliency.shape == (len(found), 1, 6, 6) and len(found)


# Keys


def test_one_key_counts_the_classes() -> None:
    model = build(MODEL__ROI_MASK_HEAD__CLS_AGNOSTIC_MASK=False)
    assert model.roi_heads.num_classes == CLASSES == head_classes(model)
    assert model.roi_heads.mask_head.predictor.out_channels == CLASSES


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MODEL__ROI_HEADS__NAME": "ShapePropROIHeads"}, "MODEL.ROI_HEADS.NAME is ShapePropROIHeads.*MaskROIHeads"),
        ({"MODEL__ROI_HEADS__IN_FEATURES": ["res4"]}, "names res4.*p2"),
        ({"MODEL__RETINA_MASK__PROPOSALS": -1}, "PROPOSALS is -1"),
        ({"MODEL__ROI_MASK_HEAD__POOLER_TYPE": ""}, "ShapePropMaskROIHeads pools regions"),
    ],
    ids=str,
)
def test_bad_keys_are_named(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_mask_heads_alone_detect_nothing() -> None:
    heads = build().roi_heads.eval()
    proposals = Instances((HEIGHT, WIDTH), proposal_boxes=Boxes(torch.zeros(0, 4)))
    with pytest.raises(ValueError, match="META_ARCHITECTURE to RetinaMask"):
        heads(None, {}, [proposals])


def test_masks_of_some_objects_need_a_head_that_can_do_with_them() -> None:
    MetadataCatalog.get("retina_mask_test").thing_classes = ["a", "b", "c"]
    square = [[1.0, 1, 9, 1, 9, 9, 1, 9]]
    objects = [{"category_id": 0, "segmentation": square}, {"category_id": 1}]
    records = [{"image_id": 1, "height": 20, "width": 20, "annotations": objects}]
    keys = {"DATASETS__TRAIN": ["retina_mask_test"]}
    assert len(apply_partial_masks(config(**keys), records)) == 1
    with pytest.raises(ValueError, match="1 of 2 objects.*PartialMaskHead"):
        apply_partial_masks(config(**keys, MODEL__ROI_MASK_HEAD__NAME="MaskRCNNConvUpsampleHead"), records)


# Gated backbones


def test_over_a_gated_backbone() -> None:
    model = build(
        MODEL__META_ARCHITECTURE="DynamicRetinaMask",
        MODEL__BACKBONE__NAME="build_gated_retinanet_fpn_backbone",
        MODEL__POLICY__NAME="skipnet_rnn",
        MODEL__POLICY__STAGE="hrl",
        MODEL__POLICY__SKIPNET__BASELINE="self_critical",
    )
    assert isinstance(model, RetinaMask) and META_ARCH_REGISTRY.get("DynamicRetinaMask") is type(model)
    losses = losses_of(model, [[True, False], [True]])
    assert losses.keys() > BOXES | MASKS[SHAPEPROP]
    sum(losses.values()).backward()
    model.eval()
    with torch.no_grad():
        outputs = model(batch([[], []]))
    assert all(x["route"].executed > 0 and x["instances"].has("pred_masks") for x in outputs)
