"""What a causal codec promises: bounded look-ahead, streaming equal to offline, exact lengths, free padding."""

import jax
import numpy as np
import pytest
from flax import nnx

from ar_omni_jax.tokenizers.speech import SpeechTokenizer
from ar_omni_jax.tokenizers.speech.codec import SpeechCodec
from ar_omni_jax.tokenizers.speech.config import SpeechCodecConfig
from ar_omni_jax.tokenizers.speech.convolution import Conv, DepthwiseConv, convolve
from ar_omni_jax.tokenizers.speech.tokenizer import bucket

HOP, LOOKAHEAD = 24, 10


def make_config(**changes):
    values = {
        "encoder": {"n_filters": 4, "dimension": 8, "ratios": (2, 3, 4), "lstm_layers": 1, "lookahead": LOOKAHEAD},
        "backbone": {
            "dim": 16,
            "intermediate_dim": 24,
            "num_layers": 2,
            "adanorm_num_embeddings": 1,
            "position_net": False,
            "upsample": 2,
            "upsampled_dim": 8,
            "upsampled_intermediate_dim": 12,
            "upsampled_layers": 2,
        },
        "head": {"n_fft": 36, "hop_length": 12},
        "codebook_size": 32,
        "sample_rate": 960,
        "causal": True,
    }
    return SpeechCodecConfig.from_dict(values | changes)


@pytest.fixture(scope="module", params=[False, True], ids=["istft", "source_filter"])
def codec(request):
    head = {"n_fft": 36, "hop_length": 12, "source_filter": request.param}
    return SpeechCodec(make_config(head=head), rngs=nnx.Rngs(0))


def jitted(codec, method):
    """One compiled program instead of one a primitive."""
    graph, state = nnx.split(codec)
    return lambda x: np.asarray(jax.jit(lambda s, x: getattr(nnx.merge(graph, s), method)(x))(state, x))


@pytest.fixture(scope="module")
def embed(codec):
    return jitted(codec, "embed")


@pytest.fixture(scope="module")
def tokenizer(codec):
    return SpeechTokenizer(codec, "test")


@pytest.fixture(scope="module")
def wav():
    return np.random.default_rng(0).normal(size=(1, 10 * HOP)).astype(np.float32)


