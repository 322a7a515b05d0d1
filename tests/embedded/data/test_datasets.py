"""Readers of the data set formats."""

import json
import os

import numpy as np
import pycocotools.mask as mask_util
import pytest
from data_files import write_image
from PIL import Image

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import (
    convert_to_coco_json,
    get_lvis_instances_meta,
    load_coco_json,
    load_lvis_json,
    load_sem_seg,
    load_voc_instances,
    register_coco_instances,
    register_lvis_instances,
    register_pascal_voc,
)
from detectron2.data.datasets.cityscapes import load_cityscapes_semantic
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.structures import BoxMode


def rewrite(path: str, change) -> None:
    content = json.loads(open(path).read())
    change(content)
    with open(path, "w") as file:
        json.dump(content, file)


# --------------------------------------------------------------------------------------------------------------- COCO
def test_coco_records(coco) -> None:
    records = load_coco_json(coco[0], coco[1], "toy")
    assert [r["image_id"] for r in records] == [97, 98, 99, 100]
    assert records[0]["file_name"] == os.path.join(coco[1], "3.png")
    assert (records[0]["width"], records[0]["height"]) == (28, 36)
    assert records[0]["annotations"][1] == {
        "iscrowd": 0,
        "bbox": [4.5, 5.25, 12.0, 8.0],
        "category_id": 0,
        "segmentation": [[4.5, 5.25, 16.5, 5.25, 16.5, 13.25, 4.5, 13.25]],
        "bbox_mode": BoxMode.XYWH_ABS,
    }
    meta = MetadataCatalog.get("toy")
    assert meta.thing_classes == ["early", "late"] and meta.thing_dataset_id_to_contiguous_id == {2: 0, 7: 1}


def test_coco_without_a_name_keeps_ids_and_takes_extra_keys(coco) -> None:
    records = load_coco_json(coco[0], coco[1], extra_annotation_keys=["area", "id", "absent"])
    assert [a["category_id"] for a in records[0]["annotations"]] == [7, 2]
    assert records[0]["annotations"][0]["area"] == 96.0 and records[0]["annotations"][0]["id"] == 7


def test_coco_masks_are_made_uniform(coco) -> None:
    mask = np.zeros((36, 28), np.uint8)
    mask[3:9, 4:8] = 1
    counts = [int(mask.T.ravel().tolist().index(1))]  # uncompressed: runs of 0 and 1, column by column
    counts += [6, 30, 6, 30, 6, 30, 6]
    counts += [mask.size - sum(counts)]

    def change(content):
        content["annotations"][6]["segmentation"] = {"size": [36, 28], "counts": counts}
        content["annotations"][7]["segmentation"] = [[1, 1, 2, 2]]
        content["annotations"][0]["segmentation"] = []

    rewrite(coco[0], change)
    records = load_coco_json(coco[0], coco[1], "toy")
    first, *others = records[0]["annotations"]
    assert np.array_equal(mask_util.decode(first["segmentation"]), mask)
    assert "segmentation" not in records[3]["annotations"][0]


@pytest.mark.embedded
def test_coco_boxes_are_kept_where_masks_are_none(coco) -> None:
    def change(content):
        content["annotations"][7]["segmentation"] = [[1, 1, 2, 2]]
        content["annotations"][6]["segmentation"] = {"size": [36, 28], "counts": "not an rle"}

    before = [a["bbox"] for r in load_coco_json(coco[0], coco[1], "toy") for a in r["annotations"]]
    rewrite(coco[0], change)
    assert [a["bbox"] for r in load_coco_json(coco[0], coco[1], "toy") for a in r["annotations"]] == before


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda c: c["annotations"][0].update(category_id=3), (KeyError, ValueError)),
        (lambda c: c["annotations"][0].update(bbox=[]), ValueError),
        (lambda c: c["annotations"][0].update(ignore=1), (ValueError, AssertionError)),
        (lambda c: c["annotations"][0].update(id=2), (ValueError, AssertionError)),
    ],
)
def test_coco_faults(coco, change, error) -> None:
    rewrite(coco[0], change)
    with pytest.raises(error):
        load_coco_json(coco[0], coco[1], "toy")


