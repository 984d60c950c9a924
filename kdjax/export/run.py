"""A saved detector as one file, as the verb `export` does it."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from kdjax.artifacts import atomic_path, check_target, clear_leftovers
from kdjax.data.cells import about
from kdjax.data.files import match_channels, read_table
from kdjax.detection.detector import Detector, entity_index, usual_entity
from kdjax.detection.storage import load_detector
from kdjax.errors import ArtifactError, ConfigError, DataError
from kdjax.export.check import Parity, check_export
from kdjax.export.scorer import Scorer, load_onnx

FORMATS = ("onnx", "stablehlo")
QUANTIZE = ("none", "int8")


def export_file(
    detector: str | os.PathLike[str],
    *,
    format: str,
    output: str | os.PathLike[str],
    entity: str | None = None,
    quantize: str = "none",
    data: str | os.PathLike[str] = "",
    time_column: str = "",
    entity_column: str = "",
    label_column: str = "",
) -> Iterator[str]:
    """Writes a detector of one entity to a file; yields what to tell the user.

    The file is checked against the detector on real windows before it takes its name.

    Args:
        detector: folder of a saved detector.
        format: `onnx` or `stablehlo`.
        output: the file to write.
        entity: whose scaler, Normal and threshold the file has; by default the only
            entity's, else the pooled ones.
        quantize: `int8` keeps a network's weights in 8 bits (`onnx` only).
        data: a file of rows to check on; by default the rows that the detector keeps.
        time_column: of `data`; see `read_table`.
        entity_column: of `data`.
        label_column: of `data`.

    Raises:
        ArtifactError: the file decides otherwise than the detector.
        ConfigError: the detector can't be exported so, or there is nothing to check on.
    """
    _check(format, quantize)
    check_target(output, inputs=(data,))
    clear_leftovers(Path(output).parent, (Path(output).name,))
    loaded = load_detector(detector)
    index = entity_index(loaded, entity or usual_entity(loaded))
    yield _entity_line(loaded, index)
    series = (
        []
        if not str(data)
        else _rows(loaded, data, time_column, entity_column, label_column)
    )
    if not series and loaded.reference is not None:
        series = [loaded.reference]
    exporter = _onnx if format == "onnx" else _stablehlo
    content, scorer = exporter(loaded, index)
    parity = check_export(loaded, index, scorer.run, series)
    origin = str(data) or "the detector's reference rows"
    yield _parity_line(parity, origin)
    if parity.flips_beyond_rounding:
        raise ArtifactError(
            f"{output} was not written: {parity.flips_beyond_rounding} of "
            f"{parity.windows:,} decisions differ from the detector's by more than "
            "rounding. Report this with the versions that kdjax info prints."
        )
    if quantize == "int8":
        whole = len(content)
        content, scorer = _onnx(loaded, index, quantize)
        effect = check_export(loaded, index, scorer.run, series)
        yield _effect_line(effect, whole, len(content))
    with atomic_path(output) as temporary:
        temporary.write_bytes(content)
    yield f"{output}: {len(content):,} bytes"


def _check(format: str, quantize: str) -> None:
    if format not in FORMATS:
        raise ConfigError(
            f"--format={format!r} is unknown: use one of {', '.join(FORMATS)}."
        )
    if quantize not in QUANTIZE:
        raise ConfigError(
            f"--quantize={quantize!r} is unknown: use one of {', '.join(QUANTIZE)}."
        )
    if quantize != "none" and format != "onnx":
        raise ConfigError(
            f"--quantize={quantize} is for --format=onnx: leave it out, or export that."
        )


def _entity_line(detector: Detector, index: int) -> str:
    if index == len(detector.entities):
        return (
            "pooled scaler, Normal and threshold; --entity=NAME takes those of "
            f"{', '.join(detector.entities)}"
        )
    return f"scaler, Normal and threshold of {detector.entities[index]}"


def _rows(
    detector: Detector, path: str | os.PathLike[str], *columns: str
) -> Sequence[np.ndarray]:
    """The rows of a user's file, an entity a piece."""
    time_column, entity_column, label_column = columns
    series = read_table(
        path,
        time_column=time_column,
        entity_column=entity_column,
        label_column=label_column,
        missing="mask",
    )
    with about(path):
        rows = [match_channels(one, detector.channels).values for one in series]
    longest = max(map(len, rows))
    if longest < detector.window:
        raise DataError(
            f"{path} has {longest} rows of one entity, and the detector's window is "
            f"{detector.window}: give more rows to check the exported file on."
        )
    return rows


def _onnx(
    detector: Detector, index: int, quantize: str = "none"
) -> tuple[bytes, Scorer]:
    from kdjax.export.detector import onnx_file

    content = onnx_file(detector, index, quantize=quantize)
    return content, load_onnx(content, threads=0)


def _stablehlo(detector: Detector, index: int) -> tuple[bytes, Scorer]:
    from kdjax.export.stablehlo import load_stablehlo, stablehlo_file

    content = stablehlo_file(detector, index)
    return content, load_stablehlo(content)


def _parity_line(parity: Parity, origin: str) -> str:
    return (
        f"checked on {parity.windows:,} of {parity.available:,} windows of {origin}: "
        f"scores differ by at most {parity.max_difference:.1e} (relative), "
        f"{parity.flips} decisions differ"
    )


def _effect_line(effect: Parity, before: int, after: int) -> str:
    return (
        f"int8: {before:,} bytes become {after:,}; window scores change by "
        f"{effect.median_shift:.2%} (median) and {effect.max_shift:.2%} (at most), "
        f"{effect.flips} of {effect.windows:,} decisions differ"
    )
