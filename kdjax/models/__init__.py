"""Architectures and baselines: windows to reconstructions and residuals."""

from kdjax import _room_names

__all__, __getattr__ = _room_names(__name__)
