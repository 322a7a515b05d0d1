"""Image classification: data sets with one label an image, and how their images become model input.

Importing this package registers the data sets; ``datasets/README.md`` lists them.
"""

from .check import check_classification, check_labels
from .mapper import ClassificationMapper
from .recipes import RECIPES, apply_classification
from .sets import (
    ensure_classes,
    has_labels,
    is_classification,
    register_classification_sets,
    register_folders,
    require_files,
)

__all__ = [
    "ClassificationMapper",
    "RECIPES",
    "apply_classification",
    "check_classification",
    "check_labels",
    "ensure_classes",
    "has_labels",
    "is_classification",
    "register_classification_sets",
    "register_folders",
    "require_files",
]

register_classification_sets()
