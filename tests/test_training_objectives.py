"""The losses of teacher and student against Eq. 2 in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.models.autoencoder import Architecture, Network, network
from kdjax.training.objectives import (
    Batch,
    mean_squared_error,
    student_objective,
    teacher_objective,
    validation_loss,
)

SHAPE = (4, 5, 3)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def table(head):
    """A network whose parameters are its head outputs."""
    activate = sigmoid_jax if head == "sigmoid" else identity
    return Network(lambda key: None, lambda params, windows, forced: params, activate)


def sigmoid_jax(x):
    return 1 / (1 + jnp.exp(-x))


def identity(x):
    return x


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    return {
        "windows": rng.uniform(size=SHAPE),
        "student": rng.normal(size=SHAPE),
        "teacher": rng.normal(size=SHAPE),
        "weight": np.array([1.0, 1.0, 1.0, 0.0]),
    }


def eq_2(arrays, *, alpha, temperature, mode, head):
    """Eq. 2 over the windows of weight 1, with T read as the mode says."""
    real = arrays["weight"] == 1
    x, z_s, z_t = (arrays[name][real] for name in ("windows", "student", "teacher"))
    activate = sigmoid if head == "sigmoid" else (lambda z: z)
    hard = np.mean((activate(z_s) - x) ** 2)
    if mode == "logit":
        soft = np.mean((sigmoid(z_s / temperature) - sigmoid(z_t / temperature)) ** 2)
    else:
        soft = np.mean(((activate(z_s) - activate(z_t)) / temperature) ** 2)
    return (1 - alpha) * hard + alpha * soft


def loss(arrays, *, alpha, temperature, mode, head, teacher_head=None):
    objective = student_objective(
        table(head),
        table(teacher_head or head),
        alpha=alpha,
        temperature=temperature,
        temperature_mode=mode,
    )
    batch = Batch(arrays["windows"], arrays["weight"], arrays["teacher"])
    with jax.enable_x64(True):
        batch = jax.tree.map(jnp.asarray, batch)
        return jax.value_and_grad(objective)(jnp.asarray(arrays["student"]), batch)


@pytest.mark.parametrize("alpha", [0, 0.35, 1])
@pytest.mark.parametrize("temperature", [1, 1.5, 2])
@pytest.mark.parametrize(
    ("mode", "head"),
    [("output", "linear"), ("output", "sigmoid"), ("logit", "sigmoid")],
)
def test_student_minimises_eq_2(arrays, alpha, temperature, mode, head):
    reading = {"alpha": alpha, "temperature": temperature, "mode": mode, "head": head}
    found, _ = loss(arrays, **reading)
    np.testing.assert_allclose(found, eq_2(arrays, **reading), rtol=1e-12)


def test_both_modes_are_eq_2_at_temperature_1(arrays):
    reading = {"alpha": 0.35, "temperature": 1, "head": "sigmoid"}
    output, slope = loss(arrays, mode="output", **reading)
    logit, other = loss(arrays, mode="logit", **reading)
    np.testing.assert_allclose(output, logit, rtol=1e-12)
    np.testing.assert_allclose(slope, other, rtol=1e-9, atol=1e-15)


def test_output_mode_weighs_the_teacher_by_alpha_over_t_squared(arrays):
    reading = {"mode": "output", "head": "linear"}
    hard = eq_2(arrays, alpha=0, temperature=1, **reading)
    soft = eq_2(arrays, alpha=1, temperature=1, **reading)
    found, _ = loss(arrays, alpha=0.4, temperature=2, **reading)
    np.testing.assert_allclose(found, 0.6 * hard + 0.4 / 4 * soft, rtol=1e-12)


@pytest.mark.parametrize("alpha", [0.35, 1])
def test_eq_2_pulls_towards_the_mixture_of_data_and_teacher(arrays, alpha):
    """By algebra Eq. 2 is MSE(X_S, (1 − α)X + αX_T) plus a constant."""
    _, slope = loss(arrays, alpha=alpha, temperature=1, mode="output", head="linear")
    mixture = (1 - alpha) * arrays["windows"] + alpha * arrays["teacher"]
    real = arrays["weight"][:, None, None]
    expected = 2 * real * (arrays["student"] - mixture) / (3 * 5 * 3)
    np.testing.assert_allclose(slope, expected, rtol=1e-10, atol=1e-15)


def test_each_network_has_its_own_activation(arrays):
    reading = {"alpha": 1, "temperature": 1, "mode": "output"}
    found, _ = loss(arrays, head="linear", teacher_head="sigmoid", **reading)
    taught = arrays | {"teacher": sigmoid(arrays["teacher"])}
    np.testing.assert_allclose(found, eq_2(taught, head="linear", **reading))


@pytest.mark.parametrize("mode", ["output", "logit"])
def test_padding_counts_for_nothing(arrays, mode):
    reading = {"alpha": 0.35, "temperature": 2, "mode": mode, "head": "sigmoid"}
    padded, slope = loss(arrays, **reading)
    other = {key: value.copy() for key, value in arrays.items()}
    for name in ("windows", "student", "teacher"):
        other[name][3] = 1e3
    changed, other_slope = loss(other, **reading)
    assert changed == padded
    assert not slope[3].any()
    assert not other_slope[3].any()
    np.testing.assert_array_equal(slope, other_slope)
    alone, own = loss({key: value[:3] for key, value in arrays.items()}, **reading)
    np.testing.assert_allclose(alone, padded, rtol=1e-12)
    np.testing.assert_allclose(own, slope[:3], rtol=1e-12)


def test_alpha_0_needs_no_teacher(arrays):
    objective = student_objective(
        table("linear"),
        table("linear"),
        alpha=0,
        temperature=2.0,
        temperature_mode="output",
    )
    batch = Batch(jnp.asarray(arrays["windows"]), jnp.asarray(arrays["weight"]))
    found = objective(jnp.asarray(arrays["student"]), batch)
    reading = {"alpha": 0, "temperature": 1, "mode": "output", "head": "linear"}
    np.testing.assert_allclose(found, eq_2(arrays, **reading), rtol=1e-6)


def test_mean_squared_error_is_the_plain_mean_without_padding(arrays):
    x, z = arrays["windows"], arrays["student"]
    batch = Batch(jnp.asarray(x), jnp.ones(4))
    found = mean_squared_error(jnp.asarray(z), batch.windows, batch)
    np.testing.assert_allclose(found, np.mean((x - z) ** 2), rtol=1e-6)


def test_training_forces_a_feedback_decoder_and_validation_frees_it():
    net = network(Architecture(2, (3,), decoder="feedback", head="sigmoid"))
    params = jax.jit(net.init)(jax.random.key(0))
    rng = np.random.default_rng(1)
    windows = rng.uniform(size=(3, 5, 2)).astype(np.float32)
    targets = rng.normal(size=(3, 5, 2)).astype(np.float32)
    batch = Batch(
        jnp.asarray(windows), jnp.array([1.0, 0.0, 1.0]), jnp.asarray(targets)
    )

    def error(forced):
        outputs = sigmoid(np.float64(net.outputs(params, batch.windows, forced=forced)))
        return np.mean((outputs - windows)[[0, 2]] ** 2)

    forced, free = error(True), error(False)
    assert abs(forced - free) > 1e-6
    np.testing.assert_allclose(teacher_objective(net)(params, batch), forced, rtol=1e-6)
    np.testing.assert_allclose(validation_loss(net)(params, batch), free, rtol=1e-6)
    student = student_objective(
        net, net, alpha=0.5, temperature=1.0, temperature_mode="output"
    )
    outputs = sigmoid(np.float64(net.outputs(params, batch.windows, forced=True)))
    soft = np.mean((outputs - sigmoid(np.float64(targets)))[[0, 2]] ** 2)
    expected = 0.5 * forced + 0.5 * soft
    np.testing.assert_allclose(student(params, batch), expected, rtol=1e-6)


# Missing cells.


def masked_mean(squares, observed, weight):
    """Each window's mean over its observed cells, then over windows of weight 1."""
    means = [
        s[o].mean() if o.any() else 0.0 for s, o in zip(squares, observed, strict=True)
    ]
    return np.sum(weight * means) / np.sum(weight)


