"""Whether two decoders agree: the share of equal ids, and how near a tie the first difference of each row was.

Greedy answers part for good at the first different id, so the share alone says little. Where sums are taken in another
order two logits that are nearly equal may change places; a larger margin there would be a fault of one of the two.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import nnx

from ar_omni_jax.model.transformer import Transformer


def compare(model: Transformer, prompts: np.ndarray, ours: list[np.ndarray], theirs: np.ndarray) -> dict:
    """{"same_ids": share of equal ids; "margin": None where all are equal}.

    Args:
      prompts: int32 [B, P]. ours: a row's ids, int32 [N]; the last is the forced end marker and does not count.
      theirs: int32 [B, N].
    `margin` is the largest over rows of the difference between the logits of the two ids that part there, by the whole
    model read anew (no cache), in standard deviations of that position's logits.
    """
    ours = [row[:-1] for row in ours]
    equal = [mine == row[: len(mine)] for mine, row in zip(ours, theirs, strict=True)]
    parted = [(b, int(np.argmin(same))) for b, same in enumerate(equal) if not same.all()]
    share = float(np.concatenate(equal).mean())
    if not parted:
        return {"same_ids": share, "margin": None}
    width = prompts.shape[1] + max(map(len, ours))
    tokens = np.zeros((len(parted), width), np.int32)
    for line, (b, at) in enumerate(parted):
        known = np.concatenate([prompts[b], ours[b][:at]])
        tokens[line, : len(known)] = known
    last = np.array([prompts.shape[1] + at - 1 for _, at in parted])
    logits = np.asarray(_logits(model, jnp.asarray(tokens), jnp.asarray(last)))
    rivals = [(ours[b][at], theirs[b][at]) for b, at in parted]
    margins = [abs(row[one] - row[other]) / row.std() for row, (one, other) in zip(logits, rivals, strict=True)]
    return {"same_ids": share, "margin": float(max(margins))}


@nnx.jit
def _logits(model: Transformer, tokens_BL, last_B):
    """float32 logits [B, V] of the token after place last_B."""
    positions = jnp.broadcast_to(jnp.arange(tokens_BL.shape[1], dtype=jnp.int32), tokens_BL.shape)
    hidden = model(tokens_BL, positions, jnp.ones_like(tokens_BL))
    picked = jnp.take_along_axis(hidden, last_B[:, None, None], axis=1)[:, 0]
    return model.logits(picked).astype(jnp.float32)
