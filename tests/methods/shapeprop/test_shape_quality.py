"""Best overlap of saliency and shape activation: against slow versions, by hand, and in two processes."""

import json
import logging
import uuid

import numpy as np
import pytest
import torch
from tiny_detection import write_boxes
from two_processes import results_of_two

from dyn_d2.config.read import read_cfg
from dyn_d2.evaluation import GroupedCOCOEvaluator, build_evaluator
from dyn_d2.methods.shapeprop.evaluator import ShapeQualityEvaluator, best_overlap, paste_maps

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, Instances

CLASSES = ("ant", "bee", "cat")
GROUPS = {"{}_with_masks": ["ant"], "{}_without_masks": ["bee", "cat"]}
SIZE = 48


def test_best_overlap_tries_every_threshold() -> None:
    values = torch.randint(0, 256, (9, 7), dtype=torch.uint8)
    mask = torch.rand(9, 7) < 0.4
    slow = max(
        ((values >= level) & mask).sum().item() / ((values >= level) | mask).sum().item() for level in range(1, 256)
    )
    assert best_overlap(values, mask) == pytest.approx(slow)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_range_of_a_map_does_not_matter(scale) -> None:
    maps = torch.randn(1, 1, 14, 14)
    box = torch.tensor([[5.0, 8.0, 33.0, 36.0]])
    mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    mask[10:30, 8:20] = True
    first, second = (best_overlap(paste_maps(m, box, (SIZE, SIZE))[0], mask) for m in (maps, scale * maps - 7))
    assert first == pytest.approx(second, abs=0.02)


def test_a_map_that_is_the_object_and_one_that_is_nothing() -> None:
    """A disc of radius 10 in its box, from a map of 28 x 28; a map of one value stands for its whole box."""
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    disc = torch.from_numpy((x - 24) ** 2 + (y - 24) ** 2 < 100)
    grid = (torch.arange(28) + 0.5) / 28 * 20 - 10
    map_of_disc = 10 - (grid[:, None] ** 2 + grid**2).sqrt()
    maps = torch.stack([map_of_disc, torch.zeros(28, 28)])[:, None]
    pasted = paste_maps(maps, torch.tensor([[14.0, 14.0, 34.0, 34.0]] * 2), (SIZE, SIZE))
    assert best_overlap(pasted[0], disc) > 0.97
    assert best_overlap(pasted[1], disc) == pytest.approx(disc.sum().item() / 400)
    assert not pasted[0, :13].any() and pasted.dtype == torch.uint8


def square(image: int, label: int, corner: tuple[int, int], crowd: int = 0) -> dict:
    """An object of 20 x 20 pixels of which the left half is its mask."""
    x, y = corner
    half = [x, y, x + 10, y, x + 10, y + 20, x, y + 20]
    return {"image_id": image, "category_id": label + 1, "bbox": [x, y, 20, 20], "area": 200, "iscrowd": crowd,
            "segmentation": [half]}  # fmt: skip


@pytest.fixture
def shapes(tmp_path):
    """ant: 2 objects, bee: 1, cat: a crowd only."""
    annotations = [square(1, 0, (4, 4)), square(2, 0, (20, 20)), square(2, 1, (0, 0)), square(1, 2, (24, 24), 1)]
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": SIZE, "width": SIZE} for i in (1, 2, 3)],
        "annotations": [{"id": i, **annotation} for i, annotation in enumerate(annotations, 1)],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
    }
    file = tmp_path / "shapes.json"
    file.write_text(json.dumps(content))
    name = f"set_{uuid.uuid4().hex}"
    register_coco_instances(name, {}, str(file), str(tmp_path))
    return name, str(file)


def detection(*found: tuple[int, tuple[int, int], str]) -> dict:
    """Boxes of 20 x 20 at a corner. Their saliency is everywhere alike; their shape is "left", "top" or "all"."""
    maps = {"all": torch.zeros(14, 14), "left": torch.zeros(14, 14), "top": torch.zeros(14, 14)}
    maps["left"][:, :7] = maps["top"][:7] = 9.0
    corners = torch.tensor([(x, y, x + 20, y + 20) for _, (x, y), _ in found], dtype=torch.float32).reshape(-1, 4)
    instances = Instances((SIZE, SIZE), pred_boxes=Boxes(corners))
    instances.pred_classes = torch.tensor([label for label, _, _ in found], dtype=torch.long)
    instances.pred_shape = (
        torch.stack([maps[kind] for _, _, kind in found])[:, None] if found else torch.zeros(0, 1, 14, 14)
    )
    instances.pred_saliency = torch.zeros_like(instances.pred_shape)
    return {"instances": instances}


