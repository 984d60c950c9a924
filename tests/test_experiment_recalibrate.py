"""New thresholds for a saved detector: what they become, and what stays bit for bit."""

import json
import math
import re

import jax
import numpy as np
import pandas as pd
import pytest

from kdjax.cli import main
from kdjax.config import get_config, override, resolve
from kdjax.data.series import Series
from kdjax.detection.alarming import EventRule
from kdjax.detection.detector import scaler_of, score_windows
from kdjax.detection.false_alarms import cross_rates, expected_events, score_drift
from kdjax.detection.storage import load_detector, save_detector
from kdjax.detection.stream_rules import plan_of
from kdjax.detection.thresholds import CAUTION, Rule
from kdjax.errors import ArtifactError, ConfigError
from kdjax.experiment.recalibrate import calibrate_file, recalibrated

CHANNELS = ("load", "heat", "dead")
WINDOW, STRIDE, RATE = 10, 5, 0.1
COLUMNS = {
    "missing": "",
    "time_column": "",
    "entity_column": "",
    "label_column": "",
    "exclude": "",
}


def rows(seed, count, *, lift=0.0):
    """Clean rows of a machine like those of the plant in conftest.py."""
    rng = np.random.default_rng(seed)
    load = np.sin(np.arange(count) / 7) + 0.1 * rng.normal(size=count)
    heat = lift + 20 + 3 * np.roll(load, 2) + 0.2 * rng.normal(size=count)
    return np.stack([load, heat, np.full(count, 5.0)], axis=1).astype(np.float32)


def series(entity, values):
    return Series(entity, values, CHANNELS)


def frame(values, machine):
    table = pd.DataFrame(values, columns=list(CHANNELS))
    table.insert(0, "time", pd.date_range("2024-02-01", periods=len(values), freq="1s"))
    return table.assign(machine=machine)


@pytest.fixture(scope="module")
def student(finished):
    return load_detector(finished.workdir / "detectors" / "student")


def window_scores_of(detector, place, values):
    """Of the windows 0, 5, … and a last one that ends with the rows."""
    starts = np.arange(0, len(values) - WINDOW + 1, STRIDE)
    if starts[-1] + WINDOW < len(values):
        starts = np.append(starts, len(values) - WINDOW)
    return score_windows(detector, place, values, starts).max(axis=1)


def assert_same(found, wanted):
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


# An entity that the detector knows.


@pytest.mark.parametrize("count", [300, 303])
def test_a_known_entity_gets_the_conformal_rank_of_its_new_scores(student, count):
    values = rows(11, count)
    found, note = recalibrated(student, series("saw", values), threshold={})
    scores = np.sort(window_scores_of(student, 1, values))
    rank = math.ceil((len(scores) + 1) * (1 - RATE))
    tau = found.thresholds[1]
    assert (tau.method, tau.n, tau.rank, tau.source) == (
        "conformal", len(scores), rank, "own",
    )  # fmt: skip
    assert tau.tau == scores[rank - 1] != student.thresholds[1].tau
    np.testing.assert_array_equal(found.calibration[1], scores.astype(np.float32))
    assert note.startswith(f"saw: τ {student.thresholds[1].tau:.6g} -> {tau.tau:.6g} (")
    first, second = note.splitlines()
    assert first.endswith(
        f" (rule conformal, {tau.n} windows, the {tau.rank}-th smallest)"
    )
    assert re.fullmatch(
        r"  measured on these rows: \d+\.\d\d% false alarms when fifths are left out in "
        r"turn, wanted 10\.00%.*",
        second,
    )


def test_all_else_of_the_detector_stays(student):
    found, _ = recalibrated(student, series("saw", rows(11, 300)), threshold={})
    for field in ("model", "scalers", "gaussians", "ranges", "reference"):
        assert_same(getattr(found, field), getattr(student, field))
    assert found.thresholds[0] == student.thresholds[0]
    assert found.thresholds[2] == student.thresholds[2]  # others' scores are in it too
    for place in (0, 2):
        assert_same(found.calibration[place], student.calibration[place])
    assert found.entities == student.entities


def test_of_one_entity_the_pooled_threshold_follows(small):
    own = {"data.path": "a.csv", "threshold.false_alarm_rate": 0.2}
    card = {"settings": resolve(override(get_config(), own))}
    values = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    old = small._replace(card=card)
    found, _ = recalibrated(old, Series("a", values, ("x", "y")), threshold={})
    assert found.thresholds[0].tau != 8.0
    assert found.thresholds[1] == found.thresholds[0]
    assert found.card["thresholds"]["pooled"] == found.card["thresholds"]["a"]


