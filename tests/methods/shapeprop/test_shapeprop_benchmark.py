"""Benchmark of few masks: which trainings there are and how they differ, and the table by hand."""

import json
import math

import pytest
import torch
from thread_workers import ThreadWorkers
from tiny_detection import CLASSES, tiny_opts, write_boxes
from tool_runs import ROOT

from dyn_d2.config.read import read_cfg
from dyn_d2.engine import workers
from dyn_d2.engine.job_queue import pending
from dyn_d2.engine.stages import DONE, StageError
from dyn_d2.methods.shapeprop.benchmark import rows, run, summarise
from dyn_d2.methods.shapeprop.trainings import HOSTS, METHODS, Cell, Schedule, cells, methods_of, plan

from detectron2.modeling import ROI_HEADS_REGISTRY, build_model

SCHEDULE = Schedule(mask_iterations=12, box_iterations=24)
FEW = ["INPUT.PARTIAL_MASKS.CLASSES", "['red', 'green']"]


@pytest.fixture
def opts(tmp_path) -> list[str]:
    """A detector with masks of two of four classes; 6 iterations, a step at 4, warm-up of 2."""
    heads = {"MODEL__ROI_MASK_HEAD__NAME": "PartialMaskHead", "MODEL__ROI_MASK_HEAD__CLS_AGNOSTIC_MASK": True}
    data = write_boxes(tmp_path / "data", 2)
    return tiny_opts(data, tmp_path / "out", FEW_SHOT__STAGE="joint", MODEL__MASK_ON=True, **heads) + FEW


def plans_of(opts, methods, settings, seeds, schedule=SCHEDULE):
    return plan("", opts, cells(methods, settings, seeds, METHODS), schedule, METHODS)


class Trainings:
    """Takes the place of ``run_stage``: leaves results in which every part of a run can be told by its number."""

    NUMBERS = {"mask_rcnn": 10.0, "shapeprop": 25.0, "oracle": 30.0}

    def __init__(self, monkeypatch) -> None:
        self.folders: list[str] = []
        monkeypatch.setattr(workers, "run_stage", self)

    def __call__(self, stage, config_file, opts, launcher, train) -> None:
        assert all(parent.finished() for parent in stage.parents)
        self.folders.append(stage.folder.name)
        seed, method = (
            stage.cfg.SEED,
            stage.folder.name.removesuffix(f"_seed{stage.cfg.SEED}").removesuffix("_category"),
        )
        tasks = {"bbox": {"AP": 50.0 + seed}}
        if stage.cfg.MODEL.MASK_ON:
            value = self.NUMBERS[method] + seed * (2 if method == "shapeprop" else 1)
            tasks["segm"] = {"AP_without_masks": value, "AP": 40.0, "AP-red": 1.0, "APl": None}
            if method == "shapeprop":
                tasks["shape"] = {"shape_IoU_without_masks": 60.0, "found": 90.0}
        stage.folder.mkdir(parents=True)
        (stage.folder / "results.json").write_text(json.dumps({"metrics": {"val": tasks}}))
        torch.save({"model": {}}, stage.weights)
        (stage.folder / DONE).write_text(json.dumps({"fingerprint": stage.fingerprint()}))


def test_cells_and_what_there_is_not() -> None:
    wanted = cells(["mask_rcnn", "oracle"], ["category", "image_2"], [0, 1], METHODS)
    assert wanted[:2] == [Cell("mask_rcnn", "category", 0), Cell("oracle", "category", 0)] and len(wanted) == 8
    with pytest.raises(ValueError, match="unknown method mask, shape: use mask_rcnn, .*--method"):
        cells(["shape", "mask"], ["category"], [0], METHODS)
    for setting in ("image", "image_0", "image_200", "classes", "image_many"):
        with pytest.raises(ValueError, match=f"unknown setting '{setting}': use category"):
            cells(["oracle"], [setting], [0], METHODS)
    with pytest.raises(ValueError, match="not a single seed"):
        cells(["oracle"], ["category"], [], METHODS)


