"""The functional library: what a user composes from `kdjax`'s own functions."""

import functools
import inspect
import runpy
import subprocess
import sys
import time
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.metrics import average_precision_score

import kdjax
from kdjax.models.baselines import BASELINES
from kdjax.training.steps import student_loss

METRICS = (
    "precision_recall_f1", "auc_roc", "average_precision", "oracle_threshold",
    "vus", "vus_roc", "vus_pr", "affiliation", "range_precision_recall",
    "event_f1", "event_recall", "detection_delay", "point_adjusted_f1", "pa_k_f1",
)  # fmt: skip
EXAMPLE = Path(__file__).parent.parent / "examples" / "functional.py"


@pytest.fixture(scope="module")
def windows():
    """`[12, 6, 2]` float32."""
    rows = np.random.default_rng(0).normal(size=(28, 2)).astype(np.float32)
    return kdjax.windows(rows, length=6, stride=2)


@pytest.fixture(scope="module")
def model():
    return kdjax.lstm_autoencoder(hidden=(3,))


@pytest.fixture(scope="module")
def params(model, windows):
    return model.init(jax.random.key(0), windows)


def test_the_example_runs_and_finds_alarms():
    found = runpy.run_path(str(EXAMPLE))
    code = [
        line
        for line in EXAMPLE.read_text("utf-8").splitlines()
        if line.strip() and not line.startswith("#")
    ]
    assert len(code) <= 52
    points, tau = np.asarray(found["points"]), found["tau"]
    largest = np.sort(points.max(axis=1))
    # The ⌈(n+1)(1−0.01)⌉-th smallest of the n calibration window scores.
    assert tau == largest[int(np.ceil((len(largest) + 1) * 0.99)) - 1]
    expected = np.asarray(found["test_points"]).max(axis=1) > tau
    np.testing.assert_array_equal(found["alarms"], expected)
    assert 0 < expected.mean() < 0.5
    labels = found["test"].labels
    wanted = [
        labels[first : first + 50].any() for first in range(0, len(labels) - 49, 10)
    ]
    np.testing.assert_array_equal(found["labels"], wanted)
    scores = np.asarray(found["test_points"]).max(axis=1)
    assert found["ap"] == pytest.approx(average_precision_score(wanted, scores))


def numpy_adam(value, gradients, rate):
    m = v = np.zeros_like(value)
    for t, gradient in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        value = value - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return value


# A model with one number p per channel: X' = p, so that gradients are known by hand.


def constant():
    return kdjax.Model(
        init=lambda key, x: jnp.zeros(x.shape[-1]),
        apply=lambda params, x: jnp.broadcast_to(params, x.shape),
    )


def test_a_teacher_step_is_adam_on_the_mean_squared_error(windows):
    model, tx = constant(), optax.adam(0.1)
    step = kdjax.make_teacher_step(model, tx)
    state = kdjax.init_state(model.init(jax.random.key(0), windows), tx)
    value, gradients, losses = np.zeros(2), [], []
    for batch in kdjax.batches(windows, 5, epochs=2, key=jax.random.key(1)):
        real = np.float64(batch.windows)[np.asarray(batch.weight) == 1]
        losses.append(np.mean((value - real) ** 2))
        gradients.append(value - real.mean(axis=(0, 1)))
        value = numpy_adam(np.zeros(2), gradients, 0.1)
        state, metrics = step(state, batch)
        assert float(metrics["loss"]) == pytest.approx(losses[-1], rel=1e-5)
    np.testing.assert_allclose(state.params, value, rtol=1e-4)
    assert int(state.step) == 6


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_student_step_follows_eq_2(windows, temperature):
    student, tx = constant(), optax.sgd(1.0)
    teacher = kdjax.baseline("difference")
    step = kdjax.make_student_step(
        student, tx, teacher=teacher, teacher_params={}, alpha=0.35,
        temperature=temperature,
    )  # fmt: skip
    state = kdjax.init_state(jnp.array([0.5, -1.0]), tx)
    state, metrics = step(state, windows)
    x = np.float64(windows)
    x_t = np.concatenate([x[:, :1], x[:, :-1]], axis=1)
    start = np.array([0.5, -1.0])
    hard = np.mean((start - x) ** 2)
    soft = np.mean((start - x_t) ** 2) / temperature**2
    assert float(metrics["loss"]) == pytest.approx(0.65 * hard + 0.35 * soft, rel=1e-5)
    means = (start - x.mean(axis=(0, 1))), (start - x_t.mean(axis=(0, 1)))
    slope = 0.65 * means[0] + 0.35 * means[1] / temperature**2
    np.testing.assert_allclose(state.params, start - slope, rtol=1e-5)


