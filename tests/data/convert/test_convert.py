"""dyn-d2 convert: the same two images in every format give the same boxes and masks."""

import json
from pathlib import Path

import pytest
from PIL import Image

from dyn_d2.cli.convert import main
from dyn_d2.data.check import check_coco_json
from dyn_d2.data.convert.formats import kind_of
from dyn_d2.data.validity.coco import DataError

POLYGON = [(60, 10), (70, 10), (70, 30), (60, 20)]  # the dog of image a; its area is 150
XML_HEAD = "<size><width>100</width><height>50</height><depth>3</depth></size>"


def pictures(folder: Path, names=("a.jpg", "b.jpg")) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (100, 50)).save(folder / name)


def labelme(folder: Path) -> Path:
    pictures(folder)
    box = {"label": "cat", "points": [[30, 25], [10, 5]], "shape_type": "rectangle", "group_id": None}
    polygon = {"label": "dog", "points": POLYGON, "shape_type": "polygon", "group_id": None}
    point = {"label": "dog", "points": [[1, 1]], "shape_type": "point", "group_id": None}
    for name, shapes in (("a", [box, polygon, point]), ("b", [])):
        content = {"shapes": shapes, "imagePath": f"..\\pictures\\{name}.jpg", "imageWidth": 100, "imageHeight": 50}
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def cvat(folder: Path) -> Path:
    pictures(folder / "images" / "train")
    points = ";".join(f"{x},{y}" for x, y in POLYGON)
    (folder / "annotations.xml").write_text(
        "<annotations><meta><task><labels><label><name>cat</name></label><label><name>dog</name></label></labels></task>"
        '</meta><image id="0" name="train/a.jpg" width="100" height="50">'
        '<box label="cat" xtl="10" ytl="5" xbr="30" ybr="25"/>'
        f'<polygon label="dog" points="{points}"/><points label="dog" points="1,1"/></image>'
        '<image id="1" name="train/b.jpg" width="100" height="50"/></annotations>'
    )
    return folder


def voc(folder: Path) -> Path:
    pictures(folder)
    thing = (
        "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
    )
    objects = thing.format("cat", 11, 6, 30, 25) + thing.format("dog", 61, 11, 70, 30)
    for name, inside in (("a", objects), ("b", "")):
        (folder / f"{name}.xml").write_text(f"<annotation>{XML_HEAD}{inside}</annotation>")
    return folder


def yolo(folder: Path) -> Path:
    pictures(folder / "images")
    (folder / "labels").mkdir()
    polygon = " ".join(f"{x / 100} {y / 50}" for x, y in POLYGON)
    (folder / "labels" / "a.txt").write_text(f"0 0.2 0.3 0.2 0.4\n1 {polygon}\n")
    (folder / "classes.txt").write_text("cat\ndog\n")
    return folder


def label_studio(folder: Path) -> Path:
    pictures(folder)
    size = {"original_width": 100, "original_height": 50}
    box = {"x": 10, "y": 10, "width": 20, "height": 40, "rotation": 0, "rectanglelabels": ["cat"]}
    polygon = {"points": [[x, y * 2] for x, y in POLYGON], "polygonlabels": ["dog"]}
    results = [{**size, "type": "rectanglelabels", "value": box}, {**size, "type": "polygonlabels", "value": polygon},
               {**size, "type": "choices", "value": {"choices": ["good"]}}]  # fmt: skip
    tasks = [
        {"data": {"image": "/data/upload/1/ab12cd34-a.jpg"}, "annotations": [{"result": results}]},
        {"data": {"image": "/data/local-files/?d=pictures/b.jpg"}, "annotations": [{"result": []}]},
    ]
    (folder / "export.json").write_text(json.dumps(tasks))
    return folder / "export.json"


def roboflow(folder: Path) -> Path:
    pictures(folder)
    categories = [{"id": i, "name": n, "supercategory": s} for i, n, s in
                  ((0, "pets", "none"), (1, "cat", "pets"), (2, "dog", "pets"))]  # fmt: skip
    images = [{"id": i, "file_name": f"images/{n}.jpg", "width": 100, "height": 50} for i, n in enumerate("ab")]
    flat = [value for point in POLYGON for value in point]
    annotations = [
        {"id": 0, "image_id": 0, "category_id": 1, "bbox": [10, 5, 20, 20], "area": 400, "segmentation": []},
        {"id": 1, "image_id": 0, "category_id": 2, "bbox": [60, 10, 10, 20], "area": 1, "segmentation": [flat]},
    ]
    content = {"categories": categories, "images": images, "annotations": annotations}
    (folder / "_annotations.coco.json").write_text(json.dumps(content))
    return folder


MAKE = {"labelme": labelme, "cvat": cvat, "voc": voc, "yolo": yolo, "labelstudio": label_studio, "coco": roboflow}


