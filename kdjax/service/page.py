"""The data of the live page: the file itself, entities with their state, latest rows."""

import base64
import collections
import functools
import hashlib
import json
import math
import re
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdjax.data.lines import Line
from kdjax.detection.occurrences import FROZEN, MOVED, json_number, message
from kdjax.detection.streaming import StreamRow

if TYPE_CHECKING:
    from kdjax.service.engine import Engine

ROWS = 200  # most rows of an entity that are kept
ALL_ROWS = 200_000  # of all entities: with many entities each has fewer
STATES = {"alarm": 0, "silent": 1, "unknown": 2, "normal": 3}  # the worst one first
DATES = ("local", "zoned")  # clocks of times that are dates
_NUMBERS = struct.Struct("<q3d?")
_ENCODE = json.JSONEncoder(allow_nan=False).encode
Kept = dict[str, "collections.deque[bytes]"]  # rows by entity, packed


def keep(kept: Kept, line: Line, row: StreamRow) -> None:
    """Adds a row to the latest ones of its entity, and drops the oldest beyond the bound."""
    rows = kept.setdefault(line.entity, collections.deque())
    numbers = (row.row, row.score, row.window_score, row.tau, row.alarm)
    # Bytes need a fifth of the memory of objects, and are ignored by the collector.
    rows.append(_NUMBERS.pack(*numbers) + _ENCODE(line.time).encode())
    most = min(ROWS, max(1, ALL_ROWS // len(kept)))
    while len(rows) > most:
        rows.popleft()


def kept_rows(kept: Kept, entity: str) -> list[dict[str, Any]]:
    """The latest rows of an entity as JSON values, the oldest first."""
    found = []
    for one in list(kept.get(entity, ())):
        row, score, window_score, tau, alarm = _NUMBERS.unpack_from(one)
        found.append({
            "row": row, "time": json.loads(one[_NUMBERS.size :]),
            "score": json_number(score), "window_score": json_number(window_score),
            "tau": json_number(tau), "alarm": int(alarm),
        })  # fmt: skip
    return found


def about_entity(engine: "Engine", entity: str, now: float) -> dict[str, Any]:
    """An entity's state and last row as JSON values; `now` in seconds since 1970."""
    latest, events = engine.latest.get(entity), engine.open_events.get(entity, ())
    kinds, row = [event.kind for event in events], latest and latest.row
    quiet = max(0.0, now - (latest.received if latest else engine.begun))
    wait, severity = engine.machines.wait_of(entity), math.nan
    if row and row.tau > 0:
        severity = row.window_score / row.tau
    # Without cadence the step is 0: silence can't be detected.
    if (not row or row.time.clock in DATES) and 0 < wait < quiet:
        state = "silent"
    elif (row and row.alarm) or FROZEN in kinds or MOVED in kinds:
        state = "alarm"
    else:
        state = "normal" if row and row.state == "normal" else "unknown"
    return {
        "entity": entity,
        "state": state,
        "age": round(quiet, 3) if row else None,
        "row": row and row.row,
        "window_score": row and json_number(row.window_score),
        "tau": row and json_number(row.tau),
        "severity": json_number(severity),
        "channels": row.channels if row else (),
        "open": kinds,
    }


def entity_list(engine: "Engine", find: str, most: int) -> dict[str, Any]:
    """Entities whose name contains `find`, the worst first, and their count by state."""
    now, part = time.time(), find.casefold()
    names = [name for name in [*engine.machines.names] if part in name.casefold()]
    found = [about_entity(engine, name, now) for name in names]
    counts = collections.Counter(one["state"] for one in found)
    # A severity may be the string `inf`.
    found.sort(
        key=lambda e: (STATES[e["state"]], -float(e["severity"] or 0), e["entity"])
    )
    return {"states": {s: counts[s] for s in STATES}, "entities": found[:most]}


def entity_history(
    engine: "Engine", entity: str, events: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """An entity with its rows and events; open events in their current state."""
    now = {e.id: message(e, entity) for e in engine.open_events.get(entity, ())}
    found = [
        {**e, **now.get(e["id"], {})} if e.get("phase") == "begin" else e
        for e in events
    ]
    about = about_entity(engine, entity, time.time())
    return about | {"rows": kept_rows(engine.kept, entity), "events": found}


@functools.cache
def page_file() -> tuple[bytes, dict[str, str]]:
    """The page and its headers, which allow only its own script and style."""
    data = Path(__file__).with_name("page.html").read_bytes()
    policy = "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; "
    policy += "form-action 'none'; frame-ancestors 'none'"
    for inline in re.finditer(rb"<(script|style)>(.*?)</", data, re.DOTALL):
        digest = base64.b64encode(hashlib.sha256(inline[2]).digest()).decode()
        policy += f"; {inline[1].decode()}-src 'sha256-{digest}'"
    return data, {
        "Content-Security-Policy": policy,
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
