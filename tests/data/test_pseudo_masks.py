"""Pseudo masks: GrabCut on images where the object is known, its cache, and masks from a json."""

import json
import sys
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image

from dyn_d2.config.read import read_cfg
from dyn_d2.data import pseudo_masks
from dyn_d2.data.partial_masks import PartialMaskMapper, apply_partial_masks, as_polygons
from dyn_d2.data.pseudo_masks import GrabCut, encode, grabcut_mask, object_key, read_masks
from dyn_d2.utils.errors import UserError

from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode

HEIGHT, WIDTH = 80, 96


def disc(x: int = 48, y: int = 40, radius: int = 18) -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def picture(mask: np.ndarray) -> np.ndarray:
    """A red object on green ground, both noisy."""
    noise = np.random.default_rng(0).integers(0, 40, (*mask.shape, 3))
    return (noise + np.where(mask[..., None], (30, 40, 190), (60, 150, 50))).astype(np.uint8)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


BOX = [30, 22, 67, 59]  # of disc()


# GrabCut


@pytest.mark.parametrize("settings", [GrabCut(), GrabCut(max_side=40)], ids=["full", "shrunk"])
def test_it_finds_an_object_by_its_colours(settings) -> None:
    pytest.importorskip("cv2")
    mask = grabcut_mask(picture(disc()), BOX, settings)
    assert mask.dtype == bool and mask.shape == (HEIGHT, WIDTH)
    assert iou(mask, disc()) > 0.85 > iou(np.pad(np.ones((37, 37), bool), ((22, 21), (30, 29))), disc())


def test_it_stays_in_its_box_and_says_the_same_twice() -> None:
    pytest.importorskip("cv2")
    image, narrow = picture(disc()), [30.4, 22, 63.7, 59]
    first, second = (grabcut_mask(image, narrow) for _ in range(2))
    assert np.array_equal(first, second) and first.any() and not first[:, 64:].any()


@pytest.mark.parametrize(
    "box",
    [[40, 30, 45, 60], [90, 30, 130, 60], [0, 0, WIDTH, HEIGHT], [60, 60, 40, 40], [-50, -50, -10, -10]],
    ids=["thin", "thin inside of the image", "whole image", "inverted", "outside"],
)
def test_boxes_without_anything_to_go_by_get_no_mask(box) -> None:
    pytest.importorskip("cv2")
    assert grabcut_mask(picture(disc()), box) is None


def test_almost_nothing_counts_as_failed() -> None:
    pytest.importorskip("cv2")
    dot, around = disc(radius=4), [20, 12, 76, 68]
    assert grabcut_mask(picture(dot), around, GrabCut(core=0)) is None
    assert iou(grabcut_mask(picture(dot), around, GrabCut(core=0, min_share=0)), dot) > 0.5


def test_the_middle_belongs_to_the_object() -> None:
    pytest.importorskip("cv2")
    plain = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)  # colours say nothing
    assert grabcut_mask(plain, BOX, GrabCut(core=0)) is None
    assert grabcut_mask(plain, BOX, GrabCut(min_share=0))[32:49, 40:57].all()


def test_settings_out_of_range() -> None:
    with pytest.raises(ValueError, match="ITERATIONS 0"):
        GrabCut(iterations=0)


# Records and cache


def annotation(box: list[float], **more) -> dict:
    return {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, **more}


@pytest.fixture
def records(tmp_path) -> list[dict]:
    """Two images: one object with a mask beside one without; a box too small, a crowd, and one without."""
    result = []
    more = [
        [annotation(BOX), annotation([2, 2, 20, 20], segmentation=[[2, 2, 20, 2, 20, 20]])],
        [annotation(BOX), annotation([1, 1, 4, 4]), annotation([50, 2, 90, 30], iscrowd=1, segmentation=[])],
    ]
    for number, annotations in enumerate(more):
        path = tmp_path / f"{number}.png"
        Image.fromarray(picture(disc())[:, :, ::-1]).save(path)
        size = {"width": WIDTH, "height": HEIGHT}
        result.append({"file_name": str(path), "image_id": number, **size, "annotations": annotations})
    return result


