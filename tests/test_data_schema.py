"""Files as plants write them: gaps, disorder, repeats, and spans that don't count."""

import gzip

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdjax.data.readers import load_files, read_table
from kdjax.errors import ConfigError, DataError

NAN = float("nan")


def write(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture
def read(tmp_path):
    """Writes a file and reads it back with `read_table`."""

    def read_content(content, name="plant.csv", **keywords):
        return read_table(write(tmp_path / name, content), **keywords)

    return read_content


# Separators and packings.


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pipe.csv", "a|b\n1.5|2\n3|4\n"),
        ("pipe.txt", "a|b\n1,5|2\n3|4\n"),
        ("blanks.txt", "a b\n1.5 2\n3 4\n"),
        ("blanks.txt", "  a    b\n1.5    2  \n  3    4\n"),
        ("blanks.txt", "a b\r\n1,5 2\r\n3 4\r\n"),
    ],
)
def test_more_separators(read, name, text):
    (series,) = read(text, name)
    assert series.channels == ("a", "b")
    assert series.values.tolist() == [[1.5, 2], [3, 4]]


def test_blanks_of_a_numpy_text_file(tmp_path):
    values = np.random.default_rng(0).normal(size=(40, 3))
    np.savetxt(tmp_path / "plant.txt", values)
    (series,) = read_table(tmp_path / "plant.txt")
    np.testing.assert_array_equal(series.values, np.float32(values))
    np.savetxt(tmp_path / "plant.txt.gz", values)
    (packed,) = read_table(tmp_path / "plant.txt.gz")
    np.testing.assert_array_equal(packed.values, series.values)


@pytest.mark.parametrize(
    ("text", "channels"),
    [
        ("temp oil,temp air\n1,2\n3,4\n", ("temp oil", "temp air")),
        ("time,a\n2024-01-01 00:00,1\n2024-01-01 00:01,2\n", ("a",)),
        ("temp oil\n1\n2\n", ("temp oil",)),
    ],
)
def test_blanks_inside_cells_separate_nothing(read, text, channels):
    (series,) = read(text, "plant.txt")
    assert series.channels == channels


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("time a\n2024-01-01 00:00 1\n2024-01-01 00:01 2\n", "is not a number"),
        ("a b\n" + "1 2\n" * 30 + "3\n", r"row 31 \(line 32\) has 1 cell.*blanks"),
        ("2024-01-01 00:00 1\n2024-01-01 00:01 2\n", "'00:01' is not a number"),
    ],
)
def test_blanks_that_fit_only_half_are_refused(read, text, message):
    with pytest.raises(DataError, match=message):
        read(text, "plant.txt")


def test_a_german_export_with_all_that_comes_with_it(read):
    text = "\ufeffzeit;maschine;öl;druck\r\n"
    text += "2024-01-01 00:00:00;b1;1,5;-2,25\r\n2024-01-01 00:01:00;b1;;1e3\r\n"
    packed = gzip.compress(text.encode())
    (series,) = read(packed, "halle.csv.gz", entity_column="maschine", missing="mask")
    assert (series.entity, series.channels) == ("b1", ("öl", "druck"))
    np.testing.assert_array_equal(series.values, np.float32([[1.5, -2.25], [NAN, 1e3]]))
    assert np.diff(series.time).tolist() == [60_000_000_000]


# Missing values left open.


def test_mask_leaves_gaps_open_and_counts_them(read):
    text = "m,a,b\nx,1,\ny,5,6\nx,,\nx,4,2\n"
    x, y = read(text, entity_column="m", missing="mask")
    np.testing.assert_array_equal(x.values, np.float32([[1, NAN], [NAN, NAN], [4, 2]]))
    assert x.values.dtype == np.float32
    assert x.notes == ("x: 3 of 6 values missing",)
    assert y.notes == ()


def test_filled_values_are_counted(read):
    (series,) = read("a,b\n1,2\n,3\n,4\n", missing="ffill")
    assert series.notes == ("plant: 2 of 6 values filled with the last one before",)
    assert read("a,b\n1,2\n", missing="ffill")[0].notes == ()
    (series,) = read("a,b\n1,2\n,3\n,4\n", missing="ffill", fill_limit=1)
    assert series.notes == (
        "plant: 1 of 6 values filled with the last one before",
        "plant: 1 of 6 values missing",
    )
    assert np.isnan(series.values[:, 0]).tolist() == [False, False, True]


