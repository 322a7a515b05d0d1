"""Mask R-CNN on data where some objects have boxes only: the baseline "joint learning" of Zhou et al., Learning
Saliency Propagation for Semi-Supervised Instance Segmentation, CVPR 2020.

Shape shorthand: R regions of the whole batch.
"""

import torch
from torch import Tensor

from dyn_d2.config.applied import NoticesKeys
from dyn_d2.utils.errors import UserError

from detectron2.layers import cat
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.structures import Instances


def select_masked(instances: list[Instances]) -> tuple[list[Instances], Tensor]:
    """Regions whose object has a mask.

    Args:
        instances: foreground regions of each image, R together. Without the field ``gt_has_mask`` all have masks.

    Returns:
        Those regions of each image, and the (R,) bool mask that selects them.
    """
    flags = [
        x.gt_has_mask if x.has("gt_has_mask") else torch.ones_like(x.gt_classes, dtype=torch.bool) for x in instances
    ]
    return [x[flag] for x, flag in zip(instances, flags, strict=True)], cat(flags)


@ROI_MASK_HEAD_REGISTRY.register()
class PartialMaskHead(NoticesKeys, MaskRCNNConvUpsampleHead):
    """MaskRCNNConvUpsampleHead whose loss is the mean over the regions of objects that have a mask, 0 with a gradient
    path where none has. To be of use to classes without masks it has to be class-agnostic
    (``MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK``).

    Attributes:
        partial_masks: tells the loader that objects may lack masks.
        serves_classes_without_masks: whether a head that is not class-agnostic learns about classes without masks.
    """

    partial_masks = True
    serves_classes_without_masks = False

    def forward(  # type: ignore[override]  # torch.nn.Sequential, of which Detectron2 makes the parent, has one argument
        self, x: Tensor, instances: list[Instances]
    ) -> dict[str, Tensor] | list[Instances]:
        """As the parent's, for (R, C, h, w) region features."""
        if self.training:
            if any(len(x) and not x.has("gt_masks") for x in instances):
                raise UserError(
                    "the objects of an image come with no masks: where only some objects have one, the loader has to "
                    "use dyn_d2.data.partial_masks.PartialMaskMapper, as that of DynTrainer does, not Detectron2's "
                    "DatasetMapper."
                )
            instances, rows = select_masked(instances)
            x = x[rows]
        return super().forward(x, instances)
