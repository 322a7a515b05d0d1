"""Detection and instance segmentation in COCO's metrics."""

import io
import logging
import os
from collections.abc import Sequence
from contextlib import redirect_stdout

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detectron2.config import CfgNode
from detectron2.left_out import left_out
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

from .instance_evaluation import InstanceEvaluator, log_classes_without_ground_truth, per_class_table
from .instance_evaluation import instances_to_coco_json as instances_to_coco_json

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


class COCOEvaluator(InstanceEvaluator):
    """AP of boxes and masks, of any data set with COCO-like annotations.

    Numbers are 0 to 100; NaN where there is nothing to compute them from. Results are
    {"bbox": {"AP", "AP50", "AP75", "APs", "APm", "APl", "AP-<class>"...}, "segm": ...}.

    Args:
        dataset_name: its metadata has "json_file" (COCO format), or its records are converted to such a file.
        tasks, distributed, output_dir: see :class:`InstanceEvaluator`.
        max_dets_per_image: detections per image that count for AP; 100 by default.
        use_fast_impl: accepted for compatibility; the official pycocotools always computes the numbers.
        kpt_oks_sigmas: keypoints are left out; has to be empty.
        allow_cached_coco: reuse a converted file of an earlier run.
    """

    _results_file = "coco_instances_results.json"

    def __init__(
        self,
        dataset_name: str,
        tasks: tuple[str, ...] | CfgNode | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
        use_fast_impl: bool = True,
        kpt_oks_sigmas: Sequence[float] = (),
        allow_cached_coco: bool = True,
    ):
        super().__init__(dataset_name, tasks, distributed, output_dir)
        if kpt_oks_sigmas:
            raise left_out("kpt_oks_sigmas", "keypoints")
        self._max_dets_per_image = [1, 10, 100 if max_dets_per_image is None else max_dets_per_image]
        if not hasattr(self._metadata, "json_file"):
            self._convert(dataset_name, allow_cached_coco)
        # Only here, because dyn_d2 is imported together with this package.
        from dyn_d2.data.validity.ground_truth import coco_api

        self._coco_api = coco_api(PathManager.get_local_path(self._metadata.json_file), self._metadata.json_file)
        # The annotations of test sets are with an evaluation server.
        self._do_evaluation = "annotations" in self._coco_api.dataset

    def _convert(self, dataset_name: str, allow_cached: bool) -> None:
        """Write the data set's records as COCO json into the output folder."""
        from detectron2.data.datasets.coco import convert_to_coco_json

        if self._output_dir is None:
            raise ValueError(f"COCOEvaluator needs output_dir for {dataset_name!r}: it has no COCO-format json_file.")
        self._logger.info(f"Converting {dataset_name!r} to COCO format ...")
        path = os.path.join(self._output_dir, f"{dataset_name}_coco_format.json")
        convert_to_coco_json(dataset_name, path, allow_cached=allow_cached)
        self._metadata.json_file = path

    def evaluate(self, img_ids: list[int] | None = None) -> dict:
        """Results by task, on the images ``img_ids`` (all by default)."""
        return super().evaluate(img_ids=img_ids)

    def _to_dataset_ids(self, results: list[dict]) -> None:
        if not hasattr(self._metadata, "thing_dataset_id_to_contiguous_id"):
            return
        dataset_ids = {v: k for k, v in self._metadata.thing_dataset_id_to_contiguous_id.items()}
        if sorted(dataset_ids) != list(range(len(dataset_ids))):
            raise ValueError(f"thing_dataset_id_to_contiguous_id of {self._metadata.name} does not map to 0, 1, 2, ...")
        for result in results:
            if result["category_id"] not in dataset_ids:
                raise ValueError(
                    f"A prediction has class {result['category_id']}, but {self._metadata.name} has "
                    f"{len(dataset_ids)} classes, 0 to {len(dataset_ids) - 1}: the model's NUM_CLASSES does not fit."
                )
            result["category_id"] = dataset_ids[result["category_id"]]

    def _judge(self, results: list[dict], task: str, img_ids: list[int] | None = None) -> dict[str, float]:
        from dyn_d2.data.validity.ground_truth import require_masks
        from dyn_d2.evaluation.class_order import in_class_order

        if task == "segm":
            require_masks(self._coco_api)
        found = _evaluate_predictions_on_coco(self._coco_api, results, task, self._max_dets_per_image, img_ids)
        in_class_order(found, self._metadata)
        return self._derive_coco_results(found, task, class_names=self._metadata.get("thing_classes"))

    def _derive_coco_results(
        self, coco_eval: COCOeval, iou_type: str, class_names: list[str] | None = None
    ) -> dict[str, float]:
        """Numbers of one task.

        Args:
            coco_eval: summarised.
            class_names: in the order of its class axis; adds "AP-<name>" of each.
        """
        if not coco_eval.cocoDt.dataset["annotations"]:
            self._logger.warning(f"The model predicted nothing: {iou_type} AP is 0, NaN without ground truth.")
        stats = [float(value) for value in coco_eval.stats[: len(METRICS)]]
        results = {
            name: value * 100 if value >= 0 else float("nan") for name, value in zip(METRICS, stats, strict=True)
        }
        self._logger.info(f"Evaluation results for {iou_type}: \n" + create_small_table(results))
        if not np.isfinite(sum(results.values())):
            self._logger.info("NaN: there is no ground truth to compute this metric from.")
        if class_names is None or len(class_names) <= 1:
            return results
        per_class = per_class_ap(coco_eval, class_names)
        self._logger.info(f"Per-category {iou_type} AP: \n" + per_class_table(per_class))
        log_classes_without_ground_truth(self._logger, per_class)
        return results | {f"AP-{name}": ap for name, ap in per_class.items()}


