"""What a teacher says of windows, in the form in which a student is to match it.

A student can learn from whatever expects something of a row, not only from networks:
`reconstruction_network` puts X_T of Eq. 2 in a network's place. `teaching` does so for the other
targets of distillation, and for several teachers with weights.

What a student learns from its teachers: who teaches, and what they say of windows.

Teachers answer once for all students that see the same windows. Their answers are kept
as the student is to match them: X_T or errors as they are; codes as leading principal
components, as many as the student's code has numbers; scores as logarithms of tail
probabilities, so that any callable that tells worse windows from better ones can teach.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from kdjax.errors import ConfigError, DataError
from kdjax.models.autoencoder import (
    Architecture,
    Network,
    Params,
    network,
)
from kdjax.models.baselines import RECONSTRUCTIONS
from kdjax.models.residual import (
    NETWORK,
    ResidualFunction,
    ResidualModel,
    component,
    components_of,
    residual_function,
)
from kdjax.training.steps import WindowDataset, head_outputs

# `scores` have no function here: any callable gives them.
TARGETS = ("reconstruction", "errors", "hidden", "scores")


@functools.lru_cache
def reconstruction_network(
    kind: str, architecture: Architecture | None = None
) -> Network:
    """What a kind expects of windows, as a network without a head's activation.

    Of joined kinds it is what the first part expects.
    """
    first = components_of(kind)[0]
    if first == NETWORK:
        assert architecture is not None
        return network(architecture)
    if first not in RECONSTRUCTIONS:
        raise ConfigError(
            f"{first!r} expects nothing of a row, so no student can learn from it: "
            f"name one of {', '.join((NETWORK, *RECONSTRUCTIONS))} first."
        )
    return _untrained(RECONSTRUCTIONS[first], first)


@functools.lru_cache
def target_network(
    kind: str,
    architecture: Architecture | None = None,
    *,
    target: str = "reconstruction",
    weights: tuple[float, ...] = (),
) -> Network:
    """What a kind says of windows for a target; its `activate` makes that X_T.

    Args:
        kind: of the teacher.
        architecture: of its network, where it has one.
        target: `reconstruction`, `errors` for |X − X_T|, or `hidden` for the code
            `[B, H]` of a network.
        weights: of each of the kind's parts; () for the first part alone, whose
            parameters then are the only ones. Σ wᵢ·MSE(y, yᵢ) and MSE(y, Σ wᵢ·yᵢ) with
            weights that sum to 1 differ by what no student can change, so several
            teachers say their weighted mean.
    """
    if target == "hidden":
        return _encoder(kind, architecture)
    if not weights:
        first = components_of(kind)[0]
        if target == "errors":
            return _untrained(_absolute_errors(first, architecture), first)
        return reconstruction_network(first, architecture)
    functions = [
        _absolute_errors(name, architecture)
        if target == "errors"
        else _expectation(name, architecture)
        for name in components_of(kind)
    ]
    return _untrained(_blend(components_of(kind), functions, weights), kind)


def _encoder(kind: str, architecture: Architecture | None) -> Network:
    first = components_of(kind)[0]
    if first != NETWORK or architecture is None:
        raise ConfigError(
            f"distill.target='hidden' compares what encoders make of a window, and "
            f"{first!r} has none: name {NETWORK} first in teacher.components."
        )
    net = network(architecture)

    def codes(params: Params, windows: Array) -> Array:
        assert net.coded is not None
        return net.coded(params, windows)[1]

    return _untrained(codes, kind)


def _absolute_errors(kind: str, architecture: Architecture | None) -> ResidualFunction:
    function = residual_function(kind, architecture)

    def errors(params: Params, windows: Array) -> Array:
        return jnp.abs(function(params, windows))

    return errors


def _expectation(kind: str, architecture: Architecture | None) -> ResidualFunction:
    net = reconstruction_network(kind, architecture)

    def expected(params: Params, windows: Array) -> Array:
        return net.activate(net.outputs(params, windows))

    return expected


def _blend(
    kinds: Sequence[str],
    functions: Sequence[ResidualFunction],
    weights: tuple[float, ...],
) -> ResidualFunction:
    total = sum(weights)

    def blended(params: Params, windows: Array) -> Array:
        said = [
            weight / total * function(params.get(kind, {}), windows)
            for kind, function, weight in zip(kinds, functions, weights, strict=True)
            if weight
        ]
        return functools.reduce(jnp.add, said)

    return blended


def _untrained(function: ResidualFunction, kind: str) -> Network:
    """A function of parameters and windows in a network's place."""

    def outputs(params: Params, windows: Array, forced: bool = False) -> Array:
        return function(params, windows)

    def init(key: Array) -> Params:
        raise ConfigError(f"{kind!r} is fitted, not trained.")

    return Network(init, outputs, lambda values: values)


Settings = Mapping[str, Any]

# Windows `[B, L, D]`, scaled, missing cells NaN, to a score of each row `[B, L]`: larger
# is more abnormal, nothing else about it matters.
ScoreFunction = Callable[[np.ndarray], np.ndarray]

# Answers by who gives them and the identity of the windows' ground, for as long as both
# are held.
TargetCache = dict[tuple[Any, ...], np.ndarray]

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


