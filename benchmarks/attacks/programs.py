"""Programs of kdjax that are disturbed, and how they are started and watched.

For `kills.py`, which disturbs them, and for the tests.
"""

import contextlib
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from kdjax.data.datasets import load_sample

ROOT = Path(__file__).parents[2]
CHANNELS = 8
PATIENCE = 600  # seconds for any program, on a busy machine

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
# Verbs whose files hold milliseconds.
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
    real = cli.VERBS[verb].main
    def run(arguments, flags):
        if verb == "fetch":
            import json
            import kdjax.data.download as fetch
            url, entries = json.loads(os.environ["FETCH"])
            fetch._registry = lambda: [fetch._Entry(*entry) for entry in entries]
            fetch.fetch_smd.__kwdefaults__["base_url"] = url
        else:
            # Milliseconds a window, which stand in tables and sentences, are measured
            # and left.
            import kdjax.export.costs as costs
            measure = costs.window_milliseconds
            costs.window_milliseconds = lambda *args: 0.1 if measure(*args) else 0.1
        real(arguments, flags)
    cli.VERBS[verb].main = run
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
        "--config.baselines=('mahalanobis',)",
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
