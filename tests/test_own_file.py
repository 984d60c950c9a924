"""A user's own file from the first word to the last: read, trained on, scored, told."""

import contextlib
import io
import json
import math
import re

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

import kdjax
from kdjax.cli import main
from kdjax.config import get_config, override, resolve
from kdjax.data.datasets import load_dataset
from kdjax.data.series import Series
from kdjax.detection.alarming import AlarmRule, events, row_alarms
from kdjax.detection.storage import load_detector
from kdjax.detection.tables import score_table
from kdjax.errors import ConfigError
from kdjax.evaluation.evaluate import evaluate_models
from kdjax.evaluation.tables import shown_model
from kdjax.experiment.assemble import calibration_rules, make_detector
from kdjax.experiment.pipeline import prepare_dataset, prepare_groups
from kdjax.models.residual import ResidualModel

CHANNELS = ("flow", "heat", "copy", "dead")
ROWS, HOLE = 600, 350  # rows, and the one before which time leaps
TINY = {
    "data.window": 10,
    "data.stride": 5,
    "teacher.hidden": (4,),
    "teacher.epochs": 1,
    "student.hidden": (2,),
    "student.epochs": 1,
    "threshold.method": "conformal",
    "threshold.false_alarm_rate": 0.1,
    "baselines": ("difference",),
}


