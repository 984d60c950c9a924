"""The side of onnxruntime: the exported network and its point scores in one graph."""

from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from kdjax.export.onnx import network_graph
from kdjax.models.autoencoder import Architecture
from kdjax.models.model import Params
from timing import work
from timing.work import Size, Unit, Work

OUTPUT = "point_score"

Session = Any  # onnxruntime.InferenceSession


def build(item: Work, size: Size, side: str = "onnxruntime") -> Unit:
    """The measurement of one work of kind `series`, `window` or `stream`."""
    architecture = Architecture(work.WIDTH, item.hidden)
    params = work.make_params(item.hidden)
    graph = score_graph(architecture, params, *work.make_whitening())
    threads = 0 if item.kind == "series" else 1  # 0: onnxruntime's default
    session = make_session(graph, threads=threads)
    provider = session.get_providers()[0]
    facts = {
        "library": f"onnxruntime {onnxruntime.__version__}",
        "device": "cpu" if provider == "CPUExecutionProvider" else f"gpu ({provider})",
        "threads": threads or "default",
    }
    if item.kind == "series":
        unit = work.series_unit(partial(score_rows, session), size.series)
        return unit._replace(facts=facts | unit.facts)
    score = partial(_score, session)
    return Unit(work.single_windows(score, size.calls, item.kind), facts)


def score_graph(
    architecture: Architecture, params: Params, mean: np.ndarray, whiten: np.ndarray
) -> onnx.ModelProto:
    """`x [B, L, D]` to the point scores ‖W(|x − x'| − μ)‖² `[B, L]`."""
    model = network_graph(architecture, params)
    graph = model.graph
    nodes = [
        helper.make_node("Sub", ["x", "y"], ["difference"]),
        helper.make_node("Abs", ["difference"], ["errors"]),
        helper.make_node("Sub", ["errors", "mean"], ["centred"]),
        helper.make_node("MatMul", ["centred", "whiten"], ["whitened"]),
        helper.make_node(
            "ReduceSumSquare", ["whitened"], [OUTPUT], axes=[2], keepdims=0
        ),
    ]
    graph.node.extend(nodes)
    graph.initializer.append(numpy_helper.from_array(mean, "mean"))
    matrix = np.ascontiguousarray(whiten.T)
    graph.initializer.append(numpy_helper.from_array(matrix, "whiten"))
    del graph.output[:]
    output = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["B", "L"])
    graph.output.append(output)
    onnx.checker.check_model(model, full_check=True)
    return model


def make_session(model: onnx.ModelProto, *, threads: int = 0) -> Session:
    """A session on a GPU where this onnxruntime has one, else on the CPU.

    `threads` is the number within one operator; 0 is onnxruntime's default.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    available = onnxruntime.get_available_providers()
    return onnxruntime.InferenceSession(
        model.SerializeToString(),
        options,
        providers=[name for name in wanted if name in available],
    )


def score_rows(session: Session, rows: np.ndarray, batch: int) -> np.ndarray:
    """Point scores of all windows of rows, `[N, D] -> [M, L]`."""
    starts = work.window_starts(rows)
    return np.concatenate(
        [
            _score(session, work.cut_windows(rows, starts[first : first + batch]))
            for first in range(0, len(starts), batch)
        ]
    )


def _score(session: Session, windows: np.ndarray) -> np.ndarray:
    scores: np.ndarray = session.run([OUTPUT], {"x": windows})[0]
    return scores
