"""Fundamental frequency of speech by autocorrelation: the target of the codec's pitch reader."""

import jax
import jax.numpy as jnp
import numpy as np

from ar_omni_jax.tokenizers.speech.source import HIGHEST, LOWEST

WINDOW_SECONDS = 0.04


def estimate_pitch(wav: jax.Array, centres: np.ndarray, sample_rate: int) -> tuple[jax.Array, jax.Array]:
    """[B, T] and sample positions [n] -> (log2 Hz [B, n], confidence in [0, 1] [B, n]).

    The peak of the autocorrelation, corrected for the shrinking overlap, between LOWEST and HIGHEST Hz; of
    nearly equal peaks the shortest period wins. Confidence is 0 in silence and below a correlation of 0.5.
    """
    size = round(WINDOW_SECONDS * sample_rate)
    shortest, longest = int(sample_rate / HIGHEST), int(sample_rate / LOWEST)
    wav = jnp.pad(wav, ((0, 0), (size, size)))
    frames = wav[:, np.asarray(centres)[:, None] + size // 2 + np.arange(size)]
    frames = frames - jnp.mean(frames, axis=-1, keepdims=True)
    n_fft = 1 << (size + longest).bit_length()
    power = jnp.abs(jnp.fft.rfft(frames, n_fft)) ** 2
    correlation = jnp.fft.irfft(power, n_fft)[..., : longest + 2]
    energy = correlation[..., :1]
    lags = np.arange(longest + 2)
    correlation = correlation / (energy + 1e-6) * (size / (size - lags))
    searched = correlation[..., shortest : longest + 1] * (1.0 - 5e-4 * lags[shortest : longest + 1])
    best = jnp.argmax(searched, axis=-1) + shortest
    left, peak, right = (jnp.take_along_axis(correlation, best[..., None] + d, -1)[..., 0] for d in (-1, 0, 1))
    bend = left - 2 * peak + right
    shift = jnp.where(bend < -1e-6, 0.5 * (left - right) / jnp.where(bend < -1e-6, bend, 1.0), 0.0)
    log2_pitch = jnp.log2(sample_rate / (best + jnp.clip(shift, -0.5, 0.5)))
    loud = energy[..., 0] / size > 1e-5
    return log2_pitch, jnp.where(loud, jnp.clip((peak - 0.5) / 0.3, 0.0, 1.0), 0.0)