def say(*arguments):
    """Exit code, stdout and stderr of a command line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["kdjax", *map(str, arguments)])
    return code, out.getvalue(), err.getvalue()


def flags(changes):
    return [
        f"--config.{name}={','.join(map(str, v)) if isinstance(v, tuple) else v}"
        for name, v in changes.items()
    ]


def recording(seed, rows):
    """Two waves with noise, a copy of the first in other units, and a constant."""
    rng = np.random.default_rng(seed)
    flow = np.sin(np.arange(rows) / 5) + 0.1 * rng.normal(size=rows)
    heat = 20 + np.cos(np.arange(rows) / 11) + 0.1 * rng.normal(size=rows)
    values = np.stack([flow, heat, 2 * flow + 1, np.full(rows, 5.0)], axis=1)
    frame = pd.DataFrame(values.round(5), columns=list(CHANNELS))
    frame.insert(0, "time", pd.date_range("2024-03-01", periods=rows, freq="min"))
    return frame


def write_continental(frame, path):
    """`;` between cells, a decimal comma, a mark of the byte order at the start."""
    frame.to_csv(path, sep=";", decimal=",", index=False, encoding="utf-8-sig")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("own")


@pytest.fixture(scope="module")
def plant(folder):
    """The training file: 6 missing cells, the first in line 13, and a leap in time."""
    frame = recording(0, ROWS)
    frame.loc[HOLE:, "time"] += pd.Timedelta("3h")
    frame.loc[[11, 60, 61, 200, 420], "heat"] = np.nan
    frame.loc[300, "dead"] = np.nan
    return write_continental(frame, folder / "plant.csv")


@pytest.fixture(scope="module")
def refusal(folder, plant):
    """What `run` says to the file without data.missing, and the folder it leaves."""
    workdir = folder / "run"
    said = say("run", *flags(TINY | {"data.path": plant}), f"--workdir={workdir}")
    return said, sorted(p.name for p in workdir.glob("*"))


@pytest.fixture(scope="module")
def ran(folder, plant, refusal):
    """The run: its folder and what it said."""
    workdir = folder / "run"
    changes = TINY | {"data.path": plant, "data.missing": "mask"}
    code, out, err = say("run", *flags(changes), f"--workdir={workdir}")
    assert (code, err) == (0, "")
    return workdir, out


@pytest.fixture(scope="module")
def results(ran):
    return json.loads((ran[0] / "results.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def student(ran):
    return ran[0] / "detectors" / "student"


def test_missing_cells_are_refused_by_row_and_column_and_bind_no_folder(refusal, ran):
    (code, out, err), left = refusal
    assert (code, out) == (2, "") and err.count("\n") == 1
    where = "plant.csv: row 12 (line 13), column 3 ('heat')"
    assert f"{where}: the value is missing (6 such cells in all)" in err
    assert "data.missing=mask" in err
    assert left == []
    kept = json.loads((ran[0] / "config.json").read_text("utf-8"))
    assert kept["data"]["missing"] == "mask"


def test_results_tell_what_the_channels_are(results, ran):
    notes = results["notes"]
    assert f"plant: 6 of {4 * ROWS:,} values missing" in notes
    assert "plant: constant in the training rows: dead" in notes
    assert "plant: copies of another channel: copy (of flow)" in notes
    shown = " ".join(ran[1].split())
    assert "Note: plant: constant in the training rows: dead" in shown
    assert "No labels, so no number here" in shown and "False alarms" in shown
    detector = f"{ran[0]}/detectors/{shown_model(results)}"
    assert f"Next: kdjax score FILE --detector={detector} --output=scores.csv" in shown
    report = (ran[0] / "report.md").read_text("utf-8")
    assert " 0 test rows · windows of 10 rows (10 min)\n" in report
    # No test rows, so no alarms; what a detector costs is known.
    assert "| Model | Parameters | bytes | ms |\n" in report
    line = next(line for line in report.splitlines() if line.startswith("| student |"))
    assert line.split(" | ")[2] == f"{results['costs']['student']['bytes']:,}"


def test_results_hold_rates_and_the_worst_training_windows(results):
    used = {r["model"]: r for r in results["rates"] if r["used"]}
    assert set(used) == {"teacher", "student", "student_alone", "difference"}
    own = [r["method"] for r in results["rates"] if r["model"] == "student"]
    assert own == ["conformal", "quantile", "pot"]
    for rate in results["rates"]:
        assert rate["wanted"] == 0.1 and rate["clean_test"] is None
        assert 0 <= rate["left_out"]["rate"] <= 1
        assert rate["left_out"]["separate_windows"] > 0
    worst = results["worst_training_windows"]
    assert len(worst) == 5 and {w["entity"] for w in worst} == {"plant"}
    scores = [w["score"] for w in worst]
    assert scores == sorted(scores, reverse=True)


def test_no_window_crosses_the_leap(results, student):
    card = load_detector(student).card
    assert sum(card["splits"]["plant"].values()) == ROWS
    leap = pd.Timestamp("2024-03-01") + HOLE * pd.Timedelta("1min")
    for window in results["worst_training_windows"]:
        start, end = (pd.Timestamp(window[side]) for side in ("start", "end"))
        assert end - start == pd.Timedelta("9min")
        assert end < leap or start >= leap


def test_the_report_shows_what_holds_without_labels(ran):
    text = (ran[0] / "report.html").read_text("utf-8")
    for words in (
        "<h2>False alarms</h2>",
        "<h2>Most abnormal training windows</h2>",
        "Training window scores",  # the timeline
        "share of windows above each value",  # the distribution
        "constant in the training rows: dead",
    ):
        assert words in text
    outside = re.sub("<script>.*?</script>", "", text, flags=re.DOTALL)
    assert "http:" not in outside and "https:" not in outside


# score.


@pytest.fixture(scope="module")
def scored(folder, student):
    """A later file in which heat is 3 higher for 25 rows: table, events, what is said."""
    frame = recording(1, 200)
    frame["time"] += pd.Timedelta("7D")
    frame.loc[100:124, "heat"] += 3
    frame.loc[[30, 31], "flow"] = np.nan
    path = write_continental(frame, folder / "plant_later.csv")
    output = folder / "scores.csv"
    code, out, err = say(
        "score", path, f"--detector={student}", f"--output={output}", "--contributions"
    )
    assert (code, err) == (0, "")
    table = pd.read_csv(output, parse_dates=["time"])
    events = pd.read_csv(folder / "scores.csv.events.csv", parse_dates=["start", "end"])
    return frame, table, events, out


def test_a_level_shift_alarms_and_its_channel_is_named(scored):
    frame, table, events, out = scored
    assert len(table) == 200 and (table["time"] == frame["time"]).all()
    assert list(events.columns) == [
        "entity", "start", "end", "severity", "peak", "channels", "id", "kind",
    ]  # fmt: skip
    assert (table.loc[table["alarm"] == 1, "state"] == "anomaly").all()
    # Each window that ends in the shift has rows of it.
    assert table.loc[105:124, "alarm"].all()
    first, last = frame["time"][105], frame["time"][124]
    hit = events[(events["start"] <= first) & (events["end"] >= last)]
    assert len(hit) == 1
    assert hit["channels"].item().split(";")[0] == "heat"
    assert hit["severity"].item() == events["severity"].max() > 1
    assert (
        f"{int(table['alarm'].sum())} of 200 rows in alarm, {len(events)} event" in out
    )


def test_events_a_day_are_told(scored):
    """200 rows of a minute; the file of events gives the same."""
    frame, _, events, out = scored
    span = frame["time"].iloc[[0, -1]]
    found = kdjax.alarm_measures(events, span=span.tolist())
    # Score events of all channels, and those of other kinds.
    assert found.per_day == pytest.approx(len(events) * 1440 / 199) and len(events)
    assert f"{found.per_day:.2g} events a day, at most {len(events)} in 24 hours" in out
    assert "in 10 minutes; 0.0% of the time in flood, 0 sources chattering" in out


def test_contributions_are_columns_and_add_up(scored):
    _, table, _, _ = scored
    columns = [f"contribution:{name}" for name in CHANNELS]
    assert list(table.columns[-4:]) == columns
    known = table["score"].notna()
    np.testing.assert_allclose(
        table.loc[known, columns].sum(axis=1), table.loc[known, "score"], rtol=1e-3
    )
    assert table.loc[105:120, columns].mean().idxmax() == "contribution:heat"


def test_a_score_table_is_that_of_the_library(scored, student):
    frame, table, _, _ = scored
    detector = load_detector(student)
    series = Series(
        "plant_later",
        frame[list(CHANNELS)].to_numpy(np.float32),
        CHANNELS,
        frame["time"].to_numpy(),
    )
    wanted = score_table(detector, series, entity="pooled", contributions=True)
    for name in ("score", "window_score", "alarm", "contribution:heat"):
        np.testing.assert_allclose(table[name], wanted[name], rtol=1e-6)


def test_values_that_training_never_had_are_warned_of(scored, folder, student):
    frame, *_, said = scored
    assert ": warning: " in said and "values outside the training range: heat " in said
    assert "2 missing cells" in scored[3]
    frame = recording(2, 120)
    frame.loc[50:59, "dead"] = 5.5
    path = write_continental(frame, folder / "woken.csv")
    output = folder / "woken.parquet"
    _, out, _ = say("score", path, f"--detector={student}", f"--output={output}")
    assert "dead 10 (constant in training)" in out and "warning" in out
    assert (folder / "woken.parquet.events.csv").exists()
    assert len(pd.read_parquet(output)) == 120


def test_score_may_read_gaps_otherwise_than_training_did(folder, scored, student):
    code, out, err = say(
        "score", folder / "plant_later.csv", f"--detector={student}",
        f"--output={folder / 'other.csv'}", "--missing=error",
    )  # fmt: skip
    assert (code, out) == (2, "")
    assert "row 31 (line 32), column 2 ('flow'): the value is missing" in err
    code, _, err = say(
        "score", folder / "plant_later.csv", f"--detector={student}",
        f"--output={folder / 'other.csv'}", "--missing=guess",
    )  # fmt: skip
    assert code == 2 and err.count("\n") == 1
    assert "'guess' is unknown: use one of error, ffill, mask" in err


# A Parquet file of two machines, with most of what can be set.


@pytest.fixture(scope="module")
def fleet(folder):
    """A run on 800 rows of each of two machines, an hour of one left out."""
    parts = [recording(seed, 800).assign(unit=f"m{seed}") for seed in (3, 4)]
    path = folder / "fleet.parquet"
    pd.concat(parts).drop(columns=["dead", "copy"]).to_parquet(path, index=False)
    spans = folder / "spans.csv"
    spans.write_text(
        "start,end,entity,reason\n2024-03-01 02:00,2024-03-01 02:59,m3,service\n"
    )
    changes = TINY | {
        "data.path": path,
        "data.entity_column": "unit",
        "data.exclude": spans,
        "data.dense_below": 10_000,
        "teacher.epochs": 5,
        "student.epochs": 11,
        "detection.trim": 0.1,
        "detection.attribution": "conditional",
        "threshold.method": "budget",
        "threshold.budget": "3/hour",
        "threshold.min_duration": 3,
        "threshold.cooldown": 2,
    }
    workdir = folder / "fleet"
    code, _, err = say("run", *flags(changes), f"--workdir={workdir}")
    assert (code, err) == (0, "")
    return workdir


def test_excluded_rows_serve_for_nothing(fleet):
    detector = load_detector(fleet / "detectors" / "student")
    assert detector.entities == ("m3", "m4")
    used = [sum(detector.card["splits"][name].values()) for name in ("m3", "m4")]
    assert used == [740, 800]


def test_few_rows_are_trained_on_at_stride_one_for_as_many_steps(fleet):
    lines = [
        json.loads(text)
        for text in (fleet / "metrics.jsonl").read_text("utf-8").splitlines()
    ]
    settings = json.loads((fleet / "config.json").read_text("utf-8"))
    prepared = prepare_dataset(load_dataset(settings["data"]), settings)
    windows = sum(
        int(np.maximum(np.diff(entity.split.fit) - 9, 0).sum())
        for entity in prepared.entities
    )
    # 5 epochs at stride 5 are 1 at stride 1; 11 are 2.2, so 3.
    for phase, epochs in (("teacher", 1), ("student", 3), ("student_alone", 3)):
        last = max(line["step"] for line in lines if line["phase"] == phase)
        assert last == epochs * math.ceil(windows / 32)


def test_a_budget_is_events_a_day_as_a_stream_has_them(fleet):
    """Of min_duration 3 and cooldown 2, those nearer than the window as one."""
    detector = load_detector(fleet / "detectors" / "student")
    for tau, threshold_scores in zip(
        detector.thresholds, detector.calibration, strict=True
    ):
        assert (tau.method, tau.n) == ("budget", len(threshold_scores))
        alarms = row_alarms(threshold_scores, np.float32(tau.tau), AlarmRule(3, 2))
        found = len(events(alarms, gap=detector.window))
        assert 1 <= found <= 3 * len(threshold_scores) / 60
        assert tau.rate == pytest.approx((threshold_scores > tau.tau).mean(), abs=0.01)


def test_rules_of_alarms_reach_the_detector_and_its_tables(fleet, folder):
    detector = load_detector(fleet / "detectors" / "student")
    assert (detector.min_duration, detector.cooldown) == (3, 2)
    assert detector.attribution == "conditional"
    frame = recording(5, 150)[["time", "flow", "heat"]]
    frame.loc[80:86, "heat"] += 4
    frame.assign(unit="m4").to_parquet(folder / "next.parquet", index=False)
    output = folder / "next_scores.parquet"
    code, out, _ = say(
        "score", folder / "next.parquet", f"--detector={fleet}/detectors/student",
        f"--output={output}", "--entity_column=unit", "--causal",
    )  # fmt: skip
    assert code == 0 and "m4: 150 rows scored with the threshold of m4" in out
    table = pd.read_parquet(output)
    above = (table["window_score"] > detector.thresholds[1].tau).to_numpy()
    # Three rows above in a row, of which the last starts the alarm; rest for two.
    wanted, run, active, rest = [], 0, False, 0
    for hit in above:
        free = rest == 0
        rest = max(0, rest - 1)
        if not hit:
            rest, run, active = (2 if active else rest), 0, False
        else:
            run += 1
            active = active or (run >= 3 and free)
        wanted.append(active)
    assert table["alarm"].tolist() == [int(w) for w in wanted]
    assert 0 < sum(wanted) < above.sum()


# Rules of the threshold, without training.


def prepared_with(plant, **changes):
    dotted = {name.replace("__", "."): value for name, value in changes.items()}
    settings = resolve(
        override(
            get_config(),
            TINY | {"data.path": str(plant), "data.missing": "mask"} | dotted,
        )
    )
    (prepared,) = prepare_groups(load_dataset(settings["data"]), settings).values()
    return settings, prepared


@pytest.mark.parametrize("method", ["conformal", "quantile", "pot", "fixed"])
def test_each_rule_reaches_the_detector(plant, method):
    value = {"threshold__value": 7.5} if method == "fixed" else {}
    settings, prepared = prepared_with(plant, threshold__method=method, **value)
    evaluated = evaluate_models(
        {"difference": ResidualModel("difference", {})},
        prepared,
        calibration_rules(settings, prepared),
        min_anomalous_points=1,
        console=Console(quiet=True),
    )["difference"]
    detector = make_detector(
        "difference",
        evaluated.model,
        evaluated.calibration,
        prepared,
        settings=settings,
        digests={},
    )
    tau = detector.thresholds[0]
    scores = np.sort(evaluated.calibration.scores[0])
    n = len(scores)
    assert tau.method == method and tau.n == n
    if method == "fixed":
        assert tau.tau == 7.5
    else:
        # `pot` has too few excesses here, says so and takes the quantile.
        wanted = (n + 1) * 0.9 if method == "conformal" else n * 0.9
        assert tau.rank == math.ceil(round(wanted, 9))
        assert tau.tau == scores[tau.rank - 1]
        fell_back = f"pot fell back to the quantile of {n} scores"
        assert tau.detail.startswith(fell_back) == (method == "pot")
    (used, *_) = evaluated.rates
    assert used["method"] == method and used["tau"] == tau.tau
    assert used["wanted"] == (0 if method == "fixed" else 0.1)


def test_a_budget_needs_to_know_how_long_a_row_lasts(plant, folder):
    frame = recording(6, ROWS).drop(columns="time")
    bare = folder / "bare.csv"
    frame.to_csv(bare, index=False)
    budget = {"threshold__method": "budget", "threshold__budget": "1/hour"}
    message = "needs the time between rows.* by data.step_seconds=60"
    with pytest.raises(ConfigError, match=message):
        prepared_with(bare, **budget)
    frame.assign(time=np.arange(ROWS) * 60.0).to_csv(bare, index=False)
    with pytest.raises(ConfigError, match=message):
        prepared_with(bare, **budget)  # numbers may be of any unit
    settings, prepared = prepared_with(bare, **budget, data__step_seconds=60.0)
    rule = calibration_rules(settings, prepared).threshold
    assert (rule.method, rule.per_day) == ("budget", 24)
    assert (rule.events.rows_per_day, rule.events.spacing) == (1440, 1)
    settings, prepared = prepared_with(plant, **budget, threshold__mode="score")
    rule = calibration_rules(settings, prepared).threshold
    assert (rule.per_day, rule.events.rows_per_day) == (24, 1440)
    assert rule.events.spacing == settings["data"]["stride"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"threshold.method": "fixed"}, "threshold.value is the τ of"),
        ({"threshold.value": 3.0}, "threshold.value is the τ of"),
        (
            {"threshold.method": "budget", "threshold.budget": "many"},
            "is not a budget of",
        ),
        (
            {"threshold.method": "budget", "threshold.budget": "99/hour"},
            "a day has at most",
        ),
        ({"threshold.false_alarm_rate": 0.001}, "needs at least 999 calibration"),
        ({"threshold.min_duration": 0}, "threshold.min_duration=0 must lie in"),
        ({"detection.trim": 0.6}, "detection.trim=0.6 must lie in [0, 0.5]"),
        ({"data.exclude": "none.csv"}, "none.csv does not exist"),
        ({"data.window": 400}, "data.window=400"),
    ],
)
def test_what_can_not_be_is_one_line_and_binds_no_folder(
    plant, tmp_path, changes, said
):
    workdir = tmp_path / "run"
    base = TINY | {"data.path": plant, "data.missing": "mask"}
    code, out, err = say("run", *flags(base | changes), f"--workdir={workdir}")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert said in err
    assert not (workdir / "config.json").exists()
