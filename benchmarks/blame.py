"""How well contributions find the channels at fault, on data sets that label them.

    python benchmarks/blame.py --data=asd --root=DATA/asd --workdir=RUN \\
        --output=docs/results/blame.json

RUN is the folder of a finished `kdjax run`. For each segment of `interpretation_label`,
a channel's contribution is averaged over the segment's rows, after averaging over the
windows that cover the row; windows are those of evaluation. The two methods of
`kdjax.detection.attribution` are compared with the plain squares of standardised
residuals, ((e − μ) / σ)², and with chance. Prints a table and writes it to the data
set's entry in the JSON file. Minutes on 2 CPU cores.
"""

import argparse
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kdjax.data.datasets import benchmark_folder, load_benchmark
from kdjax.data.raw import read_bytes
from kdjax.data.scaler import Scaler, apply_scaler
from kdjax.data.series import Series
from kdjax.data.splits import cover_starts
from kdjax.detection.attribution import (
    METHODS,
    attribution_matrix,
    error_deviations,
    split_deviations,
)
from kdjax.detection.detector import Detector, entity_index, residual_batches
from kdjax.detection.gaussian import Gaussian
from kdjax.detection.storage import load_detector
from kdjax.errors import DataError
from kdjax.io.environment import describe_environment
from kdjax.io.files import write_text
from kdjax.metrics.checks import as_scores, warn_undefined

NO_CULPRIT = "no channel is at fault"


class Culprits(NamedTuple):
    """One anomalous segment of test rows and the channels at fault."""

    start: int
    stop: int  # row after its last
    channels: tuple[int, ...]  # columns at fault, counted from 0


def interpretation(name: str, root: str | Path, entity: str) -> list[Culprits]:
    """The published segments of an entity of `smd` or `asd` with the channels at fault.

    As their labels show, SMD's segments end before the last row named, ASD's with it.
    """
    path = benchmark_folder(name, root) / "interpretation_label" / f"{entity}.txt"
    text = read_bytes(path).decode("utf-8", errors="replace")
    last = int(name == "asd")
    segments = []
    for number, line in enumerate(text.split("\n"), start=1):
        match = re.fullmatch(r"\s*(\d+)-(\d+):(\d+(?:,\d+)*)\s*", line)
        if match is None:
            raise DataError(
                f"{path}: line {number} {line!r} is not 'start-end:dim,dim,...'; "
                "copy or download the file again."
            )
        start, stop, dims = match.groups()
        channels = tuple(int(dim) - 1 for dim in dims.split(","))
        segments.append(Culprits(int(start), int(stop) + last, channels))
    return segments


def hit_rate(
    scores: npt.ArrayLike, culprits: Sequence[int], *, percent: int = 100
) -> float:
    """Share of the culprits among the ⌊percent/100 · culprits⌋ channels of top score.

    NaN with a warning where there is no culprit.

    Args:
        scores: contribution of each channel, `[D]`; may be infinite.
        culprits: channels at fault, counted from 0.
        percent: at least 100.

    >>> hit_rate([0.1, 5.0, 0.3, 4.0], [1, 2])
    0.5
    """
    hits = _hits(scores, culprits)
    if hits is None:
        warn_undefined({"the hit rate": NO_CULPRIT})
        return math.nan
    return float(hits[: _top(hits, percent)].sum() / hits.sum())


def ndcg(
    scores: npt.ArrayLike, culprits: Sequence[int], *, percent: int = 100
) -> float:
    """Hits discounted by log2(1 + rank), as a share of the best order's.

    Arguments and the undefined case as in `hit_rate`.

    >>> ndcg([0.1, 5.0, 0.3, 4.0], [1, 2])  # 1 / (1 + 1 / log2(3))
    0.6131471927654584
    """
    hits = _hits(scores, culprits)
    if hits is None:
        warn_undefined({"NDCG": NO_CULPRIT})
        return math.nan
    top = _top(hits, percent)
    discount = 1 / np.log2(np.arange(len(hits)) + 2)
    best = discount[: round(hits.sum())].sum()
    return float(hits[:top] @ discount[:top] / best)


