"""The PyOD-shaped face against scikit-learn's checks and kdjax's own functions."""

import copy
import pickle
import random
import re
import runpy
import subprocess
import sys
import warnings
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import joblib
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse
import scipy.stats
from sklearn.base import clone
from sklearn.covariance import EmpiricalCovariance
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.utils.estimator_checks import check_estimator, estimator_checks_generator

import kdjax
from kdjax.data.series import Series
from kdjax.detection.reading import read_like
from kdjax.detection.storage import load_detector, save_detector
from kdjax.detection.stream_rules import plan_of
from kdjax.detection.tables import score_events, score_table
from kdjax.detection.thresholds import blocks_threshold, conformal_threshold
from kdjax.errors import ArtifactError, ConfigError, DataError
from kdjax.estimator import EXPECTED_FAILED_CHECKS, FIELDS, KDDetector

QUICKSTART = Path(__file__).parent.parent / "docs" / "quickstart.md"

# The checks give 10 to 80 rows.
FEW = {
    "window_size": 2,
    "stride": 1,
    "false_alarm_rate": 0.5,
    "settings": {"data.validation": 0.4, "data.calibration": 0.4},
}
TINY = {
    "detector": "student",
    "window_size": 8,
    "stride": 2,
    "teacher_hidden": (4,),
    "student_hidden": (3,),
    "teacher_epochs": 2,
    "student_epochs": 2,
    "false_alarm_rate": 0.1,
    # Odd, so that batches stay on one device.
    "settings": {"train.batch_size": 31},
}


def made(**changes):
    """A control, which needs no training."""
    given = {"window_size": 8, "stride": 2, "false_alarm_rate": 0.1}
    given["threshold"] = "conformal"
    return KDDetector(**{"detector": "mahalanobis", **given, **changes})


def waves(rows, *, seed=0):
    rng = np.random.default_rng(seed)
    load = np.sin(np.arange(rows) / 5) + 0.05 * rng.normal(size=rows)
    heat = 20 + 3 * load + 0.2 * rng.normal(size=rows)
    return np.stack([load, heat], axis=1)


@pytest.mark.parametrize(
    ("rows", "window", "stride", "count"),
    # Calibration rows are the last 15 %: 11, 75, 225 and 1,800.
    [(72, 9, 1, 3), (500, 62, 1, 14), (1500, 96, 1, 130), (12000, 96, 10, 171)],
)
def test_what_is_not_given_fits_the_rows(tmp_path, rows, window, stride, count):
    detector = KDDetector(detector="mahalanobis", threshold="conformal")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        detector.fit(waves(rows))
    found = detector.detector_
    assert (found.window, found.stride) == (window, stride)
    scores = np.sort(detector._known_scores)
    assert len(scores) == count
    few = count < 99
    wanted = (
        f"KDDetector: {count} calibration windows allow a false-alarm rate of "
        f"{1 / count:.2g}, not 0.01: give more rows, or set the rate."
    )
    assert [str(one.message) for one in said] == few * [wanted]
    # Conformal: the ⌈(n + 1)(1 − rate)⌉-th smallest.
    rank = count if few else np.ceil((count + 1) * 0.99)
    assert detector.threshold_ == pytest.approx(scores[int(rank) - 1], rel=1e-6)
    detector.save(tmp_path / "saved")
    loaded = KDDetector.load(tmp_path / "saved")
    assert (loaded.window_size, loaded.stride) == (window, stride)
    assert loaded.false_alarm_rate == pytest.approx(1 / count if few else 0.01)
    tested = waves(300, seed=1)
    np.testing.assert_array_equal(loaded.predict(tested), detector.predict(tested))
    # What is given is kept, or refused.
    if few:
        with pytest.raises(
            ConfigError, match="false_alarm_rate=0.01 needs at least 99"
        ):
            detector.set_params(false_alarm_rate=0.01).fit(waves(rows))


def test_a_budget_is_no_rate_to_lower(recwarn):
    budget = {"threshold.budget": "1/day", "data.step_seconds": 60.0}
    detector = KDDetector(detector="mahalanobis", threshold="budget", settings=budget)
    message = "threshold.budget, 1 events a day, needs 1 days of .* have 0.1"
    with pytest.raises(ConfigError, match=message):
        detector.fit(waves(500))
    assert not len(recwarn)


def test_another_fit_fits_the_new_rows(recwarn):
    detector = KDDetector(detector="mahalanobis", threshold="conformal")
    detector.fit(waves(500))
    assert (detector.detector_.window, detector.detector_.stride) == (62, 1)
    detector.fit(waves(12000))
    assert (detector.detector_.window, detector.detector_.stride) == (96, 10)
    assert detector.window_size is None
    assert len(recwarn) == 1  # of the first


def test_a_network_learns_from_as_many_windows_where_the_stride_is_lower():
    given = {**TINY, "stride": None, "window_size": None}
    detector = KDDetector(**given).fit(waves(900))
    assert detector.detector_.stride == 1
    assert detector.detector_.card["settings"]["data"]["train_stride"] == 10
    other = detector.distill(waves(800), student_hidden=(4,))
    assert other.detector_.window == detector.detector_.window == 96


def framed(values, start="2026-01-01"):
    index = pd.date_range(start, periods=len(values), freq="min")
    return pd.DataFrame(values, index, columns=["load", "heat"])


@pytest.fixture(scope="module")
def baseline():
    return made().fit(framed(waves(600)))


@pytest.fixture(scope="module")
def student():
    return KDDetector(**TINY).fit(framed(waves(400)))


@pytest.fixture
def faulty():
    values = waves(200, seed=1)
    values[100:110, 1] += 6
    return framed(values, "2026-02-01")


# scikit-learn's conventions.


def test_scikit_learn_has_nothing_to_say_but_what_is_argued():
    results = check_estimator(
        KDDetector(detector="mahalanobis", **FEW),
        expected_failed_checks=EXPECTED_FAILED_CHECKS,
        on_skip=None,
    )
    failed = {one["check_name"] for one in results if one["status"] == "xfail"}
    assert failed == set(EXPECTED_FAILED_CHECKS)
    assert sum(one["status"] == "passed" for one in results) >= 35
    assert all(len(why.split()) > 10 for why in EXPECTED_FAILED_CHECKS.values())


@pytest.mark.slow
def test_a_network_learns_from_rows_that_cannot_be_written():
    """scikit-learn's checks again would compile for minutes; this one has a network."""
    settings = {**FEW["settings"], "train.batch_size": 31}
    network = KDDetector(**{**TINY, **FEW, "settings": settings})
    ((estimator, check),) = (
        (estimator, check)
        for estimator, check in estimator_checks_generator(network)
        if check.func.__name__ == "check_readonly_memmap_input"
    )
    check(estimator)


def test_parameters_are_stored_as_given_and_fill_the_config():
    hidden = [3, 2]
    detector = KDDetector(student_hidden=hidden, random_state=np.int64(7))
    assert detector.student_hidden is hidden
    assert clone(detector).get_params() == detector.get_params()
    settings = detector._settings()
    assert settings["student"]["hidden"] == hidden and settings["seed"] == 7
    # The defaults are those of the config.
    assert (
        KDDetector()._settings()
        == made(
            detector="student",
            **{name: KDDetector().get_params()[name] for name in FIELDS},
        )._settings()
    )


# Scores, labels and the threshold.


def test_scores_are_mahalanobis_distances_of_the_latest_window(faulty):
    """Without floor and ridge, Eq. 1 is scikit-learn's squared Mahalanobis distance."""
    settings = {"detection.floor": 1e-6, "detection.ridge": 0.0}
    train = waves(600)
    detector = made(scaler="none", stride=1, settings=settings).fit(train)
    split = detector.detector_.card["splits"]["X"]
    assert split == {"fit": 434, "validation": 76, "calibration": 90, "test": 0}
    moments = _validation_covariance(train)
    found = detector.decision_function(faulty.to_numpy())
    points = moments.mahalanobis(faulty.to_numpy())
    windows = np.array([points[start : start + 8].max() for start in range(193)])
    expected = np.concatenate([np.full(7, windows[0]), windows])
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    # And τ is the conformal rank of the calibration windows' scores.
    clean = moments.mahalanobis(train[510:])
    scores = np.array([clean[start : start + 8].max() for start in range(83)])
    tau = conformal_threshold(scores, rate=0.1)
    assert detector.threshold_ == pytest.approx(tau, rel=1e-3)


