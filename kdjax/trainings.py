"""One network's training: what it needs, what it minimises and where it starts.

`teacher_training` and `student_training` say what a config asks for; a run trains them
one after the other (`kdjax.fitting`), a sweep many side by side (`kdjax.populations`). Both see the same windows in the same order.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kdjax.data.large import WindowSource
from kdjax.data.prepared import (
    Prepared,
    is_large,
    training_windows,
    windows_source,
)
from kdjax.data.windows import has_missing
from kdjax.errors import ConfigError
from kdjax.lessons import (
    Lesson,
    Outputs,
    Scorer,
    answer_shape,
    answers,
    is_taught,
    make_lesson,
)
from kdjax.models.autoencoder import Architecture, Params, network
from kdjax.models.residual import NETWORK, ResidualModel
from kdjax.training.disturbances import disturbed
from kdjax.training.objectives import Objective, student_objective, teacher_objective
from kdjax.training.steps import (
    Corpus,
    TrainState,
    init_state,
    make_optimizer,
)

Settings = Mapping[str, Any]

# Grounds with disturbed copies, by the identity of their ground and the number of copies,
# for as long as the ground is held.
Disturbed = dict[tuple[int, int], "Ground"]

# Each random stream of a run is the seed's key folded with one of these.
TEACHER_INIT, STUDENT_INIT, TEACHER_ORDER, STUDENT_ORDER = range(4)


class Ground(NamedTuple):
    """The rows that a data set's networks learn from, the same for all of them.

    Attributes:
        rows: `[N, D]` float32, scaled.
        fit: `[M]` first rows of the windows to train on.
        validation: `[V]` first rows of the windows to validate on.
        window: L.
        share: of the config's epochs that come to as many steps as at `data.stride`.
        missing: whether rows have NaN cells.
        sound: how many of the windows to train on, the first ones, are as they were
            recorded; the others were disturbed on purpose. None: all.
        sources: of the windows to train and to validate on, where the rows are too many
            for the memory: `rows` then has none, and starts number the windows.
    """

    rows: np.ndarray
    fit: np.ndarray
    validation: np.ndarray
    window: int
    share: float
    missing: bool
    sources: tuple[WindowSource, WindowSource] | None = None
    sound: int | None = None


class Training(NamedTuple):
    """All that decides what a network becomes.

    Attributes:
        name: in the log and below `checkpoints/`.
        architecture: of the network.
        ground: rows and windows.
        seed: decides first parameters and the order of windows.
        init: random stream of the first parameters.
        order: random stream of the order of windows.
        epochs: the most epochs.
        patience: of early stopping; None to use all epochs.
        settings: the config's `train`.
        lesson: of a taught student; None for a network that learns from data alone.
        first: parameters to start from instead of drawn ones.
    """

    name: str
    architecture: Architecture
    ground: Ground
    seed: int
    init: int
    order: int
    epochs: int
    patience: int | None
    settings: Mapping[str, Any]
    lesson: Lesson | None = None
    first: Params | None = None

    @property
    def steps(self) -> int:
        """Steps if no epoch is saved."""
        batches = math.ceil(len(self.ground.fit) / self.settings["batch_size"])
        return int(self.epochs * batches)


class Pace(NamedTuple):
    """How often training looks at a row.

    Attributes:
        stride: of the training windows.
        share: of the config's epochs that come to as many steps as at `data.stride`.
    """

    stride: int
    share: float


def architecture(settings: Settings, name: str, *, width: int) -> Architecture:
    """The shape of `teacher` or `student` for D = `width` channels."""
    hidden = tuple(settings[name]["hidden"])
    return Architecture(width, hidden, **settings["model"])


def has_network(settings: Settings, name: str) -> bool:
    """Whether `teacher` or `student` has a network to train."""
    return NETWORK in settings[name]["parts"]


def training_pace(prepared: Prepared, data: Mapping[str, Any]) -> Pace:
    """The config's own stride; where rows are few 1, for as many steps as without."""
    rows = sum(len(entity.train.values) for entity in prepared.entities)
    if data["train_stride"] or rows >= data["dense_below"]:
        return Pace(int(data["train_stride"] or data["stride"]), 1.0)
    return Pace(1, 1 / data["stride"])


def training_ground(prepared: Prepared, data: Mapping[str, Any]) -> Ground:
    """The windows that `data` settings choose from a data set."""
    pace = training_pace(prepared, data)
    if is_large(prepared, data["memory_bytes"]):
        fit_source = windows_source(prepared, "fit", stride=pace.stride)
        held_out = windows_source(prepared, "validation", stride=data["stride"])
        return Ground(
            np.empty((0, len(prepared.channels)), np.float32),
            np.arange(fit_source.windows),
            np.arange(held_out.windows),
            prepared.window,
            pace.share,
            fit_source.missing,
            (fit_source, held_out),
        )
    rows, fit_starts = training_windows(prepared, "fit", stride=pace.stride)
    _, validation = training_windows(prepared, "validation", stride=data["stride"])
    return Ground(
        rows, fit_starts, validation, prepared.window, pace.share, has_missing(rows)
    )


def disturbed_ground(
    ground: Ground, copies: int, known: Disturbed | None = None
) -> Ground:
    """The ground with so many disturbed copies of its rows, for as many steps.

    The copies are the same whatever the seed, so that a teacher answers once for all
    students. Taken from `known` where it is there, and left there.
    """
    if not copies:
        return ground
    known = {} if known is None else known
    key = (id(ground), copies)
    if key not in known:
        known[key] = _disturbed_ground(ground, copies)
    return known[key]


