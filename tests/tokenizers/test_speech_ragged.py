"""Rows of different lengths go through the codec without causality together, each as if it were alone."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx
from golden_speech import GOLDEN, golden_config
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from ar_omni_jax.tokenizers.speech.convolution import Conv
from ar_omni_jax.tokenizers.speech.published import load_published
from ar_omni_jax.tokenizers.speech.tokenizer import SpeechTokenizer

TIME = 48  # frames of the padded rows; a multiple of all strides


@pytest.fixture(scope="module")
def tokenizer():
    """The tiny instance of the published code, whose codes the golden tests check."""
    return SpeechTokenizer(load_published(load_file(GOLDEN / "speech_codec.safetensors"), golden_config()), "golden")


def padded_by_hand(x, left, right):
    """EnCodec's rule in NumPy: reflection, of short inputs after zeros that are cut off again."""
    shortage = max(0, max(left, right) - len(x) + 1)
    x = np.pad(np.pad(x, ((0, shortage), (0, 0))), ((left, right), (0, 0)), mode="reflect")
    return x[: len(x) - shortage]


@functools.cache
def convolution(taps, stride):
    conv = Conv(2, 3, taps, stride=stride, padding="reflect", rngs=nnx.Rngs(taps))
    graph, state = nnx.split(conv)
    return conv, jax.jit(lambda x, lengths: nnx.merge(graph, state)(x, lengths))


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from([(7, 1), (3, 1), (1, 1), (4, 2), (6, 3), (12, 6)]),
    lengths=st.lists(st.integers(1, TIME), min_size=3, max_size=3),
    seed=st.integers(0, 9),
)
def test_a_row_has_the_frames_that_it_has_alone(shape, lengths, seed):
    """Short rows, too: those that are no longer than the padding are first extended by zeros."""
    (taps, stride), draw = shape, np.random.default_rng(seed)
    conv, together = convolution(taps, stride)
    rows = draw.standard_normal((3, TIME, 2)).astype(np.float32)  # behind a row's end: anything
    found = np.asarray(together(rows, np.asarray(lengths, np.int32)))
    assert found.shape == (3, TIME // stride, 3)
    right = (taps - stride) // 2
    for row, length, frames in zip(rows, lengths, found, strict=True):
        x = padded_by_hand(row[:length], taps - stride - right, right + -length % stride)
        starts = range(0, len(x) - taps + 1, stride)
        alone = [np.einsum("ki,kio->o", x[s : s + taps], np.asarray(conv.kernel[...])) for s in starts]
        assert len(alone) == -(-length // stride)
        np.testing.assert_allclose(frames[: len(alone)], np.stack(alone), atol=1e-5)


def test_vectors_and_codes_of_any_length_are_those_alone(tokenizer):
    hop, draw = tokenizer.hop_length, np.random.default_rng(0)
    lengths = [1, hop - 1, hop, 5 * hop + 7, 55 * hop - 3]
    wavs = [draw.uniform(-0.5, 0.5, n).astype(np.float32) for n in lengths]
    padded = np.zeros((len(wavs), 55 * hop), np.float32)
    for row, wav in zip(padded, wavs, strict=True):
        row[: len(wav)] = wav
    graph, state = nnx.split(tokenizer.codec)
    embed = jax.jit(lambda wav, lengths=None: nnx.merge(graph, state).encoder(wav, lengths))
    encode = jax.jit(lambda wav: nnx.merge(graph, state).encode(wav))
    vectors = embed(padded, np.asarray(lengths, np.int32))
    for wav, found, codes in zip(wavs, vectors, tokenizer.encode_batch(wavs), strict=True):
        alone = embed(wav[None])[0]
        assert len(codes) == len(alone) == -(-len(wav) // hop)
        np.testing.assert_allclose(found[: len(alone)], alone, atol=1e-4)
        np.testing.assert_array_equal(codes, encode(wav[None])[0])


def test_many_lengths_need_few_programs(tokenizer):
    """One a length would compile longer than it computes on any real corpus."""
    hop, draw = tokenizer.hop_length, np.random.default_rng(1)
    wavs = [draw.uniform(-0.5, 0.5, n).astype(np.float32) for n in draw.integers(1, 60 * hop, 50)]
    fresh = SpeechTokenizer(tokenizer.codec, "golden")
    fresh.encode_batch(wavs)
    assert len({len(wav) for wav in wavs}) > 40 and fresh._encode._cache_size() <= 2
