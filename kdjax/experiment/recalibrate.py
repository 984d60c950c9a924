"""New thresholds for a saved detector, from new clean rows and without training.

A known entity keeps its scaler and Gaussian and gets a new τ. A new entity gets all three
from its own rows, as in a run.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kdjax.config import completed, resolve
from kdjax.data.prepared import ROWS_PER_CHANNEL, prepare, training_ranges
from kdjax.data.raw import about
from kdjax.data.readers import match_channels, name_of
from kdjax.data.scaler import Scaler
from kdjax.data.series import Dataset, Ranges, Series
from kdjax.data.times import seconds_per_row
from kdjax.data.unchanged import frozen_rows
from kdjax.data.windowing import window_labels
from kdjax.detection.cadence import check_cadence
from kdjax.detection.calibration import calibrate, check_enough, rule_for
from kdjax.detection.detector import POOLED, Detector, score_windows
from kdjax.detection.false_alarms import cross_rates, expected_events
from kdjax.detection.gaussian import Gaussian
from kdjax.detection.reading import read_like
from kdjax.detection.scores import window_scores
from kdjax.detection.storage import load_detector, save_detector
from kdjax.detection.tables import find_windows, usable_spans
from kdjax.detection.thresholds import BY_FOLDS, Threshold, choose_threshold
from kdjax.errors import ArtifactError, ConfigError, counted
from kdjax.experiment.assemble import (
    calibration_rules,
    series_digest,
    settings_alarm_rule,
    threshold_rule,
)
from kdjax.io.files import check_replaceable
from kdjax.io.messages import acting

# Shares of a new entity's rows; nothing is trained on them.
VALIDATION, CALIBRATION = 0.5, 0.4

Settings = Mapping[str, Any]


@acting
def calibrate_file(
    path: str | os.PathLike[str],
    *,
    detector: str | os.PathLike[str],
    output: str | os.PathLike[str],
    entity: str | None = None,
    threshold: Mapping[str, Any],
    **reading: Any,
) -> Iterator[str]:
    """Saves a detector calibrated on a file of clean rows; says what it did.

    `detector` and `output` are folders and may be the same. `entity` names the rows if
    the file has no entity column and the detector has several. `threshold` has changed
    settings; `reading` is for `kdjax.detection.reading.read_like`. `log` takes each
    message as it comes, such as `print`; all are returned.
    """
    check_replaceable(Path(output))
    loaded = load_detector(detector)
    # Rows without a name are those of the only entity.
    usual = name_of(path)
    if not entity and usual not in loaded.entities and len(loaded.entities) == 1:
        (usual,) = loaded.entities
    # A new entity may need float64.
    dtype = loaded.scalers.offset.dtype
    wanted = None if dtype == np.float32 else dtype
    every = read_like(loaded, path, dtype=wanted, entity=entity or usual, **reading)
    if entity and len(every) > 1:
        raise ConfigError(
            f"calibrate: --entity={entity} can't name the rows of {len(every)} entities: "
            "leave it out, or give a file of one."
        )
    for series in every:
        yield from series.notes
        name = entity or series.entity
        if not entity and name == usual and name not in loaded.entities:
            raise ConfigError(
                "calibrate: whose rows are these? Give --entity, one of "
                f"{', '.join(loaded.entities)} for a new threshold, or a new name."
            )
        with about(path):
            loaded, note = recalibrated(
                loaded, series._replace(entity=name), threshold=threshold
            )
        yield note
    save_detector(output, loaded)
    yield f"Written: {output}"


def recalibrated(
    detector: Detector, series: Series, *, threshold: Mapping[str, Any]
) -> tuple[Detector, str]:
    """The detector with a new τ for the entity of `series`, and a note on the change.

    Raises:
        ConfigError: too few rows for the rule, or invalid threshold settings.
        DataError: other channels, another step, or no stretch as long as the window.
    """
    if "settings" not in detector.card:
        raise ArtifactError(
            f"the card of {detector.card.get('title', 'the detector')!r} has no settings, "
            "so it can't be calibrated again: use one that kdjax made."
        )
    own = completed(detector.card["settings"])
    settings = resolve({**own, "threshold": {**own["threshold"], **threshold}})
    series = match_channels(series, detector.channels)
    check_cadence(series.time, detector.step)
    change = _known if series.entity in detector.entities else _added
    detector, tau, note = change(detector, series, settings)
    place = detector.entities.index(series.entity)
    detector = with_rule(with_threshold(detector, place, tau), settings)
    source = {"rows": len(series.values), "sha256": series_digest(series)}
    names, card = (*detector.entities, POOLED), detector.card
    new = {names[i]: source for i in _places(detector, place)}
    again = {**card.get("calibrated_again", {}), **new}
    return detector._replace(card={**card, "calibrated_again": again}), note


def _known(
    detector: Detector, series: Series, settings: Settings
) -> tuple[Detector, Threshold, str]:
    """The detector with calibration scores of a known entity, its new τ, and a note."""
    place = detector.entities.index(series.entity)
    rule = threshold_rule(
        settings,
        step_seconds=seconds_per_row(series.time),
        stride=detector.stride,
        window=detector.window,
    )
    rule = rule_for(detector.model.kind, rule)
    starts = find_windows(detector, series, causal=rule.each_row).starts
    left_out: list[str] = []
    if detector.unchanged is not None:  # frozen rows would move τ
        still, left_out = frozen_rows(
            series.values,
            usable_spans(detector, series),
            detector.unchanged[place],
            window=detector.window,
            channels=detector.channels,
        )
        starts = starts[~window_labels(still, starts, window=detector.window)]
    scores = window_scores(
        score_windows(detector, place, series.values, starts),
        count=detector.allowed_points,
    )
    known = ~np.isnan(scores)
    scores, starts = scores[known], starts[known]
    tau = choose_threshold(scores, rule)
    cross = cross_rates(scores, starts, rule, window=detector.window)
    kept = list(detector.calibration)
    for i in _places(detector, place) if kept else ():
        own = scores if rule.method in BY_FOLDS else np.sort(scores)
        kept[i] = own.astype(np.float32)
    measured = "too few windows"
    if not np.isnan(cross.rate):
        measured = f"{cross.rate:.2%} when fifths are left out in turn"
    expected = expected_events(scores, rule)
    wanted = f"wanted share of false alarms {cross.wanted:.2%}, " * bool(cross.wanted)
    note = (
        f"{series.entity}: τ {detector.thresholds[place].tau:.6g} -> {_text(tau)}; {wanted}"
        f"measured on these rows: {measured}"
        + (f"; {expected}" if expected else "")
        + "".join(f"; left out: {text}" for text in left_out)
    )
    return detector._replace(calibration=tuple(kept)), tau, note


def _added(
    detector: Detector, series: Series, settings: Settings
) -> tuple[Detector, Threshold, str]:
    """The detector with a new entity before the pooled one, its τ, and a note."""
    prepared = prepare(
        Dataset(series.entity, (series,), ()),
        window=detector.window,
        stride=detector.stride,
        max_gap=detector.max_gap,
        validation=VALIDATION,
        calibration=CALIBRATION,
        scaler=settings["data"]["scaler"],
        context=detector.context,
    )
    if prepared.entities[0].pooled:
        raise ConfigError(
            f"calibrate: the rows of {series.entity!r} are too few for a Gaussian of its "
            f"own: half of them must make {ROWS_PER_CHANNEL} complete rows for each of "
            f"the {counted(len(series.channels), 'channel')}, and a window. Give more rows, or "
            f"score them under {POOLED}."
        )
    rules = calibration_rules(settings, prepared)
    check_enough(prepared, rules.threshold)
    found = calibrate(detector.model, prepared, rules)
    tau, last = found.thresholds[0], len(detector.entities)

    def inserted(before: np.ndarray, new: Any) -> np.ndarray:
        # The new entity may need float64.
        before = before.astype(np.result_type(before, new))
        return np.insert(before, last, new[0], axis=0)

    ranges, kept = detector.ranges, list(detector.calibration)
    if ranges is not None:
        ranges = Ranges(*map(inserted, ranges, training_ranges(prepared)))
    constant = detector.constant
    if constant is None:  # a detector of before, whose Gaussians leave out no channel
        constant = np.full((last + 1, len(detector.channels)), np.nan)
    unchanged = detector.unchanged
    if unchanged is not None:
        longest = prepared.entities[0].unchanged
        unchanged = np.insert(unchanged, last, longest, axis=0)
    if kept:
        kept.insert(last, found.threshold_scores[0].astype(np.float32))
    grown = detector._replace(
        entities=(*detector.entities, series.entity),
        scalers=Scaler(*map(inserted, detector.scalers, found.scalers)),
        gaussians=Gaussian(*map(inserted, detector.gaussians, found.gaussians)),
        thresholds=(*detector.thresholds[:last], tau, detector.thresholds[last]),
        ranges=ranges,
        calibration=tuple(kept),
        constant=inserted(constant, found.constant),
        unchanged=unchanged,
    )
    note = f"{series.entity}: a new entity with scaler, Gaussian and τ {_text(tau)}"
    return grown, tau, note


def _text(tau: Threshold) -> str:
    rank = f", the {tau.rank}-th smallest" if tau.rank else ""
    detail = f"; {tau.detail}" if tau.detail else ""
    return f"{tau.tau:.6g} ({tau.method} of {counted(tau.n, 'window')}{rank}{detail})"


def _places(detector: Detector, place: int) -> list[int]:
    """The places of an entity's τ: the pooled one of a single entity is its own."""
    return [place] if len(detector.entities) > 1 else [0, 1]


def with_threshold(detector: Detector, place: int, tau: Threshold) -> Detector:
    """The detector with another τ of an entity, in its card as well."""
    thresholds = list(detector.thresholds)
    for i in _places(detector, place):
        thresholds[i] = tau
    taus = [one._asdict() for one in thresholds]
    named = dict(zip((*detector.entities, POOLED), taus, strict=True))
    card = {**detector.card, "thresholds": named}
    return detector._replace(thresholds=tuple(thresholds), card=card)


def with_rule(detector: Detector, settings: Settings) -> Detector:
    """The detector with the rules of alarms, and in its card those of τ, of settings."""
    threshold, step = settings["threshold"], settings["data"]["step_seconds"]
    detector = with_settings(detector, "data", step_seconds=step)
    return with_settings(detector, "threshold", **threshold)._replace(
        **settings_alarm_rule(settings)._asdict()
    )


def with_settings(detector: Detector, group: str, **fields: Any) -> Detector:
    """The detector with changed settings in its card, if it has any."""
    card = detector.card
    if "settings" not in card:
        return detector
    own = card["settings"]
    changed = {**own, group: {**own.get(group, {}), **fields}}
    return detector._replace(card={**card, "settings": changed})
