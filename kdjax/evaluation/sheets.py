"""The tables of a report as text: one set of cells for HTML, Markdown and LaTeX alike."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from kdjax.evaluation.rows import ROLLING
from kdjax.evaluation.tables import (
    MISSING,
    Results,
    alarm_rates,
    caption,
    label_free_method,
    models,
    number_text,
    rate_texts,
    table_cells,
    undefined_words,
)

STUDENT = "student"
RANDOM = "random"
POINT_METRICS = {
    "precision": "P",
    "recall": "R",
    "f1": "F1",
    "auc_roc": "AUC ROC",
    "average_precision": "AP",
    "vus_roc": "VUS-ROC",
    "vus_pr": "VUS-PR",
    "affiliation_precision": "affiliation P",
    "affiliation_recall": "affiliation R",
    "affiliation_f1": "affiliation F1",
    "range_precision": "range P",
    "range_recall": "range R",
    "range_f1": "range F1",
    "event_recall": "event R",
    "event_f1": "event F1",
    "detection_delay": "delay, rows",
}
INFLATED = {"point_adjusted_f1": "point-adjusted F1", "pa_k_f1": "PA%K F1"}
# Level and metric of the means that are shown with intervals; all are in results.json.
WITH_INTERVALS = (
    ("window", "f1"),
    ("point", "average_precision"),
    ("point", "vus_pr"),
    ("point", "affiliation_f1"),
    ("point", "range_f1"),
    ("point", "event_f1"),
)
# Scope and metric of the columns of a following τ.
_FOLLOWED = (
    ("pooled", "precision"),
    ("pooled", "recall"),
    ("pooled", "f1"),
    ("per_entity_mean", "f1"),
    ("per_entity_mean", "alarm_rate"),
)
# These need no τ, so they are the same under each threshold.
_THRESHOLD_FREE = {"average_precision", "vus_pr"}
_RATES = (
    "Entity",
    "Rule",
    "τ",
    "Wanted",
    "Left-out calibration",
    "95 %",
    "Clean test",
    "95 %",
    "Drift",
)


class Sheet(NamedTuple):
    """A table: its cells as plain text, whatever format they end up in.

    Attributes:
        title: heading.
        heads: of the columns.
        lines: of cells, as many as heads.
        words: below the table.
        groups: of the columns, as many as heads, empty for none; neighbours of one name
            share it.
    """

    title: str
    heads: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    words: str = ""
    groups: tuple[str, ...] = ()


def sheets(results: Results) -> list[Sheet]:
    """All tables that the results have content for, the most important first."""
    method = label_free_method(results)
    found = [
        results_sheet(results),
        intervals_sheet(results.get("intervals") or (), method),
        paired_sheet(results.get("paired") or (), method),
        rolling_sheet(results),
        points_sheet(results),
        inflated_sheet(results),
        false_alarm_sheet(results.get("rates") or ()),
        training_sheet(results.get("worst_training_windows") or ()),
    ]
    return [sheet for sheet in found if sheet is not None]


def results_sheet(results: Results) -> Sheet:
    """The paper's Table 1, extended; shares of windows in alarm without labels."""
    if results["dataset"].get("positive_windows") is None:
        names = ("Model", "Parameters", "Test windows in alarm")
        words = "No labels, so nothing here says how well anomalies are found."
        return Sheet("Results", names, tuple(alarm_rates(results)), words)
    cells = table_cells(results)
    return Sheet(
        "Results",
        ("Model", "Parameters", *(column.name for column in cells.columns)),
        cells.lines,
        " ".join(filter(None, [caption(results), undefined_words(results)])),
        ("", "", *(column.group for column in cells.columns)),
    )


def intervals_sheet(
    intervals: Sequence[Mapping[str, Any]], method: str
) -> Sheet | None:
    """Means over entities with their intervals, a line a model."""
    found = {
        (row["model"], *_measure(row)): row
        for row in intervals
        if (row["level"], row["metric"]) in WITH_INTERVALS
    }
    present = {key[1:] for key in found}
    columns = [
        (threshold, level, metric)
        for level, metric in WITH_INTERVALS
        for threshold in _thresholds(metric, method)
        if (threshold, level, metric) in present
    ]
    if not columns:
        return None
    lines = [
        (name, *(interval_text(found.get((name, *column))) for column in columns))
        for name in dict.fromkeys(key[0] for key in found)
    ]
    shown = [found[key] for key in found if key[1:] in columns]
    words = (
        "How far a mean would move with other entities of the same kind, by bootstrap."
    )
    return Sheet(
        "Means over entities with 95 % intervals",
        ("Model", *(_measure_name(column) for column in columns)),
        tuple(lines),
        " ".join([words, *_reasons(shown)]),
    )


