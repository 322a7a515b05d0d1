"""Detection in the metric of the PASCAL VOC development kit."""

import logging
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np

from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from .evaluator import DatasetEvaluator
from .instance_evaluation import log_classes_without_ground_truth, per_class_table

THRESHOLDS = tuple(range(50, 100, 5))  # IoU in percent


class PascalVOCDetectionEvaluator(DatasetEvaluator):
    """AP at IoU 0.5 to 0.95 as the development kit defines it: 11 points in 2007, the exact area from 2010 on.

    Results are {"bbox": {"AP", "AP50", "AP75"}}, 0 to 100, means over classes that have ground truth.

    Args:
        dataset_name: its metadata has "dirname", "split", "year" (2007 or 2012) and "thing_classes".
    """

    def __init__(self, dataset_name: str):
        self._dataset_name = dataset_name
        self._logger = logging.getLogger(__name__)
        meta = MetadataCatalog.get(dataset_name)
        if meta.year not in (2007, 2012):
            raise ValueError(f"The year of {dataset_name} is 2007 or 2012, not {meta.year!r}.")
        self._is_2007 = meta.year == 2007
        self._class_names = meta.thing_classes
        root = Path(PathManager.get_local_path(meta.dirname))
        self._anno_file_template = str(root / "Annotations" / "{}.xml")
        self._image_set_path = str(root / "ImageSets" / "Main" / f"{meta.split}.txt")

    def reset(self) -> None:
        self._predictions: dict[int, list[tuple]] = defaultdict(list)  # class -> (image id, score, box)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for given, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to("cpu")
            # VOC counts pixels from 1. Digits are those of the kit's result files.
            boxes = instances.pred_boxes.tensor + instances.pred_boxes.tensor.new_tensor([1, 1, 0, 0])
            for cls, score, box in zip(
                instances.pred_classes.tolist(), instances.scores.tolist(), boxes.tolist(), strict=True
            ):
                self._predictions[cls].append((given["image_id"], round(score, 3), [round(x, 1) for x in box]))

    def evaluate(self) -> dict | None:
        # Only here, because dyn_d2 is imported together with this package.
        from dyn_d2.evaluation import voc_metric

        gathered = comm.gather(dict(self._predictions), dst=0)
        if not comm.is_main_process():
            return None
        images = voc_metric.read_images(self._anno_file_template, self._image_set_path)
        aps = np.full((len(THRESHOLDS), len(self._class_names)), np.nan)
        for k, class_name in enumerate(self._class_names):
            detections = [line for part in gathered for line in part.get(k, [])]
            truth = voc_metric.of_class(images, class_name)
            aps[:, k] = voc_metric.average_precisions(detections, truth, self._is_2007)
        per_class = dict(zip(self._class_names, aps.mean(axis=0).tolist(), strict=True))
        kind = "11-point (2007)" if self._is_2007 else "area (2012)"
        self._logger.info(f"{self._dataset_name}, {kind} AP of each class:\n" + per_class_table(per_class))
        log_classes_without_ground_truth(self._logger, per_class)
        present = ~np.isnan(aps[0])
        means = aps[:, present].mean(axis=1) if present.any() else np.full(len(THRESHOLDS), np.nan)
        at = dict(zip(THRESHOLDS, means.tolist(), strict=True))
        return OrderedDict(bbox={"AP": float(means.mean()), "AP50": at[50], "AP75": at[75]})


def parse_rec(filename: str) -> list[dict]:
    """Objects of a VOC annotation file: name, difficult, bbox (xmin, ymin, xmax, ymax in pixels from 1)."""
    from dyn_d2.data.validity.voc import read_xml

    objects = read_xml(PathManager.get_local_path(filename), sized=False).objects
    return [{"name": item.name, "difficult": item.difficult, "bbox": list(item.box)} for item in objects]


def voc_ap(rec: np.ndarray, prec: np.ndarray, use_07_metric: bool = False) -> float:
    """Average precision (0 to 1) of a curve: of 11 recall levels (2007), or the area under its envelope."""
    from dyn_d2.evaluation import voc_metric

    return voc_metric.voc_ap(rec, prec, use_07_metric)


def voc_eval(
    detpath: str, annopath: str, imagesetfile: str, classname: str, ovthresh: float = 0.5, use_07_metric: bool = False
) -> tuple[np.ndarray, np.ndarray, float]:
    """Recall, precision and AP (0 to 1) of one class, from files.

    Args:
        detpath: template of result files, lines "image score xmin ymin xmax ymax"; {} stands for the class.
        annopath: template of annotation files; {} stands for the image.
        imagesetfile: text file that lists the images.
        ovthresh: IoU that a detection has to exceed.
    """
    from dyn_d2.evaluation import voc_metric

    with open(detpath.format(classname)) as f:
        lines = [line.strip().rsplit(maxsplit=5) for line in f if line.strip()]  # an image's name may hold spaces
    detections = [(name, float(score), [float(x) for x in box]) for name, score, *box in lines]
    truth = voc_metric.of_class(voc_metric.read_images(annopath, imagesetfile), classname)
    return voc_metric.precision_recall(*voc_metric.best_overlaps(detections, truth), ovthresh, use_07_metric)
