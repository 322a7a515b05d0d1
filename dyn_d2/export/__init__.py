"""Models as ONNX files: classifiers, semantic segmentors and detectors, gated ones with gates that still skip."""

from .onnx_file import ExportReport, export_onnx

__all__ = ["ExportReport", "export_onnx"]
