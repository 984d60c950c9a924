"""Streams against score tables, against rows looked at by hand, and across restarts."""

import json
import math
from typing import NamedTuple

import jax
import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kdjax.data.series import Series
from kdjax.detection.detector import stream_detector
from kdjax.detection.rolling import (
    adapt,
    adaptive_tau,
    rolling_taus,
    start_adaptive,
)
from kdjax.detection.stream_rules import Plan, plan_from_json, plan_of, plan_to_json
from kdjax.detection.streaming import StreamDetector, WindowResult
from kdjax.detection.tables import score_table
from kdjax.detection.timestamps import Timestamp, parse_timestamp
from kdjax.errors import ArtifactError, ConfigError, DataError
from kdjax.io.files import load_state, save_state
from kdjax.models.autoencoder import Architecture, network
from kdjax.models.residual import ResidualModel

PLAN = Plan(
    entity="a",
    channels=("x", "y"),
    window=4,
    stride=2,
    tau=8.0,
    rate=0.1,
    threshold_method="conformal",
    allowed_points=0,
    max_gap=5.0,
    step=1.0,
    min_duration=1,
    cooldown=0,
    calibration=tuple(np.arange(20.0)),
    disjoint=10,
)


class Asked(NamedTuple):
    """A stream and the windows that its scorer was asked for."""

    stream: StreamDetector
    windows: list


@pytest.fixture
def asked():
    """Makes a stream whose a_t is the row's first value, so that all is plain."""

    def make(plan=PLAN, **options):
        windows = []

        def score(window):
            windows.append(window[0].copy())
            points = window[0, :, 0].copy()
            known = points[~np.isnan(points)]
            worst = float(known.max()) if len(known) else math.nan
            return WindowResult(points, worst, np.abs(window[0]))

        return Asked(StreamDetector(plan, score, **options), windows)

    return make


@pytest.fixture
def models(small):
    """Detectors by name, with times a second apart and alarms that wait and rest."""
    waiting = small._replace(
        step=1.0,
        min_duration=2,
        cooldown=3,
        calibration=(np.arange(20.0), np.arange(40.0)),
    )
    architecture = Architecture(width=2, hidden=(3,))
    params = network(architecture).init(jax.random.key(0))
    net = ResidualModel("autoencoder", params, architecture)
    return {
        "mahalanobis": waiting,
        "difference": waiting._replace(model=ResidualModel("difference", {})),
        "network": waiting._replace(model=net, allowed_points=1),
    }


