"""Programs killed at random moments, and whether their restarts come to the same bytes.

    python benchmarks/kills.py kill --output=kills.json
    python benchmarks/kills.py signal --output=signals.json
    python benchmarks/kills.py full --output=full.json

`kill`: each verb runs undisturbed on rows of the machine of SMD in the package; then again
and again in fresh folders where SIGKILL ends it and it is started anew, once to three
times before it may end. Half of the moments are drawn evenly over the undisturbed time,
the others over its calls of the file system (before or after a rename, a sync, a new
folder, a removal): there a kill does most harm. What the last start leaves is compared
with the undisturbed run: arrays, logs, tables and files bit for bit, JSON but for what is
measured in seconds, and nothing unfinished may be left.

`signal`: SIGTERM or SIGINT instead, at moments drawn alike, with the seconds until the end
and what was said. `full`: a disk of its own that is too small, of a size drawn evenly up
to what the undisturbed run takes; then there is room, and the program starts again. Disks
are mounted (tmpfs), which needs root.

The report is written after each trial, and a campaign that was stopped goes on where it
was. Seeds are the trials' numbers. 220 kills take about an hour on a core; every program
is started by a command line of its own.
"""

import argparse
import contextlib
import hashlib
import http.server
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from kdjax.artifacts import write_text
from kdjax.data.benchmarks import load_sample
from kdjax.environment import describe_environment

ROOT = Path(__file__).parent.parent
CHANNELS = 8
PATIENCE = 600  # seconds for any program, on a busy machine
# Kills of each verb.
KILLS = {
    "run": 50,
    "sweep_alone": 14,
    "sweep_together": 14,
    "score_file": 20,
    "score_folder": 20,
    "stream": 36,
    "export_onnx": 14,
    "export_stablehlo": 12,
    "fetch": 30,
}
FULL = dict.fromkeys(KILLS, 4) | {"run": 8}
SIGNALS = dict.fromkeys(KILLS, 6) | {"run": 16, "stream": 8}

NETWORKS = (
    "--config.data.window=50",
    "--config.data.stride=10",
    "--config.data.dense_below=0",
    "--config.teacher.hidden=(16,)",
    "--config.teacher.epochs=3",
    "--config.student.hidden=(8,)",
    "--config.student.epochs=3",
    "--config.train.batch_size=16",
    "--config.train.log_every=3",
    "--config.train.checkpoint_seconds=0.1",
    "--config.threshold.false_alarm_rate=0.05",
)
UNTIMED = {"CHANGED": "run sweep"}
SWEEP = """
from kdjax.config import get_config
def sweep(add):
    for alpha in (0.3, 0.7):
        add({"distill.alpha": alpha})
"""
# The program, which counts its calls of the file system and may die at one of them:
# KILL_AT is the number of a moment before or after a call, or such as "replace 2".
PROGRAM = """
import os, signal
at, count, counts = os.environ.get("KILL_AT"), 0, {}
def tick(name):
    global count
    count += 1
    counts[name] = counts.get(name, 0) + 1
    if at in (str(count), f"{name} {counts[name]}"):
        os.kill(os.getpid(), signal.SIGKILL)
def watched(name, real):
    def call(*args, **kwargs):
        tick(name)
        found = real(*args, **kwargs)
        tick("after")
        return found
    return call
for name in ("replace", "rename", "fsync", "unlink", "mkdir", "rmdir"):
    setattr(os, name, watched(name, getattr(os, name)))
import kdjax.cli as cli
def changed(verb):
    real = cli.VERBS[verb]
    def run(request):
        if verb == "fetch":
            import json
            import kdjax.data.fetch as fetch
            url, entries = json.loads(os.environ["FETCH"])
            fetch._registry = lambda: [fetch._Entry(*entry) for entry in entries]
            fetch.fetch_smd.__kwdefaults__["base_url"] = url
        else:
            # Milliseconds a window, which stand in tables and sentences, are measured
            # and left.
            import kdjax.costs as costs
            measure = costs.window_milliseconds
            costs.window_milliseconds = lambda *args: 0.1 if measure(*args) else 0.1
        real(request)
    cli.VERBS[verb] = run
for name in os.environ.get("CHANGED", "").split():
    changed(name)
try:
    cli.program()
finally:
    if "COUNTED" in os.environ:
        open(os.environ["COUNTED"], "w").write(str(count))
"""


class Case(NamedTuple):
    """A command to disturb.

    Attributes:
        arguments: of the program, with a folder for what it writes.
        stdin: what it reads, if it does.
        environment: beside the usual one.
    """

    arguments: Callable[[Path], list[str]]
    stdin: Path | None = None
    environment: Mapping[str, str] = MappingProxyType({})


