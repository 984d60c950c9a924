"""What a student learns from its teachers: who teaches, and what they say of windows.

Teachers answer once for all students that see the same windows. Their answers are kept
as the student is to match them: X_T or errors as they are; codes as leading principal
components, as many as the student's code has numbers; scores as logarithms of tail
probabilities, so that any callable that tells worse windows from better ones can teach.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from kdjax.errors import ConfigError, DataError
from kdjax.models.autoencoder import Architecture, Network
from kdjax.models.residual import ResidualModel, part, parts_of
from kdjax.models.teaching import teaching
from kdjax.training.steps import Corpus, head_outputs

Settings = Mapping[str, Any]

# Windows `[B, L, D]`, scaled, missing cells NaN, to a score of each row `[B, L]`: larger
# is more abnormal, nothing else about it matters.
Scorer = Callable[[np.ndarray], np.ndarray]

# Answers by who gives them and the identity of the windows' ground, for as long as both
# are held.
Outputs = dict[tuple[Any, ...], np.ndarray]

# Standard deviation of the leading component of a code's target. Codes lie in (−1, 1).
_SPREAD = 0.5

# Fields of the config's `distill` that a lesson has under the same name.
_OF_DISTILL = (
    "alpha",
    "alpha_end",
    "temperature",
    "temperature_end",
    "temperature_mode",
    "target",
    "cache_bytes",
)


class Lesson(NamedTuple):
    """What a student learns from its teachers.

    Attributes:
        teacher: a network, or controls that expect something of a window; None where
            only `scorers` teach.
        alpha, alpha_end: of Eq. 2, at the first step and after the last; None: the same.
        temperature, temperature_end: the same of T.
        temperature_mode: see `kdjax.training.objectives`.
        target: see there.
        weights: of the teacher's parts, or of the scorers; () for the first part, or
            for scorers that count the same.
        scorers: that teach, where the target is `scores`.
        cache_bytes: up to where the teachers' answers are kept.
        batch_size: of the windows that a teacher looks at once.
    """

    teacher: ResidualModel | None
    alpha: float
    alpha_end: float | None
    temperature: float
    temperature_end: float | None
    temperature_mode: str
    target: str
    weights: tuple[float, ...]
    scorers: tuple[Scorer, ...]
    cache_bytes: float
    batch_size: int

    @property
    def network(self) -> Network:
        """What says X_T, or what else the target names."""
        if self.target == "scores":
            return _SILENT
        assert self.teacher is not None
        kind, shape = self.teacher.kind, self.teacher.architecture
        return teaching(kind, shape, target=self.target, weights=self.weights)

    @property
    def source(self) -> tuple[Any, ...]:
        """Tells whether two lessons say the same of the same windows."""
        if self.target == "scores":
            return (self.target, self.weights, *map(id, self.scorers))
        assert self.teacher is not None
        kind = self.teacher.kind
        return (self.target, self.weights, kind, id(self.teacher.params))

    @property
    def is_step_by_step(self) -> bool:
        """Whether a training step can ask the teacher anew."""
        return self.target in ("reconstruction", "errors")

    @property
    def is_of_whole_batches(self) -> bool:
        """Whether a window's loss depends on the others of its batch."""
        return self.target == "scores"


# Scores are what the student compares its own with.
_SILENT = Network(
    lambda key: {}, lambda params, windows, forced=False: windows, lambda values: values
)


def is_taught(distill: Settings) -> bool:
    """Whether a config's student has a teacher at any step."""
    return bool(distill["alpha"] > 0 or (distill["alpha_end"] or 0) > 0)


def make_lesson(
    settings: Settings,
    teacher: ResidualModel | None,
    scorers: tuple[Scorer, ...] = (),
    weights: tuple[float, ...] | None = None,
) -> Lesson:
    """The lesson that a config asks for.

    Args:
        settings: of the run.
        teacher: whose first part teaches, or all parts by `distill.weights`.
        scorers: that teach, where the target is `scores`.
        weights: of the scorers, instead of the config's.
    """
    distill = settings["distill"]
    if weights is None:
        weights = tuple(distill["weights"])
    if teacher is not None and not weights:
        teacher = part(teacher, parts_of(teacher.kind)[0])
    return Lesson(
        teacher=teacher,
        weights=weights,
        scorers=scorers,
        batch_size=settings["detection"]["batch_size"],
        **{field: distill[field] for field in _OF_DISTILL},
    )


def answer_shape(lesson: Lesson, student: Architecture, window: int) -> tuple[int, ...]:
    """The shape of what the teachers say of one window.

    Args:
        lesson: whose.
        student: who learns it.
        window: L.
    """
    if lesson.target == "scores":
        return (window,)
    if lesson.target != "hidden":
        return (window, student.width)
    assert lesson.teacher is not None and lesson.teacher.architecture is not None
    return (min(_code_width(student), _code_width(lesson.teacher.architecture)),)


