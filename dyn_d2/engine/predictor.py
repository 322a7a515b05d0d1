"""A trained model for single images, from nothing but its checkpoint: a detector or a semantic segmentor."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from dyn_d2.checkpoint import CheckpointError
from dyn_d2.checkpoint.model import LoadedModel, load_model
from dyn_d2.evaluation.label_figures import LabelMap, class_map
from dyn_d2.modeling.answers import any_score, head_classes, knows_its_labels, label_maps, open_for_images

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.modeling import SemanticSegmentor
from detectron2.structures import Instances


@dataclass
class Predictor:
    """A detector in evaluation mode with the config and the class names that its checkpoint carries.

    No data set has to be registered: names come from the checkpoint.

    Attributes:
        classes: names in the order of the predictor's rows.
    """

    cfg: CfgNode
    model: nn.Module
    classes: list[str]

    @classmethod
    def load(cls, weights: str, config_file: str = "", opts: Iterable[str] = ()) -> "Predictor":
        """From a checkpoint; arguments as in :func:`dyn_d2.checkpoint.model.load_model`.

        Raises:
            CheckpointError: beside the errors of ``load_model``: the model detects nothing, it lacks something that it
                needs, or its checkpoint names another number of classes than it has.
        """
        return cls.of(load_model(weights, config_file, opts))

    @classmethod
    def of(cls, loaded: LoadedModel) -> "Predictor":
        """The predictor of a model that is there. Errors as in ``load``."""
        cfg, model, described = loaded
        weights = cfg.MODEL.WEIGHTS
        try:
            names = open_for_images(model, cfg)
        except ValueError as error:
            raise CheckpointError(f"{weights} cannot be used on images alone: {error}") from error
        if names is not None:
            return cls(cfg, model, names)
        names = list(described.get("classes", ()))
        rows = head_classes(model)
        if rows is None:
            raise CheckpointError(f"{weights} holds a {cfg.MODEL.META_ARCHITECTURE}, which detects no classes.")
        if names and len(names) != rows:
            raise CheckpointError(f"{weights} names {len(names)} classes, but its head has {rows}: {', '.join(names)}.")
        return cls(cfg, model, names or _names_from_catalog(cfg, rows) or [f"class {i}" for i in range(rows)])

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> Instances:
        """Detections in one image.

        Where nothing reaches the score that the config asks for, those below it are returned.

        Args:
            image: (H, W, 3) uint8, RGB.

        Returns:
            Instances on the CPU, in the frame of ``image``, best first.
        """
        inputs = [_as_input(self.cfg, image)]
        found = self.model(inputs)[0]["instances"]
        if not len(found):
            with any_score(self.model):
                found = self.model(inputs)[0]["instances"]
        found = found.to("cpu")
        return found[found.scores.argsort(descending=True)]


@dataclass
class Segmenter:
    """A semantic segmentor in evaluation mode.

    Attributes:
        dataset: whose labels are predicted: the first of DATASETS.TEST, or else of DATASETS.TRAIN.
        stuff_classes: what its checkpoint names them.
    """

    cfg: CfgNode
    model: SemanticSegmentor
    dataset: str | None
    stuff_classes: list[str]

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> list[LabelMap]:
        """Label maps of ``image``, (H, W, 3) uint8, RGB, and of its size: "classes", and those that the model adds."""
        inputs = _as_input(self.cfg, image) | {"dataset": self.dataset}
        output = self.model([inputs])[0]
        classes = class_map(output["sem_seg"], *self._names_and_colours(len(output["sem_seg"])))
        return label_maps(self.model, inputs, output, classes)

    def _names_and_colours(self, count: int) -> tuple[list[str], list[Any]]:
        metadata: Any = MetadataCatalog.get(self.dataset) if self.dataset else {}
        registered, own = list(metadata.get("stuff_classes", None) or ()), self.stuff_classes
        if len(own) == count and own != registered and not knows_its_labels(self.model):  # of another order, perhaps
            return own, []
        known = registered or own
        colours = [tuple(np.divide(colour, 255)) for colour in metadata.get("stuff_colors", None) or ()]
        fits = len(known) == count
        return known if fits else [f"class {i}" for i in range(count)], colours if len(colours) == count else []


def load_predictor(weights: str, config_file: str = "", opts: Iterable[str] = ()) -> Predictor | Segmenter:
    """What the checkpoint holds. Arguments and errors are those of ``Predictor.load``."""
    loaded = load_model(weights, config_file, opts)
    cfg, model, described = loaded
    if not isinstance(model, SemanticSegmentor):
        return Predictor.of(loaded)
    sets = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
    return Segmenter(cfg, model, sets[0] if sets else None, list(described.get("stuff_classes", ())))


def _as_input(cfg: CfgNode, image: np.ndarray) -> dict[str, Any]:
    """What models take, of an image (H, W, 3) uint8, RGB."""
    height, width = image.shape[:2]
    ordered = convert_PIL_to_numpy(Image.fromarray(image), cfg.INPUT.FORMAT)
    resize = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
    resized = resize.get_transform(ordered).apply_image(np.ascontiguousarray(ordered))
    tensor = torch.as_tensor(np.ascontiguousarray(resized.transpose(2, 0, 1), dtype=np.float32))
    return {"image": tensor, "height": height, "width": width}


def _names_from_catalog(cfg: CfgNode, rows: int) -> list[str]:
    """Class names of the config's training set, such as COCO's for a model of the zoo; empty if they do not fit."""
    known = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes", ()) if cfg.DATASETS.TRAIN else ()
    return list(known) if len(known) == rows else []
