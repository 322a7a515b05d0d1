"""What a detector that re-weights its features by class has beside its own parts: the module that makes class vectors,
or class vectors alone."""

import hashlib
import logging
import os
from collections.abc import Sequence
from typing import Any, TypeGuard

from torch import Tensor, nn

from detectron2.config import CfgNode

from .net import SMALLEST, FeatureReweightingNet, ReweightingNet
from .vectors import FILE, ClassVectors

logger = logging.getLogger(__name__)


class ReweightedByClass(nn.Module):
    """Goes before a meta-architecture in the list of bases.

    In training the first input of a batch carries the episode's support set under "support": "image", (N, 4, S, S), the
    colours and the mask of one object of each class, and "boxes", (N, 4). In evaluation the vectors of ``use_vectors``
    are used, and nobody asks for the re-weighting module.

    Attributes:
        episodic: the training loader adds support sets (../episodes.py).
        reweighting: the module; None where the detector was built for given vectors.
        vectors: of evaluation; None before ``use_vectors``.
        head_classes: None: the classes are those of the vectors, see ``modeling/answers.py``.
    """

    episodic = True
    head_classes: int | None = None
    reweighting: ReweightingNet | FeatureReweightingNet | None
    pixel_mean: Tensor
    pixel_std: Tensor
    vectors: ClassVectors | None = None

    def export_problem(self) -> str:
        """See ``modeling/answers.py``."""
        return "its weights come from class vectors, which a file does not have."

    def init_reweighting(self, reweighting: ReweightingNet | FeatureReweightingNet | None, channels: int) -> None:
        """Called by the constructor; ``channels`` is the width m of class vectors."""
        self.reweighting, self.reweighted_channels = reweighting, channels

    def use_vectors(self, vectors: ClassVectors | None) -> None:
        """Detect these classes from now on; class number i is row i.

        Raises:
            ValueError: the vectors are of another width than the features that they re-weight.
        """
        if vectors is not None and vectors.width != self.reweighted_channels:
            raise ValueError(
                f"the class vectors of {', '.join(vectors.classes[:10])} have width {vectors.width}, but this detector "
                f"re-weights {self.reweighted_channels} channels: they were made for another one; make them anew with "
                "dyn-d2 vectors export."
            )
        self.vectors = vectors

    def read_vectors(self, paths: Sequence[str]) -> ClassVectors:
        """The vectors of files, with a warning where they were made for a detector with other weights.

        Raises:
            FileNotFoundError, ValueError: see ``ClassVectors.load_all``.
        """
        vectors = ClassVectors.load_all(paths)
        if vectors.detector and vectors.detector != self.fingerprint():
            logger.warning("%s: made for a detector with other weights than these.", ", ".join(paths))
        return vectors

    def open_for_images(self, cfg: CfgNode) -> list[str]:
        """Detect the classes of MODEL.REWEIGHTING.VECTORS from now on, or those of the vectors that the evaluation of
        these weights left beside them; their names. See ``modeling/answers.py``.

        Raises:
            FileNotFoundError, ValueError: from ``read_vectors`` and ``use_vectors``; no file is named, and beside the
                weights lies none, or that of others.
        """
        named = list(cfg.MODEL.REWEIGHTING.VECTORS)
        beside = os.path.join(os.path.dirname(cfg.MODEL.WEIGHTS), FILE)
        if not named and os.path.isfile(beside) and ClassVectors.load(beside).detector == self.fingerprint():
            logger.info("class vectors are those of %s", beside)
            named = [beside]
        if not named:
            raise ValueError(
                f"a {cfg.MODEL.META_ARCHITECTURE} needs class vectors to detect anything, and {beside}, which an "
                "evaluation of these weights would leave, does not lie there: make them with dyn-d2 vectors export and "
                "add MODEL.REWEIGHTING.VECTORS \"['FILE']\"."
            )
        vectors = self.read_vectors(named)
        self.use_vectors(vectors)
        return vectors.classes

    def given_vectors(self) -> Tensor:
        """(N, m) vectors of ``use_vectors`` on the model's device.

        Raises:
            ValueError: there are none.
        """
        if self.vectors is None:
            raise ValueError(
                "this detector has no class vectors yet: name a file of dyn-d2 vectors export in "
                "MODEL.REWEIGHTING.VECTORS, or call use_vectors()."
            )
        return self.vectors.vectors.to(self.pixel_mean.device)

    def episode_vectors(self, batched_inputs: list[dict[str, Any]]) -> Tensor:
        """(N, m) vectors of the support set that the batch carries.

        Raises:
            ValueError: it carries none, this detector has no re-weighting module, or an object's class has no support.
        """
        support = batched_inputs[0].get("support")
        if support is None:
            raise ValueError(
                'the batch has no support set (key "support" of its first input): train with the loader of '
                "dyn_d2.data.resumable, which draws one for each step."
            )
        count = len(support["image"])
        for inputs in batched_inputs:
            classes = inputs["instances"].gt_classes
            if len(classes) and int(classes.max()) >= count:
                raise ValueError(
                    f"{inputs.get('file_name', 'an image')} shows class number {int(classes.max())}, but the support "
                    f"set has {count} classes: every class needs a support image."
                )
        return self.embed(support)

    def embed(self, support: dict[str, Tensor]) -> Tensor:
        """(N, m) vectors of support images.

        Raises:
            ValueError: this detector was built without a re-weighting module.
        """
        if self.reweighting is None:
            raise ValueError(
                "this detector was built for given class vectors and cannot make any: leave MODEL.REWEIGHTING.VECTORS "
                "empty."
            )
        device = self.pixel_mean.device
        boxes = support["boxes"].to(device)
        if isinstance(self.reweighting, FeatureReweightingNet):
            features, stride = self.support_features(list(support["image"][:, :3].unbind(0)))
            return self.reweighting(features, boxes, stride)
        given = support["image"].to(device).float()
        images = (given[:, :3] - self.pixel_mean) / self.pixel_std
        return self.reweighting(images, given[:, 3:], boxes)

    def support_features(self, images: list[Tensor]) -> tuple[Tensor, int]:
        """Features of (3, S, S) support images, and their stride, for MODEL.REWEIGHTING.NET "features"."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Hash of all weights but those of the re-weighting module: class vectors belong to one detector."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            if not name.startswith("reweighting."):
                digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def build_reweighting(
    cfg: CfgNode, channels: int, feature_channels: int | None = None
) -> ReweightingNet | FeatureReweightingNet | None:
    """The module that MODEL.REWEIGHTING describes, for vectors of width ``channels``; None where vectors are given.

    Args:
        feature_channels: of the detector's ``support_features``; None where it has none.

    Raises:
        ValueError: support images are too small for it, or it needs features that the detector does not give.
    """
    keys = cfg.MODEL.REWEIGHTING
    if keys.VECTORS:
        return None
    if keys.NET == "features":
        if feature_channels is None:
            raise ValueError(
                f'MODEL.REWEIGHTING.NET is "features", which {cfg.MODEL.META_ARCHITECTURE} does not have: use "pixels".'
            )
        return FeatureReweightingNet(feature_channels, channels, keys.WIDTH, keys.NORM, keys.SUPPORT_FORM)
    if keys.SUPPORT_SIZE < SMALLEST:
        raise ValueError(f"MODEL.REWEIGHTING.SUPPORT_SIZE is {keys.SUPPORT_SIZE}: use {SMALLEST} or more.")
    return ReweightingNet(channels, keys.WIDTH, keys.NORM, keys.SUPPORT_FORM)


def is_reweighted(model: nn.Module) -> TypeGuard[ReweightedByClass]:
    """Whether the detector takes its classes from class vectors."""
    return isinstance(model, ReweightedByClass)


def reweighted_share(channels: int, share: float) -> int:
    """How many of ``channels`` are re-weighted.

    Raises:
        ValueError: the share is not within 0 and 1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"MODEL.REWEIGHTING.SHARE is {share}: it has to be above 0, and 1 at most.")
    return max(1, round(channels * share))
