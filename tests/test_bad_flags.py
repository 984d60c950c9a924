"""Flags and settings that contradict each other, mean nothing or change nothing.

By the index in `test_bad_input.py`: exit code 2, one line, and nothing written.
"""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from test_bad_input import (
    TINY,
    one_line,
    saved_detector,  # noqa: F401 - the fixture `saved`
)

from kdjax.cli import VERBS, main


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["score", ""], "score needs a file to score, got nothing"),
        (["calibrate", ""], "best recorded after training), got nothing"),
        (["score", "IN", "--json"], "score takes no --json (for info): remove it"),
        (["score", "IN", "--workdir=w", "--adaptive=1"], "--workdir (for run, sweep); --a"),
        (["score", "IN", "--config.detection.count=2"], "score takes no --config (for ru"),
        (["export", "--causal"], "export takes no --causal (for score)"),
        (["stream", "--order=a"], "stream takes no --order (for score, plot, calibrate)"),
        (["run", "--detector=d"], "run takes no --detector (for score, plot, calibrate,"),
        (["info", "--output=o"], "info takes no --output (for fleet, score, plot, calibrate, exp"),
        (["score", "IN", "--entity=b"], "has no entity 'b': give one of X, or pooled"),
        (["score", "IN", "--shard=0/2"], "must be a folder to score several"),
        (["score", "IN", "--attribution=frob"], "detection.attribution='frob' is unknown: use one"),
        (["score", "IN", "--missing=frob"], "--missing='frob' is unknown: use one of"),
        (["score", "IN", "--time_column=t"], "no column 't': its columns are load, heat"),
        (["score", "IN", "--time_column=load", "--entity_column=load"], "given twice among time_column"),
        (["export", "--format=frob"], "--format='frob' is unknown: use one of onnx, s"),
        (["export", "--quantize=int4"], "--quantize='int4' is unknown: use one of none, int8 (did you mean 'int8'?)."),
        (["export", "--quantize=int8", "--format=stablehlo"], "is for --format=onnx"),
        (["stream", "--backend=frob"], "backend='frob' is unknown: use one of auto, jax"),
        (["stream", "--on_error=frob"], "on_error='frob' is unknown: use one of skip, s"),
        (["stream", "--adaptive=-1"], "step=-1: expected"),
        (["stream", "--adaptive=nan"], "step=nan: expected"),
        (["stream", "--ignore=load"], "load can't be ignored: the detector needs it"),
        (["run", "--config.teacher.hidden=3", "--config.teacher.hidden=4"],
         "--config.teacher.hidden is given twice: give one"),
        (["run", "--config=nowhere.py", "--config.seed=1", "--config.seed=2"],
         "--config=nowhere.py can't be read: check the path"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)  # fmt: skip
def test_flags_that_contradict_or_change_nothing_are_refused(
    arguments, said, saved, out, capsys
):
    verb, *rest = [argument.replace("IN", str(saved.path)) for argument in arguments]
    if verb in ("score", "calibrate", "export", "stream"):
        rest += [f"--detector={saved.detector}", f"--output={out}/s.csv"]
    line = one_line([verb, *rest], capsys)
    assert said in line and line.count("nowhere.py") < 2
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            "data.windw=3",
            "unknown field data.windw (did you mean --config.data.window?)",
        ),
        ("thershold.method=pot", "(did you mean --config.threshold.method?)"),
        ("seed=1.5", "flag --config.seed=1.5: expected a whole number"),
        ("data.window=0", "data.window=0 must lie in [2, 1000000]"),
        ("data.window=-5", "data.window=-5 must lie in [2, 1000000]"),
        ("data.window=nan", "flag --config.data.window=nan: expected a whole number"),
        ("data.stride=0", "data.stride=0 must lie in [1, 1000000]"),
        ("data.validation=0.95", "data.validation=0.95 must lie in (0, 0.9)"),
        ("data.max_gap=nan", "data.max_gap must be a finite number, got nan"),
        (
            "teacher.hidden=()",
            "teacher.hidden must be a tuple of one or more whole num",
        ),
        (
            "student.hidden=0",
            "student.hidden must be a tuple of one or more whole numb",
        ),
        (
            "student.hidden=3.5",
            "student.hidden must be a tuple of one or more whole nu",
        ),
        ("teacher.epochs=0", "teacher.epochs=0 must lie in [1, 1000000]"),
        ("train.learning_rate=nan", "train.learning_rate must be a finite number"),
        ("train.learning_rate=inf", "train.learning_rate must be a finite number"),
        ("distill.alpha=2", "distill.alpha=2.0 must lie in [0, 1]"),
        ("distill.temperature=0", "distill.temperature=0.0 must lie in (0, inf)"),
        (
            "detection.count=10",
            "detection.count=10 must be below --config.data.window=10",
        ),
        ("threshold.false_alarm_rate=0", "false_alarm_rate=0.0 must lie in (0, 1)"),
        (
            "threshold.method=fixed",
            "threshold.value is the τ of --config.threshold.method='fix",
        ),
        ("baselines=frob", "baselines='frob' must be among random, mahalanobis"),
        ("data.name=smd", "set one of --config.data.path"),
        ("data.root=x", "data.root is for benchmarks only"),
        ("init_from=nowhere", "nowhere holds no detector to start from"),
    ],
)
def test_bad_settings_are_refused(settings, said, saved, out, capsys):
    tiny = {flag.split("=")[0]: flag for flag in TINY}
    tiny[f"--config.{settings.split('=')[0]}"] = f"--config.{settings}"
    data = f"--config.data.path={saved.path}"
    line = one_line(["run", data, f"--workdir={out / 'w'}", *tiny.values()], capsys)
    assert said in line and list(out.iterdir()) == []


