"""Which backend runs where, what it refuses, and the TPU's kernel run as ordinary operations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ar_omni_jax.model import attention
from ar_omni_jax.model.attention import attention_function, attention_name, prompt_attention, register_attention
from ar_omni_jax.model.config import ConfigError
from ar_omni_jax.model.splash import block_size, splash_attention, splash_pieces
from ar_omni_jax.model.transformer import Transformer
from tests.model.helpers import logits_of, make_model, packed_batch, tiny_config


@pytest.fixture
def interpreted(monkeypatch):
    """The kernel under the name "interpreted", on any platform."""
    monkeypatch.setattr(attention, "_BACKENDS", dict(attention._BACKENDS))
    register_attention("interpreted")(functools.partial(splash_attention, interpret=True))
    return "interpreted"


def arrays(length, heads=4, key_heads=2, width=8, seed=0, documents=4):
    r = np.random.default_rng(seed)
    shapes = [(2, length, n, width) for n in (heads, key_heads, key_heads)]
    q, k, v = (jnp.asarray(r.standard_normal(shape), jnp.float32) for shape in shapes)
    return q, k, v, jnp.asarray(np.sort(r.integers(0, documents, (2, length)), axis=1), jnp.int32)


@pytest.mark.parametrize(
    "platform, pieces, changes, name",
    [
        ("tpu", 1, {}, "splash"),
        ("tpu", 4, {}, "splash"),
        ("cuda", 1, {"packed_rows": False, "dtype": "bfloat16"}, "cudnn"),
        ("gpu", 1, {"packed_rows": False}, "blocked"),  # float32
        ("gpu", 1, {"dtype": "bfloat16"}, "blocked"),  # packed rows
        ("gpu", 2, {"packed_rows": False, "dtype": "bfloat16"}, "blocked"),  # split rows
        ("cpu", 1, {}, "rowwise"),
        ("cpu", 2, {}, "blocked"),
    ],
)
def test_auto_chooses_by_platform(platform, pieces, changes, name):
    assert attention_name(tiny_config(attention="auto", **changes), platform, pieces) == name


@pytest.mark.parametrize(
    "name, platform, pieces, changes, message",
    [
        ("splash", "cpu", 1, {}, "runs on tpu only, and these devices are cpu; use one of blocked, ref"),
        ("cudnn", "tpu", 1, {"packed_rows": False}, "runs on gpu only, .* are tpu; use one of .*splash"),
        ("cudnn", "gpu", 1, {"packed_rows": False}, "model.dtype is float32"),
        ("cudnn", "gpu", 1, {"dtype": "bfloat16"}, "honours no segment ids.*packed_rows=False"),
        ("cudnn", "gpu", 2, {"packed_rows": False, "dtype": "bfloat16"}, "mesh.sequence = 2 .*; use one of blocked"),
        ("rowwise", "cpu", 4, {}, "mesh.sequence = 4 .* use one of blocked, reference, or 'auto'"),
        ("flash", "cpu", 1, {}, "must be one of auto, blocked, cudnn, reference, rowwise, splash"),
    ],
)
def test_refusals_name_what_would_do(name, platform, pieces, changes, message):
    with pytest.raises(ConfigError, match=f"attention = '{name}': .*{message}"):
        attention_name(tiny_config(attention=name, **changes), platform, pieces)


def test_a_model_for_another_platform_can_be_described_and_not_run():
    model = Transformer(tiny_config(attention="splash"), rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match="'splash': runs on tpu only"):
        model(*packed_batch(97))


def test_prompts_are_read_wherever_the_model_was_trained():
    blocked = attention_function(tiny_config(attention="blocked"))
    assert prompt_attention(tiny_config(attention="splash")) is blocked
    assert prompt_attention(tiny_config(attention="cudnn", packed_rows=False)) is blocked
    for name in ("reference", "rowwise", "blocked"):
        assert prompt_attention(tiny_config(attention=name)) is attention_function(tiny_config(attention=name))


def test_auto_computes_what_its_choice_does():
    batch = packed_batch(97)
    ours, theirs = (logits_of(make_model(tiny_config(attention=name)), *batch) for name in ("auto", "rowwise"))
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("length, block", [(1, 128), (128, 128), (129, 256), (384, 384), (512, 512), (1300, 512)])
def test_blocks_are_whole_lanes(length, block):
    assert block_size(length) == block
    assert block_size(3456) == 384  # nine of them, nothing added


@pytest.mark.parametrize("length", [100, 130])
def test_splash_equals_the_reference(length):
    """Both sum in float32; the kernel in blocks of keys with a running maximum: some units in the last place."""
    *qkv, segments = arrays(length)
    reference = attention_function(tiny_config())

    def run(function):
        return jax.value_and_grad(lambda *x: (function(*x, segments) ** 2).sum(), argnums=(0, 1, 2))(*qkv)

    ours, theirs = run(functools.partial(splash_attention, interpret=True)), run(reference)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_splash_of_a_piece_equals_its_part_of_the_whole():
    q, k, v, segments = arrays(260, documents=3)
    whole = attention_function(tiny_config())(q, k, v, segments)
    piece = jax.jit(functools.partial(splash_pieces, interpret=True))
    for first in (0, 130):
        part = slice(first, first + 130)
        ours = piece(q[:, part], k, v, segments[:, part], segments, first)
        np.testing.assert_allclose(ours, whole[:, part], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["reference", "blocked", "rowwise", "interpreted"])
def test_a_document_alone_and_packed_has_the_same_logits_bit_for_bit(name, interpreted):
    """Alone: at its place in the row, the other documents padding."""
    config = tiny_config(attention=name)
    model = make_model(config)
    tokens, positions, segments = packed_batch(config.vocab_size)
    packed = np.asarray(logits_of(model, tokens, positions, segments))
    for document in (1, 2):
        own = segments[0] == document
        alone = [np.where(own, x[0], 0)[None].repeat(2, 0).astype(np.int32) for x in (tokens, positions, segments)]
        assert np.array_equal(np.asarray(logits_of(model, *alone))[0, own], packed[0, own])
        assert not np.array_equal(alone[0], tokens)
