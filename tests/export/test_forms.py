"""What becomes a graph gives what the model gives; run as it is, without a file, which takes its time."""

from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from tiny_tasks import task_opts
from torch import nn

from dyn_d2.config.read import read_cfg
from dyn_d2.export import forms, onnx_file
from dyn_d2.export.compare import answers, difference, trial_image
from dyn_d2.export.detectors import best, rows, survivors, with_proposals
from dyn_d2.export.onnx_file import _sizes, export_onnx
from dyn_d2.gating.exporting import DENSE, exporting
from dyn_d2.utils.errors import UserError

from detectron2.layers import batched_nms
from detectron2.modeling import build_model

MASKS = {
    "MODEL__MASK_ON": True,
    "MODEL__RPN__PRE_NMS_TOPK_TEST": 100,
    "MODEL__ROI_MASK_HEAD__NUM_CONV": 1,
    "MODEL__ROI_MASK_HEAD__POOLER_RESOLUTION": 4,
}


def tiny(task: str, **keys):
    """Config and model in evaluation mode whose scores differ clearly from each other."""
    cfg = read_cfg("", task_opts(task, **{"INPUT__MIN_SIZE_TEST": 64, **keys}))
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    for name, part in model.named_modules():
        if name.endswith(("cls_score", "objectness_logits", "linear", "gates.0.scores", "gates.1.scores")):
            nn.init.normal_(part.weight, std=0.5)
    return cfg, model


def _apart(model, form, form_of_gates: str, size=(64, 96)) -> float:
    image = trial_image(3, size)
    with torch.no_grad(), exporting(form_of_gates):
        given = dict(zip(form.outputs, (x.numpy() for x in form(image[None])), strict=True))
    return difference(form, given, answers(model, image), size).largest


@pytest.mark.parametrize(
    ("task", "keys"),
    [
        ("rcnn_fpn", MASKS | {"MODEL__POLICY__NAME": "convnet_aig"}),
        ("rcnn_fpn", {"MODEL__ROI_BOX_HEAD__CLASSIFIER": "cosine", "MODEL__ROI_BOX_HEAD__CLS_AGNOSTIC_BBOX_REG": True}),
        ("retinanet", {"MODEL__POLICY__NAME": "skipnet_ffgate2"}),
        ("semantic_fpn", {"MODEL__POLICY__NAME": "skipnet_rnn"}),
        ("classifier", {"MODEL__POLICY__NAME": "cdb", "MODEL__GATED__UNIT": "group"}),
        ("classifier", {"MODEL__POLICY__NAME": "deepmoe", "MODEL__GATED__UNIT": "channel"}),
        ("classifier", {"MODEL__POLICY__NAME": "blockdrop", "MODEL__POLICY__STAGE": "joint"}),
    ],
    ids=str,
)
def test_forms_give_what_models_give(task, keys) -> None:
    _, model = tiny(task, **keys)
    plain = forms.form_of(model)
    assert _apart(model, plain, DENSE) < 1e-4
    forms.fold_norms(model)
    assert _apart(model, plain, DENSE) < 1e-4


def test_other_numbers_of_proposals_are_compared_with_a_model_that_has_them() -> None:
    _, model = tiny("rcnn_fpn", MODEL__RPN__PRE_NMS_TOPK_TEST=100)
    own = model.proposal_generator.post_nms_topk[False]
    for count in (own // 2, 6 * own):
        form = forms.form_of(model, count)
        assert _apart(with_proposals(model, count), form, DENSE) < 1e-4 < _apart(model, form, DENSE)
    assert model.proposal_generator.post_nms_topk[False] == own and with_proposals(model, 0) is model


def test_a_file_that_is_wrong_replaces_none(tmp_path) -> None:
    graph = MagicMock()  # without nodes
    program = SimpleNamespace(
        model=SimpleNamespace(metadata_props={}, graph=graph),
        save=lambda path, external_data: Path(path).write_text("new"),
    )
    file = tmp_path / "a.onnx"
    file.write_text("old")
    with pytest.raises(UserError, match="other numbers"), onnx_file.written(program, file, {}) as part:
        assert part.read_text() == "new"
        raise UserError("other numbers")
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]
    with onnx_file.written(program, file, {}):
        pass
    assert file.read_text() == "new" and list(tmp_path.iterdir()) == [file]


