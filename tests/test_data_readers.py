"""Users' files: what is read, against pandas, and what is refused, with its place."""

import gzip
import io
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdjax.data.readers import load_files, match_channels, read_table
from kdjax.data.series import Series
from kdjax.errors import ConfigError, DataError


def _write(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture
def read(tmp_path):
    """Writes a file and reads it back with `read_table`."""

    def read_content(content, name="plant.csv", **keywords):
        return read_table(_write(tmp_path / name, content), **keywords)

    return read_content


# What is read.


def test_plain_csv(read):
    (series,) = read("cpu,mem\n1,2.5\n3,-4e2\n")
    assert series.entity == "plant"
    assert series.channels == ("cpu", "mem")
    assert series.values.dtype == np.float32
    assert series.values.tolist() == [[1, 2.5], [3, -400]]
    assert series.time is None
    assert series.labels is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("bom.csv", "\ufeffa,b\n1.5,2\n3,4\n"),
        ("crlf.csv", "a,b\r\n1.5,2\r\n3,4\r\n"),
        ("cr.csv", "a,b\r1.5,2\r3,4\r"),
        ("no_final_line_end.csv", "a,b\n1.5,2\n3,4"),
        ("blank_end.csv", "a,b\n1.5,2\n3,4\n\n\n"),
        ("spaces.csv", "a, b\n1.5, 2\n3 , 4\n"),
        ("quotes.csv", '"a","b"\n"1.5","2"\n3,4\n'),
        ("semicolon.csv", "a;b\n1.5;2\n3;4\n"),
        ("semicolon.txt", "a;b\n1,5;2\n3;4\n"),
        ("tab.tsv", "a\tb\n1.5\t2\n3\t4\n"),
        ("tab.txt", "a\tb\n1,5\t2,0\n3\t4\n"),
        ("exponent.csv", "a;b\n15,0E-1;2\n3;4\n"),
    ],
)
def test_dialects_read_alike(read, name, text):
    (series,) = read(text, name)
    assert series.channels == ("a", "b")
    assert series.values.tolist() == [[1.5, 2], [3, 4]]


def test_gzip_reads_like_plain(read):
    (series,) = read(gzip.compress(b"a,b\n1,2\n"), "plant.csv.gz")
    assert series.entity == "plant"
    assert series.values.tolist() == [[1, 2]]


@pytest.mark.parametrize(
    "text", ["1.5,2\n3,4\n", "1,5;2\n3;4\n", "1.5\t2\n3\t4\n", "1.5,2e0\n3,4"]
)
def test_first_line_of_numbers_is_data(read, text):
    (series,) = read(text)
    assert series.channels == ("channel_1", "channel_2")
    assert series.values.tolist() == [[1.5, 2], [3, 4]]


def test_one_column_and_one_row(read):
    (series,) = read("a\n1.5\n")
    assert series.values.tolist() == [[1.5]]


def test_names_may_hold_separators_in_quotes(read):
    (series,) = read('"a, left",b\n1,2\n')
    assert series.channels == ("a, left", "b")


def test_names_may_be_numbers_beside_a_time(read):
    (series,) = read("time,1,2\n5,10,20\n")
    assert series.channels == ("1", "2")
    assert series.values.tolist() == [[10, 20]]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(
        st.tuples(*[st.floats(-(2**100), 2**100, width=32)] * 3),
        min_size=1,
        max_size=20,
    ),
    dialect=st.sampled_from([(",", "."), (";", "."), (";", ","), ("\t", ",")]),
    time=st.booleans(),
)
def test_csv_round_trip(tmp_path, values, dialect, time):
    separator, decimal = dialect
    frame = pd.DataFrame(values, columns=["a", "b c", "ü"])
    if time:
        frame.insert(1, "when", pd.date_range("2024", periods=len(frame), freq="min"))
    path = tmp_path / "round.csv"
    frame.to_csv(path, index=False, sep=separator, decimal=decimal)
    (series,) = read_table(path)
    assert series.channels == ("a", "b c", "ü")
    np.testing.assert_allclose(series.values, np.float32(values), rtol=1e-6)
    assert (series.time is not None) == time


@pytest.mark.parametrize("name", ["plant.parquet", "plant.npy", "plant.csv"])
def test_formats_read_alike(tmp_path, name):
    values = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    path = tmp_path / name
    names = ["channel_1", "channel_2", "channel_3"]
    frame = pd.DataFrame(values, columns=names)
    if name.endswith("npy"):
        np.save(path, np.asfortranarray(values))
    elif name.endswith("csv"):
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    (series,) = read_table(path)
    np.testing.assert_array_equal(series.values, values)
    assert series.channels == tuple(names)
    assert series.values.flags.c_contiguous


