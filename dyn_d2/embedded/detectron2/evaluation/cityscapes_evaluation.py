"""Cityscapes' own evaluation of instance and semantic segmentation."""

import copy
import importlib
import io
import logging
import tempfile
from collections import OrderedDict, defaultdict
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from .evaluator import DatasetEvaluator
from .old_numpy import old_numpy_in


def _cityscapes(module: str) -> Any:
    """A module of cityscapesscripts.

    Raises:
        ImportError: the package is missing.
    """
    try:
        return importlib.import_module(f"cityscapesscripts.{module}")
    except ImportError as error:
        text = f"Cityscapes evaluation needs `pip install cityscapesscripts`: {error}."
        raise ImportError(text, name="cityscapesscripts") from error


class CityscapesEvaluator(DatasetEvaluator):
    """Base: all processes write predictions into one folder, the main process evaluates them (one machine only).

    Args:
        dataset_name: its metadata has "gt_dir" and, for instances, "thing_classes".
    """

    # Ground-truth files and the module that judges them.
    _pattern: str
    _module: str

    def __init__(self, dataset_name: str):
        self._metadata = MetadataCatalog.get(dataset_name)
        self._cpu_device = torch.device("cpu")
        self._logger = logging.getLogger(__name__)
        self._labels = _cityscapes("helpers.labels")

    def reset(self) -> None:
        if comm.get_local_size() != comm.get_world_size():
            raise RuntimeError("Cityscapes evaluation works on one machine only: its processes share a folder.")
        self._working_dir = tempfile.TemporaryDirectory(prefix="cityscapes_eval_") if comm.is_main_process() else None
        self._temp_dir = comm.all_gather(self._working_dir.name if self._working_dir else None)[0]
        self._logger.info(f"Writing Cityscapes results to {self._temp_dir} ...")

    def _prediction_file(self, given: dict, suffix: str) -> Path:
        return Path(self._temp_dir) / f"{Path(given['file_name']).stem}{suffix}"

    def evaluate(self) -> dict | None:
        """Results, in the main process.

        Raises:
            FileNotFoundError: there is no ground truth in "gt_dir", or no prediction for one of its images.
        """
        comm.synchronize()
        if not comm.is_main_process():
            return None
        api = _cityscapes(f"evaluation.{self._module}")
        args = copy.copy(api.args)
        args.predictionPath, args.predictionWalk = self._temp_dir, None
        args.JSONOutput, args.colorized, args.quiet = False, False, True
        args.gtInstancesFile = str(Path(self._temp_dir) / "gtInstances.json")
        gt_dir = Path(PathManager.get_local_path(self._metadata.gt_dir))
        truth = sorted(str(path) for path in gt_dir.glob(f"*/{self._pattern}"))
        if not truth:
            raise FileNotFoundError(f"No ground truth {gt_dir}/*/{self._pattern}; check gt_dir of the data set.")
        with redirect_stdout(io.StringIO()), old_numpy_in(api):
            results = self._judge(api, args, self._predictions_for(truth), truth)
        self._working_dir.cleanup()
        return results

    def _predictions_for(self, truth: list[str]) -> list[str]:
        """The file that was written for each image of the ground truth, told by city, sequence and frame."""

        def image(path: str | Path) -> str:
            return "_".join(Path(path).name.split("_")[:3])

        written: dict[str, list[str]] = defaultdict(list)
        for path in Path(self._temp_dir).glob("*_pred.*"):
            written[image(path)].append(str(path))
        wrong = [image(path) for path in truth if len(written[image(path)]) != 1]
        if wrong:
            raise FileNotFoundError(
                f"{len(wrong)} of {len(truth)} Cityscapes images do not have exactly one prediction, among them "
                f"{wrong[0]}: the whole split has to be evaluated, once."
            )
        return [written[image(path)][0] for path in truth]

    def _judge(self, api: Any, args: Any, predictions: list[str], truth: list[str]) -> dict:
        raise NotImplementedError


class CityscapesInstanceEvaluator(CityscapesEvaluator):
    """AP and AP50 (0 to 100) of instance masks: {"segm": {"AP", "AP50"}}."""

    _pattern = "*_gtFine_instanceIds.png"
    _module = "evalInstanceLevelSemanticLabeling"

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for given, output in zip(inputs, outputs, strict=True):
            lines = []
            if "instances" in output:
                instances = output["instances"].to(self._cpu_device)
                columns = zip(instances.pred_classes, instances.scores, instances.pred_masks, strict=True)
                for i, (number, score, mask) in enumerate(columns):
                    name = self._metadata.thing_classes[number]
                    file = self._prediction_file(given, f"_{i}_{name}.png")
                    Image.fromarray(mask.numpy().astype(np.uint8) * 255).save(file)
                    lines.append(f"{file.name} {self._labels.name2label[name].id} {float(score)}\n")
            # The scripts want a file for each image, also where nothing was found.
            self._prediction_file(given, "_pred.txt").write_text("".join(lines))

    def _judge(self, api: Any, args: Any, predictions: list[str], truth: list[str]) -> dict:
        # The steps of api.evaluateImgLists, which would also write a matches.json into the current folder.
        api.setInstanceLabels(args)
        matches = api.matchGtWithPreds(predictions, truth, api.getGtInstances(truth, args), args)
        averages = api.computeAverages(api.evaluateMatches(matches, args), args)
        return OrderedDict(segm={"AP": averages["allAp"] * 100, "AP50": averages["allAp50%"] * 100})


class CityscapesSemSegEvaluator(CityscapesEvaluator):
    """IoU of classes and categories (``_sup``), per pixel and per instance (``i``), in {"sem_seg": ...}, 0 to 100."""

    _pattern = "*_gtFine_labelIds.png"
    _module = "evalPixelLevelSemanticLabeling"

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        label_of = np.full(256, 255, dtype=np.uint8)  # training id -> id in Cityscapes' files
        for train_id, label in self._labels.trainId2label.items():
            if not label.ignoreInEval:
                label_of[train_id] = label.id
        for given, output in zip(inputs, outputs, strict=True):
            prediction = output["sem_seg"].argmax(dim=0).to(self._cpu_device).numpy()
            Image.fromarray(label_of[prediction]).save(self._prediction_file(given, "_pred.png"))

    def _judge(self, api: Any, args: Any, predictions: list[str], truth: list[str]) -> dict:
        found = api.evaluateImgLists(predictions, truth, args)
        names = {
            "IoU": "averageScoreClasses",
            "iIoU": "averageScoreInstClasses",
            "IoU_sup": "averageScoreCategories",
            "iIoU_sup": "averageScoreInstCategories",
        }
        return OrderedDict(sem_seg={name: 100.0 * found[key] for name, key in names.items()})
