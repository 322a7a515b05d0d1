"""What test_configs.py knows of a kind of model, to make its yaml small and to try a step. Kinds of a method stand in
``yaml_kinds.py`` beside the method's tests, with KINDS and perhaps SMALL, keys for every yaml."""

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from dyn_d2.config.derive import derive
from dyn_d2.gating.policies.base import policy_class
from dyn_d2.modeling.roi_heads import BOX_CLASSIFIERS, MaskROIHeads

from detectron2.config import CfgNode
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.structures import BitMasks, Boxes, Instances

DIGITS = (  # scikit-learn has them
    "DATASETS.CUSTOM.FORMAT", "", "DATASETS.TRAIN", "('digits_train',)", "DATASETS.TEST", "('digits_test',)",
)  # fmt: skip
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


def objects(cfg: CfgNode, training: bool) -> Inputs:
    truth = Instances((96, 128))
    truth.gt_boxes = Boxes(torch.tensor([[5.0, 5, 60, 60], [40, 20, 120, 90]]))
    truth.gt_classes = torch.tensor([0, 4])
    if cfg.MODEL.MASK_ON:
        truth.gt_masks = BitMasks(torch.rand(2, 96, 128) > 0.5)
    image = torch.randint(0, 255, (3, 96, 128), dtype=torch.uint8)
    inputs = {"image": image, "height": 96, "width": 128}
    return [{**inputs, "instances": truth} for _ in range(2)] if training else [inputs]


def detected(cfg: CfgNode, outputs: Inputs) -> bool:
    return [output["instances"].image_size for output in outputs] == [(96, 128)]


def _detected_with_masks(cfg: CfgNode, outputs: Inputs) -> bool:
    return detected(cfg, outputs) and outputs[0]["instances"].has("pred_masks") == cfg.MODEL.MASK_ON


def _mask_losses(cfg: CfgNode) -> set[str]:
    if not cfg.MODEL.MASK_ON:
        return set()
    shapes = {"loss_saliency", "loss_shape"} if cfg.MODEL.ROI_HEADS.NAME.startswith("ShapeProp") else set()
    return {"loss_mask"} | shapes


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


def labelled(side: int) -> Callable[[CfgNode, bool], Inputs]:
    def images(cfg: CfgNode, training: bool) -> Inputs:
        return [{"image": torch.randint(0, 255, (3, side, side), dtype=torch.uint8), "label": i} for i in range(3)]

    return images


def _small_classifier(cfg: CfgNode, stage: str) -> None:
    """The data set of a yaml need not be here; scikit-learn's digits are."""
    deep = {"build_gated_cifar_resnet_backbone": [8, 256]}.get(cfg.MODEL.BACKBONE.NAME, [18, 64])
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = deep
    if "PMN" in cfg.MODEL.POLICY:
        cfg.MODEL.POLICY.PMN.TREE = "digits" if cfg.MODEL.POLICY.PMN.TREE else ""
    cfg.merge_from_list([*DIGITS, "MODEL.IMAGE_CLASSIFIER.NUM_CLASSES", 10])
    derive(cfg, ["MODEL.IMAGE_CLASSIFIER.NUM_CLASSES"])
    assert 0 < cfg.SOLVER.BASE_LR <= 0.1 and all(step < cfg.SOLVER.MAX_ITER for step in cfg.SOLVER.STEPS)


def routed(cfg: CfgNode, outputs: Inputs) -> bool:
    return scored(cfg, outputs) and all(output["route"].executed > 0 for output in outputs)


def scored(cfg: CfgNode, outputs: Inputs) -> bool:
    return len(outputs) > 1 and all(output["scores"].shape == (10,) for output in outputs)


CPU = ("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "")
DETECTOR = (
    *CPU, "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.FPN.OUT_CHANNELS", 16,
    "MODEL.ROI_BOX_HEAD.FC_DIM", 32, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 50, "MODEL.RPN.POST_NMS_TOPK_TEST", 20,
    "MODEL.ROI_HEADS.NUM_CLASSES", 5, "MODEL.RETINANET.NUM_CLASSES", 5,
    "MODEL.RETINANET.NORM", "",
)  # fmt: skip
KINDS = (
    Kind(
        r".*RCNN", DETECTOR, objects,
        lambda cfg: {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"} | _mask_losses(cfg),
        "roi_heads.box_predictor.cls_score.weight", detected,
        variants=lambda cfg: {
            f"{classifier}-{what}": ["MODEL.ROI_BOX_HEAD.CLASSIFIER", classifier, "MODEL.MASK_ON", what == "masks"]
            for classifier, what in product(BOX_CLASSIFIERS, ("boxes", "masks"))
        },
    ),
    Kind(
        r".*RetinaMask", DETECTOR, objects, lambda cfg: {"loss_cls", "loss_box_reg"} | _mask_losses(cfg),
        "head.cls_score.weight", _detected_with_masks,
        variants=lambda cfg: {
            "boxes": ["MODEL.MASK_ON", False],
            **{
                heads: ["MODEL.ROI_HEADS.NAME", heads, "MODEL.MASK_ON", True]
                for heads, kind in ROI_HEADS_REGISTRY
                if issubclass(kind, MaskROIHeads)
            },
        },
    ),
    Kind(
        r".*Segmentor", (*CPU, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32), _label_maps, lambda cfg: {"loss_sem_seg"}, "",
        _segmented, variants=_stages, prepare=_at_most_50_layers, more_losses=True, marks=(pytest.mark.slow,),
    ),
    Kind(
        r"ImageClassifier", CPU[:2], labelled(64), lambda cfg: {"loss_cls"}, "linear.weight",
        lambda cfg, outputs: (routed if "gated" in cfg.MODEL.BACKBONE.NAME else scored)(cfg, outputs),
        variants=_stages, prepare=_small_classifier, more_losses=True,
    ),
)  # fmt: skip


def of_methods(name: str = "yaml_kinds") -> list[ModuleType]:
    """The ``NAME.py`` beside the tests of the methods that are there."""
    found = []
    for path in sorted(Path(__file__).parent.glob(f"methods/*/{name}.py")):
        spec = importlib.util.spec_from_file_location(f"{name}_of_{path.parent.name}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found.append(module)
    return found
