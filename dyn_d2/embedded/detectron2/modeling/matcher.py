"""Assignment of anchors or proposals to ground truth by overlap."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor


class Matcher:
    """Gives every prediction its best ground-truth element, and a label that says how good that match is."""

    def __init__(
        self, thresholds: Sequence[float], labels: Sequence[int], allow_low_quality_matches: bool = False
    ) -> None:
        """
        Args:
            thresholds: increasing positive qualities that cut the range of quality into len(thresholds) + 1 levels.
            labels: the label of each level from low to high: 0 negative, 1 positive, -1 ignore. With thresholds
                [0.3, 0.5] and labels [0, -1, 1] an IoU of 0.29 is negative, 0.3 is ignored and 0.5 is positive.
            allow_low_quality_matches: also label 1 the best predictions of each ground-truth element, whatever
                their quality, so that no element stays without one (Faster R-CNN, section 3.1.2, case i).

        Raises:
            ValueError: thresholds or labels do not fit this description.
        """
        thresholds, labels = list(thresholds), list(labels)
        increasing = all(low <= high for low, high in itertools.pairwise(thresholds))
        if not thresholds or thresholds[0] <= 0 or not increasing:
            raise ValueError(f"matching thresholds must be positive and increasing, got {thresholds}")
        if len(labels) != len(thresholds) + 1 or not set(labels) <= {-1, 0, 1}:
            raise ValueError(f"{len(thresholds)} thresholds need one more label, of -1, 0 or 1; got {labels}")
        self.thresholds = [-float("inf"), *thresholds, float("inf")]
        self.labels = labels
        self.allow_low_quality_matches = allow_low_quality_matches

    def __call__(self, match_quality_matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Match N predictions with M ground-truth elements.

        Args:
            match_quality_matrix: (M, N), not negative, usually IoU.

        Returns:
            for each prediction the index of its best element (N,) int64, and its label (N,) int8. Without any
            element the indices are 0 and the labels those of the lowest level.

        Raises:
            ValueError: a quality is NaN, or a prediction has negative qualities only.
        """
        num_gt, num_pred = match_quality_matrix.shape
        if num_gt == 0 or num_pred == 0:
            matches = match_quality_matrix.new_zeros(num_pred, dtype=torch.int64)
            return matches, torch.full_like(matches, self.labels[0], dtype=torch.int8)
        best, matches = match_quality_matrix.max(dim=0)
        if not bool((best >= 0).all()):
            raise ValueError("match qualities must be numbers >= 0; are there NaN or inverted ground-truth boxes?")
        labels = torch.full_like(matches, self.labels[0], dtype=torch.int8)
        for threshold, label in zip(self.thresholds[1:-1], self.labels[1:], strict=True):
            labels.masked_fill_(best >= threshold, label)
        if self.allow_low_quality_matches:
            self.set_low_quality_matches_(labels, match_quality_matrix)
        return matches, labels

    def set_low_quality_matches_(self, match_labels: Tensor, match_quality_matrix: Tensor) -> None:
        """Set to 1, in place, the label of every prediction that is the best, ties included, of some element.

        The index of such a prediction stays that of *its* best element, which may be another one.
        """
        best_of_gt = match_quality_matrix.amax(dim=1, keepdim=True)
        match_labels.masked_fill_((match_quality_matrix == best_of_gt).any(dim=0), 1)
