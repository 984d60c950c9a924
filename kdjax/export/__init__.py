"""Detectors as ONNX and StableHLO files, and what they cost to run."""

from kdjax.io.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(
    __name__, {"kdjax.export.files": "export_file export_onnx export_stablehlo"}
)
