"""A sweep split over two processes, one of which is killed, against one process's."""

import time

import pandas as pd
import pytest
from test_sweep_tables import read_table
from test_training_hosts import PATIENCE, start_both

from kdjax.cli import main

pytestmark = pytest.mark.slow

CONFIG = """
from kdjax.config import get_config as defaults

def get_config():
    config = defaults()
    config.data.window = 10
    config.data.stride = 5
    config.teacher.seed = 0
    config.teacher.hidden = (3,)
    config.teacher.epochs = 1
    config.student.hidden = (2,)
    config.student.epochs = 30
    config.train.checkpoint_seconds = 0.0
    config.threshold.false_alarm_rate = 0.1
    return config

def sweep(add):
    for seed in range(3):
        add(seed=seed)
    add({"distill.alpha": 0.0})
"""


@pytest.fixture(scope="module")
def command(tmp_path_factory, plant):
    """Makes the arguments of the program for a work directory."""
    path = tmp_path_factory.mktemp("config") / "four.py"
    path.write_text(CONFIG)

    def make(workdir, *more):
        return [
            "sweep", f"--config={path}", f"--workdir={workdir}", "--way=together",
            f"--config.data.path={plant.train}", f"--config.data.test_path={plant.test}",
            "--config.data.entity_column=machine", "--config.data.label_column=fault",
            *more,
        ]  # fmt: skip

    return make


def both(tmp_path_factory, command, workdir):
    def arguments(port, number):
        joined = f"--coordinator=127.0.0.1:{port}", "--num_processes=2"
        return ["launch.py", *command(workdir, *joined, f"--process_id={number}")]

    return start_both(tmp_path_factory, arguments)


def logged(path, count):
    """Waits until a log has so many lines."""
    limit = time.monotonic() + PATIENCE
    while not path.exists() or path.read_text().count("\n") < count:
        assert time.monotonic() < limit, f"{path} stayed short"
        time.sleep(0.02)


def test_a_sweep_over_two_processes_survives_the_death_of_one(
    tmp_path_factory, command, tmp_path
):
    workdir = tmp_path / "two"
    started = both(tmp_path_factory, command, workdir)
    logged(workdir / "process-1" / "metrics.jsonl", 8)
    started.processes[1].kill()
    codes, _ = started.finish()
    assert codes[1] == -9 and codes[0] != 0
    assert not (workdir / "members.csv").exists()
    codes, outputs = both(tmp_path_factory, command, workdir).finish()
    assert codes == [0, 0], outputs
    assert "members.csv" in outputs[0] and "members.csv" not in outputs[1]
    assert main(["kdjax", *command(tmp_path / "one")]) == 0
    found, expected = (
        read_table(tmp_path / name / "members.csv").drop(columns="milliseconds")
        for name in ("two", "one")
    )
    pd.testing.assert_frame_equal(found, expected, rtol=1e-3, atol=1e-3)
    # Each network is in one process's folder, and none was trained twice to its end.
    names = [
        {path.name for path in (workdir / part / "checkpoints").glob("student-*")}
        for part in (".", "process-1")
    ]
    assert len(names[0] | names[1]) == 4 and not names[0] & names[1]
    assert len(names[0]) == len(names[1]) == 2
