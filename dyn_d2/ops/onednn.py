"""oneDNN, which torch reaches by operators that not every build has."""

import torch


def has_operators(*names: str) -> bool:
    """Whether oneDNN can be used, and torch has these operators in ``torch.ops.mkldnn``."""
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)
