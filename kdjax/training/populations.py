"""Networks of one shape trained side by side.

On a CPU each core trains its own members one after the other, so that no step waits for
several cores; on accelerators members are batched with `vmap`. What differs between
members are arrays: parameters, windows, learning rate, α, T.

Each member sees the batches that it would see alone, in the same order, and ends by the
same rules (`kdjax.training.loop`). One whose loss is not finite is frozen and reported;
the others continue.
"""

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
from kdjax.training.batching import (
    IndexedBatch,
    WindowDataset,
    epoch_order,
    padded_batches,
    take_batch,
)
from kdjax.training.checkpoints import restore_checkpoint, save_checkpoint
from kdjax.training.loop import Fitted, LogLine, TrainingProgress, progress_after
from kdjax.training.sharding import divide, map_over_batch
from kdjax.training.steps import LossFunction, Step, TrainState

Tree = TypeVar("Tree")


class Hyper(NamedTuple):
    """Hyperparameters that may differ between members: a number each, or `[P]`.

    `learning_rate`, `steps`, `warmup_steps` and `clip_norm` as in `make_optimizer`;
    α and T of Eq. 2 at the first step and after the last.
    """

    learning_rate: ArrayLike
    steps: ArrayLike
    warmup_steps: ArrayLike
    clip_norm: ArrayLike
    alpha: ArrayLike = 0.0
    temperature: ArrayLike = 1.0
    alpha_end: ArrayLike = 0.0
    temperature_end: ArrayLike = 1.0


class Member(NamedTuple):
    """What identifies a member, apart from arrays."""

    name: str  # in the log
    key: Array  # fixes the order of its windows in each epoch
    first: int  # number of its first window in the dataset; they are contiguous
    windows: int
    validation: np.ndarray  # [V] first rows of its validation windows
    epochs: int
    patience: int | None


class Population(NamedTuple):
    """State of P members; arrays are followed by copies that fill the devices."""

    states: TrainState
    best: Params  # of lowest validation loss so far
    progress: tuple[TrainingProgress, ...]


class Watch(NamedTuple):
    """Callbacks of a population's training.

    `log` takes a member's name and line of `metrics.jsonl`; `advance` the windows of each
    step, and a status after epochs ended; then `on_epoch` is called, whose exception ends
    the fit.
    """

    log: Callable[[str, LogLine], None] = lambda name, line: None
    advance: Callable[[int, str | None], None] = lambda windows, text: None
    on_epoch: Callable[[Sequence[TrainingProgress]], None] = lambda all_: None


UNWATCHED = Watch()

# `(states, hyper, dataset, index [P, B], weight [P, B], active [P]) -> states`
PopulationStep = Callable[
    [TrainState, Any, WindowDataset, ArrayLike, ArrayLike, ArrayLike], TrainState
]
# `(params [P], P arrays of first rows) -> mean loss of each member, [P]`
PopulationValidate = Callable[[Params, Sequence[np.ndarray]], np.ndarray]


def stack_members(members: Sequence[Tree]) -> Tree:
    """P pytrees of one shape as one, with a leading axis P."""
    stacked: Tree = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    return stacked


def take_member(stacked: Tree, place: int) -> Tree:
    """One of the members that `stack_members` joined."""
    member: Tree = jax.tree.map(lambda leaf: leaf[place], stacked)
    return member


