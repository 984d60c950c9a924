"""Bad detectors, states and outputs through every verb that meets them.

By the index in `test_bad_input.py`: exit code 2 and one line; a refused command changes
no file, and least of all the one that it would have read.
"""

import io
import json
import os
import re
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from test_bad_input import (
    TINY,
    csv,
    one_line,
    saved_detector,  # noqa: F401 - the fixture `saved`
)

from kdjax import ArtifactError, KDDetector, load_detector
from kdjax.cli import main
from kdjax.io.files import MANIFEST, write_manifest

ROWS = b"load,heat,dead\n" + b"1,2,5\n" * 12
JSON_FILES = ("detector.json", "card.json")


def command(verb, detector, saved, out):
    """The command line in which a verb meets a detector."""
    known, output = f"--detector={detector}", f"--output={out}"
    return {
        "score": ["score", saved.path, known, f"{output}/s.csv"],
        "fleet": ["score", saved.path, known, f"{output}/f/"],
        "calibrate": ["calibrate", saved.path, known, f"{output}/d"],
        "onnx": ["export", known, f"{output}/e.onnx"],
        "stablehlo": ["export", known, f"{output}/e.hlo", "--format=stablehlo"],
        "stream": ["stream", known, f"{output}/o.jsonl"],
        "onnxruntime": ["stream", known, f"{output}/o.jsonl", "--backend=onnxruntime"],
        "run": [
            *("run", f"--config.data.path={saved.path}", f"--init_from={detector}"),
            *(f"--workdir={out}/w", *TINY),
        ],
    }[verb]


MEETING = (
    *(
        "score",
        "fleet",
        "calibrate",
        "onnx",
        "stablehlo",
        "stream",
        "onnxruntime",
        "run",
    ),
)


