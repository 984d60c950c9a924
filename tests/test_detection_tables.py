"""Score tables against a loop over rows that is slow and plain."""

import itertools

import numpy as np
import pandas as pd
import pytest

from kdjax.data.readers import read_table
from kdjax.detection.alarming import AlarmRule, AlarmState, next_alarm
from kdjax.detection.detector import (
    entity_index,
    score_batches,
    score_windows,
)
from kdjax.detection.tables import find_windows, score_events, score_table
from kdjax.errors import DataError

COLUMNS = ["entity", "time", "score", "window_score", "tau", "alarm", "state"]


def point_scores(detector, index, rows):
    """a_t of each row: e = x, so the window that holds it doesn't matter."""
    scaled = (rows - detector.scalers.offset[index]) / detector.scalers.scale[index]
    centred = scaled.astype(np.float64) - detector.gaussians.mean[index]
    precision = detector.gaussians.whiten[index].T.astype(np.float64)
    precision = precision @ detector.gaussians.whiten[index]
    return np.array([row @ precision @ row for row in centred])


def stepped(detector, index, rows):
    """a_t by window of the kind `difference`, `{start: [L]}` for each start."""
    scaled = (rows - detector.scalers.offset[index]) / detector.scalers.scale[index]
    length = detector.window
    scores = {}
    for start in range(len(rows) - length + 1):
        window = scaled[start : start + length].astype(np.float64)
        errors = np.abs(np.diff(window, axis=0, prepend=window[:1]))
        whitened = (
            errors - detector.gaussians.mean[index]
        ) @ detector.gaussians.whiten[index].T
        scores[start] = (whitened**2).sum(axis=1)
    return scores


def by_hand(detector, series, entity, causal=False):
    """The table's rows, each found by looking at all windows of its stretch."""
    index = entity_index(detector, entity)
    tau = detector.thresholds[index].tau
    time = series.time
    steps = np.ones(len(series.values)) if time is None else np.diff(time)
    cuts = np.flatnonzero(steps > detector.max_gap * np.median(steps)) + 1
    edges = [0, *(cuts if time is not None else []), len(series.values)]
    found = []
    for low, high in itertools.pairwise(edges):
        scores = stepped(detector, index, series.values[low:high])
        stride = 1 if causal else detector.stride
        chosen = sorted({s for s in scores if s % stride == 0} | set([*scores][-1:]))
        for row in range(high - low):
            cover = [
                scores[s][row - s] for s in chosen if s <= row < s + detector.window
            ]
            ended = [s for s in chosen if s + detector.window - 1 <= row]
            if causal:
                score = scores[ended[-1]][-1] if ended else np.nan
            else:
                score = np.mean(cover) if cover else np.nan
            worst = sorted(scores[ended[-1]]) if ended else None
            window = worst[-1 - detector.allowed_points] if ended else np.nan
            state = "unknown" if not ended else "normal"
            found.append((score, window, int(window > tau), state))
            if ended and window > tau:
                found[-1] = (*found[-1][:3], "anomaly")
    return found


@pytest.fixture
def steps(small):
    """`small` with errors that depend on the window: its first row's step counts 0."""
    return small._replace(model=small.model._replace(kind="difference"))


@pytest.mark.parametrize("causal", [False, True], ids=["covered", "causal"])
@pytest.mark.parametrize("entity", ["a", "pooled"])
@pytest.mark.parametrize("count", [4, 5, 6, 7, 23])
@pytest.mark.parametrize("allowed", [0, 2])
def test_table_is_that_of_a_loop(steps, rows, entity, count, causal, allowed):
    detector = steps._replace(allowed_points=allowed)
    series = rows(count)
    table = score_table(detector, series, entity=entity, causal=causal)
    wanted = by_hand(detector, series, entity, causal)
    assert list(table.columns) == COLUMNS
    assert table["time"].tolist() == list(range(count))
    assert set(table["entity"]) == {"a"}
    for name, values in zip(
        COLUMNS[2:4], [*zip(*wanted, strict=True)][:2], strict=True
    ):
        np.testing.assert_allclose(table[name], values, rtol=1e-4)
    assert table["alarm"].tolist() == [alarm for *_, alarm, _ in wanted]
    assert table["state"].tolist() == [state for *_, state in wanted]


def test_the_loop_meets_every_state(steps, rows):
    """Guards the tests above: their rows hold all three states."""
    states = {state for *_, state in by_hand(steps, rows(23), "pooled")}
    assert states == {"unknown", "normal", "anomaly"}


