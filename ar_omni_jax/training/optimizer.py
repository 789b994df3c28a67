"""AdamW, or Muon with Adam, with warm-up, decay and clipping, assembled from optax parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from ar_omni_jax.training.muon import muon_with_adam
from ar_omni_jax.training.settings import from_settings

SCHEDULES = ("linear", "cosine", "constant")


class OptimizerError(ValueError):
    """A setting of the optimizer that cannot be used; the message names the key."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Settings of the optimizer; the defaults are the paper's AdamW of pretraining where it states them (Table 8).

    Attributes:
      peak_lr: learning rate at the end of the warm-up.
      schedule: after the warm-up, "linear" or "cosine" decay to zero at the last step, or "constant".
      warmup_fraction: share of all steps with a linear rise from zero.
      b1, b2, eps: Adam's. weight_decay: decoupled, times the learning rate; see `decay_mask`.
      clip_norm: bound on the global gradient norm; 0 = off.
      muon_lr: peak rate of Muon on the blocks' matrices, all else by Adam at peak_lr (`training.muon`); 0 = AdamW for
        all.
      accumulate: micro-batches a step. moment_dtype: of both stored moments, with Muon of the first ones alone; the
        arithmetic is float32.
    """

    peak_lr: float = 6e-5
    schedule: str = "linear"
    warmup_fraction: float = 0.05
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    muon_lr: float = 0.0
    accumulate: int = 1
    moment_dtype: str = "float32"

    def __post_init__(self):
        checks = (
            ("schedule", self.schedule in SCHEDULES, f"must be one of {', '.join(SCHEDULES)}"),
            ("moment_dtype", self.moment_dtype in ("float32", "bfloat16"), "must be float32 or bfloat16"),
            ("warmup_fraction", 0 <= self.warmup_fraction <= 1, "must lie in [0, 1]"),
            ("peak_lr", self.peak_lr > 0, "must be positive"),
            ("muon_lr", self.muon_lr >= 0, "must be at least 0 (0 = AdamW for all)"),
            ("b1", 0 <= self.b1 < 1, "must lie in [0, 1)"),
            ("b2", 0 <= self.b2 < 1, "must lie in [0, 1)"),
            ("clip_norm", self.clip_norm >= 0, "must be at least 0 (0 = off)"),
            ("weight_decay", self.weight_decay >= 0, "must be at least 0"),
            ("accumulate", self.accumulate >= 1, "must be at least 1"),
        )
        for name, good, why in checks:
            if not good:
                raise OptimizerError(f"optimizer.{name} = {getattr(self, name)!r}: {why}")

    @classmethod
    def of(cls, settings: Mapping | OptimizerConfig) -> OptimizerConfig:
        """From a mapping (the config's `optimizer` section); unknown keys raise OptimizerError."""
        return from_settings(cls, settings, "optimizer", OptimizerError)


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Learning rate of update n (from 0): a rise over ceil(warmup_fraction * total_steps), then the decay.

    The first update uses peak_lr / warm-up, not zero; linear and cosine reach zero at n = total_steps.
    """
    if total_steps < 1:
        raise OptimizerError(f"train.steps = {total_steps}: the schedule needs at least one step")
    warmup = min(total_steps, max(0, -int(-config.warmup_fraction * total_steps // 1)))
    rest = max(1, total_steps - warmup)

    def schedule(count):
        n = jnp.asarray(count, jnp.float32)
        left = jnp.clip(1.0 - (n - warmup) / rest, 0.0, 1.0)
        decay = {
            "linear": left,
            "cosine": 0.5 - 0.5 * jnp.cos(jnp.pi * left),
            "constant": jnp.ones_like(left),
        }
        rise = (n + 1.0) / max(1, warmup)
        return config.peak_lr * jnp.where(n < warmup, rise, decay[config.schedule])

    return schedule


def decay_mask(params):
    """True for the weights that decay: matrix products' weights, that is, all but embeddings, norms and biases.

    Decided by the last name of a parameter's path: `embedding`, names with `norm`, and `bias` do not decay. (The
    rank decides nothing: stacked norms have two axes.)
    """

    def decays(path, _):
        name = jax.tree_util.keystr(path[-1:], simple=True)
        return not ("norm" in name or "bias" in name or name == "embedding")

    return jax.tree.map_with_path(decays, params)


def store_moments_as(dtype, inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` with its float state kept in `dtype` between steps and used in float32.

    With bfloat16 a second moment moves only when an update changes it by more than about 0.4 %: use b2 <= 0.99.
    """

    def cast(state, to):
        return jax.tree.map(lambda x: x.astype(to) if jnp.issubdtype(x.dtype, jnp.floating) else x, state)

    def init(params):
        return cast(inner.init(params), dtype)

    def update(updates, state, params=None):
        updates, state = inner.update(updates, cast(state, jnp.float32), params)
        return updates, cast(state, dtype)

    return optax.GradientTransformation(init, update)


def make_optimizer(
    settings: Mapping | OptimizerConfig, total_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """(transformation, learning rate by update count): clip, Adam, decay by `decay_mask`, -learning rate.

    With `muon_lr` both rates follow the same schedule; the one returned is Adam's.
    """
    config = OptimizerConfig.of(settings)
    schedule = make_schedule(config, total_steps)
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    if config.muon_lr:
        faster = make_schedule(dataclasses.replace(config, peak_lr=config.muon_lr), total_steps)
        both = muon_with_adam(
            faster,
            schedule,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            moment_dtype=config.moment_dtype,
        )
        return optax.chain(*clip, both), schedule
    adam = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
    if config.moment_dtype != "float32":
        adam = store_moments_as(jnp.dtype(config.moment_dtype), adam)
    parts = [*clip, adam]
    if config.weight_decay:
        parts.append(optax.add_decayed_weights(config.weight_decay, mask=decay_mask))
    parts.append(optax.scale_by_learning_rate(schedule))
    return optax.chain(*parts), schedule
