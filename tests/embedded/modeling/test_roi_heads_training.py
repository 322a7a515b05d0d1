"""Which proposals are trained on, and whole models that are small enough to run in a test."""

import pytest
import torch

from detectron2.config import configurable, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, build_model
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import (
    ROI_HEADS_REGISTRY,
    FastRCNNOutputLayers,
    ROIHeads,
    StandardROIHeads,
    select_foreground_proposals,
)
from detectron2.structures import BitMasks, Boxes, Instances, pairwise_iou
from detectron2.utils.events import EventStorage

SIZE = (64, 96)


def truth(*boxes, classes=None):
    x = Instances(SIZE, gt_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)))
    x.gt_classes = torch.tensor(classes if classes is not None else [1] * len(boxes), dtype=torch.long)
    masks = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    x.gt_masks = BitMasks(masks)
    return x


def random_proposals(n):
    corner = torch.rand(n, 2) * torch.tensor([60.0, 30.0])
    boxes = torch.cat([corner, corner + 8 + torch.rand(n, 2) * 24], dim=1)
    return Instances(SIZE, proposal_boxes=Boxes(boxes), objectness_logits=torch.randn(n))


def sampling_heads(**kwargs):
    matcher = Matcher([0.5], [0, 1], allow_low_quality_matches=False)
    defaults = {"num_classes": 3, "batch_size_per_image": 16, "positive_fraction": 0.25, "proposal_matcher": matcher}
    return ROIHeads(**{**defaults, **kwargs})


def test_sampled_proposals_carry_the_object_that_fits_best():
    objects, heads = truth((5, 5, 30, 30), (40, 10, 80, 50), classes=[2, 0]), sampling_heads()
    with EventStorage() as storage:
        (chosen,) = heads.label_and_sample_proposals([random_proposals(200)], [objects])
    iou = pairwise_iou(objects.gt_boxes, chosen.proposal_boxes)
    for column, label in enumerate(chosen.gt_classes.tolist()):
        best = iou[:, column].argmax()
        fits = iou[best, column] >= 0.5
        assert label == (objects.gt_classes[best] if fits else 3)
        if fits:
            assert torch.equal(chosen.gt_boxes.tensor[column], objects.gt_boxes.tensor[best])
            assert torch.equal(chosen.gt_masks.tensor[column], objects.gt_masks.tensor[best])
    foreground = int((chosen.gt_classes < 3).sum())
    assert len(chosen) == 16 and 0 < foreground <= 4
    assert torch.equal(chosen.gt_classes < 3, torch.arange(16) < foreground)  # foreground comes first
    assert storage.latest()["roi_head/num_fg_samples"][0] == foreground
    assert storage.latest()["roi_head/num_bg_samples"][0] == 16 - foreground


def test_true_boxes_are_proposals_only_if_wanted():
    far = random_proposals(4)
    far.proposal_boxes = Boxes(torch.tensor([[80.0, 50.0, 90.0, 60.0]] * 4))
    for append in (True, False):
        with EventStorage():
            heads = sampling_heads(proposal_append_gt=append)
            (chosen,) = heads.label_and_sample_proposals([far], [truth((5, 5, 30, 30))])
        assert (chosen.gt_classes == 1).any() == append and len(chosen) == 4 + append


def test_an_image_without_objects_is_all_background():
    objects = [truth(), truth((5, 5, 30, 30))]
    with EventStorage() as storage:
        chosen = sampling_heads().label_and_sample_proposals([random_proposals(30)] * 2, objects)
    assert chosen[0].gt_classes.eq(3).all() and not chosen[0].has("gt_boxes") and len(chosen[0]) == 16
    assert storage.latest()["roi_head/num_bg_samples"][0] > 8
    foreground, masks = select_foreground_proposals(chosen, bg_label=3)
    assert [len(x) for x in foreground] == [int(m.sum()) for m in masks] and len(foreground[0]) == 0


def test_ignored_proposals_are_no_foreground():
    x = random_proposals(4)
    x.gt_classes = torch.tensor([-1, 0, 3, 2])
    ((chosen,), (mask,)) = select_foreground_proposals([x], bg_label=3)
    assert mask.tolist() == [False, True, False, True] and chosen.gt_classes.tolist() == [0, 2]


