"""Training of several networks of one shape at once.

On a CPU each core trains its own members one after the other, so that no step waits for
several cores; on accelerators members are batched with `vmap`. Differences between
members are arrays: parameters, windows, learning rate, α, T.

Each member has the same batches, in the same order, and the same stopping rules
(`kdjax.training.loop`) as without the others. A member whose loss is not finite is frozen
and reported; the others continue.
"""

import functools
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.typing import ArrayLike

from kdjax.io.signals import stop_if_requested, stop_requested
from kdjax.models.model import Params
from kdjax.training import batching
from kdjax.training.batching import WindowDataset
from kdjax.training.checkpoints import restore_checkpoint, save_checkpoint
from kdjax.training.loop import Fitted, LogLine, TrainingProgress, progress_after
from kdjax.training.sharding import divide, map_over_batch
from kdjax.training.steps import LossFunction, Step, TrainState

Tree = TypeVar("Tree")


class Member(NamedTuple):
    """A member without its arrays."""

    name: str  # in the log
    key: Array  # determines the order of its windows in each epoch
    first: int  # number of its first window in the dataset; they are contiguous
    windows: int
    validation: np.ndarray  # [V] first rows of its validation windows
    epochs: int
    patience: int | None


class Population(NamedTuple):
    """State of P members, and copies of the last one that fill the devices."""

    states: TrainState
    best: Params  # of lowest validation loss so far
    progress: tuple[TrainingProgress, ...]


# `(states, hyper, dataset, index [P, B], weight [P, B], active [P]) -> states`
PopulationStep = Callable[
    [TrainState, Any, WindowDataset, ArrayLike, ArrayLike, ArrayLike], TrainState
]
# `(params [P], P arrays of first rows) -> mean loss of each member, [P]`
PopulationValidate = Callable[[Params, Sequence[np.ndarray]], np.ndarray]


def stack_members(members: Sequence[Tree]) -> Tree:
    """P pytrees of one shape as one, with a leading axis P."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)


@functools.lru_cache(maxsize=8)  # populations of one form share what is compiled
def make_population_step(
    step_of: Callable[[Any], Step], mesh: Mesh | None = None
) -> PopulationStep:
    """The jitted step of P members; up to rounding each is that of its step alone.

    `step_of` returns a member's step, from `make_step` without a mesh, for its entry of
    `hyper`. The given states are donated; inactive members and those with a bad step
    don't change.
    """

    def train(dataset: WindowDataset, member: Any) -> Any:
        state, hyper, index, weight, active = member
        step = step_of(hyper)
        return jax.lax.cond(
            active & (state.bad_step < 0),
            lambda old: step(old, batching.IndexedBatch(dataset, index, weight))[0],
            lambda old: old,
            state,
        )

    shared = _over_members(train, mesh)

    @jax.jit(donate_argnums=0)
    def population_step(
        states: TrainState, hyper: Any, dataset: WindowDataset, *batch: ArrayLike
    ) -> Any:
        return shared(dataset, (states, hyper, *batch))

    return population_step


def make_population_validate(
    loss: LossFunction,
    dataset: WindowDataset,
    *,
    window: int,
    batch_size: int,
    mesh: Mesh | None = None,
) -> PopulationValidate:
    """The function `(params [P], starts) -> mean loss of each member, [P] float64`.

    `starts` are P arrays of first rows; a member without one gets NaN.
    """

    batch_losses = _batch_losses(loss, window, mesh)

    def validate(params: Params, starts: Sequence[np.ndarray]) -> np.ndarray:
        counts = np.array([len(own) for own in starts], np.float64)
        totals = np.zeros(len(starts))
        nothing = np.zeros(batch_size, np.int32), np.zeros(batch_size, np.float32)
        batches = (batching.padded_batches(own, batch_size) for own in starts)
        for each in itertools.zip_longest(*batches, fillvalue=nothing):
            index, weight = map(np.stack, zip(*each, strict=True))
            losses = np.asarray(batch_losses(dataset, (params, index, weight)))
            windows = weight.sum(axis=1)
            # Other members may have non-finite parameters.
            totals += np.where(windows > 0, losses, 0) * windows
        return totals / np.where(counts > 0, counts, np.nan)

    return validate


@functools.lru_cache(maxsize=8)
def _batch_losses(
    loss: LossFunction, window: int, mesh: Mesh | None
) -> Callable[[WindowDataset, Any], Any]:
    """The jitted mean loss of each member's batch; 0 for a member without windows."""

    def mean_loss(dataset: WindowDataset, member: Any) -> Any:
        params, starts, weight = member
        return jax.lax.cond(
            jnp.any(weight > 0),
            lambda: loss(params, batching.take_batch(dataset, starts, weight, window)),
            lambda: jnp.zeros((), jnp.float32),
        )

    return jax.jit(_over_members(mean_loss, mesh))


