"""The arms of the stability probe: what is to keep training stable, at a ladder of learning rates."""

from __future__ import annotations

import dataclasses

from ar_omni_jax.ablation.variants import Variant

RATES = (1, 3, 10)  # times the main job's learning rates
PLAIN = {"model.norm_placement": "pre", "model.qk_norm": False, "loss.z_loss": 0.0}
MEANS = {
    "swin_norm": ("swin-norm alone", {"model.norm_placement": "swin"}),
    "qk_norm": ("norm of queries and keys alone", {"model.qk_norm": True}),
    "z_loss": ("z-loss alone", {"loss.z_loss": 1e-5}),
}


@dataclasses.dataclass(frozen=True)
class Arm(Variant):
    """A variant at one rung of the ladder. group: the arm's name; rate: factor on every learning rate."""

    group: str = ""
    rate: int = 1


def _groups() -> dict[str, tuple[str, dict]]:
    every = {key: value for _, settings in MEANS.values() for key, value in settings.items()}
    return {
        "plain": ("norms before the branches, no norm of queries and keys, no z-loss", PLAIN),
        **{name: (words, PLAIN | settings) for name, (words, settings) in MEANS.items()},
        "guarded": ("swin-norm, norm of queries and keys, and z-loss", every),
    }


GROUPS = {name: words for name, (words, _) in _groups().items()}
ARMS: dict[str, Arm] = {
    f"{name}_x{rate}": Arm(words, settings, group=name, rate=rate)
    for rate in RATES
    for name, (words, settings) in _groups().items()
}
# What takes the hours of an evening less: the two ends on every rung, what each means does alone at the top.
USUAL = tuple(name for name, arm in ARMS.items() if arm.group in ("plain", "guarded") or arm.rate == RATES[-1])
