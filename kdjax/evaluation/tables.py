"""The tables of a run's results: one frame of text each for every format.

The first is the paper's Table 1, extended: thresholds chosen on the test labels (oracle)
beside label-free ones, pooled counts beside means over entities, and baselines.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import pandas as pd
import rich.box
import rich.console
import rich.table
from rich.text import Text

from kdjax.detection.alarming import AlarmMeasures
from kdjax.errors import counted
from kdjax.evaluation.rows import RANDOM, ROLLING, STUDENT, usual_model

MISSING = "–"
INTEGER = ",.0f"
Results = Mapping[str, Any]  # the content of results.json
Row = Mapping[str, Any]
Columns = dict[tuple[str, str], tuple[str, ...]]  # head -> place and metric
Heads = Sequence[str] | Sequence[tuple[str, str]]  # of columns; with their groups
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
INFLATED = {
    "point_adjusted_f1": "point-adjusted F1, inflated",
    "pa_k_f1": "PA%K F1, inflated",
}
# Level and metric of the means that are shown with intervals; all are in results.json.
WITH_INTERVALS = (
    ("window", "f1"),
    ("point", "average_precision"),
    ("point", "vus_pr"),
    ("point", "affiliation_f1"),
    ("point", "range_f1"),
    ("point", "event_f1"),
)
# These need no τ, so they are the same under each threshold.
_THRESHOLD_FREE = {"average_precision", "vus_pr"}
_FORMATS = {"bytes": INTEGER, "alarm_rate": ".2%"}  # other than three decimals
_COSTS = ("costs", "", "")  # stands for results["costs"] among the rows
DRIFTED = {None: MISSING, True: "yes", False: "no"}
_NARROW = 9  # columns in the 80 characters of a terminal


class Table(NamedTuple):
    """A table: heading, cells as text, and words below it.

    Columns of `frame` are names, or (group, name) with an empty group for none.
    """

    title: str
    frame: pd.DataFrame
    words: str = ""


def report_tables(results: Results) -> list[Table]:
    """All tables that the results have content for, the most important first."""
    method = label_free_method(results)
    found = [
        detection_table(results),
        interval_table(results.get("intervals") or (), method),
        paired_table(results.get("paired") or (), method),
        rolling_table(results),
        _metric_table(
            results,
            POINT_METRICS,
            "Rows and events, means over entities",
            "By scores of rows. oracle: τ chosen on the test labels. Random scores reach a "
            "high affiliation F1 as well: compare with the line of random.",
        ),
        _metric_table(
            results,
            INFLATED,
            "Point-adjusted F1 (inflated)",
            "Inflated: one row found in an event counts as all of its rows, so random scores "
            "do well: compare with the line of random. For comparison with older papers only.",
        ),
        false_alarm_table(results.get("rates") or (), shown_model(results)),
        training_table(results.get("worst_training_windows") or ()),
    ]
    return [table for table in found if table is not None]


def detection_table(results: Results) -> Table:
    """Table 1, extended; without labels the shares of windows in alarm."""
    rows, own, names = _rows(results), label_free_method(results), model_names(results)
    costs: Columns = {
        ("costs", "bytes"): (*_COSTS, "bytes"),
        ("costs", "ms"): (*_COSTS, "milliseconds"),
    }

    def filled(columns: Columns) -> Columns:
        """The columns that have a number."""
        return {
            head: (*place, metric)
            for head, (*place, metric) in columns.items()
            if any(rows.get((n, *place), {}).get(metric) is not None for n in names)
        }

    heads = [("", "Model"), ("", "Parameters")]
    if results["dataset"].get("positive_windows") is None:
        alarms = (own, "pooled", "window", "alarm_rate")
        columns = filled({("", "Test windows in alarm"): alarms, **costs})
        words = "No labels, so no number here measures how well anomalies are found."
        if costs.keys() & columns.keys():
            words += " bytes: of the exported file. ms: a window on one core."
        lines = _numbers(results, columns, sizes=True)
        flat = [head for _, head in (*heads, *columns)]
        return Table("Results", _frame(flat, lines), words)
    oracle, points = ("oracle", "pooled", "window"), ("per_entity_mean", "point")
    columns = {
        ("oracle, pooled", "P"): (*oracle, "precision"),
        ("oracle, pooled", "R"): (*oracle, "recall"),
        ("oracle, pooled", "F1"): (*oracle, "f1"),
        ("oracle, mean", "F1"): ("oracle", "per_entity_mean", "window", "f1"),
        ("label-free, pooled", "F1"): (own, "pooled", "window", "f1"),
        ("label-free, mean", "F1"): (own, "per_entity_mean", "window", "f1"),
        ("points, mean", "AP"): ("oracle", *points, "average_precision"),
    }
    ranking = {("points, mean", "VUS-PR"): ("oracle", *points, "vus_pr")}
    columns = _of_one(results, columns | filled(ranking | costs))
    reasons: dict[str, list[str]] = {}
    for name in names:
        for *place, metric in columns.values():
            row = rows.get((name, *place), {})
            note = (row.get("notes") or {}).get(metric)
            if note and row.get(metric) is None:
                reasons.setdefault(note, []).append(name)
    notes = [
        f"{MISSING}: {note} ({', '.join(dict.fromkeys(found))})."
        for note, found in reasons.items()
    ]
    frame = _frame([*heads, *columns], _numbers(results, columns, sizes=True))
    return Table("Results", frame, " ".join([caption(results), *notes]))


def interval_table(intervals: Sequence[Row], method: str) -> Table | None:
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
        for threshold in (
            ("oracle",) if metric in _THRESHOLD_FREE else ("oracle", method)
        )
        if (threshold, level, metric) in present
    ]
    lines = [
        (name, *(interval_text(found.get((name, *column))) for column in columns))
        for name in dict.fromkeys(key[0] for key in found)
    ]
    return _table(
        "Means over entities with 95 % intervals",
        ("Model", *map(_measure_name, columns)),
        lines if any({*line[1:]} - {MISSING} for line in lines) else (),
        "How far a mean would move with other entities of the same kind, by bootstrap."
        + _reasons(row for key, row in found.items() if key[1:] in columns),
    )


def paired_table(paired: Sequence[Row], method: str) -> Table | None:
    """Differences of two models on the same entities, a line each."""
    lines = [
        (
            row["model"],
            f"{row['against']} ({row['baseline']})"
            if row.get("baseline")
            else row["against"],
            _measure_name(_measure(row)),
            _text(row["difference"], "+.3f"),
            MISSING
            if row["low"] is None
            else f"({row['low']:+.3f} to {row['high']:+.3f})",
            f"{row['entities']:,}",
        )
        for row in paired
        if row["threshold"] in ("oracle", method)
    ]
    return _table(
        "Paired differences",
        ("Model", "Against", "Of", "Difference", "95 %", "Entities"),
        lines if any(row["entities"] for row in paired) else (),
        "Mean over entities of the first model's value minus the second's. An interval "
        "that holds 0 shows no difference between the two." + _reasons(paired),
    )


def rolling_table(results: Results) -> Table | None:
    """Windows under the rolling threshold; only where asked for and labelled."""
    rows = _rows(results)
    if all(row.get("f1") is None for key, row in rows.items() if key[1] == ROLLING):
        return None
    share = results["settings"]["threshold"]["rolling_share"]
    pooled, mean = (ROLLING, "pooled", "window"), (ROLLING, "per_entity_mean", "window")
    columns: Columns = {
        ("pooled", "P"): (*pooled, "precision"),
        ("pooled", "R"): (*pooled, "recall"),
        ("pooled", "F1"): (*pooled, "f1"),
        ("mean", "F1"): (*mean, "f1"),
        ("mean", "in alarm"): (*mean, "alarm_rate"),
    }
    columns = _of_one(results, columns)
    return _table(
        "Windows under a rolling threshold",
        [("", "Model"), *columns],
        _numbers(results, columns),
        f"Before each window τ is the conformal threshold of all scores so far for {share:g} "
        "of them, calibration's first. It uses no labels, and test scores only once they "
        "are past. in alarm: share of windows, anomalies among them.",
    )


def false_alarm_table(rates: Sequence[Row], model: str = STUDENT) -> Table | None:
    """Wanted and measured false-alarm rates of a model, each rule a line."""
    lines = [
        (
            rate["entity"],
            rate["method"] + (" (used)" if rate["used"] else ""),
            _text(rate["tau"], ".4g"),
            _text(rate["wanted"] or None, ".2%"),  # `budget` and `fixed` want none
            rate_text(rate["left_out"]),
            rate_text(rate["clean_test"]),
            DRIFTED[(rate.get("drift") or {}).get("drifted")],
        )
        for rate in rates
        if rate["model"] == model
    ]
    heads = ("Entity", "Rule", "τ", "Wanted", "Left-out calibration", "Clean test")
    return _table(
        "False alarms",
        (*heads, "Drift"),
        lines,
        f"Shares of normal windows above τ, of {model}, with 95 % intervals. Wanted: by "
        "the rule. Left-out calibration: each fifth of the calibration windows under the "
        "τ of the others. Clean test: test windows without a labelled row. Intervals "
        "count windows that share no row; no rule holds its rate where behaviour moves. "
        "Drift: whether the scores of test windows are distributed unlike calibration's.",
    )


def alarm_table(found: AlarmMeasures) -> Table:
    """Alarm-management measures beside their targets."""

    def named(names: Sequence[str]) -> str:
        return f"{len(names)}" + f" ({', '.join(names[:3])})" * bool(names)

    lines = [
        ("Events", f"{found.events:,}", ""),
        ("Events a day", _text(found.per_day, ".3g"), "about 150, at most about 300"),
        ("Most in 24 hours", _text(found.most_in_day, INTEGER), ""),
        ("Most in an hour", _text(found.most_in_hour, INTEGER), "30 in 99 % of hours"),
        ("Most in 10 minutes", _text(found.most_in_10_minutes, INTEGER), "10"),
        ("Time in flood", _text(found.flood_share, ".2%"), "below 1 %"),
        ("Chattering sources", MISSING if found.chattering is None else named(found.chattering), "0"),
        ("Standing, over 24 hours", _text(found.standing, INTEGER), "below 5 on any day"),
        ("Of the ten most frequent sources", _text(found.worst_share, ".0%"), "1 % to 5 %"),
    ]  # fmt: skip
    worst = ", ".join(f"{name} {count:,}" for name, count in found.worst)
    words = (
        "Targets: recommended figures of ISA-18.2 and IEC 62682, for all alarms of one "
        "operator. A flood begins with more than 10 events in 10 minutes and ends with "
        "fewer than 5. A source is an entity with the channel that its event names first; "
        "it chatters with 3 events within a minute."
    )
    words += f" Most frequent: {worst}." if worst else ""
    words += f" Undefined: {found.reason} (data.step_seconds)." if found.reason else ""
    heads = ("Measure", "Value", "Target")
    return Table("Alarm management", _frame(heads, lines), words)


def training_table(worst: Sequence[Row]) -> Table | None:
    """The most abnormal windows of the training rows."""
    heads = ("Entity", "Part", "From", "To", "Window score", "Above τ")
    lines = [
        (
            *(str(window[name]) for name in ("entity", "part", "start", "end")),
            "inf" if window["score"] is None else f"{window['score']:.4g}",
            "yes" if window["above"] else "no",
        )
        for window in worst
    ]
    return _table(
        "Most abnormal training windows",
        heads,
        lines,
        f"Under {worst[0].get('model', STUDENT) if worst else ''}. If a window is no normal "
        "behaviour, leave its rows out of training (data.exclude).",
    )


def digest_table(results: Results) -> Table | None:
    """The data by the SHA-256 of each series."""
    digests = (results.get("data") or {}).get("sha256") or {}
    return _table("Data", ("Series", "SHA-256"), digests.items())


def entity_table(rows: Iterable[Row]) -> Table | None:
    """One entity's metrics of windows, of rows of `results["entities"]`."""
    lines = [
        (
            row["model"],
            row["threshold"],
            *(_text(row[name]) for name in ("precision", "recall", "f1")),
            _text(row["tau"], ".4g"),
            _text(row["alarm_rate"]),
            _text(row["windows"], INTEGER),
            _text(row["positives"], INTEGER),
        )
        for row in rows
        if row.get("level", "window") == "window"
    ]
    heads = ("Model", "Threshold", "P", "R", "F1", "τ", "Alarm rate", "Windows")
    return _table("", (*heads, "Positive"), lines)


