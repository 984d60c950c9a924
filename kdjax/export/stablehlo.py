"""A detector as a StableHLO file, for programs that run JAX.

    kdjax-stablehlo 1
    {"sha256": …, "payload_bytes": …, "jax_version": …, …}     one line of JSON
    the output of `jax.export`

JAX promises that newer versions run such a payload for six months: use it for deployment,
not for archives.
"""

import json
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, export

from kdjax.data.scaler import apply_scaler
from kdjax.detection.attribution import attribution_matrix
from kdjax.detection.detector import (
    Detector,
    gaussian_of,
    model_of,
    point_scorer,
    scaler_of,
)
from kdjax.detection.scores import window_scores
from kdjax.detection.stream_rules import plan_of
from kdjax.errors import ArtifactError, ConfigError
from kdjax.export import container
from kdjax.export.container import Scored, Scorer
from kdjax.models.lstm import FEW

PLATFORMS = ("cpu", "cuda", "tpu")
SEAL = b'kdjax-stablehlo 1\n{"sha256":"'


def stablehlo_file(detector: Detector, index: int) -> bytes:
    """A StableHLO file of the detector of one entity, for `load_stablehlo`.

    Input and outputs are those of the ONNX file, but `alarm` is int32; B is symbolic.
    The same detector gives the same bytes. ConfigError if rows need float64.
    """
    if detector.scalers.offset.dtype == np.float64:
        raise ConfigError(
            "this detector centres rows in float64, since float32 would lose a channel's "
            "noise, but JAX has float64 only on request: export it with --format=onnx."
        )
    (batch,) = export.symbolic_shape("B")
    shape = (batch, detector.window, len(detector.channels))
    scoring = export.export(jax.jit(_scoring(detector, index)), platforms=PLATFORMS)
    # Keeps the paths of source files out of what JAX lowers.
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        exported = scoring(jax.ShapeDtypeStruct(shape, jnp.float32))
    finally:
        jax.config.update(name, before)
    payload = bytes(exported.serialize())
    header = {
        "sha256": "0" * 64,
        "payload_bytes": len(payload),
        "jax_version": jax.__version__,
        **container.metadata_of(plan_of(detector, index)),
    }
    line = json.dumps(header, separators=(",", ":")).encode()
    return container.sealed(SEAL.split(b"\n")[0] + b"\n" + line + b"\n" + payload, SEAL)


def load_stablehlo(source: str | os.PathLike[str] | bytes) -> Scorer:
    """The detector in a StableHLO file or its bytes; each new number of windows compiles once.

    ArtifactError if the file is damaged, of another program, or too old or new for this JAX.
    """
    name = container.source_name(source)
    data = container.read_sealed(source, SEAL, kind="StableHLO detector")
    try:
        _, line, payload = data.split(b"\n", 2)
        header = dict(json.loads(line))
    except (RecursionError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{name} has no header of kdjax ({error}): export the detector again."
        ) from error
    plan = container.read_plan(header, name)
    try:
        exported = export.deserialize(bytearray(payload))
        call = jax.jit(exported.call)
    except Exception as error:  # the class depends on jax's version
        raise ArtifactError(
            f"{name} was made with jax {header.get('jax_version')}, but jax "
            f"{jax.__version__} can't read it ({error!r}): export the detector again."
        ) from error

    def run(windows: np.ndarray) -> Scored:
        return Scored(*map(np.asarray, call(windows)))

    return container.checked_scorer(plan, run)


def _scoring(detector: Detector, index: int) -> Callable[[Array], Any]:
    """A function from raw windows to the fields of `Scored`, with its weights inside."""
    model, gaussian = model_of(detector, index), gaussian_of(detector, index)
    attribution = attribution_matrix(gaussian, method=detector.attribution)
    common = (model.params, gaussian, attribution)
    scaler = scaler_of(detector, index)
    plain, missing = point_scorer(model.form), point_scorer(model.form, True)
    tau = detector.thresholds[index].tau

    def scores(windows: Array) -> Any:
        batch = windows.shape[0]
        # Few windows would run other code than many: zeros make every batch large, so
        # that one program serves all sizes.
        padded = jnp.concatenate(
            [windows, jnp.zeros((FEW, *windows.shape[1:]), windows.dtype)]
        )
        scaled = apply_scaler(scaler, padded)
        gaps = jnp.isnan(scaled).any()
        points, parts = jax.lax.cond(gaps, missing, plain, common, scaled)
        points, parts = points[:batch], parts[:batch]
        largest = window_scores(points, count=detector.allowed_points)
        return points, largest, (largest > tau).astype(jnp.int32), parts

    return scores
