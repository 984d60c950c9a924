"""New thresholds for a saved detector, from new clean rows and without training.

A known entity keeps its scaler and Gaussian and gets a new τ. An entity that the detector
doesn't know gets all three, from its own rows and in the way of a run.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdjax.config import completed, resolve
from kdjax.data.prepared import (
    ROWS_PER_CHANNEL,
    Prepared,
    prepare,
    training_ranges,
)
from kdjax.data.raw import about
from kdjax.data.readers import match_channels
from kdjax.data.scaler import Scaler
from kdjax.data.series import Dataset, Ranges, Series
from kdjax.data.times import seconds_per_row
from kdjax.detection.calibration import calibrate, check_enough
from kdjax.detection.detector import POOLED, Detector, score_windows
from kdjax.detection.false_alarms import cross_rates
from kdjax.detection.gaussian import Gaussian
from kdjax.detection.scores import window_scores
from kdjax.detection.storage import check_replaceable, load_detector, save_detector
from kdjax.detection.tables import find_windows, read_like
from kdjax.detection.thresholds import Rule, Threshold, choose_threshold
from kdjax.errors import ArtifactError, ConfigError
from kdjax.experiment.assemble import calibration_rules, series_digest, threshold_rule

# Shares of a new entity's rows: nothing is trained on them, so most can serve for the
# Gaussian and for τ.
VALIDATION, CALIBRATION = 0.5, 0.4

Settings = Mapping[str, Any]


class Recalibrated(NamedTuple):
    """A detector with new thresholds.

    Attributes:
        detector: the new one; the old one is as it was.
        notes: what changed, for the user.
    """

    detector: Detector
    notes: tuple[str, ...]


def calibrate_file(
    path: str | os.PathLike[str],
    *,
    detector: str | os.PathLike[str],
    output: str | os.PathLike[str],
    entity: str | None = None,
    threshold: Mapping[str, Any],
    **columns: str,
) -> Iterator[str]:
    """Saves a detector calibrated on a file of clean rows; yields what to say.

    Args:
        path: CSV, Parquet or `.npy` file of normal behaviour.
        detector: folder of a saved detector.
        output: folder of the new one; may be the same.
        entity: whose rows they are; needed where the file doesn't tell and the detector
            knows several.
        threshold: settings of the threshold that differ from the detector's own.
        columns: for `kdjax.detection.tables.read_like`.
    """
    check_replaceable(Path(output))
    loaded = load_detector(detector)
    found = read_like(loaded, path, **columns)
    if entity and len(found) > 1:
        raise ConfigError(
            f"calibrate: --entity={entity} can't name the rows of {len(found)} entities: "
            "leave it out, or give a file of one."
        )
    for series in found:
        yield from series.notes
        name = entity or _entity(loaded, series, named=bool(columns["entity_column"]))
        with about(path):
            loaded, notes = recalibrated(
                loaded, series._replace(entity=name), threshold=threshold
            )
        yield from notes
    save_detector(output, loaded)
    yield f"Written: {output}"


def recalibrated(
    detector: Detector, series: Series, *, threshold: Mapping[str, Any]
) -> Recalibrated:
    """The detector with a new τ for the entity of `series`, known to it or new.

    Raises:
        ConfigError: too few rows for the rule, or threshold settings that don't fit.
        DataError: other channels, or no stretch as long as the window.
    """
    settings = _settings(detector, threshold)
    series = match_channels(series, detector.channels)
    if series.entity in detector.entities:
        return _known(detector, series, settings)
    return _added(detector, series, settings)


def _entity(detector: Detector, series: Series, *, named: bool) -> str:
    """Whose rows they are: as the file says, or the only one there is."""
    if named or series.entity in detector.entities:
        return series.entity
    if len(detector.entities) == 1:
        return detector.entities[0]
    raise ConfigError(
        f"calibrate: whose rows are these? Give --entity, one of "
        f"{', '.join(detector.entities)} for a new threshold, or a new name."
    )


def _settings(detector: Detector, threshold: Mapping[str, Any]) -> Settings:
    """The detector's own settings with changes to its threshold, checked."""
    if "settings" not in detector.card:
        raise ArtifactError(
            f"the card of {detector.card.get('title', 'the detector')!r} has no settings, "
            "so it can't be calibrated again: use one that kdjax made."
        )
    own = completed(detector.card["settings"])
    return resolve({**own, "threshold": {**own["threshold"], **threshold}})


