"""Data: files and benchmarks become series, splits, scaled rows and windows."""

from kdjax.data.channels import (
    Ranges,
    dead_channels,
    duplicate_channels,
    outside,
    ranges_of,
)
from kdjax.data.datasets import (
    BENCHMARKS,
    Culprits,
    interpretation,
    load_benchmark,
    load_sample,
    width,
)
from kdjax.data.download import Fetched, fetch_smd
from kdjax.data.readers import load_files, match_channels, read_table
from kdjax.data.scaler import (
    METHODS,
    Scaler,
    apply_scaler,
    fit_scaler,
)
from kdjax.data.series import Dataset, Series
from kdjax.data.splits import (
    Split,
    cover_starts,
    intersect,
    segments,
    split_rows,
    window_starts,
)
from kdjax.data.times import median_step
from kdjax.data.windowing import (
    gather,
    latest_window,
    row_mean,
    window_labels,
)

__all__ = [
    "BENCHMARKS",
    "METHODS",
    "Culprits",
    "Dataset",
    "Fetched",
    "Ranges",
    "Scaler",
    "Series",
    "Split",
    "apply_scaler",
    "cover_starts",
    "dead_channels",
    "duplicate_channels",
    "fetch_smd",
    "fit_scaler",
    "gather",
    "interpretation",
    "intersect",
    "latest_window",
    "load_benchmark",
    "load_files",
    "load_sample",
    "match_channels",
    "median_step",
    "outside",
    "ranges_of",
    "read_table",
    "row_mean",
    "segments",
    "split_rows",
    "width",
    "window_labels",
    "window_starts",
]