def test_every_row_has_a_score_by_the_right_aligned_window(small, rows):
    # Windows at 0, 3 and, for the last row, 4.
    table = score_table(small, rows(8), entity="a")
    points = point_scores(small, 0, rows(8).values)
    np.testing.assert_allclose(table["score"], points, rtol=1e-5)
    ends = (
        [np.nan] * 3 + [points[0:4].max()] * 3 + [points[3:7].max(), points[4:8].max()]
    )
    np.testing.assert_allclose(table["window_score"], ends, rtol=1e-5)


def test_rows_are_unknown_until_a_window_has_ended_though_they_have_a_score(
    small, rows
):
    table = score_table(small, rows(9), entity="a")
    assert table["state"].tolist()[:3] == ["unknown"] * 3
    assert table["score"].notna().all()
    assert table["window_score"].isna().tolist() == [True] * 3 + [False] * 6
    assert table["alarm"].tolist()[:3] == [0, 0, 0]
    assert table["alarm"].dtype == np.int8


@pytest.mark.parametrize("causal", [False, True])
def test_a_gap_in_time_starts_afresh(steps, rows, causal):
    time = np.arange(20.0)
    time[9:] += 50
    time[11:] += 50
    series = rows(20, time=time)
    table = score_table(steps, series, entity="a", causal=causal)
    wanted = by_hand(steps, series, "a", causal)
    for column, name in enumerate(["score", "window_score"]):
        np.testing.assert_allclose(table[name], [w[column] for w in wanted], rtol=1e-4)
    assert table["state"].tolist() == [state for *_, state in wanted]
    # Rows 9 and 10 stand alone between two gaps: no window, no score, not normal.
    assert table["score"].isna().tolist() == [
        causal and (i < 3 or i in (11, 12, 13)) or i in (9, 10) for i in range(20)
    ]
    assert set(table["state"][9:14]) == {"unknown"}
    assert table["time"].tolist() == time.tolist()


def test_time_stays_as_it_was(small, rows):
    time = np.datetime64("2024-01-01", "ns") + np.arange(9) * np.timedelta64(60, "s")
    table = score_table(small, rows(9, time=time), entity="a")
    assert table["time"].dtype == np.dtype("datetime64[ns]")
    assert (table["time"].to_numpy() == time).all()


def test_entities_have_their_own_threshold(small, rows):
    own = score_table(small, rows(40), entity="a")
    pooled = score_table(small, rows(40), entity="pooled")
    for table, tau in ((own, 8.0), (pooled, 12.0)):
        known = table["window_score"].notna()
        assert (table["alarm"] == (table["window_score"] > tau))[known].all()
        assert 0 < table["alarm"].sum() < known.sum()
    assert not np.allclose(own["score"], pooled["score"])


def test_a_score_at_the_threshold_is_normal(small, rows):
    table = score_table(small, rows(4), entity="a")
    exact = table["window_score"][3]
    at = small.thresholds[0]._replace(tau=float(exact))
    same = score_table(
        small._replace(thresholds=(at, small.thresholds[1])), rows(4), entity="a"
    )
    assert same["state"][3] == "normal" and same["alarm"][3] == 0


def test_huge_values_score_infinite_and_alarm(small, rows):
    series = rows(9)
    series.values[4] = 1e30
    table = score_table(small, series, entity="a")
    assert np.isinf(table["score"][4]) and np.isinf(table["window_score"][6])
    assert table["state"][6] == "anomaly"
    assert np.isfinite(table["score"].drop(4)).all()


# Missing cells and excluded rows.


def test_a_missing_cell_leaves_a_score_of_the_others(small, rows):
    """With e = x the row's score is its own: here that of channel x alone."""
    series = rows(9)
    whole = score_table(small, series, entity="a")
    series.values[4, 1] = np.nan
    table = score_table(small, series, entity="a")
    pd.testing.assert_frame_equal(
        table.drop(index=range(4, 9)), whole.drop(index=range(4, 9)), rtol=1e-5
    )
    whiten = small.gaussians.whiten[0].astype(np.float64)
    variance = np.linalg.inv(whiten.T @ whiten)[0, 0]
    deviation = (series.values[4, 0] - 1) / 2 - 0.5
    assert table["score"][4] == pytest.approx(deviation**2 / variance, rel=1e-4)
    assert (table["state"][3:] != "unknown").all()


