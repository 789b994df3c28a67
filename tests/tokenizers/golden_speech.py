"""The tiny speech codec of the golden vectors."""

import json
import pathlib

from ar_omni_jax.tokenizers.speech.config import SpeechCodecConfig

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def golden_config() -> SpeechCodecConfig:
    """Sizes of the instance of the published code that made tests/golden/speech_codec.*."""
    record = json.loads((GOLDEN / "speech_codec.json").read_text())
    kept = (
        "n_filters",
        "dimension",
        "ratios",
        "kernel_size",
        "last_kernel_size",
        "residual_kernel_size",
        "compress",
        "lstm_layers",
    )
    return SpeechCodecConfig.from_dict(
        {
            "encoder": {name: record["encoder"][name] for name in kept},
            "backbone": record["backbone"],
            "head": {"n_fft": record["head"]["n_fft"], "hop_length": record["head"]["hop_length"]},
            "codebook_size": record["codebook_size"],
        }
    )
