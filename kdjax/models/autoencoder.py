"""The LSTM encoder-decoder for teacher and student (paper, sections 2.1 and 3).

Malhotra et al., 2016, "LSTM-based Encoder-Decoder for Multi-sensor Anomaly Detection".
The encoder's layers read a window; the decoder has the reversed widths. Two decoders:

* `repeat`: the encoder's last hidden state is the input of the decoder at each of the
  L steps. This is what the parameter counts of Table 1 imply.
* `feedback`: Malhotra's. The decoder starts from the encoder's states and runs
  backwards in time: x'_L = head(h_L); then it reads x'_t (in training x_t) to give
  x'_{t−1}.

`channels="joint"` feeds all D channels to one network of width D; `"independent"` runs
one network of width 1 over each channel, with shared weights (Table 1's reading).
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from kdjax.errors import ConfigError, check_choice
from kdjax.models.lstm import LSTM, Carry, Head
from kdjax.models.model import Model, Params, identity

CHANNELS = ("joint", "independent")
DECODERS = ("repeat", "feedback")
HEADS = ("linear", "sigmoid")


class Architecture(NamedTuple):
    """All settings that determine a network's shape."""

    width: int  # D, channels of a window
    hidden: tuple[int, ...]  # widths of the encoder's layers, reversed in the decoder
    channels: str = "joint"  # or `independent`
    decoder: str = "repeat"  # or `feedback`
    head: str = "linear"  # or `sigmoid` for data in [0, 1]


class EncoderDecoder(nn.Module):
    """The network over windows of its own width W, feature-major `[W, L, B]`."""

    width: int
    hidden: tuple[int, ...]
    decoder: str

    def setup(self) -> None:
        widths = (self.width, *self.hidden)
        self.encoder = [LSTM(i, h) for i, h in itertools.pairwise(widths)]
        first = self.hidden[-1] if self.decoder == "repeat" else self.width
        widths = (first, *reversed(self.hidden))
        self.decoder_layers = [LSTM(i, h) for i, h in itertools.pairwise(widths)]
        self.head = Head(self.hidden[0], self.width)

    def __call__(
        self, windows: Array, forced: bool, activate: Callable[[Array], Array]
    ) -> tuple[Array, Array]:
        """The head's values `[W, L, B]` and the code `[H, B]`."""
        carries, states = [], windows
        for layer in self.encoder:
            carry, states = layer(states)
            carries.append(carry)
        code = carries[-1].hidden
        if self.decoder == "repeat":
            states = self.decoder_layers[0].repeat(code, windows.shape[1])
            for layer in self.decoder_layers[1:]:
                states = layer(states)[1]
            return self.head(states), code
        last = self.head(carries[0].hidden)

        def step(
            network: "EncoderDecoder",
            state: tuple[tuple[Carry, ...], Array],
            target: Array,
        ) -> tuple[tuple[tuple[Carry, ...], Array], Array]:
            carries, output = state
            inputs = target if forced else activate(output)
            updated = []
            for layer, carry in zip(network.decoder_layers, carries, strict=True):
                updated.append(layer.step(carry, inputs))
                inputs = updated[-1].hidden
            output = network.head(inputs)
            return (tuple(updated), output), output

        scan = nn.scan(step, variable_broadcast="params", split_rngs={"params": False})
        # Targets x_L … x_2 give outputs x'_{L−1} … x'_1.
        targets = jnp.swapaxes(windows, 0, 1)[:0:-1]
        _, earlier = scan(self, (tuple(reversed(carries)), last), targets)
        outputs = jnp.concatenate([earlier[::-1], last[None]])
        return jnp.swapaxes(outputs, 0, 1), code


def lstm_autoencoder(
    *,
    hidden: Sequence[int],
    channels: str = "joint",
    decoder: str = "repeat",
    head: str = "linear",
) -> Model:
    """An LSTM encoder-decoder for windows `[B, L, D]` of any L and D.

    Args:
        hidden: widths of the encoder's layers; the decoder has them reversed.
        channels: `joint`, or `independent` for one network over each channel separately.
        decoder: `repeat` or `feedback`.
        head: `linear`, or `sigmoid` for data in [0, 1].

    Raises:
        ConfigError: an argument is unknown.

    >>> model = lstm_autoencoder(hidden=(4,))
    >>> windows = jnp.ones((2, 7, 3))
    >>> params = model.init(jax.random.key(0), windows)
    >>> model.apply(params, windows).shape, model.encode(params, windows).shape
    ((2, 7, 3), (2, 4))
    """
    check_choice("channels", channels, CHANNELS)
    check_choice("decoder", decoder, DECODERS)
    check_choice("head", head, HEADS)
    widths = tuple(hidden)
    if not widths or min(widths) < 1:
        raise ConfigError(f"hidden={widths} must name one or more widths above 0.")
    return _lstm_autoencoder(widths, channels, decoder, head)


@functools.lru_cache
def _lstm_autoencoder(
    hidden: tuple[int, ...], channels: str, decoder: str, head: str
) -> Model:
    """The same objects for equal arguments, so that jitted functions are shared."""
    independent = channels == "independent"
    activate = nn.sigmoid if head == "sigmoid" else identity

    def module(width: int) -> EncoderDecoder:
        return EncoderDecoder(1 if independent else width, hidden, decoder)

    def init(key: Array, windows: Array) -> Params:
        own = module(windows.shape[-1])
        start = jnp.zeros((own.width, 2, 1), jnp.float32)
        return own.init(key, start, False, activate)["params"]

    # Compiled, since a user may call it outside of `jit`: 1 ms instead of 1 s.
    @functools.partial(jax.jit, static_argnums=2)
    def coded(
        params: Params, windows: Array, forced: bool = False
    ) -> tuple[Array, Array]:
        batch, length, width = windows.shape
        windows = windows.astype(params["head"]["bias"].dtype)
        # [B, L, D] to [D, L, B], or to [1, L, B·D].
        if independent:
            series = jnp.moveaxis(windows, 1, 0).reshape(1, length, batch * width)
        else:
            series = jnp.transpose(windows)
        result: Any = module(width).apply({"params": params}, series, forced, activate)
        values, code = result
        if independent:
            values = jnp.moveaxis(values.reshape(length, batch, width), 0, 1)
            return values, jnp.transpose(code).reshape(batch, -1)
        return jnp.transpose(values), jnp.transpose(code)

    def outputs(params: Params, windows: Array, forced: bool = False) -> Array:
        return coded(params, windows, forced)[0]

    def apply(params: Params, windows: Array) -> Array:
        return activate(outputs(params, windows))

    def encode(params: Params, windows: Array) -> Array:
        return coded(params, windows)[1]

    return Model(init, apply, encode, outputs, activate, coded)


@functools.lru_cache
def network(architecture: Architecture) -> Model:
    """The model of one architecture; its `init` needs no windows."""
    width, *shape = architecture
    model = _lstm_autoencoder(*shape)

    @jax.jit
    def init(key: Array, windows: Array | None = None) -> Params:
        start = jnp.zeros((1, 2, width), jnp.float32)
        return model.init(key, start if windows is None else windows)

    return model._replace(init=init)


def count_parameters(architecture: Architecture) -> int:
    """Number of trained numbers in a network of this architecture (Table 1)."""
    shapes = jax.eval_shape(network(architecture).init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))
