"""The core that all dynamic networks share: decisions, sparse execution, and the trace of both."""

from .decisions import Decision  # noqa: F401
from .routing import Router  # noqa: F401
from .trace import Context, Cost, Route, Step, TakenLevels, Trace, Unit, current_trace, recording  # noqa: F401

from . import backbones, extension, meta_arch, policies  # noqa: E402, F401  isort: skip  only registration