def make_population_step(
    step_of: Callable[[Any], Step], mesh: Mesh | None = None
) -> PopulationStep:
    """The jitted step of P members; up to rounding each is that of its step alone.

    The states given are donated; inactive members and those with a bad step don't change.

    Args:
        step_of: a member's entry of `hyper` to its step from `make_step` without a mesh.
        mesh: devices that share the members, from `member_mesh`; None for one.
    """

    def train(dataset: WindowDataset, member: Any) -> TrainState:
        state, hyper, index, weight, active = member
        step = step_of(hyper)
        trained: TrainState = jax.lax.cond(
            active & (state.bad_step < 0),
            lambda old: step(old, IndexedBatch(dataset, index, weight))[0],
            lambda old: old,
            state,
        )
        return trained

    shared = _over_members(train, mesh)

    @jax.jit(donate_argnums=0)
    def population_step(
        states: TrainState,
        hyper: Any,
        dataset: WindowDataset,
        index: ArrayLike,
        weight: ArrayLike,
        active: ArrayLike,
    ) -> TrainState:
        batch = (jnp.asarray(index), jnp.asarray(weight), jnp.asarray(active))
        found: TrainState = shared(dataset, (states, hyper, *batch))
        return found

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

    `starts` are P arrays of first rows; a member with none gets NaN.
    """

    def mean_loss(dataset: WindowDataset, member: Any) -> Array:
        params, starts, weight = member
        found: Array = jax.lax.cond(
            jnp.any(weight > 0),
            lambda: loss(params, take_batch(dataset, starts, weight, window)),
            lambda: jnp.zeros(()),
        )
        return found

    batch_losses = jax.jit(_over_members(mean_loss, mesh))

    def validate(params: Params, starts: Sequence[np.ndarray]) -> np.ndarray:
        counts = np.array([len(own) for own in starts], np.float64)
        totals = np.zeros(len(starts))
        for first in range(0, int(counts.max()), batch_size):
            index = np.zeros((len(starts), batch_size), np.int32)
            weight = np.zeros((len(starts), batch_size), np.float32)
            for place, own in enumerate(starts):
                piece = own[first : first + batch_size]
                for batch, used in padded_batches(piece, batch_size):
                    index[place], weight[place] = batch, used
            losses = np.asarray(batch_losses(dataset, (params, index, weight)))
            windows = weight.sum(axis=1)
            # Other members may have non-finite parameters.
            totals += np.where(windows > 0, losses, 0) * windows
        return totals / np.where(counts > 0, counts, np.nan)

    return validate


def _over_members(
    function: Callable[[WindowDataset, Any], Tree], mesh: Mesh | None
) -> Callable[[WindowDataset, Any], Tree]:
    """`function(dataset, member)` of members with a leading axis, shared by devices."""
    one_by_one = jax.default_backend() == "cpu"

    def mapped(dataset: WindowDataset, members: Any) -> Tree:
        def one(member: Any) -> Tree:
            return function(dataset, member)

        found: Tree = (
            jax.lax.map(one, members) if one_by_one else jax.vmap(one)(members)
        )
        return found

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
    size = -(-len(states) // devices) * devices
    filled = jax.tree.map(lambda leaf: _widened(leaf, size), arrays)
    return Population(
        divide(filled["states"], mesh), divide(filled["best"], mesh), progress
    )


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
    watch: Watch = UNWATCHED,
) -> list[Fitted]:
    """Trains until each member is done; see `kdjax.training.loop.fit`.

    A member that failed has `progress.bad_step`; its parameters are the best before. The
    arrays of `start` are donated; those of `hyper` have a leading axis P.
    """
    states, best, progress = start.states, start.best, list(start.progress)
    size = len(states.step)  # with the copies that fill the devices
    hyper = jax.tree.map(lambda values: _widened(values, size), hyper)
    walks = [
        _walk(member, batch_size, own.step)
        for member, own in zip(members, progress, strict=True)
    ]
    latest: dict[int, float] = {}  # validation loss by member
    saved_at = time.monotonic()

    def save() -> None:
        nonlocal saved_at
        if directory is not None:
            # Without the copies: the number of devices may change.
            arrays = jax.tree.map(
                lambda leaf: leaf[: len(members)], {"states": states, "best": best}
            )
            meta = json.dumps({"courses": [own._asdict() for own in progress]})
            save_checkpoint(directory, sum(own.step for own in progress), arrays, meta)
            saved_at = time.monotonic()

    while active := [i for i, own in enumerate(progress) if not own.done]:
        index = np.zeros((size, batch_size), np.int32)
        weight = np.ones((size, batch_size), np.float32)
        turn = np.isin(np.arange(size), active)
        ended = []
        for i in active:
            index[i], weight[i], is_last = next(walks[i])
            progress[i] = progress[i]._replace(step=progress[i].step + 1)
            ended += [i] if is_last else []
        states = step(states, hyper, dataset, index, weight, turn)
        watch.advance(int(weight[turn].sum()), None)
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
            for i in ended:
                losses = float(sums[i] / weights[i]), float(validation[i])
                epoch = progress[i].step // _steps(members[i], batch_size)
                progress[i] = _after_epoch(
                    progress[i], members[i], epoch, losses[1], int(bad[i])
                )
                watch.log(members[i].name, _line(progress[i].step, epoch, *losses))
                latest[i] = losses[1]
            improved = [
                i for i in ended if progress[i].stale == 0 and not progress[i].bad_step
            ]
            masks = (np.isin(np.arange(size), places) for places in (ended, improved))
            states, best = _settle(states, best, *masks)
            watch.on_epoch(progress)
            known = [loss for loss in latest.values() if math.isfinite(loss)]
            text = f"{sum(own.done for own in progress)} of {len(members)} done"
            if known:
                text += f", loss {min(known):.4g}–{max(known):.4g}"
            watch.advance(0, text)
            due |= time.monotonic() - saved_at >= checkpoint_seconds
            due |= all(own.done for own in progress)
        if due:
            save()
        if stopping:
            stop_if_requested()
    found = jax.device_get(best)
    return [Fitted(take_member(found, i), own) for i, own in enumerate(progress)]


def _walk(
    member: Member, batch_size: int, step: int
) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
    """A member's batches from a step on, and whether each is the last of its epoch."""
    steps = _steps(member, batch_size)
    epoch, first = divmod(step, steps)
    while True:
        order = member.first + epoch_order(member.key, epoch, member.windows)
        remaining = order[first * batch_size :]
        for number, (index, weight) in enumerate(
            padded_batches(remaining, batch_size), start=first + 1
        ):
            yield index, weight, number == steps
        epoch, first = epoch + 1, 0


def _steps(member: Member, batch_size: int) -> int:
    """Steps of an epoch."""
    return math.ceil(member.windows / batch_size)


def _after_epoch(
    progress: TrainingProgress,
    member: Member,
    epoch: int,
    validation: float,
    bad_step: int,
) -> TrainingProgress:
    if bad_step < 0 and not math.isfinite(validation):
        bad_step = progress.step
    if bad_step >= 0:
        return progress._replace(done=True, bad_step=bad_step)
    return progress_after(progress, validation, epoch, member.epochs, member.patience)


def _line(step: int, epoch: int, loss: float, validation: float) -> LogLine:
    """A line of the log; JSON has no NaN or infinity."""
    losses = {"loss": loss, "train_loss": loss, "validation_loss": validation}
    finite = {name: v if math.isfinite(v) else None for name, v in losses.items()}
    return {"epoch": epoch, "step": step, **finite}


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


def _widened(values: Any, size: int) -> Array:
    """`[P, …]` with its last entry repeated, `[size, …]`."""
    values = jnp.asarray(values)
    return jnp.concatenate([values, jnp.repeat(values[-1:], size - len(values), 0)])
