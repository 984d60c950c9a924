"""The LSTM encoder-decoder, teacher and student alike (paper, sections 2.1 and 3).

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
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from kdjax.models.lstm import LSTM, Carry, Head

CHANNELS = ("joint", "independent")
DECODERS = ("repeat", "feedback")
HEADS = ("linear", "sigmoid")

Params = Mapping[str, Any]


class Architecture(NamedTuple):
    """All that fixes a network's shape.

    Attributes:
        width: D, channels of a window.
        hidden: widths of the encoder's layers; the decoder has them reversed.
        channels: `joint` or `independent`.
        decoder: `repeat` or `feedback`.
        head: `linear`, or `sigmoid` for data in [0, 1].
    """

    width: int
    hidden: tuple[int, ...]
    channels: str = "joint"
    decoder: str = "repeat"
    head: str = "linear"


class Network(NamedTuple):
    """An architecture as functions.

    Attributes:
        init: `key -> params`.
        outputs: `(params, windows [B, L, D], forced=False) -> [B, L, D]`, the head's
            values before its activation. `forced` lets a feedback decoder read the
            window instead of its own outputs, as it does in training.
        activate: the head's activation.
        coded: as `outputs`, beside the code `[B, H]` that the innermost layer of the
            encoder has made of the window; `[B, D·H]` of independent channels. None
            where there is no encoder.
    """

    init: Callable[[Array], Params]
    outputs: Callable[..., Array]
    activate: Callable[[Array], Array]
    coded: Callable[..., tuple[Array, Array]] | None = None


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
        carries = []
        states = windows
        for layer in self.encoder:
            carry, states = layer(states)
            carries.append(carry)
        code = carries[-1].hidden
        if self.decoder == "repeat":
            return self._repeat(code, windows.shape[1]), code
        inwards = tuple(reversed(carries))
        return self._feedback(inwards, windows, forced, activate), code

    def _repeat(self, latent: Array, length: int) -> Array:
        states = self.decoder_layers[0].repeat(latent, length)
        for layer in self.decoder_layers[1:]:
            states = layer(states)[1]
        return self.head(states)

    def _feedback(
        self,
        carries: tuple[Carry, ...],
        windows: Array,
        forced: bool,
        activate: Callable[[Array], Array],
    ) -> Array:
        last = self.head(carries[-1].hidden)

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
        _, earlier = scan(self, (carries, last), targets)
        outputs = jnp.concatenate([earlier[::-1], last[None]])
        return jnp.swapaxes(outputs, 0, 1)


@functools.lru_cache
def network(architecture: Architecture) -> Network:
    """The functions of one architecture; the same objects for equal architectures."""
    independent = architecture.channels == "independent"
    module = EncoderDecoder(
        width=1 if independent else architecture.width,
        hidden=architecture.hidden,
        decoder=architecture.decoder,
    )
    activate = nn.sigmoid if architecture.head == "sigmoid" else _identity

    def init(key: Array) -> Params:
        windows = jnp.zeros((module.width, 2, 1))
        params: Params = module.init(key, windows, False, activate)["params"]
        return params

    def coded(
        params: Params, windows: Array, forced: bool = False
    ) -> tuple[Array, Array]:
        batch, length, width = windows.shape
        # [B, L, D] to [D, L, B], or to [1, L, B·D].
        if independent:
            series = jnp.moveaxis(windows, 1, 0).reshape(1, length, batch * width)
        else:
            series = jnp.transpose(windows)
        result: Any = module.apply({"params": params}, series, forced, activate)
        values, code = result
        if independent:
            values = jnp.moveaxis(values.reshape(length, batch, width), 0, 1)
            return values, jnp.transpose(code).reshape(batch, -1)
        return jnp.transpose(values), jnp.transpose(code)

    def outputs(params: Params, windows: Array, forced: bool = False) -> Array:
        return coded(params, windows, forced)[0]

    return Network(init, outputs, activate, coded)


def reconstruct(architecture: Architecture, params: Params, windows: Array) -> Array:
    """X' of windows X, `[B, L, D] -> [B, L, D]`, as a detector runs it."""
    functions = network(architecture)
    return functions.activate(functions.outputs(params, windows))


def count_parameters(architecture: Architecture) -> int:
    """Number of trained numbers in a network of this architecture (Table 1)."""
    shapes = jax.eval_shape(network(architecture).init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def _identity(values: Array) -> Array:
    return values
