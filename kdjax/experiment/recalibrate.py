"""New thresholds for a saved detector, from new clean rows and without training.

A known entity keeps its scaler and Gaussian and gets a new τ. A new entity gets all three
from its own rows, as in a run, and starts with the pooled ones if they are too few.
"""

import bisect
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdjax.config import check_budget, completed, resolve
from kdjax.data.prepared import prepare, spans_of_its_own, training_ranges
from kdjax.data.raw import about
from kdjax.data.readers import match_channels, name_of, row_spans
from kdjax.data.scaler import Scaler, apply_scaler
from kdjax.data.series import Dataset, Ranges, Series, outside, ranges_of
from kdjax.data.splits import cover_starts
from kdjax.data.times import seconds_per_row
from kdjax.data.unchanged import frozen_rows, runs_within
from kdjax.data.windowing import span_pieces, window_labels
from kdjax.detection.cadence import check_cadence
from kdjax.detection.calibration import calibrate, fold_starts, rule_for
from kdjax.detection.detector import (
    BATCH_SIZE,
    POOLED,
    Detector,
    entity_index,
    gaussian_of,
    residual_batches,
    scaler_of,
    score_windows,
)
from kdjax.detection.false_alarms import cross_rates, expected_events
from kdjax.detection.gaussian import (
    Gaussian,
    Moments,
    merge,
    moments_of,
    updated_gaussian,
)
from kdjax.detection.occurrences import ALL, has_moved
from kdjax.detection.reading import read_like
from kdjax.detection.scores import window_scores
from kdjax.detection.storage import load_detector, save_detector
from kdjax.detection.tables import find_windows, score_table, usable_spans
from kdjax.detection.thresholds import (
    BLOCKS,
    BY_FOLDS,
    MOST_ABOVE,
    Rule,
    Threshold,
    choose_threshold,
    find_threshold,
    needed,
)
from kdjax.errors import ArtifactError, ConfigError, DataError, counted
from kdjax.experiment.assemble import (
    calibration_rules,
    series_digest,
    settings_alarm_rule,
    threshold_rule,
)
from kdjax.io.files import check_replaceable
from kdjax.io.messages import acting
from kdjax.metrics.checks import runs
from kdjax.models.residual import gives_scores

# Allowed difference of a window's scores between batches and devices.
ROUNDING = 1e-4
# The least weight of confirmed residuals, which doubles up to 1.
LEAST_WEIGHT = 2.0**-16
# A τ that rises to more than so many times of before is a warning.
MUCH = 1.05
# Left-out false alarms, as a multiple of those wanted, that anomalous rows would explain.
SUSPICIOUS = 3

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
    confirmed_normal: str | os.PathLike[str] = "",
    threshold: Mapping[str, Any],
    **reading: Any,
) -> Iterator[str]:
    """Saves a detector calibrated on a file of clean rows; reports the results.

    With `confirmed_normal`, a CSV of spans as `exclude` is, only rows in them are clean
    and the detector is updated with these, see `confirm_normal`.

    `detector` and `output` are folders and may be the same. `entity` names the rows if
    the file has no entity column and the detector has several. `threshold` has changed
    settings; `reading` is for `kdjax.detection.reading.read_like`. `log`, such as `print`,
    receives each message at once; all are returned.
    """
    check_replaceable(Path(output))
    loaded = load_detector(detector)
    # Rows without a name belong to the only entity.
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
            "remove it, or give a file of one entity."
        )
    spans: Sequence[np.ndarray] = [np.empty((0, 2), np.int64)] * len(every)
    if given := str(confirmed_normal):
        if threshold:
            raise ConfigError(
                "calibrate: --confirmed_normal doesn't change the rule of the threshold: "
                "change it with calibrate on clean rows."
            )
        (spans,), missed = row_spans([every], Path(given), also=name_of(path))
        if missed or not sum(map(len, spans)):
            raise DataError(f"{given}: {missed or 'no span'}: correct the spans.")
    for series, own in zip(every, spans, strict=True):
        if given and not len(own):
            continue
        yield from series.notes
        name = entity or series.entity
        if not entity and name == usual and name not in loaded.entities:
            raise ConfigError(
                "calibrate: the rows have no entity: give --entity, one of "
                f"{', '.join(loaded.entities)} for a new threshold, or a new name."
            )
        with about(path):
            series = series._replace(entity=name)
            if given:
                loaded, note = confirm_normal(loaded, series, own)
            else:
                loaded, note = recalibrated(loaded, series, threshold=threshold)
        yield note
    save_detector(output, loaded)
    yield f"Written: {output}"


