"""Any bytes give a KdjaxError or a right answer: some examples, and what was found once.

`benchmarks/attacks/fuzz.py` runs the same targets for as long as one likes, also guided
by coverage.
"""

import importlib
import json
import re
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kdjax.cli import parse
from kdjax.config import (
    get_config,
    override,
    resolve,
    to_json,
)
from kdjax.data.lines import read_lines
from kdjax.data.raw import read_npz
from kdjax.data.readers import load_files, read_table
from kdjax.errors import ArtifactError, ConfigError, DataError
from kdjax.experiment.workdir import check_settings, cut_lines, read_results
from kdjax.experiment.workdir import read_lines as read_log
from kdjax.io.files import MANIFEST, verify_manifest, write_manifest
from kdjax.scoring.streams import stream_rows

ROOT = Path(__file__).parent.parent
EXAMPLES = {"readers": 150, "configs": 60, "artifacts": 100, "stream": 150}


@pytest.fixture(scope="module")
def fuzz():
    """The modules of `benchmarks/attacks/` by name."""
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    names = ("targets", "strategies", "seeds", "artifacts", "stream")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks" / "attacks"))
        yield {name: importlib.import_module(f"fuzz_{name}") for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("target", EXAMPLES)
def test_any_bytes_are_refused_or_read_right(target, fuzz, tmp_path):
    words = set()

    @settings(
        max_examples=EXAMPLES[target],
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=[*HealthCheck],
    )
    @given(fuzz["strategies"].STRATEGIES[target]())
    def examine(data):
        words.add(fuzz["targets"].attempt(target, data, tmp_path))

    examine()
    assert words == {"right", "refused"}


@pytest.mark.slow
@pytest.mark.parametrize("target", EXAMPLES)
def test_what_the_fuzzers_start_from_is_read(target, fuzz, tmp_path):
    """Not all of it: some seeds are there to be refused."""
    seeds = fuzz["seeds"].SEEDS[target]()
    found = [fuzz["targets"].attempt(target, seed, tmp_path) for seed in seeds]
    assert found.count("right") > len(seeds) / 4


@given(st.lists(st.sampled_from("0123456789.,;eE+-_ xX\t\"'１"), max_size=12))
@settings(deadline=None, max_examples=150, derandomize=True, database=None)
def test_oracles_agree_on_what_a_cell_is(characters):
    """A cell that is read from a file is read alike from a stream, or is refused there."""
    cell = "".join(characters)
    if "\n" in cell or '"' in cell:
        return
    (line,) = read_lines(["a|b", f"{cell}|1"], ("a", "b"))
    if cell.count("|") or line.error or np.isnan(line.row[0]):
        return
    text = cell.strip()
    plain = text.replace(",", ".") if text.count(",") == 1 else text
    assert float(plain) == line.row[0] and "_" not in plain


# What was found: readers.


def refused(path, content, **options):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        read_table(path, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    "word", ["now", "today", "2024-01-01T00:00+200", "2024-01-01T00+2"]
)
def test_times_that_only_pandas_understands_are_refused(word, tmp_path):
    """The wall clock, +20:00 for +200, and an offset that was not seen as a zone."""
    said = refused(tmp_path / "a.csv", f"time,a\n{word},1\n")
    assert (
        f"row 1 (line 2), column 1 ('time'): {word!r} is neither a number nor" in said
    )


@pytest.mark.parametrize("cell", ['"1.234"', ' "1.234"', "1.234\x0b", '"1.234" '])
def test_thousands_marks_among_decimal_commas_are_never_points(cell, tmp_path):
    said = refused(tmp_path / "a.csv", f"a;b\n1,5;2\n3,5;{cell}\n")
    assert "(line 3) has a decimal point in" in said or "correct its quotes" in said


def test_decimal_commas_in_quotes_are_read(tmp_path):
    (tmp_path / "a.csv").write_text('a;b\n"1,5";2\n')
    assert read_table(tmp_path / "a.csv")[0].values.tolist() == [[1.5, 2]]


@pytest.mark.parametrize("cell", ['"1"2', '""1', '"1" x'])
def test_text_after_a_closing_quote_is_no_part_of_a_number(cell, tmp_path):
    said = refused(tmp_path / "a.csv", f"a,b\n{cell},3\n")
    assert "line 2 can't be read" in said and "correct its quotes" in said


def test_quotes_after_a_blank_hold_separators_as_others_do(tmp_path):
    (tmp_path / "a.csv").write_text('a, "b, c"\n1, "2"\n')
    (series,) = read_table(tmp_path / "a.csv")
    assert series.channels == ("a", "b, c") and series.values.tolist() == [[1, 2]]
    said = refused(tmp_path / "b.csv", 'a,b,c\n1, "2,3"\n', missing="mask")
    assert "has 2 cells, expected 3" in said


def test_durations_are_no_numbers(tmp_path):
    """A missing one was the number −9223372036854775808."""
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"a": [1.0, 2.0], "b": pa.array([1, None], pa.duration("s"))}), path
    )
    for read in (read_table, lambda p: load_files(p, memory_bytes=0)):
        with pytest.raises(DataError, match="column 'b' holds durations, expected num"):
            read(path)


