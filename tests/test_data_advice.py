"""Messages say what a cell or a file looks like, and what to do that works."""

import gzip
import io
import re
import zipfile

import numpy as np
import pandas as pd
import pytest

from kdjax.cli import main
from kdjax.data.lines import read_lines
from kdjax.data.readers import read_table
from kdjax.detection.storage import save_detector
from kdjax.errors import DataError, counted
from kdjax.estimator import KDDetector

ROWS = ["0.5,1", "0.25,2", "0.125,3"]


def in_file(cell, folder, place=1):
    path, rows = folder / "plant.csv", [*ROWS]
    rows[place] = f"{cell},7"
    path.write_text("a,b\n" + "\n".join(rows) + "\n", encoding="utf-8")
    with pytest.raises(DataError) as error:
        read_table(path)
    return str(error.value)


def in_stream(cell, folder, place=1):
    lines = ["a,b", *ROWS[:place], f"{cell},7"]
    return [*read_lines(lines, ("a", "b"))][-1].error


def in_object(cell, folder, place=1):
    import json

    (line,) = read_lines([json.dumps({"a": cell, "b": 7})], ("a", "b"))
    return line.error


def in_frame(cell, folder, place=1):
    frame = pd.DataFrame({"a": [0.5, cell, 0.25], "b": 1.0})
    with pytest.raises(DataError) as error:
        KDDetector().fit(frame)
    return str(error.value)


@pytest.mark.parametrize("entry", [in_file, in_stream, in_object, in_frame])
@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("12.5 bar", "looks like a number with a unit: write 12.5 alone"),
        ("7°C", "looks like a number with a unit: write 7 alone"),
        ("85 %", "looks like a number with a unit: write 85 alone"),
        ("No Data", "looks like a marker of a missing value: "),
        ("#VALUE!", "looks like a marker of a missing value: "),
        (r"\N", "looks like a marker of a missing value: "),
        ("<NA>", "looks like a marker of a missing value: "),
        ("NaT", "looks like a marker of a missing value: "),
        ("1.#QNAN", "looks like a marker of a missing value: "),
        ("#NAME?", "looks like a marker of a missing value: "),
        ("3 m3", "looks like a number with a unit: write 3 alone"),
        ("1d3", ""),
        ("1D+03", ""),
        ("# restarted", "looks like a comment: remove the line"),
        ("word", ""),
    ],
)
def test_a_cell_of_text_is_told_for_what_it_looks_like(entry, cell, said, tmp_path):
    text = entry(cell, tmp_path)
    assert repr(cell) in text
    assert said in text and ("looks like" in text) == bool(said)


def test_what_to_do_about_a_marker_is_what_the_caller_can_do(tmp_path):
    assert "name it in data.missing_values" in in_file("No Data", tmp_path)
    assert read_table(
        tmp_path / "plant.csv", missing="mask", missing_values=("No Data",)
    )
    assert "leave the cell empty" in in_stream("No Data", tmp_path)
    assert "give null" in in_object("No Data", tmp_path)
    assert "make it NaN, or name it in data.missing" in in_frame("No Data", tmp_path)
    assert "the value is missing" in in_frame("#N/A", tmp_path)


@pytest.mark.parametrize("text", ["a,b\n1,2\n,4\n5,6", "a,a\n1,2\n3,4"])
def test_files_and_frames_of_the_same_cells_have_the_same_error(text, tmp_path):
    path, (names, *rows) = (
        tmp_path / "plant.csv",
        [row.split(",") for row in text.split()],
    )
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as of_file:
        read_table(path)
    with pytest.raises(DataError) as of_frame:
        KDDetector().fit(pd.DataFrame(rows, columns=names))
    said = re.sub(r" \(line \d+\)", "", str(of_file.value)).replace(str(path), "X")
    assert str(of_frame.value) == said.replace("data.missing=", "missing=")


def test_further_header_lines_are_told(tmp_path):
    assert "a repeated header: remove the line" in in_file("a", tmp_path)
    assert "a repeated header: remove the line" in in_stream("a", tmp_path)
    assert "a second header line: remove it" in in_file("bar", tmp_path, place=0)
    assert "second header" not in in_file("bar", tmp_path, place=1)