# Parts of results and their texts.


def label_free_method(results: Results) -> str:
    """The name of the label-free threshold in `results`, such as `conformal`."""
    names = [row["threshold"] for row in results["rows"]]
    return next((name for name in names if name != "oracle"), "conformal")


def model_names(results: Results) -> list[str]:
    """The models in the order in which `results["rows"]` first names them."""
    return list(dict.fromkeys(row["model"] for row in results.get("rows", ())))


def shown_model(results: Results) -> str:
    """The recommended model, or the one that a report is about without it."""
    recommended = (results.get("recommendation") or {}).get("model")
    return recommended or usual_model(model_names(results))


def parameters(results: Results, model: str) -> int | None:
    """The number of parameters of `model`; None where that has no meaning."""
    numbers = [row["parameters"] for row in results["rows"] if row["model"] == model]
    return numbers[0] if numbers else None


def _text(number: float | None, form: str = ".3f") -> str:
    """A number, or an en dash where there is none."""
    return MISSING if number is None else format(number, form)


def interval_text(row: Row | None) -> str:
    """A mean and its interval.

    >>> interval_text({"mean": 0.719, "low": 0.6512, "high": 0.7777})
    '0.719 (0.65–0.78)'
    """
    if row is None or row["mean"] is None:
        return MISSING
    if row["low"] is None:
        return f"{row['mean']:.3f}"
    return f"{row['mean']:.3f} ({row['low']:.2f}–{row['high']:.2f})"


