"""IDK cascades (thesis chapter 4): cheap models first, dear ones only where those do not know."""

from .calibration import load_cascade
from .execution import Cascade, CascadeModel, Run, collect, run_alone
from .measures import MEASURES, confidence, entropy
from .methods import METHODS, calibrate, candidates
from .networks import NetworkModel
from .outcome import Outcome, evaluate, oracle
from .rules import Logistic, NetworkRule, Threshold
from .search import Candidate, Goal, GoalNotReachedError
from .table import PredictionTable

__all__ = [
    "Candidate",
    "Cascade",
    "CascadeModel",
    "Goal",
    "GoalNotReachedError",
    "Logistic",
    "MEASURES",
    "METHODS",
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
    "load_cascade",
    "oracle",
    "run_alone",
]
