"""Times come back as they were given, whatever the file and the output."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdjax.data.readers import load_files, read_table
from kdjax.data.series import Series
from kdjax.data.times import TimeForm, axis_times
from kdjax.detection.storage import save_detector
from kdjax.detection.tables import score_events, score_table
from kdjax.errors import DataError
from kdjax.evaluation.plots import Timeline, timeline_figure
from kdjax.scoring.files import score_file
from kdjax.scoring.opening import open_stream
from kdjax.scoring.streams import stream_rows

ROWS = 12
# Rows 5 and 6 are faults: the alarm begins when a window with one ends, and lasts L rows
# after the other. Windows of the causal table end at each row.
FAULTS, FIRST, LAST = [5, 6], 5, 9
X = [60.0 if row in FAULTS else 0.01 * row for row in range(ROWS)]


def clock(start, step="1min", *, count=ROWS, **options):
    return pd.date_range(start, periods=count, freq=step, **options)


def texts(times, form="%Y-%m-%dT%H:%M:%S"):
    return times.strftime(form).tolist()


# At the end of summer time, when 02:59 with one offset is followed by 02:00.
SUMMER_END = clock("2026-10-25 00:54", tz="UTC").tz_convert("Europe/Berlin")
SUMMER_TEXTS = [time.isoformat() for time in SUMMER_END]
assert SUMMER_TEXTS[5:7] == ["2026-10-25T02:59:00+02:00", "2026-10-25T02:00:00+01:00"]

# Times as in a text file, and as they come back in one.
CASES = {
    "naive": (texts(clock("2026-05-26")), texts(clock("2026-05-26"), "%F %T")),
    "days": (texts(clock("2026-05-26", "D"), "%F"), texts(clock("2026-05-26", "D"), "%F")),
    "offset": (
        [f"{time}+02:00" for time in texts(clock("2026-05-26"))],
        [f"{time}+02:00" for time in texts(clock("2026-05-26"), "%F %T")],
    ),
    "short offset": (
        [f"{time}-0330" for time in texts(clock("2026-05-26"), "%Y/%m/%d %H:%M")],
        [f"{time}-03:30" for time in texts(clock("2026-05-26"), "%F %T")],
    ),
    "Z": (
        [f"{time}Z" for time in texts(clock("2026-05-26"))],
        [f"{time}+00:00" for time in texts(clock("2026-05-26"), "%F %T")],
    ),
    "summer time ends": (SUMMER_TEXTS, [text.replace("T", " ") for text in SUMMER_TEXTS]),
    "nanoseconds": (
        [f"2026-05-26T00:00:{row:02}.000000{row:03}" for row in range(1, 1 + ROWS)],
        [f"2026-05-26 00:00:{row:02}.000000{row:03}" for row in range(1, 1 + ROWS)],
    ),
    "nanoseconds, offset": (
        [f"2026-05-26T00:00:{row:02}.123456{row:03}+05:45" for row in range(1, 1 + ROWS)],
        [f"2026-05-26 00:00:{row:02}.123456{row:03}+05:45" for row in range(1, 1 + ROWS)],
    ),
    "seconds since 1970": (
        [str(1_779_753_600 + row) for row in range(ROWS)],
        [str(1_779_753_600 + row) for row in range(ROWS)],
    ),
    "nanoseconds since 1970": (
        [str(1_779_753_600_000_000_001 + 1_000_003 * row) for row in range(ROWS)],
        [str(1_779_753_600_000_000_001 + 1_000_003 * row) for row in range(ROWS)],
    ),
    "fractions": (
        [f"{0.5 * row}" for row in range(ROWS)],
        [f"{0.5 * row}" for row in range(ROWS)],
    ),
}  # fmt: skip


@pytest.fixture
def folder(small, tmp_path):
    save_detector(tmp_path / "detector", small)
    return tmp_path / "detector"


def score(folder, path, output):
    """The scores of a file and its events, as text or Arrow tables."""
    target = folder.parent / output
    for _ in score_file(path, detector=folder, output=target, causal=True):
        pass
    events = pd.read_csv(f"{target}.events.csv", dtype=str)
    if output.endswith(".parquet"):
        return pq.read_table(target), events
    return pd.read_csv(target, dtype=str), events


def write(folder, times):
    path = folder.parent / "plant.csv"
    frame = pd.DataFrame({"time": times, "x": X[: len(times)], "y": 0.0})
    frame.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("kind", CASES)
def test_times_of_text_come_back(folder, small, kind):
    given, expected = CASES[kind]
    path = write(folder, given)
    table, events = score(folder, path, "scores.csv")
    assert table["time"].tolist() == expected
    assert np.flatnonzero(table["alarm"] == "1").tolist() == [*range(FIRST, LAST + 1)]
    # Events have full times: a date as the end of a span is its whole day.
    full = [text if kind != "days" else f"{text} 00:00:00" for text in expected]
    assert events[["start", "end", "peak"]].values.tolist() == [
        [full[row] for row in (FIRST, LAST, FAULTS[0])]
    ]
    # The functions of the library.
    (series,) = read_table(path)
    own = score_table(small, series, entity="pooled", causal=True)
    assert [*map(str, own["time"])] == full
    (event,) = score_events(small, series, own, entity="pooled").itertuples()
    assert event.end == own["time"][LAST]
    # A part of a series has the form of the whole.
    tail = series._replace(values=series.values[4:], time=series.time[4:])
    part = score_table(small, tail, entity="pooled")
    assert part["time"].tolist() == own["time"][4:].tolist()
    # Streams.
    lines = path.read_text().splitlines()
    cells = [
        json.loads(cell) if cell.isdecimal() or "." == cell[-2] else cell
        for cell in given
    ]
    objects = [json.dumps({"time": t, "x": x, "y": 0}) for t, x in zip(cells, X)]
    for source in (lines, objects):
        answers = [
            json.loads(line)
            for line in stream_rows(open_stream(folder), source)
            if '"event"' not in line
        ]
        assert [str(answer["time"]) for answer in answers] == given
        assert [answer["alarm"] for answer in answers] == own["alarm"].tolist()


@pytest.mark.parametrize(
    ("kind", "stored"),
    [
        ("naive", pa.timestamp("ns")),
        ("offset", pa.timestamp("ns", "+02:00")),
        ("Z", pa.timestamp("ns", "UTC")),
        ("summer time ends", pa.string()),
        ("nanoseconds", pa.timestamp("ns")),
        ("nanoseconds since 1970", pa.int64()),
        ("fractions", pa.float64()),
    ],
)
def test_times_of_text_come_back_in_parquet(folder, kind, stored):
    given, expected = CASES[kind]
    table, events = score(folder, write(folder, given), "scores.parquet")
    column = table["time"]
    assert column.type in (stored, pa.large_string())
    assert [*map(str, column.to_pandas())] == expected
    assert events["peak"].tolist() == [expected[FAULTS[0]]]


@pytest.mark.parametrize(
    "stored",
    [
        pa.timestamp("us", "Europe/Berlin"),
        pa.timestamp("ms", "+02:00"),
        pa.timestamp("ns", "UTC"),
        pa.timestamp("us"),
        pa.timestamp("ms"),
        pa.int32(),
        pa.int64(),
        pa.float32(),
    ],
    ids=str,
)
def test_types_of_parquet_come_back(folder, stored):
    path = folder.parent / "plant.parquet"
    times = pa.array(np.arange(ROWS) * 60)
    if pa.types.is_timestamp(stored):
        moments = SUMMER_END.tz_convert("UTC").tz_localize(None)
        times = pa.array(moments.as_unit(stored.unit))
    times = times.cast(stored)
    pq.write_table(pa.table({"time": times, "x": X, "y": [0.0] * ROWS}), path)
    table, _ = score(folder, path, "scores.parquet")
    assert table["time"].type == stored
    assert table["time"].to_pylist() == times.to_pylist()
    text, events = score(folder, path, "scores.csv")
    expected = [*map(str, times.to_pandas())]
    assert text["time"].tolist() == expected
    assert events["peak"].tolist() == [expected[FAULTS[0]]]


@pytest.mark.parametrize("kind", ["date32", "dictionary", "text"])
def test_other_columns_of_parquet_count_as_times(folder, kind):
    path = folder.parent / "plant.parquet"
    days = clock("2026-05-26", "D")
    array = {
        "date32": pa.array(days.date, pa.date32()),
        "dictionary": pa.array(texts(days)).dictionary_encode(),
        "text": pa.array(texts(days)),
    }[kind]
    pq.write_table(pa.table({"when": array, "x": X, "y": [0.0] * ROWS}), path)
    (series,) = read_table(path)
    np.testing.assert_array_equal(series.time, days.to_numpy())
    assert series.channels == ("x", "y")
    text, _ = score(folder, path, "scores.csv")
    assert text["time"].tolist() == texts(days, "%F")


def test_each_entity_has_its_own_offsets(folder):
    """The clock of one machine changes, that of another doesn't."""
    still = [f"{time}+00:00" for time in texts(clock("2026-10-25 00:54"))]
    path = folder.parent / "plant.csv"
    frame = pd.DataFrame({"time": SUMMER_TEXTS + still, "x": X * 2, "y": 0.0})
    frame["machine"] = ["a"] * ROWS + ["b"] * ROWS
    frame = frame.sort_values(["x", "machine"], ascending=False)
    frame.to_csv(path, index=False)
    options = {"entity_column": "machine", "order": "sort"}
    series = {one.entity: one for one in read_table(path, **options)}
    for entity, given in (("a", SUMMER_TEXTS), ("b", still)):
        one = series[entity]
        table = pd.DataFrame({"time": one.time})
        assert table["time"].is_monotonic_increasing
        assert len(one.form.since) == (2 if entity == "a" else 1)
        found = score_table_of(folder, one)["time"]
        assert found.tolist() == [time.replace("T", " ") for time in given]


