"""The decoder: token ids in, hidden states and logits out. Blocks are stacked on a leading layer axis.

Letters in names: B batch, L row length, D model width, H query heads, G key-value heads, K head width, F
feed-forward width, V vocabulary.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from ar_omni_jax.model import remat
from ar_omni_jax.model.attention import check_attention
from ar_omni_jax.model.config import ConfigError, TransformerConfig
from ar_omni_jax.model.layout import Layout, one_device
from ar_omni_jax.model.norms import head_norm, rms_norm
from ar_omni_jax.model.rope import apply_rope, rope_angles

TABLE_STD = 0.02  # output matrix (logits start near zero) and the embedding table of pre-norm models


def _normal(config: TransformerConfig, rngs: nnx.Rngs, axes, shape, std: float) -> nnx.Param:
    value = std * jax.random.normal(rngs.params(), shape, jnp.float32)
    return nnx.Param(value.astype(config.param_dtype), logical_axes=axes)


def _constant(config: TransformerConfig, axes, shape, value: float) -> nnx.Param:
    return nnx.Param(jnp.full(shape, value, config.param_dtype), logical_axes=axes)


class Block(nnx.Module):
    """Attention and SwiGLU with residuals; parameters carry a leading axis of `layers`.

    `Transformer` takes one layer's slice before it calls a block, so the methods below see no layer axis.

    Initialization: every projection keeps its input's variance (std fan_in^-0.5, which is 0.016 at width
    4096). Pre-norm: the two output projections are smaller by (2 layers)^-0.5, so that all branches together
    add about one unit of variance. Swin-norm: a branch's scale is its norm's gain and nothing else, so the
    gain starts at (2 layers)^-0.5 to the same end; with embeddings of unit variance (`Transformer`) a token's
    own identity is half of the last hidden state's variance. (A gain of 1 would leave 1 / (1 + 2 layers) of
    it.)
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.config = c = config
        N, D, H, G, K, F = c.num_layers, c.d_model, c.num_heads, c.num_kv_heads, c.head_dim, c.d_ff
        depth = (2 * N) ** -0.5
        swin = c.norm_placement == "swin"
        normal = functools.partial(_normal, c, rngs)
        constant = functools.partial(_constant, c)
        q_axes = ("layers", "embed", "heads", "head_dim")
        kv_axes = ("layers", "embed", "kv_heads", "head_dim")
        self.wq = normal(q_axes, (N, D, H, K), D**-0.5)
        self.wk = normal(kv_axes, (N, D, G, K), D**-0.5)
        self.wv = normal(kv_axes, (N, D, G, K), D**-0.5)
        out_scale = 1.0 if swin else depth
        self.wo = normal(("layers", "heads", "head_dim", "embed"), (N, H, K, D), out_scale * (H * K) ** -0.5)
        self.w_gate = normal(("layers", "embed", "mlp"), (N, D, F), D**-0.5)
        self.w_up = normal(("layers", "embed", "mlp"), (N, D, F), D**-0.5)
        self.w_down = normal(("layers", "mlp", "embed"), (N, F, D), out_scale * F**-0.5)
        gain = depth if swin else 1.0
        self.attention_norm = constant(("layers", "norm"), (N, D), gain)
        self.mlp_norm = constant(("layers", "norm"), (N, D), gain)
        if c.qk_norm:
            shape, axes = (N, c.qk_norm_groups, K), ("layers", "norm_groups", "head_dim")
            self.q_norm_weight, self.q_norm_bias = constant(axes, shape, 1.0), constant(axes, shape, 0.0)
            self.k_norm_weight, self.k_norm_bias = constant(axes, shape, 1.0), constant(axes, shape, 0.0)

    def __call__(self, x_BLD, angles, attend):
        """One layer. `attend(q, k, v) -> (out_BLHK, extra)`; returns (x_BLD, extra)."""
        c = self.config
        if c.norm_placement == "swin":
            attended, extra = self._attention(x_BLD, angles, attend)
            x = x_BLD + rms_norm(attended, self.attention_norm[...], c.norm_eps)
            return x + rms_norm(self._mlp(x), self.mlp_norm[...], c.norm_eps), extra
        normed = rms_norm(x_BLD, self.attention_norm[...], c.norm_eps)
        attended, extra = self._attention(normed, angles, attend)
        x = x_BLD + attended
        return x + self._mlp(rms_norm(x, self.mlp_norm[...], c.norm_eps)), extra

    def _attention(self, x_BLD, angles, attend):
        c, dtype = self.config, x_BLD.dtype
        project = functools.partial(jnp.einsum, "bld,dhk->blhk", x_BLD)
        q, k, v = (checkpoint_name(project(w[...].astype(dtype)), remat.QKV_RAW) for w in (self.wq, self.wk, self.wv))
        if c.qk_norm:
            q = head_norm(q, self.q_norm_weight[...], self.q_norm_bias[...])
            k = head_norm(k, self.k_norm_weight[...], self.k_norm_bias[...])
        q, k = apply_rope(q, angles, dtype), apply_rope(k, angles, dtype)
        attended, extra = attend(q, k, v)
        attended = checkpoint_name(attended, remat.ATTENTION_OUT)
        out = jnp.einsum("blhk,hkd->bld", attended, self.wo[...].astype(dtype))
        return checkpoint_name(out, remat.O_OUT), extra

    def _mlp(self, x_BLD):
        dtype = x_BLD.dtype
        gate = checkpoint_name(x_BLD @ self.w_gate[...].astype(dtype), remat.GATE_UP)
        up = checkpoint_name(x_BLD @ self.w_up[...].astype(dtype), remat.GATE_UP)
        return checkpoint_name((jax.nn.silu(gate) * up) @ self.w_down[...].astype(dtype), remat.DOWN_OUT)


