"""A trained model for images, from nothing but its checkpoint: a detector, a semantic segmentor or a classifier.

    predictor = load_predictor("output/model_final.pth")
    found = predictor(image)                    # (H, W, 3) uint8, RGB
    answers = predictor.answer([first, second])  # a batch; each with its route where the network is dynamic

What is found: of a detector (:class:`Predictor`) Detectron2's ``Instances`` in pixels of the image, best first; of a
segmentor (:class:`Segmenter`) a list of :class:`~dyn_d2.evaluation.label_figures.LabelMap`; of a classifier
(:class:`Classifier`) a :class:`Labels`. No data set has to be registered: names come from the checkpoint.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, cast

import numpy as np
import torch
from PIL import Image
from torch import nn

from dyn_d2.checkpoint import CheckpointError, read_checkpoint
from dyn_d2.checkpoint.files import ZOO
from dyn_d2.checkpoint.model import LoadedModel, load_model
from dyn_d2.data.classification import ClassificationMapper
from dyn_d2.evaluation.label_figures import LabelMap, class_map
from dyn_d2.method import methods
from dyn_d2.model_zoo.packed import load, path_of
from dyn_d2.modeling.answers import any_score, head_classes, knows_its_labels, label_maps, open_for_images

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.modeling import SemanticSegmentor
from detectron2.structures import Instances

from .given_images import require_image, require_images

Found = TypeVar("Found")


class Answer(NamedTuple, Generic[Found]):
    """What a model says of one image.

    Attributes:
        found: see the predictor's class.
        route: which parts of the network ran for the image and what that cost, a :class:`dyn_d2.gating.Route`; None
            where the network has no choice.
        model: of a cascade: the name of the model that answered; else "".
    """

    found: Found
    route: Any = None
    model: str = ""


class ImagePredictor(Protocol):
    """What all predictors have."""

    @property
    def classes(self) -> list[str]:
        """Names in the order of labels and scores."""
        ...

    def __call__(self, image: np.ndarray) -> Any:
        """What is found in one image, (H, W, 3) uint8, RGB."""
        ...

    def answer(self, images: Sequence[np.ndarray]) -> list[Answer[Any]]:
        """The same of a batch of images, which may differ in size, with routes.

        Raises:
            ValueError: it is no list of such images; so does ``__call__`` where ``image`` is none.
        """
        ...


@dataclass
class Labels:
    """What a classifier says of an image.

    Attributes:
        scores: (K,) float32, probabilities where the model gives such.
        classes: K names.
    """

    scores: np.ndarray
    classes: list[str]

    def best(self, count: int = 5) -> list[tuple[str, float]]:
        """The classes with the largest scores."""
        order = np.argsort(-self.scores, kind="stable")[:count]
        return [(self.classes[number], float(self.scores[number])) for number in order]


@dataclass
class Predictor:
    """A detector in evaluation mode with the config and the class names that its checkpoint carries.

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
        return cls(cfg, model, names or _names_from_catalog(cfg, rows) or _numbered(rows))

    def __call__(self, image: np.ndarray) -> Instances:
        """Detections in one image.

        Where nothing reaches the score that the config asks for, those below it are returned.

        Args:
            image: (H, W, 3) uint8, RGB.

        Returns:
            Instances on the CPU, in the frame of ``image``, best first.
        """
        return self.answer([image])[0].found

    def input_of(self, image: np.ndarray) -> dict[str, Any]:
        """What the model takes, of an image (H, W, 3) uint8, RGB."""
        return _as_input(self.cfg, image)

    @torch.no_grad()
    def answer(self, images: Sequence[np.ndarray]) -> list[Answer[Instances]]:
        """Detections in a batch of images, as ``__call__`` gives them, and routes."""
        inputs = [self.input_of(image) for image in require_images(images)]
        outputs = self.model(inputs) if inputs else []
        empty = [number for number, output in enumerate(outputs) if not len(output["instances"])]
        if empty:
            with any_score(self.model):
                for number, output in zip(empty, self.model([inputs[number] for number in empty]), strict=True):
                    outputs[number] = output
        answers = []
        for output in outputs:
            found = output["instances"].to("cpu")
            answers.append(Answer(found[found.scores.argsort(descending=True)], output.get("route")))
        return answers


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

    @classmethod
    def of(cls, loaded: LoadedModel) -> "Segmenter":
        """The segmenter of a model that is there."""
        cfg, model, described = loaded
        sets = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
        return cls(
            cfg, cast(SemanticSegmentor, model), sets[0] if sets else None, list(described.get("stuff_classes", ()))
        )

    @property
    def classes(self) -> list[str]:
        """Names of the labels, as far as checkpoint or data set know them."""
        metadata: Any = MetadataCatalog.get(self.dataset) if self.dataset else {}
        return self.stuff_classes or list(metadata.get("stuff_classes", None) or ())

    def __call__(self, image: np.ndarray) -> list[LabelMap]:
        """Label maps of ``image``, (H, W, 3) uint8, RGB, and of its size: "classes", and those that the model adds."""
        return self.answer([image])[0].found

    def input_of(self, image: np.ndarray) -> dict[str, Any]:
        """What the model takes, of an image (H, W, 3) uint8, RGB."""
        return _as_input(self.cfg, image) | {"dataset": self.dataset}

    @torch.no_grad()
    def answer(self, images: Sequence[np.ndarray]) -> list[Answer[list[LabelMap]]]:
        """Label maps of a batch of images, and routes."""
        inputs = [self.input_of(image) for image in require_images(images)]
        answers = []
        for given, output in zip(inputs, self.model(inputs) if inputs else [], strict=True):
            classes = class_map(output["sem_seg"], *self._names_and_colours(len(output["sem_seg"])))
            answers.append(Answer(label_maps(self.model, given, output, classes), output.get("route")))
        return answers

    def _names_and_colours(self, count: int) -> tuple[list[str], list[Any]]:
        metadata: Any = MetadataCatalog.get(self.dataset) if self.dataset else {}
        registered, own = list(metadata.get("stuff_classes", None) or ()), self.stuff_classes
        if len(own) == count and own != registered and not knows_its_labels(self.model):  # of another order, perhaps
            return own, []
        known = registered or own
        colours = [tuple(np.divide(colour, 255)) for colour in metadata.get("stuff_colors", None) or ()]
        fits = len(known) == count
        return known if fits else _numbered(count), colours if len(colours) == count else []


