"""Kills, signals, full disks, missing permissions: what is left is whole, or goes on.

Sampled from `benchmarks/attacks/kills.py`, which does the same at hundreds of moments on
real rows. `run` under SIGKILL is in `test_experiment_resume.py`, the fleet's in `test_fleet.py`.
"""

import contextlib
import importlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from kdjax.cli import main
from kdjax.data import download as fetch
from kdjax.detection.storage import load_detector, save_detector
from kdjax.experiment.workdir import locked
from kdjax.io import files as artifacts
from kdjax.io import signals as stopping
from kdjax.io.files import atomic_path, clear_leftovers

ROOT = Path(__file__).parent.parent
PATIENCE = 120  # seconds for a process to get anywhere, on a busy machine
DEAD = 2**22 + 1  # above the largest number that Linux gives a process


def _attacks(name):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks" / "attacks"))
        return importlib.import_module(name)


kills, programs, traces = map(_attacks, ("kills", "programs", "traces"))


@pytest.fixture(scope="module")
def student(finished):
    return finished.workdir / "detectors" / "student"


@pytest.fixture(scope="module")
def flags(finished):
    """Of the session's run: its data and its networks."""
    settings = finished.settings
    data = [
        f"--config.data.{name}={settings['data'][name]}"
        for name in (
            *("path", "test_path", "entity_column", "label_column", "window", "stride"),
        )
    ]
    return [
        *data,
        "--config.teacher.hidden=(3,)",
        "--config.student.hidden=(2,)",
        "--config.teacher.epochs=2",
        "--config.student.epochs=2",
        "--config.threshold.method=conformal",
        "--config.threshold.false_alarm_rate=0.1",
        "--config.baselines=()",
    ]


def words(stderr):
    """The one line that a program ends with; warnings of libraries have no place."""
    (line,) = stderr.splitlines()
    assert line.startswith("kdjax: ")
    return line


def assert_same_networks(one, other):
    for name in ("teacher", "student"):
        with (
            np.load(one / "detectors" / name / "arrays.npz") as expected,
            np.load(other / "detectors" / name / "arrays.npz") as found,
        ):
            assert set(found) == set(expected)
            for key, value in expected.items():
                assert found[key].tobytes() == value.tobytes(), (name, key)


# Names of unfinished files.


def unfinished(folder, name, pid, *, host=None, kind="tmp"):
    """Makes what a killed process would have left."""
    mark = f"{host or artifacts._host()}-{pid}-0a1b2c"
    made = f".{mark}.tmp.{name}" if kind == "tmp" else f".{name}.{mark}.{kind}"
    path = folder / made
    path.write_text("half") if kind == "tmp" else path.mkdir()
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_temporary_name_tells_its_process(tmp_path):
    with atomic_path(tmp_path / "scores.csv") as temporary:
        temporary.write_text("new")
        assert f"-{os.getpid()}-" in temporary.name
        clear_leftovers(tmp_path)
        assert temporary.exists(), "it is being written"
    assert names(tmp_path) == ["scores.csv"]


def test_what_dead_processes_left_is_cleared(tmp_path):
    below = tmp_path / "below"
    below.mkdir()
    for folder in (tmp_path, below):
        unfinished(folder, "scores.csv", DEAD)
        unfinished(folder, "own", os.getpid())  # of an earlier life with this number
    clear_leftovers(tmp_path, ("scores.csv",))
    assert len(names(tmp_path)) == 2 and len(names(below)) == 2
    clear_leftovers(tmp_path)
    assert names(tmp_path) == ["below"] and names(below) == []