@pytest.fixture
def lines(monkeypatch):
    """Rows on standard input."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(ROWS)))


@pytest.fixture
def copy(saved, tmp_path):
    """A copy of the detector."""
    return Path(shutil.copytree(saved.detector, tmp_path / "detector"))


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def contents(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


# Detectors.


def seal(folder):
    (folder / MANIFEST).unlink(missing_ok=True)
    write_manifest(folder)


def members(folder):
    with zipfile.ZipFile(folder / "arrays.npz") as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def write_members(folder, content, packing=zipfile.ZIP_STORED):
    with zipfile.ZipFile(folder / "arrays.npz", "w", packing) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    seal(folder)


def array(values, **options):
    found = io.BytesIO()
    np.save(found, values, **options)
    return found.getvalue()


def flip(name):
    def change(folder):
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)

    return change


def cut(name):
    def change(folder):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
        seal(folder)

    return change


def empty(name):
    def change(folder):
        (folder / name).write_bytes(b"")
        seal(folder)

    return change


def objects(folder):
    pickled = array(np.array([{"a": print}], object), allow_pickle=True)
    write_members(folder, members(folder) | {"scaler/scale.npy": pickled})


def terabytes(folder):
    text = "{'descr': '<f4', 'fortran_order': False, 'shape': (20000000000000,), }"
    data = b"\x93NUMPY\x01\x00v\x00" + text.ljust(117).encode() + b"\n" + bytes(8)
    write_members(folder, members(folder) | {"scaler/scale.npy": data})


def bomb(folder):
    zeros = array(np.zeros(10**7, np.float32))
    write_members(
        folder, members(folder) | {"params/w.npy": zeros}, zipfile.ZIP_DEFLATED
    )


def overlapping(folder):
    """The directory names one member a hundred times more, at the same place."""
    write_members(folder, members(folder))
    raw = (folder / "arrays.npz").read_bytes()
    start, end = raw.index(b"PK\x01\x02"), raw.rindex(b"PK\x05\x06")
    entry = raw[start : raw.find(b"PK\x01\x02", start + 4)]
    directory, tail = raw[start:end] + 100 * entry, bytearray(raw[end:])
    count = int.from_bytes(tail[8:10], "little") + 100
    tail[8:10] = tail[10:12] = count.to_bytes(2, "little")
    tail[12:16] = len(directory).to_bytes(4, "little")
    (folder / "arrays.npz").write_bytes(raw[:start] + directory + bytes(tail))
    seal(folder)


def outside(folder):
    with (folder / MANIFEST).open("a") as file:
        file.write(f"{'0' * 64}  4  ../outside\n")
    (folder.parent / "outside").write_text("text")


def as_tar(folder):
    path = folder.with_name("moved")
    folder.rename(path)
    with tarfile.open(folder, "w") as archive:
        archive.add(path, "detector")


DAMAGED = "is damaged: "
FOREIGN = "does not hold a kdjax detector"
BAD = {
    "20-objects": (objects, "scaler/scale.npy claims object"),
    **{f"21-cut-{n}": (cut(n), FOREIGN) for n in ("arrays.npz", *JSON_FILES)},
    **{f"21-empty-{n}": (empty(n), FOREIGN) for n in ("arrays.npz", *JSON_FILES)},
    **{f"22-{n}": (flip(n), DAMAGED + n) for n in ("arrays.npz", *JSON_FILES)},
    "22-manifest": (flip(MANIFEST), ""),
    "23-header": (terabytes, "scaler/scale.npy claims float32 of shape"),
    "24-bomb": (bomb, ".npy is compressed"),
    # Newer Pythons see it first.
    "24-overlap": (overlapping, "overlaps others|Overlapped entries"),
    "25-outside": (outside, ""),
    "25-tar": (as_tar, "is not a folder: give the folder of a detector"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_detector_is_refused(name, saved, copy, out, lines, capsys):
    change, said = BAD[name]
    change(copy)
    for load in (load_detector, KDDetector.load):
        with pytest.raises(ArtifactError) as refused:
            load(copy)
        assert re.search(said, str(refused.value)) and str(copy) in str(refused.value)
    before = contents(copy.parent)
    for verb in MEETING:
        line = one_line(command(verb, copy, saved, out), capsys)
        assert str(copy) in line
        # An origin is looked for in other ways, and a stream may have a file.
        assert re.search(said, line) or (
            name == "25-tar" and verb in ("run", "stream", "onnxruntime")
        )
        assert contents(copy.parent) == before


def test_names_of_members_lead_nowhere(saved, copy, out, capsys):
    """Members are read into memory by name: none becomes a file."""
    names = ("../../evil.npy", f"{out}/evil.npy")
    write_members(copy, members(copy) | dict.fromkeys(names, array(np.ones(2))))
    before = contents(copy.parent)
    assert main(["kdjax", *map(str, command("score", copy, saved, out))]) == 0
    after = contents(copy.parent)
    assert after.keys() - before.keys() == {"out/s.csv", "out/s.csv.events.csv"}
    assert main(["kdjax", *map(str, command("score", saved.detector, saved, out))]) == 0
    assert contents(copy.parent) == after  # and the scores are those without them


@pytest.mark.parametrize(
    ("kind", "verb"),
    [
        (kind, verb)
        for kind in ("absent", "file", "empty", "run")
        for verb in MEETING
        if (kind, verb) != ("run", "run")  # which goes on from another run
    ],
)
def test_what_is_no_detector_is_refused(
    kind, verb, saved, tmp_path, out, lines, capsys
):
    path = tmp_path / "given"
    if kind == "file":
        path.write_bytes(csv())
    elif kind == "empty":
        path.mkdir()
    elif kind == "run":
        shutil.copytree(saved.detector, path / "detectors" / "student")
        (path / "config.json").write_text("{}")
    line = one_line(command(verb, path, saved, out), capsys)
    assert str(path) in line and re.search("[Gg]ive |export the detector again", line)
    assert contents(out) == {}


# Exported files and states.


@pytest.fixture(scope="module")
def exported(saved, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "e.onnx"
    arguments = ["export", f"--detector={saved.detector}", f"--output={path}"]
    assert main(["kdjax", *arguments]) == 0
    return path


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "foreign"])
def test_a_bad_exported_file_is_refused(damage, exported, tmp_path, lines, capsys):
    data = bytearray(exported.read_bytes())
    data[len(data) // 2] ^= 1
    changed = {"flip": data, "cut": data[:99], "empty": b"", "foreign": csv()}[damage]
    path, output = tmp_path / "e.onnx", tmp_path / "o.jsonl"
    path.write_bytes(changed)
    options = [f"--detector={path}", "--backend=onnxruntime", f"--output={output}"]
    line = one_line(["stream", *options], capsys)
    assert str(path) in line and "export the detector again" in line
    assert not output.exists()


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "folder"])
def test_a_bad_state_is_refused(damage, saved, tmp_path, lines, capsys):
    state, output = tmp_path / "state", tmp_path / "o.jsonl"
    options = [f"--detector={saved.detector}", f"--state={state}", f"--output={output}"]
    assert main(["kdjax", "stream", *options]) == 0
    capsys.readouterr()
    answered = output.read_bytes()
    if damage == "folder":
        state.unlink()
        state.mkdir()
    else:
        flip("state")(tmp_path)
        data = state.read_bytes()
        state.write_bytes({"flip": data, "cut": data[:50], "empty": b""}[damage])
    before = contents(tmp_path)
    line = one_line(["stream", *options], capsys)
    assert str(state) in line
    assert ("remove it to start again" in line) == (damage != "folder")
    assert contents(tmp_path) == before and output.read_bytes() == answered


# Outputs.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["score", "IN", "--output=IN"], "would replace IN, which is needed"),
        (["score", "EVENTS", "--output=OUT/s.csv"], "would replace EVENTS, which is"),
        (["score", "IN", "--exclude=SPANS", "--output=SPANS"], "would replace SPANS"),
        (["export", "--data=IN", "--output=IN"], "would replace IN, which is needed"),
        (["calibrate", "IN", "--output=IN"], "exists and holds no kdjax detector"),
        (["stream", "--state=IN", "--output=IN"], "would replace IN, which is needed"),
        (["run", "--workdir=IN"], "IN is a file, but must be a folder"),
        (["score", "IN", "--output=FOLDER.csv"], "is a folder: give a file"),
        (["score", "IN", "--output=OUT/e.csv"], "e.csv.events.csv is a folder: give a"),
        (["export", "--output=FOLDER.csv"], "is a folder: give a file"),
        (["stream", "--output=FOLDER.csv"], "output=FOLDER.csv is a folder: give a fil"),
        (["stream", "--state=FOLDER.csv"], "state=FOLDER.csv is a folder: give a file"),
        (["export", "--output=PIPE"], "is not a regular file: give a file"),
        (["score", "IN", "--output=IN/s.csv"], "IN is a file, but must be a folder"),
        (["score", "IN", "IN", "--output=SPANS.x/"], "SPANS.x is a file: give a folder fo"),
        (["export", "--output=IN/e.onnx"], "IN is a file, but must be a folder"),
        (["calibrate", "IN", "--output=IN/d"], "IN is a file, but must be a folder"),
        (["stream", "--output=IN/o"], "IN is a file, but must be a folder"),
        (["stream", "--state=IN/o"], "IN is a file, but must be a folder"),
        (["run", "--workdir=IN/w"], "IN is a file, but must be a folder"),
        (["score", "IN", "--output=KNOWN/s.csv"], "KNOWN is sealed by its MANIFEST.sha2"),
        (["score", "IN", "--output=KNOWN/f/"], "KNOWN is sealed by its MANIFEST.sha256"),
        (["export", "--output=KNOWN/e.onnx"], "KNOWN is sealed by its MANIFEST.sha256"),
        (["calibrate", "IN", "--output=KNOWN/d"], "KNOWN is sealed by its MANIFEST.sha"),
        (["stream", "--output=KNOWN/o"], "KNOWN is sealed by its MANIFEST.sha256"),
        (["stream", "--state=KNOWN/o"], "KNOWN is sealed by its MANIFEST.sha256"),
        (["run", "--workdir=KNOWN"], "KNOWN is sealed by its MANIFEST.sha256"),
        (["run", "--workdir=KNOWN/w"], "KNOWN is sealed by its MANIFEST.sha256"),
        (["run", "--workdir=OUT"], "holds d.json, e.csv.events.csv but no config.json"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)  # fmt: skip
def test_an_output_that_would_do_damage_is_refused(
    arguments, said, copy, tmp_path, out, lines, capsys
):
    places = {
        "IN": tmp_path / "in.csv",
        "EVENTS": out / "s.csv.events.csv",
        "SPANS": tmp_path / "spans.csv",
        "FOLDER": tmp_path / "folder",
        "PIPE": tmp_path / "pipe",
        "KNOWN": copy,
        "OUT": out,
    }
    for name in ("folder.csv", "out/d.json", "out/e.csv.events.csv"):
        (tmp_path / name).mkdir()
    for name in ("IN", "EVENTS") if "EVENTS" in arguments else ("IN",):
        places[name].write_bytes(csv())
    places["SPANS"].write_text("start,end\n3,4\n")
    (tmp_path / "spans.csv.x").write_text("")
    if hasattr(os, "mkfifo"):
        os.mkfifo(places["PIPE"])

    def placed(text):
        for name, path in places.items():
            text = text.replace(name, str(path))
        return text

    verb, *rest = map(placed, arguments)
    if verb == "run":
        rest += [f"--config.data.path={places['IN']}", *TINY]
    else:
        rest += [f"--detector={copy}"]
    before, names = contents(tmp_path), sorted(tmp_path.rglob("*"))
    assert placed(said) in one_line([verb, *rest], capsys, quiet=True)
    assert contents(tmp_path) == before and sorted(tmp_path.rglob("*")) == names


def test_json_files_are_all_that_are_damaged_here(saved):
    texts = [p.name for p in saved.detector.iterdir() if p.suffix == ".json"]
    assert sorted(texts) == sorted(JSON_FILES)
    assert all(
        isinstance(json.loads((saved.detector / n).read_text()), dict) for n in texts
    )
