"""DigitScenes: what is written is what is seen, reproducible, and whole or absent."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco_mask

from dyn_d2.data.digit_scenes import (
    CLASS_NAMES,
    IGNORE,
    SEMANTIC_CLASSES,
    DigitScenesSpec,
    SceneOptions,
    describe,
    generate_digit_scenes,
    photos,
    register_digit_scenes,
    render,
    render_scene,
    split_statistics,
)
from dyn_d2.data.digit_scenes import generate as generate_module
from dyn_d2.data.digit_scenes.polygons import mask_to_polygons
from dyn_d2.data.digit_scenes.scene import MAX_ANGLE, MIN_VISIBLE, digit_pool

from detectron2.data import DatasetCatalog, MetadataCatalog

SPEC = DigitScenesSpec(num_train=12, num_val=6)
ROOT = Path(__file__).parents[2]


def decode(polygons: list[list[float]], height: int, width: int) -> np.ndarray:
    if not polygons:
        return np.zeros((height, width), bool)
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))).astype(bool)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "digit_scenes"
    assert generate_digit_scenes(root, SPEC, quiet=True)
    return root


@pytest.fixture
def registered(folder: Path):
    register_digit_scenes(folder, "digit_scenes_test")
    yield "digit_scenes_test"
    for name in [name for name in DatasetCatalog.list() if name.startswith("digit_scenes_test")]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@settings(max_examples=150, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_polygons_decode_to_the_mask(mask: np.ndarray) -> None:
    assert (decode(mask_to_polygons(mask), *mask.shape) == mask).all()


def test_polygon_of_a_rectangle_has_four_corners() -> None:
    mask = np.zeros((9, 9), bool)
    mask[2:5, 3:8] = True
    (polygon,) = mask_to_polygons(mask)
    assert sorted(zip(polygon[::2], polygon[1::2], strict=True)) == [(3, 2), (3, 5), (8, 2), (8, 5)]


def test_polygons_of_nested_rings() -> None:
    y, x = np.mgrid[:40, :40]
    mask = (np.hypot(x - 20, y - 20).astype(int) // 4) % 2 == 0
    assert (decode(mask_to_polygons(mask), 40, 40) == mask).all()


def test_drawn_digit_keeps_the_grey_levels_of_the_original() -> None:
    originals, positions = digit_pool("train")
    for position in (group[0] for group in positions):
        # Ink in a cell of the drawing, averaged over thresholds, rises with the original's grey level.
        alphas = render.digit_alphas(originals[position], 80, (8.0,))
        ink, grey = alphas[0].sum() / 100, (originals[position] / 16).sum()
        assert 0.7 * grey < ink < 1.3 * grey
        bolder, thinner = render.digit_alphas(originals[position], 50, (6.0, 9.0), angle=20, shear=0.2)
        assert bolder.shape == thinner.shape and (bolder >= thinner).all()


def test_rotation_turns_clockwise_and_shear_leans_to_the_right() -> None:
    bar = np.zeros((8, 8))
    bar[:, 3:5] = 16
    for pose in ({"angle": 20.0}, {"shear": 0.35}):
        rows, columns = np.nonzero(render.digit_alphas(bar, 64, (8.0,), **pose)[0] >= 0.5)
        assert columns[rows < rows.max() / 3].mean() > columns[rows > rows.max() * 2 / 3].mean() + 8
    assert MAX_ANGLE < 45  # beyond, a 6 begins to be a 9


def test_scene_is_consistent() -> None:
    labels = set()
    for index in range(12):
        scene = render_scene("train", index)
        height, width, _ = scene.image.shape
        assert scene.image.dtype == np.uint8 and scene.semantic.shape == (height, width)
        assert 128 <= min(height, width) <= 160 and max(height, width) <= 1.2 * min(height, width) + 1
        assert 1 <= len(scene.classes) <= 6
        assert np.sum(scene.masks, axis=0).max() == 1
        for digit, mask in zip(scene.classes, scene.masks, strict=True):
            seen = scene.semantic[mask]
            assert set(seen) <= {digit + 1, IGNORE} and (seen == digit + 1).mean() > 0.5
        labels |= set(np.unique(scene.semantic))
    assert labels - {IGNORE} <= set(range(len(SEMANTIC_CLASSES))) and len(labels) > 14


def test_occlusion_is_limited() -> None:
    for index in range(10):
        scene = render_scene("val", index, options=SceneOptions(digits=(6, 6), clutter=(4, 4), digit_size=(0.3, 0.5)))
        assert len(scene.masks) >= 2 and min(scene.visible) < 1
        assert min(scene.visible) >= MIN_VISIBLE


def test_scene_depends_on_seed_split_and_index_alone() -> None:
    first, again = render_scene("val", 3, seed=7), render_scene("val", 3, seed=7)
    assert (first.image == again.image).all() and (first.semantic == again.semantic).all()
    for other in (render_scene("val", 4, seed=7), render_scene("train", 3, seed=7), render_scene("val", 3, seed=8)):
        assert first.image.shape != other.image.shape or (first.image != other.image).any()


def test_splits_share_no_original_and_no_photograph() -> None:
    pools = {split: digit_pool(split)[1] for split in ("train", "val")}
    train, val = (set(np.concatenate(pools[split])) for split in ("train", "val"))
    assert not train & val and len(train | val) == 1797
    assert all(len(group) > 30 for split in pools.values() for group in split)
    strips = [photos.photo_strips(split) for split in ("train", "val")]
    assert [a.width + b.width for (a, _), (b, _) in zip(*strips, strict=True)] == [640, 640]
    for parts in strips:  # every background class can be learnt and tested
        seen = np.unique(np.concatenate([np.asarray(labels).ravel() for _, labels in parts]))
        assert set(seen) == {*range(len(photos.BACKGROUND_CLASSES)), IGNORE}


def test_classes_are_balanced() -> None:
    options = SceneOptions(short_side=(48, 48), clutter=(0, 0), digits=(5, 5))
    count = Counter(digit for index in range(100) for digit in render_scene("train", index, options=options).classes)
    expected = sum(count.values()) / 10
    # chi-square with 9 degrees of freedom: 30 is beyond the 99.9 % quantile
    assert sum((count[digit] - expected) ** 2 / expected for digit in range(10)) < 30


def test_files_agree_with_the_scenes(folder: Path) -> None:
    for split, count in (("train", 12), ("val", 6)):
        content = json.loads((folder / "annotations" / f"instances_{split}.json").read_text())
        assert [category["name"] for category in content["categories"]] == list(CLASS_NAMES)
        assert len(content["images"]) == count
        assert [annotation["id"] for annotation in content["annotations"]] == list(
            range(1, len(content["annotations"]) + 1)
        )
        for index, image in enumerate(content["images"]):
            scene = render_scene(split, index)
            size = image["height"], image["width"]
            name = image["file_name"].removesuffix(".jpg")
            picture = np.asarray(Image.open(folder / "images" / split / image["file_name"]), int)
            assert np.abs(picture - scene.image).mean() < 8
            assert (np.asarray(Image.open(folder / "semantic" / split / f"{name}.png")) == scene.semantic).all()
            mine = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            assert [a["category_id"] - 1 for a in mine] == scene.classes
            for annotation, mask in zip(mine, scene.masks, strict=True):
                assert (decode(annotation["segmentation"], *size) == mask).all()
                assert annotation["area"] == mask.sum() and annotation["iscrowd"] == 0
                box = coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))))
                assert annotation["bbox"] == box.tolist()


def test_same_parameters_give_the_same_bytes_and_more_images_leave_the_first(folder: Path, tmp_path: Path) -> None:
    generate_digit_scenes(tmp_path / "again", SPEC, quiet=True)
    assert contents(tmp_path / "again") == contents(folder)
    generate_digit_scenes(tmp_path / "more", DigitScenesSpec(num_train=14, num_val=6), quiet=True)
    before, after = contents(folder), contents(tmp_path / "more")
    assert all(after[name] == before[name] for name in before if name.startswith(("images", "semantic")))


def test_finished_folder_is_kept_and_damaged_one_made_again(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "digit_scenes"
    spec = DigitScenesSpec(num_train=2, num_val=1)
    assert generate_digit_scenes(root, spec, quiet=True)
    good = contents(root)
    assert not generate_digit_scenes(root, spec, quiet=True)
    (root / "images" / "train" / "000001.jpg").unlink()
    assert generate_digit_scenes(root, spec, quiet=True) and contents(root) == good


def test_other_folders_are_not_overwritten(tmp_path: Path) -> None:
    root = tmp_path / "digit_scenes"
    generate_digit_scenes(root, DigitScenesSpec(1, 1), quiet=True)
    with pytest.raises(FileExistsError, match="seed 0 instead of 3.*--overwrite"):
        generate_digit_scenes(root, DigitScenesSpec(1, 1, seed=3), quiet=True)
    assert generate_digit_scenes(root, DigitScenesSpec(1, 1, seed=3), overwrite=True, quiet=True)
    assert json.loads((root / "manifest.json").read_text())["seed"] == 3
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "love.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="no manifest.json of DigitScenes"):
        generate_digit_scenes(tmp_path / "letters", SPEC, overwrite=True, quiet=True)
    assert (tmp_path / "letters" / "love.txt").exists()


@pytest.mark.slow
def test_killed_run_leaves_nothing_in_place(tmp_path: Path) -> None:
    root = tmp_path / "digit_scenes"
    command = [sys.executable, str(ROOT / "datasets" / "prepare_digit_scenes.py"), "--quiet", "--root", str(root)]
    run = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    partial = tmp_path / ".digit_scenes.partial" / "images" / "train"
    while not (partial.is_dir() and len(os.listdir(partial)) > 3) and run.poll() is None:
        time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL and not root.exists()
    assert generate_digit_scenes(root, DigitScenesSpec(2, 1), quiet=True)
    assert sorted(os.listdir(tmp_path)) == [".digit_scenes.lock", "digit_scenes"]


def test_failure_while_writing_leaves_nothing_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(generate_module, "write_json", full_disk)
        generate_digit_scenes(tmp_path / "digit_scenes", DigitScenesSpec(1, 1), quiet=True)
    assert not (tmp_path / "digit_scenes").exists()
    assert generate_digit_scenes(tmp_path / "digit_scenes", DigitScenesSpec(1, 1), quiet=True)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"digits": (0, 3)}, "digits"),
        ({"digits": (5, 3)}, "digits"),
        ({"short_side": (8, 100)}, "short_side"),
        ({"digit_size": (0.2, 1.5)}, "digit_size"),
        ({"max_aspect": 9.0}, "max_aspect"),
    ],
)
def test_impossible_options_are_named(options: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        SceneOptions(**options)
    with pytest.raises(ValueError, match="0 train"):
        DigitScenesSpec(num_train=0)


def test_registered_instances(folder: Path, registered: str) -> None:
    records = DatasetCatalog.get(f"{registered}_train")
    metadata = MetadataCatalog.get(f"{registered}_train")
    assert metadata.thing_classes == list(CLASS_NAMES) and metadata.evaluator_type == "coco"
    assert len(records) == 12
    scene = render_scene("train", 0)
    assert [annotation["category_id"] for annotation in records[0]["annotations"]] == scene.classes


def test_registered_label_maps(registered: str) -> None:
    records = DatasetCatalog.get(f"{registered}_val_sem")
    metadata = MetadataCatalog.get(f"{registered}_val_sem")
    assert metadata.evaluator_type == "sem_seg" and metadata.ignore_label == IGNORE
    assert metadata.stuff_classes == list(SEMANTIC_CLASSES)
    for index, record in enumerate(records):
        labels = np.asarray(Image.open(record["sem_seg_file_name"]))
        assert labels.shape == (record["height"], record["width"])
        assert (labels == render_scene("val", index).semantic).all()


def test_missing_data_name_the_command(tmp_path: Path, registered: str) -> None:
    register_digit_scenes(tmp_path / "nowhere", registered)
    for name in ("train", "val", "train_sem", "val_sem"):
        with pytest.raises(FileNotFoundError, match="prepare digit-scenes"):
            DatasetCatalog.get(f"{registered}_{name}")


def test_statistics(folder: Path) -> None:
    for split, count in (("train", 12), ("val", 6)):
        found = split_statistics(folder, split)
        scenes = [render_scene(split, index) for index in range(count)]
        assert found["images"] == count and found["instances"] == sum(len(scene.classes) for scene in scenes)
        assert sum(found["instances per class"].values()) == found["instances"]
        clutter = sum((scene.semantic == 0).sum() for scene in scenes) / sum(scene.semantic.size for scene in scenes)
        assert found["pixels"]["clutter"] == pytest.approx(clutter, abs=1e-3)
    assert "instances per class: zero " in describe(folder)


def test_registered_by_importing_dyn_d2() -> None:
    assert {"digit_scenes_train", "digit_scenes_val", "digit_scenes_train_sem", "digit_scenes_val_sem"} <= set(
        DatasetCatalog.list()
    )