def test_parquet_with_all_roles(tmp_path):
    frame = pd.DataFrame(
        {
            "t": pd.date_range("2024", periods=4, freq="h", tz="Europe/Rome"),
            "machine": pd.Categorical(["x", "y", "x", "y"]),
            "a": np.arange(4, dtype=np.int16),
            "b": [True, False, True, True],
            "c": [Decimal("0.5")] * 4,
            "bad": [False, False, True, False],
        }
    )
    frame.to_parquet(tmp_path / "plant.parquet")
    x, y = read_table(
        tmp_path / "plant.parquet", entity_column="machine", label_column="bad"
    )
    assert (x.entity, y.entity) == ("x", "y")
    assert x.channels == ("a", "b", "c")
    assert x.values.tolist() == [[0, 1, 0.5], [2, 1, 0.5]]
    assert x.labels.tolist() == [False, True]
    expected = np.array(["2023-12-31T23", "2024-01-01T01"], "datetime64[ns]")
    np.testing.assert_array_equal(x.time, expected)


def test_index_of_times_is_the_time(tmp_path):
    index = pd.date_range("2024", periods=3, freq="min")
    frame = pd.DataFrame({"a": [1.0, 2, 3]}, index=index)
    frame.to_parquet(tmp_path / "plant.parquet")
    frame.to_csv(tmp_path / "plant.csv")
    for name in ("plant.parquet", "plant.csv"):
        (series,) = read_table(tmp_path / name)
        assert series.channels == ("a",)
        np.testing.assert_array_equal(series.time, index.to_numpy())


# Time.


@pytest.mark.parametrize("name", ["time", "Timestamp", "DATE", "DateTime"])
def test_time_is_found_by_name(read, name):
    (series,) = read(f"a,{name}\n1,10.5\n2,11\n")
    assert series.channels == ("a",)
    assert series.time.dtype == np.float64
    assert series.time.tolist() == [10.5, 11]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("2024-01-01 00:00:00", "2024-01-01 00:01:00"),
        ("2024-01-01T00:00", "2024-01-01T00:01"),
        ("2024-01-01T00:00:00Z", "2024-01-01T00:01:00Z"),
        ("2024-01-01T02:00:00.000+02:00", "2024-01-01T02:01:00.000+02:00"),
        ("2023-12-31T19:00:00-0500", "2023-12-31T19:01:00-0500"),
        ("2024-01-01", "2024-01-01T00:01"),
    ],
)
def test_time_is_found_by_content_and_put_in_utc(read, first, second):
    (series,) = read(f"when,a\n{first},1\n{second},2\n")
    expected = np.array(["2024-01-01T00:00", "2024-01-01T00:01"], "datetime64[ns]")
    np.testing.assert_array_equal(series.time, expected)
    assert series.time.dtype == "datetime64[ns]"


def test_time_is_named(read):
    (series,) = read("step,a\n3,1\n4,2\n", time_column="step")
    assert series.channels == ("a",)
    assert series.time.tolist() == [3, 4]


def test_numbers_like_dates_are_a_channel(read):
    (series,) = read("day,a\n20240101,1\n20240102,2\n")
    assert series.channels == ("day", "a")
    assert series.time is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "time,a\n5,1\n5,2\n",
            r"row 2 \(line 3\).*: 5 is a duplicate \(first in row 1",
        ),
        ("time,a\n5,1\n4,2\n", r"row 2 .*: 4 is before 5 of row 1; sort the file"),
        (
            "w,a\n2024-01-02,1\n2024-01-01,2\n",
            "2024-01-01 is before 2024-01-02 of row 1",
        ),
        (
            "time,a\n5,1\n,2\n",
            r"row 2 \(line 3\), column 1 \('time'\): the time is mis",
        ),
        ("time,a\n5,1\ninf,2\n", "the time is missing"),
        ("time,a\n2024-01-01,1\n,2\n", "row 2 .*the time is missing"),
        (
            "date,a\n31.12.2024,1\n",
            "row 1 .*'31.12.2024' is neither a number nor an ISO",
        ),
        ("date,a\n2024-01-01,1\nx,2\n", "row 2 .*'x' is neither a number nor an ISO"),
        ("time,date,a\n1,2,3\n", r"several time columns \(time, date\)"),
        ("x,y,a\n2024-01-01,2024-01-01,3\n", r"several time columns \(x, y\)"),
        (
            "w,a\n2024-01-01T00:00Z,1\n2024-01-01T00:01,2\n",
            "'2024-01-01T00:01' and '2024-01-01T00:00Z' of row 1: only one of them has",
        ),
        ("time,a\n1600-01-01,1\n", "time column 'time' leaves the years 1678 to 2261"),
        ("time,a\nTrue,1\n", "time column 'time' holds true and false"),
        ("time\n1\n2\n", "no channel besides time"),
    ],
)
def test_times_that_are_refused(read, text, message):
    with pytest.raises(DataError, match=message):
        read(text)


