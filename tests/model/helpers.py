"""Shared by the model's tests: a tiny configuration, a packed batch, and weights to and from HF
transformers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ar_omni_jax.model.config import TransformerConfig
from ar_omni_jax.model.transformer import Transformer

TINY = TransformerConfig(
    vocab_size=97,
    num_layers=3,
    d_model=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    d_ff=48,
    max_length=64,
    dtype="float32",
)


def tiny_config(**changes) -> TransformerConfig:
    return dataclasses.replace(TINY, **changes)


def make_model(config: TransformerConfig, seed: int = 0) -> Transformer:
    """A model whose norm parameters are random too: gains of one and biases of zero would hide mistakes."""
    model = Transformer(config, rngs=nnx.Rngs(seed))
    rng = np.random.default_rng(seed)

    def jitter(path, variable):
        if "norm" not in path[-1]:
            return variable
        centre = 0.0 if path[-1].endswith("bias") else 0.8
        noise = centre + 0.3 * rng.standard_normal(variable[...].shape)
        return variable.replace(jnp.asarray(noise, variable[...].dtype))

    nnx.update(model, nnx.map_state(jitter, nnx.state(model)))
    return model


def packed_batch(vocab_size: int, length: int = 24, seed: int = 0):
    """Two rows: documents of 9 and 11 tokens and padding; one document of the whole length."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, vocab_size, (2, length)).astype(np.int32)
    segments = np.ones((2, length), np.int32)
    segments[0, 9:20], segments[0, 20:] = 2, 0
    positions = np.tile(np.arange(length, dtype=np.int32), (2, 1))
    positions[0, 9:20] -= 9
    positions[0, 20:] = 0
    return tokens, positions, segments


@nnx.jit
def logits_of(model, tokens, positions, segments):
    return model.logits(model(tokens, positions, segments))


def chameleon_to_state(state_dict, config: TransformerConfig) -> dict:
    """Weights of HF `ChameleonForConditionalGeneration` (half-split RoPE) -> {dotted path: array} of ours.

    HF turns channel pairs (i, i + head_dim / 2), ours (2 i, 2 i + 1): channels of queries, keys and their
    norms are interleaved.
    """
    c = config
    weights = {k: v.detach().numpy() for k, v in state_dict.items()}
    half = c.head_dim // 2
    order = np.arange(c.head_dim).reshape(2, half).T.ravel()

    def layer(n):
        p = f"model.layers.{n}."

        def projection(name, heads):
            return weights[p + name].reshape(heads, c.head_dim, c.d_model).transpose(2, 0, 1)

        out = {
            "wq": projection("self_attn.q_proj.weight", c.num_heads)[..., order],
            "wk": projection("self_attn.k_proj.weight", c.num_kv_heads)[..., order],
            "wv": projection("self_attn.v_proj.weight", c.num_kv_heads),
            "wo": weights[p + "self_attn.o_proj.weight"].T.reshape(c.num_heads, c.head_dim, c.d_model),
            "w_gate": weights[p + "mlp.gate_proj.weight"].T,
            "w_up": weights[p + "mlp.up_proj.weight"].T,
            "w_down": weights[p + "mlp.down_proj.weight"].T,
            "attention_norm": weights[p + "input_layernorm.weight"],
            "mlp_norm": weights[p + "post_attention_layernorm.weight"],
        }
        for letter, heads in (("q", c.num_heads), ("k", c.num_kv_heads)):
            for kind in ("weight", "bias"):
                rows = weights[p + f"self_attn.{letter}_norm.{kind}"][:: heads // c.qk_norm_groups]
                out[f"{letter}_norm_{kind}"] = rows[:, order]
        return out

    layers = [layer(n) for n in range(c.num_layers)]
    state = {f"blocks.{k}": np.stack([layer[k] for layer in layers]) for k in layers[0]}
    return state | {
        "embedding": weights["model.embed_tokens.weight"],
        "final_norm": weights["model.norm.weight"],
        "output": weights["lm_head.weight"].T,
    }


def load_state(model: Transformer, arrays: dict) -> None:
    """Puts {dotted path: array} into the model; every parameter must be given, with its shape."""
    used = set()

    def pick(path, variable):
        name = ".".join(path)
        used.add(name)
        assert arrays[name].shape == variable[...].shape, (name, arrays[name].shape, variable[...].shape)
        return variable.replace(jnp.asarray(arrays[name]))

    nnx.update(model, nnx.map_state(pick, nnx.state(model)))
    assert used == set(arrays)


def max_difference(a, b) -> float:
    """Largest absolute difference of two trees of equal structure."""
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(jnp.max(jnp.abs(x - y))), a, b)))
