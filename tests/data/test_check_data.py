"""One fixture for each defect: the message names file, annotation and remedy."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from few_shot_files import HEIGHT, WIDTH, coco_content, write_image, write_voc

from dyn_d2.cli.check_data import main
from dyn_d2.data.check import (
    check_coco_json,
    check_config,
    check_dataset,
    check_dataset_dicts,
    check_voc,
    clean_json,
)
from dyn_d2.data.check_report import REMEDIES
from dyn_d2.data.few_shot import apply_few_shot
from dyn_d2.data.few_shot.sources import forget

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances, register_pascal_voc
from detectron2.structures import BoxMode


def good() -> dict[str, Any]:
    return coco_content(["cat", "dog", "bird"], [["cat", "dog"], ["bird"], ["cat"]])


def annotation(content: dict, **values: Any) -> None:
    """Spoil the second annotation, whose id is 1001."""
    content["annotations"][1].update(values)


Spoil = Callable[[dict], Any]
DEFECTS: list[tuple[str, Spoil, str]] = [
    ("unknown_category", lambda c: annotation(c, category_id=7), "annotation 1001.*category_id 7"),
    ("unknown_category", lambda c: annotation(c, category_id=None), "annotation 1001"),
    ("unknown_category", lambda c: c["categories"].pop(1), "annotation 1001.*category_id 20"),
    ("unknown_image", lambda c: annotation(c, image_id=77), "annotation 1001.*image 77"),
    ("empty_box", lambda c: annotation(c, bbox=[3, 3, 0, 5]), r"annotation 1001.*001\.jpg.*width 0"),
    ("empty_box", lambda c: annotation(c, bbox=[3, 3, 5, -2]), "annotation 1001.*height -2"),
    ("outside", lambda c: annotation(c, bbox=[3, 3, WIDTH, 5]), "annotation 1001.*leaves the image of 40 x 30"),
    ("outside", lambda c: annotation(c, bbox=[-4, 3, 9, 5]), "annotation 1001"),
    ("non_finite", lambda c: annotation(c, bbox=[3, float("nan"), 5, 5]), "annotation 1001.*nan"),
    ("bad_area", lambda c: annotation(c, area=float("inf")), 'annotation 1001.*"area" is inf'),
    ("bad_mask", lambda c: annotation(c, segmentation=[[1, 1, 2, 2, float("nan"), 3]]), "annotation 1001"),
    ("bad_box", lambda c: annotation(c, bbox=[1, 2, 3]), "annotation 1001"),
    ("bad_box", lambda c: annotation(c, bbox=["1", 2, 3, 4]), "annotation 1001"),
    ("bad_box", lambda c: c["annotations"][1].pop("bbox"), "annotation 1001"),
    ("bad_mask", lambda c: annotation(c, segmentation=[[1, 1, 2, 2]]), "annotation 1001.*polygon"),
    ("bad_mask", lambda c: annotation(c, segmentation={"counts": "12", "size": [9, 9]}), r"annotation 1001.*\[9, 9\]"),
    ("mask_outside", lambda c: annotation(c, segmentation=[[1, 1, 9, 9, 1, 90]]), r"annotation 1001.*to \(9, 90\)"),
    ("no_mask", lambda c: annotation(c, segmentation=[], has_mask=True), "annotation 1001.*has_mask"),
    ("duplicate_annotation", lambda c: annotation(c, id=1000), "annotation 1000"),
    ("bad_entry", lambda c: c["annotations"][1].pop("id"), 'annotation at position 1.*no "id"'),
    ("duplicate_image", lambda c: c["images"].append(dict(c["images"][0])), r"image 1 .*001\.jpg"),
    ("repeated_file", lambda c: c["images"].append({**c["images"][0], "id": 9}), r"image 9 .*001\.jpg"),
    ("bad_entry", lambda c: c["images"].append({"id": 9, "file_name": "a.jpg", "width": 0, "height": 3}), "image 9"),
    ("file_name", lambda c: c["images"].append({"id": 9, "width": 4, "height": 3}), "image 9.*file_name"),
    ("bad_entry", lambda c: c["images"].append("a.jpg"), '"images" has entries'),
    ("duplicate_category", lambda c: c["categories"].append({"id": 10, "name": "fish"}), "category 10"),
    ("duplicate_category", lambda c: c["categories"].append({"id": 50, "name": "cat"}), "category 50.*'cat'"),
    ("bad_category", lambda c: c["categories"].append({"id": "x", "name": "fish"}), "category 'x'"),
    ("bad_json", lambda c: c.pop("categories"), 'no list "categories"'),
]


@pytest.mark.parametrize(("kind", "spoil", "message"), DEFECTS)
def test_defect_in_a_json(write_coco, kind: str, spoil: Spoil, message: str) -> None:
    content = good()
    spoil(content)
    path, images = write_coco(content, images=False)
    report = check_coco_json(path)
    found = [problem for problem in report.problems if problem.kind == kind]
    assert len(found) == 1, report.text()
    text = str(found[0])
    assert re.search(message, text) and path in text and text.endswith(REMEDIES[kind])
    assert not report.ok and text in report.text()


def test_good_file_has_no_problem_and_is_counted(write_coco) -> None:
    content = good()
    content["annotations"][0]["iscrowd"] = 1
    content["categories"].append({"id": 90, "name": "fish"})
    path, images = write_coco(content)
    report = check_coco_json(path, images, base=["cat", "dog"], novel=["bird"])
    assert report.ok, report.text()
    assert dict(report.counts["cat"]) == {"crowd": 1, "objects": 1, "images": 2}
    assert report.images == 3 and list(report.counts) == ["cat", "dog", "bird", "fish"]
    text = report.text()
    assert "1 class has no object: fish" in text and "no problems found" in text and "renumbered" in text
    assert "novel" in report.table().splitlines()[3]


def test_edge_rounding_is_no_defect(write_coco) -> None:
    content = good()
    annotation(content, bbox=[-0.5, 0, WIDTH + 1, HEIGHT + 0.9])
    assert check_coco_json(write_coco(content, images=False)[0]).ok


def test_all_defects_are_listed_at_once(write_coco) -> None:
    content = good()
    for entry in content["annotations"]:
        entry["bbox"] = [0, 0, 0, 0]
    annotation(content, category_id=99)
    path, _ = write_coco(content, images=False)
    report = check_coco_json(path)
    assert len(report.problems) == 5
    assert "... and 2 more" in report.text(per_kind=2) and "more" not in report.text(per_kind=0)


@pytest.mark.parametrize("text", ["{", "[]", "\udcff"])
def test_file_that_is_no_json(tmp_path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    report = check_coco_json(str(path))
    assert [problem.kind for problem in report.problems] == ["bad_json"]


def test_base_and_novel_classes(write_coco) -> None:
    path, _ = write_coco(good(), images=False)
    report = check_coco_json(path, base=["cat", "dog"], novel=["dog", "brid"])
    assert [problem.kind for problem in report.problems] == ["class_overlap", "unknown_class"]
    assert "'dog' is both" in str(report.problems[0]) and "'brid'" in str(report.problems[1])


def test_images_that_are_missing_broken_or_of_another_size(write_coco) -> None:
    path, folder = write_coco(good())
    Path(folder, "001.jpg").unlink()
    Path(folder, "002.jpg").write_bytes(Path(folder, "002.jpg").read_bytes()[:200])
    write_image(Path(folder, "003.jpg"), WIDTH + 2, HEIGHT)
    report = check_coco_json(path, folder)
    assert [problem.kind for problem in report.problems] == ["missing_image", "unreadable_image", "size_mismatch"]
    for number, problem in enumerate(report.problems, 1):
        assert f"{number:03d}.jpg" in str(problem) and problem.image == number
    assert "is 42 x 30, but the annotations say 40 x 30" in report.text()
    assert [p.kind for p in check_coco_json(path, folder, read_images=False).problems] == ["missing_image"]


def test_cleaning_leaves_what_has_no_problem(write_coco) -> None:
    content = good()
    annotation(content, bbox=[0, 0, 0, 0])
    content["annotations"][0].pop("id")
    path, folder = write_coco(content)
    Path(folder, "003.jpg").unlink()
    problems = check_coco_json(path, folder).problems
    cleaned = clean_json(content, problems)
    assert [image["id"] for image in cleaned["images"]] == [1, 2]
    assert [a["id"] for a in cleaned["annotations"]] == [1003, 1002]
    assert check_coco_json(write_coco(cleaned, "cleaned")[0], folder).ok


# --------------------------------------------------------------------------------------------- data set dicts and VOC


def record(**values: Any) -> dict[str, Any]:
    entry = {"category_id": 0, "bbox": [1, 1, 9, 9], "bbox_mode": BoxMode.XYXY_ABS, **values}
    return {"file_name": "a.jpg", "image_id": 1, "width": WIDTH, "height": HEIGHT, "annotations": [entry]}


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("category_range", {"category_id": 2}, "start at 1?"),
        ("category_range", {"category_id": -1}, "not in 0 .. 1"),
        ("category_range", {"category_id": "cat"}, "'cat'"),
        ("empty_box", {"bbox": [5, 5, 5, 9]}, "width 0"),
        ("outside", {"bbox": [5, 5, 99, 9]}, "leaves the image"),
        ("bad_box", {"bbox_mode": None}, "bbox_mode"),
        ("non_finite", {"bbox": [1, 1, float("inf"), 9]}, "inf"),
        ("bad_mask", {"segmentation": [[1, 2]]}, "polygon"),
        ("mask_outside", {"segmentation": [[1, 1, 99, 1, 5, 5]]}, "outside the image of 40 x 30"),
        ("no_mask", {"has_mask": True}, "has no segmentation"),
    ],
)
def test_defect_in_dicts(kind: str, values: dict, message: str) -> None:
    forget("dicts")
    meta = MetadataCatalog.get("dicts").set(thing_classes=["cat", "dog"])
    assert check_dataset_dicts([record()], meta) == []
    (problem,) = check_dataset_dicts([record(id=17, **values)], meta)
    text = str(problem)
    assert problem.kind == kind and message in text and "annotation 17" in text and "a.jpg" in text
    assert REMEDIES[kind] in text


def test_dicts_with_repeated_or_missing_images(tmp_path) -> None:
    forget("dicts")
    meta = MetadataCatalog.get("dicts").set(thing_classes=["cat", "dog"])
    assert [p.kind for p in check_dataset_dicts([record(), record()], meta)] == ["duplicate_image"]
    found = check_dataset_dicts([{**record(), "file_name": str(tmp_path / "no.jpg")}], meta, read_images=True)
    assert [p.kind for p in found] == ["missing_image"]
    assert [p.kind for p in check_dataset_dicts([{"annotations": []}], meta)] == ["bad_entry"]


def test_voc_folder(tmp_path) -> None:
    box = (2, 2, 12, 12)
    write_voc(
        tmp_path,
        "train",
        {
            "a": [("cat", box, 0), ("dog", (5, 5, 5, 9), 0)],
            "b": [("cow", box, 0)],
            "c": [("cat", (9, 9, 3, 12), 0)],
            "d": [("cat", (2, 2, 90, 12), 0)],
            "e": [("cat", box, 0)],
            "f": [],
        },
    )
    (tmp_path / "Annotations" / "e.xml").write_text("<annotation>")
    (tmp_path / "Annotations" / "f.xml").unlink()
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    report = check_voc(str(tmp_path), "train", ["cat", "dog"])
    found = {(problem.kind, problem.image) for problem in report.problems}
    assert found == {
        ("bad_xml", "b"),
        ("empty_box", "c"),
        ("outside", "d"),
        ("bad_xml", "e"),
        ("bad_xml", "f"),
        ("missing_image", "a"),
    }
    assert "unknown class 'cow'" in report.text() and "one pixel thin" in report.text()
    forget("voc_with_defects")
    register_pascal_voc("voc_with_defects", str(tmp_path), "train", 2007, ("cat", "dog"))
    (again,) = check_dataset("voc_with_defects")
    assert again.problems == report.problems


# ------------------------------------------------------------------------------------------- configs and command line


def test_a_config_is_checked_down_to_its_sources(custom_cfg) -> None:
    cfg = custom_cfg(STAGE="finetune", SHOTS=2)
    apply_few_shot(cfg)
    reports = check_config(cfg, read_images=False)
    assert [report.title.rsplit("/", 1)[-1] for report in reports] == [
        "train.json",
        "zoo_split1_finetune_gfsod_2shot_seed0_train",
        "test.json",
        "zoo_test_split1_all",
    ]
    assert {problem.kind for report in reports for problem in report.problems} == {"missing_image"}
    assert reports[1].ok and reports[1].counts["cat"]["objects"] == 2
    assert reports[1].roles["bird"] == "novel"


def test_shots_that_are_not_available_are_a_problem_of_the_config(custom_cfg) -> None:
    cfg = custom_cfg(STAGE="finetune", SHOTS=4)
    apply_few_shot(cfg)
    kinds = [
        problem
        for report in check_config(cfg, read_images=False)
        for problem in report.problems
        if problem.kind == "cannot_load"
    ]
    assert len(kinds) == 1 and "dog (3)" in str(kinds[0])


def test_registered_dicts_are_checked(tmp_path) -> None:
    forget("my_dicts")
    DatasetCatalog.register("my_dicts", lambda: [record(category_id=5)])
    MetadataCatalog.get("my_dicts").set(thing_classes=["cat"])
    (report,) = check_dataset("my_dicts", read_images=False)
    assert [problem.kind for problem in report.problems] == ["category_range"]
    with pytest.raises(KeyError, match="not registered"):
        check_dataset("my_dcits")


def test_command_line(write_coco, tmp_path, capsys, monkeypatch) -> None:
    path, images = write_coco(good())
    assert main(["--json", path, "--images", images, "--base", "cat", "dog", "--novel", "bird"]) == 0
    checked, _, scored = capsys.readouterr().out.partition(", perfect predictions")
    assert " objects\n" in checked and "no problems found" in checked
    assert "100.00" in scored and " objects" not in scored and "no problems found" not in scored

    content = good()
    annotation(content, bbox=[0, 0, 0, 0])
    path, images = write_coco(content, "spoilt")
    report, cleaned = tmp_path / "report.json", tmp_path / "cleaned.json"
    assert main(["--json", path, "--images", images, "--report", str(report), "--clean", str(cleaned)]) == 1
    assert "annotation 1001" in capsys.readouterr().out
    (problem,) = json.loads(report.read_text())[0]["problems"]
    assert (problem["kind"], problem["annotation"], problem["fix"]) == ("empty_box", 1001, REMEDIES["empty_box"])
    assert main(["--json", str(cleaned), "--images", images]) == 0

    monkeypatch.setattr("sys.argv", ["dyn-d2 check-data"])  # as the program sets it
    assert main(["--dataset", "my_dcits"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("dyn-d2 check-data: ") and "not registered" in error
    (tmp_path / "broken.json").write_text("{")
    assert main(["--json", str(tmp_path / "broken.json"), "--clean", str(cleaned)]) == 2
    assert capsys.readouterr().err.startswith("dyn-d2 check-data: --clean cannot fix")


def test_command_line_with_a_config(custom_cfg, tmp_path, capsys) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(custom_cfg(STAGE="finetune", SHOTS=2).dump())
    arguments = ["--config-file", str(config), "--no-read"]
    assert main(arguments) == 1
    assert "missing_image (7)" in capsys.readouterr().out
    assert main([*arguments, "FEW_SHOT.STAGE", "typo"]) == 2
    assert "FEW_SHOT.STAGE='typo'" in capsys.readouterr().err


def test_empty_boxes_of_a_published_data_set_are_left_out_and_noted(few_shot_cfg, write_coco) -> None:
    names = list(MetadataCatalog.get("coco_2017_train").thing_classes)
    content = coco_content(names, [names, names])
    content["annotations"][0]["bbox"] = [1, 1, 4, 0]
    path, images = write_coco(content, images=False)
    forget("coco_with_defect")
    register_coco_instances("coco_with_defect", {"thing_classes": names}, path, images)
    for entry in content["images"]:
        entry["width"] = 2000
    Path(path).write_text(json.dumps(content))
    assert [p.kind for p in check_coco_json(path).problems] == ["empty_box"]
    cfg = few_shot_cfg(BENCHMARK="coco", TRAIN_SETS=["coco_with_defect"], TEST_SETS=["coco_with_defect"], STAGE="joint")
    apply_few_shot(cfg)
    records = DatasetCatalog.get(cfg.DATASETS.TRAIN[0])
    assert sum(len(r["annotations"]) for r in records) == 159
    assert check_dataset_dicts(records, MetadataCatalog.get(cfg.DATASETS.TRAIN[0])) == []
    source = check_config(cfg, read_images=False)[0]
    assert "empty_box" not in {p.kind for p in source.problems} and "1 known defects" in source.text()