def test_blocks_take_turns_to_be_scored_without_their_rows():
    """Each fifth under sklearn's moments of the others."""
    settings = {"detection.floor": 1e-6, "detection.ridge": 0.0}
    given = {"scaler": "none", "stride": 1, "settings": settings}
    train = waves(600)
    detector = made(threshold="blocks", **given).fit(train)
    folds = [np.arange(a, a + 113) for a in range(0, 600, 120)]

    def moments(starts):
        rows = [train[start : start + 8] for start in np.concatenate(starts)]
        return EmpiricalCovariance().fit(np.concatenate(rows))

    levels = []
    for place, own in enumerate(folds):
        points = moments(folds[:place] + folds[place + 1 :]).mahalanobis(train)
        scores = np.sort([points[start : start + 8].max() for start in own])
        levels.append(scores[int(np.ceil(114 * 0.9)) - 1])
    # 565 windows, of which 565 / 8 share no row.
    tau = np.median(levels) * (1 + (32 * 8 / 565) ** 1.5)
    assert detector.threshold_ == pytest.approx(tau, rel=1e-3)
    # Rows are scored under the moments of all folds.
    tested = waves(100, seed=3)
    expected = moments(folds).mahalanobis(tested)[92:].max()
    assert detector.decision_function(tested)[-1] == pytest.approx(expected, rel=1e-3)
    # A new rate takes the same scores.
    again = detector.set_params(false_alarm_rate=0.3).calibrate()
    scores = detector._known_scores
    assert again.threshold_ == pytest.approx(
        blocks_threshold(scores, rate=0.3, overlap=8), rel=1e-6
    )
    assert again.threshold_ < tau


def _validation_covariance(train):
    """Of every position of each validation window, as Eq. 1 has them."""
    from kdjax.data.splits import split_rows, window_starts

    spans = split_rows(len(train), window=8).validation
    starts = window_starts(spans, window=8, stride=1)
    return EmpiricalCovariance().fit(
        np.concatenate([train[start : start + 8] for start in starts])
    )


def test_predictions_are_scores_above_the_threshold(baseline, faulty):
    scores = baseline.decision_function(faulty)
    predicted = baseline.predict(faulty)
    assert scores.shape == predicted.shape == (200,)
    np.testing.assert_array_equal(predicted, scores > baseline.threshold_)
    assert predicted[102:110].all() and set(predicted) == {0, 1}
    assert np.isfinite(scores).all()
    np.testing.assert_array_equal(
        baseline.labels_, baseline.decision_scores_ > baseline.threshold_
    )
    np.testing.assert_array_equal(
        baseline.decision_scores_, baseline.decision_function(framed(waves(600)))
    )


def test_predictions_are_the_alarms_of_the_score_table(student, faulty):
    series = Series("X", np.float32(faulty), ("load", "heat"), faulty.index.to_numpy())
    table = score_table(student.detector_, series, entity="X", contributions=True)
    np.testing.assert_array_equal(student.predict(faulty)[7:], table["alarm"][7:])
    scores = student.decision_function(faulty)
    np.testing.assert_array_equal(scores[7:], table["window_score"][7:])
    assert (scores[:7] == scores[7]).all()
    attribution = student.explain(faulty)
    assert list(attribution.columns) == ["load", "heat"] and attribution.index.equals(
        faulty.index
    )
    np.testing.assert_allclose(attribution.sum(axis=1), table["score"], rtol=1e-4)
    events = student.detect(faulty)
    whole = score_events(student.detector_, series, table, entity="X")
    assert events.iloc[-1].tolist() == whole.drop(columns="entity").iloc[-1].tolist()


def test_events_hold_the_rows_that_are_predicted(baseline, faulty):
    faulty.iloc[:5, 1] += 6  # in the first window, which ends at row 7
    (first, last) = baseline.detect(faulty).itertuples()
    assert (first.start, first.end) == (faulty.index[0], faulty.index[12])
    predicted = baseline.predict(faulty)
    assert predicted[:13].all() and not predicted[13:90].any()
    assert faulty.index[100] <= last.peak < faulty.index[110]
    assert last.channels.startswith("heat")


def test_a_plot_shows_what_is_predicted(baseline, faulty):
    zoned = faulty.set_axis(faulty.index.tz_localize("Europe/Berlin"))
    labels = pd.Series(0, zoned.index)
    labels.iloc[100:110] = 1
    figure = baseline.plot(zoned, labels)
    traces = {(trace.type, trace.name): trace for trace in figure.data}
    curve = traces["scatter", "mahalanobis"]
    np.testing.assert_allclose(curve.y[::2], baseline.decision_function(faulty))
    np.testing.assert_array_equal(
        curve.x[::2].astype("datetime64[ns]"), faulty.index.to_numpy()
    )
    # Bars lie over the rows in alarm, and over those that are labelled.
    second = pd.Timedelta("1s") / pd.Timedelta("1ms")
    predicted, step = baseline.predict(faulty), (faulty.index[1] - faulty.index[0])
    for name, rows in (("mahalanobis", predicted), ("true events", labels.to_numpy())):
        bar, shown = traces["bar", name], np.zeros(len(faulty), int)
        for base, length in zip(bar.base, bar.x, strict=True):
            first = round((pd.Timestamp(base) - faulty.index[0]) / step)
            shown[first : first + round(length / second / step.total_seconds())] = 1
        assert shown.tolist() == rows.tolist() and rows.any()
    for place, name in enumerate(faulty):
        own = traces["scatter", name].customdata
        np.testing.assert_allclose(own, faulty[name], rtol=1e-6)
        assert ("heatmap", None) in traces and place < 2
    heat = traces["heatmap", None].z
    assert heat.argmax() // heat.shape[1] == 1 and heat[1, 100:110].min() > 50
    with pytest.raises(DataError, match="y has 3 labels, and X 200 rows"):
        baseline.plot(faulty, [0, 1, 0])
    with pytest.raises(DataError, match="expected 0 or 1 only"):
        baseline.plot(faulty, np.full(len(faulty), 2))
    rows = made().fit(waves(600)).plot(faulty.to_numpy())
    assert rows.layout.xaxis.type == "linear" and "true events" not in rows.to_json()


def test_progress_is_shown_on_request(capsys):
    quiet = made().fit(waves(600))
    assert capsys.readouterr() == ("", "")
    said = made(verbose=1).fit(waves(600))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "mahalanobis: fitting 600 rows",
        "mahalanobis: calibrating",
        f"mahalanobis: scoring the rows; τ = {said.threshold_:.4g}",
    ]
    assert said.threshold_ == quiet.threshold_
    assert "KDDetector" in said._repr_html_() and "verbose=1" in repr(said)
    with warnings.catch_warnings():  # it is no parameter of what was fitted
        warnings.simplefilter("error")
        said.set_params(verbose=0).predict(waves(50))


def test_networks_show_their_epochs(capsys):
    KDDetector(**TINY, verbose=True).fit(waves(600))
    shown = capsys.readouterr()
    assert shown.out == ""
    for name in ("teacher", "student"):
        assert re.search(rf"{name}: .*epoch", shown.err), shown.err
        assert f"{name}: calibrating" in shown.err


def test_min_duration_holds_alarms_back(faulty):
    settings = {"threshold.min_duration": 3}
    patient = made(settings=settings).fit(framed(waves(600)))
    above = patient.decision_function(faulty) > patient.threshold_
    first = np.flatnonzero(above)[0]
    assert above[first : first + 3].all()
    predicted = patient.predict(faulty)
    assert not predicted[: first + 2].any() and predicted[first + 2]


