"""A predictor from a checkpoint alone."""

import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pycocotools import mask as coco_mask
from tiny_detection import CLASSES, save_detector
from tiny_tasks import task_opts

from dyn_d2.checkpoint import CheckpointError, DynCheckpointer, describe
from dyn_d2.checkpoint.model import load_model
from dyn_d2.cli.demo import main as demo
from dyn_d2.config.read import read_cfg
from dyn_d2.data.few_shot.sources import forget
from dyn_d2.engine.given_images import require_images
from dyn_d2.engine.predictor import Classifier, Predictor, load_predictor, predictor_of

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model


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


def test_a_batch_gives_what_single_images_give(weights, image) -> None:
    predictor = Predictor.load(weights)
    other = image[:, ::-1].copy()
    for one, answer in zip((image, other), predictor.answer([image, other]), strict=True):
        found = predictor(one)
        assert torch.allclose(answer.found.scores, found.scores, atol=1e-4) and answer.route is None
        assert torch.allclose(answer.found.pred_boxes.tensor, found.pred_boxes.tensor, atol=1e-2)
    assert predictor.answer([]) == []


_PIXELS = np.zeros((48, 64, 3), np.uint8)
_WANTED = ": give an (H, W, 3) array of uint8, RGB."


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (_PIXELS / np.float32(255), "image is float32 (48, 64, 3)"),
        (_PIXELS.astype(np.uint16), "image is uint16 (48, 64, 3)"),
        (_PIXELS.transpose(2, 0, 1), "image is uint8 (3, 48, 64)"),
        (_PIXELS[..., 0], "image is uint8 (48, 64)"),
        (_PIXELS[None], "image is uint8 (1, 48, 64, 3)"),
        (_PIXELS[:0], "image is uint8 (0, 64, 3) without a pixel"),
        (torch.from_numpy(_PIXELS), "image is a tensor of torch, uint8 (48, 64, 3)"),
        (Image.fromarray(_PIXELS), "image is an image of Pillow, RGB of 64 x 48"),
        (Path("a.jpg"), "image is the path 'a.jpg'"),
        (None, "image is of type NoneType"),
    ],
)
def test_what_is_no_image_is_named(given, told) -> None:
    with pytest.raises(ValueError, match=re.escape(told + _WANTED)):
        require_images([given])
    with pytest.raises(ValueError, match=re.escape(told.replace("image is", "image 1 of the batch is", 1))):
        require_images([_PIXELS, given])


@pytest.mark.parametrize("task", ["rcnn_fpn", "semantic_fpn", "classifier"])
def test_all_predictors_refuse_what_is_no_image_and_one_in_place_of_a_list(tmp_path, image, task) -> None:
    predictor = load_predictor(_save(tmp_path, task, {"thing_classes": ["cat", "dog", "cow"]}))
    for single in (image, image[..., 0], torch.from_numpy(image), Image.fromarray(image), "a.jpg", None):
        with pytest.raises(ValueError, match="answer takes a list of images, not .*: give .image. for one image"):
            predictor.answer(single)
    for ask in (predictor, predictor.input_of):
        with pytest.raises(ValueError, match=r"image is float64 \(48, 64, 3\)"):
            ask(image / 255)
    assert len(predictor.answer(np.stack([image, image]))) == len(predictor.answer((image, image))) == 2


def _save(folder: Path, task: str, metadata: dict, **keys) -> str:
    """A tiny model of ``tiny_tasks`` whose data set is unknown where it is loaded."""
    cfg = read_cfg("", task_opts(task, DATASETS__TRAIN="('elsewhere',)", INPUT__MIN_SIZE_TEST=64, **keys))
    torch.manual_seed(0)
    model = build_model(cfg)
    MetadataCatalog.get("elsewhere").set(**metadata)
    DynCheckpointer(model, str(folder), metadata=describe(cfg, model)).save("model_final")
    MetadataCatalog.remove("elsewhere")
    return str(folder / "model_final.pth")


def test_a_gated_classifier_names_classes_and_routes(tmp_path, image) -> None:
    names = ["cat", "dog", "cow"]
    keys = {"MODEL__POLICY__NAME": "skipnet_rnn", "INPUT__CLASSIFICATION__CROP_TEST": 40}
    predictor = load_predictor(_save(tmp_path, "classifier", {"thing_classes": names}, **keys))
    assert isinstance(predictor, Classifier)
    found, route, _ = predictor.answer([image])[0]
    assert found.classes == names and found.scores.sum() == pytest.approx(1) and found.best(2)[0][0] in names
    assert found.best(3) == sorted(found.best(3), key=lambda pair: -pair[1])
    inputs = [{"image": torch.from_numpy(image[4:44, 12:52].transpose(2, 0, 1)[::-1].copy())}]
    assert np.allclose(predictor(image).scores, predictor.model(inputs)[0]["scores"].detach(), atol=1e-5)
    assert 0 < route.executed <= route.dense + route.gates and len(route.open) == 7


def test_demo_of_a_classifier_and_of_a_mask_detector(tmp_path, image, capsys) -> None:
    Image.fromarray(image).save(tmp_path / "a.png")
    keys = {"MODEL__POLICY__NAME": "skipnet_rnn"}
    weights = _save(tmp_path / "one", "classifier", {"thing_classes": ["cat", "dog", "cow"]}, **keys)
    assert demo([str(tmp_path / "a.png"), "--weights", weights, "--output", str(tmp_path / "out")]) == 0
    (found,) = json.loads((tmp_path / "out" / "detections.json").read_text()).values()
    assert [set(entry) for entry in found] == [{"class", "score"}] * 3
    (route,) = json.loads((tmp_path / "out" / "routes.json").read_text()).values()
    assert route["executed"] > 0 and all(isinstance(opened, bool) for opened in route["open"].values())
    keys = {"MODEL__MASK_ON": True, "MODEL__ROI_MASK_HEAD__NUM_CONV": 1, "MODEL__ROI_MASK_HEAD__POOLER_RESOLUTION": 4}
    weights = _save(tmp_path / "two", "rcnn_fpn", {"thing_classes": ["cat", "dog", "cow"]}, **keys)
    assert demo([str(tmp_path / "a.png"), "--weights", weights, "--output", str(tmp_path / "out")]) == 0
    content = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert content["annotations"] and content["images"][0]["height"] == 48
    for entry in content["annotations"]:
        mask = coco_mask.decode(entry["segmentation"])
        assert mask.shape == (48, 64) and mask.sum() == entry["area"]


def test_label_maps_are_written_as_numbers(tmp_path, image, capsys) -> None:
    Image.fromarray(image).save(tmp_path / "a.png")
    weights = _save(tmp_path, "semantic_fpn", {"stuff_classes": ["sand", "sea", "sky"]})
    assert demo([str(tmp_path / "a.png"), "--weights", weights, "--output", str(tmp_path / "out")]) == 0
    predictor = load_predictor(weights)
    (labels,) = predictor(image)
    with Image.open(tmp_path / "out" / "a_classes.png") as written:
        assert np.array_equal(np.asarray(written), labels.numbers) and predictor.classes == ["sand", "sea", "sky"]


def test_what_sees_no_images_says_so(weights) -> None:
    loaded = load_model(weights)
    loaded.model.sees_no_images = "it reads."
    with pytest.raises(CheckpointError, match="cannot be used on images alone: it reads."):
        predictor_of(loaded)
