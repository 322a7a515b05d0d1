"""PMN: at which module an image stops, and which level of a concept tree each module recognises."""

from . import head, policy  # noqa: F401  only registration
