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
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdjax import KDDetector
from kdjax.data.datasets import load_benchmark
from kdjax.data.series import Series
from kdjax.detection.tables import score_events, score_table
from kdjax.metrics.checks import runs

KINDS = ("mahalanobis", "pca", "moving_average")
BUDGETS = ("0.5/day", "1/day", "2/day")
# Seconds between rows, and the window.
TIMES = {"smd": (60.0, 100), "asd": (300.0, 50), "jumpstarter2": (300.0, 50)}
TRAIN = 0.6


def main() -> None:
    """Measures what is not in the output yet, or prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--budgets", nargs="+", default=BUDGETS)
    for name in TIMES:
        parser.add_argument(f"--{name}", help="the data set's folder")
    given = parser.parse_args()
    if given.table:
        print(table(given.output))
        return
    known = set()
    if given.output.exists():
        known = {_key(json.loads(s)) for s in given.output.read_text().splitlines()}
    with given.output.open("a") as file:
        for collection in TIMES:
            root = getattr(given, collection)
            data = load_benchmark(collection, root=root) if root else None
            tests = {series.entity: series for series in data.test} if data else {}
            for train in data.train if data else ():
                for line in measure(
                    collection, train, tests[train.entity], known, given
                ):
                    file.write(json.dumps(line) + "\n")
                    file.flush()


def measure(
    collection: str, train: Series, test: Series, known: set[Any], given: Any
) -> Iterator[dict[str, Any]]:
    """The lines of one entity."""
    seconds, window = TIMES[collection]
    for kind in given.kinds:
        for budget in given.budgets:
            line: dict[str, Any] = {
                "collection": collection, "entity": train.entity, "kind": kind,
                "budget": budget,
            }  # fmt: skip
            if _key(line) in known:
                continue
            split = int(TRAIN * len(train.values))
            fitted = _fitted(kind, train.values[:split], seconds, window, budget)
            line |= fitted.expected_events._asdict()
            later = train.values[split:]
            days = len(later) * seconds / 86_400
            line["observed"] = len(_events(fitted, later)) / days
            whole = _fitted(kind, train.values, seconds, window, budget)
            delays = _delays(_alarms(whole, test.values), test.labels, window)
            seen = [delay for delay in delays if delay is not None]
            line |= {
                "found": len(seen) / len(delays) if delays else None,
                "delay_minutes": float(np.median(seen)) * seconds / 60
                if seen
                else None,
            }
            yield line


def _fitted(
    kind: str, rows: np.ndarray, seconds: float, window: int, budget: str
) -> KDDetector:
    settings = {"threshold.budget": budget, "data.step_seconds": seconds}
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


def _delays(alarms: np.ndarray, labels: np.ndarray, window: int) -> list[int | None]:
    """Rows from the start of each anomaly to the first row in alarm; None for none."""
    delays: list[int | None] = []
    for start, stop in zip(*runs(labels), strict=True):
        (at,) = alarms[start : stop + window - 1].nonzero()
        delays.append(int(at[0]) if len(at) else None)
    return delays


def _key(line: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(line[name] for name in ("collection", "entity", "kind", "budget"))


def table(path: Path) -> str:
    """By collection and budget, over entities and kinds of detectors."""
    lines = pd.read_json(path, lines=True)
    inside = lines["observed"].between(lines["low"], lines["high"])
    ratio = lines["observed"] / lines["number"].clip(lower=1e-9)
    lines = lines.assign(inside=inside, ratio=ratio)
    groups = lines.groupby(["collection", "budget"], sort=False)
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
