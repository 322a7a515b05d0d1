"""LVIS, VOC, sets registered in Python, label maps and images: each kind read alike by all, or refused by all."""

import json
import re
import uuid
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from toy_coco import HEIGHT, NAMES, WIDTH, changed, config, content, put, register, score, write

from dyn_d2.data.check import check_coco_json, check_config, check_dataset
from dyn_d2.data.few_shot.sources import forget, load_source
from dyn_d2.data.sound_dicts import sound_dicts
from dyn_d2.data.validity import rle
from dyn_d2.data.validity.coco import DataError
from dyn_d2.data.validity.records import sound_records
from dyn_d2.evaluation.checked import CheckedSemSegEvaluator
from dyn_d2.evaluation.perfect import PerfectScore, perfect_score

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_pascal_voc
from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode


@pytest.fixture
def new_name():
    """A name for a data set, forgotten after the test."""
    name = f"toy_{uuid.uuid4().hex}"
    yield name
    forget(name)


# -------------------------------------------------------------------------------------------------------------- LVIS


def lvis() -> dict:
    value = content()
    for image in value["images"]:
        image |= {
            "neg_category_ids": [],
            "not_exhaustive_category_ids": [],
            "coco_url": f"http://x/all/{image['id']}.png",
        }
    for category, frequency in zip(value["categories"], "rf", strict=True):
        category["frequency"] = frequency
    return value


def without(section: str, key: str):
    def change(value):
        for entry in value[section]:
            del entry[key]

    return change


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda c: None, ""),
        (without("images", "neg_category_ids"), 'no image has "neg_category_ids"'),
        (without("images", "not_exhaustive_category_ids"), 'no image has "not_exhaustive_category_ids"'),
        (without("images", "coco_url"), ""),
        (without("categories", "frequency"), "neither"),
        (lambda c: [k.update(frequency=None, image_count=5) for k in c["categories"]], ""),
        (without("annotations", "iscrowd"), ""),
        (without("annotations", "area"), ""),
        # lvis would leave it out without a word
        (lambda c: [a.update(area=0) for a in c["annotations"]], ""),
    ],
)
def test_lvis_fields_that_may_be_missing(tmp_path, change, note) -> None:
    pytest.importorskip("lvis")
    value = lvis()
    change(value)
    path = write(tmp_path, value)
    report = check_coco_json(path, lvis=True)
    assert report.ok and note in report.text(), report.text()
    found = score(path, masks=True, kind="lvis")
    assert found.scores == {"bbox": pytest.approx(100), "segm": pytest.approx(100)}


def test_lvis_without_annotations_is_not_scored(tmp_path) -> None:
    pytest.importorskip("lvis")
    value = lvis()
    del value["annotations"]
    assert score(write(tmp_path, value), kind="lvis").skipped == "there is no ground truth"


@pytest.mark.parametrize("synonyms", [[5], [["ant"]], [None], [" "]])
def test_the_first_synonym_of_lvis_is_a_name(tmp_path, synonyms) -> None:
    value = lvis()
    value["categories"][0]["synonyms"] = synonyms
    path = write(tmp_path, value)
    assert [problem.kind for problem in check_coco_json(path, lvis=True).problems] == ["bad_category"]
    name = register(path, "lvis")
    with pytest.raises(DataError, match="truth.json.*category 1.*synonyms"):
        load_source(name)
    forget(name)


def test_lvis_categories_count_from_1(tmp_path) -> None:
    value = lvis()
    for entry in (*value["categories"], *value["annotations"]):
        key = "category_id" if "category_id" in entry else "id"
        entry[key] += 1
    path = write(tmp_path, value)
    assert "bad_category" in {problem.kind for problem in check_coco_json(path, lvis=True).problems}
    name = register(path, "lvis")
    with pytest.raises(DataError, match="truth.json.*not 1, 2"):
        load_source(name)
    forget(name)


# --------------------------------------------------------------------------------------------------------------- VOC


