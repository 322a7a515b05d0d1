"""What the published data sets have, odd as it is, is refused by nobody."""

import copy
import json
import random
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from toy_coco import config, content, register, score, write

from dyn_d2.data.check import check_coco_json, check_dataset, concerning
from dyn_d2.data.few_shot.sources import forget, load_source
from dyn_d2.data.sound_dicts import sound_dicts
from dyn_d2.evaluation.perfect import perfect_score

from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json, register_pascal_voc


def like_coco() -> dict:
    """Crowds as lists of lengths, boxes under a pixel, in the first pixel, and slightly outside, polygons of several
    parts, ids with gaps, fields that nobody reads."""
    value = content()
    value |= {
        "info": {"description": "COCO 2017 Dataset", "year": 2017, "contributor": None},
        "licenses": [{"id": 1, "name": "x", "url": "http://x"}],
    }
    for image in value["images"]:
        image |= {
            "license": 3,
            "coco_url": f"http://images.cocodataset.org/train2017/{image['file_name']}",
            "flickr_url": "",
            "date_captured": "",
        }
    for i, category in enumerate(value["categories"]):
        category["supercategory"] = "animal"
        category["id"] = (1, 90)[i]
    first = value["annotations"]
    for annotation in first:
        annotation["category_id"] = (1, 90)[annotation["category_id"] - 1]
        annotation["id"] += 900100000000
    crowd = {
        **first[0],
        "id": 1,
        "iscrowd": 1,
        "bbox": [5, 0, 10, 30],
        "segmentation": {"counts": [150, 300, 750], "size": [30, 40]},
        "area": 300,
    }
    parts = {
        **first[1],
        "id": 2,
        "bbox": [1.0, 1.0, 9.0, 3.0],
        "segmentation": [[1, 1, 3, 1, 3, 4, 1, 4], [7.5, 1, 10, 1, 10, 4.0, 7.5, 4, 7, 2]],
        "area": 13.123,
    }
    small = {
        **first[2],
        "id": 3,
        "bbox": [20.3, 1.2, 0.6, 0.5],
        "segmentation": [[20.3, 1.2, 20.9, 1.2, 20.9, 1.7, 20.3, 1.7]],
        "area": 0.3,
    }
    over = {
        **first[3],
        "id": 4,
        "bbox": [10.21, 0.5, 29.99, 29.87],
        "segmentation": [[10.21, 0.5, 40.2, 0.5, 40.2, 30.37, 10.21, 30.37]],
        "area": 895.8,
    }
    value["annotations"] = [*first, crowd, parts, small, over]
    return value


def test_coco(tmp_path) -> None:
    value = like_coco()
    value["annotations"][-2]["category_id"] = 90
    path = write(tmp_path, value)
    report = check_coco_json(path, str(tmp_path))
    assert report.ok, report.text()
    name = register(path)
    try:
        assert sum(len(r["annotations"]) for r in load_source(name)) == sum(
            len(r["annotations"]) for r in load_coco_json(path, str(tmp_path))
        )
    finally:
        forget(name)
    assert score(path).scores == {"bbox": pytest.approx(100)}


def test_captions_only_and_images_only(tmp_path) -> None:
    """A file of captions has no boxes, which is said; a list of test images is no defect."""
    value = content()
    value["annotations"] = [{"id": i, "image_id": 1, "caption": "a dog"} for i in range(3)]
    del value["categories"]
    report = check_coco_json(write(tmp_path, value))
    assert 'there is no list "categories"' in report.text()
    value = content()
    del value["annotations"]
    assert check_coco_json(write(tmp_path, value), str(tmp_path)).ok


def test_one_tiny_box_in_the_corner_of_many_is_no_fraction(tmp_path) -> None:
    value = content()
    more = [copy.deepcopy(a) for _ in range(40) for a in value["annotations"]]
    value["annotations"] += more
    value["annotations"][0] |= {
        "bbox": [0.0, 0.26, 0.7, 0.5],
        "area": 0.35,
        "segmentation": [[0.0, 0.26, 0.7, 0.26, 0.7, 0.76]],
    }
    for i, annotation in enumerate(value["annotations"]):
        annotation["id"] = i
    report = check_coco_json(write(tmp_path, value))
    assert report.ok and "1 of 246 objects: the box lies within the first pixel" in report.text(), report.text()


def test_an_empty_box_of_a_published_set_stops_no_training(tmp_path) -> None:
    """COCO's training set has two; Detectron2 leaves them out."""
    value = content()
    value["annotations"][0]["bbox"] = [5.0, 5.0, 0.0, 7.0]
    report = check_coco_json(write(tmp_path, value))
    assert [problem.kind for problem in report.problems] == ["empty_box"]
    report.tolerate(["empty_box"])
    assert concerning(report.problems, config()) == []


