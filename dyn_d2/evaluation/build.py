"""From a data set's metadata to its evaluator."""

import os

from torch import nn

from dyn_d2.gating.meta_arch.dynamic import find_policy
from dyn_d2.gating.reports.routes import RouteEvaluator
from dyn_d2.methods.layer_cascade.evaluator import LayerCascadeEvaluator
from dyn_d2.methods.layer_cascade.meta_arch import LayerCascadeSegmentor
from dyn_d2.methods.shapeprop.evaluator import ShapeQualityEvaluator
from dyn_d2.methods.tafe_net.data import class_table
from dyn_d2.methods.tafe_net.evaluator import METRICS, DescribedEvaluator

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
)

from .class_groups import ClassGroups, GroupedCOCOEvaluator
from .classification import ClassificationEvaluator
from .concept_levels import ConceptLevelEvaluator
from .few_shot import FewShotLVISEvaluator, FewShotVOCEvaluator, few_shot_groups
from .partial_masks import mask_groups


def _coco(cfg: CfgNode, name: str, folder: str, groups: ClassGroups) -> COCOEvaluator:
    if not groups:
        return COCOEvaluator(name, output_dir=folder, max_dets_per_image=None)
    tasks = ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)
    return GroupedCOCOEvaluator(name, tasks, output_dir=folder, max_dets_per_image=None, groups=groups)


def _described(kind: str, cfg: CfgNode, name: str, folder: str) -> DescribedEvaluator:
    return DescribedEvaluator(name, kind, folder, class_table(cfg).classes)


# evaluator_type of the metadata -> for (cfg, data set, output folder, groups of classes) an evaluator
_BUILDERS = {
    "coco": _coco,
    "lvis": lambda cfg, name, folder, groups: (FewShotLVISEvaluator if groups else LVISEvaluator)(
        name, output_dir=folder
    ),
    "pascal_voc": lambda cfg, name, folder, groups: (FewShotVOCEvaluator if groups else PascalVOCDetectionEvaluator)(
        name
    ),
    "sem_seg": lambda cfg, name, folder, groups: SemSegEvaluator(name, distributed=True, output_dir=folder),
    "cityscapes_instance": lambda cfg, name, folder, groups: CityscapesInstanceEvaluator(name),
    "classification": lambda cfg, name, folder, groups: ClassificationEvaluator(name, folder),
    "cityscapes_sem_seg": lambda cfg, name, folder, groups: CityscapesSemSegEvaluator(name),
    **{kind: lambda cfg, name, folder, groups, kind=kind: _described(kind, cfg, name, folder) for kind in METRICS},
}
# Detectron2 tags some sets with a type that needs two evaluators.
_COMBINED = {"coco_panoptic_seg": ("sem_seg", "coco")}
# Their files are not named after the set: coco_instances_results.json, sem_seg_predictions.json and others.
_UNNAMED_FILES = {"coco", "lvis", "sem_seg"}


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
    """The evaluator that ``evaluator_type`` of the data set's metadata asks for.

    Sets with ``base_classes`` in their metadata get base and novel AP as well; those in COCO's format, where a model
    with masks was trained on the masks of some classes, AP of the classes with and without; and models that output
    shape activations how good these are. Sets with labels on a concept tree get the scores at each level.

    Detectron2's evaluators write files of the same names for every set; where DATASETS.TEST has several, each set's lie
    in a folder of its own, named after it.

    Args:
        output_folder: where predictions are written; OUTPUT_DIR/inference when None.

    Raises:
        ValueError: the metadata names no evaluator, or an unknown one; or there are no such classes.
    """
    folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
    metadata = MetadataCatalog.get(dataset_name)
    kind = metadata.get("evaluator_type", None)
    kinds = _COMBINED.get(kind, (kind,))
    unknown = [k for k in kinds if k not in _BUILDERS]
    if unknown:
        raise ValueError(
            f"{dataset_name} cannot be evaluated: its metadata has evaluator_type={kind!r}. "
            f"Set MetadataCatalog.get({dataset_name!r}).evaluator_type to one of {', '.join(_BUILDERS)}."
        )
    by_masks = mask_groups(cfg, metadata)
    few_shot = few_shot_groups(metadata)
    evaluators = []
    for k in kinds:
        own = os.path.join(folder, dataset_name) if k in _UNNAMED_FILES and len(cfg.DATASETS.TEST) > 1 else folder
        evaluators.append(_BUILDERS[k](cfg, dataset_name, own, few_shot | by_masks if k == "coco" else few_shot))
    if {"sem_seg", "cityscapes_sem_seg"} & set(kinds) and metadata.get("hierarchy", None):
        evaluators.append(ConceptLevelEvaluator(dataset_name, folder))
    if cfg.MODEL.MASK_ON and cfg.MODEL.SHAPE_PROP.OUTPUT_MAPS:
        evaluators.append(ShapeQualityEvaluator(dataset_name, by_masks))
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)


def with_routes(
    evaluator: DatasetEvaluator, cfg: CfgNode, model: nn.Module, dataset_name: str, output_folder: str | None = None
) -> DatasetEvaluator:
    """``evaluator``, and beside it one of the routes where the backbone of ``model`` is gated, or its head dynamic; for
    Layer Cascade also one of its stages.

    The files lie in ``output_folder``, by default OUTPUT_DIR/inference, named routes.npz and routes.json, or
    routes_DATASET where DATASETS.TEST has several sets.
    """
    if find_policy(getattr(model, "backbone", None)) is None and not getattr(model, "whole_trace", False):
        return evaluator
    stem = "routes" if len(cfg.DATASETS.TEST) == 1 else f"routes_{dataset_name}"
    folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
    evaluators = [evaluator, RouteEvaluator(dataset_name, folder, model=model, stem=stem)]
    if isinstance(model, LayerCascadeSegmentor):
        evaluators.append(LayerCascadeEvaluator(dataset_name, folder))
    return DatasetEvaluators(evaluators)