def test_second_time_column_is_no_channel(tmp_path):
    times = pd.date_range("2024", periods=2)
    frame = pd.DataFrame({"time": times, "other": times, "a": [1, 2]})
    frame.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="column 'other' holds times, expected numbers"):
        read_table(tmp_path / "a.parquet")


# Entities and labels.


def test_entities_in_order_of_appearance(read):
    text = "time,m,a,y\n1,z,10,0\n1,b,20,0\n2,z,11,1\n3,b,21,0\n"
    z, b = read(text, entity_column="m", label_column="y")
    assert (z.entity, b.entity) == ("z", "b")
    assert z.values.tolist() == [[10], [11]]
    assert b.time.tolist() == [1, 3]
    assert z.labels.tolist() == [False, True]
    assert z.labels.dtype == bool
    assert z.channels == b.channels == ("a",)


def test_entity_names_stay_text(read):
    entities = read("m,a\n007,1\nNA,2\n1.0,3\n", entity_column="m")
    assert [series.entity for series in entities] == ["007", "NA", "1.0"]


def test_order_of_time_is_asked_within_an_entity(read):
    text = "time,m,a\n1,x,1\n2,x,2\n1,y,3\n"
    x, y = read(text, entity_column="m")
    assert (x.time.tolist(), y.time.tolist()) == ([1, 2], [1])
    with pytest.raises(DataError, match=r"row 4 \(line 5\).*1 is a duplicate .* row 3"):
        read(text + "1,y,4\n", entity_column="m")


@pytest.mark.parametrize(
    ("text", "keywords", "message"),
    [
        ("m,a\nx,1\n,2\n", {"entity_column": "m"}, r"row 2 .*: the entity is missing"),
        ("a,y\n1,0\n1,2\n", {"label_column": "y"}, r"row 2 .*label 2 is neither 0"),
        ("a,y\n1,0\n1,\n", {"label_column": "y"}, r"row 2 .*label nan is neither 0"),
        ("a,y\n1,no\n", {"label_column": "y"}, "'no' is not a number; labels are 0"),
        ("a,b\n1,0\n", {"label_column": "y"}, "no column 'y': its columns are a, b"),
        ("a,b\n1,0\n", {"time_column": "t"}, "no column 't': its columns are a, b"),
        ("a,b\n1,0\n", {"entity_column": "t"}, "no column 't': its columns are a, b"),
        (
            "a,b\n1,0\n",
            {"label_column": "b", "entity_column": "b"},
            "column 'b' is given twice among time_column",
        ),
    ],
)
def test_roles_that_are_refused(read, text, keywords, message):
    with pytest.raises(DataError, match=message):
        read(text, **keywords)


# Missing values.


def test_missing_values_are_refused_with_place_and_count(read):
    expected = r"plant\.csv: row 2 \(line 3\), column 2 \('b'\): the value is missing"
    with pytest.raises(DataError, match=expected + r" \(3 such cells in all\)"):
        read("a,b\n1,2\n3,\nNaN,null\n")
    with pytest.raises(DataError, match=r"row 2 .*'b'\): the value is infinite; corr"):
        read("a,b\n1,2\n3,1e400\n")
    with pytest.raises(DataError, match=r"row 1 .*: the value is infinite"):
        read("a,b\n-inf,2\n")


