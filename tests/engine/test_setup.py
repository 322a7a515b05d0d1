"""From keys to a config: methods, schedules, scaling to the batch, and clear errors."""

from pathlib import Path

import pytest
from own_folders import write_class_folders
from tiny_detection import tiny_opts, write_boxes

from dyn_d2.cli.train import _final_keys
from dyn_d2.config.derive import apply_few_shot_method, build_cfg, derive, feature_parts, scale_to_batch
from dyn_d2.config.read import read_cfg
from dyn_d2.engine.schedules import stage_schedule

from detectron2.data import DatasetCatalog

CONFIGS = Path(__file__).parents[2] / "configs" / "TFA"
COMMON = [
    "SOLVER.STEPS",
    "(12000, 16000)",
    "SOLVER.MAX_ITER",
    "18000",
    "SOLVER.WARMUP_ITERS",
    "100",
    "SOLVER.BASE_LR",
    "0.02",
    "SOLVER.IMS_PER_BATCH",
    "2",
    "SOLVER.REFERENCE_BATCH",
    "16",
]


def test_batch_16_to_2() -> None:
    cfg = read_cfg("", COMMON)
    scale_to_batch(cfg)
    solver = cfg.SOLVER
    assert (solver.BASE_LR, solver.STEPS, solver.MAX_ITER, solver.WARMUP_ITERS) == (
        0.0025,
        (96000, 128000),
        144000,
        800,
    )
    saved = solver.MAX_ITER
    scale_to_batch(cfg)  # a saved config is not scaled again
    assert solver.MAX_ITER == saved


def test_keys_of_the_command_line_win() -> None:
    cfg = read_cfg("", COMMON)
    scale_to_batch(cfg, ["SOLVER.BASE_LR"])
    assert cfg.SOLVER.BASE_LR == 0.02 and cfg.SOLVER.MAX_ITER == 144000


def test_the_warm_up_does_not_outgrow_iterations_that_were_given() -> None:
    cfg = read_cfg("", [*COMMON, "SOLVER.MAX_ITER", "400"])
    scale_to_batch(cfg, ["SOLVER.MAX_ITER"])
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.BASE_LR) == (400, 100, 0.0025)


def test_steps_at_or_behind_the_end_are_left_out() -> None:
    cfg = build_cfg("", [*COMMON, "SOLVER.AUTO_SCALE", "False", "SOLVER.MAX_ITER", "16000"])
    assert cfg.SOLVER.STEPS == (12000,)


@pytest.mark.parametrize("off", [["SOLVER.AUTO_SCALE", "False"], ["SOLVER.REFERENCE_BATCH", "0"]])
def test_scaling_can_be_switched_off(off: list[str]) -> None:
    cfg = read_cfg("", [*COMMON, *off])
    scale_to_batch(cfg)
    assert cfg.SOLVER.BASE_LR == 0.02 and cfg.SOLVER.MAX_ITER == 18000


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(KeyError, match="SOLVER.BASE_LR"):
        read_cfg("", ["SOLVER.BASE_RL", "1"])
    with pytest.raises(FileNotFoundError, match="none.yaml"):
        read_cfg("none.yaml")


@pytest.mark.parametrize(
    "bad", [("METHOD", "tfa"), ("SCHEDULE", "long"), ("STAGE", "second"), ("BENCHMARK", "imagenet")]
)
def test_unknown_values_are_named(tmp_path, bad: tuple[str, str]) -> None:
    opts = tiny_opts(write_boxes(tmp_path / "data", 2), tmp_path / "out")
    with pytest.raises(ValueError, match=bad[1]):
        build_cfg("", [*opts, f"FEW_SHOT.{bad[0]}", bad[1]])


