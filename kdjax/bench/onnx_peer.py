"""The peer onnxruntime: the exported network and its point scores in one graph."""

from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from kdjax.bench import work
from kdjax.bench.work import (
    Data,
    Size,
    Unit,
    Work,
)
from kdjax.data.windowing import gather
from kdjax.export.onnx_layers import network_graph
from kdjax.models.autoencoder import Architecture, Params

OUTPUT = "point_score"

Session = Any  # onnxruntime.InferenceSession


def build(item: Work, *, size: Size) -> Unit:
    """The measurement of one work of kind `series`, `window` or `stream`."""
    import onnxruntime

    architecture = Architecture(work.WIDTH, item.hidden)
    params = work.make_params(item.hidden)
    graph = score_graph(architecture, params, *work.make_whitening())
    threads = 0 if item.kind == "series" else 1  # 0: as many as it likes
    session = make_session(graph, threads=threads)
    provider = session.get_providers()[0]
    facts = {
        "library": f"onnxruntime {onnxruntime.__version__}",
        "device": "cpu" if provider == "CPUExecutionProvider" else f"gpu ({provider})",
        "threads": threads or "default",
    }
    if item.kind == "window":
        return Unit(_one_window(session, work.make_data(1), size.calls), None, facts)
    if item.kind == "stream":
        rows = work.make_stream(size.calls)
        return Unit(work.follow(partial(_score, session), rows), None, facts)
    batch = _faster_batch(session)
    data = work.make_data(size.series)
    return Unit(
        lambda: score_data(session, data, batch), None, facts | {"batch": batch}
    )


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

    `threads` is the number within one operator; 0 leaves it to onnxruntime.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    available = onnxruntime.get_available_providers()
    return onnxruntime.InferenceSession(
        model.SerializeToString(),
        options,
        providers=[name for name in wanted if name in available],
    )


def score_data(session: Session, data: Data, batch: int) -> np.ndarray:
    """Point scores of all windows, `[M, L]`."""
    scores = []
    for first in range(0, len(data.starts), batch):
        starts = data.starts[first : first + batch]
        windows = gather(data.rows, starts, work.WINDOW)
        scores.append(_score(session, windows))
    return np.concatenate(scores)


def _score(session: Session, windows: np.ndarray) -> np.ndarray:
    scores: np.ndarray = session.run([OUTPUT], {"x": windows})[0]
    return scores


def _faster_batch(session: Session) -> int:
    trial = work.make_data(max(work.SCORING_BATCHES))
    best = work.fastest(
        [partial(score_data, session, trial, batch) for batch in work.SCORING_BATCHES]
    )
    return work.SCORING_BATCHES[best]


def _one_window(session: Session, data: Data, calls: int) -> Any:
    window = data.rows[None]

    def run() -> np.ndarray:
        for _ in range(calls):
            scores = _score(session, window)
        return scores

    return run
