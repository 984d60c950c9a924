"""Teacher, student and `student_alone`, trained one after the other.

The student learns from the data and from the teacher (Eq. 2). `student_alone` is its
control: α = 0, with the same initial parameters, batches and number of steps, so that
whatever differs between the two is distillation's.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from rich.console import Console

from kdjax.data.prepared import Prepared, training_windows
from kdjax.data.windows import has_missing
from kdjax.devices import batch_mesh, place
from kdjax.models.autoencoder import Architecture, Network, Params, network
from kdjax.models.residual import ResidualModel
from kdjax.progress import progress_bar
from kdjax.training.feeds import corpus_feed
from kdjax.training.loop import Course, Hooks, fit, resume
from kdjax.training.objectives import (
    Objective,
    student_objective,
    teacher_objective,
    validation_loss,
)
from kdjax.training.steps import (
    Corpus,
    head_outputs,
    init_state,
    make_optimizer,
    make_step,
    make_validate,
)
from kdjax.workdir import append_line, cut_lines

logger = logging.getLogger(__name__)

Settings = Mapping[str, Any]

NETWORKS = ("teacher", "student", "student_alone")

# Each random stream of a run is the seed's key folded with one of these.
TEACHER_INIT, STUDENT_INIT, TEACHER_ORDER, STUDENT_ORDER = range(4)


class Phase(NamedTuple):
    """What tells one of the three trainings from the others.

    Attributes:
        name: in the log and below `checkpoints/`.
        net: the network trained.
        objective: what it minimises.
        init: random stream of its first parameters.
        first: its first parameters; drawn from `init` where they are None.
        order: random stream of its windows' order.
        epochs: the most epochs.
        patience: of early stopping; None to use all epochs.
        windows: number of windows to train on.
        corpus: makes them; not asked where the phase is done.
        teacher: network of the corpus' teacher parameters, if it has any.
    """

    name: str
    net: Network
    objective: Objective
    init: int
    order: int
    epochs: int
    patience: int | None
    windows: int
    corpus: Callable[[], Corpus]
    first: Params | None
    teacher: Network | None = None


def architecture(settings: Settings, name: str, *, width: int) -> Architecture:
    """The shape of `teacher` or `student` for D = `width` channels."""
    hidden = tuple(settings[name]["hidden"])
    return Architecture(width, hidden, **settings["model"])


class Pace(NamedTuple):
    """How often training looks at a row.

    Attributes:
        stride: of the training windows.
        share: of the config's epochs that come to as many steps as at `data.stride`.
    """

    stride: int
    share: float


def training_pace(prepared: Prepared, data: Mapping[str, Any]) -> Pace:
    """The config's own stride; where rows are few 1, for as many steps as without."""
    rows = sum(len(entity.train.values) for entity in prepared.entities)
    if data["train_stride"] or rows >= data["dense_below"]:
        return Pace(int(data["train_stride"] or data["stride"]), 1.0)
    return Pace(1, 1 / data["stride"])


def train_networks(
    prepared: Prepared,
    settings: Settings,
    workdir: Path,
    console: Console,
    *,
    names: Sequence[str] = NETWORKS,
    first: Mapping[str, Params] = MappingProxyType({}),
    teacher: Params | None = None,
) -> dict[str, ResidualModel]:
    """The networks by name, with the parameters of lowest validation loss.

    Args:
        prepared: the data.
        settings: from `kdjax.config.resolve`.
        workdir: where checkpoints and the log are; phases found there go on.
        console: shows progress.
        names: which of `NETWORKS`; a student needs the teacher among them.
        first: parameters that `teacher` and `student` start from, where there are any;
            `student_alone` starts as the student does.
        teacher: parameters of one that is trained already and stays as it is.
    """
    width = len(prepared.channels)
    large = architecture(settings, "teacher", width=width)
    small = architecture(settings, "student", width=width)
    data = settings["data"]
    mesh = batch_mesh(settings["train"]["batch_size"])
    pace = training_pace(prepared, data)
    fit_windows = _corpus(prepared, "fit", pace.stride, mesh)
    validation = _corpus(prepared, "validation", data["stride"], mesh)

    def train(phase: Phase) -> Params:
        return _train(phase, validation, settings, workdir, console, mesh)

    teaching = Phase(
        "teacher",
        network(large),
        teacher_objective(network(large)),
        init=TEACHER_INIT,
        order=TEACHER_ORDER,
        epochs=math.ceil(pace.share * settings["teacher"]["epochs"]),
        patience=settings["teacher"]["patience"],
        windows=len(fit_windows.starts),
        corpus=lambda: fit_windows,
        first=first.get("teacher"),
    )
    taught_by = train(teaching) if teacher is None else teacher
    alone = Phase(
        "student_alone",
        network(small),
        teacher_objective(network(small)),
        init=STUDENT_INIT,
        order=STUDENT_ORDER,
        epochs=math.ceil(pace.share * settings["student"]["epochs"]),
        patience=None,
        windows=len(fit_windows.starts),
        corpus=lambda: fit_windows,
        first=first.get("student"),
    )
    distill = settings["distill"]
    student = alone._replace(
        name="student",
        objective=student_objective(
            network(small),
            network(large),
            alpha=distill["alpha"],
            temperature=distill["temperature"],
            temperature_mode=distill["temperature_mode"],
        ),
        corpus=lambda: _taught(
            fit_windows,
            network(large),
            taught_by,
            window=data["window"],
            batch_size=settings["detection"]["batch_size"],
            cache_bytes=distill["cache_bytes"],
            mesh=mesh,
        ),
        teacher=network(large),
    )
    trained = {"teacher": ResidualModel("autoencoder", taught_by, large)}
    for phase in (student, alone):
        if phase.name in names:
            trained[phase.name] = ResidualModel("autoencoder", train(phase), small)
    return trained


