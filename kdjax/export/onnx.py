"""A network as an ONNX graph of native LSTM nodes.

The operator LSTM of opset 17 has its gates in the order i, o, f, g, where kdjax has
i, f, g, o, and a bias on either side, of which the input's stays 0 here. Arrays are
time-major inside the graph, as the operator wants them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kdjax.export.graph import (
    BOOL,
    INT64,
    Graph,
    Model,
    Value,
    add,
    inner_graph,
    new_graph,
    to_attribute,
    to_model,
)
from kdjax.models.autoencoder import Architecture, Params


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
    """Names of what an LSTM node gives."""

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

    Each round of the loop first hands out its input, so that L rounds give x'_L … x'_1.
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
    going_on = add(body, "Identity", "go_on")
    result = _add_head(body, params, states, architecture.head)
    handed_out = add(body, "Identity", "output")
    steps = to_attribute(
        body,
        [
            Value("step", (), INT64),
            Value("go_on", (), BOOL),
            *map(Value, ("output", *given)),
        ],
        [
            Value(going_on, (), BOOL),
            *map(Value, (result, *updated, handed_out)),
        ],
    )
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
