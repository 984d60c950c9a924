"""Distillation targets: what a student's outputs are compared with.

A student can be distilled from every model that reconstructs windows: `target_model` makes
a model of a network, a baseline or a weighted mean of several. Targets are computed once
for all students with the same windows (`compute_targets`): X_T or residuals unchanged;
codes as leading principal components, as many as the student's code has numbers; scores as
logarithms of tail probabilities, so that any function that ranks windows can be a
teacher.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from kdjax.data.windowing import gather
from kdjax.errors import ConfigError, DataError
from kdjax.models import residual
from kdjax.models.autoencoder import Architecture, network
from kdjax.models.baselines import BASELINES
from kdjax.models.model import Model, Params, Places
from kdjax.models.residual import NETWORK, ResidualModel
from kdjax.training.batching import WindowDataset
from kdjax.training.steps import dataset_outputs


@functools.lru_cache
def reconstruction_model(kind: str, architecture: Architecture | None = None) -> Model:
    """The model whose `apply` returns X_T of Eq. 2; in an ensemble the first component's."""
    first = residual.components_of(kind)[0]
    if first == NETWORK:
        assert architecture is not None
        return network(architecture)
    reconstruct = BASELINES[first].reconstruct if first in BASELINES else None
    if reconstruct is None:
        known = [name for name, found in BASELINES.items() if found.reconstruct]
        raise ConfigError(
            f"{first!r} has no reconstruction, so no student can be distilled from it: "
            f"put one of {', '.join((NETWORK, *known))} first."
        )
    return _fixed_model(reconstruct)


@functools.lru_cache
def target_model(
    kind: str,
    architecture: Architecture | None = None,
    *,
    target: str = "reconstruction",
    weights: tuple[float, ...] = (),
) -> Model:
    """The model whose head outputs are a kind's targets; its `activate` gives X_T.

    `target` is `reconstruction`, `errors` for residuals, or `hidden` for the code `[B,
    H]` of a network. `weights` are of each component; () takes the first component only,
    with its parameters. If the weights sum to 1, Σ wᵢ·MSE(y, yᵢ) and MSE(y, Σ wᵢ·yᵢ) differ
    by a constant for the student, so the weighted mean of several teachers is the
    target.
    """
    kinds = residual.components_of(kind)
    if target == "hidden":
        if kinds[0] != NETWORK or architecture is None:
            raise ConfigError(
                f"distill.target='hidden' compares the codes of encoders, but {kinds[0]!r} "
                f"has none: put {NETWORK} first in teacher.components."
            )
        encode = network(architecture).encode
        assert encode is not None
        return _fixed_model(encode)

    def function(name: str) -> residual.ResidualFunction:
        if target == "errors":
            residuals = residual.residual_function(name, architecture)
            return lambda params, windows: jnp.abs(residuals(params, windows))
        return reconstruction_model(name, architecture).apply

    if weights:
        terms = [
            (name, weight / sum(weights), function(name))
            for name, weight in zip(kinds, weights, strict=True)
            if weight
        ]

        def mean(params: Params, windows: Array) -> Array:
            parts = (w * own(params.get(name, {}), windows) for name, w, own in terms)
            return functools.reduce(jnp.add, parts)

        return _fixed_model(mean)
    if target == "errors":
        return _fixed_model(function(kinds[0]))
    return reconstruction_model(kinds[0], architecture)


def _fixed_model(function: residual.ResidualFunction) -> Model:
    """A function of parameters and windows as a model, which isn't trained."""
    return Model(lambda key, windows: {}, function)


# Windows `[B, L, D]`, scaled, missing cells NaN, to a score of each row `[B, L]`: larger
# is more abnormal; only the order matters.
ScoreFunction = Callable[[np.ndarray], np.ndarray]

# Targets by their teacher and the identity of the training data, while both exist.
TargetCache = dict[tuple[Any, ...], np.ndarray]

# Standard deviation of the leading component of a code's target. Codes lie in (−1, 1).
_SPREAD = 0.5


class Distillation(NamedTuple):
    """What a student is distilled from, and how; see `kdjax.losses`."""

    teacher: ResidualModel | None  # None with `scorers` alone
    alpha: float  # of Eq. 2
    temperature: float
    temperature_mode: str
    target: str
    # Of the teacher's components, or of the scorers; () for the first component, or for
    # scorers with equal weights.
    weights: tuple[float, ...]
    scorers: tuple[ScoreFunction, ...]  # the teachers where the target is `scores`
    cache_bytes: float  # largest size of kept targets; else each step computes them
    batch_size: int  # windows of a teacher at once

    @property
    def model(self) -> Model:
        """The model whose head outputs are the targets."""
        if self.target == "scores":
            return _NO_TEACHER
        assert self.teacher is not None
        kind, shape = self.teacher.kind, self.teacher.architecture
        return target_model(kind, shape, target=self.target, weights=self.weights)

    @property
    def source(self) -> tuple[Any, ...]:
        """Equal for equal targets of the same windows."""
        if self.target == "scores":
            return (self.target, self.weights, *map(id, self.scorers))
        assert self.teacher is not None
        kind = self.teacher.kind
        return (self.target, self.weights, kind, id(self.teacher.params))


