"""Jitted training steps over data that stays on the device."""

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

from kdjax.losses import Batch, Objective
from kdjax.models.autoencoder import Network, Params
from kdjax.models.missing import fill_missing
from kdjax.training.batching import map_windows, padded_batches, take_windows
from kdjax.training.sharding import mean_over_batch

SCHEDULES = ("constant", "cosine")


class WindowDataset(struct.PyTreeNode):  # type: ignore[no-untyped-call]
    """The windows that a phase trains on.

    Attributes:
        rows: `[N, D]` float32, scaled rows of all entities, one after the other.
        starts: `[M]` int32, first rows of the M windows; none crosses an entity.
        targets: `[M, …]`, what the teacher says, computed once; or None.
        teacher: the teacher's parameters, where the targets are too many to keep and
            each step computes its own; or None.
        sound: `[M]`, 1, or 0 for windows whose data were disturbed on purpose; None
            where none were.
        missing: whether rows may have NaN cells, which losses then leave out.
    """

    rows: Array
    starts: Array
    targets: Array | None = None
    teacher: Any = None
    recorded: Array | None = None
    missing: bool = struct.field(pytree_node=False, default=False)  # type: ignore[no-untyped-call]


class TrainState(struct.PyTreeNode):  # type: ignore[no-untyped-call]
    """All that a training step changes.

    Attributes:
        step: number of steps done.
        params: the network's parameters.
        opt_state: optax's state.
        loss_sum: sum of the losses of the running epoch's windows.
        weight_sum: number of those windows.
        bad_step: the first step whose loss was not finite; −1 while there is none.
    """

    step: Array
    params: Any
    opt_state: Any
    loss_sum: Array
    weight_sum: Array
    bad_step: Array


Step = Callable[[TrainState, WindowDataset, ArrayLike, ArrayLike], TrainState]


def make_optimizer(
    *,
    learning_rate: ArrayLike,
    schedule: str,
    steps: ArrayLike,
    warmup_steps: ArrayLike,
    clip_norm: ArrayLike,
) -> optax.GradientTransformation:
    """Adam (Kingma and Ba, 2015) behind a clip of the gradient's global norm.

    Args:
        learning_rate: its peak.
        schedule: `constant`, or `cosine` to fall towards 0, which it would
            reach after the last of `steps`.
        steps: steps of the whole phase.
        warmup_steps: steps in which the rate rises linearly to its peak, which the step
            after them has.
        clip_norm: the largest global norm of a gradient.
    """
    # In shares of the way, so that steps may be traced: a population's members differ.
    rising = jnp.minimum(warmup_steps, jnp.maximum(steps - 1, 0))
    warmup = optax.linear_schedule(learning_rate / (rising + 1), learning_rate, 1)
    falling = jnp.maximum(steps - rising, 1)
    after = (
        optax.cosine_decay_schedule(learning_rate, 1)
        if schedule == "cosine"
        else optax.constant_schedule(learning_rate)
    )

    def rate(count: Array) -> Array:
        ascent = warmup(count / jnp.maximum(rising, 1))
        return jnp.where(count < rising, ascent, after((count - rising) / falling))

    return optax.chain(optax.clip_by_global_norm(clip_norm), optax.adam(rate))


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        loss_sum=jnp.zeros((), jnp.float32),
        weight_sum=jnp.zeros((), jnp.float32),
        bad_step=jnp.full((), -1, jnp.int32),
    )


