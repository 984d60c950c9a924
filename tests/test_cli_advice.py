"""Advice in messages of the program: the same command accepts it."""

import re

import numpy as np
import pandas as pd
import pytest

from kdjax.cli import main
from kdjax.commands.common import in_config_flags
from kdjax.data.datasets import load_dataset
from kdjax.errors import DataError
from kdjax.experiment import fleet, pipeline

OWN = ("--config.baselines=classifier",)
SETTINGS = re.compile(r"--config\.[\w.]+=[^\s,;.]+")


def plant(path, rows, **columns):
    rng = np.random.default_rng(0)
    frame = {
        "time": pd.date_range("2026-02-01", periods=rows, freq="min"),
        "flow": rng.normal(size=rows).round(3),
        "heat": rng.normal(size=rows).round(3),
    }
    pd.DataFrame(frame | columns).to_csv(path, index=False)
    return path


@pytest.fixture
def line(capsys, monkeypatch, tmp_path):
    """The message of `kdjax run` for a file; empty if its rows are accepted."""

    def prepare_only(settings, workdir, *, console):
        pipeline.prepare_groups(load_dataset(settings["data"]), settings)
        raise DataError("accepted")

    monkeypatch.setattr(pipeline, "run", prepare_only)

    def run(path, *flags):
        flags = [f"--config.data.path={path}", f"--workdir={tmp_path / 'w'}", *flags]
        assert main(["kdjax", "run", *map(str, flags)]) == 2
        said = capsys.readouterr().err.removeprefix("kdjax: ").rstrip("\n")
        assert "\n" not in said
        return "" if said == "accepted" else said

    return run


@pytest.mark.parametrize("kinds", [(), OWN], ids=["default", "classifier"])
@pytest.mark.parametrize("rows", [5, 10, 20, 40, 80, 160])
def test_each_advice_for_a_short_file_is_accepted(rows, kinds, line, tmp_path):
    path = plant(tmp_path / "plant.csv", rows)
    said = line(path, *kinds)
    assert f"the longest train series has {rows} rows, --config.data.window=100" in said
    enough = int(re.search(r"give ([\d,]+) rows or more\.$", said, re.IGNORECASE)[1])
    changes = SETTINGS.findall(said.split(". ", 1)[1])
    assert bool(changes) == (rows >= (80 if kinds else 20))
    for change in changes:
        assert line(path, *kinds, change) == ""
    assert line(plant(tmp_path / "more.csv", enough), *kinds) == ""
    assert "no entity has" in line(plant(tmp_path / "less.csv", enough - 1), *kinds)


def test_a_window_too_short_for_the_classifier_is_refused_before_training(
    line, tmp_path
):
    path = plant(tmp_path / "plant.csv", 40)
    assert line(path, *OWN, "--config.data.window=5") == (
        "--config.data.window=5 is too short for the classifier, which needs at least 9 "
        "rows: raise it, or use another detector."
    )
    assert line(path, "--config.data.window=5") == ""


def test_advice_for_missing_cells_is_accepted(line, tmp_path):
    heat = np.full(900, 0.5).astype(object)
    heat[::2], heat[7] = 1.5, "bad"
    path = plant(tmp_path / "plant.csv", 900, heat=heat)
    said = line(path)
    todo = (
        "name it in --config.data.missing_values, with --config.data.missing=ffill or "
    )
    assert said.endswith(
        f"'bad' is not a number; it looks like a marker of a missing value: {todo}mask."
    )
    marker = "--config.data.missing_values=bad"
    for rule in ("ffill", "mask"):
        assert line(path, marker, f"--config.data.missing={rule}") == ""
    said = line(path, marker)
    assert said.endswith(
        "the value is missing; correct it, or repeat the last value by "
        "--config.data.missing=ffill, or leave it NaN by --config.data.missing=mask."
    )
    assert line(path, "--config.data.missing=mask").endswith(
        ": name it in --config.data.missing_values."
    )


