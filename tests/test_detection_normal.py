"""The Normal against numpy, scipy and scikit-learn in float64."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import ledoit_wolf_shrinkage as sklearn_ledoit_wolf
from sklearn.covariance import oas as sklearn_oas

from kdjax.detection.gaussian import (
    SHRINKAGES,
    floored_channels,
    gaussian_from_moments,
    ledoit_wolf_shrinkage,
    moments_of,
    oas_shrinkage,
    standardised_covariance,
)
from kdjax.detection.scores import point_scores
from kdjax.errors import ConfigError

ORACLE = json.loads(
    (Path(__file__).parent / "data" / "metric_oracles.json").read_text("utf-8")
)["scorer"]
NAMES = ("a", "b", "c", "d", "e")


@pytest.fixture
def errors():
    """Correlated errors `[400, 5]` of scales from 1e-3 to 10."""
    rng = np.random.default_rng(3)
    mixed = rng.normal(size=(400, 5)) @ rng.normal(size=(5, 5))
    return np.abs(mixed) * [1e-3, 0.05, 0.3, 1.0, 10.0]


def covariance(errors, *, floor, ridge, shrinkage=0.0):
    """S((1−w)C + w·tr(C)/D·I + ridge·I)S of Eq. 1, written out in float64."""
    width = errors.shape[1]
    scale = np.maximum(errors.std(axis=0), floor)
    correlation = np.cov(errors.T, ddof=0) / np.outer(scale, scale)
    target = np.trace(correlation) / width * np.eye(width)
    shrunk = (1 - shrinkage) * correlation + shrinkage * target
    return np.diag(scale) @ (shrunk + ridge * np.eye(width)) @ np.diag(scale)


def fit(errors, **options):
    options = {"floor": 0.03, "ridge": 0.1, "channels": NAMES} | options
    return gaussian_from_moments(moments_of(errors), **options)


def inverse(gaussian):
    whiten = gaussian.whiten.astype(np.float64)
    return whiten.T @ whiten


@pytest.mark.parametrize("floor", [0.0, 1e-4, 0.03, 0.5, 100.0])
@pytest.mark.parametrize("ridge", [0.0, 1e-3, 0.1, 1.0])
def test_whitening_gives_the_inverse_of_numpy(errors, floor, ridge):
    gaussian = fit(errors, floor=floor, ridge=ridge)
    wanted = np.linalg.inv(covariance(errors, floor=floor, ridge=ridge))
    size = np.sqrt(np.outer(np.diag(wanted), np.diag(wanted)))
    np.testing.assert_allclose(inverse(gaussian) / size, wanted / size, atol=1e-5)
    np.testing.assert_allclose(gaussian.mean, errors.mean(axis=0), rtol=1e-6)


@pytest.mark.parametrize("shrinkage", [0.0, 0.25, 1.0])
def test_shrinkage_draws_the_standardised_covariance(errors, shrinkage):
    gaussian = fit(errors, shrinkage=shrinkage)
    wanted = np.linalg.inv(
        covariance(errors, floor=0.03, ridge=0.1, shrinkage=shrinkage)
    )
    size = np.sqrt(np.outer(np.diag(wanted), np.diag(wanted)))
    np.testing.assert_allclose(inverse(gaussian) / size, wanted / size, atol=1e-5)


def test_arrays_are_float32_whatever_the_default_precision(errors):
    gaussian = fit(errors)
    assert gaussian.mean.dtype == gaussian.whiten.dtype == np.float32
    assert np.isfinite(gaussian.whiten).all()


def test_float64_inside_survives_a_nearly_singular_matrix():
    # Smallest eigenvalue of C about 1e-9: its float32 factor would be NaN.
    rng = np.random.default_rng(5)
    first = rng.normal(size=20_000)
    rows = np.stack([first, first + 3e-5 * rng.normal(size=20_000)], axis=1)
    gaussian = fit(rows, floor=0.0, ridge=0.0, channels=("a", "b"))
    query = rows.mean(axis=0) + [1.0, 1.0001]
    wanted = mahalanobis(
        query, rows.mean(axis=0), np.linalg.inv(np.cov(rows.T, ddof=0))
    )
    whitened = gaussian.whiten.astype(float) @ (query - rows.mean(axis=0))
    assert np.sum(whitened**2) == pytest.approx(wanted**2, rel=1e-2)


def test_points_score_as_scipys_squared_mahalanobis_distance(errors):
    gaussian = fit(errors)
    precision = np.linalg.inv(covariance(errors, floor=0.03, ridge=0.1))
    mean = errors.mean(axis=0)
    wanted = [mahalanobis(e, mean, precision) ** 2 for e in errors[:100]]
    got = point_scores(gaussian, errors[:100].astype(np.float32))
    np.testing.assert_allclose(got, wanted, rtol=2e-4)


def test_the_published_example():
    rows, query = np.array(ORACLE["X"]), np.float32(ORACLE["query"])
    plain = fit(rows, floor=0.0, ridge=0.0, channels=("a", "b"))
    assert float(point_scores(plain, query)) == pytest.approx(
        ORACLE["mahalanobis_sq_ddof0"], rel=1e-6
    )


def test_a_score_of_many_rows_is_as_wide_as_their_channels(errors):
    # tr(Σ⁻¹Σ) = D when nothing is floored or ridged.
    gaussian = fit(errors, floor=0.0, ridge=0.0)
    mean = np.mean(point_scores(gaussian, errors.astype(np.float32)))
    assert mean == pytest.approx(5, rel=1e-3)


def test_a_dead_channel_that_wakes_is_as_loud_as_the_floor_says(errors):
    errors[:, 2] = 0.25
    move, floor, ridge = 0.06, 0.03, 0.1
    gaussian = fit(errors, floor=floor, ridge=ridge)
    quiet = errors[0].astype(np.float32)
    awake = quiet + np.float32([0, 0, move, 0, 0])
    rise = float(point_scores(gaussian, awake) - point_scores(gaussian, quiet))
    # A constant channel has no correlations: its variance is floor² · ridge.
    assert rise == pytest.approx((move / floor) ** 2 / ridge, rel=1e-4)


def test_columns_in_another_order_score_the_same(errors):
    order = [3, 1, 4, 0, 2]
    names = [NAMES[i] for i in order]
    rows = errors.astype(np.float32)
    wanted = point_scores(fit(errors), rows)
    got = point_scores(fit(errors[:, order], channels=names), rows[:, order])
    np.testing.assert_allclose(got, wanted, rtol=1e-4)


def test_units_do_not_matter_without_ridge_floor_and_shrinkage(errors):
    scale, offset = np.array([1e3, 0.01, 7, 1, 0.2]), np.arange(5.0)
    wanted = point_scores(fit(errors, floor=0.0, ridge=0.0), errors.astype(np.float32))
    moved = errors * scale + offset
    got = point_scores(fit(moved, floor=0.0, ridge=0.0), moved.astype(np.float32))
    np.testing.assert_allclose(got, wanted, rtol=2e-2)


# Shrinkage.


def standardised(errors, floor):
    return (errors - errors.mean(axis=0)) / np.maximum(errors.std(axis=0), floor)


@pytest.mark.parametrize("floor", [0.0, 0.03, 0.5])
@pytest.mark.parametrize("rows", [12, 60, 400])
def test_shrinkages_are_scikit_learns_on_standardised_rows(errors, floor, rows):
    errors = errors[:rows]
    moments = moments_of(errors)
    clean = standardised(errors, floor)
    pieces = [errors[:5], errors[5:].reshape(-1, 1, 5)]
    got = ledoit_wolf_shrinkage(pieces, moments, floor=floor, rows=rows)
    assert got == pytest.approx(
        sklearn_ledoit_wolf(clean, assume_centered=True), rel=1e-9
    )
    got = oas_shrinkage(moments, floor=floor, rows=rows)
    assert got == pytest.approx(sklearn_oas(clean, assume_centered=True)[1], rel=1e-9)
    assert 0 < got < 1


def test_repeated_rows_do_not_make_the_estimate_surer(errors):
    """Windows that overlap hold each row many times; n is that of distinct rows."""
    errors = errors[:60]
    windows = np.stack([errors, errors, errors])
    moments = moments_of(windows)
    clean = standardised(errors, 0.03)
    options = {"floor": 0.03, "rows": 60}
    assert ledoit_wolf_shrinkage([windows], moments, **options) == pytest.approx(
        sklearn_ledoit_wolf(clean, assume_centered=True), rel=1e-9
    )
    assert oas_shrinkage(moments, **options) == pytest.approx(
        sklearn_oas(clean, assume_centered=True)[1], rel=1e-9
    )


def test_shrinkage_of_uncorrelated_channels_is_all():
    # C = I: nothing tells it from its target.
    rows = np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    moments = moments_of(rows)
    assert ledoit_wolf_shrinkage([rows], moments, floor=0.0, rows=4) == 1
    assert oas_shrinkage(moments, floor=0.0, rows=4) == 1


def test_shrinkage_of_few_rows_stays_within_bounds():
    rows = np.array(ORACLE["X"])
    clean = standardised(rows, 0.0)
    got = ledoit_wolf_shrinkage([rows], moments_of(rows), floor=0.0, rows=4)
    assert got == pytest.approx(sklearn_ledoit_wolf(clean, assume_centered=True))
    assert got <= 1


def test_names_of_shrinkages():
    assert SHRINKAGES == ("none", "ledoit_wolf", "oas")


# What has no inverse.


def test_floored_channels_are_those_below_the_floor(errors):
    moments = moments_of(errors)
    deviation = errors.std(axis=0)
    assert floored_channels(moments, floor=0.03, channels=NAMES) == [
        name for name, s in zip(NAMES, deviation, strict=True) if s < 0.03
    ]
    assert floored_channels(moments, floor=0.03, channels=NAMES)[:1] == ["a"]
    assert floored_channels(moments, floor=0.0, channels=NAMES) == []


def test_standardised_covariance_has_ones_where_nothing_is_floored(errors):
    got = standardised_covariance(moments_of(errors), floor=0.0)
    np.testing.assert_allclose(got, np.corrcoef(errors.T), atol=1e-12)


def test_equal_channels_without_ridge_are_named(errors):
    errors[:, 3] = errors[:, 1]
    message = (
        r"not positive definite: channels b, d depend on each other.*ridge above 0"
    )
    with pytest.raises(ConfigError, match=message):
        fit(errors, floor=1e-4, ridge=0.0)
    assert np.isfinite(fit(errors, ridge=0.1).whiten).all()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("factor", [1.0, 0.3])
def test_alike_channels_are_found_whatever_their_rounding(seed, factor):
    # In float64 the smallest eigenvalue comes out as 1e-16 or -1e-16 by luck.
    errors = np.random.default_rng(seed).normal(size=(200, 4)).astype(np.float32)
    errors[:, 3] = np.float32(factor) * errors[:, 1]
    with pytest.raises(ConfigError, match="channels b, d depend on each other"):
        fit(errors, floor=1e-4, ridge=0.0, channels=NAMES[:4])


def test_a_channel_that_is_the_sum_of_two_is_named_with_both(errors):
    errors[:, 4] = errors[:, 2] / errors[:, 2].std() + errors[:, 3] / errors[:, 3].std()
    with pytest.raises(ConfigError, match="channels c, d, e depend on each other"):
        fit(errors, floor=1e-4, ridge=0.0)


def test_fewer_rows_than_channels_need_the_ridge(errors):
    with pytest.raises(ConfigError, match="not positive definite"):
        fit(errors[:3], floor=0.0, ridge=0.0)
    assert np.isfinite(fit(errors[:3]).whiten).all()
    assert np.isfinite(fit(errors[:1]).whiten).all()


def test_dead_channels_without_floor_are_named(errors):
    errors[:, [0, 4]] = 7.0
    message = r"detection.floor=0 leaves channels without any deviation: a, e\. Set"
    with pytest.raises(ConfigError, match=message):
        fit(errors, floor=0.0)
    assert np.isfinite(fit(errors, floor=0.03).whiten).all()
