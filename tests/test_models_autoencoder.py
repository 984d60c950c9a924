"""The encoder-decoder: Table 1's counts, and both decoders against float64 loops."""

import itertools
from pathlib import Path
from runpy import run_path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.config import resolve
from kdjax.experiment.jobs import architecture
from kdjax.models.autoencoder import Architecture, count_parameters, network

PAPER = Path(__file__).parent.parent / "configs" / "paper.py"

widths = st.lists(st.integers(1, 300), min_size=1, max_size=4).map(tuple)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def naive_step(layer, cell, state, x):
    """One LSTM step; gates i, f, g, o."""
    total = x @ layer["input_kernel"] + state @ layer["recurrent_kernel"]
    i, f, g, o = np.split(total + layer["bias"], 4, axis=-1)
    cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
    return cell, sigmoid(o) * np.tanh(cell)


def naive_layer(layer, inputs):
    """Last cell and all hidden states of inputs, a list of L arrays `[B, I]`."""
    hidden = layer["recurrent_kernel"].shape[0]
    cell, state = np.zeros((len(inputs[0]), hidden)), np.zeros((len(inputs[0]), hidden))
    states = []
    for x in inputs:
        cell, state = naive_step(layer, cell, state, x)
        states.append(state)
    return cell, states


def naive_outputs(params, windows, arch, *, forced=False):
    """Head outputs of windows `[B, L, D]`, written from Malhotra et al., 2016."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    depth, length = len(arch.hidden), windows.shape[1]
    encoder = [params[f"encoder_{n}"] for n in range(depth)]
    decoder = [params[f"decoder_layers_{n}"] for n in range(depth)]

    def head(state):
        return state @ params["head"]["kernel"] + params["head"]["bias"]

    states = [windows[:, t] for t in range(length)]
    finals = []
    for layer in encoder:
        cell, states = naive_layer(layer, states)
        finals.append((cell, states[-1]))
    if arch.decoder == "repeat":
        states = [finals[-1][1]] * length
        for layer in decoder:
            states = naive_layer(layer, states)[1]
        return np.stack([head(state) for state in states], axis=1)
    # The decoder's lowest layer goes on from the encoder's highest.
    carries = finals[::-1]
    outputs = {length - 1: head(carries[-1][1])}
    for t in range(length - 1, 0, -1):
        own = outputs[t] if arch.head == "linear" else sigmoid(outputs[t])
        x = windows[:, t] if forced else own
        for n, layer in enumerate(decoder):
            carries[n] = naive_step(layer, *carries[n], x)
            x = carries[n][1]
        outputs[t - 1] = head(x)
    return np.stack([outputs[t] for t in range(length)], axis=1)


def lively_params(arch, seed=0):
    """Parameters with the network's shapes and values that leave no gate idle."""
    shapes = jax.eval_shape(network(arch).init, jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: 0.8 * rng.normal(size=leaf.shape), shapes)


def random_windows(shape, seed=0):
    return np.random.default_rng(seed).uniform(size=shape)


def outputs(arch, params, windows, *, forced=False):
    function = jax.jit(network(arch).outputs, static_argnames="forced")
    return np.asarray(function(params, jnp.asarray(windows), forced=forced))


@pytest.mark.parametrize(
    ("width", "channels", "teacher", "student"),
    [
        (1, "independent", 1_124_201, 482_601),
        (38, "independent", 1_124_201, 482_601),
        (38, "joint", 1_161_238, 519_638),
    ],
)
def test_counts_of_table_1(width, channels, teacher, student):
    assert count_parameters(Architecture(width, (200, 200), channels)) == teacher
    assert count_parameters(Architecture(width, (200,), channels)) == student


def test_the_papers_config_has_the_counts_of_table_1():
    chosen = resolve(run_path(str(PAPER))["get_config"]())
    counts = [
        count_parameters(architecture(chosen, name, width=38))
        for name in ("teacher", "student")
    ]
    assert counts == [1_124_201, 482_601]


@settings(deadline=None, max_examples=6)
@given(
    st.integers(1, 60),
    widths,
    st.sampled_from(["joint", "independent"]),
    st.sampled_from(["repeat", "feedback"]),
)
def test_counts_by_hand(width, hidden, channels, decoder):
    own = 1 if channels == "independent" else width
    first = hidden[-1] if decoder == "repeat" else own
    total = hidden[0] * own + own
    for sizes in ((own, *hidden), (first, *hidden[::-1])):
        for fed, size in itertools.pairwise(sizes):
            total += 4 * size * (fed + size + 1)
    arch = Architecture(width, hidden, channels, decoder)
    assert count_parameters(arch) == total


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize(
    ("hidden", "decoder", "head"),
    [
        ((4,), "repeat", "linear"),
        ((5, 3), "repeat", "sigmoid"),
        ((4,), "feedback", "linear"),
        ((5, 3, 2), "feedback", "linear"),
        ((5, 3), "feedback", "sigmoid"),
    ],
)
def test_outputs_are_those_of_the_loop(hidden, decoder, head, forced):
    arch = Architecture(2, hidden, "joint", decoder, head)
    windows = random_windows((3, 6, 2))
    with jax.enable_x64(True):
        params = lively_params(arch)
        found = outputs(arch, params, windows, forced=forced)
    expected = naive_outputs(params, windows, arch, forced=forced)
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-13)


