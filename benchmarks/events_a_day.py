"""Whether a budget of events a day holds in clean rows, and how late anomalies are seen.

    python benchmarks/events_a_day.py --output=runs/events.jsonl --smd=DIR --asd=DIR \
        --jumpstarter2=DIR
    python benchmarks/events_a_day.py --output=runs/events.jsonl --table

A detector learns from the first 60 % of an entity's training rows with
`threshold="budget"` and watches the rest as a stream does. The rows are clean, so each
event is a false one. Another learns from all training rows and watches the test rows, for
the share of anomalies found and the delay of the first row in alarm. A line of the output
is one detector, budget and entity; docs/thresholds.md has the results.
"""

import argparse
import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tsbad
from short_training import entities, found_anomalies

from kdjax import KDDetector
from kdjax.data.series import Series
from kdjax.detection.tables import score_events, score_table

KINDS = ("mahalanobis", "pca", "moving_average")
BUDGETS = ("0.5/day", "1/day", "2/day")
# Seconds between rows, and the window.
TIMES = {"smd": (60.0, 100), "asd": (300.0, 50), "jumpstarter2": (300.0, 50)}
TRAIN = 0.6
_KEY = ("collection", "entity", "kind", "budget", "clear")


def main() -> None:
    """Measures what is not in the output yet, or prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--budgets", nargs="+", default=BUDGETS)
    parser.add_argument("--clear", nargs="+", type=float, default=(1.0,))
    for name in TIMES:
        parser.add_argument(f"--{name}", default="", help="the data set's folder")
    given = parser.parse_args()
    if given.table:
        print(table(given.output))
        return
    known = set(map(_key, tsbad.read(given.output)))
    roots = {name: getattr(given, name) for name in TIMES}
    for collection, train, test in entities(roots):
        for line in measure(collection, train, test, known, given):
            tsbad.append(given.output, line)


def measure(
    collection: str, train: Series, test: Series, known: set[Any], given: Any
) -> Iterator[dict[str, Any]]:
    """The lines of one entity."""
    seconds, window = TIMES[collection]
    for kind in given.kinds:
        for budget, clear in itertools.product(given.budgets, given.clear):
            line: dict[str, Any] = {
                "collection": collection, "entity": train.entity, "kind": kind,
                "budget": budget, "clear": clear,
            }  # fmt: skip
            if _key(line) in known:
                continue
            split = int(TRAIN * len(train.values))
            options = (seconds, window, budget, clear)
            fitted = _fitted(kind, train.values[:split], *options)
            line |= fitted.expected_events._asdict()
            later = train.values[split:]
            days = len(later) * seconds / 86_400
            line["observed"] = len(_events(fitted, later)) / days
            whole = _fitted(kind, train.values, *options)
            alarms = _alarms(whole, test.values)
            found = found_anomalies(alarms, test.labels, window=window)
            delay = found.pop("delay")
            minutes = None if delay is None else delay * seconds / 60
            line |= found | {"delay_minutes": minutes}
            yield line


def _fitted(
    kind: str, rows: np.ndarray, seconds: float, window: int, budget: str, clear: float
) -> KDDetector:
    settings = {"threshold.budget": budget, "threshold.clear": clear}
    settings |= {"data.step_seconds": seconds}
    detector = KDDetector(
        detector=kind, window_size=window, threshold="budget", settings=settings
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return detector.fit(rows)


def _table(detector: KDDetector, rows: np.ndarray) -> tuple[Series, pd.DataFrame]:
    found = detector.detector_
    series = Series(found.entities[0], rows, found.channels)
    return series, score_table(found, series, entity=series.entity, causal=True)


def _events(detector: KDDetector, rows: np.ndarray) -> pd.DataFrame:
    series, scores = _table(detector, rows)
    found = score_events(
        detector.detector_, series, scores, entity=series.entity, causal=True
    )
    return found[found["kind"] == "score"]


def _alarms(detector: KDDetector, rows: np.ndarray) -> np.ndarray:
    return _table(detector, rows)[1]["alarm"].to_numpy(bool)


def _key(line: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(line[name] for name in _KEY)


def table(path: Path) -> str:
    """By collection, budget and clear level, over entities and kinds of detectors."""
    lines = pd.read_json(path, lines=True)
    inside = lines["observed"].between(lines["low"], lines["high"])
    ratio = lines["observed"] / lines["number"].clip(lower=1e-9)
    lines = lines.assign(inside=inside, ratio=ratio)
    groups = lines.groupby(["collection", "budget", "clear"], sort=False)
    shown = pd.DataFrame(
        {
            "fits": groups.size(),
            "expected": groups["number"].median(),
            "observed": groups["observed"].median(),
            "in the interval": groups["inside"].mean(),
            "observed / expected": groups["ratio"].median(),
            "anomalies found": groups["found"].mean(),
            "delay, minutes": groups["delay_minutes"].median(),
        }
    )
    return shown.round(2).to_string()


if __name__ == "__main__":
    main()
