"""A data set of a few images with random boxes and masks, and a detector that is wrong in all ways; no image files."""

import json
import uuid
from pathlib import Path

import numpy as np
import torch

from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances

HEIGHT, WIDTH = 90, 120
CLASSES = ["ant", "bee", "cat", "dog"]
CATEGORY_IDS = [3, 5, 8, 13]


def annotations(rng: np.random.Generator, images: int = 8) -> list[dict]:
    """Objects of the first three classes only: "dog" has no ground truth."""
    found = []
    for image in range(images):
        for _ in range(int(rng.integers(1, 5))):
            x, y = rng.integers(0, 60), rng.integers(0, 40)
            w, h = rng.integers(12, WIDTH - 60), rng.integers(12, HEIGHT - 40)
            corners = [x, y, x + w, y, x + w, y + 0.6 * h, x + 0.5 * w, y + h, x, y + h]
            found.append(
                {
                    "id": len(found) + 1,
                    "image_id": 10 + image,
                    "category_id": CATEGORY_IDS[int(rng.integers(3))],
                    "bbox": [float(v) for v in (x, y, w, h)],
                    "area": float(0.9 * w * h),
                    "iscrowd": 0,
                    "segmentation": [[float(v) for v in corners]],
                }
            )
    return found


class SmallDataset:
    """Json file, registered metadata, inputs and imperfect outputs."""

    def __init__(self, folder: Path, seed: int = 0, lvis: bool = False):
        rng = np.random.default_rng(seed)
        self.annotations = annotations(rng)
        self.image_ids = sorted({a["image_id"] for a in self.annotations})
        images = [{"id": i, "height": HEIGHT, "width": WIDTH, "file_name": f"{i}.jpg"} for i in self.image_ids]
        categories = [{"id": i, "name": name} for i, name in zip(CATEGORY_IDS, CLASSES, strict=True)]
        if lvis:
            for category, frequency in zip(categories, "rcff", strict=True):
                category["frequency"] = frequency
            for image in images:
                image |= {"neg_category_ids": [13], "not_exhaustive_category_ids": []}
        self.json_file = str(folder / "truth.json")
        content = {"images": images, "annotations": self.annotations, "categories": categories}
        Path(self.json_file).write_text(json.dumps(content))
        self.name = f"small_{uuid.uuid4().hex}"
        ids = {dataset_id: k for k, dataset_id in enumerate(CATEGORY_IDS)}
        MetadataCatalog.get(self.name).set(
            json_file=self.json_file, thing_classes=CLASSES, thing_dataset_id_to_contiguous_id=ids
        )
        self.inputs = [{"image_id": i, "file_name": f"{i}.jpg"} for i in self.image_ids]
        self.outputs = [{"instances": self.detect(i, rng)} for i in self.image_ids]

    def truth(self, image_id: int) -> list[dict]:
        return [a for a in self.annotations if a["image_id"] == image_id]

    def detect(self, image_id: int, rng: np.random.Generator) -> Instances:
        """Objects that are moved, doubled, missed or given another class, and one that is not there."""
        boxes, classes = [[50.0, 60.0, 80.0, 85.0]], [3]
        for truth in self.truth(image_id):
            for _ in range(int(rng.integers(0, 3))):
                x, y, w, h = np.array(truth["bbox"]) + rng.normal(0, 2, 4)
                boxes.append([x, y, x + w, y + h])
                right = rng.random() < 0.8
                classes.append(CATEGORY_IDS.index(truth["category_id"]) if right else int(rng.integers(4)))
        return detections(boxes, classes, rng.random(len(boxes)))


def detections(boxes: list, classes: list[int], scores: list | np.ndarray) -> Instances:
    """Instances whose masks fill their boxes."""
    found = Instances((HEIGHT, WIDTH))
    found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    found.scores = torch.as_tensor(scores, dtype=torch.float32)
    found.pred_classes = torch.tensor(classes, dtype=torch.int64)
    masks = torch.zeros(len(boxes), HEIGHT, WIDTH, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, found.pred_boxes.tensor.round().int().tolist(), strict=True):
        mask[max(y0, 0) : y1, max(x0, 0) : x1] = True
    found.pred_masks = masks
    return found


def perfect(dataset: SmallDataset, image_id: int) -> Instances:
    """The ground truth as detections."""
    truth = dataset.truth(image_id)
    boxes = [[a["bbox"][0], a["bbox"][1], a["bbox"][0] + a["bbox"][2], a["bbox"][1] + a["bbox"][3]] for a in truth]
    return detections(boxes, [CATEGORY_IDS.index(a["category_id"]) for a in truth], np.ones(len(truth)))


def run(evaluator, inputs: list[dict], outputs: list[dict], **kwargs) -> dict:
    """One round of an evaluator, image by image."""
    evaluator.reset()
    for given, output in zip(inputs, outputs, strict=True):
        evaluator.process([given], [output])
    return evaluator.evaluate(**kwargs)
