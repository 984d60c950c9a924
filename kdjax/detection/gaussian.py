"""The Gaussian of residuals (Eq. 1): moments, regularised inverse, whitening matrix.

Moments are computed in pieces and merged (Chan, Golub and LeVeque, 1983): pieces are
centred before they are squared, in float64, and merged in a fixed order, so that the
bits do not depend on the number of processes (`merge_shares`).

Σ is singular where a channel is constant or two are alike, as in most recordings. So,
with s = max(σ, floor) and S = diag(s):

    C = cov((e − μ) / s), shrunk if asked
    L Lᵀ = C + ridge·I
    W = L⁻¹ S⁻¹

WᵀW is the inverse in Eq. 1, and a_t = ‖W(e_t − μ)‖² is never negative. In a channel with
almost no deviation, an error of `floor` counts as one standard deviation. A channel that
was constant in the training rows does not count in a_t: its row and column of W are 0
(`without_channels`).
"""

import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kdjax.data.raw import as_array
from kdjax.errors import ConfigError, DataError, check_choice
from kdjax.training import hosts

# Pieces of each process that are sent together.
_AT_ONCE = 32


class Moments(NamedTuple):
    """Number, mean and scatter of error vectors, from which a Gaussian is fitted."""

    n: int
    mean: np.ndarray  # μ, [D] float64
    scatter: np.ndarray  # sum of (e − μ)(e − μ)ᵀ, [D, D] float64

    @property
    def covariance(self) -> np.ndarray:
        """Σ `[D, D]` by maximum likelihood: the scatter over n."""
        return self.scatter / self.n

    @property
    def deviation(self) -> np.ndarray:
        """σ `[D]`: the roots of Σ's diagonal."""
        return np.sqrt(np.diag(self.covariance))


def moments_of(errors: np.ndarray) -> Moments:
    """Moments of errors `[…, D]`; each leading position is one error vector.

    >>> moments_of(np.array([[1.0], [3.0]])).covariance
    array([[1.]])
    """
    rows = np.asarray(errors, np.float64).reshape(-1, errors.shape[-1])
    if not np.isfinite(rows).all():
        channel = int(np.argmax(~np.isfinite(rows).all(axis=0)))
        raise DataError(
            f"errors of channel {channel + 1} are not finite, so they have no mean. "
            "Correct huge values in the validation rows, or scale them "
            "(data.scaler)."
        )
    if len(rows) == 0:
        return Moments(0, np.zeros(rows.shape[1]), np.zeros((rows.shape[1],) * 2))
    mean = rows.mean(axis=0)
    centred = rows - mean
    return Moments(len(rows), mean, centred.T @ centred)


def merge(first: Moments, second: Moments) -> Moments:
    """Moments of both pieces together."""
    n = first.n + second.n
    if n == 0:
        return first
    shift = second.mean - first.mean
    mean = first.mean + shift * (second.n / n)
    between = np.outer(shift, shift) * (first.n * second.n / n)
    return Moments(n, mean, first.scatter + second.scatter + between)


def merge_all(pieces: Iterable[Moments]) -> Moments:
    """Moments of all pieces, merged from the first to the last."""
    return functools.reduce(merge, pieces)


def merge_shares(own: Iterable[Moments], *, width: int) -> Moments:
    """Moments of the pieces of all processes, merged from the first to the last.

    All processes call it, each with its share of the pieces, in their order (`hosts.share`).

    Args:
        own: pieces of this process: piece i belongs to process i mod n.
        width: D.
    """
    merged, pieces = moments_of(np.empty((0, width))), iter(own)
    while True:
        some = list(itertools.islice(pieces, _AT_ONCE))
        # Numbers [k], means [k, D] and scatters [k, D, D].
        stacked = (
            np.array([piece.n for piece in some], np.int64),
            np.reshape([piece.mean for piece in some], (-1, width)),
            np.reshape([piece.scatter for piece in some], (-1, width, width)),
        )
        shares = hosts.gather(stacked)
        most = max(len(n) for n, _, _ in shares)
        for i, (n, mean, scatter) in itertools.product(range(most), shares):
            if i < len(n):
                merged = merge(merged, Moments(int(n[i]), mean[i], scatter[i]))
        if most < _AT_ONCE:
            return merged


SHRINKAGES = ("none", "ledoit_wolf", "oas")

