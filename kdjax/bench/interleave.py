"""Measurements of several processes in turns: A B C A B C, so that drift hits all.

A ratio is made of two measurements that stand side by side; the machine may get slower
or faster from pair to pair without moving it. Only one process works at a time.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, NamedTuple

import numpy as np

from kdjax.errors import KdjaxError

LIMIT = 600.0  # seconds that one answer may take
PAUSE = 0.05  # seconds in which threads of the process before stop spinning
TAIL = 12  # lines of a dead process's stderr that are shown


class Pairs(NamedTuple):
    """How many rounds to measure.

    Attributes:
        least: rounds to aim at.
        most: rounds at most.
        seconds: no further round starts after them once `least` are done.
        longest: seconds after which none starts in any case but the first; for a
            machine that is slow or busy.
    """

    least: int
    most: int
    seconds: float
    longest: float


class Turns(NamedTuple):
    """What came out, each by the name of the side.

    Attributes:
        seconds: one number a round.
        facts: what the side said of itself.
        missing: the library that a side lacks; such a side has no `seconds`.
        rates: operations and bytes a second, measured before and after the rounds.
    """

    seconds: dict[str, list[float]]
    facts: dict[str, dict[str, Any]]
    missing: dict[str, str]
    rates: list[dict[str, float]]


class Ratio(NamedTuple):
    """Median and quartiles of peer's time / kdjax's time, pair by pair."""

    median: float
    low: float
    high: float


class Side(NamedTuple):
    """A running process."""

    name: str
    process: subprocess.Popen[str]
    errors: IO[str]


def worker_command(peer: str, name: str, *, quick: bool) -> list[str]:
    """The command of one side's process."""
    command = [sys.executable, "-m", "kdjax.bench.worker", peer, name]
    return [*command, "--quick"] if quick else command


def take_turns(
    commands: Mapping[str, Sequence[str]],
    *,
    pairs: Pairs,
    reference: str = "kdjax",
    rated: Sequence[str] = (),
) -> Turns:
    """Measures all sides in turns; the processes are gone when it returns.

    Args:
        commands: the command of each side's process; see `kdjax.bench.worker`.
        pairs: how many rounds.
        reference: the side that the others are compared with; it can't be missing.
        rated: sides asked for their device's rates.

    Raises:
        KdjaxError: a process ended or took too long; with the end of its stderr.
    """
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(_started(name, command, reference))
            for name, command in commands.items()
        ]
        answers = {side.name: _read(side) for side in started}
        missing = {
            name: answer["missing"]
            for name, answer in answers.items()
            if "missing" in answer
        }
        sides = [side for side in started if side.name not in missing]
        if reference in missing or len(sides) < 2:
            return Turns({}, {}, missing, [])
        facts = {side.name: _ask(side, "warm") for side in sides}
        rated_sides = [side for side in sides if side.name in rated]
        rates = [_ask(side, "rate") for side in rated_sides]
        seconds = _rounds(sides, pairs)
        rates += [_ask(side, "rate") for side in rated_sides]
        return Turns(seconds, facts, missing, rates)


def pair_ratios(peer: Sequence[float], reference: Sequence[float]) -> Ratio:
    """Median and quartiles of the ratios of each pair.

    >>> pair_ratios([2.0, 3.0, 8.0], [1.0, 1.0, 2.0])
    Ratio(median=3.0, low=2.5, high=3.5)
    """
    ratios = np.asarray(peer) / np.asarray(reference)
    low, median, high = (float(q) for q in np.quantile(ratios, [0.25, 0.5, 0.75]))
    return Ratio(median, low, high)


def _rounds(sides: Sequence[Side], pairs: Pairs) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    began = time.monotonic()
    for number in range(pairs.most):
        limit = pairs.seconds if number >= pairs.least else pairs.longest
        if number and time.monotonic() - began >= limit:
            break
        for side in sides:
            time.sleep(PAUSE)
            seconds[side.name].append(_ask(side, "go")["seconds"])
    return seconds


@contextlib.contextmanager
def _started(name: str, command: Sequence[str], reference: str) -> Iterator[Side]:
    """The process, killed on the way out whatever happened."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=_environment(name, reference),
        )
        try:
            yield Side(name, process, errors)
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                # What a dead process left unread can't be flushed.
                with contextlib.suppress(OSError):
                    if pipe is not None:
                        pipe.close()


def _environment(name: str, reference: str) -> dict[str, str]:
    """Variables of a process: several share one GPU, and only ours use it by JAX."""
    values = dict(os.environ)
    values.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.35")
    if name not in (reference, "serial"):
        values["JAX_PLATFORMS"] = "cpu"
    return values


def _ask(side: Side, command: str) -> dict[str, Any]:
    assert side.process.stdin is not None
    try:
        side.process.stdin.write(f"{command}\n")
        side.process.stdin.flush()
    except OSError:
        raise _died(side) from None
    return _read(side)


def _read(side: Side) -> dict[str, Any]:
    assert side.process.stdout is not None
    timer = threading.Timer(LIMIT, side.process.kill)
    timer.start()
    try:
        line = side.process.stdout.readline()
    finally:
        timer.cancel()
    if not line:
        raise _died(side)
    try:
        answer = json.loads(line)
    except json.JSONDecodeError:
        raise _died(side, f"answered {line.strip()!r}") from None
    if not isinstance(answer, dict):
        raise _died(side, f"answered {line.strip()!r}")
    return answer


def _died(side: Side, what: str = "ended without an answer") -> KdjaxError:
    if what.startswith("ended"):
        with contextlib.suppress(subprocess.TimeoutExpired):
            side.process.wait(timeout=5)
    side.errors.seek(0)
    tail = "\n".join(side.errors.read().splitlines()[-TAIL:])
    return KdjaxError(
        f"the process that measures {side.name} {what} "
        f"(exit code {side.process.poll()}). Its last words:\n{tail or '(none)'}"
    )
