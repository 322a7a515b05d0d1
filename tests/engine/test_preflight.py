"""What would spoil a run is said before the first step, all at once; a diverging loss is explained."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from semantic_sets import dsspn_opts
from tiny_detection import tiny_opts, write_boxes

from dyn_d2.checkpoint import CheckpointError
from dyn_d2.checkpoint.surgery import Source, operate, save
from dyn_d2.config.derive import build_cfg
from dyn_d2.data.semantic.label_maps import write_label_map
from dyn_d2.engine import preflight
from dyn_d2.engine.hooks import DivergenceError
from dyn_d2.engine.preflight import (
    PreflightError,
    _evaluation_problems,
    _label_map_problems,
    _label_set_problems,
    check_files,
    check_trainer,
)
from dyn_d2.engine.trainer import DynTrainer, evaluate

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import build_model

FINETUNE = ["FEW_SHOT.STAGE", "finetune", "FEW_SHOT.METHOD", "tfa_cos", "FEW_SHOT.SHOTS", "1"]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> tuple[list[str], Path]:
    """Options of a tiny benchmark, and an (untrained) base checkpoint for it."""
    folder = tmp_path_factory.mktemp("preflight")
    opts = tiny_opts(write_boxes(folder / "data"), folder / "base")
    trainer = DynTrainer(build_cfg("", opts))
    trainer.iter = 0
    trainer.checkpointer.save("model_final")
    return opts, folder / "base" / "model_final.pth"


def loaded(opts: list[str], weights: Path | str) -> DynTrainer:
    trainer = DynTrainer(build_cfg("", [*opts, "MODEL.WEIGHTS", str(weights)]))
    trainer.resume_or_load(resume=False)
    return trainer


def test_base_stage_passes(base) -> None:
    opts, _ = base
    cfg = build_cfg("", opts)
    check_files(cfg)
    trainer = loaded(opts, "")
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    check_trainer(trainer)
    assert trainer.model.training
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())
    assert trainer.model.roi_heads.box_predictor.test_score_thresh == cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST
    assert not (Path(cfg.OUTPUT_DIR) / "inference").exists()


def test_fine_tuning_after_surgery_passes_and_without_fails(base, tmp_path) -> None:
    opts, weights = base
    source = Source.read(str(weights))
    assert source.classes == ["red", "green", "blue"]
    save(operate(source, ["red", "green", "blue", "yellow"], ["yellow"], classifier="cosine"), str(tmp_path / "i.pth"))
    check_trainer(loaded([*opts, *FINETUNE], tmp_path / "i.pth"))
    with pytest.raises(PreflightError, match="3 classes.*NUM_CLASSES is 4.*dyn-d2 surgery") as caught:
        check_trainer(loaded([*opts, *FINETUNE], weights))
    assert "head of" in str(caught.value) and "2 problem(s)" in str(caught.value)


def test_frozen_but_never_loaded(base) -> None:
    with pytest.raises(PreflightError, match="frozen parameters did not come from MODEL.WEIGHTS.*backbone"):
        check_trainer(loaded([*base[0], *FINETUNE], ""))
    with pytest.raises(PreflightError, match="FREEZE_AT 0"):
        check_trainer(loaded([*base[0], "MODEL.BACKBONE.FREEZE_AT", "2"], ""))


def test_all_problems_at_once(base, monkeypatch) -> None:
    trainer = loaded([*base[0], *FINETUNE], "")
    trainer.data_loader.instances.pop(3)
    monkeypatch.setattr(DynTrainer, "build_evaluator", classmethod(lambda *_: 1 / 0))
    with pytest.raises(PreflightError) as caught:
        check_trainer(trainer)
    for part in ("no training instance of the novel classes yellow", "ZeroDivisionError", "frozen parameters"):
        assert part in str(caught.value)


def test_evaluation_that_would_fail_after_training_fails_before(base) -> None:
    trainer = loaded(base[0], "")
    MetadataCatalog.get(trainer.cfg.DATASETS.TEST[0]).thing_dataset_id_to_contiguous_id.popitem()
    with pytest.raises(PreflightError, match="evaluation of custom_test_split1_base fails on 2 images"):
        check_trainer(trainer)


def test_missing_files_are_listed(base, tmp_path) -> None:
    opts, _ = base
    cfg = build_cfg("", [*opts, "MODEL.WEIGHTS", str(tmp_path / "none.pth")])
    cfg.DATASETS.TEST = ("coco_2017_val",)
    with pytest.raises(PreflightError) as caught:
        check_files(cfg)
    for part in ("none.pth", "coco_2017_val", "DETECTRON2_DATASETS"):
        assert part in str(caught.value)
    cfg.MODEL.WEIGHTS = str(tmp_path)
    with pytest.raises(PreflightError, match=f"MODEL.WEIGHTS: checkpoint {tmp_path} is a folder: give a file"):
        check_files(cfg)
    cfg.DATASETS.TEST = ("voc_2007_test", "voc_2007_trainval", "voc_2007_train", "voc_2007_val")
    with pytest.raises(
        PreflightError, match="data sets voc_2007_test, voc_2007_trainval, voc_2007_train and 1 more: "
    ) as caught:
        check_files(cfg)
    assert str(caught.value).count("VOC2007 does not exist") == 1


def test_evaluation_needs_the_whole_model(base) -> None:
    opts, weights = base
    with pytest.raises(CheckpointError, match=r"3 classes \(red, green, blue\).*NUM_CLASSES is 4"):
        evaluate(build_cfg("", [*opts, *FINETUNE, "FEW_SHOT.METHOD", "", "MODEL.WEIGHTS", str(weights)]))
    cfg = build_cfg("", [*opts, "MODEL.WEIGHTS", str(weights)])
    results = evaluate(cfg)
    record = json.loads((Path(cfg.OUTPUT_DIR) / "results.json").read_text())
    assert "AP" in results["bbox"] and record["iteration_evaluated"] is None


def test_nan_loss_names_images_rate_and_term(base) -> None:
    trainer = loaded([*base[0], "SOLVER.PREFLIGHT", "False"], "")
    trainer.cfg.DATASETS.TEST = ()
    with torch.no_grad():
        trainer.model.roi_heads.box_predictor.cls_score.bias[0] = float("nan")
    before = trainer.model.roi_heads.box_predictor.bbox_pred.weight.clone()
    with pytest.raises(DivergenceError, match=r"iteration 0: loss_cls is nan. Learning rate: .*images/00\d.png"):
        trainer.train()
    assert torch.equal(before, trainer.model.roi_heads.box_predictor.bbox_pred.weight)


def test_nan_before_the_losses_names_images_too(base) -> None:
    trainer = loaded([*base[0], "SOLVER.PREFLIGHT", "False"], "")
    trainer.cfg.DATASETS.TEST = ()
    with torch.no_grad():
        trainer.model.proposal_generator.rpn_head.objectness_logits.bias[:] = float("nan")
    with pytest.raises(DivergenceError, match=r"iteration 0: .*images/00\d.png"):
        trainer.train()


def test_gated_classifier_passes_with_its_routes_and_wrong_class_count_is_named(tmp_path) -> None:
    yaml = str(Path(__file__).parents[2] / "configs" / "SkipNet" / "digits.yaml")
    opts = ["OUTPUT_DIR", str(tmp_path), "MODEL.RESNETS.DEPTH", "8", "TEST.IMS_PER_BATCH", "4"]
    trainer = DynTrainer(build_cfg(yaml, opts))
    trainer.resume_or_load(resume=False)
    check_files(trainer.cfg)
    check_trainer(trainer)
    assert not (tmp_path / "inference").exists()
    trainer = DynTrainer(build_cfg(yaml, [*opts, "MODEL.IMAGE_CLASSIFIER.NUM_CLASSES", "12"]))
    trainer.resume_or_load(resume=False)
    with pytest.raises(PreflightError, match="predicts 12 classes.*has 10: set.*MODEL.IMAGE_CLASSIFIER.NUM_CLASSES"):
        check_trainer(trainer)


def test_missing_label_maps_name_the_command_that_writes_them(base) -> None:
    cfg = build_cfg("", base[0])
    cfg.DATASETS.TRAIN = ("mapillary_vistas_train",)
    with pytest.raises(PreflightError, match="label_maps/training does not exist .*prepare semantic mapillary"):
        check_files(cfg)


def test_cityscapes_is_not_scored_on_the_few_images_of_the_dry_run(squares, monkeypatch) -> None:
    class WholeSplit(DatasetEvaluator):
        images = 0

        def process(self, inputs, outputs) -> None:
            self.images += len(outputs)

        def evaluate(self) -> dict:
            raise FileNotFoundError("the whole split has to be evaluated")

    cfg, evaluator = build_cfg("", dsspn_opts(squares, squares[:1])), WholeSplit()
    trainer = SimpleNamespace(
        cfg=cfg,
        checkpointer=SimpleNamespace(model=build_model(cfg)),
        build_test_loader=DynTrainer.build_test_loader,
        build_evaluator=lambda *_: evaluator,
    )
    (problem,) = _evaluation_problems(trainer)
    assert "the whole split" in problem
    with monkeypatch.context() as patch:
        patch.setattr(WholeSplit, "evaluate", lambda self: int("a value that is no class"))
        assert _evaluation_problems(trainer) and not _evaluation_problems(trainer, said=squares[:1])
    evaluator.images = 2
    vars(MetadataCatalog.get(squares[0]))["evaluator_type"] = "cityscapes_sem_seg"
    assert _evaluation_problems(trainer) == [] and evaluator.images == 4


def test_label_sets_that_a_head_cannot_learn_are_found(squares) -> None:
    def problems(names, test=squares[:1], **more) -> list[str]:
        cfg = build_cfg("", dsspn_opts(names, test, **more))
        return _label_set_problems(cfg, build_model(cfg))

    assert problems(squares) == problems(squares[:1], DATALOADER__ONE_DATASET_PER_BATCH=False) == []
    assert problems(squares[:1], test=squares[1:], DATALOADER__ONE_DATASET_PER_BATCH=False) == []
    (problem,) = problems(squares, DATALOADER__ONE_DATASET_PER_BATCH=False)
    assert "squares_digits, squares_places have different labels" in problem and "ONE_DATASET_PER_BATCH" in problem
    flat = {"MODEL__META_ARCHITECTURE": "SemanticSegmentor", "MODEL__SEM_SEG_HEAD__NAME": "SemSegFPNHead"}
    assert problems(squares[:1], MODEL__SEM_SEG_HEAD__NUM_CLASSES=12, **flat) == []
    (problem,) = problems(squares[:1], MODEL__SEM_SEG_HEAD__NUM_CLASSES=17, **flat)
    assert problem == "MODEL.SEM_SEG_HEAD.NUM_CLASSES is 17, data set squares_digits has 12 stuff_classes."
    (problem,) = problems(squares, MODEL__SEM_SEG_HEAD__NUM_CLASSES=12, **flat)
    assert problem.endswith("is 12, data set squares_places has 8 stuff_classes.")
    MetadataCatalog.get(squares[1]).stuff_classes[:] = reversed(MetadataCatalog.get(squares[0]).stuff_classes)
    (problem,) = problems(squares, MODEL__SEM_SEG_HEAD__NUM_CLASSES=12, **flat)
    assert problem == "the stuff_classes of squares_digits and squares_places differ."


def test_label_maps_with_unknown_values_are_found(base, tmp_path) -> None:
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    for i, path in enumerate(paths):
        write_label_map(path, np.full((4, 5), 2 * i, np.uint8))
    DatasetCatalog.register("maps_test", lambda: [{"file_name": "x", "sem_seg_file_name": path} for path in paths])
    MetadataCatalog.get("maps_test").set(stuff_classes=["a", "b", "c"], ignore_label=4)
    cfg = build_cfg("", base[0])
    assert _label_map_problems(cfg) == {}
    cfg.defrost()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("maps_test",)
    (problem,) = _label_map_problems(cfg).values()
    assert "ignore_label of the data set is 4, MODEL.SEM_SEG_HEAD.IGNORE_VALUE is 255" in problem
    cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = 4
    assert _label_map_problems(cfg) == {}
    MetadataCatalog.get("maps_test").stuff_classes.append("d")  # a longer list does not hurt
    write_label_map(paths[1], np.full((4, 5), 7, np.uint8))
    (problem,) = _label_map_problems(cfg).values()
    assert problem.startswith("data set maps_test has 1 problem") and "1.png" in problem and "7" in problem
    DatasetCatalog.remove("maps_test")
    MetadataCatalog.remove("maps_test")


@pytest.mark.parametrize(
    ("train", "test", "needed"),
    [
        ("cityscapes_fine_instance_seg_train", "coco_2017_val", True),
        ("cityscapes_fine_sem_seg_train", "cityscapes_fine_sem_seg_val", True),
        ("cityscapes_fine_sem_seg_train", "ade20k_sem_seg_val", False),
    ],
)
def test_a_package_that_only_some_sets_need(monkeypatch, train, test, needed) -> None:
    monkeypatch.setattr("dyn_d2.engine.preflight.is_missing", lambda module: module == "cityscapesscripts")
    with pytest.raises(PreflightError) as caught:  # the data are missing too
        check_files(build_cfg("", ["DATASETS.TRAIN", f"('{train}',)", "DATASETS.TEST", f"('{test}',)"]))
    assert ("pip install 'dyn_d2[cityscapes]'" in str(caught.value)) == needed


def test_a_sample_of_many_images_is_opened_and_that_is_said(base, monkeypatch, caplog) -> None:
    opts, _ = base
    monkeypatch.setattr(preflight, "READ_IMAGES", 4)  # of the eight
    trainer = loaded(opts, "")
    caplog.set_level("INFO", "dyn_d2")
    check_trainer(trainer)
    assert "up to 4 of its 8 images were opened, evenly spread" in caplog.text
    images = Path(trainer.data_loader.dataset.records[0]["file_name"]).parent
    whole = {name: (images / name).read_bytes() for name in ("003.png", "004.png")}
    try:
        (images / "003.png").write_bytes(b"no image")  # opened
        (images / "004.png").unlink()  # looked for
        with pytest.raises(PreflightError, match="003.png") as caught:
            check_trainer(trainer)
        assert "unreadable_image (1)" in str(caught.value) and "missing_image (1)" in str(caught.value)
    finally:
        for name, content in whole.items():
            (images / name).write_bytes(content)


def test_preflight_leaves_metadata_and_no_traceback(base, monkeypatch, capsys) -> None:
    """Neither of a set without a json, whose evaluation would otherwise look for one of the dry run."""
    opts, _ = base
    trainer = loaded(opts, "")
    (test_set,) = trainer.cfg.DATASETS.TEST
    records, whole = DatasetCatalog.get(test_set), MetadataCatalog.get(test_set)
    DatasetCatalog.register("without_json", lambda: records)
    metadata = MetadataCatalog.get("without_json")
    kept = ("thing_classes", "thing_dataset_id_to_contiguous_id", "evaluator_type")
    metadata.set(**{key: whole.get(key) for key in kept})
    before = dict(vars(metadata))
    trainer.cfg.defrost()
    trainer.cfg.DATASETS.TEST = ("without_json",)
    try:
        assert not _evaluation_problems(trainer)
        assert dict(vars(metadata)) == before

        def fail(*args) -> None:
            raise AttributeError("no such thing")

        monkeypatch.setattr(trainer, "build_evaluator", fail)
        # Handlers of other tests, on streams that are closed, would print tracebacks of their own.
        monkeypatch.setattr(logging, "raiseExceptions", False)
        (problem,) = _evaluation_problems(trainer)
        assert "AttributeError: no such thing (traceback: " in problem
        assert "Traceback" in Path(problem.partition("traceback: ")[2].rstrip(")")).read_text()
        assert "Traceback" not in "".join(capsys.readouterr())
    finally:
        DatasetCatalog.remove("without_json")
        MetadataCatalog.remove("without_json")


def test_frozen_parts_with_weights_of_their_own_need_none_of_the_checkpoint(base) -> None:
    trainer = loaded([*base[0], "MODEL.BACKBONE.FREEZE_AT", "2"], "")
    trainer.model.backbone.bottom_up.has_own_weights = True
    check_trainer(trainer)