class Ended(NamedTuple):
    """How a program ended: its status, what it said, and its seconds."""

    code: int
    out: str
    err: str
    seconds: float


class Moment(NamedTuple):
    """When to disturb: after so many seconds, or at a call of the file system."""

    seconds: float = 0.0
    call: int = 0


def main() -> None:
    """Runs the campaign, or goes on with it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("how", choices=("kill", "signal", "full"))
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--cases", default=",".join(KILLS))
    parser.add_argument("--scale", default=1.0, type=float, help="of all numbers")
    given = parser.parse_args()
    # A shell's background jobs ignore it, and their children would.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    report: dict[str, Any] = {"how": given.how, "cases": {}}
    if given.output.exists():
        report = json.loads(given.output.read_text("utf-8"))
    numbers = {"kill": KILLS, "signal": SIGNALS, "full": FULL}[given.how]
    disturb = {"kill": killed, "signal": signalled, "full": filled}[given.how]
    with tempfile.TemporaryDirectory() as name, prepared(Path(name)) as cases:
        for verb in given.cases.split(","):
            wanted = max(1, round(given.scale * numbers[verb]))
            found = report["cases"].setdefault(verb, {"trials": []})
            first = undisturbed(cases[verb], Path(name) / f"{verb}-first")
            found |= first.facts
            while sum(trial["disturbed"] for trial in found["trials"]) < wanted:
                seed = len(found["trials"])
                trial = disturb(
                    cases[verb], first, Path(name) / f"{verb}-{seed}", seed=seed
                )
                found["trials"].append({"seed": seed, **trial})
                report["environment"] = describe_environment()
                write_text(given.output, json.dumps(report, indent=1) + "\n")
                print(verb, trial, flush=True)


# What is run.


@contextlib.contextmanager
def prepared(folder: Path) -> Iterator[dict[str, Case]]:
    """The cases by name, with the files that they need."""
    files = write_files(folder)
    run = run_case(files)
    detector = folder / "reference" / "detectors" / "student"
    check(launch(run, folder / "reference"))
    design = folder / "members.py"
    design.write_text(SWEEP, "utf-8")

    def sweep(way: str) -> Case:
        flags = [f"--config={design}", f"--way={way}", *run.arguments(folder)[2:]]
        return Case(lambda to: ["sweep", f"--workdir={to}", *flags], None, UNTIMED)

    def score(path: Path, output: str) -> Case:
        flags = [str(path), f"--detector={detector}", "--label_column=fault"]
        return Case(
            lambda to: ["score", *flags, "--contributions", f"--output={to / output}"]
        )

    def export(kind: str) -> Case:
        flags = [f"--detector={detector}", f"--format={kind}"]
        return Case(lambda to: ["export", *flags, f"--output={to / 'out'}"])

    streamed = [f"--detector={detector}", "--backend=onnxruntime", "--ignore=fault"]
    with served() as fetching:
        yield {
            "run": run,
            "sweep_alone": sweep("alone"),
            "sweep_together": sweep("together"),
            "score_file": score(files / "test.csv", "scores.csv"),
            "score_folder": score(files / "fleet", "scores/"),
            "stream": Case(
                lambda to: [
                    "stream", *streamed, f"--state={to / 'state'}",
                    f"--output={to / 'answers.jsonl'}",
                ],
                stdin=files / "long.csv",
            ),
            "export_onnx": export("onnx"),
            "export_stablehlo": export("stablehlo"),
            "fetch": Case(
                lambda to: ["fetch", "smd", f"--output={to}"],
                environment={"FETCH": json.dumps(fetching), "CHANGED": "fetch"},
            ),
        }  # fmt: skip


def run_case(files: Path) -> Case:
    """A run of tiny networks, whose folder is the case's own."""
    flags = [
        f"--config.data.path={files / 'train.csv'}",
        f"--config.data.test_path={files / 'test.csv'}",
        "--config.data.label_column=fault",
        "--config.controls=('mahalanobis',)",
        *NETWORKS,
    ]
    return Case(lambda to: ["run", f"--workdir={to}", *flags], None, UNTIMED)


def write_files(folder: Path) -> Path:
    """Rows of the machine in the package as CSV, in one file and in several."""
    files = folder / "files"
    (files / "fleet").mkdir(parents=True)
    train, test = load_sample().train[0], load_sample().test[0]
    frame(train, 0, 2000).drop(columns="fault").to_csv(files / "train.csv", index=False)
    frame(test, 4000, 6000).to_csv(files / "test.csv", index=False)
    frame(test, 0, len(test.values)).to_csv(files / "long.csv", index=False)
    for number in range(6):
        rows = frame(test, 3000 * number, 3000 * number + 2500)
        rows.to_csv(files / "fleet" / f"part-{number}.csv", index=False)
    return files


