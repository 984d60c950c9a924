"""Detectors as ONNX and StableHLO files, and what they cost to run."""

from kdjax import _room_names

__all__, __getattr__ = _room_names(__name__)
