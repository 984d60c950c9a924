"""Metrics of the service in OpenMetrics, collected from the engines at each scrape."""

import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.openmetrics.exposition import (
    CONTENT_TYPE_LATEST,
    generate_latest,
)

from kdjax.service.engine import Engine, Latest
from kdjax.service.sources import Source

MOST_LABELS = 1000  # entities of a detector that have metrics of their own
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
# By metric, its help and the name of its count in `Engine.counts`.
COUNTERS = {
    "kdjax_rows": ("Rows that were answered.", "rows"),
    "kdjax_windows": ("Windows that had a score.", "windows"),
    "kdjax_alarms": ("Rows in alarm.", "alarms"),
    "kdjax_events_begun": ("Events that began.", "begun"),
    "kdjax_events_ended": ("Events that ended.", "ended"),
    "kdjax_reloads": ("Changes of the detector in service.", "reloads"),
    "kdjax_refused_reloads": (
        "Changed detectors that were refused.",
        "refused_reloads",
    ),
}
# Reasons of refused rows; counted from 0, so that the first one is a change.
REASONS = (
    "row", "queue", "sequence", "entities", "rows", "disk", "fault", "machine",
)  # fmt: skip
ENTITY_GAUGES = {
    "kdjax_score": "Score a_t of the last row.",
    "kdjax_window_score": "Score of the window that ends at the last row.",
    "kdjax_threshold": "Threshold of the window score.",
    "kdjax_drift_distance": "Distance of the latest scores from those of calibration.",
    "kdjax_last_row_age_seconds": "Seconds since the last row arrived.",
}


class Metrics:
    """The registry of one service.

    Args:
        engines: by name; may grow.
        entities: whether entities have gauges of their own.
    """

    def __init__(self, engines: Mapping[str, Engine], *, entities: bool) -> None:
        self._engines, self._entities = engines, entities
        self.sources: list[Source] = []
        self.registry = CollectorRegistry()
        self.registry.register(self)
        self.seconds = Histogram(
            "kdjax_request_seconds",
            "Time from the end of a request to its answer.",
            ["route"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.requests = Counter(
            "kdjax_requests",
            "Requests by status.",
            ["route", "status"],
            registry=self.registry,
        )
        self.refused_requests = Counter(
            "kdjax_refused_requests",
            "Requests that were refused before their rows were read.",
            ["reason"],
            registry=self.registry,
        )

    def text(self) -> tuple[bytes, str]:
        """The text for Prometheus, and its media type."""
        text: bytes = generate_latest(self.registry)  # type: ignore[no-untyped-call]
        return text, CONTENT_TYPE_LATEST

    def collect(self) -> Iterator[Metric]:
        """The current metrics of the engines."""
        engines = {name: engine for name, engine in self._engines.items()}
        about = InfoMetricFamily(
            "kdjax_detector", "The detector in service.", labels=["detector"]
        )
        for name, engine in engines.items():
            loaded = engine.loaded
            info = {"digest": loaded.digest, "backend": loaded.backend}
            about.add_metric([name], info)
        yield about
        for metric, (text, count) in COUNTERS.items():
            family = CounterMetricFamily(metric, text, labels=["detector"])
            for name, engine in engines.items():
                family.add_metric([name], engine.counts[count])
            yield family
        refused = CounterMetricFamily(
            "kdjax_refused_rows",
            "Rows that were refused.",
            labels=["detector", "reason"],
        )
        waiting = _gauge("kdjax_waiting_rows", "Rows in the queue.")
        ready = _gauge("kdjax_ready", "1 if rows are accepted.")
        machines = _gauge("kdjax_entities", "Known entities.")
        shadow = GaugeMetricFamily(
            "kdjax_shadow_alarms",
            "Rows in alarm under the detector, its shadow, or both.",
            labels=["detector", "by"],
        )
        for name, engine in engines.items():
            counted = dict.fromkeys(REASONS, 0) | dict(engine.refused)
            for reason, number in counted.items():
                refused.add_metric([name, reason], number)
            waiting.add_metric([name], engine.waiting)
            ready.add_metric([name], engine.ready)
            machines.add_metric([name], len(engine.machines.names))
            if other := engine.shadow:
                shadow.add_metric([name, "both"], other.both)
                shadow.add_metric([name, "first_only"], other.other)
                shadow.add_metric([name, "shadow_only"], other.own)
        yield from (refused, waiting, ready, machines, shadow)
        yield from self._of_entities(engines)
        yield from self._of_sources()

    def _of_sources(self) -> Iterator[Metric]:
        own = ["detector", "source"]
        rows = CounterMetricFamily(
            "kdjax_source_rows", "Rows of sources that were taken.", labels=own
        )
        errors = CounterMetricFamily(
            "kdjax_source_errors", "Faults of sources.", labels=[*own, "reason"]
        )
        up = GaugeMetricFamily(
            "kdjax_source_up", "1 if a source is connected.", labels=own
        )
        for source in self.sources:
            names = [source.engine.name, source.name]
            rows.add_metric(names, source.rows)
            for reason, number in dict(source.errors).items():
                errors.add_metric([*names, reason], number)
            up.add_metric(names, source.up)
        yield from (rows, errors, up)

    def _of_entities(self, engines: Mapping[str, Engine]) -> Iterator[Metric]:
        families = {
            name: GaugeMetricFamily(name, text, labels=["detector", "entity"])
            for name, text in ENTITY_GAUGES.items()
        }
        now = time.time()
        for name, engine in engines.items():
            age = families["kdjax_last_row_age_seconds"]
            if not math.isnan(engine.last_row):
                age.add_metric([name, ""], max(0.0, now - engine.last_row))
            latest = dict(engine.latest) if self._entities else {}
            for entity in list(latest)[:MOST_LABELS]:
                for metric, value in _values(latest[entity], now).items():
                    families[metric].add_metric([name, entity], value)
        yield from families.values()


def _gauge(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=["detector"])


def _values(latest: Latest, now: float) -> dict[str, Any]:
    row = latest.row
    found = {
        "kdjax_score": row.score,
        "kdjax_window_score": row.window_score,
        "kdjax_threshold": row.tau,
        "kdjax_drift_distance": latest.drift,
        "kdjax_last_row_age_seconds": max(0.0, now - latest.received),
    }
    return {name: value for name, value in found.items() if not math.isnan(value)}
