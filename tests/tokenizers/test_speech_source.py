"""The source of the source-filter head: pulses at the right pitch, phase without drift, pitch found in sound."""

import jax
import numpy as np
import pytest
from flax import nnx

from ar_omni_jax.tokenizers.speech.config import default_config
from ar_omni_jax.tokenizers.speech.pitch import estimate_pitch
from ar_omni_jax.tokenizers.speech.source import UNITS, PitchReader, SourceFilterHead, pulses

RATE, N_FFT, HOP = 16000, 400, 100


def increment(hertz):
    return np.array([round(hertz * HOP / RATE * UNITS)], np.int32)


@pytest.mark.parametrize("hertz", [80.0, 200.0, 320.0])
def test_pulses_hold_all_harmonics_below_nyquist(hertz):
    wave = np.asarray(pulses(np.zeros(1, np.int32), increment(hertz), 3200, HOP))[0]
    spectrum = np.abs(np.fft.rfft(wave)) ** 2
    harmonics = np.arange(1, int(np.ceil(RATE / 2 / hertz))) * hertz * 3200 / RATE
    near = np.unique(np.round(harmonics).astype(int)[:, None] + [-2, -1, 0, 1, 2])
    assert spectrum[near].sum() > 0.95 * spectrum.sum()
    assert np.var(wave) == pytest.approx(1.0, abs=0.1)


def test_phase_puts_a_pulse_at_the_window_centre():
    for phase, place in ((0, 200), (UNITS // 4, 200 - 25)):  # a quarter period of 100 samples earlier
        wave = np.asarray(pulses(np.array([phase], np.int32), increment(160.0), N_FFT, HOP))[0]
        assert abs(int(np.argmax(wave[150:230])) + 150 - place) <= 1


def test_output_has_the_pitch_of_the_codes():
    head = SourceFilterHead(default_config(), rngs=nnx.Rngs(0))
    head.out.bias[...] = head.out.bias[...].at[-(N_FFT // 2 + 1) :].set(-9.0)  # hardly any noise
    graph, state = nnx.split(head)
    features = np.zeros((1, 40 * 4, 128), np.float32)
    increments = np.broadcast_to(increment(125.0), (1, 40))
    wave = jax.jit(lambda s, x, i: nnx.merge(graph, s)(x, i))(state, features, increments)
    log2_pitch, confidence = estimate_pitch(wave, np.arange(2000, 14000, 1000), RATE)
    np.testing.assert_allclose(2.0 ** np.asarray(log2_pitch), 125.0, rtol=0.02)
    assert wave.shape == (1, 16000)


def test_phase_does_not_drift_over_minutes():
    """Streaming 6000 codes one at a time ends in the very phase of one long piece, whatever the pitch."""
    graph, state = nnx.split(SourceFilterHead(default_config(), rngs=nnx.Rngs(0)))
    increments = np.random.default_rng(0).integers(30000, 160000, (1, 6000)).astype(np.int32)

    def phases(increments, first, previous):
        head = nnx.merge(graph, state)
        glide = np.asarray(head._glide(previous, increments)).astype(np.int64)
        return (first + np.cumsum(glide)) % UNITS

    whole = phases(increments, 0, np.array([-1], np.int32))
    pieces, phase, previous = [], 0, np.array([-1], np.int32)
    for start in range(0, 6000, 750):
        piece = increments[:, start : start + 750]
        pieces.append(phases(piece, phase, previous))
        phase, previous = pieces[-1][-1], piece[:, -1]
    np.testing.assert_array_equal(whole, np.concatenate(pieces))


def test_pitch_reader_stays_in_range():
    reader = PitchReader(default_config(), rngs=nnx.Rngs(0))
    features = np.random.default_rng(1).normal(size=(50, 64)).astype(np.float32) * 100
    hertz = 2.0 ** np.asarray(reader(features))
    assert hertz.min() >= 59.9 and hertz.max() <= 400.1
    steps = np.asarray(reader.increments(features)) / UNITS * RATE / HOP
    np.testing.assert_allclose(steps, hertz, rtol=1e-4)


@pytest.mark.parametrize("hertz", [75.0, 130.0, 260.0])
def test_pitch_is_found(hertz):
    time = np.arange(16000) / RATE
    voice = sum(np.cos(2 * np.pi * h * hertz * time) / h for h in range(1, 12))[None].astype(np.float32) * 0.1
    log2_pitch, confidence = estimate_pitch(voice, np.arange(1000, 15000, 500), RATE)
    np.testing.assert_allclose(2.0 ** np.asarray(log2_pitch), hertz, rtol=0.02)
    assert np.min(confidence) > 0.9


def test_noise_and_silence_have_no_pitch():
    noise = np.random.default_rng(2).normal(size=(1, 16000)).astype(np.float32) * 0.1
    for wave in (noise, np.zeros_like(noise)):
        _, confidence = estimate_pitch(wave, np.arange(1000, 15000, 500), RATE)
        assert np.mean(confidence) < 0.05