def test_a_new_threshold_needs_no_training(faulty):
    detector = made().fit(framed(waves(600)))
    model, tau = detector.detector_.model, detector.threshold_
    assert detector.calibrate().threshold_ == tau
    loose = clone(detector).set_params(false_alarm_rate=0.3).fit(framed(waves(600)))
    detector.set_params(false_alarm_rate=0.3).calibrate()
    assert detector.threshold_ == loose.threshold_ < tau
    np.testing.assert_array_equal(detector.labels_, loose.labels_)
    assert detector.detector_.card["thresholds"]["X"]["tau"] == detector.threshold_
    detector.set_threshold(tau * 2)
    assert detector.threshold_ == tau * 2
    scores = detector.decision_function(faulty)
    np.testing.assert_array_equal(detector.predict(faulty), scores > tau * 2)
    clean = framed(1.2 * waves(200, seed=5), "2026-03-01")
    detector.set_params(false_alarm_rate=0.1).calibrate(clean)
    starts = [*range(0, 193, 2)]
    ends = detector.set_params().decision_function(clean)[np.array(starts) + 7]
    assert detector.threshold_ == conformal_threshold(ends, rate=0.1)
    assert detector.detector_.model is model
    with pytest.raises(AttributeError, match="threshold_"):
        detector.threshold_ = 3.0
    advice = r"give more rows to calibrate\(X\), or accept a higher rate, of"
    with pytest.raises(ConfigError, match=f"at least 9,999 calibration .*{advice}"):
        detector.set_params(false_alarm_rate=1e-4).calibrate()


# Fitted or not, and nothing between.


def stopped(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "stop_at", ["", "prepare_dataset", "fit_baseline", "calibrate"]
)
def test_a_second_fit_that_fails_leaves_the_first(faulty, monkeypatch, stop_at):
    detector = made().fit(framed(waves(600)))
    before, expected = dict(vars(detector)), detector.decision_function(faulty)
    swapped = framed(waves(600))[["heat", "load"]]
    if stop_at:
        monkeypatch.setattr(f"kdjax.estimator.{stop_at}", stopped)
    error = KeyboardInterrupt if stop_at else DataError
    with pytest.raises(error):
        detector.fit(swapped if stop_at else swapped[:9])
    assert vars(detector).keys() == before.keys()
    assert all(vars(detector)[name] is value for name, value in before.items())
    np.testing.assert_array_equal(detector.decision_function(faulty), expected)
    with pytest.raises(ValueError, match="same order"):
        detector.predict(faulty[["heat", "load"]])


def test_a_first_fit_that_fails_leaves_nothing():
    detector = made()
    with pytest.raises(DataError):
        detector.fit(framed(waves(9)))
    assert not hasattr(detector, "n_features_in_")
    assert not hasattr(detector, "feature_names_in_")
    with pytest.raises(NotFittedError):
        detector.predict(framed(waves(50)))


def test_names_of_a_fit_are_gone_after_one_without_names():
    detector = made().fit(framed(waves(600))).fit(waves(600))
    assert not hasattr(detector, "feature_names_in_")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda d: d.set_params(false_alarm_rate=0.3, nonsense=1), ValueError),
        (lambda d: d.set_params(false_alarm_rate=1e-4).calibrate(), ConfigError),
        (lambda d: d.set_params(threshold="fixed").calibrate(), ConfigError),
        (lambda d: d.calibrate(framed(waves(9))), ConfigError),
        (lambda d: d.calibrate(framed(waves(600))[["heat", "load"]]), ValueError),
        (lambda d: d.set_threshold(np.nan), ConfigError),
    ],
)
def test_changes_that_fail_change_nothing(faulty, change, error):
    detector = made().fit(framed(waves(600)))
    tau, expected = detector.threshold_, detector.predict(faulty)
    fitted = detector.detector_
    with pytest.raises(error):
        change(detector)
    assert detector.detector_ is fitted and detector.threshold_ == tau
    assert detector.false_alarm_rate in (0.1, 1e-4)  # valid alone, so it may be set
    detector.set_params(false_alarm_rate=0.1, threshold="conformal")
    np.testing.assert_array_equal(detector.predict(faulty), expected)


@pytest.mark.parametrize(
    "tau",
    [7, 7.0, np.float32(7), np.float64(7), np.int16(7), np.array(7.0),
     jnp.float32(7), jnp.bfloat16(7), jnp.int32(7), Fraction(7)],
)  # fmt: skip
def test_any_number_can_be_the_threshold(baseline, faulty, tmp_path, tau):
    detector = copy.copy(baseline).set_threshold(tau)
    assert type(detector.threshold_) is float and detector.threshold_ == 7.0
    scores = detector.decision_function(faulty)
    np.testing.assert_array_equal(detector.predict(faulty), scores > 7.0)
    detector.save(tmp_path / "by_hand")
    assert KDDetector.load(tmp_path / "by_hand").threshold_ == 7.0
    pooled = KDDetector.load(tmp_path / "by_hand", entity="pooled")
    assert pooled.threshold_ == 7.0


@pytest.mark.parametrize(
    "tau",
    [True, np.True_, jnp.array(True), "7", b"7", None, -1, -0.5, np.nan, np.inf, 10**400,
     7j, np.array([7.0]), [7.0], np.datetime64("2026-01-01"), Decimal(7)],
)  # fmt: skip
def test_a_threshold_that_is_no_number_is_refused_at_once(baseline, tau):
    before = baseline.detector_
    with pytest.raises(ConfigError, match="must be a finite number from 0 on"):
        baseline.set_threshold(tau)
    assert baseline.detector_ is before


# What was set after `fit`.


@pytest.mark.parametrize("rows", [None, 1.2])
def test_rules_that_were_set_later_hold(tmp_path, faulty, rows):
    clean = None if rows is None else framed(rows * waves(300, seed=5), "2026-03-01")
    settings = {
        "threshold.min_duration": 3, "threshold.cooldown": 40, "threshold.clear": 0.8,
    }  # fmt: skip
    first = made().fit(framed(waves(600)))
    changed = {"false_alarm_rate": 0.3, "settings": settings}
    first.set_params(**changed).calibrate(clean).save(tmp_path / "again")
    loaded = KDDetector.load(tmp_path / "again")
    assert loaded.get_params() == first.get_params()
    assert (loaded.false_alarm_rate, loaded.settings) == (0.3, settings)
    # What a detector with these parameters from the start has.
    usual = made(**changed).fit(framed(waves(600))).calibrate(clean)
    for detector in (first, loaded, loaded.calibrate(clean)):
        assert detector.threshold_ == usual.threshold_
        assert detector.detector_.min_duration == 3
        assert detector.detector_.cooldown == 40
        assert detector.detector_.clear == 0.8
        np.testing.assert_array_equal(detector.predict(faulty), usual.predict(faulty))
    above = first.decision_function(faulty) > first.threshold_
    assert above.sum() > first.predict(faulty).sum() > 0


def test_a_budget_that_was_set_later_holds(tmp_path):
    rows = pd.DataFrame(waves(600), columns=["load", "heat"])
    settings = {"threshold.budget": "2/day", "data.step_seconds": 600.0}
    detector = made().fit(rows)
    with pytest.raises(ConfigError, match="in order of time.*give clean rows to calib"):
        detector.set_params(threshold="budget", settings=settings).calibrate()
    detector.fit(rows)
    expected = detector.threshold_
    # 600 rows are 4.1 days; each fold lacks the windows of its last rows.
    scores = detector.detector_.calibration[0]
    assert len(scores) == 5 * 113
    above = np.flatnonzero(scores > expected)
    events = 1 + int((np.diff(above) >= 8).sum())
    assert events == int(2 * 565 / 144)
    detector.save(tmp_path / "budget")
    loaded = KDDetector.load(tmp_path / "budget").calibrate()
    assert loaded.threshold_ == expected
    # The scores still stand a row apart where another rule takes them.
    for change in (
        lambda: loaded.set_threshold(3.0),
        lambda: loaded.set_params(threshold="quantile").calibrate(),
    ):
        change()
        assert [tau.spacing for tau in loaded.detector_.thresholds] == [1, 1]
    again = detector.calibrate(rows).threshold_
    assert KDDetector.load(tmp_path / "budget").calibrate(rows).threshold_ == again


def test_cells_that_may_be_missing_are_decided_with_the_rows(tmp_path):
    gappy = waves(60, seed=3)
    gappy[20:22, 0] = np.nan
    detector = made().fit(waves(600)).set_params(missing="mask")
    scores = detector.decision_function(gappy)
    assert np.isfinite(scores).all()
    detector.save(tmp_path / "masked")
    loaded = KDDetector.load(tmp_path / "masked")
    np.testing.assert_array_equal(loaded.decision_function(gappy), scores)