def test_rows_without_a_value_are_unknown_though_a_window_has_a_score(small, rows):
    series = rows(12)
    series.values[5] = np.nan
    quiet = [tau._replace(tau=1e9) for tau in small.thresholds]
    table = score_table(small._replace(thresholds=quiet), series, entity="a")
    assert table["score"].isna().tolist() == [row == 5 for row in range(12)]
    assert table["state"][5] == "unknown"
    # A live system went on: the windows that hold row 5 have three other points.
    assert table["window_score"][3:].notna().all()
    assert "unknown" not in set(table["state"][6:])


@pytest.mark.parametrize("causal", [False, True])
def test_windows_without_a_value_are_unknown_and_never_alarm(small, rows, causal):
    series = rows(24)
    series.values[:] = 50.0
    series.values[6:16] = np.nan
    table = score_table(small, series, entity="a", causal=causal)
    stride = 1 if causal else 3
    windows = sorted({*range(0, 21, stride), 20})
    for row in range(24):
        ended = [s for s in windows if s + 3 <= row]
        empty = not ended or all(6 <= r < 16 for r in range(ended[-1], ended[-1] + 4))
        assert np.isnan(table["window_score"][row]) == empty, row
        assert table["alarm"][row] == (not empty)
        # In alarm by the latest window, though the row itself has no score.
        assert table["state"][row] == ("unknown" if empty else "anomaly")


@pytest.mark.parametrize("allowed", [0, 1, 3])
def test_a_window_needs_more_points_than_may_be_above(small, rows, allowed):
    series = rows(4)
    series.values[1:3] = np.nan
    table = score_table(small._replace(allowed_points=allowed), series, entity="pooled")
    points = np.sort(point_scores(small, 1, series.values)[[0, 3]])
    if allowed < 2:
        assert table["window_score"][3] == pytest.approx(points[1 - allowed], rel=1e-5)
    else:
        assert np.isnan(table["window_score"][3]) and table["state"][3] == "unknown"


@pytest.mark.parametrize("causal", [False, True])
def test_excluded_rows_are_unknown_and_part_their_neighbours(steps, rows, causal):
    series = rows(24)
    table = score_table(
        steps,
        series._replace(excluded=np.array([[9, 12]])),
        entity="a",
        causal=causal,
    )
    assert table["score"][9:12].isna().all()
    assert set(table["state"][9:15]) == {"unknown"} and len(table) == 24
    # As two series of their own.
    for part in (slice(0, 9), slice(12, 24)):
        alone = score_table(
            steps,
            series._replace(values=series.values[part]),
            entity="a",
            causal=causal,
        )
        for name in ("score", "window_score", "alarm"):
            np.testing.assert_allclose(table[name][part], alone[name], rtol=1e-5)


def test_gaps_are_steps_longer_than_those_of_training(small, rows):
    """Every row of this series is as far from the next as a gap in training was."""
    sparse = rows(12, time=np.arange(12.0) * 10)
    assert score_table(small, sparse, entity="a")["score"].notna().all()
    assert small.max_gap == 5
    with pytest.raises(DataError, match=r"rows are expected every 1\)"):
        score_table(small._replace(step=1.0), sparse, entity="a")
    fits = score_table(small._replace(step=2.0), sparse, entity="a")
    assert fits["score"].notna().all()
    # Half of the steps are long: the series' own median would see no gap.
    time = np.cumsum(np.r_[0, [1] * 5, [8] * 6])
    own = score_table(small, rows(12, time=time * 1.0), entity="a")
    known = score_table(small._replace(step=1.0), rows(12, time=time * 1.0), entity="a")
    assert own["score"].notna().all()
    assert known["score"].notna().tolist() == [True] * 6 + [False] * 6


def test_the_step_is_in_seconds_whatever_the_unit_of_the_times(small, rows):
    start = np.datetime64("2024-01-01", "ns")
    time = start + np.arange(12) * np.timedelta64(60, "s")
    time[6:] += np.timedelta64(3600, "s")
    table = score_table(small._replace(step=60.0), rows(12, time=time), entity="a")
    assert table["window_score"].isna().tolist() == [i % 6 < 3 for i in range(12)]


# Alarms.