@pytest.mark.embedded
def test_a_class_beyond_the_models_is_an_error():
    with EventStorage(), pytest.raises(ValueError, match="MODEL.ROI_HEADS.NUM_CLASSES"):
        sampling_heads().label_and_sample_proposals([random_proposals(9)], [truth((5, 5, 30, 30), classes=[3])])


def tiny_config(heads="StandardROIHeads", mask=True):
    """R-18 with an 8-channel FPN, or R-50 up to res4 with few channels for the C4 heads."""
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.MASK_ON = mask
    cfg.MODEL.ROI_HEADS.NAME = heads
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 8
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 8
    if heads == "Res5ROIHeads":
        cfg.MODEL.RESNETS.WIDTH_PER_GROUP, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 4, 8
        return cfg
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32], [64], [128], [256]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 1, 16
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
    return cfg


def image(height=64, width=96):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


BOTH = pytest.mark.parametrize("heads", ["StandardROIHeads", "Res5ROIHeads"])


@BOTH
@pytest.mark.parametrize("with_objects", [True, False])
def test_training_gives_finite_losses_and_gradients(heads, with_objects):
    model = build_model(tiny_config(heads)).train()
    objects = truth((5, 5, 40, 40), (50, 20, 90, 60)) if with_objects else truth()
    with EventStorage():
        losses = model([{"image": image(), "instances": objects}, {"image": image(), "instances": truth()}])
    assert list(losses) == ["loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"]
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert (losses["loss_mask"] > 0) == (losses["loss_box_reg"] > 0) == with_objects


@BOTH
def test_inference_in_the_wanted_size_and_with_known_boxes(heads):
    model = build_model(tiny_config(heads)).eval()
    inputs = [{"image": image(), "height": 32, "width": 48}, {"image": image(64, 64)}]
    with torch.no_grad():
        raw = model.inference(inputs, do_postprocess=False)
        results = model(inputs)
        known = Instances(SIZE, pred_boxes=Boxes(torch.tensor([[8.0, 8, 40, 40]])), pred_classes=torch.tensor([2]))
        given = model.inference(inputs[:1], [known])[0]["instances"]
    assert [x["instances"].image_size for x in results] == [(32, 48), (64, 64)]
    for x, before in zip(results, raw, strict=True):
        x = x["instances"]
        assert 0 < len(x) <= len(before) and x.pred_masks.shape[1:] == x.image_size
        assert before.pred_masks.shape[1:] == ((1, 28, 28) if heads == "StandardROIHeads" else (1, 14, 14))
        assert x.scores.diff().le(0).all()
    assert given.pred_boxes.tensor.tolist() == [[4, 4, 20, 20]] and given.pred_masks.shape == (1, 32, 48)


def test_parameter_order_of_the_two_kinds_of_heads():
    def layers(model):
        return list(dict.fromkeys(name.rsplit(".", 1)[0] for name, _ in model.roi_heads.named_parameters()))

    assert layers(build_model(tiny_config())) == [
        "box_head.fc1", "box_predictor.cls_score", "box_predictor.bbox_pred",
        "mask_head.mask_fcn1", "mask_head.deconv", "mask_head.predictor",
    ]  # fmt: skip
    assert layers(build_model(tiny_config("Res5ROIHeads")))[-3:] == [
        "box_predictor.bbox_pred", "mask_head.deconv", "mask_head.predictor",
    ]  # fmt: skip


def test_pixel_statistics_are_no_weights():
    model = build_model(tiny_config(mask=False))
    assert not [key for key in model.state_dict() if "pixel" in key] and model.pixel_mean.shape == (3, 1, 1)
    (x,) = model.preprocess_image([{"image": torch.full((3, 64, 64), 5, dtype=torch.uint8)}]).tensor
    torch.testing.assert_close(x[:, 0, 0], 5 - torch.tensor(get_cfg().MODEL.PIXEL_MEAN))


def test_training_on_predicted_boxes():
    cfg = tiny_config()
    cfg.MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES = True
    heads = build_model(cfg).train().roi_heads
    features = {f"p{k}": torch.randn(1, 8, 64 >> k, 96 >> k) for k in range(2, 6)}
    heads.box_predictor.bbox_pred.bias.data.fill_(0.5)
    regions = [random_proposals(40)]
    with EventStorage():
        chosen, losses = heads(None, features, regions, [truth((5, 5, 40, 40))])
        before = torch.cat([regions[0].proposal_boxes.tensor, torch.tensor([[5.0, 5, 40, 40]])])
    overlap = pairwise_iou(chosen[0].proposal_boxes, Boxes(before)).amax(dim=1)
    assert (overlap < 0.999).all() and losses["loss_mask"].isfinite()


