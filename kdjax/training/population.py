"""Networks of one shape trained side by side.

On a CPU each core trains its own members one after the other: what one small network
leaves idle another uses, and no step waits for several cores to meet. One batched
product for the members of a core costs more than it saves there (docs/performance.md);
on accelerators it is what fills the device.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh
from jax.typing import ArrayLike

from kdjax.devices import map_over_batch
from kdjax.training.steps import Corpus, Step, TrainState

Tree = TypeVar("Tree")

PopulationStep = Callable[[TrainState, Corpus, ArrayLike, ArrayLike], TrainState]


def stack_members(members: Sequence[Tree]) -> Tree:
    """P pytrees of one shape as one, with a leading axis P."""
    stacked: Tree = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    return stacked


def take_member(stacked: Tree, place: int) -> Tree:
    """One of the members that `stack_members` joined."""
    member: Tree = jax.tree.map(lambda leaf: leaf[place], stacked)
    return member


def make_population_step(step: Step, mesh: Mesh | None = None) -> PopulationStep:
    """The jitted step of P members `(states, corpus, index [P, B], weight [P, B])`.

    A member's result is that of `step` alone, up to rounding.

    Args:
        step: from `make_step`, without a mesh.
        mesh: devices that share the members, from
            `batch_mesh(P, least_share=1)`; the corpus lies on all of them. Without one
            a single device trains all members.
    """
    one_by_one = jax.default_backend() == "cpu"

    def steps(corpus: Corpus, members: tuple[TrainState, Array, Array]) -> TrainState:
        def train(member: Any) -> TrainState:
            state, index, weight = member
            return step(state, corpus, index, weight)

        states: TrainState = (
            jax.lax.map(train, members) if one_by_one else jax.vmap(train)(members)
        )
        return states

    shared = map_over_batch(steps, mesh)

    @jax.jit(donate_argnums=0)
    def population_step(
        states: TrainState, corpus: Corpus, index: ArrayLike, weight: ArrayLike
    ) -> TrainState:
        members = (states, jnp.asarray(index), jnp.asarray(weight))
        return shared(corpus, members)

    return population_step
