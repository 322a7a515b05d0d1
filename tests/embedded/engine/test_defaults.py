"""DefaultTrainer, DefaultPredictor, default_setup and launch, as a user's own small project has them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from launched import step_then_fail
from PIL import Image
from tiny_detection import CLASSES, tiny_opts, write_boxes

from dyn_d2.config import add_dyn_d2_config

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultPredictor, DefaultTrainer, default_argument_parser, default_setup, launch
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling import build_model

NAME = "boxes_of_test_defaults"


class Trainer(DefaultTrainer):
    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return COCOEvaluator(dataset_name, output_dir=cfg.OUTPUT_DIR)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = write_boxes(tmp_path_factory.mktemp("data"))
    register_coco_instances(NAME, {}, str(path), str(path.parent / "images"))
    yield path
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


@pytest.fixture
def cfg(data, tmp_path) -> CfgNode:
    """A plain detector of Detectron2; dyn_d2 only lends the sizes."""
    cfg = get_cfg()
    add_dyn_d2_config(cfg)
    cfg.merge_from_list(tiny_opts(data, tmp_path / "out", MODEL__ROI_HEADS__NAME="StandardROIHeads"))
    cfg.FEW_SHOT.BENCHMARK = ""
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (NAME,), (NAME,)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(CLASSES)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.TEST.EVAL_PERIOD = 4
    return cfg


@pytest.mark.slow
def test_training_leaves_checkpoints_metrics_and_results(cfg) -> None:
    out = Path(cfg.OUTPUT_DIR)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    names = {path.name for path in out.iterdir()}
    assert {"model_0000001.pth", "model_0000003.pth", "model_final.pth", "metrics.json", "last_checkpoint"} <= names
    assert (out / "last_checkpoint").read_text() == "model_final.pth"
    rows = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert any("bbox/AP" in row for row in rows) and any("loss_rpn_cls" in row and row["lr"] > 0 for row in rows)
    saved = torch.load(out / "model_final.pth", weights_only=True)
    assert saved["iteration"] == 5 and saved["trainer"]["iteration"] == 5
    assert all(torch.equal(saved["model"][name], value) for name, value in trainer.model.state_dict().items())
    weight = "roi_heads.box_predictor.cls_score.weight"
    assert not torch.equal(before[weight], saved["model"][weight])

    # It is done: going on does nothing but evaluate.
    again = Trainer(cfg)
    again.resume_or_load(resume=True)
    assert again.start_iter == 6
    again.train()
    assert all(torch.equal(saved["model"][name], value) for name, value in again.model.state_dict().items())


def test_expected_results_are_checked(cfg) -> None:
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS = 1, (), 0
    cfg.TEST.EXPECTED_RESULTS = [["bbox", "AP", 0.0, 100.0]]
    trainer = Trainer(cfg)
    assert trainer.train()["bbox"]["AP"] >= 0
    cfg.TEST.EXPECTED_RESULTS = [["bbox", "AP", 90.0, 1.0]]
    with pytest.raises(SystemExit):
        Trainer(cfg).train()


def test_test_sets_without_an_evaluator_are_left_out(cfg) -> None:
    assert DefaultTrainer.test(cfg, build_model(cfg)) in ({}, {NAME: {}})
    with pytest.raises((ValueError, AssertionError), match="1"):
        DefaultTrainer.test(cfg, build_model(cfg), evaluators=[COCOEvaluator(NAME)] * 2)


@pytest.mark.parametrize("channels", ["BGR", "RGB"])
def test_predictor_resizes_and_orders_channels_like_the_test_loader(cfg, tmp_path, channels: str) -> None:
    torch.manual_seed(0)
    cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    cfg.INPUT.FORMAT = channels
    model = build_model(cfg).eval()
    DetectionCheckpointer(model, str(tmp_path)).save("weights")
    record = DatasetCatalog.get(NAME)[0]
    loaded = next(iter(DefaultTrainer.build_test_loader(cfg, NAME)))
    with torch.no_grad():
        expected = model(loaded)[0]["instances"]
    bgr = np.asarray(Image.open(record["file_name"]).convert("RGB"))[:, :, ::-1]
    predictor = DefaultPredictor(cfg)
    found = predictor(bgr)["instances"]
    assert found.image_size == bgr.shape[:2] and len(found) == len(expected) > 0
    assert torch.allclose(found.pred_boxes.tensor, expected.pred_boxes.tensor, atol=1e-3)
    assert torch.allclose(found.scores, expected.scores, atol=1e-5)
    assert predictor.metadata.thing_classes == list(CLASSES)


def test_setup_writes_the_config_and_the_log(cfg) -> None:
    args = default_argument_parser().parse_args(["--eval-only", "SOLVER.BASE_LR", "0.5"])
    assert args.eval_only and not args.resume and args.num_gpus == 1 and args.opts == ["SOLVER.BASE_LR", "0.5"]
    cfg.SEED = 11
    default_setup(cfg, args)
    drawn = torch.rand(1)
    out = Path(cfg.OUTPUT_DIR)
    assert yaml.safe_load((out / "config.yaml").read_text())["MODEL"]["ROI_HEADS"]["NUM_CLASSES"] == 4
    again = get_cfg()
    add_dyn_d2_config(again)
    again.merge_from_file(str(out / "config.yaml"))
    assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())
    assert (out / "log.txt").is_file()
    default_setup(cfg, args)
    assert torch.equal(torch.rand(1), drawn)


def test_workers_are_scaled_with_batch_rate_and_iterations(cfg) -> None:
    assert DefaultTrainer.auto_scale_workers(cfg, 4) is cfg
    solver = cfg.SOLVER
    solver.REFERENCE_WORLD_SIZE, solver.IMS_PER_BATCH, solver.BASE_LR = 8, 16, 0.02
    solver.STEPS, solver.MAX_ITER, solver.WARMUP_ITERS, solver.CHECKPOINT_PERIOD = (600, 800), 900, 100, 50
    cfg.freeze()
    scaled = DefaultTrainer.auto_scale_workers(cfg, 2)
    new = scaled.SOLVER
    assert (new.IMS_PER_BATCH, new.BASE_LR, new.STEPS, new.MAX_ITER) == (4, 0.005, (2400, 3200), 3600)
    assert (new.WARMUP_ITERS, new.CHECKPOINT_PERIOD, scaled.TEST.EVAL_PERIOD) == (400, 200, 16)
    assert new.REFERENCE_WORLD_SIZE == 2 and scaled.is_frozen() and cfg.SOLVER.IMS_PER_BATCH == 16
    assert DefaultTrainer.auto_scale_workers(scaled, 2) is scaled


def test_one_process_is_launched_in_place() -> None:
    seen = []
    launch(seen.append, 1, args=("here",))
    assert seen == ["here"]
    with pytest.raises((ValueError, AssertionError)):
        launch(seen.append, 2, num_machines=2, dist_url="auto", args=("here",))


@pytest.mark.slow
def test_two_processes_agree_and_the_error_of_one_ends_both(tmp_path) -> None:
    with pytest.raises(torch.multiprocessing.ProcessRaisedException, match="(?s)rocess 1.*process 1 has had enough"):
        launch(step_then_fail, 2, dist_url="auto", args=(str(tmp_path),))
    reports = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [(report["world"], report["local"]) for report in reports] == [(2, 0), (2, 1)]
    # Skipped parts take part in the exchange of gradients, so both processes have the same weights.
    assert reports[0]["weights"] == reports[1]["weights"] and len(set(map(tuple, reports[0]["weights"]))) == 1