def test_a_setting_is_which_masks_there_are(opts) -> None:
    plans = plans_of(opts, ["shapeprop", "oracle"], ["category", "image_2"], [3])
    by_cell = {(cell.method, cell.setting): stages[-1].cfg for cell, stages in plans.items()}
    masks = {key: (cfg.INPUT.PARTIAL_MASKS.CLASSES, cfg.INPUT.PARTIAL_MASKS.FRACTION) for key, cfg in by_cell.items()}
    assert masks == {
        ("shapeprop", "category"): (["red", "green"], 1.0),
        ("shapeprop", "image_2"): ([], 0.02),
        ("oracle", "category"): ([], 1.0),
        ("oracle", "image_2"): ([], 1.0),
    }
    for cfg in by_cell.values():
        assert cfg.SEED == cfg.INPUT.PARTIAL_MASKS.SEED == 3 and cfg.TEST.MASKED_CLASSES == ["red", "green"]
    heads = by_cell["shapeprop", "category"].MODEL
    assert heads.ROI_HEADS.NAME == "ShapePropROIHeads" and heads.SHAPE_PROP.OUTPUT_MAPS
    assert by_cell["oracle", "category"].MODEL.ROI_HEADS.NAME == "DynROIHeads"


def test_schedules_and_the_common_detector(opts) -> None:
    (stages,) = plans_of(opts, ["shapeprop"], ["category"], [0], Schedule(12, 24, 0.5)).values()
    boxes, masks = stages
    assert not boxes.cfg.MODEL.MASK_ON and masks.cfg.MODEL.MASK_ON and masks.parents == [boxes]
    assert (boxes.cfg.SOLVER.MAX_ITER, boxes.cfg.SOLVER.STEPS, boxes.cfg.SOLVER.WARMUP_ITERS) == (24, (16,), 2)
    assert (masks.cfg.SOLVER.MAX_ITER, masks.cfg.SOLVER.STEPS, masks.cfg.SOLVER.WARMUP_ITERS) == (12, (8,), 2)
    assert (boxes.cfg.SOLVER.BASE_LR, masks.cfg.SOLVER.BASE_LR) == (0.01, 0.5)
    assert masks.initial_weights(False) == boxes.weights
    (alone,) = plans_of(opts, ["shapeprop"], ["category"], [0], Schedule(12)).values()
    assert len(alone) == 1 and alone[0].initial_weights(False) is None


def test_each_training_is_run_once(opts, monkeypatch) -> None:
    trainings = Trainings(monkeypatch)
    run("", opts, plans_of(opts, ["mask_rcnn", "oracle"], ["category"], [0]), SCHEDULE, METHODS, ThreadWorkers)
    assert trainings.folders == ["box_seed0", "mask_rcnn_category_seed0", "oracle_seed0"]
    more = plans_of(opts, ["mask_rcnn", "shapeprop", "oracle"], ["category"], [0, 1])
    run("", opts, more, SCHEDULE, METHODS, ThreadWorkers)
    assert sorted(trainings.folders[3:]) == [
        "box_seed1", "mask_rcnn_category_seed1", "oracle_seed1", "shapeprop_category_seed0", "shapeprop_category_seed1"
    ]  # fmt: skip
    assert not pending(more)
    with pytest.raises(StageError, match="another config"):
        other = Schedule(13, 24)
        run("", opts, plans_of(opts, ["mask_rcnn"], ["category"], [0], other), other, METHODS, ThreadWorkers)


def test_oracle_is_one_training_for_all_settings(opts) -> None:
    plans = plans_of(opts, ["oracle"], ["category", "image_10", "image_2"], [0])
    assert [len(level) for level in pending(plans)] == [1, 1]


def test_progressive_learns_from_the_model_of_its_setting(opts) -> None:
    for schedule, start in ((SCHEDULE, ["box_seed0"]), (Schedule(12), [])):
        (stages,) = plans_of(opts, ["progressive"], ["image_10"], [0], schedule).values()
        names = [stage.folder.name for stage in stages]
        assert names == [*start, "mask_rcnn_image_10_seed0", "progressive_image_10_seed0"]
        assert stages[-1].parents == [stage for stage in stages[:-1]]
        masks = stages[-1].cfg.INPUT.PARTIAL_MASKS.PSEUDO
        assert masks == str(stages[-2].folder / "predicted_masks.json") and stages[-2].cfg.SEED == 0


def test_other_methods_and_hosts(opts) -> None:
    cfg = read_cfg("", opts)
    known = methods_of(cfg, [["wide", "shapeprop", "MODEL.SHAPE_PROP.LATENT_CHANNELS", "48"]])
    assert known["shapeprop"].title == "Mask R-CNN + ShapeProp" and known["wide"].title == "wide"
    (stages,) = plan("", opts, [Cell("wide", "category", 0)], SCHEDULE, known).values()
    assert stages[-1].cfg.MODEL.SHAPE_PROP.LATENT_CHANNELS == 48
    assert stages[-1].cfg.MODEL.ROI_HEADS.NAME == "ShapePropROIHeads"
    with pytest.raises(ValueError, match="unknown method shape"):
        methods_of(cfg, [["wide", "shape"]])
    cfg.MODEL.META_ARCHITECTURE = "RetinaMask"
    assert methods_of(cfg)["oracle"].title == "RetinaMask, all masks"
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    with pytest.raises(ValueError, match="RetinaNet: use GeneralizedRCNN or RetinaMask"):
        methods_of(cfg)