# With scores as targets no teacher is called in a training step.
_NO_TEACHER = _fixed_model(lambda params, windows: windows)


def target_shape(
    distillation: Distillation, student: Architecture, window: int
) -> tuple[int, ...]:
    """The shape of the targets of one window of L = `window` rows."""
    if distillation.target == "scores":
        return (window,)
    if distillation.target != "hidden":
        return (window, student.width)
    assert distillation.teacher is not None
    shapes = (student, distillation.teacher.architecture)
    return (min(_code_width(shape) for shape in shapes if shape is not None),)


def compute_targets(
    distillation: Distillation,
    dataset: WindowDataset,
    *,
    window: int,
    student: Architecture,
    recorded: int,
) -> np.ndarray:
    """Targets of all windows of a dataset, `[M, …]` as in `target_shape`.

    The first `recorded` windows are not augmented; axes of codes and tails of scores come
    from them.
    """
    batch_size, model = distillation.batch_size, distillation.model
    if distillation.target == "scores":
        rows, starts = np.asarray(dataset.rows), np.asarray(dataset.starts)
        weights = np.array(distillation.weights or [1.0] * len(distillation.scorers))
        # Weighted means; 0 in rows where nothing was observed, which don't count.
        total = np.zeros((len(starts), window))
        for scorer, share in zip(
            distillation.scorers, weights / weights.sum(), strict=True
        ):
            scores = np.empty(total.shape)
            for first in range(0, len(starts), batch_size):
                batch = slice(first, first + batch_size)
                windows = gather(rows, starts[batch], window)
                scores[batch] = _scored(scorer, windows, dataset.context)
            known = ~np.isnan(scores)
            usual = scores[:recorded][known[:recorded]]
            total[known] += share * log_tails(scores[known], usual)
        return total.astype(np.float32)
    assert distillation.teacher is not None
    params = distillation.teacher.params
    found = dataset_outputs(
        model, params, dataset, window=window, batch_size=batch_size
    )
    if distillation.target != "hidden":
        return found
    (width,) = target_shape(distillation, student, window)
    return leading_components(found, width, recorded=recorded)


def leading_components(codes: np.ndarray, width: int, *, recorded: int) -> np.ndarray:
    """Principal components of codes `[M, H]`, the first `width` of them, `[M, width]`.

    Axes and mean are those of the first `recorded`. All components have one factor, by
    which the leading one deviates by half the range of a code: a student's code can reach
    it, and components with little variance count little.
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
    """−log of the share of usual scores at least as large, where both counts are one more.

    From 0 for a score not above any to log(n + 1) for one above all n: monotone in the
    scores, and dependent on ranks only.

    >>> log_tails(np.array([0.0, 2.5, 9.0]), np.array([1.0, 2.0, 3.0]))
    array([0.        , 0.69314718, 1.38629436])
    """
    above = len(usual) - np.searchsorted(np.sort(usual), scores, side="left")
    return np.log((len(usual) + 1) / (above + 1))


def _scored(scorer: ScoreFunction, windows: np.ndarray, context: Places) -> np.ndarray:
    found = scorer(windows)
    try:
        scores = np.asarray(found, np.float64)
    except (TypeError, ValueError):
        raise DataError(
            f"a teacher returned {type(found).__name__} for windows of shape "
            f"{windows.shape}: expected numbers, one for each row, {windows.shape[:2]}."
        ) from None
    if scores.shape != windows.shape[:2]:
        raise DataError(
            f"a teacher returned scores of shape {scores.shape} for windows of shape "
            f"{windows.shape}: expected one for each row, {windows.shape[:2]}."
        )
    empty = np.isnan(np.delete(windows, context, axis=2)).all(axis=2)
    if (np.isnan(scores) & ~empty).any():
        raise DataError(
            "a teacher returned NaN as the score of a row that has values: return a number, "
            "larger where the row is more abnormal."
        )
    return scores


def _code_width(architecture: Architecture) -> int:
    copies = architecture.width if architecture.channels == "independent" else 1
    return architecture.hidden[-1] * copies
