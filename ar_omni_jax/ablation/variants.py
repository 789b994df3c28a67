"""What each variant of the ablation changes, and what the paper measured of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ar_omni_jax.tokenizers.image import DEPTHS, VQGANConfig

# Of the toy world's image tokenizer: 64 x 64 pixels, 8 x 8 codes.
TOY_STAGES = 4


@dataclasses.dataclass(frozen=True)
class Variant:
    """Attributes:
    words: what is different, for people. settings: overrides of the main job's configuration.
    paper: Table 7 of arXiv 2601.17761 at 40,000 steps, where it has the variant: CIDEr of captions, CLIP score of
      pictures, word error rates (share) of ASR and TTS. One run each, without intervals.
    """

    words: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    paper: Mapping[str, float] | None = None


def _paper(caption: float, t2i: float, asr: float, tts: float) -> dict[str, float]:
    return {"caption": caption, "t2i": t2i, "asr": asr, "tts": tts}


NO_PERCEPTUAL = {"loss.perceptual_weight": 0.0}
PRE_NORM = {"model.norm_placement": "pre"}
PLAIN_WEIGHTS = {"data.response_text_weight": 1.0, "data.response_image_weight": 1.0}


def _variants() -> dict[str, Variant]:
    deeper = [depth for depth in DEPTHS(VQGANConfig(ch_mult=(1,) * TOY_STAGES)) if depth != "codebook"]
    return {
        "full": Variant("everything; perceptual loss on the codebook", {}, _paper(0.5022, 0.2406, 0.1535, 0.1105)),
        "no_perceptual": Variant("no perceptual loss", NO_PERCEPTUAL, _paper(0.4874, 0.2356, 0.1395, 0.1175)),
        "no_swin": Variant("norms before the branches", PRE_NORM, _paper(0.5488, 0.2392, 0.1329, 0.1633)),
        # "Simple NTP" of section 6.2: without weights, perceptual loss and swin-norm.
        "plain": Variant(
            "next-token prediction alone, norms before the branches",
            NO_PERCEPTUAL | PRE_NORM | PLAIN_WEIGHTS,
            _paper(0.5074, 0.2248, 0.2270, 0.1589),
        ),
        "no_reweighting": Variant("every token weighs 1", PLAIN_WEIGHTS),
        "reference_alignment": Variant(
            "perceptual loss at the codes' own positions, as the reference has it",
            {"loss.perceptual_alignment": "reference"},
        ),
        **{
            f"perceptual_{depth}": Variant(f"perceptual loss at depth {depth}", {"loss.perceptual_depth": depth})
            for depth in deeper
        },
    }


VARIANTS: dict[str, Variant] = _variants()
