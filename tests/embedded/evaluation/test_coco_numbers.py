"""COCOEvaluator against pycocotools itself."""

import contextlib
import importlib.util
import io
import json
import logging
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from small_dataset import CATEGORY_IDS, CLASSES, SmallDataset, detections, perfect, run

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator

METRICS = ["AP", "AP50", "AP75", "APs", "APm", "APl"]
EMBEDDED = importlib.util.find_spec("detectron2.evaluation.instance_evaluation") is not None


@pytest.fixture
def dataset(tmp_path: Path) -> SmallDataset:
    return SmallDataset(tmp_path)


def evaluator(dataset: SmallDataset, **kwargs) -> COCOEvaluator:
    return COCOEvaluator(dataset.name, distributed=False, use_fast_impl=False, **kwargs)


def plain_results(dataset: SmallDataset, task: str) -> list[dict]:
    """The outputs of the small data set in COCO's result format, written down independently."""
    results = []
    for given, output in zip(dataset.inputs, dataset.outputs, strict=True):
        found = output["instances"]
        for i in range(len(found)):
            x0, y0, x1, y1 = found.pred_boxes.tensor[i].tolist()
            result = {"image_id": given["image_id"], "score": found.scores[i].item()}
            result["category_id"] = CATEGORY_IDS[found.pred_classes[i]]
            if task == "bbox":
                result["bbox"] = [x0, y0, x1 - x0, y1 - y0]
            else:
                result["segmentation"] = mask_util.encode(
                    np.asfortranarray(found.pred_masks[i].numpy().astype("uint8"))
                )
            results.append(result)
    return results


def pycocotools_says(dataset: SmallDataset, task: str, limit: int = 100, images: list[int] | None = None) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(dataset.json_file)
        judge = COCOeval(truth, truth.loadRes(plain_results(dataset, task)), task)
        judge.params.maxDets = [1, 10, limit]
        judge.params.imgIds = images or judge.params.imgIds
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge


def mean(values: np.ndarray) -> float:
    return 100 * values[values > -1].mean() if (values > -1).any() else float("nan")


@pytest.mark.parametrize("seed", [0, 1])
def test_numbers_are_those_of_pycocotools(tmp_path: Path, seed: int) -> None:
    dataset = SmallDataset(tmp_path, seed)
    results = run(evaluator(dataset), dataset.inputs, dataset.outputs)
    assert list(results) == ["bbox", "segm"]
    for task, numbers in results.items():
        judge = pycocotools_says(dataset, task)
        expected = [100 * v if v >= 0 else float("nan") for v in judge.stats[:6]]
        np.testing.assert_allclose([numbers[m] for m in METRICS], expected, atol=1e-6)
        assert 5 < numbers["AP"] < 95
        precision = judge.eval["precision"]
        for k, name in enumerate(CLASSES):
            np.testing.assert_allclose(numbers[f"AP-{name}"], mean(precision[:, :, k, 0, -1]), atol=1e-6)
        assert np.isnan(numbers["AP-dog"])


def test_some_images(dataset: SmallDataset) -> None:
    chosen = dataset.image_ids[:3]
    results = run(evaluator(dataset, tasks=("bbox",)), dataset.inputs, dataset.outputs, img_ids=chosen)
    expected = pycocotools_says(dataset, "bbox", images=chosen).stats[0] * 100
    assert list(results) == ["bbox"] and results["bbox"]["AP"] == pytest.approx(expected)


@pytest.mark.parametrize("limit", [1, 300])
def test_limit_of_detections_per_image(dataset: SmallDataset, limit: int) -> None:
    results = run(evaluator(dataset, tasks=("bbox",), max_dets_per_image=limit), dataset.inputs, dataset.outputs)
    precision = pycocotools_says(dataset, "bbox", limit).eval["precision"]
    thresholds = np.linspace(0.5, 0.95, 10)
    assert results["bbox"]["AP"] == pytest.approx(mean(precision[..., 0, -1]))
    assert results["bbox"]["AP50"] == pytest.approx(mean(precision[np.isclose(thresholds, 0.5), ..., 0, -1]))
    assert results["bbox"]["APm"] == pytest.approx(mean(precision[..., 2, -1]))


