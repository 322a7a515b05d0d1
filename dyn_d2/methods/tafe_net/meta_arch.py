"""TAFE-Net: classes that are given by a description, through features that depend on it (Wang et al., CVPR
2019)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dyn_d2.config.applied import NoticesKeys

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY

from .data import ClassTable, class_table, described_set
from .task_weights import MetaLearner, PredictionNetwork, binary_loss, calibrated_loss, embedding_loss, hinged_cosine

LOSSES = {"softmax": calibrated_loss, "bce": binary_loss}
TRAIN_TASKS = ("batch", "seen")
INITS = ("published", "fan_in")
ROWS = 16384  # pairs of image and task in one pass in evaluation; bounds the memory


@META_ARCH_REGISTRY.register()
class TAFENet(NoticesKeys, nn.Module):
    """The meta learner makes weights from descriptions, the prediction network says whether image and class fit.

    No parameter belongs to a class, so that a checkpoint serves any list of classes with descriptions of its width.
    """

    descriptions: Tensor
    seen: Tensor
    sees_no_images = (
        "TAFE-Net classifies features, and nobody said which network has made these. Files of dyn-d2 crop-features say "
        "it; dyn-d2 tafe-pictures shows what the model finds among features of a data set."
    )

    @configurable
    def __init__(
        self,
        *,
        meta_learner: MetaLearner,
        network: PredictionNetwork,
        classes: Sequence[str],
        descriptions: Tensor,
        seen: Sequence[int],
        loss: str = "softmax",
        embedding_weight: float = 0.1,
        embedding_balance: bool = True,
        train_tasks: str = "batch",
        init: str = "published",
    ) -> None:
        """
        Args:
            classes: C names.
            descriptions: (C, D_t).
            seen: numbers of the classes that have training images.
            loss: "softmax" (Eq. 5.6) or "bce".
            embedding_weight: beta of Eq. 5.8; 0 leaves the embedding loss out.
            embedding_balance: see ``embedding_loss``.
            train_tasks: tasks of a training step: the classes of the "batch", or all "seen" ones.
            init: "published" (normal of 0.001 in the prediction network and 0.01 in the meta learner) or "fan_in" (for
                narrow networks, which would start too near 0 with that: He's, and W_t starts at 1).

        Raises:
            ValueError: an unknown name, or a negative weight.
        """
        super().__init__()
        for key, value, known in (
            ("LOSS", loss, tuple(LOSSES)),
            ("TRAIN_TASKS", train_tasks, TRAIN_TASKS),
            ("INIT", init, INITS),
        ):
            if value not in known:
                raise ValueError(f"MODEL.TAFE_NET.{key} is {value!r}: use {' or '.join(known)}.")
        if embedding_weight < 0:
            raise ValueError(f"MODEL.TAFE_NET.EMBEDDING_WEIGHT is {embedding_weight}: use 0 or more.")
        self.meta_learner, self.network = meta_learner, network
        self.classes, self.loss, self.train_tasks = list(classes), loss, train_tasks
        self.embedding_weight, self.embedding_balance = embedding_weight, embedding_balance
        self.register_buffer("descriptions", descriptions.float(), persistent=False)
        self.register_buffer("seen", torch.as_tensor(list(seen), dtype=torch.long), persistent=False)
        (_init_published if init == "published" else _init_fan_in)(meta_learner, network)

    @classmethod
    def from_config(cls, cfg) -> dict[str, Any]:
        described = described_set((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)[0])
        return cls.arguments(cfg, class_table(cfg), described.feature_shape, described.seen.tolist())

    @staticmethod
    def arguments(cfg: CfgNode, table: ClassTable, feature_shape: Sequence[int], seen: Sequence[int]) -> dict[str, Any]:
        """Arguments of a model of these classes.

        Args:
            seen: as in ``__init__``.
        """
        keys = cfg.MODEL.TAFE_NET
        network = PredictionNetwork(feature_shape, keys.CONV_CHANNELS, keys.FC_DIMS, keys.CLASSIFIER_DIMS, keys.DROPOUT)
        width = table.descriptions.shape[1]
        return {
            "meta_learner": MetaLearner(width, keys.TASK_HIDDEN, keys.TASK_LAYERS, keys.FC_DIMS[-1], network.widths),
            "network": network,
            "classes": table.classes,
            "descriptions": torch.from_numpy(table.descriptions),
            "seen": seen,
            "loss": keys.LOSS,
            "embedding_weight": keys.EMBEDDING_WEIGHT,
            "embedding_balance": keys.EMBEDDING_BALANCE,
            "train_tasks": keys.TRAIN_TASKS,
            "init": keys.INIT,
        }

    @property
    def device(self) -> torch.device:
        return self.descriptions.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """
        Args:
            batched_inputs: one dict an image: "feature", of the data set's shape; in training "label", its class
                number, and "task", (D_t,), where the description of its class is another one at each step; in
                evaluation "dataset", whose candidates are tried (all classes where it has none).

        Returns:
            In training {"loss_cls", "loss_emb"}. Otherwise one dict an image, whose "scores" are the (C,) logits, and
            -inf for classes that are not tried.

        Raises:
            ValueError: features of another shape; in training a label out of range, or a single task.
        """
        features = self._features(batched_inputs)
        if self.training:
            return self.losses(features, batched_inputs)
        candidates = self._candidates(batched_inputs)
        scores = features.new_full((len(features), len(self.classes)), -torch.inf)
        scores[:, candidates] = self.scores(features, self.descriptions[candidates])
        return [{"scores": row} for row in scores.float()]

    def export_problem(self) -> str:
        """See ``modeling/answers.py``."""
        return "TAFE-Net classifies features by weights that descriptions make, and sees no images."

    def losses(self, features: Tensor, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Eq. 5.6 and beta times Eq. 5.7, over the tasks of this step."""
        labels = self._labels(batched_inputs)
        if self.train_tasks == "seen":
            tasks, own = self.seen, (labels[:, None] == self.seen).long().argmax(1)
        else:
            tasks, own = torch.unique(labels, return_inverse=True)
        if len(tasks) < 2:
            raise ValueError(
                f"all {len(labels)} images of a training batch are of class {self.classes[int(tasks[0])]}: TAFE-Net "
                "learns by comparing classes. Raise SOLVER.IMS_PER_BATCH, or set MODEL.TAFE_NET.TRAIN_TASKS seen."
            )
        embedded, weights = self.meta_learner(self._task_vectors(tasks, own, batched_inputs))
        logits, tafe = self.network(features, weights)
        losses = {"loss_cls": LOSSES[self.loss](logits, own)}
        if self.embedding_weight:
            distance = embedding_loss(hinged_cosine(tafe, embedded), own, self.embedding_balance)
            losses["loss_emb"] = self.embedding_weight * distance
        return losses

    def scores(self, features: Tensor, descriptions: Tensor) -> Tensor:
        """Logits of images (N, ...) for any descriptions (T, D_t): (N, T), in passes of a bounded size."""
        _, weights = self.meta_learner(descriptions)
        step = max(1, ROWS // max(1, len(features)))
        parts = [
            self.network(features, [weight[start : start + step] for weight in weights])[0]
            for start in range(0, len(descriptions), step)
        ]
        return torch.cat(parts, 1) if parts else features.new_zeros(len(features), 0)

    def _task_vectors(self, tasks: Tensor, own: Tensor, batched_inputs: list[dict[str, Any]]) -> Tensor:
        """(T, D_t); an input's own description of its class replaces that of the table, the first one of each class."""
        vectors = self.descriptions[tasks].clone()
        for row, inputs in reversed(list(zip(own.tolist(), batched_inputs, strict=True))):
            if "task" in inputs:
                vectors[row] = inputs["task"].to(vectors)
        return vectors

    def _features(self, batched_inputs: list[dict[str, Any]]) -> Tensor:
        shapes = {tuple(inputs["feature"].shape) for inputs in batched_inputs}
        if len(shapes) > 1:
            raise ValueError(f"the features of one batch have different shapes: {', '.join(map(str, sorted(shapes)))}.")
        return torch.stack([inputs["feature"] for inputs in batched_inputs]).to(self.device, torch.float32)

    def _candidates(self, batched_inputs: list[dict[str, Any]]) -> Tensor:
        name = batched_inputs[0].get("dataset")
        if name is None:
            return torch.arange(len(self.classes), device=self.device)
        described = described_set(name)
        added = range(len(described.classes), len(self.classes))  # by ZERO_SHOT.CLASSES
        return torch.tensor([*described.candidates.tolist(), *added], device=self.device)

    def _labels(self, batched_inputs: list[dict[str, Any]]) -> Tensor:
        seen = set(self.seen.tolist())
        for inputs in batched_inputs:
            label = inputs.get("label")
            if label is None or int(label) not in seen:
                raise ValueError(
                    f"the label of image {inputs.get('image_id')} is {label}, which is none of the {len(seen)} classes "
                    "seen in training: correct the label."
                )
        return torch.tensor([int(inputs["label"]) for inputs in batched_inputs], device=self.device)


def _init_published(meta_learner: MetaLearner, network: PredictionNetwork) -> None:
    for part, std in ((meta_learner, 0.01), (network, 0.001)):
        for module in part.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def _init_fan_in(meta_learner: MetaLearner, network: PredictionNetwork) -> None:
    for module in (*meta_learner.modules(), *network.modules()):
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for generator in meta_learner.generators:
        assert isinstance(generator, nn.Linear)
        nn.init.normal_(generator.weight, std=0.1 * generator.in_features**-0.5)
        nn.init.ones_(generator.bias)
