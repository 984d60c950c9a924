"""Residual models against naive loops and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.decomposition import PCA

from kdjax.errors import ArtifactError, ConfigError
from kdjax.models.autoencoder import Architecture, network
from kdjax.models.baselines import BASELINES, fit_pca
from kdjax.models.forecasters import FORECASTERS, init_forecaster
from kdjax.models.residual import (
    ResidualModel,
    component,
    components_of,
    join_models,
    residual_function,
    residual_names,
)
from kdjax.training.targets import reconstruction_model

# One shape, so that each function compiles once.
window_arrays = hnp.arrays(
    np.float32, (2, 5, 3), elements=st.floats(-1e3, 1e3, width=32)
)


def errors(kind, windows, params=None):
    function = jax.jit(residual_function(kind))
    return np.asarray(function(params or {}, jnp.asarray(windows, jnp.float32)))


def naive_moving_average(windows):
    result = np.empty(windows.shape)
    for m, window in enumerate(windows.astype(np.float64)):
        for t in range(len(window)):
            latest = window[max(0, t - 59) : t + 1]
            result[m, t] = np.abs(window[t] - latest.mean(axis=0))
    return result


def noisy_windows(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_autoencoder_gives_absolute_reconstruction_errors():
    arch = Architecture(2, (3,))
    params = jax.jit(network(arch).init)(jax.random.key(0))
    windows = jnp.asarray(noisy_windows(4, 5, 2))
    found = np.asarray(residual_function("autoencoder", arch)(params, windows))
    expected = np.abs(windows - network(arch).apply(params, windows))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert (found >= 0).all()


@settings(deadline=None, max_examples=30)
@given(window_arrays)
def test_mahalanobis_gives_the_rows(windows):
    np.testing.assert_array_equal(errors("mahalanobis", windows), windows)


@settings(deadline=None, max_examples=30)
@given(window_arrays)
def test_difference_against_a_loop(windows):
    expected = np.zeros_like(windows)
    for m in range(2):
        for t in range(1, 5):
            expected[m, t] = np.abs(windows[m, t] - windows[m, t - 1])
    # XLA takes numbers below 1e-38 for 0.
    np.testing.assert_allclose(
        errors("difference", windows), expected, rtol=0, atol=1e-37
    )


@settings(deadline=None, max_examples=30)
@given(window_arrays)
def test_short_moving_average_against_a_loop(windows):
    found = errors("moving_average", windows)
    np.testing.assert_allclose(found, naive_moving_average(windows), atol=1e-3)


def test_long_moving_average_forgets_rows_after_60():
    windows = noisy_windows(2, 150, 3) + 5
    windows[0, 0, 0] = 1e6
    found = errors("moving_average", windows)
    expected = naive_moving_average(windows)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-5)
    np.testing.assert_allclose(found[0, 60:], expected[0, 60:], atol=1e-5)
    np.testing.assert_allclose(found[0, :60], expected[0, :60], rtol=1e-5, atol=1e-5)
    assert found[0, 59, 0] > 1e4
    assert found[0, 60, 0] < 10


@pytest.mark.parametrize("kind", ["difference", "moving_average"])
def test_constant_rows_have_no_error(kind):
    windows = np.full((2, 70, 3), 0.5, np.float32)
    np.testing.assert_allclose(errors(kind, windows), 0, atol=1e-7)


@pytest.mark.parametrize("variance", [0.5, 0.95])
def test_pca_against_scikit_learn(variance):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, 2)) @ rng.normal(size=(2, 6)) + 3
    rows = (rows + 0.3 * rng.normal(size=rows.shape)).astype(np.float32)
    params = fit_pca(rows, variance=variance)
    oracle = PCA(n_components=variance, svd_solver="full").fit(rows.astype(float))
    assert params["components"].shape == oracle.components_.shape
    assert params["components"].dtype == params["mean"].dtype == np.float32
    windows = noisy_windows(5, 7, 6, seed=1)
    flat = windows.reshape(-1, 6).astype(float)
    expected = np.abs(flat - oracle.inverse_transform(oracle.transform(flat)))
    found = errors("pca", windows, params)
    np.testing.assert_allclose(found.reshape(-1, 6), expected, atol=1e-5)


def test_pca_keeps_95_percent_by_default():
    # Variances 90, 6 and 4: two components hold 96 %.
    rows = np.random.default_rng(0).normal(size=(4000, 3)) * np.sqrt([90, 6, 4])
    assert fit_pca(rows)["components"].shape == (2, 3)


@pytest.mark.parametrize("pieces", [1, 3])
def test_pca_leaves_something_of_each_row(pieces):
    rng = np.random.default_rng(0)
    base = rng.normal(size=(2000, 3)).astype(np.float32)
    for rows, most in (
        (base, 2),  # case 4: 95 % of the variance takes all three
        (np.c_[base, np.zeros(2000, "f")], 2),  # a constant channel isn't one to leave
        (np.c_[base[:, :2], 2 * base[:, :1] + 1], 1),  # nor is a copy
        (base[:, :1], 0),
    ):
        params = fit_pca(np.split(rows, [700, 1100])[:pieces] if pieces > 1 else rows)
        assert int(params["components"].any(axis=1).sum()) == most
        left = errors("pca", rows[None], params)[0]
        assert left.max() > 0.5


def test_pca_of_constant_rows_projects_on_their_mean():
    params = fit_pca(np.full((10, 2), 3.0, np.float32))
    np.testing.assert_array_equal(params["mean"], [3, 3])
    found = errors("pca", np.array([[[3.0, 4.0], [1.0, 3.0]]]), params)
    np.testing.assert_array_equal(found, [[[0, 1], [2, 0]]])


def test_random_is_fixed_by_the_window_alone():
    windows = noisy_windows(9, 20, 3)
    whole = errors("random", windows)
    np.testing.assert_array_equal(errors("random", windows), whole)
    parts = [errors("random", component) for component in np.split(windows, [4])]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(errors("random", windows[::-1]), whole[::-1])


@pytest.mark.parametrize("levels", [2, 5, 101])
def test_random_tells_windows_of_few_values_apart(levels):
    rng = np.random.default_rng(levels)
    windows = rng.integers(0, levels, (1500, 20, 3)) / (levels - 1)
    assert len(np.unique(windows.reshape(1500, -1), axis=0)) == 1500
    noise = errors("random", windows).reshape(1500, -1)
    assert len(np.unique(noise[:, 0])) == 1500


def test_random_tells_orders_of_the_same_rows_apart():
    places = [(i, j) for i in range(60) for j in range(i)][:400]
    windows = np.zeros((400, 60), np.float32)
    for window, (i, j) in zip(windows, places, strict=True):
        window[[i, j]] = 1
    noise = errors("random", windows.reshape(400, 20, 3)).reshape(400, -1)
    assert len(np.unique(noise[:, 0])) == 400


def test_random_is_uniform():
    noise = errors("random", noisy_windows(200, 20, 3))
    assert noise.min() >= 0
    assert noise.max() < 1
    assert scipy.stats.kstest(noise.ravel(), "uniform").pvalue > 0.01
    # Also across windows at one position.
    assert scipy.stats.kstest(noise[:, 0, 0], "uniform").pvalue > 0.01


@pytest.mark.parametrize(
    "kind", ["transformer", "pca+transformer", "", "pca+", "pca difference"]
)
def test_unknown_kind_is_refused(kind):
    unknown = kind.split("+")[-1]
    message = rf"residual model '{unknown}' is unknown: .*autoencoder.*random"
    with pytest.raises(ArtifactError, match=message):
        residual_function(kind)


def test_parameters_are_counted():
    assert ResidualModel("difference", {}).parameters == 0
    pca = {"mean": np.zeros(6), "components": np.zeros((2, 6))}
    assert ResidualModel("pca", pca).parameters == 18
    arch = Architecture(2, (3,))
    params = jax.eval_shape(network(arch).init, jax.random.key(0))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape), params)
    assert ResidualModel("autoencoder", zeros, arch).parameters == 72 + 84 + 8


# What a kind expects of a window.

ARCH = Architecture(3, (4,), head="sigmoid")
FITTED = ("pca", "kmeans", "memory", *FORECASTERS)


def parts(*, seed=0):
    """A residual model of each kind, with random parameters."""
    rng = np.random.default_rng(seed)
    components = np.linalg.qr(rng.normal(size=(3, 2)))[0].T
    pca = {"mean": rng.normal(size=3), "components": components}
    known = noisy_windows(8, 7, 3, seed=seed)
    found = [
        ResidualModel(
            "autoencoder", jax.jit(network(ARCH).init)(jax.random.key(seed)), ARCH
        ),
        ResidualModel("pca", {k: np.float32(v) for k, v in pca.items()}),
        ResidualModel("kmeans", {"centres": known}),
        ResidualModel("memory", {"windows": known}),
        *(
            ResidualModel(kind, init_forecaster(kind, rng, known))
            for kind in FORECASTERS
        ),
        *(ResidualModel(kind, {}) for kind in BASELINES if kind not in FITTED),
    ]
    return {model.kind: model for model in found}


def errors_of(model, windows):
    function = residual_function(model.kind, model.architecture)
    return np.asarray(jax.jit(function)(model.params, jnp.asarray(windows)))


def expected_by(model, windows):
    net = reconstruction_model(model.kind, model.architecture)
    return np.asarray(net.apply(model.params, jnp.asarray(windows)))


@pytest.mark.parametrize(
    "kind", ["autoencoder", *sorted(BASELINES.keys() - {"random", "classifier"})]
)
def test_errors_are_the_distance_from_what_is_expected(kind):
    model, windows = parts()[kind], noisy_windows(5, 7, 3, seed=2)
    expected = expected_by(model, windows)
    assert expected.shape == windows.shape and expected.dtype == np.float32
    distance = np.abs(windows - expected)
    wanted = windows if kind == "mahalanobis" else errors_of(model, windows)
    np.testing.assert_allclose(distance, np.abs(wanted), rtol=1e-5, atol=1e-6)
    if kind == "mahalanobis":
        assert not expected.any()
    elif kind != "autoencoder":
        assert np.abs(expected).max() > 0.5


def test_a_joined_kind_expects_what_its_first_part_does():
    models, windows = parts(), noisy_windows(5, 7, 3)
    one = reconstruction_model("kmeans+autoencoder", ARCH)
    np.testing.assert_array_equal(
        one.apply(models["kmeans"].params, windows),
        expected_by(models["kmeans"], windows),
    )
    assert reconstruction_model("autoencoder+kmeans", ARCH) == network(ARCH)


@pytest.mark.parametrize("kind", ["random", "random+pca", "transformer"])
def test_noise_can_not_teach(kind):
    name = kind.split("+")[0]
    message = f"'{name}' has no reconstruction.*put one of autoencoder.*pca first"
    with pytest.raises(ConfigError, match=message):
        reconstruction_model(kind)


# Joined kinds.

JOINED = [
    ("kmeans", "difference", "moving_average"),
    ("autoencoder", "difference", "pca"),
    ("mahalanobis", "random", "autoencoder", "kmeans"),
]


@pytest.mark.parametrize("kinds", JOINED, ids="+".join)
def test_joined_errors_stand_side_by_side(kinds):
    models, windows = parts(), noisy_windows(5, 7, 3, seed=2)
    joined = join_models([models[kind] for kind in kinds])
    assert joined.kind == "+".join(kinds) and components_of(joined.kind) == kinds
    found = errors_of(joined, windows)
    assert found.shape == (5, 7, 3 * len(kinds))
    apart = [errors_of(models[kind], windows) for kind in kinds]
    wanted = np.concatenate(apart, axis=-1)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kinds", JOINED, ids="+".join)
def test_parts_come_back_out_of_what_joined_them(kinds):
    models = parts()
    joined = join_models([models[kind] for kind in kinds])
    for kind in kinds:
        back = component(joined, kind)
        assert (back.kind, back.architecture) == (kind, models[kind].architecture)
        jax.tree.map(np.testing.assert_array_equal, back.params, models[kind].params)
    assert joined.parameters == sum(models[kind].parameters for kind in kinds)
    assert joined.architecture == (ARCH if "autoencoder" in kinds else None)


def test_one_model_joined_is_itself():
    model = parts()["pca"]
    assert join_models([model]) is model and component(model, "pca") is model


def test_a_part_without_parameters_needs_no_entry():
    """Saved parameters have none: a folder of arrays can't hold an empty one."""
    models, windows = parts(), noisy_windows(5, 7, 3)
    joined = join_models([models["kmeans"], models["difference"]])
    bare = joined._replace(params={"kmeans": models["kmeans"].params})
    np.testing.assert_array_equal(errors_of(bare, windows), errors_of(joined, windows))
    assert component(bare, "difference") == ResidualModel("difference", {})


def test_names_of_errors():
    channels = ("cpu", "heat")
    assert residual_names("kmeans", channels) == channels
    assert residual_names("kmeans+difference", channels) == (
        "kmeans of cpu", "kmeans of heat", "difference of cpu", "difference of heat",
    )  # fmt: skip


@pytest.mark.parametrize("value", [np.inf, 3e38])
def test_an_overflow_in_the_first_row_is_no_step(value):
    windows = noisy_windows(1, 4, 3)
    windows[0, 0, 1] = value
    found = errors("difference", windows)[0]
    assert not found[0].any() and found[1, 1] > 1e38
    assert (found[1, [0, 2]] < 10).all() and (found[2:] < 10).all()
