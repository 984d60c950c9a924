"""Scores, residuals and contributions of detectors, against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from kdjax.data.scaler import Scaler
from kdjax.detection.detector import (
    entity_index,
    gaussian_of,
    residual_batches,
    score_batches,
    score_scaled,
    score_windows,
)
from kdjax.detection.gaussian import Gaussian
from kdjax.detection.storage import load_detector, save_detector
from kdjax.detection.tables import score_table
from kdjax.errors import DataError
from kdjax.models.autoencoder import Architecture, network
from kdjax.models.residual import (
    ResidualModel,
    component,
    components_of,
    join_models,
)


@pytest.fixture
def netted(small):
    """The detector `small` with a network, of layers that nest its parameters."""
    shape = Architecture(2, (3, 2), decoder="feedback", head="sigmoid")
    params = network(shape).init(jax.random.key(4))
    return small._replace(model=ResidualModel("autoencoder", params, shape))


# Scoring.


def test_score_windows_scales_and_measures_with_the_entitys_own(small, rows):
    values = rows(9).values
    starts = np.array([0, 2, 5])
    for index, entity in enumerate(("a", "pooled")):
        assert entity_index(small, entity) == index
        scaled = (values - small.scalers.offset[index]) / small.scalers.scale[index]
        centred = scaled.astype(np.float64) - small.gaussians.mean[index]
        whitened = centred @ small.gaussians.whiten[index].T.astype(np.float64)
        points = (whitened**2).sum(axis=1)
        wanted = np.stack([points[s : s + 4] for s in starts])
        got = score_windows(small, index, values, starts, batch_size=2)
        np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_no_windows_give_no_scores(small, rows):
    got = score_windows(small, 0, rows(9).values, np.empty(0, int))
    assert got.shape == (0, 4)


def test_unknown_entity_is_refused_with_those_known(small):
    with pytest.raises(DataError, match="has no entity 'b': give one of a, or pooled"):
        entity_index(small, "b")


# Missing cells.

GAPS = {
    3: [0],
    4: [0],
    7: [0, 1],
    8: [1],
    15: [0, 1],
    16: [0, 1],
    17: [0, 1],
    18: [0, 1],
}
STARTS = np.array([0, 1, 4, 7, 10, 13, 15, 16])


@pytest.fixture
def gappy(rows):
    """Rows `[20, 2]` with missing cells; the window at 15 has no value at all."""
    values = rows(20, seed=5).values
    for row, columns in GAPS.items():
        values[row, columns] = np.nan
    return values


def filled_by_hand(detector, index, values):
    """Scaled windows `[M, L, D]` with their gaps filled, and which cells were there."""
    scaler = Scaler(*(field[index] for field in detector.scalers))
    scaled = (values - scaler.offset) / scaler.scale
    windows = np.stack([scaled[s : s + detector.window] for s in STARTS])
    filled = [pd.DataFrame(w).ffill().bfill().fillna(0.0).to_numpy() for w in windows]
    observed = np.tile(~np.isnan(windows), len(components_of(detector.model.kind)))
    return np.stack(filled).astype(np.float32), observed


def errors_by_hand(detector, windows):
    """The errors `[M, L, F]` of complete windows, in float64."""
    kinds = components_of(detector.model.kind)
    found = [part_by_hand(component(detector.model, kind), windows) for kind in kinds]
    return np.concatenate(found, axis=-1)


def part_by_hand(model, windows):
    """Of one kind, `[M, L, D]`."""
    exact = np.float64(windows)
    if model.kind == "autoencoder":
        net = network(model.architecture)
        outputs = net.outputs(model.params, jnp.asarray(windows))
        return np.abs(np.float64(net.activate(outputs)) - windows)
    if model.kind == "difference":
        return np.abs(np.diff(exact, axis=1, prepend=exact[:, :1]))
    if model.kind == "moving_average":
        counts = np.arange(1, windows.shape[1] + 1)[:, None]
        return np.abs(exact - exact.cumsum(axis=1) / counts)
    if model.kind == "kmeans":
        centres = np.float64(model.params["centres"])
        apart = ((exact[:, None] - centres) ** 2).sum(axis=(2, 3))
        return np.abs(exact - centres[apart.argmin(axis=1)])
    return exact


def marginal_scores(gaussian, errors, observed):
    """d_o (Σ_oo)⁻¹ d_o, NaN where nothing was observed, in float64."""
    covariance = np.linalg.inv(gaussian.whiten.astype(float).T @ gaussian.whiten)
    scores = np.full(errors.shape[:-1], np.nan)
    for place in np.ndindex(scores.shape):
        seen = observed[place]
        if seen.any():
            centred = (errors[place] - gaussian.mean)[seen]
            own = covariance[np.ix_(seen, seen)]
            scores[place] = centred @ np.linalg.inv(own) @ centred
    return scores


KINDS = (
    "autoencoder",
    "mahalanobis",
    "difference",
    "kmeans+difference+moving_average",
    "autoencoder+kmeans",
)


@pytest.fixture(params=KINDS)
def kinds(request, small, netted):
    """A detector of each kind."""
    return of_kind(request.param, small, netted)


def of_kind(kind, small, netted):
    """The detector `small` with a model of this kind, and a Normal of its width."""
    rng = np.random.default_rng(9)
    known = {
        "autoencoder": netted.model,
        "kmeans": ResidualModel(
            "kmeans", {"centres": rng.normal(size=(5, 4, 2)).astype(np.float32)}
        ),
    }
    names = components_of(kind)
    model = join_models([known.get(name, ResidualModel(name, {})) for name in names])
    if len(names) == 1:
        return small._replace(model=model)
    width = 2 * len(names)
    whiten = np.tril(rng.normal(size=(2, width, width))) + 2 * np.eye(width)
    gaussians = Gaussian(rng.random((2, width)).astype("f"), whiten.astype("f"))
    return small._replace(model=model, gaussians=gaussians)


@pytest.mark.parametrize("index", [0, 1])
def test_scores_of_windows_with_gaps_are_those_by_hand(kinds, gappy, index):
    windows, observed = filled_by_hand(kinds, index, gappy)
    gaussian = Gaussian(*(field[index] for field in kinds.gaussians))
    wanted = marginal_scores(gaussian, errors_by_hand(kinds, windows), observed)
    got = score_windows(kinds, index, gappy, STARTS, batch_size=4)
    np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=1e-5)
    assert np.isnan(got[6]).all() and np.isnan(got[0]).sum() == 0
    assert np.isnan(got[3]).tolist() == [True, False, False, False]


def test_complete_windows_score_the_same_beside_rows_with_gaps(kinds, gappy):
    complete = gappy.copy()
    complete[19] = 1.0
    complete[np.isnan(complete)] = 0.5
    spoilt = complete.copy()
    spoilt[19, 0] = np.nan
    starts = np.arange(0, 15, 2)
    plain = score_windows(kinds, 0, complete, starts)
    masked = score_windows(kinds, 0, spoilt, starts)
    np.testing.assert_allclose(masked, plain, rtol=1e-4, atol=1e-6)


def test_eight_devices_and_one_give_the_same_for_gaps(kinds, gappy):
    """Batches of 64 are shared; those of 1 are not."""
    starts = np.tile(STARTS, 16)
    shared = score_windows(kinds, 0, gappy, starts, batch_size=128)
    alone = score_windows(kinds, 0, gappy, STARTS, batch_size=1)
    np.testing.assert_allclose(shared, np.tile(alone, (16, 1)), rtol=1e-5)


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("index", [0, 1])
def test_contributions_sum_to_the_points(kinds, gappy, index, gaps):
    values = gappy if gaps else np.nan_to_num(gappy, nan=0.25)
    pieces = score_batches(kinds, index, values, STARTS, explain=True, batch_size=4)
    points, parts = (np.concatenate(side) for side in zip(*pieces, strict=True))
    assert parts.shape == (*points.shape, 2) and (parts >= 0).all()
    known = ~np.isnan(points)
    assert known.all() == (not gaps)
    np.testing.assert_allclose(parts.sum(axis=-1)[known], points[known], rtol=1e-4)
    wanted = score_windows(kinds, index, values, STARTS, batch_size=4)
    np.testing.assert_allclose(points, wanted, rtol=1e-5)


def test_contributions_blame_the_channel_that_moved(small):
    """With W diagonal each channel's part is its own standardised square."""
    values = np.zeros((4, 2), np.float32)
    values[2] = [3.0, -2.0]
    (found,) = score_batches(small, 1, values, np.array([0]), explain=True)
    np.testing.assert_allclose(found.contributions[0, 2], [9.0, 4.0], rtol=1e-6)
    assert not found.contributions[0, [0, 1, 3]].any()


