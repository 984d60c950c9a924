"""A group of trainings made into one population: corpus, members, step."""

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from kdjax.devices import member_mesh, place
from kdjax.lessons import Lesson, Outputs, answer_shape
from kdjax.models.autoencoder import network
from kdjax.training.objectives import student_objective, teacher_objective
from kdjax.training.population import Hyper, PopulationStep, make_population_step
from kdjax.training.steps import Corpus, Step, make_optimizer, make_step
from kdjax.training.together import Member, Population, resume_together
from kdjax.trainings import (
    Training,
    first_state,
    lesson_targets,
    order_key,
    soundness,
    target_bytes,
)


class Job(NamedTuple):
    """A population ready to train.

    Attributes:
        group: the trainings, P of them.
        mesh: the devices that share them.
        corpus: the windows of all members.
        members: what tells one from the other, apart from arrays.
        hyper: fields `[P]`.
        step: the population's.
    """

    group: Sequence[Training]
    mesh: Mesh | None
    corpus: Corpus
    members: list[Member]
    hyper: Hyper
    step: PopulationStep


def start_of(job: Job, folder: Path | None) -> Population:
    """Where a population starts: its newest checkpoint in `folder`, or the beginning."""
    states = [first_state(training) for training in job.group]
    return resume_together(folder, states, job.mesh)


def title_of(group: Sequence[Training]) -> str:
    """Such as `8 × 16` for eight networks of 16 units."""
    hidden = "+".join(map(str, group[0].architecture.hidden))
    return f"{len(group)} × {hidden}"


def groups(trainings: Sequence[Training]) -> list[list[Training]]:
    """The trainings that can be one population, in order of their first members.

    Students of the data alone join those that are taught on the same windows: with an
    α of 0 the teacher's outputs, which are there anyway, count for nothing.
    """
    found: dict[tuple[Hashable, ...], list[Training]] = {}
    for training in trainings:
        found.setdefault(shape_of(training), []).append(training)
    for shape in [*found]:
        *common, lesson = shape
        taught = [
            other
            for other in found
            if other[:-1] == tuple(common) and other[-1] is not None
        ]
        if (
            lesson is None
            and taught
            and _grounds(found[taught[0]]) >= _grounds(found[shape])
        ):
            found[taught[0]] += found.pop(shape)
    return list(found.values())


def _grounds(group: Sequence[Training]) -> set[int]:
    return {id(training.ground) for training in group}


def shape_of(training: Training) -> tuple[Hashable, ...]:
    """What members of a population must share; the last tells of its lesson."""
    lesson, ground, train = training.lesson, training.ground, training.settings
    return (
        training.architecture,
        ground.window,
        ground.missing,
        ground.sources is None,
        # Apart from those of recorded windows, whose teachers have less to say.
        ground.sound is None,
        train["batch_size"],
        train["schedule"],
        lesson
        and (
            lesson.teacher and (lesson.teacher.kind, lesson.teacher.architecture),
            lesson.temperature_mode,
            lesson.target,
            lesson.weights,
        ),
    )


def prepare_job(group: Sequence[Training], outputs: Outputs) -> Job:
    """The population of trainings that `groups` put together."""
    mesh = member_mesh(len(group))
    corpus, firsts = _joined_corpus(group, outputs)
    hyper = Hyper(*map(np.array, zip(*map(_hyper, group), strict=True)))
    members = [
        Member(
            training.name,
            order_key(training),
            first=first,
            windows=len(training.ground.fit),
            validation=training.ground.validation + offset,
            epochs=training.epochs,
            patience=training.patience,
        )
        for training, (first, offset) in zip(group, firsts, strict=True)
    ]
    taught = [training for training in group if training.lesson]
    step = make_population_step(_step_of((taught or group)[0]), mesh)
    return Job(group, mesh, place(corpus, mesh), members, hyper, step)


class _Taught(NamedTuple):
    """The windows of one lesson in a joined corpus.

    Attributes:
        first: number of its first window.
        starts: `[M]`, in the corpus' rows.
        targets: `[M, L, D]`; None where nobody teaches.
        sound: `[M]`, see `Corpus`.
    """

    first: int
    starts: np.ndarray
    targets: np.ndarray | None
    sound: np.ndarray


