"""SEANet encoder with LSTM (EnCodec, Défossez et al. 2022): waveform to one vector a hop."""

import jax
import jax.numpy as jnp
from flax import nnx

from ar_omni_jax.tokenizers.speech.config import SpeechCodecConfig
from ar_omni_jax.tokenizers.speech.convolution import Conv, matmul


class LSTM(nnx.Module):
    """One layer, forward in time, gates in PyTorch's order i, f, g, o; zero initial state."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
        self.input_kernel = nnx.Param(init(rngs.params(), (width, 4 * width), jnp.float32))
        self.hidden_kernel = nnx.Param(init(rngs.params(), (width, 4 * width), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((4 * width,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, C] -> [B, T, C]."""
        hidden_kernel = self.hidden_kernel[...]
        inputs = matmul(x, self.input_kernel[...]) + self.bias[...]  # for all steps at once

        def step(carry, input_bg):
            hidden, cell = carry
            i, f, g, o = jnp.split(input_bg + matmul(hidden, hidden_kernel), 4, axis=-1)
            cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
            hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
            return (hidden, cell), hidden

        zeros = jnp.zeros((x.shape[0], x.shape[2]), x.dtype)
        _, outputs = jax.lax.scan(step, (zeros, zeros), inputs.swapaxes(0, 1))
        return outputs.swapaxes(0, 1)


class ResidualBlock(nnx.Module):
    """shortcut(x) + conv1x1(elu(conv(elu(x)))), the inner width divided by `compress`."""

    def __init__(self, channels: int, taps: int, compress: int, *, padding: str, rngs: nnx.Rngs):
        inner = channels // compress
        self.conv = Conv(channels, inner, taps, padding=padding, rngs=rngs)
        self.project = Conv(inner, channels, 1, padding=padding, rngs=rngs)
        self.shortcut = Conv(channels, channels, 1, padding=padding, rngs=rngs)

    def __call__(self, x: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        return self.shortcut(x) + self.project(jax.nn.elu(self.conv(jax.nn.elu(x), lengths)))


class Encoder(nnx.Module):
    """[B, T] waveform -> [B, ceil(T / hop), dimension]."""

    def __init__(self, config: SpeechCodecConfig, *, rngs: nnx.Rngs):
        c = config.encoder
        self.hop_length, self.lookahead, self.normalize = c.hop_length, c.lookahead, c.normalize
        padding = "causal" if config.causal else "reflect"
        self.first = Conv(1, c.n_filters, c.kernel_size, padding=padding, rngs=rngs)
        residual, down, width = [], [], c.n_filters
        for stride in c.strides:
            residual.append(ResidualBlock(width, c.residual_kernel_size, c.compress, padding=padding, rngs=rngs))
            down.append(Conv(width, 2 * width, 2 * stride, stride=stride, padding=padding, rngs=rngs))
            width *= 2
        self.residual, self.down = nnx.List(residual), nnx.List(down)
        self.lstm = nnx.List([LSTM(width, rngs=rngs) for _ in range(c.lstm_layers)])
        self.last = Conv(width, c.dimension, c.last_kernel_size, padding=padding, rngs=rngs)

    def _align(self, wav: jax.Array) -> jax.Array:
        """Shift so that the frame *after* a code's own ends `lookahead` samples past that code's hop."""
        fill = -wav.shape[1] % self.hop_length
        return jnp.pad(wav, ((0, 0), (self.hop_length - self.lookahead, fill + self.lookahead)))

    def __call__(self, wav: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        """lengths: int [B], samples of each row, for rows that were padded to whole hops; not of causal encoders,
        where padding on the right changes nothing."""
        wav = self._align(wav) if self.lookahead else wav
        x = self.first(wav[..., None], lengths)
        for residual, down in zip(self.residual, self.down, strict=True):
            x = down(jax.nn.elu(residual(x, lengths)), lengths)
            lengths = None if lengths is None else -(-lengths // down.stride)
        y = x
        for layer in self.lstm:
            y = layer(y)
        x = self.last(jax.nn.elu(x + y if len(self.lstm) else x), lengths)
        if self.normalize:
            x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)
        return x[:, 1:] if self.lookahead else x