def test_a_channels_part_is_the_sum_of_what_its_errors_have(small):
    """With W diagonal: of a joined kind the values and the steps, by hand."""
    scale = np.float32([1, 2, 3, 4])
    detector = small._replace(
        model=ResidualModel("mahalanobis+difference", {}),
        gaussians=Gaussian(np.zeros((2, 4), "f"), np.tile(np.diag(scale), (2, 1, 1))),
    )
    values = np.zeros((4, 2), np.float32)
    values[2] = [3.0, -2.0]
    for method in ("correlation", "conditional"):
        other = detector._replace(attribution=method)
        (found,) = score_batches(other, 1, values, np.array([0]), explain=True)
        wanted = np.zeros((4, 2))
        wanted[2] = [3**2 + (3 * 3) ** 2, (2 * 2) ** 2 + (4 * 2) ** 2]
        wanted[3] = [(3 * 3) ** 2, (4 * 2) ** 2]
        np.testing.assert_allclose(found.contributions[0], wanted, rtol=1e-6)
        np.testing.assert_allclose(found.points[0], wanted.sum(axis=1), rtol=1e-6)


def test_errors_are_unknown_exactly_where_cells_are_missing(kinds, gappy):
    scaled = (gappy - kinds.scalers.offset[0]) / kinds.scalers.scale[0]
    pieces = residual_batches(kinds.model, scaled, STARTS, window=4, batch_size=4)
    found = np.concatenate(list(pieces))
    windows, observed = filled_by_hand(kinds, 0, gappy)
    np.testing.assert_array_equal(np.isnan(found), ~observed)
    wanted = errors_by_hand(kinds, windows)
    np.testing.assert_allclose(found[observed], wanted[observed], rtol=1e-4, atol=1e-6)


