"""Scores rows one at a time, with the results of `score --causal`.

The rules of a stream are a `Plan`; the scorer is an argument, so that the same stream runs
on jax or on onnxruntime. This module doesn't import JAX.
"""

import base64
import collections
import copy
import hashlib
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kdjax.data.grid import fill_forward
from kdjax.data.raw import as_array
from kdjax.data.schema import Reading
from kdjax.data.unchanged import (
    Unchanged,
    frozen_limits,
    next_unchanged,
    start_unchanged,
)
from kdjax.detection.alarming import TOP, AlarmState, alarm_rule, next_alarm
from kdjax.detection.cadence import ENOUGH, STEPS, check_cadence, is_other
from kdjax.detection.false_alarms import Drift, drift, p_values
from kdjax.detection.occurrences import (
    ALL,
    FROZEN,
    MOVED,
    NO_DATA,
    SCORE,
    Event,
    Peak,
    after_row,
    event_id,
    has_moved,
    message,
    packed,
    unpacked,
)
from kdjax.detection.rolling import (
    Adaptive,
    adapt,
    adaptive_tau,
    shuffled,
    start_adaptive,
    start_rolling,
)
from kdjax.detection.stream_rules import Plan, as_count, as_number, plan_to_json
from kdjax.detection.timestamps import (
    CLOCKS,
    Timestamp,
    as_timestamp,
    parse_timestamp,
    said_time,
)
from kdjax.errors import ArtifactError, ConfigError, DataError, counted
from kdjax.io.files import check_schema, kdjax_version

SCHEMA = 3  # of states; those of schema 1 have no `before`, of 2 no events

# Number of windows without a common row whose scores `drift` compares.
WATCHED = 100

# Successive refused rows, in order among themselves, after which a stream starts again,
# such as after a clock was set back.
ANEW_AFTER = 10

# Numbers from here on are infinite in float32: half a step above its largest number.
OVERFLOW = 2.0**128 - 2.0**103


class WindowResult(NamedTuple):
    """Scores of one window by a backend."""

    points: np.ndarray  # a_t, [L]; NaN in rows without an observed channel
    window_score: float  # the (allowed points + 1)-th largest; NaN if there are too few
    # [L, D]; None where `explain` computes them.
    contributions: np.ndarray | None = None


class Watch(NamedTuple):
    """The state of a stream's events."""

    said: Any = None  # the time of the last row in the form of events
    unchanged: Unchanged = start_unchanged(0, np.float32)
    alarm: Event | None = None  # of kind `score`
    others: tuple[Event, ...] = ()


class Position(NamedTuple):
    """The position of a stream after a row."""

    last: Timestamp = Timestamp("", 0)
    taken: int = 0  # rows in the buffer
    run: int = 0  # of them, those since the start or the last gap
    alarm: AlarmState = AlarmState()
    last_values: np.ndarray = np.empty(0)  # [D], NaN for none; for `fill_forward`
    ages: np.ndarray = np.empty(0)  # [D], rows since
    watch: Watch = Watch()


class Taken(NamedTuple):
    """A row that a stream has taken and not answered yet."""

    time: Any  # as given
    instant: Timestamp
    said: Any
    values: np.ndarray  # [D], with filled cells
    at: Position  # before the row
    fresh: bool  # whether the window starts again with the row
    taken_back: bool
    after: Position  # without alarms and events
    window: np.ndarray  # [1, L, D], a view that is valid until the next row
    whole: bool  # whether the window has L rows without a gap, so that it has a score
    left_out: bool = False  # whether the row lies in an excluded span


class StreamRow(NamedTuple):
    """Result of a row."""

    row: int  # number of the row, from 0
    time: Any  # as given
    score: float  # a_t in the window that ends at the row; NaN where there is none
    window_score: float  # of that window; NaN where there is none
    alarm: bool  # whether the row is in alarm
    state: str  # `anomaly` in alarm, else `unknown` where a score is NaN, else `normal`
    tau: float  # τ that the window score was compared with
    # In alarm, the three that contribute most to the window's largest a_t.
    channels: tuple[str, ...] = ()
    # Whether the row before was ahead of its time: this row is earlier, and the stream
    # continues without the row before.
    taken_back: bool = False
    # Events that began or ended with the row, see `kdjax.detection.occurrences`.
    events: tuple[Mapping[str, Any], ...] = ()
    left_out: bool = False  # whether it lies in a span to leave out


