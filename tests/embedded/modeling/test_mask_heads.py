"""The mask head: shapes, the loss against a slow reference, and inference."""

import math

import pytest
import torch

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.box_head import FastRCNNConvFCHead
from detectron2.modeling.roi_heads.mask_head import (
    ROI_MASK_HEAD_REGISTRY,
    BaseMaskRCNNHead,
    MaskRCNNConvUpsampleHead,
    build_mask_head,
    mask_rcnn_inference,
    mask_rcnn_loss,
)
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

SIZE = (32, 32)


def region(box, label):
    """One region whose object fills the left half of its box."""
    mask = torch.zeros(1, *SIZE, dtype=torch.bool)
    x0, y0, x1, y1 = box
    mask[0, y0:y1, x0 : (x0 + x1) // 2] = True
    boxes = Boxes(torch.tensor([box], dtype=torch.float32))
    return Instances(
        SIZE, proposal_boxes=boxes, gt_boxes=boxes, gt_classes=torch.tensor([label]), gt_masks=BitMasks(mask)
    )


@pytest.mark.parametrize("num_masks", [1, 3])
def test_loss_is_the_mean_cross_entropy_of_the_true_class(num_masks):
    regions = [region((0, 0, 16, 16), 2), region((8, 8, 24, 24), 0)]
    logits = torch.randn(2, num_masks, 4, 4)
    total, wrong = 0.0, 0
    for i, label in enumerate([2, 0]):
        for row in range(4):
            for column in range(4):
                value = logits[i, 0 if num_masks == 1 else label, row, column].item()
                p = 1 / (1 + math.exp(-value))
                total -= math.log(p if column < 2 else 1 - p)
                wrong += (value > 0) != (column < 2)
    with EventStorage() as storage:
        loss = mask_rcnn_loss(logits, regions)
    assert loss.item() == pytest.approx(total / 32, rel=1e-5)
    logged = {key: value for key, (value, _) in storage.latest().items()}
    assert logged["mask_rcnn/accuracy"] == pytest.approx(1 - wrong / 32)
    both = logged["mask_rcnn/false_positive"] + logged["mask_rcnn/false_negative"]
    assert both / 2 == pytest.approx(wrong / 32)  # as many pixels inside as outside


def test_no_regions_give_a_zero_loss_with_gradients():
    head = MaskRCNNConvUpsampleHead(ShapeSpec(channels=4), num_classes=3, conv_dims=[6, 5])
    nothing = region((0, 0, 16, 16), 1)[[]]
    with EventStorage():
        loss = head(torch.zeros(0, 4, 7, 7), [nothing, nothing])["loss_mask"]
    loss.backward()
    assert loss == 0 and all(p.grad is not None and not p.grad.any() for p in head.parameters())


@pytest.mark.embedded
def test_missing_masks_are_named():
    bare = region((0, 0, 16, 16), 1)
    bare.remove("gt_masks")
    with EventStorage(), pytest.raises(ValueError, match="MODEL.MASK_ON"):
        mask_rcnn_loss(torch.zeros(1, 3, 4, 4), [bare])


def test_predictions_become_images_beside_the_truth():
    with EventStorage() as storage:
        mask_rcnn_loss(torch.randn(1, 3, 4, 4), [region((0, 0, 16, 16), 1)], vis_period=1)
        ((_, image, _),) = storage._vis_data
    assert tuple(image.shape) == (3, 4, 8)


@pytest.mark.parametrize("num_masks", [1, 3])
def test_inference_picks_the_mask_of_the_predicted_class(num_masks):
    logits = torch.randn(3, num_masks, 4, 4)
    found = [Instances(SIZE, pred_classes=torch.tensor(x, dtype=torch.long)) for x in ([2, 0], [], [1])]
    mask_rcnn_inference(logits, found)
    assert [tuple(x.pred_masks.shape) for x in found] == [(2, 1, 4, 4), (0, 1, 4, 4), (1, 1, 4, 4)]
    columns = [0, 0, 0] if num_masks == 1 else [2, 0, 1]
    expected = torch.stack([logits[i, k].sigmoid() for i, k in enumerate(columns)])
    torch.testing.assert_close(torch.cat([x.pred_masks for x in found])[:, 0], expected)


@pytest.mark.parametrize("norm", ["", "GN"])
def test_parameter_names(norm):
    cfg = get_cfg()
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM, cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 32, 2
    cfg.MODEL.ROI_MASK_HEAD.NORM = norm
    head = build_mask_head(cfg, ShapeSpec(channels=8, height=7, width=7))
    names = ["mask_fcn1", "mask_fcn2", "deconv", "predictor"]
    own = [f"{n}.norm" if norm and "fcn" in n else n for n in names]
    weights = {f"{n}.weight" for n in names} | {f"{n}.weight" for n in own}
    assert set(head.state_dict()) == weights | {f"{n}.bias" for n in own}
    assert head.layers(torch.zeros(2, 8, 7, 7)).shape == (2, 80, 14, 14)
    cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK = True
    assert build_mask_head(cfg, ShapeSpec(channels=8)).predictor.weight.shape[0] == 1


def test_a_users_head_defines_layers_only():
    class Flat(BaseMaskRCNNHead):
        def layers(self, x):
            return x

    ROI_MASK_HEAD_REGISTRY._do_register("FlatTestHead", Flat)
    cfg = get_cfg()
    cfg.MODEL.ROI_MASK_HEAD.NAME = "FlatTestHead"
    head = build_mask_head(cfg, ShapeSpec(channels=3)).eval()
    (found,) = head(torch.zeros(1, 3, 4, 4), [Instances(SIZE, pred_classes=torch.tensor([1]))])
    assert found.pred_masks.eq(0.5).all()


def test_box_head_layers_and_output_shape():
    shape = ShapeSpec(channels=4, height=3, width=5)
    head = FastRCNNConvFCHead(shape, conv_dims=[6], fc_dims=[7, 8])
    assert [name for name, _ in head.named_parameters()] == [
        f"{layer}.{kind}" for layer in ("conv1", "fc1", "fc2") for kind in ("weight", "bias")
    ]
    for rows in (0, 2):
        out = head(torch.randn(rows, 4, 3, 5))
        assert out.shape == (rows, 8) and (out >= 0).all()
        out.sum().backward()
    assert head.output_shape.channels == 8
    convs = FastRCNNConvFCHead(shape, conv_dims=[6], fc_dims=[], conv_norm="BN")
    assert convs.output_shape == ShapeSpec(channels=6, height=3, width=5)
    assert "conv1.bias" not in convs.state_dict() and "conv1.norm.running_var" in convs.state_dict()
    with pytest.raises((ValueError, AssertionError)):
        FastRCNNConvFCHead(shape, conv_dims=[], fc_dims=[])
