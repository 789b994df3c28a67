"""What an experiment of many runs consists of: the ablation and the stability probe are two of a kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ar_omni_jax.ablation.arms import ARMS, USUAL
from ar_omni_jax.ablation.variants import VARIANTS, Variant


@dataclasses.dataclass(frozen=True)
class Study:
    """Attributes:
    name: of its JSON file and in messages. module: its command. config: the file in configs/ that takes a variant's
      name.
    variants: all there are. usual: those that run unless others are asked for.
    judged: every run is evaluated after its training.
    """

    name: str
    module: str
    config: str
    variants: Mapping[str, Variant]
    usual: tuple[str, ...]
    judged: bool


ABLATION = Study("ablation", "ar_omni_jax.ablation", "ablation.py", VARIANTS, tuple(VARIANTS), judged=True)
STABILITY = Study("stability", "ar_omni_jax.ablation.stability", "stability.py", ARMS, USUAL, judged=False)