def recalibrated(
    detector: Detector, series: Series, *, threshold: Mapping[str, Any]
) -> tuple[Detector, str]:
    """The detector with a new τ for the entity of `series`, and a note on the change.

    Raises:
        ConfigError: too few rows for the rule, or invalid threshold settings.
        DataError: other channels, another step, or no span as long as the window.
    """
    settings = _settings(detector, **threshold)
    check_budget([f"threshold.{name}" for name in threshold], settings)
    series = match_channels(series, detector.channels)
    check_cadence(series.time, detector.step)
    name, scope = series.entity, settings["detection"]["scope"]
    if name == POOLED:
        raise ConfigError(f"calibrate: {POOLED!r} can't be an --entity: give another.")
    known = name in detector.entities
    if not known:
        detector = _with_entity(detector, name)
    place = detector.entities.index(name)
    rule = rule_of(detector, settings, step_seconds=seconds_per_row(series.time))
    # Whether its rows are too few: for a Gaussian, or for τ since it was added.
    source = detector.thresholds[place].source
    starts = len(detector.entities) > 1 and source == "pooled" != scope
    borrows = source == "shared" and name in detector.card.get("calibrated_again", {})
    goes_on = not borrows or _windows(detector, series, rule) < 0
    change = _known if known and not starts and goes_on else _own
    detector, tau, note = change(detector, place, series, rule, settings)
    detector = with_rule(with_threshold(detector, place, tau), settings)
    rows = {"rows": len(series.values), "sha256": series_digest(series), "note": note}
    names, card = (*detector.entities, POOLED), detector.card
    new = {names[i]: rows for i in _places(detector, place)}
    again = {**card.get("calibrated_again", {}), **new}
    return detector._replace(card={**card, "calibrated_again": again}), note


def _settings(detector: Detector, **threshold: Any) -> dict[str, Any]:
    """Settings of the detector's card, with changes of those of τ."""
    if "settings" not in detector.card:
        raise ArtifactError(
            f"the card of {detector.card.get('title', 'the detector')!r} has no settings, "
            "so it can't be calibrated again: use one that kdjax made."
        )
    own = completed(detector.card["settings"])
    return resolve({**own, "threshold": {**own["threshold"], **threshold}})


def _known(
    detector: Detector, place: int, series: Series, rule: Rule, settings: Settings
) -> tuple[Detector, Threshold, str]:
    """The detector with calibration scores of a known entity, its new τ, and a note."""
    if gives_scores(detector.model.kind) and _is_training(detector, series):
        return _by_known_scores(detector, place, series, rule)
    starts = find_windows(detector, series, causal=rule.each_row).starts
    left_out: list[str] = []
    if detector.unchanged is not None:  # frozen rows would change τ
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
    kept = _with_scores(detector, place, scores, rule)
    note = (
        f"{series.entity}: τ {detector.thresholds[place].tau:.6g} -> {_text(tau)}"
        + _measured(scores, starts, rule, window=detector.window)
        + "".join(f"\n  left out: {text}" for text in left_out)
    )
    return detector._replace(calibration=kept), tau, note


def _is_training(detector: Detector, series: Series) -> bool:
    """Whether these are the rows that the detector was trained on."""
    digests = detector.card.get("data", {}).get("sha256") or {}
    return bool(digests.get(f"train/{series.entity}") == series_digest(series))


def _by_known_scores(
    detector: Detector, place: int, series: Series, rule: Rule
) -> tuple[Detector, Threshold, str]:
    """The detector, a new τ of the scores of training, and a note.

    Networks that tell normal windows from others give those that they learned scores that
    are too low. The scores of training are from networks that had not seen the window.
    """
    before, name = detector.thresholds[place], series.entity
    same = (before.method, before.spacing) == (rule.method, int(rule.each_row))
    if not detector.calibration or (rule.method in BY_FOLDS and not same):
        raise ConfigError(
            f"calibrate: {name} has the rows that the detector learned from, and their "
            "scores are too low to choose a threshold: give normal rows recorded "
            f"later, or train with --config.threshold.method={rule.method}."
        )
    scores = detector.calibration[place]
    tau = choose_threshold(scores, rule)._replace(spacing=before.spacing)
    note = f"{name}: τ {before.tau:.6g} -> {_text(tau)}, by the scores of training"
    expected = expected_events(scores, rule) if same else None
    return detector, tau, note + (f"; {expected}" if expected else "")