@pytest.mark.parametrize("metadata", [b"{", b"\xff", b'{"columns": 5}', b"[" * 100_000])
def test_metadata_of_another_library_do_no_harm(metadata, tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"a": [1.0, 2.0]}).replace_schema_metadata({b"pandas": metadata})
    pq.write_table(table, path)
    for read in (read_table, lambda p: load_files(p, memory_bytes=0).train):
        try:
            (series,) = read(path)
        except DataError as error:
            assert "is not a whole Parquet file" in str(error)
        else:
            assert series.values.tolist() == [[1], [2]]


HEADER = "{'descr': '%s', 'fortran_order': False, 'shape': %s, }"


def npy(header, body=b"", version=(1, 0)):
    """A `.npy` file with any header."""
    size = struct.pack("<H" if version[0] == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes(version) + size + header.encode("latin1") + body


@pytest.mark.parametrize(
    "content",
    [
        npy(HEADER % ("<f4", "(-2, -3)"), bytes(24)),
        npy(HEADER % ("<f4", f"(0, {10**30})")),
        npy(HEADER % ("<f4", "(True, 3)"), bytes(12)),
        npy(HEADER % ("<f4", "(2, 3)"), bytes(24), (9, 9)),
        npy("{'descr': '<f4"),
        npy("(" * 5000),
        npy("{[]: 1}"),
    ],
)
def test_headers_of_arrays_that_can_not_be(content, tmp_path):
    said = refused(tmp_path / "a.npy", content)
    assert f"{tmp_path / 'a.npy'} is not a whole .npy file" in said


@pytest.mark.parametrize(
    ("content", "flags"), [(npy("{'descr': '<f4"), 0), (b"bytes", 0), (npy(""), 1)]
)
def test_members_of_archives_that_can_not_be(content, flags, tmp_path):
    """A header cut short, no array at all, and a password."""
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train.npy", content)
    data = bytearray(path.read_bytes())
    for start, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(start) + place] |= flags
    path.write_bytes(data)
    with pytest.raises(DataError, match="is not a whole .npz file"):
        read_npz(path, "train")


def test_a_header_of_python_2_is_read_without_a_word(tmp_path):
    body = np.float32([[1, 2, 3], [4, 5, 6]]).tobytes()
    (tmp_path / "a.npy").write_bytes(npy(HEADER % ("<f4", "(2L, 3L)"), body))
    (series,) = read_table(tmp_path / "a.npy")
    assert series.values.tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", "a\tb\n1\t2\n" + "\t\n" * 30_000),
        ("a.csv", "a;b\n1,5;" + " " * 100_000 + "x\n"),
        ("a.csv", "time,a\n2024-01-01" + "T11" * 20_000 + "+,2\n"),
        ("a.csv", ",".join(f"c{i}" for i in range(10_000)) + "\n"),
    ],
)
def test_no_text_is_searched_without_end(name, text, tmp_path):
    """Empty cells, blanks, an endless time and many names took time as their square."""
    (tmp_path / name).write_text(text)
    started = time.process_time()
    try:
        read_table(tmp_path / name, missing="mask")
    except DataError:
        pass
    assert time.process_time() - started < 5