def test_forward_fill_stays_inside_an_entity(read):
    text = "m,a,b\nx,1,2\ny,5,6\nx,,3\ny,inf,NA\nx,,4\n"
    x, y = read(text, entity_column="m", missing="ffill")
    assert x.values.tolist() == [[1, 2], [1, 3], [1, 4]]
    assert y.values.tolist() == [[5, 6], [5, 6]]
    x, y = read("m,a\nx,1\ny,\nx,2\n", entity_column="m", missing="ffill")
    assert x.values.tolist() == [[1], [2]] and np.isnan(y.values).tolist() == [[True]]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from(["x", "y"]), min_size=1, max_size=20),
    st.sampled_from([None, 1, 2, 5]),
    st.data(),
)
def test_forward_fill_against_a_loop(tmp_path, entities, limit, data):
    cells = [data.draw(st.sampled_from(["", "1", "2", "nan"])) for _ in entities]
    last, filled, used = {}, {}, {}
    for entity, cell in zip(entities, cells, strict=True):
        used[entity] = used.get(entity, 0) + 1
        if cell.isdigit():
            last[entity], used[entity] = float(cell), 0
        near = limit is None or used[entity] <= limit
        value = last.get(entity, np.nan) if near else np.nan
        filled.setdefault(entity, []).append(value)
    rows = [f"{e},{c}\n" for e, c in zip(entities, cells, strict=True)]
    path = _write(tmp_path / "fill.csv", "m,a\n" + "".join(rows))
    options = {"entity_column": "m", "missing": "ffill", "fill_limit": limit}
    if not last:
        with pytest.raises(DataError, match="no row has a value in 'a'"):
            read_table(path, **options)
        return
    for found in read_table(path, **options):
        np.testing.assert_array_equal(found.values[:, 0], filled[found.entity])


def test_blank_line_of_one_column_is_a_missing_value(read):
    with pytest.raises(DataError, match=r"row 2 \(line 3\).*the value is missing"):
        read("a\n1\n\n2\n")
    (series,) = read("a\n1\n\n2\n", missing="ffill")
    assert series.values.tolist() == [[1], [1], [2]]


def test_unknown_policy_is_refused_before_reading(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.missing='drop' is unknown: use one"):
        read_table(tmp_path / "absent.csv", missing="drop")
    with pytest.raises(ConfigError, match=r"data\.missing='drop' is unknown"):
        load_files(tmp_path / "absent.csv", missing="drop")


@pytest.mark.parametrize("missing", ["error", "ffill"])
def test_value_beyond_float32_is_never_filled(read, missing):
    with pytest.raises(DataError, match=r"row 2 .*'b'\): 1e\+39 is beyond float32"):
        read("a,b\n1,2\n3,1e39\n", missing=missing)


# Damage.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "plant.csv is empty"),
        ("\n\n", "plant.csv is empty"),
        ("a,b\n", "has no rows: expected data below"),
        ("a,b\n1,2\nx,4\n", r"row 2 \(line 3\), column 1 \('a'\): 'x' is not a number"),
        ("a,b\n0x10,2\n", "'0x10' is not a number"),
        ("a,b\n1_0,2\n", "'1_0' is not a number"),
        ("a b\n1 2\n", "'1 2' is not a number"),
        ("a,b\n1,2\n3\n", r"row 2 \(line 3\) has 1 cell, expected 2"),
        ("a,b\n1,2,3\n3,4,5\n", r"row 1 \(line 2\) has 3 cells, expected 2"),
        ('a,b\n"1",2\n3,4,5\n', r"row 2 \(line 3\) has 3 cells, expected 2"),
        ("a;b;c\n1;2;3\n1;2\n", "has 2 cells, expected 3.*the separator is ';'"),
        ("1,2\n3\n", r"row 2 \(line 2\) has 1 cell, expected 2"),
        ("a\n1,5\n", r"row 1 \(line 2\) has 2 cells, expected 1"),
        ('a,b\n"1,2\n3,4\n', r"row 1 \(line 2\) has 1 cell"),
        ('a,b\n"' + "1" * 200_000 + '",2\n', "can't be read .*correct its quotes"),
        ("a,a\n1,2\n", "columns 1 and 2 are both named 'a'; rename"),
        ("a, a \n1,2\n", "columns 1 and 2 are both named 'a'"),
        (",a\n0,1\n1,2\n", "column 1 has no name; name it, or remove it"),
        ("Unnamed: 0,a\n0,1\n", "column 1 has no name"),
        ("1,,2\n1,3,2\n", "line 1 '1,,2' looks like data, expected column names"),
        ("2024-01-01,1\n2024-01-02,2\n", "line 1 .* looks like data"),
        ("a,b\n1,2\n3,\x004\n", "line 3 holds a NUL byte; save the file as UTF-8"),
        ("a,b\n1,2\n".encode("utf-16"), "holds UTF-16 text.*save it as UTF-8"),
        ("a,b\n1,2\n3,ü\n".encode("latin-1"), "line 3 holds bytes that are not UTF-8"),
        ("a;b\n1,5;2\n3;4.25\n", r"\(line 3\) has a decimal point in ';4\.25'"),
        ("a;b\n1.234;1,5\n", r"\(line 2\) has a decimal point in"),
    ],
)
def test_damaged_text_is_refused(read, content, message):
    with pytest.raises(DataError, match=message):
        read(content)