def paired_sheet(paired: Sequence[Mapping[str, Any]], method: str) -> Sheet | None:
    """Differences of two models on the same entities, a line each."""
    if not paired:
        return None
    lines = [
        (
            row["model"],
            _against(row),
            _measure_name(_measure(row)),
            MISSING if row["difference"] is None else f"{row['difference']:+.3f}",
            MISSING
            if row["low"] is None
            else f"({row['low']:+.3f} to {row['high']:+.3f})",
            f"{row['entities']:,}",
        )
        for row in paired
        if row["threshold"] in ("oracle", method)
    ]
    names = ("Model", "Against", "Of", "Difference", "95 %", "Entities")
    words = (
        "Mean over entities of the first model's value minus the second's. An interval "
        "that holds 0 doesn't tell the two apart."
    )
    return Sheet(
        "Paired differences", names, tuple(lines), " ".join([words, *_reasons(paired)])
    )


def rolling_sheet(results: Results) -> Sheet | None:
    """Windows under a τ that follows its stream; only where asked for and labelled."""
    rows = {
        (row["model"], row["scope"]): row
        for row in results["rows"]
        if row["threshold"] == ROLLING and row["f1"] is not None
    }
    if not rows:
        return None
    share = results["settings"]["threshold"]["rolling_share"]
    lines = [
        (
            model,
            *(
                number_text(rows.get((model, scope), {}).get(metric))
                for scope, metric in _FOLLOWED
            ),
        )
        for model in models(results)
    ]
    return Sheet(
        "Windows under a τ that follows its stream",
        ("Model", "P", "R", "F1", "F1", "in alarm"),
        tuple(lines),
        f"Before each window τ is the conformal threshold of all scores so far for {share:g} "
        "of them, calibration's first. It uses no labels, and test scores only once they "
        "are past. in alarm: share of windows, anomalies among them.",
        ("", *("pooled",) * 3, *("mean",) * 2),
    )


def points_sheet(results: Results) -> Sheet | None:
    """Metrics of rows and events under each threshold, means over entities."""
    rows = _point_rows(results)
    known = [
        name
        for name in POINT_METRICS
        if any(row.get(name) is not None for row in rows.values())
    ]
    if not known:
        return None
    lines = [
        (model, _rule(threshold), *(number_text(row.get(name)) for name in known))
        for (model, threshold), row in rows.items()
    ]
    return Sheet(
        "Rows and events, means over entities",
        ("Model", "τ", *(POINT_METRICS[name] for name in known)),
        tuple(lines),
        "By scores of rows. oracle: τ chosen on the test labels. Random scores reach a "
        "high affiliation F1 as well: compare with the line of random.",
    )


def inflated_sheet(results: Results) -> Sheet | None:
    """Point-adjusted F1, each beside what random scores reach; only where asked for."""
    rows = _point_rows(results)
    known = [
        name
        for name in INFLATED
        if any(row.get(name) is not None for row in rows.values())
    ]
    if not known:
        return None
    lines = []
    for (model, threshold), row in rows.items():
        random = rows.get((RANDOM, threshold), {})
        cells = [
            f"{number_text(row.get(name))} (random {number_text(random.get(name))})"
            for name in known
        ]
        lines.append((model, _rule(threshold), *cells))
    return Sheet(
        "Point-adjusted F1 (inflated)",
        ("Model", "τ", *(f"{INFLATED[name]}, inflated" for name in known)),
        tuple(lines),
        "Inflated: one row found in an event counts as all of its rows, so random scores "
        "do well. For comparison with older papers only.",
    )


def false_alarm_sheet(rates: Sequence[Mapping[str, Any]]) -> Sheet | None:
    """Wanted and realised shares of false alarms of the student, each rule a line."""
    own = [rate for rate in rates if rate["model"] == STUDENT]
    if not own:
        return None
    return Sheet(
        "False alarms",
        _RATES,
        tuple(map(_rate_cells, own)),
        "Shares of normal windows above τ, of the student. Wanted: by "
        "the rule. Left-out calibration: each fifth of the calibration windows under the "
        "τ of the others. Clean test: test windows without a labelled row. Intervals "
        "count windows that share no row; no rule holds its rate where behaviour moves. "
        "Drift: whether the scores of test windows come from where calibration's did.",
    )


