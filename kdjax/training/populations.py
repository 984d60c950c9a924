"""Networks of one shape trained side by side.

On a CPU each core trains its own members one after the other: what one small network
leaves idle another uses, and no step waits for several cores to meet. One batched
product for the members of a core costs more than it saves there (docs/performance.md);
on accelerators it is what fills the device.

What differs between members are arrays: parameters, windows, learning rate, α, T. A
member that is done, or whose loss was not finite, stays as it is.

The fit loop of a population: members walk side by side, each through its own epochs.

A member sees the batches that it would see alone, in the same order; it stops early,
keeps its best parameters and ends by the same rules (`kdjax.training.loop`). One whose
loss is not finite is frozen there and reported, and the others go on.
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
from kdjax.training.loop import (
    Fitted,
    LogLine,
    TrainingProgress,
    progress_after,
)
from kdjax.training.sharding import divide, map_over_batch
from kdjax.training.steps import LossFunction, Step, TrainState

Tree = TypeVar("Tree")


class Hyper(NamedTuple):
    """What may differ between the members' steps, a number each, or `[P]` of them.

    Attributes:
        learning_rate: its peak.
        steps: of the whole phase.
        warmup_steps: see `make_optimizer`.
        clip_norm: largest global norm of a gradient.
        alpha, alpha_end: of Eq. 2, at the first step and after the last.
        temperature, temperature_end: the same of T.
    """

    learning_rate: ArrayLike
    steps: ArrayLike
    warmup_steps: ArrayLike
    clip_norm: ArrayLike
    alpha: ArrayLike = 0.0
    temperature: ArrayLike = 1.0
    alpha_end: ArrayLike = 0.0
    temperature_end: ArrayLike = 1.0


# `(states, hyper, dataset, index [P, B], weight [P, B], active [P]) -> states`
PopulationStep = Callable[
    [TrainState, Any, WindowDataset, ArrayLike, ArrayLike, ArrayLike], TrainState
]


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
    """The jitted step of P members `(states, hyper, dataset, index, weight, active)`.

    A member's result is that of its step alone, up to rounding. `index` and `weight`
    are `[P, B]`; `active` `[P]` tells whose turn it is. The states given are donated.

    Args:
        step_of: a member's `Hyper`, or whatever `hyper` has of each, to its step from
            `make_step` without a mesh.
        mesh: devices that share the members, from
            `batch_mesh(P, least_share=1)`; the dataset lies on all of them. Without one
            a single device trains all members.
    """

    def train(dataset: WindowDataset, member: Any) -> TrainState:
        state, hyper, index, weight, active = member
        step = step_of(hyper)
        recorded = active & (state.bad_step < 0)
        trained: TrainState = jax.lax.cond(
            recorded,
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
) -> Callable[[Params, Sequence[np.ndarray]], np.ndarray]:
    """The function `(params [P], starts) -> mean loss of each member, [P] float64`.

    `starts` are P arrays, the first rows of each member's windows; empty for a member
    whose loss isn't asked, which then is NaN.
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
        totals = np.zeros(len(starts))
        for index, weight in _side_by_side(starts, batch_size):
            losses = np.asarray(batch_losses(dataset, (params, index, weight)))
            own = weight.sum(axis=1)
            # A member that isn't asked may have whatever parameters.
            totals += np.where(own > 0, losses, 0) * own
        counts = np.array([len(own) for own in starts], np.float64)
        # Nobody asked: no mean.
        return totals / np.where(counts > 0, counts, np.nan)

    return validate


