"""A run or a sweep from settings to results: the lowest package that reads settings."""

import kdjax
from kdjax.io.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(__name__, kdjax.HOMES)
