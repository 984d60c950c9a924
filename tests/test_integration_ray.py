"""Units on real Ray clusters of this computer: deaths, other versions, the verbs' bytes."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pandas as pd
import pytest
from executor_work import act, count_devices
from test_executors import contents, unit
from test_sweep_tables import read_table

from kdjax.detection.storage import save_detector
from kdjax.errors import ConfigError
from kdjax.io.executors import Outcome, Resources, Unit, run_units

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    # Ray forks to start nodes; tests before may have started JAX in this process.
    pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
ROOT = Path(__file__).parent.parent
PATHS = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
# What a worker imports first: another version of kdjax.
ANOTHER = """
import importlib.metadata as metadata
known = metadata.version
metadata.version = lambda name: "0.0.9" if name == "kdjax" else known(name)
"""


@pytest.fixture(scope="module")
def cluster():
    """A head of two cores on this computer."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    before = {name: os.environ.get(name) for name in ("PYTHONPATH", "RAY_AUTH_MODE")}
    os.environ |= {"PYTHONPATH": PATHS, "RAY_AUTH_MODE": "disabled"}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    yield made
    made.shutdown()
    del made
    with warnings.catch_warnings():  # Ray does not wait for the processes it ended
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    for name, value in before.items():
        os.environ.pop(name)
        if value is not None:
            os.environ[name] = value


@pytest.fixture
def on(cluster):
    return {"executor": "ray", "address": cluster.address}


def test_a_worker_has_the_devices_and_threads_of_its_cores(on):
    options = {**on, "resources": Resources(2)}
    assert [*run_units(count_devices, [Unit("a", {})], **options)] == [
        Outcome("a", [2, 2])
    ]


def test_a_dead_worker_loses_its_unit_alone(on, tmp_path):
    kinds = [None, "dies once", "dies", "is wrong", "has a bug", None]
    wanted = [unit(tmp_path, number, what) for number, what in enumerate(kinds)]
    found = {own.name: own for own in run_units(act, wanted, **on)}
    assert [found[f"unit {n}"].value for n in range(6)] == [0, 1, None, None, None, 25]
    assert found["unit 2"].error.startswith("its worker died 4 times: ")
    assert found["unit 3"].error == "two lines"
    assert found["unit 4"].error == "its worker failed: TypeError: a bug"
    runs = [(tmp_path / f"u{n}").read_text().count("\n") for n in range(6)]
    assert runs == [1, 2, 4, 1, 1, 1]


def test_a_dead_node_loses_its_units_alone(on, cluster, tmp_path, capfd):
    node = cluster.add_node(num_cpus=2)
    wanted = [unit(tmp_path, number, "waits") for number in range(6)]

    def kill():
        end = time.monotonic() + 60
        while len([*tmp_path.glob("u*")]) < 4 and time.monotonic() < end:
            time.sleep(0.05)
        cluster.remove_node(node, allow_graceful=False)
        time.sleep(2)  # until its workers have ended
        (tmp_path / "go").touch()

    killer = threading.Thread(target=kill)
    killer.start()
    found = sorted(run_units(act, wanted, **on))
    killer.join()
    assert found == [Outcome(f"unit {n}", n * n) for n in range(6)]
    runs = [(tmp_path / f"u{n}").read_text().count("\n") for n in range(6)]
    assert 7 <= sum(runs) <= 8 and max(runs) == 2  # those of the node, twice
    assert "aylet" not in "".join(capfd.readouterr())


def test_a_node_with_another_version_is_told_and_left_out(
    on, cluster, tmp_path, caplog
):
    (tmp_path / "sitecustomize.py").write_text(ANOTHER)
    paths = os.pathsep.join([str(tmp_path), PATHS])
    node = cluster.add_node(num_cpus=3, env_vars={"PYTHONPATH": paths})
    try:
        wanted = [unit(tmp_path, number) for number in range(6)]
        (found,) = run_units(act, wanted[:1], **on, resources=Resources(3))
        assert found.name == "unit 0"
        assert "has kdjax 0.0.9, not " in found.error  # no other has three cores
        found = sorted(run_units(act, wanted, **on))
        assert found == [Outcome(f"unit {n}", n * n) for n in range(6)]
        assert all("has kdjax 0.0.9, not " in message for message in caplog.messages)
    finally:
        cluster.remove_node(node)


def test_more_than_the_cluster_has_and_ports_of_others_are_refused(on, cluster):
    with pytest.raises(ConfigError, match="the cluster has 2 on one computer"):
        [*run_units(act, [], **on, resources=Resources(9))]
    with pytest.raises(ConfigError, match="needs 1 GPU, but the cluster has 0"):
        [*run_units(act, [], **on, resources=Resources(1, 1))]
    host, _, port = cluster.address.rpartition(":")
    for address in (f"{host}:1", f"no.invalid:{port}"):
        started = time.monotonic()
        with pytest.raises(ConfigError, match=f"--ray_address={address}: start one"):
            [*run_units(act, [], executor="ray", address=address)]
        assert time.monotonic() - started < 10


# The verbs.


