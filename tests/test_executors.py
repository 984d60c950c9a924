"""Units of work in this process, and what is refused before Ray starts."""

import contextlib
import importlib
import io
import pickle
import socket
import threading
import time
from types import SimpleNamespace

import jax
import pandas as pd
import pytest
from conftest import TINY
from executor_work import act
from rich.console import Console

from kdjax.config import get_config, override
from kdjax.detection.storage import save_detector
from kdjax.errors import ConfigError, DataError
from kdjax.experiment.sweeps import search as searches
from kdjax.experiment.sweeps import sweep, units
from kdjax.experiment.sweeps.design import make_design, make_search, read_file
from kdjax.io import executors
from kdjax.io.executors import ONE_CORE, Outcome, Resources, Unit, run_units
from kdjax.io.files import kdjax_version
from kdjax.scoring import files

WRONG = f"kdjax 0.0.9, not {kdjax_version()}"


def unit(folder, number, what=None):
    data = {"folder": str(folder), "name": f"u{number}", "number": number, "what": what}
    return Unit(f"unit {number}", data)


def test_a_failing_unit_is_told_and_the_others_go_on(tmp_path):
    wanted = [unit(tmp_path, 2), unit(tmp_path, 3, "is wrong"), unit(tmp_path, 4)]
    assert [*run_units(act, wanted)] == [
        Outcome("unit 2", 4),
        Outcome("unit 3", None, "two lines"),
        Outcome("unit 4", 16),
    ]
    with pytest.raises(TypeError, match="a bug"):  # as without executors
        [*run_units(act, [unit(tmp_path, 5, "has a bug")])]


def test_ray_that_is_not_installed_is_named(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"pip install 'kdjax\[ray\]'"):
        [*run_units(act, [], executor="ray")]
    with pytest.raises(ConfigError, match="needs --executor=ray, got local"):
        run_units(act, [], address="auto")
    with pytest.raises(ConfigError, match="executor='spark' is unknown"):
        run_units(act, [], executor="spark")


