"""A run or a sweep from settings to results: the only room that reads settings."""

from kdjax import _room_names

__all__, __getattr__ = _room_names(__name__)
