"""Data sets whose classes have descriptions, for zero-shot and few-shot classification of features.

Importing this package registers them; ``docs/tafe_net.md`` lists them.
"""

from .apply import ClassTable, apply_described, class_table
from .described_set import DescribedSet, Part, read_class_vectors
from .mapper import DescribedMapper
from .sets import Benchmark, described_set, is_described, register_benchmark, register_described_sets

__all__ = [
    "Benchmark",
    "ClassTable",
    "DescribedMapper",
    "DescribedSet",
    "Part",
    "apply_described",
    "class_table",
    "described_set",
    "is_described",
    "read_class_vectors",
    "register_benchmark",
    "register_described_sets",
]

register_described_sets()
