"""Speech codec of the WavTokenizer family: waveforms to codes and back.

    tokenizer = SpeechTokenizer.load(DEFAULT_PREFIX)
    wav = read_audio("speech.wav", tokenizer.sample_rate)
    codes = tokenizer.encode_batch([wav])[0]
    wav = tokenizer.decode(codes)

Reading sounds needs no JAX, so the codec is imported when it is asked for: processes that only decode start fast.
"""

import pathlib
from typing import Any

from ar_omni_jax.tokenizers.speech.audio import AudioError, read_audio

DEFAULT_PREFIX = pathlib.Path(__file__).parents[1] / "assets" / "speech"

__all__ = ["DEFAULT_PREFIX", "AudioError", "SpeechTokenizer", "read_audio"]


def __getattr__(name: str) -> Any:
    if name != "SpeechTokenizer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ar_omni_jax.tokenizers.speech.tokenizer import SpeechTokenizer

    return SpeechTokenizer