@pytest.mark.parametrize("text", ['{"data": 3}', '{"data": []}', "[]", "[" * 10**5])
def test_a_work_directory_whose_settings_are_none_is_refused(text, saved, out, capsys):
    (out / "config.json").write_text(text)
    data = f"--config.data.path={saved.path}"
    line = one_line(["run", data, f"--workdir={out}", *TINY], capsys)
    assert str(out) in line and [p.name for p in out.iterdir()] == ["config.json"]
    assert (out / "config.json").read_text() == text


@pytest.mark.parametrize("body", ["add('seed')", "add(nothing)"])
def test_a_faulty_sweep_of_a_config_file_is_one_line(body, tmp_path, capsys):
    path = tmp_path / "members.py"
    path.write_text(
        f"from kdjax.config import get_config\n\n\ndef sweep(add):\n    {body}\n"
    )
    data = "--config.data.name=smd"
    options = [f"--config={path}", data, f"--workdir={tmp_path / 'w'}"]
    line = one_line(["sweep", *options], capsys)
    assert line.startswith("members: sweep(add) raises ") and "correct it" in line
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("kind", [MemoryError, jax.errors.JaxRuntimeError])
def test_too_little_memory_is_one_line(kind, monkeypatch, capsys):
    def full(arguments, flags):
        raise kind("RESOURCE_EXHAUSTED: Out of memory\nwhile allocating 80 TiB")

    monkeypatch.setattr(VERBS["run"], "main", full)
    assert one_line(["run"], capsys) == (
        "out of memory (RESOURCE_EXHAUSTED: Out of memory while allocating "
        "80 TiB): use fewer rows or channels at once, or smaller networks and batches."
    )


@pytest.mark.parametrize("closed", ["stdin", "stdout"])
def test_a_stream_without_an_end_is_refused(closed, saved, monkeypatch, capsys):
    """Python has None in place of one that whoever started it has closed."""
    known = f"--detector={saved.detector}"
    with monkeypatch.context() as patch:
        patch.setattr(sys, closed, None)
        line = one_line(["stream", known], capsys)
    assert line.startswith("stream needs an open standard input, and an open standard ")


def test_what_flags_alone_tell_is_refused_before_jax_starts(saved, tmp_path):
    known, out = f"--detector={saved.detector}", f"--output={tmp_path / 'o'}"
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes").write_text("mine")
    rows = str(saved.path)
    commands = [
        ["run", f"--config.data.path={rows}", f"--workdir={rows}"],
        ["export", known, out, "--format=onxx"],
        ["export", known, out, "--quantize=int4"],
        ["calibrate", rows, known, f"--output={tmp_path / 'taken'}"],
        ["stream", known, out, "--backend=onnxruntim"],
        ["stream", known, out, "--on_error=stopp"],
    ]
    code = "import sys; from kdjax.cli import main\n"
    code += f"print([main(['kdjax', *c]) for c in {commands}], 'jax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{[2] * len(commands)} False\n"
    said = done.stderr.splitlines()
    names = ["must be a folder", "--format", "--quantize", "taken"]
    names += ["--backend='onnxruntim' is unknown", "--on_error='stopp' is unknown"]
    assert len(said) == len(names)
    assert all(name in line for name, line in zip(names, said, strict=True))
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_terminal_without_greek_letters_is_no_fault():
    done = subprocess.run(
        [sys.executable, "launch.py", "stream", "--help"],
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert r"Step of an adaptive \u03c4" in done.stdout and done.stderr == ""


def test_other_faults_of_devices_are_no_users(monkeypatch, capsys):
    def broken(arguments, flags):
        raise jax.errors.JaxRuntimeError("INTERNAL: no such kernel")

    monkeypatch.setattr(VERBS["run"], "main", broken)
    with pytest.raises(jax.errors.JaxRuntimeError):
        main(["kdjax", "run"])