# W is applied in float32: a direction whose variance is smaller than this share of the
# largest is rounding, although a factor in float64 may exist.
RESOLUTION = float(np.finfo(np.float32).eps) ** 2


class Gaussian(NamedTuple):
    """N(μ, Σ) of errors, ready to score.

    Attributes:
        mean: μ, `[D]` float32.
        whiten: W, `[D, D]` float32, with WᵀW = Σ⁻¹.
    """

    mean: np.ndarray
    whiten: np.ndarray


def fit_gaussian(
    residuals: Array | np.ndarray,
    *,
    floor: float = 0.03,
    ridge: float = 0.1,
    shrinkage: str = "none",
    channels: Sequence[str] | None = None,
) -> Gaussian:
    """N(μ, Σ) of residuals, `[…, D]`, ready to score (Eq. 1).

    Computed once in float64 on the host; not for use under `jit`.

    Args:
        residuals: of validation windows, such as `[M, L, D]`; finite.
        floor: the least standard deviation of a channel, in units of scaled residuals.
        ridge: added to the diagonal of the standardised covariance C.
        shrinkage: `none`, `ledoit_wolf` or `oas`, applied to C.
        channels: the D names, for messages.

    Raises:
        ConfigError: an unknown shrinkage, or C + ridge·I is not positive definite.
        DataError: a residual is not finite.

    >>> gaussian = fit_gaussian(np.array([[1.0], [3.0]]), ridge=0.0)
    >>> gaussian.mean, gaussian.whiten
    (array([2.], dtype=float32), array([[1.]], dtype=float32))
    """
    rows = as_array(residuals)
    moments = moments_of(rows)
    share = shrinkage_share(shrinkage, [rows], moments, floor=floor, rows=moments.n)
    names = channels or [str(number) for number in range(rows.shape[-1])]
    return gaussian_from_moments(
        moments, floor=floor, ridge=ridge, channels=names, shrinkage=share
    )


def shrinkage_share(
    method: str,
    pieces: Iterable[np.ndarray],
    moments: Moments,
    *,
    floor: float,
    rows: int,
) -> float | None:
    """The share of one of `SHRINKAGES`, from the arguments of `ledoit_wolf_shrinkage`.

    None for `none`; `pieces` are read for `ledoit_wolf` only.
    """
    check_choice("shrinkage", method, SHRINKAGES)
    if method == "ledoit_wolf":
        return ledoit_wolf_shrinkage(pieces, moments, floor=floor, rows=rows)
    if method == "oas":
        return oas_shrinkage(moments, floor=floor, rows=rows)
    return None


def gaussian_from_moments(
    moments: Moments,
    *,
    floor: float,
    ridge: float,
    channels: Sequence[str],
    shrinkage: float | None = None,
) -> Gaussian:
    """The Gaussian of residual moments; arguments as of `fit_gaussian`.

    `shrinkage` is the share in [0, 1] by which C is drawn towards tr(C)/D·I.

    Raises:
        ConfigError: C + ridge·I is not positive definite; names the channels.
    """
    scale = np.maximum(moments.deviation, floor)
    dead = [name for name, s in zip(channels, scale, strict=True) if s <= 0]
    if dead:
        raise ConfigError(
            f"detection.floor=0 leaves channels without any deviation: "
            f"{', '.join(dead)}. Set detection.floor above 0 (default 0.03)."
        )
    correlation = standardised_covariance(moments, floor=floor)
    if shrinkage is not None:
        target = np.trace(correlation) / len(scale) * np.eye(len(scale))
        correlation = (1 - shrinkage) * correlation + shrinkage * target
    regularised = correlation + ridge * np.eye(len(scale))
    # Once, in float64 on the CPU: in float32 the factor of a nearly singular matrix has
    # no correct digit, and accelerators have slow float64 or none.
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        factor = jnp.linalg.cholesky(jnp.asarray(regularised, jnp.float64))
        whiten = np.asarray(
            jax.scipy.linalg.solve_triangular(factor, jnp.diag(1 / scale), lower=True)
        )
    smallest, largest = np.linalg.eigvalsh(regularised)[[0, -1]]
    # JAX gives NaN where the matrix is not positive definite; it can't raise.
    if not np.isfinite(whiten).all() or smallest < RESOLUTION * largest:
        # The channels that span the direction of the smallest eigenvalue.
        values, vectors = np.linalg.eigh(regularised)
        direction = np.abs(vectors[:, 0])
        parts = zip(channels, direction, strict=True)
        names = [name for name, part in parts if part > 0.5 * direction.max()]
        raise ConfigError(
            "the covariance of the validation errors is not positive definite: channels "
            f"{', '.join(names)} depend on each other (smallest eigenvalue "
            f"{values[0]:.1e}). Set detection.ridge above 0 (default 0.1) or remove one "
            "of them."
        )
    return Gaussian(moments.mean.astype(np.float32), whiten.astype(np.float32))


