"""What is done to both sides before words are compared. Rates under different normalizers are different numbers."""

from __future__ import annotations

from collections.abc import Callable

from ar_omni_jax.evaluation.metrics.wer import normalize

NORMALIZERS = ("whisper", "whisper_basic", "words", "none")


class NormalizerError(ValueError):
    """A normalizer that is not known or not installed; the message says what to install or give."""


def text_normalizer(name: str) -> Callable[[str], str]:
    """A function str -> str.

    Args:
      name: "whisper", Whisper's English normalizer: case, punctuation, fillers such as "uh", contractions, titles,
        numbers, British spellings. "whisper_basic", its normalizer for other languages: case, brackets, symbols.
        "words": lower case words of a-z, 0-9 and apostrophes (the toy world's). "none": white space alone.
    Raises NormalizerError for another name, or when whisper-normalizer is not installed.
    """
    if name == "words":
        return normalize
    if name == "none":
        return lambda text: " ".join(text.split())
    if name not in NORMALIZERS:
        raise NormalizerError(f"unknown normalizer {name!r}; known: {', '.join(NORMALIZERS)}")
    try:
        from whisper_normalizer.basic import BasicTextNormalizer
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError as error:
        raise NormalizerError(
            f"the normalizer {name!r} needs whisper-normalizer (pip install 'ar_omni_jax[evaluation]'); without it "
            "--normalizer=words compares lower case words, which is another number than the paper's"
        ) from error
    return EnglishTextNormalizer() if name == "whisper" else BasicTextNormalizer()
