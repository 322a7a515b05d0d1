"""ESZSL, a bilinear model in closed form: what any other way to use descriptions is measured against.

Romera-Paredes, B. and Torr, P. H. S.: An Embarrassingly Simple Approach to Zero-Shot Learning, ICML 2015.
"""

import numpy as np

from .data import DescribedSet


class ESZSL:
    """argmin_V |X' V S - Y|^2 + gamma |V S|^2 + lambda |X' V|^2 + gamma lambda |V|^2, with columns of X for images and
    of S for seen classes, and Y of 1 for an image's own class and -1 for others (section 3.1).

    The solution is V = (X X' + gamma I)^-1 X Y S' (S S' + lambda I)^-1 (Eq. 5). X X' is decomposed once, so that other
    regularisers cost little.
    """

    def __init__(self, data: DescribedSet, balance: bool = False) -> None:
        """
        Args:
            data: whose training part is learnt; maps are flattened.
            balance: images are weighted so that each class counts the same (not in the paper).
        """
        part, self._data = data.parts["train"], data
        features = part.features.reshape(len(part.features), -1).astype(np.float64)
        target = np.where(part.labels[:, None] == data.seen[None], 1.0, -1.0)
        if balance:
            weights = 1 / np.bincount(part.labels)[part.labels]
            root = np.sqrt(weights / weights.mean())[:, None]
            features, target = root * features, root * target
        seen = data.descriptions[data.seen].astype(np.float64)
        sizes, self._axes = np.linalg.eigh(features.T @ features)
        self._sizes = np.maximum(sizes, 0.0)
        self._right = self._axes.T @ (features.T @ target @ seen)
        self._descriptions = seen.T @ seen

    def scores(self, features: np.ndarray, gamma: float, lam: float) -> np.ndarray:
        """Features (N, ...) -> x' V s of each class (N, C); -inf where a class is no candidate.

        Args:
            gamma, lam: weights of the regularisers, above 0.
        """
        left = self._axes @ (self._right / (self._sizes + gamma)[:, None])
        identity = np.eye(len(self._descriptions))
        mapping = np.linalg.solve(self._descriptions + lam * identity, left.T).T
        candidates = self._data.candidates
        found = np.full((len(features), len(self._data.classes)), -np.inf)
        vectors = self._data.descriptions[candidates]
        found[:, candidates] = features.reshape(len(features), -1).astype(np.float64) @ mapping @ vectors.T
        return found
