"""Measurements of several processes in turns (A B C A B C), and the processes themselves.

A ratio is made of two measurements that stand side by side: drift of the machine hits
both. Only one process works at a time.

`python -m timing.processes SIDE NAME [--quick]` is one side. It reads commands from stdin
and answers each with a line of JSON:

    (start)  {"built": true}, or {"missing": "torch"} and it ends
    warm     {"ready": true, "library": …, "device": …, "one_off_seconds": …}
    go       {"seconds": …} of one measurement
    rate     {"flops": …, "bandwidth": …}

Imports overlap between processes; what follows `warm` (compilation, choice of a batch
size) does not.
"""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from kdjax.errors import KdjaxError
from timing import work
from timing.work import Unit

LIMIT = 600.0  # seconds that one answer may take
PAUSE = 0.05  # seconds in which threads of the process before stop spinning
TAIL = 12  # lines of a dead process's stderr that are shown
OPTIONAL = ("torch", "onnx", "onnxruntime")
MODULES = {
    "kdjax": "kdjax_side",
    "serial": "kdjax_side",
    "torch": "torch_side",
    "torch_cached": "torch_side",
    "onnxruntime": "onnx_side",
}
MATRIX = 2048  # width of the products that measure the rate
COPY_BYTES = 256 * 2**20


class Pairs(NamedTuple):
    """How many rounds to measure."""

    least: int  # rounds to aim at
    most: int
    seconds: float  # no further round starts after them once `least` are done
    longest: float  # seconds after which only the first round may start


class Turns(NamedTuple):
    """What was measured, each by the name of the side."""

    seconds: dict[str, list[float]]  # one number a round
    facts: dict[str, dict[str, Any]]  # library, device, and so on
    missing: dict[str, str]  # the library that a side lacks; it has no seconds
    rates: list[dict[str, float]]  # operations and bytes a second, before and after


class Side(NamedTuple):
    """A running process."""

    name: str
    process: subprocess.Popen[str]
    errors: IO[str]


def take_turns(
    commands: Mapping[str, Sequence[str]], *, pairs: Pairs, rated: Sequence[str] = ()
) -> Turns:
    """Measures all sides in turns and ends their processes.

    Args:
        commands: the command of each side's process; `kdjax` is compared with the rest.
        pairs: how many rounds.
        rated: sides whose device's rates are measured.

    Raises:
        KdjaxError: a process ended or took too long; with the end of its stderr.
    """
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(_started(name, command))
            for name, command in commands.items()
        ]
        answers = {side.name: _read(side) for side in started}
        missing = {
            name: answer["missing"]
            for name, answer in answers.items()
            if "missing" in answer
        }
        sides = [side for side in started if side.name not in missing]
        if "kdjax" in missing or len(sides) < 2:
            return Turns({}, {}, missing, [])
        facts = {side.name: _ask(side, "warm") for side in sides}
        rates = [_ask(side, "rate") for side in sides if side.name in rated]
        seconds: dict[str, list[float]] = {side.name: [] for side in sides}
        began = time.monotonic()
        for number in range(pairs.most):
            limit = pairs.seconds if number >= pairs.least else pairs.longest
            if number and time.monotonic() - began >= limit:
                break
            for side in sides:
                time.sleep(PAUSE)
                seconds[side.name].append(_ask(side, "go")["seconds"])
        rates += [_ask(side, "rate") for side in sides if side.name in rated]
        return Turns(seconds, facts, missing, rates)


