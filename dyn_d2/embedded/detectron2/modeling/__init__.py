# ruff: noqa: F401, I001
"""Everything that makes up a model: backbones, proposals, heads, whole architectures, and their registries."""

from detectron2.layers import ShapeSpec
from detectron2.left_out import refusal_of

from .anchor_generator import ANCHOR_GENERATOR_REGISTRY, build_anchor_generator
from .backbone import BACKBONE_REGISTRY, FPN, Backbone, ResNet, ResNetBlockBase
from .backbone import build_backbone, build_resnet_backbone, make_stage
from .proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN_HEAD_REGISTRY, build_proposal_generator, build_rpn_head
from .roi_heads import ROI_BOX_HEAD_REGISTRY, ROI_HEADS_REGISTRY, ROI_MASK_HEAD_REGISTRY
from .roi_heads import BaseMaskRCNNHead, FastRCNNOutputLayers, ROIHeads, StandardROIHeads
from .roi_heads import build_box_head, build_mask_head, build_roi_heads
from .meta_arch import META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY, build_model, build_sem_seg_head
from .meta_arch import GeneralizedRCNN, ProposalNetwork, RetinaNet, SemanticSegmentor
from .postprocessing import detector_postprocess

__getattr__ = refusal_of(__name__)
