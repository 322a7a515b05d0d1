"""ROI heads of Detectron2 whose box classifier is a matter of one key."""

from typing import Any

from dyn_d2.config.applied import NoticesKeys

from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.modeling.roi_heads import Res5ROIHeads, ROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers

BOX_CLASSIFIERS: dict[str, type[FastRCNNOutputLayers]] = {"linear": FastRCNNOutputLayers}
"""MODEL.ROI_BOX_HEAD.CLASSIFIER -> the class of the box predictor; methods add theirs."""


def _named_predictor(cfg) -> type[FastRCNNOutputLayers]:
    name = cfg.MODEL.ROI_BOX_HEAD.CLASSIFIER
    if name not in BOX_CLASSIFIERS:
        raise ValueError(f"MODEL.ROI_BOX_HEAD.CLASSIFIER is {name!r}: use one of {sorted(BOX_CLASSIFIERS)}.")
    return BOX_CLASSIFIERS[name]


class _ClassifierByName(NoticesKeys, ROIHeads):
    """Goes before ROI heads of Detectron2 in the list of bases: their box predictor becomes the one that the key names,
    and mask heads that learn from its weights (they have a method ``connect``) get it."""

    classifier_by_name = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        connect = getattr(getattr(self, "mask_head", None), "connect", None)
        if connect is not None:
            connect(self.box_predictor)

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:  # type: ignore[override]
        arguments = super().from_config(cfg, input_shape)  # type: ignore[call-arg]  # of the heads, not of ROIHeads
        predictor = _named_predictor(cfg)
        if type(arguments["box_predictor"]) is predictor:
            return arguments
        # The parent knows the width of the box feature, whatever box head or res5 stage makes it.
        width = arguments["box_predictor"].cls_score.in_features
        return {**arguments, "box_predictor": predictor(cfg, ShapeSpec(channels=width))}


@ROI_HEADS_REGISTRY.register()
class DynROIHeads(_ClassifierByName, StandardROIHeads):
    """StandardROIHeads (FPN or single level, with or without masks) whose classifier is chosen by key."""


@ROI_HEADS_REGISTRY.register()
class DynRes5ROIHeads(_ClassifierByName, Res5ROIHeads):
    """Res5ROIHeads (C4 models, with or without masks) whose classifier is chosen by key."""
