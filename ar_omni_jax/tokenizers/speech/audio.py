"""Sound files, bytes or arrays to mono float32 at one sample rate, with errors a person can act on."""

import io
import numbers
import os

import numpy as np
import soundfile
import soxr

MAX_SAMPLES = 1 << 28
"""Longest sound, in samples of all its channels and after resampling: three hours at 24 kHz. Else a few kilobytes of
compressed silence, or of sound that claims a rate of 1 Hz, would become gigabytes."""
MAX_RATE = 1e9  # Hz; far beyond it the resampler never returns


class AudioError(ValueError):
    """The message says which input is unusable and why."""


def _check_length(where: str, frames: int, channels: int, rate: float, sample_rate: int) -> None:
    if not isinstance(rate, numbers.Real) or not 0 < rate <= MAX_RATE:
        raise AudioError(f"{where}: its rate is {rate!r} Hz; give a positive number up to {MAX_RATE:g}")
    if max(frames * channels, frames * sample_rate / rate) > MAX_SAMPLES:
        raise AudioError(
            f"{where}: {frames} x {channels} samples at {rate} Hz are more than {MAX_SAMPLES}, as they are or at "
            f"{sample_rate} Hz; cut it first"
        )


def _decode(source: str | os.PathLike | bytes, sample_rate: int) -> tuple[np.ndarray, int, str]:
    if isinstance(source, bytes | bytearray | memoryview):
        where, stream = f"audio bytes ({len(source)})", io.BytesIO(source)
        if not len(source):
            raise AudioError("audio bytes: empty; there is no sound to read")
    else:
        where = stream = os.fspath(source)
        if not os.path.exists(where):
            raise AudioError(f"audio file {where}: does not exist; check the path in the manifest")
        if not os.path.isfile(where) or not os.path.getsize(where):
            raise AudioError(f"audio file {where}: is not a file, or has 0 bytes")
        where = f"audio file {where}"
    try:
        with soundfile.SoundFile(stream) as sound:
            rate = sound.samplerate
            _check_length(where, sound.frames, sound.channels, rate, sample_rate)
            samples = sound.read(dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError) as error:
        reason = getattr(error, "error_string", error)  # its text also has the address of bytes in memory
        raise AudioError(f"{where}: cannot be decoded ({reason}); WAV, FLAC, OGG and MP3 are understood") from error
    return samples, rate, where


def read_audio(
    source: str | os.PathLike | bytes | np.ndarray, sample_rate: int, *, source_rate: int | None = None
) -> np.ndarray:
    """Mono float32 [T] in [-1, 1] at `sample_rate` Hz.

    source: a path, an encoded file's bytes, or samples [T] or [T, channels]: float in [-1, 1], or a signed
    integer type scaled by its range. Arrays are taken to be at `source_rate` (default `sample_rate`).
    Channels are averaged; other rates are resampled (soxr, high quality). Levels are kept as they are.
    Raises AudioError for what is missing, empty, undecodable, too long, or not finite.
    """
    if isinstance(source, np.ndarray):
        samples, where = source, f"audio array {source.dtype}{list(source.shape)}"
        rate = sample_rate if source_rate is None else source_rate
        if samples.ndim not in (1, 2) or samples.dtype.kind not in "fi":
            raise AudioError(f"{where}: expected float or signed integer samples [T] or [T, channels]")
        if samples.dtype == np.int64:  # of another library's integers: their range is not that of the sound
            raise AudioError(f"{where}: the range of 64-bit samples is unknown; give int16, int32 or float in [-1, 1]")
        if samples.ndim == 2 and 0 < samples.shape[0] < samples.shape[1]:
            raise AudioError(f"{where}: more channels than samples; give samples [T, channels] (transpose it)")
        _check_length(where, samples.shape[0], samples[:1].size, rate, sample_rate)
        scale = float(-np.iinfo(samples.dtype).min) if samples.dtype.kind == "i" else 1.0
        samples = samples.astype(np.float32) / np.float32(scale)
        samples = samples[:, None] if samples.ndim == 1 else samples
    else:
        samples, rate, where = _decode(source, sample_rate)
    if not samples.size:
        raise AudioError(f"{where}: has no samples")
    if not np.isfinite(samples).all():
        raise AudioError(f"{where}: {int((~np.isfinite(samples)).sum())} samples are NaN or infinite")
    mono = samples.mean(axis=1, dtype=np.float32)
    if rate != sample_rate:
        mono = soxr.resample(mono, rate, sample_rate).astype(np.float32)
        if not mono.size:
            raise AudioError(f"{where}: too short to resample from {rate} to {sample_rate} Hz")
    return np.ascontiguousarray(mono)
