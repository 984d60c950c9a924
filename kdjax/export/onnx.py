"""A whole detector as one ONNX graph: raw windows in; scores, alarm, contributions out.

    x [B, L, D]  →  (x − offset) / scale  →  errors e of the residual model
                 →  d = e − μ  →  a = ‖W d‖²  →  window score  →  alarm where it is > τ

It follows `kdjax.models`, `kdjax.detection.scores` and `kdjax.detection.attribution`
operator by operator. The operators for missing cells (NaN) are in branches that run only
for batches with missing cells. A node has the name of its first output. Arrays given as
inputs become weights of the whole graph, which its branches and loop bodies share.

The operator LSTM of opset 17 has its gates in the order i, o, f, g, where kdjax has
i, f, g, o, and two biases, of which the input's stays 0 here. Arrays are time-major
inside the network.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from kdjax.data.disturb import HIGHEST, LOWEST
from kdjax.detection.attribution import attribution_matrix
from kdjax.detection.detector import Detector, gaussian_of, model_of, scaler_of
from kdjax.detection.gaussian import Gaussian
from kdjax.detection.scores import ROUNDS
from kdjax.detection.stream_rules import plan_of
from kdjax.errors import ConfigError
from kdjax.export.container import SEAL, metadata_of, sealed
from kdjax.models.autoencoder import Architecture
from kdjax.models.baselines import MOVING_AVERAGE_ROWS, NEIGHBOURS
from kdjax.models.classifier import DRAWN, FAINT, dilation_of
from kdjax.models.forecasters import DILATIONS, LIMIT, WIDTH
from kdjax.models.model import Params
from kdjax.models.residual import ResidualModel, component, components_of, gives_scores

try:
    import onnx
    from onnx import NodeProto, TensorProto, helper, numpy_helper
except ImportError as missing:
    raise ConfigError(
        'making ONNX files needs the package onnx: pip install "kdjax[onnx]".'
    ) from missing

OPSET = 17
IR_VERSION = 9  # as old as opset 17, so that older runtimes read the file too

Model = onnx.ModelProto
Value = onnx.ValueInfoProto
BOOL, DOUBLE = TensorProto.BOOL, TensorProto.DOUBLE
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64

_INFINITY, _NAN, _ZERO = np.float32(np.inf), np.float32(np.nan), np.float32(0)
_TINY = np.finfo(np.float32).tiny

LARGE = 256  # least numbers of a weight for which 8 bits save space


class Graph(NamedTuple):
    """A graph under construction; inner graphs share `weights` and `numbers`."""

    nodes: list[NodeProto]  # in order
    weights: dict[str, np.ndarray]
    numbers: Iterator[int]  # make names unique
    quantize: bool = False  # whether large weights will have 8 bits


def onnx_file(detector: Detector, index: int, *, quantize: str = "none") -> bytes:
    """The detector of one entity as an ONNX file, checked by onnx, with plan and digest.

    Input `x [B, L, D]` in raw units and in the dtype of the scaler, float32 or float64, NaN
    where a value is missing; B is dynamic.
    Outputs `point_score [B, L]`, `window_score [B]`, `alarm [B]` (int64, 0 or 1) and
    `contribution [B, L, D]`. Scores are NaN where they are unknown; the alarm is 0 then.
    The same detector gives the same bytes. `quantize="int8"` stores the large weights of
    the model in 8 bits. ConfigError if the model has no ONNX form, or nothing to
    quantise.
    """
    kinds = components_of(detector.model.kind)
    for kind in kinds:
        if kind not in _KINDS:
            raise ConfigError(
                f"a detector of kind {kind!r} has no ONNX form: export a detector of one "
                f"of the kinds {', '.join(_KINDS)}."
            )
    graph = Graph([], {}, itertools.count(), quantize == "int8")
    offset, scale = scaler_of(detector, index)
    scaled = add(graph, "Div", add(graph, "Sub", "x", offset), scale)
    double = offset.dtype == np.float64
    if double:
        scaled = add(graph, "Cast", scaled, to=FLOAT)
    # A sum is NaN if a term is, and where infinities cancel: the branches for missing
    # cells then change nothing.
    missing = add(graph, "IsNaN", add(graph, "ReduceSum", "x", keepdims=0))
    params = model_of(detector, index).params

    def given(inner: Graph) -> str:
        """Windows whose constant channels keep their value where it is missing."""
        if "still" not in params:
            return scaled
        gone = add(inner, "And", add(inner, "IsNaN", scaled), params["moving"] == 0)
        return add(inner, "Where", gone, params["still"], scaled)

    filled = _either(
        graph,
        missing,
        lambda inner: [_fill(inner, given(inner), length=detector.window)],
        lambda inner: [add(inner, "Identity", scaled)],
        outputs=1,
    )
    exact: set[str] = set()
    if gives_scores(detector.model.kind):
        own = _classifier(graph, detector, index, filled)
        scores = functools.partial(_own_scores, detector, index, own)
    else:
        found = []
        for kind in kinds:
            before = {*graph.weights}
            values = _ERRORS[kind](graph, component(detector.model, kind), filled)
            found.append(_scored(graph, detector, values))
            if kind == "pca":
                exact = {*graph.weights} - before  # its residuals are small differences
        errors = add(graph, "Concat", *found, axis=2) if found[1:] else found[0]
        scores = functools.partial(_gaussian_scores, detector, index, errors)
    if graph.quantize:
        # Before the Gaussian, whose inverse would enlarge rounding.
        graph = _quantized(graph, exact)
    _either(
        graph,
        missing,
        lambda inner: scores(inner, holes=_scored(inner, detector, scaled)),
        lambda inner: scores(inner, holes=None),
        outputs=("point_score", "window_score", "contribution"),
    )
    # τ has 64 bits.
    wide = add(graph, "Cast", "window_score", to=DOUBLE)
    above = add(graph, "Greater", wide, np.float64(detector.thresholds[index].tau))
    add(graph, "Cast", above, to=INT64, outputs=["alarm"])
    length, width = detector.window, len(detector.channels)
    inputs = [_value("x", ("B", length, width), DOUBLE if double else FLOAT)]
    outputs = [
        _value("point_score", ("B", length)),
        _value("window_score", ("B",)),
        _value("alarm", ("B",), INT64),
        _value("contribution", ("B", length, width)),
    ]
    model = make_model(graph, inputs, outputs, name="kdjax_detector")
    metadata = metadata_of(plan_of(detector, index)) | {"digest": "0" * 64}
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    return sealed(model.SerializeToString(deterministic=True), SEAL)


# Errors of the residual models, `[B, L, D]`, see `kdjax.models.residual`.


def _autoencoder(graph: Graph, model: ResidualModel, windows: str) -> str:
    assert model.architecture is not None
    outputs = add_network(graph, model.architecture, model.params, windows)
    return add(graph, "Abs", add(graph, "Sub", windows, outputs))


def _difference(graph: Graph, model: ResidualModel, windows: str) -> str:
    later = add(graph, "Slice", windows, [1], [2**31], [1])
    earlier = add(graph, "Slice", windows, [0], [-1], [1])
    steps = add(graph, "Abs", add(graph, "Sub", later, earlier))
    return add(graph, "Pad", steps, [0, 1, 0, 0, 0, 0])


def _moving_average(graph: Graph, model: ResidualModel, windows: str) -> str:
    series, rows = add(graph, "Transpose", windows, perm=[0, 2, 1]), MOVING_AVERAGE_ROWS
    # Padding is not counted: early means are of fewer rows.
    pool: dict[str, Any] = {"kernel_shape": [rows], "pads": [rows - 1, 0]}
    means = add(graph, "AveragePool", series, count_include_pad=0, **pool)
    means = add(graph, "Transpose", means, perm=[0, 2, 1])
    return add(graph, "Abs", add(graph, "Sub", windows, means))


def _pca(graph: Graph, model: ResidualModel, windows: str) -> str:
    components = np.asarray(model.params["components"])
    centred = add(graph, "Sub", windows, np.asarray(model.params["mean"]))
    codes = add(graph, "MatMul", centred, components.T)
    projected = add(graph, "MatMul", codes, components)
    return add(graph, "Abs", add(graph, "Sub", centred, projected))


def _from_nearest(graph: Graph, model: ResidualModel, windows: str) -> str:
    """|x − the nearest centre| of `kmeans`, |x − the mean of the nearest| of `memory`."""
    name, field, count = {
        "kmeans": ("around", "centres", 1),
        "memory": ("memory", "windows", NEIGHBOURS),
    }[model.kind]
    known = np.asarray(model.params[field])
    count = min(count, len(known))
    around = (known - known[0]).reshape(len(known), -1)
    if graph.quantize:  # as the file has them, so that their squares agree
        around = np.multiply(*_in_8_bits(around, (0,)))
    squares = (around.astype(np.float64) ** 2).sum(axis=1).astype(np.float32)
    # By name, so that the distances and the choice share them.
    graph.weights[name] = around
    centred = add(graph, "Sub", windows, known[0])
    flat = add(graph, "Flatten", centred)
    # ‖c‖² − 2 x·c
    distances = add(graph, "Gemm", flat, name, squares, alpha=-2.0, transB=1)
    distances = _without_nan(graph, distances, _INFINITY)
    if count == 1:
        nearest = add(graph, "ArgMin", distances, axis=1, keepdims=0)
        chosen = add(graph, "Gather", name, nearest, axis=0)
    else:
        least = add(graph, "TopK", distances, [count], outputs=2, axis=1, largest=0)
        chosen = add(graph, "Gather", name, f"{least}_1", axis=0)
        chosen = add(graph, "ReduceMean", chosen, axes=[1], keepdims=0)
    chosen = add(graph, "Reshape", chosen, [-1, *known.shape[1:]])
    return add(graph, "Abs", add(graph, "Sub", centred, chosen))


def _forecast_errors(graph: Graph, model: ResidualModel, windows: str) -> str:
    mean, scale, network = (model.params[name] for name in ("mean", "scale", "network"))
    later = add(graph, "Slice", windows, [1], [2**31], [1])
    rows = add(graph, "Slice", windows, [0], [-1], [1])
    rows = add(graph, "Div", add(graph, "Sub", rows, mean), scale)
    rows = add(graph, "Clip", rows, np.float32(-LIMIT), np.float32(LIMIT))
    states_of = _convolutions if model.kind == "cnn_forecast" else _gru
    found = add(graph, "MatMul", states_of(graph, network, rows), network["head"])
    found = add(graph, "Mul", add(graph, "Add", found, network["head_bias"]), scale)
    errors = add(graph, "Sub", later, add(graph, "Add", found, mean))
    return add(graph, "Pad", add(graph, "Abs", errors), [0, 1, 0, 0, 0, 0])


def _convolutions(graph: Graph, network: Params, rows: str) -> str:
    """Hidden states of `cnn_forecast`, `[B, L, D]` to `[B, L, H]`."""
    states = add(graph, "Transpose", rows, perm=[0, 2, 1])
    for number, dilation in enumerate(DILATIONS):
        kernel, bias = (network[f"layer_{number}{end}"] for end in ("", "_bias"))
        kernel = np.asarray(kernel).T  # [W, I, O] as [O, I, W]
        pad = [(WIDTH - 1) * dilation, 0]
        layer = add(graph, "Conv", states, kernel, bias, dilations=[dilation], pads=pad)
        layer = add(graph, "Relu", layer)
        states = add(graph, "Add", states, layer) if number else layer
    return add(graph, "Transpose", states, perm=[0, 2, 1])


def _gru(graph: Graph, network: Params, rows: str) -> str:
    """Hidden states of `gru_forecast`, whose gates have the operator's order."""
    kernels = [np.asarray(network[name]).T[None] for name in ("input", "recurrent")]
    bias = np.concatenate([network["input_bias"], network["recurrent_bias"]])[None]
    size = {"hidden_size": kernels[1].shape[-1], "linear_before_reset": 1}
    series = add(graph, "Transpose", rows, perm=[1, 0, 2])
    states = add(graph, "GRU", series, *kernels, bias, **size)
    return add(graph, "Transpose", add(graph, "Squeeze", states, [1]), perm=[1, 0, 2])