def test_what_may_be_anothers_work_stays(tmp_path):
    kept = [
        unfinished(tmp_path, "alive", os.getppid()),
        unfinished(tmp_path, "elsewhere", DEAD, host="zzzz"),
    ]
    kept += [tmp_path / ".0a1b2c3d.tmp.mine", tmp_path / ".tmp", tmp_path / "a.tmp.b"]
    other = unfinished(tmp_path, "other-host", DEAD, host="0000")
    kept.append(other.rename(tmp_path / other.name.replace("0000", "ffff")))
    for path in kept[2:5]:
        path.write_text("a user's")
    clear_leftovers(tmp_path)
    assert set(tmp_path.iterdir()) == set(kept)
    old = time.time() - 2 * 86_400
    os.utime(kept[-1], (old, old))
    clear_leftovers(tmp_path)
    assert set(tmp_path.iterdir()) == set(kept[:-1])


def test_a_detector_lost_between_two_names_is_found(tmp_path, small):
    folder = tmp_path / "student"
    save_detector(folder, small)
    script = (
        "import os, signal, sys\n"
        "from kdjax.detection import storage\n"
        "rename = storage.Path.rename\n"
        "def deadly(path, target):\n"
        "    if path.suffix == '.new':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return rename(path, target)\n"
        "storage.Path.rename = deadly\n"
        "new = storage.load_detector(sys.argv[1])._replace(card={'title': 'new'})\n"
        "storage.save_detector(sys.argv[1], new)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(folder)], check=False)
    assert done.returncode == -signal.SIGKILL and not folder.exists()
    assert load_detector(folder).card["title"] == "new"
    save_detector(folder, small)
    assert names(tmp_path) == ["student"]


def test_an_old_detector_is_found_where_the_new_one_is_not_whole(tmp_path, small):
    save_detector(tmp_path / "student", small)
    mark = f"{artifacts._host()}-{DEAD}-0a1b2c"
    (tmp_path / "student").rename(tmp_path / f".student.{mark}.old")
    (tmp_path / f".student.{mark}.new").mkdir()
    assert load_detector(tmp_path / "student").card["title"] == "by hand"
    clear_leftovers(tmp_path)
    assert names(tmp_path) == ["student"]
    unfinished(tmp_path, "student", DEAD, kind="new")
    save_detector(tmp_path / "student", small)
    assert names(tmp_path) == ["student"]


# Kills.


@pytest.fixture(scope="module")
def commands(finished, student, flags, tmp_path_factory):
    """Commands on the plant by verb, each as a function of where to write."""
    folder = tmp_path_factory.mktemp("commands")
    design = folder / "members.py"
    design.write_text(programs.SWEEP)
    fleet = folder / "fleet"
    fleet.mkdir()
    for name in ("a.csv", "b.csv"):
        shutil.copy(finished.plant.test, fleet / name)
    columns = ["--entity_column=machine", "--label_column=fault"]
    detector = f"--detector={student}"
    test, train = finished.plant.test, finished.plant.train
    return {
        "run": lambda to: ["run", *flags, f"--workdir={to}"],
        "sweep": lambda to: [
            *("sweep", f"--config={design}", "--way=together", *flags),
            f"--workdir={to}",
        ],
        "score": lambda to: [
            *("score", str(test), detector, *columns, f"--output={to / 's.csv'}")
        ],
        "fleet": lambda to: [
            *("score", str(fleet), detector, *columns, f"--output={to}/out/")
        ],
        "calibrate": lambda to: [
            *("calibrate", str(train), detector, "--entity_column=machine"),
            *("--config.threshold.false_alarm_rate=0.2", f"--output={to / 'd'}"),
        ],
        "export": lambda to: [
            *("export", detector, "--entity=press", f"--output={to / 'o.onnx'}")
        ],
        "stream": lambda to: [
            *("stream", detector, "--entity=press", "--ignore=machine,fault"),
            *(f"--output={to / 'o.jsonl'}", f"--state={to / 'state'}"),
        ],
        "fetch": lambda to: ["fetch", "smd", f"--output={to}"],
    }


@pytest.fixture
def say(capsys, monkeypatch, finished):
    """Runs a command in this process; its code and its errors. Streams get the test."""
    # Milliseconds are measured anew each time.
    monkeypatch.setattr("kdjax.export.costs.window_milliseconds", lambda *_: 0.1)

    def run(arguments):
        text = finished.plant.test.read_text("utf-8")
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        capsys.readouterr()
        code = main(["kdjax", *map(str, arguments)])
        return code, capsys.readouterr().err

    return run


# Of this process, by `conftest.py`: sums over a batch come to the same bits.
DEVICES = {"JAX_NUM_CPU_DEVICES": "8"}
# The calls of the file system at which it is killed, one start after the other.
KILLED_AT = {"fleet": ("replace 1", "replace 5")}


@pytest.mark.slow
@pytest.mark.parametrize("verb", KILLED_AT)
def test_a_killed_program_ends_with_the_same_bytes(commands, say, verb, tmp_path):
    case = programs.Case(commands[verb], None, programs.UNTIMED | DEVICES)
    for call in KILLED_AT[verb]:
        ended = programs.launch(case, tmp_path / "killed", KILL_AT=call)
        assert ended.code == -signal.SIGKILL, ended.err
        assert len(traces.leftovers(tmp_path / "killed")) == 1
    ended = programs.launch(case, tmp_path / "killed")
    assert ended.code == 0, ended.err
    assert traces.leftovers(tmp_path / "killed") == []
    assert say(commands[verb](tmp_path / "whole"))[0] == 0
    expected, found = (traces.contents(tmp_path / name) for name in ("whole", "killed"))
    assert len(expected) > 4 and found == expected


# Signals.


def logged(workdir):
    path = workdir / "metrics.jsonl"
    return path.read_text("utf-8") if path.exists() else ""


@pytest.mark.slow
def test_sigterm_costs_a_run_no_step(commands, finished, tmp_path):
    """Without a checkpoint in time, only the signal's can be what it goes on from."""
    more = ["--config.train.log_every=1", "--config.train.checkpoint_seconds=900"]
    case = programs.Case(lambda to: [*commands["run"](to), *more], None, DEVICES)
    workdir = tmp_path / "run"
    workdir.mkdir()
    process = programs.start(case, workdir)
    limit = time.monotonic() + PATIENCE
    while '"step": 1,' not in logged(workdir) and time.monotonic() < limit:
        time.sleep(0.002)
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    ended = programs.finish(process, started)
    assert ended.seconds < 10  # 5 on a machine with nothing else to do
    assert ended.code == 128 + signal.SIGTERM
    assert words(ended.err) == (
        "kdjax: stopped by SIGTERM; rerun the same command to resume"
    )
    assert '"phase": "student"' not in logged(workdir)
    (step,) = (int(p.name) for p in (workdir / "checkpoints" / "teacher").iterdir())
    assert step == json.loads(logged(workdir).splitlines()[-1])["step"] >= 1
    ended = programs.launch(case, workdir)
    assert ended.code == 0, ended.err
    assert f"teacher: resuming after step {step}" in ended.out
    assert_same_networks(workdir, finished.workdir)


@pytest.fixture
def interruptible():
    """SIGINT as usual, even where this runs as a shell's background job."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_sigint_ends_a_fleet_with_130(commands, interruptible, tmp_path):
    process = programs.start(programs.Case(commands["fleet"]), tmp_path)
    assert "rows scored with the threshold" in process.stdout.readline()
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    ended = programs.finish(process, started)
    assert ended.seconds < 10 and ended.code == 128 + signal.SIGINT
    assert words(ended.err) == "kdjax: interrupted; rerun the same command to resume"
    assert traces.leftovers(tmp_path) == []


BUSY = """
import hashlib, sys
from kdjax.io import signals as stopping
stopping.GRACE = {grace}
stopping.install_handlers()
print("ready", flush=True)
{work}
"""
# A computation of minutes in which Python can't look up, as while XLA compiles.
COMPILES = "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
# A callback swallows what is raised in it: only a second try can end the program.
SWALLOWS = """
import time, weakref
class Thing: pass
def callback(_):
    time.sleep(600)
thing = Thing()
kept = weakref.ref(thing, callback)
try:
    del thing
    time.sleep(600)
except KeyboardInterrupt as error:
    sys.exit(stopping.stop_message(error))
"""
# Nothing but the watch ends what holds a signal back for good.
HOLDS = """
import time
with stopping.signals_held():
    time.sleep(600)
"""


# Compiled modules may abort when they are interrupted in their beginning, others swallow
# it: an import ends at once.
IMPORTS = """
import pathlib, tempfile
with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "slow.py"
    path.write_text(
        "import time\\ntry:\\n  time.sleep(600)\\nexcept BaseException:\\n  time.sleep(600)"
    )
    sys.path.append(folder)
    import slow
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("work", "grace"), [(COMPILES, 0.2), (HOLDS, 0.2), (SWALLOWS, 60), (IMPORTS, 60)]
)
def test_a_signal_ends_whatever_goes_on(work, grace):
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY.format(work=work, grace=grace)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    ended = programs.finish(process, started)
    assert ended.seconds < 4 and ended.code == 128 + signal.SIGTERM
    assert words(ended.err).startswith("kdjax: stopped by SIGTERM; ")


