"""A network as an ONNX graph of native LSTM nodes.

The operator LSTM of opset 17 has its gates in the order i, o, f, g, where kdjax has
i, f, g, o, and a bias on either side, of which the input's stays 0 here. Arrays are
time-major inside the graph, as the operator wants them.
"""

from typing import NamedTuple

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from kdjax.errors import ConfigError
from kdjax.models.autoencoder import Architecture, Params

OPSET = 17
IR_VERSION = 9  # of opset 17's time, so that older runtimes read the file too


class Part(NamedTuple):
    """A piece of a graph: its nodes in the order in which they run, and its weights."""

    nodes: list[NodeProto]
    weights: dict[str, np.ndarray]


def network_graph(architecture: Architecture, params: Params) -> onnx.ModelProto:
    """The network alone: `x [B, L, D]` to its reconstruction `y [B, L, D]`, float32.

    B and L are dynamic.

    Raises:
        ConfigError: the decoder feeds on its own output, which no LSTM node can.
    """
    if architecture.decoder != "repeat":
        raise ConfigError(
            f"model.decoder={architecture.decoder!r} has no ONNX form of native LSTM "
            "nodes: train with model.decoder='repeat'."
        )
    depth, width = len(architecture.hidden), architecture.width
    independent = architecture.channels == "independent"
    parts = [_time_major(width, independent)]
    states = "windows"
    for number in range(depth):
        name = f"encoder_{number}"
        parts.append(_lstm(name, params[name], states))
        states = f"{name}_states"
    parts.append(_repeat(f"encoder_{depth - 1}_last"))
    states = "latents"
    for number in range(depth):
        name = f"decoder_layers_{number}"
        parts.append(_lstm(name, params[name], states))
        states = f"{name}_states"
    parts.append(_head(params["head"], states, architecture.head))
    parts.append(_batch_major(width, independent))
    return _model(parts, width)


def _lstm(name: str, params: Params, inputs: str) -> Part:
    """`inputs [L, B, I]` to `{name}_states [L, B, H]`, `{name}_last [1, B, H]`."""
    kernel = np.asarray(params["input_kernel"]).T  # [4H, I]
    recurrent = np.asarray(params["recurrent_kernel"]).T  # [4H, H]
    bias = np.asarray(params["bias"])
    hidden = recurrent.shape[1]
    weights = {
        f"{name}_W": _gates_in_order(kernel)[None],
        f"{name}_R": _gates_in_order(recurrent)[None],
        f"{name}_B": np.concatenate([np.zeros_like(bias), _gates_in_order(bias)])[None],
        f"{name}_direction": np.array([1], np.int64),
    }
    names = [f"{name}_{suffix}" for suffix in ("W", "R", "B")]
    outputs = [f"{name}_all", f"{name}_last"]
    node = helper.make_node("LSTM", [inputs, *names], outputs, hidden_size=hidden)
    # [L, 1, B, H]: the second axis counts directions.
    squeeze = helper.make_node(
        "Squeeze", [outputs[0], f"{name}_direction"], [f"{name}_states"]
    )
    return Part([node, squeeze], weights)


def _gates_in_order(values: np.ndarray) -> np.ndarray:
    """Quarters i, f, g, o of the first axis as i, o, f, g."""
    i, f, g, o = np.split(values, 4)
    return np.concatenate([i, o, f, g])


def _time_major(width: int, independent: bool) -> Part:
    """`x [B, L, D]` to `windows`: `[L, B, D]`, or `[L, B·D, 1]`."""
    if not independent:
        nodes = [helper.make_node("Transpose", ["x"], ["windows"], perm=[1, 0, 2])]
        return Part([*nodes, *_length("windows")], {})
    nodes = [
        helper.make_node("Transpose", ["x"], ["series"], perm=[1, 0, 2]),
        helper.make_node("Reshape", ["series", "series_shape"], ["windows"]),
    ]
    # 0 keeps an axis, −1 takes what is left.
    weights = {"series_shape": np.array([0, -1, 1], np.int64)}
    return Part([*nodes, *_length("windows")], weights)


def _length(states: str) -> list[NodeProto]:
    """The number of steps, `length [1]`."""
    return [helper.make_node("Shape", [states], ["length"], start=0, end=1)]


def _repeat(last: str) -> Part:
    """The last hidden state at each of the L steps: `latents [L, B, H]`."""
    nodes = [
        helper.make_node("Concat", ["length", "ones"], ["repeats"], axis=0),
        helper.make_node("Expand", [last, "repeats"], ["latents"]),
    ]
    return Part(nodes, {"ones": np.array([1, 1], np.int64)})


def _head(params: Params, states: str, head: str) -> Part:
    """The dense head and its activation: `outputs [L, B, D]`."""
    weights = {
        "head_kernel": np.asarray(params["kernel"]),
        "head_bias": np.asarray(params["bias"]),
    }
    linear = "linear" if head == "sigmoid" else "outputs"
    nodes = [
        helper.make_node("MatMul", [states, "head_kernel"], ["product"]),
        helper.make_node("Add", ["product", "head_bias"], [linear]),
    ]
    if head == "sigmoid":
        nodes.append(helper.make_node("Sigmoid", [linear], ["outputs"]))
    return Part(nodes, weights)


def _batch_major(width: int, independent: bool) -> Part:
    """`outputs` as `y [B, L, D]`."""
    last = helper.make_node("Transpose", ["together"], ["y"], perm=[1, 0, 2])
    if not independent:
        return Part([_renamed(last, "outputs")], {})
    reshape = helper.make_node("Reshape", ["outputs", "outputs_shape"], ["together"])
    return Part([reshape, last], {"outputs_shape": np.array([0, -1, width], np.int64)})


def _renamed(node: NodeProto, source: str) -> NodeProto:
    node.input[0] = source
    return node


def _model(parts: list[Part], width: int) -> onnx.ModelProto:
    weights = {name: values for part in parts for name, values in part.weights.items()}
    shape: list[str | int | None] = ["B", "L", width]
    graph = helper.make_graph(
        [node for part in parts for node in part.nodes],
        "kdjax_network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [
            numpy_helper.from_array(np.ascontiguousarray(values), name)
            for name, values in weights.items()
        ],
    )
    model: onnx.ModelProto = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="kdjax",
    )
    onnx.checker.check_model(model, full_check=True)
    return model
