"""Meta-architectures that belong to no method; importing registers them."""

from .retina_mask import RetinaMask

__all__ = ["RetinaMask"]