@pytest.mark.parametrize("taps,stride", [(1, 1), (7, 1), (8, 4), (5, 2), (3, 4)])
def test_convolve_is_xla_convolution(taps, stride):
    rng = np.random.default_rng(taps)
    x = rng.normal(size=(2, 37, 3)).astype(np.float32)
    kernel = rng.normal(size=(taps, 3, 5)).astype(np.float32)
    expected = jax.lax.conv_general_dilated(
        x, kernel, (stride,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"), precision="highest"
    )
    np.testing.assert_allclose(convolve(x, kernel, stride), expected, atol=1e-5)


def test_unknown_padding_is_refused():
    with pytest.raises(ValueError, match="reflect, zero or causal"):
        Conv(1, 1, 3, padding="same", rngs=nnx.Rngs(0))


def test_future_samples_do_not_change_past_embeddings(embed, wav):
    cut = 4 * HOP + LOOKAHEAD  # code 3 may see everything before this sample
    changed = wav.copy()
    changed[:, cut:] = 5.0
    before, after = embed(wav), embed(changed)
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert np.abs(before[:, 4:] - after[:, 4:]).max() > 1e-3


def test_lookahead_is_used_and_no_more(embed, wav):
    changed = wav.copy()
    changed[:, 4 * HOP + LOOKAHEAD - 1] += 5.0
    difference = np.abs(embed(wav) - embed(changed)).max(axis=(0, 2))
    assert difference[3] > 1e-4 and difference[:3].max() == 0


def test_future_codes_do_not_change_past_audio(codec):
    codes = np.arange(10)[None]
    changed = codes.copy()
    changed[:, 6:] = 31
    decode = jitted(codec, "decode")
    before, after = decode(codes), decode(changed)
    np.testing.assert_array_equal(before[:, : 6 * HOP], after[:, : 6 * HOP])
    assert np.abs(before[:, 6 * HOP : 7 * HOP] - after[:, 6 * HOP : 7 * HOP]).max() > 1e-4


@pytest.mark.parametrize("chunks", [[1] * 13, [5, 0, 8], [2, 11]])
def test_streaming_equals_offline(tokenizer, chunks):
    codes = np.random.default_rng(1).integers(0, 32, 13)
    state, position, pieces = tokenizer.init_stream(), 0, []
    for size in chunks:
        state, samples = tokenizer.decode_stream(state, codes[position : position + size])
        assert samples.shape == (size * HOP,)
        pieces.append(samples)
        position += size
    np.testing.assert_allclose(np.concatenate(pieces), tokenizer.decode(codes), atol=1e-5)


def test_streaming_long_chunk_equals_offline(tokenizer):
    codes = np.random.default_rng(2).integers(0, 32, 150)
    _, samples = tokenizer.decode_stream(tokenizer.init_stream(), codes)
    np.testing.assert_allclose(samples, tokenizer.decode(codes), atol=1e-5)


@pytest.mark.parametrize("samples", [1, HOP - 1, HOP, HOP + 1, 5 * HOP + 7, 41 * HOP])
def test_lengths_are_exact(tokenizer, samples):
    codes = tokenizer.encode(np.ones(samples, np.float32) * 0.1)
    assert codes.shape == (-(-samples // HOP),) and codes.dtype == np.int32
    out = tokenizer.decode(codes)
    assert out.shape == (len(codes) * HOP,) and out.dtype == np.float32


def test_batching_changes_no_code(tokenizer):
    rng = np.random.default_rng(3)
    wavs = [rng.normal(size=n).astype(np.float32) for n in (5, 100, 1000, 977, 2000)]
    together = tokenizer.encode_batch(wavs)
    encode = jitted(tokenizer.codec, "encode")
    for wav, codes in zip(wavs, together, strict=True):
        exact = encode(wav[None])[0]  # no padding at all
        np.testing.assert_array_equal(codes, exact)


def test_batching_changes_no_code_without_causality():
    config = make_config(
        causal=False,
        encoder={"n_filters": 4, "dimension": 8, "ratios": (2, 3, 4), "lstm_layers": 1},
        backbone={"dim": 32, "intermediate_dim": 24, "num_layers": 1},
        head={"n_fft": 48, "hop_length": 24},
    )
    tokenizer = SpeechTokenizer(SpeechCodec(config, rngs=nnx.Rngs(0)), "test")
    rng = np.random.default_rng(4)
    wavs = [rng.normal(size=n).astype(np.float32) for n in (3, 100, 77, 100)]
    encode = jitted(tokenizer.codec, "encode")
    for wav, codes in zip(wavs, tokenizer.encode_batch(wavs), strict=True):
        np.testing.assert_array_equal(codes, encode(wav[None])[0])
    assert tokenizer.decode(codes).shape == (len(codes) * 24,)


def test_source_filter_needs_causality():
    with pytest.raises(ValueError, match="source_filter"):
        SpeechCodecConfig.from_dict({"head": {"source_filter": True}})


def test_position_net_cannot_be_causal():
    with pytest.raises(ValueError, match="position_net"):
        make_config(backbone={"upsample": 2, "upsampled_dim": 8})


def test_depthwise_convolution_matches_xla():
    layer = DepthwiseConv(6, 7, causal=False, rngs=nnx.Rngs(0))
    x = np.random.default_rng(5).normal(size=(2, 20, 6)).astype(np.float32)
    expected = jax.lax.conv_general_dilated(
        x,
        layer.kernel[...][:, None],
        (1,),
        "SAME",
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=6,
        precision="highest",
    )
    np.testing.assert_allclose(layer(x), expected, atol=1e-5)


@pytest.mark.parametrize(
    "codes,message",
    [
        (np.array([0, 32]), "codebook has 0..31"),
        (np.array([-1]), "codebook"),
        (np.zeros((2, 2), int), "integers"),
        (np.array([0.5]), "integers"),
    ],
)
def test_bad_codes_are_refused(tokenizer, codes, message):
    with pytest.raises(ValueError, match=message):
        tokenizer.decode(codes)


@pytest.mark.parametrize(
    "wav,message",
    [
        (np.zeros(0, np.float32), "item 0"),
        (np.zeros((2, 5), np.float32), "mono"),
        (np.zeros(5, int), "float"),
        (np.array([np.nan, 0], np.float32), "NaN"),
    ],
)
def test_bad_waveforms_are_refused(tokenizer, wav, message):
    with pytest.raises(ValueError, match=message):
        tokenizer.encode_batch([wav])


def test_no_codes_no_samples(tokenizer):
    assert tokenizer.decode(np.zeros(0, np.int32)).shape == (0,)
    assert tokenizer.encode_batch([]) == []


def test_buckets_grow_slowly_and_hold():
    sizes = sorted({bucket(n) for n in range(1, 2000)})
    assert sizes == [40, 80, 120, 160, 240, 320, 480, 640, 960, 1280, 1920, 2560]
    assert all(bucket(n) >= n for n in range(1, 2000))