@contextlib.contextmanager
def _started(name: str, command: Sequence[str]) -> Iterator[Side]:
    """The process, killed at the end."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=_environment(name),
        )
        try:
            yield Side(name, process, errors)
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                # Closing flushes, which fails for a dead process.
                with contextlib.suppress(OSError):
                    if pipe is not None:
                        pipe.close()


def _environment(name: str) -> dict[str, str]:
    """Variables of a process: several share one GPU, and only kdjax uses it by JAX."""
    values = dict(os.environ)
    folders = [str(Path(__file__).parent.parent), values.get("PYTHONPATH", "")]
    values["PYTHONPATH"] = os.pathsep.join(filter(None, folders))
    values.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.35")
    if name not in ("kdjax", "serial"):
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
        with contextlib.suppress(subprocess.TimeoutExpired):
            side.process.wait(timeout=5)
        raise _died(side)
    try:
        answer = json.loads(line)
    except json.JSONDecodeError:
        answer = None
    if not isinstance(answer, dict):
        raise _died(side, f"answered {line.strip()!r}")
    return answer


def _died(side: Side, what: str = "ended without an answer") -> KdjaxError:
    side.errors.seek(0)
    tail = "\n".join(side.errors.read().splitlines()[-TAIL:])
    return KdjaxError(
        f"the process that measures {side.name} {what} "
        f"(exit code {side.process.poll()}). The end of its stderr:\n{tail or '(none)'}"
    )


# One side's process.


def builder(side: str, name: str, *, quick: bool) -> Callable[[], Unit]:
    """Imports a side's libraries; returns what builds its measurement of `name`.

    Raises:
        ModuleNotFoundError: a library of the side is not installed.
    """
    item, size = work.find_work(name), work.QUICK if quick else work.FULL
    module = importlib.import_module(f"timing.{MODULES[side]}")
    return lambda: module.build(item, size, side)


def serve(
    build: Callable[[], Unit],
    commands: Iterable[str],
    answer: Callable[[dict[str, Any]], None],
) -> None:
    """Answers commands until they end."""
    unit = Unit(lambda: None, {})
    for command in commands:
        match command.strip():
            case "warm":
                unit = build()
                answer({"ready": True} | unit.facts | _warm_up(unit))
            case "go":
                answer({"seconds": _seconds(unit.run)})
            case "rate":
                answer({"flops": matrix_rate(), "bandwidth": copy_bandwidth()})
            case other:
                answer({"unknown": other})


def main(arguments: list[str]) -> None:
    """The process: answers go to stdout, all other output to stderr."""
    side, name, *flags = arguments
    # Libraries may print to stdout, also from C++: only this copy stays clean.
    with os.fdopen(os.dup(1), "w", buffering=1) as output:
        os.dup2(2, 1)

        def answer(values: dict[str, Any]) -> None:
            output.write(json.dumps(values) + "\n")

        try:
            build = builder(side, name, quick="--quick" in flags)
        except ModuleNotFoundError as error:
            if error.name not in OPTIONAL:
                raise
            answer({"missing": error.name})
            return
        answer({"built": True})
        serve(build, iter(sys.stdin.readline, ""), answer)


def _warm_up(unit: Unit) -> dict[str, float]:
    """Runs everything until it is compiled; seconds of the one-off part after that."""
    facts = {}
    if unit.one_off is not None:
        unit.one_off()
        facts["one_off_seconds"] = _seconds(unit.one_off)
    unit.run()
    return facts


def matrix_rate() -> float:
    """Operations a second of 2048 × 2048 products in float32: 2·n³ / seconds."""
    import jax
    import jax.numpy as jnp

    matrix = jnp.ones((MATRIX, MATRIX), jnp.float32)
    multiply = jax.jit(jnp.matmul)
    return 2 * MATRIX**3 / _best_seconds(lambda: multiply(matrix, matrix))


def copy_bandwidth() -> float:
    """Bytes a second of x + 1 over 256 MiB, read and written: 2·bytes / seconds."""
    import jax
    import jax.numpy as jnp

    # In place: new memory at each call would measure the operating system.
    increment = jax.jit(lambda values: values + 1, donate_argnums=0)
    held = [jnp.zeros(COPY_BYTES // 4, jnp.float32)]

    def run() -> Any:
        held.append(increment(held.pop()))
        return held[0]

    return 2 * COPY_BYTES / _best_seconds(run)


def _best_seconds(function: Callable[[], Any], repeats: int = 3) -> float:
    function().block_until_ready()
    return min(_seconds(lambda: function().block_until_ready()) for _ in range(repeats))


def _seconds(function: Callable[[], Any]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


if __name__ == "__main__":
    main(sys.argv[1:])