@pytest.mark.parametrize("missing", ["error", "ffill"])
def test_short_row_is_never_filled(read, missing):
    with pytest.raises(DataError, match=r"row 2 \(line 3\) has 1 cell"):
        read("a,b\n1,2\n3\n", missing=missing)


def test_damaged_gzip(read):
    whole = gzip.compress(b"a,b\n" + b"1,2\n" * 100)
    for damaged in (whole[:-9], whole[:20] + b"??" + whole[22:]):
        with pytest.raises(DataError, match=r"csv\.gz is not a whole gzip file"):
            read(damaged, "plant.csv.gz")


def _npy(array, **keywords):
    buffer = io.BytesIO()
    np.save(buffer, array, **keywords)
    return buffer.getvalue()


HUGE = "{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000, 1000), }"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is not a whole \.npy file"),
        (b"no array at all", r"is not a whole \.npy file"),
        (_npy(np.ones((9, 2)))[:50], r"is not a whole \.npy file"),
        (_npy(np.ones((9, 2)))[:-1], r"has 271 bytes, but its header .*needs 272"),
        (_npy(np.ones((9, 2))) + b"1", r"has 273 bytes, but its header .*needs 272"),
        (
            b"\x93NUMPY\x01\x00v\x00" + HUGE.ljust(117).encode() + b"\n" + b"0" * 80,
            "needs 80000000000128",
        ),
        (_npy(np.array([[None]]), allow_pickle=True), "holds Python objects, which"),
        (_npy(np.array([["a"]])), "holds <U1 of shape .* expected numbers"),
        (_npy(np.ones(3)), r"holds float64 of shape \(3,\), expected numbers"),
        (_npy(np.ones((3, 0))), r"of shape \(3, 0\), expected numbers"),
        (_npy(np.ones((3, 2)) * 1j), "holds complex128"),
        (_npy(np.ones((0, 2))), "has no rows"),
        (
            _npy(np.array([[1, np.nan]])),
            r"npy: row 1, column 2 \('channel_2'\): the val",
        ),
        (_npy(np.array([[1, 1e39]])), r"row 1, column 2 .*: 1e\+39 is beyond float32"),
    ],
)
def test_damaged_npy_is_refused(read, content, message):
    with pytest.raises(DataError, match=message):
        read(content, "plant.npy")


def test_damaged_parquet_is_refused(read, tmp_path):
    frame = pd.DataFrame({"a": np.arange(5000.0), "b": 1.0})
    frame.to_parquet(tmp_path / "whole.parquet")
    whole = (tmp_path / "whole.parquet").read_bytes()
    flipped = whole[:500] + bytes(3000) + whole[3500:]
    for damaged in (b"", b"text", whole[:-100], flipped):
        with pytest.raises(DataError, match="is not a whole Parquet file"):
            read(damaged, "plant.parquet")


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pd.DataFrame({"a": []}), "has no rows"),
        (
            pd.DataFrame({"a": [1, None]}),
            r"row 2, column 1 \('a'\): the value is missing",
        ),
        (
            pd.DataFrame({"a": [1.0], "b": ["x"]}),
            r"row 1, column 2 \('b'\): 'x' is not",
        ),
        (pd.DataFrame({"a": [[1], [2]]}), r"array\(\[1\]\) is not a number"),
        (pd.DataFrame({"a": [1.0]}, index=[3]), "column 2 has no name"),
        (pd.DataFrame({"a ": [1.0], "a": [2]}), "columns 1 and 2 are both named 'a'"),
    ],
)
def test_parquet_content_is_checked(tmp_path, frame, message):
    frame.to_parquet(tmp_path / "plant.parquet")
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / "plant.parquet")


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "npy", "parquet"])
def test_absent_file_and_folder(tmp_path, ending):
    with pytest.raises(DataError, match=f"absent.{ending} does not exist: check"):
        read_table(tmp_path / f"absent.{ending}")
    (tmp_path / f"folder.{ending}").mkdir()
    with pytest.raises(DataError, match=f"folder.{ending} can't be read"):
        read_table(tmp_path / f"folder.{ending}")


