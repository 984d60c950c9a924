"""A training by itself: its batches, its checkpoints, and one fit of the loop."""

import logging
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from rich.console import Console

from kdjax import hosts
from kdjax.devices import place, training_mesh
from kdjax.lessons import Lesson, Outputs, check_kept
from kdjax.models.autoencoder import Params, network
from kdjax.progress import progress_bar
from kdjax.stopping import held
from kdjax.training.feeds import Feed, corpus_feed, grain_feed, make_source_validate
from kdjax.training.loop import Course, Fitted, Hooks, Start, fit, resume
from kdjax.training.objectives import validation_loss
from kdjax.training.steps import Corpus, make_step, make_validate
from kdjax.trainings import (
    Training,
    first_state,
    lesson_targets,
    objective,
    optimizer_of,
    order_key,
    soundness,
    target_bytes,
)
from kdjax.workdir import append_line, cut_lines

logger = logging.getLogger(__name__)


def checkpoints(workdir: Path, name: str) -> Path:
    """Where a training's checkpoints are."""
    return workdir / "checkpoints" / name


def course_of(training: Training, workdir: Path) -> Start:
    """Where a training stands: at its newest checkpoint, or at the start."""
    return resume(checkpoints(workdir, training.name), first_state(training))


def train_alone(
    training: Training,
    workdir: Path,
    console: Console,
    *,
    outputs: Outputs | None = None,
) -> Fitted:
    """The parameters of lowest validation loss, as numpy arrays, and the course.

    Goes on where a killed process stopped. The devices of all hosts share each batch.

    Raises:
        TrainingError: a loss was not finite.
        ConfigError: the hosts' shares of a batch can't be equal.
    """
    start = course_of(training, workdir)
    cut_lines(workdir, training.name, start.course.step)
    if start.course.done:
        said = course_text(start.course)
        console.print(f"{training.name}: trained already, {said}")
        return Fitted(on_host(start.best), start.course)
    if start.course.step:
        console.print(f"{training.name}: goes on after step {start.course.step}")
    train, ground = training.settings, training.ground
    batch_size = train["batch_size"]
    outputs = {} if outputs is None else outputs
    mesh = training_mesh(batch_size)
    feed, validate = _feeding(training, mesh, outputs)
    # Devices that divide a batch know the others' sums only, not their windows.
    is_whole = training.lesson is not None and training.lesson.is_of_whole_batches
    total = len(ground.fit) * training.epochs - start.course.step * batch_size
    # Of several processes one alone can't save.
    alone = hosts.processes() == 1
    with held(alone), progress_bar(console, training.name, total) as advance:
        fitted = fit(
            start._replace(
                state=place(start.state, mesh), best=place(start.best, mesh)
            ),
            make_step(
                objective(training),
                optimizer_of(training),
                window=ground.window,
                teacher=training.lesson.network if training.lesson else None,
                steps=training.steps,
                mesh=None if is_whole else mesh,
            ),
            feed,
            validate,
            epochs=training.epochs,
            patience=training.patience,
            directory=checkpoints(workdir, training.name),
            checkpoint_seconds=train["checkpoint_seconds"],
            log_every=train["log_every"],
            hooks=Hooks(
                log=lambda line: append_line(workdir, {"phase": training.name, **line}),
                advance=advance,
            ),
        )
    console.print(f"{training.name}: {course_text(fitted.course)}")
    return fitted._replace(params=on_host(fitted.params))


def course_text(course: Course) -> str:
    """How far a training came, in words."""
    if course.bad_step:
        return f"its loss was not finite at step {course.bad_step:,}"
    return (
        f"{course.step:,} steps, lowest validation loss {course.best_loss:.6f} after "
        f"epoch {course.best_epoch}"
    )


def on_host(params: Params) -> Params:
    """Parameters as numpy arrays."""
    found: Params = jax.device_get(params)
    return found


def _feeding(
    training: Training, mesh: Mesh | None, outputs: Outputs
) -> tuple[Feed, Callable[[Params], float]]:
    """The batches to train on, and the validation."""
    ground, batch_size = training.ground, training.settings["batch_size"]
    loss = validation_loss(network(training.architecture))
    if ground.sources is not None:
        source, held_out = ground.sources
        lesson = training.lesson
        if lesson is not None:
            check_kept(lesson, target_bytes(training))
        feed = grain_feed(
            source,
            seed=(training.seed, training.order),
            batch_size=batch_size,
            teacher=place(_params(lesson), mesh) if lesson else None,
            mesh=mesh,
        )
        return feed, make_source_validate(
            loss, held_out, batch_size=batch_size, mesh=mesh
        )
    corpus, validation = _corpora(training, mesh, outputs)
    feed = corpus_feed(corpus, key=order_key(training), batch_size=batch_size)
    return feed, make_validate(
        loss, validation, window=ground.window, batch_size=batch_size, mesh=mesh
    )


def _corpora(
    training: Training, mesh: Mesh | None, outputs: Outputs
) -> tuple[Corpus, Corpus]:
    """The windows to train on, with what a teacher says of them, and to validate on."""
    ground, lesson = training.ground, training.lesson
    rows = jnp.asarray(ground.rows)
    corpus, validation = (
        place(Corpus(rows, jnp.asarray(starts), missing=ground.missing), mesh)
        for starts in (ground.fit, ground.validation)
    )
    if ground.sound is not None:
        corpus = corpus.replace(sound=place(jnp.asarray(soundness(ground)), mesh))
    if lesson is None:
        return corpus, validation
    size = (mesh.size if mesh else 1) * target_bytes(training)
    if size > lesson.cache_bytes:
        check_kept(lesson, size)
        logger.warning(
            "the teacher's answers would take %.1f GB, more than distill.cache_bytes: "
            "each step computes its own",
            size / 1e9,
        )
        return corpus.replace(teacher=place(_params(lesson), mesh)), validation
    targets = lesson_targets(training, outputs)
    return corpus.replace(targets=place(jnp.asarray(targets), mesh)), validation


def _params(lesson: Lesson) -> Params:
    """Of the teacher that each step asks anew."""
    assert lesson.teacher is not None
    return lesson.teacher.params
