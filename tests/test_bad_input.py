"""Bad rows and files through every verb that could meet them, and where each test stands.

A fault ends with exit code 2 and one line that names file, row, column, what was expected
and what to do. Nothing is left half-written, and what was there before stays. What rows
that can be read do, and files larger than the memory, is in `test_bad_rows.py`; detectors
and outputs are in `test_bad_artifacts.py`, flags and settings in `test_bad_flags.py`.

The tests of each kind of bad input or fault, by number; `test_the_index_is_complete`
checks that they are there. What stands in brackets is the beginning of a case's name.

 1 NaN in one cell
    test_bad_input::test_a_bad_file_is_refused[01]
    test_own_file::test_missing_cells_are_refused_by_row_and_column_and_bind_no_folder
    test_bad_rows::test_a_row_without_a_score_is_unknown_and_never_normal
    test_data_schema::test_mask_leaves_gaps_open_and_counts_them
 2 infinite, or 1e400 in text
    test_bad_input::test_a_bad_file_is_refused[02]
 3 beyond float32
    test_bad_input::test_a_bad_file_is_refused[03]
    test_data_readers::test_value_beyond_float32_is_never_filled
 4 a huge finite spike
    test_bad_rows::test_a_huge_spike_is_an_alarm_and_written_as_inf
    test_numbers_hold::test_what_overflows_alarms_and_is_never_normal
    test_long_runs::test_a_spike_in_the_rows_is_survived
 5 a constant column
    test_bad_rows::test_a_constant_column_that_moves_is_an_event_of_its_own
    test_own_file::test_results_tell_what_the_channels_are
 6 two identical columns
    test_bad_rows::test_copies_of_a_column_leave_scores_finite
    test_own_file::test_results_tell_what_the_channels_are
 7 fewer than two windows, fewer rows than columns
    test_bad_rows::test_rows_for_fewer_than_two_windows_are_refused
    test_bad_rows::test_fewer_rows_than_columns_leave_scores_finite
 8 another number of columns
    test_bad_input::test_a_bad_file_is_refused[08]
 9 columns in another order or of other names
    test_bad_input::test_a_bad_file_is_refused[09]
    test_scoring_files::test_columns_in_another_order_are_matched_by_name
10 text in a cell
    test_bad_input::test_a_bad_file_is_refused[10]
11 a row with cells too few or too many
    test_bad_input::test_a_bad_file_is_refused[11]
12 no rows
    test_bad_input::test_a_bad_file_is_refused[12]
13 one row
    test_bad_input::test_a_bad_file_is_refused[13]
14 shorter than the window
    test_bad_input::test_a_bad_file_is_refused[14]
15 marks of the byte order, NUL bytes, line ends, separators, decimal commas
    test_bad_input::test_a_bad_file_is_refused[15]
    test_data_readers::test_dialects_read_alike
16 times that are there twice
    test_bad_input::test_a_bad_file_is_refused[16]
    test_data_schema::test_the_last_of_repeated_rows_stays
17 times that run backwards, or of several zones
    test_bad_input::test_a_bad_file_is_refused[17]
    test_data_schema::test_sorted_within_an_entity
18 a gap in time
    test_own_file::test_no_window_crosses_the_leap
    test_detection_tables::test_a_gap_in_time_starts_afresh
19 another unit
    test_bad_rows::test_another_unit_is_warned_of
    test_own_file::test_values_that_training_never_had_are_warned_of
20 Python objects in an array
    test_bad_input::test_a_bad_file_is_refused[20]
    test_bad_artifacts::test_a_bad_detector_is_refused[20]
    test_walls::test_nothing_runs_code_from_files
21 cut or empty files
    test_bad_input::test_a_bad_file_is_refused[21]
    test_bad_artifacts::test_a_bad_detector_is_refused[21]
    test_data_datasets::test_damaged_arrays_of_smap
22 a flipped bit
    test_bad_artifacts::test_a_bad_detector_is_refused[22]
    test_bad_artifacts::test_a_bad_exported_file_is_refused
    test_bad_artifacts::test_a_bad_state_is_refused
    test_training_checkpoints::test_a_damaged_step_gives_way_to_the_one_before
23 a header that claims terabytes
    test_bad_input::test_a_bad_file_is_refused[23]
    test_bad_artifacts::test_a_bad_detector_is_refused[23]
24 archives that unpack to more than the memory
    test_bad_rows::test_packed_text_larger_than_the_memory_is_refused
    test_bad_rows::test_a_packed_array_larger_than_the_memory_is_refused
    test_bad_artifacts::test_a_bad_detector_is_refused[24]
25 paths that lead out of an archive, and archives of other kinds
    test_bad_input::test_a_bad_file_is_refused[25]
    test_bad_artifacts::test_a_bad_detector_is_refused[25]
    test_bad_artifacts::test_names_of_members_lead_nowhere
26 a file larger than the memory
    test_bad_rows::test_text_larger_than_the_memory_is_refused
    test_bad_rows::test_tables_larger_than_the_memory_are_scored_from_disk
    test_large::test_a_whole_run_on_a_file_larger_than_its_memory
27 checkpoints and files of other settings or a newer kdjax
    test_cli::test_a_workdir_of_another_config_is_refused
    test_releases::test_a_newer_detector_is_refused_by_each_verb
    test_releases::test_a_newer_checkpoint_is_refused_and_left_alone
28 a step cut off by a kill
    test_experiment_resume::test_parameters_are_bit_equal
    test_training_checkpoints::test_a_kill_between_save_and_seal_costs_one_step
29 a full disk, a folder that may not be written to
    test_crashes::test_a_full_disk_leaves_nothing_half_written
    test_crashes::test_what_may_not_be_written_or_read_is_one_line
30 a loss that is not finite
    test_long_runs::test_divergence_ends_the_program_with_the_step
    test_training_loop::test_parameters_that_became_nan_are_not_saved
31 labels that are missing, all alike, too few, or neither 0 nor 1
    test_bad_rows::test_bad_labels_are_refused
    test_evaluation_rows::test_nothing_labelled_gives_null_with_reasons
    test_evaluation_metrics::test_curves_without_negatives
    test_data_datasets::test_labels_are_as_many_as_test_rows
32 two processes in one folder
    test_crashes::test_the_second_of_two_is_refused_by_the_firsts_number
33 a process of several that dies
    test_training_hosts::test_a_killed_process_ends_the_other_and_both_go_on
34 settings that are unknown or of another kind
    test_bad_flags::test_bad_settings_are_refused
    test_bad_flags::test_flags_that_contradict_or_change_nothing_are_refused
    test_cli::test_faulty_overrides
    test_config::test_an_unknown_key_names_the_nearest
35 too few calibration windows for the rate
    test_bad_rows::test_too_few_rows_for_the_rate_are_refused
    test_experiment_pipeline::test_a_rate_that_can_not_be_held_is_refused_before_training
"""

