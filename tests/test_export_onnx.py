"""The ONNX graph of a network against the network itself."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.models.autoencoder import Architecture, network

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")

from kdjax.export import onnx as graphs


def random_params(architecture, seed=0):
    """Parameters without a zero among them, biases included."""
    rng = np.random.default_rng(seed)
    init = network(architecture).init(jax.random.key(seed))
    return jax.tree.map(
        lambda leaf: rng.normal(scale=0.5, size=leaf.shape).astype(np.float32), init
    )


def network_graph(architecture, params):
    """`x [B, L, D]` to its reconstruction `y`; B and L are dynamic."""
    graph = graphs.Graph([], {}, itertools.count())
    outputs = graphs.add_network(graph, architecture, params, "x")
    graphs.add(graph, "Identity", outputs, outputs=["y"])
    shape = ["B", "L", architecture.width]
    given, made = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name in ("x", "y")
    )
    model = graphs.make_model(graph, [given], [made], name="network")
    onnx.checker.check_model(model, full_check=True)
    return model


def run_onnx(model, windows):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(["y"], {"x": windows})[0]


@pytest.mark.parametrize("channels", ["joint", "independent"])
@pytest.mark.parametrize("hidden", [pytest.param((5,), marks=pytest.mark.slow), (6, 4)])
@pytest.mark.parametrize(
    ("decoder", "head"),
    [("repeat", "linear"), ("repeat", "sigmoid"), ("feedback", "sigmoid")],
)
def test_the_graph_reconstructs_as_the_network_does(channels, hidden, decoder, head):
    architecture = Architecture(3, hidden, channels, decoder, head)
    params = random_params(architecture)
    model = network_graph(architecture, params)
    rng = np.random.default_rng(1)
    for batch, window in [(1, 4), (3, 7), (2, 1)]:
        windows = rng.normal(size=(batch, window, 3)).astype(np.float32)
        expected = network(architecture).apply(params, jnp.asarray(windows))
        found = run_onnx(model, windows)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_graph_is_checked_and_of_opset_17():
    architecture = Architecture(2, (3,))
    model = network_graph(architecture, random_params(architecture))
    onnx.checker.check_model(model, full_check=True)
    assert [(part.domain, part.version) for part in model.opset_import] == [("", 17)]
    assert model.ir_version == 9
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("LSTM") == 2 and "Loop" not in kinds and "Scan" not in kinds


def test_batch_and_length_are_dynamic():
    architecture = Architecture(2, (3,))
    model = network_graph(architecture, random_params(architecture))
    for value in (*model.graph.input, *model.graph.output):
        shape = value.type.tensor_type.shape.dim
        assert [axis.dim_param or axis.dim_value for axis in shape] == ["B", "L", 2]