def test_the_card_tells_of_it(student):
    changes = {"false_alarm_rate": 0.2, "min_duration": 2, "cooldown": 3}
    changes["clear"] = 0.7
    found, _ = recalibrated(student, series("saw", rows(11, 300)), threshold=changes)
    assert found.card["thresholds"]["saw"] == found.thresholds[1]._asdict()
    assert found.card["thresholds"]["press"] == student.card["thresholds"]["press"]
    assert list(found.card["calibrated_again"]) == ["saw"]
    assert found.card["settings"]["threshold"]["false_alarm_rate"] == 0.2
    assert (found.min_duration, found.cooldown, found.clear) == (2, 3, 0.7)
    assert student.card["settings"]["threshold"]["false_alarm_rate"] == RATE
    again, _ = recalibrated(found, series("press", rows(12, 300)), threshold={})
    assert sorted(again.card["calibrated_again"]) == ["press", "saw"]
    assert again.thresholds[0].rate == 0.2  # what was set before holds


@pytest.mark.parametrize(
    ("changes", "method", "rank"),
    [
        ({"false_alarm_rate": 0.05}, "conformal", 57),  # ⌈60·0.95⌉
        ({"method": "quantile"}, "quantile", 54),  # ⌈59·0.9⌉
        ({"method": "fixed", "value": 3.5}, "fixed", 0),
        ({"method": "pot"}, "pot", 54),  # too few for a tail: the quantile
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_the_rule_may_be_another(student, changes, method, rank):
    values = rows(11, 300)
    found, _ = recalibrated(student, series("saw", values), threshold=changes)
    tau = found.thresholds[1]
    assert (tau.method, tau.n, tau.rank) == (method, 59, rank)
    scores = np.sort(window_scores_of(student, 1, values))
    assert tau.tau == (scores[rank - 1] if rank else 3.5)


def test_a_budget_takes_the_step_of_the_new_rows(student):
    time = np.datetime64("2024-02-01", "ns") + np.arange(300) * np.timedelta64(1, "s")
    new = series("saw", rows(11, 300))
    changes = {"method": "budget", "budget": "60/hour"}
    found, note = recalibrated(student, new._replace(time=time), threshold=changes)
    # Five minutes may have five events, at a window a row.
    tau, scores = found.thresholds[1], found.calibration[1]
    assert tau.n == len(scores) == 300 - student.window + 1
    assert (tau.spacing, student.thresholds[1].spacing) == (1, 0)
    above = np.flatnonzero(scores > np.float32(tau.tau))
    assert 1 + (np.diff(above) >= student.window).sum() <= 5
    assert "events in 0.00" in tau.detail and "events a day (" in note
    with pytest.raises(ConfigError, match="needs the time between rows"):
        recalibrated(student, new, threshold=changes)


# An entity that it doesn't know.


def test_a_new_entity_gets_a_scaler_normal_and_threshold_of_its_own(student):
    values = rows(13, 400, lift=50)
    found, note = recalibrated(student, series("lathe", values), threshold={})
    assert found.entities == ("press", "saw", "lathe")
    old_places, kept = [0, 1, 2], [0, 1, 3]
    for field in ("scalers", "gaussians", "ranges"):
        for old, new in zip(
            getattr(student, field), getattr(found, field), strict=True
        ):
            assert len(new) == 4
            np.testing.assert_array_equal(new[kept], old[old_places])
    assert [found.thresholds[i] for i in kept] == list(student.thresholds)
    assert_same(found.model, student.model)
    # minmax on rows of its own, which lie 50 above all others.
    offset, scale = scaler_of(found, 2)
    assert 60 < offset[1] < 75 and scale[1] < 15
    assert found.ranges.low[2, 1] == values[:, 1].min()
    tau = found.thresholds[2]
    # 40 % of 400 rows: 160, so (160 − 10) / 5 + 1 windows.
    assert (tau.n, tau.rank, tau.source) == (31, math.ceil(32 * 0.9), "own")
    starts = np.arange(240, 400 - WINDOW + 1, STRIDE)
    scores = np.sort(score_windows(found, 2, values, starts).max(axis=1))
    assert tau.tau == pytest.approx(scores[tau.rank - 1], rel=1e-5)
    np.testing.assert_allclose(found.calibration[2], scores, rtol=1e-5)
    assert found.card["thresholds"]["lathe"] == tau._asdict()
    assert note.startswith("lathe: its own scaler, Gaussian and τ: ")


PLACES = ("scalers", "gaussians", "ranges", "constant", "unchanged")


def assert_pooled(detector, place):
    """Whether all that scores an entity is that of the pooled entry."""
    for values in jax.tree.leaves([getattr(detector, field) for field in PLACES]):
        np.testing.assert_array_equal(values[place], values[-1])
    np.testing.assert_array_equal(detector.calibration[place], detector.calibration[-1])
    pooled = detector.thresholds[-1]._replace(source="pooled")
    assert detector.thresholds[place] == pooled


# For a Gaussian 30 % on both sides of the validation rows must make two windows, for τ
# the last 40 % so many; under `blocks` each fifth one.
@pytest.mark.parametrize(
    ("threshold", "needs"),
    [({}, (66, 124)), ({"false_alarm_rate": 0.5}, (66, 66)),
     ({"method": "blocks"}, (66, 66)), ({"method": "quantile"}, (66, 137))],
)  # fmt: skip
def test_the_rows_that_a_new_entity_needs_are_exact(student, threshold, needs):
    enough, for_tau = needs
    everything = rows(13, 400)
    for count in (1, WINDOW, 37, enough - 1):
        found, note = recalibrated(
            student, series("lathe", everything[:count]), threshold=threshold
        )
        assert_pooled(found, 2)
        assert found.entities == ("press", "saw", "lathe")
        text = f"lathe: {count} of {enough} rows"
        if for_tau > enough:
            text += f" for its own scaler and Gaussian, {for_tau} for its own τ"
        tau = student.thresholds[-1]
        text += f"; uses the pooled values until then: τ {tau.tau:.6g} ("
        assert note.startswith(text) and "warning" not in note
        unknown = note.endswith("; no window of 10 rows has a score yet")
        assert unknown == (count < WINDOW)
        assert found.card["calibrated_again"]["lathe"]["note"] == note
    for count in (enough, for_tau - 1, for_tau):
        again, note = recalibrated(
            found, series("lathe", everything[:count]), threshold=threshold
        )
        fresh, same = recalibrated(
            student, series("lathe", everything[:count]), threshold=threshold
        )
        assert again.entities == fresh.entities and note == same
        assert again.thresholds == fresh.thresholds
        for field in PLACES:
            assert_same(getattr(again, field), getattr(fresh, field))
        if count >= enough:
            assert not np.array_equal(again.scalers.offset[2], again.scalers.offset[3])
            own = "own" if count >= for_tau else again.thresholds[2].source
            assert again.thresholds[2].source == own != "pooled"


def test_a_new_entity_with_few_windows_has_a_threshold_of_all_scores(student):
    values = rows(13, 100)
    found, note = recalibrated(student, series("lathe", values), threshold={})
    # 40 rows make 7 windows, and nine are needed. `saw` has such a τ from the run.
    assert student.thresholds[1].source == "shared"
    own = score_windows(found, 2, values, np.arange(60, 91, 5)).max(axis=1)
    every = np.sort(np.concatenate([student.calibration[1], own]))
    rank = math.ceil((len(every) + 1) * (1 - RATE))
    tau = found.thresholds[2]
    assert (tau.n, tau.rank, tau.source) == (len(every), rank, "shared")
    assert tau.tau == pytest.approx(every[rank - 1], rel=1e-5)
    said = (
        "lathe: its own scaler and Gaussian; 100 of 124 rows for its own τ; until then "
        "it uses τ of all entities' scores: "
    )
    assert note.startswith(said) and note.endswith("these rows: too few windows")
    # All its rows until then are as those of a new one: one row fewer is too few.
    for count, own in ((123, False), (124, True)):
        given = series("lathe", rows(13, count))
        fresh, _ = recalibrated(student, given, threshold={})
        enough, note = recalibrated(found, given, threshold={})
        assert (enough.thresholds[2].source == "own") == own
        assert ("; 123 of 124 rows for its own τ" in note) != own
        assert enough.thresholds == fresh.thresholds
        for field in PLACES:
            assert_same(getattr(enough, field), getattr(fresh, field))
    # Its own scores join those of the others once.
    press, saw, pooled = student.thresholds
    alone = student._replace(thresholds=(press, saw._replace(source="own"), pooled))
    first, _ = recalibrated(alone, series("lathe", values), threshold={})
    again, _ = recalibrated(first, series("lathe", values), threshold={})
    assert again.thresholds == first.thresholds
    assert first.thresholds[2].n == sum(map(len, student.calibration[:2])) + 7
    # Scores of other entities tell no drift.
    plan = plan_of(found, 2)
    assert plan.disjoint == 0 < plan_of(enough, 2).disjoint
    far = np.full(400, 1e3)
    assert score_drift(found, 2, far) is None and score_drift(enough, 2, far).n == 40
    # A later file gives τ, as for any known entity: nine windows, the last aligned.
    later, _ = recalibrated(found, series("lathe", rows(14, 46)), threshold={})
    assert (later.thresholds[2].n, later.thresholds[2].source) == (9, "own")
    assert_same(later.gaussians, found.gaussians)
    with pytest.raises(ConfigError, match="at least 9 calibration windows, have 8"):
        recalibrated(found, series("lathe", rows(14, 45)), threshold={})


def test_a_new_entity_is_told_what_to_expect(student):
    given = series("lathe", rows(13, 400))
    blocks, note = recalibrated(student, given, threshold={"method": "blocks"})
    scores, event = blocks.calibration[2], EventRule(WINDOW, STRIDE)
    rule = Rule("blocks", RATE, caution=CAUTION, overlap=WINDOW / STRIDE, events=event)
    # Windows start every fifth row of each fifth of the rows.
    starts = np.concatenate([np.arange(0, 71, 5) + 80 * fold for fold in range(5)])
    assert len(scores) == len(starts)
    rate = cross_rates(scores, starts, rule, window=WINDOW).rate
    said = f"measured on these rows: {rate:.2%} false alarms when fifths are left out"
    assert said in note and note.endswith(f"; {expected_events(scores, rule)}")


@pytest.mark.parametrize("first", [400, 330])
def test_rows_that_may_hold_anomalies_are_told(student, first):
    values = rows(13, 400)
    values[first:, 1] += 30
    rule = {"method": "blocks", "false_alarm_rate": 0.05}
    _, note = recalibrated(student, series("saw", values), threshold=rule)
    rate = float(re.search(r"rows: ([\d.]+)% false", note)[1])
    assert (rate > 15) == (first == 330)
    assert ("the rows may hold anomalies" in note) == (first == 330)


def test_pooled_scores_of_other_windows_make_no_threshold(student):
    # `blocks` scores all rows in folds, `conformal` some rows: too few for it alone.
    blocks = tuple(tau._replace(method="blocks") for tau in student.thresholds)
    other = student._replace(thresholds=blocks)
    found, note = recalibrated(other, series("lathe", rows(13, 100)), threshold={})
    assert_pooled(found, 2)
    assert note.startswith("lathe: 100 of 124 rows; uses the pooled values until then")


def test_rows_with_holes_are_too_few_for_all_their_number(student):
    gappy = rows(1, 120)
    gappy[np.arange(120) % 3 > 0, 1] = np.nan
    found, note = recalibrated(student, series("lathe", gappy), threshold={})
    assert_pooled(found, 2)
    assert note.startswith("lathe: 40 of 66 rows for its own scaler")
    cut = series("lathe", rows(1, 200))
    cut = cut._replace(excluded=np.array([[i, i + 1] for i in range(8, 200, 9)]))
    found, note = recalibrated(student, cut, threshold={})
    assert_pooled(found, 2)
    assert "178 rows with gaps or missing, excluded or frozen cells, but 66" in note


def test_folds_with_gaps_are_too_few(student):
    # Each fifth of 66 rows has a window, but for two with a gap.
    seconds = np.arange(66) + 60 * (np.arange(66) >= 46) + 60 * (np.arange(66) >= 60)
    new = series("lathe", rows(13, 66))
    new = new._replace(time=np.datetime64("2024-02-01", "ns") + seconds * 10**9)
    found, note = recalibrated(student, new, threshold={"method": "blocks"})
    assert_pooled(found, 2)
    assert "66 rows with gaps or missing, excluded or frozen cells, but 66" in note


def test_a_start_on_another_scale_is_a_warning(student):
    values = rows(13, 40) * np.float32([1, 1000, 1])
    found, note = recalibrated(student, series("lathe", values), threshold={})
    assert_pooled(found, 2)
    assert "; warning: 100% of its windows are above the pooled τ (median score" in note
    assert note.endswith("; outside the range of all training rows: heat")
    fixed, note = recalibrated(
        student, series("lathe", values), threshold={"method": "fixed", "value": 1e12}
    )
    assert fixed.thresholds[2].tau == 1e12 and "warning" not in note


def test_a_detector_of_one_entity_takes_another(small):
    own = {"data.path": "a.csv", "threshold.false_alarm_rate": 0.2}
    card = {"settings": resolve(override(get_config(), own))}
    old = small._replace(card=card, calibration=(np.arange(20.0),) * 2)
    values = np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32)
    new = Series("b", values[:20], ("x", "y"))
    found, note = recalibrated(old, new, threshold={})
    assert found.entities == ("a", "b") and note.startswith("b: 20 of 31 rows; uses")
    assert found.thresholds[1].tau == found.thresholds[2].tau == 12.0
    found, _ = recalibrated(found, new._replace(values=values), threshold={})
    assert found.thresholds[1].source == "own" and found.thresholds[2].tau == 12.0
    # Its own entity is as before, and no longer the pooled one.
    found, _ = recalibrated(found, Series("a", values, ("x", "y")), threshold={})
    assert found.thresholds[0].tau != 8.0 and found.thresholds[2].tau == 12.0


def test_a_new_entity_may_need_float64(finished, student, tmp_path):
    folder = finished.workdir / "detectors" / "student"
    found, scores = {}, {}
    for lift in (50.0, 1.7e9):
        clean = rows(13, 430).astype(np.float64) + [0, lift, 0]
        path, output = tmp_path / "lathe.csv", tmp_path / f"{lift:g}"
        frame(clean[:400], "lathe").drop(columns="machine").to_csv(path, index=False)
        options = {"entity": "lathe", "threshold": {}, **COLUMNS}
        [*calibrate_file(path, detector=folder, output=output, **options)]
        found[lift] = load_detector(output)
        clean[415:420, 1] += 40
        scores[lift] = score_windows(found[lift], 2, clean, np.arange(400, 421))
    plain, wide = found.values()
    assert plain.scalers.offset.dtype == np.float32
    assert wide.scalers.offset.dtype == wide.ranges.low.dtype == np.float64
    assert wide.thresholds[2].tau == pytest.approx(plain.thresholds[2].tau, rel=1e-3)
    np.testing.assert_allclose(scores[1.7e9], scores[50.0], rtol=1e-3)
    assert scores[50.0].max() > 5 * plain.thresholds[2].tau
    # The others score as before.
    values, starts = rows(14, 60), np.arange(0, 50, 5)
    for place in (0, 1):
        before = score_windows(student, place, values, starts)
        np.testing.assert_allclose(
            score_windows(wide, place, values, starts), before, rtol=1e-4
        )


# Refusals.


def test_too_few_rows_are_refused(student):
    with pytest.raises(
        ConfigError, match="needs at least 9 calibration windows, have 7"
    ) as error:
        recalibrated(student, series("saw", rows(1, 40)), threshold={})
    # `calibrate` refuses fields of training.
    assert str(error.value).endswith(
        "give more rows, or accept a higher rate, of 0.125 or above."
    )
    with pytest.raises(
        ConfigError, match="'pooled' can't be an --entity: give another"
    ):
        recalibrated(student, series("pooled", rows(1, 400)), threshold={})
    with pytest.raises(ConfigError, match="needs the time between rows"):
        budget = {"method": "budget", "budget": "1/day"}
        recalibrated(student, series("lathe", rows(1, 20)), threshold=budget)


def test_a_detector_without_settings_is_refused(small, rows_of_small):
    with pytest.raises(ArtifactError, match="card of 'by hand' has no settings"):
        recalibrated(small, rows_of_small, threshold={})


@pytest.fixture
def rows_of_small():
    return Series("a", np.zeros((60, 2), np.float32), ("x", "y"))


def test_whose_rows_they_are_must_be_said(finished, tmp_path):
    path = tmp_path / "later.csv"
    pd.DataFrame(rows(1, 200), columns=list(CHANNELS)).to_csv(path, index=False)
    options = {"detector": finished.workdir / "detectors" / "student"} | COLUMNS
    options |= {"output": tmp_path / "new", "threshold": {}}
    with pytest.raises(
        ConfigError,
        match="the rows have no entity: give --entity, one of press, saw for a new",
    ):
        list(calibrate_file(path, **options))
    both = pd.concat([frame(rows(1, 200), "press"), frame(rows(2, 200), "saw")])
    both.to_csv(path, index=False)
    options["entity_column"] = "machine"
    with pytest.raises(ConfigError, match="saw can't name the rows of 2 entities"):
        list(calibrate_file(path, entity="saw", **options))
    assert not (tmp_path / "new").exists()
    said = []
    assert calibrate_file(path, log=said.append, **options) == said
    assert said[-1] == f"Written: {tmp_path / 'new'}"
    card = load_detector(tmp_path / "new").card
    assert sorted(card["calibrated_again"]) == ["press", "saw"]
    assert card["calibrated_again"]["saw"]["rows"] > 0


# The verb.


@pytest.fixture
def say(capsys):
    def run(*arguments):
        code = main(["kdjax", *map(str, arguments)])
        return (code, *capsys.readouterr())

    return run


def test_calibrate_and_score_a_new_machine(say, finished, student, tmp_path):
    values = rows(13, 400, lift=50)
    path, folder = tmp_path / "lathe.csv", tmp_path / "detector"
    frame(values, "x").drop(columns="machine").to_csv(path, index=False)
    save_detector(folder, student)
    code, out, err = say(
        "calibrate", path, f"--detector={folder}", f"--output={folder}",
        "--entity=lathe", "--config.threshold.false_alarm_rate=0.2",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == f"Written: {folder}"
    wanted, _ = recalibrated(
        student, series("lathe", values), threshold={"false_alarm_rate": 0.2}
    )
    found = load_detector(folder)
    assert found.thresholds == wanted.thresholds
    assert_same(found.gaussians, wanted.gaussians)
    assert list(found.card["calibrated_again"]) == ["lathe"]
    output = tmp_path / "scores.csv"
    code, out, _ = say(
        "score", path, f"--detector={folder}", f"--output={output}", "--entity=lathe"
    )
    assert code == 0 and "400 rows scored with the threshold of lathe" in out
    assert pd.read_csv(output)["alarm"].mean() < 0.5
    untouched = finished.workdir / "detectors" / "student"
    assert json.loads((untouched / "card.json").read_text("utf-8")) == student.card


def test_a_new_machine_of_few_rows_scores_as_pooled(say, student, tmp_path):
    path, folder = tmp_path / "lathe.csv", tmp_path / "detector"
    frame(rows(13, 40), "x").drop(columns="machine").to_csv(path, index=False)
    save_detector(folder, student)
    code, out, err = say(
        "calibrate",
        path,
        f"--detector={folder}",
        f"--output={folder}",
        "--entity=lathe",
    )
    assert (code, err) == (0, "")
    assert out.startswith("lathe: 40 of 66 rows for its own scaler and Gaussian, 124 ")
    tables = []
    for name in ("lathe", "pooled"):
        output = tmp_path / f"scores-{name}.csv"
        flags = f"--detector={folder}", f"--output={output}", f"--entity={name}"
        code, out, err = say("score", path, *flags)
        assert (code, err) == (0, "")
        tables.append(output.read_text("utf-8"))
    assert tables[0] == tables[1] and tables[0].count("\n") == 41
    assert "40 of 66 rows" in (folder / "card.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--config.data.window=20"],
            "settings, except --config.threshold.FIELD: remove data.window",
        ),
        (
            ["--config.threshold.method=guess"],
            "threshold.method='guess' must be one of",
        ),
        (["--config.threshold.method=fixed"], "threshold.value is the τ of"),
        (["--entity=saw", "--missing=guess"], "'guess' is unknown"),
    ],
)
def test_calibrate_refuses_in_one_line(say, finished, tmp_path, arguments, said):
    path = tmp_path / "saw.csv"
    pd.DataFrame(rows(1, 200), columns=list(CHANNELS)).to_csv(path, index=False)
    student = finished.workdir / "detectors" / "student"
    output = tmp_path / "new"
    code, out, err = say(
        "calibrate", path, f"--detector={student}", f"--output={output}", *arguments
    )
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert said in err and not output.exists()


CLEAN = "a file of clean rows (normal operation, best recorded after training)"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], f"calibrate needs {CLEAN}, got nothing."),
        (["a.csv"], "calibrate needs --detector; see kdjax calibrate --help."),
        (
            ["a.csv", "--detector=d"],
            "calibrate needs --output; see kdjax calibrate --help.",
        ),
    ],
)
def test_calibrate_needs_its_flags(say, arguments, said):
    assert say("calibrate", *arguments) == (2, "", f"kdjax: {said}\n")
