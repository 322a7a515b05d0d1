"""Detectron2's evaluators on ground truth that was looked at first, whichever Detectron2 runs.

The APIs behind them crash, hang in C or leave objects out without a word at annotations that every json parser takes.
Here these are refused with a message, or read in the one way there is (``dyn_d2.data.validity``). Where a model
predicted nothing, AP is 0, and NaN where there is no ground truth. Metadata stay as they were: Detectron2's evaluator
would leave the path of a converted json in those of a set that was registered in Python.
"""

import io
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from itertools import chain
from typing import Any

import numpy as np

from dyn_d2.data.registered import registered_records
from dyn_d2.data.semantic.label_maps import IGNORE, read_classes
from dyn_d2.data.validity.coco import DataError
from dyn_d2.data.validity.ground_truth import (
    coco_api,
    lvis_api,
    lvis_eval_class,
    nothing_found,
    require_masks,
    without_detections,
)
from dyn_d2.data.validity.records import as_coco

from detectron2.data import Metadata, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, LVISEvaluator, SemSegEvaluator

from .class_order import in_class_order

logger = logging.getLogger(__name__)

_EMPTY: dict[str, list] = {"images": [], "annotations": [], "categories": []}


@contextmanager
def _json_file_of_nothing(metadata: Metadata) -> Iterator[None]:
    """Inside the block the data set's json is an empty one: evaluators read theirs when they are made, unexamined."""
    before = metadata.__dict__.get("json_file")
    with tempfile.TemporaryDirectory(prefix="dyn_d2_") as folder:
        path = os.path.join(folder, "empty.json")
        with open(path, "w") as file:
            json.dump(_EMPTY, file)
        metadata.__dict__["json_file"] = path
        try:
            yield
        finally:
            del metadata.__dict__["json_file"]
            if before is not None:
                metadata.__dict__["json_file"] = before


def coco_ground_truth(dataset_name: str) -> Any:
    """``pycocotools.coco.COCO`` of a registered data set: of its json, or of its records where it has none.

    Raises:
        DataError: the data cannot be evaluated.
    """
    metadata = MetadataCatalog.get(dataset_name)
    path = metadata.__dict__.get("json_file")
    if path:
        return coco_api(path)
    ids = {v: k for k, v in metadata.get("thing_dataset_id_to_contiguous_id", {}).items()}
    classes = list(metadata.thing_classes)
    content = as_coco(registered_records(dataset_name), classes, dataset_name, [ids[i] for i in range(len(ids))])
    return coco_api(content, dataset_name)


class CheckedCOCOEvaluator(COCOEvaluator):
    """COCOEvaluator on sound ground truth."""

    def __init__(self, dataset_name: str, *args: Any, **options: Any) -> None:
        """
        Args:
            args, options: of COCOEvaluator. Records are not written as a json, so that none of an earlier run is used.

        Raises:
            DataError: the ground truth cannot be evaluated; names the file and its entries.
        """
        api = coco_ground_truth(dataset_name)
        with _json_file_of_nothing(MetadataCatalog.get(dataset_name)):
            super().__init__(dataset_name, *args, **options)
        self._coco_api = api
        self._do_evaluation = "annotations" in api.dataset
        if not self._do_evaluation:
            logger.warning(f'{api.title} has no "annotations": predictions are written, but not scored.')

    def _eval_predictions(self, predictions, *args, **options):
        if self._do_evaluation and "segm" in _tasks(self._tasks, predictions):
            require_masks(self._coco_api)
        super()._eval_predictions(predictions, *args, **options)

    def _derive_coco_results(self, coco_eval, iou_type, class_names=None):
        if coco_eval is None:  # Detectron2 does not evaluate an empty list
            coco_eval = evaluate_nothing(self._coco_api, iou_type)
        in_class_order(coco_eval, self._metadata)
        return super()._derive_coco_results(coco_eval, iou_type, class_names=class_names)


def _tasks(given: Any, predictions: list[dict]) -> set[str]:
    """What is evaluated: what was asked for, or what the predictions have."""
    found = chain.from_iterable(p.get("instances", ()) for p in predictions)
    return set(given) if given else {"bbox"} | ({"segm"} if any("segmentation" in r for r in found) else set())