def _joined_corpus(
    group: Sequence[Training], outputs: Outputs
) -> tuple[Corpus, list[tuple[int, int]]]:
    """One corpus of all members, each member's first window and first row in it.

    Rows that members share are there once, and so are a teacher's outputs.
    """
    rows: dict[int, tuple[int, np.ndarray]] = {}  # by identity
    lessons: dict[tuple[int, Any], _Taught] = {}
    taught = next((training for training in group if training.lesson), None)
    firsts, row_count, window_count = [], 0, 0
    for training in group:
        ground, lesson = training.ground, training.lesson
        if id(ground.rows) not in rows:
            rows[id(ground.rows)] = (row_count, ground.rows)
            row_count += len(ground.rows)
        offset = rows[id(ground.rows)][0]
        key = (id(ground), lesson and lesson.source)
        if lesson is None:
            # Of a group that is taught, any teacher's outputs do.
            key = next((other for other in lessons if other[0] == id(ground)), key)
        if key not in lessons:
            said = _targets(training, taught, outputs)
            lessons[key] = _Taught(
                window_count, ground.fit + offset, said, soundness(ground)
            )
            window_count += len(ground.fit)
        firsts.append((lessons[key].first, offset))
    starts = np.concatenate([lesson.starts for lesson in lessons.values()])
    kept = [one.targets for one in lessons.values() if one.targets is not None]
    sound = np.concatenate([lesson.sound for lesson in lessons.values()])
    corpus = Corpus(
        jnp.asarray(np.concatenate([own for _, own in rows.values()])),
        jnp.asarray(starts.astype(np.int32)),
        targets=jnp.asarray(np.concatenate(kept)) if kept else None,
        sound=None if sound.all() else jnp.asarray(sound),
        missing=group[0].ground.missing,
    )
    return corpus, firsts


def _targets(
    training: Training, taught: Training | None, outputs: Outputs
) -> np.ndarray | None:
    """What a teacher says of the training's windows, `[M, …]`.

    Zeros for a student of the data alone whose population has one that is taught: it
    needs some.
    """
    if training.lesson is not None:
        return lesson_targets(training, outputs)
    if taught is None:
        return None
    assert taught.lesson is not None
    ground = training.ground
    shape = answer_shape(taught.lesson, training.architecture, ground.window)
    return np.zeros((len(ground.fit), *shape), np.float32)


def _hyper(training: Training) -> Hyper:
    train, lesson = training.settings, training.lesson
    return Hyper(
        learning_rate=np.float32(train["learning_rate"]),
        steps=np.int32(training.steps),
        warmup_steps=np.int32(train["warmup_steps"]),
        clip_norm=np.float32(train["clip_norm"]),
        alpha=np.float32(lesson.alpha if lesson else 0),
        temperature=np.float32(lesson.temperature if lesson else 1),
        alpha_end=np.float32(_end(lesson, "alpha") if lesson else 0),
        temperature_end=np.float32(_end(lesson, "temperature") if lesson else 1),
    )


def _end(lesson: Lesson, name: str) -> float:
    """The number after the last step; that of the first where it doesn't change."""
    end = getattr(lesson, f"{name}_end")
    return float(getattr(lesson, name) if end is None else end)


def _step_of(one: Training) -> Callable[[Hyper], Step]:
    """The step of a member of the population that `one` belongs to."""
    net, lesson = network(one.architecture), one.lesson

    def step_of(hyper: Hyper) -> Step:
        minimised = teacher_objective(net)
        if lesson is not None:
            minimised = student_objective(
                net,
                lesson.network,
                alpha=jnp.asarray(hyper.alpha),
                temperature=hyper.temperature,
                temperature_mode=lesson.temperature_mode,
                target=lesson.target,
                alpha_end=hyper.alpha_end,
                temperature_end=hyper.temperature_end,
            )
        optimizer = make_optimizer(
            learning_rate=hyper.learning_rate,
            schedule=one.settings["schedule"],
            steps=hyper.steps,
            warmup_steps=hyper.warmup_steps,
            clip_norm=hyper.clip_norm,
        )
        return make_step(
            minimised, optimizer, window=one.ground.window, steps=hyper.steps
        )

    return step_of


def fits_in_memory(group: Sequence[Training]) -> bool:
    """Whether the rows, and the teachers' outputs, can be kept on each device."""
    if any(training.ground.sources for training in group):
        return False
    taught = {(id(t.ground), t.lesson.source): t for t in group if t.lesson}
    limits = [t.lesson.cache_bytes for t in group if t.lesson]
    mesh = member_mesh(len(group))
    size = (mesh.size if mesh else 1) * sum(target_bytes(t) for t in taught.values())
    return not limits or size <= min(limits)