def test_alpha_0_is_the_teachers_loss_of_the_student_alone(windows, model, params):
    tx = optax.sgd(0.1)
    alone = kdjax.make_student_step(
        model, tx, teacher=model, teacher_params=params, alpha=0.0
    )
    plain = kdjax.make_teacher_step(model, tx)
    start = kdjax.init_state(model.init(jax.random.key(3), windows), tx)
    first, second = alone(start, windows)[0], plain(start, windows)[0]
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)


def test_batches_visit_each_window_once_an_epoch(windows):
    seen = [
        np.asarray(batch.windows)[np.asarray(batch.weight) == 1]
        for batch in kdjax.batches(windows, 5, epochs=2, key=jax.random.key(0))
    ]
    assert [len(part) for part in seen] == [5, 5, 2] * 2
    epochs = [np.concatenate(seen[:3]), np.concatenate(seen[3:])]
    for epoch in epochs:
        np.testing.assert_array_equal(
            np.unique(epoch, axis=0), np.unique(windows, axis=0)
        )
    assert (epochs[0] != epochs[1]).any()
    with pytest.raises(
        kdjax.DataError, match=r"windows of shape \(28, 2\).*\[M, L, D\]"
    ):
        next(kdjax.batches(np.zeros((28, 2)), 5, key=jax.random.key(0)))


def test_missing_cells_of_a_batch_are_filled_and_marked():
    windows = np.array([[[1.0], [np.nan], [3.0]]], np.float32)
    (batch,) = kdjax.batches(windows, 1, key=jax.random.key(0))
    assert np.asarray(batch.windows)[0, :, 0].tolist() == [1.0, 1.0, 3.0]
    assert np.asarray(batch.observed)[0, :, 0].tolist() == [True, False, True]


# Under the user's own jit, vmap and grad.


def test_steps_run_under_jit_and_vmap(windows, model):
    tx = optax.adam(1e-2)
    step = kdjax.make_teacher_step(model, tx)
    keys = jax.random.split(jax.random.key(0), 3)
    states = jax.vmap(
        lambda key: kdjax.init_state(model.init(key, jnp.asarray(windows)), tx)
    )(keys)
    together, metrics = jax.jit(jax.vmap(step, in_axes=(0, None)))(
        states, jnp.asarray(windows)
    )
    assert metrics["loss"].shape == (3,)
    for place, key in enumerate(keys):
        alone, own = step(
            kdjax.init_state(model.init(key, windows), tx), jnp.asarray(windows)
        )
        assert float(metrics["loss"][place]) == pytest.approx(
            float(own["loss"]), rel=1e-5
        )
        own_params = jax.tree.map(
            lambda leaf, place=place: leaf[place], together.params
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
            own_params,
            alone.params,
        )


def test_a_network_is_compiled_once_outside_of_jit(windows, model, params):
    kdjax.residuals(model, params, windows)  # compiles
    started = time.monotonic()
    for _ in range(5):
        jax.block_until_ready(kdjax.residuals(model, params, windows))
    assert time.monotonic() - started < 1  # traced each time it takes 3 s


def test_scores_have_gradients_that_differences_confirm(windows, model, params):
    with jax.enable_x64(True):
        x = jnp.asarray(windows[:2], jnp.float64)
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
        gaussian = kdjax.fit_gaussian(
            np.asarray(kdjax.residuals(model, wide, jnp.asarray(windows, jnp.float64)))
        )

        @jax.jit
        def largest(x):
            points = kdjax.point_scores(gaussian, kdjax.residuals(model, wide, x))
            return jnp.sum(kdjax.window_scores(points, count=1))

        slope = jax.grad(largest)(x)
        bump = jnp.zeros_like(x).at[1, 2, 0].set(1e-6)
        difference = (largest(x + bump) - largest(x - bump)) / 2e-6
    assert float(slope[1, 2, 0]) == pytest.approx(float(difference), rel=1e-4)


