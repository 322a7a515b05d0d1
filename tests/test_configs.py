"""Every yaml of configs/ builds its model, takes a training step in each of its stages and evaluates."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dyn_d2.config.derive import apply_method, derive
from dyn_d2.config.read import read_cfg
from dyn_d2.engine.schedules import stage_schedule
from dyn_d2.engine.trainer import DynTrainer
from dyn_d2.gating.policies.base import policy_class
from dyn_d2.methods.fsrw.meta_arch import FSRW
from dyn_d2.methods.fsrw.reweighting import ClassVectors
from dyn_d2.methods.tafe_net.data import is_described

from detectron2.config import CfgNode
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = {path: read_cfg(str(path)) for path in sorted((ROOT / "configs").rglob("*.yaml"))}
DIGITS = ("DATASETS.TRAIN", "('digits_train',)", "DATASETS.TEST", "('digits_test',)")  # scikit-learn has them
Inputs = list[dict[str, Any]]


@dataclass(frozen=True)
class Kind:
    """How the yaml files of some meta-architectures become small, and what a step of their training has to do.

    Attributes:
        architectures: a pattern of MODEL.META_ARCHITECTURE.
        small: KEY, VALUE, ... of the same model with less of everything, so that a step takes a second.
        inputs: (config, whether training) -> a batch.
        losses: those that the config asks for.
        learns: a parameter that the step has to change.
        answers: whether the outputs of an evaluation are what the config promises.
        variants: of each yaml: name -> further KEY, VALUE, ...
        prepare: changes the config for a variant.
        more_losses: others may stand beside ``losses``.
        ready: of a trained model and its batch: what has to come before the evaluation.
        marks: of pytest.
    """

    architectures: str
    small: Iterable[Any]
    inputs: Callable[[CfgNode, bool], Inputs]
    losses: Callable[[CfgNode], set[str]]
    learns: str
    answers: Callable[[CfgNode, Inputs], bool]
    variants: Callable[[CfgNode], dict[str, list[Any]]] = lambda cfg: {"": []}
    prepare: Callable[[CfgNode, str], None] = lambda cfg, variant: None
    more_losses: bool = False
    ready: Callable[[nn.Module, Inputs], None] = lambda model, batch: None
    marks: tuple[pytest.MarkDecorator, ...] = ()


# ---------------------------------------------------------------------------------------------------------- detectors


def _objects(cfg: CfgNode, training: bool) -> Inputs:
    truth = Instances((96, 128))
    truth.gt_boxes = Boxes(torch.tensor([[5.0, 5, 60, 60], [40, 20, 120, 90]]))
    truth.gt_classes = torch.tensor([0, 4])
    if cfg.MODEL.MASK_ON:
        truth.gt_masks = BitMasks(torch.rand(2, 96, 128) > 0.5)
    image = torch.randint(0, 255, (3, 96, 128), dtype=torch.uint8)
    inputs = {"image": image, "height": 96, "width": 128}
    return [{**inputs, "instances": truth} for _ in range(2)] if training else [inputs]


def _episode(cfg: CfgNode, training: bool) -> Inputs:
    batch = _objects(cfg, training)
    if training:
        images = torch.randint(0, 2, (5, 4, 64, 64), dtype=torch.uint8)
        batch[0]["support"] = {"image": images, "boxes": torch.tensor([[8.0, 8, 40, 40]] * 5)}
    return batch


def _detected(cfg: CfgNode, outputs: Inputs) -> bool:
    return [output["instances"].image_size for output in outputs] == [(96, 128)]


def _detected_with_masks(cfg: CfgNode, outputs: Inputs) -> bool:
    return _detected(cfg, outputs) and outputs[0]["instances"].has("pred_masks") == cfg.MODEL.MASK_ON


def _mask_losses(cfg: CfgNode) -> set[str]:
    if not cfg.MODEL.MASK_ON:
        return set()
    shapes = {"loss_saliency", "loss_shape"} if cfg.MODEL.ROI_HEADS.NAME.startswith("ShapeProp") else set()
    return {"loss_mask"} | shapes


def _use_method(cfg: CfgNode, method: str) -> None:
    """The meta-architecture with which a method fine-tunes."""
    derived = cfg.clone()
    derived.merge_from_list(["FEW_SHOT.METHOD", method, "FEW_SHOT.STAGE", "finetune"])
    apply_method(derived, set())
    cfg.MODEL.META_ARCHITECTURE = derived.MODEL.META_ARCHITECTURE


def _use_vectors(model: nn.Module, batch: Inputs) -> None:
    if isinstance(model, FSRW):
        vectors = model.embed(batch[0]["support"])
        model.use_vectors(ClassVectors.mean_of({str(i): vector[None] for i, vector in enumerate(vectors)}))


# ------------------------------------------------------------------------------------------ segmentors and classifiers


def _stages(cfg: CfgNode) -> dict[str, list[Any]]:
    return {stage: ["MODEL.POLICY.STAGE", stage] for stage in policy_class(cfg).STAGES}


def _label_maps(cfg: CfgNode, training: bool) -> Inputs:
    image = {"image": torch.randint(0, 255, (3, 64, 96), dtype=torch.uint8), "height": 64, "width": 96}
    if not training:
        return [{**image, "dataset": cfg.DATASETS.TEST[0]}]
    labels = torch.randint(0, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, (64, 96))
    return [{**image, "sem_seg": labels, "dataset": cfg.DATASETS.TRAIN[0]}] * 2


def _segmented(cfg: CfgNode, outputs: Inputs) -> bool:
    shape = (cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, 64, 96)
    return [tuple(output["sem_seg"].shape) for output in outputs] == [shape]


def _at_most_50_layers(cfg: CfgNode, stage: str) -> None:
    cfg.MODEL.RESNETS.DEPTH = min(cfg.MODEL.RESNETS.DEPTH, 50)


def _labelled(side: int) -> Callable[[CfgNode, bool], Inputs]:
    def images(cfg: CfgNode, training: bool) -> Inputs:
        return [{"image": torch.randint(0, 255, (3, side, side), dtype=torch.uint8), "label": i} for i in range(3)]

    return images


def _small_classifier(cfg: CfgNode, stage: str) -> None:
    """The data set of a yaml need not be here; scikit-learn's digits are."""
    deep = {"build_gated_cifar_resnet_backbone": [8, 256]}.get(cfg.MODEL.BACKBONE.NAME, [18, 64])
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = deep
    cfg.MODEL.POLICY.PMN.TREE = "digits" if cfg.MODEL.POLICY.PMN.TREE else ""
    cfg.merge_from_list([*DIGITS, "MODEL.IMAGE_CLASSIFIER.NUM_CLASSES", 10])
    derive(cfg, ["MODEL.IMAGE_CLASSIFIER.NUM_CLASSES"])
    assert 0 < cfg.SOLVER.BASE_LR <= 0.1 and all(step < cfg.SOLVER.MAX_ITER for step in cfg.SOLVER.STEPS)


