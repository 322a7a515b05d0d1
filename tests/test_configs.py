"""Every yaml of configs/ builds its model, takes a training step in each of its stages and evaluates."""

from pathlib import Path

import pytest
import torch

from dyn_d2.config.derive import apply_method, derive
from dyn_d2.config.read import read_cfg
from dyn_d2.engine.schedules import stage_schedule
from dyn_d2.engine.trainer import DynTrainer
from dyn_d2.gating.policies.base import policy_class
from dyn_d2.methods.fsrw.reweighting import ClassVectors
from dyn_d2.methods.tafe_net.data import is_described

from detectron2.solver import build_optimizer
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
META_ARCHITECTURE = {path: read_cfg(str(path)).MODEL.META_ARCHITECTURE for path in CONFIGS}
DETECTORS = [path for path, name in META_ARCHITECTURE.items() if name.endswith("RCNN")]
MULTI_PATH = [path for path, name in META_ARCHITECTURE.items() if name == "MultiPathClassifier"]
CLASSIFIERS = [path for path, name in META_ARCHITECTURE.items() if name == "ImageClassifier"]
SINGLE_STAGE = [path for path, name in META_ARCHITECTURE.items() if name.endswith("RetinaMask")]
SQUARE = [path for path, name in META_ARCHITECTURE.items() if name == "FSRW"]
DESCRIBED = [path for path, name in META_ARCHITECTURE.items() if name == "TAFENet"]
SEGMENTORS = [path for path, name in META_ARCHITECTURE.items() if name.endswith("Segmentor")]
# The same model with less of everything, so that a step takes a second.
SMALL = [
    "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64",
    "MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "32", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "50",
    "MODEL.RPN.POST_NMS_TOPK_TEST", "20", "MODEL.ROI_HEADS.NUM_CLASSES", "5", "MODEL.SHAPE_PROP.CONV_DIM", "32",
    "MODEL.RETINANET.NUM_CLASSES", "5", "MODEL.RETINANET.NORM", "",
]  # fmt: skip


def _batch(masks: bool) -> list[dict]:
    truth = Instances((96, 128))
    truth.gt_boxes = Boxes(torch.tensor([[5.0, 5, 60, 60], [40, 20, 120, 90]]))
    truth.gt_classes = torch.tensor([0, 4])
    if masks:
        truth.gt_masks = BitMasks(torch.rand(2, 96, 128) > 0.5)
    image = torch.randint(0, 255, (3, 96, 128), dtype=torch.uint8)
    return [{"image": image, "instances": truth, "height": 96, "width": 128}] * 2


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT / "configs"))


def test_every_yaml_is_tried() -> None:
    assert set(CONFIGS) == {
        *DETECTORS, *SINGLE_STAGE, *SQUARE, *CLASSIFIERS, *SEGMENTORS, *MULTI_PATH, *DESCRIBED
    }  # fmt: skip