@pytest.mark.parametrize("with_boxes", [True, False])
def test_visualisation_is_stored(with_boxes):
    cfg = tiny_config(mask=False)
    cfg.VIS_PERIOD = 1
    objects = truth((5, 5, 40, 40)) if with_boxes else truth()
    with EventStorage() as storage:
        build_model(cfg).train()([{"image": image(), "instances": objects}])
        pictures = {name: picture.shape for name, picture, _ in storage._vis_data}
    assert pictures["Left: GT bounding boxes;  Right: Predicted proposals"] == (3, 64, 192)


def test_proposal_network():
    cfg = tiny_config(mask=False)
    cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork"
    model = build_model(cfg)
    assert not [key for key in model.state_dict() if key.startswith("roi_heads")]
    with EventStorage():
        losses = model.train()([{"image": image(), "instances": truth((5, 5, 40, 40))}])
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_loc"}
    (result,) = model.eval()([{"image": image(), "height": 128, "width": 192}])
    assert result["proposals"].image_size == (128, 192) and result["proposals"].has("objectness_logits")


def test_heads_of_a_foreign_project():
    """A predictor that halves the scores, put in by from_config; a leg and a meta-architecture of its own."""

    class HalfLayers(FastRCNNOutputLayers):
        @configurable
        def __init__(self, input_shape, *, factor, **kwargs):
            super().__init__(input_shape, **kwargs)
            self.factor = factor

        @classmethod
        def from_config(cls, cfg, input_shape):
            return {**super().from_config(cfg, input_shape), "factor": 0.5}

        def forward(self, x):
            scores, deltas = super().forward(x)
            return scores * self.factor, deltas

    @ROI_HEADS_REGISTRY.register()
    class HalfTestHeads(StandardROIHeads):
        @classmethod
        def _init_box_head(cls, cfg, input_shape):
            args = super()._init_box_head(cfg, input_shape)
            return {**args, "box_predictor": HalfLayers(cfg, args["box_head"].output_shape)}

        def forward(self, images, features, proposals, targets=None):
            del images
            if not self.training:
                return self.forward_with_given_boxes(features, self._forward_box(features, proposals)), {}
            proposals = self.label_and_sample_proposals(proposals, targets)
            losses = self._forward_box(features, proposals)
            losses.update(self._forward_mask(features, proposals))
            losses.update(self._forward_keypoint(features, proposals))
            return proposals, losses

    @META_ARCH_REGISTRY.register()
    class CountingTestRCNN(GeneralizedRCNN):
        @configurable
        def __init__(self, *, start, **kwargs):
            super().__init__(**kwargs)
            self.count = start

        @classmethod
        def from_config(cls, cfg):
            return {**super().from_config(cfg), "start": 3}

        def preprocess_image(self, batched_inputs):
            self.count += len(batched_inputs)
            return super().preprocess_image(batched_inputs)

    cfg = tiny_config("HalfTestHeads")
    cfg.MODEL.META_ARCHITECTURE = "CountingTestRCNN"
    model = build_model(cfg)
    assert isinstance(model.roi_heads.box_predictor, HalfLayers)
    with EventStorage():
        assert "loss_mask" in model.train()([{"image": image(), "instances": truth((5, 5, 40, 40))}])
    assert model.eval()([{"image": image()}])[0]["instances"].has("pred_masks") and model.count == 5


@pytest.mark.embedded
def test_errors_name_the_remedy():
    cfg = tiny_config()
    cfg.MODEL.KEYPOINT_ON = True
    with pytest.raises(NotImplementedError, match="MODEL.KEYPOINT_ON"):
        build_model(cfg)
    model = build_model(tiny_config("Res5ROIHeads"))
    with pytest.raises(RuntimeError, match="eval"):
        model.train().inference([{"image": image()}])
    features, regions = {"res4": torch.zeros(1, 32, 4, 6)}, [random_proposals(3)]
    with pytest.raises(ValueError, match="instances"):
        model.roi_heads(None, features, regions)
