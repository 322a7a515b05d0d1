"""Layer Cascade (Li et al. 2017): easy pixels are settled in an early stage."""

from torch import nn

from dyn_d2.method import Method, PublishedNames, register_method

from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator

from . import (  # noqa: F401  the parts register themselves
    config,
    head,
    inception_resnet,
    meta_arch,
    mobile,
    resnet,
    timm_names,
)


@register_method
class LayerCascade(Method):
    name = "layer_cascade"
    published_names = (PublishedNames("timm", timm_names.from_timm, timm_names.settings),)
    ranges = config.RANGES

    def add_keys(self, cfg: CfgNode) -> None:
        config.add_keys(cfg)

    def evaluators_of_model(
        self, cfg: CfgNode, model: nn.Module, dataset_name: str, folder: str
    ) -> list[DatasetEvaluator]:
        from .evaluator import LayerCascadeEvaluator

        if not isinstance(model, meta_arch.LayerCascadeSegmentor):
            return []
        return [LayerCascadeEvaluator(dataset_name, folder)]
