"""Detectors as ONNX and StableHLO files, and their costs at run time."""

import kdjax
from kdjax.io.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(__name__, kdjax.HOMES)
