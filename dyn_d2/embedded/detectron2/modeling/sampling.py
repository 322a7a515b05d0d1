"""Random choice of the predictions that take part in a loss."""

import torch
from torch import Tensor


def subsample_labels(
    labels: Tensor, num_samples: int, positive_fraction: float, bg_label: int
) -> tuple[Tensor, Tensor]:
    """Choose up to ``num_samples`` labelled elements, positives first, the rest negatives.

    The random numbers are drawn as Detectron2 draws them, so one seed gives one sample in both.

    Args:
        labels: (N,) with -1 for "ignore", ``bg_label`` for negatives, anything else for positives.
        num_samples: how many to choose in all, if there are that many.
        positive_fraction: the largest part of ``num_samples`` that may be positive.
        bg_label: the label of negatives.

    Returns:
        indices of the chosen positives and of the chosen negatives, in random order.
    """
    negative = labels == bg_label
    pools = ((labels != -1) & ~negative).nonzero()[:, 0], negative.nonzero()[:, 0]
    num_positive = min(len(pools[0]), int(num_samples * positive_fraction))
    counts = num_positive, min(len(pools[1]), num_samples - num_positive)
    positives, negatives = (
        pool[torch.randperm(len(pool), device=pool.device)[:count]] for pool, count in zip(pools, counts, strict=True)
    )
    return positives, negatives
