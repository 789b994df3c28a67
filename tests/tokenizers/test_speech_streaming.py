"""What a stream of speech promises: exact length, no dependence on how codes are cut into pushes, no clicks."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from ar_omni_jax.tokenizers.speech import SpeechTokenizer, backbone
from ar_omni_jax.tokenizers.speech.codec import SpeechCodec
from ar_omni_jax.tokenizers.speech.config import SpeechCodecConfig
from ar_omni_jax.tokenizers.speech.stream_table import measure, seam_error, table
from ar_omni_jax.tokenizers.speech.streaming import SpeechStream, StreamError

HOP, STEP, LOOKAHEAD, LEFT = 24, 4, 3, 8


@functools.cache
def published_shape(causal: bool = False) -> SpeechTokenizer:
    """The published layout in small: GroupNorm and attention over all of time, symmetric convolutions.

    High frequencies are made quiet, as in speech: a random codec's white noise would hide any click.
    """
    config = {
        "encoder": {"n_filters": 4, "dimension": 8, "ratios": (2, 3, 4), "lstm_layers": 1},
        "backbone": {"dim": 32, "intermediate_dim": 24, "num_layers": 2, "position_net": not causal},
        "head": {"n_fft": 96, "hop_length": HOP},
        "codebook_size": 32,
        "sample_rate": 960,
        "causal": causal,
    }
    codec = SpeechCodec(SpeechCodecConfig.from_dict(config), rngs=nnx.Rngs(0))
    bins = 96 // 2 + 1
    codec.head.out.bias[...] = codec.head.out.bias[...].at[:bins].add(-0.5 * jnp.arange(bins))
    codec.head.out.kernel[...] = codec.head.out.kernel[...] * 0.5
    return SpeechTokenizer(codec, "test")


@pytest.fixture(scope="module", params=[True, False], ids=["causal", "windowed"])
def tokenizer(request):
    return published_shape(request.param)


@pytest.fixture(scope="module")
def windowed():
    return published_shape()


def make_stream(tokenizer):
    return SpeechStream(tokenizer, lookahead=LOOKAHEAD, left_context=LEFT, step=STEP)


def stream_all(tokenizer, codes, cuts=None):
    """All samples of `codes`, pushed in pieces of the given sizes (default: one code at a time)."""
    stream, at, pieces = make_stream(tokenizer), 0, []
    for size in cuts if cuts is not None else [1] * len(codes):
        pieces.append(stream.push(codes[at : at + size]))
        at += size
    pieces += [stream.push(codes[at:]), stream.finish()]
    assert all(p.dtype == np.float32 for p in pieces)
    return np.concatenate(pieces)


def random_codes(count, seed=0):
    return np.random.default_rng(seed).integers(0, 32, count)


@settings(max_examples=25, deadline=None)
@given(count=st.integers(0, 40), cuts=st.lists(st.integers(0, 9), max_size=20))
def test_pushes_may_be_cut_anywhere(tokenizer, count, cuts):
    codes = random_codes(count, count)
    whole, cut = stream_all(tokenizer, codes, []), stream_all(tokenizer, codes, cuts)
    assert whole.shape == cut.shape == (count * HOP,)
    if tokenizer.codec.config.causal:
        np.testing.assert_allclose(cut, whole, atol=1e-5)
    else:
        np.testing.assert_array_equal(cut, whole)


@pytest.mark.parametrize("count", [1, STEP, STEP + LOOKAHEAD - 1])
def test_what_fits_into_one_window_is_offline_decoding(tokenizer, count):
    codes = random_codes(count)
    np.testing.assert_allclose(stream_all(tokenizer, codes), tokenizer.decode(codes), atol=1e-5)


def test_causal_stream_is_offline_decoding():
    tokenizer, codes = published_shape(causal=True), random_codes(60)
    assert make_stream(tokenizer).first_codes == 1
    np.testing.assert_allclose(stream_all(tokenizer, codes), tokenizer.decode(codes), atol=1e-5)


def test_samples_come_as_soon_as_they_are_settled_and_never_change(windowed):
    codes, stream = random_codes(30), make_stream(windowed)
    assert stream.first_codes == STEP + LOOKAHEAD
    counts = [len(stream.push(codes[i : i + 1])) // HOP for i in range(30)]
    settled = [max(0, (i + 1 - LOOKAHEAD) // STEP * STEP) for i in range(30)]
    np.testing.assert_array_equal(np.cumsum(counts), settled)
    assert len(stream.finish()) // HOP == 30 - settled[-1]
    assert len(stream.finish()) == 0
    # What was given out of a prefix is what is given out of the whole.
    np.testing.assert_array_equal(
        make_stream(windowed).push(codes[:17]), stream_all(windowed, codes)[: settled[16] * HOP]
    )


def hard_cut(tokenizer, codes):
    """Windows without cross-fade: what a stream would be that forgot its seams."""
    pieces = []
    for at in range(0, len(codes), STEP):
        begin, end = max(0, at - LEFT), min(len(codes), at + STEP + LOOKAHEAD)
        samples = tokenizer.decode(codes[begin:end])
        pieces.append(samples[(at - begin) * HOP : (min(at + STEP, len(codes)) - begin) * HOP])
    return np.concatenate(pieces)


def test_seams_do_not_click(windowed):
    codes = random_codes(64)
    offline = windowed.decode(codes)
    seams = np.arange(STEP, 64 - STEP - LOOKAHEAD, STEP) * HOP
    jump, kink = seam_error(stream_all(windowed, codes), offline, np.concatenate([seams, seams + HOP]))
    cut_jump, cut_kink = seam_error(hard_cut(windowed, codes), offline, seams)
    assert jump < 1 and kink < 1  # a seam is no rougher than the rest of the difference
    assert cut_jump > 2 and cut_kink > 2  # the measure sees a click where there is one


def local(monkeypatch) -> SpeechTokenizer:
    """The same codec with what sees all of time taken out: no statistics over the utterance, no attention."""
    monkeypatch.setattr(backbone.GroupNorm, "__call__", lambda self, x: 0.5 * x * self.scale[...] + self.bias[...])
    monkeypatch.setattr(backbone.AttentionBlock, "__call__", lambda self, x: x)
    return published_shape.__wrapped__()


def test_windows_miss_only_what_sees_all_of_time(windowed, monkeypatch):
    """Without GroupNorm's statistics and attention, a window that holds the convolutions' reach is offline decoding.
    With them the same window is not: what is left of the difference is not the windows' to mend."""
    reach = 3 + 8 * 1 + 2 * 3 + 2  # embedding, residual blocks, ConvNeXt blocks, the frames that overlap in a sample
    codes, sizes = random_codes(110), {"lookahead": reach, "left_context": 20, "step": 20}  # few programs to compile

    def difference(tokenizer, **changes):
        stream = SpeechStream(tokenizer, **sizes | changes)
        made, offline = np.concatenate([stream.push(codes), stream.finish()]), tokenizer.decode(codes)
        return np.abs(made - offline).max() / np.sqrt(np.mean(offline**2))

    assert difference(windowed) > 1e-2
    without = local(monkeypatch)
    assert difference(without) < 1e-4
    assert difference(without, left_context=0) > 1e-3  # nor is the codec so local that any window would do


