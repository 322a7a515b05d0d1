"""The Meta R-CNN form: re-weighted regions against a loop over the classes, training, evaluation."""

import pytest
import torch
from fsrw_toy import support
from tiny_tasks import CLASSES, batch, task_opts

from dyn_d2.config.read import read_cfg
from dyn_d2.methods.fsrw.meta_rcnn import ReweightedOutputLayers
from dyn_d2.methods.fsrw.reweighting import ClassVectors

from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.utils.events import EventStorage

META = {
    "MODEL__META_ARCHITECTURE": "MetaRCNN",
    "MODEL__REWEIGHTING__WIDTH": 0.1,
    "MODEL__REWEIGHTING__SUPPORT_SIZE": 64,
}


def episode() -> list[dict]:
    found = batch()
    found[0]["support"] = support(CLASSES)
    return found


def test_scores_and_deltas_are_those_of_reweighted_features():
    layers = ReweightedOutputLayers(6, box2box_transform=Box2BoxTransform((10.0, 10.0, 5.0, 5.0)), num_classes=9)
    layers.cls_score.bias.data.normal_()
    layers.bbox_pred.bias.data.normal_()
    regions, vectors = torch.randn(5, 6), torch.randn(3, 6)
    with layers.using(vectors):
        scores, deltas = layers(regions.view(5, 6, 1, 1))
        assert layers.num_classes == 3
    assert scores.shape == (5, 4) and deltas.shape == (5, 12)
    for i, vector in enumerate(vectors):
        reweighted = regions * vector
        torch.testing.assert_close(scores[:, i], layers.cls_score(reweighted)[:, 0])
        torch.testing.assert_close(deltas[:, 4 * i : 4 * i + 4], layers.bbox_pred(reweighted))
    torch.testing.assert_close(scores[:, 3], layers.cls_score(regions)[:, 1])
    with layers.using(vectors):
        assert layers(regions[:0])[0].shape == (0, 4)
    with pytest.raises(RuntimeError, match="using"):
        layers(regions)
    with pytest.raises(ValueError, match="width 5 cannot re-weight features of width 6"), layers.using(vectors[:, :5]):
        pass


@pytest.mark.parametrize("task", ["rcnn_fpn", "rcnn_c4"])
def test_it_trains_and_detects(task):
    model = build_model(read_cfg("", task_opts(task, **META | {"MODEL__BACKBONE__NAME": PLAIN[task]})))
    with EventStorage():
        losses = model(episode())
    assert losses.keys() == {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}
    sum(losses.values()).backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if name.startswith(("rewei", "roi_heads")))
    model.eval()
    model.use_vectors(ClassVectors(["a", "b"], torch.rand(2, model.reweighted_channels)))
    with torch.no_grad():
        found = model(episode())[0]["instances"]
    assert len(found) and set(found.pred_classes.tolist()) <= {0, 1}


PLAIN = {"rcnn_fpn": "build_resnet_fpn_backbone", "rcnn_c4": "build_resnet_backbone"}


def test_masks_are_refused():
    opts = task_opts("rcnn_fpn", **META | {"MODEL__BACKBONE__NAME": PLAIN["rcnn_fpn"], "MODEL__MASK_ON": True})
    with pytest.raises(ValueError, match="MASK_ON False"):
        build_model(read_cfg("", [*opts, "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"]))
