"""A small plant in CSV files, settings that train on it in seconds, and one such run.

Two machines with three channels each. `press` has rows enough for all of its own;
`saw` has too few calibration windows for a threshold of its own.
"""

import os
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pandas as pd
import pytest

from kdjax.config import get_config, override, resolve
from kdjax.data.scaler import Scaler
from kdjax.data.series import Series
from kdjax.detection.detector import Detector
from kdjax.detection.gaussian import Gaussian
from kdjax.detection.thresholds import Threshold
from kdjax.experiment.pipeline import run
from kdjax.models.residual import ResidualModel

CHANNELS = ("load", "heat", "dead")
TRAIN_ROWS = {"press": 600, "saw": 240}
TEST_ROWS = {"press": 160, "saw": 120}
SPIKES = {"press": (70, 85), "saw": (40, 52)}


def pytest_configure(config):
    # Batches are shared among CPU devices as the program does it on a larger machine.
    jax.config.update("jax_num_cpu_devices", 8)
    _keep_compiled(config)


def _keep_compiled(config):
    """Compiled functions are kept between runs and sessions: compiling is most of it."""
    if getattr(config, "cache", None) is not None:
        folder = str(config.cache.mkdir("xla"))
        # The first for this process, the second for those that tests start.
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        # A process beside this one may be writing the same entry: it is compiled then.
        entry = "Error (reading|writing) persistent compilation cache entry"
        config.addinivalue_line("filterwarnings", f"ignore:{entry}:UserWarning")


class Plant(NamedTuple):
    """Paths of a train and a test file."""

    train: Path
    test: Path


class Finished(NamedTuple):
    """A run: its folder, what `run` returned, its settings and files."""

    workdir: Path
    results: dict
    settings: dict
    plant: Plant


def wave(rng, rows):
    """`[rows, 3]`: two correlated waves with noise and a constant."""
    time = np.arange(rows)
    load = np.sin(time / 7) + 0.1 * rng.normal(size=rows)
    heat = 20 + 3 * np.roll(load, 2) + 0.2 * rng.normal(size=rows)
    return np.stack([load, heat, np.full(rows, 5.0)], axis=1)


def _part(rng, sizes, first, spikes):
    frames = []
    for machine, rows in sizes.items():
        values = wave(rng, rows)
        labels = np.zeros(rows, int)
        if spikes:
            start, stop = spikes[machine]
            values[start:stop, 0] += 4
            labels[start:stop] = 1
        frame = pd.DataFrame(values.astype(np.float32), columns=list(CHANNELS))
        frame.insert(0, "machine", machine)
        frame.insert(0, "time", pd.date_range(first, periods=rows, freq="1s"))
        frames.append(frame.assign(fault=labels))
    return pd.concat(frames, ignore_index=True)


@pytest.fixture(scope="session")
def plant(tmp_path_factory):
    """The files `train.csv` and `test.csv` of two machines."""
    rng = np.random.default_rng(7)
    folder = tmp_path_factory.mktemp("plant")
    paths = Plant(folder / "train.csv", folder / "test.csv")
    train = _part(rng, TRAIN_ROWS, "2024-01-01", {})
    train.drop(columns="fault").to_csv(paths.train, index=False)
    _part(rng, TEST_ROWS, "2024-01-02", SPIKES).to_csv(paths.test, index=False)
    return paths


TINY = {
    "data.window": 10,
    "data.stride": 5,
    "teacher.hidden": (3,),
    "teacher.epochs": 2,
    "student.hidden": (2,),
    "student.epochs": 2,
    "train.log_every": 2,
    "threshold.false_alarm_rate": 0.1,
}


@pytest.fixture(scope="session")
def tiny():
    """Makes resolved settings of small networks, with changes."""

    def make(changes):
        return resolve(override(get_config(), TINY | changes))

    return make


@pytest.fixture(scope="session")
def plant_changes(plant):
    """What the plant's files need in the settings."""
    return {
        "data.path": str(plant.train),
        "data.test_path": str(plant.test),
        "data.entity_column": "machine",
        "data.label_column": "fault",
    }


@pytest.fixture(scope="session")
def finished(tmp_path_factory, plant, plant_changes, tiny):
    """The one labelled run of the session; nobody writes into its folder."""
    settings = tiny(plant_changes)
    workdir = tmp_path_factory.mktemp("runs") / "plant"
    return Finished(workdir, run(settings, workdir), settings, plant)


@pytest.fixture
def small():
    """A detector that needed no training: e = x under hand-made Normals.

    Two channels, window 4, stride 3, one entity `a` beside the pooled entry. Scaling,
    Normal and threshold differ between the two.
    """
    whiten = np.array([[[2.0, 0.0], [1.0, 0.5]], [[1.0, 0.0], [0.0, 1.0]]], np.float32)
    return Detector(
        model=ResidualModel("mahalanobis", {}),
        channels=("x", "y"),
        window=4,
        stride=3,
        allowed_points=0,
        max_gap=5.0,
        entities=("a",),
        scalers=Scaler(np.float32([[1, 2], [0, 0]]), np.float32([[2, 4], [1, 1]])),
        gaussians=Gaussian(np.float32([[0.5, -0.25], [0, 0]]), whiten),
        thresholds=(
            Threshold(8.0, "conformal", 0.1, 20, 19, "own"),
            Threshold(12.0, "conformal", 0.1, 40, 37, "pooled"),
        ),
        card={"title": "by hand", "data": {"name": "none"}},
    )


@pytest.fixture
def rows():
    """Makes a series of the detector `small`."""

    def make(count, *, entity="a", channels=("x", "y"), time=None, seed=0):
        values = np.random.default_rng(seed).normal(size=(count, len(channels)))
        return Series(entity, (2 * values).astype(np.float32), channels, time)

    return make
