"""Normalizers: Whisper's as transformers has it, and what each does to a sentence."""

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ar_omni_jax.evaluation.metrics.normalizers import NormalizerError, text_normalizer

SENTENCE = "Mr. Smith can't pay $5.50, um, for COLOUR twenty-one!"
WORDS = st.lists(st.sampled_from("Mr. HE won't um colour Twenty one, hundred $3 it's 3.5 [noise] café gonna".split()))


def test_what_each_does():
    assert text_normalizer("whisper")(SENTENCE) == "mister smith can not pay $5.50 for color 21"
    assert text_normalizer("words")(SENTENCE) == "mr smith can't pay 5 50 um for colour twenty one"
    assert text_normalizer("none")(" A  b\n") == "A b"
    assert text_normalizer("whisper_basic")("Привет, [шум] мир!").split() == ["привет", "мир"]


@settings(deadline=None)
@given(WORDS)
def test_whispers_equals_that_of_transformers(words):
    module = pytest.importorskip("transformers.models.whisper.english_normalizer")
    ours, text = text_normalizer("whisper"), " ".join(words)
    theirs = module.EnglishTextNormalizer(ours.standardize_spellings.mapping)
    assert ours(text).split() == theirs(text).split()


def test_what_is_not_there_is_named(monkeypatch):
    with pytest.raises(NormalizerError, match="known: whisper, whisper_basic, words, none"):
        text_normalizer("wisper")
    monkeypatch.setitem(sys.modules, "whisper_normalizer.basic", None)
    with pytest.raises(NormalizerError, match=r"ar_omni_jax\[evaluation\].*--normalizer=words"):
        text_normalizer("whisper")
