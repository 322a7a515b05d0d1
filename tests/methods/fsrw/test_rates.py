"""What each method trains with: rates and decay by method and stage, and what is counted in images."""

import pytest

from dyn_d2.config.derive import build_cfg
from dyn_d2.methods.fsrw.yolov2 import sides_at


def solver(method: str, stage: str, *opts: str) -> tuple[float, float, float]:
    data = ["FEW_SHOT.BENCHMARK", "voc", "FEW_SHOT.METHOD", method, "FEW_SHOT.STAGE", stage]
    found = build_cfg("FSRW/voc.yaml", [*data, *opts]).SOLVER
    return found.BASE_LR, found.WEIGHT_DECAY, found.WEIGHT_DECAY_NORM


def test_only_fsrw_divides_its_rate_and_multiplies_its_decay() -> None:
    assert solver("fsrw", "base") == (0.00033, 0.0015, 0.0015)
    assert solver("fsrw", "finetune") == (0.00067, 0.00075, 0.00075)
    for method in ("yolo_ft", "yolo_ft_full", "lstd"):
        for stage in ("base", "finetune"):
            assert solver(method, stage) == (0.001, 0.0005, 0.0005)
    assert solver("yolo_joint", "joint_shots") == (0.001, 0.0005, 0.0005)


def test_rates_are_keys() -> None:
    own = ["FEW_SHOT.YOLO.FINETUNE_LR", "0.002", "FEW_SHOT.YOLO.WEIGHT_DECAY", "0.0"]
    assert solver("yolo_ft", "finetune", *own) == (0.002, 0.0, 0.0) and solver("yolo_ft", "base", *own)[0] == 0.001
    assert solver("yolo_ft", "base", "SOLVER.BASE_LR", "0.01") == (0.01, 0.0005, 0.0005)
    as_solver = ["FEW_SHOT.YOLO.BASE_LR", "0.0", "FEW_SHOT.YOLO.WEIGHT_DECAY", "-1.0"]
    assert solver("yolo_ft", "finetune", *as_solver) == (0.00067, 0.0015, 0.0015)


def test_what_is_counted_in_images_scales_with_the_batch() -> None:
    keys = build_cfg("FSRW/voc.yaml", ["SOLVER.IMS_PER_BATCH", "16"]).MODEL.YOLO
    assert keys.PRIOR_ITERS == 800 and list(keys.RAMP) == [16000, 64000]
    keys = build_cfg("FSRW/voc.yaml", ["SOLVER.IMS_PER_BATCH", "16", "MODEL.YOLO.PRIOR_ITERS", "5"]).MODEL.YOLO
    assert keys.PRIOR_ITERS == 5
    keys = build_cfg("FSRW/voc.yaml", ["SOLVER.IMS_PER_BATCH", "16", "SOLVER.AUTO_SCALE", "False"]).MODEL.YOLO
    assert keys.PRIOR_ITERS == 200 and list(keys.RAMP) == [4000, 16000]


def test_sizes_widen_from_one_to_all() -> None:
    sides, ramp = [320, 352, 384, 416, 448, 480, 512, 544, 576, 608], [4000, 16000]
    assert sides_at(0, 416, sides) == sides == sides_at(16000, 416, sides, ramp)
    assert sides_at(0, 416, sides, ramp) == [416] == sides_at(4000, 416, sides, ramp)
    assert sides_at(10000, 416, sides, ramp) == [384, 416, 448, 480, 512]
    assert sides_at(0, 400, [320], ramp) == [400]


@pytest.mark.parametrize("key", ["FEW_SHOT.SHOTS_UNIT image", "FEW_SHOT.GROUP_BY_IMAGE False"])
def test_whole_images_need_all_of_their_objects(key) -> None:
    with pytest.raises(ValueError, match="FEW_SHOT.MAX_OBJECTS is 3"):
        build_cfg("FSRW/voc.yaml", key.split())