@pytest.mark.parametrize("config", sorted((ROOT / "configs" / "ShapeProp").glob("*.yaml")), ids=lambda path: path.stem)
def test_all_methods_on_each_config(config, tmp_path) -> None:
    opts = ["OUTPUT_DIR", str(tmp_path)]
    if read_cfg(str(config)).FEW_SHOT.BENCHMARK == "custom":  # files that are not here
        of_data = tiny_opts(write_boxes(tmp_path, 1), tmp_path)
        opts += [part for key, value in zip(of_data[::2], of_data[1::2], strict=True) if "CUSTOM" in key
                 for part in (key, value)] + FEW  # fmt: skip
    known = methods_of(read_cfg(str(config), opts))
    plans = plan(str(config), opts, cells(list(known), ["category"], [0], known), Schedule(30, 100), known)
    host = HOSTS[read_cfg(str(config), opts).MODEL.META_ARCHITECTURE]
    for cell, stages in plans.items():
        assert stages[0].folder.name == "box_seed0" and stages[-1].folder.name.startswith(cell.method)
        heads = host.shape_prop_heads if known[cell.method].shape_prop else host.heads
        assert stages[-1].cfg.MODEL.ROI_HEADS.NAME == heads and heads in ROI_HEADS_REGISTRY
    assert len({stages[-1].folder for stages in plans.values()}) == len(known)
    assert len({stages[-1].fingerprint() for stages in plans.values()}) == len(known)


def test_category_needs_classes(opts) -> None:
    with pytest.raises(ValueError, match=r"setting category: INPUT.PARTIAL_MASKS.CLASSES is empty"):
        plans_of([*opts, *FEW[:1], "[]"], ["oracle"], ["category"], [0])


def test_category_needs_classes_without_masks(opts) -> None:
    more = [*opts, FEW[0], str(list(CLASSES))]
    with pytest.raises(ValueError, match=r"setting category: .*'yellow'\] are all or none of the classes of .*test"):
        plans_of(more, ["mask_rcnn", "oracle"], ["image_10", "category"], [0])
    assert len(plans_of(more, ["mask_rcnn", "oracle"], ["image_10"], [0])) == 2


@pytest.mark.slow
def test_table_files_and_numbers_by_hand(opts, monkeypatch, tmp_path) -> None:
    Trainings(monkeypatch)
    known = methods_of(read_cfg("", opts))
    plans = plans_of(opts, ["oracle", "shapeprop", "mask_rcnn"], ["category"], [0, 1])
    run("", opts, plans, SCHEDULE, METHODS, ThreadWorkers)
    unfinished = plans_of(opts, ["mask_x"], ["category"], [0])
    text = summarise(tmp_path / "table", {**plans, **unfinished}, SCHEDULE, known)
    lines = [[part.strip() for part in line.strip("|").split("|")] for line in text.splitlines()]
    # Seeds 0 and 1: values a and a + d have s = d / sqrt(2), so that t s / sqrt(2) = 6.35 d.
    assert lines[0] == ["setting", "method", "seeds", "AP_without_masks", "AP", "shape_IoU_without_masks", "box_AP",
                        "gain", "gap closed"]  # fmt: skip
    assert lines[2:] == [
        ["category", "Mask R-CNN", "2", "10.5 ± 6.4", "40.0 ± 0.0", "-", "50.5 ± 6.4", "-", "-"],
        ["category", "Mask R-CNN + ShapeProp", "2", "26.0 ± 12.7", "40.0 ± 0.0", "60.0 ± 0.0",
         "50.5 ± 6.4", "15.5 ± 6.4", "78 %"],
        ["category", "Mask R-CNN, all masks", "2", "30.5 ± 6.4", "40.0 ± 0.0", "-", "50.5 ± 6.4", "20.0 ± 0.0", "-"],
    ]  # fmt: skip
    record = json.loads((tmp_path / "table" / "benchmark.json").read_text())
    row = record["rows"]["category/shapeprop"]
    assert row["gap_closed"] == pytest.approx(77.5) and row["gain"]["seeds"] == 2
    assert record["single"]["category/oracle/seed1"]["AP_without_masks"] == 31 and "torch" in record["versions"]
    assert record["schedule"]["box_iterations"] == 24
    assert text in (tmp_path / "table" / "benchmark.md").read_text()
    assert (tmp_path / "table" / "benchmark.png").stat().st_size > 5000