def _known(detector: Detector, series: Series, settings: Settings) -> Recalibrated:
    place = detector.entities.index(series.entity)
    windows = find_windows(detector, series, causal=False)
    scores = window_scores(
        score_windows(detector, place, series.values, windows.starts),
        count=detector.allowed_points,
    )
    known = ~np.isnan(scores)
    scores, starts = scores[known], windows.starts[known]
    rule = _rule(detector, series, settings)
    tau = choose_threshold(scores, rule)
    places = [place]
    if len(detector.entities) == 1:
        places.append(place + 1)  # The pooled τ is that of the only entity.
    threshold_scores = np.sort(scores).astype(np.float32)
    cross = cross_rates(scores, starts, rule, window=detector.window)
    changed = _with_thresholds(
        detector,
        dict.fromkeys(places, tau),
        dict.fromkeys(places, threshold_scores),
        settings,
        series,
    )
    realised = "too few to tell"
    if not np.isnan(cross.rate):
        realised = f"{cross.rate:.2%} when fifths are left out in turn"
    old = detector.thresholds[place].tau
    said = (
        f"{series.entity}: τ {old:.6g} -> {_words(tau)}; wanted share of false alarms "
        f"{cross.wanted:.2%}, realised on these rows: {realised}"
    )
    return Recalibrated(changed, (said,))


def _words(tau: Threshold) -> str:
    rank = f", the {tau.rank}-th smallest" if tau.rank else ""
    detail = f"; {tau.detail}" if tau.detail else ""
    return f"{tau.tau:.6g} ({tau.method} of {tau.n:,} windows{rank}{detail})"


def _rule(detector: Detector, series: Series, settings: Settings) -> Rule:
    return threshold_rule(
        settings,
        step_seconds=seconds_per_row(series.time),
        stride=detector.stride,
    )


def _with_thresholds(
    detector: Detector,
    thresholds: Mapping[int, Threshold],
    threshold_scores: Mapping[int, np.ndarray],
    settings: Settings,
    series: Series,
) -> Detector:
    names = [*detector.entities, POOLED]
    card = detector.card
    places = range(len(names))
    taus = tuple(thresholds.get(i, detector.thresholds[i]) for i in places)
    calibration = detector.calibration
    if calibration:
        calibration = tuple(threshold_scores.get(i, calibration[i]) for i in places)
    return detector._replace(
        thresholds=taus,
        calibration=calibration,
        min_duration=settings["threshold"]["min_duration"],
        cooldown=settings["threshold"]["cooldown"],
        card={
            **card,
            "thresholds": {
                name: tau._asdict() for name, tau in zip(names, taus, strict=True)
            },
            "calibrated_again": {
                **card.get("calibrated_again", {}),
                **{names[i]: _origin_of(series) for i in thresholds},
            },
            "settings": {**card["settings"], "threshold": settings["threshold"]},
        },
    )


def _origin_of(series: Series) -> dict[str, Any]:
    return {"rows": len(series.values), "sha256": series_digest(series)}


def _added(detector: Detector, series: Series, settings: Settings) -> Recalibrated:
    """A new entity's scaler, Gaussian and τ before the pooled ones."""
    prepared = prepare(
        Dataset(series.entity, (series,), ()),
        window=detector.window,
        stride=detector.stride,
        max_gap=detector.max_gap,
        validation=VALIDATION,
        calibration=CALIBRATION,
        scaler=settings["data"]["scaler"],
    )
    if prepared.entities[0].pooled:
        raise ConfigError(
            f"calibrate: the rows of {series.entity!r} are too few for a Normal of its "
            f"own: half of them must make {ROWS_PER_CHANNEL} complete rows for each of "
            f"the {len(series.channels)} channels, and a window. Give more rows, or "
            f"score them under {POOLED}."
        )
    rules = calibration_rules(settings, prepared)
    check_enough(prepared, rules.threshold)
    found = calibrate(detector.model, prepared, rules)
    tau = found.thresholds[0]
    last = len(detector.entities)
    grown = detector._replace(
        entities=(*detector.entities, series.entity),
        scalers=Scaler(*_inserted(detector.scalers, found.scalers, last)),
        gaussians=Gaussian(*_inserted(detector.gaussians, found.gaussians, last)),
        thresholds=(*detector.thresholds[:last], tau, detector.thresholds[last]),
        ranges=_ranges(detector, prepared, last),
        calibration=(
            *detector.calibration[:last],
            found.threshold_scores[0].astype(np.float32),
            *detector.calibration[last:],
        )
        if detector.calibration
        else (),
    )
    return Recalibrated(
        _with_thresholds(grown, {last: tau}, {}, settings, series),
        (f"{series.entity}: a new entity with scaler, Normal and τ {_words(tau)}",),
    )


def _inserted(old: Any, new: Any, place: int) -> Iterator[np.ndarray]:
    for before, found in zip(old, new, strict=True):
        yield np.concatenate([before[:place], found[:1], before[place:]])


def _ranges(detector: Detector, prepared: Prepared, place: int) -> Ranges | None:
    if detector.ranges is None:
        return None
    return Ranges(*_inserted(detector.ranges, training_ranges(prepared), place))
