"""ShapeProp: each equation against a slow obvious version, and the ROI heads in whole models."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from dyn_d2.checkpoint.surgery import Source, operate
from dyn_d2.config.read import read_cfg
from dyn_d2.methods.shapeprop import SALIENCY
from dyn_d2.methods.shapeprop.roi_heads import (
    SaliencyPropagation,
    ShapeProp,
    ShapePropROIHeads,
    normalized_activation,
    saliency_loss,
    saliency_of,
    shape_loss,
)

from detectron2.layers import ShapeSpec
from detectron2.modeling import build_roi_heads
from detectron2.structures import BitMasks, Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import EventStorage

CLASSES = 3


# Saliency, Eq. 8.1 to 8.3


def slow_saliency_loss(saliency: torch.Tensor, labels: list[int]) -> float:
    losses = []
    for region, label in zip(saliency.tolist(), labels, strict=True):
        if label < 0:
            continue
        bags = [sum(map(sum, pixels)) / (len(pixels) * len(pixels[0])) for pixels in region]
        losses.append(math.log(sum(math.exp(bag) for bag in bags)) - bags[label])
    return sum(losses) / len(losses)


def test_saliency_loss_classifies_bags() -> None:
    saliency, labels = torch.randn(5, CLASSES + 1, 4, 6), [0, 3, -1, 2, 3]
    loss = saliency_loss(saliency, torch.tensor(labels))
    assert loss.item() == pytest.approx(slow_saliency_loss(saliency, labels), rel=1e-5)


def test_gradient_raises_positive_bags_and_lowers_negative_ones() -> None:
    saliency = torch.randn(4, CLASSES + 1, 3, 3, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 3])
    saliency_loss(saliency, labels).backward()
    positive = F.one_hot(labels, CLASSES + 1).bool()
    assert (saliency.grad[positive] < 0).all() and (saliency.grad[~positive] > 0).all()


@pytest.mark.parametrize("labels", [[], [-1, -1]])
def test_saliency_loss_without_regions(labels) -> None:
    saliency = torch.randn(len(labels), CLASSES + 1, 3, 3, requires_grad=True)
    loss = saliency_loss(saliency, torch.tensor(labels, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0 and not saliency.grad.any()


def test_label_of_a_region_is_the_partition_into_bags() -> None:
    """Eq. 8.2: a proposal is a positive bag of class c if some box of c overlaps it by half, of background if none."""
    heads = roi_heads()
    truth = targets([[True] * 3])[0]
    boxes = Boxes(torch.cat([truth.gt_boxes.tensor + shift for shift in (-12, -5, 0, 3, 9)]).clamp(0, 64))
    proposals = Instances((64, 64), proposal_boxes=boxes, objectness_logits=torch.zeros(len(boxes)))
    with EventStorage():
        (sampled,) = heads.label_and_sample_proposals([proposals], [truth])
    for box, label in zip(sampled.proposal_boxes.tensor, sampled.gt_classes.tolist(), strict=True):
        overlap = pairwise_iou(truth.gt_boxes, Boxes(box[None]))[:, 0]
        classes = {c for c, iou in zip(truth.gt_classes.tolist(), overlap.tolist(), strict=True) if iou >= 0.5}
        assert label in classes if classes else label == CLASSES


def test_map_of_each_regions_class() -> None:
    saliency = torch.randn(3, CLASSES + 1, 2, 2)
    chosen = saliency_of(saliency, torch.tensor([2, 0, 2]))
    assert torch.equal(chosen, torch.stack([saliency[0, 2:3], saliency[1, 0:1], saliency[2, 2:3]]))
    assert torch.equal(saliency_of(saliency[:, :1], torch.tensor([2, 0, 2])), saliency[:, :1])


# Propagation, Eq. 8.4


def slow_propagation(state: torch.Tensor, weights: torch.Tensor, steps: int, window: int) -> torch.Tensor:
    """Eq. 8.4 for one region: state (L, h, w), weights (L or 1, r * r, h, w) as predicted."""
    channels, height, width = state.shape
    half = window // 2
    for _ in range(steps):
        new = torch.zeros_like(state)
        for i, u, v in itertools.product(range(channels), range(height), range(width)):
            kernel = weights[i % len(weights), :, u, v]
            kernel = kernel / (kernel.sum() + 1e-5)
            for tap, (y, x) in enumerate(itertools.product(range(-half, half + 1), repeat=2)):
                p, q = u + y, v + x
                if 0 <= p < height and 0 <= q < width:
                    new[i, u, v] += state[i, p, q] * kernel[tap]
        state = new
    return state


@pytest.mark.parametrize(("channel_agnostic", "window", "steps"), [(False, 3, 0), (True, 3, 2), (False, 5, 1)])
def test_propagation_is_equation_8_4(channel_agnostic, window, steps) -> None:
    module = SaliencyPropagation(6, latent_channels=2, window=window, steps=steps, channel_agnostic=channel_agnostic)
    saliency, features = torch.randn(2, 1, 4, 4), torch.randn(2, 6, 4, 4)
    with torch.no_grad():
        weights = module.propagation_weights(features)
        assert weights.shape == (2, 1 if channel_agnostic else 2, window**2, 4, 4)
        assert (weights > 0).all() and (weights < 1).all()
        latent = [
            slow_propagation(x, w, steps or 4, window) for x, w in zip(module.encoder(saliency), weights, strict=True)
        ]
        torch.testing.assert_close(module(saliency, features), module.decoder(torch.stack(latent)))


def test_messages_reach_the_far_corner_after_max_h_w_steps() -> None:
    module = SaliencyPropagation(2, latent_channels=1)
    module.encoder, module.decoder = torch.nn.Identity(), torch.nn.Identity()
    spot = torch.zeros(1, 1, 7, 5)
    spot[0, 0, 0, 0] = 1
    assert (module(spot, torch.zeros(1, 2, 7, 5)) > 0).all()
    module.steps = 5
    assert module(spot, torch.zeros(1, 2, 7, 5))[0, 0, 6, 4] == 0


def test_shape_loss_is_cross_entropy_inside_the_boxes() -> None:
    masks = torch.zeros(2, 20, 20, dtype=torch.bool)
    masks[0, :, 4:8], masks[1, 10:, :] = True, True
    boxes = torch.tensor([[4.0, 0, 12, 8], [0, 8, 4, 12]])
    regions = Instances((20, 20), proposal_boxes=Boxes(boxes), gt_masks=BitMasks(masks))
    empty = Instances((20, 20), proposal_boxes=Boxes(torch.zeros(0, 4)))
    logits = torch.randn(2, 1, 4, 4)
    truth = torch.zeros(2, 4, 4)
    truth[0, :, :2], truth[1, 2:, :] = 1, 1
    p = logits[:, 0].sigmoid()
    expected = -(truth * p.log() + (1 - truth) * (1 - p).log()).mean()
    torch.testing.assert_close(shape_loss(logits, [empty, regions]), expected)
    nothing = torch.randn(0, 1, 4, 4, requires_grad=True)
    shape_loss(nothing, [empty]).backward()
    assert nothing.grad.shape == nothing.shape


def test_normalized_activation() -> None:
    shape = torch.tensor([[[[-3.0, 2], [4, 0]]], [[[-1.0, -2], [-3, -4]]]])
    expected = torch.tensor([[[[0.0, 0.5], [1, 0]]], [[[0.0, 0], [0, 0]]]])
    torch.testing.assert_close(normalized_activation(shape), expected, rtol=0, atol=1e-4)
    assert normalized_activation(torch.zeros(0, 1, 2, 2)).shape == (0, 1, 2, 2)


def test_bad_options_are_named() -> None:
    for keys, what in (
        ({"window": 4}, "WINDOW is 4.*odd"),
        ({"latent_channels": 0}, "LATENT_CHANNELS"),
        ({"steps": -1}, "STEPS"),
        ({"normalize": "softmax"}, "'softmax'.*random_walk"),
        ({"integration": "sum"}, "'sum'.*encoding"),
        ({"num_conv": 0}, "NUM_CONV"),
        ({"integration": "none", "mil": False, "propagation": False}, "nothing is left"),
    ):
        with pytest.raises(ValueError, match=what):
            ShapeProp(8, num_classes=CLASSES, conv_dim=8, **keys)


# ROI heads


def config(**changes):
    cfg = read_cfg()
    keys = {
        "MODEL.MASK_ON": True,
        "MODEL.ROI_HEADS.NAME": "ShapePropROIHeads",
        "MODEL.ROI_HEADS.NUM_CLASSES": CLASSES,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
        "MODEL.ROI_HEADS.IN_FEATURES": ["p2"],
        "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
        "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 8,
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 4,
        "MODEL.ROI_MASK_HEAD.NAME": "PartialMaskHead",
        "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": True,
        "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": 8,
        "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 6,
        "MODEL.SHAPE_PROP.NUM_CONV": 1,
        "MODEL.SHAPE_PROP.CONV_DIM": 8,
        "MODEL.SHAPE_PROP.LATENT_CHANNELS": 3,
        **{f"MODEL.{key}".replace("__", "."): value for key, value in changes.items()},
    }
    cfg.merge_from_list([part for pair in keys.items() for part in pair])
    return cfg


def roi_heads(**changes) -> ShapePropROIHeads:
    return build_roi_heads(config(**changes), {"p2": ShapeSpec(channels=4, stride=4)})


def targets(flags: list[list[bool]]) -> list[Instances]:
    boxes = torch.tensor([[4.0, 4, 30, 34], [30, 10, 60, 50], [8, 36, 28, 60]])
    return [
        Instances(
            (64, 64),
            gt_boxes=Boxes(boxes[: len(of_image)]),
            gt_classes=torch.arange(len(of_image)) % CLASSES,
            gt_masks=BitMasks(torch.rand(len(of_image), 64, 64) > 0.5),
            gt_has_mask=torch.tensor(of_image, dtype=torch.bool),
        )
        for of_image in flags
    ]


def losses_of(heads, truth: list[Instances]) -> dict[str, torch.Tensor]:
    features = {"p2": torch.randn(len(truth), 4, 16, 16)}
    corner = torch.rand(12, 2) * 40
    proposals = [
        Instances(
            (64, 64),
            proposal_boxes=Boxes(torch.cat([corner, corner + 20], dim=1)),
            objectness_logits=torch.zeros(12),
        )
        for _ in truth
    ]
    images = ImageList(torch.zeros(len(truth), 3, 64, 64), [(64, 64)] * len(truth))
    with EventStorage():
        return heads(images, features, proposals, truth)[1]


ALL_LOSSES = {"loss_cls", "loss_box_reg", "loss_saliency", "loss_shape", "loss_mask"}
MIXTURES = [
    [[True, False], [False, True]],
    [[False, True, False], [True]],
    [[False], [True]],
    [[False, False], [False]],
    [[], [True]],
    [[], []],
]


@pytest.mark.parametrize("classifier", ["linear", "cosine"])
@pytest.mark.parametrize("flags", MIXTURES, ids=str)
def test_every_mixture_trains_every_parameter(flags, classifier) -> None:
    heads = roi_heads(ROI_BOX_HEAD__CLASSIFIER=classifier)
    losses = losses_of(heads, targets(flags))
    assert losses.keys() == ALL_LOSSES and all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in heads.parameters())
    masks = any(map(any, flags))
    assert (losses["loss_shape"] > 0) == (losses["loss_mask"] > 0) == masks
    assert losses["loss_saliency"] > 0
    propagation = [p.grad.abs().sum() for p in heads.shape_prop.propagation.parameters()]
    assert (sum(propagation) > 0) == masks


def test_only_masks_of_flagged_objects_matter() -> None:
    heads, truth = roi_heads(), targets([[True, False, True]])
    torch.manual_seed(5)
    before = losses_of(heads, truth)
    truth[0].gt_masks.tensor[1] = ~truth[0].gt_masks.tensor[1]
    torch.manual_seed(5)
    after = losses_of(heads, truth)
    assert all(torch.equal(before[name], after[name]) for name in before)
    truth[0].gt_masks.tensor[0] = ~truth[0].gt_masks.tensor[0]
    torch.manual_seed(5)
    other = losses_of(heads, truth)
    assert {name for name in before if not torch.equal(before[name], other[name])} == {"loss_shape", "loss_mask"}


ABLATIONS = [
    ({"SHAPE_PROP__MIL": False}, ["loss_saliency"]),
    ({"SHAPE_PROP__PROPAGATION": False}, ["loss_shape"]),
    ({"SHAPE_PROP__MIL": False, "SHAPE_PROP__PROPAGATION": False}, ["loss_saliency", "loss_shape"]),
    ({"SHAPE_PROP__INTEGRATION": "activation"}, []),
    ({"SHAPE_PROP__INTEGRATION": "none"}, []),
    ({"SHAPE_PROP__CHANNEL_AGNOSTIC": True, "SHAPE_PROP__WINDOW": 5, "SHAPE_PROP__STEPS": 2}, []),
    ({"SHAPE_PROP__SHARE_FEATURES": True, "SHAPE_PROP__NORMALIZE": "symmetric"}, []),
    ({"SHAPE_PROP__NORM": "GN", "SHAPE_PROP__CONV_DIM": 32}, []),
    ({"ROI_MASK_HEAD__CLS_AGNOSTIC_MASK": False}, []),
    ({"ROI_BOX_HEAD__TRAIN_ON_PRED_BOXES": True}, []),
]


@pytest.mark.parametrize(("changes", "without"), ABLATIONS, ids=str)
def test_ablations_train_and_predict(changes, without) -> None:
    heads = roi_heads(**changes)
    losses = losses_of(heads, targets([[True, False], [False]]))
    assert losses.keys() == ALL_LOSSES - set(without)
    sum(losses.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in heads.parameters())
    first = next(m for m in heads.mask_head.modules() if isinstance(m, torch.nn.Conv2d))
    assert first.in_channels == 4 + heads.shape_prop.extra_channels
    detections = [found([1, 0]), found([])]
    features = {"p2": torch.randn(2, 4, 16, 16)}
    with torch.no_grad():
        results = heads.eval().forward_with_given_boxes(features, detections)
    assert [x.pred_masks.shape for x in results] == [(2, 1, 12, 12), (0, 1, 12, 12)]


def found(classes: list[int]) -> Instances:
    boxes = torch.tensor([[4.0, 4, 30, 34], [30, 10, 60, 50]])[: len(classes)]
    return Instances((64, 64), pred_boxes=Boxes(boxes), pred_classes=torch.tensor(classes, dtype=torch.long))


def test_weights_of_the_losses() -> None:
    losses = []
    for factor in (1.0, 3.0):
        torch.manual_seed(1)
        heads = roi_heads(SHAPE_PROP__SALIENCY_WEIGHT=factor, SHAPE_PROP__SHAPE_WEIGHT=2 * factor)
        losses.append(losses_of(heads, targets([[True]])))
    for name in ("loss_saliency", "loss_shape"):
        torch.testing.assert_close(losses[1][name], 3 * losses[0][name])


def test_maps_come_with_the_detections_if_asked_for() -> None:
    features = {"p2": torch.randn(2, 4, 16, 16)}
    heads = roi_heads(SHAPE_PROP__OUTPUT_MAPS=True).eval()
    with torch.no_grad():
        full, empty = heads.forward_with_given_boxes(features, [found([1, 0]), found([])])
        other, _ = heads.forward_with_given_boxes(features, [found([2, 0]), found([])])
    assert full.pred_shape.shape == full.pred_saliency.shape == (2, 1, 6, 6)
    assert empty.pred_shape.shape == (0, 1, 6, 6)
    assert not torch.equal(full.pred_saliency[0], other.pred_saliency[0])  # that of the predicted class
    assert torch.equal(full.pred_saliency[1], other.pred_saliency[1])


def test_without_masks_they_are_dyn_roi_heads() -> None:
    heads = roi_heads(MASK_ON=False)
    assert heads.shape_prop is None
    assert losses_of(heads, targets([[True]])).keys() == {"loss_cls", "loss_box_reg"}


def test_regions_must_be_pooled() -> None:
    with pytest.raises(ValueError, match="POOLER_TYPE"):
        roi_heads(ROI_MASK_HEAD__POOLER_TYPE="")


def test_surgery_moves_saliency_by_class_name() -> None:
    heads = roi_heads(ROI_BOX_HEAD__CLASSIFIER="cosine")
    model = {f"roi_heads.{name}": value for name, value in heads.state_dict().items()}
    base = Source("base.pth", model, ["a", "b", "c"], {"config": "CLS_AGNOSTIC_MASK: true"})
    new = operate(base, ["c", "new", "a", "b"], ["new"])["model"]
    old = model[SALIENCY + "weight"]
    assert len(new[SALIENCY + "weight"]) == 5
    for row, source in ((0, 2), (2, 0), (3, 1), (4, 3)):
        assert torch.equal(new[SALIENCY + "weight"][row], old[source])
    next_heads = roi_heads(ROI_BOX_HEAD__CLASSIFIER="cosine", ROI_HEADS__NUM_CLASSES=4)
    next_heads.load_state_dict({name.removeprefix("roi_heads."): value for name, value in new.items()})


def test_layers_that_look_at_one_place_start_as_published() -> None:
    torch.manual_seed(0)
    layers = ShapeProp(64, num_classes=20, conv_dim=64, num_conv=1)
    for layer in (layers.saliency, layers.propagation.weights):
        bound = (3 / 64) ** 0.5  # uniform, variance 1 / fan-in
        assert layer.weight.abs().max() <= bound and not layer.bias.any()
        assert layer.weight.std().item() == pytest.approx(1 / 8, rel=0.1)
