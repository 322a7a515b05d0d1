"""What keys of a config have to be to each other, once all values have been derived."""

from collections.abc import Iterator
from typing import Any

from detectron2.config import CfgNode

_CHANNELS = {"L": 1, "1": 1, "I": 1, "F": 1, "RGBA": 4, "CMYK": 4}  # of INPUT.FORMAT; of all others 3
_PLAIN_RESNETS = ("build_resnet_backbone", "build_resnet_fpn_backbone", "build_retinanet_resnet_fpn_backbone")
_PLAIN_DEPTHS = (18, 34, 50, 101, 152)


def related_problems(cfg: CfgNode) -> list[str]:
    """``KEY is VALUE: ...`` of keys that do not fit others. All values by themselves are allowed ones."""
    return [problem for check in _CHECKS for problem in check(cfg)]


def _say(cfg: CfgNode, key: str, remedy: str) -> str:
    node: Any = cfg
    for part in key.split("."):
        node = node[part]
    return f"{key} is {node!r}: {remedy}."


def _pixels(cfg: CfgNode) -> Iterator[str]:
    channels = _CHANNELS.get(cfg.INPUT.FORMAT, 3)
    if len(cfg.MODEL.PIXEL_STD) != len(cfg.MODEL.PIXEL_MEAN):
        count = len(cfg.MODEL.PIXEL_MEAN)
        yield _say(cfg, "MODEL.PIXEL_STD", f"use {count} values, as many as MODEL.PIXEL_MEAN has")
    elif len(cfg.MODEL.PIXEL_MEAN) != channels:
        yield _say(
            cfg, "MODEL.PIXEL_MEAN", f"use {channels} values, one for each channel of INPUT.FORMAT {cfg.INPUT.FORMAT}"
        )


def _matching(cfg: CfgNode) -> Iterator[str]:
    for name in ("RPN", "ROI_HEADS", "RETINANET"):
        node = cfg.MODEL[name]
        if len(node.IOU_LABELS) != len(node.IOU_THRESHOLDS) + 1:
            yield _say(
                cfg,
                f"MODEL.{name}.IOU_LABELS",
                f"use {len(node.IOU_THRESHOLDS) + 1} labels, one more than IOU_THRESHOLDS {node.IOU_THRESHOLDS}",
            )
        if len(node.BBOX_REG_WEIGHTS if name != "ROI_HEADS" else (0,) * 4) != 4:  # of rotated boxes: 5
            yield _say(cfg, f"MODEL.{name}.BBOX_REG_WEIGHTS", "use 4 values, for dx, dy, dw and dh")
    if len(cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS) != 4:
        yield _say(cfg, "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", "use 4 values, for dx, dy, dw and dh")


def _unsupported(cfg: CfgNode) -> Iterator[str]:
    if cfg.MODEL.KEYPOINT_ON:
        yield _say(cfg, "MODEL.KEYPOINT_ON", "dyn_d2 does not train on keypoints, use False")
    if cfg.MODEL.LOAD_PROPOSALS:
        yield _say(cfg, "MODEL.LOAD_PROPOSALS", "dyn_d2 does not train on precomputed proposals, use False")


def _images(cfg: CfgNode) -> Iterator[str]:
    sizes, sampling = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    if sampling == "range" and (len(sizes) != 2 or sizes[0] > sizes[1]):
        yield _say(cfg, "INPUT.MIN_SIZE_TRAIN", 'MIN_SIZE_TRAIN_SAMPLING "range" takes two, the smallest first')
    crop = cfg.INPUT.CROP
    if not crop.ENABLED:
        return
    if crop.TYPE.startswith("relative") and max(crop.SIZE) > 1:
        yield _say(cfg, "INPUT.CROP.SIZE", f"{crop.TYPE} takes shares of the sides, in (0, 1]")
    if crop.TYPE.startswith("absolute") and any(side != int(side) or side < 1 for side in crop.SIZE):
        yield _say(cfg, "INPUT.CROP.SIZE", f"{crop.TYPE} takes whole pixels, 1 or more")
    if crop.TYPE == "absolute_range" and crop.SIZE[0] > crop.SIZE[1]:
        yield _say(cfg, "INPUT.CROP.SIZE", "absolute_range takes (smallest, largest)")


