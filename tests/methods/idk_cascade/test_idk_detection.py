"""How good the detections of one image are, against pycocotools."""

import contextlib
import io

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dyn_d2.methods.idk_cascade.detection import image_losses, image_precision

from detectron2.structures import Boxes, BoxMode, Instances


def _boxes(rng, count: int) -> torch.Tensor:
    corner, size = rng.uniform(0, 60, (count, 2)), rng.uniform(10, 40, (count, 2))
    return torch.from_numpy(np.concatenate([corner, corner + size], 1)).float()


def _found(boxes: torch.Tensor, scores, classes) -> Instances:
    return Instances(
        (100, 100),
        pred_boxes=Boxes(boxes),
        scores=torch.as_tensor(scores).float(),
        pred_classes=torch.as_tensor(classes).long(),
    )


def _coco(found: Instances, boxes: torch.Tensor, classes: torch.Tensor) -> float:
    """COCO's AP with one category; each class lies in a part of the image of its own, so that none meets another."""

    def entry(box, name, **more):
        x0, y0, x1, y1 = (box + 1000.0 * int(name)).tolist()
        return {"image_id": 1, "category_id": 1, "bbox": [x0, y0, x1 - x0, y1 - y0], **more}

    truth = COCO()
    annotations = [
        entry(box, name, id=i + 1, iscrowd=0, area=float((box[2] - box[0]) * (box[3] - box[1])))
        for i, (box, name) in enumerate(zip(boxes, classes, strict=True))
    ]
    truth.dataset = {"images": [{"id": 1}], "annotations": annotations, "categories": [{"id": 1}], "info": {}}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        parts = zip(found.pred_boxes.tensor, found.pred_classes, found.scores, strict=True)
        run = COCOeval(truth, truth.loadRes([entry(b, c, score=float(s)) for b, c, s in parts]), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return float(run.stats[0])


@pytest.mark.parametrize("seed", range(4))
def test_precision_of_an_image_is_that_of_coco(seed):
    rng = np.random.default_rng(seed)
    boxes, classes = _boxes(rng, 6), torch.from_numpy(rng.permutation([0, 0, 0, 1, 1, 2]))
    moved = boxes + torch.from_numpy(rng.normal(0, 2.0, boxes.shape)).float()
    more = _boxes(rng, 3)
    names = torch.cat([classes, torch.from_numpy(rng.integers(0, 4, 3))])
    found = _found(torch.cat([moved, more]), rng.random(9), names)
    assert image_precision(found, boxes, classes) == pytest.approx(_coco(found, boxes, classes), abs=1e-6)


def test_limits():
    box, nothing = torch.tensor([[0.0, 0, 10, 10]]), torch.zeros(0, 4)
    none = _found(nothing, [], [])
    assert image_precision(_found(box, [0.9], [1]), box, torch.tensor([1])) == pytest.approx(1)
    assert image_precision(none, box, torch.tensor([1])) == 0
    assert image_precision(none, nothing, torch.zeros(0).long()) == 1
    assert image_precision(_found(box, [0.9], [1]), nothing, torch.zeros(0).long()) == pytest.approx(0.1)
    late, early = (_found(box.repeat(2, 1), scores, [1, 2]) for scores in ([0.9, 0.8], [0.8, 0.9]))
    assert image_precision(late, box, torch.tensor([1])) == pytest.approx(1)  # class 2, which is not there, comes last
    assert image_precision(early, box, torch.tensor([1])) == pytest.approx(0.5)


def test_records_give_the_truth():
    annotation = {"bbox": [0, 0, 10, 10], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1}
    crowd = {**annotation, "bbox": [50, 50, 40, 40], "iscrowd": 1}
    found = _found(torch.tensor([[0.0, 0, 10, 10]]), [0.7], [1])
    assert image_losses([found], [{"annotations": [annotation, crowd]}]) == pytest.approx([0.0])
    with pytest.raises(ValueError, match="image 7 has no annotations"):
        image_losses([found], [{"image_id": 7}])
