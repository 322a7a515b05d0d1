"""Layer Cascade as a whole: which pixels go on, what they become, what is learned and what is counted."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dyn_d2.config.read import read_cfg
from dyn_d2.engine.trainer import DynTrainer
from dyn_d2.gating import recording
from dyn_d2.methods.layer_cascade.head import label_counts

from detectron2.utils.events import EventStorage

CLASSES = 5
KEYS = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.META_ARCHITECTURE": "LayerCascadeSegmentor",
    "MODEL.BACKBONE.NAME": "build_cascade_resnet_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.PIXEL_STD": [60.0, 60.0, 60.0],
    "MODEL.SEM_SEG_HEAD.NAME": "LayerCascadeHead",
    "MODEL.SEM_SEG_HEAD.NORM": "BN",
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 16,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": CLASSES,
    "MODEL.INCEPTION_RESNET.BLOCKS": [1, 1, 1],
    "MODEL.INCEPTION_RESNET.NORM": "BN",
}
INCEPTION = {"MODEL.BACKBONE.NAME": "build_cascade_inception_resnet_backbone"}


def _model(**more):
    keys = KEYS | {name.replace("__", "."): value for name, value in more.items()}
    cfg = read_cfg("", [str(part) for pair in keys.items() for part in pair])
    model = DynTrainer.build_model(cfg)
    for layer in model.sem_seg_head.modules():
        if isinstance(layer, nn.Conv2d):  # probabilities that differ
            nn.init.kaiming_normal_(layer.weight)
    return model


def _batch(sizes=((64, 96), (48, 72))):
    return [
        {
            "image": torch.randint(0, 255, (3, *size), dtype=torch.uint8),
            "sem_seg": torch.randint(0, CLASSES, size),
            "height": size[0],
            "width": size[1],
        }
        for size in sizes
    ]


def _at(model, threshold, batch):
    model.sem_seg_head.thresholds = (threshold, threshold)
    with torch.no_grad():
        return model.eval()(batch)


@pytest.fixture(scope="module", params=[{}, {"ASPP": [1, 2]}, INCEPTION], ids=["resnet", "aspp", "inception"])
def model(request):
    torch.manual_seed(0)
    more = {"MODEL.LAYER_CASCADE.ASPP": request.param["ASPP"]} if "ASPP" in request.param else request.param
    return _model(**more)


def test_from_nothing_to_everything(model):
    batch = _batch()
    none, some, everything = (_at(model, threshold, batch) for threshold in (0.0, 0.5, 1.0))
    for outputs in (none, some, everything):
        for output, inputs in zip(outputs, batch, strict=True):
            assert output["sem_seg"].shape == (CLASSES, *inputs["image"].shape[1:])
            torch.testing.assert_close(output["sem_seg"].sum(0), torch.ones(inputs["image"].shape[1:]))
            assert output["settled_by"].shape == (inputs["image"].shape[1] // 8, inputs["image"].shape[2] // 8)
    assert all((output["settled_by"] == 0).all() for output in none)
    assert all((output["settled_by"] == 2).all() for output in everything)
    executed = [[output["route"].executed for output in outputs] for outputs in (none, some, everything)]
    assert executed[0][0] < executed[1][0] < executed[2][0] == everything[0]["route"].dense
    # The second image is smaller: its padding goes no further than the first stage.
    assert executed[2][1] < executed[2][0] and executed[0][0] == executed[0][1]
    dense = [output["route"].dense for output in everything]
    assert executed[2] == pytest.approx(dense, rel=1e-5) and [output["route"].dense for output in some] == dense


def test_settled_pixels_keep_what_their_stage_said(model):
    """Stage by stage with ordinary code: the first two stages of the run in which all pixels go on."""
    batch = _batch(((64, 64),))
    model.eval()
    head = model.sem_seg_head
    with torch.no_grad():
        features = model.backbone((batch[0]["image"][None] - model.pixel_mean) / model.pixel_std)
        first = head.stage1(features["stage1"]).softmax(1)
        values = first.amax(1).flatten().sort().values
        rho = float(values[30] + values[31]) / 2
        head.thresholds = (rho, rho)
        cascade = head.run_stages(features)
    sure = first.amax(1) > rho
    assert 0 < sure.sum() < sure.numel()
    assert torch.equal(cascade.settled_by == 0, sure)
    merged = cascade.merged()
    torch.testing.assert_close(merged.permute(0, 2, 3, 1)[sure], first.permute(0, 2, 3, 1)[sure])
    assert cascade.shares()[0] == 1 and cascade.shares()[1] == pytest.approx(1 - sure.float().mean().item())


def test_cost_of_each_stage_follows_its_share(model):
    (output,) = _at(model, 0.6, _batch(((64, 64),)))
    with recording() as trace, torch.no_grad():
        features = model.backbone(torch.randn(2, 3, 64, 64))
        model.sem_seg_head(features)
    shares = trace.context.state.shares()
    found = {cost.name: float(cost.executed.mean() / cost.dense) for cost in trace.costs}
    assert found.keys() == {f"{head}stage{i}" for i in (1, 2, 3) for head in ("", "head.")}
    for name, share in found.items():
        assert share == pytest.approx(shares[int(name[-1]) - 1])
    assert output["route"].executed <= output["route"].dense


def test_plain_segmentor_runs_the_stages_too():
    model = _model(MODEL__META_ARCHITECTURE="SemanticSegmentor")
    (output,) = _at(model, 0.5, _batch(((64, 64),)))
    assert output.keys() == {"sem_seg"} and output["sem_seg"].shape == (CLASSES, 64, 64)


def test_backbone_serves_other_heads():
    keys = {"MODEL.SEM_SEG_HEAD.NAME": "SemSegFPNHead", "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["stage3"]}
    keys |= {"MODEL.SEM_SEG_HEAD.COMMON_STRIDE": 8, "MODEL.META_ARCHITECTURE": "SemanticSegmentor"}
    model = _model(**keys)
    with EventStorage():
        losses = model(_batch())
    losses["loss_sem_seg"].backward()
    assert model.backbone.res5[0].conv1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0])
def test_training_reaches_all_parameters(threshold):
    model = _model(MODEL__LAYER_CASCADE__TRAIN_THRESHOLDS=[threshold])
    with EventStorage() as storage:
        losses = model(_batch())
        sum(losses.values()).backward()
        share = storage.latest()["layer_cascade/stage3_share"][0]
    assert losses.keys() == {"loss_sem_seg_stage1", "loss_sem_seg_stage2", "loss_sem_seg"}
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    if threshold == 0:  # nothing is left for later stages, and no process waits for a gradient that never comes
        assert share == 0 and losses["loss_sem_seg"] == 0 and not model.backbone.res5[0].conv1.weight.grad.any()
    if threshold == 1:
        assert share == 1


@pytest.mark.parametrize("keys", [{}, INCEPTION], ids=["resnet", "inception"])
def test_trains_in_bfloat16(keys):
    model = _model(**{"MODEL.LAYER_CASCADE.TRAIN_THRESHOLDS": [0.3], **keys})
    with EventStorage(), torch.autocast("cpu", torch.bfloat16):
        losses = model(_batch())
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) and loss.dtype == torch.float32 for loss in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_initial_training_sends_all_pixels_through():
    keys = {"MODEL__LAYER_CASCADE__TRAIN_THRESHOLDS": [0.3], "MODEL__LAYER_CASCADE__INITIAL_ITERS": 2}
    head = _model(**keys).sem_seg_head
    with EventStorage(0) as storage:
        assert head.current_thresholds() == (1.0, 1.0, None)
        storage.iter = 2
        assert head.current_thresholds() == (0.3, 0.3, None)
    head.eval()
    assert head.current_thresholds() == (0.985, 0.985, None)


def test_loss_is_that_of_the_enlarged_logits():
    targets = torch.randint(0, CLASSES, (2, 16, 24))
    targets[0, :5] = 255
    logits = torch.randn(2, CLASSES, 2, 3)
    counts = label_counts(targets, CLASSES, 255)
    own = -(counts * logits.permute(0, 2, 3, 1).reshape(-1, CLASSES).log_softmax(1)).sum() / counts.sum()
    expected = F.cross_entropy(logits.repeat_interleave(8, 2).repeat_interleave(8, 3), targets, ignore_index=255)
    torch.testing.assert_close(own, expected)
    assert not label_counts(torch.full((1, 8, 8), 255), CLASSES, 255).any()


def test_image_without_labels_trains():
    batch = _batch()
    for inputs in batch:
        inputs["sem_seg"].fill_(255)
    with EventStorage():
        losses = _model()(batch)
    assert all(loss == 0 for loss in losses.values())


def test_force_open_is_the_dense_run():
    model = _model()
    batch = _batch(((64, 64),))
    expected = _at(model, 1.0, batch)[0]["sem_seg"]
    model.sem_seg_head.thresholds = (0.1, 0.1)
    model.force_open()
    with torch.no_grad():
        torch.testing.assert_close(model(batch)[0]["sem_seg"], expected)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.LAYER_CASCADE.THRESHOLDS", [0.9, 0.9, 0.9]),
        ("MODEL.LAYER_CASCADE.TRAIN_THRESHOLDS", [1.5]),
        ("MODEL.LAYER_CASCADE.STAGE_WEIGHTS", [1.0]),
        ("MODEL.SEM_SEG_HEAD.NORM", "GN"),
        ("MODEL.BACKBONE.NAME", "build_resnet_backbone"),
    ],
)
def test_what_cannot_be_is_said(key, value):
    with pytest.raises(ValueError, match=key):
        _model(**{key: value, "MODEL.RESNETS.RES2_OUT_CHANNELS": 64})