def _schedule(cfg: CfgNode) -> Iterator[str]:
    solver = cfg.SOLVER
    if solver.NESTEROV and not solver.MOMENTUM and solver.OPTIMIZER == "SGD":
        yield _say(cfg, "SOLVER.NESTEROV", "it needs SOLVER.MOMENTUM above 0")
    if solver.RESCALE_INTERVAL and solver.WARMUP_ITERS >= solver.MAX_ITER:
        yield _say(cfg, "SOLVER.RESCALE_INTERVAL", "it needs SOLVER.WARMUP_ITERS below MAX_ITER")
    if len(set(solver.STEPS)) < len(solver.STEPS):
        yield _say(cfg, "SOLVER.STEPS", "use each iteration once")
    if solver.LR_SCHEDULER_NAME == "WarmupCosineLR" and solver.BASE_LR_END > solver.BASE_LR:
        yield _say(cfg, "SOLVER.BASE_LR_END", f"use no more than SOLVER.BASE_LR, {solver.BASE_LR:g}")


def _networks(cfg: CfgNode) -> Iterator[str]:
    res = cfg.MODEL.RESNETS
    if "fpn" in cfg.MODEL.BACKBONE.NAME and not cfg.MODEL.FPN.IN_FEATURES:
        yield _say(cfg, "MODEL.FPN.IN_FEATURES", f"{cfg.MODEL.BACKBONE.NAME} needs them, e.g. ['res3', 'res4', 'res5']")
    if cfg.MODEL.BACKBONE.NAME not in _PLAIN_RESNETS:
        return
    if res.DEPTH not in _PLAIN_DEPTHS:
        yield _say(cfg, "MODEL.RESNETS.DEPTH", f"{cfg.MODEL.BACKBONE.NAME} has {', '.join(map(str, _PLAIN_DEPTHS))}")
    if res.RES5_DILATION == 4:
        yield _say(cfg, "MODEL.RESNETS.RES5_DILATION", f"{cfg.MODEL.BACKBONE.NAME} takes 1 or 2")
    if res.RES4_DILATION != 1:
        yield _say(cfg, "MODEL.RESNETS.RES4_DILATION", f"{cfg.MODEL.BACKBONE.NAME} does not read it; use 1")


def _heads(cfg: CfgNode) -> Iterator[str]:
    from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY, GeneralizedRCNN, StandardROIHeads

    architecture = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    if not (isinstance(architecture, type) and issubclass(architecture, GeneralizedRCNN)):
        return
    if not cfg.MODEL.ROI_HEADS.NAME:
        yield _say(cfg, "MODEL.ROI_HEADS.NAME", f"{cfg.MODEL.META_ARCHITECTURE} needs ROI heads, e.g. DynROIHeads")
        return
    heads = ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME)
    if cfg.MODEL.ROI_BOX_HEAD.CLASSIFIER != "linear" and not getattr(heads, "classifier_by_name", False):
        yield _say(
            cfg,
            "MODEL.ROI_BOX_HEAD.CLASSIFIER",
            f"{cfg.MODEL.ROI_HEADS.NAME} does not read it; set MODEL.ROI_HEADS.NAME to DynROIHeads or DynRes5ROIHeads",
        )
    if not (isinstance(heads, type) and issubclass(heads, StandardROIHeads)):
        return
    box = cfg.MODEL.ROI_BOX_HEAD
    if not box.NAME:
        yield _say(cfg, "MODEL.ROI_BOX_HEAD.NAME", f"{cfg.MODEL.ROI_HEADS.NAME} needs one, e.g. FastRCNNConvFCHead")
    if box.NAME == "FastRCNNConvFCHead" and not box.NUM_CONV + box.NUM_FC:
        yield _say(cfg, "MODEL.ROI_BOX_HEAD.NUM_FC", "a head needs a layer: set it or NUM_CONV above 0")


def _few_shot(cfg: CfgNode) -> Iterator[str]:
    few = cfg.FEW_SHOT
    if not few.BENCHMARK or not few.MAX_OBJECTS:
        return
    if few.SHOTS_UNIT != "instance":
        yield _say(cfg, "FEW_SHOT.MAX_OBJECTS", "it counts objects; set FEW_SHOT.SHOTS_UNIT instance, or this to 0")
    if not few.GROUP_BY_IMAGE:
        yield _say(
            cfg, "FEW_SHOT.MAX_OBJECTS", "all objects of an image are labelled only with FEW_SHOT.GROUP_BY_IMAGE True"
        )


_CHECKS = (_unsupported, _pixels, _matching, _images, _schedule, _networks, _heads, _few_shot)