def _hits(scores: npt.ArrayLike, culprits: Sequence[int]) -> np.ndarray | None:
    """Chance `[D]` that the channel of each rank is a culprit; None without culprits."""
    attribution = as_scores(scores)
    at_fault = np.zeros(len(attribution))
    for channel in culprits:
        if not 0 <= channel < len(attribution):
            raise DataError(
                f"`culprits` has channel {channel}, but there are scores for channels 0 "
                f"to {len(attribution) - 1}: count channels from 0."
            )
        at_fault[channel] = 1
    _, level, size = np.unique(-attribution, return_inverse=True, return_counts=True)
    chance: np.ndarray = np.repeat(np.bincount(level, at_fault) / size, size)
    return chance if at_fault.any() else None


def _top(hits: np.ndarray, percent: int) -> int:
    """Number of channels used."""
    if percent < 100:
        raise DataError(
            f"`percent` is {percent}: expected at least 100, since fewer channels than "
            "culprits can't hold them all."
        )
    return int(percent * round(hits.sum()) // 100)


NETWORKS = ("teacher", "student")
CONTROL = "mahalanobis"  # of raw rows
MODELS = (*NETWORKS, CONTROL)
STANDARDISED = "standardised"
SPLITS = (*METHODS, STANDARDISED)
MEASURES: dict[str, Callable[[np.ndarray, Sequence[int]], float]] = {
    "hit_rate_100": hit_rate,
    "hit_rate_150": lambda scores, culprits: hit_rate(scores, culprits, percent=150),
    "ndcg": ndcg,
}
# What the default is chosen by: the mean of both networks, on ASD.
DECISIVE = "hit_rate_100"
DEFAULT = "correlation"  # others are subtracted from it
BATCH_SIZE = 128
RESAMPLES, LEVEL, SEED = 10_000, 0.95, 0

Found = dict[tuple[str, str], np.ndarray]


class Case(NamedTuple):
    """An entity's test rows and the segments in them."""

    series: Series
    segments: list[Culprits]


def main() -> None:
    """Evaluates one data set; the file keeps the entries of others."""
    given = _arguments()
    detectors = {
        name: load_detector(given.workdir / "detectors" / name) for name in MODELS
    }
    entities = detectors[MODELS[0]].entities
    dataset = load_benchmark(given.data, root=given.root, entities=entities)
    cases = [
        Case(series, interpretation(given.data, given.root, series.entity))
        for series in dataset.test
    ]
    found = _evaluate(detectors, cases)
    entry = _entry(found, cases) | {
        "settings": _settings(given.workdir),
        "parameters": {name: detectors[name].model.parameters for name in MODELS},
        "environment": describe_environment(),
    }
    print(markdown(entry, table="rows"))
    print(f"\n{markdown(entry, table='differences')}")
    print(f"\nbetter of {' and '.join(METHODS)}: {entry['better']}")
    if given.output:
        results = json.loads(given.output.read_text()) if given.output.exists() else {}
        write_text(
            given.output, json.dumps(results | {given.data: entry}, indent=1) + "\n"
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, choices=("asd", "smd"))
    parser.add_argument("--root", required=True, help="folder of the data set")
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--output", type=Path, help="JSON file to write or to add to")
    return parser.parse_args()


def _evaluate(detectors: dict[str, Detector], cases: Sequence[Case]) -> Found:
    """Measures `[S, 3]` of all S segments, by model and split."""
    found: Found = {}
    for name, detector in detectors.items():
        blames = [segment_blame(detector, *case) for case in cases]
        for split in SPLITS:
            found[name, split] = np.array(
                [
                    _measured(scores, segment)
                    for case, attribution in zip(cases, blames, strict=True)
                    for scores, segment in zip(
                        attribution[split], case.segments, strict=True
                    )
                ]
            )
        print(name, "done", flush=True)
    found["guess", "none"] = np.array(
        [
            _measured(np.zeros(len(case.series.channels)), segment)
            for case in cases
            for segment in case.segments
        ]
    )
    return found


def _measured(scores: np.ndarray, segment: Culprits) -> list[float]:
    return [measure(scores, segment.channels) for measure in MEASURES.values()]


def segment_blame(
    detector: Detector, series: Series, segments: Sequence[Culprits]
) -> dict[str, list[np.ndarray]]:
    """Contributions `[D]` of each segment, by method."""
    index = entity_index(detector, series.entity)
    gaussian = Gaussian(*(field[index] for field in detector.gaussians))
    scaler = Scaler(*(field[index] for field in detector.scalers))
    starts = _touching(detector, len(series.values), segments)
    errors = residual_batches(
        detector.model,
        apply_scaler(scaler, series.values),
        starts,
        window=detector.window,
        batch_size=BATCH_SIZE,
    )
    deviations = np.concatenate(list(errors)) - gaussian.mean
    rows = starts[:, None] + np.arange(detector.window)
    covering = np.bincount(rows.ravel(), minlength=len(series.values))
    attribution: dict[str, list[np.ndarray]] = {}
    for split, matrix in _matrices(gaussian).items():
        parts = np.asarray(split_deviations(matrix, deviations), np.float64)
        attribution[split] = [
            _mean(parts, rows, covering, segment) for segment in segments
        ]
    return attribution


def _touching(
    detector: Detector, rows: int, segments: Sequence[Culprits]
) -> np.ndarray:
    """Starts of the windows that share a row with a segment."""
    starts = cover_starts(
        np.array([[0, rows]]), window=detector.window, stride=detector.stride
    )
    begin = np.array([segment.start for segment in segments])
    end = np.array([segment.stop for segment in segments])
    first = starts[:, None]
    touching = (first < end) & (first + detector.window > begin)
    return starts[touching.any(axis=1)]


def _matrices(gaussian: Gaussian) -> dict[str, np.ndarray]:
    matrices = {
        method: attribution_matrix(gaussian, method=method) for method in METHODS
    }
    deviations = error_deviations(gaussian.whiten.astype(np.float64))
    return matrices | {STANDARDISED: np.diag(1 / deviations)}


def _mean(
    parts: np.ndarray, rows: np.ndarray, covering: np.ndarray, segment: Culprits
) -> np.ndarray:
    """Mean `[D]` over the segment's rows of their means over windows."""
    inside = (rows >= segment.start) & (rows < segment.stop)
    weight = 1 / covering[rows[inside]]
    mean: np.ndarray = weight @ parts[inside] / (segment.stop - segment.start)
    return mean


def _entry(found: Found, cases: Sequence[Case]) -> dict[str, Any]:
    """The data set's part of the file: means with bootstrap intervals."""
    segments = [segment for case in cases for segment in case.segments]
    draws = np.random.default_rng(SEED).integers(
        len(segments), size=(RESAMPLES, len(segments))
    )
    return {
        "entities": [case.series.entity for case in cases],
        "segments": len(segments),
        "culprits": float(np.mean([len(segment.channels) for segment in segments])),
        "measures": list(MEASURES),
        "resamples": RESAMPLES,
        "level": LEVEL,
        "rows": [
            {"model": model, "split": split} | _intervals(values, draws)
            for (model, split), values in found.items()
        ],
        "differences": [
            {"of": " ".join(of), "minus": " ".join(minus)}
            | _intervals(found[of] - found[minus], draws)
            for of, minus in _pairs()
        ],
        "better": max(METHODS, key=lambda method: _decisive(found, method)),
    }


def _pairs() -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """What is compared segment by segment."""
    splits = [split for split in SPLITS if split != DEFAULT]
    pairs = [((model, DEFAULT), (model, split)) for split in splits for model in MODELS]
    return pairs + [((net, DEFAULT), (CONTROL, DEFAULT)) for net in NETWORKS]


def _decisive(found: Found, method: str) -> float:
    column = list(MEASURES).index(DECISIVE)
    return float(np.mean([found[model, method][:, column] for model in NETWORKS]))


def _intervals(values: np.ndarray, draws: np.ndarray) -> dict[str, Any]:
    """Mean of each column of `[S, 3]` with the bootstrap's percentiles."""
    tail = (1 - LEVEL) / 2
    result = {}
    for name, column in zip(MEASURES, values.T, strict=True):
        low, high = np.quantile(column[draws].mean(axis=1), [tail, 1 - tail])
        result[name] = {"mean": column.mean(), "low": low, "high": high}
    return result


def _settings(workdir: Path) -> dict[str, Any]:
    """The run's config without the place of its data."""
    settings: dict[str, Any] = json.loads((workdir / "config.json").read_text("utf-8"))
    settings["data"].pop("root")
    return settings


def markdown(entry: dict[str, Any], *, table: str) -> str:
    """One of the entry's tables, as `docs/blame.md` has it."""
    measures = entry["measures"]
    heads = [name for name in entry[table][0] if name not in measures] + measures
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for row in entry[table]:
        cells = [_cell(row[name]) for name in heads]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: str | dict[str, float]) -> str:
    if isinstance(value, str):
        return value
    return f"{value['mean']:.3f} ({value['low']:.3f} to {value['high']:.3f})"


if __name__ == "__main__":
    main()
