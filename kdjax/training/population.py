"""Networks of one shape trained side by side.

On a CPU each core trains its own members one after the other: what one small network
leaves idle another uses, and no step waits for several cores to meet. One batched
product for the members of a core costs more than it saves there (docs/performance.md);
on accelerators it is what fills the device.

What differs between members are arrays: parameters, windows, learning rate, α, T. A
member that is done, or whose loss was not finite, stays as it is.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.typing import ArrayLike

from kdjax.devices import map_over_batch
from kdjax.models.autoencoder import Params
from kdjax.models.batches import padded_batches
from kdjax.training.objectives import Objective
from kdjax.training.steps import Corpus, Step, TrainState, take_batch

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


# `(states, hyper, corpus, index [P, B], weight [P, B], active [P]) -> states`
PopulationStep = Callable[
    [TrainState, Any, Corpus, ArrayLike, ArrayLike, ArrayLike], TrainState
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
    """The jitted step of P members `(states, hyper, corpus, index, weight, active)`.

    A member's result is that of its step alone, up to rounding. `index` and `weight`
    are `[P, B]`; `active` `[P]` tells whose turn it is. The states given are donated.

    Args:
        step_of: a member's `Hyper`, or whatever `hyper` has of each, to its step from
            `make_step` without a mesh.
        mesh: devices that share the members, from
            `batch_mesh(P, least_share=1)`; the corpus lies on all of them. Without one
            a single device trains all members.
    """

    def train(corpus: Corpus, member: Any) -> TrainState:
        state, hyper, index, weight, active = member
        step = step_of(hyper)
        sound = active & (state.bad_step < 0)
        trained: TrainState = jax.lax.cond(
            sound, lambda old: step(old, corpus, index, weight), lambda old: old, state
        )
        return trained

    shared = _over_members(train, mesh)

    @jax.jit(donate_argnums=0)
    def population_step(
        states: TrainState,
        hyper: Any,
        corpus: Corpus,
        index: ArrayLike,
        weight: ArrayLike,
        active: ArrayLike,
    ) -> TrainState:
        batch = (jnp.asarray(index), jnp.asarray(weight), jnp.asarray(active))
        found: TrainState = shared(corpus, (states, hyper, *batch))
        return found

    return population_step


def make_population_validate(
    loss: Objective,
    corpus: Corpus,
    *,
    window: int,
    batch_size: int,
    mesh: Mesh | None = None,
) -> Callable[[Params, Sequence[np.ndarray]], np.ndarray]:
    """The function `(params [P], starts) -> mean loss of each member, [P] float64`.

    `starts` are P arrays, the first rows of each member's windows; empty for a member
    whose loss isn't asked, which then is NaN.
    """

    def mean_loss(corpus: Corpus, member: Any) -> Array:
        params, starts, weight = member
        found: Array = jax.lax.cond(
            jnp.any(weight > 0),
            lambda: loss(params, take_batch(corpus, starts, weight, window)),
            lambda: jnp.zeros(()),
        )
        return found

    batch_losses = jax.jit(_over_members(mean_loss, mesh))

    def validate(params: Params, starts: Sequence[np.ndarray]) -> np.ndarray:
        totals = np.zeros(len(starts))
        for index, weight in _side_by_side(starts, batch_size):
            losses = np.asarray(batch_losses(corpus, (params, index, weight)))
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
    function: Callable[[Corpus, Any], Tree], mesh: Mesh | None
) -> Callable[[Corpus, Any], Tree]:
    """`function(corpus, member)` of members with a leading axis, shared by devices."""
    one_by_one = jax.default_backend() == "cpu"

    def mapped(corpus: Corpus, members: Any) -> Tree:
        def one(member: Any) -> Tree:
            return function(corpus, member)

        found: Tree = (
            jax.lax.map(one, members) if one_by_one else jax.vmap(one)(members)
        )
        return found

    return map_over_batch(mapped, mesh)
