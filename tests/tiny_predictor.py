"""A predictor of one layer with random weights and the default text tokenizer, the `generate` command over it, and
requests to ask it."""

import numpy as np
from flax import nnx

from ar_omni_jax import generate
from ar_omni_jax.inference import user_document
from ar_omni_jax.model.config import TransformerConfig
from ar_omni_jax.model.transformer import Transformer
from ar_omni_jax.predictor import Predictor
from ar_omni_jax.tokenizers.bundle import load_tokenizers

BUDGETS = {"text": 6, "speech": 12}


def make_predictor(**options) -> Predictor:
    tokenizers = load_tokenizers("toyworld", need=("text",))
    config = TransformerConfig(
        vocab_size=tokenizers.vocabulary.size,
        num_layers=1,
        d_model=32,
        num_heads=2,
        num_kv_heads=2,
        head_dim=16,
        d_ff=48,
        max_length=256,
        dtype="float32",
    )
    return Predictor(Transformer(config, rngs=nnx.Rngs(0)), tokenizers, "paper", 7, **options)


def make_command(predictor, monkeypatch, folder):
    """Runs the command with `predictor` in place of a checkpoint: arguments -> exit code. `.out` is its output."""
    monkeypatch.setattr(Predictor, "load", classmethod(lambda cls, *args, **options: predictor))

    def run(*arguments):
        small = ("--max_text=6", "--max_speech=12")
        return generate.main(["--checkpoint=x", f"--output={folder / 'out'}", *small, *map(str, arguments)])

    run.out = folder / "out"
    return run


def tts(text="a red circle", **options):
    return user_document("tts", text=text, **options)


def pixels():
    return np.random.default_rng(0).integers(0, 255, (80, 70, 3), np.uint8)


def wave(seconds=0.3, rate=16000):
    return (0.1 * np.sin(np.arange(int(seconds * rate)) * 0.1)).astype(np.float32)