def start(*arguments, **more):
    environment = os.environ | {"PYTHONPATH": PATHS} | more
    return subprocess.Popen(
        [sys.executable, str(ROOT / "launch.py"), *map(str, arguments)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_score_writes_the_bytes_of_one_process(on, small, rows, tmp_path):
    save_detector(tmp_path / "detector", small)
    folder = tmp_path / "plants"
    folder.mkdir()
    for number in range(6):
        values = rows(14 + 10 * number, seed=number).values[:, : 1 + (number != 2)]
        text = "\n".join(",".join(map(str, row)) for row in values)
        header = "x,y" if number != 2 else "x"
        (folder / f"{number}.csv").write_text(f"{header}\n{text}\n")
    said = {}
    for name, flags in {
        "local": [],
        "ray": ["--executor=ray", f"--ray_address={on['address']}"],
    }.items():
        output = tmp_path / name
        process = start(
            "score", folder, f"--detector={tmp_path}/detector", f"--output={output}/",
            *flags,
        )  # fmt: skip
        out, err = process.communicate(timeout=120)
        assert process.returncode == 2
        assert err.startswith("kdjax: 1 of 6 files failed; the first is 2.csv: ")
        assert err.count("\n") == 1  # nothing of Ray's
        said[name] = sorted(out.replace(str(output), "output").splitlines())
    assert said["local"] == said["ray"]
    assert contents(tmp_path / "local") == contents(tmp_path / "ray")


SWEEP = """
from kdjax.config import get_config as defaults

def get_config():
    config = defaults()
    config.data.window = 10
    config.data.stride = 5
    config.teacher.seed = 0
    config.teacher.hidden = (3,)
    config.teacher.epochs = 1
    config.student.hidden = (2,)
    config.student.epochs = 40
    config.train.checkpoint_seconds = 1.0
    config.threshold.method = "conformal"
    config.threshold.false_alarm_rate = 0.1
    return config

def sweep(add):
    for seed in range(3):
        add(seed=seed)
"""


@pytest.fixture
def sweep(tmp_path, plant):
    (tmp_path / "three.py").write_text(SWEEP)

    def begin(workdir, *flags):
        return start(
            "sweep", f"--config={tmp_path}/three.py", f"--workdir={tmp_path / workdir}",
            f"--config.data.path={plant.train}", f"--config.data.test_path={plant.test}",
            "--config.data.entity_column=machine", "--config.data.label_column=fault",
            "--way=together", *flags,
        )  # fmt: skip

    return begin


def wait_for(condition, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def raylets():
    """Ray's nodes and workers that have this program's mark; agents take a minute."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            marked = (
                b"KDJAX_TEST_MARK=" + str(os.getpid()).encode() in path.read_bytes()
            )
            command = (path.parent / "cmdline").read_bytes()
            if marked and b"Agent" not in command and b"launch.py" not in command:
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def test_a_sweep_outlives_its_driver_and_a_node(sweep, on, cluster, tmp_path):
    """The driver and then a node are killed in training; the bytes are those of one process."""
    one_core = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1", "NPROC": "1"}
    os.environ |= one_core
    try:
        local = sweep("local")
    finally:
        for name in one_core:
            os.environ.pop(name)
    assert local.wait(timeout=240) == 0
    flags = ["--executor=ray", f"--ray_address={on['address']}"]
    first = sweep("ray", *flags)
    logs = lambda: [*(tmp_path / "ray").glob("unit-*/metrics.jsonl")]
    students = lambda: sum("student" in log.read_text() for log in logs())
    wait_for(lambda: students() >= 1)
    first.kill()
    first.wait()
    node = cluster.add_node(num_cpus=2)
    second = sweep("ray", *flags)
    time.sleep(3)
    cluster.remove_node(node, allow_graceful=False)
    out, err = second.communicate(timeout=400)
    assert second.returncode == 0, err
    assert "member 002 (3 of 3): calibrating and scoring" in out
    pattern = "members/*/detectors/**/*"
    one, other = (contents(tmp_path / name, pattern) for name in ("local", "ray"))
    assert one == other and len(one) == 15
    one, other = (
        read_table(tmp_path / name / "members.csv").drop(columns="milliseconds")
        for name in ("local", "ray")  # which is measured
    )
    pd.testing.assert_frame_equal(one, other, check_exact=True)
    assert len(one) == 6


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_ray_ends_with_the_program_that_started_it(sweep, tmp_path, number):
    process = start_marked(sweep)
    wait_for(lambda: [*(tmp_path / "w").glob("unit-*")])
    assert len(raylets()) > 3
    process.send_signal(number)
    _, err = process.communicate(timeout=10)
    if number == signal.SIGTERM:
        assert process.returncode == 143
        assert err.splitlines()[-1].startswith("kdjax: stopped by SIGTERM; rerun the ")
        assert "oken" not in err
    wait_for(lambda: not raylets(), 30)
    shutil.rmtree(tmp_path / "w")


def start_marked(sweep):
    os.environ["KDJAX_TEST_MARK"] = str(os.getpid())
    try:
        return sweep("w", "--executor=ray")
    finally:
        os.environ.pop("KDJAX_TEST_MARK")