_ERRORS: dict[str, Callable[[Graph, ResidualModel, str], str]] = {
    "autoencoder": _autoencoder,
    "cnn_forecast": _forecast_errors,
    "difference": _difference,
    "gru_forecast": _forecast_errors,
    "kmeans": _from_nearest,
    "mahalanobis": lambda graph, model, windows: windows,
    "memory": _from_nearest,
    "moving_average": _moving_average,
    "pca": _pca,
}
_KINDS = (*_ERRORS, "classifier")


# The classifier, see `kdjax.models.classifier`.


def _classifier(
    graph: Graph, detector: Detector, index: int, windows: str
) -> tuple[str, str]:
    """Point scores `[B, L]` and contributions `[B, L, D]`."""
    params, width = model_of(detector, index).params, len(detector.channels)
    scored = ~np.isin(np.arange(width), detector.model.context)
    ranges = add(graph, "Sub", windows, params["low"])
    ranges = add(graph, "Div", ranges, params["scale"])
    values = add(graph, "Clip", ranges, np.float32(LOWEST), np.float32(HIGHEST))
    beyond = add(graph, "Abs", add(graph, "Sub", ranges, values))
    if detector.context:
        beyond = add(graph, "Where", scored, beyond, _ZERO)
    sums = add(graph, "ReduceSum", beyond, [2])
    one = np.float32(1)
    excess = add(graph, "Log", add(graph, "Add", sums, one))
    finite = add(graph, "Less", sums, np.float32(np.inf))
    finite = add(graph, "And", finite, add(graph, "Greater", sums, _ZERO))
    share = add(graph, "Div", excess, add(graph, "Where", finite, sums, one))
    share = add(graph, "Where", finite, share, one)
    excess_parts = add(graph, "Mul", beyond, share)
    flat = add(graph, "ReduceMean", values, axes=[1])
    drawn = add(graph, "Sub", params["mean"], flat)
    held = add(graph, "Add", flat, add(graph, "Mul", drawn, np.float32(DRAWN)))
    series, held = (
        add(graph, "Transpose", name, perm=[0, 2, 1]) for name in (values, held)
    )
    places, length = range(len(params["level"])), detector.window
    found = [_network_scores(graph, params, i, series, held, length) for i in places]
    whole, lower = (add(graph, "Mean", *scores) for scores in zip(*found, strict=True))
    falls = add(graph, "Relu", add(graph, "Sub", whole, lower))
    falls = add(graph, "Add", falls, add(graph, "Mul", whole, np.float32(FAINT)))
    if "still" in params:
        away = add(graph, "Abs", add(graph, "Sub", windows, params["still"]))
        away = add(graph, "ReduceMax", away, axes=[1], keepdims=0)
        moved = add(graph, "Greater", away, params["slack"])
        falls = add(graph, "Where", moved, falls, _ZERO)
    if detector.context:
        falls = add(graph, "Where", scored, falls, _ZERO)
    total = add(graph, "ReduceSum", falls, [1])
    some = add(graph, "Greater", total, _ZERO)
    total = add(graph, "Where", some, total, np.float32(1))
    parts = add(graph, "Div", add(graph, "Mul", whole, falls), total)
    parts = add(graph, "Add", add(graph, "Unsqueeze", parts, [1]), excess_parts)
    return add(graph, "Add", add(graph, "Squeeze", excess, [2]), whole), parts


