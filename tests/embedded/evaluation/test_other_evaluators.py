"""LVIS, PASCAL VOC, semantic segmentation and Cityscapes on data whose numbers can be worked out."""

import importlib.util
import json
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_dataset import CATEGORY_IDS, SmallDataset, detections, perfect, run

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
)
from detectron2.evaluation.pascal_voc_evaluation import voc_ap, voc_eval

EMBEDDED = importlib.util.find_spec("detectron2.evaluation.old_numpy") is not None
embedded_only = pytest.mark.skipif(not EMBEDDED, reason="Detectron2's evaluator fails on numpy 2 or on this input")


@embedded_only
def test_lvis_numbers_are_those_of_the_lvis_package(tmp_path: Path) -> None:
    pytest.importorskip("lvis")
    import lvis.eval

    dataset = SmallDataset(tmp_path, lvis=True)
    folder = tmp_path / "output"
    evaluator = LVISEvaluator(dataset.name, distributed=False, output_dir=str(folder))
    results = run(evaluator, dataset.inputs, dataset.outputs)
    assert list(results) == ["bbox", "segm"]
    saved = json.loads((folder / "lvis_instances_results.json").read_text())
    assert {r["category_id"] for r in saved} <= set(CATEGORY_IDS)
    for result in saved:
        del result["segmentation"]
    assert lvis.eval.np is np and not hasattr(np, "float")  # nothing of the shim is left behind
    truth = lvis.LVIS(dataset.json_file)
    judge = lvis.LVISEval(truth, lvis.LVISResults(truth, saved), "bbox")
    judge.evaluate()
    with pytest.raises(AttributeError, match="float"):
        judge.accumulate()
    old_numpy = importlib.import_module("detectron2.evaluation.old_numpy")
    with old_numpy.old_numpy_in(lvis.eval):
        judge.accumulate()
    judge.summarize()
    for name, value in results["bbox"].items():
        expected = judge.results[name] * 100 if judge.results[name] >= 0 else float("nan")
        np.testing.assert_allclose(value, expected)
    assert set(results["bbox"]) == {"AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"}


@embedded_only
def test_lvis_perfect_and_empty(tmp_path: Path) -> None:
    dataset = SmallDataset(tmp_path, lvis=True)
    outputs = [{"instances": perfect(dataset, i)} for i in dataset.image_ids]
    evaluator = LVISEvaluator(dataset.name, tasks=("bbox",), distributed=False)
    assert run(evaluator, dataset.inputs, outputs)["bbox"]["AP"] == pytest.approx(100)
    nothing = [{"instances": detections([], [], [])} for _ in dataset.inputs]
    numbers = run(evaluator, dataset.inputs, nothing)["bbox"]
    assert numbers["AP"] == numbers["APr"] == numbers["APc"] == 0


def test_voc_ap_of_known_curves() -> None:
    recall, precision = np.array([0.5, 0.5, 1.0]), np.array([1.0, 0.5, 2 / 3])
    assert voc_ap(recall, precision) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    # Levels 0 to 0.5 (six of eleven) see precision 1, the other five 2/3.
    assert voc_ap(recall, precision, use_07_metric=True) == pytest.approx((6 + 5 * 2 / 3) / 11)
    assert voc_ap(np.array([]), np.array([])) == 0


def voc_dataset(folder: Path, year: int) -> str:
    """Two images: two ants and a difficult one, a bee; "cat" appears nowhere."""
    (folder / "Annotations").mkdir()
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "test.txt").write_text("000001\n000002\n")
    objects = {
        "000001": [("ant", 0, (11, 11, 30, 30)), ("ant", 1, (61, 11, 80, 30))],
        "000002": [("ant", 0, (11, 51, 50, 70)), ("bee", 0, (71, 51, 90, 70))],
    }
    for image, found in objects.items():
        text = "".join(
            f"<object><name>{name}</name><pose>Left</pose><truncated>0</truncated><difficult>{difficult}</difficult>"
            + "<bndbox>"
            + "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
            + "</bndbox></object>"
            for name, difficult, box in found
        )
        (folder / "Annotations" / f"{image}.xml").write_text(f"<annotation>{text}</annotation>")
    name = f"small_voc_{uuid.uuid4().hex}"
    MetadataCatalog.get(name).set(dirname=str(folder), split="test", year=year, thing_classes=["ant", "bee"])
    return name


