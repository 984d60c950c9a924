"""A small plant in CSV files, settings that train on it in seconds, and one such run.

Two machines with three channels each. `press` has rows enough for all of its own;
`saw` has too few calibration windows for a threshold of its own.
"""

import contextlib
import os
import pickle
from pathlib import Path
from typing import NamedTuple

import hypothesis
import jax
import numpy as np
import pandas as pd
import pytest
from filelock import FileLock

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

hypothesis.settings.register_profile(
    "default", deadline=None, max_examples=40, derandomize=True
)
hypothesis.settings.register_profile("slow", deadline=None, max_examples=200)


def pytest_addoption(parser):
    parser.addoption("--no-skips", action="store_true", help="fail if a test skips")


def pytest_sessionfinish(session):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if session.config.option.no_skips and reporter and reporter.stats.get("skipped"):
        reporter.write_line("--no-skips: a skipped test fails this run", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_configure(config):
    slow = "not slow" not in config.option.markexpr
    hypothesis.settings.load_profile("slow" if slow else "default")
    # The slow lane shares batches among 8 devices, the default lane between 2.
    jax.config.update("jax_num_cpu_devices", 8 if slow else 2)
    _set_compilation_cache(config)


def _set_compilation_cache(config):
    """Keeps compiled functions between runs, in `JAX_COMPILATION_CACHE_DIR` if set."""
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if folder is None and getattr(config, "cache", None) is not None:
        folder = str(config.cache.mkdir("xla"))
    if folder is None:
        return
    # The first for this process, the second for those that tests start.
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    # Another worker may be writing the same entry: JAX compiles again then.
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
def shared_folder(tmp_path_factory):
    """One folder for all workers of this session, beside their own."""
    base = tmp_path_factory.getbasetemp()
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    (folder / "shared").mkdir(exist_ok=True)
    return folder / "shared"


@pytest.fixture(scope="session")
def plant(shared_folder):
    """The files `train.csv` and `test.csv` of two machines."""
    paths = Plant(shared_folder / "train.csv", shared_folder / "test.csv")
    with FileLock(shared_folder / "plant.lock"):
        if not paths.test.exists():
            rng = np.random.default_rng(7)
            train = _part(rng, TRAIN_ROWS, "2024-01-01", {})
            train.drop(columns="fault").to_csv(paths.train, index=False)
            _part(rng, TEST_ROWS, "2024-01-02", SPIKES).to_csv(paths.test, index=False)
    return paths


TINY = {
    "threshold.method": "conformal",
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
def finished(shared_folder, plant, plant_changes, tiny):
    """The one labelled run of the session; no test writes into its folder.

    The first worker trains; the others read what it returned.
    """
    settings = tiny(plant_changes)
    workdir, kept = shared_folder / "plant", shared_folder / "results.pkl"
    with FileLock(shared_folder / "run.lock"):
        if not kept.exists():
            kept.write_bytes(pickle.dumps(run(settings, workdir)))
    return Finished(workdir, pickle.loads(kept.read_bytes()), settings, plant)


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


@pytest.fixture
def moving(small):
    """A detector whose scores depend on the window, for rows a second apart."""
    model = small.model._replace(kind="difference")
    scores = (np.sort(np.random.default_rng(3).gamma(2, 2, 400)),) * 2
    return small._replace(model=model, step=1.0, calibration=scores, no_data=True)


@pytest.fixture
def fleet(moving, tmp_path):
    """The folder of a fleet: `m1`, `m2`, `few`, which has the fleet's values, and `bad`."""
    from fleet_folder import FleetFolder

    return FleetFolder(tmp_path / "plants.fleet", moving)


@pytest.fixture
def moving_file(moving, tmp_path):
    from kdjax.export.onnx import onnx_file

    path = tmp_path / "plant.onnx"
    path.write_bytes(onnx_file(moving, 0))
    return path


@pytest.fixture
def serve(tmp_path):
    """Opens a service on detectors; closes it at the end."""
    from service_client import Client

    from kdjax.service.app import USUAL, App
    from kdjax.service.engine import Engine

    with contextlib.ExitStack() as stack:

        def opened(*paths, state="state", token="", limits=USUAL, **options):
            (tmp_path / state).mkdir(exist_ok=True)
            engines = {}
            app = App(engines, limits=limits, token=token)
            client = Client(app, engines)
            stack.callback(client.close)
            for path in paths:
                name = path.name.removesuffix(".onnx")
                engines[name] = Engine(
                    name, path, tmp_path / state, limits=limits, clock=app.clock,
                    committed=app.committed, **options,
                )  # fmt: skip
            return client

        yield opened
