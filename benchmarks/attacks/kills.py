"""Programs killed at random moments, and whether their restarts come to the same bytes.

    python benchmarks/attacks/kills.py kill --output=kills.json
    python benchmarks/attacks/kills.py signal --output=signals.json
    python benchmarks/attacks/kills.py full --output=full.json

`kill`: each verb runs undisturbed on rows of the machine of SMD in the package; then again
and again in fresh folders where SIGKILL ends it and it is started anew, once to three
times before it may end. Half of the moments are drawn evenly over the undisturbed time,
the others over its calls of the file system (before or after a rename, a sync, a new
folder, a removal): there a kill does most harm. What the last start leaves is compared
with the undisturbed run: arrays, logs, tables and files bit for bit, JSON but for what is
measured in seconds, and nothing unfinished may be left.

`signal`: SIGTERM or SIGINT instead, at moments drawn alike, with the seconds until the end
and what was said. `full`: a disk of its own that is too small, of a size drawn evenly up
to a bit more than the undisturbed run takes; then there is room, and the program starts
again. Disks are mounted (tmpfs), which needs root.

Trials that ended before they were disturbed don't count. The report is written after each
trial, and a campaign that was stopped goes on where it was. Seeds are the trials' numbers.
220 kills take about an hour on a core; every program is started by a command line of its
own.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from programs import Case, Ended, check, finish, launch, prepared, start
from traces import contents, differing, leftovers

from kdjax.io.environment import describe_environment
from kdjax.io.files import write_text

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
# KiB that a checkpoint wants free beside its own: on smaller disks the first one fails.
SPARE = 1_200
SIGNALS = dict.fromkeys(KILLS, 6) | {"run": 16, "stream": 8}


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
        "spare": SPARE * any((folder / "kept").rglob("checkpoints")),
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
    running = process.poll() is None
    sent = time.monotonic()
    process.send_signal(number)
    ended = finish(process, started)
    took = time.monotonic() - sent
    facts = {
        "signal": number.name,
        "after": wait,
        "took": took,
        "code": ended.code,
        "said": last_words(ended, folder),
        "traceback": "Traceback" in ended.err,
        "left": leftovers(folder),
    }
    last = launch(case, folder)
    return {"disturbed": running, **facts, **outcome(last, first, folder)}


def filled(case: Case, first: First, folder: Path, *, seed: int) -> dict[str, Any]:
    """A case on a disk that is too small, and once more when there is room."""
    rng = random.Random(f"full {seed}")
    size = rng.randint(4, first.facts["kilobytes"] + first.facts["spare"])
    folder.mkdir(parents=True, exist_ok=True)
    with mounted(folder, size) as resize:
        ended = launch(case, folder)
        facts = {
            "size": size,
            "code": ended.code,
            "said": last_words(ended, folder),
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
        "faults": last_words(last, folder) if last.code else [],
        "mismatches": differing(first.found, found),
        "leftovers": leftovers(folder),
    }


def last_words(ended: Ended, folder: Path) -> list[str]:
    """The last lines that a program said."""
    return ended.err.replace(str(folder), "FOLDER").splitlines()[-3:]


if __name__ == "__main__":
    main()
