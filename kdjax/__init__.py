"""kdjax: distils anomaly detectors for multivariate time series.

The functional API on one screen. Names are imported when first used, so that
`import kdjax` costs nothing and only what computes imports JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdjax.config import get_config as get_config
    from kdjax.config import override as override
    from kdjax.config import resolve as resolve
    from kdjax.data.datasets import load_benchmark as load_benchmark
    from kdjax.data.datasets import load_sample as load_sample
    from kdjax.data.download import fetch_smd as fetch_smd
    from kdjax.data.readers import load_files as load_files
    from kdjax.data.readers import read_table as read_table
    from kdjax.detection.detector import Detector as Detector
    from kdjax.detection.storage import load_detector as load_detector
    from kdjax.detection.storage import save_detector as save_detector
    from kdjax.detection.streaming import StreamDetector as StreamDetector
    from kdjax.detection.tables import score_events as score_events
    from kdjax.detection.tables import score_table as score_table
    from kdjax.errors import ArtifactError as ArtifactError
    from kdjax.errors import ConfigError as ConfigError
    from kdjax.errors import DataError as DataError
    from kdjax.errors import KdjaxError as KdjaxError
    from kdjax.estimator import KDDetector as KDDetector
    from kdjax.experiment.pipeline import run as run
    from kdjax.experiment.recalibrate import recalibrated as recalibrated
    from kdjax.experiment.sweeps.design import make_design as make_design
    from kdjax.experiment.sweeps.run import run_sweep as run_sweep
    from kdjax.export.files import export_file as export_file
    from kdjax.scoring.folders import score_fleet as score_fleet
    from kdjax.scoring.streams import open_stream as open_stream
    from kdjax.training.sharding import use_all_cores as use_all_cores

_HOMES = {
    "kdjax.config": ("get_config", "override", "resolve"),
    "kdjax.data.datasets": ("load_benchmark", "load_sample"),
    "kdjax.data.download": ("fetch_smd",),
    "kdjax.data.readers": ("load_files", "read_table"),
    "kdjax.detection.detector": ("Detector",),
    "kdjax.detection.storage": ("load_detector", "save_detector"),
    "kdjax.detection.streaming": ("StreamDetector",),
    "kdjax.detection.tables": ("score_events", "score_table"),
    "kdjax.training.sharding": ("use_all_cores",),
    "kdjax.errors": ("ArtifactError", "ConfigError", "DataError", "KdjaxError"),
    "kdjax.estimator": ("KDDetector",),
    "kdjax.export.files": ("export_file",),
    "kdjax.scoring.folders": ("score_fleet",),
    "kdjax.experiment.pipeline": ("run",),
    "kdjax.experiment.recalibrate": ("recalibrated",),
    "kdjax.scoring.streams": ("open_stream",),
    "kdjax.experiment.sweeps.design": ("make_design",),
    "kdjax.experiment.sweeps.run": ("run_sweep",),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'kdjax' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