import ast
import functools
import gzip
import io
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

from kdjax import (
    DataError,
    KDDetector,
    load_files,
    read_table,
)
from kdjax.cli import main

HERE = Path(__file__).parent
CHANNELS = ["load", "heat", "dead"]
TINY = [
    *("--config.data.window=10", "--config.data.stride=5", "--config.baselines=()"),
    *("--config.teacher.hidden=(3,)", "--config.student.hidden=(2,)"),
    *("--config.teacher.epochs=1", "--config.student.epochs=1"),
    "--config.threshold.false_alarm_rate=0.2",
]
SWEEP = """from kdjax.config import get_config


def sweep(add):
    add({"seed": 1})
"""
OLD = {"s.csv": "old", "s.csv.events.csv": "older", "e.onnx": "oldest"}


class Saved(NamedTuple):
    """A detector's folder, rows that are in order, their file, and a sweep's."""

    detector: Path
    frame: pd.DataFrame
    path: Path
    members: Path


@pytest.fixture(scope="module", name="saved")
def saved_detector(tmp_path_factory):
    """Two channels of noise and a constant one, judged without a network."""
    folder = tmp_path_factory.mktemp("saved")
    values = np.random.default_rng(0).normal(size=(400, 3)).round(4)
    frame = pd.DataFrame(values, columns=CHANNELS).assign(dead=5.0)
    frame.to_csv(folder / "good.csv", index=False)
    detector = KDDetector(
        detector="mahalanobis", window_size=10, stride=5, false_alarm_rate=0.2
    )
    detector.fit(frame).save(folder / "detector")
    (folder / "members.py").write_text(SWEEP)
    return Saved(folder / "detector", frame, folder / "good.csv", folder / "members.py")


