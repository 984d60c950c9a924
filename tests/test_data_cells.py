"""One set of rules for cells and times: each entry reads the same, or refuses the same."""

import io
import json
import math

import numpy as np
import pandas as pd
import pytest

from kdjax.data.lines import read_lines
from kdjax.data.readers import read_table
from kdjax.data.schema import Reading
from kdjax.detection.storage import save_detector
from kdjax.detection.timestamps import parse_timestamp
from kdjax.errors import DataError
from kdjax.estimator import KDDetector

NAN = math.nan


def by_file(cells, tmp_path, **options):
    """The numbers of a column of cells, read from a file of three columns."""
    path = tmp_path / "plant.csv"
    rows = "".join(f"{cell},{i},0\n" for i, cell in enumerate(cells))
    path.write_text(f"a,b,c\n{rows}", encoding="utf-8")
    return read_table(path, missing="mask", **options)[0].values[:, 0]


def by_semicolons(cells, tmp_path, **options):
    path = tmp_path / "plant.csv"
    path.write_text(
        "a;b\n" + "".join(f"{cell};1\n" for cell in cells), encoding="utf-8"
    )
    return read_table(path, missing="mask", **options)[0].values[:, 0]


def by_parquet(cells, tmp_path, **options):
    path = tmp_path / "plant.parquet"
    pd.DataFrame({"a": pd.Series(cells, dtype=object), "b": 1.0}).to_parquet(path)
    return read_table(path, missing="mask", **options)[0].values[:, 0]


def by_stream(cells, tmp_path, **options):
    text = "a,b\n" + "".join(f"{cell},1\n" for cell in cells)
    return _streamed(io.StringIO(text), **options)


def by_json(cells, tmp_path, **options):
    return _streamed([json.dumps({"a": cell, "b": 1}) for cell in cells], **options)


def by_frame(cells, tmp_path, *, missing_values=()):
    """By what `fit` makes of a column of objects."""
    settings = {"data.missing_values": missing_values}
    detector = KDDetector(missing="mask", settings=settings)
    frame = pd.DataFrame({"a": pd.Series(cells, dtype=object), "b": 1.0})
    return detector._series(frame, reset=True).values[:, 0]


def _streamed(lines, **options):
    values = []
    for line in read_lines(lines, ("a", "b"), Reading(**options)):
        if line.error:
            raise DataError(line.error)
        values.append(line.row[0])
    return np.array(values)


ENTRIES = [by_file, by_semicolons, by_parquet, by_stream, by_json, by_frame]


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(
    ("cell", "number"),
    [
        ("2.5", 2.5),
        (" 2.5 ", 2.5),
        ("\u00a02.5\u00a0", 2.5),  # no-break spaces
        ("-4e2", -400.0),
        ("+.5E+1", 5.0),
        ("7.", 7.0),
        ("", NAN),
        ("NaN", NAN),
        ("NAN", NAN),
        ("-nan", NAN),
        ("nan ", NAN),
        ("null", NAN),
        ("n/a", NAN),
        ("#N/A", NAN),
    ],
)
def test_a_cell_is_the_same_number_everywhere(entry, cell, number, tmp_path):
    found = entry(["0.25", cell, "0.5"], tmp_path)
    np.testing.assert_array_equal(found, [0.25, number, 0.5])


@pytest.mark.parametrize("entry", ENTRIES)
def test_truth_values_are_numbers_in_a_column_of_their_own(entry, tmp_path):
    found = entry(["True", "FALSE", "", "true"], tmp_path)
    np.testing.assert_array_equal(found, [1, 0, NAN, 1])
    for cells in (["0.5", "True"], ["True", "0.5"]):
        with pytest.raises(DataError, match="is not a number"):
            entry(cells, tmp_path)


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(
    "cell", ["1_000", "１２", "0x1F", "1,5 bar", "Bad Input", "unavailable", "--", "1e"]
)
def test_a_word_is_refused_everywhere(entry, cell, tmp_path):
    if entry in (by_file, by_stream) and "," in cell:
        cell = f'"{cell}"'
    with pytest.raises(DataError, match="is not a number"):
        entry(["1", cell, "2"], tmp_path)


