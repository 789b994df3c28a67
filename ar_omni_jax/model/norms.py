"""Normalizations, computed in float32 whatever the input's type."""

from __future__ import annotations

import jax
import jax.numpy as jnp

QK_NORM_EPS = 1e-5  # fixed in the published models, whatever the eps of their RMSNorms


def rms_norm(x, weight, eps: float):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis; returns x's dtype."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    return (y * weight.astype(jnp.float32)).astype(x.dtype)


def head_norm(x_BLHK, weight_GK, bias_GK):
    """LayerNorm over each head's channels; parameter row g serves heads [g H/G, (g + 1) H/G). Returns
    float32."""
    y = x_BLHK.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + QK_NORM_EPS)
    repeats = x_BLHK.shape[-2] // weight_GK.shape[0]
    weight, bias = (jnp.repeat(p.astype(jnp.float32), repeats, axis=0) for p in (weight_GK, bias_GK))
    return y * weight + bias
