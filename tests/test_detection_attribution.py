"""Both splits of a_t against their definitions, written out in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import solve_triangular

from kdjax.detection.attribution import (
    METHODS,
    attribution_matrix,
    contributions,
    error_deviations,
    split_deviations,
)
from kdjax.detection.gaussian import Gaussian, gaussian_from_moments, moments_of
from kdjax.detection.scores import point_scores
from kdjax.errors import ConfigError

WIDTH = 6


@pytest.fixture
def errors():
    """Correlated errors `[500, 6]` of scales from 1e-2 to 10."""
    rng = np.random.default_rng(11)
    mixed = rng.normal(size=(500, WIDTH)) @ rng.normal(size=(WIDTH, WIDTH))
    return (np.abs(mixed) * [1e-2, 0.1, 0.5, 1.0, 3.0, 10.0]).astype(np.float32)


def fit(errors, **options):
    names = tuple("abcdefghij"[: errors.shape[1]])
    options = {"floor": 1e-3, "ridge": 0.1, "channels": names} | options
    return gaussian_from_moments(moments_of(errors), **options)


def covariance(gaussian):
    """Σ in float64."""
    whiten = gaussian.whiten.astype(np.float64)
    return np.linalg.inv(whiten.T @ whiten)


def split(gaussian, errors, method):
    return np.asarray(contributions(gaussian, jnp.asarray(errors), method=method))


def distance(sigma, deviations):
    """dᵀ Σ⁻¹ d of each row."""
    return np.einsum("nd,nd->n", deviations, np.linalg.solve(sigma, deviations.T).T)


def test_conditional_is_what_a_t_loses_without_the_channel(errors):
    gaussian, rows = fit(errors), errors[:50]
    sigma, deviations = covariance(gaussian), rows.astype(np.float64) - gaussian.mean
    wanted = np.empty(rows.shape)
    for channel in range(WIDTH):
        kept = np.delete(np.arange(WIDTH), channel)
        without = distance(sigma[np.ix_(kept, kept)], deviations[:, kept])
        wanted[:, channel] = distance(sigma, deviations) - without
    got = split(gaussian, rows, "conditional")
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-5 * wanted.max())


def test_conditional_is_its_formula(errors):
    gaussian = fit(errors)
    precision = np.linalg.inv(covariance(gaussian))
    deviations = errors.astype(np.float64) - gaussian.mean
    wanted = (deviations @ precision) ** 2 / np.diag(precision)
    got = split(gaussian, errors, "conditional")
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-5 * wanted.max())


def test_correlation_is_its_formula(errors):
    gaussian = fit(errors)
    sigma = covariance(gaussian)
    deviation = np.sqrt(np.diag(sigma))
    values, vectors = np.linalg.eigh(sigma / np.outer(deviation, deviation))
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    wanted = ((errors - gaussian.mean.astype(np.float64)) / deviation @ root) ** 2
    got = split(gaussian, errors, "correlation")
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-5 * wanted.max())


def test_correlation_sums_to_the_point_score(errors):
    gaussian = fit(errors)
    parts = split(gaussian, errors, "correlation")
    assert (parts >= 0).all()
    scores = point_scores(gaussian, jnp.asarray(errors))
    np.testing.assert_allclose(parts.sum(axis=-1), scores, rtol=1e-4)


def test_correlation_matrix_is_a_root_of_the_inverse(errors):
    gaussian = fit(errors)
    matrix = attribution_matrix(gaussian, method="correlation").astype(np.float64)
    sigma = covariance(gaussian)
    np.testing.assert_allclose(matrix @ sigma @ matrix.T, np.eye(WIDTH), atol=1e-5)
    # Symmetric once standardised: no channel's share is rotated into another's.
    symmetric = matrix * np.sqrt(np.diag(sigma))
    np.testing.assert_allclose(symmetric, symmetric.T, atol=1e-5)


def test_no_other_whitening_is_closer_to_the_standardised_errors(errors):
    """Garthwaite and Koch's maximum: the trace of the correlations."""
    gaussian = fit(errors)
    sigma = covariance(gaussian)
    deviation = np.sqrt(np.diag(sigma))

    def closeness(matrix):
        return np.trace(matrix @ sigma / deviation)

    best = closeness(attribution_matrix(gaussian, method="correlation"))
    rng = np.random.default_rng(0)
    for _ in range(20):
        rotation, _ = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))
        assert closeness(rotation @ gaussian.whiten) < best
    assert closeness(gaussian.whiten) < best


