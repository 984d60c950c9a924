"""Real kills: a run that was killed again and again ends like an undisturbed one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from kdjax.io.files import MANIFEST

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow
PHASES = ("teacher", "student", "student_alone")
# About 4 steps an epoch, each of them logged and saved.
FLAGS = (
    "--config.data.entity_column=machine",
    "--config.data.label_column=fault",
    "--config.data.window=10",
    "--config.data.stride=15",
    "--config.teacher.hidden=(4,)",
    "--config.teacher.epochs=2",
    "--config.student.hidden=(3,)",
    "--config.student.epochs=2",
    "--config.train.batch_size=10",
    "--config.train.log_every=1",
    "--config.train.checkpoint_seconds=0",
    "--config.threshold.false_alarm_rate=0.2",
    "--config.baselines=()",
)
PATIENCE = 120  # seconds for a process to get anywhere, on a busy machine


@pytest.fixture(scope="module")
def spawn(plant, tmp_path_factory):
    """Starts `run` on the plant; its output goes to a file and its errors to another."""
    # XLA keeps what it compiled, or each restart would take twice as long.
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    environment = os.environ | cache | {"PYTHONUNBUFFERED": "1", "JAX_PLATFORMS": "cpu"}
    files = f"--config.data.path={plant.train}", f"--config.data.test_path={plant.test}"
    program = (sys.executable, "launch.py", "run")

    def start(workdir, *more):
        output = tmp_path_factory.mktemp("output")
        command = [*program, f"--workdir={workdir}", *files, *FLAGS, *more]
        with (output / "out").open("w") as out, (output / "err").open("w") as err:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=out, stderr=err
            )
        return Program(process, output / "out", output / "err")

    return start


class Program(NamedTuple):
    """A started process and the files of what it says."""

    process: subprocess.Popen
    out: Path
    err: Path

    def finish(self):
        """Exit code, output and errors once it has ended."""
        try:
            code = self.process.wait(PATIENCE)
        finally:
            self.process.kill()
        return Ended(code, self.out.read_text("utf-8"), self.err.read_text("utf-8"))


class Ended(NamedTuple):
    """Exit code, output and errors."""

    code: int
    out: str
    err: str


def log_text(workdir):
    path = workdir / "metrics.jsonl"
    return path.read_text("utf-8") if path.exists() else ""


def logged(phase, step):
    """Whether the log has that step of that phase."""
    return lambda workdir, program: any(
        f'"phase": "{phase}"' in line and f'"step": {step},' in line
        for line in log_text(workdir).splitlines()
    )


def kill_when(reached, program, workdir, *, meanwhile=lambda process: None):
    """Stops a run where `reached` is true, and kills it there."""
    process = program.process
    try:
        limit = time.monotonic() + PATIENCE
        while not reached(workdir, program):
            assert process.poll() is None, program.err.read_text("utf-8")
            assert time.monotonic() < limit
            time.sleep(0.002)
        process.send_signal(signal.SIGSTOP)
        meanwhile(process)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not (workdir / "results.json").exists()


def spoil_newest(folder):
    """Flips a bit in the newest sealed checkpoint; its number."""
    steps = [int(path.parent.name) for path in folder.glob(f"*/{MANIFEST}")]
    files = (folder / str(max(steps)) / "arrays" / "d").iterdir()
    path = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return max(steps)


@pytest.fixture(scope="module")
def undisturbed(spawn, tmp_path_factory):
    """The folder of a run that nothing stopped."""
    workdir = tmp_path_factory.mktemp("resume") / "undisturbed"
    ended = spawn(workdir).finish()
    assert ended.code == 0, ended.err
    return workdir


@pytest.fixture(scope="module")
def killed(spawn, undisturbed, tmp_path_factory):
    """The folder of a run killed again and again, and what a second process was told."""
    workdir = tmp_path_factory.mktemp("resume") / "killed"
    told = {}

    def intrude(process):
        told["pid"] = process.pid
        told["second"] = spawn(workdir).finish()

    def kill(reached, **options):
        kill_when(reached, spawn(workdir), workdir, **options)

    kill(logged("teacher", 6), meanwhile=intrude)
    kill(logged("student", 3))
    # A line that the kill cut off, and a bit that the disk turned.
    with (workdir / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"phase": "student", "epo')
    spoilt = spoil_newest(workdir / "checkpoints" / "student")
    # After training, while results are written.
    kill(lambda workdir, program: (workdir / "detectors" / "teacher").exists())
    assert (workdir / "checkpoints" / "student" / f"damaged-{spoilt}").is_dir()
    ended = spawn(workdir).finish()
    assert ended.code == 0, ended.err
    for phase in PHASES:
        assert f"{phase}: already trained" in ended.out
    return workdir, told


def lines_of(workdir):
    lines = [json.loads(line) for line in log_text(workdir).splitlines()]
    for line in lines:
        line.pop("windows_per_second", None)
    return lines


def test_parameters_are_bit_equal(undisturbed, killed):
    for name in PHASES:
        with (
            np.load(undisturbed / "detectors" / name / "arrays.npz") as expected,
            np.load(killed[0] / "detectors" / name / "arrays.npz") as found,
        ):
            assert set(found) == set(expected)
            assert any(key.endswith("recurrent_kernel") for key in found)
            for key, value in expected.items():
                assert found[key].dtype == value.dtype
                assert found[key].tobytes() == value.tobytes(), (name, key)


def test_the_log_has_each_step_once(undisturbed, killed):
    lines = lines_of(killed[0])
    assert lines == lines_of(undisturbed)
    for phase in PHASES:
        steps = [line["step"] for line in lines if line["phase"] == phase]
        assert steps == list(range(1, len(steps) + 1))
        assert len(steps) > 6


def test_results_are_equal(undisturbed, killed):
    found, expected = (
        json.loads((workdir / "results.json").read_text("utf-8"))
        for workdir in (killed[0], undisturbed)
    )
    assert len(found["rows"]) > 3
    for key in ("rows", "entities", "dataset", "settings", "notes"):
        assert found[key] == expected[key]


def test_a_second_process_is_refused(killed):
    second, pid = killed[1]["second"], killed[1]["pid"]
    assert second.code == 2
    (line,) = second.err.splitlines()
    assert f"is in use by process {pid}" in line
    assert "Traceback" not in second.out


def contents(workdir):
    return {
        path.relative_to(workdir): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in workdir.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def test_a_finished_run_is_left_as_it_is(spawn, undisturbed):
    before = contents(undisturbed)
    ended = spawn(undisturbed).finish()
    assert ended.code == 0
    assert "is finished: nothing to do" in " ".join(ended.out.split())
    assert "lowest validation loss" not in ended.out
    assert contents(undisturbed) == before


def test_another_config_is_refused(spawn, undisturbed):
    before = contents(undisturbed)
    changes = "--config.seed=5", "--config.student.epochs=9"
    ended = spawn(undisturbed, *changes).finish()
    assert ended.code == 2
    (line,) = ended.err.splitlines()
    assert "was made with another config" in line
    assert "seed: 0 -> 5" in line
    assert "student.epochs: 2 -> 9" in line
    assert contents(undisturbed) == before