@pytest.mark.parametrize("name", ["plant.csv", "plant.parquet", "plant.npy"])
def test_mask_in_each_format(tmp_path, name):
    values = np.array([[1, NAN], [NAN, NAN], [3, 4]], np.float32)
    frame = pd.DataFrame(values, columns=["channel_1", "channel_2"])
    if name.endswith("csv"):
        frame.to_csv(tmp_path / name, index=False)
    elif name.endswith("npy"):
        np.save(tmp_path / name, values)
    else:
        frame.to_parquet(tmp_path / name)
    (series,) = read_table(tmp_path / name, missing="mask")
    np.testing.assert_array_equal(series.values, values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n,inf\n", r"row 2 .*'b'\): the value is infinite; correct"),
        ("a,b\n1,2\n,1e400\n", r"row 2 .*'b'\): the value is infinite"),
        ("a,b\n1,2\n,1e39\n", r"row 2 .*'b'\): 1e\+39 is beyond float32"),
        ("a,b,c\n1,,\n2,,NA\n", r"no row has a value in 'b', 'c'; remove these col"),
        ("a,b\n1,\n2,\n", r"plant\.csv: no row has a value in 'b'; remove this col"),
        ("a,b\n1,2\nx,\n", r"'x' is not a number"),
        ("time,a\n1,2\n,3\n", "the time is missing"),
    ],
)
def test_what_mask_refuses(read, text, message):
    with pytest.raises(DataError, match=message):
        read(text, missing="mask")


def test_a_test_file_may_have_a_channel_without_a_value(tmp_path):
    train = write(tmp_path / "train.csv", "a,b\n1,2\n3,4\n")
    test = write(tmp_path / "test.csv", "b,a\n,5\n,6\n")
    ((series,),) = load_files(train, test_path=test, missing="mask")[2:3]
    np.testing.assert_array_equal(series.values, [[5, np.nan], [6, np.nan]])
    assert "train: no row has a value in 'b'" in series.notes
    with pytest.raises(DataError, match="the value is missing"):
        load_files(train, test_path=test)


def test_the_error_names_the_ways_out(read):
    with pytest.raises(DataError, match=r"data\.missing=ffill, or leave it NaN by dat"):
        read("a\n1\n\n2\n")


# Order and repeats.


@pytest.mark.parametrize(
    "option", [{"missing": "drop"}, {"order": "up"}, {"duplicates": "first"}]
)
def test_unknown_words_are_refused_before_reading(tmp_path, option):
    (name,) = option
    for function in (read_table, load_files):
        with pytest.raises(ConfigError, match=rf"data\.{name}=.* is unknown: use one"):
            function(tmp_path / "absent.csv", **option)


def test_sorted_within_an_entity(read):
    text = "time,m,a,y\n3,x,30,1\n2,k,7,0\n1,x,10,0\n2,x,20,0\n1,k,6,1\n4,x,40,0\n"
    roles = {"entity_column": "m", "label_column": "y"}
    x, k = read(text, order="sort", **roles)
    assert (x.entity, k.entity) == ("x", "k")
    assert x.time.tolist() == [1, 2, 3, 4]
    assert x.values[:, 0].tolist() == [10, 20, 30, 40]
    assert x.labels.tolist() == [False, False, True, False]
    assert k.values[:, 0].tolist() == [6, 7] and k.labels.tolist() == [True, False]
    assert x.notes == ("x: 2 rows out of order sorted by time",)
    with pytest.raises(DataError, match=r"row 3 .*: 1 is before 3 of row 1; .*=sort"):
        read(text, **roles)


def test_the_last_of_repeated_rows_stays(read):
    text = "time,a\n1,10\n2,20\n2,21\n2,22\n3,30\n"
    (series,) = read(text, duplicates="last")
    assert series.time.tolist() == [1, 2, 3]
    assert series.values[:, 0].tolist() == [10, 22, 30]
    assert series.notes == (
        "plant: 2 rows with repeated times left out (the last of each kept)",
    )
    with pytest.raises(DataError, match=r"row 3 .*2 is a duplicate .*duplicates=last"):
        read(text)
    with pytest.raises(DataError, match="1 is before 2 of row 4"):
        read("time,a\n1,10\n2,20\n2,21\n2,22\n1,30\n", duplicates="last")
    with pytest.raises(DataError, match=r"row 3 \(line 4\).*1 is a duplicate .* row 1"):
        read("time,a\n1,10\n2,20\n1,21\n", order="sort")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from("xy"), st.integers(0, 9)), min_size=1))
def test_sorting_and_keeping_the_last_against_dictionaries(tmp_path, rows):
    lines = [f"{time},{m},{i}\n" for i, (m, time) in enumerate(rows)]
    path = write(tmp_path / "rows.csv", "time,m,a\n" + "".join(lines))
    found = read_table(path, entity_column="m", order="sort", duplicates="last")
    last = {}
    for i, (m, time) in enumerate(rows):
        last.setdefault(m, {})[time] = i
    assert {s.entity: s.time.tolist() for s in found} == {
        m: sorted(times) for m, times in last.items()
    }
    for series in found:
        wanted = [i for _, i in sorted(last[series.entity].items())]
        assert series.values[:, 0].tolist() == wanted


