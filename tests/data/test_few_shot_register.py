"""From FEW_SHOT keys to data sets, through the standard evaluators."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from few_shot_files import coco_content

from dyn_d2.data.few_shot import NotEnoughShots, ShotSet, apply_few_shot, shots_path
from dyn_d2.data.few_shot.prepare import main as prepare_main
from dyn_d2.data.few_shot.register import restrict_json
from dyn_d2.data.few_shot.sources import forget, load_source

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets import register_coco_instances
from detectron2.data.datasets.lvis import register_lvis_instances
from detectron2.evaluation import COCOEvaluator, PascalVOCDetectionEvaluator
from detectron2.structures import Boxes, BoxMode, Instances


def training_set(cfg: CfgNode) -> tuple[list[dict], list[str]]:
    apply_few_shot(cfg)
    (name,) = cfg.DATASETS.TRAIN
    return DatasetCatalog.get(name), MetadataCatalog.get(name).thing_classes


def class_counts(records: list[dict], classes: list[str]) -> Counter:
    return Counter(classes[a["category_id"]] for r in records for a in r["annotations"])


def perfect_outputs(records: list[dict]) -> list[dict]:
    """The ground truth as if a model had predicted it."""
    outputs = []
    for record in records:
        instances = Instances((record["height"], record["width"]))
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in record["annotations"]]
        instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        instances.scores = torch.full((len(boxes),), 0.9)
        instances.pred_classes = torch.tensor([a["category_id"] for a in record["annotations"]], dtype=torch.long)
        outputs.append({"instances": instances})
    return outputs


def test_nothing_happens_without_a_benchmark(few_shot_cfg) -> None:
    cfg = few_shot_cfg()
    before = cfg.dump()
    apply_few_shot(cfg)
    assert cfg.dump() == before


@pytest.mark.parametrize(
    ("stage", "protocol", "classes", "counts"),
    [
        ("base", "gfsod", ["cat", "dog"], {"cat": 4, "dog": 3}),
        ("novel", "gfsod", ["bird", "fish"], {"bird": 2, "fish": 2}),
        ("finetune", "gfsod", ["cat", "dog", "bird", "fish"], {"cat": 2, "dog": 2, "bird": 2, "fish": 2}),
        ("finetune", "fsod", ["bird", "fish"], {"bird": 2, "fish": 2}),
        ("joint", "gfsod", ["cat", "dog", "bird", "fish"], {"cat": 4, "dog": 3, "bird": 4, "fish": 3}),
        ("joint_shots", "gfsod", ["cat", "dog", "bird", "fish"], {"cat": 4, "dog": 3, "bird": 2, "fish": 2}),
    ],
)
def test_every_stage_has_its_classes_in_the_order_of_the_file_and_its_objects(
    custom_cfg, stage: str, protocol: str, classes: list[str], counts: dict[str, int]
) -> None:
    cfg = custom_cfg(STAGE=stage, PROTOCOL=protocol, SHOTS=2, SEED=1)
    records, names = training_set(cfg)
    assert names == classes
    assert class_counts(records, names) == counts
    assert all(record["annotations"] for record in records)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == cfg.MODEL.RETINANET.NUM_CLASSES == len(classes)
    drawn = {"unit": "instance", "max_objects": 0, "group_by_image": False}
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        meta = MetadataCatalog.get(name)
        assert (meta.thing_classes, meta.base_classes, meta.novel_classes) == (
            classes,
            ["cat", "dog"],
            ["bird", "fish"],
        )
        assert meta.evaluator_type == "coco"
        assert meta.few_shot == {
            "benchmark": "zoo",
            "stage": stage,
            "protocol": protocol,
            "split": 1,
            "shots": 2,
            "seed": 1,
            **({} if stage in ("base", "joint") else drawn),
        }


def test_somebodys_own_function_decides_what_a_data_set_holds(custom_cfg) -> None:
    """Though its metadata name a json."""
    cfg = custom_cfg(STAGE="base")
    apply_few_shot(cfg)
    (source,) = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).sources
    records = load_source(source)
    function = DatasetCatalog[source]
    other = [{**record, "annotations": record["annotations"][:1]} for record in records]
    bare = [{**r, "annotations": [{k: a[k] for k in a if k != "id"} for a in r["annotations"]]} for r in records]
    DatasetCatalog.pop(source)
    try:
        for given, expected in ((records[:2], 2), (other, len(records))):
            DatasetCatalog.register(source, lambda given=given: given)
            assert len(load_source(source)) == expected
            assert all(len(record["annotations"]) <= 1 for record in load_source(source)) == (given is other)
            DatasetCatalog.pop(source)
        DatasetCatalog.register(source, lambda: bare)  # the same objects: with the ids of the file, as shots have them
        assert load_source(source) == records
    finally:
        DatasetCatalog.pop(source)
        DatasetCatalog.register(source, function)


def test_base_training_drops_novel_boxes_and_images_without_base_objects(custom_cfg) -> None:
    records, _ = training_set(custom_cfg(STAGE="base"))
    assert [record["image_id"] for record in records] == [1, 2, 3, 6]


def test_shot_records_hold_one_object_each_or_all_of_an_image(custom_cfg) -> None:
    single, _ = training_set(custom_cfg(STAGE="finetune", SHOTS=3))
    assert len(single) == 12 and all(len(record["annotations"]) == 1 for record in single)
    grouped, _ = training_set(custom_cfg(STAGE="finetune", SHOTS=3, GROUP_BY_IMAGE=True))
    assert len({record["image_id"] for record in grouped}) == len(grouped) < 12
    ids = [sorted(a["id"] for r in records for a in r["annotations"]) for records in (single, grouped)]
    assert ids[0] == ids[1]


def test_the_run_keeps_the_list_of_its_objects(custom_cfg) -> None:
    cfg = custom_cfg(STAGE="finetune", SHOTS=2)
    records, _ = training_set(cfg)
    shots = ShotSet.load(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).shots_file)
    kept = {i.annotation for ids in shots.objects.values() for i in ids}
    assert kept == {a["id"] for r in records for a in r["annotations"]}
    assert Path(cfg.OUTPUT_DIR) in Path(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).shots_file).parents


def test_zero_shots_means_all_objects_of_the_stage(custom_cfg) -> None:
    records, names = training_set(custom_cfg(STAGE="novel", SHOTS=0))
    assert class_counts(records, names) == {"bird": 4, "fish": 3}


def test_too_many_shots_name_class_and_count(custom_cfg) -> None:
    with pytest.raises(NotEnoughShots, match=r"dog \(3\), fish \(3\)"):
        training_set(custom_cfg(STAGE="finetune", SHOTS=4))
    with pytest.raises(NotEnoughShots, match=r": fish \(3\)\."):
        training_set(custom_cfg(STAGE="finetune", PROTOCOL="fsod", SHOTS=4))


@pytest.mark.parametrize(
    ("key", "value"), [("PROTOCOL", "all"), ("STAGE", "fine"), ("SHOTS_UNIT", "box"), ("SHOTS", -1), ("SEED", -1)]
)
def test_wrong_values_name_the_key(custom_cfg, key: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"FEW_SHOT.{key}"):
        apply_few_shot(custom_cfg(**{key: value}))


@pytest.mark.parametrize(("stage", "objects"), [("base", 2), ("novel", 2), ("joint", 4)])
def test_coco_evaluation_sees_only_the_classes_of_the_stage(custom_cfg, tmp_path, stage: str, objects: int) -> None:
    cfg = custom_cfg(STAGE=stage, SHOTS=1)
    apply_few_shot(cfg)
    (name,) = cfg.DATASETS.TEST
    records = DatasetCatalog.get(name)
    assert len(records) == 4  # images without such objects stay: what is found in them is wrong
    assert sum(len(record["annotations"]) for record in records) == objects
    truth = json.loads(Path(MetadataCatalog.get(name).json_file).read_text())
    assert len(truth["annotations"]) == objects and len(truth["images"]) == 4
    evaluator = COCOEvaluator(name, ("bbox",), False, str(tmp_path / "eval"), use_fast_impl=False)
    evaluator.reset()
    evaluator.process(records, perfect_outputs(records))
    results = evaluator.evaluate()["bbox"]
    assert results["AP"] == pytest.approx(100, abs=0.1)
    assert {key.removeprefix("AP-") for key in results if key.startswith("AP-")} == set(
        MetadataCatalog.get(name).thing_classes
    )


def test_ground_truth_without_area_and_iscrowd_is_completed() -> None:
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 9, "height": 9}],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 3, 4], "area": None},
            {"id": 2, "image_id": 1, "category_id": 2, "bbox": [0, 0, 3, 4]},
        ],
    }
    restricted = restrict_json(content, {1})
    assert [(a["id"], a["area"], a["iscrowd"]) for a in restricted["annotations"]] == [(1, 12, 0)]
    assert restricted["categories"] == [{"id": 1, "name": "a"}]


def test_ground_truth_is_made_again_when_the_file_changes(custom_cfg) -> None:
    cfg = custom_cfg(STAGE="base")
    apply_few_shot(cfg)
    first = MetadataCatalog.get(cfg.DATASETS.TEST[0]).json_file
    path = Path(cfg.FEW_SHOT.CUSTOM.TEST_JSON)
    content = json.loads(path.read_text())
    content["annotations"].pop(0)
    path.write_text(json.dumps(content))
    apply_few_shot(cfg)
    assert MetadataCatalog.get(cfg.DATASETS.TEST[0]).json_file != first
    assert sum(len(r["annotations"]) for r in DatasetCatalog.get(cfg.DATASETS.TEST[0])) == 1


def test_test_file_without_a_category_says_what_to_add(custom_cfg) -> None:
    cfg = custom_cfg(STAGE="joint")
    path = Path(cfg.FEW_SHOT.CUSTOM.TEST_JSON)
    content = json.loads(path.read_text())
    content["categories"] = [c for c in content["categories"] if c["name"] != "fish"]
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] != 40]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="lacks the categories fish"):
        apply_few_shot(cfg)


@pytest.mark.parametrize("part", ["TRAIN_JSON", "TEST_JSON"])
@pytest.mark.parametrize("spoil", [{"category_id": 999}, {"bbox": None, "area": None}])
def test_broken_annotations_name_the_file_and_the_check(custom_cfg, part: str, spoil: dict) -> None:
    cfg = custom_cfg(STAGE="joint")
    path = Path(cfg.FEW_SHOT.CUSTOM[part])
    content = json.loads(path.read_text())
    content["annotations"][0].update(spoil)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{path}.*check-data --json {path}"):
        apply_few_shot(cfg)
        for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
            DatasetCatalog.get(name)


def test_data_sets_go_through_the_standard_loading(custom_cfg) -> None:
    cfg = custom_cfg(STAGE="finetune", SHOTS=1)
    apply_few_shot(cfg)
    assert len(get_detection_dataset_dicts(list(cfg.DATASETS.TRAIN), filter_empty=True)) == 4


def test_missing_data_names_the_environment_variable(few_shot_cfg, request) -> None:
    request.addfinalizer(lambda: forget("nowhere"))
    register_coco_instances("nowhere", {"thing_classes": list(_coco_names())}, "/nowhere/a.json", "/nowhere")
    cfg = few_shot_cfg(BENCHMARK="coco", TRAIN_SETS=["nowhere"], TEST_SETS=["nowhere"])
    apply_few_shot(cfg)  # a configuration can be looked at without data
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 60
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        with pytest.raises(FileNotFoundError, match="/nowhere/a.json.*DETECTRON2_DATASETS"):
            DatasetCatalog.get(name)
    with pytest.raises(KeyError, match="'typo' is not registered"):
        apply_few_shot(few_shot_cfg(BENCHMARK="coco", TRAIN_SETS=["typo"]))


def _coco_names() -> list[str]:
    return MetadataCatalog.get("coco_2017_train").thing_classes


# ------------------------------------------------------------------------------------------------------------- VOC


def test_voc_stages_and_difficult_objects(tiny_voc) -> None:
    records, names = training_set(tiny_voc(STAGE="base"))
    assert len(names) == 15 and "bird" not in names
    assert class_counts(records, names)["cat"] == 3  # difficult objects are trained on where everything is
    assert class_counts(records, names)["person"] == 4
    records, names = training_set(tiny_voc(STAGE="finetune", SHOTS=2, SPLIT=3))
    assert len(names) == 20 and set(class_counts(records, names).values()) == {2}
    assert not any(annotation["difficult"] for record in records for annotation in record["annotations"])
    with pytest.raises(NotEnoughShots, match=r"aeroplane \(2\)"):
        training_set(tiny_voc(STAGE="finetune", SHOTS=3))


def test_voc_records_are_those_of_detectron2(tiny_voc) -> None:
    apply_few_shot(tiny_voc())
    ours, theirs = load_source("tiny_voc_07"), DatasetCatalog.get("tiny_voc_07")
    for record in ours:
        for annotation in record["annotations"]:
            del annotation["id"], annotation["difficult"]
    assert ours == theirs


@pytest.mark.parametrize("stage", ["base", "novel", "joint"])
def test_voc_evaluation_of_the_stage(tiny_voc, stage: str) -> None:
    cfg = tiny_voc(STAGE=stage, SHOTS=1)
    apply_few_shot(cfg)
    (name,) = cfg.DATASETS.TEST
    records = DatasetCatalog.get(name)
    evaluator = PascalVOCDetectionEvaluator(name)
    evaluator.reset()
    evaluator.process(records, perfect_outputs(records))
    assert evaluator.evaluate()["bbox"]["AP50"] == pytest.approx(100, abs=0.1)


def test_published_voc_lists(tiny_voc, tmp_path, caplog) -> None:
    """Images are listed, not objects: K are drawn, difficult ones only where nothing else is left."""
    lists = tmp_path / "vocsplit"
    cfg = tiny_voc(STAGE="finetune", SHOTS=2, SHOTS_DIR=str(lists))
    classes = MetadataCatalog.get("tiny_voc_07").thing_classes
    for seed, folder in ((0, lists), (4, lists / "seed4")):
        folder.mkdir()
        for position, name in enumerate(classes):
            lines = [f"datasets/VOC2007/JPEGImages/{position:06d}.jpg"]
            if name == "bird" and seed == 0:
                lines = ["datasets/VOC2012/JPEGImages/2008_000001.jpg"]
            (folder / f"box_2shot_{name}_train.txt").write_text("\n".join(lines))
    records, names = training_set(cfg)
    counts = class_counts(records, names)
    assert counts.pop("bird") == 1 and set(counts.values()) == {2}
    assert "holds 1 objects of class 'bird', not 2" in caplog.text
    cfg.FEW_SHOT.SEED = 4
    records, names = training_set(cfg)
    assert set(class_counts(records, names).values()) == {2}
    for key, value in (("SHOTS_UNIT", "whole_image"), ("MAX_OBJECTS", 3)):
        other = cfg.clone()
        other.FEW_SHOT[key] = value
        with pytest.raises(ValueError, match=f"published lists, which count objects, but FEW_SHOT.{key} is {value}"):
            training_set(other)

    (lists / "box_2shot_cat_train.txt").write_text("VOC2007/JPEGImages/009999.jpg\n")
    cfg.FEW_SHOT.SEED = 0
    with pytest.raises(ValueError, match="box_2shot_cat_train.txt lists no object of class 'cat'"):
        training_set(cfg)
    (lists / "box_2shot_cat_train.txt").unlink()
    with pytest.raises(FileNotFoundError, match="incomplete.*box_2shot_cat_train"):
        training_set(cfg)
    cfg.FEW_SHOT.SHOTS = 1
    with pytest.raises(FileNotFoundError, match="SHOTS_DIR.*1shot.json"):
        training_set(cfg)


def test_prepared_sets_are_those_that_a_run_draws(tiny_voc, tmp_path, capsys) -> None:
    drawn, _ = training_set(tiny_voc(STAGE="finetune", SHOTS=2, SEED=1))
    out = tmp_path / "shots"
    arguments = [
        "--shots",
        "1",
        "2",
        "--seeds",
        "0",
        "1",
        "--out",
        str(out),
        "--train-sets",
        "tiny_voc_07",
        "tiny_voc_12",
    ]
    assert prepare_main(["voc", *arguments]) == 0
    assert len(list(out.rglob("*.json"))) == 4 and str(shots_path(out, "voc", 1, 2)) in capsys.readouterr().out
    read, _ = training_set(tiny_voc(STAGE="finetune", SHOTS=2, SEED=1, SHOTS_DIR=str(out)))
    assert read == drawn
    with pytest.raises(ValueError, match="are not in tiny_voc_12"):
        cfg = tiny_voc(STAGE="finetune", SHOTS=2, SEED=1, SHOTS_DIR=str(out))
        cfg.FEW_SHOT.TRAIN_SETS = ["tiny_voc_12"]
        training_set(cfg)
    with pytest.raises(NotEnoughShots, match="Not enough usable objects for 3 shots"):
        prepare_main(["voc", "--shots", "3", *arguments[3:]])


# ----------------------------------------------------------------------------------------------------- COCO and LVIS


def test_published_coco_lists(few_shot_cfg, write_coco, tmp_path) -> None:
    content = coco_content(_coco_names(), [_coco_names()[:40], _coco_names()[40:], _coco_names()[:40], _coco_names()])
    json_file, images = write_coco(content, "coco", images=False)
    forget("tiny_coco")
    register_coco_instances("tiny_coco", {"thing_classes": list(_coco_names())}, json_file, images)
    lists = tmp_path / "cocosplit"
    lists.mkdir()
    by_class = {
        c["name"]: [a for a in content["annotations"] if a["category_id"] == c["id"]] for c in content["categories"]
    }
    for name, annotations in by_class.items():
        part = {"images": [], "annotations": annotations[-1:], "categories": content["categories"]}
        (lists / f"full_box_1shot_{name}_trainval.json").write_text(json.dumps(part))
    cfg = few_shot_cfg(
        BENCHMARK="coco",
        TRAIN_SETS=["tiny_coco"],
        TEST_SETS=["tiny_coco"],
        STAGE="finetune",
        SHOTS=1,
        SHOTS_DIR=str(lists),
    )
    records, names = training_set(cfg)
    assert {a["id"] for r in records for a in r["annotations"]} == {a[-1]["id"] for a in by_class.values()}
    assert names == _coco_names() and set(class_counts(records, names).values()) == {1}
    # With all classes of a published set, its own file is the ground truth.
    assert MetadataCatalog.get(cfg.DATASETS.TEST[0]).json_file == json_file


@pytest.fixture
def tiny_lvis(tmp_path, few_shot_cfg):
    # Detectron2 knows the names and insists on them; an engine that reads them from the file takes any.
    builtin = MetadataCatalog.get("lvis_v0.5_train").get("thing_classes")
    names = builtin or [f"thing {number}" for number in range(1230)]
    rare = set(np.random.choice(len(names), 454, replace=False).tolist())
    annotations = [
        {
            "id": number,
            "image_id": 1 + number % 2,
            "category_id": number % len(names) + 1,
            "bbox": [1, 2, 6, 5],
            "area": 30,
            "segmentation": [[1, 2, 7, 2, 7, 7]],
        }
        for number in range(len(names) + 3)
    ]
    content = {
        "images": [
            {
                "id": i,
                "coco_url": f"http://host/train2017/{i}.jpg",
                "width": 40,
                "height": 30,
                "neg_category_ids": [1, 2, 3, 4],
                "not_exhaustive_category_ids": [],
            }
            for i in (1, 2)
        ],
        "annotations": annotations,
        "categories": [
            {"id": position + 1, "name": name, "frequency": "r" if position in rare else "f"}
            for position, name in enumerate(names)
        ],
    }
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps(content))
    forget("lvis_v0.5_tiny")
    register_lvis_instances("lvis_v0.5_tiny", {"thing_classes": names}, str(path), str(tmp_path) + "/")
    return few_shot_cfg(BENCHMARK="lvis", TRAIN_SETS=["lvis_v0.5_tiny"], TEST_SETS=["lvis_v0.5_tiny"]), rare, names


def test_lvis_divides_by_the_frequency_in_the_file_and_takes_up_to_k(tiny_lvis, caplog) -> None:
    cfg, rare, names = tiny_lvis
    cfg.FEW_SHOT.STAGE = "novel"
    records, classes = training_set(cfg)
    assert classes == [name for position, name in enumerate(names) if position in rare]
    assert "rare classes, but LVIS v0.5 has 454" in caplog.text
    assert all(count >= 1 for count in class_counts(records, classes).values())
    assert len(class_counts(records, classes)) == 454
    test = MetadataCatalog.get(cfg.DATASETS.TEST[0])
    truth = json.loads(Path(test.json_file).read_text())
    assert [c["id"] - 1 for c in truth["categories"]] == sorted(rare)
    assert set(truth["images"][0]["neg_category_ids"]) <= {position + 1 for position in rare}
    assert test.thing_dataset_id_to_contiguous_id == {i + 1: n for n, i in enumerate(sorted(rare))}
    assert test.evaluator_type == "lvis"


def test_lvis_base_set_with_frequent_and_common_classes_apart(tiny_lvis, tmp_path, few_shot_cfg) -> None:
    cfg, rare, names = tiny_lvis
    path = tmp_path / "lvis.json"
    content = json.loads(path.read_text())
    for position, category in enumerate(content["categories"]):
        if position % 4 < 2:
            category["frequency"] = category["frequency"].replace("f", "c")
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] == 1 or a["category_id"] % 4 == 0]
    path.write_text(json.dumps(content))
    cfg.FEW_SHOT.STAGE = "base"
    together, classes = training_set(cfg)
    cfg.FEW_SHOT.FREQUENCIES_APART = True
    apart, same = training_set(cfg)
    frequency = {c["name"]: c["frequency"] for c in content["categories"]}
    kinds = [{frequency[classes[a["category_id"]]] for a in record["annotations"]} for record in apart]
    # Image 2 keeps positions 3, 7 ... only, of which all base classes are frequent; image 1 has 0, 2, 4 ...
    assert classes == same and len(together) == 2
    assert [(r["image_id"], kind) for r, kind in zip(apart, kinds, strict=True)] == [
        (1, {"f"}), (2, {"f"}), (1, {"c"})
    ]  # fmt: skip

    def ids(records: list) -> list[int]:
        return sorted(a["id"] for r in records for a in r["annotations"])

    assert ids(apart) == ids(together)
    cfg.FEW_SHOT.STAGE = "joint"
    assert len(training_set(cfg)[0]) == 2
    with pytest.raises(ValueError, match="FREQUENCIES_APART is for LVIS.*'voc'"):
        training_set(few_shot_cfg(BENCHMARK="voc", FREQUENCIES_APART=True))
    for category in content["categories"]:
        category.pop("frequency")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "lvis.json").write_text(json.dumps(content))
    forget("lvis_v0.5_bare")
    register_lvis_instances(
        "lvis_v0.5_bare", {"thing_classes": names}, str(tmp_path / "bare" / "lvis.json"), str(tmp_path) + "/"
    )
    cfg.FEW_SHOT.merge_from_list(["STAGE", "base", "TRAIN_SETS", ["lvis_v0.5_bare"], "TEST_SETS", ["lvis_v0.5_bare"]])
    with pytest.raises(ValueError, match="no json of lvis_v0.5_bare states the frequency of"):
        training_set(cfg)


def test_published_coco_lists_of_images(few_shot_cfg, write_coco, tmp_path) -> None:
    """Kang et al. list images of COCO, under VOC's names of classes."""
    content = coco_content(_coco_names(), [[name] for name in _coco_names()] * 2)
    json_file, images = write_coco(content, "coco", images=False)
    forget("tiny_coco")
    register_coco_instances("tiny_coco", {"thing_classes": list(_coco_names())}, json_file, images)
    lists = tmp_path / "cocosplit"
    lists.mkdir()
    spelling = {"airplane": "aeroplane", "couch": "sofa", "dining table": "diningtable", "motorcycle": "motorbike"}
    spelling |= {"potted plant": "pottedplant", "tv": "tvmonitor"}
    image_of = {a["category_id"]: a["image_id"] for a in content["annotations"]}  # the last of each class
    for category in content["categories"]:
        name = spelling.get(category["name"], category["name"])
        line = f"/somewhere/images/val2014/COCO_val2014_{image_of[category['id']]:012d}.jpg\n"
        (lists / f"full_box_1shot_{name}_trainval.txt").write_text(line)
    keys = {"BENCHMARK": "coco", "TRAIN_SETS": ["tiny_coco"], "TEST_SETS": ["tiny_coco"], "STAGE": "finetune"}
    records, names = training_set(few_shot_cfg(**keys, SHOTS=1, SHOTS_DIR=str(lists)))
    assert {r["image_id"] for r in records} == set(image_of.values())
    assert set(class_counts(records, names).values()) == {1}