def test_cost_grows_linearly(windowed, monkeypatch):
    decode, decoded = windowed.decode, []
    monkeypatch.setattr(windowed, "decode", lambda codes: decoded.append(len(codes)) or decode(codes))
    work = {}
    for count in (40, 80, 160):
        decoded.clear()
        stream_all(windowed, random_codes(count))
        assert max(decoded) == LEFT + STEP + LOOKAHEAD
        work[count] = sum(decoded)
    assert work[160] - work[80] == 2 * (work[80] - work[40])


def test_windows_have_few_sizes_and_warm_up_knows_them(windowed, monkeypatch):
    decode, decoded = windowed.decode, set()
    monkeypatch.setattr(windowed, "decode", lambda codes: decoded.add(len(codes)) or decode(codes))
    make_stream(windowed).warm_up()
    warmed = set(decoded)
    for count in range(STEP + LOOKAHEAD, 40):
        stream_all(windowed, random_codes(count))
    assert decoded == warmed


def test_misuse_is_refused_in_words(windowed):
    with pytest.raises(StreamError, match="lookahead=0 codes; it must be at least 1"):
        SpeechStream(windowed, lookahead=0)
    stream = make_stream(windowed)
    with pytest.raises(ValueError, match="codebook has 0..31"):
        stream.push(np.array([32]))
    stream.finish()
    with pytest.raises(StreamError, match="make a new stream"):
        stream.push(np.array([1]))


def test_table_tells_difference_and_latency_by_lookahead(windowed):
    rows = measure(windowed, random_codes(48), lookaheads=(1, 24), left_context=16, step=STEP)
    assert [row.lookahead for row in rows] == [1, 24] and [row.first_codes for row in rows] == [5, 28]
    assert rows[0].rms > rows[1].rms > 1e-4
    text = table(windowed, rows, 48)
    assert len(text.splitlines()) == 2 + len(rows) and f"{rows[1].rms:.4f}" in text


def test_table_of_a_causal_codec_is_one_row_without_difference():
    rows = measure(published_shape(causal=True), random_codes(30), lookaheads=(1, 8), left_context=8, step=STEP)
    assert len(rows) == 1 and rows[0].first_codes == 1 and rows[0].largest < 1e-5