def test_parameters_that_do_not_hold_yet_are_named(faulty, recwarn):
    detector = made(settings={"detection.ridge": 0.1}).fit(framed(waves(600)))
    expected = detector.predict(faulty)
    for same in ({"settings": None}, {"window_size": np.int64(8)}):
        detector.set_params(**same)
        detector.predict(faulty)
    assert not recwarn
    detector.set_params(window_size=20, settings={"detection.floor": 0.5})
    for use in (detector.predict, detector.decision_function, detector.explain,
                detector.detect, detector.calibrate):  # fmt: skip
        text = "window_size, detection.floor changed since `fit`.*call fit again"
        with pytest.warns(UserWarning, match=text):
            use(faulty)
    detector.set_params(window_size=8, settings=None).calibrate()
    detector.set_params(false_alarm_rate=0.3)
    with pytest.warns(UserWarning, match="false_alarm_rate changed since `calibrate`"):
        np.testing.assert_array_equal(detector.predict(faulty), expected)
    recwarn.clear()
    assert detector.calibrate().predict(faulty).sum() > expected.sum()
    assert not recwarn


# PyOD's further methods, by the formulas of its base class.


def test_probabilities_are_pyods(baseline, faulty):
    train, scores = baseline.decision_scores_, baseline.decision_function(faulty)
    scaler = MinMaxScaler().fit(train.reshape(-1, 1))
    linear = scaler.transform(scores.reshape(-1, 1)).ravel().clip(0, 1)
    found = baseline.predict_proba(faulty)
    np.testing.assert_allclose(found, np.stack([1 - linear, linear], axis=1))
    assert found[102:110, 1].min() == 1.0 and found[20, 1] < 0.9
    # erf(z / √2) is 2 Φ(z) − 1, and 0 for scores below the mean.
    unified = 2 * scipy.stats.norm(train.mean(), train.std()).cdf(scores) - 1
    found = baseline.predict_proba(faulty, method="unify")
    np.testing.assert_allclose(found[:, 1], unified.clip(0, 1), atol=1e-12)
    with pytest.raises(ConfigError, match="method='sigmoid' is unknown: use one of"):
        baseline.predict_proba(faulty, method="sigmoid")


def test_confidence_is_pyods(baseline, faulty):
    train, scores = baseline.decision_scores_, baseline.decision_function(faulty)
    labels, n = baseline.predict(faulty), len(train)
    found = baseline.predict_confidence(faulty)
    normal = n - (train > baseline.threshold_).sum()
    for row in (0, 20, 105, 150):
        chance = (1 + (train <= scores[row]).sum()) / (2 + n)
        sure = 1 - scipy.stats.binom.cdf(normal, n, chance)
        assert found[row] == pytest.approx(sure if labels[row] else 1 - sure)
    assert found[105] > 0.999 and (found >= 0).all() and (found <= 1).all()


def test_scores_that_were_not_saved_are_asked_for(baseline, faulty, tmp_path):
    baseline.save(tmp_path / "pump")
    loaded = KDDetector.load(tmp_path / "pump")
    for use in (loaded.predict_proba, loaded.predict_confidence):
        with pytest.raises(ConfigError, match="decision_scores_.*are not saved"):
            use(faulty)
        with pytest.raises(NotFittedError):
            getattr(made(), use.__name__)(faulty)


def test_fit_predict_gives_the_labels_of_fit():
    detector = made()
    found = detector.fit_predict(framed(waves(600)))
    np.testing.assert_array_equal(found, detector.labels_)
    assert set(found) == {0, 1}


@pytest.mark.parametrize("labelled", [False, True])
def test_scores_can_be_cross_validated(labelled):
    rows = waves(600)
    y = (np.arange(600) % 50 == 0).astype(int) if labelled else None
    found = cross_val_predict(made(), rows, y, cv=KFold(3), method="decision_function")
    one = made().fit(rows[200:]).decision_function(rows[:200])
    np.testing.assert_array_equal(found[:200], one)
    assert made().fit(rows).classes_.tolist() == [0, 1]


# Rows of all kinds.


def test_arrays_and_frames_give_the_same(baseline):
    values = waves(120, seed=2)
    from_array = made().fit(waves(600))
    np.testing.assert_array_equal(
        from_array.decision_function(values),
        baseline.decision_function(pd.DataFrame(values, columns=["load", "heat"])),
    )
    assert baseline.feature_names_in_.tolist() == ["load", "heat"]
    assert not hasattr(from_array, "feature_names_in_")
    assert from_array.explain(values).columns.tolist() == ["channel_1", "channel_2"]
    assert from_array.detect(values + 9)["start"].tolist() == [0]


def test_no_window_crosses_a_gap_and_no_row_without_a_score_is_normal(baseline):
    frame = framed(waves(60, seed=3))
    late = frame.index[30:] + pd.Timedelta(hours=1)
    frame.index = frame.index[:30].append(late)
    whole = baseline.decision_function(frame)
    parts = [baseline.decision_function(part) for part in (frame[:30], frame[30:])]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    short = frame[25:]  # five rows, a gap, thirty rows
    scores = baseline.decision_function(short)
    assert np.isnan(scores[:5]).all() and np.isfinite(scores[5:]).all()
    with pytest.raises(
        DataError, match="5 of 35 rows have no score, the first is row 1"
    ):
        baseline.predict(short)


def test_missing_cells_are_refused_filled_or_masked(caplog):
    train, gappy = waves(600), waves(60, seed=3)
    gappy[20:40] = np.nan
    with pytest.raises(ValueError, match="value is missing .40 such.* by missing=mask"):
        made().fit(train).predict(gappy)
    masked = made(missing="mask").fit(train)
    scores = masked.decision_function(gappy)
    # The windows of the rows 20 to 39 alone have none.
    assert np.flatnonzero(np.isnan(scores)).tolist() == [*range(27, 41)]
    with pytest.raises(DataError, match="14 of 60 rows have no score"):
        masked.predict(gappy)
    masked.detect(gappy)
    assert "14 of 60 rows have no score" in caplog.text


@pytest.mark.parametrize("limit", [None, 3, 20])
def test_a_value_is_repeated_for_a_bounded_number_of_rows(tmp_path, limit):
    """As in files: for a window of rows if nothing else is said; then it is missing."""
    train, gappy = waves(600), waves(60, seed=3)
    gappy[20:40] = gappy[:2, 1] = np.nan
    settings = limit and {"data.fill_limit": limit}
    filled = made(missing="ffill", settings=settings).fit(train)
    repeated = pd.DataFrame(gappy).ffill(limit=limit or 8).to_numpy()
    masked = made(missing="mask").fit(train)
    expected = masked.decision_function(repeated)
    np.testing.assert_array_equal(filled.decision_function(gappy), expected)
    filled.save(tmp_path)
    again = KDDetector.load(tmp_path)
    np.testing.assert_array_equal(again.decision_function(gappy), expected)
    # The saved detector has the rule for files and streams as well.
    path = tmp_path.parent / "gappy.csv"
    pd.DataFrame(gappy, columns=["channel_1", "channel_2"]).to_csv(path, index=False)
    (series,) = read_like(again.detector_, path)
    np.testing.assert_array_equal(series.values, np.float32(repeated))
    assert plan_of(again.detector_, 0).fill_limit == (limit or 8)
    # The rule holds for the next rows at once.
    again.set_params(settings={"data.fill_limit": 1})
    repeated = pd.DataFrame(gappy).ffill(limit=1).to_numpy()
    expected = masked.decision_function(repeated)
    np.testing.assert_array_equal(again.decision_function(gappy), expected)
    with pytest.raises(ConfigError, match="fill_limit"):
        again.set_params(settings={"data.fill_limit": 0}).predict(gappy)


LABELS = {
    "integers": [0, 1],
    "backwards": [1, 0],
    "numbered": ["channel_1", "channel_2"],
    "levels": pd.MultiIndex.from_product([["pump"], ["load", "heat"]]),
    "mixed": ["load", 7],
}


@pytest.mark.parametrize("kind", LABELS)
def test_columns_of_any_label_are_checked_for_order(tmp_path, kind):
    def frame(values):
        return pd.DataFrame(values, columns=LABELS[kind])

    rows = frame(waves(60, seed=3))
    detector = made().fit(frame(waves(600)))
    detector.save(tmp_path / "named")
    expected = made().fit(waves(600)).decision_function(waves(60, seed=3))
    for own in (detector, KDDetector.load(tmp_path / "named")):
        np.testing.assert_array_equal(own.decision_function(rows), expected)
        assert own.explain(rows).columns.equals(rows.columns)
        for use in (own.predict, own.decision_function, own.explain, own.detect,
                    own.calibrate):  # fmt: skip
            with pytest.raises(ValueError, match="feature names"):
                use(rows[rows.columns[::-1]])
        with pytest.raises(ValueError, match="feature names"):
            own.predict(rows.set_axis(["a", "b"], axis=1))
    assert detector.detector_.channels == {
        "integers": ("0", "1"),
        "backwards": ("1", "0"),
        "numbered": ("channel_1", "channel_2"),
        "levels": ("pump/load", "pump/heat"),
        "mixed": ("load", "7"),
    }.get(kind)


