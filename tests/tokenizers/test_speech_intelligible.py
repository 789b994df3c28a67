"""What the shipped speech codes leave of speech: an independent recognizer's word error before and after them."""

import random

import numpy as np
import pytest

pytest.importorskip("pocketsphinx")
pytest.importorskip("espeakng_loader")

from ar_omni_jax.evaluation.metrics.wer import word_error_rate
from ar_omni_jax.evaluation.recognizer import Recognizer
from ar_omni_jax.tokenizers.speech import DEFAULT_PREFIX, SpeechTokenizer
from data_pipelines.toyworld import caption, random_scene
from data_pipelines.toyworld.documents import PITCH, VOICES, WORDS_PER_MINUTE
from data_pipelines.toyworld.espeak import Synthesizer

UTTERANCES = 16


def test_an_unheard_voice_is_understood_after_its_codes():
    rng = random.Random(7)
    tokenizer, recognizer, synthesizer = SpeechTokenizer.load(DEFAULT_PREFIX), Recognizer(), Synthesizer()
    texts, before, after, shuffled = [], [], [], []
    for _ in range(UTTERANCES):
        texts.append(caption(random_scene(rng, 2), rng, with_background=False))
        wave = synthesizer.speak(texts[-1], VOICES["test"][0], rng.randint(*WORDS_PER_MINUTE), rng.randint(*PITCH))
        codes = np.asarray(tokenizer.encode(wave))
        before.append(recognizer.transcribe(wave, tokenizer.sample_rate))
        after.append(recognizer.transcribe(np.asarray(tokenizer.decode(codes)), tokenizer.sample_rate))
        mixed = np.random.default_rng(0).permutation(codes)
        shuffled.append(recognizer.transcribe(np.asarray(tokenizer.decode(mixed)), tokenizer.sample_rate))
    assert word_error_rate(texts, before) < 0.05
    assert word_error_rate(texts, after) < 0.08
    # The grammar alone does not make the sentence: the same codes in another order are not understood.
    assert word_error_rate(texts, shuffled) > 0.5