def convert(path: Path, folder: Path, *more: str) -> dict:
    assert main([str(path), "--output", str(folder / "out.json"), *more]) == 0
    return json.loads((folder / "out.json").read_text())


@pytest.mark.parametrize("kind", MAKE)
def test_every_format_gives_the_same(tmp_path, capsys, kind):
    path = MAKE[kind](tmp_path / "data")
    assert kind_of(path) == kind
    content = convert(path, tmp_path)
    assert [c["name"] for c in content["categories"]] == ["cat", "dog"]
    assert [Path(i["file_name"]).name for i in content["images"]] == ["a.jpg", "b.jpg"]
    cat, dog = content["annotations"]
    assert cat["bbox"] == pytest.approx([10, 5, 20, 20]) and dog["bbox"] == pytest.approx([60, 10, 10, 20])
    assert (cat["category_id"], dog["category_id"], cat["image_id"], dog["image_id"]) == (1, 2, 1, 1)
    if kind != "voc":  # which has boxes only
        assert dog["segmentation"] == [pytest.approx([v for p in POLYGON for v in p])] and "segmentation" not in cat
        assert dog["area"] == pytest.approx(150)
    folder = path if path.is_dir() else path.parent
    assert check_coco_json(str(tmp_path / "out.json"), str(folder)).ok
    said = capsys.readouterr().out
    left_out = {"labelme": "1 point", "cvat": "1 points", "labelstudio": "1 choices"}.get(kind)
    assert "DATASETS.CUSTOM.FORMAT coco" in said and ("left out" in said) == bool(left_out) and (left_out or "") in said


def test_turned_boxes_masks_and_groups(tmp_path):
    folder = cvat(tmp_path / "cvat")
    runs = "1,2,2,1"  # a mask of 2 rows and 3 columns: 0 1 1 / 0 0 1
    text = (folder / "annotations.xml").read_text().replace(
        '<image id="1" name="train/b.jpg" width="100" height="50"/>',
        '<image id="1" name="train/b.jpg" width="100" height="50"><box label="cat" xtl="10" ytl="10" xbr="30" ybr="20" '
        f'rotation="90"/><mask label="dog" left="4" top="6" width="3" height="2" rle="{runs}"/></image>',
    )  # fmt: skip
    (folder / "annotations.xml").write_text(text)
    *_, turned, mask = convert(folder, tmp_path)["annotations"]
    assert turned["bbox"] == pytest.approx([15, 5, 10, 20]) and turned["area"] == pytest.approx(200)
    assert mask["bbox"] == [5, 6, 2, 2] and mask["area"] == 3
    folder = labelme(tmp_path / "labelme")
    content = json.loads((folder / "b.json").read_text())
    half = {"label": "dog", "shape_type": "polygon", "group_id": 4}
    content["shapes"] = [{**half, "points": POLYGON}, {**half, "points": [(0, 0), (4, 0), (0, 4)]}]
    (folder / "b.json").write_text(json.dumps(content))
    joined = convert(folder, tmp_path)["annotations"][-1]
    assert len(joined["segmentation"]) == 2 and joined["bbox"] == [0, 0, 70, 30] and joined["area"] == 158


def test_objects_beyond_the_image_and_missing_images_are_told(tmp_path, capsys):
    folder = voc(tmp_path / "data")
    for old, new in (("<xmax>30<", "<xmax>130<"), ("<xmin>61</xmin>", "<xmin>161</xmin>"), ("<xmax>70<", "<xmax>170<")):
        (folder / "a.xml").write_text((folder / "a.xml").read_text().replace(old, new))
    (folder / "b.jpg").unlink()
    (only,) = convert(folder, tmp_path)["annotations"]
    said = capsys.readouterr().out
    assert only["bbox"] == [10, 5, 90, 20] and "left out 1 images" in said and "1 objects without area" in said


def test_two_parts_and_what_cannot_be_converted(tmp_path):
    folder = labelme(tmp_path / "data")
    assert main([str(folder), "--output", str(tmp_path / "out.json"), "--test", "0.5"]) == 0
    parts = [json.loads((tmp_path / f"out_{name}.json").read_text()) for name in ("train", "test")]
    assert [len(part["images"]) for part in parts] == [1, 1]
    assert {part["images"][0]["file_name"] for part in parts} == {"a.jpg", "b.jpg"}
    (tmp_path / "empty").mkdir()
    for path, more, said in (
        (tmp_path / "empty", (), "looks like none of"),
        (folder, ("--from", "pdf"), "--from pdf is unknown: use voc"),
        (folder, ("--images", str(tmp_path / "empty")), "none of the 2 images is below .*empty"),
    ):
        with pytest.raises(DataError, match=said):
            convert(path, tmp_path, *more)
    (folder / "a.json").write_text('{"shapes": [{"label": "x"}], "imagePath": "a.jpg"}')
    with pytest.raises(DataError, match="a.json is damaged: KeyError: 'points'"):
        convert(folder, tmp_path)