def _measured(
    scores: np.ndarray, starts: np.ndarray, rule: Rule, *, window: int
) -> str:
    """What to expect of a τ by its calibration scores, as the second line of a note."""
    cross = cross_rates(scores, starts, rule, window=window)
    measured = "too few windows"
    if not np.isnan(cross.rate):
        measured = f"{cross.rate:.2%} false alarms when fifths are left out in turn"
        measured += f", wanted {cross.wanted:.2%}" * bool(cross.wanted)
    expected = expected_events(scores, rule)
    note = f"\n  measured on these rows: {measured}"
    note += f"; {expected}" if expected else ""
    if cross.wanted and cross.rate > SUSPICIOUS * cross.wanted:
        note += (
            "\n  warning: the rows may hold anomalies, which raise τ: leave them out by "
            "--exclude=SPANS.csv"
        )
    return note


def _own(
    detector: Detector, place: int, series: Series, rule: Rule, settings: Settings
) -> tuple[Detector, Threshold, str]:
    """The detector with an entity's scaler and Gaussian from its rows, its τ, and a note.

    As in a run, an entity with too few rows keeps the pooled ones, and one with too few
    calibration windows has τ from the scores of all entities.
    """
    enough = rows_needed(detector, rule)
    if _windows(detector, series, rule) < 0:
        return _pooled(detector, place, series, rule, enough)
    prepared = prepare(
        Dataset(series.entity, (series,), ()),
        scaler=settings["data"]["scaler"],
        context=detector.context,
        **_shares(detector),
    )
    # Its scores may be too few for the rule; this rule uses the same windows.
    lax = rule._replace(method="fixed", value=0.0)
    if rule.method in BY_FOLDS:
        lax = rule._replace(per_day=rule.per_day and 1e9)
    rules = calibration_rules(settings, prepared)._replace(threshold=lax)
    found = calibrate(detector.model, prepared, rules)
    scores, source = found.scores[0], "own"
    if len(scores) < needed(rule):
        scores, source = _shared_scores(detector, place, rule, scores), "shared"
        if len(scores) < needed(rule):
            return _pooled(detector, place, series, rule, enough[1:] * 2)
    tau = find_threshold(scores, rule, source=source)

    def put(before: np.ndarray, new: Any) -> np.ndarray:
        # The new entity may need float64.
        after = before.astype(np.result_type(before, new))
        after[place] = new[0]
        return after

    ranges, constant = detector.ranges, detector.constant
    if constant is None:  # an older detector, whose Gaussians leave out no channel
        constant = np.full((len(detector.thresholds), len(detector.channels)), np.nan)
    if ranges is not None:
        ranges = Ranges(*map(put, ranges, training_ranges(prepared)))
    unchanged = detector.unchanged
    if unchanged is not None:
        unchanged = put(unchanged, prepared.entities[0].unchanged[None])
    detector = detector._replace(
        scalers=Scaler(*map(put, detector.scalers, found.scalers)),
        gaussians=Gaussian(*map(put, detector.gaussians, found.gaussians)),
        ranges=ranges,
        calibration=_with_scores(detector, place, scores, rule),
        constant=put(constant, found.constant),
        unchanged=unchanged,
    )
    note = f"{series.entity}: its own scaler, Gaussian and τ: {_text(tau)}"
    if source == "shared":
        need = _need(detector, series, enough[1])
        note = (
            f"{series.entity}: its own scaler and Gaussian; {need} for its own τ; until then "
            f"it uses τ of all entities' scores: {_text(tau)}"
        )
    own = found.scores[0], found.starts[0]
    return detector, tau, note + _measured(*own, rule, window=detector.window)


def _need(detector: Detector, series: Series, enough: int) -> str:
    """How many of `enough` rows a series has."""
    pieces = span_pieces(series.values, usable_spans(detector, series))
    rows = sum(int((~np.isnan(own)).all(axis=1).sum()) for own in pieces)
    if rows < enough:
        return f"{rows:,} of {enough:,} rows"
    return (
        f"{rows:,} rows with gaps or missing, excluded or frozen cells, but "
        f"{enough:,} complete successive ones are needed"
    )