@contextlib.contextmanager
def server(answer):
    """A server that accepts one caller, says `answer`, and then nothing; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        heard, done = [], threading.Event()

        def serve():
            stream, _ = listening.accept()
            with stream:
                heard.append(stream.recv(100))
                stream.sendall(answer)
                done.wait(30)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}", heard
        done.set()
        thread.join()


def test_who_answers_is_known_by_the_first_bytes(monkeypatch):
    settings = b"\0\0\x18\4\0\0\0\0\0" + bytes(24)
    with server(settings) as (address, heard):
        assert executors._answers(address)
    assert heard[0].startswith(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    with server(b"HTTP/1.1 400 Bad Request") as (address, _):
        assert not executors._answers(address)
    monkeypatch.setattr(executors, "_CONNECT_SECONDS", 0.3)
    with server(b"") as (address, _):  # accepts, and says nothing
        started = time.monotonic()
        assert not executors._answers(address)
        assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:1", "127.0.0.1", ":", "127.0.0.1:99999999", "no.invalid:6379"],
)
def test_addresses_without_a_server_have_no_answer(address):
    assert not executors._answers(address)


# A cluster that is made up: nodes without this kdjax.


class MadeUp:
    """Ray whose tasks run at once, each on the first node that its label allows."""

    exceptions = SimpleNamespace(RayTaskError=KeyError, RayError=LookupError)

    def __init__(self, nodes, unfit):
        self.names, self.unfit, self.selectors = nodes, unfit, []

    def nodes(self):
        return [
            {"NodeID": name, "Alive": True, "Resources": {"CPU": 1}}
            for name in self.names
        ]

    def cluster_resources(self):
        return {"CPU": len(self.names)}

    def is_initialized(self):
        return True

    def remote(self, **_):
        def decorated(call):
            def options(label_selector=None):
                own = (label_selector or {"ray.io/node-id": "!in()"})["ray.io/node-id"]
                self.selectors.append(own)
                banned = own.removeprefix("!in(").removesuffix(")").split(",")
                node = next(n for n in self.names if n not in banned)
                fault = f"the worker on {node} has {WRONG}"
                bad = node in self.unfit

                def remote(data):
                    found = (None, fault, node) if bad else (act(data), "", "")
                    return data["name"], found

                return SimpleNamespace(remote=remote)

            return SimpleNamespace(options=options)

        return decorated

    def wait(self, running, timeout):
        return running[:1], running[1:]

    def get(self, done):
        return done[1]


@pytest.fixture
def cluster(monkeypatch):
    def make(nodes, unfit):
        ray = MadeUp(nodes, unfit)
        monkeypatch.setattr(importlib, "import_module", lambda name: ray)
        return ray

    return make


def test_units_of_a_node_with_another_version_run_elsewhere(cluster, tmp_path, caplog):
    ray = cluster(["old", "new"], {"old"})
    wanted = [unit(tmp_path, number) for number in range(3)]
    found = sorted(run_units(act, wanted, executor="ray"))
    assert found == [Outcome(f"unit {n}", n * n) for n in range(3)]
    assert ray.selectors[-1] == "!in(old)"
    assert caplog.messages == [f"the worker on old has {WRONG}"]


def test_units_of_which_no_node_has_the_version_fail_by_name(cluster, tmp_path):
    cluster(["old", "older"], {"old", "older"})
    wanted = [unit(tmp_path, number) for number in range(3)]
    found = sorted(run_units(act, wanted, executor="ray"))
    assert [own.name for own in found] == ["unit 0", "unit 1", "unit 2"]
    assert all(f"has {WRONG}" in own.error for own in found)


def test_more_cores_than_a_computer_has_are_refused(cluster):
    cluster(["one", "two"], set())
    with pytest.raises(ConfigError, match="needs 2 CPU, but the cluster has 1 on one"):
        [*run_units(act, [], executor="ray", resources=Resources(2))]


# The verbs' units, in this process.


@pytest.fixture
def here(monkeypatch):
    """Does units that are for Ray in this process, on copies of their data; their names."""
    names = []

    def run_here(work, wanted, **execution):
        assert execution["executor"] == "ray"
        names.extend(unit.name for unit in wanted)
        copies = [
            own._replace(data=pickle.loads(pickle.dumps(own.data))) for own in wanted
        ]
        return run_units(work, sorted(copies, key=lambda unit: -unit.cost))

    for module in (units, searches, files):
        monkeypatch.setattr(module, "run_units", run_here)
    monkeypatch.setattr(sweep, "connected", lambda **_: contextlib.nullcontext())
    return names


def contents(folder, pattern="**/*"):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.glob(pattern)
        if path.is_file()
    }


@pytest.fixture
def rows_of(tmp_path, small, rows):
    """A folder of five files, the third of which is broken, and a detector for them."""
    save_detector(tmp_path / "detector", small)
    folder = tmp_path / "plants"
    folder.mkdir()
    for number in range(5):
        series = rows(14 + 10 * number, seed=number)
        frame = pd.DataFrame(series.values, columns=["x", "y"])
        frame = frame.drop(columns="y") if number == 2 else frame
        frame.to_csv(folder / f"{number}.csv", index=False)
    return {"paths": [folder], "detector": tmp_path / "detector"}


def test_units_of_files_score_as_one_process_does(rows_of, here, tmp_path, monkeypatch):
    said = {}
    for executor in ("local", "ray"):
        lines = said[executor] = []
        with pytest.raises(
            DataError, match="1 of 5 files failed; the first is 2.csv: "
        ):
            files.score_fleet(
                **rows_of,
                output=tmp_path / executor,
                executor=executor,
                log=lines.append,
            )
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    names = [line.replace("/ray", "/local") for line in said["ray"]]
    assert sorted(names) == sorted(said["local"])
    assert here == ["4.csv", "3.csv", "1.csv", "2.csv", "0.csv"]  # by size
    assert names[0].startswith("4: 54 rows") and names[-1] == said["local"][-1]
    # Again: all whole ones are verified; by larger units.
    monkeypatch.setattr(files, "_UNITS", 2)
    with pytest.raises(DataError, match="1 of 5 files failed"):
        files.score_fleet(
            **rows_of, output=tmp_path / "ray", executor="ray", log=lines.append
        )
    assert here[5:] == ["4.csv\n3.csv", "1.csv\n2.csv\n0.csv"]
    assert lines[-1].endswith("5 of 5 files: 0 scored, 4 verified, 1 failed")


def test_a_lost_unit_fails_its_files_by_name(rows_of, tmp_path, monkeypatch):
    def lost(work, wanted, **_):
        return (Outcome(own.name, None, "its worker died") for own in wanted)

    monkeypatch.setattr(files, "run_units", lost)
    lines = []
    with pytest.raises(
        DataError, match="5 of 5 files failed; the first is 4.csv: its wor"
    ):
        files.score_fleet(
            **rows_of, output=tmp_path / "out", executor="ray", log=lines.append
        )
    assert "failed: 0.csv: its worker died" in lines


def test_options_that_fit_no_file_end_it(rows_of, here, tmp_path):
    options = {**rows_of, "output": tmp_path / "out", "executor": "ray"}
    with pytest.raises(ConfigError) as on_workers:
        files.score_fleet(**options, order="sideways")
    with pytest.raises(ConfigError) as locally:
        files.score_fleet(**options | {"executor": "local"}, order="sideways")
    assert str(on_workers.value) == str(locally.value)


CHANGES = [{"seed": seed} for seed in range(3)]
CHANGES += [{"train.learning_rate": 1e38}, {"threshold.false_alarm_rate": 0.2}]


@pytest.fixture
def make(plant_changes):
    def made(changes=CHANGES, **more):
        config = override(
            get_config(), TINY | plant_changes | {"teacher.seed": 0} | more
        )
        return make_design("five", config, lambda add: [*map(add, changes)])

    return made


@pytest.mark.slow
def test_units_of_a_sweep_end_as_one_process_does(make, here, tmp_path, monkeypatch):
    monkeypatch.setattr(units, "PART", 1)
    found = {
        executor: sweep.run_sweep(
            make(),
            tmp_path / executor,
            executor=executor,
            way="together",
        ).members
        for executor in ("local", "ray")
    }
    one, other = (
        contents(tmp_path / executor, "members/*/detectors/**/*") for executor in found
    )
    assert one == other and len(one) == 4 * 5
    measured = {"milliseconds"}
    pd.testing.assert_frame_equal(
        *(table.drop(columns=measured) for table in found.values())
    )
    # Each network a part, and the members whose networks are finite.
    assert [name.split("-")[0] for name in here[:5]] == ["teacher"] * 2 + [
        "student"
    ] * 3
    assert here[5:] == [f"member {n:03d} ({n + 1} of 5)" for n in (0, 1, 2, 4)]
    count = len(here)
    # What is finished is not done again, by either.
    for executor in ("local", "ray"):
        sweep.run_sweep(make(), tmp_path / "ray", executor=executor)
    assert len(here) == count


@pytest.mark.slow
def test_a_sweep_whose_unit_fails_does_the_rest_and_goes_on(
    make, here, tmp_path, monkeypatch
):
    design, train_unit = make(CHANGES[:2]), units.train_unit
    monkeypatch.setattr(units, "PART", 1 / jax.local_device_count())
    monkeypatch.setattr(units, "train_unit", None)
    teachers = []

    def failing(data):
        if len(data["members"]) and len(teachers) == 1:
            teachers.append("second")
            raise DataError("the disk is full")
        teachers.append("first")
        return train_unit(data)

    monkeypatch.setattr(units, "train_unit", failing)
    text = io.StringIO()
    options = {"executor": "ray", "resources": ONE_CORE, "way": "together"}
    with pytest.raises(
        DataError, match="1 unit failed; the first is student-.* is full"
    ):
        sweep.run_sweep(design, tmp_path / "w", console=Console(file=text), **options)
    assert "failed: student-" in text.getvalue()
    done = [*(tmp_path / "w").glob("members/*/results.json")]
    assert len(done) == 1 and not (tmp_path / "w" / "members.csv").exists()
    table = sweep.run_sweep(design, tmp_path / "w", **options).members
    assert set(table["status"]) == {"done"} and len(teachers) == 4


@pytest.mark.slow
def test_each_trial_of_a_search_is_a_unit(plant_changes, here, tmp_path):
    path = tmp_path / "rates.py"
    path.write_text(
        "SEEDS = (0, 3)\n"
        "def get_config(name): pass\n"
        "def search(trial, name):\n"
        "    assert name == 'x'\n"
        "    return {'train.learning_rate': trial.suggest_float('rate', 3e-3, 3e-2)}\n"
    )
    config = override(get_config(), TINY | plant_changes | {"distill.alpha": 0.0})
    search = make_search("rates", config, read_file(str(path), ["x"]))
    with pytest.raises(ConfigError, match="needs the search's config file"):
        searches.run_search(search, tmp_path / "w", executor="ray")
    text = io.StringIO()
    search = search._replace(path=str(path), argument=("x",))
    found = {
        executor: searches.run_search(
            search,
            tmp_path / executor,
            trials=2,
            executor=executor,
            console=Console(file=text),
        )
        for executor in ("local", "ray")
    }
    assert here == ["trial 1 of 2", "trial 2 of 2"]
    values = [own.trials["value"].tolist() for own in found.values()]
    assert values[0] == values[1] and len(values[0]) == 2
    assert text.getvalue().count("trial 0001 (rate=") == 2
    path.unlink()
    with pytest.raises(
        DataError, match="1 of 1 trial failed; the first is trial 1 of 1: "
    ):
        searches._known.cache_clear()
        searches.run_search(search, tmp_path / "ray", trials=1, executor="ray")
