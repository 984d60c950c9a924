"""Point and window scores against numpy and against the rule they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.detection.gaussian import Gaussian
from kdjax.detection.scores import deviations, point_scores, window_scores


def by_hand(gaussian, errors):
    """Eq. 1 in float64, one row at a time."""
    rows = errors.reshape(-1, errors.shape[-1]).astype(np.float64)
    precision = gaussian.whiten.astype(np.float64).T @ gaussian.whiten
    centred = rows - gaussian.mean
    scores = [row @ precision @ row for row in centred]
    return np.reshape(scores, errors.shape[:-1])


@pytest.mark.parametrize("shape", [(3,), (6, 3), (2, 5, 3), (0, 4, 3)])
def test_point_scores_are_eq_1(shape):
    rng = np.random.default_rng(0)
    gaussian = Gaussian(
        rng.normal(size=3).astype(np.float32),
        np.tril(rng.normal(size=(3, 3))).astype(np.float32),
    )
    errors = rng.normal(size=shape).astype(np.float32)
    got = point_scores(gaussian, jnp.asarray(errors))
    assert got.shape == shape[:-1]
    np.testing.assert_allclose(got, by_hand(gaussian, errors), rtol=1e-5)


def test_point_scores_are_never_negative():
    rng = np.random.default_rng(1)
    whiten = (1e4 * rng.normal(size=(8, 8))).astype(np.float32)
    gaussian = Gaussian(np.zeros(8, np.float32), whiten)
    assert (point_scores(gaussian, jnp.asarray(rng.normal(size=(500, 8)))) >= 0).all()


@pytest.mark.parametrize("value", [1e20, 1e30, -1e38, 3.4e38, np.inf, -np.inf])
def test_huge_values_score_infinite_and_not_nan(value):
    # W mixes signs: inf − inf on the way to the sum would be NaN.
    gaussian = Gaussian(np.zeros(2, np.float32), np.float32([[1e3, 0], [1e3, -1e3]]))
    scores = np.asarray(point_scores(gaussian, jnp.float32([[value, value], [0, 0]])))
    assert scores.tolist() == [np.inf, 0]


@st.composite
def scored_windows(draw):
    """Point scores `[M, L]` with ties and infinities, and a count below L."""
    windows, length = draw(st.integers(1, 6)), draw(st.integers(1, 8))
    values = st.sampled_from([0.0, 0.5, 1.0, 2.0, 2.5, np.inf]) | st.floats(0, 1e6)
    size = windows * length
    points = np.array(draw(st.lists(values, min_size=size, max_size=size)))
    return points.reshape(windows, length), draw(st.integers(0, length - 1))


@settings(deadline=None)
@given(scored_windows(), st.floats(0, 1e6))
def test_window_score_is_above_tau_where_more_than_count_points_are(case, other):
    points, count = case
    scores = window_scores(points, count=count)
    for tau in (*np.unique(points), other):
        more = (points > tau).sum(axis=1) > count
        assert np.array_equal(scores > tau, more)


def test_window_score_of_no_windows():
    assert window_scores(np.empty((0, 4)), count=1).shape == (0,)


def test_window_scores_leave_the_points_as_they_are():
    points = np.array([[3.0, 1.0, 2.0]])
    assert window_scores(points, count=2) == [1]
    assert points.tolist() == [[3, 1, 2]]


# Missing cells.

jitted_scores = jax.jit(point_scores)


def marginal(gaussian, errors, observed):
    """d_o (Σ_oo)⁻¹ d_o of each row in float64, NaN where nothing was observed."""
    whiten = gaussian.whiten.astype(np.float64)
    covariance = np.linalg.inv(whiten.T @ whiten)
    scores = []
    for row, seen in zip(errors.astype(np.float64), observed, strict=True):
        centred = (row - gaussian.mean)[seen]
        own = covariance[np.ix_(seen, seen)]
        scores.append(centred @ np.linalg.solve(own, centred) if seen.any() else np.nan)
    return np.array(scores)


def mixed_normal(rng, width, ridge):
    """A Normal of strongly correlated channels of very different scales."""
    mixed = rng.normal(size=(200, width)) @ rng.normal(size=(width, width))
    scale = 10.0 ** rng.uniform(-3, 2, width)
    correlation = np.corrcoef(mixed.T).reshape(width, width) + ridge * np.eye(width)
    factor = np.linalg.cholesky(correlation)
    whiten = np.linalg.inv(factor) / scale
    mean = rng.normal(size=width) * scale
    return Gaussian(mean.astype(np.float32), whiten.astype(np.float32)), scale


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 2, 5, 12]),
    st.sampled_from([0.01, 0.1, 1.0]),
    st.sampled_from([0.1, 0.5, 0.9]),
)
def test_scores_of_observed_channels_are_those_of_their_marginal(
    seed, width, ridge, share
):
    rng = np.random.default_rng(seed)
    gaussian, scale = mixed_normal(rng, width, ridge)
    errors = (gaussian.mean + 3 * scale * rng.normal(size=(20, width))).astype(
        np.float32
    )
    observed = rng.random((20, width)) >= share
    observed[0], observed[1] = False, True
    wanted = marginal(gaussian, errors, observed)
    # What stands in a missing cell must not matter.
    errors[~observed] = 1e3
    got = np.asarray(jitted_scores(gaussian, errors, observed))
    np.testing.assert_allclose(got, wanted, rtol=2e-3, atol=1e-4)
    assert np.isnan(got[0]) and not np.isnan(got[1:][observed[1:].any(axis=1)]).any()


def test_many_channels_with_half_of_them_missing():
    rng = np.random.default_rng(7)
    gaussian, scale = mixed_normal(rng, 120, 0.1)
    errors = (gaussian.mean + scale * rng.normal(size=(30, 120))).astype(np.float32)
    observed = rng.random((30, 120)) < 0.5
    got = point_scores(gaussian, errors, jnp.asarray(observed))
    np.testing.assert_allclose(got, marginal(gaussian, errors, observed), rtol=5e-3)


def test_a_missing_cell_takes_its_likeliest_value_given_the_others():
    # By hand: unit variances, correlation r; E[d_2 | d_1] = r d_1.
    correlation = 0.6
    factor = np.linalg.cholesky([[1, correlation], [correlation, 1]])
    gaussian = Gaussian(
        np.zeros(2, np.float32), np.linalg.inv(factor).astype(np.float32)
    )
    found = deviations(
        gaussian, jnp.float32([[2.0, 99.0]]), jnp.asarray([[True, False]])
    )
    np.testing.assert_allclose(found, [[2.0, 2 * correlation]], rtol=1e-6)
    score = point_scores(
        gaussian, jnp.float32([[2.0, 9]]), jnp.asarray([[True, False]])
    )
    np.testing.assert_allclose(score, [4.0], rtol=1e-6)


def test_a_mask_without_a_gap_changes_no_score():
    rng = np.random.default_rng(2)
    gaussian, scale = mixed_normal(rng, 6, 0.1)
    errors = jnp.asarray(
        gaussian.mean + scale * rng.normal(size=(4, 5, 6)), jnp.float32
    )
    plain = point_scores(gaussian, errors)
    masked = point_scores(gaussian, errors, jnp.ones(errors.shape, bool))
    assert masked.shape == (4, 5)
    np.testing.assert_allclose(masked, plain, rtol=1e-5)


@pytest.mark.parametrize("value", [1e20, 1e30, -3.4e38, np.inf])
def test_huge_values_beside_missing_ones_score_infinite(value):
    gaussian, _ = mixed_normal(np.random.default_rng(3), 3, 0.1)
    errors = jnp.float32([[value, 0, 0], [0, 0, 0], [value, 0, 0]])
    observed = jnp.asarray([[1, 0, 1], [0, 1, 1], [0, 0, 0]], bool)
    scores = np.asarray(point_scores(gaussian, errors, observed))
    assert np.isposinf(scores[0]) and np.isfinite(scores[1]) and np.isnan(scores[2])


@settings(deadline=None)
@given(scored_windows(), st.integers(0, 2**32 - 1), st.floats(0, 1e6))
def test_points_without_a_score_are_left_out_of_the_window_score(case, seed, other):
    points, count = case
    points[np.random.default_rng(seed).random(points.shape) < 0.4] = np.nan
    scores = window_scores(points, count=count)
    known = (~np.isnan(points)).sum(axis=1)
    np.testing.assert_array_equal(np.isnan(scores), known <= count)
    for row, score in zip(points, scores, strict=True):
        ranked = sorted(row[~np.isnan(row)], reverse=True)
        assert np.isnan(score) or score == ranked[count]
    for tau in (*np.unique(points[~np.isnan(points)]), other):
        assert np.array_equal(scores > tau, (points > tau).sum(axis=1) > count)