def test_columns_that_only_differ_in_kind_are_refused():
    with pytest.raises(DataError, match="columns 1 and 2 are both named '1'; rename"):
        made().fit(pd.DataFrame(waves(600), columns=["1", 1]))


def test_arrays_have_no_names_after_loading_either(tmp_path):
    made().fit(waves(600)).save(tmp_path / "array")
    loaded = KDDetector.load(tmp_path / "array")
    assert not hasattr(loaded, "feature_names_in_")
    loaded.predict(waves(60))  # without a warning
    loaded.predict(pd.DataFrame(waves(60)))


def test_a_series_comes_out_where_it_is_asked_for(faulty):
    detector = made().fit(framed(waves(600)))
    scores, alarms = detector.decision_function(faulty), detector.predict(faulty)
    assert type(scores) is type(alarms) is np.ndarray
    detector.set_output(transform="pandas")
    for own in (detector, clone(detector).fit(framed(waves(600)))):
        pd.testing.assert_series_equal(
            own.decision_function(faulty), pd.Series(scores, faulty.index, name="score")
        )
        pd.testing.assert_series_equal(
            own.predict(faulty), pd.Series(alarms, faulty.index, name="alarm")
        )
    assert type(detector.set_output().predict(faulty)) is pd.Series
    assert type(detector.decision_scores_) is type(detector.labels_) is np.ndarray
    detector.set_output(transform="default")
    assert type(detector.predict(faulty)) is np.ndarray
    with pytest.raises(ConfigError, match="transform='polars' must be"):
        detector.set_output(transform="polars")


def test_the_mask_of_an_array_is_missing_data():
    gappy, rows = waves(60, seed=3), waves(60, seed=3)
    gappy[20:22, 0], rows[20:22, 0] = np.nan, -999
    hidden = np.ma.masked_equal(rows, -999)
    detector = made(missing="mask").fit(waves(600))
    expected = detector.decision_function(gappy)
    np.testing.assert_array_equal(detector.decision_function(hidden), expected)
    with pytest.raises(
        DataError, match="row 21, column 1 .'channel_1'.: the value is missing"
    ):
        made().fit(waves(600)).predict(hidden)
    train = waves(600)
    train[5, 1] = -999
    fitted = made(missing="mask").fit(np.ma.masked_equal(train, -999))
    train[5, 1] = np.nan
    again = made(missing="mask").fit(train)
    assert fitted.threshold_ == again.threshold_


def test_missing_cells_are_refused_with_the_parameter_that_takes_them(faulty):
    faulty.iloc[3:5, 1] = np.nan
    text = (
        r"row 4, column 2 \('heat'\): the value is missing \(2 such cells in all\).* by "
        "missing=ffill, or leave it NaN by missing=mask"
    )
    with pytest.raises(DataError, match=text):
        made().fit(faulty)
    with pytest.raises(
        ConfigError, match="missing='skip' is unknown: use one of error"
    ):
        made(missing="skip").fit(faulty)


