"""Spectral losses between waveforms: log-mel and linear magnitudes at several window lengths.

Phase is not compared: two magnitudes spectrograms at overlapping windows already fix a waveform up to
what is hard to hear, and a codec at 40 tokens/s has no bits for the phase of the original.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ar_omni_jax.tokenizers.speech.head import periodic_hann

# (window, hop, mel bands): short windows for onsets and formants, long ones for harmonics.
RESOLUTIONS = ((256, 64, 40), (512, 128, 80), (1024, 256, 100))
LOG_FLOOR = 3e-4  # about the magnitude of 16-bit rounding noise; keeps silence from ruling the logarithm


def mel_filterbank(bins: int, bands: int, sample_rate: int) -> np.ndarray:
    """Triangles evenly spaced on the mel scale 2595 log10(1 + f / 700), area 1: float32 [bins, bands]."""
    top = 2595.0 * np.log10(1.0 + sample_rate / 2 / 700.0)
    edges = 700.0 * (10.0 ** (np.linspace(0.0, top, bands + 2) / 2595.0) - 1.0)
    edges = edges / (sample_rate / 2) * (bins - 1)
    # A narrow triangle still reaches the bins on both sides of its centre.
    centre = edges[1:-1]
    low = np.minimum(edges[:-2], centre - 1.0)
    high = np.maximum(edges[2:], centre + 1.0)
    position = np.arange(bins)[:, None]
    rising, falling = (position - low) / (centre - low), (high - position) / (high - centre)
    weights = np.maximum(0.0, np.minimum(rising, falling))
    return (weights / weights.sum(axis=0)).astype(np.float32)


@functools.lru_cache
def _dft_basis(n_fft: int) -> np.ndarray:
    """Windowed real and imaginary DFT, scaled so that a full-scale sine has magnitude 1/2."""
    window = periodic_hann(n_fft)
    angle = 2 * np.pi * np.outer(np.arange(n_fft), np.arange(n_fft // 2 + 1)) / n_fft
    basis = np.concatenate([np.cos(angle), -np.sin(angle)], axis=1) * (window / window.sum())[:, None]
    return basis.astype(np.float32)


def frame(wav: jax.Array, size: int, hop: int) -> jax.Array:
    """[B, T] -> [B, (T - size) // hop + 1, size]; size must be a multiple of hop."""
    parts, count = size // hop, (wav.shape[1] - size) // hop + 1
    blocks = wav[:, : (count + parts - 1) * hop].reshape(wav.shape[0], -1, hop)
    return jnp.concatenate([blocks[:, j : j + count] for j in range(parts)], axis=-1)


def magnitudes(wav: jax.Array, n_fft: int, hop: int) -> jax.Array:
    """[B, T] -> [B, F, n_fft / 2 + 1]; frames lie wholly inside the signal."""
    frames = frame(wav, n_fft, hop)
    if n_fft <= 256:  # a product with the DFT basis is faster than short FFTs
        real, imaginary = jnp.split(frames @ jnp.asarray(_dft_basis(n_fft)), 2, axis=-1)
    else:
        window = periodic_hann(n_fft)
        spectrum = jnp.fft.rfft(frames * (window / window.sum()))
        real, imaginary = spectrum.real, spectrum.imag
    return jnp.sqrt(real**2 + imaginary**2 + 1e-10)


def spectral_losses(predicted: jax.Array, target: jax.Array, sample_rate: int) -> dict[str, jax.Array]:
    """Waveforms [B, T] -> means over resolutions: {"mel": L1 of log-mel, "stft": L1 of log magnitudes}."""
    mel = stft = 0.0
    for n_fft, hop, bands in RESOLUTIONS:
        both = magnitudes(jnp.concatenate([predicted, target]), n_fft, hop)
        filterbank = jnp.asarray(mel_filterbank(n_fft // 2 + 1, bands, sample_rate))
        a, b = jnp.split(jnp.log(both @ filterbank + LOG_FLOOR), 2)
        mel += jnp.mean(jnp.abs(a - b)) / len(RESOLUTIONS)
        a, b = jnp.split(jnp.log(both + LOG_FLOOR), 2)
        stft += jnp.mean(jnp.abs(a - b)) / len(RESOLUTIONS)
    return {"mel": mel, "stft": stft}


@functools.partial(jax.jit, static_argnums=2)
def mel_distance(predicted: jax.Array, target: jax.Array, sample_rate: int) -> jax.Array:
    """Mean L1 distance of log-mel spectra (natural logarithm), over all resolutions: a scalar."""
    return spectral_losses(predicted, target, sample_rate)["mel"]
