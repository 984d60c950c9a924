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
SIZES = {"saw": 140, "press": 90, "lathe": 60, "mill": 75, "drill": 110}
QUIET = {
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


def run_example(python, name, *arguments, seconds=150):
    """Runs an example to its end; none of its processes stays."""
    process = subprocess.Popen(
        [python, HERE / name, *arguments],
        env=os.environ | QUIET,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == 0, said


def check(finished, machines, output):
    """Compares scores with those of the whole table."""
    whole, _ = machines
    detector = finished.workdir / "detectors" / "student"
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


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("ray", "on_ray.py"),
        ("dask", "on_dask.py"),
        pytest.param(
            "pyspark",
            "on_spark.py",
            marks=pytest.mark.skipif(not shutil.which("java"), reason="needs java"),
        ),
    ],
)
def test_an_engine_gives_the_same_scores(finished, machines, tmp_path, module, name):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"needs {module}, see setup.cfg")
    detector = finished.workdir / "detectors" / "student"
    run_example(sys.executable, name, detector, machines[1], tmp_path / "scores")
    check(finished, machines, tmp_path / "scores")


@pytest.mark.skipif(not FUGUE.exists(), reason=f"needs {FUGUE}, see .ci/run")
@pytest.mark.parametrize("engine", [[], ["dask"]], ids=["pandas", "dask"])
def test_fugue_gives_the_same_scores(finished, machines, tmp_path, engine):
    detector = finished.workdir / "detectors" / "student"
    output = tmp_path / "scores.parquet"
    run_example(FUGUE, "on_fugue.py", detector, machines[1], output, *engine)
    check(finished, machines, output)