def voc(folder: Path, spoil=lambda root: None, lines: str = "a\nb\n") -> Path:
    """Two images of three objects; ``spoil`` changes the xml of image a."""
    boxes = {"a": [(3, 4, 12, 11), (16, 5, 27, 16), (21, 19, 29, 28)], "b": [(2, 2, 9, 21), (13, 7, 32, 15)]}
    for sub in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    for image, of_image in boxes.items():
        Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(folder / f"JPEGImages/{image}.jpg")
        root = ElementTree.Element("annotation")
        size = ElementTree.SubElement(root, "size")
        for tag, value in (("width", WIDTH), ("height", HEIGHT)):
            ElementTree.SubElement(size, tag).text = str(value)
        for i, box in enumerate(of_image):
            item = ElementTree.SubElement(root, "object")
            ElementTree.SubElement(item, "name").text = NAMES[i % 2]
            ElementTree.SubElement(item, "difficult").text = "0"
            bounds = ElementTree.SubElement(item, "bndbox")
            for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
                ElementTree.SubElement(bounds, tag).text = str(value)
        if image == "a":
            spoil(root)
        ElementTree.ElementTree(root).write(folder / f"Annotations/{image}.xml")
    (folder / "ImageSets/Main/all.txt").write_text(lines)
    return folder


def text(path: str, value: str):
    def change(root):
        for element in root.iterfind(path):
            element.text = value

    return change


def twice(path: str):
    def change(root):
        place = root.find(path)
        parent = next(element for element in root.iter() if place in list(element))
        parent.append(place)

    return change


def inside(path: str):
    return lambda root: ElementTree.SubElement(root.find(path), "b")


def voc_set(name: str, folder: Path) -> str:
    register_pascal_voc(name, str(folder), "all", 2012, NAMES)
    MetadataCatalog.get(name).evaluator_type = "pascal_voc"
    return name


@pytest.mark.parametrize(
    ("spoil", "lines"),
    [
        (lambda root: None, "a\nb\n"),
        (text("object/name", "\n    ant\n  "), "a\nb\n"),
        (text("object/difficult", "Unspecified"), "a\nb\n"),
        (text("object/difficult", ""), "a\nb\n"),
        (text("object/difficult", " 0 "), "a\nb\n"),
        (lambda root: [item.remove(item.find("difficult")) for item in root.iterfind("object")], "a\nb\n"),
        (text("object/bndbox/xmax", "29.7"), "a\nb\n"),
        (text("object/bndbox/ymin", "3.25"), "a\nb\n"),
        (text("size/width", "40.0"), "a\nb\n"),
        (lambda root: None, "a  1\nb -1\n\n"),
        (lambda root: None, "\ufeffa\r\nb\r\n"),
    ],
)
def test_voc_read_alike(tmp_path, new_name, spoil, lines) -> None:
    name = voc_set(new_name, voc(tmp_path, spoil, lines))
    (report,) = check_dataset(name)
    assert report.ok, report.text()
    records = sound_dicts([name], filter_empty=True)
    assert records == load_source(name)
    objects = list(ElementTree.parse(tmp_path / "Annotations/a.xml").iterfind("object"))
    boxes = [[float(side.text) for side in item.find("bndbox")] for item in objects]
    found = records[0]["annotations"]
    assert [a["bbox"] for a in found] == [[x0 - 1, y0 - 1, x1, y1] for x0, y0, x1, y1 in boxes]
    assert [NAMES[a["category_id"]] for a in found] == [item.findtext("name").strip() for item in objects]
    assert perfect_score(name, config()).scores == {"bbox": pytest.approx(100)}