@pytest.mark.parametrize("rule", [(1, 0), (3, 0), (1, 4), (2, 5), (4, 2)])
@pytest.mark.parametrize("causal", [False, True])
def test_alarms_keep_to_duration_and_rest(steps, rows, rule, causal):
    """A plain loop over rows; the two lengths are at home in `kdjax.detection.alarming`."""
    duration, cooldown = rule
    series = rows(60)
    series.values[20:27] = np.nan
    tau = steps.thresholds[1]._replace(tau=9.0)
    detector = steps._replace(
        min_duration=duration, cooldown=cooldown, thresholds=(tau, tau)
    )
    table = score_table(detector, series, entity="pooled", causal=causal)
    state, wanted = AlarmState(), []
    for score in table["window_score"]:
        state, alarm = next_alarm(state, score, 9.0, AlarmRule(duration, cooldown))
        wanted.append(int(alarm))
    assert table["alarm"].tolist() == wanted
    known = table["score"].notna() & table["window_score"].notna()
    assert ((table["state"] == "anomaly") == (table["alarm"] == 1)).all()
    assert set(table["state"][~known & (table["alarm"] == 0)]) == {"unknown"}
    if rule == (3, 0):
        first = wanted.index(1)
        assert (table["window_score"][first - 2 : first + 1] > 9).all()
        plain = score_table(steps._replace(thresholds=(tau, tau)), series,
                            entity="pooled", causal=causal)  # fmt: skip
        assert 0 < sum(wanted) < plain["alarm"].sum()


# Contributions and events.


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("gaps", [False, True])
def test_contributions_sum_to_the_score(steps, rows, causal, gaps):
    series = rows(40)
    if gaps:
        series.values[[3, 9, 10], 0] = np.nan
        series.values[[9, 20, 21, 22, 23, 24], 1] = np.nan
        series.values[[20, 21, 22, 23, 24], 0] = np.nan
    options = {"entity": "a", "causal": causal}
    table = score_table(steps, series, contributions=True, **options)
    assert list(table.columns) == [*COLUMNS, "contribution:x", "contribution:y"]
    parts = table[["contribution:x", "contribution:y"]]
    np.testing.assert_allclose(
        parts.sum(axis=1, skipna=False), table["score"], rtol=1e-4
    )
    assert (parts.fillna(0) >= 0).all(axis=None)
    plain = score_table(steps, series, **options)
    pd.testing.assert_frame_equal(table[COLUMNS], plain, rtol=1e-5)


@pytest.mark.parametrize("attribution", ["correlation", "conditional"])
@pytest.mark.parametrize("causal", [False, True])
def test_contributions_are_means_over_the_covering_windows(
    steps, rows, causal, attribution
):
    detector, series = steps._replace(attribution=attribution), rows(23)
    table = score_table(detector, series, entity="a", causal=causal, contributions=True)
    starts = np.arange(20) if causal else np.array([0, 3, 6, 9, 12, 15, 18, 19])
    (found,) = score_batches(detector, 0, series.values, starts, explain=True)
    for row in range(23):
        parts = [
            part[row - start]
            for start, part in zip(starts, found.contributions, strict=True)
            if (start + 3 == row if causal else start <= row < start + 4)
        ]
        wanted = np.mean(parts, axis=0) if parts else [np.nan] * 2
        got = table.loc[row, ["contribution:x", "contribution:y"]].to_numpy(float)
        np.testing.assert_allclose(got, wanted, rtol=1e-4)


def five_channels(small):
    """A detector of five channels under correlated Normals, with the kind of `steps`."""
    rng = np.random.default_rng(4)
    whiten = np.tril(rng.normal(size=(2, 5, 5)), -1) * 0.3 + np.eye(5)
    return small._replace(
        model=small.model._replace(kind="difference"),
        channels=("a", "b", "c", "d", "e"),
        scalers=type(small.scalers)(np.zeros((2, 5), "f4"), np.ones((2, 5), "f4")),
        gaussians=type(small.gaussians)(np.zeros((2, 5), "f4"), whiten.astype("f4")),
        thresholds=tuple(tau._replace(tau=60.0) for tau in small.thresholds),
    )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("attribution", ["correlation", "conditional"])
