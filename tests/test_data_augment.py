"""Disturbed rows, and what a student is asked on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.data.disturb import augment_rows
from kdjax.models.autoencoder import Architecture, network
from kdjax.training.batching import Batch
from kdjax.training.steps import student_loss

N, D, WINDOW = 5000, 6, 50


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    values = 3 + 0.1 * rng.standard_normal((N, D))
    values[:, 4] = 2.0  # never moves
    return values.astype(np.float32)


def test_the_seed_decides_all_and_the_rows_given_stay(rows):
    before = rows.copy()
    first, again = (augment_rows(rows, window=WINDOW, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(rows, before)
    assert (first != augment_rows(rows, window=WINDOW, seed=4)).any()


def test_about_one_stretch_a_window_in_some_channels(rows):
    changed = augment_rows(rows, window=WINDOW, seed=0) != rows
    touched = changed.any(axis=1)
    # Stretches have L/2 rows on average, and so many as L lie between them; swapped or
    # stuck values, and all but one row of a spike, may be what they were.
    assert 0.1 < touched.mean() < 0.45
    # At most half of the channels in each.
    assert changed.sum(axis=1).max() <= D // 2
    windows = touched.reshape(-1, WINDOW).any(axis=1)
    assert 0.3 < windows.mean() < 0.9
    # Channels that never move are disturbed as well.
    assert changed[:, 4].any()


def test_sizes_are_those_of_each_channel(rows):
    wide = rows * np.array([1, 1, 1, 1, 1, 100], np.float32)
    moved = np.abs(augment_rows(wide, window=WINDOW, seed=1) - wide)
    largest = moved.max(axis=0)
    # Up to 30 standard deviations of 0.1, and noise of that size up to some 4 of it;
    # channels that change places differ by what they are.
    assert largest[5] > 10 and 0.3 < largest[4] < 15 + wide[:, 5].max()


def test_missing_values_stay_missing_or_move_with_their_channel(rows):
    gappy = rows.copy()
    gappy[::7, 2] = np.nan
    found = augment_rows(gappy, window=WINDOW, seed=0)
    assert np.isfinite(found[:, 2]).sum() > 0
    assert not np.isinf(found).any()


def test_a_series_shorter_than_a_window():
    short = np.ones((3, 1), np.float32)
    for seed in range(20):
        assert augment_rows(short, window=WINDOW, seed=seed).shape == (3, 1)


NET = network(Architecture(2, (3,)))
PARAMS = NET.init(jax.random.key(0))


def batch(**fields):
    rng = np.random.default_rng(5)
    windows, targets = (
        jnp.asarray(rng.standard_normal((3, 4, 2)), jnp.float32) for _ in range(2)
    )
    return Batch(windows, jnp.array([1.0, 1.0, 0.0]), targets)._replace(**fields)


def outputs(one):
    return np.asarray(NET.outputs(PARAMS, one.windows, forced=True), np.float64)


def loss(one, **options):
    given = {"alpha": 0.3, "temperature": 1.0, "temperature_mode": "output"}
    return float(student_loss(NET, NET, **given | options)(PARAMS, one))


def test_of_disturbed_windows_only_the_teachers_answer_counts():
    one = batch(recorded=jnp.array([1.0, 0.0, 1.0]))
    said, x, wanted = outputs(one), np.asarray(one.windows), np.asarray(one.targets)
    hard = ((said - x) ** 2).mean(axis=(1, 2))
    soft = ((said - wanted) ** 2).mean(axis=(1, 2))
    expected = (0.7 * hard[0] + 0.3 * soft[0] + soft[1]) / 2
    assert loss(one) == pytest.approx(expected, rel=1e-5)
    assert loss(batch()) == pytest.approx(
        (0.7 * hard[:2] + 0.3 * soft[:2]).mean(), rel=1e-5
    )


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_target_errors_compares_absolute_errors(temperature):
    one = batch()
    said, x, wanted = outputs(one), np.asarray(one.windows), np.asarray(one.targets)
    hard = ((said - x) ** 2).mean(axis=(1, 2))
    gap = (np.abs(x - said) - wanted) / temperature
    expected = (0.7 * hard + 0.3 * (gap**2).mean(axis=(1, 2)))[:2].mean()
    found = loss(one, target="errors", temperature=temperature)
    assert found == pytest.approx(expected, rel=1e-5)