def updated_gaussian(gaussian: Gaussian, new: Moments, *, weight: float) -> Gaussian:
    """A Gaussian wider by `weight` times the mean outer product R of residuals about μ.

    Σ' = Σ + weight·R and μ' = μ, so that no a_t rises. With M = I + weight·W R Wᵀ = L Lᵀ,
    W' = L⁻¹ W: channels that W leaves out stay out.

    >>> found = updated_gaussian(
    ...     Gaussian(np.zeros(1), np.ones((1, 1))), moments_of(np.array([[2.0]])), weight=2
    ... )
    >>> float(found.whiten[0, 0])  # Σ' = 1 + 2 · 2² = 3²
    0.3333333432674408
    """
    away, whiten = new.mean - gaussian.mean, np.asarray(gaussian.whiten, np.float64)
    about = whiten @ (new.covariance + np.outer(away, away)) @ whiten.T
    factor = np.linalg.cholesky(np.eye(len(away)) + weight * about)
    return Gaussian(gaussian.mean, np.linalg.solve(factor, whiten).astype(np.float32))


def without_channels(
    gaussian: Gaussian, mean: np.ndarray, scored: np.ndarray
) -> Gaussian:
    """A Gaussian of the scored of D residuals (`[D]` bool) as one of all, with mean `[D]`.

    a_t is that of the scored ones only, since W has zeros elsewhere.
    """
    whiten = np.zeros((len(scored), len(scored)), np.float32)
    whiten[np.ix_(scored, scored)] = gaussian.whiten
    return Gaussian(mean.astype(np.float32), whiten)


def standardised_covariance(moments: Moments, *, floor: float) -> np.ndarray:
    """C, `[D, D]`: covariance of (e − μ) / max(σ, floor)."""
    scale = np.maximum(moments.deviation, floor)
    with np.errstate(divide="ignore", invalid="ignore"):
        return moments.covariance / np.outer(scale, scale)


def floored_channels(
    moments: Moments, *, floor: float, channels: Sequence[str]
) -> list[str]:
    """Names of the channels whose standard deviation is below the floor."""
    deviations = zip(channels, moments.deviation, strict=True)
    return [name for name, deviation in deviations if deviation < floor]


def ledoit_wolf_shrinkage(
    pieces: Iterable[np.ndarray], moments: Moments, *, floor: float, rows: int
) -> float:
    """Shrinkage of Ledoit and Wolf, 2004, Lemma 3.1–3.4, from a second pass.

    `pieces` are the errors `[…, D]` that `moments` were computed from. `rows` is n, the
    number of distinct rows: overlapping windows repeat their rows, and counting repeats
    would underestimate the error of the estimate.
    """
    scale = np.maximum(moments.deviation, floor)
    total = 0.0  # of ‖(e − μ) / s‖⁴
    for piece in pieces:
        standardised = (np.asarray(piece, np.float64) - moments.mean) / scale
        total += float(((standardised**2).sum(axis=-1) ** 2).sum())
    correlation = standardised_covariance(moments, floor=floor)
    width = len(scale)
    squares = float((correlation**2).sum())
    spread = (squares - np.trace(correlation) ** 2 / width) / width
    if spread <= 0:
        return 1.0
    noise = (total / moments.n - squares) / (rows * width)
    return float(np.clip(noise / spread, 0, 1))


def oas_shrinkage(moments: Moments, *, floor: float, rows: int) -> float:
    """Shrinkage of Chen et al., 2010, Eq. 23; `rows` is n as above."""
    correlation = standardised_covariance(moments, floor=floor)
    width = len(correlation)
    mean_square = float((correlation**2).mean())
    squared_mean = (np.trace(correlation) / width) ** 2
    denominator = (rows + 1) * (mean_square - squared_mean / width)
    if denominator <= 0:
        return 1.0
    return float(min((mean_square + squared_mean) / denominator, 1))
