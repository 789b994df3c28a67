"""Building blocks of the VQGAN. Activations are NHWC; parameter names are those of published checkpoints.

Because every module's attributes carry the published names (`norm1`, `conv1`, `nin_shortcut`, ...),
a parameter's path in the module tree is its key in a checkpoint.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

Padding = str | tuple[tuple[int, int], tuple[int, int]]

GROUP_NORM_EPSILON = 1e-6


class Conv(nnx.Module):
    """2-d convolution: `weight` [k, k, in, out] (a checkpoint: [out, in, k, k]) and `bias` [out], float32."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        padding: Padding = "SAME",
        precision: lax.Precision | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.stride, self.padding, self.precision = stride, padding, precision
        bound = 1 / math.sqrt(in_channels * kernel * kernel)
        shape = (kernel, kernel, in_channels, out_channels)
        self.weight = nnx.Param(jax.random.uniform(rngs.params(), shape, jnp.float32, -bound, bound))
        self.bias = nnx.Param(jax.random.uniform(rngs.params(), (out_channels,), jnp.float32, -bound, bound))

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        y_BHWC = lax.conv_general_dilated(
            x_BHWC,
            self.weight[...],
            (self.stride, self.stride),
            self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=self.precision,
        )
        return y_BHWC + self.bias[...]


class GroupNorm(nnx.Module):
    """Normalizes each group of channels over space and channel; then a scale and a shift for each channel."""

    def __init__(self, channels: int, groups: int) -> None:
        self.groups = groups
        self.weight = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))

    def _group_mean(self, x_BHWC: jax.Array) -> jax.Array:
        # Over space first, with channels contiguous: much the faster order on CPU.
        mean_BC = jnp.mean(x_BHWC, axis=(1, 2))
        batch, channels = mean_BC.shape
        mean_BG = jnp.mean(mean_BC.reshape(batch, self.groups, -1), axis=-1)
        return jnp.repeat(mean_BG, channels // self.groups, axis=-1)[:, None, None, :]

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        centred = x_BHWC - self._group_mean(x_BHWC)
        variance = self._group_mean(jnp.square(centred))
        return centred * (lax.rsqrt(variance + GROUP_NORM_EPSILON) * self.weight[...]) + self.bias[...]


class ResnetBlock(nnx.Module):
    """norm1, swish, conv1, norm2, swish, conv2, plus the input (through a 1x1 conv when channels change)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        groups: int,
        precision: lax.Precision | None,
        rngs: nnx.Rngs,
    ) -> None:
        self.norm1 = GroupNorm(in_channels, groups)
        self.conv1 = Conv(in_channels, out_channels, precision=precision, rngs=rngs)
        self.norm2 = GroupNorm(out_channels, groups)
        self.conv2 = Conv(out_channels, out_channels, precision=precision, rngs=rngs)
        same = in_channels == out_channels
        self.nin_shortcut = None if same else Conv(in_channels, out_channels, 1, precision=precision, rngs=rngs)

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        h_BHWC = self.conv1(jax.nn.swish(self.norm1(x_BHWC)))
        h_BHWC = self.conv2(jax.nn.swish(self.norm2(h_BHWC)))
        return h_BHWC + (x_BHWC if self.nin_shortcut is None else self.nin_shortcut(x_BHWC))


class AttnBlock(nnx.Module):
    """Self-attention over all positions with one head of width C and scale C^-0.5, added to its input."""

    def __init__(self, channels: int, groups: int, precision: lax.Precision | None, rngs: nnx.Rngs) -> None:
        self.precision = precision
        self.norm = GroupNorm(channels, groups)
        self.q = Conv(channels, channels, 1, precision=precision, rngs=rngs)
        self.k = Conv(channels, channels, 1, precision=precision, rngs=rngs)
        self.v = Conv(channels, channels, 1, precision=precision, rngs=rngs)
        self.proj_out = Conv(channels, channels, 1, precision=precision, rngs=rngs)

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        batch, height, width, channels = x_BHWC.shape
        h_BHWC = self.norm(x_BHWC)
        q_BNC, k_BNC, v_BNC = (
            conv(h_BHWC).reshape(batch, height * width, channels) for conv in (self.q, self.k, self.v)
        )
        scores_BNM = jnp.einsum("bnc,bmc->bnm", q_BNC, k_BNC, precision=self.precision) * channels**-0.5
        mixed_BNC = jnp.einsum("bnm,bmc->bnc", jax.nn.softmax(scores_BNM, axis=-1), v_BNC, precision=self.precision)
        return x_BHWC + self.proj_out(mixed_BNC.reshape(x_BHWC.shape))


class Downsample(nnx.Module):
    """Halves height and width: pad one row below and one column to the right, then 3x3 with stride 2."""

    def __init__(self, channels: int, precision: lax.Precision | None, rngs: nnx.Rngs) -> None:
        padding = ((0, 1), (0, 1))
        self.conv = Conv(channels, channels, stride=2, padding=padding, precision=precision, rngs=rngs)

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        return self.conv(x_BHWC)


class Upsample(nnx.Module):
    """Doubles height and width: every pixel repeated 2x2, then a 3x3 convolution."""

    def __init__(self, channels: int, precision: lax.Precision | None, rngs: nnx.Rngs) -> None:
        self.conv = Conv(channels, channels, precision=precision, rngs=rngs)

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        batch, height, width, channels = x_BHWC.shape
        tiled = jnp.broadcast_to(x_BHWC[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
        return self.conv(tiled.reshape(batch, 2 * height, 2 * width, channels))