def _over_members(
    function: Callable[[WindowDataset, Any], Any], mesh: Mesh | None
) -> Callable[[WindowDataset, Any], Any]:
    """`function(dataset, member)` of members with a leading axis, shared by devices."""
    one_by_one = jax.default_backend() == "cpu"

    def mapped(dataset: WindowDataset, members: Any) -> Any:
        of_member = functools.partial(function, dataset)
        if one_by_one:
            return jax.lax.map(of_member, members)
        return jax.vmap(of_member)(members)

    return map_over_batch(mapped, mesh)


def resume_together(
    directory: Path | None, states: Sequence[TrainState], mesh: Mesh | None
) -> Population:
    """The newest checkpoint of a population, or `states` if there is none.

    The last member is repeated until each device has as many.
    """
    stacked = stack_members(states)
    arrays = {"states": stacked, "best": jax.tree.map(jnp.copy, stacked.params)}
    progress = tuple(TrainingProgress() for _ in states)
    found = None if directory is None else restore_checkpoint(directory, arrays)
    if found is not None:
        arrays = found.arrays
        # The key is that of version 0.1.0.
        entries = json.loads(found.meta)["courses"]
        progress = tuple(TrainingProgress(**entry) for entry in entries)
    devices = mesh.size if mesh else 1
    filled = divide(_widened(arrays, -(-len(states) // devices) * devices), mesh)
    return Population(filled["states"], filled["best"], progress)


def fit_together(
    start: Population,
    step: PopulationStep,
    hyper: Any,
    dataset: WindowDataset,
    validate: PopulationValidate,
    members: Sequence[Member],
    *,
    batch_size: int,
    directory: Path | None = None,
    checkpoint_seconds: float = 60.0,
    log: Callable[[str, LogLine], None] = lambda name, line: None,
    advance: Callable[[int, str | None], None] = lambda windows, text: None,
    on_epoch: Callable[[Sequence[TrainingProgress]], None] = lambda progress: None,
) -> list[Fitted]:
    """Trains until each member is done; see `kdjax.training.loop.fit`.

    A member that failed has `progress.bad_step`; its parameters are the best before. The
    arrays of `start` are donated; those of `hyper` have a leading axis P. `log` receives a
    member's name and line of `metrics.jsonl`; `advance` the windows of each step, and a
    status after epochs ended; then `on_epoch` is called, whose exception ends the fit.
    """
    states, best, progress = start.states, start.best, list(start.progress)
    size = len(states.step)  # with the copies that fill the devices
    hyper = _widened(hyper, size)
    walks = [
        _walk(member, batch_size, own.step)
        for member, own in zip(members, progress, strict=True)
    ]
    latest: dict[int, float] = {}  # finite validation loss by member
    saved_at = time.monotonic()
    while active := [i for i, own in enumerate(progress) if not own.done]:
        index = np.zeros((size, batch_size), np.int32)
        weight = np.ones((size, batch_size), np.float32)
        ended: dict[int, int] = {}  # epoch by member
        for i in active:
            index[i], weight[i], epoch = next(walks[i])
            progress[i] = progress[i]._replace(step=progress[i].step + 1)
            if epoch:
                ended[i] = epoch
        turn = np.isin(np.arange(size), active)
        states = step(states, hyper, dataset, index, weight, turn)
        advance(int(weight[turn].sum()), None)
        stopping = due = stop_requested()
        if ended:
            asked = [
                members[i].validation if i in ended else np.empty(0, np.int32)
                for i in range(size)
            ]
            validation = validate(states.params, asked)
            sums, weights, bad = map(
                np.asarray, (states.loss_sum, states.weight_sum, states.bad_step)
            )
            improved = []
            for i, epoch in ended.items():
                member, done = members[i], progress[i]
                mean, held_out = float(sums[i] / weights[i]), float(validation[i])
                line = {"epoch": epoch, "step": done.step, "loss": mean}
                line |= {"train_loss": mean, "validation_loss": held_out}
                # JSON has no NaN or infinity.
                finite = {k: v if math.isfinite(v) else None for k, v in line.items()}
                log(member.name, finite)
                latest.pop(i, None)
                if math.isfinite(held_out):
                    latest[i] = held_out
                if bad[i] >= 0 or not math.isfinite(held_out):
                    bad_step = int(bad[i]) if bad[i] >= 0 else done.step
                    progress[i] = done._replace(done=True, bad_step=bad_step)
                    continue
                progress[i] = progress_after(
                    done, held_out, epoch, member.epochs, member.patience
                )
                if progress[i].stale == 0:
                    improved.append(i)
            masks = (np.isin(np.arange(size), own) for own in ([*ended], improved))
            states, best = _settle(states, best, *masks)
            on_epoch(progress)
            text = f"{sum(own.done for own in progress)} of {len(members)} done"
            if latest:
                lowest, highest = min(latest.values()), max(latest.values())
                text += f", loss {lowest:.4g}–{highest:.4g}"
            advance(0, text)
            due |= time.monotonic() - saved_at >= checkpoint_seconds
            due |= all(own.done for own in progress)
        if due and directory is not None:
            # Without the copies: the number of devices may change.
            arrays = jax.tree.map(
                lambda leaf: leaf[: len(members)], {"states": states, "best": best}
            )
            meta = json.dumps({"courses": [own._asdict() for own in progress]})
            save_checkpoint(directory, sum(own.step for own in progress), arrays, meta)
            saved_at = time.monotonic()
        if stopping:
            stop_if_requested()
    found = jax.device_get(best)
    return [
        Fitted(jax.tree.map(lambda leaf, i=i: leaf[i], found), own)
        for i, own in enumerate(progress)
    ]


def _walk(
    member: Member, batch_size: int, step: int
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """A member's batches from a step on, and the epoch (from 1) that each ends, or 0."""
    steps = math.ceil(member.windows / batch_size)
    while True:
        epoch, first = divmod(step, steps)
        order = member.first + batching.epoch_order(member.key, epoch, member.windows)
        for index, weight in batching.padded_batches(
            order[first * batch_size :], batch_size
        ):
            step += 1
            yield index, weight, 0 if step % steps else epoch + 1


@jax.jit(donate_argnums=(0, 1))
def _settle(
    states: TrainState, best: Params, ended: Array, improved: Array
) -> tuple[TrainState, Params]:
    """Updates the best parameters of improved members; clears sums of ended epochs."""

    def choose(old: Array, new: Array) -> Array:
        return jnp.where(jnp.reshape(improved, (-1,) + (1,) * (new.ndim - 1)), new, old)

    kept = jax.tree.map(choose, best, states.params)
    return states.replace(
        loss_sum=jnp.where(ended, 0, states.loss_sum),
        weight_sum=jnp.where(ended, 0, states.weight_sum),
    ), kept


def _widened(arrays: Tree, size: int) -> Tree:
    """A pytree of `[P, …]` with the last entries repeated, `[size, …]`."""

    def widen(values: ArrayLike) -> Array:
        own = jnp.asarray(values)
        return jnp.concatenate([own, jnp.repeat(own[-1:], size - len(own), 0)])

    return jax.tree.map(widen, arrays)
