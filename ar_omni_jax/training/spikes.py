"""Loss spikes: a step whose loss or gradient norm lies far above those before it changes nothing.

"Far above" is measured against the last steps' own spread: the median, and as its deviation the median distance to
it, which single outliers do not move. What is remembered is a part of the train state, so that a resumed run judges
as the uninterrupted one would have.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

NORMAL = 1.4826  # the median distance of a normal distribution, times this, is its standard deviation
FLOOR = 0.01  # of the median: a plateau's own spread may be mere rounding


@dataclasses.dataclass(frozen=True)
class SpikeConfig:
    """threshold: robust deviations above the median from which a step is skipped; 0 = never, nothing is remembered.

    window: finite values of loss and gradient norm that are remembered; judging starts when they are full. Skipped
    ones count too, so that a level that lasts for half a window becomes the new normal.
    """

    threshold: float = 0.0
    window: int = 64


def initial(config: SpikeConfig) -> dict[str, jax.Array]:
    """What is remembered before the first step: zeros; {} when nothing is."""
    if not config.threshold:
        return {}
    values = jnp.zeros((config.window,), jnp.float32)
    return {"seen": jnp.zeros((), jnp.int32), "loss": values, "grad_norm": values}


def judge(
    config: SpikeConfig, memory: dict[str, jax.Array], loss: jax.Array, grad_norm: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(whether this step is a spike, bool scalar; the memory after it). Values that are not finite are no spike and
    are not remembered."""
    full = memory["seen"] >= config.window
    spike = _far_above(memory["loss"], loss, config.threshold)
    spike |= _far_above(memory["grad_norm"], grad_norm, config.threshold)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    slot = memory["seen"] % config.window
    after = {
        "seen": memory["seen"] + finite.astype(jnp.int32),
        "loss": _remember(memory["loss"], slot, loss, finite),
        "grad_norm": _remember(memory["grad_norm"], slot, grad_norm, finite),
    }
    return full & finite & spike, after


def _far_above(values: jax.Array, value: jax.Array, threshold: float) -> jax.Array:
    median = jnp.median(values)
    deviation = NORMAL * jnp.median(jnp.abs(values - median))
    return value > median + threshold * jnp.maximum(deviation, FLOOR * jnp.abs(median))


def _remember(values: jax.Array, slot: jax.Array, value: jax.Array, finite: jax.Array) -> jax.Array:
    here = (jnp.arange(values.size) == slot) & finite
    return jnp.where(here, value.astype(jnp.float32), values)
