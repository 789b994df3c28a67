"""Judges and a model that need no weights: what `evaluate` does with any of them can be seen without waiting."""

import numpy as np
from flax import nnx

from ar_omni_jax.answer_stream import Piece
from ar_omni_jax.documents import DocumentError
from ar_omni_jax.inference import Answer
from ar_omni_jax.tokenizers.bundle import load_tokenizers

WORDS = "a red dog runs over the blue hill".split()


class Counter:
    """A recognizer that hears as many words as there are hundreds of samples."""

    name, sample_rate = "counter", 16000

    def transcribe_all(self, waves):
        return [" ".join(WORDS[: len(wave) // 100]) for wave in waves]


class Colors:
    """Embeds a picture by its mean colour and a text by the colours that it names."""

    name = "colors"

    def embed_images(self, images):
        return np.array([image.reshape(-1, 3).mean(0) for image in images], np.float32)

    def embed_texts(self, texts):
        return np.array([[name in text for name in ("red", "green", "blue")] for text in texts], np.float32)

    features = embed_images


class Tall:
    """Not a judge."""


class FakePredictor:
    """Answers by the seed: every third answer is empty. `asked` lists the ids that were decoded, by call."""

    template, step, rows, capacity = "paper", 3, None, None
    engine_size = {"rows": 2, "capacity": 256}
    sample_rate = 16000

    def __init__(self, bias=0.0):
        self.model = nnx.Linear(2, 2, rngs=nnx.Rngs(0), bias_init=nnx.initializers.constant(bias))
        self.tokenizers = load_tokenizers("toyworld", need=("text",))
        self.asked = []

    def stream(self, documents, *, seeds, live, budgets, strategies, guidance):
        assert not live and len(seeds) == len(documents)
        self.asked.append([d.id for d in documents])
        for k, (document, seed) in reversed(list(enumerate(zip(documents, seeds, strict=True)))):
            if document.meta.get("broken"):
                yield Piece(k, error=DocumentError(f"document {document.id!r} is broken"))
                continue
            answer = Answer("", [], [], np.arange(seed), sample_rate=16000, seconds={"total": 0.1})
            if seed % 3:
                answer.text = " ".join(WORDS[: seed + 1]) if document.task in ("asr", "caption") else ""
                if document.task == "tts":
                    answer.speech = [np.full(100 * seed + 50, 0.25, np.float32)]
                if document.task == "t2i":
                    answer.images = [np.full((8, 8, 3), (40 * seed, 10, 90), np.uint8)]
            yield Piece(k, answer=answer)
