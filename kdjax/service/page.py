"""What the live page shows: the file itself, entities with their state, latest rows."""

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
from kdjax.detection.occurrences import FROZEN, MOVED, Event, json_number, message
from kdjax.detection.stream_rules import Plan
from kdjax.detection.streaming import StreamRow

if TYPE_CHECKING:
    from kdjax.service.engine import Engine, Latest

ROWS = 200  # of an entity that are kept, at most
ALL_ROWS = 200_000  # of all entities: where they are many each has fewer
STATES = ("alarm", "silent", "unknown", "normal")  # the worst one first
_NUMBERS = struct.Struct("<q3d?")
_ENCODE = json.JSONEncoder(allow_nan=False).encode
Kept = dict[str, "collections.deque[bytes]"]  # rows by entity, packed


def keep(kept: Kept, line: Line, row: StreamRow) -> None:
    """Adds a row to the latest ones of its entity, and drops the oldest beyond the bound."""
    rows = kept.setdefault(line.entity, collections.deque())
    numbers = (row.row, row.score, row.window_score, row.tau, row.alarm)
    # Bytes take a fifth of the memory of objects, and the collector leaves them alone.
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


def state_of(
    latest: "Latest | None", plan: Plan, events: tuple[Event, ...], quiet: float
) -> str:
    """One of `STATES`, by the last row, open events, and seconds since the last row."""
    dated = latest is None or latest.row.time.clock in ("local", "zoned")
    if dated and 0 < plan.max_gap * plan.step < quiet:
        return "silent"
    if latest is None:
        return "unknown"
    if latest.row.alarm or any(event.kind in (FROZEN, MOVED) for event in events):
        return "alarm"
    return "unknown" if latest.row.state == "unknown" else "normal"


def about_entity(engine: "Engine", entity: str, now: float) -> dict[str, Any]:
    """An entity's state and last row as JSON values; `now` in seconds since 1970."""
    latest, events = engine.latest.get(entity), engine.open_events.get(entity, ())
    row, quiet = None, now - engine.begun
    if latest:
        row, quiet = latest.row, max(0.0, now - latest.received)
    score, tau = (row.window_score, row.tau) if row else (math.nan, math.nan)
    return {
        "entity": entity,
        "state": state_of(latest, engine.machines.plan, events, quiet),
        "age": round(quiet, 3) if row else None,
        "row": row and row.row,
        "window_score": json_number(score),
        "tau": json_number(tau),
        "severity": json_number(score / tau if tau > 0 else math.nan),
        "channels": row.channels if row else (),
        "open": [event.kind for event in events],
    }


def entity_list(engine: "Engine", find: str, most: int) -> dict[str, Any]:
    """Entities whose name has `find` in it, the worst first, and counts of all by state."""
    now, part = time.time(), find.casefold()
    every = [about_entity(engine, name, now) for name in [*engine.machines.names]]
    counts = collections.Counter(one["state"] for one in every)
    found = [one for one in every if part in one["entity"].casefold()]
    found.sort(
        key=lambda one: (
            STATES.index(one["state"]), -float(one["severity"] or 0), one["entity"],
        )
    )  # fmt: skip
    return {
        "states": {state: counts[state] for state in STATES},
        "found": len(found),
        "entities": found[:most],
    }


def entity_history(
    engine: "Engine", entity: str, events: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """An entity with its rows and events; open ones as they are now, not at their begin."""
    now = {e.id: message(e, entity) for e in engine.open_events.get(entity, ())}
    found = [
        {**one, **(now.get(one["id"], {}) if one["end"] is None else {})}
        for one in events
    ]
    about = about_entity(engine, entity, time.time())
    return about | {"rows": kept_rows(engine.kept, entity), "events": found}


@functools.cache
def page_file() -> tuple[bytes, dict[str, str]]:
    """The page and its headers: no other script or style than its own may act."""
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
