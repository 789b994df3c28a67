"""1-D convolution over time as matrix products, with the paddings of the codec family.

Layout everywhere: activations [batch, time, channels] float32, kernels [taps, in, out]. A window of
taps becomes one matrix product: on CPUs that is several times faster than XLA's 1-D convolution and
its gradients, and elsewhere it is as good.
"""

import jax
import jax.numpy as jnp
from flax import nnx

# Codes flip when distances are computed in reduced precision, so nothing here may fall to bfloat16.
PRECISION = jax.lax.Precision.HIGHEST


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=PRECISION)


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Valid convolution: [B, T, I] with [K, I, O] -> [B, (T - K) // stride + 1, O]."""
    batch, time, _ = x.shape
    taps, inputs, outputs = kernel.shape
    frames = (time - taps) // stride + 1
    if stride == 1:
        windows = [x[:, j : j + frames] for j in range(taps)]
        x = jnp.concatenate(windows, axis=-1) if taps > 1 else x
        return matmul(x, kernel.reshape(taps * inputs, outputs))
    # Cut time into blocks of `stride` samples: a window is then a few neighbouring whole blocks.
    blocks = -(-taps // stride)
    kernel = jnp.pad(kernel, ((0, blocks * stride - taps), (0, 0), (0, 0)))
    needed = (frames + blocks - 1) * stride
    x = jnp.pad(x, ((0, 0), (0, max(0, needed - time)), (0, 0)))[:, :needed]
    x = x.reshape(batch, needed // stride, stride * inputs)
    kernel = kernel.reshape(blocks, stride * inputs, outputs)
    return sum(matmul(x[:, j : j + frames], kernel[j]) for j in range(blocks))


def pad_reflect(x: jax.Array, left: int, right: int) -> jax.Array:
    """Reflect [B, T, C] in time. Inputs no longer than the padding are first extended by zeros on the
    right, which are trimmed off the result (EnCodec's rule for short inputs)."""
    shortage = max(left, right) - x.shape[1] + 1
    if shortage > 0:
        x = jnp.pad(x, ((0, 0), (0, shortage), (0, 0)))
    x = jnp.pad(x, ((0, 0), (left, right), (0, 0)), mode="reflect")
    return x[:, : x.shape[1] - shortage] if shortage > 0 else x


def pad_reflect_rows(x: jax.Array, lengths: jax.Array, left: int, right: int, stride: int) -> jax.Array:
    """`pad_reflect` of rows [B, T, C] that end after `lengths` int [B] frames, each at its own end.

    There every row gets `right` frames and what completes its last step of `stride`, by the same rule for short
    rows. Returns [B, left + T + right, C]; what stands behind a row's padding is for no output of that row. T must
    be a multiple of `stride` and longer than any padding.
    """
    batch, time, _ = x.shape
    x = jnp.where((jnp.arange(time) < lengths[:, None])[..., None], x, 0.0)
    padded = jnp.pad(x, ((0, 0), (left, 0), (0, 0)), mode="reflect")
    padded = jnp.pad(padded, ((0, 0), (0, right), (0, 0)))
    fill = -lengths % stride
    mirror = jnp.maximum(lengths, jnp.maximum(left, right + fill) + 1) - 1  # the last frame; zeros, in short rows
    places = lengths[:, None] + jnp.arange(right + stride - 1)  # behind the row's end
    source = jnp.where(places > mirror[:, None], 2 * mirror[:, None] - places, places)
    rows = jnp.arange(batch)[:, None]
    ends = x[rows, jnp.clip(source, 0, time - 1)] * (source < lengths[:, None])[..., None]
    return padded.at[rows, left + places].set(ends, mode="drop")


class Conv(nnx.Module):
    """Convolution whose output has ceil(T / stride) frames.

    padding: "reflect" (SEANet), "zero" (Vocos), or "causal": zeros on the left only, so frame i sees
    nothing after sample (i + 1) * stride.
    """

    def __init__(self, inputs: int, outputs: int, taps: int, *, stride: int = 1, padding: str, rngs: nnx.Rngs):
        if padding not in ("reflect", "zero", "causal"):
            raise ValueError(f"convolution: unknown padding {padding!r}; use reflect, zero or causal")
        self.stride, self.padding = stride, padding
        init = nnx.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
        self.kernel = nnx.Param(init(rngs.params(), (taps, inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32))

    def _pad(self, x: jax.Array) -> jax.Array:
        total = self.kernel.shape[0] - self.stride
        fill = -x.shape[1] % self.stride  # completes the last frame
        if self.padding == "causal":
            return jnp.pad(x, ((0, 0), (total, fill), (0, 0)))
        right = total // 2
        if self.padding == "reflect":
            return pad_reflect(x, total - right, right + fill)
        return jnp.pad(x, ((0, 0), (total - right, right + fill), (0, 0)))

    def __call__(self, x: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        """[B, T, I] -> [B, ceil(T / stride), O].

        lengths: int [B], for "reflect" with T a multiple of the stride: row b ends after lengths[b] frames, and its
        first ceil(lengths[b] / stride) outputs are those that it has alone; the others mean nothing.
        """
        if lengths is None or self.kernel.shape[0] == self.stride == 1:
            padded = self._pad(x)
        else:
            total = self.kernel.shape[0] - self.stride
            padded = pad_reflect_rows(x, lengths, total - total // 2, total // 2, self.stride)
        return convolve(padded, self.kernel[...], self.stride) + self.bias[...]

    def stream(self, state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Causal, stride 1: `state` holds the last taps - 1 inputs [B, K - 1, I]; zeros at the start."""
        x = jnp.concatenate([state, x], axis=1)
        return x[:, x.shape[1] - state.shape[1] :], convolve(x, self.kernel[...]) + self.bias[...]

    def init_stream(self, batch: int) -> jax.Array:
        taps, inputs, _ = self.kernel.shape
        return jnp.zeros((batch, taps - 1, inputs), jnp.float32)


class DepthwiseConv(nnx.Module):
    """One filter of odd length a channel, as a sum of shifted products."""

    def __init__(self, channels: int, taps: int, *, causal: bool, rngs: nnx.Rngs):
        self.causal = causal
        init = nnx.initializers.truncated_normal(taps**-0.5)
        self.kernel = nnx.Param(init(rngs.params(), (taps, channels), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))

    def _valid(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...]
        frames = x.shape[1] - kernel.shape[0] + 1
        return sum(x[:, j : j + frames] * kernel[j] for j in range(kernel.shape[0])) + self.bias[...]

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, C] -> [B, T, C]."""
        past = self.kernel.shape[0] - 1
        left = past if self.causal else past // 2
        return self._valid(jnp.pad(x, ((0, 0), (left, past - left), (0, 0))))

    def stream(self, state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """As `Conv.stream`."""
        x = jnp.concatenate([state, x], axis=1)
        return x[:, x.shape[1] - state.shape[1] :], self._valid(x)

    def init_stream(self, batch: int) -> jax.Array:
        taps, channels = self.kernel.shape
        return jnp.zeros((batch, taps - 1, channels), jnp.float32)
