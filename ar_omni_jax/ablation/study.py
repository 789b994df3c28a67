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
    judged: every run is evaluated after its training. scaled: settings of which a variant takes a multiple.
    """

    name: str
    module: str
    config: str
    variants: Mapping[str, Variant]
    usual: tuple[str, ...]
    judged: bool
    scaled: frozenset[str] = frozenset()

    def own_settings(self) -> set[str]:
        """Settings that tell one run from another: given for all of them, runs of other names would be the same."""
        varied = {key for variant in self.variants.values() for key in variant.settings}
        return {"seed", "data.path"} | varied | self.scaled


ABLATION = Study("ablation", "ar_omni_jax.ablation", "ablation.py", VARIANTS, tuple(VARIANTS), judged=True)
STABILITY = Study(
    "stability",
    "ar_omni_jax.ablation.stability",
    "stability.py",
    ARMS,
    USUAL,
    judged=False,
    scaled=frozenset({"optimizer.peak_lr", "optimizer.muon_lr"}),
)
