"""The losses of teacher and student against Eq. 2 in float64."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import zscore

from kdjax.losses import reconstruction_loss
from kdjax.models.autoencoder import Architecture, network
from kdjax.models.model import Model
from kdjax.training.batching import Batch
from kdjax.training.steps import student_loss, teacher_loss, validation_loss

SHAPE = (4, 5, 3)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def head_model(outputs, activate, coded=None):
    """A model with these head outputs."""
    return Model(
        lambda key, windows: None,
        lambda params, windows: activate(outputs(params, windows)),
        outputs=outputs,
        activate=activate,
        coded=coded,
    )


def table(head):
    """A network whose parameters are its head outputs."""
    activate = sigmoid_jax if head == "sigmoid" else identity
    return head_model(lambda params, windows, forced=False: params, activate)


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
    objective = student_loss(
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
    distilled = arrays | {"teacher": sigmoid(arrays["teacher"])}
    np.testing.assert_allclose(found, eq_2(distilled, head="linear", **reading))


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
    objective = student_loss(
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


def test_reconstruction_loss_is_the_plain_mean_without_padding(arrays):
    x, z = arrays["windows"], arrays["student"]
    batch = Batch(jnp.asarray(x), jnp.ones(4))
    found = reconstruction_loss(jnp.asarray(z), batch.windows, weight=batch.weight)
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
    np.testing.assert_allclose(teacher_loss(net)(params, batch), forced, rtol=1e-6)
    np.testing.assert_allclose(validation_loss(net)(params, batch), free, rtol=1e-6)
    student = student_loss(
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
        found, slope = jax.value_and_grad(reconstruction_loss)(
            jnp.asarray(z),
            batch.windows,
            weight=batch.weight,
            observed=batch.observed,
        )
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    counts = np.maximum(observed.sum(axis=(1, 2)), 1)[:, None, None]
    expected = 2 * (z - x) * observed / counts * weight[:, None, None] / 3
    np.testing.assert_allclose(slope, expected, rtol=1e-10, atol=1e-15)


def test_a_mask_without_a_gap_changes_nothing(arrays):
    z = jnp.asarray(arrays["student"])
    batch = Batch(jnp.asarray(arrays["windows"]), jnp.asarray(arrays["weight"]))
    plain = reconstruction_loss(z, batch.windows, weight=batch.weight)
    masked = batch._replace(observed=jnp.ones(SHAPE, bool))
    found = reconstruction_loss(
        z, batch.windows, weight=batch.weight, observed=masked.observed
    )
    np.testing.assert_allclose(found, plain, rtol=1e-6)


@pytest.mark.parametrize("mode", ["output", "logit"])
def test_the_student_learns_neither_from_data_nor_teacher_what_is_missing(
    arrays, observed, mode
):
    objective = student_loss(
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
    net = head_model(lambda params, windows, forced=False: params, identity)
    found = validation_loss(net)(jnp.asarray(z), batch)
    wanted = masked_mean((x - z) ** 2, observed, arrays["weight"])
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


# Other targets than X_T. Of a table with a code, the parameters are both.


class Parts(NamedTuple):
    """What a table with a code has as parameters: head outputs and code."""

    outputs: jax.Array
    code: jax.Array


def coded_table():
    return head_model(
        lambda params, windows, forced=False: params.outputs,
        identity,
        lambda params, windows, forced=False: (params.outputs, params.code),
    )


def soft_loss(arrays, target, *, net=None, params=None, alpha=0.3, **options):
    """Loss and gradient of another target, of the windows of weight 1."""
    given = {"alpha": alpha, "temperature": 1.0, "temperature_mode": "output"}
    objective = student_loss(
        net or table("linear"), table("linear"), target=target, **given | options
    )
    fields = ("windows", "weight", "targets", "observed", "sound")
    with jax.enable_x64(True):
        batch = Batch(*(arrays.get(field) for field in fields))
        params = arrays["student"] if params is None else params
        params, batch = jax.tree.map(jnp.asarray, (params, batch))
        return jax.value_and_grad(objective)(params, batch)


def window_means(arrays, z):
    """MSE(X_S, X) of each window, over its observed cells."""
    squares = (z - arrays["windows"]) ** 2
    seen = arrays.get("observed", np.ones(SHAPE, bool))
    return np.array(
        [s[o].mean() if o.any() else 0.0 for s, o in zip(squares, seen, strict=True)]
    )


def log_errors(arrays, z):
    """log(MSE + 1e-6) of the rows that count, and what the teacher says of them."""
    squares = (z - arrays["windows"]) ** 2
    seen = arrays.get("observed", np.ones(SHAPE, bool))
    pairs = [
        (np.log(squares[b, t][seen[b, t]].mean() + 1e-6), arrays["targets"][b, t])
        for b, t in np.ndindex(SHAPE[:2])
        if arrays["weight"][b] and seen[b, t].any()
    ]
    return np.array(pairs).T


@pytest.fixture(scope="module")
def ranked(arrays, observed):
    """Scores `[4, 5]` as targets; rows without a cell are said to score 0."""
    targets = np.random.default_rng(8).exponential(size=SHAPE[:2])
    whole = arrays | {"targets": targets}
    targets = np.where(observed.any(axis=2), targets, 0)
    return {"whole": whole, "gaps": arrays | {"targets": targets, "observed": observed}}


@pytest.mark.parametrize("rows", ["whole", "gaps"])
@pytest.mark.parametrize("alpha", [0.35, 1.0])
def test_scores_leave_twice_one_minus_the_correlation(ranked, rows, alpha):
    arrays = ranked[rows]
    real, z = arrays["weight"] == 1, arrays["student"]
    hard = window_means(arrays, z)[real].mean()
    rho = np.corrcoef(*log_errors(arrays, z))[0, 1]
    assert abs(rho) < 0.9
    found, _ = soft_loss(arrays, "scores", alpha=alpha)
    wanted = (1 - alpha) * hard + alpha * 2 * (1 - rho) * hard
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    # Any offset and factor of the teacher's are as good.
    other = arrays | {"targets": 5 + 3 * arrays["targets"]}
    np.testing.assert_allclose(soft_loss(other, "scores", alpha=alpha)[0], wanted)


@pytest.mark.parametrize("rows", ["whole", "gaps"])
def test_slopes_of_scores_are_differences_of_the_correlation(ranked, rows):
    """With the hard term's mean, which only is the unit, held as it is."""
    arrays, alpha, step = ranked[rows], 0.4, 1e-6
    real, z = arrays["weight"] == 1, arrays["student"]
    unit = window_means(arrays, z)[real].mean()

    def by_hand(z):
        rho = np.corrcoef(*log_errors(arrays, z))[0, 1]
        hard = window_means(arrays, z)[real].mean()
        return (1 - alpha) * hard + alpha * 2 * (1 - rho) * unit

    wanted = np.zeros(SHAPE)
    for place in np.ndindex(SHAPE):
        moved = np.zeros(SHAPE)
        moved[place] = step
        wanted[place] = (by_hand(z + moved) - by_hand(z - moved)) / (2 * step)
    _, slope = soft_loss(arrays, "scores", alpha=alpha)
    np.testing.assert_allclose(slope, wanted, rtol=1e-5, atol=1e-8)
    assert not np.asarray(slope)[3].any() and np.asarray(slope)[:2].all(axis=2).any()
    if rows == "gaps":
        assert not np.asarray(slope)[~arrays["observed"]].any()


