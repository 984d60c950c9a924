"""Tables of the report on what holds without labels: false alarms, training rows."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from kdjax.evaluation.tables import MISSING, rate_texts

STUDENT = "student"
RATES = (
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


def html_table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in its own scrolling box; `heads` are HTML, `lines` are text."""
    head = "".join(f"<tr>{row}</tr>" for row in heads)
    body = "".join(
        f"<tr><th>{escape(first)}</th>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        + "</tr>\n"
        for first, *rest in lines
    )
    return (
        f'<div class="scroll"><table><thead>{head}</thead>\n<tbody>{body}</tbody>'
        "</table></div>"
    )


def false_alarm_section(rates: Sequence[Mapping[str, Any]]) -> str:
    """Wanted and realised shares of false alarms of the student, each rule a line."""
    own = [rate for rate in rates if rate["model"] == STUDENT]
    if not own:
        return ""
    return (
        "<h2>False alarms</h2>\n"
        + html_table(heads(RATES), map(_rate_cells, own))
        + '<p class="soft">Shares of normal windows above τ, of the student. Wanted: by '
        "the rule. Left-out calibration: each fifth of the calibration windows under the "
        "τ of the others. Clean test: test windows without a labelled row. Intervals "
        "count windows that share no row; no rule holds its rate where behaviour moves. "
        "Drift: whether the scores of test windows come from where calibration's did."
        "</p>"
    )


def training_section(worst: Sequence[Mapping[str, Any]]) -> str:
    """The most abnormal windows of the training rows."""
    if not worst:
        return ""
    names = ("Entity", "Part", "From", "To", "Window score", "Above τ")
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
    return (
        "<h2>Most abnormal training windows</h2>\n"
        + html_table(heads(names), lines)
        + '<p class="soft">Under the student. If they are no normal behaviour, leave '
        "them out (data.exclude) or trim the error moments (detection.trim).</p>"
    )


def heads(names: Iterable[str]) -> list[str]:
    """One line of column names as HTML."""
    return ["".join(f"<th>{escape(name)}</th>" for name in names)]


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