def test_forced_and_free_feedback_share_only_the_last_position():
    arch = Architecture(2, (4,), decoder="feedback")
    params, windows = lively_params(arch), random_windows((2, 5, 2))
    free = outputs(arch, params, windows)
    forced = outputs(arch, params, windows, forced=True)
    np.testing.assert_allclose(free[:, -1], forced[:, -1], rtol=1e-6)
    assert (np.abs(free - forced)[:, :-1] > 1e-4).all()


@pytest.mark.parametrize("decoder", ["repeat", "feedback"])
def test_independent_runs_the_narrow_network_over_each_channel(decoder):
    wide = Architecture(3, (4, 2), "independent", decoder)
    narrow = wide._replace(width=1, channels="joint")
    params, windows = lively_params(wide), random_windows((2, 5, 3))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        jnp.shape, lively_params(narrow)
    )
    found = outputs(wide, params, windows)
    for channel in range(3):
        alone = outputs(narrow, params, windows[:, :, [channel]])
        np.testing.assert_allclose(found[:, :, [channel]], alone, atol=1e-6)


def test_joint_network_sees_other_channels():
    arch = Architecture(2, (3,))
    params, windows = lively_params(arch), random_windows((1, 4, 2))
    moved = windows + [[[0.5, 0.0]]]
    difference = outputs(arch, params, moved) - outputs(arch, params, windows)
    assert np.abs(difference[:, :, 1]).min() > 1e-5


def test_reconstruct_runs_free_behind_the_activation():
    arch = Architecture(2, (4,), decoder="feedback", head="sigmoid")
    params, windows = lively_params(arch), random_windows((3, 5, 2))
    found = np.asarray(network(arch).apply(params, jnp.asarray(windows)))
    assert ((found > 0) & (found < 1)).all()
    expected = sigmoid(naive_outputs(params, windows, arch))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    linear = arch._replace(head="linear")
    found = np.asarray(network(linear).apply(params, jnp.asarray(windows)))
    expected = naive_outputs(params, windows, linear)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("channels", ["joint", "independent"])
def test_a_window_is_reconstructed_alike_in_any_batch(channels):
    arch = Architecture(3, (4,), channels)
    params, windows = lively_params(arch), random_windows((7, 6, 3))
    whole = outputs(arch, params, windows)
    parts = [outputs(arch, params, part) for part in np.split(windows, [2])]
    np.testing.assert_allclose(whole, np.concatenate(parts), rtol=1e-5, atol=1e-6)


def naive_code(params, windows, depth):
    """The innermost encoder layer's last hidden state, `[B, H]`."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    states = [windows[:, t] for t in range(windows.shape[1])]
    for n in range(depth):
        states = naive_layer(params[f"encoder_{n}"], states)[1]
    return states[-1]


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize(
    ("hidden", "channels", "decoder"),
    [
        ((4,), "joint", "repeat"),
        ((5, 3), "joint", "feedback"),
        ((5, 3), "independent", "repeat"),
        ((4,), "independent", "feedback"),
    ],
)
def test_the_code_is_the_encoders_last_hidden_state(hidden, channels, decoder, forced):
    arch = Architecture(2, hidden, channels, decoder)
    windows = random_windows((3, 6, 2))
    with jax.enable_x64(True):
        params = lively_params(arch)
        coded = jax.jit(network(arch).coded, static_argnames="forced")
        found, code = coded(params, jnp.asarray(windows), forced=forced)
        wanted = outputs(arch, params, windows, forced=forced)
    np.testing.assert_array_equal(found, wanted)
    sources = [windows]
    if channels == "independent":
        # The narrow network's codes of each channel, one after the other.
        sources = np.split(windows, 2, axis=2)
    expected = [naive_code(params, source, len(hidden)) for source in sources]
    assert code.shape == (3, hidden[-1] * len(sources))
    np.testing.assert_allclose(code, np.hstack(expected), rtol=1e-11, atol=1e-13)


def test_equal_architectures_share_their_functions():
    first = network(Architecture(2, (3,), "joint", "repeat", "linear"))
    assert network(Architecture(2, (3,))) is first
    assert network(Architecture(2, (4,))) is not first


def test_first_parameters_follow_from_the_key():
    init = jax.jit(network(Architecture(2, (3,))).init)
    first, again, other = (init(jax.random.key(seed)) for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    kernel = first["head"]["kernel"]
    assert (kernel != other["head"]["kernel"]).any()
    assert set(first) == {"encoder_0", "decoder_layers_0", "head"}
    assert (
        first["encoder_0"]["recurrent_kernel"]
        != first["decoder_layers_0"]["recurrent_kernel"]
    ).any()
