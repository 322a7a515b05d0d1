"""DigitScenes: handwritten digits on photographs, for detection and for instance and semantic segmentation.

``dyn-d2 prepare digit-scenes`` makes it on the spot from what scikit-learn ships; docs/digit_scenes.md describes
it. Importing this package registers it.
"""

from .generate import DigitScenesSpec, generate_digit_scenes
from .register import register_digit_scenes
from .scene import CLASS_NAMES, IGNORE, SEMANTIC_CLASSES, SceneOptions, render_scene
from .statistics import describe, split_statistics
from .variants import VARIANTS, write_variants

__all__ = [
    "CLASS_NAMES",
    "DigitScenesSpec",
    "IGNORE",
    "SEMANTIC_CLASSES",
    "SceneOptions",
    "VARIANTS",
    "describe",
    "generate_digit_scenes",
    "register_digit_scenes",
    "render_scene",
    "split_statistics",
    "write_variants",
]

register_digit_scenes()
