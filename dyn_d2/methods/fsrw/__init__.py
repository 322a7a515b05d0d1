"""FSRW: few-shot detection by feature re-weighting (Kang et al. 2019), and the detectors it is compared with."""

from . import darknet, lstd, meta_arch, meta_rcnn, yolov2  # noqa: F401  only registration
