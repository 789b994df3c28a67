"""Utterances as sources name them: a whole sound, or a segment of a long file that is read by seeking to it."""

from __future__ import annotations

import dataclasses
import io
import math
import os
from typing import Any

import numpy as np
import soundfile

from ar_omni_jax.tokenizers.speech.audio import AudioError, read_audio
from data_pipelines.whole_sound import check_whole

# Seconds that a listed segment may reach past the end of its file: listings are rounded, codecs pad.
END_TOLERANCE = 0.5
# Seconds decoded before a segment and thrown away: a frame of MP3 needs what frames before it left over.
LEAD = 0.5
# Bytes of a file from which on `seconds_of` reads its header: 15 seconds of the lowest rates that codecs are used at.
_READ_HEADER = 16 << 10


@dataclasses.dataclass(frozen=True)
class SoundSegment:
    """Seconds [begin, end) of the sound file `path`; may stand wherever a path of a sound may."""

    path: str
    begin: float
    end: float

    def __str__(self) -> str:
        return f"{self.path} [{self.begin:g} s, {self.end:g} s)"


def read_sound(value: Any, sample_rate: int) -> np.ndarray:
    """A path, bytes, samples or SoundSegment -> mono float32 [T] at `sample_rate` Hz.

    Of a segment only its own samples and half a second before them are decoded. Raises AudioError as `read_audio`
    does, for a file that was cut short, and for a segment that its file does not have.
    """
    if not isinstance(value, SoundSegment):
        if not isinstance(value, np.ndarray):
            check_whole(value)
        return read_audio(value, sample_rate)
    samples, rate = _cut(value)
    return read_audio(samples, sample_rate, source_rate=rate)


def seconds_of(value: Any, sample_rate: int) -> float:
    """How long a sound is before it is decoded: a path, bytes, samples at `sample_rate` Hz or SoundSegment.

    From headers alone, and 0 for what is small, missing or damaged: `read_sound` will say what is wrong with it.
    """
    if isinstance(value, SoundSegment):
        return max(0.0, value.end - value.begin) if math.isfinite(value.end - value.begin) else 0.0
    if isinstance(value, np.ndarray):
        return max(value.shape, default=0) / sample_rate
    encoded = isinstance(value, bytes | bytearray | memoryview)
    try:
        if (len(value) if encoded else os.path.getsize(value)) < _READ_HEADER:
            return 0.0
        return soundfile.info(io.BytesIO(value) if encoded else os.fspath(value)).duration
    except (soundfile.SoundFileError, RuntimeError, OSError, ValueError, ZeroDivisionError):
        return 0.0


def _cut(segment: SoundSegment) -> tuple[np.ndarray, int]:
    """float32 [T, channels] of the segment at the file's own rate, and that rate."""
    if not (0 <= segment.begin < segment.end < math.inf):
        raise AudioError(f"{segment}: a segment must begin at 0 s or later and end after its beginning")
    if not os.path.isfile(segment.path):
        raise AudioError(f"audio file {segment.path}: does not exist; check the path in the listing")
    try:
        with soundfile.SoundFile(segment.path) as file:
            rate, frames = file.samplerate, file.frames
            start, stop = round(segment.begin * rate), round(segment.end * rate)
            if stop > frames + END_TOLERANCE * rate or start >= frames:
                raise AudioError(
                    f"{segment}: the file has only {frames / rate:g} s; was it copied or downloaded whole?"
                )
            stop = max(start + 1, min(stop, frames))
            lead = min(start, round(LEAD * rate))
            file.seek(start - lead)
            samples = file.read(lead + stop - start, dtype="float32", always_2d=True)[lead:]
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise AudioError(f"{segment}: cannot be decoded ({error}); WAV, FLAC, OGG and MP3 are understood") from error
    if len(samples) < stop - start:
        raise AudioError(
            f"{segment}: decoding stops after {len(samples)} of {stop - start} samples; the file is damaged or cut "
            "short, copy it again"
        )
    return samples, rate
