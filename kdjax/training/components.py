"""Fits the components of models: baselines, once per data set, and their networks."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from kdjax.data.prepared import Prepared, fit_rows, spans_source, windows_source
from kdjax.data.splits import folds
from kdjax.data.windowing import WindowSource, has_missing, spread_evenly
from kdjax.errors import ConfigError
from kdjax.models.baselines import BASELINES
from kdjax.models.classifier import NETWORKS, SHORTEST, count_numbers
from kdjax.models.forecasters import FORECASTERS, init_forecaster
from kdjax.models.model import Params, fill_missing
from kdjax.models.residual import NETWORK, ResidualModel, join_models
from kdjax.training.fitting import MOST, fit_classifier, fit_forecaster, most_windows

# Most fit windows of a baseline that is fitted on windows, evenly spaced.
FIT_WINDOWS = 2000

# Baselines already fitted to a data set, by kind and options.
Fits = dict[tuple[Any, ...], ResidualModel]
HeldOut = dict[tuple[Any, ...], tuple[ResidualModel, ...]]
Options = Mapping[str, Any]
PARTS = ("fit", "validation", "calibration")
CLASSIFIER_FOLDS = 2  # halves: one is for training while the other is scored


def check_length(window: int) -> None:
    """Raises ConfigError for windows too short for a classifier."""
    if window < SHORTEST:
        raise ConfigError(
            f"data.window={window} is too short for the classifier, which needs at least "
            f"{SHORTEST} rows: raise it, or use another detector."
        )


def fit_baseline(kind: str, prepared: Prepared, **options: Any) -> ResidualModel:
    """A baseline fitted once to the fit rows of all entities together.

    A classifier is trained on all rows: later rows resemble the newest most. Its τ comes
    from `fit_held_out`. `options`: `classifier` those of `fit_classifier`, `forecast` of
    `fit_forecaster`.
    """
    found, own = BASELINES[kind], options_of(kind, options)
    params: Params = {}
    if found.scores is not None:
        check_length(prepared.window)
        sources = [windows_source(prepared, part, stride=1) for part in PARTS]
        params = fit_classifier(
            _windows(prepared, sources), context=prepared.context, **own
        )
    elif kind in FORECASTERS:
        windows = _windows(prepared, [windows_source(prepared, "fit", stride=1)])
        params = fit_forecaster(kind, windows, context=prepared.context, **own)
    elif found.fit_rows is not None:
        params = found.fit_rows(fit_rows(prepared))
    elif found.fit_windows is not None:
        source = windows_source(prepared, "fit", stride=prepared.stride)
        windows = _windows(prepared, [source], FIT_WINDOWS)
        params = found.fit_windows(windows)
    return ResidualModel(kind, params, context=prepared.context)


def fit_held_out(
    kind: str, prepared: Prepared, *, by_folds: bool, **options: Any
) -> tuple[ResidualModel, ...]:
    """Classifiers to choose τ: each is trained without the calibration windows it scores.

    One classifier of the fit and validation rows, or one for each fold of all rows,
    trained without the fold. They have half the networks, at least two: one per view.
    """
    own = options_of(kind, options)
    count = own.get("networks", NETWORKS)
    own = {**own, "networks": min(count, max(2, count // 2))}
    if by_folds:
        halves = [folds(e.train_spans, CLASSIFIER_FOLDS) for e in prepared.entities]
        # Each half is scored by the classifier of the other half.
        groups = [
            [spans_source(prepared, others, stride=1)]
            for others in reversed([*zip(*halves, strict=True)])
        ]
    else:
        groups = [[windows_source(prepared, part, stride=1) for part in PARTS[:2]]]
    found = (
        fit_classifier(_windows(prepared, sources), context=prepared.context, **own)
        for sources in groups
    )
    return tuple(ResidualModel(kind, p, context=prepared.context) for p in found)


def most_numbers(kind: str, window: int, width: int, **options: Any) -> int:
    """Most numbers of a baseline for windows `[L, D]`; `options` of `fit_baseline`."""
    found, own = BASELINES[kind], options_of(kind, options)
    if found.scores is not None:
        return count_numbers(width, own["networks"], own["channels"])
    if kind in FORECASTERS:
        rng, rows = np.random.default_rng(0), np.zeros((1, width))
        drawn = init_forecaster(kind, rng, rows, units=own["units"])
        return ResidualModel(kind, drawn).parameters
    return found.most(window, width)


def options_of(kind: str, options: Mapping[str, Options]) -> Options:
    """The options of a kind that is trained; none for others."""
    return options.get("forecast" if kind in FORECASTERS else kind, {})


def _windows(
    prepared: Prepared, sources: Sequence[WindowSource], most: int = MOST
) -> np.ndarray:
    """Scaled windows of the sources, `[M, L, D]`, at most `most`, evenly spaced."""
    most = most_windows(prepared.window, len(prepared.channels), most)
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
    """The ensemble of these kinds, in order, with the trained network if one is named.

    `fits` has baselines already fitted to these data; new ones are added.
    """
    keys = [(kind, *sorted(options_of(kind, options).items())) for kind in kinds]
    for kind, key in zip(kinds, keys, strict=True):
        if kind != NETWORK and key not in fits:
            fits[key] = fit_baseline(kind, prepared, **options)
    known = {**fits, (NETWORK,): network} if network else fits
    return join_models([known[key] for key in keys])
