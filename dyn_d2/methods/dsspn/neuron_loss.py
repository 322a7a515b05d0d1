"""The loss of one semantic neuron (Liang et al. 2018, sec. 3.3)."""

from torch import Tensor
from torch.nn import functional as F


def neuron_loss(
    logits: Tensor,
    labels: Tensor,
    counted: Tensor,
    below: Tensor,
    inside: Tensor,
    *,
    softmax: bool = False,
    outside_negative: bool = False,
) -> tuple[Tensor, Tensor]:
    """Sum over the positions that a neuron learns from, and their number (at least 1).

    A position counts if its label lies below the neuron. Its loss is the sum of the children's binary cross-entropies,
    or the cross-entropy between them.

    Args:
        logits: (N, C, h, w).
        labels: (N, h, w).
        counted: (N, h, w) bool, False for ignored positions.
        below: (K, C) bool; which children each label lies on or below. More than one where concepts have several
            parents.
        inside: (K,) bool; whether the label lies below the neuron.
        softmax: cross-entropy between the children. Where several are right, their probabilities are added.
        outside_negative: labelled positions outside count as negatives of all children; has no meaning for ``softmax``.
    """
    chosen = counted if outside_negative and not softmax else counted & inside[labels]
    rows, truth = logits.permute(0, 2, 3, 1)[chosen], below[labels[chosen]]
    positions = chosen.sum().clamp(min=1)
    if not softmax:
        return F.binary_cross_entropy_with_logits(rows, truth.to(rows.dtype), reduction="sum"), positions
    right = rows.masked_fill(~truth, float("-inf"))
    return (rows.logsumexp(-1) - right.logsumexp(-1)).sum(), positions
