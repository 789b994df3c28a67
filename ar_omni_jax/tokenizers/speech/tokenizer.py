"""`SpeechTokenizer`: the codec as the rest of the program uses it, NumPy in and NumPy out."""

import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ar_omni_jax.tokenizers.speech import weights
from ar_omni_jax.tokenizers.speech.codec import SpeechCodec

BATCH_SECONDS = 48  # audio encoded by one call, padding included
CHUNK = 64  # codes; causal decoding is cut into pieces of powers of two up to this


def bucket(frames: int) -> int:
    """The next of 40, 80, 120, 160, 240, 320, 480, 640, ... codes: few programs to compile, little padding."""
    size = 40
    while size < frames:
        size *= 2
    return size * 3 // 4 if size > 80 and frames <= size * 3 // 4 else size


class SpeechTokenizer:
    """Waveforms <-> codes in [0, codebook_size), `hop_length` samples a code at `sample_rate` Hz."""

    def __init__(self, codec: SpeechCodec, identity: str, record: dict | None = None):
        self.codec, self.identity, self.record = codec, identity, record or {}
        graph, self._state = nnx.split(codec)
        self._encode = jax.jit(lambda state, wav, lengths: nnx.merge(graph, state).encode(wav, lengths))
        self._decode = jax.jit(lambda state, codes: nnx.merge(graph, state).decode(codes))
        self._stream = jax.jit(lambda state, past, codes: nnx.merge(graph, state).decode_stream(past, codes))

    @classmethod
    def load(cls, path_prefix: str | os.PathLike) -> "SpeechTokenizer":
        """From `<path_prefix>.safetensors` and `<path_prefix>.json`."""
        codec, record = weights.load(path_prefix)
        return cls(codec, record["identity"], record)

    @property
    def sample_rate(self) -> int:
        return self.codec.config.sample_rate

    @property
    def hop_length(self) -> int:
        return self.codec.config.hop_length

    @property
    def codebook_size(self) -> int:
        return self.codec.config.codebook_size

    def _checked(self, wav: np.ndarray, index: int) -> np.ndarray:
        wav = np.asarray(wav)
        if wav.ndim != 1 or not wav.size or wav.dtype.kind != "f":
            raise ValueError(
                f"encode: item {index} is {wav.dtype}{list(wav.shape)}; mono float samples [T > 0] are needed "
                "(read_audio makes them)"
            )
        if not np.isfinite(wav).all():
            raise ValueError(f"encode: item {index} has NaN or infinite samples")
        return wav.astype(np.float32, copy=False)

    def encode_batch(self, wavs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """float32 [T] each -> int32 [ceil(T / hop)] each.

        Neighbours in length are encoded together, padded on the right, which changes no code: a causal codec does
        not look there, and the others' layers are told where each row ends.
        """
        wavs = [self._checked(wav, index) for index, wav in enumerate(wavs)]
        hop = self.hop_length
        groups: dict[int, list[int]] = {}  # padded length in samples: items
        for index, wav in enumerate(wavs):
            groups.setdefault(bucket(-(-len(wav) // hop)) * hop, []).append(index)
        results: list[np.ndarray | None] = [None] * len(wavs)
        for samples, members in groups.items():
            rows = max(1, BATCH_SECONDS * self.sample_rate // samples)
            rows = rows if len(members) > rows // 8 else 1  # two programs a length: one by one, or a full batch
            for start in range(0, len(members), rows):
                chosen = members[start : start + rows]
                batch, lengths = np.zeros((rows, samples), np.float32), np.full(rows, samples, np.int32)
                for row, index in enumerate(chosen):
                    lengths[row] = len(wavs[index])
                    batch[row, : lengths[row]] = wavs[index]
                codes = np.asarray(self._encode(self._state, batch, None if self.codec.config.causal else lengths))
                for row, index in enumerate(chosen):
                    results[index] = codes[row, : -(-len(wavs[index]) // hop)].astype(np.int32)
        return results

    def encode(self, wav: np.ndarray) -> np.ndarray:
        """float32 [T] -> int32 [ceil(T / hop)]."""
        return self.encode_batch([wav])[0]

    def checked_codes(self, codes: np.ndarray) -> np.ndarray:
        """Integers [n] as int32; ValueError for another shape or type, or a code outside the codebook."""
        codes = np.asarray(codes)
        if codes.ndim != 1 or (codes.size and codes.dtype.kind not in "iu"):
            raise ValueError(f"decode: codes must be integers [n], got {codes.dtype}{list(codes.shape)}")
        if codes.size and not (0 <= codes.min() and codes.max() < self.codebook_size):
            raise ValueError(
                f"decode: codes lie in [{codes.min()}, {codes.max()}], the codebook has 0..{self.codebook_size - 1}"
            )
        return codes.astype(np.int32)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """int [n] -> float32 [n * hop]; n = 0 gives no samples."""
        codes = self.checked_codes(codes)
        if not codes.size:
            return np.zeros(0, np.float32)
        padded = codes
        if self.codec.config.causal:  # later codes cannot change earlier samples
            padded = np.pad(codes, (0, bucket(len(codes)) - len(codes)))
        samples = self._decode(self._state, padded[None])
        return np.asarray(samples[0, : len(codes) * self.hop_length])

    def init_stream(self) -> dict:
        """State of `decode_stream` before the first code; raises for a codec that is not causal."""
        return self.codec.init_stream(1)

    def decode_stream(self, state: dict, codes: np.ndarray) -> tuple[dict, np.ndarray]:
        """Next codes int [n] -> (state, the next float32 [n * hop]); together equal to `decode` of all codes.

        Any n: pieces of powers of two are decoded, so seven programs serve all chunk sizes.
        """
        codes, pieces = self.checked_codes(codes), [np.zeros(0, np.float32)]
        while codes.size:
            size = min(CHUNK, 1 << codes.size.bit_length() - 1)
            state, samples = self._stream(self._state, state, jnp.asarray(codes[None, :size]))
            pieces.append(np.asarray(samples[0]))
            codes = codes[size:]
        return state, np.concatenate(pieces)