def _network_scores(
    graph: Graph, params: Params, place: int, series: str, held: str, length: int
) -> tuple[str, str]:
    """−log p of a network, `[B, 1]`, and with each channel held in turn, `[B, D]`.

    The first convolution is linear: what a channel adds to it is computed alone.
    """
    own = {name: np.asarray(leaf)[place] for name, leaf in params["networks"].items()}
    names = {name: f"{name}_{place}" for name in own}
    # Kernels [W, I, O] as [O, I, W].
    graph.weights.update({names[n]: v.T if v.ndim == 3 else v for n, v in own.items()})
    rows, width, outputs = own["first"].shape
    level, dilation = params["level"][place] > 0, dilation_of(length)
    middle = add(graph, "ReduceMean", series, axes=[2]) if level else np.float32(0.5)
    layer, other = (add(graph, "Sub", name, middle) for name in (series, held))
    layer = add(graph, "Add", layer, layer)
    # Held, a channel has no step from its mean.
    other = add(graph, "Mul", other, _ZERO if level else np.float32(2))
    kernel = add(graph, "Transpose", names["first"], perm=[1, 0, 2])
    kernel = add(graph, "Reshape", kernel, [-1, 1, rows])
    moved = add(graph, "Conv", add(graph, "Sub", other, layer), kernel, group=width)
    moved = add(graph, "Reshape", moved, [0, width, outputs, -1])
    first = add(graph, "Conv", layer, names["first"], names["first_bias"])
    moved = add(graph, "Add", moved, add(graph, "Unsqueeze", first, [1]))
    moved = add(graph, "Reshape", moved, [-1, outputs, length - rows + 1])
    lower = _later_layers(graph, names, moved, dilation)
    lower = add(graph, "Reshape", lower, [-1, width])
    return _later_layers(graph, names, first, dilation), lower