@pytest.mark.parametrize("entry", ENTRIES)
def test_own_markers_are_missing_cells(entry, tmp_path):
    cells = ["1.5", "Bad Input", " -9999", "2.5"]
    found = entry(cells, tmp_path, missing_values=("Bad Input", "-9999"))
    np.testing.assert_array_equal(found, [1.5, NAN, NAN, 2.5])
    found = entry(["1.5", "-9999.0", "2.5"], tmp_path, missing_values=("-9999",))
    np.testing.assert_array_equal(found, [1.5, NAN, 2.5])


@pytest.mark.parametrize("entry", [by_parquet, by_json, by_frame])
def test_objects_are_read_as_cells_of_text(entry, tmp_path):
    np.testing.assert_array_equal(entry([True, None, False], tmp_path), [1, NAN, 0])
    if entry is not by_parquet:  # whose columns have one type
        found = entry([0.5, None, "NA", "2.5"], tmp_path)
        np.testing.assert_array_equal(found, [0.5, NAN, NAN, 2.5])
        for cells in ([0.5, True], [True, 2.0], ["true", 1]):
            with pytest.raises(DataError, match="is not a number"):
                entry(cells, tmp_path)


def test_a_marker_is_proposed_where_a_column_holds_numbers_as_well(tmp_path):
    with pytest.raises(
        DataError, match=r"row 2 .*'a'.*'No Data' .*data.missing_values"
    ):
        by_file(["1", "No Data", "2"], tmp_path)
    with pytest.raises(DataError) as error:
        by_file(["on", "off", "on"], tmp_path)
    assert "missing_values" not in str(error.value)


@pytest.mark.parametrize("mark", [".", ","])
@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_thousands_are_refused_with_their_cell(mark, separator, tmp_path):
    cells = ["998", "999", f"1{mark}000", f"1{mark}001"]
    text = f"a{separator}b\n" + "".join(f"{cell}{separator}1\n" for cell in cells)
    path = tmp_path / "plant.csv"
    path.write_text(text, encoding="utf-8")
    place = rf"{path}: row 3 \(line 4\), column 1 \('a'\): '1\{mark}000'"
    told = "among whole numbers may be in thousands: write numbers without .* decimals."
    with pytest.raises(DataError, match=f"^{place} {told}$"):
        read_table(path)
    first, second, third, _ = read_lines(io.StringIO(text), ("a", "b"))
    assert (first.row, second.row) == ([998, 1], [999, 1])
    assert f"'1{mark}000' among whole numbers may be in thousands" in third.error


@pytest.mark.parametrize(
    "cells",
    [
        ["998.5", "1.000", "1001.25"],  # other decimals
        ["0.998", "0.999", "1.000"],  # decimals throughout
        ["1.125", "2.250", "3.375"],
    ],
)
def test_decimals_are_no_thousands(cells, tmp_path):
    wanted = np.float32([float(cell) for cell in cells])
    np.testing.assert_array_equal(by_semicolons(cells, tmp_path), wanted)
    lines = io.StringIO("a;b\n" + "".join(f"{cell};1\n" for cell in cells))
    np.testing.assert_array_equal(np.float32(_streamed(lines)), wanted)


def test_blank_lines_are_skipped_and_lines_keep_their_numbers(tmp_path):
    text = "a,b\n1,2\n\n \n3,4\n\nx,6\n"
    path = tmp_path / "plant.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"row 3 \(line 7\), column 1 \('a'\): 'x'"):
        read_table(path)
    path.write_text(text.replace("x", "5"), encoding="utf-8")
    np.testing.assert_array_equal(read_table(path)[0].values, [[1, 2], [3, 4], [5, 6]])
    found = [*read_lines(io.StringIO(text), ("a", "b"))]
    assert [line.number for line in found] == [2, 5, 7]
    assert "'x' is not a number" in found[-1].error


