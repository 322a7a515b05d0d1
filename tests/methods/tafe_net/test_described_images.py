"""A TAFE-Net that was trained on features of dyn-d2 crop-features looks at images."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("timm")

from timm_nets import saved_weights
from tool_runs import train_net_here

from dyn_d2.checkpoint import CheckpointError
from dyn_d2.cli.demo import main as demo
from dyn_d2.engine.predictor import load_predictor
from dyn_d2.methods.tafe_net.cli.prepare_crops import main as crop_features
from dyn_d2.methods.tafe_net.data.custom import read_custom
from dyn_d2.methods.tafe_net.data.feature_source import FeatureSource
from dyn_d2.methods.tafe_net.predictor import DescribedPredictor

COLOURS = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250), "white": (250, 250, 250)}
VECTORS = {"red": [1, 0, 0], "green": [0, 1, 0], "blue": [0, 0, 1], "white": [1, 1, 1]}


def pictures(folder, each: int = 3) -> str:
    """A json of squares of one colour, each a whole picture."""
    rng, images, annotations = np.random.default_rng(0), [], []
    for number in range(each * len(COLOURS)):
        colour = np.array(list(COLOURS.values())[number % len(COLOURS)])
        pixels = np.clip(colour + rng.integers(-40, 40, (40, 60, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images.append({"id": number + 1, "file_name": f"{number}.png", "width": 60, "height": 40})
        annotation = {"id": number + 1, "image_id": number + 1, "category_id": number % len(COLOURS) + 1, "iscrowd": 0}
        annotations.append(annotation | {"bbox": [0, 0, 60, 40], "area": 2400})
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(COLOURS)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "boxes.json").write_text(json.dumps(content))
    return str(folder / "boxes.json")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a training of two steps; white is unseen."""
    folder = tmp_path_factory.mktemp("described_images")
    boxes, weights = pictures(folder), saved_weights("test_resnet", folder)
    network = ["--model", "test_resnet", "--weights", weights, "--size", "64", "--context", "0"]
    crops = str(folder / "crops.npz")
    assert crop_features(["--json", boxes, "--images", str(folder), "--output", crops, *network]) == 0
    (folder / "classes.json").write_text(json.dumps(VECTORS))
    keys = ["TRAIN", crops, "TEST", crops, "CLASSES", str(folder / "classes.json"), "UNSEEN", "['white']"]
    pairs = [word if i % 2 else f"ZERO_SHOT.CUSTOM.{word}" for i, word in enumerate(keys)]
    more = ["SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()", "ZERO_SHOT.SEEN_PENALTY", "0.25", "OUTPUT_DIR", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        train_net_here(patch, "--config-file", "TAFENet/voc_crops.yaml", *pairs, *more)
    return folder


def read(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def test_images_get_the_answers_of_the_evaluation(trained) -> None:
    predictor = load_predictor(str(trained / "model_final.pth"))
    assert isinstance(predictor, DescribedPredictor) and predictor.classes == list(VECTORS)
    images = [read(trained / f"{number}.png") for number in range(8)]
    found = [answer.found for answer in predictor.answer(images)]
    written = json.loads((trained / "inference" / f"{_test_set(trained)}_predictions.json").read_text())
    for number, labels in enumerate(found):
        assert labels.scores.sum() == pytest.approx(1, abs=1e-5)
        assert [name for name, _ in labels.best(4)] == written[number]["best"][:4]
    assert np.allclose(found[3].scores, predictor(images[3]).scores, atol=1e-5) and predictor.answer([]) == []


def _test_set(folder) -> str:
    (path,) = (folder / "inference").glob("*_predictions.json")
    return path.name.removesuffix("_predictions.json")


def test_the_checkpoint_is_enough_and_classes_are_added(trained, tmp_path, capsys) -> None:
    (tmp_path / "more.json").write_text(json.dumps({"yellow": [1, 1, 0]}))
    options = ["--weights", str(trained / "model_final.pth"), "--output", str(tmp_path / "out"), "--opts"]
    moved = trained / "crops.npz"
    moved.rename(trained / "away.npz")
    try:
        added = ["ZERO_SHOT.CLASSES", str(tmp_path / "more.json")]
        assert demo([str(trained / "0.png"), *options, *added]) == 0
    finally:
        (trained / "away.npz").rename(moved)
    (best,) = json.loads((tmp_path / "out" / "detections.json").read_text()).values()
    assert {row["class"] for row in best} == {*VECTORS, "yellow"}


def test_other_weights_see_otherwise(trained) -> None:
    (path,) = trained.glob("*resnet*")
    before, state = path.read_bytes(), torch.load(path, weights_only=True)
    first = next(name for name, value in state.items() if value.is_floating_point())
    try:
        torch.save(state | {first: state[first] + 1}, path)
        with pytest.raises(CheckpointError, match="test_resnet .* whose weights here are others now"):
            load_predictor(str(trained / "model_final.pth"))
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize(
    ("key", "value"),
    [("descriptions", None), ("classes", [1, 2, 3, 4]), ("seen", [9]), ("network", {"model": "x"}), ("width", "512")],
)
def test_an_edited_entry_is_one_message(trained, tmp_path, key, value) -> None:
    content = torch.load(trained / "model_final.pth", weights_only=True)
    content["dyn_d2"]["tafe_net"][key] = value
    torch.save(content, tmp_path / "edited.pth")
    with pytest.raises(CheckpointError, match=r"edited.pth: .* cannot be used .*damaged or edited"):
        load_predictor(str(tmp_path / "edited.pth"))


def test_features_of_two_networks_are_refused(trained, tmp_path) -> None:
    with np.load(trained / "crops.npz") as content:
        arrays = dict(content)
    source = FeatureSource.read_text(str(arrays["source"]))
    arrays["source"] = np.array(FeatureSource(source.model, source.weights, 32, source.fingerprint).as_text())
    np.savez(tmp_path / "small.npz", **arrays)
    with pytest.raises(ValueError, match=r"64 pixels.*small.npz of .*32 pixels.* same options of dyn-d2 crop-features"):
        read_custom([trained / "crops.npz", tmp_path / "small.npz", trained / "classes.json"])
    arrays["source"] = np.array("[]")
    np.savez(tmp_path / "odd.npz", **arrays)
    with pytest.raises(ValueError, match=r"odd.npz.* source of features has model"):
        read_custom([trained / "crops.npz", tmp_path / "odd.npz", trained / "classes.json"])


def test_features_of_an_unknown_network_are_told(trained, tmp_path) -> None:
    content = torch.load(trained / "model_final.pth", weights_only=True)
    content["dyn_d2"]["tafe_net"] = {}
    torch.save(content, tmp_path / "unknown.pth")
    with pytest.raises(CheckpointError, match=r"unknown.pth cannot be used on images alone: .*crop-features"):
        load_predictor(str(tmp_path / "unknown.pth"))
