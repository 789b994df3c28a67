"""Shape and numerics of the Transformer: one frozen dataclass, checked when it is made."""

from __future__ import annotations

import dataclasses

NORM_PLACEMENTS = ("swin", "pre")
REMAT_POLICIES = ("none", "full", "save_attention", "zero_recompute")
DTYPES = ("float32", "bfloat16", "float16")


class ConfigError(ValueError):
    """A field of a model configuration that cannot be used; the message names the field."""


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """A causal decoder of the Chameleon family.

    Attributes:
      vocab_size: rows of the embedding table.
      num_layers, d_model, num_heads, num_kv_heads, head_dim, d_ff: the shape. `num_kv_heads` < `num_heads` is
        grouped-query attention; `d_ff` is the inner width of SwiGLU.
      norm_placement: "swin" normalizes each branch's output, h = x + Norm(Attn(x)); "pre" its input,
        h = x + Attn(Norm(x)). The two are different functions of the same weights.
      norm_eps: of the RMSNorms.
      rope_theta: base of the rotary frequencies, on interleaved pairs.
      qk_norm: LayerNorm with bias on each head's query and key before RoPE.
      qk_norm_groups: rows of the q/k norm's parameters [groups, head_dim]; each row serves
        num_heads / groups neighbouring heads (`model_parallel_size` of the published layouts).
      tie_embeddings: the output matrix is the embedding table; the input is then scaled by sqrt(d_model).
      max_length: longest row the model accepts, in tokens.
      dtype: of the matrix products and the residual stream. Norms, RoPE, softmax and logits are float32
      always. param_dtype: of the stored parameters. attention: name of an attention backend
      (`model/attention.py`). packed_rows: rows may hold several documents. False (one document a row, padding
      at its end) admits
        backends that know no segment ids; the data must then be packed so.
      remat: what the backward pass recomputes (`model/remat.py`).
      scan_layers: compile one block and loop over it, or write all layers out. Parameters are stacked either
        way.
    """

    vocab_size: int
    num_layers: int
    d_model: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    norm_placement: str = "swin"
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    qk_norm: bool = True
    qk_norm_groups: int = 1
    tie_embeddings: bool = False
    max_length: int = 4096
    dtype: str = "bfloat16"
    param_dtype: str = "float32"
    attention: str = "reference"
    packed_rows: bool = True
    remat: str = "none"
    scan_layers: bool = True

    def __post_init__(self):
        sizes = "vocab_size num_layers d_model num_heads num_kv_heads head_dim d_ff qk_norm_groups max_length"
        for name in sizes.split():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                self._refuse(name, "must be a positive integer")
        if self.num_heads % self.num_kv_heads:
            self._refuse("num_kv_heads", f"must divide num_heads = {self.num_heads}")
        if self.num_kv_heads % self.qk_norm_groups:
            self._refuse("qk_norm_groups", f"must divide num_kv_heads = {self.num_kv_heads}")
        if self.head_dim % 2:
            self._refuse("head_dim", "must be even: RoPE turns pairs of channels")
        for name, floor in (("norm_eps", 0.0), ("rope_theta", 1.0)):
            if not getattr(self, name) > floor:
                self._refuse(name, f"must be greater than {floor:g}")
        for name, allowed in (
            ("norm_placement", NORM_PLACEMENTS),
            ("remat", REMAT_POLICIES),
            ("dtype", DTYPES),
            ("param_dtype", DTYPES),
        ):
            if getattr(self, name) not in allowed:
                self._refuse(name, f"must be one of {', '.join(allowed)}")

    def _refuse(self, name: str, why: str):
        raise ConfigError(f"TransformerConfig.{name} = {getattr(self, name)!r}: {why}")

    def parameter_count(self) -> int:
        """Number of trainable scalars."""
        heads = self.num_heads * self.head_dim
        kv_heads = self.num_kv_heads * self.head_dim
        block = 2 * self.d_model * (heads + kv_heads) + 3 * self.d_model * self.d_ff + 2 * self.d_model
        if self.qk_norm:
            block += 4 * self.qk_norm_groups * self.head_dim
        tables = 1 if self.tie_embeddings else 2
        return self.num_layers * block + self.d_model + tables * self.vocab_size * self.d_model

    def flops_per_token(self, seq_len: int) -> int:
        """Floating-point operations of one training step for each token of rows of `seq_len` tokens.

        6 N + 6 layers S (heads head_dim): N counts every parameter that multiplies activations (all but the
        embedding look-up table, the output matrix included); causal attention is counted once, so half of
        S x S, and recomputed work is not counted. Divide by three for the forward pass alone.
        """
        products = self.parameter_count()
        if not self.tie_embeddings:
            products -= self.vocab_size * self.d_model
        return 6 * products + 6 * self.num_layers * seq_len * self.num_heads * self.head_dim


def chameleon_7b(**overrides) -> TransformerConfig:
    """The 7B shape of Chameleon, Anole and AR-Omni: 7.01e9 parameters, swin-norm unless overridden."""
    shape = dict(vocab_size=65536, num_layers=32, d_model=4096, num_heads=32, num_kv_heads=32, head_dim=128, d_ff=11008)
    return TransformerConfig(**(shape | overrides))