@pytest.mark.parametrize(
    ("row", "line", "said"),
    [
        (0, ",l/s,C", "the time is missing; remove the line if it holds units, else"),
        (1, ",1,2", "the time is missing; complete or remove the row"),
        (0, "s,l/s,C", "looks like a second header line: remove it"),
        (1, "when,a,b", "looks like a repeated header: remove the line"),
        (1, "# restarted,,", "looks like a comment: remove the line"),
        (1, "-,1,2", "looks like a marker of a missing value: complete or remove"),
        (1, "10pm,1,2", "such as 2024-01-31 23:59:00; convert the column"),
        (1, "yesterday,1,2", "such as 2024-01-31 23:59:00; convert the column"),
    ],
)
@pytest.mark.parametrize("time", ["2026-03-01T00:0{}", "{}"])
def test_lines_whose_time_is_none_are_told(time, row, line, said, tmp_path):
    lines = [time.format(i) + ",1,2" for i in range(3)]
    text = "\n".join(["when,a,b", *lines[:row], line, *lines[row:]])
    (tmp_path / "plant.csv").write_text(text, encoding="utf-8")
    at = rf"row {row + 1} \(line {row + 2}\), column 1 \('when'\): .*"
    with pytest.raises(DataError, match=at + re.escape(said)):
        read_table(tmp_path / "plant.csv", time_column="when")


@pytest.mark.parametrize("step", ["", "--step=1"])
@pytest.mark.parametrize("cell", ["abc", "1_0", "No Data"])
def test_text_in_a_channel_is_to_be_corrected(cell, step, small, tmp_path, capsys):
    save_detector(tmp_path / "detector", small)
    path = tmp_path / "plant.csv"
    path.write_text(f"time,x,y\n0,1,2\n1,{cell},2\n2,1,2\n", encoding="utf-8")
    verb = ["kdjax", "score", str(path), f"--detector={tmp_path / 'detector'}", step]
    verb = [*filter(None, verb), f"--output={tmp_path / 'scores.csv'}"]
    assert main(verb) == 2
    said = capsys.readouterr().err
    assert "row 2 (line 3), column 2 ('x')" in said and "--missing_values" in said
    assert ("; else correct it." in said) == (cell != "No Data")
    assert not re.search("remove|column as|ignore|time_column", said)


def test_a_column_of_text_that_is_no_channel_is_to_be_ignored(small, tmp_path, capsys):
    save_detector(tmp_path / "detector", small)
    path = tmp_path / "plant.csv"
    rows = "".join(f"{i},1,2,shift {'ab'[i % 2]}\n" for i in range(9))
    path.write_text(f"time,x,y,note\n{rows}", encoding="utf-8")
    verb = ["kdjax", "score", str(path), f"--detector={tmp_path / 'detector'}"]
    verb.append(f"--output={tmp_path / 'scores.csv'}")
    assert main(verb) == 2
    said = capsys.readouterr().err
    assert "column 4 ('note')" in said
    assert "as --time_column, --entity_column or in --ignore" in said
    assert main([*verb, "--ignore=note"]) == 0


@pytest.mark.parametrize(
    ("kind", "what"), [("datetime64[ns]", "times"), ("timedelta64[ns]", "durations")]
)
def test_times_in_a_channel_are_to_be_corrected(kind, what, small, tmp_path, capsys):
    save_detector(tmp_path / "detector", small)
    path = tmp_path / "plant.parquet"
    frame = pd.DataFrame({"time": range(9), "y": 1.0})
    frame.assign(x=np.arange(9).astype(kind)).to_parquet(path)
    verb = ["kdjax", "score", str(path), f"--detector={tmp_path / 'detector'}"]
    assert main([*verb, f"--output={tmp_path / 'scores.csv'}"]) == 2
    said = capsys.readouterr().err
    assert f"column 'x' holds {what}, expected numbers; correct it.\n" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sep=;\na;b\n1;2\n", "line 1 'sep=;' names the separator for Excel: remove it"),
        ("# made by hand\na,b\n1,2\n", "line 1 looks like a comment: remove it"),
        ("a,b\n1,2\n# restarted\n3,4\n", "row 2 .*looks like a comment: remove the row"),
        ("a,b\n1,2\n3\n", "row 2 .*complete or remove the row"),
    ],
)  # fmt: skip
def test_lines_that_are_no_rows_are_told(text, said, tmp_path):
    path = tmp_path / "plant.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        read_table(path)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("sep=;", "line 1 'sep=;' names the separator for Excel: remove it"),
        ("# made by hand", "The first line looks like a comment: remove it"),
        ("a", "expected; missing: b. The first"),
        ("a,b,zeit", "expected; not expected: zeit. The first"),
        ("a,b,", "expected; not expected: column 3, without a name. The first"),
        ("a,b,b", "expected; there twice: b. The first"),
        ("a,c", "expected; missing: b; not expected: c. The first"),
    ],
)
def test_a_header_of_a_stream_is_told_which_column_is_wrong(header, said):
    with pytest.raises(DataError, match=re.escape(said)):
        [*read_lines([header, "1,2"], ("a", "b"))]


def workbook():
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("xl/workbook.xml", "<workbook/>")
    return content.getvalue()


def parquet():
    content = io.BytesIO()
    pd.DataFrame({"a": [1.0]}).to_parquet(content)
    return content.getvalue()


def array():
    content = io.BytesIO()
    np.save(content, np.ones((3, 2)))
    return content.getvalue()


