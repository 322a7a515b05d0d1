"""Pictures of results: the files are there and are pictures, curves are pycocotools', labels keep out of the way."""

import contextlib
import io
import json
import uuid

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tiny_detection import CLASSES, write_boxes

from dyn_d2.evaluation.boxes_on_image import draw_objects, label_place, picture
from dyn_d2.evaluation.figures import (
    BASE_COLOUR,
    NOVEL_COLOUR,
    draw_ap_against_shots,
    draw_precision_recall,
    draw_predictions,
    precision_recall_curves,
)
from dyn_d2.evaluation.palette import class_colour

from detectron2.data import MetadataCatalog
from detectron2.data.datasets import register_coco_instances


def _dataset(folder, images=5, **metadata):
    file = write_boxes(folder, images)
    name = f"set_{uuid.uuid4().hex}"
    register_coco_instances(name, metadata, str(file), str(folder / "images"))
    MetadataCatalog.get(name).set(
        thing_classes=list(CLASSES), thing_dataset_id_to_contiguous_id={k + 1: k for k in range(len(CLASSES))}
    )
    return name, file


def _detections(file, path, keep=0.8, masks=False):
    """Ground truth, shaken: boxes moved, some classes wrong, some left out."""
    rng = np.random.default_rng(0)
    found = []
    for annotation in json.loads(file.read_text())["annotations"]:
        if rng.random() > keep:
            continue
        wrong = rng.random() < 0.2
        found.append({
            "image_id": annotation["image_id"],
            "category_id": int(rng.integers(1, 5)) if wrong else annotation["category_id"],
            "bbox": (np.array(annotation["bbox"]) + rng.normal(0, 1, 4)).tolist(),
            "score": float(rng.uniform(0.1, 1)),
            **({"segmentation": annotation["segmentation"]} if masks else {}),
        })  # fmt: skip
    path.write_text(json.dumps(found))
    return path


def _is_picture(path, least=(300, 200)):
    with Image.open(path) as image:
        assert image.format == "PNG" and all(a >= b for a, b in zip(image.size, least, strict=True)), image.size
        assert max(image.size) < 4000
        assert np.asarray(image.convert("L")).std() > 5, "the picture is blank"
        return np.asarray(image.convert("RGB")).reshape(-1, 3)


def _has(pixels, colour):
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return (np.abs(pixels.astype(int) - wanted).max(axis=1) <= 2).sum() > 20


def test_grid_tells_base_from_novel(tmp_path):
    name, file = _dataset(tmp_path, base_classes=list(CLASSES[:3]), novel_classes=list(CLASSES[3:]))
    results = _detections(file, tmp_path / "found.json")
    pixels = _is_picture(draw_predictions(name, results, tmp_path / "grid.png"), (900, 600))
    assert _has(pixels, BASE_COLOUR) and _has(pixels, NOVEL_COLOUR)


@pytest.mark.parametrize("masks", [False, True])
def test_grid_of_a_set_without_groups_and_of_single_images(tmp_path, masks):
    name, file = _dataset(tmp_path, images=2)
    results = _detections(file, tmp_path / "found.json", masks=masks)
    pixels = _is_picture(draw_predictions(name, results, tmp_path / "grid.png", images=6))
    assert not _has(pixels, NOVEL_COLOUR) and _has(pixels, class_colour(0))


def test_grid_without_detections(tmp_path):
    name, _ = _dataset(tmp_path, images=1)
    (tmp_path / "found.json").write_text("[]")
    _is_picture(draw_predictions(name, tmp_path / "found.json", tmp_path / "grid.png"))
    with pytest.raises(FileNotFoundError, match="none.json does not exist: evaluate"):
        draw_predictions(name, tmp_path / "none.json", tmp_path / "grid2.png")
    assert not (tmp_path / "grid2.png").exists()