@pytest.mark.parametrize(
    "form", ["%d.%m.%Y %H:%M", "%d/%m/%Y %H:%M", "%d-%m-%Y %H:%M:%S"]
)
def test_times_of_an_unknown_order_are_never_guessed(form, line, tmp_path):
    """01.02.2026 is the first of February or the second of January."""
    times = pd.date_range("2026-02-01", periods=900, freq="min")
    path = plant(tmp_path / "plant.csv", 900, time=times.strftime(form))
    said = line(path)
    assert f"row 1 (line 2), column 1 ('time'): {times[0].strftime(form)!r} is " in said
    assert said.endswith(
        "neither a number nor an ISO time such as 2024-01-31 23:59:00; convert the column."
    )
    converted = pd.to_datetime(times.strftime(form), format=form)
    assert line(plant(path, 900, time=converted.strftime("%Y-%m-%d %H:%M:%S"))) == ""


def test_advice_for_short_machines_is_accepted_by_the_same_fleet(
    tmp_path, capsys, monkeypatch
):
    def accepted(*_, **__):
        raise DataError("accepted")

    monkeypatch.setattr(fleet, "train_networks", accepted)
    (tmp_path / "plants").mkdir()
    for name, rows in (("a", 40), ("b", 160), ("c", 5)):
        plant(tmp_path / "plants" / f"{name}.csv", rows)
    command = ["kdjax", "fleet", f"{tmp_path}/plants", f"--output={tmp_path}/fleet"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert (
        "plants: no machine can train the fleet's own networks; the longest is b: "
        in said
    )
    assert (
        "has 160 rows, --config.data.window=100. Set --config.data.window=20, or"
        in said
    )
    assert main([*command, *SETTINGS.findall(said.split(". ", 1)[1])]) == 2
    assert capsys.readouterr().err == "kdjax: accepted\n"


def test_an_error_inside_a_config_file_keeps_its_words(tmp_path, capsys):
    (tmp_path / "plant.py").write_text("def get_config():\n    return int('x')\n")
    assert main(["kdjax", "run", f"--config={tmp_path / 'plant.py'}"]) == 2
    assert "invalid literal for int() with base 10: 'x'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verb", "text", "wanted"),
    [
        ("run", "set data.window=5.", "set --config.data.window=5."),
        ("fleet", "a smaller data.window.", "a smaller --config.data.window."),
        ("run", "--config.data.step=60", "--config.data.step=60"),
        ("run", "data.step_seconds, seed=1", "--config.data.step_seconds, --config.seed=1"),
        ("run", "x/data.path=1, 'data.path', data.path.csv", None),
        ("run", "rows by seed and baselines", None),
        ("run", "config (data.window: 100 -> 50)", None),
        ("calibrate", "threshold.budget, data.window", "--config.threshold.budget, data.window"),
        ("score", "data.window=5", None),
    ],
)  # fmt: skip
def test_config_fields_in_messages_are_named_as_flags(verb, text, wanted):
    assert in_config_flags(verb, text) == (wanted or text)


def test_columns_in_messages_are_named_as_flags_that_are_accepted(line, tmp_path):
    times = pd.date_range("2026-02-01", periods=900, freq="min")
    several = {"time": [*times, *times], "unit": ["a"] * 900 + ["b"] * 900}
    path = plant(tmp_path / "plant.csv", 1800, **several)
    said = line(path, "--config.data.ignore=unit")
    assert said.endswith(
        "set --config.data.order=sort, or name --config.data.entity_column if the file "
        "has several entities."
    )
    assert line(path, "--config.data.entity_column=unit") == ""
    path = plant(tmp_path / "two.csv", 900, date=times)
    assert "or name it as --config.data.time_column and" in line(path)
    flags = "--config.data.time_column=time", "--config.data.ignore=date"
    assert line(path, *flags) == ""