@dataclass
class Classifier:
    """An image classifier in evaluation mode.

    Attributes:
        classes: names in the order of the scores; empty where nobody named them, they are then numbers.
    """

    cfg: CfgNode
    model: nn.Module
    classes: list[str]

    @classmethod
    def of(cls, loaded: LoadedModel) -> "Classifier":
        """The classifier of a model that is there."""
        cfg, model, described = loaded
        return cls(cfg, model, list(described.get("classes", ())))

    def __call__(self, image: np.ndarray) -> Labels:
        """Scores of the classes for one image, (H, W, 3) uint8, RGB, resized and cropped as in evaluation."""
        return self.answer([image])[0].found

    def input_of(self, image: np.ndarray) -> dict[str, Any]:
        """What the model takes, of an image (H, W, 3) uint8, RGB."""
        require_image(image)
        return ClassificationMapper(self.cfg, is_train=False)({"image": image})

    @torch.no_grad()
    def answer(self, images: Sequence[np.ndarray]) -> list[Answer[Labels]]:
        """Scores for a batch of images, and routes."""
        inputs = [self.input_of(image) for image in require_images(images)]
        outputs = self.model(inputs) if inputs else []
        scores = [output["scores"].float().cpu().numpy() for output in outputs]
        return [Answer(self.labels(row), output.get("route")) for row, output in zip(scores, outputs, strict=True)]

    def labels(self, scores: np.ndarray) -> Labels:
        """Scores (K,) with the names of the classes."""
        return Labels(scores, self.classes if len(self.classes) == len(scores) else _numbered(len(scores)))


def load_predictor(weights: str, config_file: str = "", opts: Iterable[str] = ()) -> ImagePredictor:
    """What the checkpoint holds, ready for images: a :class:`Predictor`, :class:`Segmenter` or :class:`Classifier`, or
    what a method makes of its own checkpoints, such as a cascade.

    Args:
        weights: a checkpoint, or "zoo:NAME" for a model that comes with dyn_d2 (``dyn_d2.model_zoo``).

    Other arguments and errors are those of ``Predictor.load``.
    """
    opts = list(opts)
    if weights.startswith(ZOO):
        if config_file or opts:
            raise CheckpointError(f"{weights} comes with its config, which is not changed: leave KEY VALUE pairs out.")
        return predictor_of(load(path_of(weights)))
    if not config_file:
        content = read_checkpoint(weights)
        for method in methods():
            own = method.predictor(weights, content, opts)
            if own is not None:
                return own
    return predictor_of(load_model(weights, config_file, opts))


def predictor_of(loaded: LoadedModel) -> Predictor | Segmenter | Classifier:
    """The predictor of a model that is there.

    Raises:
        CheckpointError: see ``Predictor.load``, or the model sees no images.
    """
    model = loaded.model
    problem = getattr(model, "sees_no_images", "")
    if problem:
        raise CheckpointError(f"{loaded.cfg.MODEL.WEIGHTS} cannot be used on images alone: {problem}")
    if isinstance(model, SemanticSegmentor):
        return Segmenter.of(loaded)
    if getattr(model, "classifies_images", False):
        return Classifier.of(loaded)
    return Predictor.of(loaded)


def _as_input(cfg: CfgNode, image: np.ndarray) -> dict[str, Any]:
    """What models take, of an image (H, W, 3) uint8, RGB."""
    require_image(image)
    height, width = image.shape[:2]
    ordered = convert_PIL_to_numpy(Image.fromarray(image), cfg.INPUT.FORMAT)
    resize = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
    resized = resize.get_transform(ordered).apply_image(np.ascontiguousarray(ordered))
    tensor = torch.as_tensor(np.ascontiguousarray(resized.transpose(2, 0, 1), dtype=np.float32))
    return {"image": tensor, "height": height, "width": width}


def _numbered(count: int) -> list[str]:
    return [f"class {number}" for number in range(count)]


def _names_from_catalog(cfg: CfgNode, rows: int) -> list[str]:
    """Class names of the config's training set, such as COCO's for a model of the zoo; empty if they do not fit."""
    known = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes", ()) if cfg.DATASETS.TRAIN else ()
    return list(known) if len(known) == rows else []
