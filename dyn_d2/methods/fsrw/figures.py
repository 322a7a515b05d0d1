"""Class vectors of feature re-weighting as pictures (Wang 2020, Fig. 6.4)."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from dyn_d2.evaluation.figures import BASE_COLOUR, NOVEL_COLOUR

from .reweighting import ClassVectors

FEWEST = 6  # points; t-SNE of fewer says nothing


def by_variance(vectors: np.ndarray) -> np.ndarray:
    """Columns of (N, m) vectors from the one that differs most between classes to the one that differs least."""
    return np.argsort(-vectors.var(axis=0), kind="stable")


def draw_heat_map(vectors: ClassVectors) -> Figure:
    """A row a class, a column a feature, ordered by variance between the classes (Fig. 6.4a)."""
    values = vectors.vectors.numpy()
    ordered = values[:, by_variance(values)]
    figure = Figure(figsize=(9, 0.6 + 0.24 * len(values)), layout="constrained")
    axis = figure.subplots()
    low, high = np.percentile(ordered, [1, 99])  # a few large weights would hide all others
    image = axis.imshow(ordered, aspect="auto", interpolation="nearest", cmap="viridis", vmin=low, vmax=high)
    axis.set_yticks(range(len(values)), vectors.classes, fontsize=8)
    axis.set_xlabel("features, by variance between classes", fontsize=9)
    figure.colorbar(image, ax=axis, label="weight", pad=0.01)
    return figure


def principal_plane(points: np.ndarray) -> np.ndarray:
    """(M, 2) coordinates of (M, m) points on the plane in which they vary most."""
    centred = points - points.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    plane = (left * sizes)[:, :2]
    return np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))


def plane(points: np.ndarray, seed: int = 0) -> tuple[np.ndarray, str]:
    """(M, 2) coordinates of (M, m) points, neighbours near each other, and the name of the method: t-SNE, or principal
    components where there are fewer than FEWEST points."""
    if len(points) < FEWEST:
        return principal_plane(points), "principal components"
    from sklearn.manifold import TSNE  # half a second to import

    perplexity = min(30.0, (len(points) - 1) / 3)
    embedding = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(points.astype(np.float32))
    return embedding, "t-SNE"


def draw_plane(vectors: ClassVectors, novel: Sequence[str] = (), seed: int = 0) -> Figure:
    """The vector of each support image as a dot, in the colour of its class, and the mean of each class with its name
    (Fig. 6.4b); names of novel classes are red.

    Args:
        seed: of t-SNE.
    """
    samples = vectors.samples or [vector[None] for vector in vectors.vectors]
    points, method = plane(np.concatenate([*(found.numpy() for found in samples), vectors.vectors.numpy()]), seed)
    means = points[len(points) - len(vectors.classes) :]
    figure = Figure(figsize=(7, 6), layout="constrained")
    axis = figure.subplots()
    start = 0
    for number, (name, found) in enumerate(zip(vectors.classes, samples, strict=True)):
        own = points[start : start + len(found)]
        start += len(found)
        colour = f"C{number % 10}"
        axis.scatter(own[:, 0], own[:, 1], s=14, color=colour, alpha=0.5, marker="o" if number < 10 else "^")
        axis.scatter(means[number, 0], means[number, 1], s=90, color=colour, edgecolor="black", marker="*")
        axis.annotate(
            name, means[number], (5, 4), textcoords="offset points", fontsize=9,
            color=NOVEL_COLOUR if name in set(novel) else BASE_COLOUR,
        )  # fmt: skip
    axis.set(title=f"{method} of {start} support images; stars are means", xticks=[], yticks=[])
    return figure
