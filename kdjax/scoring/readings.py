"""Rows for streams from lines, on the detector's grid, and the lines that were answered.

On a grid (`data.step`) a row is complete when a reading of a later step arrives, so its
scores are those of `score --causal` for a file of the same readings. Readings of a step
may arrive in any order.
"""

import array
import base64
import contextlib
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from kdjax.data.grid import step_index, step_of, step_time
from kdjax.data.lines import Line, read_lines
from kdjax.data.schema import check_ignored
from kdjax.data.times import iso_time
from kdjax.detection.stream_rules import Plan
from kdjax.detection.streaming import OVERFLOW
from kdjax.detection.timestamps import CLOCKS, Timestamp, as_timestamp, parse_timestamp
from kdjax.errors import DataError


class Answered:
    """The lines that were answered before, by digests of the last ones.

    After a restart, repeated lines arrive in their original order.

    Args:
        most: least number of lines that are kept one by one.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        # Lines in two parts; a full newer part replaces the older one.
        self._lines = [array.array("I"), array.array("I")]
        # Rows up to the start time of a part were all answered.
        self._since = [Timestamp("", 0), Timestamp("", 0)]
        # The next of the known lines to come again: the first after a restart; None
        # once a row was new.
        self.next: int | None = None
        self.older = False  # whether the line before was older than the known ones

    def add(self, line: Line, instant: Timestamp | None, last: Timestamp) -> None:
        """Records an answered line; `last` is the time of the last row of the stream."""
        if len(self._lines[1]) >= self._most:
            self._lines = [self._lines[1], array.array("I")]
            self._since = [self._since[1], last]
        # After a clock was set back, rows of those times count as not answered.
        for place, since in enumerate(self._since):
            if since.clock != last.clock:
                self._since[place] = Timestamp("", 0)
            elif last.value < since.value:
                self._since[place] = last
        self._lines[1].append(_digest(line, instant))

    def has(self, line: Line, instant: Timestamp | None) -> bool:
        """Whether a line is one of the last answered ones."""
        return any(_digest(line, instant) in part for part in self._lines)

    def comes_again(
        self, line: Line, instant: Timestamp | None, *, follows: bool = False
    ) -> bool:
        """Whether an earlier run answered a line; no `instant` for an unreadable time.

        `follows`: whether the line before, of another entity, was a repeated one.
        """
        if self.next is None:
            return False
        if instant is not None:
            self.older = not self.next and is_late(instant, self._since[0])
        if not self.older:
            known, place = self._lines[0] + self._lines[1], self.next
            # Faults without a time may look alike: only the next one counts.
            stop = len(known) if instant or (follows and not place) else place + 1
            with contextlib.suppress(ValueError):
                self.next = known.index(_digest(line, instant), place, stop) + 1
                return True
        return self.older

    def state(self) -> dict[str, Any]:
        """For `restore`, as JSON values."""
        parts = [np.array(memoryview(part), "<u4").tobytes() for part in self._lines]
        lines = [base64.b64encode(part).decode() for part in parts]
        return {"lines": lines, "since": [[*time] for time in self._since]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Sets a state; LookupError, TypeError or ValueError if it is invalid."""
        parts = [base64.b64decode(part, validate=True) for part in state["lines"]]
        older, newer = (array.array("I", np.frombuffer(p, "<u4")) for p in parts)
        first, second = (as_timestamp(*time) for time in state["since"])
        self._lines, self._since = [older, newer], [first, second]


def _digest(line: Line, instant: Timestamp | None) -> int:
    """Digest of a line's time, values and error, for any form of the time."""
    time = f"{instant.clock} {instant.value}" if instant else line.time
    text = f"{time}\n{line.error}\n".encode("utf-8", "surrogatepass")
    return zlib.crc32(array.array("d", line.row).tobytes(), zlib.crc32(text))


def is_late(instant: Timestamp | None, last: Timestamp) -> bool:
    """Whether a time is on the clock of the last row and not later."""
    return instant is not None and instant.clock == last.clock != "" and instant <= last