class Distillation(NamedTuple):
    """What a student learns from its teachers.

    Attributes:
        teacher: a network, or baselines that expect something of a window; None where
            only `scorers` teach.
        alpha, alpha_end: of Eq. 2, at the first step and after the last; None: the same.
        temperature, temperature_end: the same of T.
        temperature_mode: see `kdjax.losses`.
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
    scorers: tuple[ScoreFunction, ...]
    cache_bytes: float
    batch_size: int

    @property
    def network(self) -> Network:
        """What says X_T, or what else the target names."""
        if self.target == "scores":
            return _SILENT
        assert self.teacher is not None
        kind, shape = self.teacher.kind, self.teacher.architecture
        return target_network(kind, shape, target=self.target, weights=self.weights)

    @property
    def source(self) -> tuple[Any, ...]:
        """Tells whether two lessons say the same of the same windows."""
        if self.target == "scores":
            return (self.target, self.weights, *map(id, self.scorers))
        assert self.teacher is not None
        kind = self.teacher.kind
        return (self.target, self.weights, kind, id(self.teacher.params))

    @property
    def computes_per_step(self) -> bool:
        """Whether a training step can ask the teacher anew."""
        return self.target in ("reconstruction", "errors")

    @property
    def needs_whole_batches(self) -> bool:
        """Whether a window's loss depends on the others of its batch."""
        return self.target == "scores"


# Scores are what the student compares its own with.
_SILENT = Network(
    lambda key: {}, lambda params, windows, forced=False: windows, lambda values: values
)


def is_distilled(distill: Settings) -> bool:
    """Whether a config's student has a teacher at any step."""
    return bool(distill["alpha"] > 0 or (distill["alpha_end"] or 0) > 0)


def make_distillation(
    settings: Settings,
    teacher: ResidualModel | None,
    scorers: tuple[ScoreFunction, ...] = (),
    weights: tuple[float, ...] | None = None,
) -> Distillation:
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
        teacher = component(teacher, components_of(teacher.kind)[0])
    return Distillation(
        teacher=teacher,
        weights=weights,
        scorers=scorers,
        batch_size=settings["detection"]["batch_size"],
        **{field: distill[field] for field in _OF_DISTILL},
    )


def target_shape(
    distillation: Distillation, student: Architecture, window: int
) -> tuple[int, ...]:
    """The shape of what the teachers say of one window.

    Args:
        lesson: whose.
        student: who learns it.
        window: L.
    """
    if distillation.target == "scores":
        return (window,)
    if distillation.target != "hidden":
        return (window, student.width)
    assert (
        distillation.teacher is not None
        and distillation.teacher.architecture is not None
    )
    return (min(_code_width(student), _code_width(distillation.teacher.architecture)),)


def compute_targets(
    distillation: Distillation,
    dataset: WindowDataset,
    *,
    window: int,
    student: Architecture,
    recorded: int,
) -> np.ndarray:
    """What the teachers say of all windows of a dataset, `[M, …]` as `target_shape` says.

    Args:
        lesson: whose.
        dataset: the windows.
        window: L.
        student: who learns it.
        recorded: how many windows, the first ones, are as they were recorded: they say
            what is usual.
    """
    if distillation.target == "scores":
        return _tails(distillation, dataset, window=window, recorded=recorded)
    assert distillation.teacher is not None
    said = head_outputs(
        distillation.network,
        distillation.teacher.params,
        dataset,
        window=window,
        batch_size=distillation.batch_size,
    )
    if distillation.target != "hidden":
        return said
    (width,) = target_shape(distillation, student, window)
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
    threshold_scores = np.sort(usual)
    above = len(threshold_scores) - np.searchsorted(
        threshold_scores, scores, side="left"
    )
    tails: np.ndarray = np.log((len(threshold_scores) + 1) / (above + 1))
    return tails


def _tails(
    distillation: Distillation, dataset: WindowDataset, *, window: int, recorded: int
) -> np.ndarray:
    """The teachers' log tails, `[M, L]`: their weighted mean."""
    weights = np.array(distillation.weights or [1.0] * len(distillation.scorers))
    tails = [
        _tail(
            scorer, dataset, distillation.batch_size, window=window, recorded=recorded
        )
        for scorer in distillation.scorers
    ]
    mean: np.ndarray = np.average(tails, axis=0, weights=weights).astype(np.float32)
    return mean


def _tail(
    scorer: ScoreFunction,
    dataset: WindowDataset,
    batch_size: int,
    *,
    window: int,
    recorded: int,
) -> np.ndarray:
    """One scorer's log tails; 0 in rows where nothing was observed, which don't count."""
    rows, starts = np.asarray(dataset.rows), np.asarray(dataset.starts)
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


def _scored(scorer: ScoreFunction, windows: np.ndarray) -> np.ndarray:
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


def check_cacheable(distillation: Distillation, size: float) -> None:
    """Refuses answers that are too many to keep and that no step can ask for anew."""
    if not distillation.computes_per_step:
        raise ConfigError(
            f"distill.target={distillation.target!r} asks the teacher once for all windows, "
            f"whose answers take {size / 1e6:,.0f} MB, more than distill.cache_bytes "
            "allows, or whose rows stay on disk: raise distill.cache_bytes or "
            "data.memory_bytes, or take fewer windows by data.train_stride."
        )


def _code_width(architecture: Architecture) -> int:
    copies = architecture.width if architecture.channels == "independent" else 1
    return architecture.hidden[-1] * copies