def _pooled(
    detector: Detector, place: int, series: Series, rule: Rule, enough: tuple[int, ...]
) -> tuple[Detector, Threshold, str]:
    """The detector with pooled values for the entity; τ and a note."""
    tau, values = detector.thresholds[place], series.values
    if rule.method == "fixed":
        kept = detector.calibration[place] if detector.calibration else np.empty(0)
        tau = find_threshold(kept, rule)
    spans, need = usable_spans(detector, series), _need(detector, series, enough[0])
    if enough[1] > enough[0]:
        need += f" for its own scaler and Gaussian, {enough[1]:,} for its own τ"
    note = f"{series.entity}: {need}; uses the pooled values until then: τ {_text(tau)}"
    starts = cover_starts(spans, window=detector.window, stride=detector.stride)
    points = score_windows(detector, place, values, starts)
    scores = window_scores(points, count=detector.allowed_points)
    above = float((scores > tau.tau).mean()) if len(scores) else 0.0
    if above > MOST_ABOVE:
        note += (
            f"; warning: {above:.0%} of its windows are above the pooled τ (median score "
            f"{np.nanmedian(scores):.3g}), so that as many alarm until then"
        )
    if not len(scores):
        note += f"; no window of {detector.window} rows has a score yet"
    if detector.ranges is not None and (above > MOST_ABOVE or not len(scores)):
        ranges = Ranges(*(side[place] for side in detector.ranges))
        away = outside(ranges, values).mean(axis=0)
        worst = [i for i in np.argsort(-away, kind="stable")[:3] if away[i] > 0.5]
        names = ", ".join(detector.channels[i] for i in worst)
        note += f"; outside the range of all training rows: {names}" * bool(worst)
    return detector, tau._replace(source="pooled"), note


def rows_needed(detector: Detector, rule: Rule) -> tuple[int, ...]:
    """Rows from which a new entity has its own Gaussian, and from which its own τ too.

    They must be complete and without a gap.
    """

    def enough(rows: int) -> bool:
        values = np.broadcast_to(np.float32(0), (rows, len(detector.channels)))
        return _windows(detector, Series("", values, detector.channels), rule) >= least

    found = []
    for least in (0, needed(rule)):
        most = 1
        while not enough(most):
            most *= 2
        found.append(bisect.bisect_left(range(most), True, key=enough))
    return tuple(found)


def _windows(detector: Detector, series: Series, rule: Rule) -> int:
    """Number of windows that a new entity's τ is chosen on; −1 without its own Gaussian."""
    shares = _shares(detector)
    spans = spans_of_its_own(series, **shares)
    if spans is None:
        return -1
    sizes = {name: shares[name] for name in ("window", "stride")}
    found = sum(map(len, fold_starts(*spans, rule, **sizes)))
    # By folds they have the residuals of the Gaussian, too.
    return -1 if rule.method in BY_FOLDS and found < BLOCKS else found


def _shares(detector: Detector) -> dict[str, Any]:
    return {
        "window": detector.window,
        "stride": detector.stride,
        "max_gap": detector.max_gap,
        "validation": VALIDATION,
        "calibration": CALIBRATION,
    }


def _shared_scores(
    detector: Detector, place: int, rule: Rule, own: np.ndarray
) -> np.ndarray:
    """`own` scores of a new entity and those that the detector has of all others.

    Scores of others count only if they come from windows as in the rule.
    """
    wanted = rule.method in BY_FOLDS, int(rule.each_row)
    found: dict[str, list[np.ndarray]] = {"shared": [], "own": []}
    each = zip(detector.thresholds[:-1], detector.calibration, strict=False)
    for i, (tau, kept) in enumerate(each):
        if (
            i != place
            and (tau.method in BY_FOLDS, tau.spacing) == wanted
            and tau.source in found
        ):
            found[tau.source].append(kept)
    # Each shared one holds the scores of all.
    return np.concatenate([*(found["shared"][:1] or found["own"]), own])


def _with_scores(
    detector: Detector, place: int, scores: np.ndarray, rule: Rule
) -> tuple[np.ndarray, ...]:
    """`Detector.calibration` with other scores `[n]`, in order of time, of an entity."""
    kept = list(detector.calibration)
    for i in _places(detector, place) if kept else ():
        own = scores if rule.method in BY_FOLDS else np.sort(scores)
        kept[i] = own.astype(np.float32)
    return tuple(kept)