def test_window_scores_and_alarms_agree_between_numpy_and_jax():
    points = np.random.default_rng(1).normal(size=(7, 5)).astype(np.float32)
    points[2] = np.nan
    points[3, 1:] = np.nan
    for count in (0, 1, 4):
        wanted = kdjax.window_scores(points, count=count)
        found = jax.jit(kdjax.window_scores, static_argnames="count")(
            jnp.asarray(points), count=count
        )
        np.testing.assert_array_equal(found, wanted)
        by_hand = [
            np.nan
            if (~np.isnan(row)).sum() <= count
            else np.sort(row[~np.isnan(row)])[-1 - count]
            for row in points
        ]
        np.testing.assert_array_equal(wanted, np.float32(by_hand))
        raised = jax.vmap(functools.partial(kdjax.alarms, tau=0.5, count=count))
        np.testing.assert_array_equal(raised(jnp.asarray(points)), wanted > 0.5)


def test_a_baseline_is_a_model(windows):
    for name in BASELINES.keys() - {"random", "classifier"}:
        model = kdjax.baseline(name)
        params = model.init(jax.random.key(0), windows)
        found = kdjax.residuals(model, params, windows)
        distance = np.abs(windows - np.asarray(model.apply(params, windows)))
        wanted = windows if name == "mahalanobis" else distance
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    with pytest.raises(kdjax.ConfigError, match="baseline 'svm' is unknown: use one"):
        kdjax.baseline("svm")
    with pytest.raises(
        kdjax.ConfigError, match="scores, not residuals: use fit_classif"
    ):
        kdjax.baseline("classifier")


def test_the_gaussian_whitens_with_the_inverse_covariance():
    residuals = np.random.default_rng(2).normal(size=(50, 4, 3)) @ np.diag([1, 2, 3])
    gaussian = kdjax.fit_gaussian(residuals, ridge=0.0, floor=0.0)
    rows = residuals.reshape(-1, 3)
    covariance = np.cov(rows.T, bias=True)
    whiten = np.float64(gaussian.whiten)
    np.testing.assert_allclose(
        whiten.T @ whiten, np.linalg.inv(covariance), rtol=1e-4, atol=1e-6
    )
    centred = rows - rows.mean(axis=0)
    wanted = np.einsum("nd,de,ne->n", centred, np.linalg.inv(covariance), centred)
    found = kdjax.point_scores(gaussian, jnp.asarray(rows, jnp.float32))
    np.testing.assert_allclose(found, wanted, rtol=1e-3)
    with pytest.raises(kdjax.ConfigError, match="shrinkage='full' is unknown"):
        kdjax.fit_gaussian(residuals, shrinkage="full")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden": ()}, "hidden=\\(\\) must name one or more widths"),
        (
            {"hidden": (3,), "decoder": "gru"},
            "decoder='gru' is unknown: use one of repeat",
        ),
        ({"hidden": (3,), "head": "relu"}, "head='relu' is unknown: use one of linear"),
        (
            {"hidden": (3,), "channels": "all"},
            "channels='all' is unknown: use one of joint",
        ),
    ],
)
def test_an_architecture_that_does_not_exist_is_refused(arguments, message):
    with pytest.raises(kdjax.ConfigError, match=message):
        kdjax.lstm_autoencoder(**arguments)


def test_rooms_hand_on_their_public_names():
    import kdjax.detection
    import kdjax.models
    import kdjax.training

    assert kdjax.models.lstm_autoencoder is kdjax.lstm_autoencoder
    assert kdjax.training.batches is kdjax.batches
    assert kdjax.detection.fit_gaussian is kdjax.fit_gaussian
    with pytest.raises(AttributeError, match="'kdjax.models' has no attribute"):
        kdjax.models.nothing  # noqa: B018


def test_the_api_page_has_a_line_for_every_public_name():
    page = (EXAMPLE.parent.parent / "docs" / "api.md").read_text("utf-8")
    for name in kdjax.__all__:
        value = getattr(kdjax, name)
        if isinstance(value, dict):  # a schema has no docstring at run time
            assert f"| `{name}` | " in page
            continue
        doc = inspect.getdoc(value) or ""
        first = " ".join(doc.split("\n\n")[0].split()).replace("|", "&#124;")
        assert f"| `{name}` | {first} |" in page, name