@pytest.mark.parametrize(
    ("spoil", "lines", "message"),
    [
        (text("object/name", "cat"), "a\nb\n", "a.xml.*class 'cat'"),
        (text("object/name", " "), "a\nb\n", "a.xml.*object 0.*name"),
        (text("object/difficult", "maybe"), "a\nb\n", "a.xml.*object 0.*difficult.*maybe"),
        (text("object/difficult", "2"), "a\nb\n", "a.xml.*object 0.*difficult.*2"),
        (text("object/bndbox/xmax", "nan"), "a\nb\n", "a.xml.*object 0.*four numbers"),
        (text("object/bndbox/xmax", "1_0"), "a\nb\n", "a.xml.*object 0.*four numbers"),
        (text("object/bndbox/xmax", "٣"), "a\nb\n", "a.xml.*object 0.*four numbers"),
        (text("object/bndbox/xmax", ""), "a\nb\n", "a.xml.*object 0.*four numbers"),
        (text("size/width", "0"), "a\nb\n", "a.xml.*width.*0"),
        (text("size/width", "x"), "a\nb\n", "a.xml.*width.*x"),
        (lambda root: root.remove(root.find("size")), "a\nb\n", "a.xml.*no <size/width>"),
        (lambda root: None, "a\nb\na\n", "all.txt lists 'a' 2 times"),
        (lambda root: None, "a\fb\n", "all.txt holds the character"),
        (twice("size"), "a\nb\n", "a.xml.*2 times <size>"),
        (twice("object/name"), "a\nb\n", "a.xml.*object 0: 2 times <name>"),
        (twice("object/difficult"), "a\nb\n", "a.xml.*object 0: 2 times <difficult>"),
        (twice("object/bndbox/xmin"), "a\nb\n", "a.xml.*object 0: 2 times <xmin>"),
        (inside("object/bndbox/xmin"), "a\nb\n", "a.xml.*object 0: <bndbox/xmin> has elements"),
    ],
)
def test_voc_refused_by_all(tmp_path, new_name, spoil, lines, message) -> None:
    name = voc_set(new_name, voc(tmp_path, spoil, lines))
    (report,) = check_dataset(name)
    assert not report.ok
    for read in (load_source, lambda n: sound_dicts([n], True), lambda n: perfect_score(n, config())):
        with pytest.raises(ValueError, match=message):
            read(name)


def test_voc_difficult_objects_do_not_count(tmp_path, new_name) -> None:
    name = voc_set(new_name, voc(tmp_path, text("object/difficult", "1")))
    assert [a["difficult"] for a in load_source(name)[0]["annotations"]] == [1, 1, 1]
    assert perfect_score(name, config()).scores == {"bbox": pytest.approx(100)}


# ---------------------------------------------------------------------------------------------------- sets in Python


def python_records() -> list[dict]:
    value = content()
    records = [
        {"file_name": f"{i}.png", "image_id": i, "width": WIDTH, "height": HEIGHT, "annotations": []} for i in (1, 2)
    ]
    for source in value["annotations"]:
        x, y, w, h = source["bbox"]
        box = {"bbox": [x, y, x + w, y + h], "bbox_mode": BoxMode.XYXY_ABS}
        own = {"category_id": source["category_id"] - 1, "segmentation": source["segmentation"]}
        records[source["image_id"] - 1]["annotations"].append(box | own)
    return records


def python_set(name: str, records: list) -> str:
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(thing_classes=list(NAMES), evaluator_type="coco")
    return name


def of_first(**values):
    return lambda records: records[0]["annotations"][0].update(values)