def make_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    window: int,
    teacher: Network | None = None,
    steps: ArrayLike | None = None,
    mesh: Mesh | None = None,
) -> Step:
    """The jitted step `(state, dataset, index [B], weight [B]) -> state`.

    `index` names the batch's windows among the dataset' M; the state given is donated.
    `teacher` is needed only for a dataset that carries the teacher's parameters, and
    `steps`, of the whole phase, only for an objective that changes on the way. With a
    mesh its devices share the batch; state and dataset then lie on all of them
    (`kdjax.training.sharding.place`).
    """

    def targets_of(
        dataset: WindowDataset, index: Array, windows: Array
    ) -> Array | None:
        if dataset.targets is not None:
            return dataset.targets[index]
        if dataset.teacher is None:
            return None
        assert teacher is not None
        return jax.lax.stop_gradient(teacher.outputs(dataset.teacher, windows))

    def gradient(
        common: tuple[Params, WindowDataset, Array | None], index: Array, weight: Array
    ) -> tuple[Array, Params]:
        params, dataset, progress = common
        batch = take_batch(dataset, dataset.starts[index], weight, window)
        batch = batch._replace(
            targets=targets_of(dataset, index, batch.windows),
            recorded=None if dataset.recorded is None else dataset.recorded[index],
            progress=progress,
        )
        found: tuple[Array, Params] = jax.value_and_grad(objective)(params, batch)
        return found

    gradient = mean_over_batch(gradient, mesh)

    @jax.jit(donate_argnums=0)
    def train_step(
        state: TrainState, dataset: WindowDataset, index: ArrayLike, weight: ArrayLike
    ) -> TrainState:
        index, weight = jnp.asarray(index), jnp.asarray(weight)
        progress = None if steps is None else state.step / steps
        loss, slope = gradient((state.params, dataset, progress), index, weight)
        updates, opt_state = optimizer.update(slope, state.opt_state, state.params)
        step = state.step + 1
        is_first_bad = (state.bad_step < 0) & ~jnp.isfinite(loss)
        windows_seen = jnp.sum(weight)
        return TrainState(
            step=step,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            loss_sum=state.loss_sum + loss * windows_seen,
            weight_sum=state.weight_sum + windows_seen,
            bad_step=jnp.where(is_first_bad, step, state.bad_step),
        )

    return train_step


def make_validate(
    loss: Objective,
    dataset: WindowDataset,
    *,
    window: int,
    batch_size: int,
    mesh: Mesh | None = None,
) -> Callable[[Params], float]:
    """The function `params -> mean loss over the windows of dataset`."""

    def mean_loss(
        common: tuple[Params, WindowDataset], starts: Array, weight: Array
    ) -> Array:
        params, dataset = common
        return loss(params, take_batch(dataset, starts, weight, window))

    batch_loss = jax.jit(mean_over_batch(mean_loss, mesh))
    starts = np.asarray(dataset.starts)

    def validate(params: Params) -> float:
        total = sum(
            float(batch_loss((params, dataset), batch, weight)) * float(weight.sum())
            for batch, weight in padded_batches(starts, batch_size)
        )
        return total / len(starts)

    return validate


def take_batch(
    dataset: WindowDataset, starts: Array, weight: Array, window: int
) -> Batch:
    """The windows at `starts`, without their targets."""
    windows = take_windows(dataset.rows, starts, window)
    return as_batch(windows, weight, missing=dataset.missing)


def as_batch(windows: Array, weight: Array, *, missing: bool) -> Batch:
    """Windows `[B, L, D]` as a batch without targets, their gaps filled if there are."""
    if not missing:
        return Batch(windows, weight)
    filled = fill_missing(windows)
    return Batch(filled.windows, weight, observed=filled.observed)


def head_outputs(
    network: Network,
    params: Params,
    dataset: WindowDataset,
    *,
    window: int,
    batch_size: int,
) -> np.ndarray:
    """A network's head outputs for all windows of dataset, `[M, L, D]`, or its codes."""
    starts = np.asarray(dataset.starts)
    pieces = map_windows(
        _filled_outputs(network) if dataset.missing else network.outputs,
        params,
        np.asarray(dataset.rows),
        starts,
        window=window,
        batch_size=batch_size,
    )
    first = next(pieces)
    result = np.empty((len(starts), *first.shape[1:]), np.float32)
    done = 0
    for values in itertools.chain((first,), pieces):
        result[done : done + len(values)] = values
        done += len(values)
    return result


@functools.lru_cache
def _filled_outputs(network: Network) -> Callable[[Params, Array], Array]:
    """The head's outputs for windows that may have NaN cells."""

    def outputs(params: Params, windows: Array) -> Array:
        values: Array = network.outputs(params, fill_missing(windows).windows)
        return values

    return outputs
