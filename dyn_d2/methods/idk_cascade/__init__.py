"""IDK cascades (Wang et al. 2018): a cheap model first, an expensive one only where that does not know.

Wang, Luo, Crankshaw, Tumanov, Yu and Gonzalez, IDK Cascades: Fast Deep Learning by Learning not to Overthink, UAI 2018.

Equation, table and figure numbers in this package are those of chapter 4 of Wang, X.: The Design of Dynamic Neural
Networks for Efficient Learning and Inference, PhD thesis, UC Berkeley, 2020 (below: Wang 2020).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dyn_d2.method import Method, register_method

from .calibration import load_idk_cascade
from .calibrators import METHODS, calibrate, candidates
from .execution import IDKCascade, IDKCascadeModel, Run, collect, run_alone
from .measures import MEASURES, confidence, entropy
from .networks import NetworkModel
from .outcome import Outcome, evaluate, oracle
from .rules import Logistic, NetworkRule, Threshold
from .search import Candidate, Goal, GoalNotReachedError
from .table import PredictionTable

if TYPE_CHECKING:
    from dyn_d2.engine.predictor import ImagePredictor

__all__ = [
    "METHODS",
    "MEASURES",
    "Candidate",
    "Goal",
    "GoalNotReachedError",
    "IDKCascade",
    "IDKCascadeModel",
    "Logistic",
    "NetworkModel",
    "NetworkRule",
    "Outcome",
    "PredictionTable",
    "Run",
    "Threshold",
    "calibrate",
    "candidates",
    "collect",
    "confidence",
    "entropy",
    "evaluate",
    "load_idk_cascade",
    "oracle",
    "run_alone",
]


@register_method
class IDKCascadeMethod(Method):
    """Has no part in a training: it works on trained models, see ``report.py``."""

    name = "idk_cascade"

    def predictor(self, weights: str, content: Mapping[str, Any], opts: Sequence[str]) -> "ImagePredictor | None":
        from .calibration import ENTRY
        from .predictor import IDKCascadePredictor

        return IDKCascadePredictor.load(weights, opts) if ENTRY in content else None
