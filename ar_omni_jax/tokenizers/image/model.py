"""The VQGAN: encoder, nearest-code quantizer, decoder. Parameter paths are the published keys."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from ar_omni_jax.tokenizers.image.config import VQGANConfig
from ar_omni_jax.tokenizers.image.layers import (
    AttnBlock,
    Conv,
    Downsample,
    GroupNorm,
    ResnetBlock,
    Upsample,
)

# The encoder and the distances decide codes: with bfloat16 or TF32 passes (the default of a TPU or a GPU)
# near ties flip, so they always run in full float32.
EXACT = lax.Precision.HIGHEST


class Stage(nnx.Module):
    """One resolution: residual blocks, each followed by attention where the config asks; then resampling."""

    def __init__(
        self,
        widths: list[int],
        attend: bool,
        groups: int,
        precision: lax.Precision | None,
        rngs: nnx.Rngs,
        *,
        downsample: bool = False,
        upsample: bool = False,
    ) -> None:
        pairs = list(zip(widths[:-1], widths[1:], strict=True))
        self.block = nnx.List([ResnetBlock(a, b, groups, precision, rngs) for a, b in pairs])
        self.attn = nnx.List([AttnBlock(b, groups, precision, rngs) for _, b in pairs] if attend else [])
        self.downsample = Downsample(widths[-1], precision, rngs) if downsample else None
        self.upsample = Upsample(widths[-1], precision, rngs) if upsample else None

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        for index, block in enumerate(self.block):
            x_BHWC = block(x_BHWC)
            if len(self.attn):
                x_BHWC = self.attn[index](x_BHWC)
        for resample in (self.downsample, self.upsample):
            if resample is not None:
                x_BHWC = resample(x_BHWC)
        return x_BHWC


class Middle(nnx.Module):
    """Residual block, attention, residual block at the resolution of the codes."""

    def __init__(self, channels: int, groups: int, precision: lax.Precision | None, rngs: nnx.Rngs) -> None:
        self.block_1 = ResnetBlock(channels, channels, groups, precision, rngs)
        self.attn_1 = AttnBlock(channels, groups, precision, rngs)
        self.block_2 = ResnetBlock(channels, channels, groups, precision, rngs)

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        return self.block_2(self.attn_1(self.block_1(x_BHWC)))


class Encoder(nnx.Module):
    """Pixels [B, H, W, 3] in [-1, 1] to [B, h, w, z_channels]; `down` runs from index 0, full size."""

    def __init__(self, config: VQGANConfig, rngs: nnx.Rngs) -> None:
        last = len(config.ch_mult) - 1
        groups, width = config.num_groups, config.ch
        self.conv_in = Conv(config.in_channels, width, precision=EXACT, rngs=rngs)
        stages = []
        for index, factor in enumerate(config.ch_mult):
            out = config.ch * factor
            attend = config.resolution // 2**index in config.attn_resolutions
            widths = [width] + [out] * config.num_res_blocks
            stages.append(Stage(widths, attend, groups, EXACT, rngs, downsample=index != last))
            width = out
        self.down = nnx.List(stages)
        self.mid = Middle(width, groups, EXACT, rngs)
        self.norm_out = GroupNorm(width, groups)
        self.conv_out = Conv(width, config.z_channels, precision=EXACT, rngs=rngs)

    def __call__(self, pixels_BHWC: jax.Array) -> jax.Array:
        x_BHWC = self.conv_in(pixels_BHWC)
        for stage in self.down:
            x_BHWC = stage(x_BHWC)
        return self.conv_out(jax.nn.swish(self.norm_out(self.mid(x_BHWC))))


class Decoder(nnx.Module):
    """[B, h, w, z_channels] to pixels [B, H, W, 3]; `up` runs from the highest index down to 0, full size."""

    def __init__(self, config: VQGANConfig, rngs: nnx.Rngs) -> None:
        last = len(config.ch_mult) - 1
        groups, width = config.num_groups, config.ch * config.ch_mult[-1]
        self.conv_in = Conv(config.z_channels, width, rngs=rngs)
        self.mid = Middle(width, groups, None, rngs)
        stages = []
        for index in range(last, -1, -1):
            out = config.ch * config.ch_mult[index]
            attend = config.resolution // 2**index in config.attn_resolutions
            widths = [width] + [out] * (config.num_res_blocks + 1)
            stages.insert(0, Stage(widths, attend, groups, None, rngs, upsample=index != 0))
            width = out
        self.up = nnx.List(stages)
        self.norm_out = GroupNorm(width, groups)
        self.conv_out = Conv(width, config.out_ch, rngs=rngs)

    def middle(self, z_BHWC: jax.Array) -> jax.Array:
        return self.mid(self.conv_in(z_BHWC))

    def output(self, x_BHWC: jax.Array) -> jax.Array:
        return self.conv_out(jax.nn.swish(self.norm_out(x_BHWC)))

    def __call__(self, z_BHWC: jax.Array) -> jax.Array:
        x_BHWC = self.middle(z_BHWC)
        for index in range(len(self.up) - 1, -1, -1):
            x_BHWC = self.up[index](x_BHWC)
        return self.output(x_BHWC)


class Embedding(nnx.Module):
    def __init__(self, size: int, width: int, rngs: nnx.Rngs) -> None:
        self.weight = nnx.Param(jax.random.uniform(rngs.params(), (size, width), jnp.float32, -1 / size, 1 / size))


class Quantizer(nnx.Module):
    """The codebook, `embedding.weight` float32 [n_embed, embed_dim]."""

    def __init__(self, config: VQGANConfig, rngs: nnx.Rngs) -> None:
        self.embedding = Embedding(config.n_embed, config.embed_dim, rngs)


def nearest_codes(latents: jax.Array, codebook_KD: jax.Array) -> jax.Array:
    """Index of the code at the least Euclidean distance: [..., D] -> int32 [...]; the lowest wins ties."""
    products = jnp.einsum("...d,kd->...k", latents, codebook_KD, precision=EXACT)
    squares = jnp.sum(jnp.square(latents), axis=-1, keepdims=True)
    distances = squares + jnp.sum(jnp.square(codebook_KD), axis=-1) - 2 * products
    return jnp.argmin(distances, axis=-1).astype(jnp.int32)


class VQGAN(nnx.Module):
    """Image tokenizer network. All arrays float32, pictures NHWC in [-1, 1]."""

    def __init__(self, config: VQGANConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        self.encoder = Encoder(config, rngs)
        self.quant_conv = Conv(config.z_channels, config.embed_dim, 1, precision=EXACT, rngs=rngs)
        self.quantize = Quantizer(config, rngs)
        self.post_quant_conv = Conv(config.embed_dim, config.z_channels, 1, rngs=rngs)
        self.decoder = Decoder(config, rngs)

    def latents(self, pixels_BHWC: jax.Array) -> jax.Array:
        """Pixels [B, H, W, 3] to unquantized vectors [B, h, w, embed_dim]."""
        return self.quant_conv(self.encoder(pixels_BHWC))

    def codes(self, latents_BhwD: jax.Array) -> jax.Array:
        """Vectors [B, h, w, embed_dim] to codes int32 [B, h, w]."""
        return nearest_codes(latents_BhwD, self.quantize.embedding.weight[...])

    def embed(self, codes: jax.Array) -> jax.Array:
        """Codes [...] to codebook vectors [..., embed_dim]."""
        return self.quantize.embedding.weight[...][codes]

    def decode(self, latents_BhwD: jax.Array) -> jax.Array:
        """Codebook vectors [B, h, w, embed_dim] to pixels [B, H, W, 3], not clamped."""
        return self.decoder(self.post_quant_conv(latents_BhwD))