def command(verb, path, saved, out):
    """The command line in which a verb meets the file `path`."""
    known, data = f"--detector={saved.detector}", "--config.data"
    scored = f"--output={out / 's.csv'}"
    return {
        "run": ["run", f"{data}.path={path}", f"--workdir={out / 'w'}", *TINY],
        "test": [
            *("run", f"{data}.path={saved.path}", f"{data}.test_path={path}"),
            *(f"--workdir={out / 'w'}", *TINY),
        ],
        "sweep": [
            *("sweep", f"--config={saved.members}", f"{data}.path={path}"),
            *(f"--workdir={out / 'w'}", *TINY),
        ],
        "score": ["score", path, known, scored],
        "fleet": ["score", path, known, f"--output={out / 'f'}/"],
        "calibrate": ["calibrate", path, known, f"--output={out / 'd'}"],
        "export": ["export", known, f"--data={path}", f"--output={out / 'e.onnx'}"],
        "exclude": ["score", saved.path, known, scored, f"--exclude={path}"],
        "info": ["info", f"{data}.path={path}"],
    }[verb]


def refusal(verb, path, saved, out, capsys):
    """The one line that a verb ends with; what lay in the folder `out` stays as it was."""
    out.mkdir(exist_ok=True)
    for name, text in OLD.items():
        (out / name).write_text(text)
    if verb == "api":
        for read in (read_table, load_files):
            with pytest.raises(DataError) as refused:
                read(path)
        return str(refused.value)
    line = one_line(command(verb, path, saved, out), capsys)
    left = {p.relative_to(out).as_posix(): p for p in out.rglob("*") if p.is_file()}
    assert {name: p.read_text() for name, p in left.items()} == OLD
    assert not (out / "w").exists() and not (out / "d").exists()
    return line


