"""Rotary position embedding on interleaved pairs (2i, 2i + 1), in float32."""

from __future__ import annotations

import jax.numpy as jnp


def rope_angles(positions_BL, head_dim: int, theta: float):
    """cos and sin, float32 [B, L, head_dim / 2], of position * theta^(-2i / head_dim) for pair i."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions_BL[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(x_BLHK, angles, dtype):
    """Turns channel pairs (2i, 2i + 1) of every head by the angles of `rope_angles`; returns `dtype`."""
    cos, sin = (a[:, :, None, :] for a in angles)
    x = x_BLHK.astype(jnp.float32)
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return turned.reshape(x.shape).astype(dtype)