class Transformer(nnx.Module):
    """Token ids -> hidden states -> logits.

    The embedding table starts with unit variance under swin-norm, where nothing rescales what enters the
    first block: at 0.02 the raw queries would drown in the qk-norm's eps. Pre-norm rescales it, and uses
    0.02. A tied table has std d_model^-0.5 and is multiplied by d_model^0.5 at the input: unit variance
    there, and logits of order one (but d_model^0.5 for the token itself, which a fresh tied model repeats).
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        check_attention(config)  # refuse an unusable backend now, before anything is allocated
        self.config = config
        V, D = config.vocab_size, config.d_model
        std = 1.0 if config.norm_placement == "swin" else TABLE_STD
        if config.tie_embeddings:
            std = D**-0.5
        self.embedding = _normal(config, rngs, ("vocab", "embed"), (V, D), std)
        self.blocks = Block(config, rngs=rngs)
        self.final_norm = _constant(config, ("norm",), (D,), 1.0)
        if not config.tie_embeddings:
            self.output = _normal(config, rngs, ("embed", "vocab"), (D, V), TABLE_STD)

    def __call__(self, tokens_BL, positions_BL, segment_ids_BL, layout: Layout | None = None):
        """Hidden states [B, L, D] after the final norm, in the compute dtype.

        Args:
          tokens_BL: int32 ids.
          positions_BL: int32, each token's place in its document (RoPE).
          segment_ids_BL: int32, the document in the row; 0 = padding.
          layout: of the mesh that the arrays are on; None on one device.
        """
        c = self.config
        if tokens_BL.shape[1] > c.max_length:
            raise ConfigError(
                f"TransformerConfig.max_length = {c.max_length}: got a row of {tokens_BL.shape[1]} tokens"
            )
        layout = layout or one_device(c)
        hidden, _ = self.run_blocks(
            self.embed(tokens_BL, layout),
            rope_angles(positions_BL, c.head_dim, c.rope_theta),
            lambda q, k, v: (layout.attention(q, k, v, segment_ids_BL), None),
            layout,
        )
        return self.finish(hidden)

    def embed(self, tokens_BL, layout: Layout):
        """Token ids -> [B, L, D] in the compute dtype."""
        x = layout.look_up(self.embedding[...], tokens_BL, self.config.dtype)
        return layout.hidden(x * math.sqrt(self.config.d_model) if self.config.tie_embeddings else x)

    def run_blocks(self, x_BLD, angles, attend, layout: Layout):
        """All blocks; returns (x_BLD, the `extra` of every layer's `attend`, stacked on a leading axis)."""
        graph, weights = nnx.split(self.blocks)

        def layer(x, layer_weights):
            x, extra = nnx.merge(graph, layout.weights(layer_weights))(x, angles, attend)
            return layout.hidden(x), extra

        scanned = self.config.scan_layers
        layer = remat.apply_remat(layer, self.config.remat, looped=scanned, gathers=layout.gathers)
        return jax.lax.scan(layer, x_BLD, weights, unroll=1 if scanned else self.config.num_layers)

    def finish(self, x_BLD):
        """The final norm."""
        return rms_norm(x_BLD, self.final_norm[...], self.config.norm_eps)

    def unembedding(self):
        """The output matrix [D, V], in the parameters' dtype."""
        return self.embedding[...].T if self.config.tie_embeddings else self.output[...]

    def logits(self, hidden):
        """float32 logits [..., V] of hidden states [..., D]; products in the compute dtype, sums in
        float32."""
        return jnp.matmul(hidden, self.unembedding().astype(hidden.dtype), preferred_element_type=jnp.float32)


def abstract_transformer(config: TransformerConfig) -> Transformer:
    """A `Transformer` of ShapeDtypeStructs: shapes without memory."""
    return nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))


def logical_axes(config: TransformerConfig) -> nnx.State:
    """The logical axis names of every parameter, in the tree structure of `nnx.state(Transformer(config))`.

    Leaves are PartitionSpecs over *logical* names ("layers", "vocab", "embed", "heads", "kv_heads",
    "head_dim", "mlp", "norm", "norm_groups"), ready for `jax.tree.map` to mesh axes.
    """
    state = nnx.state(abstract_transformer(config))
    return nnx.map_state(
        lambda _, variable: variable.replace(PartitionSpec(*variable.get_metadata("logical_axes"))), state
    )
