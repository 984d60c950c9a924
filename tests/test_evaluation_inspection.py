"""Training rows under the detector that they made: worst windows, and their places."""

import numpy as np
import pytest
from rich.console import Console

from kdjax.data.prepared import prepare
from kdjax.data.scaler import Scaler, apply_scaler
from kdjax.data.series import Dataset, Series
from kdjax.detection.calibration import Rules
from kdjax.detection.detector import score_scaled
from kdjax.detection.gaussian import Gaussian
from kdjax.detection.thresholds import Rule
from kdjax.evaluation.evaluate import WORST, evaluate_models, inspect_training
from kdjax.models.residual import ResidualModel

WINDOW, STRIDE, ROWS = 10, 5, 400
RULES = Rules(1, 0.03, 0.1, "none", "per_entity", Rule("conformal", 0.2), 0.0, 64)
FIRST = np.datetime64("2024-05-01T00:00", "ns")


def series(entity, *, time, peaks):
    values = np.random.default_rng(len(entity)).normal(size=(ROWS, 2))
    for row, height in peaks.items():
        values[row : row + 3] += height
    return Series(entity, values.astype(np.float32), ("x", "y"), time)


@pytest.fixture(scope="module")
def inspected():
    """Two entities; in the rows of the first stand four disturbances."""
    dated = FIRST + np.arange(ROWS) * np.timedelta64(1, "m")
    train = (
        series("dated", time=dated, peaks={101: 9, 203: 30, 120: 20, 380: 12}),
        series("bare", time=None, peaks={}),
    )
    prepared = prepare(
        Dataset("plant", train, ()), window=WINDOW, stride=STRIDE, max_gap=5.0,
        validation=0.15, calibration=0.15, scaler="zscore",
    )  # fmt: skip
    evaluated = evaluate_models(
        {"student": ResidualModel("difference", {})},
        prepared,
        RULES,
        min_anomalous_points=1,
        console=Console(quiet=True),
    )["student"]
    return prepared, evaluated, inspect_training(evaluated, prepared, RULES)


def points_of(prepared, evaluated, place):
    """Starts of all windows of an entity's parts, and their point scores."""
    entity = prepared.entities[place]
    starts = np.concatenate(
        [
            np.arange(start, stop - WINDOW + 1, STRIDE)
            for spans in entity.split
            for start, stop in spans
        ]
    )
    points = score_scaled(
        evaluated.model,
        Gaussian(*(field[place] for field in evaluated.calibration.gaussians)),
        apply_scaler(
            Scaler(*(field[place] for field in evaluated.calibration.scalers)),
            entity.train.values,
        ),
        starts,
        window=WINDOW,
        batch_size=64,
    )
    return starts, points


@pytest.mark.parametrize("place", [0, 1])
def test_rows_have_the_score_of_the_latest_window_of_their_part(inspected, place):
    prepared, evaluated, found = inspected
    starts, points = points_of(prepared, evaluated, place)
    second = np.sort(points, axis=1)[:, -2]  # one point may lie above τ
    spans = np.concatenate(prepared.entities[place].split)
    expected = np.full(ROWS, np.nan)
    for row in range(ROWS):
        (span,) = spans[(spans[:, 0] <= row) & (row < spans[:, 1])]
        ended = (starts >= span[0]) & (starts + WINDOW - 1 <= row)
        if ended.any():
            expected[row] = second[ended][np.argmax(starts[ended])]
    assert 0 < np.isnan(expected).sum() < ROWS / 2
    np.testing.assert_allclose(found[place].scores, expected, rtol=1e-6)
    assert found[place].entity == ("dated", "bare")[place]


@pytest.mark.parametrize("place", [0, 1])
def test_the_worst_windows_are_the_highest_that_share_no_row(inspected, place):
    prepared, evaluated, found = inspected
    starts, points = points_of(prepared, evaluated, place)
    second = np.sort(points, axis=1)[:, -2].astype(float)  # one point may lie above τ
    wanted = []
    for start, score in sorted(zip(starts, second, strict=True), key=lambda w: -w[1]):
        if all(abs(start - other) >= WINDOW for other, _ in wanted):
            wanted.append((start, score))
    worst = found[place].worst
    assert len(worst) == WORST
    assert [w["score"] for w in worst] == [score for _, score in wanted[:WORST]]
    tau = evaluated.calibration.thresholds[place].tau
    assert [w["above"] for w in worst] == [s > tau for _, s in wanted[:WORST]]
    assert {w["entity"] for w in worst} == {found[place].entity}


def test_windows_are_named_by_part_and_time(inspected):
    prepared, _, found = inspected
    split = prepared.entities[0].split
    for window in found[0].worst:
        start, end = (np.datetime64(window[side]) for side in ("start", "end"))
        assert end - start == np.timedelta64(WINDOW - 1, "m")
        row = int((start - FIRST) / np.timedelta64(1, "m"))
        spans = getattr(split, window["part"])
        assert ((spans[:, 0] <= row) & (row + WINDOW <= spans[:, 1])).any()
    assert {203, 120} & set(range_of(found[0].worst[0]))
    assert "calibration" in {window["part"] for window in found[0].worst}


def range_of(window):
    start = (np.datetime64(window["start"]) - FIRST) / np.timedelta64(1, "m")
    return range(int(start), int(start) + WINDOW + 3)


def test_rows_without_time_are_counted(inspected):
    *_, found = inspected
    for window in found[1].worst:
        assert isinstance(window["start"], int)
        assert window["end"] == window["start"] + WINDOW - 1


def test_numbers_of_time_are_told_as_such_and_an_overflow_comes_first():
    time = np.arange(ROWS) * 0.5
    train = series("numbered", time=time, peaks={})
    train.values[50] = 3e38
    prepared = prepare(
        Dataset("plant", (train,), ()), window=WINDOW, stride=STRIDE, max_gap=5.0,
        validation=0.15, calibration=0.15, scaler="none",
    )  # fmt: skip
    evaluated = evaluate_models(
        {"student": ResidualModel("mahalanobis", {})},
        prepared,
        RULES._replace(allowed_points=0),
        min_anomalous_points=1,
        console=Console(quiet=True),
    )["student"]
    (found,) = inspect_training(evaluated, prepared, RULES._replace(allowed_points=0))
    first = found.worst[0]
    assert (first["score"], first["above"]) == (None, True)
    assert first["start"] <= 25.0 <= first["end"] == first["start"] + 4.5
