"""INPUT.ALBUMENTATIONS: changes of pixels by transforms of albumentations (an extra of dyn_d2), in training.

Transforms that move pixels are refused: boxes, masks and label maps would have to follow, and resizing, crops and flips
have keys of Detectron2's own.
"""

import ast
from collections.abc import Sequence
from typing import Any

import numpy as np

from detectron2.data import transforms as T

KEY = "INPUT.ALBUMENTATIONS"


def parsed(text: str) -> tuple[str, dict[str, Any]]:
    """``"GaussianBlur(p=0.3)"`` -> ("GaussianBlur", {"p": 0.3}).

    Raises:
        ValueError: it is no name with arguments by name.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, {}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
            return node.func.id, {str(word.arg): ast.literal_eval(word.value) for word in node.keywords}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        pass
    raise ValueError(f"{KEY} has {text!r}: write it as in Python, with arguments by name: GaussianBlur(p=0.3).")


class PixelChanges(T.Augmentation):
    """A pipeline of transforms that leave pixels where they are; random numbers follow numpy's generator."""

    def __init__(self, texts: Sequence[str]) -> None:
        """
        Args:
            texts: transforms with their arguments, in their order.

        Raises:
            ImportError: albumentations is not installed.
            ValueError: no such transform, wrong arguments, or one that moves pixels.
        """
        import albumentations

        super().__init__()
        steps = []
        for name, options in map(parsed, texts):
            kind = getattr(albumentations, name, None)
            if not isinstance(kind, type) or not issubclass(kind, albumentations.BasicTransform):
                raise ValueError(f"{KEY} names {name}, which albumentations does not have.")
            if not issubclass(kind, albumentations.ImageOnlyTransform):
                raise ValueError(
                    f"{KEY} names {name}, which may move pixels: only those that change their values are taken (blur, "
                    "noise, colour, compression); INPUT.MIN_SIZE_TRAIN, CROP and RANDOM_FLIP move them."
                )
            try:
                steps.append(kind(**options))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{KEY}: {name} does not take {options}: {error}") from error
        self._pipeline = albumentations.Compose(steps)

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return _Changed(self._pipeline, int(np.random.randint(2**31)))


class _Changed(T.Transform):
    def __init__(self, pipeline: Any, seed: int) -> None:
        super().__init__()
        self._pipeline, self._seed = pipeline, seed

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        if hasattr(self._pipeline, "set_random_seed"):  # since 2.0; before, it followed Python's generator
            self._pipeline.set_random_seed(self._seed)
        return self._pipeline(image=np.ascontiguousarray(img))["image"]

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords
