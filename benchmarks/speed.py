"""Times kdjax against PyTorch and onnxruntime, pair by pair on this machine.

    python benchmarks/speed.py [NAME ...] [--quick] [--output=FILE.json]

Each side runs in a process of its own, on the same data and parameters, in turns. A peer
that is not installed is left out with a note (`pip install torch==2.13.0`, then
`pip install "kdjax[bench]"`). A ratio is the peer's time / kdjax's, median and quartiles
over the turns: above 1 kdjax is faster.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from timing import work
from timing.processes import Pairs, Turns, take_turns
from timing.work import Size, Work

from kdjax.errors import ConfigError, KdjaxError
from kdjax.io.files import check_target, write_text

QUICK = Pairs(least=5, most=50, seconds=3.0, longest=10.0)
FULL = Pairs(least=5, most=50, seconds=30.0, longest=120.0)
EPOCHS = 10  # epochs over which the one-off cost of targets is spread

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints a table, writes the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(work.WORKS))
    parser.add_argument("--quick", action="store_true", help="about two minutes in all")
    parser.add_argument("--output", type=Path, help="a .json file for the rows")
    given = parser.parse_args(arguments)
    if given.output:
        if given.output.suffix != ".json":
            raise ConfigError(f"--output={given.output} must end in .json.")
        check_target(given.output)
    rows = compare(given.names, quick=given.quick)
    if given.output:
        write_text(given.output, json.dumps(rows, indent=1) + "\n")
        print(f"Written: {given.output}")


def compare(names: Sequence[str], *, quick: bool) -> list[Row]:
    """Measures the works of these names (none: all of them) and prints their rows.

    Returns:
        The rows; see `make_rows`.

    Raises:
        ConfigError: a name is unknown.
        KdjaxError: a process that measures died.
    """
    items = [work.find_work(name) for name in names or work.WORKS]
    size = work.QUICK if quick else work.FULL
    rows: list[Row] = []
    missing: dict[str, str] = {}
    print(
        "| work | peer | ratio | quartiles | target | 10 epochs | rate |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |"
    )
    for item in items:
        turns = measure(item, quick=quick)
        new = make_rows(item, turns, size=size)
        for row in new:
            print(table_line(row), flush=True)
        rows += new
        missing |= turns.missing
    for peer, library in missing.items():
        print(
            f"{peer} left out: the package {library} is missing; "
            "pip install 'kdjax[bench]'."
        )
    return rows


def measure(item: Work, *, quick: bool) -> Turns:
    """Measurements of one work, of kdjax and of all its peers."""
    worker = [sys.executable, "-m", "timing.processes"]
    flags = ["--quick"] * quick
    commands = {
        side: [*worker, side, item.name, *flags] for side in ("kdjax", *item.targets)
    }
    return take_turns(commands, pairs=QUICK if quick else FULL, rated=["kdjax"])


def make_rows(item: Work, turns: Turns, *, size: Size) -> list[Row]:
    """A row for each peer that was measured.

    Each has `name`, `peer`, `ratio` (median of the peer's time / kdjax's), `low` and
    `high` (its quartiles), `target`, `met`, `pairs`, `parameters`, `fraction` (share of
    the device's rate of operations that kdjax reaches), for single windows `streamed`
    (bytes of weights a second / bandwidth of large copies: above 1 the weights stay in a
    cache), for epochs `ten_epochs_ratio` (with each side's cost of making the targets
    once) and `one_off_epochs` (that cost of kdjax, in its epochs). On a GPU `kdjax_ms`
    and `peer_ms` too, of a step, epoch, series or window.
    """
    return [
        _row(item, peer, turns, size) for peer in item.targets if peer in turns.seconds
    ]


def table_line(row: Row) -> str:
    """The row as a line of the printed table; `!` marks a target that was missed.

    >>> row = {"name": "teacher_step", "peer": "torch", "ratio": 1.2, "low": 1.1}
    >>> table_line(row | {"high": 1.25, "target": 1.3, "met": False, "fraction": 0.57})
    '| teacher_step | torch | 1.20 | 1.10–1.25 | 1.3 ! | – | 57% |'
    """
    ten, fraction = row.get("ten_epochs_ratio"), row["fraction"]
    cells = (
        row["name"],
        row["peer"],
        f"{row['ratio']:.2f}",
        f"{row['low']:.2f}–{row['high']:.2f}",
        "–"
        if row["target"] is None
        else f"{row['target']:.1f}{' !' * (not row['met'])}",
        "–" if ten is None else f"{ten:.2f}",
        "–" if fraction is None else f"{fraction:.0%}",
    )
    return f"| {' | '.join(cells)} |"


def _row(item: Work, peer: str, turns: Turns, size: Size) -> Row:
    ours, theirs = np.array(turns.seconds["kdjax"]), np.array(turns.seconds[peer])
    low, ratio, high = map(float, np.quantile(theirs / ours, [0.25, 0.5, 0.75]))
    seconds, peer_seconds = float(np.median(ours)), float(np.median(theirs))
    # The best of the measured rates stands for what the device can do.
    best = {key: max(r[key] for r in turns.rates) for key in (turns.rates or [{}])[0]}
    target = item.targets[peer]
    row = {
        "name": item.name,
        "peer": peer,
        "ratio": ratio,
        "low": low,
        "high": high,
        "target": target,
        "met": None if target is None else ratio >= target,
        "pairs": len(ours),
        "parameters": work.parameter_count(work.WIDTH, item.hidden),
        "fraction": (
            work.unit_flops(item, size) / (best["flops"] * seconds) if best else None
        ),
    }
    facts, peer_facts = turns.facts.get("kdjax", {}), turns.facts.get(peer, {})
    if item.kind in ("window", "stream"):
        streamed = work.streamed_bytes(work.WIDTH, item.hidden, window=work.WINDOW)
        row["streamed"] = (
            size.calls * streamed / (best["bandwidth"] * seconds) if best else None
        )
    if item.kind == "epoch":
        once, peer_once = (f.get("one_off_seconds", 0.0) for f in (facts, peer_facts))
        with_targets = EPOCHS * peer_seconds + peer_once, EPOCHS * seconds + once
        row["ten_epochs_ratio"] = with_targets[0] / with_targets[1]
        row["one_off_epochs"] = once / seconds
    if facts.get("device", "cpu") != "cpu":
        scale = 1000 / _repeats(item, size)
        row |= {"kdjax_ms": seconds * scale, "peer_ms": peer_seconds * scale}
    return row | {"kdjax": facts, "peer_facts": peer_facts}


def _repeats(item: Work, size: Size) -> float:
    """Steps, epochs, series, windows or rows, of the full size, in one measurement."""
    full = work.FULL
    return {
        "step": size.steps,
        "epoch": size.windows / full.windows,
        "population": size.windows / full.windows,
        "series": size.series / full.series,
        "window": size.calls,
        "stream": size.calls,
    }[item.kind]


if __name__ == "__main__":
    try:
        main()
    except KdjaxError as error:
        sys.exit(f"speed.py: {error}")