@pytest.mark.embedded
def test_coco_faults_name_the_file_and_the_annotation(coco, tmp_path, monkeypatch) -> None:
    rewrite(coco[0], lambda c: c["annotations"][0].update(category_id=3))
    with pytest.raises(ValueError, match=r"annotations.json .*annotation 1 \(image 100, 0.png\): category_id 3 is not"):
        load_coco_json(coco[0], coco[1], "toy")
    broken = tmp_path / "broken.json"
    broken.write_text('{"images": [')
    with pytest.raises(ValueError, match="broken.json is not valid json"):
        load_coco_json(str(broken), "")
    broken.write_text("{}")
    with pytest.raises(ValueError, match="broken.json is not in COCO format"):
        load_coco_json(str(broken), "")
    broken.write_text('{"images": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}')
    with pytest.raises(ValueError, match="(?s)broken.json.*used twice"):
        load_coco_json(str(broken), "", "toy_twice")
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="instances_train2017.json.*DETECTRON2_DATASETS is not set"):
        load_coco_json("datasets/coco/annotations/instances_train2017.json", "datasets/coco/train2017")


def test_coco_without_annotations_reads_images_only(coco) -> None:
    rewrite(coco[0], lambda c: c.pop("annotations"))
    assert [r["annotations"] for r in load_coco_json(coco[0], coco[1], "toy")] == [[]] * 4


def test_coco_survives_a_round_trip(coco, tmp_path) -> None:
    register_coco_instances("toy", {}, coco[0], coco[1])
    output = tmp_path / "deep" / "converted.json"
    DatasetCatalog.get("toy")  # sets the class names that the conversion needs
    convert_to_coco_json("toy", str(output))
    content = json.loads(output.read_text())
    assert {c["id"]: c["name"] for c in content["categories"]} == {2: "early", 7: "late"}
    assert [a["id"] for a in content["annotations"]] == list(range(1, 9))
    assert all(a["area"] == 96.0 for a in content["annotations"])
    assert load_coco_json(str(output), "", "toy_again") == load_coco_json(coco[0], coco[1], "toy")
    before = output.stat().st_mtime_ns
    convert_to_coco_json("toy", str(output))
    assert output.stat().st_mtime_ns == before
    output.write_text("{}")
    convert_to_coco_json("toy", str(output), allow_cached=False)
    assert json.loads(output.read_text())["images"]


