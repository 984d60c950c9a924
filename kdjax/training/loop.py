"""The fit loop of one network; teacher and student differ only in their step function.

Everything that determines the next step is in the checkpoint or follows from the seed and
the step's number, so a run that is killed and started again ends with the same parameters.
After a deferred signal (`kdjax.io.signals`) a checkpoint is written before the exit.
"""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kdjax.errors import TrainingError
from kdjax.io.signals import stop_if_requested, stop_requested
from kdjax.models.model import Params
from kdjax.training import hosts
from kdjax.training.batching import BatchSource
from kdjax.training.checkpoints import restore_checkpoint, save_checkpoint
from kdjax.training.steps import Step, TrainState

LogLine = dict[str, Any]


class TrainingProgress(NamedTuple):
    """The progress of a training, without its arrays; the checkpoint's metadata."""

    step: int = 0  # steps done
    best_loss: float | None = None  # lowest validation loss; None in the first epoch
    best_epoch: int = 0  # the epoch (from 1) that gave it; 0 before
    stale: int = 0  # epochs since then
    done: bool = False
    bad_step: int = 0  # in a population, the step whose loss was not finite


class Start(NamedTuple):
    """Start of a training or a resumption; `best`: parameters of lowest validation loss."""

    state: TrainState
    best: Params
    progress: TrainingProgress


class Fitted(NamedTuple):
    """The parameters of lowest validation loss, and the progress at the end."""

    params: Params
    progress: TrainingProgress


def resume(directory: Path | None, state: TrainState) -> Start:
    """The newest checkpoint in `directory`, or `state` if there is none."""
    # A copy: the state's own parameters are donated to the next step.
    fresh = Start(state, jax.tree.map(jnp.copy, state.params), TrainingProgress())
    arrays = {"state": state, "best": fresh.best}
    found = None if directory is None else restore_checkpoint(directory, arrays)
    if found is None:
        return fresh
    progress = TrainingProgress(**json.loads(found.meta))
    return Start(found.arrays["state"], found.arrays["best"], progress)


def fit(
    start: Start,
    step: Step,
    batch_source: BatchSource,
    validate: Callable[[Params], float],
    *,
    epochs: int,
    patience: int | None,
    directory: Path | None = None,
    checkpoint_seconds: float = 60.0,
    log_every: int = 20,
    log: Callable[[LogLine], None] = lambda line: None,
    advance: Callable[[int, float | None], None] = lambda windows, loss: None,
) -> Fitted:
    """Trains for `epochs`, or until the validation loss stops improving.

    Args:
        start: from `resume`; its state is donated.
        step: from `make_step`.
        batch_source: the batches of each epoch.
        validate: `params -> validation loss`, called at the end of each epoch.
        epochs: maximum number of epochs.
        patience: epochs without a new lowest validation loss after which training
            ends; None to use all epochs.
        directory: where to write checkpoints; None for nowhere.
        checkpoint_seconds: minimum time between two checkpoints.
        log_every: steps between two logged losses.
        log: receives each line of `metrics.jsonl`, without the training's name.
        advance: called after each step with its number of windows and, if logged, the
            mean loss.

    Raises:
        TrainingError: a loss was not finite; the message has the step's number.
    """
    steps_per_epoch = batch_source.steps
    state, best, progress = start
    saved_at = time.monotonic()

    def checkpoint(*, now: bool) -> None:
        nonlocal saved_at
        if directory is None:
            return
        # All processes must agree, although their clocks differ.
        if now or hosts.on_first(
            lambda: time.monotonic() - saved_at >= checkpoint_seconds
        ):
            # A step with a finite loss can still have made the parameters NaN.
            finite = jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), state.params)
            if not all(jax.tree.leaves(finite)):
                _check_finite(math.nan, int(state.step), "gradient")
            arrays = {"state": state, "best": best}
            meta = json.dumps(progress._asdict())
            save_checkpoint(directory, progress.step, arrays, meta)
            saved_at = time.monotonic()

    while not progress.done:
        epoch, first = divmod(progress.step, steps_per_epoch)
        started, seen = time.monotonic(), 0
        for batch in batch_source.batches(epoch, first):
            state, _ = step(state, batch)
            windows = int(batch.weight.sum())
            progress = progress._replace(step=progress.step + 1)
            seen += windows
            # The last step of an epoch is logged with the validation loss.
            within = progress.step % steps_per_epoch
            logged = bool(within) and within % log_every == 0
            # A run can't resume between an epoch's last step and its validation.
            stopping = bool(within) and stop_requested()
            # Raises if the loss isn't finite, so that no invalid state is saved.
            loss = _epoch_loss(state) if logged or stopping else None
            advance(windows, loss)
            if logged:
                log({"epoch": epoch + 1, "step": progress.step, "loss": loss})
            if loss is not None:
                checkpoint(now=stopping)
            if stopping:
                stop_if_requested()
        loss, seconds = _epoch_loss(state), time.monotonic() - started
        validation = validate(state.params)
        _check_finite(validation, progress.step, "validation loss")
        line = {
            "epoch": epoch + 1,
            "step": progress.step,
            "loss": loss,
            "train_loss": loss,
            "validation_loss": validation,
            "windows_per_second": round(seen / seconds, 1),
        }
        log(line)
        progress = progress_after(progress, validation, epoch + 1, epochs, patience)
        if progress.stale == 0:
            best = jax.tree.map(jnp.copy, state.params)
        zero = jnp.zeros_like(state.loss_sum)
        state = state.replace(loss_sum=zero, weight_sum=jnp.copy(zero))
        stopping = stop_requested()
        checkpoint(now=progress.done or stopping)
        if stopping:
            stop_if_requested()
    return Fitted(best, progress)


def progress_after(
    before: TrainingProgress, loss: float, epoch: int, epochs: int, patience: int | None
) -> TrainingProgress:
    """The progress after an epoch's validation."""
    if before.best_loss is None or loss < before.best_loss:
        after = before._replace(best_loss=loss, best_epoch=epoch, stale=0)
    else:
        after = before._replace(stale=before.stale + 1)
    out_of_patience = patience is not None and after.stale >= patience
    return after._replace(done=epoch >= epochs or out_of_patience)


def _epoch_loss(state: TrainState) -> float:
    """Mean loss of the windows of the current epoch so far."""
    if (bad_step := int(state.bad_step)) >= 0:
        _check_finite(math.nan, bad_step, "training loss")
    return float(state.loss_sum) / float(state.weight_sum)


def _check_finite(loss: float, step: int, name: str) -> None:
    if not math.isfinite(loss):
        raise TrainingError(
            f"the {name} became nan or inf at step {step}. Lower "
            "train.learning_rate or train.clip_norm, or correct huge values in the "
            "training data; the checkpoint before that step is kept.",
            step,
        )