def training_sheet(worst: Sequence[Mapping[str, Any]]) -> Sheet | None:
    """The most abnormal windows of the training rows."""
    if not worst:
        return None
    lines = [
        (
            window["entity"],
            window["part"],
            str(window["start"]),
            str(window["end"]),
            "inf" if window["score"] is None else f"{window['score']:.4g}",
            "yes" if window["above"] else "no",
        )
        for window in worst
    ]
    return Sheet(
        "Most abnormal training windows",
        ("Entity", "Part", "From", "To", "Window score", "Above τ"),
        tuple(lines),
        "Under the student. If they are no normal behaviour, leave "
        "them out (data.exclude) or trim the error moments (detection.trim).",
    )


def digest_sheet(digests: Mapping[str, str]) -> Sheet | None:
    """The data by the SHA-256 of each series."""
    if not digests:
        return None
    return Sheet("Data", ("Series", "SHA-256"), tuple(digests.items()))


def entity_sheet(rows: Iterable[Mapping[str, Any]]) -> Sheet | None:
    """One entity's window-level numbers: rows of `results["entities"]`."""
    lines = [
        (
            row["model"],
            row["threshold"],
            *(number_text(row[name]) for name in ("precision", "recall", "f1")),
            MISSING if row["tau"] is None else f"{row['tau']:.4g}",
            number_text(row["alarm_rate"]),
            MISSING if row["windows"] is None else f"{row['windows']:,}",
            MISSING if row["positives"] is None else f"{row['positives']:,}",
        )
        for row in rows
        if row.get("level", "window") == "window"
    ]
    names = ("Model", "Threshold", "P", "R", "F1", "τ", "Alarm rate", "Windows")
    return Sheet("", (*names, "Positive"), tuple(lines)) if lines else None


def interval_text(row: Mapping[str, Any] | None) -> str:
    """A mean and its interval.

    >>> interval_text({"mean": 0.719, "low": 0.6512, "high": 0.7777})
    '0.719 (0.65–0.78)'
    """
    if row is None or row["mean"] is None:
        return MISSING
    if row["low"] is None:
        return f"{row['mean']:.3f}"
    return f"{row['mean']:.3f} ({row['low']:.2f}–{row['high']:.2f})"


def _thresholds(metric: str, method: str) -> tuple[str, ...]:
    return ("oracle",) if metric in _THRESHOLD_FREE else ("oracle", method)


def _measure(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["threshold"], row["level"], row["metric"]


def _measure_name(measure: tuple[str, str, str]) -> str:
    """Such as `F1 of windows, oracle`."""
    threshold, level, metric = measure
    name = f"{POINT_METRICS.get(metric, metric)} of {level}s"
    return name if metric in _THRESHOLD_FREE else f"{name}, {_rule(threshold)}"


def _rule(threshold: str) -> str:
    return threshold if threshold == "oracle" else "own τ"


def _against(row: Mapping[str, Any]) -> str:
    baseline = row.get("baseline")
    return f"{row['against']} ({baseline})" if baseline else str(row["against"])


def _reasons(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Why intervals are missing or too narrow, each reason once, as sentences."""
    found = dict.fromkeys(row["reason"] for row in rows if row["reason"])
    return [f"{reason[0].upper()}{reason[1:]}." for reason in found]


def _point_rows(results: Results) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Means over entities at the level of points, by model and threshold."""
    rows = {
        (row["model"], row["threshold"]): row
        for row in results["rows"]
        if (row["scope"], row["level"]) == ("per_entity_mean", "point")
    }
    order = models(results)
    return dict(sorted(rows.items(), key=lambda item: order.index(item[0][0])))


def _rate_cells(rate: Mapping[str, Any]) -> tuple[str, ...]:
    drift = rate.get("drift")
    return (
        rate["entity"],
        rate["method"] + (" (used)" if rate["used"] else ""),
        MISSING if rate["tau"] is None else f"{rate['tau']:.4g}",
        f"{rate['wanted']:.2%}",
        *rate_texts(rate["left_out"]),
        *rate_texts(rate["clean_test"]),
        MISSING if drift is None else "yes" if drift["drifted"] else "no",
    )
