"""Which way a group trains faster here: side by side, or one after the other."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console

from kdjax.devices import batch_mesh, place
from kdjax.populations.job import Job, fits_in_memory, start_of, title_of
from kdjax.training.steps import make_step
from kdjax.trainings import Training, first_state, objective, optimizer_of

TOGETHER, ALONE = "together", "alone"

# A trial of both ways compiles both, which a training of fewer steps doesn't pay back.
LEAST_STEPS = 200
TRIAL_ROUNDS, TRIAL_STEPS = 3, 2


def faster_way(
    group: Sequence[Training], job: Callable[[], Job], console: Console
) -> str:
    """The faster way for this group, found by trying both where that may tell.

    `job` makes the group's population, or gives the one that is made already.
    """
    if len(group) == 1 or not fits_in_memory(group):
        return ALONE
    if jax.default_backend() != "cpu" or max(t.steps for t in group) < LEAST_STEPS:
        return TOGETHER
    together, alone = _trial(job())
    way = TOGETHER if together <= alone else ALONE
    console.print(
        f"{title_of(group)}: a step of all takes {1e3 * together:.0f} ms side by side, "
        f"{1e3 * alone:.0f} ms one after the other: trained {way}"
    )
    return way


def _trial(job: Job) -> tuple[float, float]:
    """Seconds of a step of all members side by side, and one after the other.

    The median of interleaved rounds, after one of each that compiles.
    """
    one = job.group[0]
    batch_size = one.settings["batch_size"]
    mesh = batch_mesh(batch_size)
    step = make_step(
        objective(one), optimizer_of(one),
        window=one.ground.window, steps=one.steps, mesh=mesh,
    )  # fmt: skip
    states = [start_of(job, None).states]
    size = len(states[0].step)
    state, corpus = (
        [place(first_state(one), mesh)],
        place(jax.device_get(job.corpus), mesh),
    )
    hyper = jax.tree.map(lambda v: np.resize(v, size), job.hyper)
    index = np.zeros((size, batch_size), np.int32)
    weight = np.ones((size, batch_size), np.float32)

    def together() -> None:
        turn = np.ones(size, bool)
        states[0] = job.step(states[0], hyper, job.corpus, index, weight, turn)

    def alone() -> None:
        state[0] = step(state[0], corpus, index[0], weight[0])

    ways: tuple[Any, ...] = ((together, states), (alone, state))
    for run, result in ways:
        _seconds(run, result)
    rounds = [[_seconds(*way) for way in ways] for _ in range(TRIAL_ROUNDS)]
    side_by_side, single = np.median(rounds, axis=0)
    return float(side_by_side), float(single) * len(job.group)


def _seconds(run: Callable[[], None], result: list[Any]) -> float:
    started = time.monotonic()
    for _ in range(TRIAL_STEPS):
        run()
    jax.block_until_ready(result[0])
    return (time.monotonic() - started) / TRIAL_STEPS
