"""The examples of engines give what `score_partition` gives for all rows, bit by bit."""

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import CHANNELS, wave

import kdjax

pytestmark = pytest.mark.integration

HERE = Path(__file__).parent.parent / "examples" / "engines"
# Fugue wants pandas below 3, so .ci/run makes an environment for it inside of the other.
FUGUE = Path(sys.prefix) / "fugue" / "bin" / "python"
SIZES = {"saw": 400, "press": 360, "lathe": 380, "mill": 420, "lamp": 60}
QUIET = {
    "RAY_ADDRESS": "local",  # never a cluster that runs here already
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYSPARK_PYTHON": sys.executable,
    "PYSPARK_SUBMIT_ARGS": "--master local[2] --conf spark.ui.enabled=false pyspark-shell",
    "SPARK_LOCAL_IP": "127.0.0.1",
}


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    """A folder of Parquet files with rows of known and unknown machines in any order."""
    rng, frames = np.random.default_rng(2), []
    for name, rows in SIZES.items():
        part = pd.DataFrame(wave(rng, rows).astype(np.float32), columns=list(CHANNELS))
        part.loc[40:50, "load"] += 4
        part.insert(0, "time", pd.date_range("2026-03-01", periods=rows, freq="1s"))
        frames.append(part.assign(entity=name))
    whole = pd.concat(frames, ignore_index=True)
    # Spark reads no nanoseconds.
    whole["time"] = whole["time"].dt.as_unit("us")
    folder = tmp_path_factory.mktemp("engines") / "rows"
    folder.mkdir()
    order = rng.permutation(len(whole))
    for place, part in enumerate(np.array_split(order, 3)):
        whole.iloc[part].to_parquet(folder / f"{place}.parquet", index=False)
    return whole, folder


def run_example(*command, seconds=300):
    """Runs an example to its end; none of its processes stays."""
    with subprocess.Popen(
        command,
        env=os.environ | QUIET,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            said, _ = process.communicate(timeout=seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, said


def check(machines, detector, output):
    """Compares scores with those of the whole table."""
    whole, _ = machines
    wanted = kdjax.score_partition(whole, detector, time_column="time")
    assert wanted["alarm"].any() and set(wanted["entity"]) == {*SIZES}
    wanted = wanted.sort_values(["entity", "time"])
    found = pd.read_parquet(output).sort_values(["entity", "time"])
    assert list(found) == list(kdjax.SCORE_SCHEMA) and len(found) == len(wanted)
    for name, kind in kdjax.SCORE_SCHEMA.items():
        one, other = found[name].to_numpy(), wanted[name].to_numpy()
        if kind != "string":
            assert one.dtype.kind == other.dtype.kind, name
        np.testing.assert_array_equal(one, other.astype(one.dtype), name)


@pytest.fixture(scope="module")
def fitted(tiny, machines, tmp_path_factory):
    """The settings of a fleet, and its catalogue where each machine is fitted by itself."""
    alone = {"distill.alpha": 0.0, "entity_mode": "per_entity", "data.path": "frame"}
    settings = tiny(alone)
    folder = tmp_path_factory.mktemp("fitted") / "fleet"
    rows = [
        kdjax.fit_partition(part, output=folder, settings=settings)
        for _, part in machines[0].groupby("entity")
    ]
    return folder, pd.concat(rows, ignore_index=True)


ENGINES = [
    ("ray", [sys.executable, HERE / "on_ray.py"]),
    ("dask", [sys.executable, HERE / "on_dask.py"]),
    ("pyspark", [sys.executable, HERE / "on_spark.py"]),
    ("fugue", [FUGUE, HERE / "on_fugue.py", "native"]),
    ("fugue", [FUGUE, HERE / "on_fugue.py", "dask"]),
]


@pytest.fixture(params=ENGINES, ids=["ray", "dask", "spark", "fugue", "fugue_dask"])
def engine(request):
    """A command, without its arguments, that has all it needs."""
    package, command = request.param
    if package == "fugue" and not FUGUE.exists():
        pytest.skip(f"needs {FUGUE}, see .ci/run")
    if package != "fugue" and importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}, see setup.cfg")
    if package == "pyspark" and not shutil.which("java"):
        pytest.skip("needs java (.ci/packages.txt)")
    return command


def test_an_engine_gives_the_same_scores(engine, finished, machines, tmp_path):
    detector = finished.workdir / "detectors" / "student"
    output = tmp_path / "scores.parquet"
    run_example(*engine, "score", detector, machines[1], output)
    check(machines, detector, output)


def test_an_engine_fits_a_fleet(engine, fitted, machines, tmp_path):
    folder, wanted = fitted
    fleet = tmp_path / "fleet"
    fleet.mkdir()
    shutil.copy(folder / "fleet.json", fleet)  # small networks
    run_example(*engine, "fit", fleet, machines[1])
    found = kdjax.read_catalogue(fleet).sort_values("entity", ignore_index=True)
    kept = ["entity", "state", "reason", "detector", "rows", "threshold"]
    pd.testing.assert_frame_equal(found[kept], wanted[kept])
    failed = found["state"] == "failed"  # with too few rows
    assert found["entity"][failed].tolist() == ["lamp"]
    whole = machines[0].query("entity != 'lamp'").sort_values("entity", kind="stable")
    scores = kdjax.score_partition(whole, fleet, time_column="time")
    taus = scores.groupby("entity")["tau"].first()
    assert taus.tolist() == found["threshold"][~failed].tolist()
