"""Point and window scores against numpy and against the rule they stand for."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.detection.normal import Normal
from kdjax.detection.scores import point_scores, window_scores


def by_hand(normal, errors):
    """Eq. 1 in float64, one row at a time."""
    rows = errors.reshape(-1, errors.shape[-1]).astype(np.float64)
    precision = normal.whiten.astype(np.float64).T @ normal.whiten
    centred = rows - normal.mean
    scores = [row @ precision @ row for row in centred]
    return np.reshape(scores, errors.shape[:-1])


@pytest.mark.parametrize("shape", [(3,), (6, 3), (2, 5, 3), (0, 4, 3)])
def test_point_scores_are_eq_1(shape):
    rng = np.random.default_rng(0)
    normal = Normal(
        rng.normal(size=3).astype(np.float32),
        np.tril(rng.normal(size=(3, 3))).astype(np.float32),
    )
    errors = rng.normal(size=shape).astype(np.float32)
    got = point_scores(normal, jnp.asarray(errors))
    assert got.shape == shape[:-1]
    np.testing.assert_allclose(got, by_hand(normal, errors), rtol=1e-5)


def test_point_scores_are_never_negative():
    rng = np.random.default_rng(1)
    whiten = (1e4 * rng.normal(size=(8, 8))).astype(np.float32)
    normal = Normal(np.zeros(8, np.float32), whiten)
    assert (point_scores(normal, jnp.asarray(rng.normal(size=(500, 8)))) >= 0).all()


@pytest.mark.parametrize("value", [1e20, 1e30, -1e38, 3.4e38, np.inf, -np.inf])
def test_huge_values_score_infinite_and_not_nan(value):
    # W mixes signs: inf − inf on the way to the sum would be NaN.
    normal = Normal(np.zeros(2, np.float32), np.float32([[1e3, 0], [1e3, -1e3]]))
    scores = np.asarray(point_scores(normal, jnp.float32([[value, value], [0, 0]])))
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
