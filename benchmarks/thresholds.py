"""Which share of clean test windows alarms under each rule for τ, machine by machine.

    python benchmarks/thresholds.py --root=data/smd --output=docs/results/thresholds.json

Raw rows under a Mahalanobis distance (the baseline `mahalanobis`), so nothing is trained:
a minute or two on 2 CPU cores for 13 machines of SMD. Clean are the test windows without
a labelled row; labels have no other use. `docs/thresholds.md` has the results.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import chi2

from kdjax.data.datasets import load_benchmark
from kdjax.data.prepared import Entity, Prepared, prepare
from kdjax.data.scaler import apply_scaler
from kdjax.data.splits import window_starts
from kdjax.data.windowing import window_labels
from kdjax.detection.alarming import events
from kdjax.detection.detector import residual_batches, score_scaled
from kdjax.detection.false_alarms import (
    cross_rates,
    disjoint,
    drift,
    measured_rate,
    p_values,
)
from kdjax.detection.gaussian import gaussian_from_moments, merge_all, moments_of
from kdjax.detection.rolling import adapt, adaptive_tau, start_adaptive
from kdjax.detection.scores import window_scores
from kdjax.detection.thresholds import (
    Rule,
    find_threshold,
)
from kdjax.io.environment import describe_environment
from kdjax.io.files import write_text
from kdjax.models.residual import ResidualModel

MODEL = ResidualModel("mahalanobis", {})
WINDOW, STRIDE, BATCH = 100, 10, 256
FLOOR, RIDGE = 0.03, 0.1
STEP_SECONDS = 60  # SMD is sampled once a minute
DAY = 24 * 3600 // (STEP_SECONDS * STRIDE)  # windows
RATE, GAMMA = 0.01, 0.005


class Windows(NamedTuple):
    """Window scores `[M]` and the windows' first rows `[M]`, in time."""

    scores: np.ndarray
    starts: np.ndarray


class Scored(NamedTuple):
    """One machine's calibration and test windows.

    Attributes:
        calibration: windows that choose τ.
        test: all test windows.
        clean: `[M]`, whether a test window has no labelled row.
        anomalies: `[K, 2]` spans of labelled test rows.
    """

    calibration: Windows
    test: Windows
    clean: np.ndarray
    anomalies: np.ndarray


