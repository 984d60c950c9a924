"""A classifier as a detector, from rows to thresholds, files and streams."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import kdjax
from kdjax.cli import main
from kdjax.data.prepared import training_windows
from kdjax.data.series import Dataset, Series
from kdjax.data.splits import window_starts
from kdjax.detection.detector import score_batches, stream_detector
from kdjax.detection.storage import load_detector
from kdjax.detection.tables import score_table
from kdjax.errors import ConfigError
from kdjax.estimator import KDDetector
from kdjax.experiment import write
from kdjax.experiment.pipeline import prepare_dataset
from kdjax.export.costs import numbers
from kdjax.models.classifier import classifier_points
from kdjax.training import components, fitting

OWN_DATA = Path(__file__).parents[1] / "configs" / "own_data.py"
CHANNELS = ("load", "heat", "flow")
OPTIONS = {
    "window_size": 16,
    "stride": 2,
    "false_alarm_rate": 0.1,
    "missing": "mask",
    "threshold": "conformal",
    "settings": {
        "classifier.networks": 2,
        "classifier.channels": 16,
        "classifier.steps": 150,
    },
}


def waves(rows, seed=0):
    rng = np.random.default_rng(seed)
    values = np.sin(np.arange(rows)[:, None] / 4 + np.arange(3)) * [1, 10, 100]
    values += rng.normal(0, [0.05, 0.5, 5], (rows, 3))
    return pd.DataFrame(values.astype("f"), columns=CHANNELS)


@pytest.fixture(scope="module")
def fitted():
    return kdjax.KDDetector(**OPTIONS).fit(waves(600))


@pytest.fixture(scope="module")
def faulty():
    """Channel heat moves in rows 100 to 129; cells and whole rows are missing later."""
    rows = waves(300, seed=1)
    rows.loc[100:129, "heat"] += 25
    rows.loc[200:204, "load"] = np.nan
    rows.loc[230:250] = np.nan
    return rows


def test_it_is_the_default_and_learns_from_all_rows(fitted):
    detector = fitted.detector_
    assert detector.model.kind == "classifier" and fitted.teacher_ is None
    assert detector.card["model"]["name"] == "classifier"
    rows = waves(600).to_numpy()
    data = Dataset("rows", (Series("X", rows, CHANNELS),), ())
    prepared = prepare_dataset(data, fitted._settings())
    parts = ("fit", "validation", "calibration")
    found = [training_windows(prepared, part, stride=1) for part in parts]
    scaled, starts = found[0][0], np.concatenate([starts for _, starts in found])
    windows = np.stack([scaled[start : start + 16] for start in starts])
    options = {"networks": 2, "channels": 16, "steps": 150, "missing": True}
    wanted = kdjax.fit_classifier(windows, seed=0, **options)
    for name in ("low", "scale", "mean", "level"):
        np.testing.assert_array_equal(detector.model.params[name], wanted[name])
    for name, leaf in wanted["networks"].items():
        np.testing.assert_array_equal(detector.model.params["networks"][name], leaf)
    # τ is the score at the conformal rank of the calibration windows, for networks of both
    # views, which have not seen them.
    known = windows[: -len(found[2][1])]
    half = kdjax.fit_classifier(known, seed=0, **options)
    spans = prepared.entities[0].split.calibration
    held_out = window_starts(spans, window=16, stride=2)
    windows = np.stack([scaled[start : start + 16] for start in held_out])
    scores = np.sort(kdjax.classifier_scores(half, windows))
    rank = int(np.ceil((len(scores) + 1) * 0.9))
    np.testing.assert_allclose(fitted.threshold_, scores[rank - 1], rtol=1e-5)
    # Its own numbers, the scaler's and τ: it has no Gaussian.
    assert numbers(detector) == detector.model.parameters + 2 * 3 + 1


def test_a_channel_without_values_is_no_anomaly_where_cells_may_be_missing():
    """Under `mask` the classifier learned windows without a channel; under `error` not."""
    settings = {**OPTIONS["settings"], "classifier.steps": 600}
    rows, raised = waves(300, seed=3), {}
    for missing in ("mask", "error"):
        detector = KDDetector(**{**OPTIONS, "missing": missing, "settings": settings})
        detector.fit(waves(600)).set_params(missing="mask")
        plain = detector.decision_function(rows).mean()
        assert detector.predict(rows).mean() < 0.1
        raised[missing] = [
            detector.decision_function(rows.assign(**{name: np.nan})).mean() / plain
            for name in CHANNELS
        ]
        if missing == "mask":  # another channel's fault is still found
            faulty = rows.assign(load=np.nan, heat=rows["heat"] + 25)
            found = detector.decision_function(faulty)
            assert np.nanmin(found) > 5 * detector.threshold_
    assert max(raised["mask"]) < 6 and min(raised["error"]) > 20


@pytest.mark.parametrize(("networks", "half"), [(1, 1), (2, 2), (3, 2), (4, 2), (8, 4)])
def test_half_the_networks_but_both_views_choose_the_threshold(
    monkeypatch, fitted, networks, half
):
    asked = []

    def fit(windows, *, networks, **options):
        asked.append(networks)
        return {}

    monkeypatch.setattr(components, "fit_classifier", fit)
    data = Dataset("rows", (Series("X", waves(600).to_numpy(), CHANNELS),), ())
    prepared = prepare_dataset(data, fitted._settings())
    given = {"classifier": {"networks": networks}}
    components.fit_baseline("classifier", prepared, **given)
    for by_folds in (False, True):
        components.fit_held_out("classifier", prepared, by_folds=by_folds, **given)
    assert asked == [networks, half, half, half]


@pytest.mark.parametrize("kind", ["classifier", "cnn_forecast", "gru_forecast"])
def test_huge_windows_are_fewer_for_all_that_learn(monkeypatch, fitted, kind):
    name = "fit_forecaster" if kind.endswith("forecast") else "fit_classifier"
    seen = []

    def fit(*args, **options):
        seen.append(args[-1].shape)
        return {}

    monkeypatch.setattr(components, name, fit)
    monkeypatch.setattr(fitting, "CELLS", 16 * 3 * 120)
    data = Dataset("rows", (Series("X", waves(600).to_numpy(), CHANNELS),), ())
    prepared = prepare_dataset(data, fitted._settings())
    components.fit_baseline(kind, prepared)
    assert seen == [(120, 16, 3)]


def test_huge_windows_are_fewer_in_a_memory(monkeypatch, fitted):
    monkeypatch.setattr(fitting, "CELLS", 16 * 3 * 110)
    data = Dataset("rows", (Series("X", waves(900).to_numpy(), CHANNELS),), ())
    prepared = prepare_dataset(data, fitted._settings())
    kept = components.fit_baseline("memory", prepared).params["windows"]
    assert kept.shape == (110, 16, 3)


def test_by_blocks_each_half_is_scored_by_networks_that_learnt_the_other(fitted):
    other = kdjax.KDDetector(**OPTIONS | {"threshold": "blocks"}).fit(waves(600))
    scaled = _scaled(other, waves(600))
    scores = []
    for own, others in (((0, 300), (300, 600)), ((300, 600), (0, 300))):
        learnt, held_out = (
            np.stack([scaled[a : a + 16] for a in range(first, stop - 15, step)])
            for (first, stop), step in ((others, 1), (own, 2))
        )
        params = kdjax.fit_classifier(learnt, networks=2, steps=150, missing=True)
        scores.append(classifier_points(params, held_out).max(axis=1))
    blocks = np.array_split(np.concatenate(scores), 5)
    # ⌈(n + 1) · 0.9⌉-th smallest of each block.
    levels = [np.sort(b)[int(np.ceil((len(b) + 1) * 0.9)) - 1] for b in blocks]
    tau = np.median(levels) * (1 + (3 * 8 / sum(map(len, blocks))) ** 1.5)
    assert other.threshold_ == pytest.approx(tau, rel=1e-4)
    # A new choice from the same scores is the same.
    assert other.calibrate().threshold_ == pytest.approx(tau, rel=1e-4)
    rows = waves(80, seed=2)
    np.testing.assert_array_equal(
        other.decision_function(rows), fitted.decision_function(rows)
    )


def _scaled(detector, frame):
    scaler = kdjax.data.scaler.Scaler(*(f[0] for f in detector.detector_.scalers))
    return kdjax.apply_scaler(scaler, frame.to_numpy())


def test_with_a_fixed_threshold_nothing_is_held_out(fitted, monkeypatch, tmp_path):
    learnt = []

    def fit(*args, **options):
        learnt.append(options["networks"])
        return kdjax.fit_classifier(*args, **options)

    monkeypatch.setattr(components, "fit_classifier", fit)
    settings = OPTIONS["settings"] | {"threshold.value": 9.0}
    given = OPTIONS | {"settings": settings, "threshold": "fixed"}
    other = kdjax.KDDetector(**given)
    other.fit(waves(600))
    assert other.threshold_ == 9 and learnt == [2]
    # Rows that it learnt from don't tell how often it alarms on others.
    assert other.detector_.calibration[0].size == 0
    other.save(tmp_path / "saved")
    assert load_detector(tmp_path / "saved").calibration[0].size == 0
    rows = waves(80, seed=2)
    np.testing.assert_array_equal(
        other.decision_function(rows), fitted.decision_function(rows)
    )


def test_a_run_with_a_fixed_threshold_measures_no_rate_on_rows_it_learnt_from(
    tmp_path, monkeypatch
):
    drawn, real = [], write.contribution_bins

    def bins(detector, index, values, starts, bins):
        drawn.append((detector.model.kind, len(starts)))
        return real(detector, index, values, starts, bins)

    monkeypatch.setattr(write, "contribution_bins", bins)
    waves(600).to_csv(tmp_path / "rows.csv", index=False)
    waves(200, seed=1).to_csv(tmp_path / "new.csv", index=False)
    changes = {
        "data.path": str(tmp_path / "rows.csv"),
        "data.test_path": str(tmp_path / "new.csv"),
        "data.window": 16,
        "data.stride": 2,
        "student.components": ("classifier",),
        "teacher.components": ("mahalanobis",),
        "baselines": (),
        "threshold.method": "fixed",
        "threshold.value": 0.5,
        **{name: OPTIONS["settings"][name] for name in OPTIONS["settings"]},
    }
    settings = kdjax.resolve(kdjax.override(kdjax.get_config(), changes))
    results = kdjax.run(settings, tmp_path / "run")
    rates = {row["model"]: row for row in results["rates"]}
    own, teacher = rates["student"], rates["teacher"]["left_out"]
    assert own["tau"] == 0.5 and own["expected_events"] is None and own["drift"] is None
    assert own["left_out"]["rate"] is None and own["left_out"]["separate_windows"] == 0
    assert own["left_out"]["detail"] == "no calibration window has a score"
    assert teacher["rate"] is not None and teacher["separate_windows"] > 1
    # A classifier's contributions take long: its heat map is of fewer windows.
    ((kind, windows),) = drawn
    assert kind == "classifier" and 93 / 4 < windows < 93


def test_faults_alarm_and_their_channel_is_named(fitted, faulty):
    events = fitted.detect(faulty[:200])
    worst = events.loc[events["severity"].idxmax()]
    assert 100 <= worst["start"] < 112 and worst["channels"].startswith("heat;")
    assert fitted.predict(faulty[:90]).mean() < 0.3


def test_scores_are_those_of_the_function_row_by_row(fitted, faulty):
    detector, rows = fitted.detector_, faulty.to_numpy()
    starts = np.arange(180)
    found = [*score_batches(detector, 0, rows, starts, explain=True)]
    points = np.concatenate([piece.points for piece in found])
    parts = np.concatenate([piece.contributions for piece in found])
    offset, scale = (field[0] for field in detector.scalers)
    windows = np.stack([rows[start : start + 16] for start in starts])
    wanted = classifier_points(detector.model.params, (windows - offset) / scale)
    np.testing.assert_allclose(points, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(parts.sum(axis=-1), points, rtol=1e-4)
    table = score_table(detector, Series("X", rows, CHANNELS), entity="X")
    assert table["score"][230:251].isna().all()
    assert table["score"][200:205].notna().all()


def test_saved_exported_and_streamed_alike(fitted, faulty, tmp_path):
    fitted.save(tmp_path / "detector")
    loaded = load_detector(tmp_path / "detector")
    rows = Series("X", faulty.to_numpy(), CHANNELS)
    wanted = score_table(fitted.detector_, rows, entity="X", causal=True)
    found = score_table(loaded, rows, entity="X", causal=True)
    pd.testing.assert_frame_equal(found, wanted)
    stream = stream_detector(loaded, entity="X")
    streamed = [stream.update(row) for row in rows.values]
    np.testing.assert_allclose(
        [row.window_score for row in streamed],
        wanted["window_score"],
        rtol=1e-4,
        atol=1e-5,
    )
    assert [row.state for row in streamed[100:130]] == [*wanted["state"][100:130]]
    shown = [row.channels[0] for row in streamed[104:115]]
    assert shown == ["heat"] * 11


def test_short_windows_are_refused_with_advice():
    detector = kdjax.KDDetector(**OPTIONS | {"window_size": 8})
    with pytest.raises(ConfigError) as error:
        detector.fit(waves(600))
    assert str(error.value) == (
        "window_size=8 is too short for the classifier, which needs at least 9 rows: "
        "raise it, or use another detector."
    )


def test_rows_without_a_value_are_filled_for_training():
    rows = waves(600)
    rows.loc[40:60, "load"] = np.nan
    holed = kdjax.KDDetector(**OPTIONS).fit(rows)
    assert np.isfinite(holed.threshold_)
    assert np.isfinite(holed.decision_function(waves(80, seed=2))).all()


def test_another_seed_gives_another_classifier(fitted):
    other = kdjax.KDDetector(**OPTIONS, random_state=1).fit(waves(600))
    assert other.threshold_ != fitted.threshold_


def test_the_program_trains_and_saves_one(tmp_path):
    waves(900).to_csv(tmp_path / "plant.csv", index=False)
    flags = {
        "data.path": tmp_path / "plant.csv",
        "data.window": 16,
        "data.stride": 2,
        "threshold.false_alarm_rate": 0.1,
        "classifier.networks": 1,
        "classifier.steps": 20,
        "teacher.components": "('classifier',)",
        "student.components": "('classifier',)",
        "baselines": "('mahalanobis',)",
    }
    command = ["kdjax", "run", f"--config={OWN_DATA}", f"--workdir={tmp_path / 'run'}"]
    assert main(command + [f"--config.{n}={value}" for n, value in flags.items()]) == 0
    student = load_detector(tmp_path / "run" / "detectors" / "student")
    assert student.model.kind == "classifier" and student.model.parameters > 1000


def test_rows_of_training_keep_the_scores_that_tau_was_chosen_on():
    values = np.random.default_rng(0).normal(size=(800, 3))
    rows = pd.DataFrame(values, pd.date_range("2026-01-01", periods=800, freq="min"))
    fitted = KDDetector(settings={"classifier.networks": 2, "classifier.steps": 20})
    tau = fitted.fit(rows).threshold_
    known = np.sort(fitted.detector_.calibration[0])
    assert fitted.calibrate(rows).threshold_ == tau
    # Other rows are scored.
    assert fitted.calibrate(rows + 0.01).threshold_ != tau
    fitted.fit(rows).set_params(threshold="conformal", false_alarm_rate=0.1)
    rank = math.ceil((len(known) + 1) * 0.9)
    assert fitted.calibrate(rows).threshold_ == known[rank - 1]
    fitted.set_params(threshold="budget")
    with pytest.raises(
        ConfigError, match="learned from.*give normal rows recorded later"
    ):
        fitted.calibrate(rows)
