"""A trained TAFE-Net for images: the frozen network that its features are from looks at them first."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dyn_d2.checkpoint import CheckpointError, DynCheckpointer
from dyn_d2.checkpoint.checkpointer import METADATA
from dyn_d2.checkpoint.model import own_config
from dyn_d2.config.ranges import check_ranges
from dyn_d2.config.read import merge_into_carried
from dyn_d2.config.rules import CHANNELS
from dyn_d2.data.object_crops import CropOptions, cut
from dyn_d2.engine.given_images import require_images
from dyn_d2.engine.predictor import Answer, Labels
from dyn_d2.modeling.backbone.timm_models import TimmModel, build_pooled_model

from detectron2.config import CfgNode

from .crops import features_of
from .data import ClassTable, FeatureSource, Scale, described_set, is_described, with_added_classes
from .data.feature_source import fingerprint
from .evaluator import calibrated
from .meta_arch import TAFENet

ENTRY = "tafe_net"  # in the description that checkpoints carry


def carried(cfg: CfgNode, model: TAFENet) -> dict[str, Any]:
    """What a checkpoint needs for images, {ENTRY: ...}; {ENTRY: {}} where nobody knows the network of the features."""
    names = [name for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST) if is_described(name)]
    data = described_set(names[0]) if names else None
    if data is None or data.network is None:
        return {ENTRY: {}}
    scale = {} if data.scale is None else {"mean": _tensor(data.scale.mean), "std": _tensor(data.scale.std)}
    return {
        ENTRY: {
            "classes": list(model.classes),
            "descriptions": model.descriptions.cpu().clone(),
            "seen": model.seen.tolist(),
            "width": data.feature_shape[0],
            "network": data.network.as_dict(),
            "scale": scale,
        }
    }


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.float32).copy())


@dataclass(frozen=True)
class _Carried:
    """``carried``, read back and checked."""

    table: ClassTable
    seen: list[int]
    width: int
    network: FeatureSource
    scale: Scale | None

    @classmethod
    def read(cls, entry: Any, weights: str) -> "_Carried":
        try:
            classes, seen, width = list(entry["classes"]), list(entry["seen"]), entry["width"]
            descriptions = _finite(entry["descriptions"], (len(classes), -1))
            if not all(isinstance(name, str) for name in classes) or not classes:
                raise ValueError("its classes are no names")
            if (
                type(width) is not int
                or not 1 <= width <= CHANNELS
                or any(type(k) is not int or not 0 <= k < len(classes) for k in seen)
            ):
                raise ValueError("its numbers of classes or features are none")
            scale = entry["scale"]
            parts = [_finite(scale[key], (width,)) for key in ("mean", "std")] if scale else []
            network = FeatureSource.read(entry["network"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{weights}: what it says of the classes and images of its TAFE-Net cannot be used ({error}): the file "
                "was damaged or edited."
            ) from error
        return cls(ClassTable(classes, descriptions), seen, width, network, Scale(*parts) if parts else None)


def _finite(values: Any, shape: tuple[int, ...]) -> np.ndarray:
    if not isinstance(values, Tensor) or values.ndim != len(shape) or not torch.isfinite(values).all():
        raise ValueError("a table of it has no finite numbers")
    if any(wanted not in (-1, found) for wanted, found in zip(shape, values.shape, strict=True)):
        raise ValueError(f"a table of it is {tuple(values.shape)}")
    return values.float().numpy()


class DescribedPredictor:
    """Says which description fits an image best.

    Attributes:
        classes: names in the order of the scores.
    """

    def __init__(
        self, model: TAFENet, eyes: TimmModel, size: int, scale: Scale | None = None, seen_penalty: float = 0.0
    ) -> None:
        """
        Args:
            model: in evaluation mode.
            eyes: what makes features of images, from ``build_pooled_model``.
            size: pixels of both sides of what it sees.
            scale: what is done to its features.
            seen_penalty: see ``calibrated``.
        """
        self.model, self.classes = model, list(model.classes)
        self._eyes, self._options, self._scale = eyes, CropOptions(size, 0.0), scale
        self._penalty = seen_penalty

    @classmethod
    def of_checkpoint(
        cls, weights: str, content: Mapping[str, Any], opts: Iterable[str] = ()
    ) -> "DescribedPredictor | None":
        """The predictor of a checkpoint whose TAFE-Net knows where its features are from; None for any other.

        Args:
            content: of the file ``weights``, from ``read_checkpoint``.
            opts: ``KEY VALUE ...``; ZERO_SHOT.CLASSES adds classes.

        Raises:
            CheckpointError: the file is damaged, nobody knows what made its features, or that sees otherwise now.
            FileNotFoundError, ValueError, UserError: as of ``build_pooled_model`` and of ZERO_SHOT.CLASSES.
        """
        described = content.get(METADATA) or {}
        if ENTRY not in described:
            return None
        if not described[ENTRY]:
            raise CheckpointError(f"{weights} cannot be used on images alone: {TAFENet.sees_no_images}")
        found = _Carried.read(described[ENTRY], weights)
        cfg = _config(weights, described, opts)
        table = with_added_classes(found.table, cfg.ZERO_SHOT.CLASSES, weights)
        model = TAFENet(**TAFENet.arguments(cfg, table, (found.width,), found.seen))
        DynCheckpointer(model).load(weights, checkpointables=[], strict=True)
        eyes = build_pooled_model(found.network.model, found.network.weights)
        if fingerprint(eyes.module) != found.network.fingerprint:
            raise CheckpointError(
                f"{weights} was trained on features of {found.network}, whose weights here are others now: make the "
                "features again (dyn-d2 crop-features) and train on these."
            )
        return cls(model.eval(), eyes, found.network.size, found.scale, cfg.ZERO_SHOT.SEEN_PENALTY)

    def __call__(self, image: np.ndarray) -> Labels:
        """Scores of the classes for one image, (H, W, 3) uint8, RGB, all of which is taken for the object."""
        return self.answer([image])[0].found

    @torch.no_grad()
    def answer(self, images: Sequence[np.ndarray]) -> list[Answer[Labels]]:
        """The same of a batch: probabilities of a soft-max over all classes, or of each class alone (LOSS bce)."""
        images = require_images(images)
        if not images:
            return []
        crops = [cut(image, (0, 0, image.shape[1], image.shape[0]), self._options) for image in images]
        features = features_of(self._eyes, crops).astype(np.float32)
        if self._scale is not None:
            features = self._scale.of(features)
        logits = self.model.scores(torch.from_numpy(features), self.model.descriptions).float().numpy()
        shifted = torch.from_numpy(calibrated(logits, self.model.seen.numpy(), self._penalty))
        scores = shifted.sigmoid() if self.model.loss == "bce" else shifted.softmax(1)
        return [Answer(Labels(row, self.classes)) for row in scores.numpy()]


def _config(weights: str, described: dict[str, Any], opts: Iterable[str]) -> CfgNode:
    cfg = own_config(weights, described)
    cfg.ZERO_SHOT.CLASSES = ""  # those of the training are in the table
    merge_into_carried(cfg, opts)
    check_ranges(cfg)
    return cfg
