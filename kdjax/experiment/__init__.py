"""A run or a sweep from settings to results: the only room that reads settings."""

from kdjax.io.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "kdjax.experiment.pipeline": "run",
        "kdjax.experiment.recalibrate": "recalibrated",
        "kdjax.experiment.sweeps.design": "make_design",
        "kdjax.experiment.sweeps.sweep": "run_sweep",
    },
)
