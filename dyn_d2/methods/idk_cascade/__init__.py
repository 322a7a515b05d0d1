"""IDK cascades (Wang et al. 2018): a cheap model first, an expensive one only where that does not know."""

from dyn_d2.method import Method, register_method


@register_method
class IDKCascade(Method):
    """Has no part in a training: it works on trained models, see ``report.py``."""

    name = "idk_cascade"