@pytest.mark.parametrize("gaps", [False, True])
def test_events_name_the_peak_and_channels_of_the_whole_table(
    small, rows, causal, attribution, gaps
):
    detector = five_channels(small)._replace(attribution=attribution, cooldown=1)
    series = rows(120, channels=tuple("abcde"), time=np.arange(120.0) * 2 + 7)
    series.values[:] *= 0.5
    for row, column, size in ((20, 1, 30), (23, 4, 20), (60, 2, 12), (119, 0, 40)):
        series.values[row, column] += size
    if gaps:
        series.values[22:24, 1] = np.nan
        series.values[59:61, 3] = np.nan
        series.values[90:99] = np.nan
    options = {"entity": "a", "causal": causal}
    table = score_table(detector, series, contributions=True, **options)
    plain = table[COLUMNS]
    events = score_events(detector, series, plain, **options)
    assert list(events.columns) == [
        "entity", "start", "end", "severity", "peak", "channels", "id", "kind",
    ]  # fmt: skip
    assert set(events["kind"]) == {"score"} and events["id"].is_unique
    assert len(events) >= 3
    # Alarms less than a window apart are one event, written out row by row.
    alarmed = np.flatnonzero(table["alarm"])
    spans = [[alarmed[0], alarmed[0]]]
    for row in alarmed[1:]:
        if row - spans[-1][1] < detector.window:
            spans[-1][1] = row
        else:
            spans.append([row, row])
    parts = table[[f"contribution:{name}" for name in "abcde"]].to_numpy()
    for (first, last), (_, event) in zip(spans, events.iterrows(), strict=True):
        assert (event["start"], event["end"]) == (series.time[first], series.time[last])
        assert event["entity"] == "a"
        highest = np.nanmax(table["window_score"][first : last + 1])
        assert event["severity"] == pytest.approx(highest / 60.0)
        peak = first + int(np.nanargmax(table["score"][first : last + 1]))
        assert event["peak"] == series.time[peak]
        before = max(first - detector.window + 1, 0)
        cause = before + int(np.nanargmax(table["score"][before : last + 1]))
        top = np.argsort(-parts[cause], kind="stable")[:3]
        assert event["channels"].split(";") == ["abcde"[i] for i in top]


def test_no_alarm_makes_no_event(small, rows):
    series = rows(20)
    series.values[:] = [2.0, 1.0]
    table = score_table(small, series, entity="a")
    assert not table["alarm"].any()
    events = score_events(small, series, table, entity="a")
    assert len(events) == 0 and "channels" in events


def test_windows_reach_the_last_row_of_every_span(small, rows):
    series = rows(30)._replace(excluded=np.array([[10, 13]]))
    windows = find_windows(small, series, causal=False)
    assert windows.starts.tolist() == [0, 3, 6, 13, 16, 19, 22, 25, 26]
    points = score_windows(small, 0, series.values, windows.starts)
    table = score_table(small, series, entity="a")
    assert table["window_score"][29] == pytest.approx(points[-1].max(), rel=1e-5)
    assert windows.latest[[9, 10, 15, 16, 29]].tolist() == [2, -1, -1, 3, 8]


def test_channels_are_matched_by_name(small, rows):
    series = rows(12)
    swapped = series._replace(channels=("y", "x"), values=series.values[:, ::-1])
    pd.testing.assert_frame_equal(
        score_table(small, swapped, entity="a"), score_table(small, series, entity="a")
    )
    foreign = rows(12, channels=("x", "z"))
    with pytest.raises(DataError, match="missing: y; not expected: z"):
        score_table(small, foreign, entity="a")


def test_too_few_rows_are_refused(small, rows):
    message = (
        "series 'a' has 3 rows, but not the 4 successive rows of a window without a gap"
    )
    with pytest.raises(DataError, match=message):
        score_table(small, rows(3), entity="a")
    time = np.array([0.0, 1, 2, 90, 91, 92])
    with pytest.raises(
        DataError, match="has 6 rows, but not the 4 successive rows.*without a gap"
    ):
        score_table(small, rows(6, time=time), entity="a")


def test_unknown_entity_is_refused(small, rows):
    with pytest.raises(DataError, match="no entity 'z'"):
        score_table(small, rows(9), entity="z")


def test_a_mapped_file_gives_what_its_rows_in_memory_give(small, rows, tmp_path):
    values = rows(50).values
    np.save(tmp_path / "a.npy", values)
    (mapped,) = read_table(tmp_path / "a.npy")
    assert isinstance(mapped.values, np.memmap)
    assert mapped.channels == ("channel_1", "channel_2")
    table = score_table(small, mapped, entity="a")
    pd.testing.assert_frame_equal(table, score_table(small, rows(50), entity="a"))


def test_a_file_that_is_not_all_finite_is_not_mapped(rows, tmp_path):
    values = rows(50).values
    values[7, 1] = np.nan
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(DataError, match=r"row 8, column 2 \('channel_2'\)"):
        read_table(tmp_path / "a.npy")
    (filled,) = read_table(tmp_path / "a.npy", missing="ffill")
    assert filled.values[7, 1] == values[6, 1]