class StreamDetector:
    """Scores rows as they arrive, in constant memory.

    `update` answers a row, or raises DataError and ignores the row.

    A row far ahead in time, after a gap, is withdrawn if the next row is earlier but fits
    before the gap. Rows that are not later than the last one are refused; after
    `ANEW_AFTER` of them that follow each other the stream starts again.

    Once `ENOUGH` steps have come, a row is refused if its step, and the median of the last
    `STEPS`, differ from the step in training. Its time still counts as the last row's, and
    the window restarts after it.

    `excluded(entity, instant)` may be set to exclude rows, such as those of maintenance:
    they are `unknown`, open events end before them, and the window restarts after them.
    For rows without times, instants are the rows' numbers.

    Args:
        plan: see `plan_of`.
        score: function of raw windows `[1, L, D]` in `plan.dtype`, NaN where missing, that
            returns a `WindowResult`.
        explain: function of the same windows that returns contributions `[L, D]`, for
            results without; called for rows in alarm only.
        adaptive_step: γ of `kdjax.detection.rolling`; 0 keeps τ.
        rolling: share of windows above a rolling threshold; 0 keeps τ.
    """

    def __init__(
        self,
        plan: Plan,
        score: Callable[[np.ndarray], WindowResult],
        *,
        explain: Callable[[np.ndarray], np.ndarray] | None = None,
        adaptive_step: float = 0.0,
        rolling: float = 0.0,
    ) -> None:
        if adaptive_step and rolling:
            raise ConfigError(
                f"adaptive={adaptive_step:g} and rolling={rolling:g} both change τ: "
                "give one of them."
            )
        self.plan = plan
        self.excluded: Callable[[str, Timestamp], bool] = lambda entity, instant: False
        self.source: Any = None  # the `EntityStreams` that contains it, if any
        self.moves = bool(adaptive_step or rolling)
        # Version 0.1.0 filled no cells; its states stay valid. Column names don't count.
        own = plan._replace(fill_limit=0, reading=Reading(step=plan.reading.step))
        text = f"{plan_to_json(own)} {adaptive_step!r}"
        text += f" {rolling!r}" * bool(rolling)
        self._digest = hashlib.sha256(text.encode()).hexdigest()
        form = (plan.channels, plan.window, plan.step, plan.max_gap, plan.dtype)
        # What a state of another detector must have in common, see `carried`.
        self.form = hashlib.sha256(repr(form).encode()).hexdigest()[:16]
        self._score = score
        self._explain = explain
        self._rule = alarm_rule(plan)
        self._calibration = np.array(plan.calibration)
        width = len(plan.channels)
        constant = np.array(plan.constant or [None] * width, plan.dtype)
        self._still = np.flatnonzero(~np.isnan(constant))
        self._constant = constant[self._still]
        longest = np.array(plan.unchanged or [0] * (width + 1))
        self._columns = np.flatnonzero(longest[:-1])
        self._longest = longest[[*self._columns, -1]]
        self._limits = frozen_limits(self._longest, window=plan.window)
        self._start = Position(
            last_values=np.full(width, np.nan, plan.dtype),
            ages=np.zeros(width, int),
            watch=Watch(unchanged=start_unchanged(len(self._columns), plan.dtype)),
        )
        self._start_adaptive: Adaptive | None = None
        known = shuffled(self._calibration)
        if adaptive_step:
            self._start_adaptive = start_adaptive(known, plan.rate, step=adaptive_step)
        elif rolling:
            self._start_adaptive = start_rolling(known, rolling)
        self._begin(plan.entity)

    def _begin(self, entity: str) -> None:
        """The stream before its first row."""
        self.entity = entity  # in ids of events
        length, width = self.plan.window, len(self.plan.channels)
        # Each row is stored twice, L apart, so that any L successive ones are adjacent.
        self._buffer = np.zeros((2 * length, width), self.plan.dtype)
        self.rows = 0  # accepted ones
        self._unsaved = 0  # of the rows in the buffer, the first for `new_rows`
        self._at = self._start
        # The position before a gap that only one row has followed.
        self._before: Position | None = None
        # Times of the latest rows, including those that were refused for their step.
        self._times: collections.deque[float] = collections.deque(maxlen=STEPS + 1)
        # The last row refused for its time, and how many successive ones follow each other.
        self._refused = (Timestamp("", 0), 0)
        self._p_values: collections.deque[float] = collections.deque(maxlen=WATCHED)
        self._adaptive = self._start_adaptive

    def another(self, entity: str) -> "StreamDetector":
        """A stream of the same rules before its first row; `entity` is in ids of events."""
        stream = copy.copy(self)
        stream._begin(entity)
        return stream

    def copied(self) -> "StreamDetector":
        """An independent copy in the same state."""
        stream = copy.copy(self)
        stream._buffer = self._buffer.copy()
        stream._times, stream._p_values = self._times.copy(), self._p_values.copy()
        return stream

    def update(
        self,
        row: Sequence[float] | np.ndarray | Mapping[str, float],
        time: Any = None,
        *,
        said: Any = None,
    ) -> StreamRow:
        """Scores the next row.

        Args:
            row: `[D]` raw values in the order of the channels, or by name; NaN where a
                value is missing.
            time: a number, a datetime or a text of one, later than that of the row before;
                None for all rows or for none.
            said: the time in the form of events; by default as a text or a number.

        Raises:
            DataError: channels are missing or unknown, a value is infinite or not a
                number, the time is not later, or rows have another step.
        """
        taken = self.take(row, time, said=said)
        return self.answer(taken, self.score(taken))

    def take(
        self,
        row: Sequence[float] | np.ndarray | Mapping[str, float],
        time: Any = None,
        *,
        said: Any = None,
        checked: np.ndarray | None = None,
    ) -> Taken:
        """The first half of `update`, before a score is needed; `answer` must follow.

        `checked` is the row as `checked_rows` returned it, if it did.
        """
        values = self._values(row) if checked is None else checked
        instant = parse_timestamp(time)
        at, fresh = self._base(instant)
        said = said_time(time, instant, self.rows) if said is None else said
        self._check_step(at, instant, said)
        taken_back = at is self._before
        known = instant if instant.clock else Timestamp("", self.rows)
        left_out = self.excluded(self.entity, known)
        self._before = at if fresh and at.run else None
        self._refused = (Timestamp("", 0), 0)
        self.rows += 1
        if left_out:
            self._before = None
            after = self._start._replace(last=instant, taken=at.taken)
            window = self._buffer[None, : self.plan.window]
            found = (values, at, fresh, taken_back, after, window)
            return Taken(time, instant, said, *found, whole=False, left_out=True)
        last_values, ages = at.last_values, at.ages
        if self.plan.fill_limit:
            filled, last_values, ages = fill_forward(
                values[None], self.plan.fill_limit, last_values, ages
            )
            values = filled[0]
        length = self.plan.window
        place = at.taken % length
        self._buffer[place] = self._buffer[place + length] = values
        window = self._buffer[None, place + 1 : place + 1 + length]
        run, taken = 1 if fresh else at.run + 1, at.taken + 1
        self._unsaved = min(self._unsaved, at.taken)
        after = Position(instant, taken, run, at.alarm, last_values, ages, at.watch)
        found = (values, at, fresh, taken_back, after, window)
        return Taken(time, instant, said, *found, whole=run >= length)

    def score(self, taken: Taken) -> WindowResult | None:
        """The scores of a row's window; None where it has too few rows."""
        return self._score(taken.window) if taken.whole else None

    def explained(self, window: np.ndarray) -> np.ndarray:
        """Contributions `[L, D]` to the scores of a raw window `[1, L, D]`."""
        if self._explain is not None:
            return self._explain(window)
        parts = self._score(window).contributions
        assert parts is not None
        return parts

    def answer(self, taken: Taken, found: WindowResult | None) -> StreamRow:
        """The second half of `update`: the result of a row with its window's scores."""
        at, instant, said = taken.at, taken.instant, taken.said
        length, window = self.plan.window, taken.window
        score = window_score = math.nan
        tau = self.plan.tau if self._adaptive is None else adaptive_tau(self._adaptive)
        if taken.left_out:
            ended = self._ended_with(at.watch) if taken.taken_back else []
            for event in filter(None, (at.watch.alarm, *at.watch.others)):
                end = said if event.kind == NO_DATA else event.end
                ended.append(message(event, self.entity, end))
            watch = self._start.watch._replace(said=said)
            self._at = taken.after._replace(watch=watch)
            result = (self.rows - 1, taken.time, score, window_score, False, "unknown")
            marks = (tau, (), taken.taken_back, tuple(ended), True)
            return StreamRow(*result, *marks)
        if found is not None:
            score, window_score = float(found.points[-1]), found.window_score
            windows = taken.after.run - length  # earlier ones since the last gap
            if not math.isnan(window_score):
                if self._adaptive is not None and windows % self.plan.stride == 0:
                    self._adaptive = adapt(self._adaptive, window_score)
                if len(self._calibration) and windows % self.plan.window == 0:
                    p = p_values(self._calibration, np.array([window_score]))
                    self._p_values.append(float(p[0]))
        state, alarm = next_alarm(at.alarm, window_score, tau, self._rule)

        def peak(named: bool) -> Peak:
            channels, shares = self._top_channels(window, found) if named else ((), ())
            severity = window_score / tau if tau > 0 else math.inf
            highest = math.nan if found is None else np.fmax.reduce(found.points)
            numbers = (float(highest), severity, window_score, score)
            most, severe, scored, own = (
                -math.inf if math.isnan(v) else v for v in numbers
            )
            return Peak(most, said, channels, severe, shares, scored, tau, own)

        watch, events = at.watch, list[Mapping[str, Any]]()
        if taken.taken_back:
            events += self._ended_with(watch)
        watch = self._watched(watch, events, taken)
        alarm_event, changed = after_row(
            watch.alarm,
            alarm,
            peak,
            window=length,
            begin=lambda first: Event(
                self._id(SCORE, instant), SCORE, "", said, end=said, peak=first
            ),
        )
        events += [message(event, self.entity, end) for event, end in changed]
        watch = watch._replace(said=said, alarm=alarm_event)
        self._at = taken.after._replace(alarm=state, watch=watch)
        known = not (math.isnan(score) or math.isnan(window_score))
        word = "anomaly" if alarm else "normal" if known else "unknown"
        return StreamRow(
            self.rows - 1,
            taken.time,
            score,
            window_score,
            alarm,
            word,
            tau,
            self._top_channels(window, found)[0] if alarm else (),
            taken.taken_back,
            tuple(events),
        )

    def silent(self, seconds: float) -> tuple[Mapping[str, Any], ...]:
        """Events that begin because no row has come for so many seconds.

        Only for rows with dates: the unit of numeric times is unknown.
        """
        plan, at = self.plan, self._at
        dated = at.last.clock in ("local", "zoned")
        known = any(event.kind == NO_DATA for event in at.watch.others)
        wait = plan.max_gap * plan.step
        if not (plan.no_data and dated and wait) or known or seconds <= wait:
            return ()
        if self._is_planned(at.last, at.last.value + round(seconds * 1e9)):
            return ()
        event = self._no_data(at)
        watch = at.watch._replace(others=(*at.watch.others, event))
        self._at = at._replace(watch=watch)
        return (message(event, self.entity),)

    def finish(self) -> tuple[Mapping[str, Any], ...]:
        """Ends the open events, except `no_data`, when no row follows."""
        watch = self._at.watch
        ended = [event for event in (watch.alarm, *watch.others) if event]
        ended = [event for event in ended if event.kind != NO_DATA]
        self._at = self._at._replace(watch=watch._replace(alarm=None, others=()))
        return tuple(message(event, self.entity, event.end) for event in ended)

    def _is_planned(self, last: Timestamp, until: float) -> bool:
        """Whether excluded spans explain that no row came from `last` until then."""
        wait = self.plan.max_gap * self.plan.step
        wait = wait if last.clock == "number" else round(wait * 1e9)
        ends = (last.value + wait, until - wait)
        return all(self.excluded(self.entity, last._replace(value=v)) for v in ends)

    def _id(self, kind: str, instant: Timestamp, subject: str = "") -> str:
        """The id of an event that begins now; without times the row's number counts."""
        start = instant.value if instant.clock else self.rows - 1
        return event_id(self.entity, kind, start, subject)

    def _no_data(self, at: Position) -> Event:
        name, said = self._id(NO_DATA, at.last), at.watch.said
        return Event(name, NO_DATA, "", said, f"no data since {said}")

    def _ended_with(self, watch: Watch) -> list[Mapping[str, Any]]:
        """Ends of the events that began with a row which is withdrawn."""
        before = {event.id for event in (watch.alarm, *watch.others) if event}
        return [
            message(event, self.entity, event.end)
            for event in self._at.watch.others
            if event.id not in before and event.kind != NO_DATA
        ]

    def _watched(
        self, watch: Watch, events: list[Mapping[str, Any]], taken: Taken
    ) -> Watch:
        """The state after a row's values, except alarms; `events` receives the changes."""
        plan, at, values, fresh = self.plan, taken.at, taken.values, taken.fresh
        instant, said = taken.instant, taken.said
        if not (fresh or watch.others or len(self._columns) or len(self._still)):
            return watch  # the fast way: nothing can have changed
        open_ = {(event.kind, event.subject): event for event in watch.others}
        silent = open_.pop((NO_DATA, ""), None)
        later = instant.clock == at.last.clock != "" and instant > at.last
        absent = plan.no_data and later and self._is_gap(at.last, instant)
        if silent or (absent and not self._is_planned(at.last, instant.value)):
            event = silent or self._no_data(at)
            events += [] if silent else [message(event, self.entity)]
            events.append(message(event, self.entity, said))
        if fresh:
            gone = [key for key in open_ if key[0] == FROZEN]
            ended = [*filter(None, [watch.alarm]), *map(open_.pop, gone)]
            events += [message(event, self.entity, event.end) for event in ended]
            watch = watch._replace(alarm=None, unchanged=self._start.watch.unchanged)
        unchanged = watch.unchanged
        if len(self._columns):
            unchanged = next_unchanged(unchanged, values[self._columns])
        runs, begun = unchanged.runs, list[Event]()
        over = runs > self._limits
        held = values[self._still]
        away = has_moved(self._constant, held) if len(held) else np.zeros(0, bool)
        if open_ or over.any() or away.any():
            now: dict[tuple[str, str], str] = {}
            places = (*self._columns, len(plan.channels))
            for place in np.flatnonzero(over).tolist():
                key = FROZEN, (*plan.channels, ALL)[places[place]]
                if key in open_ or key[1] == ALL or not over[-1]:
                    now[key] = (
                        f"unchanged for {runs[place]} rows, at most "
                        f"{self._longest[place]} in training"
                    )
            for place, column in enumerate(self._still):
                key = MOVED, plan.channels[column]
                if away[place] or (key in open_ and np.isnan(held[place])):
                    usual = self._constant[place]
                    now[key] = f"constant at {usual:g} in training, now {held[place]:g}"
            for key in [key for key in open_ if key not in now]:
                event = open_.pop(key)
                events.append(message(event, self.entity, event.end))
            for key, text in now.items():
                known = open_.get(key)
                name = self._id(key[0], instant, key[1])
                event = known or Event(name, *key, said, text)
                # At an end, frozen rows are counted; the new value of a channel stays.
                text = text if key[0] == FROZEN else event.text
                open_[key] = event._replace(end=said, text=text)
                begun += [] if known else [event]
        events += [message(event, self.entity) for event in begun]
        return watch._replace(unchanged=unchanged, others=tuple(open_.values()))

    @property
    def last(self) -> Timestamp:
        """The time of the last row; without a clock before the first."""
        return self._at.last

    @property
    def open_events(self) -> tuple[Event, ...]:
        """The events that have begun and not ended, in their current state."""
        watch = self._at.watch
        return (watch.alarm, *watch.others) if watch.alarm else watch.others

    def drift(self) -> Drift:
        """Whether scores of the latest separate windows differ from calibration's."""
        return drift(np.array(self._p_values), calibration=self.plan.disjoint)

    def state(self, *, buffer: bool = True) -> dict[str, Any]:
        """The state for `restore` after the last row, as JSON values.

        Without `buffer`, `restore` needs the rows of `new_rows` too.
        """
        adaptive, length = self._adaptive, self.plan.window
        at, before = self._at, self._before
        needed = at.run if before is None else before.run + 1
        places = np.arange(at.taken - min(needed, length), at.taken) % length
        kept = self._buffer[places]
        own: dict[str, Any] = {"buffer": _packed(kept)}
        if not buffer:
            own = {"taken": at.taken, "crc": zlib.crc32(kept.tobytes())}
        return {
            "schema": SCHEMA,
            "kdjax_version": kdjax_version(),
            "detector": self._digest,
            "form": self.form,
            "rows": self.rows,
            **own,
            **self._saved(at),
            "before": before and self._saved(before),
            "adaptive": adaptive and [adaptive.alpha, _packed(adaptive.recent)],
            "p_values": list(self._p_values),
        }

    def new_rows(self) -> dict[int, bytes]:
        """The rows of the buffer that changed since the last call, by their places.

        The latest rows of all places complete a state without buffer.
        """
        length, taken = self.plan.window, self._at.taken
        first, self._unsaved = max(self._unsaved, taken - length), taken
        return {
            n % length: self._buffer[n % length].tobytes() for n in range(first, taken)
        }

    def restore(
        self, state: Mapping[str, Any], rows: Mapping[int, bytes] | None = None
    ) -> None:
        """Continues from a `state`, or from one without buffer and its rows.

        Raises:
            ArtifactError: it belongs to another detector or other settings, is of a
                newer schema, or damaged; the stream is unchanged.
        """
        try:
            who, it = state.get("kdjax_version"), "this state can't be restored: it"
            check_schema(it, state["schema"], known=SCHEMA, version=who)
            if state["detector"] != self._digest:
                raise ValueError("of another detector, entity or kind of τ")
            window, width = self.plan.window, len(self.plan.channels)
            count = as_count(0)
            number, run = count(state["rows"]), count(state["run"])
            # Fewer if rows were withdrawn; without a buffer their places count.
            taken = number if rows is None else count(state["taken"])
            schema = state["schema"]
            at, needed = self._restored(state, taken, schema), run
            before = state["before"] if schema > 1 else None
            if before is not None:
                before = self._restored(before, taken - 1, schema)
                needed = before.run + 1
            if rows is None:
                buffer = base64.b64decode(state["buffer"], validate=True)
            else:
                latest = range(taken - min(needed, window), taken)
                buffer = b"".join(rows[n % window] for n in latest)
                if zlib.crc32(buffer) != state["crc"]:
                    raise ValueError("the rows are not those of the state")
            kept = np.frombuffer(buffer, self.plan.dtype).reshape(-1, width)
            watched = [as_number(p) for p in state["p_values"]]
            if len(kept) != min(needed, window) or not run <= needed <= taken <= number:
                raise ValueError("its parts contradict each other")
            adaptive, saved = self._adaptive, state["adaptive"]
            if adaptive is not None:
                alpha, recent = saved
                scores = _unpacked(recent, np.float64)
                least = min(len(self._calibration), adaptive.most)
                if not least <= len(scores) <= adaptive.most or np.isnan(scores).any():
                    raise ValueError("the number of its scores is wrong")
                adaptive = adaptive._replace(
                    alpha=as_number(alpha), recent=scores, ordered=np.sort(scores)
                )
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"this state can't be restored ({error}): give the state of this "
                "detector with the same settings, or remove it to start again."
            ) from error
        # All parts are valid: now the stream changes.
        self.rows, self._at, self._before = number, at, before
        self._times.clear()
        self._refused = (Timestamp("", 0), 0)
        places = np.arange(taken - len(kept), taken) % window
        self._unsaved = taken if rows is not None else taken - len(kept)
        self._buffer[places] = self._buffer[places + window] = kept
        self._p_values = collections.deque(watched, maxlen=WATCHED)
        self._adaptive = adaptive

    def carried(self, state: Mapping[str, Any]) -> dict[str, Any] | None:
        """A state of another detector, converted for `restore`; None if rows don't fit.

        Rows fit if channels, window, cadence and dtype are equal. Scores are compared with
        those of calibration from the next row on.
        """
        if state["detector"] == self._digest:
            return dict(state)
        if state.get("form") != self.form or self._adaptive is not None:
            return None
        usual = self._saved(self._start)

        def fitting(saved: Mapping[str, Any]) -> dict[str, Any]:
            own = dict(saved)
            if len(own.get("unchanged", ())) != len(usual["unchanged"]):
                own |= {name: usual[name] for name in ("last_known", "unchanged")}
            filled = ("last_values", "ages")
            return {name: usual[name] for name in filled if name in usual} | own

        before = state["before"] and fitting(state["before"])
        changes: dict[str, Any] = {"adaptive": None, "p_values": [], "before": before}
        return fitting(state) | {"detector": self._digest} | changes

    def _saved(self, at: Position) -> dict[str, Any]:
        watch = at.watch
        found: dict[str, Any] = {
            "run": at.run,
            "clock": at.last.clock,
            "time": at.last.value,
            "alarm": list(at.alarm),
            "said": watch.said,
            "last_known": _packed(watch.unchanged.last),
            "unchanged": watch.unchanged.runs.tolist(),
            "event": watch.alarm and packed(watch.alarm),
            "others": [packed(event) for event in watch.others],
        }
        if self.plan.fill_limit:
            found["last_values"] = _packed(at.last_values)
            found["ages"] = at.ages.tolist()
        return found

    def _restored(self, saved: Mapping[str, Any], taken: int, schema: int) -> Position:
        """The position from the result of `_saved`."""
        count = as_count(0)
        run, active, rest = map(count, saved["alarm"])
        at = self._start._replace(
            last=as_timestamp(saved["clock"], saved["time"]),
            taken=taken,
            run=count(saved["run"]),
            alarm=AlarmState(run, active, rest),
        )
        if schema > 2:
            last = _unpacked(saved["last_known"], self.plan.dtype)
            runs = np.array([count(run) for run in saved["unchanged"]], np.int64)
            if len(last) != len(self._columns) or len(runs) != len(last) + 1:
                raise ValueError("its values are of other channels")
            event = saved["event"]
            watch = Watch(
                saved["said"],
                Unchanged(last, runs),
                event and unpacked(event),
                tuple(map(unpacked, saved["others"])),
            )
            at = at._replace(watch=watch)
        if not self.plan.fill_limit or "last_values" not in saved:
            return at  # of version 0.1.0
        values = _unpacked(saved["last_values"], self.plan.dtype)
        ages = np.array([count(age) for age in saved["ages"]], int)
        if not values.shape == ages.shape == at.ages.shape:
            raise ValueError("its values are of other channels")
        return at._replace(last_values=values, ages=ages)

    def _values(
        self, row: Sequence[float] | np.ndarray | Mapping[str, float]
    ) -> np.ndarray:
        """A row `[D]` in the dtype of the plan, checked."""
        channels = self.plan.channels
        if isinstance(row, Mapping):
            if row.keys() != {*channels}:
                absent = [name for name in channels if name not in row]
                foreign = [str(name) for name in row if name not in channels]
                raise DataError(
                    f"row {self.rows}: channels differ from the {len(channels)} "
                    f"expected; missing: {', '.join(absent) or 'none'}; not expected: "
                    f"{', '.join(foreign) or 'none'}."
                )
            row = [row[name] for name in channels]
        try:
            numbers = as_array(row)
        except ValueError:
            numbers = np.empty(0, object)
        if numbers.shape != (len(channels),) or numbers.dtype.kind not in "fiu":
            raise DataError(
                f"row {self.rows} is {numbers.dtype} of shape {list(numbers.shape)}, "
                f"expected {counted(len(channels), 'number')}: {', '.join(channels)}."
            )
        numbers = numbers.astype(np.float64)
        if self.plan.fill_limit:  # as the reader of files
            numbers[np.isinf(numbers)] = np.nan
        bad = np.abs(numbers) >= OVERFLOW  # false for NaN
        if bad.any():
            place = int(np.argmax(bad))
            raise DataError(
                f"row {self.rows}, channel {channels[place]!r}: {numbers[place]:g} is "
                "infinite or beyond float32 (3.4e38); correct it, or give NaN if it is "
                "missing."
            )
        return numbers.astype(self.plan.dtype)

    def _base(self, instant: Timestamp) -> tuple[Position, bool]:
        """The position before a row, and whether its window starts again.

        DataError if the row can't come next.
        """
        at, before = self._at, self._before
        same = instant.clock == at.last.clock
        if before is not None and same and before.last < instant < at.last:
            at = before
        if not (at.taken or at.last.clock):  # before the first row
            return at, True
        if same and (not instant.clock or instant > at.last):
            return at, self._is_gap(at.last, instant)
        refused, count = self._refused
        follows = refused.clock == instant.clock != "" and refused < instant
        count = count + 1 if follows and not self._is_gap(refused, instant) else 1
        if count >= ANEW_AFTER:
            return at._replace(run=0), True
        self._refused = (instant, count)
        if instant.clock != at.last.clock:
            raise DataError(
                f"row {self.rows} has {CLOCKS[instant.clock]}, but the rows before have "
                f"{CLOCKS[at.last.clock]}: use one form for all rows."
            )
        raise DataError(
            f"row {self.rows}: its time is not after that of the row before: remove "
            "duplicate and late rows."
        )

    def _check_step(self, at: Position, instant: Timestamp, said: Any) -> None:
        """Raises DataError for a row with another step than in training, if most have it."""
        step, times = self.plan.step, self._times
        last, clock = at.last, instant.clock
        if not step or not clock:
            return
        if last.clock != clock or last >= instant:
            times.clear()  # the stream starts, or starts again
        times.append(instant.value)
        numbers = clock == "number"
        own = (instant.value - last.value) / (1 if numbers else 1e9)
        if len(times) <= ENOUGH or not is_other(own, step):
            return
        time = np.array(times) if numbers else np.array(times, "M8[ns]")
        try:
            check_cadence(time, step)
        except DataError as error:
            watch = at.watch._replace(said=said)
            self._at = at._replace(last=instant, run=0, watch=watch)
            self._before = None
            raise DataError(f"row {self.rows}: {error}") from None

    def _is_gap(self, last: Timestamp, later: Timestamp) -> bool:
        """Whether a gap lies between two times of one clock."""
        # As in `kdjax.data.splits.segments`: in whole ns, or in the unit of numbers.
        step = self.plan.step
        step = step if last.clock in ("", "number") else float(np.rint(step * 1e9))
        return bool(step and later.value - last.value > self.plan.max_gap * step)

    def _top_channels(
        self, window: np.ndarray, found: WindowResult | None
    ) -> tuple[tuple[str, ...], tuple[float, ...]]:
        """The channels with most contribution to the window's largest a_t; their shares."""
        if found is None:
            return (), ()
        parts = found.contributions
        if parts is None and self._explain is not None:
            parts = self._explain(window)
        if parts is None:
            return (), ()
        peak = int(np.nanargmax(found.points))
        order = np.argsort(-parts[peak], kind="stable")
        own = [
            place
            for place in order
            if self.plan.channels[place] not in self.plan.context
        ]
        with np.errstate(invalid="ignore"):  # infinite values, or zeros
            shares = parts[peak][own] / parts[peak][own].sum(dtype=np.float64)
        names = tuple(self.plan.channels[place] for place in own[:TOP])
        return names, tuple(round(float(share), 4) for share in shares[:TOP])


def checked_rows(plan: Plan, rows: Sequence[Sequence[float]]) -> np.ndarray | None:
    """Rows `[N, D]` in the dtype of a plan, checked together for `take`.

    None if a row is faulty or has infinite cells: then `take` checks each row.
    """
    try:
        numbers = np.array(rows, np.float64)
    except (OverflowError, TypeError, ValueError):
        return None
    if numbers.shape != (len(rows), len(plan.channels)):
        return None
    if (np.abs(numbers) >= OVERFLOW).any():
        return None
    return numbers.astype(plan.dtype)


def left_open(state: Mapping[str, Any], entity: str) -> list[dict[str, Any]]:
    """Ends of the open events of a `state`, when no row follows."""
    known = map(unpacked, filter(None, (state["event"], *state["others"])))
    return [
        message(event, entity, event.start if event.end is None else event.end)
        for event in known
    ]


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode()


def _unpacked(text: str, kind: Any) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text, validate=True), kind)