def score_table_of(folder, series):
    from kdjax.detection.storage import load_detector

    return score_table(load_detector(folder), series, entity="pooled")


def test_messages_have_the_times_of_the_file(folder):
    path = write(folder, [*CASES["offset"][0][:11], CASES["offset"][0][3]])
    with pytest.raises(
        DataError, match=r"2026-05-26T00:03\+02:00 is before 2026-05-26T00:10\+02:00"
    ):
        read_table(path)
    first = CASES["offset"][0][0]
    path = write(folder, [first, first])
    with pytest.raises(DataError, match=r": 2026-05-26T00:00\+02:00 is a duplicate"):
        read_table(path)


def test_spans_to_leave_out_may_have_another_offset(folder):
    path, spans = write(folder, CASES["offset"][0]), folder.parent / "spans.csv"
    spans.write_text("start,end\n2026-05-25T22:02Z,2026-05-25T22:03Z\n")
    ((series,), _) = load_files(path, exclude=spans)[1:]
    assert series.excluded.tolist() == [[2, 4]]
    spans.write_text("start,end\n2026-05-26T00:02,2026-05-26T00:03\n")
    with pytest.raises(DataError, match="the times of the data have a time zone"):
        load_files(path, exclude=spans)


@pytest.mark.parametrize(
    ("form", "hour", "title"),
    [
        (TimeForm(), "2026-05-25T22", "time"),
        (TimeForm(pd.DatetimeTZDtype("us", "Europe/Berlin")), "2026-05-26T00",
         "time (UTC+02:00)"),
        (TimeForm(pd.DatetimeTZDtype("ns", "UTC")), "2026-05-25T22", "time (UTC+00:00)"),
    ],
)  # fmt: skip
def test_reports_draw_local_time(form, hour, title):
    time = np.datetime64("2026-05-25T22:00", "ns") + np.arange(4) * np.timedelta64(
        1, "m"
    )
    shown, clock_name = axis_times(time, form)
    timeline = Timeline(
        "m", shown, None, {"pca": np.ones(4)}, {"pca": 2.0}, clock=clock_name
    )
    figure = timeline_figure(timeline)
    assert title in [axis.title.text for axis in figure.select_xaxes()]
    assert str(shown[0]).startswith(hour)


def test_reports_draw_utc_where_the_offset_changes():
    time = SUMMER_END.tz_convert("UTC").tz_localize(None).to_numpy()
    shown, name = axis_times(time, TimeForm(pd.DatetimeTZDtype("ns", "Europe/Berlin")))
    assert name == "UTC" and (shown == time).all()


def test_rows_in_memory_keep_their_times(small):
    time = np.arange(ROWS)
    series = Series("a", np.float32([X, X]).T, ("x", "y"), time)
    table = score_table(small, series, entity="a")
    assert table["time"].dtype == np.int64
