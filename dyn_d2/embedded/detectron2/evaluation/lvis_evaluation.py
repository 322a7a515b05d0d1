"""Detection and instance segmentation in LVIS's metrics."""

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
    """AP of boxes and masks over all, rare (APr), common (APc) and frequent (APf) classes.

    Numbers are 0 to 100; NaN where there is no ground truth.

    Args:
        dataset_name: its metadata has "json_file" in LVIS format.
        tasks, distributed, output_dir: see :class:`InstanceEvaluator`.
        max_dets_per_image: detections per image that count for AP; 300 by default.
    """

    _results_file = "lvis_instances_results.json"

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
        self._max_dets_per_image = MAX_DETECTIONS if max_dets_per_image is None else max_dets_per_image
        _import_lvis()
        # Only here, because dyn_d2 is imported together with this package.
        from dyn_d2.data.validity.ground_truth import lvis_api

        self._lvis_api = lvis_api(PathManager.get_local_path(self._metadata.json_file), self._metadata.json_file)
        self._do_evaluation = len(self._lvis_api.get_ann_ids()) > 0

    def _to_dataset_ids(self, results: list[dict]) -> None:
        to_contiguous = self._metadata.get("thing_dataset_id_to_contiguous_id")
        dataset_ids = {v: k for k, v in to_contiguous.items()} if to_contiguous else None
        for result in results:  # LVIS counts categories from 1
            number = result["category_id"]
            result["category_id"] = dataset_ids[number] if dataset_ids else number + 1

    def _judge(self, results: list[dict], task: str) -> dict[str, float]:
        from dyn_d2.data.validity.ground_truth import lvis_eval_class, nothing_found, require_masks
        from dyn_d2.evaluation.class_order import in_class_order

        lvis = _import_lvis()
        if task == "segm":
            require_masks(self._lvis_api)
        if not results:
            self._logger.warning(f"The model predicted nothing: {task} AP is 0, NaN where there is no ground truth.")
            results = nothing_found(self._lvis_api, task)
        # Copies, because LVISResults adds entries. With a box, lvis would take the box's area as the mask's size.
        dropped = "bbox" if task == "segm" else None
        results = [{k: v for k, v in result.items() if k != dropped} for result in results]
        self._logger.info(f"Evaluating with max detections per image = {self._max_dets_per_image}")
        with old_numpy_in(lvis.eval):
            found = lvis.LVISResults(self._lvis_api, results, max_dets=self._max_dets_per_image)
            lvis_eval = lvis_eval_class()(self._lvis_api, found, task)
            lvis_eval.run()
        in_class_order(lvis_eval, self._metadata)
        precision = lvis_eval.eval["precision"][..., 0]  # IoU x recall x class
        names = self._metadata.get("thing_classes")
        if names is not None and len(names) == precision.shape[2]:
            best = precision.max(axis=(0, 1))
            per_class = {name: ap if ap > -1 else float("nan") for name, ap in zip(names, best, strict=True)}
            log_classes_without_ground_truth(self._logger, per_class)
        stats = lvis_eval.get_results()
        numbers = {name: float(stats[name]) * 100 if stats[name] >= 0 else float("nan") for name in METRICS}
        self._logger.info(f"Evaluation results for {task}: \n" + create_small_table(numbers))
        return numbers
