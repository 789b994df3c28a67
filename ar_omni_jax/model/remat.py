"""What the backward pass of a block recomputes, by name.

The blocks mark their matrix products' results with the names below. Swin-norm's backward needs the *outputs*
of the two output projections and qk-norm's the *raw* queries and keys, so a policy made for another
architecture (queries and keys after RoPE, say) would still run most products again.
"""

from __future__ import annotations

import jax
from jax.ad_checkpoint import checkpoint_policies as policies

QKV_RAW = "qkv_raw"  # queries, keys, values as projected, before qk-norm and RoPE
ATTENTION_RESIDUALS = "attention_residuals"  # what the attention's backward needs beside q, k, v
ATTENTION_OUT = "attention_out"  # before the output projection
O_OUT = "o_out"  # after it
GATE_UP = "gate_up"
DOWN_OUT = "down_out"
WEIGHTS = "weights"  # gathered for one layer on a mesh; never kept


def _fused_attention_residuals(primitive, *_, **__) -> bool:
    """True for cuDNN's forward primitive: its residual (the softmax statistics) carries no name."""
    return "dot_product_attention_fwd" in str(primitive)


def _all_but_weights(primitive, *_, **parameters) -> bool:
    """False for gathered weights, under whichever form they appear: the function with a gradient of its own that
    gathers them, or what it consists of. What else this hits is cheap."""
    if primitive.name == "custom_vjp_call":
        inner = parameters["call_jaxpr"].eqns
        return not any(e.primitive.name == "name" and e.params["name"] == WEIGHTS for e in inner)
    if primitive.name == "name":
        return parameters["name"] != WEIGHTS
    return primitive.name not in ("sharding_constraint", "convert_element_type")


def apply_remat(block, name: str, looped: bool = True, gathers: bool = False):
    """`block` under `jax.checkpoint` with the policy of that name.

    "none": nothing is recomputed. "full": only the block's input is kept. "save_attention": the attention's
    inputs and output are kept, the feed-forward part is recomputed. "zero_recompute": every matrix product's
    result that the backward pass reads is kept; only element-wise work runs again.

    Args:
      looped: the block is the body of a loop. Written out, forward and backward pass stand in one program, and XLA
        would find the recomputed work equal to the first, and keep that: a barrier stops it.
      gathers: the block gathers split weights; with "none" the gathered ones of all layers would be kept.
    """
    if name == "none" and not gathers:
        return block
    if name == "none":
        return jax.checkpoint(block, policy=_all_but_weights, prevent_cse=not looped)
    saved = {
        "full": (),
        "save_attention": (QKV_RAW, ATTENTION_OUT, ATTENTION_RESIDUALS, O_OUT),
        "zero_recompute": (QKV_RAW, ATTENTION_OUT, ATTENTION_RESIDUALS, O_OUT, GATE_UP, DOWN_OUT),
    }[name]
    policy = policies.nothing_saveable
    if saved:
        policy = policies.save_from_both_policies(policies.save_only_these_names(*saved), _fused_attention_residuals)
    return jax.checkpoint(block, policy=policy, prevent_cse=not looped)