def _disturbed_ground(ground: Ground, copies: int) -> Ground:
    if ground.sources is not None:
        raise ConfigError(
            f"distill.disturbed_copies={copies} copies rows in memory, and these stay on "
            "disk: set it to 0, or raise data.memory_bytes."
        )
    rows = [ground.rows]
    rows += [
        disturbed(ground.rows, window=ground.window, seed=number)
        for number in range(copies)
    ]
    fit = [ground.fit + number * len(ground.rows) for number in range(copies + 1)]
    return ground._replace(
        rows=np.concatenate(rows),
        fit=np.concatenate(fit).astype(ground.fit.dtype),
        share=ground.share / (copies + 1),
        sound=len(ground.fit),
    )


def teacher_seed(settings: Settings) -> int:
    """The teacher's own seed, or the run's."""
    seed = settings["teacher"]["seed"]
    return int(settings["seed"] if seed is None else seed)


def teacher_training(
    ground: Ground,
    settings: Settings,
    *,
    name: str = "teacher",
    first: Params | None = None,
) -> Training:
    """The teacher's training, which stops early."""
    teacher = settings["teacher"]
    return Training(
        name,
        architecture(settings, "teacher", width=ground.rows.shape[1]),
        ground,
        seed=teacher_seed(settings),
        init=TEACHER_INIT,
        order=TEACHER_ORDER,
        epochs=math.ceil(ground.share * teacher["epochs"]),
        patience=teacher["patience"],
        settings=settings["train"],
        first=first,
    )


def student_training(
    ground: Ground,
    settings: Settings,
    *,
    name: str,
    teacher: ResidualModel | None,
    scorers: tuple[Scorer, ...] = (),
    weights: tuple[float, ...] | None = None,
    first: Params | None = None,
    known: Disturbed | None = None,
) -> Training:
    """A student's training, which uses all its epochs.

    Args:
        ground: rows and windows.
        settings: of its run.
        name: of the training.
        teacher: that it learns from. Without one, and without scorers, it is a student
            of the data alone, which an α of 0 makes of any.
        scorers: that it learns from where the target is `scores`.
        weights: of the scorers, instead of the config's.
        first: parameters to start from.
        known: disturbed grounds that several students may share.
    """
    distill = settings["distill"]
    lesson = None
    if (teacher is not None or scorers) and is_taught(distill):
        lesson = make_lesson(settings, teacher, scorers, weights)
        ground = disturbed_ground(ground, distill["disturbed_copies"], known)
    return Training(
        name,
        architecture(settings, "student", width=ground.rows.shape[1]),
        ground,
        seed=settings["seed"],
        init=STUDENT_INIT,
        order=STUDENT_ORDER,
        epochs=math.ceil(ground.share * settings["student"]["epochs"]),
        patience=None,
        settings=settings["train"],
        lesson=lesson,
        first=first,
    )


def first_state(training: Training) -> TrainState:
    """The state before the first step."""
    key = jax.random.key(training.seed)
    net = network(training.architecture)
    params = training.first or net.init(jax.random.fold_in(key, training.init))
    return init_state(params, optimizer_of(training))


def order_key(training: Training) -> Array:
    """Decides the order of the windows in each epoch."""
    return jax.random.fold_in(jax.random.key(training.seed), training.order)


def objective(training: Training) -> Objective:
    """What the training minimises."""
    net, lesson = network(training.architecture), training.lesson
    if lesson is None:
        return teacher_objective(net)
    return student_objective(
        net,
        lesson.network,
        alpha=lesson.alpha,
        temperature=lesson.temperature,
        temperature_mode=lesson.temperature_mode,
        target=lesson.target,
        alpha_end=lesson.alpha_end,
        temperature_end=lesson.temperature_end,
    )


def soundness(ground: Ground) -> np.ndarray:
    """1 for windows to train on that are as recorded, 0 for disturbed ones; `[M]`."""
    numbers = np.arange(len(ground.fit))
    sound = len(numbers) if ground.sound is None else ground.sound
    return (numbers < sound).astype(np.float32)


def target_bytes(training: Training) -> int:
    """Size of the teachers' answers for all windows to train on; 0 without a lesson."""
    lesson, ground = training.lesson, training.ground
    if lesson is None:
        return 0
    shape = answer_shape(lesson, training.architecture, ground.window)
    return len(ground.fit) * math.prod(shape) * 4


def lesson_targets(training: Training, outputs: Outputs) -> np.ndarray:
    """The teachers' answers for all windows to train on, `[M, …]`.

    Taken from `outputs` where they are known, and left there.
    """
    lesson, ground = training.lesson, training.ground
    assert lesson is not None
    shape = answer_shape(lesson, training.architecture, ground.window)
    key = (*lesson.source, shape, id(ground))
    if key not in outputs:
        corpus = Corpus(
            jnp.asarray(ground.rows), jnp.asarray(ground.fit), missing=ground.missing
        )
        outputs[key] = answers(
            lesson,
            corpus,
            window=ground.window,
            student=training.architecture,
            recorded=len(ground.fit) if ground.sound is None else ground.sound,
        )
    return outputs[key]


def optimizer_of(training: Training) -> Any:
    """The optimizer of all its steps."""
    train = training.settings
    fields = ("learning_rate", "schedule", "warmup_steps", "clip_norm")
    return make_optimizer(
        steps=training.steps, **{field: train[field] for field in fields}
    )
