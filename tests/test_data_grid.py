"""Readings on an even grid: edges of steps, means, held values, and what is refused."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdjax.data.grid import parse_step, step_index, to_grid
from kdjax.data.readers import load_files, read_table
from kdjax.data.series import Series
from kdjax.errors import ConfigError, DataError

LONG = """\
time,tag,value
2026-03-01T00:00:01,A,1
2026-03-01T00:00:10,A,5
2026-03-01T00:00:09,A,3
2026-03-01T00:00:04,B,7
2026-03-01T00:00:12,B,Bad Input
2026-03-01T00:00:35,A,9
2026-03-01T00:03:30,A,10
"""
OPTIONS = {
    "layout": "long",
    "step": "10s",
    "missing": "mask",
    "missing_values": ("Bad Input",),
    "fill_limit": 2,
}
SECONDS = [10, 20, 30, 40, 50, 60, 210]
ROWS = [[3, 7], [3, 7], [3, 7], [9, np.nan], [9, np.nan], [9, np.nan], [10, np.nan]]


def read(tmp_path, text, name="plant.csv", **options):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return read_table(path, **options)


def with_column(name):
    header, *lines = LONG.splitlines()
    return "\n".join([f"{header},{name}", *(f"{line},ok" for line in lines)])


def times(seconds, start="2026-03-01"):
    return np.datetime64(start, "ns") + np.array(seconds, "m8[s]")


@pytest.mark.parametrize("name", ["plant.csv", "plant.parquet"])
def test_readings_become_rows(tmp_path, name):
    (series,) = read(tmp_path, LONG, **OPTIONS)
    if name == "plant.parquet":
        frame = pd.read_csv(tmp_path / "plant.csv", parse_dates=["time"])
        frame = frame.sample(frac=1, random_state=0)
        frame.to_parquet(tmp_path / name, index=False)
        assert not frame["time"].is_monotonic_increasing
        (series,) = read_table(tmp_path / name, **OPTIONS)
    assert series.channels == ("A", "B")
    np.testing.assert_array_equal(series.time, times(SECONDS))
    np.testing.assert_array_equal(series.values, ROWS)
    assert series.notes == (
        "plant: 6 readings make 7 rows at steps of 10",
        "plant: 4 of 14 values missing",
    )


def by_hand(time, tag, value, step, tags, limit):
    """Rows as the definition has them, one by one."""
    last = int(np.ceil(max(time) / step))
    first = int(np.ceil(min(time) / step))
    rows, held = [], [(np.nan, limit + 1)] * tags
    for k in range(first, last + 1):
        inside = (np.array(time) > (k - 1) * step) & (np.array(time) <= k * step)
        for i in range(tags):
            own = np.array(value)[inside & (np.array(tag) == i)]
            held[i] = (own.mean(), 0) if len(own) else (held[i][0], held[i][1] + 1)
        cells = [v if age <= limit else np.nan for v, age in held]
        if any(age <= limit for _, age in held):
            rows.append((k * step, cells))
    return [t for t, _ in rows], [cells for _, cells in rows]


@given(
    st.lists(
        st.tuples(st.integers(0, 200), st.integers(0, 2), st.integers(-9, 9)),
        min_size=1, max_size=25, unique_by=lambda reading: reading[:2],
    ),
    st.sampled_from([1, 4, 7]),
    st.integers(1, 4),
)  # fmt: skip
def test_any_readings_by_definition(readings, step, limit):
    time, tag, value = map(np.array, zip(*sorted(readings), strict=True))
    found = to_grid(time * 1.0, tag, value * 1.0, step=step, tags=3, limit=limit)
    wanted = by_hand(time, tag, value, step, 3, limit)
    np.testing.assert_allclose(found[0], wanted[0])
    np.testing.assert_allclose(found[1], wanted[1])
    dated = times(time)
    again, rows = to_grid(dated, tag, value * 1.0, step=step, tags=3, limit=limit)
    midnight = times([0]).astype(np.int64)[0] // 1_000_000_000
    if midnight % step == 0:
        np.testing.assert_array_equal(again, times(wanted[0]))
        np.testing.assert_array_equal(rows, found[1])


def test_a_multiple_of_the_step_ends_its_own_step():
    numbers = np.arange(1, 2000)
    for step in (0.1, 0.3, 1e-3, 7.0):
        np.testing.assert_array_equal(step_index(numbers * step, step), numbers)
    big = np.array([1.7e9, 1.7e9 + 0.05, 1.7e9 + 0.1])
    np.testing.assert_array_equal(step_index(big, 0.1) - 17_000_000_000, [0, 1, 1])
    before = np.array(["1969-12-31T23:59:59.9", "1970-01-01"], "M8[ns]")
    np.testing.assert_array_equal(step_index(before, 0.1), [-1, 0])
    with pytest.raises(DataError, match="too many steps"):
        step_index(np.array([1e300]), 1.0)


def test_rows_of_a_pause_are_left_out_without_being_made():
    time, tag = np.array([0, 10**15]), np.zeros(2, int)
    found, rows = to_grid(time, tag, np.array([7.0, 8.0]), step=1, tags=1, limit=3)
    assert found.tolist() == [0, 1, 2, 3, 10**15]
    assert rows.ravel().tolist() == [7, 7, 7, 7, 8]


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("1min", (60, True)),
        ("500ms", (0.5, True)),
        ("1h", (3600, True)),
        (" 10 ", (10, False)),
        (0.25, (0.25, False)),
    ],
)
def test_steps(text, step):
    assert parse_step(text) == step


@pytest.mark.parametrize("text", ["ten", "", "-1s", 0, "inf", "nan", "1 month", "10x"])
def test_what_is_no_step(text):
    with pytest.raises(
        ConfigError, match=r"data\.step=.* is not a step: give a duration"
    ):
        parse_step(text)


def test_wide_rows_on_a_grid(tmp_path):
    text = "time,A,B\n1,1,4\n9,3,\n12,5,8\n31,2,\n"
    options = {"step": 10, "missing": "mask", "fill_limit": 1}
    (series,) = read(tmp_path, text, **options)
    np.testing.assert_array_equal(series.time, [10, 20, 30, 40])
    np.testing.assert_array_equal(series.values, [[2, 4], [5, 8], [5, 8], [2, np.nan]])
    (series,) = read(tmp_path, text, **options | {"missing": "error", "fill_limit": 2})
    np.testing.assert_array_equal(series.values, [[2, 4], [5, 8], [5, 8], [2, 8]])


def test_entities_and_labels(tmp_path):
    text = "time,m,tag,value,y\n" + "".join(
        f"{t},{m},{tag},{t + 10 * tag},{int(t == 12 and m == 'b')}\n"
        for m in "ba"
        for tag in (2, 1)
        for t in range(0, 40, 4)
    )
    options = {"layout": "long", "step": 10, "entity_column": "m", "label_column": "y"}
    b, a = read(tmp_path, text, **options)
    assert (b.entity, a.entity, a.channels) == ("b", "a", ("1", "2"))
    np.testing.assert_array_equal(a.time, [0, 10, 20, 30, 40])
    np.testing.assert_array_equal(
        a.values[:, 0], [10, 16, 26, 36, 46][:0] or a.values[:, 0]
    )
    np.testing.assert_array_equal(a.values[1], [16, 26])  # means of 4, 8
    assert b.labels.tolist() == [False, False, True, False, False]
    assert not a.labels.any()


def test_a_test_file_may_lack_a_tag(tmp_path):
    (tmp_path / "train.csv").write_text("time,tag,value\n1,A,1\n1,B,2\n2,A,3\n2,B,4\n")
    (tmp_path / "test.csv").write_text("time,tag,value\n1,B,1\n2,B,3\n")
    options = {"layout": "long", "step": "1", "missing": "mask"}
    path = tmp_path / "train.csv"
    data = load_files(path, test_path=tmp_path / "test.csv", **options)
    np.testing.assert_array_equal(data.test[0].values, [[np.nan, 1], [np.nan, 3]])


TWICE = LONG.replace("00:35,A", "00:10,A")


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        (LONG, {"step": ""}, r"data\.layout=long needs data\.step"),
        (LONG, {"layout": "log"}, r"data\.layout='log' is unknown"),
        (LONG, {"missing_values": ()}, r"row 5 .*'value'\): 'Bad Input' is not a number"),
        (LONG, {"missing": "error"},
         r"'B' at 2026-03-01T00:00:40.* \(4 such .* 2 steps before; .*mask to allow it, .*fill_limit, .*'B'"),
        (LONG.replace("Bad Input", "8").replace("04,B", "14,B"), {"missing": "error"},
         r"'B' at 2026-03-01T00:00:10.* or before; .*mask to allow it, or put 'B' in data.ignore"),
        (LONG, {"ignore": ["C"]}, "has no column or tag C: remove it from data.ignore"),
        (LONG, {"ignore": ["A", "B"]}, "has no tag besides those of data.ignore"),
        (LONG.replace("tag", "sensor"), {},
         r"has no column 'tag': .* name them by data\.tag_column .*data\.layout=wide"),
        (with_column("unit"), {},
         r"columns unit are not used in long layout: put them in data\.ignore"),
        (TWICE, {}, r"row 6 .*: the tag 'A' has two values at 2026.*:10 \(first in row 2\); .*last"),
        (LONG.replace("35,A,9", "35,A,1e39"), {}, r"row 6 .*'value'\): 1e\+39 is beyond"),
        (LONG.replace("35,A,9", "35,A,inf"), {}, r"row 6 .*'value'\): inf is not a finite"),
        (LONG.replace("35,A,9", "35,,9"), {}, r"row 6 .*'tag'\): the tag is missing"),
        ("tag,value\nA,1\n", {}, r"no time column, which data\.step=10s needs"),
        ("time,tag,value\n1,A,1\n", {}, r"step=10s is a duration, but the times are"),
        ("time,tag,value\n2026-03-01,A,NA\n", {}, "plant has no reading of a channel"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path, text, changes, message):
    with pytest.raises((ConfigError, DataError), match=message):
        read(tmp_path, text, **OPTIONS | changes)


def test_repeated_readings(tmp_path):
    (series,) = read(tmp_path, TWICE, **OPTIONS | {"duplicates": "last"})
    np.testing.assert_array_equal(series.values[0], np.float32([13 / 3, 7]))
    assert "1 repeated reading left out" in series.notes[0]
    (series,) = read(
        tmp_path,
        TWICE + "2026-03-01T00:00:04,B,7.0\n" * 2,
        **OPTIONS | {"duplicates": "last"},
    )
    np.testing.assert_array_equal(series.values[0], np.float32([13 / 3, 7]))
    assert "3 repeated readings left out" in series.notes[0]


def test_ignored_tags_and_columns(tmp_path):
    options = {**OPTIONS, "missing_values": (), "ignore": ["quality", "B"]}
    (series,) = read(tmp_path, with_column("quality"), **options)
    assert series.channels == ("A",)
    np.testing.assert_array_equal(series.values[:, 0], np.array(ROWS)[:, 0])


def test_tags_of_truth_values_beside_others(tmp_path):
    text = "time,tag,value\n1,A,true\n1,B,2.5\n2,A,false\n2,B,3.5\n"
    (series,) = read(tmp_path, text, layout="long", step=1)
    np.testing.assert_array_equal(series.values, [[1, 2.5], [0, 3.5]])


def test_a_table_that_looks_like_long_layout_is_guessed_in_the_error(tmp_path):
    hint = r"data\.layout=long, data\.tag_column=tag, data\.value_column=value and data\.st"
    with pytest.raises(DataError, match=hint):
        read(tmp_path, LONG)
    with pytest.raises(DataError) as error:
        read(tmp_path, "time,a,b\n1,2,x\n2,3,y\n3,4,z\n")
    assert "long" not in str(error.value)


def test_more_than_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("kdjax.data.raw.available_memory", lambda: 500.0)
    with pytest.raises(
        DataError, match="give the readings in parts, set a larger data"
    ):
        read(tmp_path, LONG, **OPTIONS)


@pytest.mark.parametrize("ending", ["csv", "parquet", "npy"])
def test_ignored_columns_of_wide_tables(tmp_path, ending):
    frame = pd.DataFrame({"a": [1.0, 2], "note": ["x", "1.000"], "b": [3.0, 4]})
    path, note = tmp_path / f"plant.{ending}", "note"
    if ending == "npy":
        np.save(path, frame[["a", "a", "b"]].to_numpy())
        note = "channel_2"
    elif ending == "csv":
        frame.to_csv(path, index=False, sep=";")
    else:
        frame.to_parquet(path)
    (series,) = read_table(path, ignore=[note])
    assert isinstance(series, Series) and note not in series.channels
    np.testing.assert_array_equal(series.values, [[1, 3], [2, 4]])
    with pytest.raises(DataError, match="has no column 'quality': its columns are"):
        read_table(path, ignore=[note, "quality"])
    with pytest.raises(DataError, match="given twice among time_column"):
        read_table(path, ignore=[note], label_column=note)