@pytest.fixture(scope="module")
def observed():
    """Cells `[4, 5, 3]`: the second window complete, the third without any."""
    mask = np.random.default_rng(5).random(SHAPE) < 0.6
    mask[1], mask[2] = True, False
    return mask


def test_missing_cells_count_for_nothing(arrays, observed):
    x, z, weight = (arrays[name] for name in ("windows", "student", "weight"))
    wanted = masked_mean((x - z) ** 2, observed, weight)
    assert abs(wanted - np.mean((x - z)[:3] ** 2)) > 1e-3
    with jax.enable_x64(True):
        batch = Batch(jnp.asarray(x), jnp.asarray(weight), observed=observed)
        found, slope = jax.value_and_grad(mean_squared_error)(
            jnp.asarray(z), batch.windows, batch
        )
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    counts = np.maximum(observed.sum(axis=(1, 2)), 1)[:, None, None]
    expected = 2 * (z - x) * observed / counts * weight[:, None, None] / 3
    np.testing.assert_allclose(slope, expected, rtol=1e-10, atol=1e-15)


def test_a_mask_without_a_gap_changes_nothing(arrays):
    z = jnp.asarray(arrays["student"])
    batch = Batch(jnp.asarray(arrays["windows"]), jnp.asarray(arrays["weight"]))
    plain = mean_squared_error(z, batch.windows, batch)
    masked = batch._replace(observed=jnp.ones(SHAPE, bool))
    found = mean_squared_error(z, batch.windows, masked)
    np.testing.assert_allclose(found, plain, rtol=1e-6)


@pytest.mark.parametrize("mode", ["output", "logit"])
def test_the_student_learns_neither_from_data_nor_teacher_what_is_missing(
    arrays, observed, mode
):
    objective = student_objective(
        table("sigmoid"), table("sigmoid"), alpha=0.35, temperature=2.0,
        temperature_mode=mode,
    )  # fmt: skip
    x, z_s, z_t = (arrays[name] for name in ("windows", "student", "teacher"))
    if mode == "logit":
        soft = (sigmoid(z_s / 2) - sigmoid(z_t / 2)) ** 2
    else:
        soft = ((sigmoid(z_s) - sigmoid(z_t)) / 2) ** 2
    hard = (sigmoid(z_s) - x) ** 2
    wanted = 0.65 * masked_mean(hard, observed, arrays["weight"])
    wanted += 0.35 * masked_mean(soft, observed, arrays["weight"])
    with jax.enable_x64(True):
        batch = Batch(x, arrays["weight"], z_t, observed)
        batch = jax.tree.map(jnp.asarray, batch)
        found, slope = jax.value_and_grad(objective)(jnp.asarray(z_s), batch)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert not np.asarray(slope)[~observed].any()


def test_validation_leaves_missing_cells_out_too(arrays, observed):
    x, z = arrays["windows"], arrays["student"]
    batch = Batch(jnp.asarray(x), jnp.asarray(arrays["weight"]), observed=observed)
    # The stand-in network takes no choice of feedback.
    net = Network(lambda key: None, lambda params, windows: params, identity)
    found = validation_loss(net)(jnp.asarray(z), batch)
    wanted = masked_mean((x - z) ** 2, observed, arrays["weight"])
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
