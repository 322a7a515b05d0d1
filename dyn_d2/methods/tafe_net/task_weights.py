"""Layers whose weights a task description decides (TAFE-Net, Wang et al., CVPR 2019).

A full kernel for each task would be too many numbers to generate. A weight is therefore factored into a kernel that
all tasks share and one number an output channel that belongs to the task (Eq. 5.3, 5.4): W = W_s diag(W_t). That is
the same as to multiply the output of the shared kernel (Eq. 5.5), which is what happens here: no task's kernel is ever
made.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPSILON = 1e-8  # keeps the cosine of a zero vector finite


class TaskLinear(nn.Module):
    """(x W_s + b) * W_t, Eq. 5.4 and 5.5."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.shared = nn.Linear(in_features, out_features)

    def forward(self, x: Tensor, task_weight: Tensor) -> Tensor:
        """
        Args:
            x: (N, 1, in) for features that do not depend on the task yet, the shared product is then made once for
                all tasks; or (N, T, in).
            task_weight: (T, out), W_t of each task.

        Returns:
            (N, T, out).
        """
        return self.shared(x) * task_weight


class TaskConv2d(nn.Module):
    """(W_s * x + b) W_t, Eq. 5.3: the shared convolution, then a factor for each output channel."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.shared = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2)

    def forward(self, x: Tensor, task_weight: Tensor) -> Tensor:
        """
        Args:
            x: (N, 1, in, H, W) for maps that do not depend on the task yet, or (N, T, in, H, W).
            task_weight: (T, out).

        Returns:
            (N, T, out, H', W').
        """
        maps = self.shared(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return maps * task_weight[:, :, None, None]


class MetaLearner(nn.Module):
    """G: the task embedding network T(t) = e_t and a linear generator g^i for each dynamic layer."""

    def __init__(
        self, task_dim: int, hidden_dim: int, num_layers: int, embedding_dim: int, widths: Sequence[int]
    ) -> None:
        """
        Args:
            task_dim: D_t, numbers of a description.
            hidden_dim, num_layers: of T. All its layers but the last have batch norm instead of a bias.
            embedding_dim: width of e_t, that of the TAFE, with which it is compared.
            widths: c_i, output channels of the dynamic layers.

        Raises:
            ValueError: ``num_layers`` < 1.
        """
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"MODEL.TAFE_NET.TASK_LAYERS is {num_layers}: the task embedding needs 1 layer or more.")
        layers: list[nn.Module] = []
        for _ in range(num_layers - 1):
            layers += [nn.Linear(task_dim, hidden_dim, bias=False), nn.BatchNorm1d(hidden_dim), nn.ReLU()]
            task_dim = hidden_dim
        self.embedding = nn.Sequential(*layers, nn.Linear(task_dim, embedding_dim), nn.ReLU())
        self.generators = nn.ModuleList(nn.Linear(embedding_dim, width) for width in widths)

    def forward(self, tasks: Tensor) -> tuple[Tensor, list[Tensor]]:
        """
        Args:
            tasks: (T, D_t) descriptions, each task once: batch norm counts tasks, not images.

        Returns:
            e_t (T, E), and W_t^i (T, c_i) of each dynamic layer.
        """
        embedded = self.embedding(tasks)
        return embedded, [generator(embedded) for generator in self.generators]


class PredictionNetwork(nn.Module):
    """F: dynamic convolutions, the mean over positions, dynamic linear layers, and a binary classifier that is the same
    for all tasks. The output of the last dynamic layer is the task-aware feature embedding, TAFE."""

    def __init__(
        self,
        feature_shape: Sequence[int],
        conv_channels: Sequence[int],
        fc_dims: Sequence[int],
        classifier_dims: Sequence[int],
        dropout: float = 0.5,
    ) -> None:
        """
        Args:
            feature_shape: (D,) of vectors or (C, H, W) of maps, which are flattened where there is no convolution.
            conv_channels: outputs of the 3x3 convolutions.
            fc_dims: outputs of the linear layers; the last is the width of the TAFE.
            classifier_dims: hidden layers of the classifier; none makes it linear, as in the text of Wang 2020.
            dropout: before the classifier.

        Raises:
            ValueError: convolutions on vectors, or no linear layer.
        """
        super().__init__()
        if conv_channels and len(feature_shape) != 3:
            raise ValueError(
                f"MODEL.TAFE_NET.CONV_CHANNELS is {list(conv_channels)}, but the features of the data set are vectors "
                f"of {feature_shape[0]} numbers: convolutions need maps of shape (C, H, W), set it to []."
            )
        if not fc_dims:
            raise ValueError("MODEL.TAFE_NET.FC_DIMS is empty: the last dynamic layer is linear, name its width.")
        channels = [feature_shape[0], *conv_channels]
        self.convs = nn.ModuleList(TaskConv2d(a, b) for a, b in zip(channels, channels[1:], strict=False))
        width = channels[-1] if conv_channels else int(torch.Size(feature_shape).numel())
        dims = [width, *fc_dims]
        self.linears = nn.ModuleList(TaskLinear(a, b) for a, b in zip(dims, dims[1:], strict=False))
        layers: list[nn.Module] = [nn.Dropout(dropout)]
        width = fc_dims[-1]
        for hidden in classifier_dims:
            layers += [nn.Linear(width, hidden), nn.ReLU()]
            width = hidden
        self.classifier = nn.Sequential(*layers, nn.Linear(width, 1))
        self.widths = [*conv_channels, *fc_dims]

    def embed(self, features: Tensor, task_weights: Sequence[Tensor]) -> Tensor:
        """
        Args:
            features: (N, *feature_shape).
            task_weights: W_t^i (T, c_i) of each dynamic layer, convolutions first.

        Returns:
            TAFEs (N, T, E).
        """
        x, weights = features[:, None], list(task_weights)
        for conv in self.convs:
            x = F.relu(conv(x, weights.pop(0)))
        x = x.mean((-2, -1)) if self.convs else x.flatten(2)
        for linear in self.linears:
            x = linear(x, weights.pop(0))
            if weights:
                x = F.relu(x)
        return x

    def forward(self, features: Tensor, task_weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """As ``embed``; returns the logits F(x; theta_t) (N, T) and the TAFEs (N, T, E)."""
        tafe = self.embed(features, task_weights)
        return self.classifier(tafe).squeeze(-1), tafe


def hinged_cosine(tafe: Tensor, embedded: Tensor) -> Tensor:
    """phi = max(cos(TAFE, e_t), 0) in float32: (N, T, E) and (T, E) -> (N, T)."""
    return F.cosine_similarity(tafe.float(), embedded.float()[None], dim=-1, eps=EPSILON).clamp(min=0)


def calibrated_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over the tasks that an image is tried with, Eq. 5.6, averaged over images.

    Args:
        logits: (N, T).
        labels: (N,), which of the T tasks each image belongs to.
    """
    return F.cross_entropy(logits.float(), labels)


def binary_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The same with each pair of image and task judged by itself, as the authors' code has it."""
    target = F.one_hot(labels, logits.shape[1]).float()
    return F.binary_cross_entropy_with_logits(logits.float(), target)


def embedding_loss(similarity: Tensor, labels: Tensor, balanced: bool = False) -> Tensor:
    """Squared distance of phi to 1 for the image's own task and to 0 for others, Eq. 5.7.

    Args:
        similarity: (N, T), phi.
        labels: (N,), which of the T tasks each image belongs to.
        balanced: the one positive of an image counts as much as all its negatives (the authors' code); otherwise every
            pair counts the same (the equation).
    """
    target = F.one_hot(labels, similarity.shape[1]).to(similarity)
    errors = (similarity - target) ** 2
    if not balanced:
        return errors.mean()
    weights = torch.where(target > 0, float(max(similarity.shape[1] - 1, 1)), 1.0)
    return ((errors * weights).sum(1) / weights.sum(1)).mean()
