"""Detection and instance segmentation in LVIS's metrics."""

import json
import logging
from itertools import chain
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

from .instance_evaluation import InstanceEvaluator, log_classes_without_ground_truth
from .old_numpy import old_numpy_in

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
MAX_DETECTIONS = 300  # the benchmark's limit per image


def _import_lvis() -> Any:
    """The lvis package.

    Raises:
        ImportError: it, or the cv2 that it imports for its drawings, cannot be loaded.
    """
    try:
        import lvis
        import lvis.eval
    except ImportError as error:
        raise ImportError(
            f"LVIS evaluation cannot import the package lvis: {error}. `pip install lvis` provides it; where OpenCV "
            "lacks a library such as libGL, `pip install opencv-python-headless` in place of opencv-python helps."
        ) from error
    return lvis


class LVISEvaluator(InstanceEvaluator):
    """AP of boxes and masks over all, rare (APr), common (APc) and frequent (APf) classes; recall of proposals.

    Args:
        dataset_name: its metadata has "json_file" in LVIS format.
        tasks, distributed, output_dir: see :class:`InstanceEvaluator`.
        max_dets_per_image: detections per image that count for AP; 300 by default.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: tuple[str, ...] | CfgNode | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
    ):
        super().__init__(dataset_name, tasks, distributed, output_dir)
        self._max_dets_per_image = max_dets_per_image
        self._lvis_api = _import_lvis().LVIS(PathManager.get_local_path(self._metadata.json_file))
        self._do_evaluation = len(self._lvis_api.get_ann_ids()) > 0

    def _annotations_of(self, image_id: int) -> list[dict]:
        return self._lvis_api.load_anns(self._lvis_api.get_ann_ids(img_ids=[image_id]))

    def _tasks_from_predictions(self, predictions: list[dict]) -> tuple[str, ...]:
        """ "bbox", and "segm" where predictions have masks."""
        return ("bbox", "segm") if any("segmentation" in p for p in predictions) else ("bbox",)

    def _eval_predictions(self, predictions: list[dict]) -> None:
        """Judge the detections; write the numbers of each task into ``self._results``."""
        results = list(chain.from_iterable(p["instances"] for p in predictions))
        tasks = self._tasks or self._tasks_from_predictions(results)
        to_contiguous = self._metadata.get("thing_dataset_id_to_contiguous_id")
        dataset_ids = {v: k for k, v in to_contiguous.items()} if to_contiguous else None
        for result in results:  # LVIS counts categories from 1
            number = result["category_id"]
            result["category_id"] = dataset_ids[number] if dataset_ids else number + 1
        if self._output_dir:
            with self._output_file("lvis_instances_results.json", "w") as f:
                json.dump(results, f)
        if not self._do_evaluation:
            self._logger.info("The data set has no annotations: predictions are not evaluated.")
            return
        for task in sorted(tasks):
            self._results[task] = _evaluate_predictions_on_lvis(
                self._lvis_api,
                results,
                task,
                max_dets_per_image=self._max_dets_per_image,
                class_names=self._metadata.get("thing_classes"),
            )


def _evaluate_predictions_on_lvis(
    lvis_gt: Any,
    lvis_results: list[dict],
    iou_type: str,
    max_dets_per_image: int | None = None,
    class_names: list[str] | None = None,
) -> dict[str, float]:
    """Numbers of one task (0 to 100; NaN where there is no ground truth) from results in LVIS format.

    Args:
        class_names: in the order of the json's category ids, to name those without ground truth in the log.
    """
    logger = logging.getLogger(__name__)
    if not lvis_results:
        logger.warning(f"The model predicted nothing: all {iou_type} metrics are NaN.")
        return dict.fromkeys(METRICS, float("nan"))
    lvis = _import_lvis()
    # Copies, because LVISResults adds entries. With a box, lvis would take the box's area as the mask's size.
    dropped = "bbox" if iou_type == "segm" else None
    results = [{k: v for k, v in result.items() if k != dropped} for result in lvis_results]
    limit = MAX_DETECTIONS if max_dets_per_image is None else max_dets_per_image
    logger.info(f"Evaluating with max detections per image = {limit}")
    with old_numpy_in(lvis.eval):
        lvis_eval = lvis.LVISEval(lvis_gt, lvis.LVISResults(lvis_gt, results, max_dets=limit), iou_type)
        lvis_eval.run()
    precision = lvis_eval.eval["precision"][..., 0]  # IoU x recall x class
    if class_names is not None and len(class_names) == precision.shape[2]:
        best = precision.max(axis=(0, 1))
        per_class = {name: ap if ap > -1 else float("nan") for name, ap in zip(class_names, best, strict=True)}
        log_classes_without_ground_truth(logger, per_class)
    found = lvis_eval.get_results()
    numbers = {name: float(found[name]) * 100 if found[name] >= 0 else float("nan") for name in METRICS}
    logger.info(f"Evaluation results for {iou_type}: \n" + create_small_table(numbers))
    return numbers
