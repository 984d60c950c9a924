"""Trainings that last: memory and files stay, spikes are survived, divergence is named.

`benchmarks/attacks/endurance.py` watches a stream of ten million rows and a training of a
thousand epochs from outside; a stream's memory is also tested in test_scoring_streams.py.
"""

import gc
import json
import os
import re
import sys
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from kdjax.cli import main
from kdjax.models.autoencoder import Architecture, network
from kdjax.training.batching import WindowDataset, memory_batches
from kdjax.training.loop import fit, resume
from kdjax.training.steps import (
    init_state,
    make_optimizer,
    make_step,
    make_validate,
    teacher_loss,
    validation_loss,
)

WINDOW, BATCH, EPOCHS, SETTLED = 5, 8, 200, 50
NET = network(Architecture(2, (3,)))


def dataset(rows):
    starts = np.arange(0, len(rows) - WINDOW, WINDOW, np.int32)
    return WindowDataset(jnp.asarray(rows, jnp.float32), jnp.asarray(starts))


def waves(count):
    time = np.arange(count)[:, None]
    return 0.5 + 0.4 * np.sin(time / 4 + np.arange(2))


def trained(train, *, epochs, log):
    """A fit that is judged on clean rows."""
    optimizer = make_optimizer(
        learning_rate=0.01,
        schedule="constant",
        steps=epochs * len(train.starts) // BATCH,
        warmup_steps=0,
        clip_norm=1.0,
    )
    validate = make_validate(
        validation_loss(NET),
        memory_batches(dataset(waves(200)), key=None, batch_size=BATCH),
        window=WINDOW,
    )
    return fit(
        resume(None, init_state(NET.init(jax.random.key(0)), optimizer)),
        make_step(teacher_loss(NET), optimizer, window=WINDOW),
        memory_batches(train, key=jax.random.key(1), batch_size=BATCH),
        validate,
        epochs=epochs,
        patience=None,
        log=log,
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts open files as Linux does")
def test_hundreds_of_epochs_leave_memory_and_files_as_they_were():
    """Without checkpoints: tensorstore keeps some 50 kB of each that it writes."""
    seen = {}

    def look(line):
        if line["epoch"] in (SETTLED, EPOCHS):
            gc.collect()
            arrays = sum(array.nbytes for array in jax.live_arrays())
            files = len(os.listdir("/proc/self/fd"))
            seen[line["epoch"]] = tracemalloc.get_traced_memory()[0], arrays, files

    tracemalloc.start()
    try:
        fitted = trained(dataset(waves(45)), epochs=EPOCHS, log=look)
    finally:
        tracemalloc.stop()
    assert fitted.progress.step == EPOCHS
    memory, arrays, files = (after - before for before, after in zip(*seen.values()))
    # Less than a log line an epoch would take.
    assert memory < 300 * (EPOCHS - SETTLED)  # bytes
    assert (arrays, files) == (0, 0)


@pytest.mark.parametrize("spike", [1e3, 1e6, 1e15])
def test_a_spike_in_the_rows_is_survived(spike):
    rows = waves(200)
    rows[77, 1] = spike
    losses = []
    fitted = trained(
        dataset(rows),
        epochs=20,
        log=lambda line: losses.append(line["validation_loss"]),
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fitted.params))
    assert np.isfinite(losses).all()
    # The gradient's norm is clipped, so that one batch costs one step.
    assert fitted.progress.best_loss < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        # The first step has moved the parameters out of all bounds.
        (
            ("train.learning_rate=1e38",),
            r"(training|validation) loss .* at step [12]\b",
        ),
        (("train.learning_rate=1e30", "train.log_every=1"), r" at step \d+\b"),
    ],
)
def test_divergence_ends_the_program_with_the_step(tmp_path, capsys, changes, said):
    rows = pd.DataFrame(waves(600), columns=["load", "heat"])
    rows.to_csv(tmp_path / "plant.csv", index=False)
    workdir = tmp_path / "run"
    options = [
        f"data.path={tmp_path / 'plant.csv'}",
        "data.window=10",
        "data.stride=5",
        "teacher.hidden=(3,)",
        "teacher.epochs=3",
        "student.hidden=(2,)",
        "threshold.false_alarm_rate=0.1",
        *changes,
    ]
    flags = [f"--config.{option}" for option in options]
    assert main(["kdjax", "run", f"--workdir={workdir}", *flags]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("kdjax: ") and re.search(said, error)
    assert "train.learning_rate" in error
    assert not (workdir / "results.json").exists()
    assert not (workdir / "detectors").exists()
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert all(np.isfinite(json.loads(line)["loss"]) for line in lines)