def _with_entity(detector: Detector, entity: str) -> Detector:
    """The detector with one more entity, before the pooled one and with its values."""
    last, (*own, pooled) = len(detector.entities), detector.thresholds

    def grown(values: np.ndarray) -> np.ndarray:
        return np.insert(values, last, values[last], axis=0)

    ranges, kept = detector.ranges, detector.calibration
    return detector._replace(
        entities=(*detector.entities, entity),
        scalers=Scaler(*map(grown, detector.scalers)),
        gaussians=Gaussian(*map(grown, detector.gaussians)),
        thresholds=(*own, pooled._replace(source="pooled"), pooled),
        ranges=None if ranges is None else Ranges(*map(grown, ranges)),
        calibration=(*kept, *kept[-1:]),
        constant=None if detector.constant is None else grown(detector.constant),
        unchanged=None if detector.unchanged is None else grown(detector.unchanged),
    )


def rule_of(detector: Detector, settings: Settings, *, step_seconds: float) -> Rule:
    """The rule of τ for rows so far apart in time; 0 if rows have no times."""
    rule = threshold_rule(
        settings,
        step_seconds=step_seconds,
        stride=detector.stride,
        window=detector.window,
    )
    return rule_for(detector.model.kind, rule)


def confirm_normal(
    detector: Detector, series: Series, spans: np.ndarray
) -> tuple[Detector, str]:
    """The detector after spans of rows `[S, 2]` that were normal, and a note on the change.

    Windows with one of these rows are scored by these rows only. The Gaussian is widened
    by the residuals of those above τ, with the least weight (at most 1) at which no such
    score is above τ. The scores join those that τ is chosen on, by the same rule, and τ is
    at least their highest and the previous τ. So no score rises, τ does not fall, and no
    other row begins to alarm. Ranges and the longest unchanged runs include the rows too;
    constant channels that changed in them are no longer checked.

    Raises:
        ConfigError: the entity has no calibration scores for the rule.
        DataError: unknown entity, excluded rows, no window, nothing that changes, or as
            `recalibrated`.
    """
    settings, name, window = _settings(detector), series.entity, detector.window
    place = entity_index(detector, name)
    series = match_channels(series, detector.channels)
    rule = rule_of(detector, settings, step_seconds=seconds_per_row(series.time))
    before = detector.thresholds[place]
    if before.method == "fixed":
        rule = rule._replace(method="fixed", value=before.tau)
    if not detector.calibration or before.method != rule.method:
        raise ConfigError(
            f"calibrate: {name} has no calibration scores for {rule.method!r} to add "
            "confirmed rows to: calibrate it on clean rows first."
        )
    inside, out = np.zeros((2, len(series.values)), bool)
    for rows, marked in ((inside, spans), (out, series.excluded)):
        for start, stop in () if marked is None else marked:
            rows[start:stop] = True
    if (inside & out).any():
        raise DataError(
            f"{name}: row {np.argmax(inside & out)} (from 0) is both excluded and confirmed "
            "as normal: correct one of the two files of spans."
        )
    alarm = _alarms(detector, series, rule)
    normal = _with_causes(detector, series, spans, alarm)
    starts = find_windows(detector, series, causal=True).starts
    starts = starts[window_labels(normal, starts, window=window)]
    held = normal[starts[:, None] + np.arange(window)]

    def scored(detector: Detector) -> tuple[np.ndarray, np.ndarray]:
        points = score_windows(detector, place, series.values, starts)
        points = np.where(held, points, np.nan)
        found = window_scores(points, count=detector.allowed_points)
        return np.asarray(found), points > before.tau

    scores, above = scored(detector)
    if not (known := ~np.isnan(scores)).any():
        raise DataError(
            f"{name}: no window of {window} rows without a gap has rows that are confirmed "
            "as normal and have values: give more rows around them."
        )
    # Only rows above τ: other rows are as usual, and would reduce their effect.
    moments = _moments(detector, place, series.values, starts, above)
    old, weight = detector, 0.0
    while moments.n and weight < 1 and np.nanmax(scores) > before.tau:
        weight = max(LEAST_WEIGHT, 2 * weight)
        detector = _with_residuals(old, place, moments, weight=weight)
        scores, _ = scored(detector)
    spacing = before.spacing or min(detector.stride, window)
    joining = scores[known & ((starts - starts[0]) % spacing == 0)]
    # Each block of time gets a share, so that its other windows stay in it.
    blocks = BLOCKS if rule.method == "blocks" else 1
    kept = detector.calibration[place]
    parts = (np.array_split(own, blocks) for own in (kept, joining))
    every = np.concatenate([part for pair in zip(*parts, strict=True) for part in pair])
    tau = find_threshold(every, rule, source=before.source)
    highest = float(scores[known].max()) * (1 + ROUNDING)
    if rule.method != "fixed" and tau.tau < max(highest, before.tau):
        detail = "the previous τ, since the joined scores give less"
        if highest > before.tau:
            detail = "raised to the highest score of confirmed rows"
        tau = tau._replace(tau=max(highest, before.tau), rank=0, detail=detail)
    tau = tau._replace(spacing=before.spacing)
    expected = None
    if rule.method in BY_FOLDS:
        expected = expected_events(every, rule, least=tau.tau)
    detector = detector._replace(calibration=_with_scores(detector, place, every, rule))
    detector = with_threshold(detector, place, tau)
    detector, changed = _with_limits(detector, place, series, inside)
    after = _alarms(detector, series, rule)
    if not (weight or changed) and tau.tau == before.tau and (after & inside).any():
        raise DataError(
            f"{name}: {counted(int((after & inside).sum()), 'confirmed row')} in alarm, and "
            "nothing would change: these have low scores, and rows outside the spans raised "
            "the alarm. Begin the spans at the cause, or at the start of the event."
        )
    if weight:
        changed = f"; Σ grows by {weight:.3g} times their residuals' products{changed}"
    if expected:
        text = f"; {expected}, by {len(kept):,} previous scores and {len(joining):,} of these"
        changed = f"{text}{changed}"
    note = (
        f"{name}: τ {before.tau:.6g} -> {_text(tau)}; rows in alarm: "
        f"{(alarm & inside).sum():,} -> {(after & inside).sum():,} of {inside.sum():,} that "
        f"were normal, {(alarm & ~inside).sum():,} -> {(after & ~inside).sum():,} of the others"
        f"{changed}"
    )
    if tau.tau > MUCH * before.tau:
        note += f"; warning: τ is {tau.tau / before.tau:.3g} times the previous τ, for all rows"
    if (after & inside).any():
        why = "their windows have rows outside the spans that score above τ"
        if highest > tau.tau:
            why = f"τ is fixed: set threshold.value to {highest:.6g} or more"
        note += f"; warning: some are still in alarm, since {why}"
    source = {"rows": int(inside.sum()), "sha256": series_digest(series), "note": note}
    history = detector.card.get("confirmed_normal", {})
    history = {**history, name: [*history.get(name, []), source]}
    card = {**detector.card, "confirmed_normal": history}
    return detector._replace(card=card), note


