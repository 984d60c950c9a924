"""Answers to rows: of continued streams, of requests, and of stateless requests."""

import collections
import contextlib
import itertools
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from kdjax.data.lines import Line
from kdjax.detection.occurrences import json_number
from kdjax.detection.stream_batches import score_together
from kdjax.detection.streaming import (
    StreamDetector,
    StreamRow,
    Taken,
    WindowResult,
    checked_rows,
)
from kdjax.detection.timestamps import Timestamp, parse_timestamp
from kdjax.errors import ConfigError, DataError
from kdjax.scoring.machines import Machine, Machines, Store
from kdjax.scoring.readings import is_late
from kdjax.scoring.streams import TWICE, answer_text, event_text
from kdjax.service.bodies import Body, RequestError
from kdjax.service.loading import Loaded

AT_ONCE = 256  # windows scored in one call
KNOWN = 500  # last rows of an entity that are recognised as repeated without a sequence

Answered = tuple[str, StreamRow | None]  # the JSON text of a row; None for a faulty one


class Answers(NamedTuple):
    """The JSON text of each row, and the events that each began or ended."""

    texts: list[str]
    events: list[tuple[Mapping[str, Any], ...]]


def take_lines(
    machines: Machines, lines: Sequence[Line]
) -> tuple[list[Line], list[int] | None]:
    """Counts lines, and returns the rows that they complete.

    On a grid a reading may complete rows, as in `kdjax stream`; their numbers are returned
    too. Else each line is a row, and the numbers are None.
    """
    for line in lines:
        machines.of(line.entity).lines += 1
        machines.came(line.entity)
    if not machines.plan.reading.step:
        return [*lines], None
    found = [machines.reader_of(line.entity).on_grid(line) for line in lines]
    return [row for rows in found for row in rows], [*map(len, found)]


def answer_rows(
    machines: Machines,
    lines: Sequence[Line],
    tau_of: Callable[[str], float | None],
    *,
    explain: bool = False,
) -> list[Answered]:
    """Takes rows and answers them, in order; windows are scored `AT_ONCE`.

    `tau_of` gives the τ that was set for an entity, None for the detector's. By `explain`
    a text has the `contributions` `[D]` to the row's score, null where it has no window.
    """
    found = list[Answered]()
    for start in range(0, len(lines), AT_ONCE):
        part = lines[start : start + AT_ONCE]
        values = checked_rows(machines.plan, [line.row for line in part])
        found += _answer_part(machines, part, values, tau_of, explain)
    machines.accepted += sum(row is not None for _, row in found)
    return found


class _Item(NamedTuple):
    """A taken row, possibly by a copy of its stream that is ahead."""

    machine: Machine
    instant: Timestamp | None
    taken: Taken | None
    fault: str
    window: np.ndarray | None = None  # [1, L, D] by the copy


def _answer_part(
    machines: Machines,
    lines: Sequence[Line],
    values: np.ndarray | None,
    tau_of: Callable[[str], float | None],
    explain: bool,
) -> Iterator[Answered]:
    """The answers to rows `[N, D]`, whose windows are scored in one call.

    Windows don't depend on scores: if an entity has several rows, a copy of its stream
    takes them first.
    """
    counts, copies = collections.Counter(line.entity for line in lines), {}
    items, windows = list[_Item](), list[tuple[StreamDetector, np.ndarray]]()
    cells = [
        _cells(values, place, machines.of(line.entity))
        for place, line in enumerate(lines)
    ]
    for line, checked in zip(lines, cells, strict=True):
        machine = machines.of(line.entity)
        stream = machine.stream
        if (tau := tau_of(line.entity)) is not None and stream.plan.tau != tau:
            stream.plan = stream.plan._replace(tau=tau)
        if counts[line.entity] == 1:
            item = _taken(machine, stream, line, checked)
        else:
            if line.entity not in copies:
                copies[line.entity] = stream.copied()
            stream = copies[line.entity]
            item = _taken(machine, stream, line, checked)
            if item.taken:
                stream.answer(item.taken, None)
                item = item._replace(window=item.taken.window.copy())
        items.append(item)
        if item.taken and item.taken.whole:
            own = item.taken.window if item.window is None else item.window
            windows.append((stream, own))
    scores = iter(score_together(windows, machines.score))
    for line, checked, item in zip(lines, cells, items, strict=True):
        machine, instant, taken, fault, window = item
        score = next(scores) if taken and taken.whole else None
        stream, row = machine.stream, None
        if counts[line.entity] > 1:
            _, instant, taken, fault, _ = _taken(machine, stream, line, checked)
            seen = b"" if window is None or score is None else window.tobytes()
            if taken and taken.whole and taken.window.tobytes() != seen:
                score = score_together([(stream, taken.window)], machines.score)[0]
        if taken:
            row = stream.answer(taken, score if taken.whole else None)
        machine.answered.add(line, instant, stream.last)
        text = answer_text(line, row, fault, moves=False, name=line.entity)
        if explain:
            parts = json.dumps(_shares(stream, taken, score), separators=(",", ":"))
            text = f'{text[:-1]}, "contributions": {parts}}}'
        yield text, row


def _cells(
    values: np.ndarray | None, place: int, machine: Machine
) -> np.ndarray | None:
    """A row of `checked_rows`, if it is in the dtype of the entity's detector."""
    other = values is None or values.dtype != machine.stream.plan.dtype
    return None if values is None or other else values[place]