def _corpus(prepared: Prepared, part: str, stride: int, mesh: Mesh | None) -> Corpus:
    rows, starts = training_windows(prepared, part, stride=stride)
    corpus = Corpus(jnp.asarray(rows), jnp.asarray(starts), missing=has_missing(rows))
    return place(corpus, mesh)


def _taught(
    corpus: Corpus,
    net: Network,
    params: Params,
    *,
    window: int,
    batch_size: int,
    cache_bytes: float,
    mesh: Mesh | None,
) -> Corpus:
    """The corpus with the teacher's outputs, or with the teacher if they are too big."""
    windows, width = len(corpus.starts), corpus.rows.shape[1]
    copies = mesh.size if mesh else 1
    size = copies * windows * window * width * corpus.rows.dtype.itemsize
    if size > cache_bytes:
        logger.warning(
            "the teacher's outputs would take %.1f GB, more than distill.cache_bytes: "
            "each step computes its own",
            size / 1e9,
        )
        return corpus.replace(teacher=place(params, mesh))
    targets = head_outputs(net, params, corpus, window=window, batch_size=batch_size)
    return corpus.replace(targets=place(jnp.asarray(targets), mesh))


def _train(
    phase: Phase,
    validation: Corpus,
    settings: Settings,
    workdir: Path,
    console: Console,
    mesh: Mesh | None,
) -> Params:
    """The parameters of lowest validation loss of one phase, as numpy arrays."""
    train, window = settings["train"], settings["data"]["window"]
    batch_size = train["batch_size"]
    key = jax.random.key(settings["seed"])
    windows = phase.windows
    steps_per_epoch = math.ceil(windows / batch_size)
    optimizer = make_optimizer(
        learning_rate=train["learning_rate"],
        schedule=train["schedule"],
        steps=phase.epochs * steps_per_epoch,
        warmup_steps=train["warmup_steps"],
        clip_norm=train["clip_norm"],
    )
    params = phase.first or phase.net.init(jax.random.fold_in(key, phase.init))
    directory = workdir / "checkpoints" / phase.name
    start = resume(directory, init_state(params, optimizer))
    cut_lines(workdir, phase.name, start.course.step)
    if start.course.done:
        console.print(f"{phase.name}: trained already, {_course_text(start.course)}")
        return _on_host(start.best)
    if start.course.step:
        console.print(f"{phase.name}: goes on after step {start.course.step}")
    total = windows * phase.epochs - start.course.step * batch_size
    with progress_bar(console, phase.name, total) as advance:
        fitted = fit(
            start._replace(
                state=place(start.state, mesh), best=place(start.best, mesh)
            ),
            make_step(
                phase.objective,
                optimizer,
                window=window,
                teacher=phase.teacher,
                mesh=mesh,
            ),
            corpus_feed(
                phase.corpus(),
                key=jax.random.fold_in(key, phase.order),
                batch_size=batch_size,
            ),
            make_validate(
                validation_loss(phase.net),
                validation,
                window=window,
                batch_size=batch_size,
                mesh=mesh,
            ),
            epochs=phase.epochs,
            patience=phase.patience,
            directory=directory,
            checkpoint_seconds=train["checkpoint_seconds"],
            log_every=train["log_every"],
            hooks=Hooks(
                log=lambda line: append_line(workdir, {"phase": phase.name, **line}),
                advance=advance,
            ),
        )
    console.print(f"{phase.name}: {_course_text(fitted.course)}")
    return _on_host(fitted.params)


def _on_host(params: Params) -> Params:
    found: Params = jax.device_get(params)
    return found


def _course_text(course: Course) -> str:
    return (
        f"{course.step:,} steps, lowest validation loss {course.best_loss:.6f} after "
        f"epoch {course.best_epoch}"
    )