# What was found: streams.


def answers_to(fuzz, *lines):
    """The answers of a stream of the channels a and b."""
    stream = fuzz["stream"].recorder([])
    return [
        json.loads(text) for text in stream_rows(stream, lines) if '"event"' not in text
    ]


def test_a_huge_whole_number_spoils_its_line_only(fuzz):
    lines = [f'{{"a": {sign}1{"0" * 400}, "b": 2}}' for sign in ("", "-")]
    first, second, last = answers_to(fuzz, *lines, '{"a": 1, "b": 2}')
    assert "'a': inf is infinite" in first["error"]
    assert "'a': -inf is infinite" in second["error"]
    assert (second["line"], last["row"]) == (2, 0)


def test_a_large_number_is_no_matter_of_arithmetic(fuzz):
    """Its square overflows, which must not warn."""
    (answer,) = answers_to(fuzz, '{"a": 1e200, "b": 2}')
    assert "1e+200 is infinite or beyond float32" in answer["error"]


def test_half_a_character_as_a_name_spoils_its_line_only(fuzz):
    first, last = answers_to(fuzz, '{"a": 1, "b": 2, "\\ud800": 3}', '{"a": 1, "b": 2}')
    assert "not expected: \ud800" in first["error"] and last["row"] == 0


@pytest.mark.parametrize(
    "lines",
    [
        ("a;b", "1,5;1.234"),
        ("a;b", "1,5;2", "1.234;2"),
        ("a\tb", "1.5\t2", "1,234\t2"),
        ("1|2,5", "1.234|2"),
    ],
)
def test_decimal_points_and_commas_in_one_stream_are_refused(lines):
    found = [*read_lines(lines, ("a", "b"))]
    assert "write one of them throughout" in found[-1].error
    assert not any(line.error for line in found[:-1])


def test_a_faulty_line_does_not_choose_the_decimal_mark():
    lines = ["a;b", "1.5x;2", "1,5;2", "3;4,5"]
    found = [*read_lines(lines, ("a", "b"))]
    assert [line.row for line in found] == [[], [1.5, 2], [3, 4.5]]


# What was found: settings.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.learning_rate": 10**400}, "train.learning_rate must be a finite"),
        ({"data.path": "a\0b"}, "data.path must be a text"),
        ({"data.path": "\ud800"}, "data.path must be a text"),
        ({"teacher.hidden": (10**18,)}, r"teacher.hidden=\[10+\] exceeds 1,000,000"),
        ({"seed": 10**5000}, "config: Exceeds the limit"),
    ],
)
def test_settings_that_nothing_can_be_done_with(changes, message):
    with pytest.raises(ConfigError, match=message):
        resolve(override(get_config(), {"data.path": "a.csv"} | changes))


def test_settings_that_hold_themselves_are_refused():
    config = get_config().unlock()
    config.data.again = config
    with pytest.raises(ConfigError, match="Circular reference"):
        resolve(config)


def test_a_config_file_that_is_no_python_is_refused(tmp_path):
    for number, content in enumerate((b"def f(:", b"\0", b"(" * 1000, b"\xff\xfe\0")):
        path = tmp_path / f"c{number}.py"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="^flags: "):
            parse(["kdjax", "run", f"--config={path}"])


# What was found: artifacts.


