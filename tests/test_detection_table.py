"""Score tables against a loop over rows that is slow and plain."""

import itertools

import numpy as np
import pandas as pd
import pytest

from kdjax.data.files import read_table
from kdjax.detection.detector import entity_index
from kdjax.detection.table import score_table
from kdjax.errors import DataError

COLUMNS = ["entity", "time", "score", "window_score", "alarm", "state"]


def point_scores(detector, index, rows):
    """a_t of each row: e = x, so the window that holds it doesn't matter."""
    scaled = (rows - detector.scalers.offset[index]) / detector.scalers.scale[index]
    centred = scaled.astype(np.float64) - detector.normals.mean[index]
    precision = detector.normals.whiten[index].T.astype(np.float64)
    precision = precision @ detector.normals.whiten[index]
    return np.array([row @ precision @ row for row in centred])


def stepped(detector, index, rows):
    """a_t by window of the kind `difference`, `{start: [L]}` for each start."""
    scaled = (rows - detector.scalers.offset[index]) / detector.scalers.scale[index]
    length = detector.window
    scores = {}
    for start in range(len(rows) - length + 1):
        window = scaled[start : start + length].astype(np.float64)
        errors = np.abs(np.diff(window, axis=0, prepend=window[:1]))
        whitened = (errors - detector.normals.mean[index]) @ detector.normals.whiten[
            index
        ].T
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


def test_values_that_are_no_number_never_read_as_normal(small, rows):
    series = rows(9)
    series.values[4, 1] = np.nan
    table = score_table(small, series, entity="a")
    assert set(table["state"][6:]) == {"anomaly"}


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
    message = "series 'a' has 3 rows and no stretch of the detector's window of 4 rows"
    with pytest.raises(DataError, match=message):
        score_table(small, rows(3), entity="a")
    time = np.array([0.0, 1, 2, 90, 91, 92])
    with pytest.raises(DataError, match="has 6 rows and no stretch.*without a gap"):
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
