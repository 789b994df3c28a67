"""Speech codec of the WavTokenizer family: waveforms to codes and back.

    tokenizer = SpeechTokenizer.load(DEFAULT_PREFIX)
    wav = read_audio("speech.wav", tokenizer.sample_rate)
    codes = tokenizer.encode_batch([wav])[0]
    wav = tokenizer.decode(codes)
"""

import pathlib

from ar_omni_jax.tokenizers.speech.audio import AudioError, read_audio
from ar_omni_jax.tokenizers.speech.tokenizer import SpeechTokenizer

DEFAULT_PREFIX = pathlib.Path(__file__).parents[1] / "assets" / "speech"

__all__ = ["DEFAULT_PREFIX", "AudioError", "SpeechTokenizer", "read_audio"]
