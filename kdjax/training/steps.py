"""Jitted training steps `(state, batch) -> (state, metrics)` of teacher and student.

    step = make_teacher_step(model, tx)
    state = init_state(model.init(key, windows), tx)
    for batch in batches(windows, 128, epochs=5, key=key):
        state, metrics = step(state, batch)

A training job uses the same step (`make_step`) with batches of indices of windows on the
device. Losses are those of `kdjax.losses`.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax import Array
from jax.sharding import Mesh
from jax.typing import ArrayLike

from kdjax.errors import ConfigError
from kdjax.losses import check_distillation, distillation_loss, reconstruction_loss
from kdjax.models.model import Model, Params, fill_missing, head_outputs, residuals
from kdjax.training import batching
from kdjax.training.batching import Batch, BatchSource, IndexedBatch, WindowDataset
from kdjax.training.sharding import mean_over_batch

SCHEDULES = ("constant", "cosine")

# `(params, batch) -> loss`
LossFunction = Callable[[Params, Batch], Array]


class TrainState(struct.PyTreeNode):  # type: ignore[no-untyped-call]
    """The variables that a training step changes."""

    step: Array  # number of steps done
    params: Any  # the network's parameters
    opt_state: Any  # optax's state
    loss_sum: Array  # of the losses of the running epoch's windows
    weight_sum: Array  # number of those windows
    bad_step: Array  # the first step whose loss was not finite; −1 while there is none


# `(state, batch) -> (state, metrics)`
Step = Callable[["TrainState", Any], tuple["TrainState", dict[str, Array]]]


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step.

    >>> import optax
    >>> state = init_state({"w": jnp.ones(2)}, optax.sgd(0.1))
    >>> int(state.step), state.params["w"]
    (0, Array([1., 1.], dtype=float32))
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        loss_sum=jnp.zeros((), jnp.float32),
        weight_sum=jnp.zeros((), jnp.float32),
        bad_step=jnp.full((), -1, jnp.int32),
    )


# Losses of a model's parameters and a batch.


def teacher_loss(model: Model) -> LossFunction:
    """MSE(X_T, X) of the parameters and a batch."""

    def loss(params: Params, batch: Batch) -> Array:
        outputs = head_outputs(model, params, batch.windows, forced=True)
        return _reconstruction_loss(model.activate(outputs), batch)

    return loss


@functools.lru_cache
def validation_loss(model: Model) -> LossFunction:
    """MSE(X', X) with the model used as in a detector: a decoder reads its own outputs."""

    def loss(params: Params, batch: Batch) -> Array:
        return _reconstruction_loss(model.apply(params, batch.windows), batch)

    return loss


def student_loss(
    model: Model,
    teacher: Model,
    *,
    alpha: ArrayLike,
    temperature: ArrayLike,
    temperature_mode: str,
    target: str = "reconstruction",
) -> LossFunction:
    """L_S of Eq. 2 of the parameters and a batch with `targets`; `teacher` gives X_T.

    α and T may be traced. With α = 0, not traced, no targets are needed. See
    `kdjax.losses` for `temperature_mode` and `target`.
    """
    check_distillation(target, temperature_mode)
    if not isinstance(alpha, Array) and alpha == 0:
        return teacher_loss(model)
    coded = model.coded if target == "hidden" else None
    if target == "hidden" and coded is None:
        raise ConfigError("target='hidden' needs a student whose Model has `coded`.")
    activates = target == "reconstruction" and temperature_mode == "output"

    def loss(params: Params, batch: Batch) -> Array:
        code = None
        if coded is not None:
            logits, code = coded(params, batch.windows, True)
        else:
            logits = head_outputs(model, params, batch.windows, forced=True)
        assert batch.targets is not None
        return distillation_loss(
            model.activate(logits),
            batch.windows,
            teacher.activate(batch.targets) if activates else batch.targets,
            alpha=alpha,
            temperature=temperature,
            temperature_mode=temperature_mode,
            target=target,
            logits=logits,
            code=code,
            weight=batch.weight,
            observed=batch.observed,
            recorded=batch.recorded,
        )

    return loss


def _reconstruction_loss(reconstruction: Array, batch: Batch) -> Array:
    return reconstruction_loss(
        reconstruction, batch.windows, weight=batch.weight, observed=batch.observed
    )


def _share(part: ArrayLike, whole: ArrayLike) -> Array:
    """A quotient in float32, also under `jax.enable_x64`."""
    return jnp.asarray(part, jnp.float32) / jnp.asarray(whole, jnp.float32)


# Steps.


def make_teacher_step(model: Model, tx: optax.GradientTransformation) -> Step:
    """The jitted step that minimises MSE(X_T, X).

    Args:
        model: the teacher, or any model that is trained on data only.
        tx: optax optimizer, as for `init_state`.

    Returns:
        `(state, batch) -> (state, metrics)`; a batch is one of `batches` or an array of
        windows `[B, L, D]`, and `metrics["loss"]` is the loss before the update.

    >>> from kdjax.models.autoencoder import lstm_autoencoder
    >>> model, tx, x = lstm_autoencoder(hidden=(2,)), optax.adam(1e-2), jnp.ones((4, 3, 1))
    >>> state = init_state(model.init(jax.random.key(0), x), tx)
    >>> state, metrics = make_teacher_step(model, tx)(state, x)
    >>> int(state.step), sorted(metrics)
    (1, ['loss'])
    """
    return make_step(teacher_loss(model), tx, donate=False)


def make_student_step(
    model: Model,
    tx: optax.GradientTransformation,
    *,
    teacher: Model,
    teacher_params: Params,
    alpha: ArrayLike,
    temperature: ArrayLike = 1.0,
    temperature_mode: str = "output",
    target: str = "reconstruction",
) -> Step:
    """The jitted step that minimises L_S of Eq. 2; no gradient reaches the teacher.

    Args:
        model: the student.
        tx: optax optimizer, as for `init_state`.
        teacher: any `Model`, such as another autoencoder or `baseline("pca")`.
        teacher_params: its parameters.
        alpha: α, the weight of the teacher's term; 0 trains without the teacher.
        temperature: T.
        temperature_mode: one of `kdjax.losses.TEMPERATURE_MODES`; `logit` needs models
            with a sigmoid head.
        target: `reconstruction` or `errors`. Codes and scores are computed once, not in
            each step: give their `targets` with each `Batch` to `make_step`.

    Returns:
        As `make_teacher_step`.

    >>> from kdjax.models.autoencoder import lstm_autoencoder
    >>> from kdjax.models.baselines import baseline
    >>> student, tx = lstm_autoencoder(hidden=(2,)), optax.adam(1e-2)
    >>> teacher, x = baseline("moving_average"), jnp.ones((4, 3, 1))
    >>> step = make_student_step(
    ...     student, tx, teacher=teacher, teacher_params={}, alpha=0.35
    ... )
    >>> state = init_state(student.init(jax.random.key(0), x), tx)
    >>> state, metrics = step(state, x)
    >>> int(state.step)
    1
    """
    check_distillation(target, temperature_mode, ("reconstruction", "errors"))

    def targets(windows: Array) -> Array:
        if target == "errors":
            return residuals(teacher, teacher_params, windows)
        return head_outputs(teacher, teacher_params, windows)

    loss = student_loss(
        model,
        teacher,
        alpha=alpha,
        temperature=temperature,
        temperature_mode=temperature_mode,
        target=target,
    )
    return make_step(loss, tx, targets=targets, donate=False)


def make_step(
    loss: LossFunction,
    tx: optax.GradientTransformation,
    *,
    targets: Callable[[Array], Array] | None = None,
    window: int | None = None,
    teacher: Model | None = None,
    mesh: Mesh | None = None,
    donate: bool = True,
) -> Step:
    """The jitted step `(state, batch) -> (state, metrics)` of any loss.

    `targets` returns distillation targets of windows `[B, L, D]`, for batches without them.
    An `IndexedBatch` needs `window`, L, and `teacher` if its dataset has the teacher's
    parameters. Devices of `mesh` may share it; then state and dataset must lie on all of
    them (`kdjax.training.sharding.place`). With `donate` the given state may be
    overwritten.
    """

    def gradient(common: Any, items: Any, weight: Array) -> tuple[Array, Params]:
        params, dataset = common
        if dataset is None:
            batch = items._replace(weight=weight)
        else:
            assert window is not None
            batch = batching.take_batch(dataset, dataset.starts[items], weight, window)
            if dataset.targets is not None:
                batch = batch._replace(targets=dataset.targets[items])
            elif dataset.teacher is not None:
                assert teacher is not None
                outputs = head_outputs(teacher, dataset.teacher, batch.windows)
                batch = batch._replace(targets=jax.lax.stop_gradient(outputs))
            if dataset.recorded is not None:
                batch = batch._replace(recorded=dataset.recorded[items])
        if batch.targets is None and targets is not None:
            given = jax.lax.stop_gradient(targets(batch.windows))
            batch = batch._replace(targets=given)
        return jax.value_and_grad(loss)(params, batch)

    gradient = mean_over_batch(gradient, mesh)

    def train_step(
        state: TrainState, batch: Any
    ) -> tuple[TrainState, dict[str, Array]]:
        if isinstance(batch, IndexedBatch):
            dataset, items = batch.dataset, jnp.asarray(batch.positions)
            weight = jnp.asarray(batch.weight)
        else:
            dataset = None
            if not isinstance(batch, Batch):
                batch = Batch(jnp.asarray(batch), jnp.ones(len(batch), jnp.float32))
            items, weight = batch, jnp.asarray(batch.weight, jnp.float32)
        value, slope = gradient((state.params, dataset), items, weight)
        value = value.astype(state.loss_sum.dtype)
        updates, opt_state = tx.update(slope, state.opt_state, state.params)
        step = state.step + 1
        is_first_bad = (state.bad_step < 0) & ~jnp.isfinite(value)
        windows_seen = jnp.sum(weight)
        updated = TrainState(
            step=step,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            loss_sum=state.loss_sum + value * windows_seen,
            weight_sum=state.weight_sum + windows_seen,
            bad_step=jnp.where(is_first_bad, step, state.bad_step),
        )
        return updated, {"loss": value}

    return jax.jit(train_step, donate_argnums=0 if donate else ())


def make_optimizer(
    *,
    learning_rate: ArrayLike,
    schedule: str,
    steps: ArrayLike,
    warmup_steps: ArrayLike,
    clip_norm: ArrayLike,
) -> optax.GradientTransformation:
    """Adam (Kingma and Ba, 2015) after clipping the gradient's global norm.

    Args:
        learning_rate: its peak.
        schedule: `constant`, or `cosine` with a decrease to 0, which it would
            reach after the last of `steps`.
        steps: steps of the whole phase.
        warmup_steps: steps in which the rate rises linearly; the step after them has the
            peak rate.
        clip_norm: the largest global norm of a gradient.

    >>> tx = make_optimizer(
    ...     learning_rate=0.1, schedule="constant", steps=9, warmup_steps=0, clip_norm=1.0
    ... )
    >>> updates, _ = tx.update(jnp.ones(1), tx.init(jnp.zeros(1)), jnp.zeros(1))
    >>> round(float(updates[0]), 3)
    -0.1
    """
    # In shares of the way, so that steps may be traced: members of a population differ.
    rising = jnp.minimum(warmup_steps, jnp.maximum(steps - 1, 0))
    warmup = optax.linear_schedule(learning_rate / (rising + 1), learning_rate, 1)
    falling = jnp.maximum(steps - rising, 1)
    after = optax.constant_schedule(learning_rate)
    if schedule == "cosine":
        after = optax.cosine_decay_schedule(learning_rate, 1)

    def rate(count: Array) -> Array:
        ascent = warmup(_share(count, jnp.maximum(rising, 1)))
        descent = after(_share(count - rising, falling))
        return jnp.where(count < rising, ascent, descent)

    return optax.chain(optax.clip_by_global_norm(clip_norm), optax.adam(rate))


def make_validate(
    loss: LossFunction, source: BatchSource, *, window: int, mesh: Mesh | None = None
) -> Callable[[Params], float]:
    """The function `params -> mean loss over the windows of an epoch of batches`."""

    def mean_loss(
        common: tuple[Params, WindowDataset], positions: Array, weight: Array
    ) -> Array:
        params, dataset = common
        starts = dataset.starts[positions]
        return loss(params, batching.take_batch(dataset, starts, weight, window))

    batch_loss = jax.jit(mean_over_batch(mean_loss, mesh))

    def validate(params: Params) -> float:
        total = sum(
            float(batch_loss((params, dataset), positions, weight))
            * float(weight.sum())
            for dataset, positions, weight in source.batches(0, 0)
        )
        return total / source.windows

    return validate


def dataset_outputs(
    model: Model, params: Params, data: WindowDataset, *, window: int, batch_size: int
) -> np.ndarray:
    """A model's head outputs for all windows of a dataset, `[M, L, D]`, or its codes."""
    function = _outputs_function(model, data.missing)
    rows, starts = np.asarray(data.rows), np.asarray(data.starts)
    pieces = batching.map_windows(
        function, params, rows, starts, window=window, batch_size=batch_size
    )
    first = next(pieces)
    result = np.empty((len(starts), *first.shape[1:]), np.float32)
    done = 0
    for values in itertools.chain((first,), pieces):
        result[done : done + len(values)] = values
        done += len(values)
    return result


@functools.lru_cache
def _outputs_function(model: Model, missing: bool) -> Callable[[Params, Array], Array]:
    """The head's outputs of windows, which may have NaN cells where `missing`."""

    def outputs(params: Params, windows: Array) -> Array:
        filled = fill_missing(windows)[0] if missing else windows
        return head_outputs(model, params, filled)

    return outputs