@pytest.fixture
def sealed(tmp_path):
    folder = tmp_path / "sealed"
    folder.mkdir()
    for name, size in (("a", 1234), ("b", 1234), ("c", 10)):
        (folder / name).write_bytes(name.encode() * size)
    write_manifest(folder)
    return folder


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-1],
        lambda text: text + b"\n",
        lambda text: text.replace(b"\n", b"\x0b", 1),
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: text.replace(b"  1234  ", b"  1_234  ", 1),
        lambda text: text.replace(b"  1234  ", b"  +1234  ", 1),
        lambda text: text.replace(b"  10  ", b"  010  "),
        lambda text: text.replace(b"1234", "１234".encode(), 1),
        lambda text: b"\n".join([*text.split(b"\n")[1::-1], *text.split(b"\n")[2:]]),
        lambda text: text + text.split(b"\n")[0] + b"\n",
    ],
)
def test_no_byte_of_a_manifest_is_passed_over(sealed, change):
    path = sealed / MANIFEST
    before = path.read_bytes()
    path.write_bytes(change(before))
    assert path.read_bytes() != before
    with pytest.raises(ArtifactError, match="read as a manifest|is damaged"):
        verify_manifest(sealed)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1],
        lambda data: data.replace(b": ", b":\t", 1),
        lambda data: data.replace(b'"faulty": 0', b'"faulty": 1, "faulty": 0'),
        lambda data: b"[" * 100_000,
        lambda data: b'{"sha256": "", "state": 5}',
    ],
)
def test_no_byte_of_a_state_is_passed_over(change, fuzz, tmp_path):
    module = fuzz["artifacts"]
    (tmp_path / "state").write_bytes(change(module.base().state))
    with pytest.raises(ArtifactError, match="is not a state of a stream"):
        module.load_state(tmp_path / "state")


@pytest.mark.parametrize("header", [b"\xff", b"{", b"5", b"[" * 100_000, b"{}"])
def test_a_header_that_a_seal_vouches_for_is_still_looked_at(header, fuzz):
    module = fuzz["artifacts"]
    first = module.stablehlo.SEAL.split(b"\n")[0]
    data = first + b'\n{"sha256":"' + b"0" * 64 + b'"}' + header + b"\n"
    with pytest.raises(ArtifactError, match="no header of kdjax|no plan of kdjax"):
        module.load_stablehlo(module.sealed(data, module.stablehlo.SEAL))


DAMAGED_LINES = (b"\xff", b"5", b"{}", b'{"phase": 1, "step": 1}', b"[" * 100_000)


@pytest.mark.parametrize("damaged", DAMAGED_LINES)
def test_a_damaged_line_of_the_log_is_left_out_and_said(damaged, tmp_path, caplog):
    whole = [{"phase": "teacher", "step": step} for step in (1, 2)]
    lines = [json.dumps(whole[0]).encode(), damaged, json.dumps(whole[1]).encode()]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    assert read_log(tmp_path) == whole
    assert "1 damaged lines left out, line 2 first" in caplog.text
    cut_lines(tmp_path, "teacher", 1)
    assert read_log(tmp_path) == whole[:1]


@pytest.mark.parametrize(
    "text", ['{"data": 5}', '{"data": {"window": {}}}', "[" * 100_000]
)
def test_settings_of_another_shape_in_a_work_directory(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(
        (ArtifactError, ConfigError), match="another config|can't be read"
    ):
        check_settings(tmp_path, json.loads(to_json(get_config())))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("0", "1", 1),
        lambda text: text + " ",
        lambda text: '{"schema": "1"}',
        lambda text: '{"schema": 1, "environment": 5}',
    ],
)
def test_results_that_changed_are_no_results(change, finished, tmp_path):
    for name in ("results.json", ".results.sha256"):
        (tmp_path / name).write_bytes((finished.workdir / name).read_bytes())
    assert read_results(tmp_path)["rows"] == finished.results["rows"]
    path = tmp_path / "results.json"
    path.write_text(change(path.read_text()))
    message = f"{re.escape(str(path))} can't be read .*: remove the work directory"
    with pytest.raises(ArtifactError, match=message):
        read_results(tmp_path)