def test_of_disturbed_windows_only_the_scores_count(ranked):
    """And the unit is the hard term of those that are as they were recorded."""
    arrays = ranked["whole"] | {"sound": np.array([1.0, 0.0, 1.0, 1.0])}
    z, alpha = arrays["student"], 0.3
    hard = window_means(arrays, z)
    own, said = (zscore(values) for values in log_errors(arrays, z))
    # As all windows have as many rows, each window's share is the mean of its rows.
    soft = ((own - said) ** 2).reshape(3, 5).mean(axis=1) * hard[[0, 2]].mean()
    distilled = (1 - alpha) * hard[:3] + alpha * soft
    distilled[1] = soft[1]
    found, slope = soft_loss(arrays, "scores", alpha=alpha)
    np.testing.assert_allclose(found, distilled.mean(), rtol=1e-12)
    everything, _ = soft_loss(arrays, "scores", alpha=1.0)
    rho = np.corrcoef(own, said)[0, 1]
    np.testing.assert_allclose(everything, 2 * (1 - rho) * hard[[0, 2]].mean())
    assert np.asarray(slope)[1].any()


@pytest.mark.parametrize("alike", ["teacher", "student", "both"])
def test_scores_that_are_all_alike_say_nothing(ranked, alike):
    arrays = ranked["whole"]
    if alike != "student":
        arrays = arrays | {"targets": np.full(SHAPE[:2], 3.25)}
    if alike != "teacher":
        arrays = arrays | {"student": arrays["windows"] + 0.5}
    found, slope = soft_loss(arrays, "scores", alpha=0.4)
    z, x = arrays["student"], arrays["windows"]
    hard = ((z - x)[:3] ** 2).mean()
    # What is standardised has a mean square of 1 where it varies, against 0.
    wanted = 0.6 * hard + 0.4 * hard * (alike != "both")
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    real = arrays["weight"][:, None, None]
    np.testing.assert_allclose(slope, 0.6 * 2 * real * (z - x) / 45, atol=1e-12)


