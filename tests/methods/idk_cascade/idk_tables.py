"""Tables of predictions for tests of IDK cascades: made-up models of growing accuracy, and the slow ways to count."""

import numpy as np

from dyn_d2.methods.idk_cascade.table import PredictionTable


def softmax(scores: np.ndarray) -> np.ndarray:
    e = np.exp(scores - scores.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def random_table(models: int = 2, images: int = 300, classes: int = 4, split: str = "held_out", seed: int = 0):
    """Models that see the right class ever more clearly; some images are harder than others for all of them."""
    rng = np.random.default_rng(seed)
    labels, ease = rng.integers(0, classes, images), rng.gamma(2.0, 1.0, images)
    probabilities = []
    for number in range(models):
        scores = rng.normal(0, 1, (images, classes))
        scores[np.arange(images), labels] += (0.8 + 0.7 * number) * ease
        probabilities.append(softmax(1.5 * scores))
    names = [f"m{number + 1}" for number in range(models)]
    return PredictionTable.of_classifiers(names, probabilities, labels, 2.0 ** np.arange(models), split)


def slow_outcome(table: PredictionTable, h: list[np.ndarray]) -> tuple[float, float, list[float]]:
    """Accuracy, mean cost, and the share of images that each model sees, image by image."""
    right, spent, seen = 0.0, 0.0, [0] * len(table.names)
    for image in range(len(table)):
        for number, cost in enumerate(table.costs):
            spent += cost
            seen[number] += 1
            if number == len(table.names) - 1 or h[number][image] <= 0.5:
                right += 1 - table.losses[number, image]
                break
    return right / len(table), spent / len(table), [count / len(table) for count in seen]