def test_k_whole_images_of_each_class(custom_cfg) -> None:
    whole = custom_cfg(STAGE="finetune", SHOTS=1, SHOTS_UNIT="whole_image")
    records, classes = training_set(whole)
    assert whole.DATASETS.TRAIN[0].count("1shot_whole_images_seed") == 1
    full, _ = training_set(custom_cfg(STAGE="finetune", SHOTS=0, GROUP_BY_IMAGE=True))
    of_image = {record["image_id"]: len(record["annotations"]) for record in full}
    assert {r["image_id"]: len(r["annotations"]) for r in records}.items() <= of_image.items()
    assert set(class_counts(records, classes)) == set(classes) and len(records) <= len(classes)
    novel, names = training_set(custom_cfg(STAGE="novel", SHOTS=1, SHOTS_UNIT="whole_image"))
    assert {r["image_id"] for r in novel} <= {r["image_id"] for r in records} and set(names) == {"bird", "fish"}


def test_whole_images_leave_nothing_unlabelled(few_shot_cfg, write_coco) -> None:
    names = _coco_names()
    content = coco_content(names, [[name] for name in names] * 2 + [[names[0]] * 2, list(names[:4])])
    json_file, images = write_coco(content, "coco", images=False)
    forget("tiny_coco")
    register_coco_instances("tiny_coco", {"thing_classes": list(names)}, json_file, images)
    keys = {"BENCHMARK": "coco", "TRAIN_SETS": ["tiny_coco"], "TEST_SETS": ["tiny_coco"], "STAGE": "finetune"}
    keys |= {"SHOTS": 2, "MAX_OBJECTS": 3, "GROUP_BY_IMAGE": True}
    records, classes = training_set(few_shot_cfg(**keys))
    assert set(class_counts(records, classes).values()) == {2}
    shown = {i: sum(a["image_id"] == i for a in content["annotations"]) for i in {r["image_id"] for r in records}}
    assert all(len(r["annotations"]) == shown[r["image_id"]] <= 3 for r in records)
    novel, _ = training_set(few_shot_cfg(**keys, PROTOCOL="fsod"))
    assert {r["image_id"] for r in novel} <= {r["image_id"] for r in records}  # the same draw, of fewer classes