def test_conversion_of_boxes_and_masks() -> None:
    mask = np.zeros((10, 12), np.uint8)
    mask[2:5, 1:5] = 1
    rle = mask_util.encode(np.asfortranarray(mask))
    records = [
        {
            "file_name": "a.jpg",
            "width": 12,
            "height": 10,
            "annotations": [
                {"bbox": np.array([1.0, 2, 5, 5]), "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0},
                {"bbox": [1, 2, 4, 3], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "segmentation": rle},
            ],
        }
    ]
    DatasetCatalog.register("toy_boxes", lambda: records)
    MetadataCatalog.get("toy_boxes").thing_classes = ["a"]
    first, second = convert_to_coco_dict("toy_boxes")["annotations"]
    assert first["bbox"] == [1, 2, 4, 3] and first["area"] == 12.0 and first["category_id"] == 0
    assert second["area"] == 12.0 and json.dumps(second)
    records[0]["annotations"] = []
    assert "annotations" not in convert_to_coco_dict("toy_boxes")


# ----------------------------------------------------------------------------------------------- semantic segmentation
def test_sem_seg_pairs_by_name(tmp_path) -> None:
    for name in ("b", "a", "10"):
        write_image(tmp_path / "images" / f"{name}.jpg", 6, 4)
        Image.new("L", (6, 4)).save(tmp_path / "images" / f"{name}.png")
    (tmp_path / "maps").mkdir()
    for name in ("a", "b", "10", "only_here"):
        Image.new("L", (6, 4)).save(tmp_path / "maps" / f"{name}.png")
    records = load_sem_seg(str(tmp_path / "maps"), str(tmp_path / "images"))
    assert [os.path.basename(r["file_name"]) for r in records] == ["10.jpg", "a.jpg", "b.jpg"]
    assert [os.path.basename(r["sem_seg_file_name"]) for r in records] == ["10.png", "a.png", "b.png"]


@pytest.mark.embedded
def test_sem_seg_faults(tmp_path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "maps").mkdir()
    with pytest.raises(FileNotFoundError, match="maps fits an image"):
        load_sem_seg(str(tmp_path / "maps"), str(tmp_path / "images"))
    with pytest.raises(FileNotFoundError, match="Folder of label maps not found: .*elsewhere"):
        load_sem_seg(str(tmp_path / "elsewhere"), str(tmp_path / "images"))


# ---------------------------------------------------------------------------------------------------------------- VOC
XML = """<annotation><size><width>20</width><height>10</height><depth>3</depth></size>
<object><name>{name}</name><difficult>1</difficult>
<bndbox><xmin>1</xmin><ymin>3</ymin><xmax>20</xmax><ymax>{bottom}</ymax></bndbox></object></annotation>"""


@pytest.fixture
def voc(tmp_path):
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("000002\n000001\n")
    for number in (1, 2):
        (tmp_path / "Annotations" / f"00000{number}.xml").write_text(XML.format(name="dog", bottom=10))
    return tmp_path


def test_voc_records(voc) -> None:
    records = load_voc_instances(str(voc), "train", ["cat", "dog"])
    assert [str(r["image_id"]) for r in records] == ["000002", "000001"]
    assert records[0]["annotations"] == [{"category_id": 1, "bbox": [0, 2, 20, 10], "bbox_mode": BoxMode.XYXY_ABS}]
    assert records[0]["file_name"] == os.path.join(str(voc), "JPEGImages", "000002.jpg")
    assert (records[0]["width"], records[0]["height"]) == (20, 10)


@pytest.mark.embedded
def test_voc_list_with_one_image(voc) -> None:
    (voc / "ImageSets" / "Main" / "train.txt").write_text("000001\n")
    assert len(load_voc_instances(str(voc), "train", ["dog"])) == 1


def test_voc_registration(voc) -> None:
    register_pascal_voc("toy_voc", str(voc), "train", 2007, ["dog"])
    assert len(DatasetCatalog.get("toy_voc")) == 2
    assert MetadataCatalog.get("toy_voc").thing_classes == ["dog"] and MetadataCatalog.get("toy_voc").year == 2007


@pytest.mark.embedded
def test_voc_faults_name_the_file(voc) -> None:
    with pytest.raises(ValueError, match="000002.xml.*class 'dog', none of 'cat'"):
        load_voc_instances(str(voc), "train", ["cat"])
    (voc / "Annotations" / "000002.xml").write_text(XML.format(name="dog", bottom="x"))
    with pytest.raises(ValueError, match="000002.xml is not a valid Pascal VOC annotation"):
        load_voc_instances(str(voc), "train", ["dog"])
    (voc / "Annotations" / "000002.xml").write_text("<annotation>")
    with pytest.raises(ValueError, match="000002.xml is not a valid"):
        load_voc_instances(str(voc), "train", ["dog"])
    (voc / "Annotations" / "000002.xml").unlink()
    with pytest.raises(FileNotFoundError, match="annotation file not found: .*000002.xml"):
        load_voc_instances(str(voc), "train", ["dog"])
    with pytest.raises(FileNotFoundError, match="image list not found: .*trainval.txt"):
        load_voc_instances(str(voc), "trainval", ["dog"])


# --------------------------------------------------------------------------------------------------------------- LVIS
def lvis_content() -> dict:
    return {
        "images": [
            {"id": 4, "coco_url": "http://x/val2017/4.jpg", "width": 20, "height": 10, "neg_category_ids": [3]},
            {"id": 2, "coco_url": "http://x/train2017/2.jpg", "width": 20, "height": 10},
        ],
        "categories": [
            {"id": 3, "name": "c", "synonyms": ["third", "other"], "image_count": 5},
            {"id": 1, "name": "a", "synonyms": ["first"], "image_count": 7},
            {"id": 2, "name": "b", "synonyms": ["second"], "image_count": 1},
        ],
        "annotations": [
            {"id": 1, "image_id": 4, "category_id": 3, "bbox": [1, 2, 3, 4], "segmentation": [[1, 2, 4, 2, 4, 6.5]]}
        ],
    }


def write_lvis(path, **changes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(lvis_content() | changes))
    return str(path)


def test_lvis_records(tmp_path) -> None:
    pytest.importorskip("lvis")
    path = write_lvis(tmp_path / "lvis.json")
    records = load_lvis_json(path, "coco/", extra_annotation_keys=["id"])
    assert [r["file_name"] for r in records] == ["coco/train2017/2.jpg", "coco/val2017/4.jpg"]
    assert records[1]["neg_category_ids"] == [3] and records[0]["not_exhaustive_category_ids"] == []
    assert records[1]["annotations"] == [
        {
            "bbox": [1, 2, 3, 4],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": 2,
            "segmentation": [[1, 2, 4, 2, 4, 6.5]],
            "id": 1,
        }
    ]


def test_lvis_versions_are_told_by_name() -> None:
    with pytest.raises(ValueError, match="No built-in metadata"):
        get_lvis_instances_meta("toy")


@pytest.mark.embedded
def test_lvis_classes_are_read_when_first_asked_for(tmp_path) -> None:
    path = write_lvis(tmp_path / "lvis_v1_train.json")
    register_lvis_instances("lvis_v1_toy", {}, path, "coco/")
    meta = MetadataCatalog.get("lvis_v1_toy")
    assert "thing_classes" not in meta.as_dict()
    assert meta.thing_classes == ["first", "second", "third"] and "thing_classes" in meta.as_dict()
    assert DatasetCatalog.get("lvis_v1_toy")[1]["annotations"][0]["category_id"] == 2


@pytest.mark.embedded
def test_lvis_classes_come_from_a_sibling_of_the_same_version(tmp_path, monkeypatch) -> None:
    write_lvis(tmp_path / "lvis" / "lvis_v0.5_val.json")
    register_lvis_instances("lvis_v0.5_toy", {}, str(tmp_path / "lvis" / "lvis_v0.5_train.json"), "coco/")
    assert MetadataCatalog.get("lvis_v0.5_toy").thing_classes[0] == "first"
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert get_lvis_instances_meta("lvis_v0.5_train") == {"thing_classes": ["first", "second", "third"]}
    with pytest.raises(FileNotFoundError, match="lvis_v1_val.json.*DETECTRON2_DATASETS"):
        get_lvis_instances_meta("lvis_v1")


@pytest.mark.embedded
def test_lvis_classes_without_any_file_are_missing_with_a_reason(tmp_path) -> None:
    register_lvis_instances("lvis_v1_toy", {}, str(tmp_path / "lvis_v1_train.json"), "coco/")
    meta = MetadataCatalog.get("lvis_v1_toy")
    assert meta.get("thing_classes") is None and meta.json_file.endswith("lvis_v1_train.json")
    with pytest.raises(AttributeError, match="lvis_v1_train.json"):
        _ = meta.thing_classes
    with pytest.raises(AttributeError, match="stuff_classes"):
        _ = meta.stuff_classes


@pytest.mark.embedded
def test_lvis_faults(tmp_path) -> None:
    annotation = lvis_content()["annotations"][0]
    path = write_lvis(tmp_path / "a.json", annotations=[annotation | {"category_id": 9}])
    with pytest.raises(ValueError, match=r"a.json .*annotation 1 \(image 4, .*: category_id 9 is not listed"):
        load_lvis_json(path, "coco/", "toy_a")
    path = write_lvis(tmp_path / "c.json", categories=[{"id": 3, "name": "c"}], annotations=[])
    with pytest.raises(ValueError, match="c.json are not 1 to 1"):
        load_lvis_json(path, "coco/", "toy_c")


# --------------------------------------------------------------------------------------------------------- Cityscapes
def rectangle(x0: int, y0: int, x1: int, y1: int) -> list[list[int]]:
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


@pytest.fixture
def cityscapes(tmp_path):
    """One image: a car, partly behind a pole, and a group of persons."""
    write_image(tmp_path / "img" / "bonn" / "bonn_0_leftImg8bit.png", 60, 40)
    gt = tmp_path / "gt" / "bonn"
    gt.mkdir(parents=True)
    objects = [
        {"label": "road", "polygon": rectangle(0, 20, 59, 39)},
        {"label": "car", "polygon": rectangle(10, 10, 29, 29)},
        {"label": "persongroup", "polygon": rectangle(40, 10, 49, 19)},
        {"label": "pole", "polygon": rectangle(18, 0, 21, 39)},
        {"label": "bus", "polygon": rectangle(0, 0, 5, 5), "deleted": 1},
    ]
    (gt / "bonn_0_gtFine_polygons.json").write_text(json.dumps({"imgWidth": 60, "imgHeight": 40, "objects": objects}))
    ids = np.full((40, 60), 7, np.uint16)
    ids[10:30, 10:30], ids[10:20, 40:50] = 26000, 24
    ids[:, 18:22] = 17
    Image.fromarray(ids).save(gt / "bonn_0_gtFine_instanceIds.png")
    Image.fromarray(ids.astype(np.uint8)).save(gt / "bonn_0_gtFine_labelIds.png")
    return str(tmp_path / "img"), str(tmp_path / "gt")


@pytest.mark.embedded
def test_cityscapes_instances(cityscapes) -> None:
    from detectron2.data.datasets.cityscapes import load_cityscapes_instances

    pytest.importorskip("cityscapesscripts")
    pytest.importorskip("shapely")
    (record,) = load_cityscapes_instances(*cityscapes)
    assert (record["width"], record["height"], record["image_id"]) == (60, 40, "bonn_0_leftImg8bit.png")
    annotations = {a["category_id"]: a for a in record["annotations"]}
    assert set(annotations) == {0, 2} and annotations[0]["iscrowd"] and not annotations[2]["iscrowd"]
    assert np.abs(np.array(annotations[2]["bbox"]) - [10, 10, 29.5, 29.5]).max() <= 1
    car = annotations[2]["segmentation"]
    assert len(car) == 2  # the pole cuts it
    car = mask_util.merge(mask_util.frPyObjects(car, 40, 60))
    assert abs(int(mask_util.area(car)) - 20 * 16) <= 40


@pytest.mark.embedded
def test_cityscapes_faults(cityscapes, tmp_path) -> None:
    from detectron2.data.datasets.cityscapes import load_cityscapes_instances

    with pytest.raises(FileNotFoundError, match="image folder not found: .*none"):
        load_cityscapes_semantic(str(tmp_path / "none"), cityscapes[1])
    with pytest.raises(FileNotFoundError, match="createTrainIdLabelImgs"):
        load_cityscapes_semantic(*cityscapes)
    pytest.importorskip("cityscapesscripts")
    with pytest.raises(NotImplementedError, match="from_json=False"):
        load_cityscapes_instances(*cityscapes, from_json=False)
    os.rename(os.path.join(cityscapes[1], "bonn", "bonn_0_gtFine_polygons.json"), tmp_path / "x")
    with pytest.raises(FileNotFoundError, match="bonn_0_gtFine_polygons.json"):
        load_cityscapes_semantic(*cityscapes)


@pytest.mark.embedded
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("imgWidth"), "imgWidth"),
        (lambda c: c.update(imgHeight="40"), "imgHeight"),
        (lambda c: c.pop("objects"), "KeyError"),
        (lambda c: c["objects"].append(None), "TypeError"),
        (lambda c: c["objects"].append({"label": "unicorn", "polygon": rectangle(1, 1, 5, 5)}), "unicorn"),
        (lambda c: c["objects"].append({"label": "car", "polygon": [[1, 1], [2, 2]]}), "three points"),
        (lambda c: c["objects"].append({"label": "car", "polygon": [["1", "x"]] * 3}), "three points"),
        (lambda c: c["objects"].append({"label": 5, "polygon": rectangle(1, 1, 5, 5)}), 'known "label"'),
    ],
)
def test_cityscapes_files_that_are_none(cityscapes, change, message) -> None:
    from detectron2.data.datasets.cityscapes import load_cityscapes_instances

    pytest.importorskip("cityscapesscripts")
    pytest.importorskip("shapely")
    rewrite(os.path.join(cityscapes[1], "bonn", "bonn_0_gtFine_polygons.json"), change)
    with pytest.raises(ValueError, match=f"bonn_0_gtFine_polygons.json .*{message}"):
        load_cityscapes_instances(*cityscapes)


def test_cityscapes_label_maps(cityscapes) -> None:
    Image.new("L", (60, 40)).save(os.path.join(cityscapes[1], "bonn", "bonn_0_gtFine_labelTrainIds.png"))
    (record,) = load_cityscapes_semantic(*cityscapes)
    assert record["sem_seg_file_name"].endswith("bonn_0_gtFine_labelTrainIds.png")
    assert (record["width"], record["height"]) == (60, 40)
