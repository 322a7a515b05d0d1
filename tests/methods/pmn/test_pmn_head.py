"""PMNHead: the same as a segmentor written out, the reward, and what it refuses."""

import pytest
import torch
from tiny_tasks import batch, task_opts
from torch.nn import functional as F

from dyn_d2.config.read import read_cfg
from dyn_d2.engine.trainer import DynTrainer
from dyn_d2.gating import recording
from dyn_d2.gating.reports.tradeoff import force_open
from dyn_d2.methods.pmn.rollout import GREEDY, SAMPLED
from dyn_d2.utils.errors import UserError

from detectron2.structures import ImageList
from detectron2.utils.events import EventStorage


def segmentor(**more):
    keys = {
        "MODEL__SEM_SEG_HEAD__NAME": "PMNHead", "MODEL__SEM_SEG_HEAD__IN_FEATURES": ["res3", "res4", "res5"],
        "MODEL__BACKBONE__NAME": "build_gated_resnet_backbone", "MODEL__POLICY__NAME": "pmn",
        "MODEL__POLICY__STAGE": "joint", "MODEL__POLICY__PMN__STAGES": 3, "MODEL__POLICY__PMN__WIDTH": 8,
        "MODEL__POLICY__PMN__INIT_BIAS": 1.0, "MODEL__SEM_SEG_HEAD__ASPP_RATES": [1, 2],
    }  # fmt: skip
    return DynTrainer.build_model(read_cfg("", task_opts("semantic_fpn", **(keys | more))))


def test_logits_are_the_average_over_modules_at_the_common_stride():
    model = segmentor(MODEL__POLICY__PMN__ACTIONS="distribute", MODEL__POLICY__PMN__MODULES=3).eval()
    head, inputs = model.sem_seg_head, batch(2)
    with recording() as trace, torch.no_grad():
        outputs = model.forward_task(inputs)
        normal = [(item["image"] - model.pixel_mean) / model.pixel_std for item in inputs]
        images = ImageList.from_tensors(normal, model.backbone.size_divisibility).tensor
    modules = [output.module for output in trace.context.state.outputs]
    assert modules == [1, 3, 5]  # the last blocks of res3, res4, res5
    with torch.no_grad():
        maps = model.backbone(images)
        total = 0
        for name, output in zip(("res3", "res4", "res5"), trace.context.state.outputs, strict=True):
            torch.testing.assert_close(output.features, maps[name])
            x = F.relu(F.conv2d(maps[name], *head.projections[str(maps[name].shape[1])].parameters()))
            scores = sum(F.conv2d(x, c.weight, c.bias, padding=r, dilation=r)
                         for r, c in zip((1, 2), head.aspp.convs, strict=True))  # fmt: skip
            total = total + F.interpolate(scores, size=(8, 8), mode="bilinear", align_corners=False)
    expected = F.interpolate(total / 3, scale_factor=8, mode="bilinear", align_corners=False)
    torch.testing.assert_close(outputs[0]["sem_seg"], expected[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(outputs[1]["sem_seg"], expected[1, :, :48], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("actions", ["levels", "random"])
def test_the_dense_run_segments_from_the_last_module(actions):
    model = segmentor(MODEL__POLICY__PMN__INIT_BIAS=-5.0, MODEL__POLICY__PMN__ACTIONS=actions,
                      MODEL__POLICY__PMN__MODULES=2).eval()  # fmt: skip
    force_open(model)
    with recording() as trace, torch.no_grad():
        outputs = model.forward_task(batch(2))
    assert [output["sem_seg"].shape for output in outputs] == [(3, 64, 64), (3, 48, 64)]
    assert [output.module for output in trace.context.state.outputs] == [5]
    assert all(step.decision.open.all() for step in trace.steps) and trace.gates().sum() == 0


@pytest.mark.parametrize("train_on", ["sampled", "both"])
def test_loss_and_reward(train_on):
    model = segmentor(MODEL__POLICY__PMN__TRAIN_ON=train_on).train()
    inputs = batch(3)
    inputs[0]["sem_seg"][:32] = 255
    targets = torch.full((3, 64, 64), 255)
    for n, item in enumerate(inputs):
        targets[n, : item["sem_seg"].shape[0]] = item["sem_seg"]
    kept = {}
    model.sem_seg_head.combine.register_forward_hook(lambda module, given, found: kept.update(found))
    with EventStorage(), recording() as trace:
        trace.context.image_sizes = [tuple(item["image"].shape[-2:]) for item in inputs]
        losses = model.forward_task(inputs)
    names = (SAMPLED,) if train_on == "sampled" else (SAMPLED, GREEDY)
    expected = []
    for name in names:
        logits = F.interpolate(kept[name], scale_factor=8, mode="bilinear", align_corners=False)
        for n in range(3):
            expected.append(F.cross_entropy(logits[n][None], targets[n][None], ignore_index=255))
    torch.testing.assert_close(losses["loss_sem_seg"], torch.stack(expected).mean())
    for name, rollout in trace.context.state.rollouts.items():
        for n in range(3):
            right, counted = 0, 0
            for i in range(8):
                for j in range(8):
                    label = int(targets[n, 8 * i + 4, 8 * j + 4])
                    if label != 255:
                        counted += 1
                        right += int(kept[name][n, :, i, j].argmax()) == label
            assert float(rollout.accuracy[n]) == pytest.approx(right / counted)
    assert "loss_policy" in model.backbone.policy.losses(trace, losses)


def test_images_without_a_pixel_that_counts_give_a_loss_of_zero():
    model = segmentor().train()
    inputs = batch(2)
    for item in inputs:
        item["sem_seg"][:] = 255
    with EventStorage():
        losses = model(inputs)
    sum(losses.values()).backward()
    assert losses["loss_sem_seg"] == 0 and all(loss.isfinite() for loss in losses.values())


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match="COMMON_STRIDE is 8, .* strides {'res4': 16, 'res5': 32}"):
        segmentor(MODEL__SEM_SEG_HEAD__IN_FEATURES=["res4", "res5"])
    with pytest.raises(ValueError, match="ASPP_RATES"):
        segmentor(MODEL__SEM_SEG_HEAD__ASPP_RATES=[])
    model = segmentor(MODEL__POLICY__PMN__STAGES=0, MODEL__POLICY__PMN__ACTIONS="random").eval()
    with pytest.raises(ValueError, match="64 channels.* has to name all stages"), torch.no_grad():
        model(batch(1))
    with pytest.raises(UserError, match="MODEL.POLICY.NAME pmn chooses"), torch.no_grad():
        segmentor(MODEL__POLICY__NAME="all_open", MODEL__POLICY__STAGE="").eval()(batch(1))