def _side_by_side(
    items: Sequence[np.ndarray], batch_size: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Batches of P members at once, `[P, B]` each; weight 0 where a member has none."""
    longest = max(len(own) for own in items)
    joined = []
    for first in range(0, longest, batch_size):
        index = np.zeros((len(items), batch_size), np.int32)
        weight = np.zeros((len(items), batch_size), np.float32)
        for place, own in enumerate(items):
            for batch, used in padded_batches(
                own[first : first + batch_size], batch_size
            ):
                index[place], weight[place] = batch, used
        joined.append((index, weight))
    return joined


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


class Member(NamedTuple):
    """What tells a member from the others, apart from arrays.

    Attributes:
        name: in the log.
        key: fixes the order of its windows in each epoch.
        first: place of its first window in the dataset; they follow one another.
        windows: their number.
        validation: `[V]` first rows of its validation windows.
        epochs: the most epochs.
        patience: as in `kdjax.training.loop.fit`.
    """

    name: str
    key: Array
    first: int
    windows: int
    validation: np.ndarray
    epochs: int
    patience: int | None


class Population(NamedTuple):
    """Where a population stands.

    Attributes:
        states: of P members and, behind them, of those that fill the devices.
        best: the parameters of lowest validation loss so far.
        courses: P of them.
    """

    states: TrainState
    best: Params
    courses: tuple[TrainingProgress, ...]


class Watch(NamedTuple):
    """How a population tells of itself.

    Attributes:
        log: takes a member's name and its line of `metrics.jsonl`.
        advance: called after each step with the number of windows trained on and the
            courses.
        judge: called with the courses after epochs ended; what it raises ends the fit.
    """

    log: Callable[[str, LogLine], None] = lambda name, line: None
    advance: Callable[[int, Sequence[TrainingProgress]], None] = (
        lambda windows, courses: None
    )
    evaluate_models: Callable[[Sequence[TrainingProgress]], None] = lambda courses: None


UNWATCHED = Watch()


def resume_together(
    directory: Path | None, states: Sequence[TrainState], mesh: Mesh | None
) -> Population:
    """The start of a population: its newest checkpoint, or `states` as they are.

    On several devices the last member is repeated until each has as many.
    """
    stacked = stack_members(states)
    fresh = {"states": stacked, "best": jax.tree.map(jnp.copy, stacked.params)}
    courses = tuple(TrainingProgress() for _ in states)
    found = None if directory is None else restore_checkpoint(directory, fresh)
    if found is not None:
        fresh = found.arrays
        courses = tuple(
            TrainingProgress(**c) for c in json.loads(found.meta)["courses"]
        )
    return Population(
        divide(_filled(fresh["states"], mesh), mesh),
        divide(_filled(fresh["best"], mesh), mesh),
        courses,
    )


def fit_together(
    start: Population,
    step: PopulationStep,
    hyper: Any,
    dataset: WindowDataset,
    validate: Callable[[Params, Sequence[np.ndarray]], np.ndarray],
    members: Sequence[Member],
    *,
    batch_size: int,
    directory: Path | None = None,
    checkpoint_seconds: float = 60.0,
    watch: Watch = UNWATCHED,
) -> list[Fitted]:
    """Trains until each member is done; see `kdjax.training.loop.fit`.

    A member that failed has `progress.bad_step`; its parameters are the best before.

    Args:
        start: from `resume_together`; its arrays are donated.
        step: from `make_population_step`.
        hyper: a pytree of arrays with a leading axis of P, for `step`.
        dataset: the windows of all members.
        validate: from `make_population_validate`.
        members: P of them.
        batch_size: B.
        directory: where to write checkpoints; None: nowhere.
        checkpoint_seconds: the least time between two checkpoints.
        watch: see there.
    """
    states, best, courses = start.states, start.best, list(start.courses)
    size = len(states.step)  # with those that fill the devices
    hyper = jax.tree.map(lambda values: _wide(values, size), hyper)
    walks = [
        _walk(member, batch_size, progress.step)
        for member, progress in zip(members, courses, strict=True)
    ]
    saved_at = time.monotonic()

    def save() -> None:
        nonlocal saved_at
        if directory is not None:
            _save(directory, Population(states, best, tuple(courses)))
            saved_at = time.monotonic()

    while active := [i for i, progress in enumerate(courses) if not progress.done]:
        index = np.zeros((size, batch_size), np.int32)
        weight = np.ones((size, batch_size), np.float32)
        turn = np.isin(np.arange(size), active)
        ended = []
        for place in active:
            index[place], weight[place], is_last = next(walks[place])
            courses[place] = courses[place]._replace(step=courses[place].step + 1)
            ended += [place] if is_last else []
        states = step(states, hyper, dataset, index, weight, turn)
        watch.advance(int(weight[turn].sum()), courses)
        stopping = stop_requested()
        if not ended:
            if stopping:
                save()
                stop_if_requested()
            continue
        losses = _losses(states, validate, members, ended)
        for place, (train, validation) in losses.items():
            courses[place] = _after_epoch(
                courses[place], members[place], batch_size, train, validation
            )
            line = _line(courses[place], members[place], batch_size, train, validation)
            watch.log(members[place].name, line)
        improved = [
            i for i in ended if courses[i].stale == 0 and not courses[i].bad_step
        ]
        masks = (np.isin(np.arange(size), places) for places in (ended, improved))
        states, best = _settle(states, best, *masks)
        watch.evaluate_models(courses)
        watch.advance(0, courses)
        all_done = all(progress.done for progress in courses)
        late = time.monotonic() - saved_at >= checkpoint_seconds
        if all_done or late or stopping:
            save()
        if stopping:
            stop_if_requested()
    found = jax.device_get(best)
    return [Fitted(take_member(found, i), c) for i, c in enumerate(courses)]


class _Train(NamedTuple):
    """Mean loss of an epoch, and the first step whose loss was not finite, or −1."""

    loss: float
    bad_step: int


_NOBODY = np.empty(0, np.int32)


def _walk(
    member: Member, batch_size: int, step: int
) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
    """A member's batches from a step on, and whether each is the last of its epoch."""
    steps = math.ceil(member.windows / batch_size)
    epoch, first = divmod(step, steps)
    while True:
        order = member.first + epoch_order(member.key, epoch, member.windows)
        remaining = order[first * batch_size :]
        for number, (index, weight) in enumerate(
            padded_batches(remaining, batch_size), start=first + 1
        ):
            yield index, weight, number == steps
        epoch, first = epoch + 1, 0


def _losses(
    states: TrainState,
    validate: Callable[[Params, Sequence[np.ndarray]], np.ndarray],
    members: Sequence[Member],
    ended: Sequence[int],
) -> dict[int, tuple[_Train, float]]:
    """The losses in training and validation of the members whose epoch ended."""
    asked = [_NOBODY] * len(states.step)
    for place in ended:
        asked[place] = members[place].validation
    validation = validate(states.params, asked)
    sums, weights, bad = map(
        np.asarray, (states.loss_sum, states.weight_sum, states.bad_step)
    )
    return {
        i: (_Train(float(sums[i] / weights[i]), int(bad[i])), float(validation[i]))
        for i in ended
    }


def _after_epoch(
    progress: TrainingProgress,
    member: Member,
    batch_size: int,
    train: _Train,
    validation: float,
) -> TrainingProgress:
    if train.bad_step >= 0:
        return progress._replace(done=True, bad_step=train.bad_step)
    if not math.isfinite(validation):
        return progress._replace(done=True, bad_step=progress.step)
    epoch = _epoch(progress, member, batch_size)
    return progress_after(progress, validation, epoch, member.epochs, member.patience)


def _line(
    progress: TrainingProgress,
    member: Member,
    batch_size: int,
    train: _Train,
    validation: float,
) -> LogLine:
    """A line of the log; a loss that is not finite is no number in JSON."""
    losses = {
        "loss": train.loss, "train_loss": train.loss, "validation_loss": validation
    }  # fmt: skip
    return {
        "epoch": _epoch(progress, member, batch_size),
        "step": progress.step,
        **{name: v if math.isfinite(v) else None for name, v in losses.items()},
    }


def _epoch(progress: TrainingProgress, member: Member, batch_size: int) -> int:
    """Epochs done."""
    return progress.step // math.ceil(member.windows / batch_size)


@jax.jit(donate_argnums=(0, 1))
def _settle(
    states: TrainState, best: Params, ended: Array, improved: Array
) -> tuple[TrainState, Params]:
    """The best parameters with those that improved; sums of ended epochs at 0."""

    def choose(old: Array, new: Array) -> Array:
        return jnp.where(jnp.reshape(improved, (-1,) + (1,) * (new.ndim - 1)), new, old)

    kept = jax.tree.map(choose, best, states.params)
    return states.replace(
        loss_sum=jnp.where(ended, 0, states.loss_sum),
        weight_sum=jnp.where(ended, 0, states.weight_sum),
    ), kept


def _save(directory: Path, population: Population) -> None:
    """The members without those that fill the devices, which may be others next time."""
    count = len(population.courses)
    arrays = {"states": population.states, "best": population.best}
    own = jax.tree.map(lambda leaf: leaf[:count], arrays)
    meta = json.dumps(
        {"courses": [progress._asdict() for progress in population.courses]}
    )
    # Their sum grows with every step; the largest rests once its member is done.
    steps = sum(progress.step for progress in population.courses)
    save_checkpoint(directory, steps, own, meta)


def _filled(tree: Any, mesh: Mesh | None) -> Any:
    """Stacked members with the last one repeated to a multiple of the devices."""
    size = len(jax.tree.leaves(tree)[0])
    devices = mesh.size if mesh else 1
    return jax.tree.map(lambda leaf: _wide(leaf, -(-size // devices) * devices), tree)


def _wide(values: Any, size: int) -> Array:
    """`[P, …]` with its last entry repeated, `[size, …]`."""
    values = jnp.asarray(values)
    return jnp.concatenate([values, jnp.repeat(values[-1:], size - len(values), 0)])