@pytest.mark.parametrize("names", ["a", "a,b", "time;a", '"a","b"'])
def test_blank_lines_before_the_header_are_skipped(names, tmp_path):
    path, mark = tmp_path / "plant.csv", ";" if ";" in names else ","
    width = names.count(mark) + 1
    rows = [mark.join(["1"] * width), mark.join(["2"] * width)]
    text = "\n \t\n\r\n" + "\n".join([names, *rows])
    path.write_text(text, encoding="utf-8", newline="")
    (series,) = read_table(path)
    assert series.values[:, 0].tolist() == [1, 2]
    channels = [name.strip('"') for name in names.split(mark) if name != "time"]
    assert series.channels == (*channels,)
    found = [*read_lines(io.StringIO(text), channels)]
    assert [line.row[0] for line in found] == [1, 2]
    path.write_text(text + f"\nx{mark}" * (width - 1) + "\nx" * (width == 1))
    with pytest.raises(DataError, match=r"row 3 \(line 7\)"):
        read_table(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\n\nsep=;\na;b\n1;2\n", "line 3 'sep=;' names the separator"),
        ("\n2024-01-01,1\n2024-01-02,2\n", "line 2 '2024-01-01,1' looks like data"),
        ("\n# by hand\na,b\n1,2\n", "line 2 looks like a comment"),
        ("\na;b\n1,5;2\n\n3;4.25\n", r"row 2 \(line 5\) has a decimal point"),
        ("\n\n", "is empty|no rows"),
    ],
)
def test_lines_keep_their_numbers_after_blank_ones(text, said, tmp_path):
    path = tmp_path / "plant.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        read_table(path)


def test_a_blank_line_is_a_missing_cell_of_a_single_column(tmp_path):
    path = tmp_path / "plant.csv"
    path.write_text("a\n1\n\n2\n", encoding="utf-8")
    expected = [1, NAN, 2]
    np.testing.assert_array_equal(
        read_table(path, missing="mask")[0].values[:, 0], expected
    )
    found = [line.row[0] for line in read_lines(["a", "1", "", "2"], ("a",))]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-03-01T00:00:00", "2026-03-01T00:00:00"),
        ("2026/03/01T00:00", "2026-03-01T00:00:00"),
        ("2026/3/1 7:05", "2026-03-01T07:05:00"),
        ("20260401T000000", "2026-04-01T00:00:00"),
        ("2026-3-1", "2026-03-01"),
        ("2026-03-01 00:00:00,250", "2026-03-01T00:00:00.250"),
        ("2026-03-01T00:00:00.123456789", "2026-03-01T00:00:00.123456789"),
        ("2026-03-01T02:00:00+0200", "2026-03-01T00:00:00"),
        ("2026-03-01T02:00+02", "2026-03-01T00:00:00"),
        ("2026-03-01 00:00:00 Z", "2026-03-01T00:00:00"),
    ],
)
def test_a_time_is_the_same_in_files_and_streams(text, moment, tmp_path):
    path = tmp_path / "plant.csv"
    path.write_text(f'time,a\n"{text}",1\n', encoding="utf-8")
    (series,) = read_table(path)
    wanted = np.datetime64(moment).astype("datetime64[ns]")
    assert series.time[0] == wanted
    (line,) = read_lines(io.StringIO(path.read_text("utf-8")), ("a",))
    assert parse_timestamp(line.time).value == wanted.astype(np.int64)
    # By what it holds, a column of any name.
    path.write_text(f'when,a\n"{text}",1\n', encoding="utf-8")
    assert read_table(path)[0].time == wanted


@pytest.mark.parametrize("cell", ["2024", "2024-1", "pump-2-a", "1.5", "20240101"])
def test_other_columns_are_no_times(cell, tmp_path):
    path = tmp_path / "plant.csv"
    path.write_text(f"unit,a\n{cell},1\n", encoding="utf-8")
    if cell[-2:] in ("24", ".5", "01"):
        assert read_table(path)[0].channels == ("unit", "a")
    else:
        assert read_table(path, entity_column="unit")[0].time is None
        with pytest.raises(DataError, match="column 1 .'unit'.*is not a number"):
            read_table(path)


def test_whole_numbers_as_times_are_exact_everywhere(tmp_path):
    times = [1_779_753_600_000_000_001 + 100 * row for row in range(4)]
    path = tmp_path / "plant.csv"
    path.write_text("time,a\n" + "".join(f"{t},1\n" for t in times), encoding="utf-8")
    (series,) = read_table(path)
    assert series.time.tolist() == times
    lines = read_lines(io.StringIO(path.read_text("utf-8")), ("a",))
    assert [parse_timestamp(line.time).value for line in lines] == times


