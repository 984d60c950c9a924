"""A whole detector as one ONNX graph: raw windows in; scores, alarm, contributions out.

    x [B, L, D]  →  (x − offset) / scale  →  errors e of the residual model
                 →  d = e − μ  →  a = ‖W d‖²  →  window score  →  alarm where it is > τ

It follows `kdjax.models.missing`, `kdjax.models.residual`, `kdjax.detection.scores` and
`kdjax.detection.attribution` operator by operator. The operators for missing cells (NaN)
are in branches that run only where a batch has some.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from kdjax.detection.attribution import attribution_matrix
from kdjax.detection.detector import Detector, gaussian_of, scaler_of
from kdjax.detection.stream_rules import plan_of
from kdjax.errors import ConfigError
from kdjax.export.container import metadata_of, sealed
from kdjax.export.onnx_graph import (
    DOUBLE,
    INT64,
    Graph,
    Model,
    Value,
    add,
    inner_graph,
    new_graph,
    quantized,
    to_attribute,
    to_model,
)
from kdjax.export.onnx_layers import add_completion, add_fill, add_network, mark_unknown
from kdjax.export.onnx_scorer import SEAL
from kdjax.models.baselines import MOVING_AVERAGE_ROWS
from kdjax.models.residual import ResidualModel, component, components_of

_INFINITY = np.float32(np.inf)


def detector_graph(
    detector: Detector,
    index: int,
    *,
    metadata: Mapping[str, str],
    quantize: str = "none",
) -> Model:
    """The detector of one entity as an ONNX model, checked by onnx.

    Input `x [B, L, D]` float32 in raw units, NaN where a value is missing; B is dynamic.
    Outputs `point_score [B, L]`, `window_score [B]`, `alarm [B]` (int64, 0 or 1) and
    `contribution [B, L, D]`. Scores are NaN where they are unknown; the alarm is 0 then.

    Args:
        detector: the detector.
        index: from `entity_index`.
        metadata: of the file.
        quantize: `int8` keeps the kernels of the LSTM nodes in 8 bits.

    Raises:
        ConfigError: the model has no ONNX form, or nothing to quantise.
    """
    _check(detector.model, quantize)
    graph = new_graph()
    offset, scale = scaler_of(detector, index)
    scaled = add(graph, "Div", add(graph, "Sub", "x", offset), scale)
    # A sum is NaN if a term is, and where infinities cancel: the branches for missing
    # cells then change nothing.
    missing = add(graph, "IsNaN", add(graph, "ReduceSum", "x", keepdims=0))
    filled = _either(
        graph,
        missing,
        lambda inner: [add_fill(inner, scaled, length=detector.window)],
        lambda inner: [add(inner, "Identity", scaled)],
        outputs=1,
    )
    errors = _errors(graph, detector.model, filled)
    _either(
        graph,
        missing,
        lambda inner: _scores(inner, detector, index, errors, holes=scaled),
        lambda inner: _scores(inner, detector, index, errors, holes=None),
        outputs=("point_score", "window_score", "contribution"),
    )
    _add_alarm(graph, detector.thresholds[index].tau)
    if quantize == "int8":
        graph = quantized(graph)
    length, width = detector.window, len(detector.channels)
    return to_model(
        graph,
        [Value("x", ("B", length, width))],
        [
            Value("point_score", ("B", length)),
            Value("window_score", ("B",)),
            Value("alarm", ("B",), INT64),
            Value("contribution", ("B", length, width)),
        ],
        name="kdjax_detector",
        metadata=metadata,
    )


def onnx_file(detector: Detector, index: int, *, quantize: str = "none") -> bytes:
    """The bytes of `detector_graph` with its plan and digest.

    The same detector gives the same bytes.
    """
    blank = {"sha256": "0" * 64}
    metadata = metadata_of(plan_of(detector, index)) | blank
    model = detector_graph(detector, index, metadata=metadata, quantize=quantize)
    return sealed(model.SerializeToString(deterministic=True), SEAL)


def _check(model: ResidualModel, quantize: str) -> None:
    without = [kind for kind in components_of(model.kind) if kind not in _ERRORS]
    if without:
        raise ConfigError(
            f"a detector of kind {without[0]!r} has no ONNX form: export a detector of "
            f"one of the kinds {', '.join(_ERRORS)}."
        )
    if quantize != "none" and model.architecture is None:
        raise ConfigError(
            f"quantize={quantize!r} makes the weights of networks smaller, and "
            f"{model.kind!r} has none: leave it out."
        )


# Errors of the residual models, see `kdjax.models.residual`.


def _errors(graph: Graph, model: ResidualModel, windows: str) -> str:
    """The errors of all components, `[B, L, F]`."""
    kinds = components_of(model.kind)
    found = [_ERRORS[kind](graph, component(model, kind), windows) for kind in kinds]
    return add(graph, "Concat", *found, axis=2) if len(found) > 1 else found[0]


def _autoencoder(graph: Graph, model: ResidualModel, windows: str) -> str:
    assert model.architecture is not None
    outputs = add_network(graph, model.architecture, model.params, windows)
    return add(graph, "Abs", add(graph, "Sub", windows, outputs))


def _mahalanobis(graph: Graph, model: ResidualModel, windows: str) -> str:
    return windows


def _difference(graph: Graph, model: ResidualModel, windows: str) -> str:
    later = add(graph, "Slice", windows, [1], [2**31], [1])
    earlier = add(graph, "Slice", windows, [0], [-1], [1])
    steps = add(graph, "Abs", add(graph, "Sub", later, earlier))
    return add(graph, "Pad", steps, [0, 1, 0, 0, 0, 0])


def _moving_average(graph: Graph, model: ResidualModel, windows: str) -> str:
    series = add(graph, "Transpose", windows, perm=[0, 2, 1])
    # Padding is not counted: early means are of fewer rows.
    rows = MOVING_AVERAGE_ROWS
    means = add(
        graph,
        "AveragePool",
        series,
        kernel_shape=[rows],
        pads=[rows - 1, 0],
        count_include_pad=0,
    )
    means = add(graph, "Transpose", means, perm=[0, 2, 1])
    return add(graph, "Abs", add(graph, "Sub", windows, means))


def _pca(graph: Graph, model: ResidualModel, windows: str) -> str:
    components = np.asarray(model.params["components"])
    centred = add(graph, "Sub", windows, np.asarray(model.params["mean"]))
    codes = add(graph, "MatMul", centred, components.T)
    projected = add(graph, "MatMul", codes, components)
    return add(graph, "Abs", add(graph, "Sub", centred, projected))


def _kmeans(graph: Graph, model: ResidualModel, windows: str) -> str:
    centres = np.asarray(model.params["centres"])
    middle = centres.mean(axis=0)
    around = (centres - middle).reshape(len(centres), -1)
    squares = (around.astype(np.float64) ** 2).sum(axis=1).astype(np.float32)
    # By name, so that the distances and the choice share them.
    graph.weights["around"] = around
    centred = add(graph, "Sub", windows, middle)
    flat = add(graph, "Flatten", centred)
    # ‖c‖² − 2 x·c
    distances = add(graph, "Gemm", flat, "around", squares, alpha=-2.0, transB=1)
    distances = _without_nan(graph, distances, _INFINITY)
    nearest = add(graph, "ArgMin", distances, axis=1, keepdims=0)
    chosen = add(graph, "Gather", "around", nearest, axis=0)
    chosen = add(graph, "Reshape", chosen, [-1, *centres.shape[1:]])
    return add(graph, "Abs", add(graph, "Sub", centred, chosen))


_ERRORS: dict[str, Callable[[Graph, ResidualModel, str], str]] = {
    "autoencoder": _autoencoder,
    "difference": _difference,
    "kmeans": _kmeans,
    "mahalanobis": _mahalanobis,
    "moving_average": _moving_average,
    "pca": _pca,
}


# Scores, see `kdjax.detection.scores`.


def _scores(
    graph: Graph, detector: Detector, index: int, errors: str, *, holes: str | None
) -> list[str]:
    """Point scores, window scores and contributions of errors `[B, L, F]`.

    `holes` is NaN where a cell is missing; None: nowhere.
    """
    gaussian = gaussian_of(detector, index)
    attribution = attribution_matrix(gaussian, method=detector.attribution)
    # By name, so that both branches share them.
    graph.weights.update(
        {"mean": gaussian.mean, "whiten": gaussian.whiten.T, "blame": attribution.T}
    )
    copies = len(components_of(detector.model.kind))
    if holes and copies > 1:
        holes = add(graph, "Concat", *[holes] * copies, axis=2)
    deviations = add(graph, "Sub", errors, "mean")
    if holes:
        deviations = add_completion(graph, deviations, holes, gaussian)
    whitened = add(graph, "MatMul", deviations, "whiten")
    points = add(graph, "ReduceSumSquare", whitened, axes=[2], keepdims=0)
    # NaN here is an overflow.
    known = points = _without_nan(graph, points, _INFINITY)
    if holes:
        points = mark_unknown(graph, points, holes)
        known = _without_nan(graph, points, -_INFINITY)
    # The least of the largest count + 1.
    count = [detector.allowed_points + 1]
    largest = add(graph, "TopK", known, count, outputs=2, axis=1)
    least = add(graph, "ReduceMin", largest, axes=[1], keepdims=0)
    if holes:
        too_few = add(graph, "Equal", least, -_INFINITY)
        least = add(graph, "Where", too_few, np.float32(np.nan), least)
    parts = add(graph, "MatMul", deviations, "blame")
    parts = add(graph, "Mul", parts, parts)
    if copies > 1:
        # A channel's contribution is the sum over its errors.
        parts = add(graph, "Reshape", parts, [0, 0, copies, -1])
        parts = add(graph, "ReduceSum", parts, [2], keepdims=0)
    return [points, least, _without_nan(graph, parts, _INFINITY)]


def _add_alarm(graph: Graph, tau: float) -> None:
    # τ has 64 bits.
    wide = add(graph, "Cast", "window_score", to=DOUBLE)
    above = add(graph, "Greater", wide, np.float64(tau))
    add(graph, "Cast", above, to=INT64, outputs=["alarm"])


def _without_nan(graph: Graph, values: str, instead: np.float32) -> str:
    return add(graph, "Where", add(graph, "IsNaN", values), instead, values)


def _either(
    graph: Graph,
    condition: str,
    *branches: Callable[[Graph], list[str]],
    outputs: int | Sequence[str],
) -> str:
    """Outputs of the first branch where the condition holds, else of the second."""
    bodies = []
    for branch in branches:
        inner = inner_graph(graph)
        results = branch(inner)
        bodies.append(to_attribute(inner, [], [Value(name) for name in results]))
    then, otherwise = bodies
    return add(
        graph, "If", condition, outputs=outputs, then_branch=then, else_branch=otherwise
    )