def main() -> None:
    """Measures, prints a table, writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default="data/smd", help="folder of SMD")
    parser.add_argument("--machines", nargs="*", default=(), help="all where empty")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    dataset = load_benchmark("smd", root=given.root, entities=given.machines)
    prepared = prepare(
        dataset,
        window=WINDOW,
        stride=STRIDE,
        max_gap=5.0,
        validation=0.15,
        calibration=0.15,
        scaler="none",
    )
    rules = _rules(len(prepared.channels))
    machines = []
    for entity in prepared.entities:
        machines.append(_measure(prepared, entity, rules))
        _show(machines[-1])
    found = {
        "settings": _settings(rules),
        "machines": machines,
        "environment": describe_environment(),
    }
    if given.output:
        write_text(given.output, json.dumps(_plain(found), indent=1) + "\n")


def _rules(channels: int) -> dict[str, Rule]:
    # What the largest of L squared distances would exceed at the rate, were all rows
    # independent and Gaussian.
    gaussian = float(chi2.isf(-math.expm1(math.log1p(-RATE) / WINDOW), channels))
    return {
        "conformal": Rule("conformal", RATE),
        "quantile": Rule("quantile", RATE),
        "pot": Rule("pot", RATE),
        "pot_low": Rule("pot", RATE / 10),
        "fixed": Rule("fixed", value=round(gaussian, 1)),
    }


def _settings(rules: dict[str, Rule]) -> dict[str, Any]:
    return {
        "model": MODEL.kind,
        "scaler": "none",
        "window": WINDOW,
        "stride": STRIDE,
        "floor": FLOOR,
        "ridge": RIDGE,
        "step_seconds": STEP_SECONDS,
        "gamma": GAMMA,
        "rules": {name: rule._asdict() for name, rule in rules.items()},
    }


def _measure(
    prepared: Prepared, entity: Entity, rules: dict[str, Rule]
) -> dict[str, Any]:
    """Results of one machine."""
    scored = _scores(prepared, entity)
    calibration, clean = scored.calibration, _clean(scored)
    apart = disjoint(clean.starts, WINDOW)
    own = len(disjoint(calibration.starts, WINDOW))
    moved = drift(p_values(calibration.scores, clean.scores[apart]), calibration=own)
    return {
        "machine": entity.name,
        "calibration_windows": len(calibration.scores),
        "calibration_disjoint": own,
        "clean_windows": len(clean.scores),
        "anomalies": len(scored.anomalies),
        "drift": moved._asdict(),
        "rules": {name: _by_rule(scored, rule) for name, rule in rules.items()},
        "adaptive": _adaptive(scored),
    }


def _by_rule(scored: Scored, rule: Rule) -> dict[str, Any]:
    clean = _clean(scored)
    threshold = find_threshold(scored.calibration.scores, rule)
    inside = cross_rates(*scored.calibration, rule, window=WINDOW)
    after = measured_rate(*clean, threshold.tau, window=WINDOW, wanted=threshold.rate)
    return {
        "tau": threshold.tau,
        "detail": threshold.detail,
        "calibration": inside._asdict(),
        "clean": after._asdict(),
        "worst_day": _worst_day(clean.scores > threshold.tau),
        "anomalies_found": _found(scored, scored.test.scores > threshold.tau),
    }


def _adaptive(scored: Scored) -> dict[str, Any]:
    """Adaptive conformal inference on the clean windows, and then on all of them."""
    taus, alarms = _follow(scored.calibration, _clean(scored))
    steps = len(alarms)
    _, among_all = _follow(scored.calibration, scored.test)
    return {
        "wanted": RATE,
        "rate": float(alarms.mean()),
        "bound": (1 - RATE + GAMMA) / (steps * GAMMA),
        "infinite_tau": float(np.isinf(taus).mean()),
        "worst_day": _worst_day(alarms),
        "rate_of_all_windows": float(among_all.mean()),
        "anomalies_found": _found(scored, among_all),
    }


def _follow(calibration: Windows, windows: Windows) -> tuple[np.ndarray, np.ndarray]:
    """τ and the alarm at each window, `[M]` and `[M]`."""
    state = start_adaptive(calibration.scores, RATE, step=GAMMA)
    taus, alarms = [], []
    for score in windows.scores.tolist():
        taus.append(adaptive_tau(state))
        alarms.append(score > taus[-1])
        state = adapt(state, score)
    return np.array(taus), np.array(alarms)


def _scores(prepared: Prepared, entity: Entity) -> Scored:
    """Under the Gaussian of the machine's validation windows."""
    rows = apply_scaler(entity.scaler, entity.train.values)
    validation = window_starts(entity.split.validation, window=WINDOW, stride=STRIDE)
    errors = residual_batches(MODEL, rows, validation, window=WINDOW, batch_size=BATCH)
    gaussian = gaussian_from_moments(
        merge_all(list(map(moments_of, errors))),
        floor=FLOOR,
        ridge=RIDGE,
        channels=prepared.channels,
    )

    def scored(values: np.ndarray, spans: np.ndarray) -> Windows:
        starts = window_starts(spans, window=WINDOW, stride=STRIDE)
        points = score_scaled(
            MODEL, gaussian, values, starts, window=WINDOW, batch_size=BATCH
        )
        return Windows(window_scores(points, count=0).astype(np.float64), starts)

    test = entity.test
    assert test is not None and test.labels is not None
    windows = scored(apply_scaler(entity.scaler, test.values), entity.test_spans)
    return Scored(
        scored(rows, entity.split.calibration),
        windows,
        ~window_labels(test.labels, windows.starts, window=WINDOW),
        events(test.labels, gap=1),
    )


def _clean(scored: Scored) -> Windows:
    return Windows(*(field[scored.clean] for field in scored.test))


def _found(scored: Scored, alarms: np.ndarray) -> int:
    """Labelled spans that an alarmed window touches."""
    starts = scored.test.starts[alarms]
    first, stop = scored.anomalies[:, :1], scored.anomalies[:, 1:]
    return int(((starts < stop) & (starts + WINDOW > first)).any(axis=1).sum())


def _worst_day(alarms: np.ndarray) -> float:
    """The largest share of alarms in so many windows in a row as a day has."""
    total = np.concatenate([[0], np.cumsum(alarms)])
    return float((total[DAY:] - total[:-DAY]).max() / DAY)


def _show(machine: dict[str, Any]) -> None:
    moved = machine["drift"]
    print(
        f"{machine['machine']}: {machine['calibration_windows']} calibration and "
        f"{machine['clean_windows']} clean windows; drift "
        f"{'yes' if moved['drifted'] else 'no'}, distance {moved['distance']:.2f}"
    )
    for name, found in machine["rules"].items():
        inside, after = found["calibration"], found["clean"]
        wanted = after["wanted"]
        print(
            f"  {name:10} wanted {_percent(wanted) if wanted else '–':>6}  "
            f"cross-validated {_percent(inside['rate']):>6}  "
            f"clean {_percent(after['rate']):>6} "
            f"({_percent(after['low'])} to {_percent(after['high'])})  "
            f"{found['detail']}"
        )
    adaptive = machine["adaptive"]
    print(
        f"  {'adaptive':10} wanted {_percent(RATE):>6}  {'':22}  "
        f"clean {_percent(adaptive['rate']):>6}",
        flush=True,
    )


def _percent(share: float) -> str:
    """Such as `1.4 %`; `–` for none."""
    return "–" if math.isnan(share) else f"{100 * share:.1f} %"


def _plain(value: Any) -> Any:
    """JSON-able: floats to six digits, null for NaN."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


if __name__ == "__main__":
    main()
