"""Data sets whose classes have descriptions, for zero-shot and few-shot classification of features.

Importing this package registers them; ``docs/tafe_net.md`` lists them.
"""

from .apply import ClassTable, apply_described, class_table, with_added_classes
from .described_set import DescribedSet, Part, Scale, read_class_vectors
from .feature_source import FeatureSource
from .mapper import DescribedMapper
from .sets import Benchmark, described_set, is_described, register_benchmark, register_described_sets

__all__ = [
    "Benchmark",
    "ClassTable",
    "DescribedMapper",
    "DescribedSet",
    "FeatureSource",
    "Part",
    "Scale",
    "apply_described",
    "class_table",
    "described_set",
    "is_described",
    "read_class_vectors",
    "register_benchmark",
    "register_described_sets",
    "with_added_classes",
]

register_described_sets()
