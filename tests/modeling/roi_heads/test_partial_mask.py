"""PartialMaskHead against Detectron2's head on the objects that have masks."""

import pytest
import torch

from dyn_d2.modeling.roi_heads import PartialMaskHead
from dyn_d2.modeling.roi_heads.partial_mask import select_masked

from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage


def regions(*flags: bool) -> Instances:
    count = len(flags)
    corner = torch.rand(count, 2) * 20
    return Instances(
        (40, 50),
        proposal_boxes=Boxes(torch.cat([corner, corner + 15], dim=1)),
        gt_classes=torch.arange(count) % 3,
        gt_masks=BitMasks(torch.rand(count, 40, 50) > 0.5),
        gt_has_mask=torch.tensor(flags, dtype=torch.bool),
    )


def heads(num_classes: int) -> tuple[PartialMaskHead, MaskRCNNConvUpsampleHead]:
    own, stock = (
        kind(ShapeSpec(channels=4, height=6, width=6), num_classes=num_classes, conv_dims=[8, 8])
        for kind in (PartialMaskHead, MaskRCNNConvUpsampleHead)
    )
    stock.load_state_dict(own.state_dict())
    return own, stock


MIXTURES = [([True], [False, True]), ([False, True], []), ([False], [True, True]), ([True, False, True], [False])]


@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize("images", MIXTURES, ids=str)
def test_loss_is_detectron2s_on_regions_with_masks(num_classes, images) -> None:
    own, stock = heads(num_classes)
    instances = [regions(*flags) for flags in images]
    x = torch.randn(sum(map(len, instances)), 4, 6, 6, requires_grad=True)
    has = torch.cat([i.gt_has_mask for i in instances])
    with EventStorage():
        loss = own(x, instances)["loss_mask"]
        expected = stock(x[has], [i[i.gt_has_mask] for i in instances])["loss_mask"]
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert (x.grad.flatten(1).abs().sum(1) > 0).tolist() == has.tolist()


@pytest.mark.parametrize("images", [([False, False], [False]), ([], []), ([False], [])], ids=str)
def test_without_any_mask_the_loss_is_0_in_the_graph(images) -> None:
    own, _ = heads(1)
    instances = [regions(*flags) for flags in images]
    x = torch.randn(sum(map(len, instances)), 4, 6, 6, requires_grad=True)
    with EventStorage():
        loss = own(x, instances)["loss_mask"]
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in own.parameters()) and not x.grad.any()


def test_regions_that_say_nothing_have_masks() -> None:
    instances = regions(True, False)
    instances.remove("gt_has_mask")
    (chosen,), rows = select_masked([instances])
    assert len(chosen) == 2 and rows.tolist() == [True, True]


def test_inference_is_the_parents() -> None:
    own, stock = heads(3)
    found = [Instances((40, 50), pred_classes=torch.tensor([2, 0])), Instances((40, 50), pred_classes=torch.zeros(0))]
    found[1].pred_classes = found[1].pred_classes.long()
    x = torch.randn(2, 4, 6, 6)
    mine = [i.pred_masks.clone() for i in own.eval()(x, found)]
    theirs = [i.pred_masks for i in stock.eval()(x, found)]
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
