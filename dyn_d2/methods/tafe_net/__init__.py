"""TAFE-Net (Wang et al. 2019): classes given by a description.

Wang, Yu, Wang, Darrell and Gonzalez, TAFE-Net: Task-Aware Feature Embeddings for Low Shot Learning, CVPR 2019.

Equation, table and figure numbers in this package are those of chapter 5 of Wang, X.: The Design of Dynamic Neural
Networks for Efficient Learning and Inference, PhD thesis, UC Berkeley, 2020 (below: Wang 2020).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from dyn_d2.config.derive import SetKey
from dyn_d2.engine.param_groups import scale_rate
from dyn_d2.evaluation.class_groups import ClassGroups
from dyn_d2.method import Mapper, Method, register_method

from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator

from . import config, data, meta_arch  # noqa: F401  the parts register themselves
from .data import DescribedMapper, apply_described, class_table, is_described
from .evaluator import METRICS, DescribedEvaluator

if TYPE_CHECKING:
    from dyn_d2.engine.predictor import ImagePredictor


def _evaluator(kind: str, cfg: CfgNode, name: str, folder: str, groups: ClassGroups) -> DatasetEvaluator:
    return DescribedEvaluator(name, kind, folder, class_table(cfg).classes, cfg.ZERO_SHOT.SEEN_PENALTY)


@register_method
class TAFENet(Method):
    name = "tafe_net"
    evaluators = {kind: partial(_evaluator, kind) for kind in METRICS}
    ranges = config.RANGES

    def add_keys(self, cfg: CfgNode) -> None:
        config.add_keys(cfg)

    def derive(self, cfg: CfgNode, given: set[str], set_key: SetKey) -> None:
        apply_described(cfg, set_key)

    def mapper(self, cfg: CfgNode, dataset_name: str, is_train: bool) -> Mapper | None:
        return DescribedMapper(dataset_name, is_train, cfg.ZERO_SHOT.BALANCE) if is_described(dataset_name) else None

    def describe(self, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        """Classes and descriptions, and which network sees images for the model, where that is known."""
        from .predictor import carried

        return carried(cfg, model) if isinstance(model, meta_arch.TAFENet) else {}

    def predictor(self, weights: str, content: Mapping[str, Any], opts: Sequence[str]) -> "ImagePredictor | None":
        from .predictor import DescribedPredictor

        return DescribedPredictor.of_checkpoint(weights, content, opts)

    def parameter_groups(self, cfg: CfgNode, model: nn.Module, optimizer: Optimizer) -> None:
        if isinstance(model, meta_arch.TAFENet):
            embedding = model.meta_learner.embedding.parameters()
            scale_rate(optimizer, embedding, cfg.SOLVER.TASK_LR_FACTOR, "SOLVER.TASK_LR_FACTOR")