def evaluate_nothing(api: Any, iou_type: str) -> Any:
    """``COCOeval`` of no detections, summarised: precision is 0 where there is ground truth, -1 where there is none."""
    from pycocotools.cocoeval import COCOeval

    with redirect_stdout(io.StringIO()):
        run = COCOeval(api, without_detections(api), iou_type)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run


@contextmanager
def recorded_lvis_runs() -> Iterator[list]:
    """Collects the LVISEval objects that run inside; categories need no frequency, and lvis 0.5.3 finds the
    ``np.float`` that numpy 2 dropped."""
    import lvis

    runs: list = []
    original = lvis.LVISEval
    checked: Any = lvis_eval_class()

    class Recorded(checked):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            runs.append(self)

    lacks_float = "float" not in vars(np)
    lvis.LVISEval = Recorded
    if lacks_float:
        vars(np)["float"] = float
    try:
        yield runs
    finally:
        lvis.LVISEval = original
        if lacks_float and "float" in vars(np):
            del vars(np)["float"]


class CheckedLVISEvaluator(LVISEvaluator):
    """LVISEvaluator on sound ground truth."""

    def __init__(self, dataset_name: str, *args: Any, **options: Any) -> None:
        """
        Args:
            args, options: of LVISEvaluator.

        Raises:
            DataError: the ground truth cannot be evaluated; names the file and its entries.
        """
        metadata = MetadataCatalog.get(dataset_name)
        api = lvis_api(metadata.json_file)
        with _json_file_of_nothing(metadata):
            super().__init__(dataset_name, *args, **options)
        self._lvis_api = api
        self._do_evaluation = bool(api.dataset["annotations"])
        if not self._do_evaluation:
            logger.warning(f'{api.title} has no "annotations": predictions are written, but not scored.')

    def _eval_predictions(self, predictions):
        tasks = _tasks(self._tasks, predictions)
        if self._do_evaluation and "segm" in tasks:
            require_masks(self._lvis_api)
        with recorded_lvis_runs() as runs:
            super()._eval_predictions(predictions)
            if self._do_evaluation and not any(p.get("instances") for p in predictions):
                runs.clear()
                for task in sorted(tasks):
                    self._results[task] = self._nothing(task)
        for run in runs:
            self._add_results(run)

    def _nothing(self, task: str) -> dict[str, float]:
        """Metrics of a model that found nothing, which Detectron2 gives as NaN."""
        import lvis

        found = lvis.LVISResults(self._lvis_api, nothing_found(self._lvis_api, task))
        run = lvis.LVISEval(self._lvis_api, found, task)
        run.run()
        names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
        stats = run.get_results()
        return {name: float(stats[name]) * 100 if stats[name] >= 0 else float("nan") for name in names}

    def _add_results(self, run: Any) -> None:
        """For subclasses: add metrics of an LVISEval to ``self._results``."""


class CheckedSemSegEvaluator(SemSegEvaluator):
    """SemSegEvaluator that reads label maps as training does, and refuses what is no class."""

    def __init__(self, dataset_name: str, *args: Any, **options: Any) -> None:
        """
        Args:
            args, options: of SemSegEvaluator.
        """
        metadata = MetadataCatalog.get(dataset_name)
        classes, ignore = len(metadata.stuff_classes), metadata.get("ignore_label", IGNORE)
        self._predicted: tuple[int, ...] = ()

        def read(path: str, dtype: Any = int) -> np.ndarray:
            labels = read_classes(path, classes, ignore).astype(dtype)
            if self._predicted and labels.shape != self._predicted:
                size = " x ".join(map(str, self._predicted[::-1]))
                raise DataError(
                    f"{path} is {labels.shape[1]} x {labels.shape[0]}, but the prediction for its image {size}."
                )
            return labels

        super().__init__(dataset_name, *args, **{"sem_seg_loading_fn": read, **options})

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Raises:
            DataError: a label map is none, or has another size than the prediction.
        """
        for given, output in zip(inputs, outputs, strict=True):
            self._predicted = tuple(output["sem_seg"].shape[-2:])
            super().process([given], [output])