def rate_text(found: Row | None) -> str:
    """A measured false-alarm rate of `results["rates"]` and its interval."""
    if found is None or found["rate"] is None:
        return "too few windows" if found and found["detail"] else MISSING
    return f"{found['rate']:.2%} ({found['low']:.1%}–{found['high']:.1%})"


def _of_one(results: Results, columns: Columns) -> Columns:
    """The columns; for one entity, whose mean is its value, without these two words."""
    if entity_count(results["dataset"]) != "1 entity":
        return columns
    found: Columns = {}
    for (head, name), place in columns.items():
        found.setdefault((re.sub("(, )?(pooled|mean)$", "", head), name), place)
    return found


def caption(results: Results) -> str:
    """What the numbers were measured on, and what the column names mean."""
    data = results["dataset"]
    scopes, further = "", ""
    if entity_count(data) != "1 entity":
        scopes = "pooled: counts of all entities together. mean: of the entities' own metric. "
    if RANDOM in model_names(results):
        further = " random: scores drawn at random, for comparison."
    if results.get("costs"):
        further += " costs: bytes of the exported file; ms a window on one core."
    names = ("stride", "min_anomalous_points", "windows", "positive_windows")
    stride, least, windows, positive = (_text(data[name], INTEGER) for name in names)
    return (
        f"Windows of {window_words(data)}, stride {stride}: {windows} windows, {positive} anomalous "
        f"(anomalous rows at least min_anomalous_points = {least}), {entity_count(data)}. "
        f"oracle: τ chosen on the test labels. label-free τ: {label_free_method(results)}, "
        f"without labels. P: precision. R: recall. {scopes}"
        "AP: average precision of row scores." + further
    )


