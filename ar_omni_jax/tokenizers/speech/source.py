"""Source-filter iSTFT head: a pulse train and noise, shaped by spectra that the backbone predicts.

The published head predicts phases outright; without a discriminator and many GPU hours that gives hoarse
voices, because harmonics stay in step only if phase is carried from window to window. Here it is carried: every
code says a pitch, pitches add up to the pulses' phase, and the head only filters, in windows of the same iSTFT:

    X_j[k] = A_j[k] exp(i theta_j[k]) P_j[k] + N_j[k] W_j[k]

with P_j, W_j the windowed spectra of unit-power pulses and noise, and A, theta, N from one linear layer.
Phase is counted in whole numbers, so streamed and offline decoding agree however long the audio is.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ar_omni_jax.tokenizers.speech.backbone import Linear
from ar_omni_jax.tokenizers.speech.config import SpeechCodecConfig
from ar_omni_jax.tokenizers.speech.convolution import matmul
from ar_omni_jax.tokenizers.speech.head import (
    MAX_MAGNITUDE,
    inverse_dft_basis,
    overlap_add,
    periodic_hann,
    steady_envelope,
)

LOWEST, HIGHEST = 60.0, 400.0  # Hz, of the voices' fundamental
UNITS = 1 << 16  # of phase in one period
NOISE_FRAMES = 160  # windows after which the noise repeats


class PitchReader(nnx.Module):
    """Code vectors [..., D] -> log2 of the fundamental in Hz [...], a quarter hop past the code's end."""

    def __init__(self, config: SpeechCodecConfig, *, rngs: nnx.Rngs):
        width = config.encoder.dimension
        self.hidden = Linear(width, width, rngs=rngs)
        self.out = Linear(width, 1, rngs=rngs)
        self.hops_per_second = config.sample_rate / config.head.hop_length

    def __call__(self, features: jax.Array) -> jax.Array:
        raw = self.out(jax.nn.elu(self.hidden(features)))[..., 0]
        return np.log2(LOWEST) + np.log2(HIGHEST / LOWEST) * jax.nn.sigmoid(raw)

    def increments(self, features: jax.Array) -> jax.Array:
        """Phase that one window hop adds, int32 [...] in UNITS of a period."""
        return jnp.round(2.0 ** self(features) * (UNITS / self.hops_per_second)).astype(jnp.int32)


