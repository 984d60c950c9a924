"""ONNX nodes for missing cells: `kdjax.models.missing` and the completion of
`kdjax.detection.scores`, operator by operator.
"""

import numpy as np

from kdjax.detection.normal import Normal
from kdjax.detection.scores import ROUNDS
from kdjax.export.graph import (
    BOOL,
    FLOAT,
    INT64,
    Graph,
    Value,
    add,
    inner_graph,
    to_attribute,
)


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


def add_completion(graph: Graph, deviations: str, windows: str, normal: Normal) -> str:
    """Deviations whose missing entries are what is likeliest given the others.

    Args:
        graph: to add to.
        deviations: `[B, L, D]`; what stands in missing cells doesn't matter.
        windows: `[B, L, D]`, NaN where a cell is missing.
        normal: of the errors.
    """
    whiten = normal.whiten.astype(np.float64)
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
    """The solution after so many rounds; `start` has what a round takes and gives."""
    body = inner_graph(graph)
    found, residual, direction, square = names = (
        "found",
        "residual",
        "direction",
        "square",
    )
    image = _image(body, direction, missing, matrix)
    curvature = add(body, "ReduceSum", add(body, "Mul", direction, image), [-1])
    step = _ratio(body, square, curvature)
    residual = add(body, "Sub", residual, add(body, "Mul", step, image))
    smaller = _square(body, residual)
    ahead = add(body, "Mul", _ratio(body, smaller, square), direction)
    ahead = add(body, "Add", residual, ahead)
    found = add(body, "Add", found, add(body, "Mul", step, direction))
    going_on = add(body, "Identity", "go_on")
    once = to_attribute(
        body,
        [
            Value("round", (), INT64),
            Value("go_on", (), BOOL),
            *map(Value, names),
        ],
        [
            Value(going_on, (), BOOL),
            *map(Value, (found, residual, ahead, smaller)),
        ],
    )
    return add(graph, "Loop", np.int64(rounds), "", *start, outputs=4, body=once)


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
    return add(
        graph,
        "Where",
        positive,
        add(graph, "Div", numerator, safe),
        np.float32(0),
    )