def data_words(results: Results) -> str:
    """How many entities and rows the results are of."""
    data = results["dataset"]
    rows = [
        f"{data[key]:,} {key.replace('_', ' ')}"
        for key in ("train_rows", "test_rows")
        if data.get(key) is not None
    ]
    return " · ".join([entity_count(data), *rows, f"windows of {window_words(data)}"])


def window_words(dataset: Mapping[str, Any]) -> str:
    """The length of a window, in time too where the rows' step is known.

    >>> window_words({"window": 50, "step_seconds": 600.0}), window_words({"window": 9})
    ('50 rows (8 h 20 min)', '9 rows')
    """
    rows = dataset["window"]
    time = pd.Timedelta(seconds=round(rows * dataset.get("step_seconds", 0))).components
    units = zip(time, ("d", "h", "min", "s"), strict=False)
    text = " ".join(f"{number} {unit}" for number, unit in units if number)
    return f"{rows:,} rows" + f" ({text})" * bool(text)


def entity_count(dataset: Mapping[str, Any]) -> str:
    """`1 entity`, `28 entities`: of a `dataset` entry with a number or with names."""
    entities = dataset["entities"]
    number = entities if isinstance(entities, int) else len(entities)
    return counted(number, "entity", "entities")


# The terminal.


def results_tables(results: Results) -> rich.console.Group:
    """What a run prints of its results: detection, and false alarms."""
    rates = false_alarm_table(results.get("rates") or (), shown_model(results))
    found = detection_table(results), rates
    return rich.console.Group(*(printed(table) for table in found if table))


