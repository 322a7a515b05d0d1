"""Few-shot detection data: benchmarks, class splits, K-shot sets and the data sets that are derived from them."""

from .benchmarks import BENCHMARKS, FewShotBenchmark, get_benchmark, register_benchmark
from .register import apply_few_shot
from .sampling import NotEnoughShots, ShotSet, collect_candidates, sample_shots, shots_path
from .splits import ClassSplit, split_classes
from .task import FewShotTask

__all__ = [
    "BENCHMARKS",
    "ClassSplit",
    "FewShotBenchmark",
    "FewShotTask",
    "NotEnoughShots",
    "ShotSet",
    "apply_few_shot",
    "collect_candidates",
    "get_benchmark",
    "register_benchmark",
    "sample_shots",
    "shots_path",
    "split_classes",
]
