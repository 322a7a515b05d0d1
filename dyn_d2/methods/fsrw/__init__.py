"""FSRW: few-shot detection by feature re-weighting (Kang et al. 2019), and the detectors it is compared with.

Kang, Liu, Wang, Yu, Feng and Darrell, Few-shot Object Detection via Feature Reweighting, ICCV 2019.

Equation, table and figure numbers in this package are those of chapter 6 of Wang, X.: The Design of Dynamic Neural
Networks for Efficient Learning and Inference, PhD thesis, UC Berkeley, 2020 (below: Wang 2020).
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from dyn_d2.checkpoint.surgery import Rows, Source
from dyn_d2.config.derive import SetKey
from dyn_d2.data.resumable import ResumableLoader
from dyn_d2.method import BatchExtension, FewShotMethod, FileFormat, Mapper, Method, register_method

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.data.detection_utils import build_augmentation

from . import config, darknet, lstd, meta_arch, meta_rcnn, rates, yolov2  # noqa: F401  the parts register themselves
from .class_vectors import prepare_for_evaluation
from .darknet_weights import is_darknet, read_darknet
from .episodes import Episodes, SupportMapper, SupportPool, is_episodic
from .jitter import jitters, squashing
from .reweighting import is_reweighted


@register_method
class FSRW(Method):
    name = "fsrw"
    few_shot_methods = {  # rows of Table 6.1, and feature re-weighting on Faster R-CNN
        "yolo_joint": FewShotMethod("YOLO-joint", 6, detector="YOLOv2", stage="joint_shots", folder="yolo_joint"),
        "yolo_ft": FewShotMethod("YOLO-ft", 7, detector="YOLOv2"),
        "yolo_ft_full": FewShotMethod("YOLO-ft-full", 8, detector="YOLOv2", full=True),
        "lstd": FewShotMethod("LSTD(YOLO)", 9, detector="YOLOv2", tuned="LSTDYOLOv2"),
        "lstd_full": FewShotMethod("LSTD(YOLO)-full", 10, detector="YOLOv2", tuned="LSTDYOLOv2", full=True),
        "fsrw": FewShotMethod("FSRW", 11, detector="FSRW"),
        "meta_rcnn": FewShotMethod("Meta R-CNN", 12, detector="MetaRCNN"),
    }
    later_few_shot_keys = (
        "FEW_SHOT.YOLO",  # what it sets of the base stage is compared in SOLVER
        "MODEL.REWEIGHTING.FINETUNE_NEGATIVES",
        "MODEL.REWEIGHTING.FINETUNE_DECAY",
        "MODEL.REWEIGHTING.SUPPORTS",
        "MODEL.LSTD",
    )
    file_formats = (FileFormat(is_darknet, read_darknet),)
    ranges = config.RANGES

    def add_keys(self, cfg: CfgNode) -> None:
        config.add_keys(cfg)

    def derive(self, cfg: CfgNode, given: set[str], set_key: SetKey) -> None:
        rates.derive(cfg, set_key)

    def mapper(self, cfg: CfgNode, dataset_name: str, is_train: bool) -> Mapper | None:
        if not is_train or not (changes := [*jitters(cfg), *squashing(cfg)]):
            return None
        return DatasetMapper(cfg, is_train=True, augmentations=[*changes, *build_augmentation(cfg, is_train=True)])

    def batch_extension(self, cfg: CfgNode, records: list[dict], kept: Any) -> BatchExtension | None:
        """The support sets of a detector that is trained in episodes."""
        if not is_episodic(cfg):
            return None
        classes = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes
        return Episodes(kept, SupportPool(records, classes), SupportMapper(cfg, classes, is_train=True), cfg.SEED)

    def class_rows(self) -> Mapping[str, Rows]:
        return {"class_score.weight": Rows(0, 0, 0.01, scores=True), "class_score.bias": Rows(0, 0, 0.0, scores=True)}

    def whole_base_is_start(self, cfg: CfgNode) -> bool:
        return is_episodic(cfg)

    def finish_surgery(self, cfg: CfgNode, checkpoint: dict[str, Any], base: Source) -> None:
        if cfg.MODEL.META_ARCHITECTURE == "LSTDYOLOv2":
            lstd.add_teacher(checkpoint, base)

    def problems(self, cfg: CfgNode, model: nn.Module, loader: ResumableLoader) -> list[str]:
        if is_reweighted(model) and model.reweighting is None:
            return ["MODEL.REWEIGHTING.VECTORS is for evaluation: training makes class vectors itself; leave it empty."]
        return []

    def prepare_evaluation(self, cfg: CfgNode, model: nn.Module, limit: int | None = None) -> None:
        prepare_for_evaluation(cfg, model, limit)
