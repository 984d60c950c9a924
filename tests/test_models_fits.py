"""`kmeans` and `memory` against scikit-learn and distances in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from kdjax.models.baselines import (
    CENTRES,
    fit_kmeans,
    fit_memory,
    nearest_centre,
    nearest_windows,
)
from kdjax.models.residual import residual_function

L, D = 6, 3


def noisy_windows(count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, L, D)).astype(np.float32)


def nearest(windows, centres):
    """Number of the nearest centre of each window, by all distances in float64."""
    apart = np.float64(windows)[:, None] - np.float64(centres)
    return (apart**2).sum(axis=(2, 3)).argmin(axis=1)


def assert_brute_force(windows, centres):
    params = {"centres": centres}
    wanted = centres[nearest(windows, centres)]
    found = jax.jit(nearest_centre)(params, jnp.asarray(windows))
    np.testing.assert_array_equal(found, wanted)
    errors = jax.jit(residual_function("kmeans"))(params, jnp.asarray(windows))
    np.testing.assert_allclose(errors, np.abs(windows - wanted), rtol=1e-6, atol=1e-6)


def test_kmeans_against_brute_force():
    windows, centres = noisy_windows(200), noisy_windows(20, seed=1)
    assert len(set(nearest(windows, centres))) > 10
    assert_brute_force(windows, centres)


def test_an_offset_that_all_windows_share_changes_no_choice():
    """‖c‖² and x·c then are 10¹¹, of which float32 has no digit after the ten thousands."""
    offset = np.float32(1e5)
    assert_brute_force(noisy_windows(200) + offset, noisy_windows(20, seed=1) + offset)


def test_whole_windows_are_compared_and_not_rows():
    flat, step = np.zeros((2, 1), np.float32), np.float32([[0], [4]])
    params = {"centres": np.stack([flat, step])}
    window = np.float32([[[1], [1.5]]])  # its second row alone is nearer to `flat`
    errors = residual_function("kmeans")(params, jnp.asarray(window))
    np.testing.assert_array_equal(errors, [[[1], [1.5]]])
    window = np.float32([[[-3], [2.5]]])  # its first row is equally near to both
    errors = residual_function("kmeans")(params, jnp.asarray(window))
    np.testing.assert_array_equal(errors, [[[3], [1.5]]])


@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e30, 3e38])
def test_an_overflow_in_a_cell_stays_in_that_cell(value):
    windows, centres = noisy_windows(4), noisy_windows(20, seed=1)
    centres[:, 2, 1] = 0  # infinity times nothing is no number
    windows[:, 2, 1] = value
    windows[1:, 3, 0] = -value
    params = {"centres": centres}
    errors = np.asarray(residual_function("kmeans")(params, jnp.asarray(windows)))
    assert not np.isnan(errors).any()
    huge = np.abs(windows) > 1e20
    assert (errors[huge] > 1e20).all() and (errors[~huge] < 10).all()


def test_fit_is_scikit_learns_and_the_same_twice():
    rng = np.random.default_rng(3)
    shapes = noisy_windows(30, seed=4) * 5
    windows = (shapes[rng.integers(0, 30, 400)] + noisy_windows(400)).astype("f")
    oracle = KMeans(CENTRES, n_init=1, max_iter=50, random_state=0)
    oracle.fit(windows.reshape(400, -1))
    assert CENTRES == 20 and oracle.n_iter_ > 2
    first, second = fit_kmeans(windows), fit_kmeans(windows)
    assert first["centres"].shape == (20, L, D)
    assert first["centres"].dtype == np.float32
    np.testing.assert_allclose(
        first["centres"].reshape(20, -1), oracle.cluster_centers_, rtol=1e-5, atol=1e-5
    )
    assert first["centres"].tobytes() == second["centres"].tobytes()
    # Each is the mean of the windows that are nearest to it.
    owner = nearest(windows, first["centres"])
    means = [windows[owner == k].mean(axis=0, dtype=float) for k in range(20)]
    np.testing.assert_allclose(first["centres"], np.stack(means), atol=1e-2)
    other = fit_kmeans(windows, seed=1)["centres"]
    assert other.tobytes() != first["centres"].tobytes()


def test_the_number_of_threads_changes_no_bit():
    windows = np.random.default_rng(0).normal(size=(3000, 5, 3)).astype(np.float32)
    found = set()
    for threads in (1, 2, 2):
        with threadpool_limits(threads):
            found.add(fit_kmeans(windows)["centres"].tobytes())
    assert len(found) == 1


def test_fewer_windows_than_centres_are_their_own_centres():
    windows = noisy_windows(7)
    centres = fit_kmeans(windows)["centres"]
    assert centres.shape == (7, L, D)
    assert {c.tobytes() for c in centres.round(4)} == {
        w.tobytes() for w in windows.round(4)
    }
    errors = residual_function("kmeans")({"centres": centres}, jnp.asarray(windows))
    np.testing.assert_allclose(errors, 0, atol=1e-5)


@pytest.mark.parametrize("count", [3, 50])
def test_windows_that_are_all_alike_have_one_centre(count):
    windows = np.full((count, L, D), 0.3, np.float32)
    centres = fit_kmeans(windows)["centres"]
    np.testing.assert_allclose(centres, np.full((1, L, D), 0.3), atol=1e-6)


def test_many_windows_of_few_forms_have_a_centre_each():
    forms = noisy_windows(4)
    centres = fit_kmeans(forms[np.arange(100) % 4])["centres"]
    assert centres.shape == (4, L, D)
    near = nearest(forms, centres)
    assert sorted(near) == [0, 1, 2, 3]
    np.testing.assert_allclose(centres[near], forms, atol=1e-5)


@pytest.mark.parametrize("offset", [0, 1e5])
@pytest.mark.parametrize("known", [1, 2, 40])
def test_memory_is_scikit_learns_three_nearest_neighbours(known, offset):
    windows = noisy_windows(200) + np.float32(offset)
    bank = noisy_windows(known, seed=1) + np.float32(offset)
    oracle = NearestNeighbors(n_neighbors=min(3, known))
    # scikit-learn's distances lose the digits behind a common offset.
    oracle.fit(np.float64(bank.reshape(known, -1)) - offset)
    places = oracle.kneighbors(
        np.float64(windows.reshape(200, -1)) - offset, return_distance=False
    )
    wanted = np.float64(bank)[places].mean(axis=1)
    found = jax.jit(nearest_windows)({"windows": bank}, jnp.asarray(windows))
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
    errors = residual_function("memory")({"windows": bank}, jnp.asarray(windows))
    wanted = np.abs(windows - wanted)
    # A mean of float32 values near the offset has their spacing.
    atol = 1e-5 + 2 * float(np.spacing(np.float32(offset)))
    np.testing.assert_allclose(errors, wanted, atol=atol)


def test_memory_keeps_windows_spread_evenly():
    windows = noisy_windows(10)
    np.testing.assert_array_equal(fit_memory(windows)["windows"], windows)
    kept = fit_memory(windows, most=4)["windows"]
    np.testing.assert_array_equal(kept, windows[[0, 3, 6, 9]])


@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e30, 3e38])
def test_an_overflow_in_a_cell_leaves_the_rest_of_a_memory_alone(value):
    windows, bank = noisy_windows(4), noisy_windows(20, seed=1)
    bank[:, 2, 1] = 0
    windows[:, 2, 1] = value
    params = {"windows": bank}
    errors = np.asarray(residual_function("memory")(params, jnp.asarray(windows)))
    assert not np.isnan(errors).any()
    assert (errors[:, 2, 1] > 1e20).all() and (errors[:, 3] < 10).all()