def test_the_api_page_has_a_line_for_every_metric():
    page = (EXAMPLE.parent.parent / "docs" / "api.md").read_text("utf-8")
    for name in METRICS:
        doc = inspect.getdoc(getattr(kdjax.metrics, name)) or ""
        first = " ".join(doc.split("\n\n")[0].split())
        assert f"| `{name}` | {first} |" in page, name


def test_import_kdjax_suffices_for_its_rooms():
    code = (
        "import kdjax; print(kdjax.metrics.auc_roc([0, 1], [1, 2]), kdjax.data.split)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("1.0 <function split")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"target": "reconstructoin"},
            "target='reconstructoin' is unknown: use one of",
        ),
        (
            {"temperature_mode": "logits"},
            "temperature_mode='logits' is unknown: use one",
        ),
        (
            {"target": "hidden"},
            "target='hidden' is unknown: use one of reconstruction, ",
        ),
    ],
)
def test_a_student_step_refuses_what_it_does_not_know(
    model, params, arguments, message
):
    given = {"teacher": model, "teacher_params": params, "alpha": 0.3} | arguments
    with pytest.raises(kdjax.ConfigError, match=message):
        kdjax.make_student_step(model, optax.sgd(0.1), **given)


def test_a_loss_refuses_what_it_does_not_know_or_lacks(windows):
    x = jnp.asarray(windows)
    for arguments, message in (
        (
            {"target": "error"},
            "target='error' is unknown: use one of reconstruction, err",
        ),
        ({"temperature_mode": "soft"}, "temperature_mode='soft' is unknown"),
        (
            {"temperature_mode": "logit"},
            "temperature_mode='logit' needs the student's log",
        ),
        ({"target": "hidden"}, "target='hidden' needs the student's code"),
    ):
        with pytest.raises(kdjax.ConfigError, match=message):
            kdjax.distillation_loss(x, x, x, alpha=0.3, **arguments)
    plain = kdjax.Model(init=lambda key, x: {}, apply=lambda params, x: x)
    with pytest.raises(kdjax.ConfigError, match="a student whose Model has `coded`"):
        student_loss(
            plain, plain, alpha=0.3, temperature=1.0, temperature_mode="output",
            target="hidden",
        )  # fmt: skip


def test_public_functions_have_an_example():
    groups = ("Models", "Losses", "Training", "Data", "Detection")
    missing = [
        name
        for group in groups
        for names in kdjax.GROUPS[group].values()
        for name in names.split()
        if inspect.isfunction(getattr(kdjax, name))
        and ">>>" not in inspect.getdoc(getattr(kdjax, name))
    ]
    assert missing == ["memory_batches", "fit", "resume", "fetch_smd"]


def test_the_example_gives_the_same_under_strict_options_of_jax(tmp_path):
    code = EXAMPLE.read_text("utf-8")
    # Smaller and shorter, so that it takes seconds.
    for old, new in (("(64, 64)", "(4, 4)"), ("(16,)", "(3,)"), ("epochs=5", "epochs=1"),
                     ("stride=10", "stride=30")):  # fmt: skip
        assert old in code
        code = code.replace(old, new)
    smaller = tmp_path / "smaller.py"
    smaller.write_text(code, encoding="utf-8")
    usual = runpy.run_path(str(smaller))
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        found = runpy.run_path(str(smaller))
        assert {leaf.dtype for leaf in jax.tree.leaves(found["taught"].params)} == {
            np.dtype("float32")
        }
        assert found["taught"].loss_sum.dtype == np.float32
    np.testing.assert_allclose(found["test_points"], usual["test_points"], rtol=1e-3)
    assert found["tau"] == pytest.approx(usual["tau"], rel=1e-4)
    assert found["ap"] == pytest.approx(usual["ap"], abs=1e-3)


def test_baselines_and_cells_take_float64_windows_under_x64(windows):
    cell = nn.RNN(kdjax.LSTMCell(3))
    models = [
        kdjax.baseline(name) for name in BASELINES.keys() - {"kmeans", "classifier"}
    ]

    def run():
        rows = jnp.asarray(np.float64(windows))
        states, _ = cell.init_with_output(jax.random.key(0), rows)
        key = jax.random.key(1)
        return [states] + [
            kdjax.residuals(model, model.init(key, rows), rows) for model in models
        ]

    usual = run()
    with jax.enable_x64(True):
        found = run()
    for one, other in zip(found, usual, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
