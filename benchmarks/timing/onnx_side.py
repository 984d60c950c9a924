"""The side of onnxruntime: the exported network and its point scores in one graph."""

import itertools
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from kdjax.export.onnx import Graph, add, add_network, make_model
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
    graph = Graph([], {}, itertools.count())
    outputs = add_network(graph, architecture, params, "x")
    errors = add(graph, "Abs", add(graph, "Sub", "x", outputs))
    whitened = add(graph, "MatMul", add(graph, "Sub", errors, mean), whiten.T)
    add(graph, "ReduceSumSquare", whitened, outputs=[OUTPUT], axes=[2], keepdims=0)
    shapes = {"x": ["B", "L", architecture.width], OUTPUT: ["B", "L"]}
    windows, scores = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    )
    model = make_model(graph, [windows], [scores], name="point_scores")
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
