"""Other ways to hear the same words: noise behind the user's speech, another level, another speed.

Only speech of user turns is altered, never what the model is to say. What happens to an utterance is drawn by a hash
of (seed, document, utterance): a pure function of the record, so that order, shards and workers change nothing. The
order is speed, noise, level: the ratio of speech to noise is that of the result.

Noise is any directory of sounds; DEMAND is one (ENVIRONMENT/ch01.wav .. ch16.wav). Every file is as likely as any
other, and only the stretch that is used is decoded.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from ar_omni_jax.documents import DocumentError
from ar_omni_jax.tokenizers.speech.audio import AudioError
from data_pipelines.sound import SoundSegment, read_sound
from data_pipelines.sources.listing import walk
from data_pipelines.whole_sound import check_whole

SOUNDS = (".wav", ".flac", ".mp3", ".ogg", ".opus")
MIN_NOISE = 0.1  # seconds; less is a click, not noise, and would sound as a tone when it is repeated
SILENCE = 1e-10  # mean square below which there is nothing to mix: -100 dB of full scale
TRIES = 4  # stretches of noise drawn, for the case that the first ones are silent
Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Noise:
    """One file of noise: path, samples and their rate."""

    path: str
    frames: int
    rate: int


@dataclasses.dataclass(frozen=True)
class AugmentOptions:
    """What is asked for; checked on construction, DocumentError in words.

    Attributes:
      noise: directory of sounds, "" for none. noise_snr: dB between speech and noise, mean power of each over the
        whole utterance. noise_probability: share of utterances that get noise.
      gain_db: range of the change of level. speed: range of factors; 1.1 is a tenth faster, and higher in pitch.
      seed: of all lots.
    """

    noise: str = ""
    noise_snr: Range = (5.0, 20.0)
    noise_probability: float = 0.5
    gain_db: Range | None = None
    speed: Range | None = None
    seed: int = 0

    def __post_init__(self):
        for name, lowest, highest in (("noise_snr", -60, 100), ("gain_db", -100, 100), ("speed", 0.5, 2)):
            value = getattr(self, name)
            if value is not None and not (lowest <= value[0] <= value[1] <= highest):
                raise DocumentError(
                    f"{name}: {value[0]:g},{value[1]:g} is no range from lower to higher within [{lowest}, {highest}]"
                )
        if not 0 <= self.noise_probability <= 1:
            raise DocumentError(f"noise_probability {self.noise_probability!r} must lie in [0, 1]")


@dataclasses.dataclass(frozen=True)
class Change:
    """What is done to one utterance: called with it. Plain data, so that it may go to another process.

    noise: (file, place in it from 0 to 1) to be tried in turn until one is not silent; () for none.
    """

    speed: float = 1.0
    noise: tuple[tuple[Noise, float], ...] = ()
    snr_db: float = 0.0
    gain_db: float = 0.0

    def __call__(self, wave: np.ndarray, rate: int) -> np.ndarray:
        """float32 [T] at `rate` Hz -> float32 [about T / speed]; never beyond [-1, 1] by its doing.

        Silence gets no noise: there is nothing that the noise could be in proportion to. Raises AudioError when the
        noise cannot be used.
        """
        if self.speed != 1:
            faster = soxr.resample(wave, self.speed * rate, rate)
            wave = faster if faster.size else wave
        power = _power(wave)
        if self.noise and power > SILENCE:
            noise = self._noise(len(wave), rate)
            wave = wave + np.float32(math.sqrt(power / _power(noise) / 10 ** (self.snr_db / 10))) * noise
        wave = wave * np.float32(10 ** (self.gain_db / 20))
        peak = float(np.abs(wave).max())
        return (wave / np.float32(peak) if peak > 1 else wave).astype(np.float32)

    def _noise(self, count: int, rate: int) -> np.ndarray:
        for file, place in self.noise:
            noise = stretch(file, place, count, rate)
            if _power(noise) > SILENCE:
                return noise
        paths = ", ".join(sorted({file.path for file, _ in self.noise}))
        raise AudioError(f"noise is silent wherever it was tried ({paths}); take silent files out of --noise")


class Augmenter:
    """Draws the change of each utterance. `record`: plain JSON of all that decides it, for comparing builds."""

    def __init__(self, options: AugmentOptions):
        self.options = options
        self._noises, digest = list_noises(options.noise) if options.noise else ([], "")
        self.record: dict[str, Any] = {"seed": options.seed}
        if options.noise:
            self.record |= {
                "noise": digest,
                "noise_snr": list(options.noise_snr),
                "noise_probability": options.noise_probability,
            }
        for name in ("gain_db", "speed"):
            value = getattr(options, name)
            if value is not None:
                self.record[name] = list(value)

    def change(self, document: str, number: int) -> Change | None:
        """Of medium `number` of the document with that id; None when it stays as it is."""
        seed = f"{self.options.seed}/{number}/{document}".encode("utf-8", "surrogatepass")
        data = np.frombuffer(hashlib.shake_256(seed).digest(8 * (4 + 2 * TRIES)), "<u8")
        lots = ((data >> 11) / 2.0**53).tolist()  # each in [0, 1); each has its use, whatever else is asked for
        speed, gain, chosen, snr = lots[:4]
        noise: list[tuple[Noise, float]] = []
        if self._noises and chosen < self.options.noise_probability:
            for which, place in zip(lots[4::2], lots[5::2], strict=True):
                noise.append((self._noises[int(which * len(self._noises))], place))
        change = Change(
            _within(self.options.speed, speed, 1.0),
            tuple(noise),
            _within(self.options.noise_snr, snr, 0.0) if noise else 0.0,
            _within(self.options.gain_db, gain, 0.0),
        )
        return change if change != Change() else None


def _within(limits: Range | None, lot: float, otherwise: float) -> float:
    return otherwise if limits is None else limits[0] + lot * (limits[1] - limits[0])


def _power(wave: np.ndarray) -> float:
    return float(np.mean(np.square(wave, dtype=np.float64)))


def list_noises(folder: str | os.PathLike) -> tuple[list[Noise], str]:
    """The sounds below a directory in order of their names, and a digest of names and sizes.

    Only headers are read. Raises DocumentError naming every file that cannot be used.
    """
    root = Path(folder)
    below = walk(root) if root.is_dir() else ()
    paths = sorted(place / name for place, _, files in below for name in files if name.lower().endswith(SOUNDS))
    if not paths:
        raise DocumentError(
            f"noise: {folder} has no sounds ({', '.join(SOUNDS)}) in it or below; name another directory"
        )
    found, wrong, digest = [], [], hashlib.sha256()
    for path in paths:
        try:
            check_whole(path)
            info = soundfile.info(str(path))
        except (AudioError, soundfile.SoundFileError, RuntimeError, OSError) as e:
            wrong.append(str(e) if str(path) in str(e) else f"{path} cannot be decoded ({e})")
            continue
        if info.frames < MIN_NOISE * info.samplerate:
            wrong.append(f"{path} has {info.frames / info.samplerate:g} s, less than {MIN_NOISE} s")
        name = path.relative_to(root).as_posix()
        digest.update(f"{name}\0{path.stat().st_size}\0".encode(errors="surrogateescape"))
        found.append(Noise(str(path), info.frames, info.samplerate))
    if wrong:
        raise DocumentError(
            f"noise: {len(wrong)} of {len(paths)} sounds cannot be used; take them out: {'; '.join(wrong[:5])}"
        )
    return found, digest.hexdigest()[:16]


def stretch(noise: Noise, place: float, count: int, rate: int) -> np.ndarray:
    """float32 [count] at `rate` Hz from the file, begun at a `place` in [0, 1) of where it can begin.

    A file shorter than that begins at `place` of its length and is repeated.
    """
    needed = math.ceil(count * noise.rate / rate) + 1  # one more, for rounding while resampling
    if needed < noise.frames:
        start = int(place * (noise.frames - needed + 1))
        cut = read_sound(SoundSegment(noise.path, start / noise.rate, (start + needed) / noise.rate), rate)
        return np.resize(cut, count)
    whole = read_sound(noise.path, rate)
    return np.resize(np.roll(whole, -int(place * len(whole))), count)


# -- command line --------------------------------------------------------------------------------------------
AUGMENT_FLAGS = ("noise", "noise_snr", "noise_probability", "gain_db", "speed", "augment_seed")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that `parse_augmenter` takes."""
    flags = parser.add_argument_group("heard speech", "changes of the user's speech; what the model says stays clean")
    flags.add_argument("--noise", default="", help="directory of sounds to mix in, such as DEMAND")
    flags.add_argument("--noise_snr", default="", help="range of the ratio of speech to noise in dB; default 5,20")
    flags.add_argument("--noise_probability", type=float, help="share of utterances that get noise; default 0.5")
    flags.add_argument("--gain_db", default="", help="range of the change of level in dB, as -6,3")
    flags.add_argument("--speed", default="", help="range of factors of speed, as 0.9,1.1")
    flags.add_argument("--augment_seed", type=int, default=0, help="decides the noise, level and speed of each")


def parse_augmenter(args: Mapping[str, Any]) -> Augmenter | None:
    """From parsed flags, None when nothing is asked for; DocumentError naming the flag that is wrong."""
    given = {name: args[name] for name in AUGMENT_FLAGS if args[name] not in ("", None)}
    seed = given.pop("augment_seed")
    if not given:
        return None
    if "noise" not in given and not given.keys().isdisjoint(("noise_snr", "noise_probability")):
        raise DocumentError("noise_snr and noise_probability say how noise is mixed in: name its directory by --noise")
    for name in ("noise_snr", "gain_db", "speed"):
        if name in given:
            given[name] = _parse_range(name, given[name])
    return Augmenter(AugmentOptions(**given, seed=seed))


def _parse_range(name: str, text: str) -> Range:
    try:
        low, high = (float(piece) for piece in text.split(","))
    except ValueError as e:
        raise DocumentError(f"{name}: {text!r} must be two numbers, as --{name}=0.9,1.1") from e
    return low, high
