"""DATASETS.CUSTOM: every format is registered by keys alone, and what is missing is told."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from own_folders import (
    SEMANTIC,
    write_class_folders,
    write_json_folder,
    write_label_folder,
    write_voc_folder,
    write_yolo_folder,
)
from PIL import Image
from tiny_detection import CLASSES
from tiny_tasks import task_opts

from dyn_d2.config.derive import build_cfg
from dyn_d2.data.custom import custom_sets, register_custom
from dyn_d2.data.few_shot.sources import forget
from dyn_d2.data.fingerprint import data_fingerprint, forget_fingerprints
from dyn_d2.data.registered import registered_records
from dyn_d2.data.semantic import check_label_maps
from dyn_d2.data.semantic.label_maps import load_pairs
from dyn_d2.data.validity.coco import DataError
from dyn_d2.evaluation.build import build_evaluator
from dyn_d2.utils.errors import UserError

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances


@pytest.fixture(autouse=True)
def no_set_stays():
    """Other tests find no data set of these registered."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        forget(name)


def keys(**values) -> list[str]:
    return [part for key, value in values.items() for part in (f"DATASETS.CUSTOM.{key}", str(value))]


def coco(folder: Path) -> list[str]:
    write_json_folder(folder)
    files = {"TRAIN": "instances.json", "TRAIN_IMAGES": "images", "TEST": "instances.json", "TEST_IMAGES": "images"}
    return keys(NAME="mine", FORMAT="coco", ROOT=folder, **files)


def boxes(name: str) -> list[tuple[str, list[float]]]:
    classes = MetadataCatalog.get(name).thing_classes
    return sorted(
        (classes[a["category_id"]], np.round(BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS), 3).tolist())
        for record in registered_records(name)
        for a in record["annotations"]
    )


