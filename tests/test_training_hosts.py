"""Two real processes with two devices each, joined on this machine.

Run as a program, this file is one of the two: see `work`.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

from kdjax.config import get_config, override, resolve
from kdjax.data.prepared import prepare
from kdjax.data.series import Dataset, Series
from kdjax.detection.calibration import Rules, calibrate
from kdjax.detection.gaussian import merge_all, merge_shares, moments_of
from kdjax.detection.storage import load_detector
from kdjax.detection.thresholds import Rule
from kdjax.errors import ConfigError, DataError
from kdjax.experiment.pipeline import run
from kdjax.experiment.workdir import locked
from kdjax.io.files import MANIFEST, verify_manifest
from kdjax.models.residual import ResidualModel
from kdjax.training import hosts
from kdjax.training.checkpoints import restore_checkpoint, save_checkpoint
from kdjax.training.sharding import place, training_mesh

ROOT = Path(__file__).parent.parent
PATIENCE = 240  # seconds for a process to get anywhere, on a busy machine
PHASES = ("teacher", "student", "student_alone")


# What both processes and the test know.


def tree(step):
    """Arrays of a checkpoint: one that two processes can divide, and others."""
    rng = np.random.default_rng(step)
    return {
        "kernel": rng.normal(size=(64, 6)).astype(np.float32),
        "odd": np.float32([np.nan, -0.0, 1e-45]),
        "count": np.int32(2**31 - 1 - step),
    }


def wave(rng, rows):
    """`[rows, 3]`: two correlated waves with noise and a constant."""
    load = np.sin(np.arange(rows) / 7) + 0.1 * rng.normal(size=rows)
    heat = 20 + 3 * np.roll(load, 2) + 0.2 * rng.normal(size=rows)
    return np.stack([load, heat, np.full(rows, 5.0)], axis=1)


def error_pieces():
    """Pieces `[n, D]` of errors far from 0, more than travel at once, one empty."""
    rng = np.random.default_rng(1)
    sizes = [5, 0, *rng.integers(1, 9, 80)]
    mixing = rng.normal(size=(3, 3))
    return [100 + rng.normal(size=(size, 3)) @ mixing for size in sizes]


def merged_shares():
    own = hosts.share([moments_of(piece) for piece in error_pieces()])
    return merge_shares(own, width=3)


def calibrated():
    """The Normals of a control on rows with gaps, in many batches."""
    rng = np.random.default_rng(2)
    values = rng.normal(size=(700, 2)).astype(np.float32)
    values[rng.integers(0, 700, 9), 0] = np.nan
    prepared = prepare(
        Dataset("plant", (Series("m", values, ("u", "v")),), ()),
        window=6, stride=2, max_gap=5.0, validation=0.3, calibration=0.3,
        scaler="minmax",
    )  # fmt: skip
    rules = Rules(
        allowed_points=1, floor=0.05, ridge=0.1, shrinkage="none",
        scope="per_entity", threshold=Rule("conformal", 0.1), trim=0.1, batch_size=16,
    )  # fmt: skip
    return calibrate(ResidualModel("difference", {}), prepared, rules).gaussians


def bits(values):
    """Each array of a pytree as type, shape and bytes, for JSON."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(values)]
    return [[str(a.dtype), [*a.shape], a.tobytes().hex()] for a in leaves]


# The work of one of two processes.


def work(port, number, folder):
    """Does what needs two processes; prints what came out, as JSON."""
    hosts.start(f"127.0.0.1:{port}", 2, number)
    folder = Path(folder)
    said = {"who": [hosts.process(), hosts.processes(), hosts.is_first()]}
    said["share"] = hosts.share(list("abcde")), hosts.share(list("abcde"), first=3)
    said["gather"] = bits(hosts.gather(own_arrays(number)))
    said["tell"] = hosts.gather_texts(f"ünï{number}" * (1 + 99 * number))
    said["on_first"] = hosts.on_first(lambda: [number, None, "x"])
    hosts.barrier("here")
    said["moments"] = bits(merged_shares())
    said["normals"] = bits(calibrated())
    said |= checkpoints_of(folder, number)
    with hosts.working_alone():
        said["apart"] = [hosts.process(), hosts.processes(), training_mesh(64).size]
        save_checkpoint(folder / f"own-{number}", 1, tree(number), "{}")
        own = restore_checkpoint(folder / f"own-{number}", tree(0))
        said["own"] = bits(own.arrays)
    said["faults"] = [*faults(folder, number)]
    print(json.dumps(said))


