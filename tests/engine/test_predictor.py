"""A predictor from a checkpoint alone."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_detection import CLASSES, save_detector

from dyn_d2.checkpoint import CheckpointError
from dyn_d2.data.few_shot.sources import forget
from dyn_d2.engine.predictor import Predictor

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """A detector with random weights; its data set is gone."""
    folder = tmp_path_factory.mktemp("tiny")
    cfg = save_detector(folder)
    shutil.rmtree(folder / "data")
    for catalog in (DatasetCatalog, MetadataCatalog):
        for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
            catalog.remove(name)
    return str(folder / "model_final.pth")


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (48, 64, 3)).astype(np.uint8)


def test_finds_what_detectron2s_predictor_finds(weights, image) -> None:
    predictor = Predictor.load(weights)
    found = predictor(image)
    assert predictor.classes == list(CLASSES) and len(found) > 0
    assert found.image_size == (48, 64) and (found.scores.diff() <= 0).all()
    reference = DefaultPredictor(predictor.cfg)(image[:, :, ::-1])["instances"]
    order = reference.scores.argsort(descending=True)
    assert torch.allclose(found.scores, reference.scores[order], atol=1e-5)
    assert torch.allclose(found.pred_boxes.tensor, reference.pred_boxes.tensor[order], atol=1e-3)


def test_a_detector_of_grey_images_gets_one_channel(tmp_path, image) -> None:
    save_detector(tmp_path, INPUT__FORMAT="L", MODEL__PIXEL_MEAN=[110.0], MODEL__PIXEL_STD=[1.0])
    predictor = Predictor.load(str(tmp_path / "model_final.pth"))
    grey = np.asarray(Image.fromarray(image).convert("L"))
    found, same = predictor(image), predictor(np.dstack([grey] * 3))
    assert len(found) > 0 and torch.equal(found.pred_boxes.tensor, same.pred_boxes.tensor)


def test_below_the_models_threshold_the_best_are_still_found(weights, image) -> None:
    low = Predictor.load(weights)(image)
    predictor = Predictor.load(weights, opts=["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.99"])
    high = predictor(image)
    assert len(high) > 0 and high.scores[0] == pytest.approx(float(low.scores[0]), abs=1e-5)
    assert predictor.model.roi_heads.box_predictor.test_score_thresh == 0.99


def test_checkpoint_without_config_says_what_to_give(weights, image, tmp_path) -> None:
    content = torch.load(weights, weights_only=True)
    bare, yaml_file = tmp_path / "bare.pth", tmp_path / "config.yaml"
    torch.save({"model": content["model"]}, bare)
    with pytest.raises(CheckpointError, match=r"bare.pth does not carry its config: give the yaml .*--config-file"):
        Predictor.load(str(bare))
    yaml_file.write_text(content["dyn_d2"]["config"])
    forget(yaml.safe_load(yaml_file.read_text())["DATASETS"]["TRAIN"][0])  # another test may have it under this name
    predictor = Predictor.load(str(bare), str(yaml_file))
    assert predictor.classes == ["class 0", "class 1", "class 2", "class 3"] and len(predictor(image)) > 0


def test_config_of_another_version_is_explained(weights, tmp_path) -> None:
    content = torch.load(weights, weights_only=True)
    content["dyn_d2"]["config"] += "\nMODEL_OF_2050: 1\n"
    torch.save(content, tmp_path / "new.pth")
    with pytest.raises(CheckpointError, match="config that .*new.pth carries cannot be used here.*MODEL_OF_2050"):
        Predictor.load(str(tmp_path / "new.pth"))


def test_incomplete_weights_and_wrong_names_are_refused(weights, tmp_path) -> None:
    content = torch.load(weights, weights_only=True)
    lost = content["model"].pop("backbone.bottom_up.stem.conv1.weight")
    torch.save(content, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match="does not hold the whole model"):
        Predictor.load(str(tmp_path / "part.pth"))
    content["model"]["backbone.bottom_up.stem.conv1.weight"] = lost
    content["dyn_d2"]["classes"] = ["red"]
    torch.save(content, tmp_path / "names.pth")
    with pytest.raises(CheckpointError, match="names 1 classes, but its head has 4"):
        Predictor.load(str(tmp_path / "names.pth"))
    with pytest.raises(FileNotFoundError, match="nothing.pth"):
        Predictor.load(str(tmp_path / "nothing.pth"))


class _Code:
    """Unpickled, it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("ending", ["pth", "pkl"])
def test_pickle_that_runs_code_is_refused(tmp_path, ending) -> None:
    file, trace = tmp_path / f"evil.{ending}", tmp_path / "it_ran"
    content = {"model": {"a": _Code(trace)}, "__author__": "nobody"}
    if ending == "pkl":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file)
    with pytest.raises(CheckpointError, match="evil"):
        Predictor.load(str(file))
    assert not trace.exists()
