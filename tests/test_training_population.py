"""Members of a population against the same members trained alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.devices import batch_mesh, divide, place
from kdjax.models.autoencoder import Architecture, network
from kdjax.training import population
from kdjax.training.objectives import student_objective
from kdjax.training.population import (
    make_population_step,
    stack_members,
    take_member,
)
from kdjax.training.steps import Corpus, init_state, make_optimizer, make_step

WINDOW, MEMBERS, BATCH = 4, 6, 5
NET = network(Architecture(2, (3,)))
OPTIMIZER = make_optimizer(
    learning_rate=0.01, schedule="constant", steps=9, warmup_steps=0, clip_norm=1.0
)


def first_state(seed):
    return init_state(NET.init(jax.random.key(seed)), OPTIMIZER)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("devices", [1, 6])
def test_members_are_trained_as_if_alone(devices, backend, monkeypatch):
    # On an accelerator members are batched; the arithmetic of that runs anywhere.
    monkeypatch.setattr(population.jax, "default_backend", lambda: backend)
    rng = np.random.default_rng(0)
    corpus = Corpus(
        jnp.asarray(rng.uniform(size=(40, 2)), jnp.float32),
        jnp.arange(30, dtype=jnp.int32),
        targets=jnp.asarray(rng.normal(size=(30, WINDOW, 2)), jnp.float32),
    )
    objective = student_objective(
        NET, NET, alpha=0.4, temperature=1.0, temperature_mode="output"
    )
    step = make_step(objective, OPTIMIZER, window=WINDOW)
    index = rng.integers(0, 30, (3, MEMBERS, BATCH)).astype(np.int32)
    weight = np.ones((MEMBERS, BATCH), np.float32)
    weight[:, -1] = 0
    mesh = batch_mesh(MEMBERS, least_share=1) if devices > 1 else None
    assert mesh is None or mesh.size == devices
    together = make_population_step(step, mesh)
    states = divide(stack_members([first_state(k) for k in range(MEMBERS)]), mesh)
    for batch in index:
        states = together(states, place(corpus, mesh), batch, weight)
    for member in range(MEMBERS):
        alone = first_state(member)
        for batch in index:
            alone = step(alone, corpus, batch[member], weight[member])
        found = take_member(jax.device_get(states), member)
        for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(found), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