def test_three_formats_of_boxes_give_the_same_records(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cfg = build_cfg("", coco(tmp_path / "coco"))
    assert cfg.DATASETS.TRAIN == ("mine_train",) and cfg.DATASETS.TEST == ("mine_test",)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == cfg.MODEL.RETINANET.NUM_CLASSES == 4
    assert cfg.DATASETS.CUSTOM.CLASSES == list(CLASSES)
    expected = boxes("mine_train")
    assert len(expected) == 24
    write_voc_folder(tmp_path / "voc", suffix=".png")
    cfg = build_cfg("", keys(NAME="voc_of_mine", FORMAT="voc", ROOT=tmp_path / "voc"))
    assert cfg.DATASETS.TEST == ("voc_of_mine_test",) and cfg.DATASETS.CUSTOM.CLASSES == sorted(CLASSES)
    assert boxes("voc_of_mine_train") == expected
    assert MetadataCatalog.get("voc_of_mine_test").evaluator_type == "pascal_voc"
    for polygons in (False, True):
        folder = write_yolo_folder(tmp_path / f"yolo{polygons}", polygons=polygons)
        cfg = build_cfg("", keys(NAME="yolo_of_mine", FORMAT="yolo", ROOT=folder))
        assert cfg.DATASETS.TRAIN == ("yolo_of_mine_train",) and cfg.DATASETS.VAL == []
        assert boxes("yolo_of_mine_train") == expected and boxes("yolo_of_mine_test") == expected
        has_masks = {"segmentation" in a for r in registered_records("yolo_of_mine_train") for a in r["annotations"]}
        assert has_masks == {polygons}


def test_a_part_of_a_voc_folder_is_held_out_and_evaluated(tmp_path):
    folder = write_voc_folder(tmp_path / "voc", images=8)
    opts = keys(NAME="voc_parts", FORMAT="voc", ROOT=folder, HOLD_OUT=0.25)
    cfg = build_cfg("", [*opts, "MODEL.DEVICE", "cpu"])
    (fit,), (held_out,) = cfg.DATASETS.TRAIN, cfg.DATASETS.VAL
    files = [{record["file_name"] for record in registered_records(name)} for name in (fit, held_out)]
    assert not files[0] & files[1] and len(files[0] | files[1]) == len(registered_records("voc_parts_train"))
    records = registered_records(held_out)
    assert 0 < len(records) < len(registered_records(fit))
    evaluator = build_evaluator(cfg, held_out, str(tmp_path / "out"))
    evaluator.reset()
    for record in records:  # what is right has AP 100
        truth = record["annotations"]
        found = Instances((record["height"], record["width"]))
        found.pred_boxes = Boxes(torch.tensor([a["bbox"] for a in truth], dtype=torch.float32).reshape(-1, 4))
        found.scores = torch.ones(len(truth))
        found.pred_classes = torch.tensor([a["category_id"] for a in truth], dtype=torch.long)
        evaluator.process([record], [{"instances": found}])
    assert evaluator.evaluate()["bbox"]["AP50"] == pytest.approx(100)


def drop_masks(folder: Path, keep) -> None:
    """Take the masks away from all annotations of the json for which ``keep`` says False."""
    path = folder / "instances.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        if not keep(annotation):
            del annotation["segmentation"]
    path.write_text(json.dumps(content))


def test_a_held_out_part_has_all_masks_if_that_can_be(tmp_path):
    opts = coco(tmp_path)
    images = sorted(image["id"] for image in json.loads((tmp_path / "instances.json").read_text())["images"])
    opts += [*keys(HOLD_OUT=0.25), "MODEL.DEVICE", "cpu"]

    def held_out(*more) -> list:
        build_cfg("", [*opts, *more])
        return [record["image_id"] for record in registered_records("mine_train_held_out")]

    boxes_only, masks = ("MODEL.MASK_ON", "False"), ("MODEL.MASK_ON", "True")
    drawn = held_out(*masks)
    assert drawn == held_out(*boxes_only) and len(drawn) == 2
    whole = [i for i in images if i not in drawn][:3]
    drop_masks(tmp_path, lambda a: a["image_id"] in whole or a["id"] % 2)
    assert held_out(*boxes_only) == drawn
    assert len(held_out(*masks)) == 2 and set(held_out(*masks)) < set(whole)
    fit = [record["image_id"] for record in registered_records("mine_train_fit")]
    assert sorted([*fit, *held_out(*masks)]) == images
    drop_masks(tmp_path, lambda a: a["image_id"] == whole[0] and "segmentation" in a or "segmentation" not in a)
    assert held_out(*masks) == drawn  # one image is too few


def test_a_changed_yolo_file_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_yolo_folder(tmp_path / "yolo", images=2)
    opts = keys(FORMAT="yolo", ROOT=folder)
    build_cfg("", opts)
    before = boxes("custom_train")
    label = next((folder / "labels" / "train").iterdir())
    label.write_text(label.read_text() + "3 0.5 0.5 0.25 0.25\n")
    build_cfg("", opts)
    assert len(boxes("custom_train")) == len(before) + 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("7 0.5 0.5 0.2 0.2", "class 7 is none of the 4"),
        ("0 120 80 40 40", "no share of a side"),
        ("0 0.5 0.5 0.2", "3 numbers after the class"),
        ("0 0.5 0.5 0.2 0.2 0.9", "5 numbers after the class"),
        ("red 0.5 0.5 0.2 0.2", "is not a class number"),
    ],
)
def test_a_bad_line_is_named(tmp_path, monkeypatch, line, said):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_yolo_folder(tmp_path / "yolo", images=1)
    (folder / "labels" / "train" / "001.txt").write_text(f"\n{line}\n")
    with pytest.raises(DataError, match=f"001.txt, line 2: .*{said}"):
        build_cfg("", keys(FORMAT="yolo", ROOT=folder))


@pytest.mark.parametrize("more", [[], keys(CLASSES=list(CLASSES))])
def test_poses_are_no_polygons(tmp_path, monkeypatch, more):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_yolo_folder(tmp_path / "yolo", images=1)
    with (folder / "data.yaml").open("a") as file:
        file.write("\nkpt_shape: [17, 3]\n")
    with pytest.raises(DataError, match="data.yaml has kpt_shape: its labels are poses"):
        build_cfg("", [*keys(FORMAT="yolo", ROOT=folder), *more])