@pytest.fixture
def cfg(tmp_path):
    MetadataCatalog.get("pseudo_toy").set(thing_classes=["disc"])
    cfg = read_cfg()
    keys = ["DATASETS.TRAIN", ("pseudo_toy",), "MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.NAME", "PartialMaskHead"]
    keys += ["INPUT.PARTIAL_MASKS.PSEUDO", "grabcut", "INPUT.PARTIAL_MASKS.CACHE", str(tmp_path / "cache")]
    cfg.merge_from_list([*keys, "DATALOADER.NUM_WORKERS", 2])
    yield cfg
    MetadataCatalog.remove("pseudo_toy")


def test_objects_without_masks_get_marked_ones(cfg, records, caplog) -> None:
    pytest.importorskip("cv2")
    caplog.set_level("INFO")
    result = apply_partial_masks(cfg, records)
    flags = [[(a.get("pseudo_mask", False), "segmentation" in a) for a in record["annotations"]] for record in result]
    assert flags == [[(True, True), (False, True)], [(True, True), (False, False), (False, False)]]
    assert iou(mask_util.decode(result[0]["annotations"][0]["segmentation"]).astype(bool), disc()) > 0.85
    assert "pseudo_mask" not in records[0]["annotations"][0]  # the data set itself is as it was
    assert "2 of 3 objects without a mask got one" in caplog.text
    assert "3 of 4 objects have masks, in 2 of 2 images; 2 of these masks are pseudo-masks" in caplog.text


def test_masks_are_made_once_per_image_box_and_settings(cfg, records, monkeypatch) -> None:
    pytest.importorskip("cv2")
    calls, grabcut = [], grabcut_mask
    monkeypatch.setattr(pseudo_masks, "grabcut_mask", lambda *a: calls.append(a[1]) or grabcut(*a))
    first = apply_partial_masks(cfg, records)
    assert len(calls) == 3  # a failure is remembered as well
    assert apply_partial_masks(cfg, records) == first and len(calls) == 3

    records[0]["annotations"].append(annotation([40, 20, 70, 60]))
    apply_partial_masks(cfg, records)
    assert calls[3:] == [[40, 20, 70, 60]]
    Image.fromarray(picture(disc(radius=12))).save(records[1]["file_name"])
    apply_partial_masks(cfg, records)
    assert len(calls) == 6
    cfg.INPUT.PARTIAL_MASKS.GRABCUT.ITERATIONS = 2
    apply_partial_masks(cfg, records)
    assert len(calls) == 10

    for path in Path(cfg.INPUT.PARTIAL_MASKS.CACHE).rglob("*.json"):
        path.write_text('{"half a fi')
    assert apply_partial_masks(cfg, records)[0]["annotations"][0]["pseudo_mask"] and len(calls) == 14


def test_processes_share_the_work_and_all_get_everything(cfg, records, monkeypatch) -> None:
    pytest.importorskip("cv2")
    alone = apply_partial_masks(cfg, records)
    cfg.INPUT.PARTIAL_MASKS.CACHE += "_two"
    shares, fill = [], pseudo_masks._fill
    monkeypatch.setattr(pseudo_masks, "_fill", lambda jobs, *a: shares.append(len(jobs)) or fill(jobs, *a))
    monkeypatch.setattr(pseudo_masks.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(pseudo_masks.comm, "synchronize", lambda: None)
    for rank in (0, 1):
        monkeypatch.setattr(pseudo_masks.comm, "get_rank", lambda rank=rank: rank)
        assert apply_partial_masks(cfg, records) == alone
    assert shares[0] + shares[2] == shares[1] == shares[3]


def test_a_kill_leaves_no_half_file(cfg, records, monkeypatch) -> None:
    pytest.importorskip("cv2")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pseudo_masks, "encode", killed)
    with pytest.raises(KeyboardInterrupt):
        apply_partial_masks(cfg, records)
    assert not list(Path(cfg.INPUT.PARTIAL_MASKS.CACHE).rglob("*"))


