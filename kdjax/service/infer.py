"""The Open Inference Protocol, version 2: windows to scores, as JSON or binary tensors.

KServe and Triton speak it; see https://github.com/kserve/open-inference-protocol. The
graph is that of an exported file: input `x [B, L, D]` of raw rows, outputs `point_score`,
`window_score`, `alarm` and `contribution`.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from kdjax.export.container import OUTPUTS
from kdjax.io.files import kdjax_version
from kdjax.service.bodies import RequestError, as_json
from kdjax.service.loading import Loaded

KINDS = {"FP32": "<f4", "FP64": "<f8", "INT64": "<i8"}
HEADER = "inference-header-content-length"
_INPUT = {"name", "shape", "datatype", "parameters", "data"}


def about_server() -> dict[str, Any]:
    """The answer of `/v2`."""
    return {
        "name": "kdjax",
        "version": kdjax_version(),
        "extensions": ["binary_tensor_data"],
    }


def about_model(name: str, loaded: Loaded) -> dict[str, Any]:
    """The answer of `/v2/models/{name}`."""
    plan = loaded.plan
    length, width = plan.window, len(plan.channels)
    shapes = ([-1, length], [-1], [-1], [-1, length, width])
    kinds = ("FP32", "FP32", "INT64", "FP32")
    x = {"name": "x", "datatype": _kind_of(plan.dtype), "shape": [-1, length, width]}
    return {
        "name": name,
        "versions": [loaded.digest],
        "platform": f"kdjax_{loaded.backend}",
        "inputs": [x],
        "outputs": [
            {"name": output, "datatype": kind, "shape": shape}
            for output, kind, shape in zip(OUTPUTS, kinds, shapes, strict=True)
        ],
    }


def answer_inference(
    name: str, loaded: Loaded, data: bytes, headers: Mapping[str, str], *, most: int
) -> tuple[bytes, dict[str, str]]:
    """Body and headers of the answer to an inference request.

    Args:
        name: of the model.
        loaded: the detector.
        data: the request's body.
        headers: the request's; those of binary tensors have the length of the JSON part.
        most: most rows of windows.
    """
    request, rest = _split(data, headers)
    windows = _windows(request, rest, loaded, most)
    wanted = request.get("outputs")
    names = [*OUTPUTS] if wanted is None else [_name(one) for one in _list(wanted)]
    binary = _parameters(request).get("binary_data_output") is True
    asked = {_name(one): _parameters(one) for one in wanted or []}
    found = loaded.scored(windows, "")._asdict()
    outputs, blobs = list[dict[str, Any]](), list[bytes]()
    for output in names:
        values = np.ascontiguousarray(found[output])
        kind = "INT64" if output == "alarm" else _kind_of(values.dtype.name)
        one: dict[str, Any] = {
            "name": output,
            "datatype": kind,
            "shape": [*values.shape],
        }
        if asked.get(output, {}).get("binary_data", binary) is True:
            blobs.append(values.astype(KINDS[kind]).tobytes())
            one["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            one["data"] = [_number(value) for value in values.ravel().tolist()]
        outputs.append(one)
    answer = {
        "model_name": name,
        "model_version": loaded.digest,
        **({"id": request["id"]} if isinstance(request.get("id"), str) else {}),
        "outputs": outputs,
    }
    text = json.dumps(answer, allow_nan=False, separators=(",", ":")).encode()
    if not blobs:
        return text, {"content-type": "application/json"}
    length = {HEADER: str(len(text)), "content-type": "application/octet-stream"}
    return b"".join([text, *blobs]), length


def _kind_of(dtype: str) -> str:
    return "FP64" if dtype == "float64" else "FP32"


def _number(value: float) -> float | str | None:
    """A number for JSON: null for unknown scores, a text for infinite ones."""
    if isinstance(value, int) or math.isfinite(value):
        return value
    return "inf" if value > 0 else None


def _split(data: bytes, headers: Mapping[str, str]) -> tuple[dict[str, Any], bytes]:
    """The JSON part of a request and the tensors after it."""
    length = len(data)
    if (given := headers.get(HEADER)) is not None:
        if not given.isascii() or not given.isdigit() or int(given) > length:
            raise RequestError(400, f"{HEADER}: {given!r} is not a length in the body.")
        length = int(given)
    request = as_json(data[:length])
    if not isinstance(request, dict):
        raise RequestError(400, "give a JSON object with `inputs`.")
    return request, data[length:]


def _list(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise RequestError(400, "`inputs` and `outputs` must be lists of objects.")
    return value


def _name(output: Mapping[str, Any]) -> str:
    name = output.get("name")
    if name not in OUTPUTS:
        raise RequestError(400, f"unknown output {name!r}: use {', '.join(OUTPUTS)}.")
    return str(name)


def _parameters(of: Mapping[str, Any]) -> Mapping[str, Any]:
    found = of.get("parameters")
    return found if isinstance(found, dict) else {}


def _windows(
    request: Mapping[str, Any], rest: bytes, loaded: Loaded, most: int
) -> np.ndarray:
    """The input `x [B, L, D]`, NaN where it is null, in the detector's dtype."""
    inputs = _list(request.get("inputs"))
    if (
        len(inputs) != 1
        or inputs[0].get("name") != "x"
        or not inputs[0].keys() <= _INPUT
    ):
        raise RequestError(400, "give one input, `x`.")
    x, plan = inputs[0], loaded.plan
    kind, shape = x.get("datatype"), x.get("shape")
    length, width = plan.window, len(plan.channels)
    if kind not in ("FP32", "FP64"):
        raise RequestError(400, f"`x` is {kind!r}: give FP32 or FP64.")
    shape = shape if isinstance(shape, list) else []
    whole = all(type(n) is int and n >= 0 for n in shape)
    if not whole or len(shape) != 3 or shape[1:] != [length, width] or not shape[0]:
        raise RequestError(400, f"`x` has shape {shape}: give [B, {length}, {width}].")
    if shape[0] * length > most:
        raise RequestError(413, f"more than {most} rows in windows.", "rows")
    cells = math.prod(shape)
    size = _parameters(x).get("binary_data_size")
    if size is not None:
        if size != len(rest) or size != cells * np.dtype(KINDS[kind]).itemsize:
            raise RequestError(400, f"binary_data_size {size} is not that of `x`.")
        found = np.frombuffer(rest, KINDS[kind]).astype(np.float64)
        missing = np.isnan(found)
    else:
        flat = np.array(x.get("data"), object).ravel().tolist()
        if len(flat) != cells or not {*map(type, flat)} <= {float, int, type(None)}:
            raise RequestError(400, f"`data` must have {cells} numbers or nulls.")
        try:
            found = np.array(flat, np.float64)
        except (OverflowError, TypeError, ValueError):
            raise RequestError(400, "`data` has numbers beyond float64.") from None
        missing = np.isnan(found)
    if (np.abs(found[~missing]) >= 2.0**128 - 2.0**103).any():
        raise RequestError(400, "`x` has numbers that are infinite or beyond float32.")
    return found.reshape(shape).astype(plan.dtype)
