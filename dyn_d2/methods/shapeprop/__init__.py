"""ShapeProp (Zhou et al. 2020): masks where only few objects have them."""

from . import bdd100k, roi_heads, weight_transfer  # noqa: F401  only registration