def test_without_opencv_one_sentence_says_so(cfg, records, monkeypatch) -> None:
    pseudo_masks._opencv.cache_clear()
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match="needs OpenCV.*pip install opencv-python-headless"):
        apply_partial_masks(cfg, records)
    pseudo_masks._opencv.cache_clear()


def test_image_of_another_size_is_named(cfg, records) -> None:
    pytest.importorskip("cv2")
    records[1]["width"] = 50
    with pytest.raises(ValueError, match=r"1\.png is 96 x 80, but the annotations say 50 x 80"):
        apply_partial_masks(cfg, records)


# Masks from a json


def write_masks(path: Path, records: list[dict], mask: np.ndarray) -> str:
    annotations = [
        {"image_id": key[0], "bbox": key[1], "segmentation": encode(mask)}
        for record in records
        for key in [object_key(record, record["annotations"][0])]
    ]
    path.write_text(json.dumps({"annotations": annotations}))
    return str(path)


def test_json_gives_masks_by_image_and_box(cfg, records, tmp_path) -> None:
    cfg.INPUT.PARTIAL_MASKS.PSEUDO = write_masks(tmp_path / "masks.json", records, disc())
    records[0]["annotations"][0] = annotation([30.001, 22, 37, 37], bbox_mode=BoxMode.XYWH_ABS)
    result = apply_partial_masks(cfg, records)
    for record in result:
        assert record["annotations"][0]["pseudo_mask"]
        assert np.array_equal(mask_util.decode(record["annotations"][0]["segmentation"]), disc())
    assert not any(a.get("pseudo_mask") for record in result for a in record["annotations"][1:])


def test_json_that_does_not_fit_is_named(cfg, records, tmp_path) -> None:
    def said(path: str, message: str, error=ValueError) -> None:
        cfg.INPUT.PARTIAL_MASKS.PSEUDO = path
        with pytest.raises(error, match=message):
            apply_partial_masks(cfg, records)

    said("grab-cut", "'grab-cut': there is no such file.*'grabcut'", FileNotFoundError)
    (tmp_path / "broken.json").write_text("[1, 2]")
    said(str(tmp_path / "broken.json"), "broken.json is no json of masks")
    others = [{**record, "image_id": record["image_id"] + 10} for record in records]
    said(write_masks(tmp_path / "others.json", others, disc()), "no mask for any of the 3 objects of pseudo_toy")
    small = write_masks(tmp_path / "small.json", records, disc()[:50])
    said(small, r"0\.png gets a run-length mask of size \[50, 96\] in an image of 96 x 80")
    assert len(read_masks(small)) == 2


# Forms


@pytest.mark.parametrize("form", ["polygon", "bitmask"])
def test_mapper_takes_pseudo_masks_beside_polygons(cfg, records, tmp_path, form) -> None:
    cfg.INPUT.PARTIAL_MASKS.PSEUDO = write_masks(tmp_path / "masks.json", records, disc())
    cfg.merge_from_list(["INPUT.MASK_FORMAT", form, "INPUT.MIN_SIZE_TRAIN", (HEIGHT,), "INPUT.RANDOM_FLIP", "none"])
    truth = PartialMaskMapper(cfg, is_train=True)(apply_partial_masks(cfg, records)[0])["instances"]
    assert truth.gt_has_mask.tolist() == [True, True]
    masks = truth.gt_masks.crop_and_resize(truth.gt_boxes.tensor, 37).numpy()
    assert iou(masks[0], disc()[22:59, 30:67]) > 0.95 and 0.4 < masks[1].mean() < 0.6


@pytest.mark.parametrize("compressed", [True, False])
def test_run_lengths_as_polygons_cover_the_same_pixels(compressed) -> None:
    ring = disc() & ~disc(radius=7)
    ring[3, 4] = True
    code = encode(ring)
    if not compressed:
        counts = np.flatnonzero(np.diff(ring.T.ravel(), prepend=False))
        code["counts"] = np.diff(counts, prepend=0, append=ring.size).tolist()
    polygons = as_polygons(code)
    assert np.array_equal(mask_util.decode(mask_util.merge(mask_util.frPyObjects(polygons, HEIGHT, WIDTH))), ring)
    assert as_polygons(encode(np.zeros_like(ring))) == []
