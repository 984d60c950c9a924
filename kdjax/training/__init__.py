"""Batches, steps, the fit loop, checkpoints, populations, devices and hosts."""

from kdjax import _room_names

__all__, __getattr__ = _room_names(__name__)
