"""ONNX nodes of the network and of missing cells.

The operator LSTM of opset 17 has its gates in the order i, o, f, g, where kdjax has
i, f, g, o, and two biases, of which the input's stays 0 here. Arrays are time-major
inside the graph. Missing cells follow `kdjax.models.missing` and the completion of
`kdjax.detection.scores` operator by operator.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kdjax.detection.gaussian import Gaussian
from kdjax.detection.scores import ROUNDS
from kdjax.export.onnx_graph import (
    BOOL,
    FLOAT,
    INT64,
    Body,
    Graph,
    Model,
    Value,
    add,
    inner_graph,
    new_graph,
    to_attribute,
    to_model,
)
from kdjax.models.autoencoder import Architecture
from kdjax.models.model import Params


def network_graph(architecture: Architecture, params: Params) -> Model:
    """The network alone: `x [B, L, D]` to its reconstruction `y [B, L, D]`, float32.

    B and L are dynamic.
    """
    graph = new_graph()
    add_network(graph, architecture, params, "x", outputs=["y"])
    shape = ("B", "L", architecture.width)
    return to_model(
        graph, [Value("x", shape)], [Value("y", shape)], name="kdjax_network"
    )


def add_network(
    graph: Graph,
    architecture: Architecture,
    params: Params,
    windows: str,
    *,
    outputs: int | Sequence[str] = 1,
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
        inputs = _states(graph, layers[-1]) if layers else series
        key = f"encoder_{number}"
        layers.append(_add_lstm(graph, key, params, inputs))
    decode = _repeat if architecture.decoder == "repeat" else _feedback
    decoded = decode(graph, architecture, params, layers, length)
    if independent:
        decoded = add(graph, "Reshape", decoded, [0, -1, architecture.width])
    return add(graph, "Transpose", decoded, perm=[1, 0, 2], outputs=outputs)


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


def _states(graph: Graph, layer: _Layer) -> str:
    return add(graph, "Squeeze", layer.states, [1])


def _gates_in_order(values: np.ndarray) -> np.ndarray:
    """Quarters i, f, g, o of the first axis as i, o, f, g."""
    i, f, g, o = np.split(values, 4)
    return np.concatenate([i, o, f, g])


def _repeat(
    graph: Graph,
    architecture: Architecture,
    params: Params,
    encoder: list[_Layer],
    length: str,
) -> str:
    """The last hidden state at each of the L steps, decoded: `[L, B, D]`."""
    repeats = add(graph, "Concat", length, [1, 1], axis=0)
    states = add(graph, "Expand", encoder[-1].hidden, repeats)
    for number in range(len(encoder)):
        key = f"decoder_layers_{number}"
        states = _states(graph, _add_lstm(graph, key, params, states))
    return _add_head(graph, params, states, architecture.head)


def _feedback(
    graph: Graph,
    architecture: Architecture,
    params: Params,
    encoder: list[_Layer],
    length: str,
) -> str:
    """From the encoder's states back in time, on its own output: `[L, B, D]`.

    Each round of the loop returns its input, so that L rounds give x'_L … x'_1.
    """
    body = inner_graph(graph)
    carry = [name for layer in reversed(encoder) for name in (layer.hidden, layer.cell)]
    given = [f"before_{number}" for number in range(len(carry))]
    states, updated = "output", list[str]()
    for number in range(len(encoder)):
        start = given[2 * number : 2 * number + 2]
        layer = _add_lstm(body, f"decoder_layers_{number}", params, states, start)
        updated += [layer.hidden, layer.cell]
        states = layer.hidden
    result = _add_head(body, params, states, architecture.head)
    handed_out = add(body, "Identity", "output")
    steps = _loop_body(body, ("output", *given), (result, *updated, handed_out))
    first = _add_head(graph, params, encoder[0].hidden, architecture.head)
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


def add_fill(graph: Graph, windows: str, *, length: int) -> str:
    """NaN cells take the value before them, else the one after, else 0."""
    for sign in (1, -1):
        reach = 1
        while reach < length:
            # A negative pad cuts off: rows move by `reach`, NaN moves in.
            pads = [0, sign * reach, 0, 0, -sign * reach, 0]
            earlier = add(graph, "Pad", windows, pads, np.float32(np.nan))
            unknown = add(graph, "IsNaN", windows)
            windows = add(graph, "Where", unknown, earlier, windows)
            reach *= 2
    return add(graph, "Where", add(graph, "IsNaN", windows), np.float32(0), windows)


def add_completion(
    graph: Graph, deviations: str, windows: str, gaussian: Gaussian
) -> str:
    """Deviations with missing entries replaced by the likeliest given the others.

    Args:
        graph: to add to.
        deviations: `[B, L, D]`; values of missing cells are not used.
        windows: `[B, L, D]`, NaN where a cell is missing.
        gaussian: of the errors.
    """
    whiten = gaussian.whiten.astype(np.float64)
    precision = whiten.T @ whiten
    root = np.sqrt(np.diag(precision))
    correlation = (precision / np.outer(root, root)).astype(np.float32)
    root = root.astype(np.float32)

    missing = add(graph, "IsNaN", windows)
    scaled = add(graph, "Mul", deviations, root)
    known = add(graph, "Where", missing, np.float32(0), scaled)
    residual = add(graph, "Neg", _image(graph, known, missing, correlation))
    nothing = add(graph, "Mul", residual, np.float32(0))
    start = [nothing, residual, residual, _square(graph, residual)]
    rounds = min(ROUNDS, len(root))
    found = _conjugate_gradients(graph, start, missing, correlation, rounds=rounds)
    return add(graph, "Div", add(graph, "Add", known, found), root)


def mark_unknown(graph: Graph, scores: str, windows: str) -> str:
    """Scores `[B, L]`, NaN in rows of `windows [B, L, D]` without a value."""
    missing = add(graph, "Cast", add(graph, "IsNaN", windows), to=FLOAT)
    all_of_them = add(graph, "ReduceMin", missing, axes=[2], keepdims=0)
    unknown = add(graph, "Cast", all_of_them, to=BOOL)
    return add(graph, "Where", unknown, np.float32(np.nan), scores)


def _conjugate_gradients(
    graph: Graph, start: list[str], missing: str, matrix: np.ndarray, *, rounds: int
) -> str:
    """The solution after `rounds`, from the loop's state `start`."""
    body = inner_graph(graph)
    names = ("found", "residual", "direction", "square")
    found, residual, direction, square = names
    image = _image(body, direction, missing, matrix)
    curvature = add(body, "ReduceSum", add(body, "Mul", direction, image), [-1])
    step = _ratio(body, square, curvature)
    residual = add(body, "Sub", residual, add(body, "Mul", step, image))
    smaller = _square(body, residual)
    ahead = add(body, "Mul", _ratio(body, smaller, square), direction)
    ahead = add(body, "Add", residual, ahead)
    found = add(body, "Add", found, add(body, "Mul", step, direction))
    once = _loop_body(body, names, (found, residual, ahead, smaller))
    return add(graph, "Loop", np.int64(rounds), "", *start, outputs=4, body=once)


def _loop_body(body: Graph, inputs: Sequence[str], outputs: Sequence[str]) -> Body:
    """The body of a `Loop` that runs all its rounds."""
    go_on = add(body, "Identity", "go_on")
    return to_attribute(
        body,
        [Value("round", (), INT64), Value("go_on", (), BOOL), *map(Value, inputs)],
        [Value(go_on, (), BOOL), *map(Value, outputs)],
    )


def _image(graph: Graph, values: str, missing: str, matrix: np.ndarray) -> str:
    """Matrix times values, in the missing cells only."""
    product = add(graph, "MatMul", values, matrix)
    return add(graph, "Where", missing, product, np.float32(0))


def _square(graph: Graph, values: str) -> str:
    return add(graph, "ReduceSumSquare", values, axes=[-1], keepdims=1)


def _ratio(graph: Graph, numerator: str, denominator: str) -> str:
    """Their quotient; 0 once a row has converged."""
    positive = add(graph, "Greater", denominator, np.float32(0))
    safe = add(graph, "Where", positive, denominator, np.float32(1))
    quotient = add(graph, "Div", numerator, safe)
    return add(graph, "Where", positive, quotient, np.float32(0))