def _digit_paths(cfg: CfgNode, policy: str) -> None:
    cfg.merge_from_list([*DIGITS, "MODEL.MULTIPATH.TOPOLOGY", "static" if policy == "all_open" else "chain"])
    derive(cfg)


def _routed(cfg: CfgNode, outputs: Inputs) -> bool:
    return _scored(cfg, outputs) and all(output["route"].executed > 0 for output in outputs)


def _scored(cfg: CfgNode, outputs: Inputs) -> bool:
    return len(outputs) > 1 and all(output["scores"].shape == (10,) for output in outputs)


def _digit_attributes(cfg: CfgNode, variant: str) -> None:
    for names in (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST):  # need not be here, but have to be known
        assert all(is_described(name) for name in names)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("digit_attributes_1_train",), ("digit_attributes_1_test",)
    derive(cfg)


def _described(cfg: CfgNode, training: bool) -> Inputs:
    dataset = {} if training else {"dataset": cfg.DATASETS.TEST[0]}
    return [{"feature": torch.rand(1, 8, 8), "label": label, **dataset} for label in (0, 1, 3, 1)]


# -------------------------------------------------------------------------------------------------------------- table

CPU = ("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "")
DETECTOR = (
    *CPU, "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.FPN.OUT_CHANNELS", 16,
    "MODEL.ROI_BOX_HEAD.FC_DIM", 32, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 50, "MODEL.RPN.POST_NMS_TOPK_TEST", 20,
    "MODEL.ROI_HEADS.NUM_CLASSES", 5, "MODEL.SHAPE_PROP.CONV_DIM", 32, "MODEL.RETINANET.NUM_CLASSES", 5,
    "MODEL.RETINANET.NORM", "",
)  # fmt: skip
SQUARE = (
    *DETECTOR, "MODEL.DARKNET.WIDTH", 0.05, "MODEL.REWEIGHTING.WIDTH", 0.05, "MODEL.REWEIGHTING.SUPPORT_SIZE", 64,
    "MODEL.YOLO.SIZE", 96, "MODEL.YOLO.TRAIN_SIZES", [64, 128],
)  # fmt: skip
KINDS = (
    Kind(
        r".*RCNN", DETECTOR, _objects,
        lambda cfg: {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"} | _mask_losses(cfg),
        "roi_heads.box_predictor.cls_score.weight", _detected,
        variants=lambda cfg: {
            f"{classifier}-{what}": ["MODEL.ROI_BOX_HEAD.CLASSIFIER", classifier, "MODEL.MASK_ON", what == "masks"]
            for classifier, what in product(("linear", "cosine"), ("boxes", "masks"))
        },
    ),
    Kind(
        r".*RetinaMask", DETECTOR, _objects, lambda cfg: {"loss_cls", "loss_box_reg"} | _mask_losses(cfg),
        "head.cls_score.weight", _detected_with_masks,
        variants=lambda cfg: {
            "boxes": ["MODEL.MASK_ON", False],
            **{
                heads: ["MODEL.ROI_HEADS.NAME", heads, "MODEL.MASK_ON", True]
                for heads in ("MaskROIHeads", "ShapePropMaskROIHeads")
            },
        },
    ),
    Kind(
        r"FSRW", SQUARE, _episode, lambda cfg: {"loss_class", "loss_box", "loss_objectness"}, "predictor.weight",
        _detected, variants=lambda cfg: {method: [] for method in ("fsrw", "yolo_ft", "lstd")}, prepare=_use_method,
        more_losses=True, ready=_use_vectors,
    ),
    Kind(
        r".*Segmentor", (*CPU, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32), _label_maps, lambda cfg: {"loss_sem_seg"}, "",
        _segmented, variants=_stages, prepare=_at_most_50_layers, more_losses=True, marks=(pytest.mark.slow,),
    ),
    Kind(
        r"ImageClassifier", CPU[:2], _labelled(64), lambda cfg: {"loss_cls"}, "linear.weight", _routed,
        variants=_stages, prepare=_small_classifier, more_losses=True,
    ),
    Kind(
        r"MultiPathClassifier", CPU[:2], _labelled(8), lambda cfg: {"loss_cls", "loss_weights"},
        "backbone.layers.0.across.0.weight", _routed,
        variants=lambda cfg: {
            policy: ["MODEL.POLICY.NAME", policy]
            for policy in ("path_actor", "path_critic", "path_optimistic_critic", "all_open")
        },
        prepare=_digit_paths, more_losses=True,
    ),
    Kind(
        r"TAFENet", (*CPU[:2], "MODEL.TAFE_NET.FC_DIMS", [8, 6], "MODEL.TAFE_NET.TASK_HIDDEN", 7), _described,
        lambda cfg: {"loss_cls", "loss_emb"}, "meta_learner.generators.0.weight", _scored, prepare=_digit_attributes,
    ),
)  # fmt: skip


def _kinds_of(path: Path) -> list[Kind]:
    return [kind for kind in KINDS if re.fullmatch(kind.architectures, CONFIGS[path].MODEL.META_ARCHITECTURE)]


def _cases() -> list:
    return [
        pytest.param(path, kind, variant, opts, marks=kind.marks, id="-".join(filter(None, (_name(path), variant))))
        for path in CONFIGS
        for kind in _kinds_of(path)
        for variant, opts in kind.variants(CONFIGS[path]).items()
    ]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT / "configs"))


def test_every_yaml_is_tried() -> None:
    assert CONFIGS and all(len(_kinds_of(path)) == 1 for path in CONFIGS)


@pytest.mark.parametrize(("path", "kind", "variant", "opts"), _cases())
def test_trains_a_step(path: Path, kind: Kind, variant: str, opts: list[Any]) -> None:
    cfg = read_cfg(str(path), [*kind.small, *opts])
    kind.prepare(cfg, variant)
    cfg.freeze()
    model = DynTrainer.build_model(cfg)
    optimizer = DynTrainer.build_optimizer(cfg, model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    batch = kind.inputs(cfg, True)
    with EventStorage():
        losses = model(batch)
    expected = kind.losses(cfg)
    assert expected <= losses.keys() if kind.more_losses else expected == losses.keys()
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    optimizer.step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)}
    assert kind.learns in changed if kind.learns else changed
    model.eval()
    kind.ready(model, batch)
    with torch.no_grad():
        outputs = model(kind.inputs(cfg, False))
    assert kind.answers(cfg, outputs)


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