def _later_layers(
    graph: Graph, names: dict[str, str], first: str, dilation: int
) -> str:
    """From the first convolution `[B, O, T]` to −log p, `[B, 1]`."""
    pooled, layer = [], first
    for second in (False, True):
        if second:
            kernel = names["second"], names["second_bias"]
            layer = add(graph, "Conv", layer, *kernel, dilations=[dilation])
        layer = add(graph, "Relu", layer)
        for pool in ("ReduceMean", "ReduceMax"):
            pooled.append(add(graph, pool, layer, axes=[2], keepdims=0))
    hidden = add(graph, "Concat", *pooled, axis=1)
    hidden = add(graph, "Gemm", hidden, names["dense"], names["dense_bias"])
    hidden = add(graph, "Relu", hidden)
    logit = add(graph, "Gemm", hidden, names["head"], names["head_bias"])
    return add(graph, "Softplus", logit)


def _own_scores(
    detector: Detector, index: int, own: Sequence[str], graph: Graph, holes: str | None
) -> list[str]:
    """Point scores, window scores and contributions of a kind that gives scores."""
    moving = model_of(detector, index).params.get("moving")
    if holes and moving is not None:
        seen = np.delete(moving, detector.model.context) > 0
        holes = add(graph, "Where", seen, holes, _NAN)
    points, parts = (add(graph, "Identity", name) for name in own)
    return [*_of_windows(graph, detector, points, holes), parts]


