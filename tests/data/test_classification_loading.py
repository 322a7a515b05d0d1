"""From classification records to batches: augmentation, order, and the keys that follow from the data set."""

import random
import re
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from tool_runs import ROOT, train_net_here

from dyn_d2.config.derive import build_cfg
from dyn_d2.data.classification import ClassificationMapper
from dyn_d2.data.classification.mapper import shifted
from dyn_d2.data.few_shot.sources import forget
from dyn_d2.data.resumable import isolated_random
from dyn_d2.engine.trainer import DynTrainer
from dyn_d2.utils.errors import UserError

from detectron2.data import DatasetCatalog, MetadataCatalog

NOISE = np.random.default_rng(0).integers(1, 256, (32, 32, 3), dtype=np.uint8)
SMALL_NET = [
    "MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", "8", "SOLVER.IMS_PER_BATCH", "4", "SOLVER.STEPS", "()",
    "SOLVER.AUTO_SCALE", "False",
]  # fmt: skip
BASE = str(ROOT / "configs/_BASE_/classifier.yaml")


def digits_cfg(*opts: str):
    return build_cfg(BASE, ["SEED", "3", *SMALL_NET, *opts])


@pytest.fixture
def noise_set():
    """12 images of 32 x 32 in memory, "noise_train", augmented as CIFAR."""
    images = np.random.default_rng(1).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    DatasetCatalog.register(
        "noise_train", lambda: [{"image": x, "label": i % 3, "image_id": i} for i, x in enumerate(images)]
    )
    MetadataCatalog.get("noise_train").set(
        evaluator_type="classification", thing_classes=["a", "b", "c"], recipe="cifar10"
    )
    yield "noise_train"
    forget("noise_train")