def per_class_ap(coco_eval: COCOeval, class_names: list[str]) -> dict[str, float]:
    """AP (0 to 100) of each class over all sizes, from an accumulated evaluation; NaN without ground truth."""
    precision = coco_eval.eval["precision"][..., 0, -1]  # IoU x recall x class
    if precision.shape[2] != len(class_names):
        raise ValueError(
            f"The metadata has {len(class_names)} thing_classes, but the json file has {precision.shape[2]} categories."
        )
    valid = [precision[:, :, k][precision[:, :, k] > -1] for k in range(len(class_names))]
    means = [float(v.mean()) * 100 if v.size else float("nan") for v in valid]
    return dict(zip(class_names, means, strict=True))


def _evaluate_predictions_on_coco(
    coco_gt: COCO, coco_results: list[dict], iou_type: str, max_dets: list[int], img_ids: list[int] | None = None
) -> COCOeval:
    """Run pycocotools on results in COCO format and return its summarised evaluation.

    Args:
        max_dets: three limits of detections per image; AP is computed at the last.

    Raises:
        ValueError: masks are asked for, but a result has none.
    """
    key = "bbox" if iou_type == "bbox" else "segmentation"
    if any(key not in result for result in coco_results):
        raise ValueError(f"Task {iou_type!r} cannot be evaluated: the predictions have no {key!r}.")
    from dyn_d2.data.validity.ground_truth import without_detections

    # Copies, because loadRes adds entries. With a box, pycocotools would take the box's area as the mask's size.
    dropped = "bbox" if iou_type == "segm" else None
    results = [{k: v for k, v in result.items() if k != dropped} for result in coco_results]
    with redirect_stdout(io.StringIO()) as printed:
        detections = coco_gt.loadRes(results) if results else without_detections(coco_gt)
        coco_eval = COCOevalMaxDets(coco_gt, detections, iou_type)
        coco_eval.params.maxDets = max_dets
        if img_ids is not None:
            coco_eval.params.imgIds = img_ids
        coco_eval.evaluate()
        coco_eval.accumulate()
        coco_eval.summarize()
    logging.getLogger(__name__).info(printed.getvalue().rstrip())
    return coco_eval


class COCOevalMaxDets(COCOeval):
    """pycocotools' evaluation, whose summary takes AP at the last of ``maxDets`` and not only at 100."""

    def summarize(self) -> None:
        """Fill ``stats``: AP, AP50, AP75, APs, APm, APl, AR at the three limits, ARs, ARm, ARl; -1 where undefined."""
        precision, recall = self.eval["precision"][..., -1], self.eval["recall"]

        def mean(values: np.ndarray) -> float:
            return float(values[values > -1].mean()) if (values > -1).any() else -1.0

        at_iou = [int(np.argmin(np.abs(self.params.iouThrs - iou))) for iou in (0.5, 0.75)]
        stats = [mean(precision[..., 0]), *(mean(precision[i, ..., 0]) for i in at_iou)]
        stats += [mean(precision[..., size]) for size in (1, 2, 3)]
        stats += [mean(recall[:, :, 0, limit]) for limit in range(3)]
        stats += [mean(recall[:, :, size, -1]) for size in (1, 2, 3)]
        self.stats = np.array(stats)
        names = [*METRICS, *(f"AR@{limit}" for limit in self.params.maxDets), "ARs", "ARm", "ARl"]
        print("\n".join(f"{name:>8} = {value:.3f}" for name, value in zip(names, stats, strict=True)))