@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
@pytest.mark.parametrize("classifier", ["linear", "cosine"])
@pytest.mark.parametrize("path", DETECTORS, ids=_name)
def test_builds_and_trains_a_step(path, classifier, masks):
    cfg = read_cfg(str(path), [*SMALL, "MODEL.ROI_BOX_HEAD.CLASSIFIER", classifier, "MODEL.MASK_ON", str(masks)])
    cfg.freeze()
    model = DynTrainer.build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    before = model.roi_heads.box_predictor.cls_score.weight.detach().clone()
    with EventStorage():
        losses = model(_batch(cfg.MODEL.MASK_ON))
    expected = {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"} | ({"loss_mask"} if masks else set())
    if masks and cfg.MODEL.ROI_HEADS.NAME == "ShapePropROIHeads":
        expected |= {"loss_saliency", "loss_shape"}
    assert losses.keys() == expected and all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    optimizer.step()
    assert not torch.equal(before, model.roi_heads.box_predictor.cls_score.weight)
    model.eval()
    with torch.no_grad():
        (output,) = model(_batch(False)[:1])
    assert output["instances"].image_size == (96, 128)


@pytest.mark.parametrize("heads", ["", "MaskROIHeads", "ShapePropMaskROIHeads"])
@pytest.mark.parametrize("path", SINGLE_STAGE, ids=_name)
def test_single_stage_detectors_train_a_step(path, heads):
    """``heads``: of the masks; "" for none."""
    keys = ["MODEL.ROI_HEADS.NAME", heads, "MODEL.MASK_ON", "True"] if heads else ["MODEL.MASK_ON", "False"]
    cfg = read_cfg(str(path), [*SMALL, *keys])
    cfg.freeze()
    model = DynTrainer.build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    before = model.head.cls_score.weight.detach().clone()
    with EventStorage():
        losses = model(_batch(bool(heads)))
    expected = {"loss_cls", "loss_box_reg"} | ({"loss_mask"} if heads else set())
    if heads.startswith("ShapeProp"):
        expected |= {"loss_saliency", "loss_shape"}
    assert losses.keys() == expected and all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    optimizer.step()
    assert not torch.equal(before, model.head.cls_score.weight)
    model.eval()
    with torch.no_grad():
        (output,) = model(_batch(False)[:1])
    assert output["instances"].image_size == (96, 128) and output["instances"].has("pred_masks") == bool(heads)


@pytest.mark.parametrize("method", ["fsrw", "yolo_ft", "lstd"])
@pytest.mark.parametrize("path", SQUARE, ids=_name)
def test_square_detectors_train_a_step(path, method):
    small = ["MODEL.DARKNET.WIDTH", 0.05, "MODEL.REWEIGHTING.WIDTH", 0.05, "MODEL.REWEIGHTING.SUPPORT_SIZE", 64]
    cfg = read_cfg(str(path), [*SMALL, *small, "MODEL.YOLO.SIZE", 96, "MODEL.YOLO.TRAIN_SIZES", [64, 128]])
    derived = read_cfg(str(path), ["FEW_SHOT.METHOD", method, "FEW_SHOT.STAGE", "finetune"])
    apply_method(derived, set())
    cfg.MODEL.META_ARCHITECTURE = derived.MODEL.META_ARCHITECTURE
    model = DynTrainer.build_model(cfg)
    batch = [dict(inputs) for inputs in _batch(False)]
    batch[0]["support"] = {
        "image": torch.randint(0, 2, (5, 4, 64, 64), dtype=torch.uint8),
        "boxes": torch.tensor([[8.0, 8, 40, 40]] * 5),
    }
    before = model.predictor.weight.detach().clone()
    optimizer = build_optimizer(cfg, model)
    with EventStorage():
        losses = model(batch)
    assert {"loss_class", "loss_box", "loss_objectness"} <= losses.keys()
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    optimizer.step()
    assert not torch.equal(before, model.predictor.weight)
    model.eval()
    with torch.no_grad():
        if method == "fsrw":
            model.use_vectors(
                ClassVectors.mean_of({str(i): v[None] for i, v in enumerate(model.embed(batch[0]["support"]))})
            )
        (output,) = model(_batch(False)[:1])
    assert output["instances"].image_size == (96, 128)


def _stages(paths: list[Path]) -> list:
    return [
        pytest.param(path, stage, id=f"{_name(path)}-{stage}" if stage else _name(path))
        for path in paths
        for stage in policy_class(read_cfg(str(path))).STAGES
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("path", "stage"), _stages(SEGMENTORS))
def test_segmentors_train_a_step(path, stage):
    cfg = read_cfg(str(path), ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "32"])
    cfg.MODEL.POLICY.STAGE = stage
    cfg.MODEL.RESNETS.DEPTH = min(cfg.MODEL.RESNETS.DEPTH, 50)
    cfg.freeze()
    model = DynTrainer.build_model(cfg)
    image = {"image": torch.randint(0, 255, (3, 64, 96), dtype=torch.uint8), "height": 64, "width": 96}
    labels = torch.randint(0, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, (64, 96))
    with EventStorage():
        losses = model([{**image, "sem_seg": labels, "dataset": cfg.DATASETS.TRAIN[0]}] * 2)
    assert "loss_sem_seg" in losses and all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    model.eval()
    with torch.no_grad():
        (output,) = model([{**image, "dataset": cfg.DATASETS.TEST[0]}])
    assert output["sem_seg"].shape == (cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, 64, 96)


