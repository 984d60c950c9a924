"""The whole comparison: every work against its peers, one work after the other."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from kdjax.bench import work
from kdjax.bench.interleave import (
    Pairs,
    Turns,
    take_turns,
    worker_command,
)
from kdjax.bench.table import Row, bench_table, make_rows
from kdjax.bench.work import Work
from kdjax.io.environment import describe_environment

QUICK = Pairs(least=5, most=50, seconds=3.0, longest=10.0)
FULL = Pairs(least=5, most=50, seconds=30.0, longest=120.0)


def bench(
    *, quick: bool, names: Sequence[str] | None = None, console: Console
) -> dict[str, Any]:
    """Measures kdjax against its peers and prints the table.

    Args:
        quick: smaller measurements and fewer pairs: minutes become tens of seconds.
        names: what to measure, of `kdjax.bench.work.WORKS`; None: everything.
        console: shows what is being measured, and the table.

    Returns:
        `rows` (see `make_rows`), `notes` on peers that are not installed, and
        `environment`.

    Raises:
        ConfigError: a name is unknown.
        KdjaxError: a process that measures died.
    """
    items = [work.find_work(name) for name in names or work.WORKS]
    size = work.choose_size(quick=quick)
    rows: list[Row] = []
    missing: dict[str, str] = {}
    for item in items:
        with console.status(f"{item.name} against {', '.join(item.targets)}"):
            turns = measure(item, quick=quick)
        rows += make_rows(item, turns, size=size)
        missing |= turns.missing
    notes = missing_notes(missing)
    # Last: it starts JAX in this process too, which would take memory of a GPU.
    environment = describe_environment()
    console.print(bench_table(rows, title=f"kdjax on {environment['device']}"))
    for note in notes:
        console.print(note, markup=False)
    return {"rows": rows, "notes": notes, "environment": environment}


def measure(item: Work, *, quick: bool) -> Turns:
    """Measurements of one work, kdjax's and those of all its peers."""
    commands = {
        peer: worker_command(peer, item.name, quick=quick)
        for peer in ("kdjax", *item.targets)
    }
    return take_turns(commands, pairs=QUICK if quick else FULL, rated=["kdjax"])


def missing_notes(missing: dict[str, str]) -> list[str]:
    """One line for each peer that was left out, given the library that it lacks.

    >>> missing_notes({"torch": "torch"})
    ["torch left out: the package torch is missing; pip install 'kdjax[bench]'."]
    """
    return [
        f"{peer} left out: the package {library} is missing; "
        "pip install 'kdjax[bench]'."
        for peer, library in missing.items()
    ]