def own_arrays(number):
    """Of other shapes in each process, and with what float32 can't hold."""
    return {
        "mean": np.full(2 + number, 1 / 3 + number),
        "n": np.int64(2**62 + number),
        "nan": np.array([[np.nan, -0.0, 5e-324]]),
    }


def checkpoints_of(folder, number):
    mesh = training_mesh(64)
    owners = [device.process_index for device in mesh.devices.flat]
    for step in (3, 8):
        save_checkpoint(folder / "both", step, place(tree(step), mesh), '{"by": 2}')
    newest = restore_checkpoint(folder / "both", tree(0))
    alone = restore_checkpoint(folder / "alone", tree(0))
    damaged = restore_checkpoint(folder / "damaged", tree(0))
    with contextlib.suppress(ConfigError):
        training_mesh(33)
        owners = None
    return {
        "owners": owners,
        "newest": [newest.step, bits(newest.arrays), newest.meta],
        "alone": [alone.step, bits(alone.arrays)],
        "damaged": [damaged.step, bits(damaged.arrays)],
    }


def faults(folder, number):
    """What each process hears of the faults of both, and of one."""

    def fail():
        raise DataError("no rows")

    def full():
        raise OSError(28, "No space left on device")

    def stop_one():
        with hosts.failing_together():
            if number:
                raise DataError("the file of host 1 is missing")
            hosts.barrier("never")

    def hold():
        with locked(folder / "held"):
            pass

    for action in (
        lambda: hosts.on_first(fail),
        lambda: hosts.on_first(full),
        lambda: hosts.check_alike("settings", f"seed {number}"),
        lambda: hosts.check_alike("data", "as good"),
        hold,
        stop_one,
        lambda: hosts.start("127.0.0.1:1", 3, 1),
    ):
        try:
            action()
            yield None
        except (OSError, hosts.KdjaxError) as error:
            yield f"{type(error).__name__}: {error}"


# Starting and stopping them.


class Joined(NamedTuple):
    """Two started processes, and the files of what they say."""

    processes: list[subprocess.Popen]
    outputs: list[Path]

    def finish(self):
        """Their exit codes and outputs once both have ended."""
        limit = time.monotonic() + PATIENCE
        try:
            codes = [p.wait(limit - time.monotonic()) for p in self.processes]
        finally:
            self.kill()
        return codes, [path.read_text("utf-8") for path in self.outputs]

    def kill(self):
        for process in self.processes:
            process.kill()
            process.wait()