def one_line(arguments, capsys, *, quiet=False):
    """What is said of a faulty command line, without its `kdjax: `.

    With `quiet` nothing else is said either: it is refused before any work.
    """
    assert main(["kdjax", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert not (quiet and out)
    assert err.startswith("kdjax: ") and err.count("\n") == 1 and err.endswith("\n")
    assert len(err) < 2100 and err.rstrip("\n").isprintable()
    return err.removeprefix("kdjax: ").rstrip("\n")


class Case(NamedTuple):
    """A file at fault.

    Attributes:
        name: number of the kind of fault, and a word.
        file: its name.
        content: makes its bytes.
        said: words of the line.
        verbs: that refuse it.
    """

    name: str
    file: str
    content: Callable[[], bytes]
    said: tuple[str, ...]
    verbs: tuple[str, ...]


READING = (
    "run",
    "sweep",
    "test",
    "score",
    "fleet",
    "calibrate",
    "export",
    "info",
    "api",
)
ANY = (*READING, "exclude")  # cannot be read as a table at all
SCORING = ("test", "score", "fleet", "calibrate", "export")
ROW = 250  # from 0, the row at fault
AT = f"row {ROW + 1} (line {ROW + 2}), column 2 ('heat')"


def good():
    values = np.random.default_rng(0).normal(size=(400, 3)).round(4)
    return pd.DataFrame(values, columns=CHANNELS).assign(dead=5.0)


def csv(frame=None, **options):
    return (good() if frame is None else frame).to_csv(index=False, **options).encode()


def with_cell(text):
    frame = good().astype({"heat": object})
    frame.loc[ROW, "heat"] = text
    return csv(frame)


def packed(frame, kind):
    """The bytes of a frame as Parquet, or of its numbers as an array."""
    found = io.BytesIO()
    if kind == "parquet":
        frame.to_parquet(found)
    else:
        np.save(found, frame.to_numpy(), allow_pickle=kind == "objects")
    return found.getvalue()


def with_number(value, kind):
    frame = good()
    frame.loc[ROW, "heat"] = value
    return packed(frame, kind)


def with_times(change):
    times = pd.date_range("2024", periods=400, freq="min").astype(str).to_numpy(object)
    times[ROW] = change(times)
    return csv(good().assign(time=times))


def cut(data):
    return data[: len(data) // 2]


def huge_header():
    text = "{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000, 1000), }"
    return b"\x93NUMPY\x01\x00v\x00" + text.ljust(117).encode() + b"\n" + bytes(80)


MISSING = ("the value is missing", "correct it", "missing=ffill")
INFINITE = ("the value is infinite", "correct it")
BEYOND = ("1e+39 is beyond float32 (3.4e38)", "correct it or change the unit")
OTHERS = ("channels differ from the 3 expected", "Rename, add or remove columns")
WHOLE = ("copy or download the file again",)
NUMBER = ("is not a number", "correct it")
KINDS = ("expected .csv, .tsv, .txt, .csv.gz", ".parquet, .npy", "convert it")
CASES = [
    Case(name, file, content, said, verbs)
    for name, file, content, said, verbs in (
        ("01-csv", "a.csv", lambda: with_cell(""), (AT, *MISSING), "no export"),
        ("01-parquet", "a.parquet", lambda: with_number(np.nan, "parquet"),
         ("row 251, column 2 ('heat')", *MISSING), "no export"),
        ("01-npy", "a.npy", lambda: with_number(np.nan, "npy"),
         ("row 251, column 2 ('channel_2')", *MISSING), "no export"),
        ("02-inf", "a.csv", lambda: with_cell("-inf"), (AT, *INFINITE), READING),
        ("02-1e400", "a.csv", lambda: with_cell("1e400"), (AT, *INFINITE), READING),
        ("02-parquet", "a.parquet", lambda: with_number(np.inf, "parquet"),
         ("row 251, column 2 ('heat')", *INFINITE), READING),
        ("03-csv", "a.csv", lambda: with_cell("1e39"), (AT, *BEYOND), READING),
        ("03-npy", "a.npy", lambda: with_number(1e39, "npy"),
         ("row 251, column 2 ('channel_2')", *BEYOND), READING),
        ("08-fewer", "a.csv", lambda: csv(good()[["load", "heat"]]),
         ("; missing: dead. Rename", *OTHERS), SCORING),
        ("08-more", "a.csv", lambda: csv(good().assign(new=1)),
         ("; not expected: new. Rename", *OTHERS), SCORING),
        ("08-npy", "a.npy", lambda: packed(good()[["load", "heat"]], "npy"),
         ("not expected: channel_1, channel_2", *OTHERS), SCORING),
        ("09-renamed", "a.csv", lambda: csv(good().rename(columns={"heat": "cold"})),
         ("missing: heat; not expected: cold", *OTHERS), SCORING),
        ("10-word", "a.csv", lambda: with_cell("word"), (AT, "'word'", *NUMBER), READING),
        ("10-hex", "a.csv", lambda: with_cell("0x10"), (AT, *NUMBER), READING),
        ("10-comma", "a.csv", lambda: with_cell("1,5"), (AT, "'1,5'", *NUMBER), READING),
        ("10-bool", "a.csv", lambda: with_cell("True"), (AT, *NUMBER), READING),
        ("11-fewer", "a.csv", lambda: csv() + b"1,2\n",
         ("row 401 (line 402) has 2 cells, expected 3", "complete or remove"), ANY),
        ("11-more", "a.csv", lambda: csv() + b"1,2,3,4\n",
         ("row 401 (line 402) has 4 cells, expected 3", "complete or remove"), ANY),
        ("12-empty", "a.csv", bytes, ("is empty", "expected rows of numbers"), ANY),
        ("12-header", "a.csv", lambda: b"load,heat,dead\n",
         ("has no rows", "expected data below the column names"), ANY),
        ("12-parquet", "a.parquet", lambda: packed(good()[:0], "parquet"),
         ("has no rows", "expected data"), ANY),
        ("13-one", "a.csv", lambda: csv(good()[:1]), ("1 row", "ive "), "window"),
        ("14-short", "a.csv", lambda: csv(good()[:9]),
         ("9 rows", "window", "10", "ive "), "window"),
        ("15-nul", "a.csv", lambda: csv() + b"1,\x002,3\n",
         ("line 402 holds a NUL byte", "save the file as UTF-8 text"), ANY),
        ("15-latin", "a.csv", lambda: csv() + "1,ü,3\n".encode("latin-1"),
         ("line 402 holds bytes that are not UTF-8", "save the file as UTF-8"), ANY),
        ("15-utf16", "a.csv", lambda: csv().decode().encode("utf-16"),
         ("holds UTF-16 text", "save it as UTF-8"), ANY),
        ("15-xlsx", "a.csv", lambda: b"PK\x03\x04\x14\x00" + bytes(99),
         ("holds a zip archive or an Excel workbook", "save it as CSV"), ANY),
        ("15-marks", "a.csv", lambda: csv(sep=";", decimal=",") + b"1.5;2;3\n",
         ("(line 402) has a decimal point in '1.5'", "write one of them"), ANY),
        ("15-twice", "a.csv", lambda: b"load,load,dead\n1,2,3\n",
         ("columns 1 and 2 are both named 'load'", "rename or remove one"), ANY),
        ("15-nameless", "a.csv", lambda: b"load, ,dead\n1,2,3\n",
         ("column 2 has no name", "name it, or remove it"), READING),
        ("16-twice", "a.csv", lambda: with_times(lambda t: t[ROW - 1]),
         ("row 251 (line 252), column 4 ('time')", "is a duplicate (first in row 250)",
          "remove one"), READING),
        ("17-back", "a.csv", lambda: with_times(lambda t: t[3]),
         ("row 251 (line 252), column 4 ('time')", "is before", "of row 250",
          "sort the file by time"), READING),
        ("17-zones", "a.csv", lambda: with_times(lambda t: f"{t[ROW]}+01:00"),
         ("row 251 (line 252), column 4 ('time')", "only one of them has an offset",
          "write all times alike"), READING),
        ("20-objects", "a.npy", lambda: packed(good().astype(object), "objects"),
         ("holds Python objects", "save a plain array"), ANY),
        ("20-pickle", "a.npy", lambda: pickle.dumps(good()),
         ("is not a whole .npy file", *WHOLE), ANY),
        ("21-npy", "a.npy", lambda: cut(packed(good(), "npy")),
         ("but its header", "needs", *WHOLE), ANY),
        ("21-empty-npy", "a.npy", bytes, ("is not a whole .npy file", *WHOLE), ANY),
        ("21-parquet", "a.parquet", lambda: cut(packed(good(), "parquet")),
         ("is not a whole Parquet file", "copy or write it again"), ANY),
        ("21-empty-parquet", "a.parquet", bytes,
         ("is not a whole Parquet file", "copy or write it again"), ANY),
        ("21-gzip", "a.csv.gz", lambda: cut(gzip.compress(csv())),
         ("is not a whole gzip file", *WHOLE), ANY),
        ("23-header", "a.npy", huge_header,
         ("float64 of shape (10000000000, 1000)) needs 80000000000128", *WHOLE), ANY),
        ("25-tar", "a.tar", bytes, ("has an unknown ending", *KINDS), ANY),
        ("25-zip", "a.zip", bytes, ("has an unknown ending", *KINDS), ANY),
    )
]  # fmt: skip
GROUPS = {
    # A missing cell is no fault of the rows on which an export is checked.
    "no export": tuple(verb for verb in READING if verb != "export"),
    "window": ("run", "sweep", *SCORING),
}
PAIRS = [
    pytest.param(case, verb, id=f"{case.name}-{verb}")
    for case in CASES
    for verb in GROUPS.get(case.verbs, case.verbs)
]


@pytest.mark.parametrize(("case", "verb"), PAIRS)
def test_a_bad_file_is_refused(case, verb, saved, tmp_path, capsys):
    path = tmp_path / case.file
    path.write_bytes(case.content())
    line = refusal(verb, path, saved, tmp_path / "out", capsys)
    assert str(path) in line
    for words in case.said:
        assert words in line


NO_FILES = {
    "absent.csv": "does not exist: check the path",
    "folder.parquet": "can't be read (it is a folder): give one file",
    "pipe.csv": "can't be read (it is not a regular file): give ",
    "pipe.npy": "can't be read (it is not a regular file): give ",
}


@pytest.mark.parametrize(
    ("name", "verb"),
    [
        (name, verb)
        for name in NO_FILES
        for verb in ANY
        # To these a folder means all files in it.
        if name[0] != "f" or verb not in ("score", "fleet")
    ],
)
def test_what_is_no_file_is_refused(name, verb, saved, tmp_path, capsys):
    path = tmp_path / name
    if name.startswith("pipe"):
        if not hasattr(os, "mkfifo"):
            pytest.skip("needs named pipes")
        os.mkfifo(path)
    elif name.startswith("folder"):
        path.mkdir()
    line = refusal(verb, path, saved, tmp_path / "out", capsys)
    assert f"{path} {NO_FILES[name]}" in line


def test_long_lines_make_no_long_messages(saved, tmp_path, capsys):
    """More columns and digits than Python's reader of CSV takes, and escapes in a name."""
    wide, long = tmp_path / "wide.csv", tmp_path / "long.csv"
    names = [f"channel {i}" for i in range(12_000)]
    wide.write_text(f"{','.join(names)}\n" + ("1," * 11_999 + "1\n") * 2)
    long.write_text("load,heat,dead\n" + f"{'1' * 200_000},2,3\n" * 12)
    line = refusal("score", wide, saved, tmp_path / "out", capsys)
    assert "missing: load, heat, dead" in line and line.endswith("in --ignore.")
    line = refusal("score", long, saved, tmp_path / "out", capsys)
    assert "row 1 (line 2), column 1 ('load')" in line
    long.write_text("load,\x1b[31mheat,dead\n1,2,3\n")
    line = refusal("score", long, saved, tmp_path / "out", capsys)
    assert r"not expected: \x1b[31mheat" in line


@functools.cache
def _functions(module):
    """The text of a module of tests and the names of its functions."""
    text = (HERE / f"{module}.py").read_text("utf-8")
    found = (node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef))
    return text, {node.name for node in found}


def test_the_index_is_complete():
    """Each kind of fault has tests that are there, as this module's docstring says."""
    _, *kinds = re.split(r"^ ?(\d+) ", __doc__, flags=re.MULTILINE)
    assert kinds[::2] == [str(number) for number in range(1, 36)]
    for words in kinds[1::2]:
        named = re.findall(r"(\w+)::(test_\w+)(?:\[(\w+)\])?", words)
        assert named, words
        for module, function, case in named:
            text, functions = _functions(module)
            assert function in functions, (module, function)
            assert f'"{case}-' in text or not case, (module, case)