@pytest.mark.parametrize(
    "method, classifier, frozen",
    [
        ("ft_full", "cosine", False),
        ("ft_full_fc", "linear", False),
        ("ft_heads", "cosine", False),
        ("ft", "linear", False),
        ("tfa_fc", "linear", True),
        ("tfa_cos", "cosine", True),
    ],
)
def test_methods(tmp_path, method: str, classifier: str, frozen: bool) -> None:
    opts = tiny_opts(write_boxes(tmp_path / "data"), tmp_path / "out", FEW_SHOT__METHOD=method)
    tuned = build_cfg("", [*opts, "FEW_SHOT.STAGE", "finetune", "FEW_SHOT.SHOTS", "1"])
    assert tuned.MODEL.ROI_BOX_HEAD.CLASSIFIER == classifier
    assert tuned.MODEL.FREEZE == (["backbone", "proposal_generator", "roi_heads.box_head"] if frozen else [])
    assert tuned.MODEL.ROI_HEADS.NUM_CLASSES == 4
    base = build_cfg("", opts)
    assert base.MODEL.ROI_BOX_HEAD.CLASSIFIER == "linear" and base.MODEL.FREEZE == []
    novel = build_cfg("", [*opts, "FEW_SHOT.STAGE", "novel", "FEW_SHOT.SHOTS", "1"])
    assert novel.MODEL.ROI_BOX_HEAD.CLASSIFIER == "linear" and novel.MODEL.FREEZE
    assert base.MODEL.ROI_HEADS.NUM_CLASSES == 3
    own = build_cfg("", [*opts, "FEW_SHOT.STAGE", "finetune", "FEW_SHOT.SHOTS", "1", "MODEL.FREEZE", "['backbone']"])
    assert own.MODEL.FREEZE == ["backbone"]


@pytest.mark.parametrize(("key", "instead"), [("DATASETS.TRAIN", "TRAIN_SETS"), ("DATASETS.TEST", "TEST_SETS")])
def test_data_sets_beside_a_few_shot_task_are_refused(tmp_path, key: str, instead: str) -> None:
    opts = tiny_opts(write_boxes(tmp_path / "data"), tmp_path / "out")
    with pytest.raises(ValueError, match=f"{key} is given, .* give FEW_SHOT.{instead}"):
        build_cfg("", [*opts, key, "('coco_2017_val',)"])


@pytest.mark.parametrize("method, frozen", [("ft_full", 2), ("ft", 2), ("ft_heads", 5), ("tfa_cos", 5)])
def test_what_fine_tunes_everything_frees_the_backbone(method: str, frozen: int) -> None:
    freeze_at = {}
    for stage in ("base", "novel", "finetune"):
        cfg = read_cfg(str(CONFIGS / "voc07_lite0.yaml"), ["FEW_SHOT.METHOD", method, "FEW_SHOT.STAGE", stage])
        apply_few_shot_method(cfg, set())
        freeze_at[stage] = cfg.MODEL.BACKBONE.FREEZE_AT
    assert freeze_at == {"base": 5, "novel": 5, "finetune": frozen}


@pytest.mark.parametrize(
    "name, method, classifiers",
    [
        ("coco", "tfa_cos", ("linear", "linear", "cosine")),
        ("coco", "ft_full", ("linear", "linear", "cosine")),
        ("coco", "tfa_fc", ("linear", "linear", "linear")),
        ("lvis", "tfa_cos", ("cosine", "cosine", "cosine")),
        ("lvis", "tfa_fc", ("linear", "linear", "linear")),
    ],
)
def test_classifiers_of_base_novel_and_last_stage(name: str, method: str, classifiers: tuple[str, ...]) -> None:
    found = []
    for stage in ("base", "novel", "finetune"):
        cfg = read_cfg(str(CONFIGS / f"{name}.yaml"), ["FEW_SHOT.METHOD", method, "FEW_SHOT.STAGE", stage])
        apply_few_shot_method(cfg, set())
        found.append(cfg.MODEL.ROI_BOX_HEAD.CLASSIFIER)
    assert tuple(found) == classifiers


def test_features_of_c4_and_mask_models() -> None:
    cfg = read_cfg("", ["MODEL.MASK_ON", "True", "MODEL.ROI_MASK_HEAD.NUM_CONV", "0"])
    cfg.MODEL.ROI_HEADS.NAME = "DynRes5ROIHeads"
    assert feature_parts(cfg)[2:] == ["roi_heads.res5", "roi_heads.mask_head.deconv"]
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV, cfg.MODEL.ROI_HEADS.NAME = 4, "DynROIHeads"
    assert feature_parts(cfg)[2:] == [
        "roi_heads.box_head",
        "roi_heads.mask_head.mask_fcn*",
        "roi_heads.mask_head.deconv",
    ]


def thesis(name: str, opts: tuple[str, ...] = (), **keys) -> dict:
    cfg = read_cfg(str(CONFIGS / f"{name}.yaml"), opts)
    for key, value in keys.items():
        cfg.FEW_SHOT[key] = value
    cfg.MODEL.ROI_BOX_HEAD.CLASSIFIER = "cosine" if cfg.FEW_SHOT.METHOD in ("tfa_cos", "ft_full") else "linear"
    cfg.MODEL.FREEZE = ["backbone"] if cfg.FEW_SHOT.METHOD.startswith("tfa") else []
    return stage_schedule(cfg, given=opts[::2])