def _with_causes(
    detector: Detector, series: Series, spans: np.ndarray, alarm: np.ndarray
) -> np.ndarray:
    """Rows of spans `[S, 2]` and those that caused their alarms, `[N]` bool.

    A window ends, and an alarm begins, up to L − 1 rows after its cause, in `score` up to a
    stride later than in a stream. So an alarm belongs to a span if its windows have a row
    of the span, or if it ended less than a stride before and began within L rows. The rows
    from L − 1 before it belong too, but not beyond the end of another alarm or a gap.
    """
    window, (begins, ends) = detector.window, runs(alarm)
    first = np.array([start for start, _ in spans], np.int64)
    own = np.zeros(len(begins), bool)
    for i, (start, stop) in enumerate(spans):
        late = min(detector.stride, window) - 1
        mine = (ends > start - late) & (begins < stop + window - 1)
        mine &= begins > start - window
        first[i], own = min(start, begins[mine].min(initial=start)), own | mine
    edges = [usable_spans(detector, series)[:, 0]]
    edges += [
        np.arange(a, b) + 1 for a, b in zip(begins[~own], ends[~own], strict=True)
    ]
    bounds, normal = np.concatenate(edges), np.zeros(len(alarm), bool)
    for begin, (start, stop) in zip(first, spans, strict=True):
        least = bounds[bounds <= begin].max(initial=0)
        normal[max(least, begin - window + 1) : stop] = True
    return normal