def test_layouts_of_yolo(tmp_path, monkeypatch):
    """Roboflow's (train/images, paths with ../), LabelImg's (one folder, classes.txt), and a list of Windows."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = write_yolo_folder(tmp_path / "yolo", images=2)
    robo, flat = tmp_path / "robo", tmp_path / "flat"
    flat.mkdir()
    for part, other in (("train", "train"), ("val", "valid")):
        for kind in ("images", "labels"):
            (robo / other / kind).mkdir(parents=True)
            for file in (source / kind / part).iterdir():
                (robo / other / kind / file.name).write_bytes(file.read_bytes())
                (flat / file.name).write_bytes(file.read_bytes())
    names = ", ".join(CLASSES)
    (robo / "data.yaml").write_text(f"train: ../train/images\nval: ../valid/images\nnc: 4\nnames: [{names}]\n")
    (flat / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    (flat / "list.txt").write_text("C:\\pictures\\001.png\n")
    build_cfg("", keys(NAME="a", FORMAT="yolo", ROOT=source))
    build_cfg("", keys(NAME="b", FORMAT="yolo", ROOT=robo))
    assert boxes("b_train") == boxes("a_train") == boxes("b_test")
    (robo / "data.yaml").write_text((robo / "data.yaml").read_text() + "test: ../test/images\n")
    with pytest.raises(FileNotFoundError, match=r"give DATASETS.CUSTOM.TEST, .*valid/images, or take test out of data"):
        build_cfg("", keys(FORMAT="yolo", ROOT=robo))
    build_cfg("", keys(NAME="b", FORMAT="yolo", ROOT=robo, TEST="valid/images"))
    assert boxes("b_test") == boxes("a_test")
    build_cfg("", keys(NAME="c", FORMAT="yolo", ROOT=flat, TRAIN=".", TEST="list.txt"))
    assert boxes("c_train") == boxes("a_train")
    assert [Path(r["file_name"]).name for r in registered_records("c_test")] == ["001.png"]
    (flat / "classes.txt").unlink()
    with pytest.raises(DataError, match="does not name its classes: give DATASETS.CUSTOM.CLASSES"):
        build_cfg("", keys(FORMAT="yolo", ROOT=flat, TRAIN="."))
    build_cfg("", keys(NAME="c", FORMAT="yolo", ROOT=flat, TRAIN=".", CLASSES=list(CLASSES)))


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo"])
def test_few_shot_takes_each(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write = {"voc": write_voc_folder, "yolo": write_yolo_folder}.get(kind)
    opts = keys(NAME="mine", FORMAT=kind, ROOT=write(tmp_path / kind)) if write else coco(tmp_path / kind)
    few = {"BENCHMARK": "custom", "STAGE": "finetune", "SHOTS": "2"}
    few |= {"CUSTOM.BASE_CLASSES": "['red', 'green']", "CUSTOM.NOVEL_CLASSES": "['blue']"}
    opts += [part for key, value in few.items() for part in (f"FEW_SHOT.{key}", value)]
    cfg = build_cfg("", [*opts, "OUTPUT_DIR", str(tmp_path / "out")])
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3
    records = registered_records(cfg.DATASETS.TRAIN[0])
    assert len(records) == 6 and len(registered_records(cfg.DATASETS.TEST[0])) == 8
    with pytest.raises(ValueError, match="FEW_SHOT.CUSTOM.TRAIN_JSON is given too"):
        build_cfg("", [*opts, "FEW_SHOT.CUSTOM.TRAIN_JSON", "other.json"])


def test_a_tree_that_lacks_a_label_is_named_once(tmp_path):
    folder = write_label_folder(tmp_path / "labels")
    tree = folder / "tree.yaml"
    labels = "floor: floor, red: red, green: green"
    tree.write_text(
        f"concepts: {{all: [floor, warm, green], warm: [red, blue]}}\ndatasets: {{boxes: {{{labels}, blue: blue}}}}\n"
    )
    paths = {"TRAIN": "labels", "TRAIN_IMAGES": "images", "TEST": "labels", "TEST_IMAGES": "images"}
    opts = keys(NAME="mine", FORMAT="semantic", ROOT=folder, TREE=tree, **paths)
    build_cfg("", opts)
    (problem,) = check_label_maps("mine_train").problems
    said = f"label maps hold 4, but the tree {tree} has 4 labels for them (0 floor, 1 red, 2 green, 3 blue); where"
    assert said in str(problem) and "IGNORE" in str(problem) and "PNG" not in str(problem)
    tree.write_text(tree.read_text().replace(", blue]", "]").replace(", blue: blue", ""))
    build_cfg("", opts)
    (problem,) = check_label_maps("mine_train").problems
    assert "hold 3, 4, but" in str(problem) and "IGNORE" not in str(problem)
    vars(MetadataCatalog.get("mine_train")).pop("hierarchy")
    assert {problem.kind for problem in check_label_maps("mine_train").problems} == {"bad_label_map"}


def test_label_maps_with_a_tree_need_no_file_afterwards(tmp_path):
    folder = write_label_folder(tmp_path / "labels")
    paths = {"TRAIN": "labels", "TRAIN_IMAGES": "images", "TEST": "labels", "TEST_IMAGES": "images"}
    opts = keys(NAME="mine", FORMAT="semantic", ROOT=folder, TREE=folder / "tree.yaml", HOLD_OUT=0.5, **paths)
    cfg = build_cfg("", opts)
    assert cfg.DATASETS.TRAIN == ("mine_train_fit",) and cfg.DATASETS.VAL == ("mine_train_held_out",)
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 5 and cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE == 255
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.VAL)
    parts = [{Path(r["file_name"]).name for r in registered_records(name)} for name in names]
    assert [len(part) for part in parts] == [3, 3] and not parts[0] & parts[1]
    saved = tmp_path / "saved.yaml"
    saved.write_text(cfg.dump())
    for name in custom_sets(cfg).values():
        forget(name)
    (folder / "tree.yaml").unlink()
    register_custom(build_read(saved), files=False)
    metadata = MetadataCatalog.get("mine_test")
    assert metadata.stuff_classes == list(SEMANTIC) and metadata.label_set == "boxes"
    assert build_cfg(str(saved)).DATASETS.CUSTOM.TREE == cfg.DATASETS.CUSTOM.TREE
    with pytest.raises(ValueError, match="needs a value for DATASETS.CUSTOM.CLASSES"):
        build_cfg("", [*opts, *keys(TREE="")])
    with pytest.raises(ValueError, match="IGNORE 3 has to be another value"):
        build_cfg("", [*opts, *keys(TREE="", CLASSES=list(SEMANTIC), IGNORE=3)])


def build_read(path: Path):
    from dyn_d2.config.read import read_cfg

    return read_cfg(str(path))


def test_names_of_a_yolo_folder_have_to_be_those_of_the_config(tmp_path, monkeypatch):
    """A checkpoint's config has the names of its own folder: another export may have another order."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_yolo_folder(tmp_path / "yolo", images=1)
    opts = keys(FORMAT="yolo", ROOT=folder)
    assert build_cfg("", [*opts, *keys(CLASSES=list(CLASSES))]).DATASETS.CUSTOM.CLASSES == list(CLASSES)
    with pytest.raises(DataError, match="in this order: leave CLASSES empty"):
        build_cfg("", [*opts, *keys(CLASSES=list(CLASSES[::-1]))])