@functools.lru_cache
def windowed_dft_basis(n_fft: int) -> np.ndarray:
    """float32 [n_fft, 2 * bins]: samples @ basis = [real | imaginary] of the Hann-windowed spectrum."""
    angle = 2 * np.pi * np.outer(np.arange(n_fft), np.arange(n_fft // 2 + 1)) / n_fft
    basis = np.concatenate([np.cos(angle), -np.sin(angle)], axis=1)
    return (basis * periodic_hann(n_fft)[:, None]).astype(np.float32)


@functools.lru_cache
def noise_spectra(n_fft: int, hop: int) -> np.ndarray:
    """Spectra of successive windows over one fixed stretch of unit noise, float32 [NOISE_FRAMES, 2 * bins]."""
    noise = np.random.default_rng(0).standard_normal(NOISE_FRAMES * hop)
    at = (np.arange(NOISE_FRAMES)[:, None] * hop + np.arange(n_fft)) % len(noise)
    return (noise[at] @ windowed_dft_basis(n_fft)).astype(np.float32)


def pulses(phase: jax.Array, increment: jax.Array, n_fft: int, hop: int) -> jax.Array:
    """All harmonics below Nyquist, in phase, unit power: int32 phase at the windows' centres [...] and
    increments a hop [...] -> samples [..., n_fft]; the sum of cosines in its closed form (Dirichlet kernel)."""
    periods_per_sample = jnp.maximum(increment, 1)[..., None] / (UNITS * hop)
    x = phase[..., None] / UNITS + periods_per_sample * (np.arange(n_fft) - n_fft // 2)
    x = x - jnp.round(x)
    harmonics = jnp.ceil(0.5 / periods_per_sample) - 1
    sine = jnp.sin(jnp.pi * x)
    at_pulse = jnp.abs(sine) < 1e-4
    ratio = jnp.sin(jnp.pi * (2 * harmonics + 1) * x) / (2 * jnp.where(at_pulse, 1.0, sine)) - 0.5
    return jnp.where(at_pulse, harmonics, ratio) * jnp.sqrt(2.0 / harmonics)


def _complex_product(magnitude: jax.Array, phase: jax.Array, spectrum: jax.Array) -> jax.Array:
    """magnitude * exp(i phase) * spectrum, with spectra as [real | imaginary]."""
    real, imaginary = jnp.split(spectrum, 2, axis=-1)
    c, s = magnitude * jnp.cos(phase), magnitude * jnp.sin(phase)
    return jnp.concatenate([c * real - s * imaginary, s * real + c * imaginary], axis=-1)


class SourceFilterHead(nnx.Module):
    """Features [B, n * upsample, C] and phase increments of codes [B, n] -> samples [B, n * hop]. Causal."""

    def __init__(self, config: SpeechCodecConfig, *, rngs: nnx.Rngs):
        self.n_fft, self.hop = config.head.n_fft, config.head.hop_length
        self.upsample = config.backbone.upsample
        bins = self.n_fft // 2 + 1
        self.out = Linear(config.backbone.output_dim, 3 * bins, rngs=rngs)
        quiet = jnp.concatenate([jnp.full((bins,), -3.0), jnp.zeros((bins,)), jnp.full((bins,), -3.0)])
        self.out.bias[...] = quiet  # speech is some 30 dB below full scale

    def init_stream(self, batch: int) -> dict:
        """Before the first code: unfinished windows' sum, phase, the last code's increment, windows so far."""
        none = jnp.zeros((batch,), jnp.int32)
        tail = jnp.zeros((batch, self.n_fft - self.hop), jnp.float32)
        return {"tail": tail, "phase": none, "increment": none - 1, "windows": jnp.zeros((), jnp.int32)}

    def _glide(self, previous: jax.Array, current: jax.Array) -> jax.Array:
        """Increments of codes [B, n] -> of windows [B, n * upsample], straight lines from code to code."""
        start = jnp.where(previous < 0, current[:, 0], previous)
        before = jnp.concatenate([start[:, None], current[:, :-1]], axis=1)
        share = np.arange(1, self.upsample + 1)
        mixed = before[..., None] * (self.upsample - share) + current[..., None] * share
        return (mixed // self.upsample).reshape(current.shape[0], -1)

    def _windows(self, x: jax.Array, phase: jax.Array, increments: jax.Array, first: jax.Array) -> jax.Array:
        log_pulse, angle, log_noise = jnp.split(self.out(x), 3, axis=-1)
        pulse = matmul(pulses(phase, increments, self.n_fft, self.hop), windowed_dft_basis(self.n_fft))
        at = (first + jnp.arange(x.shape[1])) % NOISE_FRAMES
        noise = jnp.take(jnp.asarray(noise_spectra(self.n_fft, self.hop)), at, axis=0)
        magnitude = jnp.minimum(jnp.exp(log_noise), MAX_MAGNITUDE)
        spectrum = _complex_product(jnp.minimum(jnp.exp(log_pulse), MAX_MAGNITUDE), angle, pulse)
        spectrum = spectrum + jnp.concatenate([magnitude, magnitude], axis=-1) * noise
        return matmul(spectrum, jnp.asarray(inverse_dft_basis(self.n_fft))) * periodic_hann(self.n_fft)

    def stream(self, state: dict, x: jax.Array, code_increments: jax.Array) -> tuple[dict, jax.Array]:
        """Next features and increments -> (state, next samples); no gradient flows to the increments."""
        batch, count, _ = x.shape
        increments = self._glide(state["increment"], code_increments)
        phase = (state["phase"][:, None] + jnp.cumsum(increments, axis=1)) & (UNITS - 1)
        y = overlap_add(self._windows(x, phase, increments, state["windows"]), self.hop)
        y = y.at[:, : state["tail"].shape[1]].add(state["tail"])
        samples = y[:, : count * self.hop].reshape(batch, count, -1) / steady_envelope(self.n_fft, self.hop)
        state = {
            "tail": y[:, count * self.hop :],
            "phase": phase[:, -1],
            "increment": code_increments[:, -1],
            "windows": (state["windows"] + count) % NOISE_FRAMES,
        }
        return state, samples.reshape(batch, -1)

    def __call__(self, x: jax.Array, code_increments: jax.Array) -> jax.Array:
        return self.stream(self.init_stream(x.shape[0]), x, code_increments)[1]