@pytest.mark.slow
def test_a_signal_at_the_very_end_changes_nothing():
    """A module's end comes after all that a program does by itself."""
    script = (
        "import os, signal, time\n"
        "from kdjax.io import signals as stopping\n"
        "class Late:\n"
        "    def __init__(self):\n"
        "        self.kill, self.me = os.kill, os.getpid()\n"
        "    def __del__(self):\n"
        "        self.kill(self.me, 15)\n"
        "stopping.install_handlers()\n"
        "late = Late()\n"
        "stopping.ignore_signals()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def signalled():
    """A signal that came and is held back; all as before in the end."""
    stopping._came.append(signal.SIGINT)
    yield
    stopping._came.clear()


def test_held_back_until_the_end_of_the_block(signalled):
    reached = []
    with pytest.raises(stopping.Stopped) as caught, stopping.signals_held():
        assert stopping.stop_requested()
        reached.append(True)
    assert reached and caught.value.number == signal.SIGINT
    with stopping.signals_held(False):
        assert not stopping.stop_requested()


# Full disks.


@pytest.fixture
def disk(tmp_path):
    """A folder on a disk of its own, and a function that changes its size in KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        try:
            resize = stack.enter_context(kills.mounted(folder, 4))
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no disk can be mounted here: {error}")
        yield folder, resize


# What the disk holds in KiB: too little for any file, or for the last.
FULL = {"score": 12, "fleet": 24, "export": 4, "calibrate": 8, "stream": 12}


@pytest.mark.slow
@pytest.mark.parametrize("verb", FULL)
def test_a_full_disk_leaves_nothing_half_written(commands, say, disk, verb, tmp_path):
    folder, mount = disk
    mount(FULL[verb])
    code, err = say(commands[verb](folder))
    assert code == 2
    assert "No space left on device" in words(err.splitlines()[-1])
    assert str(folder) in err or verb == "stream"
    assert "None" not in err and "rerun the command" in " ".join(err.split())
    assert traces.leftovers(folder) == []
    mount(12_288)
    assert say(commands[verb](folder))[0] == 0
    (tmp_path / "roomy").mkdir()
    assert say(commands[verb](tmp_path / "roomy"))[0] == 0
    assert traces.contents(folder) == traces.contents(tmp_path / "roomy")


@pytest.mark.slow
def test_a_full_disk_keeps_the_old_output(commands, say, disk):
    folder, mount = disk
    mount(16)
    for path in (folder / "s.csv", folder / "s.csv.events.csv"):
        path.write_text("old\n")
    assert say(commands["score"](folder))[0] == 2
    assert {p.name: p.read_text() for p in folder.iterdir()} == {
        "s.csv": "old\n",
        "s.csv.events.csv": "old\n",
    }


@pytest.mark.slow
def test_a_download_goes_on_once_there_is_room(commands, say, disk, monkeypatch):
    folder, mount = disk
    mount(1500)
    with programs.served() as (url, entries):
        monkeypatch.setattr(
            fetch, "_registry", lambda: [fetch._Entry(*e) for e in entries[:3]]
        )
        monkeypatch.setitem(fetch.fetch_smd.__kwdefaults__, "base_url", url)
        code, err = say(commands["fetch"](folder))
        assert code == 2
        assert "No space left on device" in words(err.splitlines()[-1])
        # Two have room.
        assert sorted(p.name for p in folder.rglob("*.*")) == [
            Path(name).name for name, *_ in entries[:2]
        ]
        mount(12_288)
        assert say(commands["fetch"](folder))[0] == 0
    assert traces.contents(folder) == {name: sha for name, sha, _ in entries[:3]}


@pytest.mark.slow
def test_a_run_goes_on_once_there_is_room(commands, say, disk, finished):
    folder, mount = disk
    mount(300)
    code, err = say(commands["run"](folder / "run"))
    assert code == 2
    assert "could not be saved ([Errno 28] No space left on device). Free" in words(err)
    # Room for all networks, then for some detectors, then for all.
    mount(12_288)
    assert say(commands["run"](folder / "run"))[0] == 0
    for path in (folder / "run").glob("re*.*"):
        path.unlink()
    shutil.rmtree(folder / "run" / "detectors")
    used = sum(p.stat().st_blocks for p in folder.rglob("*")) // 2
    mount(used + 40)
    code, err = say(commands["run"](folder / "run"))
    assert code == 2 and f"space left on device: '{folder}" in words(err)
    assert not (folder / "run" / "results.json").exists()
    mount(16_384)
    assert say(commands["run"](folder / "run"))[0] == 0
    assert_same_networks(folder / "run", finished.workdir)


# Missing permissions.

# Runs commands as another user, after each has run once as this one: what it imports
# may lie where the other can't read.
AS_ANOTHER = """
import contextlib, io, json, os, sys
import kdjax.experiment.pipeline, kdjax.experiment.sweeps.sweep, kdjax.experiment.sweeps.report, kdjax.evaluation.tables
import pooch, requests, rich._emoji_codes
from kdjax.cli import main
from kdjax.data import download as fetch
given = json.load(open(sys.argv[1]))
def say(arguments):
    errors = io.StringIO()
    sys.stdin = io.StringIO("load,heat,dead\\n" + "1,2,3\\n" * 12)
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        code = main(["kdjax", *arguments])
    return [code, errors.getvalue()]
entries = fetch._registry()
fetch._registry = lambda: entries
warm = [say(arguments) for arguments in given["warm"]]
assert not any(code for code, _ in warm), warm
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
assert os.geteuid() != 0
json.dump({name: say(given["denied"][name]) for name in given["denied"]}, sys.__stdout__)
"""


@pytest.fixture(scope="module")
def denied(commands, student, finished):
    """What each verb says where it may not write, or not read, by case."""
    with tempfile.TemporaryDirectory() as name:  # which another user can enter
        top = Path(name)
        top.chmod(0o755)
        open_, shut, warm = top / "open", top / "shut", top / "warm"
        for folder in (open_, shut, warm):
            folder.mkdir()
        shutil.copytree(student, open_ / "d")
        for path in (finished.plant.train, finished.plant.test):
            shutil.copy(path, open_ / path.name)
        shutil.copytree(open_, top / "secret")
        (open_ / "members.py").write_text(programs.SWEEP)
        (shut / "s.csv").write_text("old\n")

        def moved(arguments, place=open_):
            known = {
                str(student): "d",
                str(finished.plant.train): "train.csv",
                str(finished.plant.test): "test.csv",
            }
            for old, new in known.items():
                arguments = [a.replace(old, str(place / new)) for a in arguments]
            return [
                a if "members.py" not in a else f"--config={open_ / 'members.py'}"
                for a in arguments
            ]

        verbs = [verb for verb in commands if verb not in ("fleet", "fetch")]
        cases = {verb: moved(commands[verb](shut)) for verb in verbs}
        cases["run in a new folder"] = moved(commands["run"](shut / "run"))
        cases["fetch"] = commands["fetch"](shut)
        for verb in ("score", "run"):
            to = open_ / f"unread-{verb}"
            cases[f"{verb}, unreadable"] = moved(commands[verb](to), top / "secret")
        given = {
            "warm": [
                moved(commands[verb](warm / verb))
                for verb in ("score", "calibrate", "export", "stream")
            ],
            "denied": cases,
        }
        (top / "given.json").write_text(json.dumps(given))
        for path in (top / "secret").rglob("*"):
            path.chmod(0o700 if path.is_dir() else 0)
        (open_).chmod(0o777)
        shut.chmod(0o555)
        done = subprocess.run(
            [sys.executable, "-c", AS_ANOTHER, str(top / "given.json")],
            cwd=ROOT,
            check=False,
            capture_output=True,
            text=True,
        )
        shut.chmod(0o755)
        assert done.returncode == 0, done.stderr
        assert (shut / "s.csv").read_text() == "old\n" and names(shut) == ["s.csv"]
        yield json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs users")
def test_what_may_not_be_written_or_read_is_one_line(denied):
    assert len(denied) == 10
    for name, (code, err) in denied.items():
        assert code == 2, name
        # `fetch` has shown its progress by then.
        line = words(err.splitlines()[-1] if name == "fetch" else err)
        assert "ermission" in line, (name, err)
        assert "shut" in err or "secret" in err, (name, err)


# Two programs on one folder.


@contextlib.contextmanager
def held_by_another(workdir):
    """The process that works there."""
    script = (
        "import pathlib, sys\n"
        "from kdjax.experiment.workdir import locked\n"
        "with locked(pathlib.Path(sys.argv[1])):\n"
        "    print('holds', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(workdir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "holds\n"
        yield process
        process.stdin.close()


@pytest.mark.slow
def test_the_second_of_two_is_refused_by_the_firsts_number(commands, say, tmp_path):
    with held_by_another(tmp_path) as first:
        for verb in ("run", "sweep"):
            code, err = say(commands[verb](tmp_path))
            assert code == 2
            assert f"is in use by process {first.pid}: wait for it, or" in words(err)
        first.kill()
        first.wait()
    # A lock of the dead: its files are there, and hinder nobody.
    assert (tmp_path / ".lock.pid").read_text() == str(first.pid)
    unfinished(tmp_path, "config.json", first.pid)
    with locked(tmp_path):
        assert (tmp_path / ".lock.pid").read_text() == str(os.getpid())
    assert names(tmp_path) == [".lock"]


# What XLA compiled.


@pytest.mark.slow
def test_a_damaged_entry_of_the_cache_is_compiled_again(tmp_path):
    """JAX writes entries in place: a full disk cuts them short, and they stay so."""
    script = (
        "import sys, jax, jax.numpy as jnp\n"
        "from kdjax.training.sharding import start_program\n"
        "start_program()\n"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)\n"
        "print(float(jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.ones((4, 4))).sum()))\n"
    )
    environment = {
        name: value for name, value in os.environ.items() if "CACHE" not in name
    } | {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}

    def start():
        command = [sys.executable, "-c", script]
        done = subprocess.run(
            command, env=environment, check=True, capture_output=True, text=True
        )
        return done.stdout, done.stderr

    said, err = start()
    assert err == ""
    entries = sorted((tmp_path / "kdjax" / "xla").glob("jit__lambda*-cache"))
    assert len(entries) == 1
    whole = entries[0].read_bytes()
    for damaged in (whole[:-9], b""):
        entries[0].write_bytes(damaged)
        assert start() == (said, "")
        assert len(entries[0].read_bytes()) > len(damaged), "written again"