def answers(
    lesson: Lesson,
    corpus: Corpus,
    *,
    window: int,
    student: Architecture,
    recorded: int,
) -> np.ndarray:
    """What the teachers say of all windows of a corpus, `[M, …]` as `answer_shape` says.

    Args:
        lesson: whose.
        corpus: the windows.
        window: L.
        student: who learns it.
        recorded: how many windows, the first ones, are as they were recorded: they say
            what is usual.
    """
    if lesson.target == "scores":
        return _tails(lesson, corpus, window=window, recorded=recorded)
    assert lesson.teacher is not None
    said = head_outputs(
        lesson.network,
        lesson.teacher.params,
        corpus,
        window=window,
        batch_size=lesson.batch_size,
    )
    if lesson.target != "hidden":
        return said
    (width,) = answer_shape(lesson, student, window)
    return leading_components(said, width, recorded=recorded)


def leading_components(codes: np.ndarray, width: int, *, recorded: int) -> np.ndarray:
    """Principal components of codes `[M, H]`, the first `width` of them, `[M, width]`.

    Axes and mean are those of the first `recorded`. All components have one factor, by
    which the leading one deviates by half of what a code can: a student's own code can
    follow, and what hardly varies counts little.
    """
    usual = codes[:recorded].astype(np.float64)
    mean = usual.mean(axis=0)
    _, deviations, axes = np.linalg.svd(usual - mean, full_matrices=False)
    largest = deviations[0] / np.sqrt(len(usual))
    factor = _SPREAD / largest if largest > 0 else 0.0
    found = np.zeros((len(codes), width), np.float32)
    kept = axes[:width]
    found[:, : len(kept)] = (codes - mean) @ kept.T * factor
    return found


def log_tails(scores: np.ndarray, usual: np.ndarray) -> np.ndarray:
    """−log of the share of usual scores at least as large, each counting as one more.

    From 0 for what is as low as any to log(n + 1) for what exceeds all n: monotone in
    the scores, and the same for all that rank alike.

    >>> log_tails(np.array([0.0, 2.5, 9.0]), np.array([1.0, 2.0, 3.0]))
    array([0.        , 0.69314718, 1.38629436])
    """
    behind = np.sort(usual)
    above = len(behind) - np.searchsorted(behind, scores, side="left")
    tails: np.ndarray = np.log((len(behind) + 1) / (above + 1))
    return tails


def _tails(lesson: Lesson, corpus: Corpus, *, window: int, recorded: int) -> np.ndarray:
    """The teachers' log tails, `[M, L]`: their weighted mean."""
    weights = np.array(lesson.weights or [1.0] * len(lesson.scorers))
    tails = [
        _tail(scorer, corpus, lesson.batch_size, window=window, recorded=recorded)
        for scorer in lesson.scorers
    ]
    mean: np.ndarray = np.average(tails, axis=0, weights=weights).astype(np.float32)
    return mean


def _tail(
    scorer: Scorer, corpus: Corpus, batch_size: int, *, window: int, recorded: int
) -> np.ndarray:
    """One scorer's log tails; 0 in rows where nothing was observed, which don't count."""
    rows, starts = np.asarray(corpus.rows), np.asarray(corpus.starts)
    found = np.empty((len(starts), window), np.float64)
    for first in range(0, len(starts), batch_size):
        own = starts[first : first + batch_size]
        windows = rows[own[:, None] + np.arange(window)]
        found[first : first + batch_size] = _scored(scorer, windows)
    known = ~np.isnan(found)
    tails = np.zeros(found.shape)
    usual = found[:recorded][known[:recorded]]
    tails[known] = log_tails(found[known], usual)
    return tails


def _scored(scorer: Scorer, windows: np.ndarray) -> np.ndarray:
    scores = np.asarray(scorer(windows), np.float64)
    if scores.shape != windows.shape[:2]:
        raise DataError(
            f"a teacher gave scores of shape {scores.shape} for windows of shape "
            f"{windows.shape}: expected one for each row, {windows.shape[:2]}."
        )
    if (np.isnan(scores) & ~np.isnan(windows).all(axis=2)).any():
        raise DataError(
            "a teacher gave NaN as the score of a row that has values: give a number, "
            "larger where the row is more abnormal."
        )
    return scores


def check_kept(lesson: Lesson, size: float) -> None:
    """Refuses answers that are too many to keep and that no step can ask for anew."""
    if not lesson.is_step_by_step:
        raise ConfigError(
            f"distill.target={lesson.target!r} asks the teacher once for all windows, "
            f"whose answers take {size / 1e6:,.0f} MB, more than distill.cache_bytes "
            "allows, or whose rows stay on disk: raise distill.cache_bytes or "
            "data.memory_bytes, or take fewer windows by data.train_stride."
        )


def _code_width(architecture: Architecture) -> int:
    copies = architecture.width if architecture.channels == "independent" else 1
    return architecture.hidden[-1] * copies