def printed(table: Table) -> rich.console.Group:
    """A table for a terminal, in two where 80 characters are too few."""
    # Names may hold brackets, so all is text and no markup.
    frame, found = table.frame, list[rich.table.Table]()
    columns = [*range(frame.shape[1])]
    for own in filter(None, (columns[:_NARROW], columns[_NARROW:])):
        shown = frame.iloc[:, own if 0 in own else [0, *own]]
        title = None if found else Text(table.title)
        part = rich.table.Table(title=title, box=rich.box.SIMPLE_HEAD, padding=0)
        for column, (group, name) in enumerate(heads_of(shown)):
            head = re.sub(r"(?<=[-._])|, ", "\n", f"{group}\n{name}".strip())
            justify: Literal["left", "right"] = "right" if column else "left"
            part.add_column(
                Text(head), justify=justify, vertical="bottom", overflow="fold"
            )
        for line in shown.to_numpy():
            part.add_row(*map(Text, line))
        found.append(part)
    return rich.console.Group(*found, Text(table.words))


def _table(
    title: str, heads: Heads, lines: Iterable[Sequence[str]], words: str = ""
) -> Table | None:
    """None without lines."""
    frame = _frame(heads, lines)
    return Table(title, frame, words) if len(frame) else None


def _frame(heads: Heads, lines: Iterable[Sequence[str]]) -> pd.DataFrame:
    return pd.DataFrame([*lines], columns=pd.Index([*heads]), dtype=object)


def heads_of(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """Group and name of each column."""
    return [head if isinstance(head, tuple) else ("", head) for head in frame.columns]


def _rows(results: Results) -> dict[tuple[str, ...], Row]:
    """Rows by model, threshold, scope and level; costs by model and `_COSTS`."""
    keys = ("model", "threshold", "scope", "level")
    rows = {tuple(row[key] for key in keys): row for row in results["rows"]}
    costs = results.get("costs") or {}
    return rows | {(model, *_COSTS): found for model, found in costs.items()}


def _numbers(
    results: Results,
    columns: Mapping[tuple[str, str], tuple[str, ...]],
    *,
    sizes: bool = False,
) -> list[list[str]]:
    """A line a model: its name, and the metric of each (threshold, scope, level, metric).

    With `sizes` the number of parameters comes after the name.
    """
    rows, lines = _rows(results), []
    for model in model_names(results):
        line = [model, _text(parameters(results, model), INTEGER)][: 1 + sizes]
        for *place, metric in columns.values():
            number = rows.get((model, *place), {}).get(metric)
            line.append(_text(number, _FORMATS.get(metric, ".3f")))
        lines.append(line)
    return lines


def _metric_table(
    results: Results, metrics: Mapping[str, str], title: str, words: str
) -> Table | None:
    """Means over entities of the level `point`: a line a model and threshold."""
    rows = {
        key[:2]: row
        for key, row in _rows(results).items()
        if key[2:] == ("per_entity_mean", "point")
    }
    order = model_names(results)
    known = [m for m in metrics if any(r.get(m) is not None for r in rows.values())]
    lines = [
        (model, _rule(tau), *(_text(row.get(metric)) for metric in known))
        for (model, tau), row in sorted(
            rows.items(), key=lambda x: order.index(x[0][0])
        )
    ]
    heads = ("Model", "τ", *(metrics[name] for name in known))
    return _table(title, heads, lines if known else (), words)


def _measure(row: Row) -> tuple[str, str, str]:
    return row["threshold"], row["level"], row["metric"]


def _measure_name(measure: tuple[str, str, str]) -> str:
    """Such as `F1 of windows, oracle`."""
    threshold, level, metric = measure
    name = f"{POINT_METRICS.get(metric, metric)} of {level}s"
    return name if metric in _THRESHOLD_FREE else f"{name}, {_rule(threshold)}"


def _rule(threshold: str) -> str:
    return threshold if threshold == "oracle" else "label-free τ"


def _reasons(rows: Iterable[Row]) -> str:
    """Why intervals are missing or too narrow, each reason once, as sentences."""
    found = dict.fromkeys(row["reason"] for row in rows if row["reason"])
    return "".join(f" {reason[0].upper()}{reason[1:]}." for reason in found)
