"""The weights that ship with the package: they load, and speech goes through them and stays speech."""

import pathlib

import numpy as np
import pytest

from ar_omni_jax.tokenizers.speech import DEFAULT_PREFIX, SpeechTokenizer, read_audio
from ar_omni_jax.tokenizers.speech.losses import mel_distance
from ar_omni_jax.tokenizers.speech.pitch import estimate_pitch

SPEECH = pathlib.Path(__file__).parents[1] / "golden" / "speech_sample.wav"  # 1.5 s of a voice not trained on


@pytest.fixture(scope="module")
def tokenizer():
    return SpeechTokenizer.load(DEFAULT_PREFIX)


@pytest.fixture(scope="module")
def wav(tokenizer):
    return read_audio(SPEECH, tokenizer.sample_rate)


@pytest.fixture(scope="module")
def codes(tokenizer, wav):
    return tokenizer.encode(wav)


@pytest.fixture(scope="module")
def decoded(tokenizer, codes):
    return tokenizer.decode(codes)


def test_rates_and_provenance(tokenizer):
    assert (tokenizer.sample_rate, tokenizer.hop_length, tokenizer.codebook_size) == (16000, 400, 2048)
    assert tokenizer.codec.config.causal and tokenizer.codec.config.tokens_per_second == 40
    provenance = tokenizer.record["provenance"]
    assert provenance["command"].startswith("python -m ar_omni_jax.tokenizers.train")
    assert provenance["metrics"]["codes_used"] >= 0.8 and provenance["step"] > 0
    size = DEFAULT_PREFIX.with_name("speech.safetensors").stat().st_size
    assert size < 8e6


def test_speech_survives(tokenizer, wav, codes, decoded):
    assert codes.shape == (60,) and decoded.shape == (24000,)
    distance = float(mel_distance(decoded[None], wav[None], tokenizer.sample_rate))
    silence = float(mel_distance(np.zeros_like(wav)[None], wav[None], tokenizer.sample_rate))
    assert distance < 0.34 < silence / 4


def test_pitch_survives(tokenizer, wav, decoded):
    centres = np.arange(800, 23000, 400)
    (before, sure_before), (after, sure_after) = (
        estimate_pitch(np.asarray(w)[None], centres, tokenizer.sample_rate) for w in (wav, decoded)
    )
    voiced = (np.asarray(sure_before) > 0.8) & (np.asarray(sure_after) > 0.2)
    assert voiced.sum() > 0.6 * (np.asarray(sure_before) > 0.8).sum()  # voiced stays voiced
    assert np.median(np.abs(np.asarray(before - after))[voiced]) < 0.08  # octaves


def test_codes_are_many(codes):
    assert len(np.unique(codes)) > 20


def test_streaming_equals_offline(tokenizer, codes, decoded):
    state, pieces = tokenizer.init_stream(), []
    for start in range(0, 60, 7):
        state, samples = tokenizer.decode_stream(state, codes[start : start + 7])
        pieces.append(samples)
    np.testing.assert_allclose(np.concatenate(pieces), decoded, atol=1e-5)


def test_longer_input_has_the_same_first_codes(tokenizer, wav, codes):
    longer = tokenizer.encode(np.concatenate([wav, wav]))
    np.testing.assert_array_equal(longer[:58], codes[:58])