def test_links_are_followed_and_pictures_of_a_run_are_no_data(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_yolo_folder(tmp_path / "yolo", images=2)
    elsewhere = tmp_path / "elsewhere"
    (folder / "images" / "train").rename(elsewhere)
    (folder / "images" / "train").mkdir()
    (folder / "images" / "train" / "linked").symlink_to(elsewhere)
    (elsewhere / "round").symlink_to(folder / "images" / "train")
    (folder / "labels" / "train").rename(tmp_path / "labels")
    (folder / "labels" / "train").mkdir()
    (folder / "labels" / "train" / "linked").symlink_to(tmp_path / "labels")
    build_cfg("", keys(FORMAT="yolo", ROOT=folder))
    assert len(registered_records("custom_train")) == 2 and boxes("custom_train")
    before = data_fingerprint("custom_train")
    (folder / "output").mkdir()
    shutil.copy(next(elsewhere.glob("*.*")), folder / "output" / "figure.png")
    forget_fingerprints()
    assert data_fingerprint("custom_train") == before


def test_images_and_label_maps_in_one_folder(tmp_path):
    for number in range(2):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.jpg")
        Image.new("L", (8, 8)).save(tmp_path / f"{number}.png")
    assert [Path(r["file_name"]).suffix for r in load_pairs(tmp_path, tmp_path, "")] == [".jpg", ".jpg"]
    assert len(load_pairs(tmp_path, tmp_path)) == 2
    for name in ("other.bmp", "other.jpg"):  # nobody's
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    assert len(load_pairs(tmp_path, tmp_path, "")) == 2
    Image.new("RGB", (8, 8)).save(tmp_path / "1.bmp")
    with pytest.raises(DataError, match="holds 1.bmp and 1.jpg"):
        load_pairs(tmp_path, tmp_path, "")


def test_small_images_keep_their_size(tmp_path):
    folder = write_class_folders(tmp_path / "classes")
    opts = keys(NAME="mine", FORMAT="folders", ROOT=folder, TRAIN="train", TEST="test")
    cfg = build_cfg("", opts)
    assert cfg.INPUT.CLASSIFICATION.PAD_CROP == 4 and cfg.INPUT.CLASSIFICATION.CROP_TEST == 0
    cfg = build_cfg("", [*opts, "INPUT.CLASSIFICATION.RECIPE", "imagenet", "INPUT.CLASSIFICATION.CROP_TEST", "12"])
    assert cfg.INPUT.CLASSIFICATION.CROP_TEST == 12 and cfg.INPUT.CLASSIFICATION.RESIZE_TEST == 256


def test_folders_of_classes(tmp_path):
    folder = write_class_folders(tmp_path / "classes")
    opts = keys(NAME="mine", FORMAT="folders", ROOT=folder, TRAIN="train", TEST="test", HOLD_OUT=0.25)
    cfg = build_cfg("", [*task_opts("classifier"), "DATASETS.TRAIN", "('digits_train',)", *opts])
    assert cfg.DATASETS.TRAIN == ("digits_train",)  # as given on the command line
    cfg = build_cfg("", opts)
    assert cfg.DATASETS.TRAIN == ("mine_train_fit",) and cfg.DATASETS.TEST == ("mine_test",)
    assert cfg.MODEL.IMAGE_CLASSIFIER.NUM_CLASSES == 2 and cfg.DATASETS.CUSTOM.CLASSES == ["bright", "dark"]
    assert len(DatasetCatalog.get("mine_train_held_out")) == 3


def test_what_is_missing_is_told(tmp_path):
    opts = coco(tmp_path / "coco")
    with pytest.raises(ValueError, match="FORMAT coco needs a value for DATASETS.CUSTOM.TEST_IMAGES"):
        build_cfg("", [*opts, *keys(TEST_IMAGES="")])
    with pytest.raises(FileNotFoundError, match="DATASETS.CUSTOM.TRAIN=.*no.json"):
        build_cfg("", [*opts, *keys(TRAIN="no.json")])
    with pytest.raises(DataError, match="is a folder, and a json .*dyn-d2 convert"):
        build_cfg("", [*opts, *keys(TRAIN="images")])
    with pytest.raises(DataError, match="CLASSES is green, red, but .*instances.json has red, green, blue, yellow"):
        build_cfg("", [*opts, *keys(CLASSES=["green", "red"])])
    with pytest.raises(ValueError, match="VAL names data to choose on, and HOLD_OUT"):
        build_cfg("", [*opts, *keys(HOLD_OUT=0.5, VAL="instances.json", VAL_IMAGES="images")])
    few_shot = ["FEW_SHOT.BENCHMARK", "custom", "FEW_SHOT.STAGE", "base"]
    for more in (keys(HOLD_OUT=0.5), keys(VAL="instances.json", VAL_IMAGES="images")):
        with pytest.raises(ValueError, match="few-shot trainings .* have no data to choose on"):
            build_cfg("", [*opts, *few_shot, *more])
    with pytest.raises(ValueError, match="the name of a few-shot benchmark"):
        build_cfg("", [*opts, *keys(NAME="voc")])
    with pytest.raises(ValueError, match="FORMAT is 'labelme': use '', 'coco'"):
        build_cfg("", keys(FORMAT="labelme"))


@pytest.mark.parametrize(
    ("name", "there"), [("images/001.png", "001.png"), ("C:\\data\\001.png", "001.png"), ("001.png", "sub/001.png")]
)
def test_a_missing_image_names_where_it_is(tmp_path, name, there):
    from dyn_d2.data.check import check_coco_json

    path = write_json_folder(tmp_path, images=1)
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = name
    path.write_text(json.dumps(content))
    (tmp_path / "images" / "sub").mkdir()
    (tmp_path / "images" / "001.png").rename(tmp_path / "images" / there)
    (problem,) = check_coco_json(str(path), str(tmp_path / "images")).problems
    assert problem.kind == "missing_image" and f"{tmp_path / 'images' / there} is there" in problem.what


def test_a_module_of_ones_own_registers_data(tmp_path):
    (tmp_path / "my_sets.py").write_text(
        "from detectron2.data import DatasetCatalog\nDatasetCatalog.register('of_my_module', lambda: [])\n"
    )
    config = tmp_path / "mine.yaml"
    config.write_text(yaml.safe_dump({"DATASETS": {"IMPORT": ["my_sets.py"], "TRAIN": ["of_my_module"]}}))
    build_cfg(str(config))
    assert "of_my_module" in DatasetCatalog
    build_cfg(str(config))  # imported once only
    forget("of_my_module")
    with pytest.raises(UserError, match="there is no file other.py"):
        build_cfg("", ["DATASETS.IMPORT", "['other.py']"])
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(UserError, match="broken.py cannot be imported: ModuleNotFoundError"):
        build_cfg("", ["DATASETS.IMPORT", f"['{tmp_path / 'broken.py'}']"])
