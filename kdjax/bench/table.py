"""Rows of the comparison: for the JSON file, and as a table for the terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kdjax.bench import floor, work
from kdjax.bench.interleave import Turns, pair_ratios
from kdjax.bench.work import Size, Work

if TYPE_CHECKING:  # only the terminal's table needs rich
    from rich.table import Table

MISSING = "–"
Row = dict[str, Any]


def make_rows(item: Work, turns: Turns, *, size: Size) -> list[Row]:
    """A row for each peer that was measured.

    Each has `name`, `peer`, `ratio` (median of the peer's time / kdjax's), `low` and
    `high` (its quartiles), `target`, `met`, `pairs`, `parameters`, `fraction` (share of
    the device's rate of operations that kdjax reaches), for single windows `streamed`
    (bytes of weights a second, in units of the device's large copies: above 1 the
    weights stay in a cache), for epochs `ten_epochs_ratio` (with each side's cost of
    making the targets once) and `one_off_epochs` (that cost of kdjax, in its epochs).
    On a GPU `kdjax_ms` and `peer_ms` too, of a step, epoch, series or window.
    """
    if not turns.seconds:
        return []
    return [
        _row(item, peer, turns, size) for peer in item.targets if peer in turns.seconds
    ]


def bench_table(rows: Sequence[Row], *, title: str) -> "Table":
    """The table for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(title),
        caption=Text(
            "ratio: the peer's time / kdjax's, median of pairs (quartiles); above 1 "
            "kdjax is faster. 10 epochs: with the cost of the teacher's outputs. rate: "
            "share of the device's fastest large matrix products that kdjax reaches."
        ),
        box=box.SIMPLE_HEAD,
        padding=0,
        caption_justify="left",
    )
    table.add_column("Work", min_width=14, overflow="fold")
    table.add_column("Peer", overflow="fold")
    for heading in ("Ratio", "Quartiles", "Target", "10 epochs", "Rate"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in _cells(row)))
    return table


def _row(item: Work, peer: str, turns: Turns, size: Size) -> Row:
    ours, theirs = turns.seconds["kdjax"], turns.seconds[peer]
    ratio = pair_ratios(theirs, ours)
    target = item.targets[peer]
    seconds = float(np.median(ours))
    row = {
        "name": item.name,
        "peer": peer,
        "ratio": ratio.median,
        "low": ratio.low,
        "high": ratio.high,
        "target": target,
        "met": None if target is None else ratio.median >= target,
        "pairs": len(ours),
        "parameters": floor.parameter_count(work.WIDTH, item.hidden),
        "fraction": _fraction(item, turns, size, seconds),
    }
    facts, peer_facts = turns.facts.get("kdjax", {}), turns.facts.get(peer, {})
    if item.kind in ("window", "stream"):
        row["streamed"] = _streamed(item, turns, size, seconds)
    if item.kind == "epoch":
        row |= _ten_epochs(seconds, float(np.median(theirs)), facts, peer_facts)
    if facts.get("device", "cpu") != "cpu":
        scale = 1000 / _repeats(item, size)
        row["kdjax_ms"] = seconds * scale
        row["peer_ms"] = float(np.median(theirs)) * scale
    return row | {"kdjax": facts, "peer_facts": peer_facts}


def unit_flops(item: Work, *, size: Size) -> int:
    """Operations of one measurement, in kdjax's formulation; targets are ready."""
    if item.kind in ("series", "window", "stream"):
        windows = size.series if item.kind == "series" else size.calls
        flops = floor.scoring_flops(work.WIDTH, item.hidden, window=work.WINDOW)
        return windows * flops
    step = floor.training_flops(
        work.WIDTH, item.hidden, window=work.WINDOW, batch=work.BATCH
    )
    if item.kind == "step":
        return size.steps * step
    return item.members * size.windows // work.BATCH * step


def _fraction(item: Work, turns: Turns, size: Size, seconds: float) -> float | None:
    if not turns.rates:
        return None
    # What the device can do is the best that it was seen to do.
    rate = max(rates["flops"] for rates in turns.rates)
    return unit_flops(item, size=size) / (rate * seconds)


def _streamed(item: Work, turns: Turns, size: Size, seconds: float) -> float | None:
    if not turns.rates:
        return None
    bandwidth = max(rates["bandwidth"] for rates in turns.rates)
    streamed = floor.streamed_bytes(work.WIDTH, item.hidden, window=work.WINDOW)
    return size.calls * streamed / (bandwidth * seconds)


def _ten_epochs(ours: float, theirs: float, facts: Row, peer_facts: Row) -> Row:
    once, peer_once = (f.get("one_off_seconds", 0.0) for f in (facts, peer_facts))
    ratio = (work.TEN * theirs + peer_once) / (work.TEN * ours + once)
    return {"ten_epochs_ratio": ratio, "one_off_epochs": once / ours}


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


def _cells(row: Row) -> tuple[str, ...]:
    missed = "" if row["met"] in (True, None) else " !"
    return (
        row["name"],
        row["peer"],
        f"{row['ratio']:.2f}",
        f"{row['low']:.2f}–{row['high']:.2f}",
        MISSING if row["target"] is None else f"{row['target']:.1f}{missed}",
        _number(row.get("ten_epochs_ratio")),
        MISSING if row["fraction"] is None else f"{row['fraction']:.0%}",
    )


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"
