"""Many files: shares, whole outputs, what a restart believes, and faults of one file."""

import gzip
import hashlib
import importlib.metadata
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest

from kdjax.detection.storage import save_detector
from kdjax.errors import ConfigError, DataError, KdjaxError
from kdjax.scoring import files as fleet
from kdjax.scoring.files import (
    find_files,
    parse_shard,
    score_file,
    score_fleet,
    shard_of,
)

NAMES = (
    "a.csv",
    "line/b.csv",
    "line/c.parquet",
    "d.npy",
    "line/deep/e.tsv.gz",
    "f.TXT",
)
OUTPUTS = ("a.csv", "line/b.csv", "line/c.parquet", "d.csv", "line/deep/e.csv", "f.csv")


@pytest.fixture
def frame():
    """Makes rows of the detector `small`."""

    def make(seed=0, rows=14):
        values = 2 * np.random.default_rng(seed).normal(size=(rows, 2))
        return pd.DataFrame(values.astype(np.float32), columns=["x", "y"])

    return make


@pytest.fixture
def plants(tmp_path, frame):
    """A folder with a file of each kind."""
    folder = tmp_path / "plants"
    for seed, name in enumerate(NAMES):
        path, rows = folder / name, frame(seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            rows.to_parquet(path)
        elif name.endswith(".npy"):
            np.save(path, rows.to_numpy())
        elif name.endswith(".gz"):
            path.write_bytes(gzip.compress(rows.to_csv(index=False, sep="\t").encode()))
        else:
            rows.to_csv(path, index=False, sep="\t" if "TXT" in name else ",")
    return folder


@pytest.fixture
def score(tmp_path, small):
    """Scores into a folder of this name; gives the folder and the lines said."""
    save_detector(tmp_path / "detector", small)

    def run(*paths, output="scores", **options):
        target = tmp_path / output
        options = {"detector": tmp_path / "detector"} | options
        return target, list(score_fleet(paths, output=target, **options))

    return run


def contents(folder):
    """Bytes by name of all files below a folder but hidden ones."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name[0] != "."
    }


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


# What is written.


def test_each_file_is_scored_as_if_alone(score, plants, tmp_path):
    options = {"causal": True, "contributions": True}
    output, said = score(plants, **options)
    wanted = set()
    for name, written in zip(NAMES, OUTPUTS, strict=True):
        alone = tmp_path / "alone" / written
        detector = tmp_path / "detector"
        lines = score_file(plants / name, detector=detector, output=alone, **options)
        assert lines[0] in said and len(lines) > 1
        for ending in ("", ".events.csv"):
            found = output / f"{written}{ending}"
            assert found.read_bytes() == Path(f"{alone}{ending}").read_bytes()
        wanted |= {written, f"{written}.events.csv", f"{written}.done.json"}
    assert set(contents(output)) == wanted
    assert said[-1] == f"{output}: 6 of 6 files: 6 scored, 0 verified, 0 failed"


def test_files_given_by_themselves_lie_side_by_side(score, plants):
    output, said = score(plants / "line" / "b.csv", plants / "d.npy")
    outputs = [name for name in contents(output) if name.count(".") == 1]
    assert sorted(outputs) == ["b.csv", "d.csv"]
    assert said[0].startswith("b: 14 rows")


def test_a_record_says_what_an_output_was_made_from(score, plants, tmp_path):
    spans = tmp_path / "spans.csv"
    spans.write_text("start,end\n6,8\n")
    output, _ = score(plants, entity="pooled", exclude=str(spans), missing="mask")
    record = json.loads((output / "line" / "b.csv.done.json").read_text())
    assert record == {
        "schema": 1,
        "input": {"name": "line/b.csv", "sha256": digest(plants / "line" / "b.csv")},
        "detector": digest(tmp_path / "detector" / "MANIFEST.sha256"),
        "options": {"entity": "pooled", "missing": "mask", "exclude": digest(spans)},
        "kdjax_version": importlib.metadata.version("kdjax"),
        "outputs": {
            name: digest(output / "line" / name)
            for name in ("b.csv", "b.csv.events.csv")
        },
    }


# Shares.


def test_a_share_follows_from_the_name_for_all_time():
    """As `sha256sum` and long division have it: a change would move files."""
    found = {
        name: [shard_of(name, total) for total in (2, 3, 7)]
        for name in ("a.csv", "line/b.csv", "unit07.csv")
    }
    assert found == {
        "a.csv": [0, 2, 5],
        "line/b.csv": [0, 1, 5],
        "unit07.csv": [0, 1, 0],
    }
    for name, places in found.items():
        number = int(hashlib.sha256(name.encode()).hexdigest(), 16)
        assert places == [number % 2, number % 3, number % 7]


def test_shares_are_disjoint_and_together_all(score, plants, frame):
    for number in range(6):
        frame(number).to_csv(plants / f"more{number}.csv", index=False)
    whole, _ = score(plants, output="whole")
    parts = []
    for place in range(3):
        part, said = score(plants, output=f"part{place}", shard=f"{place}/3")
        score(plants, output="joint", shard=f"{place}/3")
        assert f": shard {place}/3, " in said[-1] and " of 12 files: " in said[-1]
        parts.append(contents(part) if part.exists() else {})
    assert all(parts), "a share without a file shows nothing"
    assert sum(map(len, parts)) == 3 * 12
    assert parts[0] | parts[1] | parts[2] == contents(whole)
    assert contents(whole.with_name("joint")) == contents(whole)


def test_a_share_may_be_empty(score, plants):
    place = 1 - shard_of("a.csv", 2)
    output, said = score(plants / "a.csv", shard=f"{place}/2")
    assert not output.exists()
    assert said == [
        f"{output}: shard {place}/2, 0 of 1 file: 0 scored, 0 verified, 0 failed"
    ]


def test_shards_are_read():
    assert parse_shard("") == (0, 1) and parse_shard("11/12") == (11, 12)


@pytest.mark.parametrize(
    "text",
    ["2/2", "3/2", "a/b", "0/0", "-1/3", "1", "1/", "/2", "1/2/3", " 1/2", "²/3"],
)
def test_faulty_shards_are_refused(score, plants, text):
    with pytest.raises(ConfigError, match="expected i/n with i from 0 to n - 1"):
        score(plants, shard=text)


# What a restart believes.


def test_what_is_done_is_verified_and_left_alone(score, plants):
    output, _ = score(plants)
    before = {path: path.stat() for path in output.rglob("*")}
    _, said = score(plants)
    assert said == [
        *(f"{name}: verified" for name in sorted(NAMES)),
        f"{output}: 6 of 6 files: 0 scored, 6 verified, 0 failed",
    ]
    for path, old in before.items():
        now = path.stat()
        assert (now.st_ino, now.st_mtime_ns) == (old.st_ino, old.st_mtime_ns)


def spoil(path):
    """Changes one byte."""
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "harm",
    [
        lambda output: spoil(output / "a.csv"),
        lambda output: (output / "a.csv").unlink(),
        lambda output: spoil(output / "a.csv.events.csv"),
        lambda output: (output / "a.csv.events.csv").unlink(),
        lambda output: (output / "a.csv.done.json").unlink(),
        lambda output: (output / "a.csv.done.json").write_text(""),
        lambda output: (output / "a.csv.done.json").write_text("[3]"),
        lambda output: (output / "a.csv.done.json").write_text("{}"),
        lambda output: (output / "a.csv.done.json").write_bytes(b"\xff"),
    ],
)
def test_what_is_damaged_is_scored_again(score, plants, harm):
    output, _ = score(plants)
    wanted = contents(output)
    harm(output)
    assert contents(output) != wanted
    _, said = score(plants)
    assert said[-1].endswith(": 1 scored, 5 verified, 0 failed")
    assert contents(output) == wanted


def test_another_input_is_scored_again(score, plants, frame):
    score(plants)
    frame(99).to_csv(plants / "a.csv", index=False)
    assert score(plants)[1][-1].endswith(": 1 scored, 5 verified, 0 failed")
    # The same bytes under an ending by which they read otherwise.
    (plants / "a.csv").rename(plants / "a.txt")
    assert score(plants)[1][-1].endswith(": 1 scored, 5 verified, 0 failed")
    assert score(plants)[1][-1].endswith(": 0 scored, 6 verified, 0 failed")


def test_other_settings_score_all_again(score, plants, small, tmp_path, monkeypatch):
    spans = tmp_path / "spans.csv"
    spans.write_text("start,end\n6,8\n")
    changes = [
        {"causal": True},
        {"contributions": True},
        {"entity": "a"},
        {"entity": "pooled"},
        {"attribution": "conditional"},
        {"missing": "mask"},
        {"exclude": str(spans)},
        {},
    ]
    for options in changes:
        assert ": 6 scored, 0 verified" in score(plants, **options)[1][-1]
        assert ": 0 scored, 6 verified" in score(plants, **options)[1][-1]
    assert ": 6 scored" in score(plants, exclude=str(spans))[1][-1]
    spans.write_text("start,end\n6,7\n")
    assert ": 6 scored" in score(plants, exclude=str(spans))[1][-1]
    moved = spans.rename(tmp_path / "moved.csv")
    assert ": 0 scored, 6 verified" in score(plants, exclude=str(moved))[1][-1]
    # Defaults spelt out are defaults.
    assert ": 6 scored" in score(plants)[1][-1]
    plain = {"entity": None, "causal": False, "missing": "", "attribution": ""}
    assert ": 0 scored, 6 verified" in score(plants, **plain)[1][-1]
    save_detector(tmp_path / "detector", small._replace(card={"title": "another"}))
    assert ": 6 scored" in score(plants)[1][-1]
    monkeypatch.setattr("kdjax.scoring.files.kdjax_version", lambda: "99")
    assert ": 6 scored" in score(plants)[1][-1]


def test_a_file_that_changes_meanwhile_has_no_record(score, plants, frame, monkeypatch):
    real = fleet._score_rows

    def grow(path, **options):
        found = yield from real(path, **options)
        if path.name == "a.csv":
            frame(5).to_csv(path, index=False)
        return found

    monkeypatch.setattr(fleet, "_score_rows", grow)
    with pytest.raises(DataError, match="1 of 6 files failed.*a.csv changed while it"):
        score(plants)
    output = plants.with_name("scores")
    assert not (output / "a.csv.done.json").exists()
    monkeypatch.undo()
    assert score(plants)[1][-1].endswith(": 1 scored, 5 verified, 0 failed")


# Kills this process at the rename of a number, before or after it.
KILLED = """
import os, signal, sys
from kdjax.scoring.files import score_fleet
plants, detector, output, number, when = sys.argv[1:]
rename, count = os.replace, 0
def replace(source, target):
    global count
    count += 1
    if count == int(number) and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)
    if count == int(number):
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace
score_fleet([plants], detector=detector, output=output)
"""
# Of three a file: scores, events, record.
MOMENTS = ((4, "after"), (9, "before"))


@pytest.mark.slow
def test_a_kill_leaves_whole_files_and_a_restart_completes_them(
    score, plants, tmp_path
):
    wanted = contents(score(plants, output="undisturbed")[0])
    killed = []
    for number, when in MOMENTS:
        output = tmp_path / f"{number}{when}"
        arguments = [plants, tmp_path / "detector", output, str(number), when]
        killed.append(subprocess.Popen([sys.executable, "-c", KILLED, *arguments]))
    assert [process.wait(timeout=120) for process in killed] == [-signal.SIGKILL] * 2
    for (number, when), done in zip(MOMENTS, (1, 2), strict=True):
        output = tmp_path / f"{number}{when}"
        left = contents(output)
        assert len(left) == number - (when == "before")
        assert left.items() <= wanted.items()
        _, said = score(plants, output=output.name)
        assert said[-1].endswith(f": {6 - done} scored, {done} verified, 0 failed")
        assert contents(output) == wanted


# Faults.


def test_a_faulty_file_does_not_stop_the_others(score, plants, tmp_path):
    lines = []
    (plants / "a.csv").write_text("x,y\n1,2\n3,word\n")
    (plants / "line" / "deep" / "short.csv").write_text("x,y\n1,2\n3,4\n")
    target = tmp_path / "scores"
    with pytest.raises(DataError) as error:
        score_fleet(
            [plants],
            detector=tmp_path / "detector",
            output=target,
            log=lines.append,
        )
    assert str(error.value).startswith("2 of 7 files failed; the first is a.csv: ")
    failed = [line for line in lines if line.startswith("failed: ")]
    assert "column 2 ('y')" in failed[0] and failed[0].startswith("failed: a.csv: ")
    assert failed[1].startswith("failed: line/deep/short.csv: ")
    assert lines[-1] == f"{target}: 7 of 7 files: 5 scored, 0 verified, 2 failed"
    tables = {name for name in contents(target) if name.count(".") == 1}
    assert tables == set(OUTPUTS) - {"a.csv"}
    (plants / "a.csv").write_text("x,y\n" + "1,2\n" * 6)
    (plants / "line" / "deep" / "short.csv").unlink()
    assert score(plants)[1][-1].endswith(": 1 scored, 5 verified, 0 failed")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"entity": "b"}, "has no entity 'b'"),
        ({"attribution": "guess"}, "attribution='guess' is unknown"),
        ({"missing": "guess"}, "data.missing='guess' is unknown"),
    ],
)
def test_faulty_settings_are_no_files_fault(score, plants, options, said):
    with pytest.raises(KdjaxError, match=f"^[^:]*{said}"):
        score(plants, **options)
    assert not plants.with_name("scores").exists()


def test_a_missing_file_of_spans_is_refused(score, plants, tmp_path):
    with pytest.raises(DataError, match="spans.csv does not exist"):
        score(plants, exclude=str(tmp_path / "spans.csv"))
    assert not plants.with_name("scores").exists()


# Which files.


def test_what_is_passed_over_is_named(score, plants, frame, tmp_path):
    (plants / "notes.json").write_text("{}")
    (plants / "line" / ".hidden.csv").write_text("x,y\n")
    (plants / ".git").mkdir()
    frame().to_csv(plants / ".git" / "x.csv")
    spans = plants / "spans.csv"
    spans.write_text("start,end\n6,8\n")
    (tmp_path / "elsewhere").mkdir()
    frame().to_csv(tmp_path / "elsewhere" / "x.csv")
    (plants / "link").symlink_to(tmp_path / "elsewhere")
    (plants / "broken.csv").symlink_to(tmp_path / "nowhere.csv")
    _, said = score(plants, exclude=str(spans))
    named = ".git, broken.csv, link, notes.json, spans.csv, line/.hidden.csv"
    assert said[0].endswith(f"with another ending): {named}")
    assert ": 6 of 6 files: " in said[-1]
    for number in range(30):
        (plants / f"{number:02}.json").write_text("{}")
    _, said = score(plants, exclude=str(spans))
    assert said[0].endswith(", 17.json, 18.json, and 16 more")


def test_items_are_in_the_order_of_their_names(plants, tmp_path):
    items, _ = find_files([plants], output=tmp_path / "o")
    assert [item.name for item in items] == sorted(NAMES)
    outputs = dict(zip(NAMES, OUTPUTS, strict=True))
    for item in items:
        assert item.path == plants / item.name
        assert item.output == tmp_path / "o" / outputs[item.name]


@pytest.mark.parametrize(
    ("names", "both"),
    [
        (("x.csv", "x.csv.gz"), "x.csv"),
        (("x.npy", "x.tsv"), "x.csv"),
        (("x.csv", "x.csv.events.csv"), "x.csv.events.csv"),
    ],
)
def test_two_files_with_one_output_are_refused(score, tmp_path, names, both):
    (tmp_path / "in").mkdir()
    for name in names:
        (tmp_path / "in" / name).write_text("x,y\n")
    with pytest.raises(DataError) as error:
        score(tmp_path / "in", shard="0/100")
    first, second = (tmp_path / "in" / name for name in names)
    target = tmp_path / "scores" / both
    assert str(error.value).startswith(
        f"{first} and {second} would both write {target}"
    )
    assert not (tmp_path / "scores").exists()


def test_the_same_name_in_two_folders_is_refused(score, plants, frame):
    frame().to_csv(plants / "line" / "a.csv")
    with pytest.raises(DataError, match="would both write"):
        score(plants / "a.csv", plants / "line" / "a.csv")
    with pytest.raises(DataError, match="would both write"):
        score(plants, plants / "line")


@pytest.mark.parametrize("output", ["plants", "plants/scores", "plants/line/../o"])
def test_outputs_among_inputs_are_refused(score, plants, output):
    before = contents(plants)
    with pytest.raises(
        ConfigError, match="is inside the input .*give a folder outside of it"
    ):
        score(plants, output=output)
    assert contents(plants) == before


def test_a_link_to_the_inputs_is_seen_through(score, plants, tmp_path):
    (tmp_path / "link").symlink_to(plants)
    with pytest.raises(ConfigError, match="give a folder outside of it"):
        score(plants, output="link/scores")


def test_inputs_are_never_replaced(score, plants):
    before = contents(plants)
    with pytest.raises(ConfigError, match="a.csv would replace the input .*a.csv"):
        score(plants / "a.csv", plants / "d.npy", output="plants")
    assert contents(plants) == before


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing.csv", "nothing.csv does not exist"),
        ("notes.json", "notes.json has an unknown ending: expected .csv, "),
    ],
)
def test_files_given_must_be_there_and_readable(score, plants, name, said):
    (plants / "notes.json").write_text("{}")
    with pytest.raises(DataError, match=said):
        score(plants / "a.csv", plants / name)
    assert not plants.with_name("scores").exists()


def test_folders_without_a_file_are_refused(score, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no file to score"):
        score(tmp_path / "empty")


def test_a_file_is_no_folder_for_outputs(score, plants, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ConfigError, match="taken is a file: give a folder"):
        score(plants, output="taken")


def test_a_name_that_is_no_text_is_refused(score, plants):
    (plants / os.fsdecode(b"\xff.json")).write_text("{}")
    assert "\\udcff.json" in score(plants)[1][0]
    (plants / os.fsdecode(b"\xff.csv")).write_text("x,y\n")
    with pytest.raises(DataError, match=r"\\udcff.csv is not UTF-8 text"):
        score(plants)


def test_a_folder_that_cannot_be_read_is_refused(plants, tmp_path, monkeypatch):
    real = os.scandir

    def scandir(path):
        if Path(path).name == "line":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match="line can't be read"):
        find_files([plants], output=tmp_path / "o")


# One detector for all files.


def test_the_detector_is_loaded_once(score, plants, monkeypatch):
    calls = []
    real = fleet.load_scorer
    monkeypatch.setattr(
        fleet, "load_scorer", lambda *a, **k: calls.append(a) or real(*a, **k)
    )
    score(plants)
    assert len(calls) == 1


def test_functions_are_compiled_once(score, plants, caplog):
    def compiled():
        found = [r for r in caplog.records if "Compiling" in r.getMessage()]
        caplog.clear()
        return len(found)

    jax.clear_caches()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        score(plants / "a.csv", output="one")
        assert compiled() > 0
        score(plants, output="more")
        assert compiled() == 0