def holed(rng, count):
    """Rows with single cells, whole rows and a stretch of rows missing."""
    values = (2 * rng.normal(size=(count, 2))).astype(np.float32)
    values[rng.uniform(size=values.shape) < 0.05] = np.nan
    values[count // 3] = np.nan
    values[count // 2 : count // 2 + 6] = np.nan
    return values


def times(kind, steps):
    seconds = np.cumsum(steps)
    if kind == "number":
        return seconds
    start = np.datetime64("2024-01-01T00:00:00.000000001", "ns")
    return start + (seconds * 1e9).astype("timedelta64[ns]")


def same(rows, table):
    """Whether a stream said of each row what the table says."""
    for name in ("score", "window_score"):
        found = [getattr(row, name) for row in rows]
        np.testing.assert_allclose(found, table[name], rtol=1e-4, atol=1e-5)
    assert [row.state for row in rows] == table["state"].tolist()
    assert [row.alarm for row in rows] == (table["alarm"] > 0).tolist()
    assert [row.row for row in rows] == list(range(len(table)))


@pytest.mark.parametrize("clock", ["none", "number", "datetime"])
@pytest.mark.parametrize("name", ["mahalanobis", "difference", "network"])
def test_a_stream_is_the_causal_score_table(models, name, clock):
    detector = models[name]
    rng = np.random.default_rng(3)
    values = holed(rng, 120)
    steps = np.ones(120)
    # The step of 5 is the longest that is none of a gap.
    steps[[30, 60, 63, 90]] = [5.001, 5.0, 40.0, 6.0]
    time = None if clock == "none" else times(clock, steps)
    table = score_table(
        detector, Series("a", values, ("x", "y"), time), entity="a", causal=True
    )
    states = table["state"].value_counts()
    assert states["unknown"] > 7 and states["normal"] > 8 and states["anomaly"] > 2
    stream = stream_detector(detector, entity="a")
    given_times = [None] * 120 if time is None else time
    rows = [stream.update(r, t) for r, t in zip(values, given_times, strict=True)]
    same(rows, table)
    assert all((row.channels != ()) == row.alarm for row in rows)


@pytest.fixture(scope="module")
def compiled():
    """Streams compiled once; a fresh one costs no compiling."""
    return {}


@settings(max_examples=15, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("name", ["mahalanobis", "network"])
def test_any_rows_are_scored_as_in_the_table(name, data, request):
    models = request.getfixturevalue("models")
    made = request.getfixturevalue("compiled")
    if name not in made:
        made[name] = stream_detector(models[name], entity="pooled")
    cell = st.sampled_from([0.0, 0.5, -1.0, 3.0, -4.0, 1e30, np.nan])
    rows = data.draw(st.lists(st.tuples(cell, cell), min_size=20, max_size=20))
    steps = data.draw(
        st.lists(
            st.sampled_from([0.25, 1.0, 5.0, 5.5]),
            min_size=len(rows),
            max_size=len(rows),
        )
    )
    values = np.array(rows, np.float32)
    series = Series("z", values, ("x", "y"), np.cumsum(steps))
    try:
        table = score_table(models[name], series, entity="pooled", causal=True)
    except DataError:
        assume(False)
    old = made[name]
    stream = StreamDetector(old.plan, old._score, explain=old._explain)
    same([stream.update(*each) for each in zip(rows, series.time, strict=True)], table)


def test_windows_are_the_last_rows_without_a_gap_between(asked):
    stream, windows = asked()
    values = np.random.default_rng(0).normal(size=(23, 2)).astype(np.float32)
    time = np.arange(23.0)
    time[9:] += 5
    for row, at in zip(values, time, strict=True):
        stream.update(row, at)
    ends = [*range(3, 9), *range(12, 23)]
    assert len(windows) == len(ends)
    for window, end in zip(windows, ends, strict=True):
        np.testing.assert_array_equal(window, values[end - 3 : end + 1])


def test_without_a_known_step_there_are_no_gaps(asked):
    stream, windows = asked(PLAN._replace(step=0.0))
    for at in (0, 1, 1000, 10**6):
        stream.update([0.0, 0.0], at)
    assert len(windows) == 1


def test_rows_by_name_in_any_order(asked):
    stream, windows = asked()
    for at in range(4):
        stream.update({"y": 2.0, "x": at}, at)
    np.testing.assert_array_equal(windows[0], [[at, 2.0] for at in range(4)])


def test_a_row_in_alarm_names_the_channels_of_the_windows_worst_row(asked):
    plan = PLAN._replace(channels=("x", "y", "z", "w"))
    stream, _ = asked(plan)
    for row in ([1, 2, 3, 4], [9, 1, 20, 5], [0, 9, 0, 0]):
        stream.update(row)
    found = stream.update([1, 7, 7, 7])
    assert found.alarm and found.window_score == 9 and found.score == 1
    assert found.channels == ("z", "x", "w")


def test_unknown_is_never_normal(asked):
    stream, _ = asked()
    nothing = [np.nan, np.nan]
    said = [stream.update(row) for row in [nothing] * 4 + [[9.0, 1.0], nothing]]
    assert [row.state for row in said] == ["unknown"] * 4 + ["anomaly"] * 2
    # The window that holds the peak is in alarm still; its last row has no score.
    assert [row.alarm for row in said] == [False] * 4 + [True, True]
    assert math.isnan(said[5].score) and said[5].window_score == 9


FAULTS = [
    (([1.0], 9), "is float64 of shape \\[1\\], expected 2 numbers: x, y"),
    (([[1.0, 2.0]], 9), "shape \\[1, 2\\]"),
    ((["a", "b"], 9), "expected 2 numbers"),
    (([1.0, None], 9), "is object of shape"),
    (([1.0, [2.0]], 9), "is object"),
    (([1.0, np.inf], 9), "row 5, channel 'y': inf is infinite or beyond float32"),
    (([-np.inf, np.nan], 9), "channel 'x': -inf"),
    (([1e39, 1.0], 9), "channel 'x': 1e\\+39"),
    (([3.4028235677973366e38, np.nan], 9), "beyond float32"),
    (({"x": 1.0}, 9), "missing: y; not expected: none"),
    (({"x": 1.0, "y": 1.0, "z": 1.0}, 9), "missing: none; not expected: z"),
    (([1.0, 2.0], 4), "row 5: its time is not after that of the row before"),
    (([1.0, 2.0], 3.5), "not after"),
    (([1.0, 2.0], None), "has no time, but the rows before have a number"),
    (
        ([1.0, 2.0], "2024-01-01"),
        "a time without zone, but the rows before have a number",
    ),
    (([1.0, 2.0], math.nan), "the time nan is not a finite number"),
    (([1.0, 2.0], True), "the time True"),
    (([1.0, 2.0], "tomorrow"), "'tomorrow' is neither a number nor an ISO time"),
    (([1.0, 2.0], "2024-02-30"), "'2024-02-30' is neither"),
    (([1.0, 2.0], "1066-10-14"), "1678 to 2261"),
    (([1.0, 2.0], [3]), "neither a number"),
]


@pytest.mark.parametrize(("arguments", "message"), FAULTS)
def test_a_row_at_fault_is_not_taken_in(asked, arguments, message):
    stream, _ = asked()
    for at in range(5):
        stream.update([at, 1.0], at)
    before = stream.state()
    with pytest.raises(DataError, match=message):
        stream.update(*arguments)
    assert stream.state() == before


def test_the_largest_floats_pass(asked):
    stream, windows = asked(PLAN._replace(window=1))
    stream.update([3.4028235677973362e38, -3.4e38])
    assert windows[0][0, 0] == np.finfo(np.float32).max


def test_instants():
    hour = 3_600_000_000_000
    assert parse_timestamp(2.5) == Timestamp("number", 2.5)
    assert parse_timestamp(np.datetime64("1970-01-01T01", "h")) == Timestamp(
        "local", hour
    )
    assert parse_timestamp("1970-01-01 01:00:00.000000001") == Timestamp(
        "local", hour + 1
    )
    for text in ("1970-01-01T03:00+02:00", "1970-01-01T01:00:00Z"):
        assert parse_timestamp(text) == Timestamp("zoned", hour)
    assert parse_timestamp(None).clock == ""
    with pytest.raises(DataError, match="not a finite number"):
        parse_timestamp(10**400)


def pushed(stream, times, *, first=0):
    """What came of rows at these times: number, state and `taken_back`, or the error."""
    found = []
    for number, at in enumerate(times, start=first):
        try:
            row = stream.update([1.0 + number, 0.0], at)
        except DataError as error:
            found.append(str(error))
        else:
            found.append((row.row, row.state, row.taken_back))
    return found


QUIET = PLAN._replace(tau=100.0)


@pytest.mark.parametrize("cut", range(14))
def test_one_row_ahead_of_its_time_is_taken_back(asked, cut):
    """Two days ahead; the windows are those without it, over a restart too."""
    stream, windows = asked(QUIET)
    times = [*range(6), 172_800, *range(6, 12)]
    found = pushed(stream, times[:cut])
    state = json.loads(json.dumps(stream.state()))
    again, later = asked(QUIET)
    again.restore(state)
    assert again.state() == state
    found += pushed(again, times[cut:], first=cut)
    states = ["unknown"] * 3 + ["normal"] * 3 + ["unknown"] + ["normal"] * 6
    backs = [False] * 7 + [True] + [False] * 5
    assert found == [*zip(range(13), states, backs, strict=True)]
    values = [*range(1, 7), *range(8, 14)]
    expected = [values[end - 4 : end] for end in range(4, 13)]
    assert [window[:, 0].tolist() for window in windows + later] == expected


def test_a_row_behind_a_gap_that_comes_twice_is_refused_once(asked):
    stream, _ = asked(QUIET)
    found = pushed(stream, [*range(6), 900, 900, 901])
    assert "not after that of the row before" in found[7]
    assert found[6] == (6, "unknown", False) and found[8] == (7, "unknown", False)


def test_behind_a_gap_of_days_the_rows_follow(asked):
    stream, windows = asked(QUIET)
    found = pushed(stream, [*range(6), *range(172_800, 172_806)])
    states = (["unknown"] * 3 + ["normal"] * 3) * 2
    assert found == [*zip(range(12), states, [False] * 12, strict=True)]
    assert windows[3][:, 0].tolist() == [7, 8, 9, 10]
    assert stream.last.value == 172_805


def test_a_second_row_ahead_is_believed_until_enough_rows_say_otherwise(asked):
    stream, windows = asked(QUIET)
    found = pushed(stream, [*range(6), 1000, 1001, *range(6, 20)])
    assert all("not after that of the row before" in said for said in found[8:17])
    states = ["unknown"] * 3 + ["normal"] * 2
    assert found[17:] == [
        (row, state, False) for row, state in enumerate(states, start=8)
    ]
    assert windows[-2][:, 0].tolist() == [18, 19, 20, 21]


def test_late_and_repeated_rows_move_nothing(asked):
    stream, _ = asked(QUIET)
    times = [*range(6), 5, 5, 3, 4, 6, 2, 3, 4, 7, *[7] * 20, 8]
    found = pushed(stream, times)
    refused = [said for said in found if isinstance(said, str)]
    assert len(refused) == 27
    taken = [row for row in found if not isinstance(row, str)]
    states = ["unknown"] * 3 + ["normal"] * 6
    assert taken == [*zip(range(9), states, [False] * 9, strict=True)]


def test_a_stream_begins_anew_on_another_clock(asked):
    stream, _ = asked(QUIET)
    pushed(stream, range(6))
    found = pushed(stream, [f"2024-01-01T00:00:{second:02d}" for second in range(14)])
    assert all("a time without zone, but the rows before" in said for said in found[:9])
    assert [state for _, state, _ in found[9:]] == ["unknown"] * 3 + ["normal"] * 2


@pytest.mark.parametrize(
    "moving", [{}, {"adaptive_step": 0.05}, {"rolling": 0.2}], ids=repr
)
@pytest.mark.parametrize("kind", ["none", "number", "datetime"])
def test_a_stream_goes_on_from_any_row(asked, kind, moving):
    plan = PLAN._replace(min_duration=2, cooldown=3)
    rng = np.random.default_rng(5)
    values = np.abs(holed(rng, 40)) * 4
    steps = np.ones(40)
    steps[[11, 25]] = 9.0
    time = [None] * 40 if kind == "none" else times(kind, steps)
    rows = [*zip(values, time, strict=True)]
    whole = asked(plan, **moving).stream
    wanted = [repr(whole.update(*row)) for row in rows]
    for cut in range(41):
        first = asked(plan, **moving).stream
        found = [first.update(*row) for row in rows[:cut]]
        state = json.loads(json.dumps(first.state(), allow_nan=False))
        second = asked(plan, **moving).stream
        second.restore(state)
        assert second.state() == first.state()
        found += [second.update(*row) for row in rows[cut:]]
        assert [repr(row) for row in found] == wanted
        assert second.drift() == whole.drift()


def test_states_of_others_and_damaged_ones_are_refused(asked, tmp_path):
    stream, _ = asked()
    for at in range(6):
        stream.update([at, 1.0], at)
    state = stream.state()
    for other in (
        asked(PLAN._replace(tau=9.0)).stream,
        asked(PLAN, adaptive_step=0.1).stream,
    ):
        with pytest.raises(ArtifactError, match="of another detector, entity or"):
            other.restore(state)
    before = stream.state()
    for change in (
        {"schema": 4},
        {"rows": -1},
        {"rows": "6"},
        {"rows": 3},
        {"buffer": "AAAA"},
        {"buffer": state["buffer"][:-8]},
        {"clock": "sundial"},
        {"time": None},
        {"time": math.nan},
        {"alarm": [0, 0]},
        {"alarm": 3},
        {"p_values": [None]},
        {"before": 3},
        {"before": {"clock": "number", "time": 1.0, "run": 9, "alarm": [0, 0, 0]}},
        {"before": {"clock": "number", "time": 1.0, "run": 5, "alarm": [0, 0]}},
        {"before": {"clock": "number", "time": 1.0, "alarm": [0, 0, 0]}},
    ):
        with pytest.raises(ArtifactError, match="this state can't be restored"):
            stream.restore(state | change)
    for name in state.keys() - {"kdjax_version", "form"}:
        with pytest.raises(ArtifactError):
            stream.restore({k: v for k, v in state.items() if k != name})
    assert stream.state() == before


def test_a_state_file_notices_each_changed_byte(asked, tmp_path):
    stream, _ = asked()
    stream.update([1.0, np.nan], "2024-01-01")
    path = tmp_path / "state.json"
    save_state(path, stream.state())
    assert load_state(path) == stream.state()
    data = path.read_bytes()
    for place in range(0, len(data) - 1, 7):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        try:
            assert load_state(path) == stream.state()  # such as a blank made a tab
        except ArtifactError as error:
            assert "is not a state of a stream" in str(error)
    path.write_bytes(data[:50])
    with pytest.raises(ArtifactError, match="is not a state of a stream"):
        load_state(path)


def test_an_adaptive_threshold_moves_at_each_stride(asked):
    scores = np.abs(np.random.default_rng(1).normal(size=60)) * 12
    stream, _ = asked(PLAN, adaptive_step=0.05)
    rows = [stream.update([score, 0.0]) for score in scores]
    order = np.random.default_rng(0).permutation(20)
    state = start_adaptive(np.arange(20.0)[order], 0.1, step=0.05)
    tau = 19.0 - 1  # the 19th of 20: ⌈21 · 0.9⌉
    for number, row in enumerate(rows):
        if number < 3:
            continue
        assert row.tau == tau
        worst = scores[number - 3 : number + 1].max()
        assert row.alarm == (np.float32(worst) > tau)
        if (number - 3) % 2 == 0:
            assert adaptive_tau(state) == tau
            state = adapt(state, float(np.float32(worst)))
            ranked = np.sort(state.recent)
            rank = math.ceil(21 * (1 - state.alpha) - 1e-9)
            tau = math.inf if rank > 20 else ranked[rank - 1]
    assert len({row.tau for row in rows}) > 3


def test_a_following_threshold_is_one_of_all_scores_so_far(asked):
    scores = np.abs(np.random.default_rng(1).normal(size=60)) * 12
    stream, _ = asked(PLAN, rolling=0.1)
    rows = [stream.update([score, 0.0]) for score in scores][3:]
    at_strides = np.float64([row.window_score for row in rows[::2]])
    taus = rolling_taus(np.arange(20.0), at_strides, 0.1)
    # A window at a stride moves τ for those after it, until the next.
    assert rows[0].tau == taus[0]
    assert [row.tau for row in rows[1::2]] == [*taus[1:]]
    assert [row.tau for row in rows[2::2]] == [*taus[1:]]
    assert all(row.alarm == (row.window_score > row.tau) for row in rows)
    assert len(set(taus)) > 3


def test_a_threshold_moves_in_one_way(asked):
    with pytest.raises(ConfigError, match="rolling=0.1 both change τ: give one"):
        asked(PLAN, rolling=0.1, adaptive_step=0.1)


def test_a_state_belongs_to_its_way_to_move_the_threshold(asked):
    state = asked(PLAN, rolling=0.1).stream.state()
    for other in ({}, {"rolling": 0.2}, {"adaptive_step": 0.1}):
        with pytest.raises(
            ArtifactError, match="another detector, entity or kind of τ"
        ):
            asked(PLAN, **other).stream.restore(state)


def test_an_adaptive_threshold_needs_scores_and_a_rate(asked):
    with pytest.raises(DataError, match="needs at least one score"):
        asked(PLAN._replace(calibration=()), adaptive_step=0.1)
    with pytest.raises(ConfigError, match="a rate between 0 and 1"):
        asked(PLAN._replace(rate=0.0), adaptive_step=0.1)


def test_drift_looks_at_windows_that_share_no_row(asked):
    stream, _ = asked()
    for row in range(403):
        stream.update([row % 20, 0.0])
    # Windows that end at rows 3, 7, …: their largest are 3, 7, 11, 15, 19 in turns.
    found = stream.drift()
    assert found.n == 100 and not found.drifted
    p = (1 + 20 - np.array([19, 15, 11, 7, 3])) / 21
    above, below = np.arange(1, 6) / 5 - p, p - np.arange(5) / 5
    assert found.distance == pytest.approx(max(above.max(), below.max()))
    for _ in range(403):
        stream.update([30.0, 0.0])
    assert stream.drift().drifted
    none, _ = asked(PLAN._replace(calibration=(), disjoint=0))
    none.update([1.0, 2.0])
    assert not none.drift().drifted


def test_plan_of_a_detector(small):
    detector = small._replace(
        calibration=(np.arange(20.0)[::-1], np.arange(5000.0)), step=2.0, cooldown=4
    )
    own = plan_of(detector, 0)
    assert own.entity == "a" and own.tau == 8 and own.rate == 0.1 and own.step == 2
    assert own.calibration == tuple(range(20)) and own.disjoint == 15
    assert (own.channels, own.window, own.cooldown) == (("x", "y"), 4, 4)
    each_row = [tau._replace(spacing=1) for tau in detector.thresholds]
    assert plan_of(detector._replace(thresholds=each_row), 0).disjoint == 5
    pooled = plan_of(detector, 1)
    assert pooled.entity == "pooled" and len(pooled.calibration) == 1000
    assert pooled.calibration[0] == 0 and pooled.calibration[-1] == 4999
    assert (
        4 <= min(np.diff(pooled.calibration)) <= max(np.diff(pooled.calibration)) <= 6
    )
    assert plan_of(small, 0).calibration == () and plan_of(small, 0).disjoint == 0


def test_a_plan_survives_json():
    odd = PLAN._replace(
        tau=0.1 + 0.2, calibration=(-math.inf, 1 / 3, math.inf), max_gap=math.inf
    )
    text = plan_to_json(odd)
    assert plan_from_json(text) == odd
    # As version 0.1.0 wrote it, which knows no filling.
    assert "fill_limit" not in json.loads(text) and odd.fill_limit == 0
    filling = odd._replace(fill_limit=7)
    assert plan_from_json(plan_to_json(filling)) == filling
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


@pytest.mark.parametrize(
    "change",
    [
        {"window": 0},
        {"window": 4.0},
        {"window": True},
        {"channels": "xy"},
        {"channels": []},
        {"channels": ["x", "x"]},
        {"channels": [1]},
        {"tau": None},
        {"tau": "8"},
        {"tau": [8]},
        {"rate": -0.1},
        {"allowed_points": 4},
        {"calibration": [2.0, 1.0]},
        {"calibration": 3},
        {"entity": 3},
        {"more": 1},
        {"fill_limit": -1},
    ],
)
def test_a_plan_that_is_none_is_refused(change):
    fields = json.loads(plan_to_json(PLAN)) | change
    with pytest.raises(ArtifactError, match="this is not a stream plan of kdjax"):
        plan_from_json(json.dumps(fields))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '{"window": 4}'])
def test_text_that_is_no_plan_is_refused(text):
    with pytest.raises(ArtifactError, match="this is not a stream plan of kdjax"):
        plan_from_json(text)


# Spans to leave out.


def excluding(stream, first, last, entity="a"):
    """Leaves out the rows whose times, or numbers, lie from `first` to `last`."""
    stream.excluded = lambda who, at: who == entity and first <= at.value <= last
    return stream


@pytest.mark.parametrize("clock", ["number", ""])
def test_a_row_left_out_is_in_no_window(asked, clock):
    stream, windows = asked(PLAN._replace(entity="a"))
    excluding(stream, 6, 8)
    rows = [
        stream.update([number, 0], number if clock else None) for number in range(16)
    ]
    assert [row.state for row in rows] == (
        ["unknown"] * 3 + ["normal"] * 3 + ["unknown"] * 6 + ["anomaly"] * 4
    )
    assert [row.left_out for row in rows] == [6 <= n <= 8 for n in range(16)]
    assert [row.row for row in rows] == [*range(16)]
    assert not {6.0, 7.0, 8.0} & {v for window in windows for v in window[:, 0]}
    assert [window[:, 0].tolist() for window in windows[3:5]] == [
        [9, 10, 11, 12], [10, 11, 12, 13],
    ]  # fmt: skip


def test_events_end_before_a_row_left_out(asked):
    stream = excluding(asked(PLAN._replace(entity="a")).stream, 6, 20)
    found = [stream.update([20.0, 0], number).events for number in range(8)]
    ((begun,), (ended,)) = found[3], found[6]
    assert (begun["start"], begun["end"]) == (3, None)
    assert (ended["id"], ended["start"], ended["end"]) == (begun["id"], 3, 5)
    assert not any(found[place] for place in (0, 1, 2, 4, 5, 7))
    assert stream.finish() == ()


def test_rows_left_out_keep_their_order_and_survive_a_restart(asked):
    def make():
        return excluding(asked(PLAN._replace(entity="a")).stream, 6, 8)

    stream = make()
    for number in range(8):
        stream.update([number, 0], number)
    with pytest.raises(DataError, match="not after that of the row before"):
        stream.update([0.0, 0], 7)
    with pytest.raises(DataError, match="infinite"):
        stream.update([math.inf, 0], 8)
    again = make()
    again.restore(json.loads(json.dumps(stream.state())))
    for one in (stream, again):
        rows = [one.update([1.0, 0], number) for number in range(8, 14)]
        assert [row.state for row in rows] == ["unknown"] * 4 + ["normal"] * 2
        assert rows[0].left_out and rows[0].row == 8


def test_another_entity_is_not_left_out(asked):
    stream = excluding(asked(PLAN._replace(entity="a")).stream, 0, 99)
    other = stream.another("b")
    assert [other.update([1.0, 0], n).state for n in range(4)][-1] == "normal"
    assert [stream.update([1.0, 0], n).state for n in range(4)][-1] == "unknown"


# Rows come each minute, five steps may be missed; minutes 100 to 160 are left out.
@pytest.mark.parametrize(
    ("last", "next_", "told"),
    [
        (99, 161, False),  # as planned
        (99, 165, False),  # five minutes late
        (99, 170, True),  # too late
        (90, 161, True),  # silent before the span began
        (200, 210, True),  # elsewhere
    ],
)
def test_silence_in_a_span_is_planned(asked, last, next_, told):
    minute = 60 * 10**9
    start = pd.Timestamp("2026-04-01").value
    plan = PLAN._replace(entity="a", step=60.0, no_data=True)

    def one():
        stream = asked(plan).stream
        stream.excluded = lambda who, at: (
            start + 100 * minute <= at.value <= start + 160 * minute
        )
        stream.update([1.0, 0], pd.Timestamp(start + last * minute))
        return stream

    row = one().update([1.0, 0], pd.Timestamp(start + next_ * minute))
    assert [event["kind"] for event in row.events] == ["no_data"] * 2 * told
    # By the clock, just before the next row comes.
    silent = one().silent(60.0 * (next_ - last) - 1)
    assert [event["kind"] for event in silent] == ["no_data"] * told
