"""Which stage of a Layer Cascade settles how many pixels, of which classes, and how often it is right."""

import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from dyn_d2.utils.atomic import write_json

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.sem_seg_evaluation import load_image_into_numpy_array
from detectron2.utils import comm

from .backbone import STAGES, STRIDE

logger = logging.getLogger(__name__)


class LayerCascadeEvaluator(DatasetEvaluator):
    """For each stage the share of labelled pixels that it settles, and the share of these that it gets right (percent).

    Results are {"layer_cascade": {"settled_stage1": ..., "accuracy_stage1": ..., ...}}; the file also has the share of
    each class that each stage settles.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None) -> None:
        """
        Args:
            dataset_name: its records have sem_seg_file_name, its metadata stuff_classes and perhaps ignore_label (255).
            output_dir: where {dataset_name}_stages.json is written; None writes nothing.
        """
        metadata = MetadataCatalog.get(dataset_name)
        self._name, self._folder = dataset_name, output_dir
        self._classes = list(metadata.stuff_classes)
        self._ignore = metadata.get("ignore_label", 255)
        self._truth = {r["file_name"]: r["sem_seg_file_name"] for r in DatasetCatalog.get(dataset_name)}
        self.reset()

    def reset(self) -> None:
        self._pixels = np.zeros((len(STAGES), len(self._classes)), np.int64)
        self._right = np.zeros_like(self._pixels)

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for record, output in zip(inputs, outputs, strict=True):
            truth = torch.as_tensor(load_image_into_numpy_array(self._truth[record["file_name"]], dtype=np.int64))
            stage = stages_of_pixels(output["settled_by"].cpu(), record["image"].shape[-2:], truth.shape)
            labelled = truth != self._ignore
            truth, stage = truth[labelled], stage[labelled]
            right = output["sem_seg"].argmax(0).cpu()[labelled] == truth
            places = stage * len(self._classes) + truth
            for table, chosen in ((self._pixels, places), (self._right, places[right])):
                table += torch.bincount(chosen, minlength=table.size).numpy().reshape(table.shape)

    def evaluate(self) -> dict[str, dict[str, float]]:
        tables = comm.gather((self._pixels, self._right))
        if not comm.is_main_process():
            return {}
        pixels, right = (np.sum(table, axis=0) for table in zip(*tables, strict=True))
        results = {}
        for number, name in enumerate(STAGES):
            own = pixels[number].sum()
            results[f"settled_{name}"] = _percent(own, pixels.sum())
            if own:
                results[f"accuracy_{name}"] = _percent(right[number].sum(), own)
        shares = {
            label: {name: _percent(pixels[number, i], pixels[:, i].sum()) for number, name in enumerate(STAGES)}
            for i, label in enumerate(self._classes)
            if pixels[:, i].any()
        }
        if self._folder:
            content = {"dataset": self._name, "unit": "percent", **results, "settled_of_class": shares}
            write_json(os.path.join(self._folder, f"{self._name}_stages.json"), content)
        logger.info(", ".join(f"{key} {value:.2f}" for key, value in results.items()))
        return {"layer_cascade": results}


def stages_of_pixels(stages: torch.Tensor, input_size: Sequence[int], size: Sequence[int]) -> torch.Tensor:
    """(height, width) int64: the stage that settled each pixel of an image.

    Args:
        stages: (h, w) "settled_by", of stride 8 over the image as it went in.
        input_size, size: (height, width) as it went in, and as it is.
    """
    stages = stages.repeat_interleave(STRIDE, 0).repeat_interleave(STRIDE, 1)
    stages = stages[None, None, : input_size[0], : input_size[1]].float()
    return F.interpolate(stages, size=tuple(size), mode="nearest")[0, 0].long()


def _percent(part: int, whole: int) -> float:
    return 100 * float(part) / max(float(whole), 1.0)
