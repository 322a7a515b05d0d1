"""Values that nothing can use are refused where the config is read, all of them at once."""

from pathlib import Path

import pytest
import yaml

from dyn_d2.config.derive import build_cfg
from dyn_d2.config.ranges import all_ranges, check_ranges, default_values, rule_of
from dyn_d2.config.read import as_yaml, read_cfg

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("path", [None, *sorted((ROOT / "configs").rglob("*.yaml"))], ids=lambda p: p.stem if p else "")
def test_shipped_configs_pass(path) -> None:
    cfg = read_cfg(str(path) if path else "")
    check_ranges(cfg)
    assert as_yaml(cfg) == yaml.safe_load(cfg.dump())


def test_every_number_and_list_has_a_rule() -> None:
    rules = all_ranges()
    without = [key for key, value in default_values().items() if rule_of(key, rules) is None]
    assert all(isinstance(default_values()[key], bool | str) for key in without)
    unknown = [key for key in rules if "*" not in key and key not in default_values()]
    assert not unknown


@pytest.mark.parametrize(
    "key, value",
    [
        ("SOLVER.IMS_PER_BATCH", 0),
        ("SOLVER.IMS_PER_BATCH", -2),
        ("SOLVER.MAX_ITER", 0),
        ("SOLVER.CHECKPOINT_PERIOD", 0),
        ("INPUT.MIN_SIZE_TRAIN", "()"),
        ("INPUT.MIN_SIZE_TRAIN", "(-5,)"),
        ("INPUT.MIN_SIZE_TEST", -1),
        ("INPUT.MASK_FORMAT", "rle"),
        ("MODEL.RPN.BBOX_REG_LOSS_TYPE", "l3"),
        ("SOLVER.MOMENTUM", 1.5),
        ("SOLVER.GAMMA", -1.0),
        ("SOLVER.BASE_LR", 0.0),
        ("SOLVER.BASE_LR", "1e999"),
        ("SOLVER.STEPS", "(5, 3)"),
        ("MODEL.RPN.POSITIVE_FRACTION", 2.0),
        ("MODEL.ROI_HEADS.POSITIVE_FRACTION", -1.0),
        ("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 0),
        ("MODEL.ROI_BOX_HEAD.FC_DIM", 0),
        ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 5.0),
        ("MODEL.RPN.NMS_THRESH", 1.5),
        ("MODEL.RPN.LOSS_WEIGHT", -1.0),
        ("MODEL.RPN.PRE_NMS_TOPK_TRAIN", 0),
        ("MODEL.RPN.IOU_THRESHOLDS", "[0.7, 0.3]"),
        ("MODEL.RESNETS.RES5_DILATION", 3),
        ("MODEL.RESNETS.DEPTH", 51),
        ("MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 3),
        ("MODEL.PIXEL_STD", "[1.0, 0.0, 1.0]"),
        ("MODEL.PIXEL_STD", "[1.0]"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[[]]"),
        ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[0.0]]"),
        ("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", "(1.0, 1.0)"),
        ("MODEL.RPN.IOU_LABELS", "[0, 1]"),
        ("MODEL.FPN.NORM", "XN"),
        ("MODEL.DEVICE", "abacus"),
        ("DATALOADER.NUM_WORKERS", -1),
        ("DATASETS.TRAIN", "('a', 5)"),
        ("TEST.AUG.ENABLED", True),
        ("MODEL.POLICY.TARGET_RATE", 2.0),
        ("MODEL.YOLO.SIZE", 33),
        ("MODEL.LAYER_CASCADE.ASPP", "[0]"),
        ("MODEL.SHAPE_PROP.WINDOW", 2),
        ("SOLVER.SECOND_STAGE.MAX_ITER", -1),
        ("FEW_SHOT.FINETUNE.WARMUP_ITERS", -2),
        ("SOLVER.MAX_ITER", "None"),
    ],
)
def test_refused(key, value) -> None:
    rules_of_a_method = [name for name in ("YOLO", "LAYER_CASCADE", "SHAPE_PROP") if name in key]
    if rules_of_a_method and key not in default_values():
        pytest.skip("the method is not there")
    with pytest.raises(ValueError, match=rf"^{key.replace('.', '[.]')} is .*: .*\.$"):
        build_cfg("", [key, str(value)])


def test_all_at_once() -> None:
    with pytest.raises(ValueError) as caught:
        build_cfg("", ["SOLVER.MAX_ITER", "0", "SOLVER.GAMMA", "-1.0", "MODEL.RPN.NMS_THRESH", "5.0"])
    text = str(caught.value)
    assert text.startswith("3 keys of the config") and text.count(": use ") == 3


def test_related_keys() -> None:
    for opts, key in [
        (["INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"], "INPUT.MIN_SIZE_TRAIN"),
        (["INPUT.CROP.ENABLED", "True", "INPUT.CROP.SIZE", "[2.0, 0.5]"], "INPUT.CROP.SIZE"),
        (["INPUT.CROP.ENABLED", "True", "INPUT.CROP.TYPE", "absolute"], "INPUT.CROP.SIZE"),
        (["SOLVER.NESTEROV", "True", "SOLVER.MOMENTUM", "0.0"], "SOLVER.NESTEROV"),
        (["INPUT.FORMAT", "L"], "MODEL.PIXEL_MEAN"),
        (["MODEL.ROI_HEADS.NAME", "StandardROIHeads"], "MODEL.ROI_BOX_HEAD.NAME"),
        (["MODEL.RESNETS.RES4_DILATION", "2"], "MODEL.RESNETS.RES4_DILATION"),
    ]:
        with pytest.raises(ValueError, match=f"^{key} is "):
            build_cfg("", opts)
