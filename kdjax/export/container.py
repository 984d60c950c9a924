"""Exported files: metadata, digest, and the runtime of ONNX files.

A file contains its own SHA-256 digest, computed with 64 zeros in the digest's place. It is
verified before anything else in the file is read. It detects corruption, not tampering.
This module imports neither jax nor onnx.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kdjax.detection.stream_rules import Plan, plan_from_json, plan_to_json
from kdjax.errors import ArtifactError, DataError
from kdjax.io.files import check_schema, kdjax_version
from kdjax.io.lazy import library

SCHEMA = 1
# Largest size of protobuf, ONNX's encoding.
MAX_BYTES = 2**31 - 1

_BLANK = b"0" * 64
_AGAIN = "Copy it again, or export the detector again (kdjax export)."

# How protobuf writes the metadata entry `digest` up to its 64 characters.
SEAL = b"\x0a\x06digest\x12\x40"
OLD_SEAL = b"\x0a\x06sha256\x12\x40"  # of version 0.1.0

FORMATS = ("onnx", "stablehlo")
QUANTIZE = ("none", "int8")
OUTPUTS = ("point_score", "window_score", "alarm", "contribution")


class Scored(NamedTuple):
    """Outputs of a detector; scores are NaN where they are unknown."""

    point_score: np.ndarray  # [B, L], a_t
    window_score: np.ndarray  # [B]
    alarm: np.ndarray  # [B], 1 where the window score is above τ, else 0
    contribution: np.ndarray  # [B, L, D]


class Scorer(NamedTuple):
    """A loaded detector."""

    plan: Plan  # the rules of a stream
    # Of windows [B, L, D] of raw rows, NaN if missing; DataError for another shape.
    run: Callable[[np.ndarray], Scored]


def load_onnx(source: str | os.PathLike[str] | bytes, *, threads: int = 1) -> Scorer:
    """The detector in an ONNX file or its bytes.

    `threads` within one operator: one is fastest for single windows, with 0 onnxruntime
    chooses. ArtifactError if the file is damaged, of another program, or too new;
    ConfigError if onnxruntime is not installed.
    """
    name = source_name(source)
    data = read_sealed(source, SEAL, OLD_SEAL, kind="ONNX detector")
    onnxruntime = library("onnxruntime", "running ONNX files needs onnxruntime", "onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Converts 8-bit kernels to float32 once, not in each call.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        session = onnxruntime.InferenceSession(
            data, options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's errors have no class of their own
        raise ArtifactError(
            f"onnxruntime {onnxruntime.__version__} can't run {name} ({error}): install "
            "a newer one."
        ) from error
    plan = read_plan(session.get_modelmeta().custom_metadata_map, name)

    def run(windows: np.ndarray) -> Scored:
        return Scored(*session.run(OUTPUTS, {"x": windows}))

    return checked_scorer(plan, run)


def checked_scorer(plan: Plan, run: Callable[[np.ndarray], Scored]) -> Scorer:
    """A scorer that refuses windows of another shape and answers an empty batch itself.

    onnxruntime ends the whole process for 0 windows of an LSTM.
    """
    shape = (plan.window, len(plan.channels))

    def checked(windows: np.ndarray) -> Scored:
        rows = np.ascontiguousarray(windows, plan.dtype)
        if rows.ndim != 3 or rows.shape[1:] != shape:
            raise DataError(
                f"windows of shape {list(np.shape(windows))}: the detector takes [B, "
                f"{shape[0]}, {shape[1]}], B windows of {shape[0]} rows of {shape[1]} "
                "channels."
            )
        if not len(rows):
            return Scored(
                rows[:, :, 0], np.empty(0, np.float32), np.empty(0, np.int64), rows
            )
        return run(rows)

    return Scorer(plan, checked)


def metadata_of(plan: Plan) -> dict[str, str]:
    """The metadata of an exported detector."""
    return {
        "channels": json.dumps(plan.channels),
        "window": str(plan.window),
        "threshold": repr(plan.tau),
        "threshold_method": plan.threshold_method,
        "entity": plan.entity,
        "input_dtype": plan.dtype,
        "schema": str(SCHEMA),
        "kdjax_version": kdjax_version(),
        "stream": plan_to_json(plan, whole=True),
    }


def read_plan(metadata: dict[str, str], name: str) -> Plan:
    """The plan in a verified file's metadata; ArtifactError if it isn't kdjax's."""
    try:
        schema = int(metadata["schema"])
        # Called `plan` by version 0.1.0.
        text = metadata["stream" if "stream" in metadata else "plan"]
    except (LookupError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{name} has no stream rules of kdjax in its metadata ({error!r}). {_AGAIN}"
        ) from error
    check_schema(name, schema, known=SCHEMA, version=metadata.get("kdjax_version"))
    return plan_from_json(text)


def sealed(data: bytes, before: bytes) -> bytes:
    """`data` with its digest written over the 64 zeros that follow `before`."""
    place = data.index(before + _BLANK) + len(before)
    digest = hashlib.sha256(data).hexdigest().encode()
    return data[:place] + digest + data[place + len(digest) :]


def read_sealed(
    source: str | os.PathLike[str] | bytes, *seals: bytes, kind: str
) -> bytes:
    """The bytes of a sealed file, verified; one of `seals` is right before the digest, once.

    ArtifactError if the file is missing, too large, damaged, or of another program.
    """
    name, data = source_name(source), source
    if not isinstance(data, bytes):
        path = Path(data)
        try:
            size = path.stat().st_size
            if size > MAX_BYTES:
                raise ArtifactError(
                    f"{path} has {size:,} bytes, but an exported detector has at most "
                    f"{MAX_BYTES:,}: give a file that kdjax exported."
                )
            data = path.read_bytes()
        except OSError as error:
            raise ArtifactError(
                f"{path} can't be read ({error.strerror}): give a file that kdjax "
                "exported."
            ) from error
    before = next((seal for seal in seals if data.count(seal) == 1), None)
    if before is None:
        raise ArtifactError(
            f"{name} is damaged or is no {kind} of kdjax: its digest is missing. {_AGAIN}"
        )
    place = data.index(before) + len(before)
    end = place + len(_BLANK)
    found = hashlib.sha256(data[:place] + _BLANK + data[end:]).hexdigest()
    if found.encode() != data[place:end]:
        raise ArtifactError(
            f"{name} is damaged: its SHA-256 digest differs from the one inside. "
            f"{_AGAIN}"
        )
    return data


def source_name(source: str | os.PathLike[str] | bytes) -> str:
    """The name of a file in messages."""
    return "the file" if isinstance(source, bytes) else os.fspath(source)