class RowReader:
    """Reads lines as rows; its state continues a step that is not complete.

    A reading that is more than `max_gap` steps ahead waits for the next one: if that is
    earlier, the reading is a fault. Readings of steps that were answered are faults; after
    a restart they count as repeated until one is new.

    Args:
        plan: of the stream; `plan.reading` has the columns.
        given: names of columns that lines must have; others that the plan names are
            optional.
    """

    def __init__(self, plan: Plan, given: Mapping[str, Any]) -> None:
        check_ignored(plan.channels, plan.reading.ignore)
        self._plan, self._given = plan, given
        own = {plan.reading.time_column, plan.reading.entity_column}
        self._may_lack = own - {given.get("time_column"), given.get("entity_column")}
        self.again = 0  # number of readings that were repeated after a restart
        self.repeated = 0  # readings whose tag and time another one had
        self.resumed = False  # whether readings may still come again
        self.entity = ""  # that rows name; empty before the first
        self._clock = ""  # as `Timestamp.clock`; empty before the first reading
        self._step = 0  # of the row to come, counted as by `step_index`
        self._idle = 0  # rows since the last one with a reading
        # The readings of that step: values by time for each channel.
        self._cells: list[dict[float, float]] = [{} for _ in plan.channels]
        self._ahead: Line | None = None  # a reading that waits for the next one

    def rows(
        self, lines: Iterable[str], of: Callable[[str], "RowReader"] | None = None
    ) -> Iterator[Line]:
        """The rows of lines, and faulty lines.

        All rows are of one entity, or `of` returns the reader of each entity's readings.
        """
        plan, reading = self._plan, self._plan.reading
        for line in read_lines(lines, plan.channels, reading, may_lack=self._may_lack):
            try:
                if line.error:
                    yield line
                    continue
                self.entity = self.entity or line.entity
                if line.entity != self.entity and of is None:
                    raise DataError(
                        f"a row of {line.entity!r} in the stream of {self.entity!r}: "
                        "give each entity its own stream, or use --entity_column."
                    )
                if not reading.step:
                    yield line
                elif line.tag not in reading.ignore:
                    yield from self._of_entity(line, of)
            except DataError as error:
                yield line._replace(row=[], error=str(error))

    def _of_entity(
        self, line: Line, of: Callable[[str], "RowReader"] | None
    ) -> Iterator[Line]:
        """The rows that a reading completes, from the reader of its entity."""
        if of is None:
            yield from self._grid_rows(line)
            return
        own = of(line.entity)
        again, repeated = own.again, own.repeated
        try:
            yield from own._grid_rows(line)
        finally:
            self.again += own.again - again
            self.repeated += own.repeated - repeated
            of(line.entity)  # marks it as changed since the last save

    def on_grid(self, line: Line) -> list[Line]:
        """The rows that a reading completes, then the line itself if faulty."""
        found = list[Line]()
        if not line.error and line.tag in self._plan.reading.ignore:
            return found
        try:
            if line.error:
                raise DataError(line.error)
            for row in self._grid_rows(line):
                found.append(row)
        except DataError as error:
            found.append(line._replace(row=[], error=str(error)))
        return found

    def another(self) -> "RowReader":
        """A reader of the readings of another entity."""
        return RowReader(self._plan, self._given)

    def state(self) -> dict[str, Any]:
        """For `restore`, as JSON values."""
        ahead = self._ahead
        return {
            "entity": self.entity,
            "clock": self._clock,
            "step": self._step,
            "idle": self._idle,
            "cells": [[*map(list, cells.items())] for cells in self._cells],
            "ahead": ahead and [*ahead[:2], [*map(str, ahead.row)], *ahead[3:]],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Sets a state; LookupError, TypeError or ValueError if it is invalid."""
        cells = [{time: float(value) for time, value in one} for one in state["cells"]]
        step, idle, ahead = int(state["step"]), int(state["idle"]), state["ahead"]
        if len(cells) != len(self._plan.channels) or state["clock"] not in CLOCKS:
            raise ValueError("its readings are of other channels")
        self.entity, self._clock = str(state["entity"]), state["clock"]
        self._step, self._idle, self._cells = step, idle, cells
        if ahead:
            number, time, row, *words = ahead
            ahead = Line(number, time, [*map(float, row)], *words)
        self._ahead, self.resumed = ahead, True

    def _grid_rows(self, line: Line) -> Iterator[Line]:
        """The rows that a reading completes; DataError for a faulty one."""
        instant = parse_timestamp(line.time)
        if not instant.clock or self._clock not in ("", instant.clock):
            raise DataError(
                f"{CLOCKS[instant.clock]}, but readings need {CLOCKS[self._clock]}"
                if self._clock
                else "a reading needs a time; name its column by --time_column."
            )
        readings = self._readings(line)
        if not readings:
            return
        index = self._index(instant)
        if not self._clock:
            self._clock, self._step = instant.clock, index
        self.resumed = self.resumed and self._is_known(instant, index, readings)
        if self.resumed:
            self.again += 1
            return
        if index < self._step:
            raise DataError(
                "a late reading: the row of its step was answered; send readings in order "
                "of time, or set a larger step."
            )
        ahead, self._ahead = self._ahead, None
        if ahead is not None and index < (
            step := self._index(parse_timestamp(ahead.time))
        ):
            text = "its time is later than that of the readings after it; correct it."
            yield ahead._replace(row=[], error=text)
        elif ahead is not None:
            yield from self._complete(step, line)
            self._add(ahead, self._readings(ahead))
        if index > self._step + self._plan.max_gap and any(self._cells):
            self._ahead = line
            return
        yield from self._complete(index, line)
        self._add(line, readings)

    def _is_known(
        self, instant: Timestamp, index: int, readings: Mapping[int, float]
    ) -> bool:
        """Whether readings are of an answered step, or repeated."""
        ahead, time = self._ahead, instant.value
        if ahead and parse_timestamp(ahead.time) == instant:
            return self._readings(ahead) == readings
        return index < self._step or all(
            index == self._step and self._cells[number].get(time) == value
            for number, value in readings.items()
        )

    def _readings(self, line: Line) -> dict[int, float]:
        """The values of a line by the number of their channel, without missing ones."""
        channels = self._plan.channels
        if line.tag and line.tag not in channels:
            raise DataError(
                f"the tag {line.tag!r} is none of the {len(channels)} channels: put it "
                "in --ignore, or correct it."
            )
        first = channels.index(line.tag) if line.tag else 0
        found = {n: v for n, v in enumerate(line.row, start=first) if not math.isnan(v)}
        bad = [n for n, value in found.items() if abs(value) >= OVERFLOW]
        if bad:
            raise DataError(
                f"{channels[bad[0]]!r}: {found[bad[0]]:g} is infinite or beyond float32 "
                "(3.4e38); correct it, or leave it empty if it is missing."
            )
        return found

    def _add(self, line: Line, readings: Mapping[int, float]) -> None:
        """Adds readings to the step; DataError if one has another value at the same time."""
        time = parse_timestamp(line.time).value
        replaces = self._plan.reading.duplicates == "last"
        for number, value in readings.items():
            if self._cells[number].get(time, value) != value and not replaces:
                raise DataError(
                    f"{self._plan.channels[number]!r} already has another value at this "
                    "time; send one of them."
                )
        for number, value in readings.items():
            self.repeated += time in self._cells[number]
            self._cells[number][time] = value

    def _complete(self, index: int, line: Line) -> Iterator[Line]:
        """The rows up to the step `index`, which begins then."""
        while self._step < index:
            cells, step = self._cells, self._step
            if not any(cells) and self._idle >= self._plan.fill_limit:
                self._step = index
                return
            self._idle = 0 if any(cells) else self._idle + 1
            # Before the row is returned: the state may be saved after it.
            self._step, self._cells = step + 1, [{} for _ in cells]
            time = self._time(step, line)
            row = [_mean(values) for values in cells]
            yield Line(line.number, time, row, entity=line.entity)

    def _index(self, instant: Timestamp) -> int:
        dated = instant.clock != "number"
        time = np.array([instant.value], "M8[ns]" if dated else None)
        step = step_of(self._plan.reading.step, dated=dated)
        return int(step_index(time, step)[0])

    def _time(self, index: int, line: Line) -> Any:
        """The end of a step, in the form of the stream's times."""
        dated = self._clock != "number"
        step = step_of(self._plan.reading.step, dated=dated)
        time = step_time(np.array([index]), step, dated=dated)[0]
        if not dated:
            return time.item()
        moment = pd.Timestamp(time)
        if self._clock == "zoned":
            zone = pd.Timestamp(iso_time(line.time) or "").tz
            moment = moment.tz_localize("UTC").tz_convert(zone)
        return str(moment.isoformat())


def _mean(values: Mapping[float, float]) -> float:
    """The mean of values by time, NaN for none, bit-identical to that of `to_grid`."""
    total = 0.0
    for _, value in sorted(values.items()):
        total += value  # `sum` rounds less often
    return total / len(values) if values else math.nan
