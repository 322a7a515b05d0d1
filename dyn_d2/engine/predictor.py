"""A trained model for single images, from nothing but its checkpoint: a detector or a semantic segmentor."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

from dyn_d2.checkpoint import CheckpointError, DynCheckpointer, read_checkpoint
from dyn_d2.config import add_dyn_d2_config
from dyn_d2.config.read import read_cfg
from dyn_d2.evaluation.label_figures import LabelMap, label_maps
from dyn_d2.methods.fsrw.class_vectors import read_vectors
from dyn_d2.methods.fsrw.reweighting import is_reweighted
from dyn_d2.methods.layer_cascade.evaluator import stages_of_pixels
from dyn_d2.modeling.answers import any_score, head_classes

from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.modeling import SemanticSegmentor, build_model
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
        """Build the model that ``weights`` holds, on the CPU where its device is not there.

        Args:
            weights: a checkpoint. One that dyn_d2 wrote brings its config and class names.
            config_file: for checkpoints of others; wins over the checkpoint's own config.
            opts: ``KEY VALUE ...`` that change the config.

        Raises:
            FileNotFoundError: no such file.
            CheckpointError: unreadable; without a config and none is given; or it does not hold the whole model.
            KeyError: ``opts`` or the config have keys that do not exist.
        """
        return cls._of(weights, *load_model(weights, config_file, opts))

    @classmethod
    def _of(cls, weights: str, cfg: CfgNode, model: nn.Module, described: dict[str, Any]) -> "Predictor":
        names = list(described.get("classes", ()))
        if is_reweighted(model):
            if not cfg.MODEL.REWEIGHTING.VECTORS:
                raise CheckpointError(
                    f"{weights} needs class vectors to detect anything: make them with tools/export_vectors.py and add "
                    "MODEL.REWEIGHTING.VECTORS \"['FILE']\"."
                )
            model.use_vectors(read_vectors(cfg, model))
            return cls(cfg, model, model.vectors.classes)
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
        stuff_classes: what its checkpoint names them, where the data set is not registered.
    """

    cfg: CfgNode
    model: SemanticSegmentor
    dataset: str | None
    stuff_classes: list[str]

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> list[LabelMap]:
        """The maps of :func:`label_maps`, of the size of ``image``, (H, W, 3) uint8, RGB."""
        inputs = _as_input(self.cfg, image) | {"dataset": self.dataset}
        output = self.model([inputs])[0]
        if "settled_by" in output:
            size = inputs["image"].shape[-2:]
            output["settled_by"] = stages_of_pixels(output["settled_by"], size, image.shape[:2])
        count = len(output["sem_seg"])
        classes, colours = self._names_and_colours(count)
        if "levels" not in output:
            return label_maps(output, classes, colours)
        head = self.model.sem_seg_head
        with head.labels_of(self.dataset):
            return label_maps(output, classes, colours, head.tree, head.plan.concepts)

    def _names_and_colours(self, count: int) -> tuple[list[str], list[Any]]:
        metadata = MetadataCatalog.get(self.dataset) if self.dataset else {}
        known = list(metadata.get("stuff_classes", None) or self.stuff_classes)
        colours = [tuple(np.divide(colour, 255)) for colour in metadata.get("stuff_colors", None) or ()]
        fits = len(known) == count
        return known if fits else [f"class {i}" for i in range(count)], colours if len(colours) == count else []


def load_predictor(weights: str, config_file: str = "", opts: Iterable[str] = ()) -> Predictor | Segmenter:
    """What the checkpoint holds. Arguments and errors are those of ``Predictor.load``."""
    cfg, model, described = load_model(weights, config_file, opts)
    if not isinstance(model, SemanticSegmentor):
        return Predictor._of(weights, cfg, model, described)
    sets = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
    return Segmenter(cfg, model, sets[0] if sets else None, list(described.get("stuff_classes", ())))


def load_model(
    weights: str, config_file: str = "", opts: Iterable[str] = ()
) -> tuple[CfgNode, nn.Module, dict[str, Any]]:
    """The model that a checkpoint holds, in evaluation mode, with its frozen config and the file's "dyn_d2" entry.

    Arguments and errors are those of ``Predictor.load``.
    """
    described = read_checkpoint(weights).get("dyn_d2") or {}
    if config_file:
        cfg = read_cfg(config_file, opts)
    elif "config" in described:
        cfg = _own_config(weights, described)
        cfg.merge_from_list(list(opts))
    else:
        raise CheckpointError(
            f"{weights} does not carry its config: give the yaml it was trained with (--config-file)."
        )
    cfg.MODEL.WEIGHTS = weights
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    names = list(described.get("classes", ()))
    if config_file and names:  # a plain yaml counts COCO's classes
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = len(names)
    cfg.freeze()
    model = build_model(cfg).eval()
    DynCheckpointer(model).load(weights, checkpointables=[], strict=True)
    return cfg, model, described


def _as_input(cfg: CfgNode, image: np.ndarray) -> dict[str, Any]:
    """What models take, of an image (H, W, 3) uint8, RGB."""
    height, width = image.shape[:2]
    ordered = image if cfg.INPUT.FORMAT == "RGB" else image[:, :, ::-1]
    resize = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
    resized = resize.get_transform(ordered).apply_image(np.ascontiguousarray(ordered))
    tensor = torch.as_tensor(np.ascontiguousarray(resized.transpose(2, 0, 1), dtype=np.float32))
    return {"image": tensor, "height": height, "width": width}


def _names_from_catalog(cfg: CfgNode, rows: int) -> list[str]:
    """Class names of the config's training set, such as COCO's for a model of the zoo; empty if they do not fit."""
    known = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes", ()) if cfg.DATASETS.TRAIN else ()
    return list(known) if len(known) == rows else []


def _own_config(weights: str, described: dict[str, Any]) -> CfgNode:
    cfg = get_cfg()
    add_dyn_d2_config(cfg)
    try:
        cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(described["config"])))
    except (KeyError, ValueError, AttributeError, AssertionError, TypeError, yaml.YAMLError) as error:
        raise CheckpointError(
            f"the config that {weights} carries cannot be used here ({error}); it was written by dyn_d2 "
            f"{described.get('versions', {}).get('dyn_d2', '(unknown)')}. Give a yaml for it (--config-file)."
        ) from error
    return cfg