@pytest.mark.parametrize(
    "change",
    [
        lambda records: None,
        of_first(bbox=np.array([2.0, 3.0, 12.0, 11.0])),
        of_first(bbox=(2, 3, 12, 11)),
        of_first(bbox=[2, 3, 10, 8], bbox_mode=BoxMode.XYWH_ABS),
        of_first(iscrowd=None),
        of_first(iscrowd=np.bool_(False)),
        of_first(category_id=np.int64(0)),
        lambda records: records[0].update(width=40.0, height=np.int32(30)),
        lambda records: [r.update(image_id=f"x{r['image_id']}") for r in records],
        of_first(segmentation={"size": [HEIGHT, WIDTH], "counts": rle.compress(np.array([400, 50, 750]))}),
        lambda records: [r["annotations"][0].update(id="a") for r in records],
    ],
)
def test_python_sets_read_alike(new_name, change) -> None:
    records = python_records()
    change(records)
    name = python_set(new_name, records)
    before = dict(MetadataCatalog.get(name).__dict__)
    (report,) = check_dataset(name, read_images=False)
    assert report.ok, report.text()
    assert perfect_score(name, config(masks=True)).scores == {"bbox": pytest.approx(100), "segm": pytest.approx(100)}
    assert MetadataCatalog.get(name).__dict__ == before
    boxes = [a["bbox"] for r in sound_records(records, 2, name) for a in r["annotations"]]
    assert all(type(side) is float for box in boxes for side in box)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda records: records.append("a.jpg"), "bad_entry"),
        (lambda records: records[0].pop("image_id"), "bad_entry"),
        (lambda records: records[0].update(image_id=float("nan")), "bad_entry"),
        (lambda records: records[0].update(image_id="1"), "mixed_ids"),
        (lambda records: records[0].update(file_name=None), "bad_entry"),
        (lambda records: records[0].update(width="40"), "bad_entry"),
        (lambda records: records[0].update(annotations=None), "bad_entry"),
        (lambda records: records[0].update(annotations=[None]), "bad_entry"),
        (of_first(category_id=2), "category_range"),
        (of_first(category_id="0"), "category_range"),
        (of_first(category_id=None), "category_range"),
        (of_first(bbox=None), "bad_box"),
        (of_first(bbox=["1", 2, 3, 4]), "bad_box"),
        (of_first(bbox=np.array(5)), "bad_box"),
        (of_first(bbox=[1, 2, float("inf"), 4]), "non_finite"),
        (of_first(bbox_mode=None), "bad_box"),
        (of_first(bbox_mode=BoxMode.XYXY_REL), "bad_box"),
        (of_first(iscrowd="0"), "bad_flag"),
    ],
)
def test_python_sets_refused_by_all(new_name, change, kind) -> None:
    records = python_records()
    change(records)
    name = python_set(new_name, records)
    (report,) = check_dataset(name, read_images=False)
    assert kind in {problem.kind for problem in report.problems}, report.text()
    for read in (load_source, lambda n: sound_records(records, 2, n)):
        with pytest.raises(DataError, match=name):
            read(name)


@pytest.mark.parametrize(
    "change",
    [
        lambda records: records.append(None),
        lambda records: records.insert(0, "a.jpg"),
        lambda records: records[1].update(annotations=5),
        lambda records: records[1].update(annotations=[Path("x")]),
        of_first(bbox_mode=np.array([1, 2])),
        of_first(iscrowd=np.array([1, 2])),
        lambda records: records.clear(),
    ],
)
def test_training_refuses_records_that_are_none(new_name, change) -> None:
    records = python_records()
    change(records)
    with pytest.raises(DataError, match=python_set(new_name, records)):
        sound_dicts([new_name], True)


def test_a_record_without_annotations_among_others_has_no_objects(new_name) -> None:
    records = python_records()
    del records[1]["annotations"]
    python_set(new_name, records)
    assert [len(r["annotations"]) for r in sound_dicts([new_name], False)] == [3, 0]
    assert len(sound_dicts([new_name], True)) == 1


def test_a_set_that_is_no_list(new_name) -> None:
    python_set(new_name, "records.json")
    with pytest.raises(DataError, match=f"{new_name} is registered with returns str"):
        sound_dicts([new_name], True)


@pytest.mark.parametrize(
    "mask", [np.array(5), torch.tensor(1), [np.array(5)], {"size": np.array(5), "counts": []}, 7, "x"]
)
def test_masks_of_python_sets_that_are_none(new_name, mask) -> None:
    records = python_records()
    of_first(segmentation=mask)(records)
    name = python_set(new_name, records)
    assert [problem.kind for problem in check_dataset(name, read_images=False)[0].problems] == ["bad_mask"]
    assert perfect_score(name, config()).scores == {"bbox": pytest.approx(100)}