def _shares(
    stream: StreamDetector, taken: Taken | None, score: WindowResult | None
) -> list[Any] | None:
    if not (taken and taken.whole and score):
        return None
    parts = score.contributions
    parts = stream.explained(taken.window) if parts is None else parts
    return [*map(json_number, parts[-1].tolist())]


def _taken(
    machine: Machine, stream: StreamDetector, line: Line, checked: np.ndarray | None
) -> _Item:
    """A row taken by a stream of its machine, or its fault."""
    instant, fault = None, line.error
    try:
        if not (fault and line.time is None):
            instant = parse_timestamp(line.time)
        late = not fault and is_late(instant, stream.last)
        if late and machine.answered.has(line, instant):
            fault = TWICE
        if not fault:
            said = line.time if instant and instant.clock else None
            taken = stream.take(line.row, instant, said=said, checked=checked)
            return _Item(machine, instant, taken, "")
    except (ConfigError, DataError) as error:  # spans may be on another clock
        fault = fault or str(error)
    return _Item(machine, instant, None, fault)


def refused_places(body: Body, machines: Machines) -> dict[int, str]:
    """The indices of lines whose machines have no detector in a fleet, and their answers.

    RequestError if all lines of a body are refused: 404 for unknown machines, else 409.
    """
    whys = {name: machines.refusal(name) for name in {x.entity for x in body.lines}}
    if not any(whys.values()):
        return {}
    codes = {name: 409 if machines.is_listed(name) else 404 for name in whys}
    if all(whys.values()):
        name = body.lines[0].entity
        raise RequestError(max(codes.values()), whys[name], "machine")
    found = dict[int, str]()
    for place, line in enumerate(body.lines):
        if why := whys[line.entity]:
            text = answer_text(line, None, why, moves=False, name=line.entity)
            found[place] = f'{text[:-1]}, "status": {codes[line.entity]}}}'
    return found


def new_places(
    body: Body,
    machines: Machines,
    before: dict[str, int],
    most: int,
    refused: Collection[int] = (),
) -> list[tuple[int, int]]:
    """The indices of new lines, each with the number of its entity's lines before it.

    Lines at indices in `refused` don't count. `before` counts lines of each entity up to
    here. It and the names of entities, `most` of them, are updated. RequestError for lines
    that can't come next; nothing is changed then.
    """
    new, fresh, counts = list[tuple[int, int]](), set[str](), dict[str, int]()
    without: collections.Counter[str] = collections.Counter()
    names = machines.names
    for place, (line, number) in enumerate(zip(body.lines, body.sequence, strict=True)):
        name = line.entity
        if place in refused:
            continue
        if name and name not in names:
            fresh.add(name)
            if len(names) + len(fresh) > most:
                raise RequestError(
                    403, f"more than {most} entities: start the service with a larger "
                    "--max_entities.", "entities",
                )  # fmt: skip
        count = counts.get(name, before.get(name))
        if count is None:
            known = name in names or not name
            count = machines.of(name).lines if known else 0
        if number is None:
            without[name] += 1
        elif number > count:
            raise RequestError(
                409, f"the next row of {name!r} has the sequence {count}, not "
                f"{number}: send the rows between first.", "sequence",
                expected=count, entity=name,
            )  # fmt: skip
        elif number < count:
            counts[name] = count
            continue
        counts[name] = count + 1
        new.append((place, count))
    if without and max(without.values()) > KNOWN:
        raise RequestError(
            413, f"more than {KNOWN} rows of an entity at once: send fewer per request, "
            "or send JSON with `sequence`.", "rows",
        )  # fmt: skip
    before |= counts
    names |= fresh
    return new


def joined(
    body: Body,
    new: Sequence[tuple[int, int]],
    found: Iterator[Answered],
    brought: Iterator[int],
    refused: Mapping[int, str] = MappingProxyType({}),
) -> Answers:
    """The answers to a request, including those to rows that had been answered before.

    `brought` gives the number of rows that each new line completes; `refused` are the
    answers of `refused_places`.
    """
    if len(new) == len(body.lines):
        pairs = [*itertools.islice(found, sum(itertools.islice(brought, len(new))))]
        events = [row.events if row else () for _, row in pairs]
        return Answers([text for text, _ in pairs], events)
    texts, events = list[str](), []
    fresh = {place for place, _ in new}
    for place, line in enumerate(body.lines):
        if place in fresh:
            for text, row in itertools.islice(found, next(brought)):
                texts.append(text)
                events.append(row.events if row else ())
        else:
            known = refused.get(place)
            texts.append(known or _repeated(line, body.sequence[place]))
            events.append(())
    return Answers(texts, events)


def _repeated(line: Line, number: int | None) -> str:
    text = answer_text(line, None, "", moves=False, name=line.entity)
    end = text.rindex(', "line": ')
    return f'{text[:end]}, "repeated": true, "sequence": {number}}}'


def texts_of(answers: Answers) -> str:
    """Answers and events as `kdjax stream` writes them, one per line."""
    lines = list[str]()
    for text, events in zip(answers.texts, answers.events, strict=True):
        lines.append(text)
        lines += map(event_text, events)
    return "".join(f"{line}\n" for line in lines)


def stateless(
    loaded: Loaded, tau: float | None, lines: Sequence[Line], explain: bool
) -> list[Answered]:
    """Answers to rows as streams before their first row give them; nothing is kept."""
    store = Store(None)
    with contextlib.closing(store):
        machines = Machines(
            loaded.streams, {}, store=store, most=1, log=lambda _: None, known=KNOWN
        )
        rows, _ = take_lines(machines, lines)
        return answer_rows(machines, rows, lambda _: tau, explain=explain)
