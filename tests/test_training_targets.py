"""What teachers say of windows, against their parts' own errors and numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import ConfigError
from kdjax.losses import TARGETS
from kdjax.models.autoencoder import Architecture, network
from kdjax.models.baselines import fit_pca
from kdjax.models.residual import ResidualModel, join_models
from kdjax.training import targets as room
from kdjax.training.batching import Batch
from kdjax.training.steps import student_loss
from kdjax.training.targets import reconstruction_model, target_model

L, D = 6, 3
ARCH = Architecture(D, (4,), head="sigmoid")
WINDOWS = np.random.default_rng(1).normal(size=(5, L, D)).astype(np.float32)
KINDS = ("autoencoder", "pca", "difference")
KIND = "+".join(KINDS)


@pytest.fixture(scope="module")
def models():
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(network(ARCH).init, jax.random.key(0))
    params = jax.tree.map(
        lambda leaf: (0.8 * rng.normal(size=leaf.shape)).astype(np.float32), shapes
    )
    rows = rng.normal(size=(200, D)) * [3, 1, 0.1]
    return {
        "autoencoder": ResidualModel("autoencoder", params, ARCH),
        "pca": ResidualModel("pca", fit_pca([rows.astype(np.float32)])),
        "difference": ResidualModel("difference", {}),
    }


@pytest.fixture(scope="module")
def expected(models):
    """What each part expects of the windows, in float64."""
    params = models["pca"].params
    mean, axes = np.float64(params["mean"]), np.float64(params["components"])
    assert len(axes) < D
    return {
        "autoencoder": np.float64(
            network(ARCH).apply(models["autoencoder"].params, jnp.asarray(WINDOWS))
        ),
        "pca": mean + (np.float64(WINDOWS) - mean) @ axes.T @ axes,
        "difference": np.concatenate([WINDOWS[:, :1], WINDOWS[:, :-1]], axis=1),
    }


def said(net, params):
    return np.asarray(net.apply(params, jnp.asarray(WINDOWS)))


def part_of_target(expected, kind, target):
    x = np.float64(WINDOWS)
    return np.abs(x - expected[kind]) if target == "errors" else expected[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", ["reconstruction", "errors"])
def test_one_part_says_what_it_expects_or_how_far_off_that_is(
    models, expected, kind, target
):
    # The first of joined kinds, with its own parameters.
    joined = "+".join((kind, *(other for other in KINDS if other != kind)))
    for name in (kind, joined):
        net = target_model(name, models[kind].architecture or ARCH, target=target)
        found = said(net, models[kind].params)
        wanted = part_of_target(expected, kind, target)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
        assert (found < 0).any() == (target == "reconstruction" and kind != KINDS[0])


def test_errors_have_no_sign():
    """Those of mahalanobis are the rows themselves."""
    net = target_model("mahalanobis", target="errors")
    np.testing.assert_array_equal(said(net, {}), np.abs(WINDOWS))
    assert not said(target_model("mahalanobis"), {}).any()


@pytest.mark.parametrize(
    "weights", [(1.0, 2.0, 5.0), (0.25, 0.0, 0.25), (0.0, 3.0, 0.0)]
)
@pytest.mark.parametrize("target", ["reconstruction", "errors"])
def test_several_say_their_weighted_mean(models, expected, target, weights):
    joined = join_models([models[kind] for kind in KINDS])
    net = target_model(KIND, ARCH, target=target, weights=weights)
    values = [part_of_target(expected, kind, target) for kind in KINDS]
    wanted = np.average(values, axis=0, weights=weights)
    found = said(net, joined.params)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    # A part without parameters has no entry once it was saved.
    bare = {kind: own for kind, own in joined.params.items() if own}
    np.testing.assert_array_equal(said(net, bare), found)


@pytest.mark.parametrize("target", ["reconstruction", "errors"])
def test_nobody_asks_who_counts_for_nothing(models, monkeypatch, target):
    asked = []

    def watched(make):
        def made(kind, architecture):
            if target == "errors":
                function = make(kind, architecture)
                return lambda *given: (asked.append(kind), function(*given))[1]
            net = make(kind, architecture)

            def apply(*given):
                asked.append(kind)
                return net.apply(*given)

            return net._replace(apply=apply)

        return made

    name = "residual_function" if target == "errors" else "reconstruction_model"
    home = room.residual if target == "errors" else room
    monkeypatch.setattr(home, name, watched(getattr(home, name)))
    # Not the cached function, which was made of others.
    net = target_model.__wrapped__(KIND, ARCH, target=target, weights=(2.0, 0.0, 1.0))
    said(net, {kind: model.params for kind, model in models.items()})
    assert asked == ["autoencoder", "difference"]


@pytest.mark.parametrize("target", ["reconstruction", "errors"])
def test_a_mean_teaches_what_its_teachers_would(target):
    """Σ wᵢ·MSE(y, yᵢ) and MSE(y, Σ wᵢ·yᵢ) have one gradient; in float64."""
    net = network(Architecture(D, (2,)))
    rng = np.random.default_rng(6)
    weights, answers = np.array([0.2, 0.5, 0.3]), np.abs(rng.normal(size=(3, 5, L, D)))
    given = {"alpha": 1.0, "temperature": 2.0, "temperature_mode": "output"}
    silent = net._replace(activate=lambda values: values)
    objective = student_loss(net, silent, target=target, **given)

    @jax.jit
    def slope(params, targets):
        batch = Batch(jnp.asarray(WINDOWS, float), jnp.ones(5), targets)
        return jax.value_and_grad(objective)(params, batch)

    with jax.enable_x64(True):
        shapes = jax.eval_shape(net.init, jax.random.key(0))
        params = jax.tree.map(lambda leaf: 0.5 * rng.normal(size=leaf.shape), shapes)
        targets = [*answers, np.average(answers, 0, weights)]
        *own, (mean, found) = jax.device_get(
            [slope(params, jnp.asarray(one)) for one in targets]
        )
    wanted = jax.tree.map(
        lambda *leaves: np.average(leaves, 0, weights), *(one for _, one in own)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-13),
        found,
        wanted,
    )
    # The losses themselves differ, by how far the teachers are apart.
    losses = np.average([loss for loss, _ in own], weights=weights)
    np.testing.assert_allclose(losses - mean, spread(answers, weights) / 4, rtol=1e-10)


def spread(answers, weights):
    """Weighted variance of the answers about their mean, over all cells."""
    mean = np.average(answers, 0, weights)
    return np.average((answers - mean) ** 2, 0, weights).mean()


def test_a_hidden_code_is_the_encoders(models):
    params = models["autoencoder"].params
    wanted = network(ARCH).coded(params, jnp.asarray(WINDOWS))[1]
    for kind in ("autoencoder", KIND):
        found = said(target_model(kind, ARCH, target="hidden"), params)
        assert found.shape == (5, 4)
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("pca", None), ("kmeans+autoencoder", ARCH), ("difference", ARCH)],
)
def test_who_has_no_encoder_has_no_code(kind, shape):
    first = kind.split("+")[0]
    with pytest.raises(ConfigError, match=f"'{first}' has none: put autoencoder first"):
        target_model(kind, shape, target="hidden")


def test_functions_of_teachers_are_kept():
    net = target_model(KIND, ARCH, weights=(1.0, 1.0, 1.0))
    assert net is target_model(KIND, ARCH, weights=(1.0, 1.0, 1.0))
    # As ever without weights and with X_T as the target.
    assert (
        target_model(KIND, ARCH)
        is reconstruction_model("autoencoder", ARCH)
        == network(ARCH)
    )
    assert TARGETS[0] == "reconstruction"