def test_an_overflow_is_no_missing_cell(gappy, netted):
    scaled = gappy.copy()
    scaled[0] = np.inf  # inf − inf inside the network is NaN
    (found,) = residual_batches(
        netted.model, scaled, np.array([0]), window=4, batch_size=1
    )
    observed = ~np.isnan(scaled[:4])
    np.testing.assert_array_equal(np.isnan(found[0]), ~observed)
    assert np.isposinf(found[0][observed]).all()
    scores = score_windows(
        netted._replace(
            scalers=Scaler(np.zeros((2, 2), np.float32), np.ones((2, 2), np.float32))
        ),
        0,
        scaled,
        np.array([0]),
    )
    assert np.isposinf(scores[0, 0])


def test_scaled_rows_score_as_raw_ones_do(kinds, gappy):
    scaled = (gappy - kinds.scalers.offset[0]) / kinds.scalers.scale[0]
    got = score_scaled(
        kinds.model, gaussian_of(kinds, 0), scaled, STARTS, window=4, batch_size=4
    )
    wanted = score_windows(kinds, 0, gappy, STARTS, batch_size=4)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


# Saved.


@pytest.mark.parametrize("kind", KINDS[3:])
def test_a_joined_kind_comes_back_and_scores_the_same_bits(
    tmp_path, small, netted, rows, kind
):
    detector = of_kind(kind, small, netted)
    save_detector(tmp_path / "d", detector)
    loaded = load_detector(tmp_path / "d")
    assert loaded.model.kind == kind
    assert loaded.model.architecture == detector.model.architecture
    pairs = zip(jax.tree.leaves(detector), jax.tree.leaves(loaded), strict=True)
    for a, b in pairs:
        assert isinstance(a, str) or np.asarray(a).tobytes() == np.asarray(b).tobytes()
    series = rows(20)
    series.values[11, 1] = np.nan
    for options in ({}, {"contributions": True}):
        before = score_table(detector, series, entity="a", **options)
        assert before["score"].notna().sum() > 15
        assert score_table(loaded, series, entity="a", **options).equals(before)
