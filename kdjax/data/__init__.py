"""Files and benchmarks become series, splits, scaled rows and windows."""

from kdjax import _room_names

__all__, __getattr__ = _room_names(__name__)