def test_an_image_of_which_one_side_is_known(new_name) -> None:
    records = python_records()
    of_first(segmentation={"size": [HEIGHT, WIDTH], "counts": rle.compress(np.array([400, 50, 750]))})(records)
    del records[0]["height"]
    name = python_set(new_name, records)
    assert check_dataset(name, read_images=False)[0].ok
    records[0]["width"] += 1
    assert "in an image of 41 x ?" in check_dataset(name, read_images=False)[0].text()


def test_damaged_masks_of_python_sets(new_name) -> None:
    records = python_records()
    of_first(segmentation={"size": [HEIGHT, WIDTH], "counts": b"not an rle"})(records)
    name = python_set(new_name, records)
    assert [problem.kind for problem in check_dataset(name, read_images=False)[0].problems] == ["bad_mask"]
    assert perfect_score(name, config()).scores == {"bbox": pytest.approx(100)}
    with pytest.raises(DataError, match="annotation 1: "):
        perfect_score(name, config(masks=True))


# --------------------------------------------------------------------------------------------------------- label maps


def label_set(name: str, folder: Path, maps: list, classes: list[str], **metadata) -> str:
    records = []
    for i, labels in enumerate(maps):
        image = folder / f"{i}.jpg"
        Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(image)
        path = folder / f"{i}.png"
        labels.save(path) if isinstance(labels, Image.Image) else Image.fromarray(labels).save(path)
        records.append({"file_name": str(image), "sem_seg_file_name": str(path), "image_id": i})
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(evaluator_type="sem_seg", stuff_classes=classes, **{"ignore_label": 255, **metadata})
    return name


def labels(*values: int) -> np.ndarray:
    result = np.zeros((HEIGHT, WIDTH), np.uint8)
    for i, value in enumerate(values):
        result[i :: len(values)] = value
    return result


def palette() -> Image.Image:
    image = Image.fromarray(labels(0, 1, 2)).convert("P")
    image.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
    return image


CLASSES = ["sky", "tree", "road"]


def test_sound_label_maps(tmp_path, new_name) -> None:
    name = label_set(new_name, tmp_path, [labels(0, 1, 2), labels(0, 255)], CLASSES)
    (report,) = check_dataset(name)
    assert report.ok and report.counts["sky"]["objects"] == 2 and report.counts["road"]["objects"] == 1
    assert perfect_score(name, config()).scores == {"sem_seg": pytest.approx(100)}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (labels(0, 3), "0.png holds 3: neither one of 3 classes"),
        (labels(0, 1)[:-1], "0.png is 40 x 29, its image .*0.jpg is 40 x 30"),
        (labels(0, 1).astype(np.uint16), "0.png is an image of mode I;16"),
        (np.dstack([labels(0, 1)] * 3), "0.png is an image of mode RGB"),
        (labels(0, 1).astype(bool), "0.png is an image of mode 1"),
        (palette(), "0.png is an image of mode P"),
    ],
)
def test_label_maps_that_are_none(tmp_path, new_name, wrong, message) -> None:
    name = label_set(new_name, tmp_path, [wrong, labels(0, 1, 2)], CLASSES)
    (report,) = check_dataset(name)
    assert [problem.kind for problem in report.problems] == ["bad_label_map"]
    assert re.search(message, report.text().replace(": holds", " holds").replace("png: ", "png ")), report.text()


def test_label_maps_that_are_missing_or_cut_off(tmp_path, new_name) -> None:
    name = label_set(new_name, tmp_path, [labels(0, 1, 2)] * 3, CLASSES)
    (tmp_path / "0.png").unlink()
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:60])
    (report,) = check_dataset(name)
    assert [(p.kind, Path(p.where).name) for p in report.problems] == [
        ("bad_label_map", "0.png"),
        ("bad_label_map", "1.png"),
    ]


