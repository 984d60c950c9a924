"""Detection: Gaussian, scores, thresholds, alarms and events, saved detectors, streams."""

import kdjax
from kdjax.io.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(__name__, kdjax.HOMES)