@pytest.mark.parametrize(
    "name, keys, expected",
    [
        ("voc", {}, (0.02, (12000, 16000), 18000, 100)),
        ("coco", {"STAGE": "base"}, (0.02, (85000, 100000), 110000, 1000)),
        ("voc", {"STAGE": "finetune", "SHOTS": 1}, (0.001, (3000,), 4000, 0)),
        ("voc", {"STAGE": "finetune", "SHOTS": 10, "METHOD": "tfa_fc"}, (0.001, (35000,), 40000, 0)),
        ("voc", {"STAGE": "finetune", "SHOTS": 10}, (0.001, (36000,), 40000, 10)),
        ("voc", {"STAGE": "finetune", "SHOTS": 10, "METHOD": "ft_full"}, (0.001, (36000,), 40000, 0)),
        ("voc", {"STAGE": "finetune", "SHOTS": 10, "METHOD": "ft_full_fc"}, (0.001, (35000,), 40000, 0)),
        ("voc", {"STAGE": "finetune", "SHOTS": 2, "METHOD": "ft_full", "SPLIT": 3}, (0.001, (7000,), 8000, 0)),
        ("voc", {"STAGE": "finetune", "SHOTS": 5, "SPLIT": 2}, (0.005, (17500,), 20000, 0)),
        ("voc", {"STAGE": "finetune", "SHOTS": 5, "SPLIT": 2, "SEED": 4}, (0.001, (17500,), 20000, 0)),
        ("coco", {"STAGE": "novel", "SHOTS": 30}, (0.01, (10000,), 6000, 0)),
        ("coco", {"STAGE": "finetune", "SHOTS": 30}, (0.001, (216000,), 240000, 10)),
        ("coco", {"STAGE": "finetune", "SHOTS": 30, "METHOD": "ft_full"}, (0.001, (216000,), 240000, 0)),
        ("lvis", {"STAGE": "finetune"}, (0.001, (15000,), 20000, 0)),
        ("lvis", {"STAGE": "finetune", "METHOD": "tfa_fc"}, (0.001, (1000,), 2000, 0)),
    ],
)
def test_schedules_of_the_thesis(name: str, keys: dict, expected: tuple) -> None:
    got = thesis(name, **keys)
    assert (got["BASE_LR"], got["STEPS"], got["MAX_ITER"], got["WARMUP_ITERS"]) == expected


def test_unpublished_schedule_says_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"voc, stage finetune, 4 shots \(there: \[1, 2, 3, 5, 10\].*MAX_ITER"):
        thesis("voc", STAGE="finetune", SHOTS=4)
    with pytest.raises(ValueError, match="nothing is published for benchmark 'digit_scenes'"):
        thesis("voc", BENCHMARK="digit_scenes")


def test_keys_of_a_stage_fill_in_what_was_not_published() -> None:
    novel = ("FEW_SHOT.NOVEL.BASE_LR", "0.01", "FEW_SHOT.NOVEL.MAX_ITER", "500")
    assert thesis("voc", novel, STAGE="novel") == {"BASE_LR": 0.01, "MAX_ITER": 500, "STEPS": (), "WARMUP_ITERS": 0}
    with pytest.raises(ValueError, match=r"voc, stage novel, 10 shots \(there: none\): set FEW_SHOT.NOVEL.MAX_ITER\."):
        thesis("voc", novel[:2], STAGE="novel")
    # The other stages of the same chain keep theirs, whatever the yaml has for this one.
    cfg = read_cfg(str(CONFIGS / "voc.yaml"), novel)
    cfg.FEW_SHOT.FINETUNE.MAX_ITER, cfg.FEW_SHOT.FINETUNE.LR_SCHEDULER_NAME = 9, "WarmupCosineLR"
    assert stage_schedule(cfg)["MAX_ITER"] == 18000
    cfg.FEW_SHOT.STAGE, cfg.MODEL.ROI_BOX_HEAD.CLASSIFIER = "finetune", "cosine"
    tuned = stage_schedule(cfg)
    assert (tuned["MAX_ITER"], tuned["STEPS"], tuned["LR_SCHEDULER_NAME"]) == (40000, (36000,), "WarmupCosineLR")
    assert stage_schedule(cfg, given=["FEW_SHOT.FINETUNE.MAX_ITER"])["MAX_ITER"] == 9