def _alarms(detector: Detector, series: Series, rule: Rule) -> np.ndarray:
    """Rows in alarm, `[N]` bool, in the mode in which the rule counts events."""
    table = score_table(detector, series, entity=series.entity, causal=rule.each_row)
    return table["alarm"].to_numpy() > 0


def _moments(
    detector: Detector,
    place: int,
    values: np.ndarray,
    starts: np.ndarray,
    held: np.ndarray,
) -> Moments:
    """Moments of the residuals of `held` rows of windows, `[M, L]`; n = 0 for a classifier."""
    mean, whiten = gaussian_of(detector, place)
    found, done = Moments(0, mean, whiten), 0
    if not len(mean):
        return found
    first, last = int(starts[0]), int(starts[-1]) + detector.window
    scaled = apply_scaler(scaler_of(detector, place), values[first:last])
    options = {"window": detector.window, "batch_size": BATCH_SIZE}
    for piece in residual_batches(detector.model, scaled, starts - first, **options):
        own = piece[held[done : done + len(piece)]]
        new = moments_of(own[~np.isnan(own).any(axis=1)])
        found, done = merge(found, new) if found.n else new, done + len(piece)
    return found


def _with_residuals(
    detector: Detector, place: int, moments: Moments, *, weight: float
) -> Detector:
    """The detector with further residuals in an entity's Gaussian."""
    gaussian = gaussian_of(detector, place)
    gaussian = updated_gaussian(gaussian, moments, weight=weight)
    mean, whiten = (np.array(field) for field in detector.gaussians)
    for i in _places(detector, place):
        mean[i], whiten[i] = gaussian
    return detector._replace(gaussians=Gaussian(mean, whiten))


def _with_limits(
    detector: Detector, place: int, series: Series, inside: np.ndarray
) -> tuple[Detector, str]:
    """The detector whose ranges, runs and constants allow rows `[N]` bool, and a text."""
    rows, text, kind = series.values[inside], "", detector.model.kind
    places, names = _places(detector, place), (*detector.channels, ALL)
    if detector.ranges is not None:
        own, ranges = ranges_of([rows]), [np.array(side) for side in detector.ranges]
        for side, new, widest in zip(ranges, own, (np.fmin, np.fmax), strict=True):
            side[places] = widest(side[place], new)
        detector = detector._replace(ranges=Ranges(*ranges))
    if detector.unchanged is not None and detector.unchanged[place, :-1].any():
        longest = detector.unchanged.copy()
        watched, spans = longest[place] > 0, usable_spans(detector, series)
        runs = np.zeros_like(longest[place])
        runs[watched] = runs_within(series.values[:, watched[:-1]], spans, inside)
        for column in np.flatnonzero(runs > longest[place]):
            text += f"; {names[column]} unchanged {longest[place, column]} -> {runs[column]} rows"
        longest[places] = np.maximum(longest[place], runs)
        detector = detector._replace(unchanged=longest)
    if detector.constant is not None:
        constant = detector.constant.copy()
        moved = has_moved(constant[place].astype(rows.dtype), rows).any(axis=0)
        which = ", ".join(names[column] for column in np.flatnonzero(moved))
        if which and gives_scores(kind):
            text += f"; still checked, since {kind} has it: {which}"
        elif which:
            text += f"; no longer checked as constant, nor scored: {which}"
            constant[places] = np.where(moved, np.nan, constant[place])
            detector = detector._replace(constant=constant)
    return detector, text


def _text(tau: Threshold) -> str:
    rank = f", the {tau.rank}-th smallest" if tau.rank else ""
    detail = f": {tau.detail}" if tau.detail else ""
    return (
        f"{tau.tau:.6g} (rule {tau.method}, {counted(tau.n, 'window')}{rank}{detail})"
    )


def _places(detector: Detector, place: int) -> list[int]:
    """The indices of an entity's τ: the pooled one of a single entity is its own."""
    return [place] if len(detector.entities) > 1 else [0, 1]


def with_threshold(detector: Detector, place: int, tau: Threshold) -> Detector:
    """The detector with another τ of an entity, in its card as well."""
    thresholds = list(detector.thresholds)
    for i in _places(detector, place):
        thresholds[i] = tau
    return with_thresholds(detector, thresholds)


def with_thresholds(detector: Detector, thresholds: Sequence[Threshold]) -> Detector:
    """The detector with other τ of all entities, in its card as well."""
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
