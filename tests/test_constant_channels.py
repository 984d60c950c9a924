"""Channels that are constant in training have no share while they keep their value."""

import numpy as np
import pandas as pd
import pytest

from kdjax.data.series import Series
from kdjax.detection.detector import score_batches, stream_detector
from kdjax.detection.storage import load_detector, save_detector
from kdjax.detection.tables import score_table
from kdjax.estimator import KDDetector
from kdjax.export.container import load_onnx
from kdjax.export.onnx import onnx_file
from kdjax.export.stablehlo import load_stablehlo, stablehlo_file

LENGTH = 10
KINDS = ("mahalanobis", "pca+difference", "classifier")


def signals(rows, seed):
    rng, t = np.random.default_rng(seed), np.arange(rows)
    frame = pd.DataFrame({"load": np.sin(t / 9), "dead": 4.0, "flow": np.cos(t / 7)})
    return frame.assign(
        load=frame.load + rng.normal(0, 0.1, rows),
        flow=frame.flow + rng.normal(0, 0.1, rows),
    )


def fitted(frame, kind):
    options = {"window_size": LENGTH, "stride": 2, "false_alarm_rate": 0.05}
    if "+" in kind:  # an ensemble, as a run has them
        from kdjax.data.series import Dataset
        from kdjax.detection.calibration import calibrate
        from kdjax.experiment.assemble import calibration_rules, make_detector
        from kdjax.experiment.pipeline import prepare_dataset
        from kdjax.models.residual import join_models
        from kdjax.training.components import fit_baseline

        base = KDDetector(detector="mahalanobis", **options)
        settings = base._settings()
        series = Series("X", frame.to_numpy("f"), tuple(frame.columns))
        prepared = prepare_dataset(Dataset("X", (series,), ()), settings)
        model = join_models([fit_baseline(one, prepared) for one in kind.split("+")])
        calibration = calibrate(model, prepared, calibration_rules(settings, prepared))
        return make_detector(
            "X", model, calibration, prepared, settings=settings, digests={}
        )
    settings = {"classifier.steps": 2, "classifier.networks": 2}
    return KDDetector(detector=kind, settings=settings, **options).fit(frame).detector_


@pytest.fixture(scope="module", params=KINDS)
def pair(request):
    """A detector of a dead channel, and of the same rows without it."""
    frame = signals(600, 0)
    return fitted(frame, request.param), fitted(
        frame.drop(columns="dead"), request.param
    )


def test_scores_are_those_of_the_other_channels(pair):
    detector, other = pair
    np.testing.assert_array_equal(
        detector.constant, np.float32([[np.nan, 4, np.nan]] * 2)
    )
    assert np.isnan(other.constant).all()
    frame = signals(200, 1)
    series = Series("X", frame.to_numpy("f"), tuple(frame.columns))
    found = score_table(detector, series, entity="X", contributions=True)
    assert (found["contribution:dead"] == 0).all()
    parts = found.filter(like="contribution:").sum(axis=1)
    np.testing.assert_allclose(parts, found["score"], rtol=1e-4)
    if detector.model.kind == "mahalanobis":
        alone = Series("X", frame[["load", "flow"]].to_numpy("f"), ("load", "flow"))
        wanted = score_table(other, alone, entity="X")
        np.testing.assert_allclose(found["score"], wanted["score"], rtol=1e-4)
        assert detector.thresholds[0].tau == pytest.approx(other.thresholds[0].tau)


def test_every_way_gives_the_same_where_a_dead_channel_moves(pair, tmp_path):
    detector, _ = pair
    rows = np.array(signals(60, 2).to_numpy("f"))
    rows[13, 0] = rows[25] = np.nan
    rows[37, [0, 2]] = np.nan  # the dead channel alone: no score
    moved = rows.copy()
    moved[31:50, 1] = 9
    starts = np.arange(0, 60, LENGTH)
    (wanted,) = score_batches(detector, 0, rows, starts, explain=True)
    points = wanted.points.ravel()
    assert np.flatnonzero(np.isnan(points)).tolist() == [25, 37]
    (found,) = score_batches(detector, 0, moved, starts, explain=True)
    still = slice(None)
    if detector.model.kind == "classifier":
        # It sees what moves, and blames it; it knows the value where a cell is missing.
        still = [0, 1, 2, 5]
        assert (found.contributions[3:5, :, 1] > 0).all()
        assert np.nanmin(abs(found.points[3:5] - wanted.points[3:5])) > 1e-3
    # What the other residuals do is theirs; of these kinds only `pca` mixes channels.
    np.testing.assert_allclose(found.points[still], wanted.points[still], rtol=1e-4)
    assert (found.contributions[still, :, 1] == 0).all()
    windows = moved.reshape(-1, LENGTH, 3)
    for file in (
        load_onnx(onnx_file(detector, 0)),
        load_stablehlo(stablehlo_file(detector, 0)),
    ):
        own = file.run(windows)
        np.testing.assert_allclose(own.point_score, found.points, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(
            own.contribution, found.contributions, rtol=1e-3, atol=1e-3
        )
    save_detector(tmp_path / "d", detector)
    loaded = load_detector(tmp_path / "d")
    np.testing.assert_array_equal(loaded.constant, detector.constant)
    stream = stream_detector(loaded, entity="X")
    series = Series("X", moved, detector.channels)
    table = score_table(detector, series, entity="X", causal=True)
    own = [stream.update(row).score for row in moved]
    np.testing.assert_allclose(own, table["score"], rtol=1e-4)


def test_the_estimator_blames_no_constant_channel():
    frame = signals(600, 0)
    detector = KDDetector(
        detector="mahalanobis", window_size=LENGTH, stride=2, false_alarm_rate=0.05
    ).fit(frame)
    clean = signals(300, 3)
    assert (detector.explain(clean)["dead"] == 0).all()
    np.testing.assert_array_equal(
        detector.predict(clean), detector.predict(clean.assign(dead=5.0))
    )


def test_where_nothing_moves_no_channel_is_left_out():
    still = pd.DataFrame({"a": np.full(400, 2.0), "b": np.full(400, 3.0)})
    detector = KDDetector(
        detector="mahalanobis", window_size=LENGTH, stride=2, false_alarm_rate=0.05
    ).fit(still)
    assert np.isnan(detector.detector_.constant).all()
    assert detector.predict(still.assign(a=9.0)).all()


def test_a_dead_channel_that_is_missing_keeps_its_value():
    # Without a scaler its value is not 0, which fills what is missing throughout.
    settings = {"classifier.steps": 2, "classifier.networks": 2}
    options = {"window_size": LENGTH, "stride": 2, "false_alarm_rate": 0.05}
    made = KDDetector(
        detector="classifier", scaler="none", settings=settings, **options
    )
    detector = made.fit(signals(600, 0)).detector_
    rows = signals(LENGTH, 3).to_numpy("f")
    gone = rows.copy()
    gone[:, 1] = np.nan
    (wanted,) = score_batches(detector, 0, rows, np.array([0]), explain=True)
    (found,) = score_batches(detector, 0, gone, np.array([0]), explain=True)
    np.testing.assert_allclose(found.points, wanted.points, rtol=1e-5)
    np.testing.assert_allclose(found.contributions, wanted.contributions, atol=1e-5)
    own = load_onnx(onnx_file(detector, 0)).run(gone[None])
    np.testing.assert_allclose(own.point_score, found.points, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(own.contribution, found.contributions, atol=1e-3)