def frame(series: Any, start: int, stop: int) -> pd.DataFrame:
    """Some rows with time and label, the first channels under names."""
    names = [f"channel_{i}" for i in range(CHANNELS)]
    table = pd.DataFrame(series.values[start:stop, :CHANNELS], columns=names)
    table.insert(0, "time", 60 * np.arange(start, start + len(table)))
    labels = 0 if series.labels is None else series.labels[start:stop]
    return table.assign(fault=labels)


@contextlib.contextmanager
def served() -> Iterator[tuple[str, list[tuple[str, str, int]]]]:
    """The machine's files on loopback, some times over: an address and a registry."""
    series = load_sample()
    parts = {"train": series.train[0].values, "test": series.test[0].values}
    files = {
        f"{part}/machine-1-{number}.txt": values[4000 * number :][:4000].tobytes()
        for part, values in parts.items()
        for number in range(5)
    }

    class Slow(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = files[self.path.lstrip("/")]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with contextlib.suppress(OSError):  # whoever asked was killed
                for first in range(0, len(content), 65_536):
                    self.wfile.write(content[first : first + 65_536])
                    time.sleep(0.02)

        def log_message(self, *_: Any) -> None:
            pass

    entries = [(n, hashlib.sha256(c).hexdigest(), len(c)) for n, c in files.items()]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", entries
        server.shutdown()


def start(case: Case, folder: Path, **more: str) -> "subprocess.Popen[str]":
    """Starts a case as a session of its own."""
    stdin = case.stdin.open("rb") if case.stdin else subprocess.DEVNULL
    try:
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *case.arguments(folder)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | case.environment | more,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    finally:
        if case.stdin:
            stdin.close()  # type: ignore[union-attr]


def launch(case: Case, folder: Path, **more: str) -> Ended:
    """Runs a case to its end."""
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    return finish(start(case, folder, **more), started)


def finish(process: "subprocess.Popen[str]", started: float) -> Ended:
    """Waits for a program's end."""
    out, err = process.communicate(timeout=PATIENCE)
    return Ended(process.returncode, out, err, time.monotonic() - started)


def check(ended: Ended) -> None:
    """Ends the campaign where an undisturbed program fails."""
    if ended.code:
        raise SystemExit(f"status {ended.code}: {ended.err}")


# What it is compared with.


class First(NamedTuple):
    """An undisturbed run: what it left, its seconds and its calls of the file system."""

    found: dict[str, str]
    facts: dict[str, Any]


def undisturbed(case: Case, folder: Path) -> First:
    """A run that nothing disturbs, the second one: compiling is over."""
    check(launch(case, folder / "warm"))
    counted = folder / "calls"
    ended = launch(case, folder / "kept", COUNTED=str(counted))
    check(ended)
    facts = {
        "seconds": ended.seconds,
        "calls": int(counted.read_text()),
        "kilobytes": kilobytes(folder / "kept"),
    }
    found = contents(folder / "kept")
    again = contents(folder / "warm")
    if found != again:
        raise SystemExit(f"two undisturbed runs differ: {differing(found, again)}")
    return First(found, facts)


def killed(case: Case, first: First, folder: Path, *, seed: int) -> dict[str, Any]:
    """A case that is killed, once or more, and then left to end."""
    rng = random.Random(f"kill {seed}")
    kills: list[dict[str, Any]] = []
    for _ in range(rng.randint(1, 3)):
        moment = drawn(rng, first)
        more = {"KILL_AT": str(moment.call)} if moment.call else {}
        folder.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        process = start(case, folder, **more)
        if not moment.call:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(moment.seconds)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        ended = finish(process, started)
        if ended.code == -signal.SIGKILL:
            kills.append(moment._asdict())
        elif ended.code:
            break
    last = launch(case, folder)
    return {"disturbed": len(kills), "moments": kills, **outcome(last, first, folder)}


def signalled(case: Case, first: First, folder: Path, *, seed: int) -> dict[str, Any]:
    """A case that a signal ends, and that is then left to end by itself."""
    rng = random.Random(f"signal {seed}")
    number = (signal.SIGTERM, signal.SIGINT)[seed % 2]
    wait = rng.uniform(0.0, first.facts["seconds"])
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    process = start(case, folder)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(wait)
    sent = time.monotonic()
    process.send_signal(number)
    ended = finish(process, started)
    took = time.monotonic() - sent
    facts = {
        "signal": number.name,
        "after": wait,
        "took": took,
        "code": ended.code,
        "said": ended.err.splitlines()[-3:],
        "traceback": "Traceback" in ended.err,
        "left": leftovers(folder),
    }
    return {"disturbed": 1, **facts, **outcome(launch(case, folder), first, folder)}


def filled(case: Case, first: First, folder: Path, *, seed: int) -> dict[str, Any]:
    """A case on a disk that is too small, and once more when there is room."""
    rng = random.Random(f"full {seed}")
    size = rng.randint(4, first.facts["kilobytes"])
    folder.mkdir(parents=True, exist_ok=True)
    with mounted(folder, size) as resize:
        ended = launch(case, folder)
        facts = {
            "size": size,
            "code": ended.code,
            "said": ended.err.splitlines()[-3:],
            "traceback": "Traceback" in ended.err,
            "left": leftovers(folder),
        }
        resize(1 << 20)
        last = launch(case, folder)
        return {"disturbed": ended.code == 2, **facts, **outcome(last, first, folder)}


@contextlib.contextmanager
def mounted(folder: Path, size: int) -> Iterator[Callable[[int], None]]:
    """A disk of so many KiB in a folder, and how to make it larger."""
    command = ["mount", "-t", "tmpfs", "-o"]

    def resize(size: int) -> None:
        options = f"remount,size={size}k"
        subprocess.run([*command, options, "kdjax", str(folder)], check=True)

    subprocess.run([*command, f"size={size}k", "kdjax", str(folder)], check=True)
    try:
        yield resize
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def kilobytes(folder: Path) -> int:
    """What a folder takes on a disk of pages of 4 KiB."""
    sizes = [p.stat().st_size for p in folder.rglob("*") if p.is_file()]
    return sum(4 * -(-size // 4096) for size in sizes)


def drawn(rng: random.Random, first: First) -> Moment:
    """A moment of an undisturbed run."""
    if rng.random() < 0.5:
        return Moment(seconds=rng.uniform(0.0, first.facts["seconds"]))
    return Moment(call=rng.randint(1, first.facts["calls"]))


def outcome(last: Ended, first: First, folder: Path) -> dict[str, Any]:
    """What is wrong after the last start, if anything is."""
    found = contents(folder) if last.code == 0 else {}
    return {
        "code_of_last": last.code,
        "faults": last.err.splitlines()[-3:] if last.code else [],
        "mismatches": differing(first.found, found),
        "leftovers": leftovers(folder),
    }


def differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Names of what two runs have not alike."""
    return sorted(k for k in one.keys() | other.keys() if one.get(k) != other.get(k))


def leftovers(folder: Path) -> list[str]:
    """Hidden and unfinished files that a finished program should not leave."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if re.search(r"^\.|\.tmp|tmp-|^tmp|\.new$|\.old$", path.name)
        and path.name not in (".lock", ".results.sha256")
    )


# Measured anew each time, in JSON and in the text of a page.
TIMED = {"environment", "windows_per_second"}
SECONDS = re.compile(rb"&quot;(data|training|judgement)&quot;: [0-9.]+")


def contents(folder: Path) -> dict[str, str]:
    """A digest of each file, of what is not measured in seconds; arrays by their bytes."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and "checkpoints/" not in name and path.name[0] != ".":
            found[name] = digest(path, folder)
        elif path.is_dir() and path.parent.parent.name == "checkpoints":
            steps = [int(p.name) for p in path.parent.iterdir() if p.name.isdecimal()]
            if path.name == str(max(steps)):
                found[name] = restored(path)
    return found


def digest(path: Path, folder: Path) -> str:
    """Of a file."""
    content = path.read_bytes()
    if path.suffix == ".npz":
        with np.load(path) as file:
            return json.dumps({k: hashed(v.tobytes()) for k, v in file.items()})
    if path.suffix in (".json", ".jsonl"):
        lines = content.splitlines() if path.suffix == ".jsonl" else [content]
        content = json.dumps([timeless(json.loads(line)) for line in lines]).encode()
    elif path.name == "state":  # The rest of it is a place and its digest.
        content = json.dumps(json.loads(content)["state"]["stream"]).encode()
    content = content.replace(str(folder).encode(), b"FOLDER")
    return hashed(SECONDS.sub(b"", content))


def timeless(value: Any) -> Any:
    """JSON without what is measured in seconds."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in TIMED}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def restored(step: Path) -> str:
    """The arrays of a checkpoint."""
    import jax
    import orbax.checkpoint as ocp

    with warnings.catch_warnings():  # that the devices may be others
        warnings.simplefilter("ignore")
        arrays = ocp.PyTreeCheckpointer().restore(step / "arrays")
    return hashed(
        b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(arrays))
    )


def hashed(content: bytes) -> str:
    """SHA-256."""
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    main()