def test_a_map_of_another_size_is_not_scored(tmp_path, new_name) -> None:
    """On its side it has as many pixels as the image, so that nothing else would notice."""
    name = label_set(new_name, tmp_path, [np.ascontiguousarray(labels(0, 1, 2).T)], CLASSES)
    with pytest.raises(DataError, match="0.png is 30 x 40, its image .*0.jpg is 40 x 30"):
        perfect_score(name, config())
    evaluator = CheckedSemSegEvaluator(name)
    evaluator.reset()
    with pytest.raises(DataError, match="0.png is 30 x 40, but the prediction for its image 40 x 30"):
        evaluator.process(DatasetCatalog.get(name), [{"sem_seg": torch.zeros(3, HEIGHT, WIDTH)}])


def test_a_map_that_exif_turns(tmp_path, new_name) -> None:
    name = label_set(new_name, tmp_path, [labels(0, 1, 2)], CLASSES)
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(labels(0, 1, 2)).save(tmp_path / "0.png", exif=exif)
    (report,) = check_dataset(name)
    assert [problem.kind for problem in report.problems] == ["bad_label_map"] and "EXIF" in report.text()


@pytest.mark.parametrize(
    "wrong", [None, "a.jpg", {"file_name": "0.jpg"}, {"file_name": "0.jpg", "sem_seg_file_name": 5}]
)
def test_records_of_label_maps_that_are_none(tmp_path, new_name, wrong) -> None:
    name = label_set(new_name, tmp_path, [labels(0, 1, 2)], CLASSES)
    records = [*DatasetCatalog.get(name), wrong]
    DatasetCatalog.remove(name)
    DatasetCatalog.register(name, lambda: records)
    assert "bad_entry" in [problem.kind for problem in check_dataset(name)[0].problems]
    with pytest.raises(DataError, match=f"{name} .*record 1"):
        sound_dicts([name], False)


@pytest.mark.parametrize(
    "wrong", [None, [1], {"label": "1"}, {"label": 2}, {"label": None}, {"image_id": [3]}, {"file_name": 7}]
)
def test_records_with_labels_that_are_none(tmp_path, new_name, wrong) -> None:
    write(tmp_path, content())
    sound = {"file_name": str(tmp_path / "1.png"), "label": 1, "image_id": 0}
    records = [sound, {**sound, "image_id": 1, **wrong} if isinstance(wrong, dict) else wrong]
    DatasetCatalog.register(new_name, lambda: records)
    MetadataCatalog.get(new_name).set(thing_classes=list(NAMES), evaluator_type="classification")
    (report,) = check_dataset(new_name)
    assert not report.ok and all(new_name in str(p) or "file_name" in str(p) for p in report.problems)
    with pytest.raises(DataError, match=new_name):
        sound_dicts([new_name], False)


def test_maps_of_0_and_255_are_no_two_classes(tmp_path, new_name) -> None:
    name = label_set(new_name, tmp_path, [labels(0, 255)] * 2, ["background", "object"])
    (report,) = check_dataset(name)
    assert [problem.kind for problem in report.problems] == ["absent_class"]
    assert "object has no pixel" in report.text()


def test_classes_without_a_pixel_are_named(tmp_path, new_name) -> None:
    name = label_set(new_name, tmp_path, [labels(0, 1)], CLASSES)
    (report,) = check_dataset(name)
    assert report.ok and "1 class has no object: road" in report.text()


def test_two_ignore_labels(tmp_path, new_name) -> None:
    name = label_set(new_name, tmp_path, [labels(0, 1, 2)], CLASSES, ignore_label=0)
    cfg = config()
    cfg.DATASETS.TRAIN = (name,)
    (report,) = check_config(cfg)
    assert [problem.kind for problem in report.problems] == ["ignore_label"]
    assert "is 0, MODEL.SEM_SEG_HEAD.IGNORE_VALUE is 255" in report.text()
    cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = 0
    assert check_config(cfg)[0].ok


