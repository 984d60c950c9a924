"""Data: files and benchmarks become series, splits, scaled rows and windows."""

from kdjax.io.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "kdjax.data.datasets": "BENCHMARKS load_benchmark load_sample",
        "kdjax.data.disturb": "disturb_windows",
        "kdjax.data.download": "fetch_smd",
        "kdjax.data.grid": "to_grid",
        "kdjax.data.prepared": "Prepared prepare",
        "kdjax.data.readers": "load_files match_channels read_table",
        "kdjax.data.scaler": "METHODS Scaler apply_scaler fit_scaler",
        "kdjax.data.series": "Dataset Ranges Series dead_channels duplicate_channels ranges_of",
        "kdjax.data.splits": "Split cover_starts segments split split_rows window_starts",
        "kdjax.data.times": "median_step",
        "kdjax.data.windowing": "gather window_labels windows",
    },
)