@pytest.mark.parametrize("name", ["plant.xls", "plant", "plant.npz", "plant.pkl"])
def test_unknown_ending(read, name):
    with pytest.raises(DataError, match=r"has an unknown ending: expected \.csv"):
        read("a\n1\n", name)


# Train and test together.


def test_test_file_follows_train(tmp_path):
    train = _write(tmp_path / "plant.csv", "time,m,a,b\n1,x,1,2\n2,x,3,4\n1,y,5,6\n")
    test = _write(
        tmp_path / "later.csv", "b,a,label,m,time\n60,50,1,y,9\n20,10,0,x,9\n"
    )
    data = load_files(train, test_path=test, entity_column="m", label_column="label")
    assert data.name == "plant"
    assert [series.entity for series in data.train] == ["x", "y"]
    assert [series.entity for series in data.test] == ["x", "y"]
    assert data.test[0].channels == data.train[0].channels == ("a", "b")
    assert data.test[0].values.tolist() == [[10, 20]]
    assert data.test[1].labels.tolist() == [True]
    assert data.train[0].labels is None


def test_train_alone(tmp_path):
    data = load_files(_write(tmp_path / "plant.tsv", "a\tb\n1\t2\n"))
    assert data.name == "plant"
    assert data.test == ()
    assert data.train[0].entity == "plant"
    with pytest.raises(DataError, match="no column 'y'"):
        load_files(tmp_path / "plant.tsv", label_column="y")


def test_files_without_entities_are_one_entity(tmp_path):
    train = _write(tmp_path / "train.csv", "a,b\n1,2\n")
    test = _write(tmp_path / "test.csv", "5,6\n")
    data = load_files(train, test_path=test)
    assert data.train[0].entity == data.test[0].entity == "train"
    assert data.test[0].channels == ("a", "b")
    assert data.test[0].values.tolist() == [[5, 6]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("m,a,b,y\nx,1,2,0\n", "no rows of the entity 'y' of the train file"),
        (
            "m,a,b,y\nx,1,2,0\ny,1,2,0\nz,1,2,0\n",
            "the entity 'z', which the train file",
        ),
        ("m,a,c,y\nx,1,2,0\ny,1,2,0\n", "test.csv: x: .*missing: b; not expected: c"),
        ("m,a,y\nx,1,0\ny,1,0\n", "; missing: b. Rename"),
        ("m,a,b\nx,1,2\ny,1,2\n", "test.csv has no column 'y'"),
    ],
)
def test_test_file_that_does_not_fit(tmp_path, text, message):
    train = _write(tmp_path / "train.csv", "m,a,b\nx,1,2\ny,3,4\n")
    test = _write(tmp_path / "test.csv", text)
    with pytest.raises(DataError, match=message):
        load_files(train, test_path=test, entity_column="m", label_column="y")


def _series(channels):
    values = np.arange(2 * len(channels), dtype=np.float32).reshape(2, -1)
    return Series("x", values, tuple(channels))


def test_match_channels_by_name():
    matched = match_channels(_series("abc"), ["c", "a", "b"])
    assert matched.channels == ("c", "a", "b")
    assert matched.values.tolist() == [[2, 0, 1], [5, 3, 4]]
    same = _series("abc")
    assert match_channels(same, tuple("abc")) is same


def test_match_channels_by_position_if_unnamed():
    matched = match_channels(_series(["channel_1", "channel_2"]), ("a", "b"))
    assert matched.channels == ("a", "b")
    assert matched.values.tolist() == [[0, 1], [2, 3]]
    shuffled = match_channels(
        _series(["channel_2", "channel_1"]), ("channel_1", "channel_2")
    )
    assert shuffled.values.tolist() == [[1, 0], [3, 2]]


@pytest.mark.parametrize(
    ("have", "want", "message"),
    [
        ("ab", "abc", "; missing: c. Rename"),
        ("abc", "ab", "; not expected: c. Rename"),
        ("ab", "cd", "from the 2 expected; missing: c, d; not expected: a, b"),
        (["channel_1"], "ab", "missing: a, b; not expected: channel_1"),
        ("ab", ["channel_1", "channel_2"], "not expected: a, b"),
    ],
)
def test_match_channels_refuses(have, want, message):
    with pytest.raises(DataError, match=message):
        match_channels(_series(have), want)
