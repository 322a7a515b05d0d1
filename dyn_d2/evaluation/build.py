"""From a data set's metadata to its evaluator."""

import os

from torch import nn

from dyn_d2.method import BuildEvaluator, methods

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
)

from .checked import CheckedCOCOEvaluator, CheckedLVISEvaluator, CheckedSemSegEvaluator
from .class_groups import ClassGroups, GroupedCOCOEvaluator
from .classification import ClassificationEvaluator
from .concept_levels import ConceptLevelEvaluator
from .few_shot import FewShotLVISEvaluator, FewShotVOCEvaluator, few_shot_groups
from .partial_masks import mask_groups


def _coco(cfg: CfgNode, name: str, folder: str, groups: ClassGroups) -> COCOEvaluator:
    if not groups:
        return CheckedCOCOEvaluator(name, output_dir=folder, max_dets_per_image=None)
    tasks = ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)
    return GroupedCOCOEvaluator(name, tasks, output_dir=folder, max_dets_per_image=None, groups=groups)


# evaluator_type of the metadata -> for (cfg, data set, output folder, groups of classes) an evaluator
_BUILDERS: dict[str, BuildEvaluator] = {
    "coco": _coco,
    "lvis": lambda cfg, name, folder, groups: (FewShotLVISEvaluator if groups else CheckedLVISEvaluator)(
        name, output_dir=folder
    ),
    "pascal_voc": lambda cfg, name, folder, groups: FewShotVOCEvaluator(name, folder),
    "sem_seg": lambda cfg, name, folder, groups: CheckedSemSegEvaluator(name, distributed=True, output_dir=folder),
    "cityscapes_instance": lambda cfg, name, folder, groups: CityscapesInstanceEvaluator(name),
    "classification": lambda cfg, name, folder, groups: ClassificationEvaluator(name, folder),
    "cityscapes_sem_seg": lambda cfg, name, folder, groups: CityscapesSemSegEvaluator(name),
}
# Detectron2 tags some sets with a type that needs two evaluators.
_COMBINED = {"coco_panoptic_seg": ("sem_seg", "coco")}
# Their files are not named after the set: coco_instances_results.json, sem_seg_predictions.json and others.
_UNNAMED_FILES = {"coco", "lvis", "sem_seg", "pascal_voc"}


def evaluator_types() -> dict[str, BuildEvaluator]:
    """What builds the evaluator of each ``evaluator_type`` that there is."""
    found = dict(_BUILDERS)
    for method in methods():
        found |= method.evaluators
    return found


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
    """The evaluator that ``evaluator_type`` of the data set's metadata asks for.

    Sets with ``base_classes`` in their metadata get base and novel AP as well; those in COCO's format, where a model
    with masks was trained on the masks of some classes, AP of the classes with and without. Sets with labels on a
    concept tree get the scores at each level. Methods add evaluators of their own.

    Detectron2's evaluators write files of the same names for every set; where DATASETS.TEST has several, each set's lie
    in a folder of its own, named after it.

    Args:
        output_folder: where predictions are written; OUTPUT_DIR/inference when None.

    Raises:
        ValueError: the metadata names no evaluator, or an unknown one; or there are no such classes.
    """
    folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
    metadata = MetadataCatalog.get(dataset_name)
    kind, builders = metadata.get("evaluator_type", None), evaluator_types()
    kinds = _COMBINED.get(kind, (kind,))
    if not set(kinds) <= builders.keys():
        raise ValueError(
            f"{dataset_name} cannot be evaluated: its metadata has evaluator_type={kind!r}. "
            f"Set MetadataCatalog.get({dataset_name!r}).evaluator_type to one of {', '.join(builders)}."
        )
    by_masks = mask_groups(cfg, metadata)
    few_shot = few_shot_groups(metadata)
    evaluators = []
    for k in kinds:
        own = os.path.join(folder, dataset_name) if k in _UNNAMED_FILES and len(cfg.DATASETS.TEST) > 1 else folder
        evaluators.append(builders[k](cfg, dataset_name, own, few_shot | by_masks if k == "coco" else few_shot))
    if {"sem_seg", "cityscapes_sem_seg"} & set(kinds) and metadata.get("hierarchy", None):
        evaluators.append(ConceptLevelEvaluator(dataset_name, folder))
    for method in methods():
        evaluators += method.evaluators_beside(cfg, dataset_name, folder)
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)


def with_evaluators_of_model(
    evaluator: DatasetEvaluator, cfg: CfgNode, model: nn.Module, dataset_name: str, output_folder: str | None = None
) -> DatasetEvaluator:
    """``evaluator``, and beside it what methods evaluate of such a model, e.g. the routes of a gated one.

    Files lie in ``output_folder``, by default OUTPUT_DIR/inference.
    """
    folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
    beside = [own for method in methods() for own in method.evaluators_of_model(cfg, model, dataset_name, folder)]
    return DatasetEvaluators([evaluator, *beside]) if beside else evaluator


def prepare_evaluation(cfg: CfgNode, model: nn.Module, limit: int | None = None) -> None:
    """What has to happen before ``model`` is evaluated on DATASETS.TEST; see ``Method.prepare_evaluation``."""
    for method in methods():
        method.prepare_evaluation(cfg, model, limit)
