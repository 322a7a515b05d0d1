# ruff: noqa: F401
"""Whole models; importing this package registers all of them."""

from detectron2.left_out import refusal_of

from .build import META_ARCH_REGISTRY, build_model
from .dense_detector import DenseDetector
from .rcnn import GeneralizedRCNN, ProposalNetwork
from .retinanet import RetinaNet
from .semantic_seg import SEM_SEG_HEADS_REGISTRY, SemanticSegmentor, build_sem_seg_head

__getattr__ = refusal_of(__name__)
