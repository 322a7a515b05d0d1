"""FSRW and its baselines through the few-shot procedure: stages, class vectors, evaluation without the module."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fsrw_toy import fsrw_opts
from PIL import Image
from tiny_detection import CLASSES, write_boxes
from two_processes import results_of_two

from dyn_d2.checkpoint import CheckpointError
from dyn_d2.cli import surgery
from dyn_d2.cli.demo import main as demo
from dyn_d2.config.derive import build_cfg
from dyn_d2.data.few_shot.sampling import ShotSet
from dyn_d2.engine import stages
from dyn_d2.engine.few_shot import plan
from dyn_d2.engine.predictor import Predictor
from dyn_d2.engine.preflight import check_trainer
from dyn_d2.engine.stages import train_stages
from dyn_d2.engine.trainer import DynTrainer, evaluate
from dyn_d2.methods.fsrw.class_vectors import compute_vectors, prepare_for_evaluation
from dyn_d2.methods.fsrw.cli import export_vectors
from dyn_d2.methods.fsrw.reweighting import FILE, ClassVectors


def train_here(command: list[str]) -> int:
    """dyn-d2 train without its process."""
    trainer = DynTrainer(build_cfg("", command[command.index("OUTPUT_DIR") :]))
    trainer.resume_or_load(resume="--resume" in command)
    check_trainer(trainer)
    trainer.train()
    return 0


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_boxes(tmp_path_factory.mktemp("boxes"))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> tuple[list[str], Path]:
    """Options of the fine-tuning stage, and its folder."""
    opts = fsrw_opts(data, tmp_path_factory.mktemp("out"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "run_process", train_here)
        last = train_stages(plan, "", opts)
    return [*opts, "FEW_SHOT.STAGE", "finetune", "MODEL.WEIGHTS", str(last.weights)], last.folder


def evaluated(opts: list[str], folder: Path) -> list[dict]:
    """Every detection of an evaluation into ``folder``."""
    evaluate(build_cfg("", [*opts, "OUTPUT_DIR", str(folder)]))
    return json.loads((folder / "inference" / "coco_instances_results.json").read_text())


def test_stages_share_the_base_and_need_no_surgery(trained) -> None:
    opts, folder = trained
    base, tuned = plan("", opts[: opts.index("FEW_SHOT.STAGE")])
    assert (base.folder.name, tuned.folder.name) == ("base_fsrw_split1", "fsrw_split1_2shot_seed0")
    first, last = (torch.load(stage.weights, weights_only=True) for stage in (base, tuned))
    assert first["model"].keys() == last["model"].keys() and len(first["dyn_d2"]["classes"]) == 3
    assert all(tensor.shape == last["model"][name].shape for name, tensor in first["model"].items())
    vectors = ClassVectors.load(folder / FILE)
    assert vectors.classes == list(CLASSES) and [len(found) for found in vectors.samples] == [2] * 4
    (shots,) = map(ShotSet.load, (folder / "few_shot").glob("*_train.json"))
    for name, found in zip(vectors.classes, vectors.supports, strict=True):
        assert set(found) == {f"{drawn.image}/{drawn.annotation}" for drawn in shots.objects[name]}
    metrics = json.loads((folder / "results.json").read_text())["metrics"]
    assert {"bAP", "nAP"} <= next(iter(metrics.values()))["bbox"].keys()


def test_evaluation_from_saved_vectors_is_that_which_recomputes_them(trained, tmp_path) -> None:
    opts, folder = trained
    detector = tmp_path / "detector.pth"
    (tmp_path / "config.yaml").write_text(build_cfg("", opts).dump())
    arguments = ["--config-file", str(tmp_path / "config.yaml"), "--weights", str(folder / "model_final.pth")]
    assert export_vectors.main([*arguments, "--output", str(tmp_path / "v.npz"), "--detector", str(detector)]) == 0
    assert not [name for name in torch.load(detector, weights_only=True)["model"] if name.startswith("reweighting")]
    again = evaluated(opts, tmp_path / "again")
    assert len(again) > 0
    saved = ["MODEL.REWEIGHTING.VECTORS", str([str(tmp_path / "v.npz")])]
    assert evaluated([*opts, *saved], tmp_path / "saved") == again
    assert evaluated([*opts, *saved, "MODEL.WEIGHTS", str(detector)], tmp_path / "alone") == again
    assert Predictor.load(str(detector)).classes == list(CLASSES)  # it knows where its vectors lie


def test_a_class_is_added_by_its_vector_alone(trained, tmp_path) -> None:
    opts, folder = trained
    cfg = build_cfg("", opts)
    vectors = ClassVectors.load(folder / FILE)
    vectors.select(CLASSES[:3]).save(tmp_path / "base.npz")
    vectors.select(CLASSES[3:]).save(tmp_path / "yellow.npz")
    files = [str(tmp_path / name) for name in ("yellow.npz", "base.npz")]
    model = DynTrainer.build_model(cfg)
    prepare_for_evaluation(build_cfg("", [*opts, "MODEL.REWEIGHTING.VECTORS", str(files)]), model)
    assert model.vectors.classes == list(CLASSES) and torch.equal(model.vectors.vectors, vectors.vectors)
    # The others' boxes and objectness are what they were.
    image = torch.randn(1, 3, 96, 96)
    model.eval()
    with torch.no_grad():
        three, four = (model.predict_for(image, vectors.vectors[:n]) for n in (3, 4))
    for part in ("offsets", "objectness", "classes"):
        torch.testing.assert_close(getattr(three, part), getattr(four, part)[:, :3])


def test_bad_vectors_are_named(trained, tmp_path) -> None:
    opts, folder = trained
    vectors = ClassVectors.load(folder / FILE)

    def use(*files: str) -> None:
        cfg = build_cfg("", [*opts, "MODEL.REWEIGHTING.VECTORS", str([str(tmp_path / name) for name in files])])
        prepare_for_evaluation(cfg, DynTrainer.build_model(cfg))

    vectors.select(CLASSES[:3]).save(tmp_path / "three.npz")
    with pytest.raises(ValueError, match="no class vector of yellow"):
        use("three.npz")
    ClassVectors(vectors.classes, vectors.vectors[:, :7]).save(tmp_path / "narrow.npz")
    with pytest.raises(ValueError, match=r"width 7, but this detector re-weights 51 channels"):
        use("narrow.npz")
    with pytest.raises(ValueError, match="three.npz have width 51, those of .*narrow.npz 7"):
        use("narrow.npz", "three.npz")
    vectors.save(tmp_path / "four.npz")
    with pytest.raises(ValueError, match="blue, green, red has a class vector in more than one"):
        use("three.npz", "four.npz")
    with pytest.raises(FileNotFoundError, match="vectors export"):
        use("absent.npz")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="other.npz is no file of class vectors"):
        use("other.npz")
    (tmp_path / "torn.npz").write_bytes((tmp_path / "four.npz").read_bytes()[:100])
    with pytest.raises(ValueError, match="torn.npz is no file of class vectors"):
        use("torn.npz")


def test_vectors_of_another_detector_are_told(trained, tmp_path, caplog) -> None:
    opts, folder = trained
    cfg = build_cfg("", [*opts, "MODEL.REWEIGHTING.VECTORS", str([str(folder / FILE)])])
    model = DynTrainer.build_model(cfg)  # random weights
    logger = logging.getLogger("dyn_d2")
    before, logger.propagate = logger.propagate, True
    prepare_for_evaluation(cfg, model)
    logger.propagate = before
    assert "made for a detector with other weights" in caplog.text


def test_training_refuses_given_vectors(trained) -> None:
    opts, folder = trained
    trainer = DynTrainer(build_cfg("", [*opts, "MODEL.REWEIGHTING.VECTORS", str([str(folder / FILE)])]))
    trainer.resume_or_load(resume=False)
    with pytest.raises(RuntimeError, match="VECTORS is for evaluation"):
        check_trainer(trainer)


def test_vectors_are_means_over_the_supports_and_limited(trained) -> None:
    opts, folder = trained
    cfg = build_cfg("", [*opts, "MODEL.REWEIGHTING.SUPPORTS", "1"])
    model = DynTrainer.build_model(cfg)
    one, all_of_them = compute_vectors(cfg, model), compute_vectors(cfg, model, limit=9)
    assert [len(found) for found in one.samples] == [1] * 4
    for name, vector, samples in zip(all_of_them.classes, all_of_them.vectors, all_of_them.samples, strict=True):
        torch.testing.assert_close(vector, sum(samples) / len(samples))
        assert compute_vectors(cfg, model, [name]).classes == [name]
    with pytest.raises(ValueError, match="has no class pink"):
        compute_vectors(cfg, model, ["pink"])
    assert model.training


def test_predictor_and_demo_take_a_checkpoint_and_vectors(trained, tmp_path) -> None:
    _, folder = trained
    moved = shutil.copy(folder / "model_final.pth", tmp_path)
    with pytest.raises(CheckpointError, match="vectors export"):
        Predictor.load(str(moved))
    opts = ["MODEL.REWEIGHTING.VECTORS", str([str(folder / FILE)])]
    image = np.full((50, 70, 3), 90, dtype=np.uint8)
    named, beside = Predictor.load(str(moved), opts=opts), Predictor.load(str(folder / "model_final.pth"))
    assert named.classes == beside.classes == list(CLASSES)
    found = named(image)
    assert found.image_size == (50, 70) and set(found.pred_classes.tolist()) <= set(range(4))
    torch.testing.assert_close(found.scores, beside(image).scores)
    vectors = ClassVectors.load(folder / FILE)
    vectors.detector = "another"
    vectors.save(tmp_path / FILE)
    with pytest.raises(CheckpointError, match="vectors export"):
        Predictor.load(str(moved))
    Image.fromarray(image).save(tmp_path / "photo.png")
    output = str(tmp_path / "pictures")
    assert demo(["--weights", str(folder / "model_final.pth"), "--output", output, str(tmp_path / "photo.png")]) == 0
    content = json.loads((tmp_path / "pictures" / "coco.json").read_text())
    assert [category["name"] for category in content["categories"]] == list(CLASSES)
    assert (tmp_path / "pictures" / "photo.png").stat().st_size > 1000


@pytest.mark.parametrize("method", ["yolo_ft", "lstd"])
def test_rivals_get_rows_by_class_name(data, tmp_path, monkeypatch, method) -> None:
    monkeypatch.setattr(stages, "run_process", train_here)
    opts = fsrw_opts(data, tmp_path, FEW_SHOT__METHOD=method)
    last = train_stages(plan, "", opts)
    base, tuned = plan("", opts)
    assert base.folder.name == "base_yolov2_split1" and tuned.folder == last.folder
    start = torch.load(last.folder / "initial.pth", weights_only=True)
    old = torch.load(base.weights, weights_only=True)["model"]
    rows = start["model"]["class_score.weight"]
    assert len(rows) == 8 and torch.equal(rows[:6], old["class_score.weight"])  # two anchors
    assert 0 < rows[6:].std() < 0.05 and torch.equal(start["model"]["predictor.weight"], old["predictor.weight"])
    if method == "lstd":
        end = torch.load(last.weights, weights_only=True)["model"]
        assert all(torch.equal(end[f"teacher.{name}"], tensor) for name, tensor in old.items())


def _train_half(rank: int, opts: list[str]) -> tuple[list, float]:
    """Boxes of the first support set, and a number from the trained weights."""
    cfg = build_cfg("", opts)
    cfg.DATASETS.TEST = ()
    trainer = DynTrainer(cfg)
    trainer.resume_or_load(resume=False)
    supports = next(iter(trainer.data_loader))[0]["support"]["boxes"].tolist()
    trainer.train()
    return supports, trainer.checkpointer.model.predictor.weight.double().sum().item()


@pytest.mark.slow
def test_two_processes_draw_their_own_supports_and_learn_the_same(data, tmp_path) -> None:
    first, second = results_of_two(_train_half, tmp_path, fsrw_opts(data, tmp_path, SEED=3))
    assert first[0] != second[0] and first[1] == second[1]


@pytest.mark.slow
def test_meta_rcnn_goes_through_the_stages(data, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(stages, "run_process", train_here)
    keys = {"FEW_SHOT__METHOD": "meta_rcnn", "MODEL__BACKBONE__NAME": "build_resnet_fpn_backbone"}
    opts = fsrw_opts(data, tmp_path, **keys, INPUT__MIN_SIZE_TRAIN=[64], INPUT__MIN_SIZE_TEST=64)
    last = train_stages(plan, "", opts)
    assert last.folder.name == "meta_rcnn_split1_2shot_seed0"
    assert ClassVectors.load(last.folder / FILE).classes == list(CLASSES)


@pytest.mark.parametrize("method", ["fsrw", "yolo_ft", "lstd"])
def test_a_base_model_is_tuned_to_the_classes_of_another_data_set(data, tmp_path, monkeypatch, method) -> None:
    """COCO to PASCAL: the base model knows none of the classes, of which there are others and another number."""
    base = fsrw_opts(data, tmp_path / "base", FEW_SHOT__METHOD=method, FEW_SHOT__STAGE="base")
    train_here(base)
    content = json.loads(write_boxes(tmp_path / "other", seed=1).read_text())
    names = ["rojo", "verde", "azul", "amarillo"]
    content["categories"] = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    other = tmp_path / "other" / "instances.json"
    other.write_text(json.dumps(content))
    keys = {"FEW_SHOT__CUSTOM__BASE_CLASSES": names[:2], "FEW_SHOT__CUSTOM__NOVEL_CLASSES": names[2:]}
    keys |= {"FEW_SHOT__METHOD": method, "FEW_SHOT__STAGE": "finetune"}
    opts = fsrw_opts(other, tmp_path / "tuned", **keys, MODEL__LSTD__SOURCE_CLASSES=3)
    weights = tmp_path / "base" / "model_final.pth"
    if method != "fsrw":
        start = tmp_path / "start.pth"
        command = ["surgery", "--base", str(weights), "--output", str(start), "--all-new", *opts]
        monkeypatch.setattr("sys.argv", command)
        surgery.main()
        weights = start
    train_here([*opts, "MODEL.WEIGHTS", str(weights)])
    end = torch.load(tmp_path / "tuned" / "model_final.pth", weights_only=True)
    assert end["dyn_d2"]["classes"] == names
    metrics = json.loads((tmp_path / "tuned" / "results.json").read_text())["metrics"]
    assert {f"AP-{name}" for name in names} <= next(iter(metrics.values()))["bbox"].keys()
    if method == "lstd":
        old = torch.load(tmp_path / "base" / "model_final.pth", weights_only=True)["model"]
        assert all(torch.equal(end["model"][f"teacher.{name}"], tensor) for name, tensor in old.items())


def test_full_fine_tuning_has_its_own_length(data, tmp_path) -> None:
    opts = fsrw_opts(data, tmp_path, FEW_SHOT__FINETUNE__MAX_ITER=3, FEW_SHOT__FULL__MAX_ITER=9)
    lengths = {}
    for method in ("fsrw", "yolo_ft", "yolo_ft_full", "lstd_full", "yolo_joint"):
        chain = plan("", [*opts, "FEW_SHOT.METHOD", method])
        lengths[method] = [stage.cfg.SOLVER.MAX_ITER for stage in chain]
        assert chain[-1].cfg.MODEL.META_ARCHITECTURE == {"fsrw": "FSRW", "lstd_full": "LSTDYOLOv2"}.get(
            method, "YOLOv2"
        )
    assert lengths == {
        "fsrw": [2, 3],
        "yolo_ft": [2, 3],
        "yolo_ft_full": [2, 9],
        "lstd_full": [2, 9],
        "yolo_joint": [40000],
    }