# ------------------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("mode", ["I;16", "I", "F", "L", "P", "1", "RGBA"])
def test_depth_of_images(tmp_path, mode) -> None:
    kind = "deep_image" if mode in ("I;16", "I", "F") else None
    path = write(tmp_path, content())
    deep = np.full((HEIGHT, WIDTH), 30000, np.uint16)
    image = Image.fromarray(deep) if mode == "I;16" else Image.new(mode, (WIDTH, HEIGHT))
    suffix = "tiff" if mode in ("I", "F") else "png"
    image.save(tmp_path / f"1.{suffix}")
    value = changed(lambda c: c["images"][0].update(file_name=f"1.{suffix}"))
    Path(path).write_text(json.dumps(value))
    assert [p.kind for p in check_coco_json(path, str(tmp_path)).problems] == ([kind] if kind else [])


def test_a_damaged_png_is_not_read_half(tmp_path) -> None:
    """Looking for EXIF reads a PNG, and hides the error from whoever reads it then."""
    path = write(tmp_path, content())
    data = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(data[:2000] + bytes([data[2000] ^ 255]) + data[2001:])
    assert [p.kind for p in check_coco_json(path, str(tmp_path)).problems] == ["unreadable_image"]


@pytest.mark.embedded  # an installed Detectron2 reads what is left of it; the check says so
def test_a_damaged_png_stops_training(tmp_path) -> None:
    write(tmp_path, content())
    data = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(data[:2000] + bytes([data[2000] ^ 255]) + data[2001:])
    with pytest.raises(OSError, match="1.png"):
        read_image(str(tmp_path / "1.png"), "RGB")


def test_pillows_limit_is_named(tmp_path, monkeypatch) -> None:
    path = write(tmp_path, content())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    report = check_coco_json(path, str(tmp_path))
    assert [p.kind for p in report.problems] == ["unreadable_image"] * 2
    assert "PIL.Image.MAX_IMAGE_PIXELS" in report.text()


# ------------------------------------------------------------------------------------------------ perfect predictions


def test_what_keeps_a_perfect_model_from_100(tmp_path) -> None:
    path = write(tmp_path, changed(put(0, bbox=[30.0, 20.0, 20.0, 20.0])))
    found = score(path)
    assert found.scores["bbox"] < 99 and not found.ok
    assert "leave their images" in found.reasons[0] and "annotation 1" in found.reasons[0] and "ant" in found.reasons[0]
    found = score(write(tmp_path / "empty", changed(put(1, bbox=[3.0, 3.0, 0.0, 5.0]))))
    assert found.scores["bbox"] < 99 and "without area" in found.reasons[0] and "annotation 2" in found.reasons[0]


def test_an_object_twice_keeps_voc_from_100(tmp_path, new_name) -> None:
    """VOC's metric gives a detection to the object that it covers best, the first of equal ones."""
    found = perfect_score(voc_set(new_name, voc(tmp_path, twice("object"))), config())
    assert found.scores["bbox"] < 99 and "1 object has the box and class of another" in found.reasons[0]


def test_nothing_that_counts_is_no_perfect_score() -> None:
    nan = float("nan")
    assert PerfectScore("x", {"bbox": nan}).ok and not PerfectScore("x", {"bbox": nan}, counted=2).ok
    assert PerfectScore("x", {"bbox": nan, "segm": nan}).text() == "perfect predictions: no object to score"
    assert PerfectScore("x", {"bbox": 100.0, "segm": nan}).text().endswith("100.00, segm AP (no object to score)")


def test_more_objects_than_count(tmp_path) -> None:
    def crowd(value):
        one = value["annotations"][0]
        box = [[float(x), float(y), 3.0, 3.0] for x in range(0, 36, 3) for y in range(0, 27, 3)]
        value["annotations"] = [{**one, "id": i + 1, "bbox": b, "area": 9.0} for i, b in enumerate(box)]

    found = score(write(tmp_path, changed(crowd)))
    assert found.scores["bbox"] < 99 and "more than the 100 objects" in found.reasons[0]