def test_published_lvis_list(tiny_lvis, tmp_path) -> None:
    cfg, _, _ = tiny_lvis
    listed = json.loads((tmp_path / "lvis.json").read_text())
    listed["annotations"] = listed["annotations"][:1230]
    (tmp_path / "lvis_shots.json").write_text(json.dumps(listed))
    cfg.FEW_SHOT.merge_from_list(["STAGE", "finetune", "SHOTS_DIR", str(tmp_path)])
    records, classes = training_set(cfg)
    assert sorted(a["id"] for r in records for a in r["annotations"]) == list(range(1230)) and len(classes) == 1230


def test_images_without_annotations_are_kept_where_nobody_filters_them(custom_cfg) -> None:
    counts = {}
    for stage, shots in (("joint", 0), ("base", 0), ("finetune", 1)):
        for filters in (True, False):
            cfg = custom_cfg(STAGE=stage, SHOTS=shots)
            path = Path(cfg.FEW_SHOT.CUSTOM.TRAIN_JSON)
            content = json.loads(path.read_text())
            content["images"] += [{"id": 90 + i, "file_name": f"empty{i}.jpg", "width": 9, "height": 9} for i in (1, 2)]
            path.write_text(json.dumps(content))
            cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = filters
            apply_few_shot(cfg)
            counts[stage, filters] = len(DatasetCatalog.get(cfg.DATASETS.TRAIN[0]))
    assert counts["joint", False] == counts["joint", True] + 2 and counts["base", False] == counts["base", True] + 2
    assert counts["finetune", False] == counts["finetune", True]
