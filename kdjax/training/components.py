"""Fits of what a model joins: baselines, each once to a data set, beside its network."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from kdjax.data.prepared import Prepared, fit_rows, windows_source
from kdjax.data.windowing import has_missing, spread_evenly
from kdjax.errors import ConfigError
from kdjax.models.baselines import BASELINES
from kdjax.models.classifier import NETWORKS, SHORTEST
from kdjax.models.forecasters import FORECASTERS
from kdjax.models.model import Params, fill_missing
from kdjax.models.residual import NETWORK, ResidualModel, join_models
from kdjax.training.classifier import MOST, fit_classifier, most_windows
from kdjax.training.fitting import fit_forecaster

# Fit windows of a baseline that is fitted on windows, spread evenly over all.
FIT_WINDOWS = 2000

# Baselines already fitted to a data set, by kind and options.
Fits = dict[tuple[Any, ...], ResidualModel]
Options = Mapping[str, Any]


def fit_baseline(
    kind: str, prepared: Prepared, *, every: bool = False, **options: Any
) -> ResidualModel:
    """A baseline fitted once to the fit rows of all entities together.

    A classifier learns from validation rows as well, which it has no other use for, and
    with `every` from calibration rows; without, it has half the networks, or two, enough
    to choose τ by. `options`: `classifier` those of `fit_classifier`, `forecast` of
    `fit_forecaster`.
    """
    found, own = BASELINES[kind], options_of(kind, options)
    params: Params = {}
    if found.scores is not None:
        if prepared.window < SHORTEST:
            raise ConfigError(
                f"data.window={prepared.window} is too short for the {kind}, which needs "
                f"windows of {SHORTEST} rows or more: raise it, or use another detector."
            )
        parts = ("fit", "validation", "calibration")[: 3 if every else 2]
        windows = _windows(prepared, parts, 1)
        if not every:
            count = own.get("networks", NETWORKS)
            own = {**own, "networks": min(count, max(2, count // 2))}  # both views
        params = fit_classifier(windows, context=prepared.context, **own)
    elif kind in FORECASTERS:
        windows = _windows(prepared, ("fit",), 1)
        params = fit_forecaster(kind, windows, context=prepared.context, **own)
    elif found.fit_rows is not None:
        params = found.fit_rows(fit_rows(prepared))
    elif found.fit_windows is not None:
        windows = _windows(prepared, ("fit",), prepared.stride, FIT_WINDOWS)
        params = found.fit_windows(windows)
    return ResidualModel(kind, params, context=prepared.context)


def options_of(kind: str, options: Mapping[str, Options]) -> Options:
    """Those of a kind that is trained; none for others."""
    return options.get("forecast" if kind in FORECASTERS else kind, {})


def _windows(
    prepared: Prepared, parts: Sequence[str], stride: int, most: int = MOST
) -> np.ndarray:
    """Scaled windows of parts of the rows, `[M, L, D]`, `most` of them spread evenly."""
    most = most_windows(prepared.window, len(prepared.channels), most)
    sources = [windows_source(prepared, part, stride=stride) for part in parts]
    places = spread_evenly(sum(source.windows for source in sources), most)
    found, first = [], 0
    for source in sources:
        own = places[(places >= first) & (places < first + source.windows)]
        found.append(source.read(own - first))
        first += source.windows
    windows = np.concatenate(found)
    if has_missing(windows):
        return np.asarray(fill_missing(jnp.asarray(windows))[0])
    return windows


def fit_components(
    kinds: Sequence[str],
    prepared: Prepared,
    network: ResidualModel | None,
    *,
    fits: Fits,
    **options: Any,
) -> ResidualModel:
    """The ensemble of these kinds, in order, with the trained network where one is named.

    `fits` has baselines already fitted to these data; new ones are added.
    """
    keys = [(kind, *sorted(options_of(kind, options).items())) for kind in kinds]
    for kind, key in zip(kinds, keys, strict=True):
        if kind != NETWORK and key not in fits:
            fits[key] = fit_baseline(kind, prepared, **options)
    known = {**fits, (NETWORK,): network} if network else fits
    return join_models([known[key] for key in keys])
