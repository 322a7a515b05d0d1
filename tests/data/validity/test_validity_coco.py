"""COCO json: what can be read in one way only, check, loader and evaluator read so; what cannot, they all refuse."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
from toy_coco import HEIGHT, WIDTH, changed, content, put, put_all, register, score, write

from dyn_d2.cli import check_data
from dyn_d2.data.check import check_coco_json, clean_json
from dyn_d2.data.check_report import REMEDIES
from dyn_d2.data.few_shot.sources import forget, load_source
from dyn_d2.data.sound_dicts import sound_dicts
from dyn_d2.data.validity.coco import DataError
from dyn_d2.data.validity.ground_truth import _box_mask, coco_api


def objects(path: str) -> list[tuple]:
    """What a detector is trained on: image, class, box. Few-shot sets are made from the same."""
    name = register(path)
    try:
        records = sound_dicts([name], filter_empty=False)
        assert records == load_source(name)
    finally:
        forget(name)
    return [
        (r["image_id"], a["category_id"], a["bbox"])
        for r in records
        for a in r["annotations"]
        if not a.get("iscrowd", 0)
    ]


def rle(counts: Any, size: tuple[int, int] = (HEIGHT, WIDTH)) -> dict:
    return {"size": list(size), "counts": counts}


def square() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[3:11, 2:12] = 1
    return mask


def compressed() -> str:
    return mask_util.encode(np.asfortranarray(square()))["counts"].decode()


def lengths() -> list[int]:
    column = square().T.ravel()
    starts = np.flatnonzero(np.diff(column, prepend=0))
    return np.diff(np.concatenate([[0], starts, [column.size]])).tolist()


ALIKE = {
    "annotation ids from 0": lambda c: [a.update(id=i) for i, a in enumerate(c["annotations"])],
    "annotation ids are texts": lambda c: [a.update(id=f"a{a['id']}") for a in c["annotations"]],
    "annotation ids of both types": put(2, id="3"),
    "image ids are texts": lambda c: [
        *(i.update(id=f"x{i['id']}") for i in c["images"]),
        *(a.update(image_id=f"x{a['image_id']}") for a in c["annotations"]),
    ],
    "sizes of 40.0": lambda c: [i.update(width=40.0, height=30.0) for i in c["images"]],
    "ids of 1.0": lambda c: [a.update(id=float(a["id"]), image_id=float(a["image_id"])) for a in c["annotations"]],
    "category ids of 1.0": lambda c: [a.update(category_id=float(a["category_id"])) for a in c["annotations"]],
    "boxes of integers": lambda c: [a.update(bbox=[int(x) for x in a["bbox"]]) for a in c["annotations"]],
    "area null": put_all(area=None),
    "area missing": lambda c: [a.pop("area") for a in c["annotations"]],
    "iscrowd null": put_all(iscrowd=None),
    "iscrowd missing": lambda c: [a.pop("iscrowd") for a in c["annotations"]],
    "iscrowd false": put_all(iscrowd=False),
    "ignore 0": put_all(ignore=0),
    "category ids with gaps": lambda c: [
        *(k.update(id=10 * k["id"]) for k in c["categories"]),
        *(a.update(category_id=10 * a["category_id"]) for a in c["annotations"]),
    ],
    "order of the sections": lambda c: c.update(annotations=c["annotations"][::-1], categories=c["categories"][::-1]),
    "compressed mask": put(0, segmentation=rle(compressed())),
    "list of lengths": put(0, segmentation=rle(lengths())),
    "empty runs in a mask": put(0, segmentation=rle([*lengths()[:3], 0, 0, *lengths()[3:]])),
    "a mask that is flagged as present": put(0, has_mask=True),
    "size of a mask in floats": put(0, segmentation=rle(compressed(), (30.0, 40.0))),
}


@pytest.mark.parametrize("change", ALIKE.values(), ids=ALIKE)
def test_read_alike(tmp_path, change) -> None:
    path = write(tmp_path, changed(change))
    assert check_coco_json(path, str(tmp_path)).problems == []
    found = {(str(i).strip("x"), c, tuple(box)) for i, c, box in objects(path)}
    assert found == {(str(i), c, tuple(box)) for i, c, box in objects(write(tmp_path / "plain", content()))}
    assert score(path, masks=True).scores == {"bbox": pytest.approx(100), "segm": pytest.approx(100)}


REFUSED = {
    "annotation ids repeat": (put(1, id=1), "duplicate_annotation"),
    "annotation id null": (put(1, id=None), "bad_entry"),
    "annotation id true": (put(1, id=True), "bad_entry"),
    "image ids repeat": (lambda c: c["images"][1].update(id=1), "duplicate_image"),
    "image id NaN": (lambda c: c["images"][1].update(id=float("nan")), "bad_entry"),
    "image id null": (lambda c: c["images"][1].update(id=None), "bad_entry"),
    "image id 1.5": (lambda c: c["images"][1].update(id=1.5), "bad_entry"),
    "image id beyond 64 bits": (lambda c: c["images"][1].update(id=10**30), "bad_entry"),
    "image id a list": (lambda c: c["images"][1].update(id=[1]), "bad_entry"),
    "image ids of two types": (lambda c: c["images"][1].update(id="2"), "mixed_ids"),
    "image_id a text": (put(1, image_id="1"), "image_type"),
    "all image_id texts": (lambda c: [a.update(image_id=str(a["image_id"])) for a in c["annotations"]], "image_type"),
    "category id a text": (lambda c: c["categories"][1].update(id="2"), "bad_category"),
    "category_id a text": (put(1, category_id="2"), "unknown_category"),
    "category_id null": (put(1, category_id=None), "unknown_category"),
    "category_id a list": (put(1, category_id=[2]), "unknown_category"),
    "category without name": (lambda c: c["categories"][1].update(name=""), "bad_category"),
    "category's name null": (lambda c: c["categories"][1].update(name=None), "bad_category"),
    "category's name a number": (lambda c: c["categories"][1].update(name=2), "bad_category"),
    "two categories of a name": (lambda c: c["categories"][1].update(name="ant"), "duplicate_category"),
    "width a text": (lambda c: c["images"][1].update(width="40"), "bad_entry"),
    "width null": (lambda c: c["images"][1].update(width=None), "bad_entry"),
    "width 0": (lambda c: c["images"][1].update(width=0), "bad_entry"),
    "width of a million pixels and more": (lambda c: c["images"][1].update(width=2**20 + 1), "bad_entry"),
    "more pixels than 32 bits count": (lambda c: c["images"][1].update(width=2**16, height=2**16), "bad_entry"),
    "image_id with spaces": (put(1, image_id=" 1 "), "image_type"),
    "width 40.5": (lambda c: c["images"][1].update(width=40.5), "bad_entry"),
    "file_name null": (lambda c: c["images"][1].update(file_name=None), "file_name"),
    "iscrowd a text": (put_all(iscrowd="0"), "bad_flag"),
    "iscrowd 2": (put(1, iscrowd=2), "bad_flag"),
    "iscrowd a list": (put(1, iscrowd=[]), "bad_flag"),
    "ignore 1": (put(1, ignore=1), "ignore_flag"),
    "bbox null": (put(1, bbox=None), "bad_box"),
    "bbox empty": (put(1, bbox=[]), "bad_box"),
    "bbox of texts": (put(1, bbox=["1", "2", "3", "4"]), "bad_box"),
    "bbox a dict": (put(1, bbox={"x": 1, "y": 1, "w": 2, "h": 2}), "bad_box"),
    "bbox with NaN": (put(1, bbox=[1, 2, float("nan"), 4]), "non_finite"),
    "bbox of huge integers": (put(1, bbox=[1, 2, 10**400, 4]), "non_finite"),
    "bbox of bools": (put(1, bbox=[True, True, True, True]), "bad_box"),
    "annotation a list": (lambda c: c["annotations"].append([1]), "bad_entry"),
    "images an object": (lambda c: c.update(images={}), "bad_json"),
    "annotations null": (lambda c: c.update(annotations=None), "bad_json"),
    "categories missing": (lambda c: c.pop("categories"), "bad_json"),
}


@pytest.mark.parametrize(("change", "kind"), REFUSED.values(), ids=REFUSED)
def test_refused_by_check_loader_and_evaluator(tmp_path, change, kind) -> None:
    path = write(tmp_path, changed(change), images=False)
    report = check_coco_json(path)
    assert kind in {problem.kind for problem in report.problems}, report.text()
    for read in (objects, *([coco_api] if kind != "file_name" else [])):
        with pytest.raises(DataError, match="truth.json") as error:
            read(path)
        assert REMEDIES[kind] in str(error.value), error.value


@pytest.mark.parametrize("area", ["12", [], -1, float("nan"), 1e30, True])
def test_areas_that_are_none(tmp_path, area) -> None:
    """Evaluation alone reads them; a negative one would leave the object out without a word."""
    path = write(tmp_path, changed(put(1, area=area)))
    assert [problem.kind for problem in check_coco_json(path).problems] == ["bad_area"]
    assert len(objects(path)) == 6
    with pytest.raises(DataError, match="truth.json.*annotation 2.*area"):
        score(path)


BAD_MASKS = {
    "an empty polygon": [[]],
    "one flat list": [2, 3, 12, 3, 12, 11],
    "two points": [[2, 3, 12, 11]],
    "an odd number of coordinates": [[2, 3, 12, 3, 12, 11, 5]],
    "texts": [[2, 3, 12, "3", 12, 11]],
    "NaN": [[2, 3, 12, float("nan"), 12, 11]],
    "null for a polygon": [None],
    "a text": "polygon",
    "a number": 7,
    "no code": rle("not an rle"),
    "cut off": rle(compressed()[:-3]),
    "too long": rle([0, HEIGHT * WIDTH + 1]),
    "too short": rle([5, 7]),
    "negative": rle([-5, HEIGHT * WIDTH + 5]),
    "lengths as texts": rle(["1200"]),
    "counts null": rle(None),
    "no counts": {"size": [HEIGHT, WIDTH]},
    "another size": rle([WIDTH * HEIGHT], (WIDTH, HEIGHT)),
    "size a text": {"size": "30x40", "counts": [1200]},
    "changed byte": rle("Z" + compressed()[1:]),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("mask", BAD_MASKS.values(), ids=BAD_MASKS)
def test_masks_that_are_none(tmp_path, mask) -> None:
    """They are named by the check and refused where masks are evaluated; boxes are used where nobody asks for masks."""
    path = write(tmp_path, changed(put(0, segmentation=mask)))
    report = check_coco_json(path)
    assert [problem.kind for problem in report.problems] == ["bad_mask"], report.text()
    assert "annotation 1 " in str(report.problems[0])
    assert len(objects(path)) == 6
    assert score(path).scores == {"bbox": pytest.approx(100)}
    with pytest.raises(DataError, match="truth.json.*annotation 1"):
        score(path, masks=True)


@pytest.mark.parametrize("mask", [None, [], {}])
def test_no_mask(tmp_path, mask) -> None:
    path = write(tmp_path, changed(put(0, segmentation=mask)))
    assert check_coco_json(path).problems == []
    assert score(path).scores == {"bbox": pytest.approx(100)}
    path = write(tmp_path, changed(lambda c: [put(i, segmentation=mask)(c) for i in range(5)]))
    said = "annotation 1 and 4 more of 6 objects: no segmentation.*only those of DATASETS.TRAIN.*MODEL.MASK_ON to False"
    with pytest.raises(DataError, match=said):
        score(path, masks=True)


@pytest.mark.parametrize("mask", [[[5, 5, 9, 9, 7, 7]], [[5, 5, 5, 5, 5, 5]], rle([HEIGHT * WIDTH])])
def test_masks_without_a_pixel_are_named(tmp_path, mask) -> None:
    path = write(tmp_path, changed(put(0, segmentation=mask)))
    assert [problem.kind for problem in check_coco_json(path).problems] == ["empty_mask"]
    found = score(path, masks=True)
    assert found.scores["bbox"] == pytest.approx(100) and found.scores["segm"] < 99
    assert "annotation 1" in found.reasons[0] and "without a pixel" in found.reasons[0]


def test_a_mask_that_is_flagged_as_missing_is_not_used(tmp_path) -> None:
    path = write(tmp_path, changed(put(0, has_mask=False, segmentation=rle("damaged"))))
    assert check_coco_json(path).problems == []
    name = register(path)
    for records in (load_source(name), sound_dicts([name], filter_empty=False)):
        assert ["segmentation" in a for a in records[0]["annotations"]] == [False, True, True]
    forget(name)
    assert score(path).scores == {"bbox": pytest.approx(100)}
    with pytest.raises(DataError, match="annotation 1.*no segmentation"):
        score(path, masks=True)


def test_masks_of_images_too_large_for_memory_are_not_scored(tmp_path) -> None:
    path = write(tmp_path, changed(lambda c: c["images"][0].update(width=60000, height=60000)), images=False)
    assert score(path).scores == {"bbox": pytest.approx(100)}
    assert "masks of" in score(path, masks=True).skipped
    crowd = changed(
        lambda c: (c["images"][0].update(width=60000, height=60000), put(0, iscrowd=1, segmentation=None)(c))
    )
    assert score(write(tmp_path, crowd, images=False)).scores == {"bbox": pytest.approx(100)}


@pytest.mark.parametrize(
    "box", [[3.2, 4.4, 9.0, 10.3], [0, 0, 40, 30], [-2, 5, 50, 4], [35, 25, 90, 90], [60, 5, 3, 3]]
)
def test_a_crowd_without_a_mask_covers_its_box(box) -> None:
    found = _box_mask(box, HEIGHT, WIDTH)
    x0, y0, x1, y1 = (round(side) for side in (box[0], box[1], box[0] + box[2], box[1] + box[3]))
    right = np.zeros((HEIGHT, WIDTH), np.uint8)
    right[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = 1
    assert np.array_equal(mask_util.decode(found), right)


def test_crowds_are_no_objects_and_need_no_mask(tmp_path) -> None:
    path = write(tmp_path, changed(lambda c: (put(1, iscrowd=1, segmentation=rle("damaged"))(c), put(2, iscrowd=1)(c))))
    assert len(objects(path)) == 4
    assert score(path, masks=True).scores == {"bbox": pytest.approx(100), "segm": pytest.approx(100)}


def test_everything_a_crowd(tmp_path) -> None:
    report = check_coco_json(write(tmp_path, changed(put_all(iscrowd=1))))
    assert [problem.kind for problem in report.problems] == ["all_crowd"]


def test_boxes_as_fractions(tmp_path) -> None:
    def change(value):
        for a in value["annotations"]:
            x, y, w, h = a["bbox"]
            a["bbox"] = [x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT]

    report = check_coco_json(write(tmp_path, changed(change)))
    assert [problem.kind for problem in report.problems] == ["fraction_box"] * 6
    assert "multiply by the width and height" in report.text()


def test_test_set_without_annotations(tmp_path) -> None:
    path = write(tmp_path, changed(lambda c: c.pop("annotations")))
    report = check_coco_json(path, str(tmp_path))
    assert report.ok and "not scored" in report.text()
    assert objects(path) == []
    assert score(path).skipped == "there is no ground truth"


def test_the_command_says_what_it_does_not_score(tmp_path, capsys) -> None:
    path = write(tmp_path, content())
    assert check_data.main(["--json", path, "--perfect-images", "1"]) == 0
    assert "not scored: more than 1 images" in capsys.readouterr().out
    assert check_data.main(["--json", path]) == 0
    assert "perfect predictions score bbox AP 100.00, segm AP 100.00" in capsys.readouterr().out


def test_no_image_at_all(tmp_path) -> None:
    path = write(tmp_path, {**content(), "images": [], "annotations": []})
    assert [problem.kind for problem in check_coco_json(path).problems] == ["no_images"]


def test_strays_are_left_out(tmp_path) -> None:
    path = write(tmp_path, changed(put(0, image_id=77)))
    assert [problem.kind for problem in check_coco_json(path).problems] == ["unknown_image"]
    assert len(objects(path)) == 5 and score(path).scores == {"bbox": pytest.approx(100)}


# ---------------------------------------------------------------------------------------------------------- --clean


def cleaned(tmp_path, value) -> dict:
    path = write(tmp_path / "before", value)
    result = clean_json(value, check_coco_json(path, str(Path(path).parent)).problems)
    after = write(tmp_path / "after", result)
    assert check_coco_json(after, str(Path(path).parent)).problems == []
    return result


def test_two_exports_of_other_images_are_renumbered(tmp_path) -> None:
    value = changed(lambda c: [a.update(id=i % 3) for i, a in enumerate(c["annotations"])])
    result = cleaned(tmp_path, value)
    assert [a["id"] for a in result["annotations"]] == [0, 1, 2, 3, 4, 5]
    assert [{**a, "id": 0} for a in result["annotations"]] == [{**a, "id": 0} for a in value["annotations"]]


def test_the_same_export_twice_is_kept_once(tmp_path) -> None:
    value = changed(lambda c: c["annotations"].extend(content()["annotations"]))
    assert cleaned(tmp_path, value) == content()


def test_an_image_twice_is_kept_once_with_the_annotations_of_both(tmp_path) -> None:
    value = changed(lambda c: (c["images"].append({**c["images"][0], "id": 3}), put(0, image_id=3)(c)))
    result = cleaned(tmp_path, value)
    assert [i["id"] for i in result["images"]] == [1, 2]
    assert [a["image_id"] for a in result["annotations"]] == [1, 1, 1, 2, 2, 2]
    value = changed(lambda c: c["images"].append(dict(c["images"][0])))
    assert cleaned(tmp_path, value) == content()


def test_a_test_set_stays_one(tmp_path) -> None:
    assert "annotations" not in cleaned(tmp_path, changed(lambda c: c.pop("annotations")))


def test_images_that_share_an_id_cannot_be_told_apart() -> None:
    value = changed(lambda c: c["images"][1].update(id=1))
    with pytest.raises(DataError, match="1.png and 2.png share the id 1"):
        clean_json(value, [])


@pytest.mark.parametrize(
    "change",
    [
        put_all(iscrowd="0"),
        put(1, iscrowd="false"),
        lambda c: [a.update(image_id=str(a["image_id"])) for a in c["annotations"]],
        put(1, id=None),
        put(1, id=[]),
        put(1, area=-5),
        put(1, area="80"),
    ],
)
def test_nothing_is_lost_that_can_be_read(tmp_path, change) -> None:
    result = cleaned(tmp_path, changed(change))
    keys = ("image_id", "category_id", "bbox", "iscrowd", "segmentation")
    assert [{k: a[k] for k in keys} | {"iscrowd": int(a["iscrowd"])} for a in result["annotations"]] == [
        {k: a[k] for k in keys} for a in content()["annotations"]
    ]


@pytest.mark.parametrize(
    "change",
    [
        put(1, bbox=None),
        put(1, category_id=9),
        put(1, segmentation=[[]]),
        put(1, image_id=[]),
        put(1, bbox=[1, 1, 0, 5]),
        put(1, ignore="maybe"),
    ],
)
def test_what_cannot_be_read_is_left_out_alone(tmp_path, change) -> None:
    result = cleaned(tmp_path, changed(change))
    assert [a["id"] for a in result["annotations"]] == [1, 3, 4, 5, 6]


def test_json_that_is_none(tmp_path) -> None:
    path = tmp_path / "truth.json"
    for text in ("{", "[]", "[" * 100000, '{"images": 1' + "0" * 5000 + "}", "\x00"):
        path.write_text(text)
        assert [problem.kind for problem in check_coco_json(str(path)).problems] == ["bad_json"]
        with pytest.raises(DataError, match="truth.json"):
            objects(str(path))
    for encoding in ("utf-8", "utf-8-sig"):  # with the byte order mark of Windows' programs too
        path.write_text(json.dumps(content()), encoding=encoding)
        assert len(objects(str(path))) == 6
    path.write_text(json.dumps(content()), encoding="utf-16")
    with pytest.raises(DataError, match="truth.json is no.*UTF-8"):
        objects(str(path))


def test_a_key_that_an_object_has_twice(tmp_path) -> None:
    """json's parser takes the last, and nobody knows which of them was meant."""
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(content()).replace('"image_id": 1', '"image_id": 2, "image_id": 1', 1))
    assert [problem.kind for problem in check_coco_json(str(path)).problems] == ["bad_json"]
    with pytest.raises(DataError, match='truth.json has an object with "image_id" twice'):
        objects(str(path))