@pytest.fixture
def image_folders(tmp_path):
    for split in ("train", "test"):
        for number, name in enumerate(("dark", "light", "middle")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(3):
                pixels = np.full((24 + i, 30, 3), (20, 230, 120)[number], np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    yield tmp_path
    for split in ("train", "test"):
        forget(f"custom_images_{split}")


def same(a: list[dict], b: list[dict]) -> bool:
    return all(
        x["image_id"] == y["image_id"] and torch.equal(x["image"], y["image"]) for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize(("down", "right"), [(0, 0), (4, -4), (-3, 2), (40, 0)])
def test_shift_is_padding_and_cropping(down, right) -> None:
    pad = 40
    padded = np.pad(NOISE, ((pad, pad), (pad, pad), (0, 0)))
    expected = padded[pad - down : pad - down + 32, pad - right : pad - right + 32]
    assert np.array_equal(shifted(NOISE, down, right), expected)


def test_pad_crop_and_flip_reach_every_position() -> None:
    mapper = ClassificationMapper(is_train=True, pad_crop=1, flip=True)
    possible = {
        np.ascontiguousarray(moved[:, ::step]).tobytes()
        for moved in (shifted(NOISE, y, x) for y in (-1, 0, 1) for x in (-1, 0, 1))
        for step in (1, -1)
    }
    record = {"image": NOISE, "label": 4, "image_id": 9}
    seen = {mapper(record)["image"].permute(1, 2, 0).numpy().tobytes() for _ in range(400)}
    assert seen == possible
    assert mapper(record)["label"] == 4 and set(record) == {"image", "label", "image_id"}


def test_output_is_a_tensor_of_its_own() -> None:
    record = {"image": NOISE.copy(), "label": 0, "image_id": 0}
    mapped = ClassificationMapper(is_train=False)(record)
    assert mapped["image"].shape == (3, 32, 32) and mapped["image"].dtype == torch.uint8
    mapped["image"].zero_()
    assert np.array_equal(record["image"], NOISE)
    reversed_channels = ClassificationMapper(is_train=False, image_format="BGR")(record)["image"]
    assert np.array_equal(reversed_channels.permute(1, 2, 0).numpy(), NOISE[..., ::-1])
    with pytest.raises(ValueError, match="INPUT.FORMAT"):
        ClassificationMapper(is_train=False, image_format="L")


def test_large_images(tmp_path) -> None:
    Image.fromarray(np.tile(NOISE, (2, 3, 1))).convert("L").save(tmp_path / "grey.png")
    record = {"file_name": str(tmp_path / "grey.png"), "label": 1, "image_id": 0}
    options = {"random_resized_crop": 24, "resize_test": 40, "crop_test": 36, "color": 0.4}
    tested = ClassificationMapper(is_train=False, **options)(record)
    assert tested["image"].shape == (3, 36, 36) and (tested["height"], tested["width"]) == (64, 96)
    train = ClassificationMapper(is_train=True, **options)

    def draw(seed: int) -> torch.Tensor:
        with isolated_random(seed):
            return train(record)["image"]

    assert draw(0).shape == (3, 24, 24)
    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_loader_gives_the_same_batches(noise_set, workers) -> None:
    cfg = digits_cfg("DATASETS.TRAIN", f"['{noise_set}']", "DATASETS.TEST", "[]")
    assert cfg.INPUT.CLASSIFICATION.PAD_CROP == 4 and cfg.INPUT.CLASSIFICATION.FLIP
    whole = list(islice(iter(DynTrainer.build_train_loader(cfg)), 6))
    assert all(len(batch) == 4 for batch in whole) and not same(whole[0], whole[3])
    cfg.DATALOADER.NUM_WORKERS = workers
    later = DynTrainer.build_train_loader(cfg)
    later.start_iter = 4
    assert all(same(a, b) for a, b in zip(islice(iter(later), 2), whole[4:], strict=True))
    assert later.instances == {0: 4, 1: 4, 2: 4}


def test_loading_in_batches_draws_as_single_images_do(noise_set) -> None:
    dataset = DynTrainer.build_train_loader(digits_cfg("DATASETS.TRAIN", f"['{noise_set}']")).dataset
    keys = [(position, position % 12) for position in range(20)]
    state = random.getstate()
    assert same(dataset.__getitems__(keys), [dataset[key] for key in keys])
    assert random.getstate() == state


def test_evaluation_loads_every_image_once_in_batches() -> None:
    loader = DynTrainer.build_test_loader(digits_cfg("TEST.IMS_PER_BATCH", "100"), "digits_test")
    batches = list(loader)
    assert [len(batch) for batch in batches] == [100, 100, 100, 60] and len(loader) == 4
    assert [item["image_id"] for batch in batches for item in batch] == list(range(360))


def test_keys_follow_from_the_data_set(noise_set) -> None:
    cfg = digits_cfg()
    assert cfg.MODEL.IMAGE_CLASSIFIER.NUM_CLASSES == 10 and cfg.INPUT.CLASSIFICATION.PAD_CROP == 0
    chosen = ["DATASETS.TRAIN", f"['{noise_set}']"]
    cfg = digits_cfg(*chosen, "INPUT.CLASSIFICATION.FLIP", "False")
    assert cfg.MODEL.IMAGE_CLASSIFIER.NUM_CLASSES == 3
    assert cfg.INPUT.CLASSIFICATION.PAD_CROP == 4 and not cfg.INPUT.CLASSIFICATION.FLIP
    assert list(cfg.MODEL.PIXEL_MEAN) == list(digits_cfg(*chosen, "INPUT.FORMAT", "BGR").MODEL.PIXEL_MEAN)[::-1]
    assert digits_cfg(*chosen, "INPUT.CLASSIFICATION.RECIPE", "").INPUT.CLASSIFICATION.PAD_CROP == 0
    with pytest.raises(ValueError, match="RECIPE is 'cifar'"):
        digits_cfg(*chosen, "INPUT.CLASSIFICATION.RECIPE", "cifar")


def test_classifier_needs_labels_of_images() -> None:
    with pytest.raises(ValueError, match="ImageClassifier, but coco_2017_train is no"):
        digits_cfg("DATASETS.TRAIN", "['coco_2017_train']")
    with pytest.raises(ValueError, match="TEST needs CLASSIFICATION.CUSTOM.TRAIN"):
        digits_cfg("CLASSIFICATION.CUSTOM.TEST", "somewhere")


def _custom(folder, *opts: str) -> list[str]:
    return [
        "--config-file", BASE, "OUTPUT_DIR", str(folder / "output"), "SOLVER.MAX_ITER", "2",
        "CLASSIFICATION.CUSTOM.TRAIN", str(folder / "train"), "CLASSIFICATION.CUSTOM.TEST", str(folder / "test"),
        "INPUT.CLASSIFICATION.RANDOM_RESIZED_CROP", "16", "INPUT.CLASSIFICATION.RESIZE_TEST", "18",
        "INPUT.CLASSIFICATION.CROP_TEST", "16", *SMALL_NET, *opts,
    ]  # fmt: skip


def test_own_folders_train_without_python(image_folders, monkeypatch) -> None:
    train_net_here(monkeypatch, *_custom(image_folders))
    output = image_folders / "output"
    assert "custom_images_test" in (output / "results.json").read_text()
    assert (output / "inference/custom_images_test_predictions.json").is_file()


def test_what_is_wrong_is_said_before_training(image_folders, monkeypatch, capsys) -> None:
    for path in (image_folders / "train").glob("*/1.png"):
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(SystemExit) as error:
        train_net_here(monkeypatch, *_custom(image_folders, "MODEL.IMAGE_CLASSIFIER.NUM_CLASSES", "4"))
    text = str(error.value)
    assert re.search(r"predicts 4 classes.*custom_images_train has 3.*MODEL\.IMAGE_CLASSIFIER\.NUM_CLASSES", text)
    assert "unreadable_image (3)" in text and "light/1.png" in text


def test_broken_images_end_evaluation_with_their_names(image_folders) -> None:
    broken = image_folders / "test/dark/2.png"
    broken.write_bytes(b"nothing")
    opts = [*_custom(image_folders)[2:], "DATALOADER.NUM_WORKERS", "1"]
    loader = DynTrainer.build_test_loader(build_cfg(BASE, opts), "custom_images_test")
    with pytest.raises(UserError, match=re.escape(str(broken))):
        list(loader)


@pytest.mark.parametrize(("side", "recipe", "crop"), [(24, "small_images", 0), (65, "imagenet", 224)])
def test_small_images_of_one_size_keep_it(tmp_path, side, recipe, crop) -> None:
    for name in ("dark", "light"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (side, side)).save(tmp_path / name / "a.png")
    cfg = build_cfg("", ["MODEL.META_ARCHITECTURE", "ImageClassifier", "CLASSIFICATION.CUSTOM.TRAIN", str(tmp_path)])
    assert MetadataCatalog.get("custom_images_train").recipe == recipe
    assert cfg.INPUT.CLASSIFICATION.CROP_TEST == cfg.INPUT.CLASSIFICATION.RANDOM_RESIZED_CROP == crop
    told = build_cfg("", ["MODEL.META_ARCHITECTURE", "ImageClassifier", "CLASSIFICATION.CUSTOM.TRAIN", str(tmp_path),
                          "INPUT.CLASSIFICATION.RECIPE", "imagenet"])  # fmt: skip
    assert told.INPUT.CLASSIFICATION.CROP_TEST == 224
    forget("custom_images_train")