def test_curves_equal_pycocotools(tmp_path):
    name, file = _dataset(tmp_path, images=12)
    results = _detections(file, tmp_path / "found.json")
    curves = precision_recall_curves(name, results)
    assert list(curves) == list(CLASSES)
    for number, label in enumerate(CLASSES, 1):
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(file))
            run = COCOeval(truth, truth.loadRes(str(results)), "bbox")
            run.params.catIds, run.params.iouThrs = [number], np.array([0.5])
            run.evaluate(), run.accumulate(), run.summarize()
        assert curves[label].shape == (101,)
        assert curves[label].mean() == pytest.approx(run.eval["precision"][0, :, 0, 0, -1].mean(), abs=1e-9)
        assert (np.diff(curves[label]) <= 1e-9).all()
    assert 0 < curves["red"].mean() < 1
    _is_picture(draw_precision_recall(name, results, tmp_path / "pr.png"))


def test_curves_that_cannot_be_drawn_are_explained(tmp_path):
    name, file = _dataset(tmp_path)
    (tmp_path / "empty.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no detection"):
        draw_precision_recall(name, tmp_path / "empty.json", tmp_path / "pr.png")
    results = _detections(file, tmp_path / "found.json")
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "annotations": []}))
    with pytest.raises(ValueError, match="holds no object"):
        precision_recall_curves(name, results)
    MetadataCatalog.get("set_without_json").set(thing_classes=["a"])
    with pytest.raises(ValueError, match="no COCO json"):
        precision_recall_curves("set_without_json", results)
    assert not (tmp_path / "pr.png").exists()


def test_ap_against_shots(tmp_path):
    lines = {"TFA w/ fc": {1: (3.0, 0.5), 5: (8.0, 1.0)}, "TFA w/ cos": {1: (4.0, float("nan"))}}
    _is_picture(draw_ap_against_shots(lines, tmp_path / "lines.png"))
    _is_picture(draw_ap_against_shots({"a": {5: (3.0, 1.0)}, "b": {5: (4.0, float("nan"))}}, tmp_path / "bars.png"))
    with pytest.raises(ValueError, match="no nAP"):
        draw_ap_against_shots({}, tmp_path / "nothing.png")


coordinates = st.tuples(st.floats(0, 90), st.floats(0, 90), st.floats(5, 60), st.floats(5, 60))


@settings(max_examples=50)
@given(st.lists(coordinates, min_size=1, max_size=6))
def test_labels_stay_inside_and_the_first_one_leaves_its_object_visible(boxes):
    taken = []
    for x, y, w, h in boxes:
        place = label_place((x, y, x + w, y + h), (20, 6), (160, 160), taken)
        assert 0 <= place[0] and 0 <= place[1] and place[2] <= 160 and place[3] <= 160
        assert place[2] - place[0] == pytest.approx(20) and place[3] - place[1] == pytest.approx(6)
        taken.append(place)
    x, y, w, h = boxes[0]
    assert taken[0][3] <= y + 1e-9 or taken[0][1] >= y + h - 1e-9 or taken[0][0] >= x + w or taken[0][2] <= x


def test_two_labels_of_one_place_do_not_cover_each_other():
    first = label_place((40, 40, 60, 60), (30, 8), (160, 160), [])
    second = label_place((40, 40, 60, 60), (30, 8), (160, 160), [first])
    assert second[1] >= first[3] or second[3] <= first[1] or second[0] >= first[2] or second[2] <= first[0]


def test_picture_has_a_legible_size_whatever_the_image(tmp_path):
    for size, expected in (((40, 60), 480), ((700, 500), 700), ((2500, 100), 1600)):
        figure = picture(np.zeros((*size, 3), np.uint8), np.zeros((0, 4)), [], [])
        assert max(figure.get_size_inches() * figure.dpi) == pytest.approx(expected)


def test_objects_need_a_label_each():
    axis = Figure().subplots()
    with pytest.raises(ValueError):
        draw_objects(axis, np.zeros((20, 20, 3), np.uint8), np.zeros((2, 4)), ["one"], ["red", "red"])
