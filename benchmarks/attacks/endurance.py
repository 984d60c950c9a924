"""Memory and file handles of long-running programs: a stream, a training job.

    python benchmarks/attacks/endurance.py stream --rows=10000000 --output=stream.json
    python benchmarks/attacks/endurance.py fit --epochs=1000 --output=fit.json

`stream` trains a detector with a student of 16 units on eight channels of the machine in
the package, exports it to ONNX, and sends that machine's test rows round and round, a
minute apart, through `kdjax stream --backend=onnxruntime` with a state file. `fit` trains
on the first 2,000 of those rows for many epochs. Both are ordinary processes, observed
through /proc (Linux); the report has a line every so many seconds: rows or epochs
done, resident memory, open files. About an hour for ten million rows on one core.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pandas as pd

from kdjax.data.datasets import load_sample
from kdjax.io.environment import describe_environment
from kdjax.io.files import write_text

CHANNELS = 8
HIDDEN = 16
FIT_ROWS = 2000
KDJAX = (sys.executable, "-c", "from kdjax.cli import program; program()")


def main() -> None:
    """Runs one of the two and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("stream", "fit"))
    parser.add_argument("--rows", default=10_000_000, type=int)
    parser.add_argument("--epochs", default=1000, type=int)
    parser.add_argument("--every", default=15.0, type=float, help="seconds")
    parser.add_argument("--output", required=True, type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.what == "stream":
            seen = watch_stream(folder, given.rows, given.every)
        else:
            seen = watch_fit(folder, given.epochs, given.every)
    report = seen | {"environment": describe_environment()}
    write_text(given.output, json.dumps(report, indent=1) + "\n")


def watch_stream(folder: Path, rows: int, every: float) -> dict[str, Any]:
    """A stream of so many rows, each answered once and in order."""
    train(folder, rows=None, epochs=2)
    student, exported = folder / "run/detectors/student", folder / "student.onnx"
    run("export", f"--detector={student}", "--format=onnx", f"--output={exported}")
    options = (
        f"--detector={exported}",
        "--backend=onnxruntime",
        f"--state={folder / 'state'}",
    )
    process = subprocess.Popen(
        [*KDJAX, "stream", *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None and process.stdout is not None
    sender = threading.Thread(target=send, args=(process.stdin, rows), daemon=True)
    answered = Counter()
    reader = threading.Thread(target=answered.read, args=(process.stdout,), daemon=True)
    started = time.monotonic()
    sender.start()
    reader.start()
    samples = watched(process, every, lambda: answered.lines)
    reader.join()
    if process.returncode != 0 or answered.lines != rows:
        raise SystemExit(
            f"stream: {answered.lines} answers to {rows} rows, status "
            f"{process.returncode}"
        )
    return {
        "rows": rows,
        "channels": CHANNELS,
        "hidden": HIDDEN,
        "alarms": answered.alarms,
        "seconds": time.monotonic() - started,
        "samples": samples,
    }


def watch_fit(folder: Path, epochs: int, every: float) -> dict[str, Any]:
    """A run whose teacher and students train for so many epochs."""
    started = time.monotonic()
    process = train(folder, rows=FIT_ROWS, epochs=epochs, wait=False)
    log = folder / "run" / "metrics.jsonl"
    samples = watched(process, every, lambda: last_epoch(log))
    if process.returncode != 0:
        raise SystemExit(f"fit: status {process.returncode}")
    return {
        "rows": FIT_ROWS,
        "epochs": epochs,
        "hidden": HIDDEN,
        "seconds": time.monotonic() - started,
        "samples": samples,
    }


def train(
    folder: Path, *, rows: int | None, epochs: int, wait: bool = True
) -> "subprocess.Popen[bytes]":
    """A run on the first rows of the machine in the package."""
    path = folder / "plant.csv"
    frame(load_sample().train[0].values[:rows]).to_csv(path, index=False)
    process = subprocess.Popen(
        [
            *KDJAX,
            "run",
            f"--workdir={folder / 'run'}",
            f"--config.data.path={path}",
            f"--config.teacher.hidden=({HIDDEN},)",
            f"--config.teacher.epochs={epochs}",
            f"--config.teacher.patience={epochs}",
            f"--config.student.hidden=({HIDDEN},)",
            f"--config.student.epochs={epochs}",
            "--config.threshold.false_alarm_rate=0.05",
        ]
    )
    if wait and process.wait() != 0:
        raise SystemExit(f"run: status {process.returncode}")
    return process


def run(*arguments: str) -> None:
    """One call of the program, which must succeed."""
    subprocess.run([*KDJAX, *arguments], check=True)


def frame(values: Any) -> pd.DataFrame:
    """The first channels of some rows under names, a minute apart."""
    table = pd.DataFrame(
        values[:, :CHANNELS], columns=[f"channel_{i}" for i in range(CHANNELS)]
    )
    table.insert(0, "time", [60 * i for i in range(len(table))])
    return table


def send(pipe: IO[bytes], rows: int) -> None:
    """Writes a header and the test rows, again and again, with times that go on."""
    table = frame(load_sample().test[0].values)
    pipe.write((",".join(table.columns) + "\n").encode())
    cells = [
        line.split(",", 1)[1].encode()
        for line in table.to_csv(index=False, header=False).splitlines(keepends=True)
    ]
    for block in blocks(cells, rows):
        pipe.write(block)
    pipe.close()


def blocks(cells: list[bytes], rows: int, size: int = 1000) -> Iterator[bytes]:
    """The lines of so many rows, some at a time."""
    for first in range(0, rows, size):
        yield b"".join(
            b"%d,%s" % (60 * row, cells[row % len(cells)])
            for row in range(first, min(first + size, rows))
        )


class Counter:
    """Counts answers as they come; the k-th must be that of row k."""

    def __init__(self) -> None:
        self.lines = self.alarms = 0

    def read(self, pipe: IO[bytes]) -> None:
        for line in pipe:
            assert line.startswith(b'{"row": %d,' % self.lines), line
            self.lines += 1
            self.alarms += b'"alarm": 1' in line


def watched(
    process: "subprocess.Popen[bytes]", every: float, done: Callable[[], int]
) -> list[dict[str, float]]:
    """A sample at once and every so many seconds until the process ends."""
    samples, started = [], time.monotonic()
    while process.poll() is None:
        try:
            seen = sample(process.pid)
        except (OSError, KeyError):  # it has ended; a zombie has no VmRSS
            break
        samples.append({"seconds": time.monotonic() - started, "done": done()} | seen)
        deadline = time.monotonic() + every
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
    process.wait()
    return samples


def sample(pid: int) -> dict[str, float]:
    """Resident memory in MiB, open files and threads of a process."""
    status = Path(f"/proc/{pid}/status").read_text("utf-8")
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return {
        "resident_mib": int(fields["VmRSS"].split()[0]) / 1024,
        "files": len([*Path(f"/proc/{pid}/fd").iterdir()]),
        "threads": int(fields["Threads"]),
    }


def last_epoch(log: Path) -> int:
    """Lines logged so far; each phase logs one an epoch."""
    return len(log.read_bytes().splitlines()) if log.exists() else 0


if __name__ == "__main__":
    main()