def test_iterations_may_grow_with_the_shots() -> None:
    cfg = read_cfg(str(CONFIGS / "digit_scenes.yaml"), ["FEW_SHOT.ITERS_PER_SHOT", "30", "FEW_SHOT.STAGE", "finetune"])
    for shots in (1, 5):
        cfg.FEW_SHOT.SHOTS = shots
        assert stage_schedule(cfg)["MAX_ITER"] == 30 * shots
    own = cfg.FEW_SHOT.FINETUNE.MAX_ITER = 7
    assert stage_schedule(cfg, given=["FEW_SHOT.FINETUNE.MAX_ITER"])["MAX_ITER"] == own
    cfg.FEW_SHOT.SHOTS = 0  # all objects
    assert stage_schedule(cfg)["MAX_ITER"] == own
    cfg.FEW_SHOT.SHOTS, cfg.FEW_SHOT.STAGE = 5, "novel"
    assert stage_schedule(cfg).get("MAX_ITER") != 150


def test_a_key_of_a_stage_wins_over_one_for_all_stages_beside_it(tmp_path, caplog) -> None:
    opts = tiny_opts(write_boxes(tmp_path / "data", 2), tmp_path / "out", SOLVER__REFERENCE_BATCH=4)
    opts += ["FEW_SHOT.METHOD", "tfa_cos", "FEW_SHOT.SHOTS", "1", "SOLVER.MAX_ITER", "50"]
    stages = [["FEW_SHOT.STAGE", name] for name in ("base", "finetune")]

    def lengths(*more: str) -> list[int]:
        return [build_cfg("", [*opts, *stage, *more]).SOLVER.MAX_ITER for stage in stages]

    assert lengths() == [50, 50]
    with caplog.at_level("INFO", logger="dyn_d2"):
        assert lengths("FEW_SHOT.FINETUNE.MAX_ITER", "20") == [50, 20]
    assert "SOLVER.MAX_ITER: 50 -> 20 (FEW_SHOT.FINETUNE.MAX_ITER)" in caplog.text
    assert lengths("FEW_SHOT.BASE.MAX_ITER", "7") == [7, 50]


def test_stage_keys_of_the_yaml() -> None:
    cfg = read_cfg(str(CONFIGS / "custom_gpu.yaml"), ["FEW_SHOT.STAGE", "finetune"])
    assert stage_schedule(cfg) == {"BASE_LR": 0.001, "MAX_ITER": 4000, "STEPS": (3500,), "WARMUP_ITERS": 10}
    cfg.FEW_SHOT.METHOD = "ft"
    assert stage_schedule(cfg)["MAX_ITER"] == 400 and stage_schedule(cfg)["STEPS"] == (350,)
    cfg.FEW_SHOT.STAGE = "base"
    assert stage_schedule(cfg) == {}


def test_a_saved_config_is_evaluated_as_it_was_trained(tmp_path) -> None:
    """Its values are final, also those that were given on the command line; sets made from keys may be others."""
    data = write_class_folders(tmp_path / "data")
    own = {"FORMAT": "folders", "ROOT": data, "TRAIN": "train", "TEST": "test"}
    opts = [str(part) for key, value in own.items() for part in (f"DATASETS.CUSTOM.{key}", value)]
    given = ["INPUT.CLASSIFICATION.CROP_TEST", "8", "MODEL.PIXEL_MEAN", "[1.0, 2.0, 3.0]", "DATASETS.TEST", "()"]
    saved = tmp_path / "config.yaml"
    saved.write_text(build_cfg("", [*opts, *given, "SOLVER.IMS_PER_BATCH", "4"]).dump())
    cfg = read_cfg(str(saved))
    derive(cfg, _final_keys(saved, []))
    assert cfg.INPUT.CLASSIFICATION.CROP_TEST == 8 and cfg.MODEL.PIXEL_MEAN == [1, 2, 3]
    assert cfg.DATASETS.TEST in ((), []) and cfg.DATASETS.TRAIN[0] in DatasetCatalog.list()
    cfg = read_cfg(str(saved), ["DATASETS.CUSTOM.TEST", "train"])
    derive(cfg, ["DATASETS.CUSTOM.TEST", *_final_keys(saved, ["DATASETS.CUSTOM.TEST", "train"])])
    assert cfg.DATASETS.TEST == ("custom_test",)