def test_times_with_a_zone_are_sorted_too(read):
    text = "when,a\n2024-01-01T01:00+01:00,2\n2024-01-01T00:30+01:00,1\n"
    (series,) = read(text, order="sort")
    assert series.values[:, 0].tolist() == [1, 2]


def test_filling_follows_time_and_leaves_dropped_rows_alone(read):
    (series,) = read("time,a\n3,\n1,1\n2,2\n", order="sort", missing="ffill")
    assert series.values[:, 0].tolist() == [1, 2, 2]
    # The repeat without a value is not read at all.
    (series,) = read("time,a\n1,1\n2,\n2,2\n", duplicates="last")
    assert series.values[:, 0].tolist() == [1, 2]


def test_messages_name_rows_of_the_file_after_sorting(read):
    text = "time,a,y\n5,1,0\n1,2,0\n1,3,0\n3,x,0\n"
    with pytest.raises(DataError, match=r"row 4 \(line 5\), column 2 \('a'\): 'x' is"):
        read(text, order="sort", duplicates="last")
    with pytest.raises(DataError, match=r"row 4 \(line 5\), column 2 .* is missing"):
        read(text.replace("x", ""), order="sort", duplicates="last")
    with pytest.raises(DataError, match=r"row 1 \(line 2\), column 2 .*1e\+39 is beyo"):
        read("time,a\n5,1e39\n1,2\n", order="sort")
    with pytest.raises(DataError, match=r"row 1 \(line 2\).*label 7 is neither"):
        read("time,a,y\n5,1,7\n1,2,0\n", order="sort", label_column="y")


def test_without_times_there_is_nothing_to_sort_by(read):
    (series,) = read("a\n2\n1\n", order="sort")
    assert series.values[:, 0].tolist() == [2, 1]
    assert series.notes == ("plant: no time column: the order of the rows is kept",)


# Spans to leave out.


@pytest.fixture
def without(tmp_path):
    """Reads rows a minute apart (or by number, or without times) less some spans."""
    times = {
        "dates": [f"2024-01-01T00:{minute:02}" for minute in range(10)],
        "zoned": [f"2024-01-01T00:{minute:02}Z" for minute in range(10)],
        "numbers": [10 * number for number in range(10)],
        "none": None,
    }

    def read_without(spans, kind="numbers"):
        frame = pd.DataFrame({"a": np.arange(10)})
        if times[kind]:
            frame.insert(0, "time", times[kind])
        frame.to_csv(tmp_path / "plant.csv", index=False)
        exclude = write(tmp_path / "stops.csv", spans)
        (series,) = read_table(tmp_path / "plant.csv", exclude=exclude)
        assert len(series.values) == 10
        return series

    return read_without


@pytest.mark.parametrize(
    ("kind", "spans", "rows"),
    [
        ("numbers", "start,end\n20,40\n", [[2, 5]]),
        ("numbers", "start;end\n19,5;40,5\n", [[2, 5]]),
        ("numbers", "start,end\n-5,0\n90,1000\n", [[0, 1], [9, 10]]),
        ("numbers", "end,start\n90,70\n30,20\n40,35\n25,0\n", [[0, 5], [7, 10]]),
        ("none", "start,end\n0,0\n3,4\n", [[0, 1], [3, 5]]),
        ("dates", "start,end\n2024-01-01T00:02,2024-01-01 00:03:30\n", [[2, 4]]),
        ("dates", "start,end,reason\n2024-01-01,2024-01-01T00:00,oil\n", [[0, 1]]),
        ("dates", "start,end\n2023-12-31,2024-01-01\n", [[0, 10]]),
        ("zoned", "start,end\n2024-01-01T02:02+02:00,2024-01-01T02:03+02:00\n", [[2, 4]]),
    ],
)  # fmt: skip
def test_spans_to_leave_out(without, kind, spans, rows):
    series = without(spans, kind)
    assert series.excluded.tolist() == rows
    count = sum(stop - start for start, stop in rows)
    assert series.notes == (f"plant: {count} of 10 rows excluded (stops.csv)",)


def test_spans_that_hold_no_row_are_said(without):
    series = without("start,end\n500,600\n31,39\n20,20\n")
    assert series.excluded.tolist() == [[2, 3]]
    assert "2 of 3 spans without a row of the data, the first in" in series.notes[-1]
    assert series.notes[-1].endswith("stops.csv: row 1 (line 2)")
    assert without("start,end\n500,600\n").excluded is None


