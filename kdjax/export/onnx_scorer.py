"""Runs an exported ONNX detector in onnxruntime; imports neither jax nor onnx."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from kdjax.detection.stream_rules import Plan
from kdjax.errors import ArtifactError, ConfigError
from kdjax.export.container import read_plan, read_sealed, source_name

# How protobuf writes the metadata entry `sha256` up to its 64 characters.
SEAL = b"\x0a\x06sha256\x12\x40"

OUTPUTS = ("point_score", "window_score", "alarm", "contribution")


class Scored(NamedTuple):
    """Outputs of a detector; scores are NaN where they are unknown."""

    point_score: np.ndarray  # [B, L], a_t
    window_score: np.ndarray  # [B]
    alarm: np.ndarray  # [B], 1 where the window score is above τ, else 0
    contribution: np.ndarray  # [B, L, D]


class Scorer(NamedTuple):
    """A loaded detector.

    Attributes:
        plan: the rules of a stream.
        run: from windows `[B, L, D]` of raw rows, NaN where a value is missing.
    """

    plan: Plan
    run: Callable[[np.ndarray], Scored]


def load_onnx(source: str | os.PathLike[str] | bytes, *, threads: int = 1) -> Scorer:
    """The detector in an ONNX file or its bytes.

    Args:
        source: a path, or the file's bytes.
        threads: within one operator; one is fastest for single windows, 0 leaves the
            choice to onnxruntime.

    Raises:
        ArtifactError: the file is damaged, foreign, or too new.
        ConfigError: onnxruntime is not installed.
    """
    name = source_name(source)
    session = _session(verify_onnx(source), threads, name)
    plan = read_plan(session.get_modelmeta().custom_metadata_map, name)

    def run(windows: np.ndarray) -> Scored:
        rows = np.ascontiguousarray(windows, np.float32)
        return Scored(*session.run(OUTPUTS, {"x": rows}))

    return Scorer(plan, run)


def verify_onnx(source: str | os.PathLike[str] | bytes) -> bytes:
    """The bytes of an exported ONNX file, given by path or as bytes, verified.

    Raises:
        ArtifactError: the file is missing, damaged, or not from kdjax.
    """
    return read_sealed(source, SEAL, kind="ONNX detector")


def _session(data: bytes, threads: int, name: str) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(
            'running ONNX files needs onnxruntime: pip install "kdjax[onnx]".'
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Converts 8-bit kernels to float32 once, not in each call.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        return onnxruntime.InferenceSession(
            data, options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's errors have no class of their own
        raise ArtifactError(
            f"onnxruntime {onnxruntime.__version__} can't run {name} ({error}): install "
            "a newer one."
        ) from error