@pytest.mark.parametrize("version", ["v0.5", "v1"])
def test_lvis(tmp_path, version) -> None:
    pytest.importorskip("lvis")
    value = content()
    value["info"] = {"description": f"LVIS {version}"}
    for i, image in enumerate(value["images"]):
        image |= {"neg_category_ids": [2], "not_exhaustive_category_ids": [1] if i else [], "license": 1}
        image["coco_url"] = f"http://images.cocodataset.org/train2017/{image['file_name']}"
        image["flickr_url"] = "http://x"
        if version == "v1":
            del image["file_name"]
    for category, frequency in zip(value["categories"], "rf", strict=True):
        category |= {
            "frequency": frequency,
            "synonyms": [category["name"], "other"],
            "synset": "ant.n.01",
            "def": "small",
            "instance_count": 3,
            "image_count": 2,
        }
    for annotation in value["annotations"]:
        annotation.pop("iscrowd")
    path = write(tmp_path, value)
    (tmp_path / "train2017").mkdir()
    for i in (1, 2):
        (tmp_path / f"{i}.png").rename(tmp_path / f"train2017/{i}.png")
    report = check_coco_json(path, str(tmp_path))
    assert report.ok, report.text()
    assert score(path, masks=True, kind="lvis").scores == {"bbox": pytest.approx(100), "segm": pytest.approx(100)}


VOC = """<annotation><folder>VOC2012</folder><filename>a.jpg</filename>
<source><database>The VOC2007 Database</database><annotation>PASCAL VOC2007</annotation><image>flickr</image></source>
<owner><flickrid>x</flickrid><name>owner &amp; co</name></owner>
<size><width>40</width><height>30</height><depth>3</depth></size><segmented>1</segmented>
<object><name>person</name><pose>Unspecified</pose><truncated>1</truncated><occluded>1</occluded>
<bndbox><xmin>45.70000076293945</xmin><ymin>3</ymin><xmax>58</xmax><ymax>11.5</ymax></bndbox><difficult>0</difficult>
<actions><jumping>1</jumping></actions><point><x>3</x><y>4</y></point>
<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4.5</xmax><ymax>4</ymax></bndbox></part>
<part><name>hand</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></part></object>
<object><name>dog</name><bndbox><xmax>40</xmax><xmin>11</xmin><ymax>30</ymax><ymin>1</ymin></bndbox></object>
<object><name>dog</name><difficult>1</difficult><bndbox><xmin>1</xmin><ymin>9</ymin><xmax>1</xmax><ymax>9</ymax></bndbox></object>
</annotation>""".replace("45.70000076293945", "3.70000076293945").replace(">58<", ">12<")


def test_voc(tmp_path) -> None:
    for sub in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / sub).mkdir(parents=True)
    (tmp_path / "Annotations/a.xml").write_text(VOC)
    assert len(ElementTree.fromstring(VOC).findall("object")) == 3
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(tmp_path / "JPEGImages/a.jpg")
    (tmp_path / "ImageSets/Main/all.txt").write_bytes(b"a  1\r\n")
    name = f"quirks_{tmp_path}"
    register_pascal_voc(name, str(tmp_path), "all", 2012)
    MetadataCatalog.get(name).evaluator_type = "pascal_voc"
    try:
        (report,) = check_dataset(name)
        assert report.ok, report.text()
        (record,) = load_source(name)
        assert [a["difficult"] for a in record["annotations"]] == [0, 0, 1]
        assert record["annotations"][0]["bbox"] == pytest.approx([2.70000076, 2, 12, 11.5])
        assert perfect_score(name, config()).scores == {"bbox": pytest.approx(100)}
        assert sound_dicts([name], filter_empty=True) == load_source(name)
    finally:
        forget(name)


def test_a_large_file_is_read_in_one_pass(tmp_path) -> None:
    """No step may take time that grows with the square of the number of entries: 5,000 entries are nothing."""
    rng = random.Random(0)
    value = content()
    value["images"] = [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in range(1000)]
    value["annotations"] = [
        {
            "id": i,
            "image_id": rng.randrange(1000),
            "category_id": 1 + i % 2,
            "bbox": [10, 10, 50, 60],
            "iscrowd": 0,
            "area": 3000,
        }
        for i in range(4000)
    ]
    path = Path(write(tmp_path, {}, images=False))
    path.write_text(json.dumps(value))
    assert check_coco_json(str(path)).ok