# Scores, see `kdjax.detection.scores`.


def _gaussian_scores(
    detector: Detector, index: int, errors: str, graph: Graph, *, holes: str | None
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
        deviations = _completion(graph, deviations, holes, gaussian)
        scored = gaussian.whiten.any(axis=0)
        if not scored.all():  # A row of the other channels alone has no score.
            holes = add(graph, "Where", scored, holes, _NAN)
    whitened = add(graph, "MatMul", deviations, "whiten")
    points = add(graph, "ReduceSumSquare", whitened, axes=[2], keepdims=0)
    # NaN here is an overflow.
    points = _without_nan(graph, points, _INFINITY)
    points, least = _of_windows(graph, detector, points, holes)
    parts = add(graph, "MatMul", deviations, "blame")
    parts = add(graph, "Mul", parts, parts)
    if copies > 1:
        # A channel's contribution is the sum over its errors.
        parts = add(graph, "Reshape", parts, [0, 0, copies, -1])
        parts = add(graph, "ReduceSum", parts, [2], keepdims=0)
    parts = _without_nan(graph, parts, _INFINITY)
    if detector.context:
        # Each of these channels takes the zeros that come after the others.
        parts = add(graph, "Pad", parts, [0, 0, 0, 0, 0, len(detector.context)])
        scored = np.delete(np.arange(len(detector.channels)), detector.model.context)
        order = np.argsort([*scored, *detector.model.context])
        parts = add(graph, "Gather", parts, order, axis=2)
    return [points, least, parts]


def _scored(graph: Graph, detector: Detector, values: str) -> str:
    """Values `[B, L, D]` without those of the context."""
    if not detector.context:
        return values
    scored = np.delete(np.arange(len(detector.channels)), detector.model.context)
    return add(graph, "Gather", values, scored, axis=2)


def _of_windows(
    graph: Graph, detector: Detector, points: str, holes: str | None
) -> tuple[str, str]:
    """Point scores, NaN in rows without a value, and window scores."""
    known = points
    if holes:
        # NaN in rows without a value.
        gone = add(graph, "Cast", add(graph, "IsNaN", holes), to=FLOAT)
        gone = add(graph, "ReduceMin", gone, axes=[2], keepdims=0)
        gone = add(graph, "Cast", gone, to=BOOL)
        points = add(graph, "Where", gone, _NAN, points)
        known = _without_nan(graph, points, -_INFINITY)
    # The least of the largest count + 1.
    count = [detector.allowed_points + 1]
    largest = add(graph, "TopK", known, count, outputs=2, axis=1)
    least = add(graph, "ReduceMin", largest, axes=[1], keepdims=0)
    if holes:
        too_few = add(graph, "Equal", least, -_INFINITY)
        least = add(graph, "Where", too_few, _NAN, least)
    return points, least


def _without_nan(graph: Graph, values: str, instead: np.float32) -> str:
    return add(graph, "Where", add(graph, "IsNaN", values), instead, values)


# The network and missing cells.


def add_network(
    graph: Graph, architecture: Architecture, params: Params, windows: str
) -> str:
    """Adds the network; `windows [B, L, D]` to their reconstruction `[B, L, D]`."""
    independent = architecture.channels == "independent"
    series = add(graph, "Transpose", windows, perm=[1, 0, 2])
    if independent:
        # [L, B·D, 1]: 0 keeps an axis, −1 takes what is left.
        series = add(graph, "Reshape", series, [0, -1, 1])
    length = add(graph, "Shape", series, start=0, end=1)
    layers: list[_Layer] = []
    for number in range(len(architecture.hidden)):
        if layers:
            series = add(graph, "Squeeze", layers[-1].states, [1])
        layers.append(_add_lstm(graph, f"encoder_{number}", params, series))
    if architecture.decoder == "repeat":  # the last hidden state at each of the L steps
        repeats = add(graph, "Concat", length, [1, 1], axis=0)
        states = add(graph, "Expand", layers[-1].hidden, repeats)
        for number in range(len(layers)):
            layer = _add_lstm(graph, f"decoder_layers_{number}", params, states)
            states = add(graph, "Squeeze", layer.states, [1])
        decoded = _add_head(graph, params, states, architecture.head)
    else:
        decoded = _feedback(graph, architecture.head, params, layers, length)
    if independent:
        decoded = add(graph, "Reshape", decoded, [0, -1, architecture.width])
    return add(graph, "Transpose", decoded, perm=[1, 0, 2])


class _Layer(NamedTuple):
    """Names of the outputs of an LSTM node."""

    states: str  # [L, 1, B, H]; the second axis counts directions
    hidden: str  # [1, B, H], the last of them
    cell: str  # [1, B, H]


def _add_lstm(
    graph: Graph, key: str, params: Params, inputs: str, start: Sequence[str] = ()
) -> _Layer:
    """A layer over `inputs [L, B, I]` from the hidden and cell states `start`, or 0."""
    layer = params[key]
    bias = _gates_in_order(np.asarray(layer["bias"]))
    weights = {
        f"{key}_W": _gates_in_order(np.asarray(layer["input_kernel"]).T),  # [4H, I]
        f"{key}_R": _gates_in_order(np.asarray(layer["recurrent_kernel"]).T),
        f"{key}_B": np.concatenate([np.zeros_like(bias), bias]),
    }
    graph.weights.update({name: values[None] for name, values in weights.items()})
    given = [*weights, "", *start] if start else weights
    name = add(graph, "LSTM", inputs, *given, outputs=3, hidden_size=len(bias) // 4)
    return _Layer(name, f"{name}_1", f"{name}_2")


def _gates_in_order(values: np.ndarray) -> np.ndarray:
    """Quarters i, f, g, o of the first axis as i, o, f, g."""
    i, f, g, o = np.split(values, 4)
    return np.concatenate([i, o, f, g])


def _feedback(
    graph: Graph, head: str, params: Params, encoder: list[_Layer], length: str
) -> str:
    """From the encoder's states back in time, on its own output: `[L, B, D]`.

    Each round of the loop returns its input, so that L rounds give x'_L … x'_1.
    """
    body = graph._replace(nodes=[])
    carry = [name for layer in reversed(encoder) for name in (layer.hidden, layer.cell)]
    given = [f"before_{number}" for number in range(len(carry))]
    states, updated = "output", list[str]()
    for number in range(len(encoder)):
        start = given[2 * number : 2 * number + 2]
        layer = _add_lstm(body, f"decoder_layers_{number}", params, states, start)
        updated += [layer.hidden, layer.cell]
        states = layer.hidden
    result = _add_head(body, params, states, head)
    handed_out = add(body, "Identity", "output")
    steps = _loop_body(body, ("output", *given), (result, *updated, handed_out))
    first = _add_head(graph, params, encoder[0].hidden, head)
    count = len(carry) + 2
    rounds = add(graph, "Squeeze", length, [0])
    loop = add(graph, "Loop", rounds, "", first, *carry, outputs=count, body=steps)
    # [L, 1, B, D], the last step first.
    outputs = add(graph, "Squeeze", f"{loop}_{count - 1}", [1])
    return add(graph, "Slice", outputs, [-1], [-(2**31)], [0], [-1])


def _add_head(graph: Graph, params: Params, states: str, head: str) -> str:
    """The dense head and its activation: `[L, B, H] -> [L, B, D]`."""
    graph.weights["head_kernel"] = np.asarray(params["head"]["kernel"])
    graph.weights["head_bias"] = np.asarray(params["head"]["bias"])
    product = add(graph, "MatMul", states, "head_kernel")
    outputs = add(graph, "Add", product, "head_bias")
    return add(graph, "Sigmoid", outputs) if head == "sigmoid" else outputs


def _fill(graph: Graph, windows: str, *, length: int) -> str:
    """NaN cells take the value before them, else the one after, else 0."""
    for sign in (1, -1):
        reach = 1
        while reach < length:
            # A negative pad cuts off: rows move by `reach`, NaN moves in.
            pads = [0, sign * reach, 0, 0, -sign * reach, 0]
            earlier = add(graph, "Pad", windows, pads, _NAN)
            unknown = add(graph, "IsNaN", windows)
            windows = add(graph, "Where", unknown, earlier, windows)
            reach *= 2
    return add(graph, "Where", add(graph, "IsNaN", windows), _ZERO, windows)


def _completion(graph: Graph, deviations: str, windows: str, gaussian: Gaussian) -> str:
    """Deviations with entries replaced by the likeliest where `windows` are NaN."""
    whiten = gaussian.whiten.astype(np.float64)
    precision = whiten.T @ whiten
    root = np.sqrt(np.diag(precision))
    root[root == 0] = 1  # of a channel that is not scored
    correlation = (precision / np.outer(root, root)).astype(np.float32)
    root = root.astype(np.float32)
    missing = add(graph, "IsNaN", windows)
    scaled = add(graph, "Mul", deviations, root)
    known = add(graph, "Where", missing, _ZERO, scaled)
    residual = add(graph, "Neg", _image(graph, known, missing, correlation))
    nothing = add(graph, "Mul", residual, _ZERO)
    start = [nothing, residual, residual, _square(graph, residual)]
    rounds = np.int64(min(ROUNDS, len(root)))
    body = graph._replace(nodes=[])
    names = ("found", "residual", "direction", "square")
    found, residual, direction, square = names
    image = _image(body, direction, missing, correlation)
    curvature = add(body, "ReduceSum", add(body, "Mul", direction, image), [-1])
    step = _ratio(body, square, curvature)
    residual = add(body, "Sub", residual, add(body, "Mul", step, image))
    smaller = _square(body, residual)
    ahead = add(body, "Mul", _ratio(body, smaller, square), direction)
    ahead = add(body, "Add", residual, ahead)
    found = add(body, "Add", found, add(body, "Mul", step, direction))
    once = _loop_body(body, names, (found, residual, ahead, smaller))
    found = add(graph, "Loop", rounds, "", *start, outputs=4, body=once)
    return add(graph, "Div", add(graph, "Add", known, found), root)


def _loop_body(
    body: Graph, inputs: Sequence[str], outputs: Sequence[str]
) -> onnx.GraphProto:
    """The body of a `Loop` that runs all its rounds."""
    go_on = _value(add(body, "Identity", "go_on"), (), BOOL)
    given = _value("round", (), INT64), _value("go_on", (), BOOL)
    return _body(body, [*given, *map(_value, inputs)], [go_on, *map(_value, outputs)])


def _image(graph: Graph, values: str, missing: str, matrix: np.ndarray) -> str:
    """Matrix times values, in the missing cells only."""
    product = add(graph, "MatMul", values, matrix)
    return add(graph, "Where", missing, product, _ZERO)


def _square(graph: Graph, values: str) -> str:
    return add(graph, "ReduceSumSquare", values, axes=[-1], keepdims=1)


def _ratio(graph: Graph, numerator: str, denominator: str) -> str:
    """Their quotient; 0 once a row has converged."""
    positive = add(graph, "Greater", denominator, _ZERO)
    safe = add(graph, "Where", positive, denominator, np.float32(1))
    quotient = add(graph, "Div", numerator, safe)
    return add(graph, "Where", positive, quotient, _ZERO)


def _either(
    graph: Graph,
    condition: str,
    *branches: Callable[[Graph], list[str]],
    outputs: int | Sequence[str],
) -> str:
    """Outputs of the first branch where the condition holds, else of the second."""
    bodies = {}
    for branch, name in zip(branches, ("then_branch", "else_branch"), strict=True):
        inner = graph._replace(nodes=[])
        results = branch(inner)
        bodies[name] = _body(inner, [], [*map(_value, results)])
    return add(graph, "If", condition, outputs=outputs, **bodies)


def _body(graph: Graph, inputs: list[Value], outputs: list[Value]) -> onnx.GraphProto:
    """An inner graph as an attribute of `If` or `Loop`."""
    name = f"inner_{next(graph.numbers)}"
    return helper.make_graph(graph.nodes, name, inputs, outputs)


def add(
    graph: Graph,
    kind: str,
    *inputs: str | ArrayLike,
    outputs: int | Sequence[str] = 1,
    **attributes: Any,
) -> str:
    """Adds a node; returns the name of its first output.

    Inputs are names, or arrays, which become weights; outputs are their names, or how
    many: further ones are then `NAME_1`, `NAME_2`, …
    """
    if isinstance(outputs, int):
        name = f"{kind.lower()}_{next(graph.numbers)}"
        outputs = [name, *(f"{name}_{number}" for number in range(1, outputs))]
    sources = []
    for value in inputs:
        if not isinstance(value, str):
            weight = f"weight_{next(graph.numbers)}"
            graph.weights[weight] = np.asarray(value)
            value = weight
        sources.append(value)
    node = helper.make_node(kind, sources, outputs, name=outputs[0], **attributes)
    graph.nodes.append(node)
    return outputs[0]


def make_model(
    graph: Graph, inputs: list[Value], outputs: list[Value], *, name: str
) -> Model:
    """A whole graph with its weights as a model."""
    weights = [
        numpy_helper.from_array(np.ascontiguousarray(values), key)
        for key, values in graph.weights.items()
    ]
    whole = helper.make_graph(graph.nodes, name, inputs, outputs, weights)
    return helper.make_model(
        whole,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="kdjax",
    )


def _quantized(graph: Graph, exact: set[str]) -> Graph:
    """The graph with large weights but `exact` as int8.

    A product of floats, since some runtimes round the other factor of a product with
    quantised weights.
    """
    result = Graph([], {}, graph.numbers)
    # A window that others are taken from is no kernel.
    offsets = {n for node in graph.nodes if node.op_type == "Sub" for n in node.input}
    for name, values in graph.weights.items():
        if values.ndim < 2 or values.size < LARGE or name in exact | offsets:
            result.weights[name] = values
            continue
        # Axis 0 has a convolution's outputs, 1 a matrix's and those of [1, 4H, I].
        others = (0,) if values.ndim == 2 else (0, 2) if len(values) == 1 else (1, 2)
        whole, scale = _in_8_bits(values, others)
        floats = add(result, "Cast", whole, to=FLOAT)
        add(result, "Mul", floats, scale, outputs=[name])
    if not result.nodes:
        raise ConfigError(
            f"quantize='int8': no weight has {LARGE} numbers to quantise: remove it."
        )
    return result._replace(nodes=result.nodes + graph.nodes)


def _in_8_bits(
    weights: np.ndarray, axes: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Weights w ≈ q·s with s = max |w| / 127 over the axes, so the error is at most s/2."""
    scale = np.maximum(np.abs(weights).max(axis=axes, keepdims=True) / 127, _TINY)
    return np.round(weights / scale).astype(np.int8), scale


def _value(
    name: str, shape: Sequence[int | str] | None = None, kind: int = FLOAT
) -> Value:
    """An input or output of a graph; letters in its shape are dynamic sizes."""
    return helper.make_tensor_value_info(name, kind, shape)
