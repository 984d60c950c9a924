"""Exports a saved detector to one file and checks it against the detector.

Both compute in float32, in another order. On the networks measured (6 to 200 units, 5
to 38 channels) scores differ by up to 3e-6 of max(1, score), and by up to 4e-5 where
missing cells are completed under a nearly singular Gaussian. Decisions may differ only
if a score lies that close to τ.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdjax.data.raw import about
from kdjax.data.readers import match_channels
from kdjax.data.windowing import gather
from kdjax.detection.detector import Detector, entity_index, score_batches, usual_entity
from kdjax.detection.reading import read_like
from kdjax.detection.scores import window_scores
from kdjax.detection.storage import load_detector
from kdjax.errors import ArtifactError, ConfigError, DataError, check_choice
from kdjax.export.container import FORMATS, QUANTIZE, Scored, Scorer, load_onnx
from kdjax.io.files import atomic_path, check_target, clear_leftovers
from kdjax.io.messages import acting

# A window score within this share of τ may be on either side of it.
ROUNDING = 1e-4
# Most windows that are compared, evenly spaced.
WINDOWS = 1000


class Parity(NamedTuple):
    """Agreement of a file with its detector; differences relative to max(1, score)."""

    windows: int  # number of compared windows
    available: int  # at stride 1
    max_difference: float  # of point scores, window scores and contributions
    median_shift: float  # of window scores
    max_shift: float
    flips: int  # windows with different alarms, or with a score on one side only
    flips_beyond_rounding: int  # of these, with a score further from τ than `ROUNDING`


def check_export(
    detector: Detector,
    index: int,
    run: Callable[[np.ndarray], Scored],
    series: Sequence[np.ndarray],
) -> Parity:
    """Compares `run` with kdjax on windows `[B, L, D]` at stride 1 of raw rows `[N, D]`.

    ConfigError if no series has a complete window.
    """
    length, tau = detector.window, detector.thresholds[index].tau
    counts = [max(0, len(rows) - length + 1) for rows in series]
    available = sum(counts)
    if not available:
        raise ConfigError(
            f"there is no window of {length} rows to check the exported file on: give a "
            "file with such rows as --data=FILE."
        )
    chosen = np.linspace(0, available - 1, min(available, WINDOWS))
    places = np.rint(chosen).astype(np.int64)
    batches: list[tuple[Scored, Scored]] = []
    for rows, count in zip(series, counts, strict=True):
        starts, places = places[places < count], places[places >= count] - count
        rows, first = np.asarray(rows, detector.scalers.offset.dtype), 0
        for points, parts in score_batches(detector, index, rows, starts, explain=True):
            own = starts[first : first + len(points)]
            first += len(own)
            largest = window_scores(points, count=detector.allowed_points)
            expected = Scored(points, largest, (largest > tau).astype(np.int64), parts)
            batches.append((expected, run(gather(rows, own, length))))
    ours, theirs = (
        Scored(*map(np.concatenate, zip(*side, strict=True)))
        for side in zip(*batches, strict=True)
    )
    shifts = _difference(theirs.window_score, ours.window_score)
    # A contribution's difference is a share of the whole score.
    whole = ours.point_score[..., None]
    largest_shifts = (
        shifts.max(),
        _difference(theirs.point_score, ours.point_score).max(),
        _difference(theirs.contribution, ours.contribution, whole).max(),
    )
    unknown = np.isnan(ours.window_score) != np.isnan(theirs.window_score)
    flipped = unknown | (ours.alarm != theirs.alarm)
    flips = ours.window_score[flipped].astype(np.float64)
    return Parity(
        windows=len(shifts),
        available=available,
        max_difference=float(max(largest_shifts)),
        median_shift=float(np.median(shifts)),
        max_shift=float(shifts.max()),
        flips=len(flips),
        # NaN counts as beyond rounding.
        flips_beyond_rounding=int((~(np.abs(flips - tau) <= ROUNDING * tau)).sum()),
    )


def _difference(
    found: np.ndarray, expected: np.ndarray, unit: np.ndarray | None = None
) -> np.ndarray:
    """|found − expected| / max(1, unit); infinite if only one is a finite number."""
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    unit = expected if unit is None else unit
    with np.errstate(invalid="ignore", over="ignore"):
        distance = np.abs(found - expected) / np.maximum(1, unit)
    finite = np.isfinite(found) & np.isfinite(expected)
    return np.where(same, 0, np.where(finite, distance, np.inf))


@acting
def export_file(
    detector: str | os.PathLike[str],
    *,
    format: str,
    output: str | os.PathLike[str],
    entity: str | None = None,
    quantize: str = "none",
    data: str | os.PathLike[str] = "",
    **reading: Any,
) -> Iterator[str]:
    """Writes a detector of one entity to a file; reports the results.

    The file is checked against the detector on real windows before it is written.
    `log`, such as `print`, receives each message at once; all are returned.

    Args:
        detector: folder of a saved detector.
        format: `onnx` or `stablehlo`.
        output: the file to write.
        entity: of the scaler, Gaussian and threshold; by default the only entity, else
            the pooled ones.
        quantize: `int8` stores large weights in 8 bits (`onnx` only).
        data: a file of rows to check on; by default the detector's reference rows.
        reading: of `data`; for `read_like`.

    Raises:
        ArtifactError: the file's alarms differ from the detector's.
        ConfigError: the format doesn't support the detector, or there are no rows to check.
    """
    check_choice("--format", format, FORMATS)
    check_choice("--quantize", quantize, QUANTIZE)
    if quantize != "none" and format != "onnx":
        raise ConfigError(
            f"--quantize={quantize} is for --format=onnx: remove it, or export ONNX."
        )
    check_target(output, inputs=(data,))
    clear_leftovers(Path(output).parent, (Path(output).name,))
    loaded = load_detector(detector)
    index = entity_index(loaded, entity or usual_entity(loaded))
    if index < len(loaded.entities):
        yield f"scaler, Gaussian and threshold of {loaded.entities[index]}"
    else:
        yield (
            "pooled scaler, Gaussian and threshold; --entity=NAME takes those of "
            f"{', '.join(loaded.entities)}"
        )
    series: Sequence[np.ndarray] = []
    if str(data):
        series = _rows(loaded, data, **reading)
    elif loaded.reference is not None:
        series = [loaded.reference]
    content, scorer, parity = _exported(loaded, index, series, format)
    yield (
        f"checked on {parity.windows:,} of {parity.available:,} windows of "
        f"{str(data) or 'the reference rows of the detector'}: scores differ by at most "
        f"{parity.max_difference:.1e} (relative), {parity.flips} decisions differ"
    )
    _check_parity(parity, output)
    if format == "onnx":
        yield f"input x is {scorer.plan.dtype}"
    if quantize == "int8":
        before = len(content)
        content, _, effect = _exported(loaded, index, series, format, quantize)
        yield (
            f"int8: {before:,} bytes become {len(content):,}; window scores change by "
            f"{effect.median_shift:.2%} (median) and {effect.max_shift:.2%} (at most), "
            f"{effect.flips} of {effect.windows:,} decisions differ"
        )
    with atomic_path(output) as temporary:
        temporary.write_bytes(content)
    yield f"{output}: {len(content):,} bytes"


def export_onnx(
    detector: Detector, output: str | os.PathLike[str], *, entity: str | None = None
) -> Parity:
    """Writes a detector of one entity as an ONNX file, checked on its reference rows.

    Args:
        detector: such as from `load_detector`.
        output: the file to write.
        entity: of the scaler, Gaussian and threshold; by default the only entity, else
            the pooled ones.

    Returns:
        The agreement of the file with the detector.

    Raises:
        ArtifactError: the file's alarms differ from the detector's.
        ConfigError: the detector has no reference rows, or can't be exported.

    Example:
        >>> import kdjax
        >>> detector = kdjax.load_detector("runs/plant/detectors/classifier")  # doctest: +SKIP
        >>> kdjax.export_onnx(detector, "plant.onnx").flips  # doctest: +SKIP
        0
    """
    return _export(detector, output, entity, "onnx")


def export_stablehlo(
    detector: Detector, output: str | os.PathLike[str], *, entity: str | None = None
) -> Parity:
    """Writes a detector of one entity as a StableHLO file; see `export_onnx`."""
    return _export(detector, output, entity, "stablehlo")


def _export(
    detector: Detector, output: str | os.PathLike[str], entity: str | None, format: str
) -> Parity:
    check_target(output)
    index = entity_index(detector, entity or usual_entity(detector))
    series = [] if detector.reference is None else [detector.reference]
    content, _, parity = _exported(detector, index, series, format)
    _check_parity(parity, output)
    with atomic_path(output) as temporary:
        temporary.write_bytes(content)
    return parity


def _check_parity(parity: Parity, output: str | os.PathLike[str]) -> None:
    """Raises ArtifactError if decisions differ by more than rounding."""
    if parity.flips_beyond_rounding:
        raise ArtifactError(
            f"{output} was not written: {parity.flips_beyond_rounding} of "
            f"{parity.windows:,} decisions differ from the detector's by more than "
            "rounding. Report this with the versions that kdjax info prints."
        )


def _rows(
    detector: Detector, path: str | os.PathLike[str], **reading: Any
) -> Sequence[np.ndarray]:
    """The rows of a user's file, one array per entity."""
    dtype = detector.scalers.offset.dtype
    series = read_like(detector, path, dtype=dtype, missing="mask", **reading)
    with about(path):
        rows = [match_channels(one, detector.channels).values for one in series]
    longest = max(map(len, rows))
    if longest < detector.window:
        raise DataError(
            f"{path} has {longest} rows of one entity, but the detector's window is "
            f"{detector.window}: give more rows to check the exported file on."
        )
    return rows


def _exported(
    detector: Detector,
    index: int,
    series: Sequence[np.ndarray],
    format: str,
    quantize: str = "none",
) -> tuple[bytes, Scorer, Parity]:
    """The loaded file, and its agreement with the detector on series of raw rows."""
    if format == "onnx":
        from kdjax.export.onnx import onnx_file

        content = onnx_file(detector, index, quantize=quantize)
        scorer = load_onnx(content, threads=0)
    else:
        from kdjax.export.stablehlo import load_stablehlo, stablehlo_file

        content = stablehlo_file(detector, index)
        scorer = load_stablehlo(content)
    return content, scorer, check_export(detector, index, scorer.run, series)
