"""16-bit mono WAV: as bytes, and as a file that is whole at every moment while it grows."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np

_HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")


def pcm16(samples: np.ndarray) -> bytes:
    """float [T] in [-1, 1] (clipped) -> little-endian signed 16-bit samples, rounded."""
    return np.rint(np.clip(np.asarray(samples, np.float32), -1.0, 1.0) * 32767.0).astype("<i2").tobytes()


def wav_header(sample_rate: int, size: int) -> bytes:
    """The 44 bytes before `size` bytes of samples."""
    layout = (b"fmt ", 16, 1, 1, sample_rate, 2 * sample_rate, 2, 16)
    return _HEADER.pack(b"RIFF", 36 + size, b"WAVE", *layout, b"data", size)


def wav_bytes(samples: np.ndarray, sample_rate: int) -> bytes:
    """A whole file: float [T] in [-1, 1] at `sample_rate` Hz."""
    data = pcm16(samples)
    return wav_header(sample_rate, len(data)) + data


class WavWriter:
    """Appends samples to a WAV file. After each `write` the file is a whole one of what came so far: samples are on
    their way to the disk before the header counts them."""

    def __init__(self, path: str | os.PathLike, sample_rate: int):
        self.path, self.sample_rate, self.samples = Path(path), sample_rate, 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "wb")
        self._file.write(wav_header(sample_rate, 0))
        self._file.flush()

    def write(self, samples: np.ndarray) -> None:
        """float [T] in [-1, 1]."""
        self._file.seek(0, os.SEEK_END)
        self._file.write(pcm16(samples))
        self._file.flush()
        self.samples += len(samples)
        self._file.seek(0)
        self._file.write(wav_header(self.sample_rate, 2 * self.samples))
        self._file.flush()

    def close(self) -> None:
        self._file.close()
