"""WeightTransferMaskHead: masks of a class from the weights of its boxes."""

import copy

import pytest
import torch

from dyn_d2.config.read import read_cfg
from dyn_d2.methods.shapeprop.weight_transfer import NEGATIVE_SLOPE

from detectron2.layers import ShapeSpec
from detectron2.modeling import build_roi_heads
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

CLASSES = 3


def heads(**changes):
    cfg = read_cfg()
    keys = {
        "MASK_ON": True,
        "ROI_HEADS.NAME": "DynROIHeads",
        "ROI_HEADS.NUM_CLASSES": CLASSES,
        "ROI_HEADS.IN_FEATURES": ["p2"],
        "ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
        "ROI_BOX_HEAD.NUM_FC": 1,
        "ROI_BOX_HEAD.FC_DIM": 8,
        "ROI_BOX_HEAD.POOLER_RESOLUTION": 4,
        "ROI_MASK_HEAD.NAME": "WeightTransferMaskHead",
        "ROI_MASK_HEAD.NUM_CONV": 1,
        "ROI_MASK_HEAD.CONV_DIM": 6,
        "ROI_MASK_HEAD.POOLER_RESOLUTION": 5,
        "SHAPE_PROP.CONV_DIM": 8,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    cfg.merge_from_list([part for key, value in keys.items() for part in (f"MODEL.{key}", value)])
    return build_roi_heads(cfg, {"p2": ShapeSpec(channels=4, stride=4)})


@pytest.mark.parametrize("classifier", ["linear", "cosine"])
@pytest.mark.parametrize("source", ["cls", "box", "cls+box"])
def test_each_class_has_a_predictor_from_its_own_box_weights(source, classifier) -> None:
    roi = heads(ROI_MASK_HEAD__TRANSFER_FROM=source, ROI_BOX_HEAD__CLASSIFIER=classifier)
    head, boxes = roi.mask_head, roi.box_predictor
    regions = torch.randn(2, 4, 5, 5)
    logits = head.layers(regions)
    features = torch.relu(head.deconv(head.mask_fcn1(regions)))
    first, _, second = head.transfer
    for c in range(CLASSES):
        known = [boxes.cls_score.weight[c]] * ("cls" in source)
        known += [boxes.bbox_pred.weight[4 * c + side] for side in range(4)] * ("box" in source)
        hidden = first(torch.cat(known))
        weights = second(torch.where(hidden > 0, hidden, NEGATIVE_SLOPE * hidden))
        torch.testing.assert_close(logits[:, c], torch.einsum("rdhw,d->rhw", features, weights))


def test_masks_of_one_class_teach_the_others_but_not_the_boxes() -> None:
    roi = heads()
    region = Instances(
        (40, 40),
        proposal_boxes=Boxes(torch.tensor([[5.0, 5, 30, 30]])),
        gt_classes=torch.tensor([1]),
        gt_masks=BitMasks(torch.rand(1, 40, 40) > 0.5),
        gt_has_mask=torch.tensor([True]),
    )
    before = roi.mask_head.mask_weights().detach()
    with EventStorage():
        roi.mask_head(torch.randn(1, 4, 5, 5), [region])["loss_mask"].backward()
    assert all(p.grad is None for p in roi.box_predictor.parameters())
    assert all(p.grad is not None for p in roi.mask_head.parameters())
    with torch.no_grad():
        for p in roi.mask_head.parameters():
            p -= p.grad
    assert (roi.mask_head.mask_weights() != before).any(dim=1).all()


def test_parameters_are_counted_once_and_copies_are_complete() -> None:
    roi = heads()
    assert not any("predictor" in name for name, _ in roi.mask_head.named_parameters())
    twin = copy.deepcopy(roi)
    with torch.no_grad():
        twin.box_predictor.cls_score.weight.add_(1)
    assert not torch.equal(twin.mask_head.mask_weights(), roi.mask_head.mask_weights())


def test_it_goes_with_shapeprop() -> None:
    roi = heads(ROI_HEADS__NAME="ShapePropROIHeads").eval()
    found = Instances((64, 64), pred_boxes=Boxes(torch.tensor([[4.0, 4, 30, 34]])), pred_classes=torch.tensor([2]))
    with torch.no_grad():
        (found,) = roi.forward_with_given_boxes({"p2": torch.randn(1, 4, 16, 16)}, [found])
    assert found.pred_masks.shape == (1, 1, 10, 10)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="TRANSFER_FROM is 'all'"):
        heads(ROI_MASK_HEAD__TRANSFER_FROM="all")
    with pytest.raises(ValueError, match="CLS_AGNOSTIC_MASK to False"):
        heads(ROI_MASK_HEAD__CLS_AGNOSTIC_MASK=True)
    with pytest.raises(ValueError, match="CLS_AGNOSTIC_BBOX_REG"):
        heads(ROI_BOX_HEAD__CLS_AGNOSTIC_BBOX_REG=True)
    with pytest.raises(RuntimeError, match="DynROIHeads"):
        heads(ROI_HEADS__NAME="StandardROIHeads").mask_head.layers(torch.randn(1, 4, 5, 5))