def test_dense_forms_take_batches() -> None:
    _, model = tiny("classifier", MODEL__POLICY__NAME="convnet_aig")
    images = torch.stack([trial_image(3, (64, 64)), trial_image(3, (64, 64)).flip(2)])
    with torch.no_grad(), exporting(DENSE):
        (scores,) = forms.form_of(model)(images)
    wanted = [model([{"image": image}])[0]["scores"].detach() for image in images]
    assert torch.allclose(scores, torch.stack(wanted), atol=1e-5)


def test_suppression_within_groups_is_that_of_torchvision() -> None:
    torch.manual_seed(0)
    corner = 40 * torch.rand(200, 2) - 10
    boxes, scores, groups = (
        torch.cat([corner, corner + 20 * torch.rand(200, 2)], 1),
        torch.rand(200),
        torch.randint(3, (200,)),
    )
    kept = survivors(boxes, scores, groups, 0.5)
    values, index = best(kept, 250)
    wanted = batched_nms(boxes, scores, groups, 0.5)
    assert torch.equal(index[: len(wanted)], wanted) and (values[len(wanted) :] == -torch.inf).all()
    assert torch.equal(rows(boxes, index)[: len(wanted)], boxes[wanted])
    assert not rows(boxes, best(scores, 250)[1])[200:].any()


def test_a_classifier_that_cuts_nothing_out_is_tried_on_small_images() -> None:
    """A detector's key says nothing about it."""
    for task, crop, least in (("classifier", 0, 32), ("classifier", 224, 224), ("rcnn_c4", 0, 256)):
        cfg, _ = tiny(task, INPUT__MIN_SIZE_TEST=800, INPUT__CLASSIFICATION__CROP_TEST=crop)
        assert min(map(min, _sizes(cfg, 1, None))) == least


def test_channels_of_vgg_are_all_computed_in_a_file() -> None:
    keys = {"MODEL__BACKBONE__NAME": "build_gated_vgg_backbone", "MODEL__RESNETS__OUT_FEATURES": ["stage5"]}
    keys |= {"MODEL__POLICY__NAME": "deepmoe", "MODEL__GATED__UNIT": "channel", "MODEL__GATED__WIDTHS": [8] * 13}
    _, model = tiny("classifier", **keys)
    images = 128 * torch.rand(1, 3, 64, 64)
    with torch.no_grad(), exporting(DENSE):
        program = torch.export.export(forms.form_of(model).eval(), (images,), strict=False)
        (scores,) = program.module()(images)
    assert torch.allclose(scores[0], model([{"image": images[0]}])[0]["scores"].detach(), atol=1e-5)


@pytest.mark.parametrize(
    ("task", "keys", "message"),
    [
        ("classifier", {"MODEL__POLICY__NAME": "random_skip"}, "ImageClassifier cannot be exported: RandomSkip draws"),
        ("rcnn_c4", {}, "DynamicRCNN cannot be exported: the ROI heads DynRes5ROIHeads have no form as a graph"),
    ],
)
def test_what_cannot_be_exported_says_why(task, keys, message, tmp_path) -> None:
    cfg, model = tiny(task, **keys)
    with pytest.raises(UserError, match=message):
        export_onnx(cfg, model, tmp_path / "a.onnx", check=False)
    assert not list(tmp_path.iterdir())


def test_detections_that_changed_places_are_the_same_and_others_are_not() -> None:
    boxes = np.array([[0, 0, 9, 9], [5, 5, 20, 20]], np.float32)
    wanted = {"boxes": boxes, "scores": np.array([0.5, 0.5], np.float32), "classes": np.array([1, 1])}
    given = {name: np.concatenate([values[::-1], 0 * values]) for name, values in wanted.items()}
    given["classes"][2:] = -1

    class Form:
        outputs = ("boxes", "scores", "classes")

    assert difference(Form, given, wanted, (20, 20)).largest == 0
    given["boxes"][0, 0] += 2
    assert difference(Form, given, wanted, (20, 20)).largest == pytest.approx(0.1)
    given["classes"][2] = 1
    assert difference(Form, given, wanted, (20, 20)).largest == np.inf