@pytest.mark.parametrize("year", [2007, 2012])
def test_voc(tmp_path: Path, year: int) -> None:
    inputs = [{"image_id": "000001"}, {"image_id": "000002"}]
    # Boxes of VOC start at pixel 1 and include their end: (11, 11, 30, 30) is 10..30 in continuous coordinates.
    ants = [[10, 10, 30, 30], [60, 10, 80, 30], [10, 10, 30, 30], [90, 60, 110, 80]]
    first = detections(ants, [0, 0, 0, 0], [0.9, 0.95, 0.8, 0.85])
    second = detections([[10, 50, 50, 70], [70, 50, 90, 70]], [0, 1], [0.5, 0.7])
    evaluator = PascalVOCDetectionEvaluator(voc_dataset(tmp_path, year))
    results = run(evaluator, inputs, [{"instances": first}, {"instances": second}])["bbox"]
    # Ants by score: difficult (ignored), hit, false, double (false), hit: recall 1/2, 1/2, 1/2, 1.
    recall, precision = np.array([0, 0.5, 0.5, 0.5, 1]), np.array([0, 1, 1 / 2, 1 / 3, 1 / 2])
    expected = 100 * (voc_ap(recall, precision, year == 2007) + 1) / 2
    assert results == pytest.approx({"AP": expected, "AP50": expected, "AP75": expected})


def test_voc_threshold_has_to_be_exceeded(tmp_path: Path) -> None:
    voc_dataset(tmp_path, 2012)
    # 20 x 20 against 20 x 10 pixels: IoU 0.5 exactly.
    (tmp_path / "bee.txt").write_text("000002 0.9 71 51 90 60\n")
    places = [
        str(tmp_path / "{}.txt"),
        str(tmp_path / "Annotations" / "{}.xml"),
        str(tmp_path / "ImageSets" / "Main" / "test.txt"),
        "bee",
    ]
    assert voc_eval(*places, ovthresh=0.49)[2] == 1
    assert voc_eval(*places, ovthresh=0.5)[2] == 0


def test_voc_result_files_take_names_with_spaces(tmp_path: Path) -> None:
    voc_dataset(tmp_path, 2012)
    (tmp_path / "Annotations" / "000002.xml").rename(tmp_path / "Annotations" / "bee 2 of 5.xml")
    (tmp_path / "ImageSets" / "Main" / "test.txt").write_text("000001\nbee 2 of 5\n")
    (tmp_path / "bee.txt").write_text("bee 2 of 5 0.9 71 51 90 60\n")
    annotations, images = tmp_path / "Annotations" / "{}.xml", tmp_path / "ImageSets" / "Main" / "test.txt"
    assert voc_eval(str(tmp_path / "{}.txt"), str(annotations), str(images), "bee", ovthresh=0.49)[2] == 1


@embedded_only
def test_voc_class_without_ground_truth_does_not_count(tmp_path: Path) -> None:
    name = voc_dataset(tmp_path, 2012)
    meta = MetadataCatalog.get(name)
    other = f"{name}_more"
    MetadataCatalog.get(other).set(dirname=meta.dirname, split="test", year=2012, thing_classes=["ant", "bee", "cat"])
    inputs = [{"image_id": "000001"}, {"image_id": "000002"}]
    outputs = [
        {"instances": detections([[10, 10, 30, 30], [0, 0, 9, 9]], [0, 2], [0.9, 0.8])},
        {"instances": detections([[10, 50, 50, 70], [70, 50, 90, 70]], [0, 1], [0.5, 0.7])},
    ]
    assert run(PascalVOCDetectionEvaluator(other), inputs, outputs)["bbox"]["AP"] == pytest.approx(100)


def sem_seg_dataset(folder: Path, maps: list[np.ndarray]) -> tuple[str, list[dict]]:
    records = []
    for i, labels in enumerate(maps):
        file = folder / f"labels_{i}.png"
        Image.fromarray(labels.astype(np.uint8)).save(file)
        records.append({"file_name": f"{i}.jpg", "sem_seg_file_name": str(file)})
    name = f"small_sem_{uuid.uuid4().hex}"
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(stuff_classes=["sky", "road", "tree"], ignore_label=255)
    return name, records


def scores_of(labels: np.ndarray, classes: int = 3) -> dict:
    return {"sem_seg": torch.nn.functional.one_hot(torch.as_tensor(labels).long(), classes).permute(2, 0, 1).float()}