@pytest.mark.parametrize(
    ("kind", "spans", "message"),
    [
        ("numbers", "start,end\n1,2\n40,20\n", r"row 2 \(line 3\): the end 20 is before the s"),
        ("numbers", "from,to\n1,2\n", r"columns from, to: expected start and end"),
        ("numbers", "start,end,machine\n1,2,x\n", "columns start, end, machine: expe"),
        ("numbers", "start,end,entity\n1,2,saw\n", r"row 1 .*no entity 'saw': expected plant, or"),
        ("numbers", "start,end\n1,soon\n", "'soon' is neither a number nor an ISO time"),
        ("numbers", "start,end\n,2\n", r"row 1 .*'start'\): the time is missing"),
        ("numbers", "start,end\n1,inf\n", r"row 1 .*'end'\): the time is missing"),
        ("numbers", "start,end\n1\n", "has 1 cell, expected 2"),
        ("numbers", "start,end\n", "has no rows"),
        ("numbers", "start,end\n2024-01-01,2024-01-02\n", "2024-01-01, but the data need numbers"),
        ("none", "start,end\n2024-01-01,2024-01-02\n", "need row numbers from 0"),
        ("dates", "start,end\n1,2\n", "'start' holds 1, but the data need times such"),
        ("dates", "start,end\n2024-01-01T00:00Z,2024-01-02T00:00Z\n", "have no time zo"),
        ("zoned", "start,end\n2024-01-01T00:00,2024-01-02T00:00\n", "data have a time z"),
    ],
)  # fmt: skip
def test_spans_that_are_refused(without, kind, spans, message):
    with pytest.raises(DataError, match=message):
        without(spans, kind)


def test_spans_file_that_is_not_there(tmp_path):
    path = write(tmp_path / "plant.csv", "a\n1\n")
    with pytest.raises(DataError, match=r"stops\.csv does not exist"):
        read_table(path, exclude=tmp_path / "stops.csv")


def test_spans_of_entities_in_both_files(tmp_path):
    train = write(tmp_path / "train.csv", "time,m,a\n1,x,1\n2,x,2\n1,y,5\n2,y,6\n")
    test = write(tmp_path / "test.csv", "time,m,a\n3,y,1\n3,x,2\n4,x,5\n4,y,6\n")
    spans = "entity,start,end\nx,2,3\n,4,9\ny,7,8\n"
    exclude = write(tmp_path / "stops.csv", spans)
    data = load_files(train, test_path=test, entity_column="m", exclude=exclude)
    excluded = {
        (part, series.entity): series.excluded
        for part in ("train", "test")
        for series in getattr(data, part)
    }
    assert excluded["train", "x"].tolist() == [[1, 2]]
    assert excluded["train", "y"] is None
    assert excluded["test", "x"].tolist() == [[0, 2]]
    assert excluded["test", "y"].tolist() == [[1, 2]]
    assert data.train[0].notes == (
        "x: 1 of 2 rows excluded (stops.csv)",
        f"1 of 3 spans without a row of the data, the first in {exclude}: row 3 (line 4)",
    )


def test_spans_of_a_file_without_entities_are_the_train_files(tmp_path):
    train = write(tmp_path / "press.csv", "a\n1\n2\n3\n")
    test = write(tmp_path / "later.csv", "a\n1\n2\n3\n")
    exclude = write(tmp_path / "stops.csv", "start,end,entity\n1,1,press\n")
    data = load_files(train, test_path=test, exclude=exclude)
    assert data.train[0].excluded.tolist() == data.test[0].excluded.tolist() == [[1, 2]]


def test_mapped_files_stay_mapped_with_spans(tmp_path):
    np.save(tmp_path / "plant.npy", np.ones((9, 2), np.float32))
    exclude = write(tmp_path / "stops.csv", "start,end\n2,3\n")
    (series,) = read_table(tmp_path / "plant.npy", exclude=exclude, missing="mask")
    assert isinstance(series.values, np.memmap)
    assert series.excluded.tolist() == [[2, 4]]
    data = load_files(tmp_path / "plant.npy", test_path=tmp_path / "plant.npy")
    assert isinstance(data.train[0].values, np.memmap)
    assert data.test[0].entity == "plant"


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(st.binary(max_size=60), st.text("ab1,;|\t\n .\"-e:", max_size=60)),
    st.sampled_from(["plant.csv", "plant.txt", "plant.csv.gz", "plant.npy", "p.parquet"]),
    st.sampled_from(["error", "ffill", "mask"]),
)  # fmt: skip
def test_whatever_a_file_holds_is_read_or_refused(tmp_path, content, name, missing):
    path = write(tmp_path / name, content)
    try:
        found = read_table(path, missing=missing, order="sort", duplicates="last")
    except DataError:
        return
    for series in found:
        assert series.values.shape == (len(series.values), len(series.channels))
        assert not np.isinf(series.values).any()
        assert missing != "error" or np.isfinite(series.values).all()
