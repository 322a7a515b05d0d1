"""A stored IDK cascade for images that belong to no data set."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dyn_d2.engine.given_images import require_images
from dyn_d2.engine.predictor import Answer, Labels

from .calibration import load_idk_cascade
from .execution import IDKCascade


class IDKCascadePredictor:
    """Images go to the first model; those that it does not know to the next one.

    Attributes:
        classes: names in the order of the scores or rows of all models.
    """

    def __init__(self, cascade: IDKCascade, classes: Sequence[str]) -> None:
        self.cascade, self.classes = cascade, list(classes)

    @classmethod
    def load(cls, weights: str, opts: Sequence[str] = ()) -> "IDKCascadePredictor":
        """From the checkpoint of the first model; errors as of ``load_idk_cascade``."""
        cascade, _ = load_idk_cascade(weights, "", opts)
        return cls(cascade, cascade.models[0].classes)

    def __call__(self, image: np.ndarray) -> Any:
        """What is found in one image, (H, W, 3) uint8, RGB: ``Labels``, or ``Instances``, best first."""
        return self.answer([image])[0].found

    def answer(self, images: Sequence[np.ndarray]) -> list[Answer[Any]]:
        """The same of a batch; each answer has the name of the model that gave it."""
        run = self.cascade([{"image": image} for image in require_images(images)])
        names = [model.name for model in self.cascade.models]
        return [
            Answer(self._found(answer), None, names[level])
            for answer, level in zip(run.answers, run.level.tolist(), strict=True)
        ]

    def _found(self, answer: Any) -> Any:
        if isinstance(answer, dict):
            found = answer["instances"]
            return found[found.scores.argsort(descending=True)]
        scores = np.asarray(answer)
        fits = len(self.classes) == len(scores)
        return Labels(scores, self.classes if fits else [f"class {number}" for number in range(len(scores))])
