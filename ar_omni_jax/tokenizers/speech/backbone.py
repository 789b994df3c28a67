"""Vocos backbone (Siuzdak 2023) with WavTokenizer's position net: code vectors to spectral features."""

import jax
import jax.numpy as jnp
from flax import nnx

from ar_omni_jax.tokenizers.speech.config import SpeechCodecConfig
from ar_omni_jax.tokenizers.speech.convolution import Conv, DepthwiseConv, matmul

GROUPS = 32


def _normalize(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    mean = jnp.mean(x, axis=axes, keepdims=True)
    variance = jnp.mean(jnp.square(x - mean), axis=axes, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-6)


class Linear(nnx.Module):
    """Kernel [in, out], bias [out]."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
        self.kernel = nnx.Param(init(rngs.params(), (inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        return matmul(x, self.kernel[...]) + self.bias[...]


class AdaLayerNorm(nnx.Module):
    """Layer norm whose scale and shift are rows of tables [rows, C], one row a bandwidth."""

    def __init__(self, rows: int, channels: int):
        self.scale = nnx.Param(jnp.ones((rows, channels), jnp.float32))
        self.shift = nnx.Param(jnp.zeros((rows, channels), jnp.float32))

    def __call__(self, x: jax.Array, row: int = 0) -> jax.Array:
        return _normalize(x, (-1,)) * self.scale[row] + self.shift[row]


class GroupNorm(nnx.Module):
    """Statistics over all of time and the channels of a group: not causal."""

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, time, channels = x.shape
        groups = x.reshape(batch, time, GROUPS, channels // GROUPS)
        return _normalize(groups, (1, 3)).reshape(x.shape) * self.scale[...] + self.bias[...]


class ResnetBlock(nnx.Module):
    """x + conv(swish(norm(conv(swish(norm(x))))))."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.norm1, self.norm2 = GroupNorm(channels), GroupNorm(channels)
        self.conv1 = Conv(channels, channels, 3, padding="zero", rngs=rngs)
        self.conv2 = Conv(channels, channels, 3, padding="zero", rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.conv1(jax.nn.swish(self.norm1(x)))
        return x + self.conv2(jax.nn.swish(self.norm2(h)))


class AttentionBlock(nnx.Module):
    """One-head self-attention over all of time, scale C^-0.5."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.norm = GroupNorm(channels)
        self.q, self.k, self.v, self.proj_out = (Linear(channels, channels, rngs=rngs) for _ in range(4))

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.norm(x)
        scores = matmul(self.q(h), self.k(h).swapaxes(1, 2)) * x.shape[-1] ** -0.5
        return x + self.proj_out(matmul(jax.nn.softmax(scores, axis=-1), self.v(h)))


class PositionNet(nnx.Module):
    """Two residual blocks, attention, two residual blocks, GroupNorm."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        blocks = [ResnetBlock(channels, rngs=rngs) for _ in range(4)]
        self.before, self.after = nnx.List(blocks[:2]), nnx.List(blocks[2:])
        self.attention = AttentionBlock(channels, rngs=rngs)
        self.norm = GroupNorm(channels)

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.before:
            x = block(x)
        x = self.attention(x)
        for block in self.after:
            x = block(x)
        return self.norm(x)


class ConvNeXtBlock(nnx.Module):
    """x + gamma * W2 gelu(W1 norm(depthwise(x)))."""

    def __init__(self, dim: int, inner: int, rows: int, gamma: float, *, causal: bool, rngs: nnx.Rngs):
        self.depthwise = DepthwiseConv(dim, 7, causal=causal, rngs=rngs)
        self.norm = AdaLayerNorm(rows, dim)
        self.expand = Linear(dim, inner, rngs=rngs)
        self.contract = Linear(inner, dim, rngs=rngs)
        self.gamma = nnx.Param(jnp.full((dim,), gamma, jnp.float32))

    def _pointwise(self, h: jax.Array, row: int) -> jax.Array:
        h = jax.nn.gelu(self.expand(self.norm(h, row)), approximate=False)
        return self.gamma[...] * self.contract(h)

    def __call__(self, x: jax.Array, row: int = 0) -> jax.Array:
        return x + self._pointwise(self.depthwise(x), row)

    def stream(self, state: jax.Array, x: jax.Array, row: int = 0) -> tuple[jax.Array, jax.Array]:
        state, h = self.depthwise.stream(state, x)
        return state, x + self._pointwise(h, row)


class Backbone(nnx.Module):
    """[B, n, dimension] code vectors -> [B, n * upsample, output_dim] features."""

    def __init__(self, config: SpeechCodecConfig, *, rngs: nnx.Rngs):
        c, causal = config.backbone, config.causal
        padding = "causal" if causal else "zero"
        rows = c.adanorm_num_embeddings
        self.upsample = c.upsample
        self.embed = Conv(config.encoder.dimension, c.dim, 7, padding=padding, rngs=rngs)
        self.position_net = PositionNet(c.dim, rngs=rngs) if c.position_net else None
        self.norm = AdaLayerNorm(rows, c.dim)
        gamma = 1.0 / max(1, c.num_layers + c.upsampled_layers)

        def block(dim, inner):
            return ConvNeXtBlock(dim, inner, rows, gamma, causal=causal, rngs=rngs)

        self.blocks = nnx.List([block(c.dim, c.intermediate_dim) for _ in range(c.num_layers)])
        fine = c.upsample > 1
        self.expand = Linear(c.dim, c.upsample * c.upsampled_dim, rngs=rngs) if fine else None
        self.fine_blocks = nnx.List(
            [block(c.upsampled_dim, c.upsampled_intermediate_dim) for _ in range(c.upsampled_layers * fine)]
        )
        self.final_scale = nnx.Param(jnp.ones((c.output_dim,), jnp.float32))
        self.final_bias = nnx.Param(jnp.zeros((c.output_dim,), jnp.float32))

    def _to_fine(self, x: jax.Array) -> jax.Array:
        """One code frame becomes `upsample` frames, each with its own projection."""
        if self.expand is None:
            return x
        batch, time, _ = x.shape
        return self.expand(x).reshape(batch, time * self.upsample, -1)

    def _finish(self, x: jax.Array) -> jax.Array:
        return _normalize(x, (-1,)) * self.final_scale[...] + self.final_bias[...]

    def __call__(self, x: jax.Array, row: int = 0) -> jax.Array:
        x = self.embed(x)
        x = self.position_net(x) if self.position_net is not None else x
        x = self.norm(x, row)
        for block in self.blocks:
            x = block(x, row)
        x = self._to_fine(x)
        for block in self.fine_blocks:
            x = block(x, row)
        return self._finish(x)

    def init_stream(self, batch: int) -> dict:
        """State before the first code: one buffer of past inputs a convolution."""
        return {
            "embed": self.embed.init_stream(batch),
            "blocks": [b.depthwise.init_stream(batch) for b in [*self.blocks, *self.fine_blocks]],
        }

    def stream(self, state: dict, x: jax.Array, row: int = 0) -> tuple[dict, jax.Array]:
        """Causal codecs: next code vectors [B, n, D] -> next features, equal to the offline ones."""
        embed, x = self.embed.stream(state["embed"], x)
        x = self.norm(x, row)
        buffers = list(state["blocks"])
        for i, block in enumerate(self.blocks):
            buffers[i], x = block.stream(buffers[i], x, row)
        x = self._to_fine(x)
        for i, block in enumerate(self.fine_blocks, start=len(self.blocks)):
            buffers[i], x = block.stream(buffers[i], x, row)
        return {"embed": embed, "blocks": buffers}, self._finish(x)
