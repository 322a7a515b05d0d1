"""Semantic segmentation: IoU and accuracy from a confusion matrix."""

import json
import logging
from collections import OrderedDict
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import torch
from PIL import Image

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager, atomic_open

from .evaluator import DatasetEvaluator


def load_image_into_numpy_array(filename: str, dtype: np.dtype | str | type | None = None) -> np.ndarray:
    """A label map as (H, W)."""
    with PathManager.open(filename, "rb") as f:
        return np.array(Image.open(f), dtype=dtype)


class SemSegEvaluator(DatasetEvaluator):
    """mIoU, frequency-weighted IoU, mean and pixel accuracy, and IoU and accuracy of each class (0 to 100).

    Pixels with the ignore label do not count; a class without ground truth is NaN and left out of the means.
    (Detectron2 adds boundary IoU where cv2 is installed; this engine leaves it out.)

    Args:
        dataset_name: records have "file_name" and "sem_seg_file_name"; metadata has "stuff_classes" and may have
            "ignore_label" (255) and "stuff_dataset_id_to_contiguous_id".
        distributed: sum over all processes.
        output_dir: where to write sem_seg_predictions.json and sem_seg_evaluation.pth; None writes nothing.
        sem_seg_loading_fn: reads a label map, called with (file name, dtype=int).
        num_classes, ignore_label: override the metadata (old calling style).
    """

    def __init__(
        self,
        dataset_name: str,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        sem_seg_loading_fn: Callable[..., np.ndarray] = load_image_into_numpy_array,
        num_classes: int | None = None,
        ignore_label: int | None = None,
    ):
        self._logger = logging.getLogger(__name__)
        self._dataset_name = dataset_name
        self._distributed = distributed
        self._output_dir = output_dir
        self.sem_seg_loading_fn = sem_seg_loading_fn
        records = DatasetCatalog.get(dataset_name)
        self.input_file_to_gt_file = {record["file_name"]: record["sem_seg_file_name"] for record in records}
        meta = MetadataCatalog.get(dataset_name)
        self._class_names = meta.stuff_classes
        self._num_classes = len(self._class_names)
        if num_classes not in (None, self._num_classes):
            raise ValueError(f"num_classes={num_classes}, but {dataset_name} has {self._num_classes} stuff_classes.")
        self._ignore_label = meta.get("ignore_label", 255) if ignore_label is None else ignore_label
        to_contiguous = meta.get("stuff_dataset_id_to_contiguous_id")
        self._contiguous_id_to_dataset_id = {v: k for k, v in to_contiguous.items()} if to_contiguous else None

    def reset(self) -> None:
        # Rows are predictions, columns ground truth; the last column counts ignored pixels.
        self._conf_matrix = np.zeros((self._num_classes + 1, self._num_classes + 1), dtype=np.int64)
        self._predictions: list[dict] = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take in one batch; outputs have "sem_seg", scores (C, H, W).

        Raises:
            ValueError: a label map has another size than the prediction, or labels that are no classes.
        """
        for given, output in zip(inputs, outputs, strict=True):
            prediction = output["sem_seg"].argmax(dim=0).cpu().numpy()
            file = self.input_file_to_gt_file[given["file_name"]]
            truth = np.array(self.sem_seg_loading_fn(file, dtype=int))
            if truth.shape != prediction.shape:
                raise ValueError(f"{file} is {truth.shape}, but its prediction is {prediction.shape} (height, width).")
            truth[truth == self._ignore_label] = self._num_classes
            if truth.size and (truth.min() < 0 or max(truth.max(), prediction.max()) > self._num_classes):
                extra = sorted(set(np.unique(truth)) - set(range(self._num_classes + 1)))
                raise ValueError(
                    f"{file}: labels {extra} (model: up to {prediction.max()}) are neither one of {self._num_classes} "
                    f"classes nor the ignore label {self._ignore_label}."
                )
            pairs = (self._num_classes + 1) * prediction.ravel() + truth.ravel()
            counts = np.bincount(pairs, minlength=self._conf_matrix.size)
            self._conf_matrix += counts.reshape(self._conf_matrix.shape)
            if self._output_dir:
                self._predictions.extend(self.encode_json_sem_seg(prediction, given["file_name"]))

    def evaluate(self) -> dict | None:
        """{"sem_seg": {"mIoU", "fwIoU", "IoU-<class>"..., "mACC", "pACC", "ACC-<class>"...}}, see COCO's stuff task."""
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather((self._conf_matrix, self._predictions), dst=0)
            if not comm.is_main_process():
                return None
            self._conf_matrix = sum(matrix for matrix, _ in gathered)
            self._predictions = list(chain.from_iterable(predictions for _, predictions in gathered))
        results = self._metrics()
        if self._output_dir:
            Path(self._output_dir).mkdir(parents=True, exist_ok=True)
            with atomic_open(Path(self._output_dir) / "sem_seg_predictions.json", "w") as f:
                json.dump(self._predictions, f)
            with atomic_open(Path(self._output_dir) / "sem_seg_evaluation.pth", "wb") as f:
                torch.save(results, f)
        self._logger.info({"sem_seg": results})
        return OrderedDict(sem_seg=results)

    def _metrics(self) -> dict[str, float]:
        matrix = self._conf_matrix[:-1, :-1].astype(float)
        hits, truth, predicted = matrix.diagonal(), matrix.sum(axis=0), matrix.sum(axis=1)
        present = truth > 0
        if not present.all():
            names = [name for name, there in zip(self._class_names, present, strict=True) if not there]
            self._logger.info(f"No ground truth for {', '.join(names)}: NaN, left out of the means.")

        def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
            return np.divide(part, whole, out=np.full(len(whole), np.nan), where=present)

        def mean(values: np.ndarray) -> float:
            return float(values[present].mean()) if present.any() else float("nan")

        iou, acc = 100 * ratio(hits, truth + predicted - hits), 100 * ratio(hits, truth)
        share = truth[present] / truth.sum()
        overall = float((share * acc[present]).sum()) if present.any() else float("nan")
        weighted = float((share * iou[present]).sum()) if present.any() else float("nan")
        results = {"mIoU": mean(iou), "fwIoU": weighted}
        results |= {f"IoU-{name}": float(value) for name, value in zip(self._class_names, iou, strict=True)}
        results |= {"mACC": mean(acc), "pACC": overall}
        return results | {f"ACC-{name}": float(value) for name, value in zip(self._class_names, acc, strict=True)}

    def encode_json_sem_seg(self, sem_seg: np.ndarray, input_file_name: str) -> list[dict]:
        """A label map (H, W) in COCO's stuff format, one RLE mask per label."""
        segments = []
        for label in np.unique(sem_seg).tolist():
            ids = self._contiguous_id_to_dataset_id
            if ids is not None and label not in ids:
                raise ValueError(f"Label {label} is not in stuff_dataset_id_to_contiguous_id of {self._dataset_name}.")
            rle = mask_util.encode(np.asfortranarray(sem_seg == label, dtype=np.uint8))
            rle["counts"] = rle["counts"].decode("ascii")
            category = label if ids is None else ids[label]
            segments.append({"file_name": input_file_name, "category_id": category, "segmentation": rle})
        return segments