@pytest.mark.parametrize(("path", "stage"), _stages(CLASSIFIERS))
def test_classifiers_train_a_step_in_each_stage(path, stage):
    cfg = read_cfg(str(path))
    deep = {"build_gated_cifar_resnet_backbone": [8, 256]}.get(cfg.MODEL.BACKBONE.NAME, [18, 64])
    small = ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", deep[0], "MODEL.RESNETS.RES2_OUT_CHANNELS", deep[1]]
    small += ["MODEL.IMAGE_CLASSIFIER.NUM_CLASSES", 10, "MODEL.POLICY.STAGE", stage]
    small += ["MODEL.POLICY.PMN.TREE", "digits" if cfg.MODEL.POLICY.PMN.TREE else ""]
    # The data set of a yaml need not be here; scikit-learn's digits are.
    cfg.merge_from_list([*small, "DATASETS.TRAIN", "('digits_train',)", "DATASETS.TEST", "('digits_test',)"])
    derive(cfg, ["MODEL.IMAGE_CLASSIFIER.NUM_CLASSES"])
    assert 0 < cfg.SOLVER.BASE_LR <= 0.1 and all(step < cfg.SOLVER.MAX_ITER for step in cfg.SOLVER.STEPS)
    model = DynTrainer.build_model(cfg)
    optimizer = DynTrainer.build_optimizer(cfg, model)
    images = [{"image": torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8), "label": i} for i in range(3)]
    with EventStorage():
        losses = model(images)
    assert "loss_cls" in losses and all(torch.isfinite(loss) for loss in losses.values())
    before = model.linear.weight.detach().clone()
    sum(losses.values()).backward()
    optimizer.step()
    assert not torch.equal(before, model.linear.weight)
    model.eval()
    with torch.no_grad():
        outputs = model(images)
    assert all(output["scores"].shape == (10,) and output["route"].executed > 0 for output in outputs)


@pytest.mark.parametrize("policy", ["path_actor", "path_critic", "path_optimistic_critic", "all_open"])
@pytest.mark.parametrize("path", MULTI_PATH, ids=_name)
def test_multi_path_networks_train_a_step(path, policy):
    topology = "static" if policy == "all_open" else "chain"
    cfg = read_cfg(
        str(path), ["MODEL.DEVICE", "cpu", "MODEL.POLICY.NAME", policy, "MODEL.MULTIPATH.TOPOLOGY", topology]
    )
    cfg.merge_from_list(["DATASETS.TRAIN", "('digits_train',)", "DATASETS.TEST", "('digits_test',)"])
    derive(cfg)
    model = DynTrainer.build_model(cfg)
    optimizer = DynTrainer.build_optimizer(cfg, model)
    images = [{"image": torch.randint(0, 255, (3, 8, 8), dtype=torch.uint8), "label": i} for i in range(3)]
    with EventStorage():
        losses = model(images)
    assert {"loss_cls", "loss_weights"} <= losses.keys() and all(torch.isfinite(loss) for loss in losses.values())
    before = model.backbone.layers[0].across[0].weight.detach().clone()
    sum(losses.values()).backward()
    optimizer.step()
    assert not torch.equal(before, model.backbone.layers[0].across[0].weight)
    model.eval()
    with torch.no_grad():
        outputs = model(images)
    assert all(output["scores"].shape == (10,) and output["route"].executed > 0 for output in outputs)


@pytest.mark.parametrize("path", DESCRIBED, ids=_name)
def test_models_of_described_classes_train_a_step(path):
    cfg = read_cfg(
        str(path), ["MODEL.DEVICE", "cpu", "MODEL.TAFE_NET.FC_DIMS", "[8, 6]", "MODEL.TAFE_NET.TASK_HIDDEN", "7"]
    )
    for names in (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST):  # need not be here, but have to be known
        assert all(is_described(name) for name in names)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("digit_attributes_1_train",), ("digit_attributes_1_test",)
    derive(cfg)
    model = DynTrainer.build_model(cfg)
    optimizer = DynTrainer.build_optimizer(cfg, model)
    records = [{"feature": torch.rand(1, 8, 8), "label": label} for label in (0, 1, 3, 1)]
    before = model.meta_learner.generators[0].weight.detach().clone()
    with EventStorage():
        losses = model(records)
    assert losses.keys() == {"loss_cls", "loss_emb"} and all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    optimizer.step()
    assert not torch.equal(before, model.meta_learner.generators[0].weight)
    model.eval()
    with torch.no_grad():
        outputs = model([{**record, "dataset": cfg.DATASETS.TEST[0]} for record in records])
    assert all(output["scores"].shape == (10,) for output in outputs)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "TFA").glob("*.yaml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("stage", ["base", "novel", "finetune"])
def test_every_stage_has_a_schedule(path, stage):
    cfg = read_cfg(str(path), ["FEW_SHOT.STAGE", stage])
    if path.stem == "voc" and stage == "novel":
        with pytest.raises(ValueError, match="novel"):  # nothing is published; docs/tfa.md says what to set
            stage_schedule(cfg)
        return
    schedule = {**cfg.SOLVER, **stage_schedule(cfg)}
    assert 0 < schedule["BASE_LR"] <= 0.1 and 0 < schedule["MAX_ITER"]