def test_two_channels_that_say_the_same():
    """A shift of both: shared by one split, blamed on neither by the other."""
    rng = np.random.default_rng(2)
    first = rng.normal(size=4000)
    twins = np.stack([first, first + 1e-3 * rng.normal(size=4000)], axis=1)
    errors = np.column_stack([twins, rng.normal(size=4000)]).astype(np.float32)
    gaussian = fit(errors, ridge=1e-4)
    shifted = gaussian.mean + np.float32([[5, 5, 0]])
    total = float(point_scores(gaussian, shifted)[0])
    shared = split(gaussian, shifted, "correlation")[0]
    alone = split(gaussian, shifted, "conditional")[0]
    assert total == pytest.approx(25, rel=0.1)
    np.testing.assert_allclose(shared[:2], total / 2, rtol=0.05)
    assert shared[2] < 0.05 * total
    assert alone.max() < 0.05 * total


@pytest.mark.parametrize("method", METHODS)
def test_independent_channels_keep_their_own_distance(method):
    deviation = np.float32([0.5, 2, 4])
    gaussian = Gaussian(np.float32([1, 2, 3]), np.diag(1 / deviation))
    parts = split(gaussian, np.float32([[2, 2, -5]]), method)
    np.testing.assert_allclose(parts, [[4, 0, 4]], rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_channels_does_not_matter(errors, method):
    order = np.array([3, 0, 5, 1, 4, 2])
    wanted = split(fit(errors), errors, method)[:, order]
    got = split(fit(errors[:, order]), errors[:, order], method)
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-5 * wanted.max())


@pytest.mark.parametrize("method", METHODS)
def test_units_of_a_channel_do_not_matter(errors, method):
    factor = np.float32([100, 1, 1e-3, 1, 7, 1])
    wanted = split(fit(errors, floor=0.0), errors, method)
    got = split(fit(errors * factor, floor=0.0), errors * factor, method)
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-5 * wanted.max())


@pytest.mark.parametrize("method", METHODS)
def test_contributions_work_under_jit_vmap_and_grad(errors, method):
    gaussian, rows = fit(errors), jnp.asarray(errors[:20])
    apply = functools.partial(contributions, method=method)
    wanted = apply(gaussian, rows)
    for found in (
        jax.jit(apply)(gaussian, rows),
        jax.jit(functools.partial(apply, gaussian))(rows),
        jax.vmap(apply, (None, 0))(gaussian, rows),
    ):
        np.testing.assert_allclose(found, wanted, rtol=5e-3, atol=1e-4 * wanted.max())
    slopes = jax.grad(lambda g: apply(g, rows).sum())(gaussian)
    assert all(np.isfinite(slope).all() for slope in slopes)


@pytest.mark.parametrize("shape", [(WIDTH,), (2, 5, WIDTH), (0, 4, WIDTH)])
def test_shapes_are_kept(errors, shape):
    matrix = attribution_matrix(fit(errors), method="correlation")
    deviations = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    got = split_deviations(matrix, jnp.asarray(deviations))
    assert got.shape == shape
    assert matrix.dtype == got.dtype == np.float32
    np.testing.assert_allclose(got, (deviations @ matrix.T) ** 2, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("value", [1e30, -1e38, 3.4e38, np.inf, -np.inf])
def test_huge_values_contribute_infinity_and_not_nan(value):
    # B mixes signs: inf − inf on the way to the square would be NaN.
    matrix = np.float32([[1e3, -1e3], [-1e3, 1e3]])
    parts = split_deviations(matrix, jnp.float32([[value, value], [0, 0]]))
    assert set(np.asarray(parts)[0]) <= {0, np.inf}
    assert np.asarray(parts)[1].tolist() == [0, 0]
    infinite = split_deviations(matrix, jnp.float32([np.inf, np.inf]))
    assert np.asarray(infinite).tolist() == [np.inf, np.inf]


def test_nearly_singular_errors_keep_their_digits():
    # Smallest eigenvalue of R about 1e-9: an inverse of P would lose all but a few.
    rng = np.random.default_rng(5)
    first = rng.normal(size=20_000)
    rows = np.stack([first, first + 3e-5 * rng.normal(size=20_000)], axis=1)
    gaussian = fit(rows, floor=0.0, ridge=0.0)
    whiten = gaussian.whiten.astype(np.float64)
    inverse = solve_triangular(whiten, np.eye(2), lower=True)
    wanted = np.linalg.norm(inverse, axis=1)
    np.testing.assert_allclose(error_deviations(whiten), wanted, rtol=1e-9)
    matrix = attribution_matrix(gaussian, method="correlation").astype(np.float64)
    np.testing.assert_allclose(
        matrix @ inverse @ (matrix @ inverse).T, np.eye(2), atol=1e-2
    )


def test_an_unknown_method_is_named():
    gaussian = Gaussian(np.zeros(2, np.float32), np.eye(2, dtype=np.float32))
    with pytest.raises(ConfigError, match="'shapley' is unknown.*correlation, cond"):
        attribution_matrix(gaussian, method="shapley")