def start_both(tmp_path_factory, command):
    """Starts `command(port, number)` twice."""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
        hosts.HEARTBEAT: "10",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": str(ROOT),
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("output")
    outputs = [folder / f"{number}.txt" for number in range(2)]
    processes = []
    for number, path in enumerate(outputs):
        with path.open("w") as file:
            processes.append(
                subprocess.Popen(
                    [sys.executable, *command(port, number)],
                    cwd=ROOT,
                    env=environment,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            )
    return Joined(processes, outputs)


# Everything that needs no training.


@pytest.fixture(scope="module")
def prepared_folder(tmp_path_factory):
    """Checkpoints of one process: sound ones, and some with a flipped bit."""
    folder = tmp_path_factory.mktemp("hosts")
    for step in (4, 9):
        save_checkpoint(folder / "alone", step, tree(step), "{}")
    shutil.copytree(folder / "alone", folder / "damaged")
    files = (folder / "damaged" / "9" / "arrays" / "d").iterdir()
    path = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def worked(prepared_folder, tmp_path_factory):
    """What both processes of `work` said."""
    with locked(prepared_folder / "held"):
        codes, outputs = start_both(
            tmp_path_factory,
            lambda port, i: [__file__, str(port), str(i), str(prepared_folder)],
        ).finish()
    assert codes == [0, 0], outputs
    return [json.loads(output.splitlines()[-1]) for output in outputs]


@pytest.mark.slow
def test_each_process_knows_who_it_is_and_what_is_its_own(worked):
    first, second = worked
    assert first["who"] == [0, 2, True] and second["who"] == [1, 2, False]
    assert first["share"] == [["a", "c", "e"], ["b", "d"]]
    assert second["share"] == [["b", "d"], ["a", "c", "e"]]


@pytest.mark.slow
def test_arrays_reach_all_in_order_and_bit_for_bit(worked):
    expected = bits([own_arrays(0), own_arrays(1)])
    assert expected[0][0] == "float64"
    for said in worked:
        assert said["gather"] == expected
        assert said["tell"] == ["ünï0", "ünï1" * 100]
        assert said["on_first"] == [0, None, "x"]


@pytest.mark.slow
def test_moments_of_both_processes_are_those_of_one(worked):
    """The same bits, and numpy's float64 to 1e-12."""
    whole = np.concatenate(error_pieces())
    pieces = [moments_of(piece) for piece in error_pieces()]
    assert merged_shares().n == len(whole)
    for said in worked:
        assert said["moments"] == bits(merged_shares()) == bits(merge_all(pieces))
    merged = merged_shares()
    np.testing.assert_allclose(merged.mean, whole.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(
        merged.covariance, np.cov(whole.T, ddof=0), rtol=1e-12, atol=1e-12
    )


@pytest.mark.slow
def test_a_calibration_shared_by_both_is_that_of_one(worked):
    alone = bits(calibrated())
    assert [said["normals"] for said in worked] == [alone, alone]


@pytest.mark.slow
def test_a_batch_lies_on_all_devices_of_both(worked):
    assert [said["owners"] for said in worked] == [[0, 0, 1, 1]] * 2
    assert [said["apart"] for said in worked] == [[0, 1, 2]] * 2


@pytest.mark.slow
def test_both_write_a_checkpoint_that_one_process_restores(worked, prepared_folder):
    folder = prepared_folder / "both"
    for said in worked:
        step, arrays, meta = said["newest"]
        assert (step, arrays, json.loads(meta)) == (8, bits(tree(8)), {"by": 2})
    # Here is one process with eight devices.
    found = restore_checkpoint(folder, tree(0))
    assert found.step == 8 and bits(found.arrays) == bits(tree(8))
    verify_manifest(folder / "8")
    kept = (folder / "8" / MANIFEST).read_text("utf-8")
    for number in range(2):
        assert f"arrays/ocdbt.process_{number}/d/" in kept


@pytest.mark.slow
def test_two_processes_restore_what_one_wrote_and_judge_damage_alike(
    worked, prepared_folder
):
    for number, said in enumerate(worked):
        assert said["alone"] == [9, bits(tree(9))]
        assert said["damaged"] == [4, bits(tree(4))]
        assert said["own"] == bits(tree(number))
    assert sorted(p.name for p in (prepared_folder / "damaged").iterdir()) == [
        "4", "damaged-9"
    ]  # fmt: skip


@pytest.mark.slow
def test_faults_reach_both_processes(worked, prepared_folder):
    first, second = (said["faults"] for said in worked)
    assert first[0] == second[0] == "DataError: no rows"
    assert first[1] == "OSError: [Errno 28] No space left on device"
    assert second[1] == "OtherFailed: process 0: [Errno 28] No space left on device"
    assert first[2] == second[2]
    assert first[2].startswith(
        "ConfigError: the settings of process 1 differ from those of process 0: start the"
    )
    assert first[3] is second[3] is None
    assert first[4] == second[4]
    assert first[4].startswith("ArtifactError: ")
    assert f"held is in use by process {os.getpid()}" in first[4]
    assert first[5] == "OtherFailed: process 1: the file of host 1 is missing"
    assert second[5] == "DataError: the file of host 1 is missing"
    assert "jax.distributed runs already, as process 0 of 2" in first[6]


# The program.


@pytest.fixture(scope="module")
def changes(tmp_path_factory):
    """Settings of a small run in which both processes use both devices."""
    path = tmp_path_factory.mktemp("data") / "press.csv"
    rows = wave(np.random.default_rng(3), 400)
    np.savetxt(path, rows, "%.6f", ",", header="load,heat,dead", comments="")
    return {
        "data.path": str(path), "data.window": 10, "data.stride": 5,
        "teacher.hidden": (3,), "teacher.epochs": 6, "student.hidden": (3,),
        "student.epochs": 6, "train.batch_size": 64, "train.log_every": 3,
        "threshold.false_alarm_rate": 0.2, "baselines": (),
    }  # fmt: skip


@pytest.fixture(scope="module")
def launch(changes, tmp_path_factory):
    """Starts `run` on both."""

    def start(workdir, more):
        fields = changes | more
        values = [f"--config.{name}={value}" for name, value in fields.items()]

        def command(port, number):
            return [
                "launch.py", "run", f"--workdir={workdir}", *values,
                f"--coordinator=127.0.0.1:{port}", "--num_processes=2",
                f"--process_id={number}",
            ]  # fmt: skip

        return start_both(tmp_path_factory, command)

    return start


@pytest.fixture(scope="module")
def undisturbed(launch, tmp_path_factory):
    """The folder of a run on both that nothing stopped, and what they said."""
    workdir = tmp_path_factory.mktemp("runs") / "both"
    codes, outputs = launch(workdir, {}).finish()
    assert codes == [0, 0], outputs
    return workdir, outputs


def lines(workdir):
    text = (workdir / "metrics.jsonl").read_text("utf-8")
    found = [json.loads(line) for line in text.splitlines()]
    for line in found:
        line.pop("windows_per_second", None)
    return found


def parameters(workdir):
    return [load_detector(workdir / "detectors" / name).model.params for name in PHASES]


@pytest.mark.slow
def test_a_run_on_both_is_a_run_on_one(undisturbed, changes, tmp_path):
    """The same up to rounding: four shares of a gradient are summed in other orders."""
    workdir, (first, second) = undisturbed
    settings = resolve(override(get_config(), changes))
    alone = run(settings, tmp_path / "alone")
    both = json.loads((workdir / "results.json").read_text("utf-8"))
    assert [row["model"] for row in both["rows"]] == [
        row["model"] for row in alone["rows"]
    ]
    for name in PHASES:
        one, other = (
            load_detector(folder / "detectors" / name)
            for folder in (tmp_path / "alone", workdir)
        )
        for a, b in zip(one.gaussians, other.gaussians, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        for tau, shared in zip(one.thresholds, other.thresholds, strict=True):
            assert shared.tau == pytest.approx(tau.tau, rel=1e-4)
            assert shared.n == tau.n > 0
    for a, b in zip(
        jax.tree.leaves(parameters(tmp_path / "alone")),
        jax.tree.leaves(parameters(workdir)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    # One of them writes and shows.
    steps = [(line["phase"], line["step"]) for line in lines(workdir)]
    assert steps == [
        (line["phase"], line["step"]) for line in lines(tmp_path / "alone")
    ]
    assert "teacher: " in first and "Written:" in first
    assert "teacher" not in second and "Written" not in second


def sealed(workdir, phase):
    """Whether a phase has a checkpoint that is whole."""
    return any((workdir / "checkpoints" / phase).glob(f"*/{MANIFEST}"))


@pytest.mark.slow
def test_a_killed_process_ends_the_other_and_both_go_on(undisturbed, launch, tmp_path):
    """To the same bits as a run that nothing stopped."""
    workdir, often = tmp_path / "killed", {"train.checkpoint_seconds": 0}
    both = launch(workdir, often)
    try:
        limit = time.monotonic() + PATIENCE
        while not sealed(workdir, "teacher"):
            assert all(p.poll() is None for p in both.processes), [
                path.read_text("utf-8") for path in both.outputs
            ]
            assert time.monotonic() < limit
            time.sleep(0.01)
        both.processes[1].send_signal(signal.SIGKILL)
        both.processes[0].wait(PATIENCE)
    finally:
        both.kill()
    assert both.processes[1].returncode == -signal.SIGKILL
    assert both.processes[0].returncode != 0
    assert not sealed(workdir, "student") and not (workdir / "results.json").exists()

    codes, (first, second) = launch(workdir, often).finish()
    assert codes == [0, 0], (first, second)
    assert "teacher: resuming after step" in first
    whole, _ = undisturbed
    assert lines(workdir) == lines(whole)
    assert bits(parameters(workdir)) == bits(parameters(whole))


# Alone.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("10.0.0.1",), "--coordinator=10.0.0.1 must be HOST:PORT of process 0"),
        ((":8476", 2, 0), "--coordinator=:8476 must be HOST:PORT"),
        (("host:0", 2, 0), "--coordinator=host:0 must be HOST:PORT"),
        (("host:66000", 2, 0), "--coordinator=host:66000 must be HOST:PORT"),
        (("host:1",), "needs --num_processes and --process_id, got None and None"),
        (("host:1", 2), "needs --num_processes and --process_id, got 2 and None"),
        (("host:1", None, 0), "got None and 0: give both on every host"),
        (("host:1", 2, 2), "--process_id=2 must be from 0 to --num_processes − 1, of"),
        (("host:1", 2, -1), "--process_id=-1 must be from 0"),
        (("host:1", 0, 0), "of --num_processes=0"),
        (("", 2, 0), "need --coordinator=HOST:PORT, got no --coordinator: give"),
        (("auto", 2, None), "--process_id=None need .*, got --coordinator=auto"),
        # Here is no cluster, and JAX runs already.
        (("auto",), "--coordinator=auto: the processes can't be joined"),
    ],
)
def test_what_cannot_be_joined_is_refused(arguments, said):
    jax.devices()
    with pytest.raises(ConfigError, match=said):
        hosts.start(*arguments)
    assert hosts.processes() == 1


@pytest.mark.parametrize("text", ["0", "-3", "soon", ""])
def test_a_heartbeat_is_a_whole_number_of_seconds(monkeypatch, text):
    monkeypatch.setenv(hosts.HEARTBEAT, text)
    with pytest.raises(ConfigError, match=f"KDJAX_HEARTBEAT_SECONDS={text} must be"):
        hosts.start("auto")


def test_alone_everything_is_as_it_was():
    hosts.start()
    assert (hosts.process(), hosts.processes(), hosts.is_first()) == (0, 1, True)
    assert hosts.share([1, 2, 3]) == [1, 2, 3]
    values = {"a": np.ones(2)}
    assert hosts.gather(values) == [values] and hosts.gather(values)[0] is values
    assert hosts.gather_texts("x") == ["x"]
    marker = object()
    assert hosts.on_first(lambda: marker) is marker
    hosts.barrier("nobody")
    hosts.check_alike("settings", "any")
    assert training_mesh(64).size == min(jax.local_device_count(), 4)
    assert training_mesh(33) is None


def test_asking_who_one_is_leaves_jax_alone():
    code = (
        "import sys; from kdjax.training import hosts; hosts.start();"
        "print(hosts.process(), hosts.processes(), 'jax' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["0", "1", "False"]


if __name__ == "__main__":
    work(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
