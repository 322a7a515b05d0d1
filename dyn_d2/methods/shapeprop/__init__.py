"""ShapeProp (Zhou et al. 2020): masks where only few objects have them.

Zhou, Wang, Jiao, Darrell and Yu, Learning Saliency Propagation for Semi-Supervised Instance Segmentation, CVPR 2020.

Equation, table and figure numbers in this package are those of chapter 8 of Wang, X.: The Design of Dynamic Neural
Networks for Efficient Learning and Inference, PhD thesis, UC Berkeley, 2020 (below: Wang 2020).
"""

from collections.abc import Mapping

from torch import nn

from dyn_d2.checkpoint.surgery import Rows
from dyn_d2.method import Method, register_method

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator

from . import bdd100k, config, roi_heads, weight_transfer  # noqa: F401  the parts register themselves

SALIENCY = "roi_heads.shape_prop.saliency."


@register_method
class ShapeProp(Method):
    name = "shapeprop"
    nodes_of_heads = ("MODEL.SHAPE_PROP",)
    ranges = config.RANGES

    def add_keys(self, cfg: CfgNode) -> None:
        config.add_keys(cfg)

    def class_rows(self) -> Mapping[str, Rows]:
        return {SALIENCY + "weight": Rows(1, 1, 0.01), SALIENCY + "bias": Rows(1, 1, 0.0)}

    def feature_parts(self, cfg: CfgNode) -> list[str]:
        """All but the saliency, which is predicted by class."""
        if not cfg.MODEL.MASK_ON or cfg.MODEL.ROI_HEADS.NAME != "ShapePropROIHeads":
            return []
        keys, parts = cfg.MODEL.SHAPE_PROP, ["roi_heads.shape_prop.saliency_features"]
        parts += ["roi_heads.shape_prop.propagation*"] if keys.PROPAGATION else []
        return parts + (["roi_heads.shape_prop.encoding"] if keys.INTEGRATION == "encoding" else [])

    def evaluators_beside(self, cfg: CfgNode, dataset_name: str, folder: str) -> list[DatasetEvaluator]:
        """How good shape activations are, of models that output them."""
        from dyn_d2.evaluation.partial_masks import mask_groups

        from .evaluator import ShapeQualityEvaluator

        if not (cfg.MODEL.MASK_ON and cfg.MODEL.SHAPE_PROP.OUTPUT_MAPS):
            return []
        return [ShapeQualityEvaluator(dataset_name, mask_groups(cfg, MetadataCatalog.get(dataset_name)))]

    def evaluators_of_model(
        self, cfg: CfgNode, model: nn.Module, dataset_name: str, folder: str
    ) -> list[DatasetEvaluator]:
        from dyn_d2.evaluation.partial_masks import mask_groups

        from .true_boxes import TrueBoxEvaluator

        if not (cfg.MODEL.MASK_ON and cfg.TEST.MASKS_IN_TRUE_BOXES):
            return []
        return [TrueBoxEvaluator(cfg, model, dataset_name, mask_groups(cfg, MetadataCatalog.get(dataset_name)))]
