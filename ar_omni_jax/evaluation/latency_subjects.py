"""What is measured: models of a named size with random weights, or a trained checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from ar_omni_jax.model.config import TransformerConfig, chameleon_7b
from ar_omni_jax.model.transformer import Transformer, abstract_transformer
from ar_omni_jax.vocabulary import JointVocabulary, chameleon_vocabulary, compact_vocabulary

TEXT_OF = {4096: 2016, 8192: 6112, 512: 384}  # text pieces beside 16 image codes and the speech codes


@dataclasses.dataclass(frozen=True)
class Size:
    """A shape without its vocabulary's meaning. speech: codes of the speech range."""

    vocab_size: int
    speech: int
    num_layers: int
    d_model: int
    num_heads: int
    d_ff: int


SIZES = {
    "tiny": Size(512, 80, 2, 32, 4, 48),  # for tests
    "7m": Size(4096, 2048, 6, 256, 4, 688),
    "100m": Size(8192, 2048, 12, 768, 12, 2048),
}
MODELS = (*SIZES, "7b")


@dataclasses.dataclass
class Subject:
    """A model to measure. weights: what its weights are, for the report. speech: makes its speech tokenizer."""

    name: str
    model: Transformer
    vocabulary: JointVocabulary
    weights: str
    speech: Callable[[], Any]


def random_subject(name: str, *, dtype: str, seed: int = 0) -> Subject:
    """A model of a size in MODELS, weights drawn on the device and held in `dtype`."""
    options = {"dtype": dtype, "param_dtype": dtype}
    if name == "7b":
        vocabulary, config = chameleon_vocabulary(), chameleon_7b(**options)
    else:
        size = SIZES[name]
        vocabulary = compact_vocabulary(TEXT_OF[size.vocab_size], 16, size.speech, (4, 4), name=name)
        config = TransformerConfig(
            vocab_size=vocabulary.size,
            num_layers=size.num_layers,
            d_model=size.d_model,
            num_heads=size.num_heads,
            num_kv_heads=size.num_heads,
            head_dim=size.d_model // size.num_heads,
            d_ff=size.d_ff,
            **options,
        )
    model = abstract_transformer(config)
    nnx.update(model, jax.jit(lambda: nnx.state(Transformer(config, rngs=nnx.Rngs(seed))))())
    return Subject(name, model, vocabulary, f"random, seed {seed}, {dtype}", _default_codec)


def checkpoint_subject(directory: str, step: int | None = None) -> Subject:
    """A trained model with its own tokenizers."""
    from ar_omni_jax.predictor import Predictor

    predictor = Predictor.load(directory, step)
    tokenizers = predictor.tokenizers
    weights = f"checkpoint {directory}, step {predictor.step}"
    return Subject("checkpoint", predictor.model, tokenizers.vocabulary, weights, lambda: tokenizers.speech)


def _default_codec():
    from ar_omni_jax.tokenizers.speech import DEFAULT_PREFIX, SpeechTokenizer

    return SpeechTokenizer.load(DEFAULT_PREFIX)


def weight_bytes(config: TransformerConfig, weights: str) -> int:
    """Bytes of all weights that one decoding step reads: every matrix once, of the embedding table a row at most.

    weights: "float32", "bfloat16" or "int8" (with a float32 scale an output channel).
    """
    c = config
    heads, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    matrices = c.num_layers * c.d_model * (2 * heads + 2 * kv + 3 * c.d_ff) + c.d_model * c.vocab_size
    if weights != "int8":
        return matrices * {"float32": 4}.get(weights, 2)
    channels = c.num_layers * (heads + 2 * kv + 2 * c.d_model + 2 * c.d_ff) + c.vocab_size
    return matrices + 4 * channels


def cache_bytes(config: TransformerConfig, rows: int, length: float, dtype: str) -> float:
    """Bytes of keys and values that one step reads for `rows` rows with `length` tokens each."""
    width = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    return rows * length * width * (4 if dtype == "float32" else 2)