OUTPUTS = [
    # The better one of two counts, one of another class and one elsewhere do not.
    detection((0, (4, 4), "top"), (0, (4, 4), "left"), (1, (4, 4), "left"), (0, (28, 28), "left")),
    detection((1, (0, 0), "all")),
    detection(),
]
INPUTS = [{"image_id": i} for i in (1, 2, 3)]


def test_objects_by_hand(shapes, caplog) -> None:
    evaluator = ShapeQualityEvaluator(shapes[0], GROUPS)
    with caplog.at_level(logging.INFO, logger="dyn_d2"):
        logging.getLogger("dyn_d2").propagate = True
        evaluator.process(INPUTS, OUTPUTS)
        result = evaluator.evaluate()["shape"]
    assert result["found_with_masks"] == 50  # nothing at (20, 20)
    assert result["shape_IoU-ant"] == pytest.approx(100, abs=6) and result["saliency_IoU-ant"] == pytest.approx(50)
    assert result["box_IoU-ant"] == pytest.approx(50) and result["box_IoU-bee"] == pytest.approx(50)
    assert result["shape_IoU-bee"] == pytest.approx(50) and np.isnan(result["shape_IoU-cat"])
    assert result["found"] == 75 and result["found_without_masks"] == 100
    assert result["shape_IoU_with_masks"] == result["shape_IoU-ant"]
    assert "1 of 3 classes have no ground truth" in caplog.text and "| without masks |" in caplog.text
    evaluator.reset()
    assert np.isnan(evaluator.evaluate()["shape"]["found"])


def _evaluate_half(rank: int, folder: str, file: str) -> dict:
    """Process 0 has the first image, process 1 the others."""
    register_coco_instances("shapes_of_two", {}, file, folder)
    evaluator = ShapeQualityEvaluator("shapes_of_two", GROUPS)
    for i, (given, output) in enumerate(zip(INPUTS, OUTPUTS, strict=True)):
        if (i > 0) == bool(rank):
            evaluator.process([given], [output])
    return evaluator.evaluate()


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(shapes, tmp_path) -> None:
    name, file = shapes
    alone = ShapeQualityEvaluator(name, GROUPS)
    alone.process(INPUTS, OUTPUTS)
    results = results_of_two(_evaluate_half, tmp_path, str(tmp_path), file)
    assert results[1] == {}
    assert results[0]["shape"] == pytest.approx(alone.evaluate()["shape"], nan_ok=True)


def test_a_model_without_maps_is_told(shapes) -> None:
    output = detection((0, (4, 4), "left"))
    output["instances"].remove("pred_saliency")
    with pytest.raises(ValueError, match="no pred_saliency: set MODEL.SHAPE_PROP.OUTPUT_MAPS to False"):
        ShapeQualityEvaluator(shapes[0], {}).process(INPUTS[:1], [output])


def test_shape_activations_are_judged_where_the_model_gives_them(tmp_path) -> None:
    file = write_boxes(tmp_path / "data", 6)
    register_coco_instances(tmp_path.name, {}, str(file), str(file.parent / "images"))
    DatasetCatalog.get(tmp_path.name)
    cfg = read_cfg("", ["OUTPUT_DIR", str(tmp_path), "MODEL.MASK_ON", "True", "MODEL.SHAPE_PROP.OUTPUT_MAPS", "True"])
    cfg.INPUT.PARTIAL_MASKS.CLASSES = ["red", "blue"]
    both = build_evaluator(cfg, tmp_path.name)._evaluators
    assert [type(evaluator) for evaluator in both] == [GroupedCOCOEvaluator, ShapeQualityEvaluator]
    DatasetCatalog.remove(tmp_path.name)
    MetadataCatalog.remove(tmp_path.name)


def test_sizes_of_objects_are_told_apart(shapes) -> None:
    evaluator = ShapeQualityEvaluator(shapes[0], {})
    evaluator.process(INPUTS, OUTPUTS)
    result = evaluator.evaluate()["shape"]
    assert result["shape_IoUs"] == result["shape_IoU"]  # all have 200 pixels
    assert np.isnan(result["shape_IoUm"]) and np.isnan(result["box_IoUl"])