def test_a_coco_json_with_flaws(tmp_path, capsys):
    """Objects of images that are not listed are counted; a polygon that is none is named."""
    Image.new("RGB", (20, 20)).save(tmp_path / "a.jpg")
    box = {"category_id": 1, "bbox": [2, 2, 5, 5], "iscrowd": 0}
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 20, "height": 20}],
        "annotations": [{"id": 1, "image_id": 1, **box}, {"id": 2, "image_id": 9, **box}],
        "categories": [{"id": 1, "name": "x"}],
    }
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(content))
    assert len(convert(path, tmp_path)["annotations"]) == 1
    assert "annotation of an image that is not listed" in capsys.readouterr().out
    content["annotations"][0]["segmentation"] = [[1, 1, 5, 1, 5]]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"coco.json is damaged: a polygon has 5 .*\(annotation 1, image a.jpg\)"):
        convert(path, tmp_path)
    for broken, said in (
        ({"category_id": 99, "bbox": [2, 2, 5, 5]}, "category_id 99 is not in categories"),
        ({"category_id": 1}, "no 'bbox'"),
    ):
        content["annotations"][0] = {"id": 7, "image_id": 1, **broken}
        path.write_text(json.dumps(content))
        with pytest.raises(DataError, match=rf"{said} \(annotation 7, image a.jpg\)\. dyn-d2 check-data --json .*coco"):
            convert(path, tmp_path)


def test_two_images_never_become_one_file(tmp_path):
    folder = cvat(tmp_path / "data")
    text = (folder / "annotations.xml").read_text()
    (folder / "annotations.xml").write_text(text.replace("train/a", "cam1/1").replace("train/b", "cam2/1"))
    for camera in ("cam1", "cam2"):
        pictures(folder / camera, ["1.jpg"])
    content = convert(folder, tmp_path)
    assert [i["file_name"] for i in content["images"]] == ["cam1/1.jpg", "cam2/1.jpg"]
    with pytest.raises(DataError, match=r"cam1/1.jpg would be both cam1/1.jpg and cam2/1.jpg: .* --images"):
        convert(folder / "annotations.xml", tmp_path, "--images", str(folder / "cam1"))


def test_a_file_elsewhere_keeps_its_whole_path(tmp_path):
    folder = yolo(tmp_path / "data")
    pictures(tmp_path / "others", ["b.jpg"])
    content = convert(folder, tmp_path, "--images", str(tmp_path / "others"))
    assert [i["file_name"] for i in content["images"]] == [str(folder / "images" / "a.jpg"), "b.jpg"]
    assert len(content["annotations"]) == 2


@pytest.mark.parametrize("kind", [kind for kind in MAKE if kind != "yolo"])  # YOLO's boxes are shares of the sides
def test_images_that_were_resized_are_refused(tmp_path, kind):
    path = MAKE[kind](tmp_path / "data")
    pictures(tmp_path / "small")
    Image.new("RGB", (50, 25)).save(tmp_path / "small" / "a.jpg")
    with pytest.raises(DataError, match="a.jpg has 50 x 25 pixels, .* but its annotations are for 100 x 50"):
        convert(path, tmp_path, "--images", str(tmp_path / "small"))


def test_the_size_is_that_of_the_turned_image_and_need_not_be_stated(tmp_path):
    folder = labelme(tmp_path / "data")
    turn = Image.Exif()
    turn[0x0112] = 6
    Image.new("RGB", (50, 100)).save(folder / "a.jpg", exif=turn)
    assert convert(folder, tmp_path)["images"][0] == {"id": 1, "file_name": "a.jpg", "width": 100, "height": 50}
    Image.new("RGB", (100, 50)).save(folder / "a.jpg", exif=turn)
    with pytest.raises(DataError, match="a.jpg has 50 x 100 pixels, turned as its EXIF mark says"):
        convert(folder, tmp_path)
    for name in ("a", "b"):
        content = json.loads((folder / f"{name}.json").read_text())
        (folder / f"{name}.json").write_text(json.dumps(content | {"imageWidth": None, "imageHeight": 0}))
    assert [i["width"] for i in convert(folder, tmp_path)["images"]] == [50, 100]


def test_datumaro_reads_further_formats(tmp_path):
    pytest.importorskip("datumaro")
    folder = cvat(tmp_path / "data")
    content = convert(folder, tmp_path, "--from", "datumaro:cvat")
    assert [a["bbox"] for a in content["annotations"]] == [[10, 5, 20, 20], [60, 10, 10, 20]]
    with pytest.raises(DataError, match="Datumaro cannot read .* as no_such"):
        convert(folder, tmp_path, "--from", "datumaro:no_such")
