"""The recognizer hears the toy world's own speech, and says plainly what it cannot hear."""

import random
import sys

import numpy as np
import pytest

from ar_omni_jax.evaluation.metrics.wer import word_error_rate
from ar_omni_jax.evaluation.recognizer import Recognizer, RecognizerError
from data_pipelines.toyworld import vocabulary_words
from data_pipelines.toyworld.documents import VOICES, make_plan


@pytest.fixture(scope="module")
def recognizer():
    pytest.importorskip("pocketsphinx")
    return Recognizer()


@pytest.mark.slow
def test_every_voice_is_heard(recognizer):
    pytest.importorskip("espeakng_loader")
    from data_pipelines.toyworld.espeak import Synthesizer

    jobs = make_plan(60, seed=4).speech
    random.Random(0).shuffle(jobs)
    synthesizer = Synthesizer()
    references, heard = [], []
    for voice in [name for names in VOICES.values() for name in names]:
        for job in [job for job in jobs if job.voice == voice][:2]:
            wave = synthesizer.speak(job.text, job.voice, job.words_per_minute, job.pitch)
            references.append(job.text)
            heard.append(recognizer.transcribe(wave, 16_000))
    assert len(references) == 16
    assert word_error_rate(references, heard) < 0.12


def test_level_and_sample_rate_do_not_matter(recognizer):
    pytest.importorskip("espeakng_loader")
    import soxr

    from data_pipelines.toyworld.espeak import Synthesizer

    text = "what color is the circle"
    wave = Synthesizer().speak(text, "en-us+f5")
    assert recognizer.transcribe(wave) == text
    assert recognizer.transcribe(wave * 0.05, 16_000) == text
    assert recognizer.transcribe(soxr.resample(wave, 16_000, 24_000), 24_000) == text


def test_silence_is_empty(recognizer):
    assert recognizer.transcribe(np.zeros(0, np.float32), 16_000) == ""
    assert recognizer.transcribe(np.zeros(8000, np.float32), 16_000) == ""


def test_every_word_has_a_pronunciation():
    pocketsphinx = pytest.importorskip("pocketsphinx")
    decoder = pocketsphinx.Decoder(lm=None, loglevel="FATAL")
    assert [word for word in vocabulary_words() if decoder.lookup_word(word) is None] == []


def test_bad_waves_are_named(recognizer):
    with pytest.raises(RecognizerError, match=r"mono float wave of shape \[T\]; got int16"):
        recognizer.transcribe(np.zeros(100, np.int16), 16_000)
    with pytest.raises(RecognizerError, match=r"got float32 \(2, 100\)"):
        recognizer.transcribe(np.zeros((2, 100), np.float32), 16_000)
    with pytest.raises(RecognizerError, match="NaN"):
        recognizer.transcribe(np.full(100, np.nan, np.float32), 16_000)


def test_a_missing_package_and_a_bad_grammar_are_named(recognizer, monkeypatch):
    with pytest.raises(RecognizerError, match="refused the grammar"):
        Recognizer("this is no grammar")
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    with pytest.raises(RecognizerError, match=r"ar_omni_jax\[demo\]"):
        Recognizer()