CSV = b"a,b\n1,2\n3,4\n"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("plant.csv", gzip.compress(CSV, mtime=0), "holds gzip.*add .gz to its name"),
        ("plant.csv", workbook(), "holds a zip archive or an Excel workbook.*as CSV"),
        ("plant.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "holds an Excel workbook"),
        ("plant.csv", parquet(), "holds Parquet.*end in .parquet"),
        ("plant.txt", array(), "holds a NumPy array.*end in .npy"),
        ("plant.csv", CSV.decode().encode("utf-16"), "holds UTF-16 text.*as UTF-8"),
        ("plant.csv.gz", CSV, "is not gzip: remove .gz from its name"),
        ("plant.csv.gz", parquet(), "holds Parquet.*end in .parquet"),
        ("plant.csv.gz", gzip.compress(parquet(), mtime=0), "holds Parquet"),
        ("plant.parquet", gzip.compress(CSV, mtime=0), "holds gzip.*add .gz"),
        ("plant.parquet", workbook(), "holds a zip archive or an Excel workbook"),
        ("plant.npy", parquet(), "holds Parquet"),
        ("plant.npy", workbook(), "holds a zip archive"),
    ],
)
def test_a_file_of_another_kind_is_told(name, content, said, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=said) as error:
        read_table(path)
    assert "not whole" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(CSV, mtime=0), "holds gzip, .*: unpack it with gzip -dc first"),
        (
            CSV.decode().encode("utf-16"),
            "holds UTF-16 text, .* with iconv -f UTF-16 -t UTF-8",
        ),
        (CSV.decode().encode("utf-16-le"), "holds UTF-16 text"),
        (CSV.decode().encode("utf-16-be"), "holds UTF-16 text"),
        (b'\xff\xfe{\x00"\x00', "holds UTF-16 text"),
        (parquet(), "holds Parquet, .*: write its rows as CSV first"),
        (workbook(), "holds a zip archive or an Excel workbook"),
    ],
)
def test_standard_input_of_another_kind_is_told(
    content, said, small, tmp_path, monkeypatch, capsys
):
    save_detector(tmp_path / "detector", small)
    source = io.TextIOWrapper(io.BufferedReader(io.BytesIO(content)))
    monkeypatch.setattr("sys.stdin", source)
    assert main(["kdjax", "stream", f"--detector={tmp_path / 'detector'}"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.search(f"standard input {said}", line)


def test_one_of_a_thing_is_singular():
    assert [counted(n, "event") for n in (0, 1, 2, 1000)] == [
        "0 events",
        "1 event",
        "2 events",
        "1,000 events",
    ]


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        (lambda times, cells: (times[::-1], cells), "--order=sort"),
        (lambda times, cells: ([times[0], *times[:-1]], cells), "--duplicates=last"),
        (lambda times, cells: (times, ["", *cells[1:]]), "--missing=mask"),
        (lambda times, cells: (times, [*cells[:-1], "No Data"]), "--missing_values"),
    ],
)
def test_advice_of_score_is_taken_by_score(change, flag, small, tmp_path, capsys):
    save_detector(tmp_path / "detector", small)
    times, cells = change([*range(20)], [f"{i / 7}" for i in range(20)])
    path = tmp_path / "plant.csv"
    rows = "".join(f"{t},{cell},0\n" for t, cell in zip(times, cells, strict=True))
    path.write_text(f"time,x,y\n{rows}", encoding="utf-8")
    verb = ["kdjax", "score", str(path), f"--detector={tmp_path / 'detector'}"]
    verb.append(f"--output={tmp_path / 'scores.csv'}")
    assert main(verb) == 2
    said = capsys.readouterr().err
    assert flag in said and "data." not in said
    folder = [*verb[:-1], f"--output={tmp_path / 'scores'}/"]
    assert main(folder) == 2
    said = capsys.readouterr()
    assert flag in said.out + said.err and "data." not in said.out + said.err
    if flag == "--missing_values":
        flag += "=No Data"
        verb.append("--missing=mask")
    assert main([*verb, flag]) == 0
    assert len(pd.read_csv(tmp_path / "scores.csv")) >= 19


def test_an_onnx_file_is_told_where_it_can_be_used(small, tmp_path, capsys):
    file, rows = tmp_path / "a.onnx", tmp_path / "a.csv"
    file.write_bytes(b"")
    rows.write_text("x\n1\n", "utf-8")
    scores = f"--output={tmp_path / 'scores.csv'}"
    assert main(["kdjax", "score", str(rows), f"--detector={file}", scores]) == 2
    said = f"run kdjax stream --detector={file} < FILE.csv, or give the folder of a det"
    assert said in capsys.readouterr().err
    assert main(["kdjax", "stream", f"--detector={file}", "--backend=jax"]) == 2
    assert "or --backend=onnxruntime for an ONNX file." in capsys.readouterr().err
