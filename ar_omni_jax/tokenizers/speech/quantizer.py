"""Vector quantizer with one codebook: nearest entry by Euclidean distance."""

import jax
import jax.numpy as jnp
from flax import nnx

from ar_omni_jax.tokenizers.speech.convolution import matmul


class Codebook(nnx.Module):
    """`embed` float32 [codes, dimension]."""

    def __init__(self, size: int, dimension: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.variance_scaling(1.0, "fan_in", "uniform")
        self.embed = nnx.Param(init(rngs.params(), (size, dimension), jnp.float32))

    def nearest(self, x: jax.Array) -> jax.Array:
        """[..., D] -> int32 [...]; argmin ||e||^2 - 2 x.e, the ||x||^2 being the same for all codes."""
        embed = self.embed[...]
        scores = jnp.sum(embed**2, axis=-1) - 2.0 * matmul(x, embed.T)
        return jnp.argmin(scores, axis=-1).astype(jnp.int32)

    def lookup(self, codes: jax.Array) -> jax.Array:
        """int [...] -> float32 [..., D]."""
        return jnp.take(self.embed[...], codes, axis=0)
