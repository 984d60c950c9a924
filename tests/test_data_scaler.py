"""The scalers against scikit-learn's, and what they refuse."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import preprocessing

from kdjax.data.scaler import (
    METHODS,
    Scaler,
    apply_scaler,
    fit_scaler,
    is_coarse,
    needs_float64,
    noise_of,
    outliers,
)
from kdjax.errors import ConfigError, DataError

ORACLES = {
    "minmax": preprocessing.MinMaxScaler,
    "zscore": preprocessing.StandardScaler,
    "robust": preprocessing.RobustScaler,
}


def _rows(seed, rows=200):
    """Channels of very different units, one of them constant."""
    random = np.random.default_rng(seed)
    values = random.normal(size=(rows, 5)) * [1, 1e-4, 1e6, 3, 0]
    return (values + [0, 5, -1e7, 0.1, 7]).astype(np.float32)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), method=st.sampled_from(sorted(ORACLES)))
def test_agrees_with_scikit_learn(seed, method):
    values = _rows(seed)
    expected = ORACLES[method]().fit_transform(values.astype(np.float64))
    scaled = apply_scaler(fit_scaler(values, method=method), values)
    # Column 2 lies at 1e7 with spread 1e6: its float32 offset costs digits.
    np.testing.assert_allclose(scaled, expected, rtol=1e-4, atol=5e-3)


@pytest.mark.parametrize("method", METHODS)
def test_is_float32_throughout(method):
    values = _rows(0).astype(np.float64)
    scaler = fit_scaler(values, method=method, dtype=np.float32)
    assert scaler.offset.dtype == scaler.scale.dtype == np.float32
    assert scaler.offset.shape == scaler.scale.shape == (5,)
    scaled = apply_scaler(scaler, values)
    assert scaled.dtype == np.float32
    by_hand = (values.astype(np.float32) - scaler.offset) / scaler.scale
    np.testing.assert_array_equal(scaled, by_hand)


def test_minmax_maps_fit_rows_to_the_unit_interval():
    values = _rows(3)
    scaled = apply_scaler(fit_scaler(values, method="minmax"), values)
    np.testing.assert_array_equal(scaled.min(axis=0), 0)
    np.testing.assert_array_equal(scaled[:, :4].max(axis=0), 1)


@pytest.mark.parametrize("method", ["quantile", "minmax", "zscore", "robust"])
@pytest.mark.parametrize(
    ("constant", "scale", "dtype"),
    [
        (7e-6, 7e-6, np.float32),
        (0.1, 0.1, np.float32),
        (-0.5, 0.5, np.float32),
        (7.0, 1, np.float32),
        (0.0, 1, np.float32),
        (1e-30, 1e-30, np.float32),
        (1e-60, 1e-60, np.float64),
        (8e6, 1, np.float32),
        (-3e7, 1, np.float64),
        (1.7e9, 1, np.float64),
    ],
)
def test_constancy_is_relative(method, constant, scale, dtype):
    values = np.full((1000, 1), constant)
    scaler = fit_scaler(values, method=method)
    assert scaler.scale.dtype == dtype
    np.testing.assert_allclose(scaler.scale, scale, rtol=1e-6)
    np.testing.assert_allclose(apply_scaler(scaler, values), 0, atol=1e-6)
    moved = apply_scaler(scaler, values + scale)
    np.testing.assert_allclose(moved, 1, rtol=1e-6)


@pytest.mark.parametrize("method", ["quantile", "robust"])
def test_a_channel_that_rarely_moves_is_divided_by_its_steps(method):
    values = np.zeros((1000, 2))
    values[::100] = [3e-6, 40]  # ten rows, twenty steps
    scaler = fit_scaler(values, method=method)
    np.testing.assert_allclose(scaler.scale, np.array([3e-6, 40]) * 1.0483, rtol=1e-3)
    values[:] = 0
    values[500] = [3e-6, 40]  # an outlier is no noise
    np.testing.assert_array_equal(fit_scaler(values, method=method).scale, 1)


@pytest.mark.parametrize("constant", [0.1, 0.7, 1 / 3, 12345.678])
def test_mean_that_rounds_makes_no_spread(constant):
    # A computed deviation of equal numbers can be 1e-17 to 1e-12 instead of 0.
    scaler = fit_scaler(np.full((3333, 1), constant), method="zscore")
    np.testing.assert_allclose(scaler.scale, min(constant, 1), rtol=1e-6)


def test_a_range_that_underflows_in_float32_is_kept_in_float64():
    values = np.array([[0.0], [1e-60]])
    np.testing.assert_array_equal(
        apply_scaler(fit_scaler(values, method="minmax"), values), [[0], [1]]
    )
    forced = fit_scaler(values, method="minmax", dtype=np.float32)
    assert forced.scale == 1


def test_none_changes_no_bit():
    values = _rows(1)
    np.testing.assert_array_equal(
        apply_scaler(fit_scaler(values, method="none"), values), values
    )


@pytest.mark.parametrize("method", sorted(ORACLES))
def test_missing_values_count_for_nothing(method):
    values = _rows(4).astype(np.float64)
    values[np.random.default_rng(5).random(values.shape) < 0.3] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's own, about a constant column
        expected = ORACLES[method]().fit_transform(values)
    scaler = fit_scaler(values, method=method)
    scaled = apply_scaler(scaler, values)
    np.testing.assert_allclose(scaled, expected, rtol=1e-4, atol=5e-3)
    np.testing.assert_array_equal(np.isnan(scaled), np.isnan(values))
    # Each channel is fitted as if its rows without a value were not there.
    for column in range(values.shape[1]):
        seen = values[~np.isnan(values[:, column])][:, [column]]
        alone = fit_scaler(seen, method=method)
        np.testing.assert_allclose(alone.offset, scaler.offset[column], rtol=1e-6)
        np.testing.assert_allclose(alone.scale, scaler.scale[column], rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_pieces_count_as_the_rows_they_are_cut_from(method):
    values = _rows(6, rows=300).astype(np.float64)
    values[:40] += 3  # pieces of other lengths, means and spreads
    values[np.random.default_rng(7).random(values.shape) < 0.2] = np.nan
    values[40:43, 1] = np.nan  # a piece without a value in a channel
    pieces = np.split(values, [40, 43, 250])
    whole = fit_scaler(values, method=method)
    found = fit_scaler(pieces, method=method)
    np.testing.assert_allclose(found.offset, whole.offset, rtol=1e-6)
    np.testing.assert_allclose(found.scale, whole.scale, rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_channel_without_a_value_is_refused(method):
    values = np.array([[1, np.nan], [2, np.nan]])
    with pytest.raises(DataError, match="channel 2 of 2 has no value in the 2 rows th"):
        fit_scaler(values, method=method)


def test_windows_scale_like_rows():
    scaler = Scaler(np.float32([1, 2]), np.float32([2, 4]))
    windows = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32)
    scaled = apply_scaler(scaler, windows)
    np.testing.assert_array_equal(scaled[1], apply_scaler(scaler, windows[1]))


def test_jax_arrays_are_scaled_as_numpy_arrays():
    rows = _rows(3)
    scaler = fit_scaler(rows, method="zscore")
    expected = apply_scaler(scaler, rows)
    assert type(expected) is np.ndarray
    given = jnp.asarray(rows)
    fitted = fit_scaler(given, method="zscore")
    np.testing.assert_array_equal(fitted.offset, scaler.offset)
    for scale in (apply_scaler, jax.jit(apply_scaler)):
        found = scale(scaler, given)
        assert isinstance(found, jax.Array) and found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    mapped = jax.vmap(apply_scaler, in_axes=(None, 0))(scaler, given)
    np.testing.assert_allclose(mapped, expected, rtol=1e-6)
    slope = jax.grad(lambda x: apply_scaler(scaler, x).sum())(given[0])
    np.testing.assert_allclose(slope, 1 / scaler.scale, rtol=1e-6)
    whole = apply_scaler(Scaler(np.float32([1]), np.float32([2])), jnp.array([[5]]))
    assert whole.dtype == jnp.float32 and whole.tolist() == [[2.0]]
    assert type(apply_scaler(scaler, rows.tolist())) is np.ndarray


def _signal(rows=2000):
    random = np.random.default_rng(8)
    return np.sin(np.arange(rows) / 9) + random.normal(0, 0.1, rows)


@pytest.mark.parametrize(
    ("level", "noise", "hard"),
    [
        (0, 1, False),
        (1e3, 1, False),  # float32 numbers lie 6e-5 apart, a hundredth of 0.1 is 1e-3
        (1e4, 1, False),
        (3e4, 1, True),  # 2e-3 apart
        (1.7e9, 1, True),
        (-1.7e9, 1, True),
        (1.7e9, 1e6, False),
        (0, 1e-30, False),
        (0, 1e-36, True),
        (0, 1e-60, True),
    ],
)
def test_float64_is_for_channels_that_float32_costs_a_hundredth_of_their_noise(
    level, noise, hard
):
    rows = np.stack([_signal(), level + noise * _signal()], axis=1)
    assert needs_float64([rows]).tolist() == [False, hard]
    assert not needs_float64(
        [rows.astype(np.float32)]
    ).any()  # they have what they have
    scaler = fit_scaler(rows, method="robust")
    assert scaler.offset.dtype == (np.float64 if hard else np.float32)
    quarter, median, three = np.percentile(rows, [25, 50, 75], axis=0)
    expected = (rows - median) / (three - quarter)
    np.testing.assert_allclose(apply_scaler(scaler, rows), expected, atol=2e-2)
    if hard:
        np.testing.assert_allclose(apply_scaler(scaler, rows), expected, atol=2e-6)


def test_noise_is_that_of_steps():
    random = np.random.default_rng(9)
    slow = np.sin(np.arange(20_000) / 5000)[:, None]
    rows = random.normal(0, [0.1, 3, 1e-9], (20_000, 3)) + slow * [1, 100, 0]
    found = noise_of([rows])
    np.testing.assert_allclose(found, [0.1, 3, 1e-9], rtol=0.03)
    # Outliers, repeated values, missing cells and pieces change little.
    rows[::400] = 1e6
    rows = np.repeat(rows, 3, axis=0)
    rows[::50] = np.nan
    pieces = np.split(rows, [1, 5000])
    np.testing.assert_allclose(noise_of(pieces), found, rtol=0.05)
    np.testing.assert_array_equal(noise_of(pieces), noise_of([rows]))


def test_a_channel_that_moves_by_rounding_alone_has_no_noise():
    rows = np.tile([[0.3, 1.0], [0.1 + 0.2, 2.0]], (50, 1))
    assert rows[0, 0] != rows[1, 0]
    np.testing.assert_allclose(noise_of([rows]), [0, 1.4826 / np.sqrt(2)], rtol=1e-6)


def test_quantile_is_robust_with_a_floor():
    random = np.random.default_rng(10)
    calm = random.normal(50, 4, 4000)
    # Mostly idle: the quartiles are close together, the last percentile is not.
    busy = np.where(np.arange(4000) % 20, random.normal(0, 0.01, 4000), 100.0)
    scaler = fit_scaler(np.stack([calm, busy], axis=1), method="quantile")
    np.testing.assert_allclose(scaler.offset, [50, 0], atol=0.2)
    np.testing.assert_allclose(scaler.scale[0], 4 * 1.349, rtol=0.03)
    np.testing.assert_allclose(scaler.scale[1], 10, rtol=0.01)


@pytest.mark.parametrize("rows", [60, 100, 1000, 5000])
@pytest.mark.parametrize("level", [0.0, 1e5])
def test_an_outlier_does_not_move_quantile_and_is_found(rows, level):
    values = level + np.stack([_signal(rows), np.zeros(rows)], axis=1)
    before = fit_scaler(values, method="quantile")
    assert not outliers(values).any()
    spoilt = values.copy()
    spoilt[rows // 3] += [900, -1000]
    np.testing.assert_array_equal(outliers(spoilt), spoilt != values)
    after = fit_scaler(spoilt, method="quantile")
    np.testing.assert_allclose(after.scale, before.scale, rtol=0.15)
    # Behaviour that comes again is none.
    values[:: rows // (2 + 2 * rows // 1000)] = 1e7
    assert not outliers(values).any()


def test_integers_beyond_float64_are_told():
    counts = np.arange(5000)
    rows = np.stack([2.0**54 + counts, 2.0**51 + counts, counts, 0 * counts], axis=1)
    assert is_coarse([rows]).tolist() == [True, False, False, False]
    # Noise against the distance of numbers, 1,024: beyond 2**53 a hundredth is enough.
    noise = np.random.default_rng(0).normal(size=(5000, 1))
    rows = 2.0**62 + noise * [0, 1, 1e3, 3e4, 1e6]
    assert is_coarse([rows]).tolist() == [True, True, True, True, False]
    # Two states that are far apart lose nothing.
    rows = np.where(counts[:, None] % 2500 < 1250, 0, [2.0**62, 2.0**52])
    assert not is_coarse([rows]).any()
    # Unix time as float32.
    rows = np.stack([1.7e9 + counts, counts], axis=1).astype(np.float32)
    assert is_coarse([rows]).tolist() == [True, False]


def test_a_jax_array_is_not_scaled_in_less_than_the_scaler_needs():
    rows = 1.7e9 + _signal()[:, None]
    scaler = fit_scaler(rows, method="minmax")
    with pytest.raises(
        DataError, match="needs rows in float64, but the JAX array is fl"
    ):
        apply_scaler(scaler, jnp.asarray(rows, jnp.float32))
    with jax.enable_x64(True):
        found = jax.jit(apply_scaler)(scaler, jnp.asarray(rows))
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, apply_scaler(scaler, rows), atol=1e-6)


def test_unknown_method_is_refused():
    with pytest.raises(ConfigError, match=r"data\.scaler='max' is unknown: use one of"):
        fit_scaler(np.ones((3, 2)), method="max")


@pytest.mark.parametrize("shape", [(0, 3), (5,), (4, 0)])
def test_rows_are_needed(shape):
    with pytest.raises(DataError, match=r"a scaler needs rows \[N, D\], got shape"):
        fit_scaler(np.ones(shape), method="minmax")


def test_a_spread_beyond_float32_is_refused():
    rows = np.float32([[0, -3e38], [0, 3e38], [0, 0]])
    with pytest.raises(
        DataError, match=r"channel 2 of 2 has a range of 6.0e\+38.*3.4e38"
    ):
        fit_scaler(rows, method="minmax")
    assert np.isfinite(fit_scaler(rows, method="zscore").scale).all()
    scaler = Scaler(np.float32([-3e38]), np.float32([1]))
    assert np.isposinf(apply_scaler(scaler, np.float32([3e38])))
