"""Work directories: one process, one config, one data set each; a log that can be cut."""

import json
import os
import subprocess
import sys

import pytest

from kdjax.config import RENAMED, get_config, override, resolve
from kdjax.errors import ArtifactError, ConfigError, DataError
from kdjax.experiment.workdir import (
    append_line,
    check_data,
    check_settings,
    cut_lines,
    locked,
    read_json,
    read_lines,
    read_results,
)

SETTINGS = {"seed": 0, "data": {"window": 100, "stride": 10}, "hidden": [64, 64]}


# The lock.


def test_a_second_process_is_refused_with_the_firsts_number(tmp_path):
    script = (
        "import sys, pathlib\n"
        "from kdjax.errors import ArtifactError\n"
        "from kdjax.experiment.workdir import locked\n"
        "try:\n"
        "    with locked(pathlib.Path(sys.argv[1])): print('got it')\n"
        "except ArtifactError as error: print(error)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "run")]
    with locked(tmp_path / "run"):
        said = subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout
    assert f"run is in use by process {os.getpid()}: wait for it, or give an" in said
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == "got it\n"


def test_a_lock_is_given_back_also_after_a_fault(tmp_path):
    workdir = tmp_path / "new" / "run"
    with pytest.raises(ValueError), locked(workdir):
        assert (workdir / ".lock.pid").read_text() == str(os.getpid())
        raise ValueError
    assert not (workdir / ".lock.pid").exists()
    with locked(workdir):
        pass


def test_a_holder_that_left_no_number_is_unknown(tmp_path):
    with locked(tmp_path):
        (tmp_path / ".lock.pid").unlink()
        message = "in use by process unknown"
        with pytest.raises(ArtifactError, match=message), locked(tmp_path):
            pass


def test_a_path_that_can_be_no_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        message = "can't be used as work directory.*give another --workdir"
        with pytest.raises(ArtifactError, match=message), locked(path):
            pass


# Settings and data.


def test_the_first_claim_writes_the_settings(tmp_path):
    check_settings(tmp_path, SETTINGS, write=True)
    text = (tmp_path / "config.json").read_text()
    assert json.loads(text) == SETTINGS
    assert text.endswith("}\n") and text.index('"data"') < text.index('"seed"')


def test_the_same_settings_may_come_again(tmp_path):
    check_settings(tmp_path, SETTINGS, write=True)
    before = (tmp_path / "config.json").stat().st_mtime_ns
    check_settings(tmp_path, json.loads(json.dumps(SETTINGS)), write=True)
    assert (tmp_path / "config.json").stat().st_mtime_ns == before


def test_other_settings_are_refused_with_all_differences(tmp_path):
    check_settings(tmp_path, SETTINGS, write=True)
    other = {
        "seed": 1,
        "data": {"window": 50, "stride": 10},
        "hidden": [64, 64],
        "n": 1,
    }
    message = (
        r"was made with another config \(data.window: 100 -> 50; n: None -> 1; "
        r"seed: 0 -> 1\): give another --workdir, or the original settings"
    )
    with pytest.raises(ConfigError, match=message):
        check_settings(tmp_path, other, write=True)
    assert json.loads((tmp_path / "config.json").read_text()) == SETTINGS


def test_a_folder_of_version_0_1_is_taken_up_under_todays_names(tmp_path):
    config = override(
        get_config(),
        {
            "data.name": "smd",
            "baselines": ("pca", "random"),
            "teacher.components": ("autoencoder", "pca"),
            "student.components": ("autoencoder", "kmeans"),
            "detection.attribution": "conditional",
            "distill.augmented_copies": 1,
            "threshold.rolling_share": 0.2,
        },
    )
    settings = resolve(config)
    old = json.loads(json.dumps(settings))
    for name, new in RENAMED.items():
        *group, leaf = new.split(".")
        fields = old[group[0]] if group else old
        fields[name.split(".")[-1]] = fields.pop(leaf)
    old["distill"] |= {"alpha_end": None, "temperature_end": None}
    text = json.dumps(old)
    (tmp_path / "config.json").write_text(text)
    check_settings(tmp_path, settings, write=True)
    assert (tmp_path / "config.json").read_text() == text
    other = resolve(override(config, {"detection.attribution": "correlation"}))
    message = r"config \(detection.attribution: 'conditional' -> 'correlation'\): give"
    with pytest.raises(ConfigError, match=message):
        check_settings(tmp_path, other, write=True)
    old["distill"]["alpha_end"] = 0.5
    (tmp_path / "config.json").write_text(json.dumps(old))
    with pytest.raises(ConfigError, match=r"\(distill.alpha_end: 0.5 -> None\): give"):
        check_settings(tmp_path, settings, write=True)


def test_a_foreign_folder_is_not_claimed(tmp_path):
    for name in ("b", "a", "c", "d"):
        (tmp_path / name).touch()
    with pytest.raises(
        ArtifactError, match="holds a, b, c but no config.json: it is not"
    ):
        check_settings(tmp_path, SETTINGS, write=True)
    assert not (tmp_path / "config.json").exists()


def test_hidden_files_do_not_make_a_folder_foreign(tmp_path):
    (tmp_path / ".lock").touch()
    check_settings(tmp_path, SETTINGS, write=True)
    assert (tmp_path / "config.json").exists()


def test_data_are_written_first_and_compared_later(tmp_path):
    digests = {"train/a": "1", "test/a": "2"}
    check_data(tmp_path, digests)
    assert json.loads((tmp_path / "data.json").read_text()) == digests
    check_data(tmp_path, digests)


@pytest.mark.parametrize(
    ("digests", "said"),
    [
        ({"train/a": "1", "test/a": "3"}, "test/a"),
        ({"train/a": "1"}, "test/a"),
        ({"train/a": "1", "test/a": "2", "train/b": "4"}, "train/b"),
        ({f"train/{i}": "1" for i in range(9)}, "test/a, train/0, train/1, train/2, "),
    ],
)
def test_other_data_are_refused_by_name(tmp_path, digests, said):
    check_data(tmp_path, {"train/a": "1", "test/a": "2"})
    with pytest.raises(DataError, match=rf"data changed since .* was made: {said}"):
        check_data(tmp_path, digests)


@pytest.mark.parametrize("text", ["", "{", '{"seed": 0', "\xff", "[]", "3", "null"])
def test_a_damaged_file_is_refused_with_what_to_do(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    message = "config.json can't be read .*: remove the work directory and rerun"
    with pytest.raises(ArtifactError, match=message):
        check_settings(tmp_path, SETTINGS, write=True)
    with pytest.raises(ArtifactError, match=message):
        read_json(tmp_path / "config.json")


def test_results_are_there_when_the_run_is_finished(tmp_path):
    assert read_results(tmp_path) is None
    (tmp_path / "results.json").write_text('{"schema": 1}')
    assert read_results(tmp_path) == {"schema": 1}


# The log.


@pytest.fixture
def lines(tmp_path):
    """A log of two phases, three steps each."""
    written = [
        {"phase": phase, "step": step, "loss": 1 / step}
        for phase in ("teacher", "student")
        for step in (1, 2, 3)
    ]
    for line in written:
        append_line(tmp_path, line)
    return written


def test_each_line_is_json(tmp_path, lines):
    text = (tmp_path / "metrics.jsonl").read_text()
    assert [json.loads(line) for line in text.splitlines()] == lines
    assert read_lines(tmp_path) == lines


def test_a_log_that_is_not_there_has_no_lines(tmp_path):
    assert read_lines(tmp_path) == []
    cut_lines(tmp_path, "teacher", 0)
    assert read_lines(tmp_path) == []


@pytest.mark.parametrize("keep", [1, 10, 35])
def test_a_last_line_that_was_cut_off_is_left_out(tmp_path, lines, keep):
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rindex(b"\n") + 1
    path.write_bytes(whole[: last + keep])
    assert read_lines(tmp_path) == lines[:-1]


@pytest.mark.parametrize("step", [0, 2, 3])
def test_cutting_takes_out_later_steps_of_that_phase_only(tmp_path, lines, step):
    cut_lines(tmp_path, "student", step)
    kept = [
        line for line in lines if line["phase"] == "teacher" or line["step"] <= step
    ]
    assert read_lines(tmp_path) == kept and len(kept) == 3 + step


def test_after_cutting_a_broken_line_new_ones_stand_alone(tmp_path, lines):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    cut_lines(tmp_path, "student", 2)
    append_line(tmp_path, {"phase": "student", "step": 3})
    assert read_lines(tmp_path) == [*lines[:-1], {"phase": "student", "step": 3}]
