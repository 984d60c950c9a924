"""The summary of a fleet, odd machines first, and its HTML page."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from kdjax.detection.false_alarms import events_text
from kdjax.detection.fleet import FAILED, PAGE, READY
from kdjax.errors import counted
from kdjax.evaluation.page import (
    Section,
    figure_html,
    json_html,
    render_page,
    table_html,
    words_html,
)
from kdjax.io.files import write_text

SHOWN = 1_000  # machines in the page's table
# Numbers by which machines are compared; all but the last on a scale of logarithms.
_COMPARED = ("threshold", "events_a_day", "test_events_a_day", "quality")


def oddness(catalogue: pd.DataFrame) -> pd.Series:
    """Distance of each machine from the others, `[M]`; infinite if it failed.

    The largest distance from the median of τ, of events a day and of quality, in robust
    standard deviations (1.4826 times the median absolute deviation).

    >>> frame = pd.DataFrame({"state": ["ready"] * 5, "threshold": [1.0, 1, 2, 1, 90]})
    >>> oddness(frame).idxmax()
    4
    """
    found = np.zeros(len(catalogue))
    for name in _COMPARED:
        if name not in catalogue:
            continue
        values = catalogue[name].to_numpy(np.float64)
        if name != "quality":
            floor = np.nanmin(values[values > 0], initial=1.0) / 10
            values = np.log(np.maximum(values, floor))
        known = values[np.isfinite(values)]
        if len(known) < 3:
            continue
        middle = np.median(known)
        spread = 1.4826 * np.median(np.abs(known - middle))
        away = np.abs(values - middle) / max(spread, 0.05)
        found = np.fmax(found, away)
    failed = catalogue["state"].to_numpy() == FAILED
    return pd.Series(np.where(failed, np.inf, found), catalogue.index)


def by_oddness(catalogue: pd.DataFrame) -> pd.DataFrame:
    """The catalogue with failed and odd machines first."""
    order = oddness(catalogue).sort_values(ascending=False, kind="stable").index
    return catalogue.loc[order].reset_index(drop=True)


def fleet_words(
    catalogue: pd.DataFrame, expected: Mapping[str, Any] | None = None
) -> list[str]:
    """Sentences that summarise the fleet."""
    ready = catalogue[catalogue["state"] == READY]
    failed = len(catalogue) - len(ready)
    borrowed = int((ready["reason"] != "").sum())
    found = [
        f"{counted(len(catalogue), 'machine')}: {len(ready):,} ready, {failed:,} failed"
        + (f"; {borrowed:,} use the fleet's values, since they have few rows" * bool(borrowed))
        + "."
    ]  # fmt: skip
    if expected is not None:
        low, number, high = (
            events_text(expected["expected"][k]) for k in ("low", "number", "high")
        )
        found.append(
            f"Budget: {expected['budget']:g} events a day for "
            f"{counted(expected['machines'], 'machine')}; expect {number} ({low}–{high}), by "
            "calibration rows left out in turn."
        )
        if expected["observed"] is not None:
            number = events_text(expected["observed"])
            found.append(f"Observed in the test rows: {number} events a day.")
        return found
    for name, words in (
        (
            "events_a_day",
            "Expect {} events a day from all machines, in normal behaviour.",
        ),
        ("test_events_a_day", "Observed in the test rows: {} events a day."),
    ):
        known = ready[name].dropna()
        if len(known):
            found.append(words.format(events_text(float(known.sum()))))
    quality = ready["quality"].dropna()
    if len(quality):
        found.append(
            f"VUS-PR on labelled test rows: {quality.mean():.3f} in the mean over "
            f"{counted(len(quality), 'machine')}, {quality.min():.3f} at least."
        )
    return found


def fleet_table(catalogue: pd.DataFrame) -> pd.DataFrame:
    """The catalogue as a table of texts, columns without any value left out."""
    # Reasons last: they are long.
    order = [name for name in catalogue if name not in ("detector", "reason")]
    shown = catalogue[[*order, "reason"]]
    shown = shown.loc[:, shown.notna().any() & (shown != "").any()]
    numbers = shown.select_dtypes("float").columns
    shown[numbers] = shown[numbers].map(
        lambda value: "" if math.isnan(value) else f"{value:.4g}"
    )
    return shown.rename(columns={"test_events_a_day": "observed_a_day"})


def write_fleet_page(
    folder: Path,
    catalogue: pd.DataFrame,
    *,
    card: Mapping[str, Any],
    expected: Mapping[str, Any] | None = None,
) -> None:
    """Writes the page over a fleet, one file that makes no network request."""
    odd = by_oddness(catalogue)
    words = "".join(words_html(text) for text in fleet_words(catalogue, expected))
    more = len(odd) - SHOWN
    caption = "Failed machines first, then those that differ most from the others."
    if more > 0:
        caption += f" {more:,} more are in catalogue.parquet."
    sections = [
        Section("", words),
        Section("Machines", table_html(fleet_table(odd.head(SHOWN)), caption)),
    ]
    ready = catalogue[catalogue["state"] == READY]
    for name, title in (
        ("threshold", "Threshold τ"),
        ("events_a_day", "Events a day to expect"),
        ("quality", "VUS-PR"),
    ):
        known = ready[name].dropna().to_numpy(np.float64)
        if len(known) > 1:
            figure = go.Figure(go.Histogram(x=known, nbinsx=50))
            figure.update_layout(height=300, xaxis_title=title, yaxis_title="machines")
            sections.append(Section(title, figure_html(figure), folded=True))
    sections.append(Section("Settings", json_html(card), folded=True))
    write_text(folder / PAGE, render_page(title="Fleet", sections=sections))
