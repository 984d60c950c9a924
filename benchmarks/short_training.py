"""Which share of later normal rows alarms after a short training, by rule for τ.

    python benchmarks/short_training.py --output=runs/short.jsonl --smd=DIR --nasa=DIR \
        --asd=DIR --jumpstarter2=DIR
    python benchmarks/short_training.py --output=runs/short.jsonl --table

For each entity the detector learns from N clean rows and scores

    clean   the 2·max(500, N) rows behind a block from the middle of the training rows
    test    the first 6,000 test rows, behind the last N training rows

A row alarms by the window that ends at it. A line of the output is one detector, rule,
number of rows and entity; lines that exist are kept. docs/thresholds.md has the results.
"""

import argparse
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tsbad

from kdjax import KDDetector
from kdjax.data.datasets import load_benchmark
from kdjax.data.series import Series
from kdjax.errors import ConfigError
from kdjax.metrics.checks import runs

ROWS = (200, 400, 1000, 4000)
KINDS = ("mahalanobis", "pca", "moving_average", "kmeans")
RULES = ("conformal", "blocks")
RATE = 0.05
MOST_TEST = 6000


def main() -> None:
    """Measures what is not in the output yet, or prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--rules", nargs="+", default=RULES)
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS)
    for name in ("smd", "nasa", "asd", "jumpstarter2"):
        parser.add_argument(f"--{name}", default="", help="the data set's folder")
    given = parser.parse_args()
    if given.table:
        print(table(given.output))
        return
    roots = {"smap": given.nasa, "msl": given.nasa, "smd": given.smd}
    roots |= {"asd": given.asd, "jumpstarter2": given.jumpstarter2}
    known = set(map(_key, tsbad.read(given.output)))
    for collection, train, test in entities(roots):
        for line in measure(train, test, given, known):
            tsbad.append(given.output, line | {"collection": collection})


def entities(roots: Mapping[str, str]) -> Iterator[tuple[str, Series, Series]]:
    """Collection, training and test rows of the entities of folders that are given."""
    for collection, root in roots.items():
        data = load_benchmark(collection, root=root) if root else None
        tests = {series.entity: series for series in data.test} if data else {}
        for train in data.train if data else ():
            yield collection, train, tests[train.entity]


def measure(
    train: Series, test: Series, given: Any, known: set[Any]
) -> Iterator[dict[str, Any]]:
    """The lines of one entity."""
    for rows in given.rows:
        later = 2 * max(500, rows)
        start = (len(train.values) - rows - later) // 2
        for kind in given.kinds:
            for rule in given.rules:
                line: dict[str, Any] = {
                    "entity": train.entity, "rows": rows, "kind": kind, "rule": rule
                }  # fmt: skip
                if _key(line) in known or len(train.values) < rows:
                    continue
                line |= {"clean": None, "normal": None}
                try:
                    if start >= 0:
                        values = train.values[start:]
                        found = _alarms(values, rows, later, kind, rule)
                        line["clean"] = float(found.mean())
                    ahead = np.concatenate(
                        [train.values[-rows:], test.values[:MOST_TEST]]
                    )
                    found = _alarms(ahead, rows, MOST_TEST, kind, rule)
                    labels = test.labels[:MOST_TEST]
                    line |= _measures(found, labels, window=_window(rows))
                except ConfigError as error:  # too few windows for the rule
                    line["refused"] = str(error)
                yield line


def _window(rows: int) -> int:
    return min(96, rows // 8)


def _alarms(
    values: np.ndarray, rows: int, later: int, kind: str, rule: str
) -> np.ndarray:
    """Rows in alarm behind the first `rows`, which are learnt from."""
    detector = KDDetector(
        detector=kind, window_size=_window(rows), false_alarm_rate=RATE, threshold=rule
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        detector.fit(values[:rows])
    found = detector.predict(values[rows - _window(rows) + 1 : rows + later])
    return np.asarray(found[_window(rows) - 1 :], bool)


def _measures(
    alarms: np.ndarray, labels: np.ndarray, *, window: int
) -> dict[str, float | None]:
    """Of test rows."""
    true, total = int((alarms & labels).sum()), int(alarms.sum()) + int(labels.sum())
    return {
        "normal": float(alarms[~labels].mean()),
        "f1": 2 * true / total if labels.any() else None,
        **found_anomalies(alarms, labels, window=window),
    }


def found_anomalies(
    alarms: np.ndarray, labels: np.ndarray, *, window: int
) -> dict[str, float | None]:
    """The share of anomalies that were found, and the median delay in rows.

    An anomaly is found by an alarm up to L − 1 rows after it.
    """
    delays = []
    for start, stop in zip(*runs(labels), strict=True):
        (at,) = alarms[start : stop + window - 1].nonzero()
        delays.append(int(at[0]) if len(at) else -1)
    found = [delay for delay in delays if delay >= 0]
    return {
        "found": len(found) / len(delays) if delays else None,
        "delay": float(np.median(found)) if found else None,
    }


def _key(line: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(line[name] for name in ("entity", "rows", "kind", "rule"))


def table(path: Path) -> str:
    """Of all entities and kinds, by collection, number of rows and rule."""
    lines = pd.read_json(path, lines=True)
    groups = lines.groupby(["rows", "collection", "rule"], sort=False)
    shown = pd.DataFrame(
        {
            "fits": groups["normal"].count(),
            "clean, median": groups["clean"].median(),
            "clean, 90 %": groups["clean"].quantile(0.9),
            "normal test rows": groups["normal"].median(),
            "anomalies found": groups["found"].mean(),
            "F1": groups["f1"].mean(),
            "delay": groups["delay"].median(),
        }
    )
    return shown.sort_index().round(3).to_string()


if __name__ == "__main__":
    main()
