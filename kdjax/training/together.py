"""The fit loop of a population: members walk side by side, each through its own epochs.

A member sees the batches that it would see alone, in the same order; it stops early,
keeps its best parameters and ends by the same rules (`kdjax.training.loop`). One whose
loss is not finite is frozen there and reported, and the others go on.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from kdjax.devices import divide
from kdjax.models.autoencoder import Params
from kdjax.models.batches import padded_batches
from kdjax.stopping import noted, stop_if_noted
from kdjax.training.checkpoints import restore_checkpoint, save_checkpoint
from kdjax.training.feeds import epoch_order
from kdjax.training.loop import Course, Fitted, LogLine, judged_course
from kdjax.training.population import PopulationStep, stack_members, take_member
from kdjax.training.steps import Corpus, TrainState


class Member(NamedTuple):
    """What tells a member from the others, apart from arrays.

    Attributes:
        name: in the log.
        key: fixes the order of its windows in each epoch.
        first: place of its first window in the corpus; they follow one another.
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
    courses: tuple[Course, ...]


class Watch(NamedTuple):
    """How a population tells of itself.

    Attributes:
        log: takes a member's name and its line of `metrics.jsonl`.
        advance: called after each step with the number of windows trained on and the
            courses.
        judge: called with the courses after epochs ended; what it raises ends the fit.
    """

    log: Callable[[str, LogLine], None] = lambda name, line: None
    advance: Callable[[int, Sequence[Course]], None] = lambda windows, courses: None
    judge: Callable[[Sequence[Course]], None] = lambda courses: None


UNWATCHED = Watch()


def resume_together(
    directory: Path | None, states: Sequence[TrainState], mesh: Mesh | None
) -> Population:
    """The start of a population: its newest checkpoint, or `states` as they are.

    On several devices the last member is repeated until each has as many.
    """
    stacked = stack_members(states)
    fresh = {"states": stacked, "best": jax.tree.map(jnp.copy, stacked.params)}
    courses = tuple(Course() for _ in states)
    found = None if directory is None else restore_checkpoint(directory, fresh)
    if found is not None:
        fresh = found.arrays
        courses = tuple(Course(**c) for c in json.loads(found.meta)["courses"])
    return Population(
        divide(_filled(fresh["states"], mesh), mesh),
        divide(_filled(fresh["best"], mesh), mesh),
        courses,
    )


def fit_together(
    start: Population,
    step: PopulationStep,
    hyper: Any,
    corpus: Corpus,
    validate: Callable[[Params, Sequence[np.ndarray]], np.ndarray],
    members: Sequence[Member],
    *,
    batch_size: int,
    directory: Path | None = None,
    checkpoint_seconds: float = 60.0,
    watch: Watch = UNWATCHED,
) -> list[Fitted]:
    """Trains until each member is done; see `kdjax.training.loop.fit`.

    A member that failed has `course.bad_step`; its parameters are the best before.

    Args:
        start: from `resume_together`; its arrays are donated.
        step: from `make_population_step`.
        hyper: a pytree of arrays with a leading axis of P, for `step`.
        corpus: the windows of all members.
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
        _walk(member, batch_size, course.step)
        for member, course in zip(members, courses, strict=True)
    ]
    saved_at = time.monotonic()

    def save() -> None:
        nonlocal saved_at
        if directory is not None:
            _save(directory, Population(states, best, tuple(courses)))
            saved_at = time.monotonic()

    while active := [i for i, course in enumerate(courses) if not course.done]:
        index = np.zeros((size, batch_size), np.int32)
        weight = np.ones((size, batch_size), np.float32)
        turn = np.isin(np.arange(size), active)
        ended = []
        for place in active:
            index[place], weight[place], is_last = next(walks[place])
            courses[place] = courses[place]._replace(step=courses[place].step + 1)
            ended += [place] if is_last else []
        states = step(states, hyper, corpus, index, weight, turn)
        watch.advance(int(weight[turn].sum()), courses)
        stopping = noted()
        if not ended:
            if stopping:
                save()
                stop_if_noted()
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
        watch.judge(courses)
        watch.advance(0, courses)
        all_done = all(course.done for course in courses)
        late = time.monotonic() - saved_at >= checkpoint_seconds
        if all_done or late or stopping:
            save()
        if stopping:
            stop_if_noted()
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
    course: Course, member: Member, batch_size: int, train: _Train, validation: float
) -> Course:
    if train.bad_step >= 0:
        return course._replace(done=True, bad_step=train.bad_step)
    if not math.isfinite(validation):
        return course._replace(done=True, bad_step=course.step)
    epoch = _epoch(course, member, batch_size)
    return judged_course(course, validation, epoch, member.epochs, member.patience)


def _line(
    course: Course, member: Member, batch_size: int, train: _Train, validation: float
) -> LogLine:
    """A line of the log; a loss that is not finite is no number in JSON."""
    losses = {
        "loss": train.loss, "train_loss": train.loss, "validation_loss": validation
    }  # fmt: skip
    return {
        "epoch": _epoch(course, member, batch_size),
        "step": course.step,
        **{name: v if math.isfinite(v) else None for name, v in losses.items()},
    }


def _epoch(course: Course, member: Member, batch_size: int) -> int:
    """Epochs done."""
    return course.step // math.ceil(member.windows / batch_size)


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
    meta = json.dumps({"courses": [course._asdict() for course in population.courses]})
    # Their sum grows with every step; the largest rests once its member is done.
    steps = sum(course.step for course in population.courses)
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