def test_perfect_detections_have_full_marks(dataset: SmallDataset) -> None:
    outputs = [{"instances": perfect(dataset, i)} for i in dataset.image_ids]
    numbers = run(evaluator(dataset, tasks=("bbox",)), dataset.inputs, outputs)["bbox"]
    assert numbers["AP"] == numbers["AP50"] == pytest.approx(100)
    assert numbers["AP-ant"] == pytest.approx(100)


def test_no_detections_and_no_images(dataset: SmallDataset) -> None:
    nothing = [{"instances": detections([], [], [])} for _ in dataset.inputs]
    numbers = run(evaluator(dataset), dataset.inputs, nothing)["bbox"]
    if EMBEDDED:  # Detectron2's own has NaN everywhere
        assert numbers["AP"] == numbers["AP50"] == numbers["AP-ant"] == 0 and np.isnan(numbers["AP-dog"])
    assert run(evaluator(dataset), [], []) == {}


def test_files_hold_what_was_predicted(dataset: SmallDataset, tmp_path: Path) -> None:
    folder = tmp_path / "output"
    run(evaluator(dataset, output_dir=str(folder)), dataset.inputs, dataset.outputs)
    assert sorted(p.name for p in folder.iterdir()) == ["coco_instances_results.json", "instances_predictions.pth"]
    saved = json.loads((folder / "coco_instances_results.json").read_text())
    for result, box, mask in zip(saved, plain_results(dataset, "bbox"), plain_results(dataset, "segm"), strict=True):
        assert result["category_id"] == box["category_id"] and result["score"] == box["score"]
        np.testing.assert_allclose(result["bbox"], box["bbox"], atol=1e-4)
        assert result["segmentation"]["counts"].encode() == mask["segmentation"]["counts"]
    raw = torch.load(folder / "instances_predictions.pth", weights_only=True)
    assert [p["image_id"] for p in raw] == dataset.image_ids


def test_class_that_the_data_set_lacks(dataset: SmallDataset) -> None:
    wrong = [{"instances": detections([[1.0, 1.0, 9.0, 9.0]], [4], [0.5])} for _ in dataset.inputs]
    with pytest.raises((ValueError, AssertionError), match="class"):
        run(evaluator(dataset), dataset.inputs, wrong)


def test_data_set_without_annotations_is_only_written(dataset: SmallDataset, tmp_path: Path) -> None:
    content = json.loads(Path(dataset.json_file).read_text())
    del content["annotations"]
    Path(dataset.json_file).write_text(json.dumps(content))
    folder = tmp_path / "output"
    assert run(evaluator(dataset, output_dir=str(folder)), dataset.inputs, dataset.outputs) == {}
    assert (folder / "coco_instances_results.json").exists()


def test_records_without_a_json_file_need_a_folder() -> None:
    MetadataCatalog.get("small_without_json").set(thing_classes=CLASSES)
    with pytest.raises(ValueError, match="output_dir"):
        COCOEvaluator("small_without_json")


@pytest.mark.skipif(not EMBEDDED, reason="Detectron2 does not say why a number is NaN")
def test_log_names_classes_without_ground_truth(dataset: SmallDataset, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("detectron2.evaluation.coco_evaluation")
    logger.addHandler(caplog.handler)  # setup_logger stops propagation
    logger.setLevel(logging.INFO)
    try:
        run(evaluator(dataset, tasks=("bbox",)), dataset.inputs, dataset.outputs)
    finally:
        logger.removeHandler(caplog.handler)
    assert "class dog has no ground truth" in caplog.text


@pytest.mark.skipif(not EMBEDDED, reason="Detectron2 evaluates the polygons that pycocotools makes of boxes")
def test_masks_that_were_not_predicted_are_an_error(dataset: SmallDataset) -> None:
    for output in dataset.outputs:
        output["instances"].remove("pred_masks")
    with pytest.raises(ValueError, match="segm"):
        run(evaluator(dataset, tasks=("segm",)), dataset.inputs, dataset.outputs)