MINUTES = pd.date_range("2026-03-28 21:00", periods=200, freq="min", tz="Europe/Rome")
DAYS = [time.date() for time in pd.date_range("2026-01-01", periods=200)]
INDICES = {
    "range": pd.RangeIndex(200),
    "integers": pd.Index(np.arange(200)[::-1] * 5),
    "texts": pd.Index([f"row {i}" for i in range(200)]),
    "zone": MINUTES,
    "periods": pd.period_range("2026-02-01", periods=200, freq="h"),
    "levels": pd.MultiIndex.from_product([["a", "b"], range(100)]),
    "Arrow": MINUTES.astype(pd.ArrowDtype(pa.timestamp("us", "Europe/Rome"))),
    "Arrow without zone": MINUTES.tz_localize(None).astype("timestamp[s][pyarrow]"),
    "Arrow days": pd.Index(DAYS, dtype=pd.ArrowDtype(pa.date32())),
    "Arrow numbers": pd.Index(np.arange(200) * 5, dtype="int64[pyarrow]"),
    "days": pd.Index(DAYS, dtype=object),
    "offsets that differ": pd.Index(
        [time.tz_convert("UTC" if i > 9 else "Asia/Tokyo") for i, time in enumerate(MINUTES)],
        dtype=object,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", INDICES)
def test_results_have_the_labels_of_the_frame(faulty, kind):
    frame = faulty.set_axis(INDICES[kind])
    detector = made().fit(waves(600))
    (numbers,) = detector.detect(faulty.to_numpy()).itertuples()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # fitted without names
        (event,) = detector.detect(frame).itertuples()
        blame = detector.explain(frame)
    assert blame.index.equals(frame.index)
    assert (event.start, event.end) == (
        frame.index[numbers.start],
        frame.index[numbers.end],
    )
    assert event.peak == frame.index[numbers.peak]
    assert len(frame.loc[event.start : event.end]) == numbers.end - numbers.start + 1
    own = blame.loc[event.peak]
    np.testing.assert_array_equal(own, blame.iloc[numbers.peak])
    assert own.idxmax() == "heat"


def test_no_window_crosses_a_gap_between_periods(baseline):
    rows = framed(waves(60, seed=3))
    rows.index = rows.index[:30].append(rows.index[30:] + pd.Timedelta(hours=1))
    expected = baseline.decision_function(rows)
    assert (expected != baseline.decision_function(rows.reset_index(drop=True))).any()
    for index in (
        rows.index.to_period("min"),
        rows.index.astype("timestamp[ms][pyarrow]"),
        rows.index.tz_localize("UTC").astype(object),
        rows.index.tz_localize("Asia/Tokyo"),
    ):
        found = baseline.decision_function(rows.set_axis(index))
        np.testing.assert_array_equal(found, expected)


def test_times_as_text_say_what_to_do(baseline):
    rows = framed(waves(60))
    text = rows.index.strftime("%Y-%m-%d %H:%M")
    zones = [f"{t:%Y-%m-%dT%H:%M}+0{i % 2}:00" for i, t in enumerate(rows.index)]
    kinds = (text, text.astype("category"), text.astype("string[pyarrow]"), zones)
    for times in kinds:
        X = rows.set_axis(times)
        with pytest.raises(DataError, match="index holds times as text") as error:
            baseline.predict(X)
        advice = re.search(r"X.index = (pd.to_datetime\(.*?\)),", str(error.value))[1]
        assert isinstance(eval(advice, {"pd": pd, "X": X}), pd.DatetimeIndex)
    arrow = rows.index.astype("timestamp[ns][pyarrow]")
    X = rows.assign(since=rows.index - rows.index[0])
    with pytest.raises(DataError, match=r"durations.*X\['since'\].dt.total_seconds"):
        made().fit(X)
    for times in (
        *kinds,
        rows.index.to_period("min"),
        rows.index,
        rows.index.tz_localize("UTC"),
        arrow,
    ):
        X = rows.reset_index(drop=True).assign(when=times)
        with pytest.raises(DataError, match=r"\('when'\)|column 'when'") as error:
            made().fit(X)
        advice = re.search(r"make it the index, (.*), or", str(error.value))[1]
        mended = eval(advice, {"pd": pd, "X": X})
        if times is not zones:  # not in order
            found = baseline.predict(mended)
            np.testing.assert_array_equal(found, baseline.predict(rows))
    with pytest.raises(DataError, match=r"row 1, .*\('state'\): 'on' is not a number"):
        made().fit(rows.assign(state="on"))


def test_rows_that_cannot_be_used_say_so(baseline):
    with pytest.raises(DataError, match="7 rows, but not the 8 successive rows"):
        baseline.predict(framed(waves(7)))
    with pytest.raises(
        DataError, match="longest train series has 9 rows, window_size=8"
    ):
        made().fit(waves(9))
    # No share of so few rows helps, and of more one that is named.
    for rows, share, said in (
        (
            30,
            0.15,
            "a fit window: .* rows, window_size=20. Give [0-9]+ rows or more",
        ),
        (
            300,
            0.89,
            "no entity has a fit window.* rows, .* or settings=.*validation.: 0.6",
        ),
        (
            900,
            0.01,
            "no entity has a validation window.* rows, .* or settings=.*validation.: 0.1",
        ),
    ):
        settings = {"data.validation": share}
        with pytest.raises(DataError, match=said):
            made(window_size=20, settings=settings).fit(waves(rows))
    made(window_size=20, settings={"data.validation": 0.3}).fit(waves(900))
    with pytest.raises(
        ConfigError, match="needs at least 99 calibration windows, have"
    ):
        made(false_alarm_rate=0.01).fit(waves(600))
    with pytest.raises(ValueError, match="X has 1 features, but KDDetector"):
        made().fit(waves(600)).predict(waves(50)[:, :1])
    with pytest.raises(ValueError, match="same order"):
        baseline.predict(framed(waves(50))[["heat", "load"]])
    with pytest.raises(DataError, match="row 2 is at 2026-01-01 00:48"):
        baseline.predict(framed(waves(50))[::-1])
    twice = pd.DataFrame(waves(600), columns=["load", "load"])
    with pytest.raises(DataError, match="columns 1 and 2 are both named 'load'"):
        made().fit(twice)
    with pytest.raises(DataError, match="beyond float32"):
        made().fit(waves(600) * 1e39)
    with pytest.raises(NotFittedError):
        made().predict(waves(50))


FORMS = {
    "1-D": (lambda rows: rows[:, 0], "Expected 2D array, got 1D array instead: Resh"),
    "3-D": (lambda rows: rows[None], "Found array with dim 3"),
    "scalar": (lambda rows: 1.5, "Expected 2D array, got scalar array instead: Resh"),
    "None": (lambda rows: None, "Expected 2D array, got scalar array instead: Resh"),
    "complex": (lambda rows: rows * 1j, "Complex data not supported. This"),
    "complex frame": (lambda rows: framed(rows * 1j), "Complex data not supported. T"),
    "empty": (lambda rows: rows[:0], "Found array with 0 sample(s) (shape=(0, 2))"),
    "no column": (lambda rows: rows[:, :0], "0 feature(s) (shape=(600, 0))"),
    "no list": (lambda rows: [], "Expected 2D array, got 1D array instead: Reshape"),
    "ragged": (lambda rows: [[1.0, 2.0], [3.0]], "setting an array element with a seq"),
    "sparse": (scipy.sparse.csr_array, "Sparse data was passed"),
    "times": (lambda rows: rows.astype("M8[s]"), "datetime64[s] is a time or a durati"),
    "no frame": (
        lambda rows: pd.DataFrame(),
        "at least one array or dtype is required",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_has_not_the_form_of_rows_is_refused(baseline, form):
    make, said = FORMS[form]
    X = make(waves(600))
    for use, shape in (
        (made().fit, "[N, D]."),
        (baseline.predict, "[N, 2] with the columns load, heat in this order."),
        (baseline.calibrate, "[N, 2] with the columns load, heat in this order."),
    ):
        if X is None and use == baseline.calibrate:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an array lacks the columns' names
            with pytest.raises(DataError) as error:
                use(X)
        text = str(error.value)
        assert text.startswith("X: ") and said in text and text.endswith(shape), text
        assert "must be a frame or a dense array of numbers" in text
        assert len(text.splitlines()) == 1
        assert type(pickle.loads(pickle.dumps(error.value))) is type(error.value)


def test_other_columns_are_refused_with_those_expected(baseline):
    rows = framed(waves(50))
    for X, said in (
        (rows[["heat", "load"]], "Feature names must be in the same order"),
        (rows[["load"]], "Feature names seen at fit time, yet now missing:\n- heat"),
        (rows.assign(more=1.0), "Feature names unseen at fit time:\n- more"),
        (rows.to_numpy()[:, :1], "X has 1 features, but KDDetector is expecting 2"),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(DataError, match="columns load, heat in this") as error:
                baseline.predict(X)
        assert said in str(error.value)
    many = made().fit(np.tile(waves(600), 6))
    with pytest.raises(DataError, match=r"\[N, 12\] .* channel_9, … in this order"):
        many.predict(waves(50))


def test_columns_can_be_given_as_an_error_says(baseline):
    rows = framed(waves(50))
    given = rows.assign(more=1.0)[["more", "heat", "load"]]
    with pytest.raises(DataError, match=r"then give X\[detector.feature_names_in_\]:"):
        baseline.predict(given)
    found = baseline.decision_function(given[baseline.feature_names_in_])
    np.testing.assert_array_equal(found, baseline.decision_function(rows))


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_is_refused_with_the_call_that_reads_it(baseline, tmp_path, kind):
    path = tmp_path / "plant.csv"
    rows = framed(waves(50))
    rows.to_csv(path, index=False)
    for use in (baseline.predict, KDDetector().fit):
        with pytest.raises(DataError) as error:
            use(kind(path))
        call = re.search(r"give kdjax\.(.*)\.$", str(error.value))[1]
        assert call == f"read_table({str(path)!r})[0].frame()"
    read = eval(f"kdjax.{call}", {"kdjax": kdjax})
    np.testing.assert_allclose(
        baseline.decision_function(read), baseline.decision_function(rows), rtol=1e-5
    )


def advised(text: str) -> list[dict[str, float]]:
    """The settings that a message advises, each by itself."""
    return [{k: float(v)} for k, v in re.findall(r'settings=\{"(\S+)": (\S+)\}', text)]


@pytest.mark.parametrize("rows", [2, 3, 8, 9, 12, 40, 60, 66])
def test_too_few_rows_for_a_classifier_get_advice_that_is_accepted(rows):
    small = {"classifier.networks": 1, "classifier.steps": 2}
    X = np.random.default_rng(0).normal(size=(67, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DataError, match="give 67 rows|Give 67 rows") as error:
            KDDetector(settings=small).fit(X[:rows])
        assert "window_size=9" in str(error.value)
        ways = advised(str(error.value))
        assert bool(ways) == (rows >= 60)
        for settings in ways:
            KDDetector(settings={**small, **settings}).fit(X[:rows])
        assert KDDetector(settings=small).fit(X).detector_.window == 9


def test_a_budget_names_the_setting_that_it_lacks():
    budget = {"threshold.budget": "2/day"}
    X = waves(600)
    with pytest.raises(ConfigError, match="needs the time between rows") as error:
        KDDetector(detector="pca", threshold="budget", settings=budget).fit(X)
    assert advised(str(error.value)) == [{"data.step_seconds": 60.0}]
    settings = {**budget, "threshold.budget": "19/day", "data.step_seconds": 60}
    KDDetector(detector="pca", threshold="budget", settings=settings).fit(X)


def test_score_tables_take_series_only(baseline):
    detector, rows = baseline.detector_, framed(waves(50))
    table = score_table(detector, baseline._series(rows), entity="X")
    for X in (rows, rows.to_numpy(), [baseline._series(rows)]):
        said = f"type {type(X).__name__}, expected .*Series: .*read_table returns"
        with pytest.raises(DataError, match=said):
            score_table(detector, X, entity="X")
        with pytest.raises(DataError, match=said):
            score_events(detector, X, table, entity="X")


# What numpy would take for numbers, and what it would refuse as missing or true.
CELLS = {
    "1_0": None, "１２": None, "0x1F": None, "1,5": None, "on": None, b"1": None,
    "true": None, True: None, "": np.nan, "NA": np.nan, " null ": np.nan, None: np.nan,
    pd.NA: np.nan, "Bad": np.nan, " 1e-1\xa0": 0.1, Decimal("0.5"): 0.5, 2: 2.0,
}  # fmt: skip


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("kind", ["objects", "text", "list", "masked", "frame"])
def test_cells_of_arrays_are_read_as_in_files(cell, kind):
    settings = {"data.missing_values": ("Bad",)}
    options = TINY | {"detector": "mahalanobis", "settings": settings}
    train, rows = waves(400), waves(40, seed=3).round(3)
    X = rows.astype(object)
    if kind in ("text", "list"):
        X = rows.astype(str).astype(object)
    X[20, 1] = cell
    if kind == "text":
        if not isinstance(cell, str):
            pytest.skip("an array of text holds text")
        X = X.astype(str)
    elif kind == "list":
        X = X.tolist()
    elif kind == "masked":
        X = np.ma.masked_array(X, mask=False)
    elif kind == "frame":
        names = ["channel_1", "channel_2"]
        X, train = pd.DataFrame(X, columns=names), pd.DataFrame(train, columns=names)
    detector = KDDetector(**options).fit(train)
    if CELLS[cell] is None:
        said = (
            rf"^X: row 21, column 2 \('channel_2'\): {re.escape(repr(cell))} is not a"
        )
        for use in (detector.predict, KDDetector(**options).fit):
            with pytest.raises(DataError, match=said):
                use(X)
        return
    rows[20, 1] = CELLS[cell]
    if kind == "frame":
        rows = pd.DataFrame(rows, columns=names)
    if pd.isna(CELLS[cell]):
        with pytest.raises(DataError, match="row 21, column 2 .*the value is missing"):
            detector.predict(X)
        detector.set_params(missing="mask")
    np.testing.assert_array_equal(
        detector.decision_function(X), detector.decision_function(rows)
    )


def test_truth_values_of_an_array_of_objects_are_a_channel():
    truth = np.random.default_rng(0).random(400) > 0.5
    X = np.stack([waves(400)[:, 0], truth], axis=1).astype(object)
    X[:, 1] = truth
    numbers = X.astype(float)
    X[0, 1] = "TRUE" if truth[0] else "False"
    options = TINY | {"detector": "mahalanobis"}
    np.testing.assert_array_equal(
        KDDetector(**options).fit(X).decision_scores_,
        KDDetector(**options).fit(numbers).decision_scores_,
    )


def test_parameters_that_mean_nothing_are_refused():
    rows = waves(600)
    with pytest.raises(ConfigError, match="detector='techer' must be one of student"):
        made(detector="techer").fit(rows)
    with pytest.raises(ConfigError, match="data.window is the parameter window_size"):
        made(settings={"data.window": 5}).fit(rows)
    with pytest.raises(ConfigError, match="data.time_column has no effect"):
        made(settings={"data.time_column": "t"}).fit(rows)
    with pytest.raises(ConfigError, match="did you mean train.learning_rate"):
        made(settings={"train.learning_rat": 1.0}).fit(rows)
    with pytest.raises(ConfigError, match="^KDDetector: teacher.seed=-1 must"):
        made(settings={"teacher.seed": -1}).fit(rows)
    with pytest.raises(ConfigError, match="^KDDetector: random_state=-1 must"):
        made(random_state=-1).fit(rows)
    with pytest.raises(ConfigError, match="^KDDetector: random_state must be a whole"):
        made(random_state=None).fit(rows)
    with pytest.raises(
        ConfigError, match="^false_alarm_rate=0.001 needs.*give 13,357 rows or"
    ):
        made(false_alarm_rate=0.001).fit(rows)
    with pytest.raises(ConfigError, match="KDDetector: teacher_hidden must be a tuple"):
        made(teacher_hidden=5).fit(rows)
    with pytest.raises(ConfigError, match="KDDetector: window_size=1 must lie in"):
        made(window_size=1).fit(rows)


# Networks.


def test_the_networks_are_those_asked_for(student):
    assert student.detector_.model.architecture.hidden == (3,)
    assert student.teacher_.model.architecture.hidden == (4,)
    assert student.detector_.card["model"]["name"] == "student"
    settings = student.detector_.card["settings"]
    assert settings["train"]["batch_size"] == 31
    teacher = KDDetector(**TINY | {"detector": "teacher"}).fit(framed(waves(400)))
    assert teacher.teacher_ is teacher.detector_
    assert teacher.threshold_ == student.teacher_.thresholds[0].tau


def test_a_teacher_teaches_another_student_as_it_is(student):
    rows = 2 * framed(waves(400, seed=4))
    other = student.distill(rows, student_hidden=(2,))
    assert other.teacher_ is student.teacher_
    assert other.detector_.model.architecture.hidden == (2,)
    assert other.get_params() == {**student.get_params(), "student_hidden": (2,)}
    assert other.feature_names_in_.tolist() == ["load", "heat"]
    # Other rows are scaled as the teacher knows them.
    for ours, theirs in zip(
        other.detector_.scalers, student.teacher_.scalers, strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(ConfigError, match="has no teacher: fit"):
        made().fit(rows).distill(rows, student_hidden=(2,))


@pytest.mark.parametrize(
    "kind", [pytest.param("student", marks=pytest.mark.slow), "mahalanobis"]
)
def test_strict_options_of_jax_give_the_same(faulty, kind):
    changed = {"missing": "mask", "detector": kind}
    faulty.iloc[20:30, 0] = np.nan

    def run():
        detector = KDDetector(**TINY | changed).fit(framed(waves(400)))
        found = [detector.decision_function(faulty), detector.explain(faulty)]
        if kind == "student":
            smaller = detector.distill(framed(waves(400)), student_hidden=(2,))
            found.append(smaller.decision_function(faulty))
        detector.calibrate(framed(waves(300, seed=3)))
        return [*found, detector.predict(faulty), detector.threshold_]

    usual = run()
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        found = run()
    for one, other in zip(found, usual, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["student", "kmeans", "pca"])
def test_a_fit_neither_draws_from_global_random_states_nor_moves_them(kind):
    fitted = []
    for seed in (1, 2):
        np.random.seed(seed)
        random.seed(seed)
        before = np.random.get_state()[1].copy(), random.getstate()
        fitted.append(KDDetector(**TINY | {"detector": kind}).fit(waves(400)))
        np.testing.assert_array_equal(np.random.get_state()[1], before[0])
        assert random.getstate() == before[1]
    first, second = fitted
    np.testing.assert_array_equal(first.decision_scores_, second.decision_scores_)
    assert first.threshold_ == second.threshold_


LOGGING = """
import logging

def state():
    root, jax = logging.root, logging.getLogger("jax")
    return (root.handlers[:], root.level, jax.handlers[:], jax.level,
            logging.getLoggerClass(), logging.root.manager.disable)

import jax, flax, optax, absl.logging
before = state()
import kdjax
kdjax.KDDetector
assert state() == before, state()
import numpy as np
options = {"window_size": 8, "stride": 2, "false_alarm_rate": 0.1}
options |= {"detector": "student", "teacher_hidden": (2,), "student_hidden": (2,)}
options |= {"teacher_epochs": 1, "student_epochs": 1}
rows = np.random.default_rng(0).normal(size=(300, 2))
kdjax.KDDetector(**options).fit(rows).predict(rows)
assert state() == before, state()
import logging
logging.basicConfig(level=logging.DEBUG, format="own %(message)s")
assert len(logging.root.handlers) == 1
"""


def test_the_users_logging_is_left_alone():
    code = [sys.executable, "-c", LOGGING]
    subprocess.run(code, check=True, timeout=200)


# What frames may hold.


@pytest.mark.parametrize("absent", [pd.NA, pd.NaT, None, np.nan])
def test_missing_objects_are_missing(absent, faulty):
    options = TINY | {"detector": "mahalanobis", "missing": "mask"}
    detector = KDDetector(**options).fit(framed(waves(400)))
    expected, found = faulty.copy(), faulty.astype(object)
    expected.iloc[20, 0], found.iloc[20, 0] = np.nan, absent
    np.testing.assert_array_equal(
        detector.decision_function(found), detector.decision_function(expected)
    )
    KDDetector(**options).fit(found)
    with pytest.raises(DataError, match="the value is missing; correct it"):
        detector.set_params(missing="error").predict(found)


def test_what_is_no_row_of_numbers_is_refused():
    rows = framed(waves(400))
    options = TINY | {"detector": "mahalanobis"}
    ignoring = options | {"settings": {"data.ignore": ("channel_2",)}}
    with pytest.raises(ConfigError, match="data.ignore names columns of a frame"):
        KDDetector(**ignoring).fit(rows.to_numpy())
    every = options | {"settings": {"data.ignore": tuple(rows.columns)}}
    with pytest.raises(DataError, match="data.ignore names all columns"):
        KDDetector(**every).fit(rows)
    detector = KDDetector(**options).fit(rows)
    levels = pd.MultiIndex.from_arrays([["a"] * len(rows), rows.index])
    with pytest.raises(DataError, match="times and other levels"):
        detector.predict(rows.set_axis(levels, axis=0))


# Copies.


def jumps(windows):
    """Whatever moves is abnormal to this teacher."""
    steps = np.abs(np.diff(windows, axis=1)).sum(axis=2)
    return np.pad(steps, ((0, 0), (1, 0)))


def quiet(windows):
    return -jumps(windows)


def test_any_callable_can_teach():
    seen, rows = [], waves(300)

    def watched(windows):
        seen.append(windows)
        return jumps(windows)

    parameters = {**TINY, "alpha": 1.0, "student_epochs": 6, "scaler": "minmax"}
    distilled = KDDetector(**parameters).fit(rows, teachers=[watched])
    scaled = np.concatenate(seen).reshape(-1, 2)
    # The fit rows, 70 % of all, scaled to [0, 1].
    assert scaled.min() == pytest.approx(0, abs=1e-6)
    assert scaled.max() == pytest.approx(1, abs=1e-6)
    assert {windows.shape[1:] for windows in seen} == {(8, 2)}
    assert distilled.teacher_ is None
    assert distilled.detector_.card["settings"]["distill"]["target"] == "scores"
    other = KDDetector(**parameters).fit(rows, teachers=[quiet])
    # What they learned shows where no label has been: their errors follow their teacher.
    steps = jumps(rows[None])[0]
    follows = [
        scipy.stats.spearmanr(found.explain(rows).sum(axis=1), steps).statistic
        for found in (distilled, other)
    ]
    assert follows[0] > follows[1] + 0.1


def test_weights_of_teachers_count():
    rows = waves(300)

    def student(**fit):
        fitted = KDDetector(**TINY).fit(rows, **fit)
        return jax.tree.leaves(fitted.detector_.model.params)

    one = student(teachers=[jumps])
    both = student(teachers=[jumps, quiet], weights=(2, 0))
    for own, other in zip(one, both, strict=True):
        np.testing.assert_array_equal(own, other)
    mixed = student(teachers=[jumps, quiet], weights=(2, 1))
    assert any((a != b).any() for a, b in zip(one, mixed, strict=True))


@pytest.mark.parametrize(
    ("changes", "fit", "said"),
    [
        ({"detector": "teacher"}, {"teachers": [jumps]}, "uses no teacher"),
        ({"alpha": 0.0}, {"teachers": [jumps]}, "alpha above 0"),
        ({}, {"weights": (1.0,)}, "each of 0 teachers"),
        ({}, {"teachers": [jumps], "weights": (-1.0,)}, "none negative"),
        ({}, {"teachers": [jumps], "weights": (np.nan,)}, "finite"),
        ({"temperature": 2.0}, {"teachers": [jumps]}, "^KDDetector: temperature has"),
        ({}, {"teachers": jumps}, "must be a list or tuple"),
        ({}, {"teachers": None}, "must be a list or tuple"),
        ({}, {"teachers": ["forest"]}, "'forest' is not callable"),
        ({}, {"teachers": [jumps], "weights": 1.0}, "must be a list or tuple"),
        ({}, {"teachers": [jumps], "weights": ["a"]}, "finite number for each of"),
        ({}, {"teachers": [jumps], "weights": [None]}, "finite number for each of"),
        ({}, {"teachers": [jumps], "weights": np.zeros(1)}, "not all 0"),
        ({"settings": "train"}, {}, "settings='train' must be a mapping"),
        ({"settings": [1]}, {}, "must be a mapping"),
        ({"settings": {1: 2}}, {}, "settings: 1 has no effect.*name a field such as"),
        ({"settings": {"train.batch_size": {1, 2}}}, {}, "train.batch_size must be"),
    ],
)
def test_teachers_that_nobody_can_learn_from_are_refused(changes, fit, said):
    with pytest.raises(ConfigError, match=said):
        KDDetector(**TINY | changes).fit(waves(300), **fit)


@pytest.mark.parametrize("answer", [None, "high", [["a"]], object()])
def test_what_a_teacher_answers_must_be_numbers(answer):
    with pytest.raises(DataError, match="a teacher returned"):
        KDDetector(**TINY).fit(waves(300), teachers=[lambda windows: answer])


def test_a_saved_detector_comes_back(tmp_path, student, faulty):
    student.save(tmp_path / "pump")
    loaded = KDDetector.load(tmp_path / "pump")
    np.testing.assert_array_equal(
        loaded.decision_function(faulty), student.decision_function(faulty)
    )
    assert loaded.threshold_ == student.threshold_
    assert loaded.get_params() == student.get_params()
    assert loaded.feature_names_in_.tolist() == ["load", "heat"]
    assert loaded.teacher_ is None and not hasattr(loaded, "labels_")
    again = clone(loaded).fit(framed(waves(400)))
    np.testing.assert_array_equal(again.decision_scores_, student.decision_scores_)
    save_detector(tmp_path / "teacher", student.teacher_)
    # The same student, though a teacher trained anew would have stopped sooner.
    teacher = KDDetector.load(tmp_path / "teacher").set_params(teacher_epochs=1)
    distilled = teacher.distill(framed(waves(400)), student_hidden=(3,))
    np.testing.assert_array_equal(distilled.decision_scores_, student.decision_scores_)
    with pytest.raises(ArtifactError, match="is not a folder"):
        KDDetector.load(tmp_path / "nowhere")
    with pytest.raises(NotFittedError):
        KDDetector().save(tmp_path / "unfitted")


def test_further_settings_come_back(tmp_path):
    settings = {"detection.ridge": 0.2, "data.max_gap": 9.0}
    made(settings=settings).fit(waves(600)).save(tmp_path / "a")
    assert KDDetector.load(tmp_path / "a").settings == settings


def test_detectors_of_several_entities_are_asked_for_one(tmp_path, small):
    save_detector(tmp_path / "two", small._replace(entities=("a",)))
    rows = pd.DataFrame(waves(40) / 9, columns=["x", "y"])
    own = KDDetector.load(tmp_path / "two")
    pooled = KDDetector.load(tmp_path / "two", entity="pooled")
    assert (own.threshold_, pooled.threshold_) == (8.0, 12.0)
    table = score_table(
        load_detector(tmp_path / "two"),
        Series("rows", np.float32(rows), ("x", "y")),
        entity="pooled",
    )
    np.testing.assert_array_equal(
        pooled.decision_function(rows)[3:], table["window_score"][3:]
    )
    with pytest.raises(ConfigError, match="load it with entity=NAME"):
        pooled.set_params(false_alarm_rate=0.5).calibrate(rows)
    with pytest.raises(DataError, match="has no entity 'b'"):
        KDDetector.load(tmp_path / "two", entity="b")


def test_copies_in_memory_are_the_same(student, faulty):
    expected = student.decision_function(faulty)
    copied = pickle.loads(pickle.dumps(student))
    np.testing.assert_array_equal(copied.decision_function(faulty), expected)
    threads = joblib.Parallel(n_jobs=2, backend="threading")
    for found in threads(
        joblib.delayed(student.decision_function)(faulty) for _ in range(2)
    ):
        np.testing.assert_array_equal(found, expected)


def test_it_works_at_the_end_of_a_pipeline(faulty):
    train = framed(waves(600))
    pipeline = make_pipeline(StandardScaler(), made(scaler="none"))
    pipeline.fit(train)
    own = made(scaler="none").fit(StandardScaler().fit_transform(train))
    scaled = StandardScaler().fit(train).transform(faulty)
    np.testing.assert_array_equal(
        pipeline.decision_function(faulty), own.decision_function(scaled)
    )
    assert pipeline.predict(faulty)[102:110].all()


@pytest.mark.slow
def test_the_quickstart_runs(tmp_path, monkeypatch, capsys):
    blocks = re.findall(
        r"```python\n(.*?)```", QUICKSTART.read_text("utf-8"), re.DOTALL
    )
    code = "\n".join(blocks)
    assert len(code.splitlines()) <= 60
    (tmp_path / "quickstart.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path("quickstart.py")
    fresh, worst = names["fresh"], names["worst"]
    assert fresh.index[200] <= worst["start"] <= fresh.index[202]
    assert fresh.index[229] <= worst["end"] <= fresh.index[250]
    assert capsys.readouterr().out.splitlines()[-1] == "heat"
    above = names["scores"] > names["detector"].threshold_ / 2
    assert above[202:230].all()
    assert names["alarms"][202:230].all() and names["alarms"].mean() < 0.2