def test_gain_is_over_the_same_seeds() -> None:
    results = {
        Cell("mask_rcnn", "image_10", 0): {"AP": 10.0},
        Cell("mask_rcnn", "image_10", 1): {"AP": 20.0},
        Cell("shapeprop", "image_10", 1): {"AP": 23.0},
    }
    plain, shape = rows(results, METHODS)
    assert plain.gain is None and plain.metrics["AP"].mean == 15
    assert shape.gain.mean == 3 and math.isnan(shape.gain.half_width) and shape.gap_closed is None


def test_both_gains_of_the_gap_are_over_the_same_seeds() -> None:
    values = {"mask_rcnn": (20.0, 30.0, 40.0), "shapeprop": (21.0, 36.0, 49.0), "oracle": (22.0,)}
    results = {
        Cell(method, "image_10", seed): {"AP": value}
        for method, of_seeds in values.items()
        for seed, value in enumerate(of_seeds)
    }
    _, shape, oracle = rows(results, METHODS)
    assert shape.gain.mean == pytest.approx((1 + 6 + 9) / 3) and shape.gap_closed == pytest.approx(100 * 1 / 2)
    assert oracle.gain.mean == 2 and oracle.gap_closed is None
    del results[Cell("shapeprop", "image_10", 0)]
    assert rows(results, METHODS)[1].gap_closed is None  # no seed that all three have


def test_thinned_data_have_a_detector_of_their_own(opts) -> None:
    plans = plans_of(opts, ["mask_rcnn", "oracle"], ["data_50", "image_50"], [1])
    by_cell = {(cell.method, cell.setting): stages for cell, stages in plans.items()}
    box, masks = (stage.cfg for stage in by_cell["mask_rcnn", "data_50"])
    for cfg in (box, masks):
        assert cfg.DATALOADER.SAMPLER_TRAIN == "RandomSubsetTrainingSampler"
        assert cfg.DATALOADER.RANDOM_SUBSET_RATIO == 0.5 and cfg.SEED == 1
    assert masks.INPUT.PARTIAL_MASKS.FRACTION == 1.0 and masks.INPUT.PARTIAL_MASKS.CLASSES == []
    assert by_cell["mask_rcnn", "data_50"][0].folder.name == "box_data_50_seed1"
    assert by_cell["mask_rcnn", "image_50"][0].folder.name == "box_seed1"
    assert by_cell["mask_rcnn", "image_50"][0].cfg.DATALOADER.SAMPLER_TRAIN == "TrainingSampler"
    assert by_cell["oracle", "data_50"][0].folder.name == "box_seed1"  # all data in any setting


def test_frozen_detectors_share_their_maps(opts) -> None:
    frozen = Schedule(mask_iterations=12, box_iterations=24, frozen=True)
    plans = plans_of(opts, ["mask_rcnn", "shapeprop"], ["category"], [0], frozen)
    detectors = [stages[0].cfg for stages in plans.values()]
    rows = [stages[1].cfg for stages in plans.values()]
    assert all(cfg.MODEL.FREEZE == [] for cfg in detectors)
    assert all(
        "proposal_generator" in cfg.MODEL.FREEZE and "roi_heads.box_predictor" in cfg.MODEL.FREEZE for cfg in rows
    )
    assert rows[0].FEATURE_CACHE.DIR == rows[1].FEATURE_CACHE.DIR and rows[0].FEATURE_CACHE.DIR.endswith("feature_maps")


def test_a_deeper_mask_head_has_as_many_parameters(opts) -> None:
    more = ["MODEL.SHAPE_PROP.CONV_DIM", "32", "MODEL.ROI_MASK_HEAD.CONV_DIM", "32", "MODEL.FPN.OUT_CHANNELS", "32"]
    count = {}
    for name in ("mask_rcnn", "shapeprop", "more_parameters"):
        known = methods_of(read_cfg("", [*opts, *more]))
        cell = Cell(name, "category", 0)
        cfg = plan("", [*opts, *more], [cell], Schedule(4), known)[cell][-1].cfg
        model = build_model(cfg)
        parts = [getattr(model.roi_heads, part, None) for part in ("mask_head", "shape_prop")]
        count[name] = sum(p.numel() for part in parts if part for p in part.parameters())
    added = count["shapeprop"] - count["mask_rcnn"]
    assert count["more_parameters"] - count["mask_rcnn"] == pytest.approx(added, rel=0.2)
