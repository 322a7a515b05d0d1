"""Model parts that several methods build on; importing this package registers them in Detectron2's registries."""

from . import backbone, meta_arch, roi_heads  # noqa: F401  only registration
