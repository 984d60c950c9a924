"""Builds ONNX graphs a node at a time.

A node has the name of its first output. Arrays given as inputs become weights of the
whole graph, which its branches and loop bodies share.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from kdjax.errors import ConfigError

try:
    import onnx
    from onnx import NodeProto, TensorProto, helper, numpy_helper
except ImportError as missing:
    raise ConfigError(
        'making ONNX files needs the package onnx: pip install "kdjax[onnx]".'
    ) from missing

OPSET = 17
IR_VERSION = 9  # of opset 17's time, so that older runtimes read the file too

Model = onnx.ModelProto
Body = onnx.GraphProto

BOOL, DOUBLE, FLOAT, INT64 = (
    TensorProto.BOOL,
    TensorProto.DOUBLE,
    TensorProto.FLOAT,
    TensorProto.INT64,
)

# Suffixes of the kernels of LSTM nodes, with outputs along axis 1. The dense head keeps
# 32 bits: some runtimes fuse 8-bit weights into a product that rounds its other factor.
KERNELS = ("_W", "_R")


class Graph(NamedTuple):
    """A graph under construction; inner graphs share `weights` and `numbers`."""

    nodes: list[NodeProto]  # in order
    weights: dict[str, np.ndarray]
    numbers: Iterator[int]  # make names unique


class Value(NamedTuple):
    """An input or output of a graph; letters in its shape are dynamic sizes."""

    name: str
    shape: Sequence[int | str] | None = None
    kind: int = FLOAT


def new_graph() -> Graph:
    """A graph without nodes."""
    return Graph([], {}, itertools.count())


def inner_graph(graph: Graph) -> Graph:
    """A graph for a branch or loop body, which may use the outer graph's names."""
    return graph._replace(nodes=[])


def add(
    graph: Graph,
    kind: str,
    *inputs: str | ArrayLike,
    outputs: int | Sequence[str] = 1,
    **attributes: Any,
) -> str:
    """Adds a node; returns the name of its first output.

    Args:
        graph: to add to.
        kind: the operator.
        inputs: names, or arrays, which become weights.
        outputs: their names, or how many; further ones are then `NAME_1`, `NAME_2`, …
        attributes: of the operator.
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


def to_attribute(
    graph: Graph, inputs: Sequence[Value], outputs: Sequence[Value]
) -> Body:
    """An inner graph as an attribute of `If` or `Loop`."""
    return helper.make_graph(
        graph.nodes, f"inner_{next(graph.numbers)}", _infos(inputs), _infos(outputs)
    )


def to_model(
    graph: Graph,
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    *,
    name: str,
    metadata: Mapping[str, str] | None = None,
) -> Model:
    """The finished model, checked by onnx."""
    weights = [
        numpy_helper.from_array(np.ascontiguousarray(values), key)
        for key, values in graph.weights.items()
    ]
    whole = helper.make_graph(
        graph.nodes, name, _infos(inputs), _infos(outputs), weights
    )
    model: Model = helper.make_model(
        whole,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="kdjax",
    )
    helper.set_model_props(model, dict(metadata or {}))
    onnx.checker.check_model(model, full_check=True)
    return model


def quantized(graph: Graph) -> Graph:
    """The graph with its kernels as int8: q·s for the weights w of each output.

    s = max |w| / 127 and q = round(w / s), so that the error is at most s/2.
    """
    result = new_graph()._replace(numbers=graph.numbers)
    for name, values in graph.weights.items():
        if not name.endswith(KERNELS):
            result.weights[name] = values
            continue
        others = tuple(axis for axis in range(values.ndim) if axis != 1)
        largest = np.abs(values).max(axis=others, keepdims=True)
        scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
        whole = np.round(values / scale).astype(np.int8)
        add(result, "DequantizeLinear", whole, scale.ravel(), outputs=[name], axis=1)
    return result._replace(nodes=result.nodes + graph.nodes)


def _infos(values: Sequence[Value]) -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info(value.name, value.kind, value.shape)
        for value in values
    ]
