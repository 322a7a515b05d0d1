"""What the COCO and LVIS evaluators share: collecting predictions, files, tables."""

import copy
import json
import logging
from abc import abstractmethod
from collections import OrderedDict
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import torch
from tabulate import tabulate

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.left_out import left_out
from detectron2.structures import BoxMode, Instances
from detectron2.utils import comm
from detectron2.utils.file_io import atomic_open

from .evaluator import DatasetEvaluator


def instances_to_coco_json(instances: Instances, img_id: int) -> list[dict]:
    """Detections of one image as COCO results: XYWH boxes, scores, contiguous class ids and RLE masks.

    Args:
        instances: on the CPU, with pred_boxes, scores, pred_classes and maybe pred_masks, (N, H, W) bool.
    """
    if instances.has("pred_keypoints"):
        raise left_out("pred_keypoints", "keypoints")
    boxes = BoxMode.convert(instances.pred_boxes.tensor.numpy(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()
    columns = zip(boxes, instances.scores.tolist(), instances.pred_classes.tolist(), strict=True)
    results = [{"image_id": img_id, "category_id": cls, "bbox": box, "score": score} for box, score, cls in columns]
    if instances.has("pred_masks"):
        # Bitmaps of a whole data set would not fit into memory.
        for result, mask in zip(results, instances.pred_masks, strict=True):
            rle = mask_util.encode(np.asfortranarray(mask.numpy(), dtype=np.uint8))
            result["segmentation"] = {**rle, "counts": rle["counts"].decode("ascii")}
    return results


def per_class_table(values: dict[str, float], header: str = "AP") -> str:
    """Class names and numbers, three pairs to a line."""
    cells = [cell for item in values.items() for cell in item]
    width = min(6, len(cells))
    rows = zip_longest(*[iter(cells)] * width) if cells else []
    return tabulate(rows, headers=["category", header] * (width // 2), tablefmt="pipe", floatfmt=".3f", numalign="left")


def log_classes_without_ground_truth(logger: logging.Logger, per_class: dict[str, float]) -> None:
    """Say why the AP of a class is NaN."""
    absent = [name for name, ap in per_class.items() if np.isnan(ap)]
    if absent:
        names = ", ".join(absent[:20]) + (", ..." if len(absent) > 20 else "")
        subject = f"class {names} has" if len(absent) == 1 else f"{len(absent)} classes ({names}) have"
        logger.info(f"{subject} no ground truth: the AP is NaN and does not count in the mean.")


class InstanceEvaluator(DatasetEvaluator):
    """Base of evaluators of detections; a subclass judges them. (Proposals without detections are not evaluated.)

    Args:
        tasks: "bbox", "segm"; None finds out from the predictions.
        distributed: gather the predictions of all processes in the main one.
        output_dir: where to write what was predicted, and the results in the API's format; None writes nothing.
    """

    _results_file: str

    def __init__(
        self,
        dataset_name: str,
        tasks: tuple[str, ...] | CfgNode | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
    ):
        self._logger = logging.getLogger(type(self).__module__)
        # Detectron2 still takes a whole config here, and infers the tasks then.
        self._tasks = None if isinstance(tasks, CfgNode) else tasks
        if unknown := set(self._tasks or ()) - {"bbox", "segm"}:
            raise NotImplementedError(f"Tasks of {type(self).__name__} are 'bbox' and 'segm', not {sorted(unknown)}.")
        self._distributed = distributed
        self._output_dir = output_dir
        self._cpu_device = torch.device("cpu")
        self._metadata = MetadataCatalog.get(dataset_name)
        self._do_evaluation = True
        self._predictions: list[dict] = []

    def reset(self) -> None:
        self._predictions = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take in one batch.

        Args:
            inputs: dicts with "image_id".
            outputs: dicts with "instances".
        """
        for given, output in zip(inputs, outputs, strict=True):
            if "instances" in output:
                instances = instances_to_coco_json(output["instances"].to(self._cpu_device), given["image_id"])
                self._predictions.append({"image_id": given["image_id"], "instances": instances})

    def evaluate(self, **kwargs) -> dict:
        """Results by task; {} in all but the main process and where nothing was predicted."""
        predictions = self._predictions
        if self._distributed:
            comm.synchronize()
            predictions = list(chain.from_iterable(comm.gather(predictions, dst=0)))
            if not comm.is_main_process():
                return {}
        if not predictions:
            self._logger.warning(f"{type(self).__name__} received no detections.")
            return {}
        if self._output_dir:
            with self._output_file("instances_predictions.pth") as f:
                torch.save(predictions, f)
        self._results: dict = OrderedDict()
        self._eval_predictions(predictions, **kwargs)
        return copy.deepcopy(self._results)

    def _eval_predictions(self, predictions: list[dict], **kwargs) -> None:
        """Judge the detections; write the numbers of each task into ``self._results``."""
        results = list(chain.from_iterable(p["instances"] for p in predictions))
        tasks = self._tasks or (("bbox", "segm") if any("segmentation" in r for r in results) else ("bbox",))
        self._to_dataset_ids(results)
        if self._output_dir:
            with self._output_file(self._results_file, "w") as f:
                json.dump(results, f)
        if not self._do_evaluation:
            self._logger.info("The data set has no annotations: predictions are not evaluated.")
            return
        for task in sorted(tasks):
            self._results[task] = self._judge(results, task, **kwargs)

    @abstractmethod
    def _to_dataset_ids(self, results: list[dict]) -> None:
        """Replace, in place, the model's class numbers by the ids of the json file."""

    @abstractmethod
    def _judge(self, results: list[dict], task: str) -> dict[str, float]:
        """The numbers of one task from results in the API's format."""

    def _output_file(self, name: str, mode: str = "wb"):
        Path(self._output_dir).mkdir(parents=True, exist_ok=True)
        return atomic_open(Path(self._output_dir) / name, mode)
