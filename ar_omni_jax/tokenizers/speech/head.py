"""iSTFT head: features to log-magnitude and phase, to windows, to overlapped samples."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ar_omni_jax.tokenizers.speech.backbone import Linear
from ar_omni_jax.tokenizers.speech.config import SpeechCodecConfig
from ar_omni_jax.tokenizers.speech.convolution import matmul

MAX_MAGNITUDE = 100.0


def periodic_hann(length: int) -> np.ndarray:
    """float32 [length], one period of the raised cosine without its repeated end point."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)).astype(np.float32)


def inverse_dft_basis(n_fft: int) -> np.ndarray:
    """float32 [2 * bins, n_fft]: [real | imaginary] @ basis = irfft, as one matrix product."""
    bins = n_fft // 2 + 1
    weight = np.full((bins, 1), 2.0 / n_fft)
    weight[0] = 1.0 / n_fft
    if n_fft % 2 == 0:
        weight[-1] = 1.0 / n_fft
    angle = 2 * np.pi * np.outer(np.arange(bins), np.arange(n_fft)) / n_fft
    return np.concatenate([weight * np.cos(angle), -weight * np.sin(angle)]).astype(np.float32)


def steady_envelope(n_fft: int, hop: int) -> np.ndarray:
    """Sum of the squared windows over any sample far from the ends, float32 [hop]."""
    return np.square(periodic_hann(n_fft)).reshape(-1, hop).sum(axis=0)


def overlap_add(frames: jax.Array, hop: int) -> jax.Array:
    """[B, F, n_fft] windows placed every `hop` samples -> [B, (F + n_fft / hop - 1) * hop]."""
    batch, count, n_fft = frames.shape
    parts = n_fft // hop
    pieces = frames.reshape(batch, count, parts, hop)
    shifted = [jnp.pad(pieces[:, :, j], ((0, 0), (j, parts - 1 - j), (0, 0))) for j in range(parts)]
    return sum(shifted).reshape(batch, -1)


class ISTFTHead(nnx.Module):
    """Linear to 2 * (n_fft / 2 + 1) values a frame, inverse DFT, Hann window, overlap-add.

    Non-causal ("same"): trims (n_fft - hop) / 2 samples each side and divides by the envelope of the
    squared windows. Causal: window j starts at sample j * hop, so a sample is complete once the frame
    whose hop it lies in is; the steady envelope is used from the first sample on.
    """

    def __init__(self, config: SpeechCodecConfig, *, rngs: nnx.Rngs):
        self.n_fft, self.hop, self.causal = config.head.n_fft, config.head.hop_length, config.causal
        self.out = Linear(config.backbone.output_dim, self.n_fft + 2, rngs=rngs)

    def windows(self, x: jax.Array) -> jax.Array:
        """Features [B, F, C] -> windowed segments [B, F, n_fft]."""
        log_magnitude, phase = jnp.split(self.out(x), 2, axis=-1)
        magnitude = jnp.minimum(jnp.exp(log_magnitude), MAX_MAGNITUDE)
        spectrum = jnp.concatenate([magnitude * jnp.cos(phase), magnitude * jnp.sin(phase)], axis=-1)
        return matmul(spectrum, jnp.asarray(inverse_dft_basis(self.n_fft))) * periodic_hann(self.n_fft)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, F, C] -> samples [B, F * hop]."""
        batch, count, _ = x.shape
        if self.causal:
            return self.stream(self.init_stream(batch), x)[1]
        y = overlap_add(self.windows(x), self.hop)
        squared = np.square(periodic_hann(self.n_fft))
        envelope = overlap_add(jnp.broadcast_to(squared, (1, count, self.n_fft)), self.hop)
        trim = (self.n_fft - self.hop) // 2
        return (y / jnp.where(envelope > 1e-11, envelope, 1.0))[:, trim : trim + count * self.hop]

    def init_stream(self, batch: int) -> jax.Array:
        """Sum of windows that reach beyond the samples given out so far: [B, n_fft - hop] zeros."""
        return jnp.zeros((batch, self.n_fft - self.hop), jnp.float32)

    def stream(self, state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Causal codecs: next features [B, F, C] -> next F * hop samples."""
        batch, count, _ = x.shape
        y = overlap_add(self.windows(x), self.hop)
        y = y.at[:, : state.shape[1]].add(state)
        done, state = y[:, : count * self.hop], y[:, count * self.hop :]
        return state, (done.reshape(batch, count, -1) / steady_envelope(self.n_fft, self.hop)).reshape(batch, -1)