@pytest.mark.parametrize(
    ("texts", "numbers"),
    [
        (["1772323260", " 1772323261 "], [1_772_323_260, 1_772_323_261]),
        (["1779753600000000001", "1779753600000000101"], None),
        (["0.5", "1e3"], [0.5, 1000.0]),
        (["20260301", "20260302"], [20_260_301, 20_260_302]),
    ],
)
def test_numbers_as_text_are_times_everywhere(texts, numbers, tmp_path, small):
    numbers = numbers or [int(text) for text in texts]
    frame = pd.DataFrame({"time": texts, "x": [1.0, 2.0], "y": 0.0})
    lines = [f'"{time}",{x},0' for time, x, _ in frame.itertuples(index=False)]
    text = "\n".join(["time,x,y", *lines])
    (tmp_path / "plant.csv").write_text(text, encoding="utf-8")
    frame.to_parquet(tmp_path / "plant.parquet")
    for name in ("plant.csv", "plant.parquet"):
        (series,) = read_table(tmp_path / name)
        assert series.time.tolist() == numbers and series.channels == ("x", "y")
    objects = [json.dumps(row) for row in frame.to_dict("records")]
    for source in (text.splitlines(), objects):
        read = read_lines(source, ("x", "y"))
        assert [parse_timestamp(line.time).value for line in read] == numbers
    # A frame whose time column the file of training had.
    card = {"data": {"time_column": "time", "named": True}, "settings": {}}
    save_detector(tmp_path / "detector", small._replace(card=card, step=0.0))
    loaded = KDDetector.load(tmp_path / "detector")
    assert loaded._series(frame).time.tolist() == numbers
    with pytest.raises(DataError, match="row 2 is at .*, not after the row before"):
        loaded.predict(frame[::-1])


@pytest.mark.parametrize(
    "text",
    ["now", "2026-13-01", "2026111T00", "01.03.2026", "2026-03-01T25:00", "+200"],
)
def test_what_is_no_time_is_refused_in_files_and_streams(text, tmp_path):
    path = tmp_path / "plant.csv"
    path.write_text(f"time,a\n2026-03-01T00:00,1\n{text},2\n", encoding="utf-8")
    said = "is a number, but other times" if text == "+200" else "neither a number nor"
    with pytest.raises(DataError, match=rf"row 2 .*{said}"):
        read_table(path)
    if text != "+200":  # a number as any other
        with pytest.raises(DataError, match="neither a number nor an ISO time"):
            parse_timestamp(text)


def test_offsets_that_change_are_one_clock(tmp_path):
    path = tmp_path / "plant.csv"
    times = ["2026-10-25T02:30:00+02:00", "2026-10-25T02:00:00+01:00"]
    path.write_text("time,a\n" + "".join(f"{t},1\n" for t in times), encoding="utf-8")
    (series,) = read_table(path)
    expected = np.array(["2026-10-25T00:30", "2026-10-25T01:00"], "datetime64[ns]")
    np.testing.assert_array_equal(series.time, expected)


def test_a_key_without_a_name_is_no_time_entity_or_tag():
    (line,) = read_lines(['{"a": 1, "": "x"}'], ("a",))
    assert line.row == [] and line.error.startswith(
        "the columns differ from the 1 channel expected; not expected: column 2, without"
    )


@pytest.mark.parametrize("dtype", ["float32", "float64", "Float32", "float[pyarrow]"])
@pytest.mark.parametrize("marker", ["-999.99", "1e20", "9.96921e36", "-9999"])
def test_a_marker_is_found_in_cells_of_any_dtype(dtype, marker, tmp_path):
    frame = pd.DataFrame({"a": [1.5, float(marker), 2.5]}).astype(dtype)
    frame.to_parquet(tmp_path / "plant.parquet")
    options = {"missing": "mask", "missing_values": (marker,)}
    (series,) = read_table(tmp_path / "plant.parquet", **options)
    np.testing.assert_array_equal(series.values[:, 0], [1.5, np.nan, 2.5])


@pytest.mark.parametrize("offset", ["+0199", "+01:75", "-00:60"])
def test_an_offset_has_no_60_minutes_or_more(offset, tmp_path):
    time = f"2026-03-01T00:00:00{offset}"
    (tmp_path / "plant.csv").write_text(f"time,a\n{time},1\n", encoding="utf-8")
    with pytest.raises(DataError, match="is neither a number nor an ISO time"):
        read_table(tmp_path / "plant.csv", time_column="time")
    for lines in (["time,a", f"{time},1"], [f'{{"time": "{time}", "a": 1}}']):
        (line,) = read_lines(lines, ("a",), Reading(time_column="time"))
        with pytest.raises(DataError):
            parse_timestamp(line.time)