def test_semantic_numbers_by_counting(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    truth = [np.where(rng.random((7, 9)) < 0.2, 255, rng.integers(0, 2, (7, 9))) for _ in range(3)]
    predicted = [rng.integers(0, 3, (7, 9)) for _ in truth]
    name, records = sem_seg_dataset(tmp_path, truth)
    evaluator = SemSegEvaluator(name, distributed=False, output_dir=str(tmp_path / "output"))
    results = run(evaluator, records, [scores_of(p) for p in predicted])["sem_seg"]
    t, p = np.concatenate(truth).ravel(), np.concatenate(predicted).ravel()
    t, p = t[t != 255], p[t != 255]
    iou = [100 * ((t == k) & (p == k)).sum() / ((t == k) | (p == k)).sum() for k in (0, 1)]
    acc = [100 * (p[t == k] == k).mean() for k in (0, 1)]
    share = [(t == k).mean() for k in (0, 1)]
    expected = {"IoU-sky": iou[0], "IoU-road": iou[1], "mIoU": np.mean(iou), "fwIoU": np.dot(iou, share)}
    expected |= {"ACC-sky": acc[0], "ACC-road": acc[1], "mACC": np.mean(acc), "pACC": 100 * (t == p).mean()}
    assert {k: results[k] for k in expected} == pytest.approx(expected)
    assert np.isnan(results["IoU-tree"]) and np.isnan(results["ACC-tree"])
    written = json.loads((tmp_path / "output" / "sem_seg_predictions.json").read_text())
    assert {s["category_id"] for s in written} == {0, 1, 2}


@embedded_only
def test_labels_that_are_no_classes_are_named(tmp_path: Path) -> None:
    name, records = sem_seg_dataset(tmp_path, [np.full((4, 5), 7)])
    with pytest.raises(ValueError, match=r"labels_0.png.*7"):
        run(SemSegEvaluator(name, distributed=False), records, [scores_of(np.zeros((4, 5)))])
    with pytest.raises(ValueError, match="labels_0.png"):
        run(SemSegEvaluator(name, distributed=False), records, [scores_of(np.zeros((4, 6)))])


def cityscapes_dataset(folder: Path) -> tuple[str, dict, np.ndarray]:
    """One image: road (7), a person (24) and two cars (26)."""
    ids = np.full((120, 200), 7, dtype=np.uint16)
    ids[20:80, 20:60], ids[70:110, 80:130], ids[70:110, 140:190] = 24000, 26000, 26001
    (folder / "aachen").mkdir()
    stem = "aachen_000000_000019"
    Image.fromarray(ids).save(folder / "aachen" / f"{stem}_gtFine_instanceIds.png")
    labels = np.where(ids >= 1000, ids // 1000, ids)
    Image.fromarray(labels.astype(np.uint8)).save(folder / "aachen" / f"{stem}_gtFine_labelIds.png")
    name = f"small_cityscapes_{uuid.uuid4().hex}"
    MetadataCatalog.get(name).set(gt_dir=str(folder), thing_classes=["person", "car"])
    return name, {"file_name": f"/images/{stem}_leftImg8bit.png"}, ids


@embedded_only
def test_cityscapes_instances(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cityscapesscripts")
    name, given, ids = cityscapes_dataset(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = detections([[0, 0, 1, 1]] * 3, [0, 1, 1], [0.9, 0.8, 0.7])
    found.pred_masks = torch.stack([torch.from_numpy(ids == k) for k in (24000, 26000, 26001)])
    full = run(CityscapesInstanceEvaluator(name), [given], [{"instances": found}])
    assert full["segm"] == pytest.approx({"AP": 100, "AP50": 100})
    half = run(CityscapesInstanceEvaluator(name), [given], [{"instances": found[:2]}])["segm"]
    assert 50 < half["AP"] < 100
    assert not list(Path.cwd().iterdir())
    with pytest.raises(FileNotFoundError, match="aachen_000000_000019"):
        run(CityscapesInstanceEvaluator(name), [], [])


@embedded_only
def test_cityscapes_semantics(tmp_path: Path) -> None:
    labels_of = pytest.importorskip("cityscapesscripts.helpers.labels")
    name, given, ids = cityscapes_dataset(tmp_path)
    labels = np.where(ids >= 1000, ids // 1000, ids)
    train_ids = np.vectorize(lambda i: labels_of.id2label[i].trainId)(labels)
    full = run(CityscapesSemSegEvaluator(name), [given], [scores_of(train_ids, 19)])["sem_seg"]
    assert set(full) == {"IoU", "iIoU", "IoU_sup", "iIoU_sup"} and full["IoU"] == pytest.approx(100)
    road = run(CityscapesSemSegEvaluator(name), [given], [scores_of(np.zeros_like(labels), 19)])["sem_seg"]
    assert road["IoU"] == pytest.approx(100 * (labels == 7).mean() / 3)
