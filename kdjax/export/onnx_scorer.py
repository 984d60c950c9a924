"""An exported ONNX detector, run by onnxruntime; needs neither jax nor onnx."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from kdjax.detection.streaming import Plan
from kdjax.errors import ArtifactError, ConfigError
from kdjax.export.container import read_plan, read_sealed, source_name

# How protobuf writes the metadata entry `sha256` up to its 64 characters.
SEAL = b"\x0a\x06sha256\x12\x40"

OUTPUTS = ("point_score", "window_score", "alarm", "contribution")


class Scored(NamedTuple):
    """What a detector says of windows.

    Attributes:
        point_score: a_t, `[B, L]`; NaN in rows without a value.
        window_score: `[B]`; NaN where too few points have a score.
        alarm: `[B]`, 1 where the window score is above τ, else 0.
        contribution: of each channel, `[B, L, D]`.
    """

    point_score: np.ndarray
    window_score: np.ndarray
    alarm: np.ndarray
    contribution: np.ndarray


class Scorer(NamedTuple):
    """An exported detector, ready to run.

    Attributes:
        plan: what a stream must know besides.
        run: windows `[B, L, D]` of raw rows, NaN where a value is missing, to scores.
    """

    plan: Plan
    run: Callable[[np.ndarray], Scored]


def load_onnx(source: str | os.PathLike[str] | bytes, *, threads: int = 1) -> Scorer:
    """The detector in an ONNX file or its bytes.

    Args:
        source: a path, or the file's bytes.
        threads: within one operator; one is fastest for single windows. 0: as many as
            onnxruntime likes.

    Raises:
        ArtifactError: the file is damaged, foreign, or too new.
        ConfigError: onnxruntime is not installed.
    """
    data = verify_onnx(source)
    session = _session(data, threads, source_name(source))
    metadata = session.get_modelmeta().custom_metadata_map
    plan = read_plan(metadata, source_name(source))

    def run(windows: np.ndarray) -> Scored:
        rows = np.ascontiguousarray(windows, np.float32)
        return Scored(*session.run(OUTPUTS, {"x": rows}))

    return Scorer(plan, run)


def verify_onnx(source: str | os.PathLike[str] | bytes) -> bytes:
    """The bytes of an exported ONNX file, or those given, once their digest is right.

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
    # Kernels of 8 bits become float32 once, not in each call.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        return onnxruntime.InferenceSession(
            data, options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's errors share no other class
        raise ArtifactError(
            f"onnxruntime {onnxruntime.__version__} can't run {name} ({error}): install "
            "a newer one."
        ) from error