def test_scores_of_a_student_that_errs_nowhere_are_numbers(ranked):
    """In float32, as training has it; no row of the last batch was observed."""
    given = {"alpha": 0.5, "temperature": 1.0, "temperature_mode": "output"}
    objective = student_loss(table("linear"), table("linear"), target="scores", **given)
    batch = Batch(
        *(ranked["whole"][field] for field in ("windows", "weight", "targets"))
    )
    batch = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), batch)
    for one in (batch, batch._replace(observed=jnp.zeros(SHAPE, bool))):
        found, slope = jax.value_and_grad(objective)(one.windows, one)
        assert found == 0 and not np.asarray(slope).any()


@pytest.mark.parametrize(("units", "known"), [(7, 4), (4, 4), (4, 1)])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_hidden_codes_are_compared_unit_by_unit(arrays, units, known, temperature):
    rng = np.random.default_rng(3)
    code, targets = rng.normal(size=(4, units)), rng.normal(size=(4, known))
    params = Parts(arrays["student"], code)
    found, slope = soft_loss(
        arrays | {"targets": targets}, "hidden", net=coded_table(), params=params,
        temperature=temperature,
    )  # fmt: skip
    hard = np.mean((arrays["student"] - arrays["windows"])[:3] ** 2)
    gaps = (code[:3, :known] - targets[:3]) / temperature
    np.testing.assert_allclose(found, 0.7 * hard + 0.3 * np.mean(gaps**2), rtol=1e-12)
    wanted = np.zeros((4, units))
    wanted[:3, :known] = 0.3 * 2 * gaps / temperature / (3 * known)
    np.testing.assert_allclose(slope.code, wanted, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("rows", ["whole", "gaps"])
def test_errors_are_compared_with_the_teachers_errors(ranked, rows):
    said = np.abs(np.random.default_rng(4).normal(size=SHAPE))
    arrays = ranked[rows] | {"targets": said}
    x, z = arrays["windows"], arrays["student"]
    seen = arrays.get("observed", np.ones(SHAPE, bool))
    found, _ = soft_loss(arrays, "errors", temperature=1.5)
    soft = ((np.abs(x - z) - said) / 1.5) ** 2
    wanted = 0.7 * masked_mean((x - z) ** 2, seen, arrays["weight"])
    wanted += 0.3 * masked_mean(soft, seen, arrays["weight"])
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
