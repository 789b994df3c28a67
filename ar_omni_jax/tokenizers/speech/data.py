"""Training audio: the WAV files that a split's manifest names, held in memory, cropped at random."""

import json
import pathlib
from collections.abc import Iterator

import numpy as np

from ar_omni_jax.tokenizers.speech.audio import AudioError, read_audio


def speech_paths(data_dir: str | pathlib.Path, split: str) -> list[pathlib.Path]:
    """Every sound file that DATA_DIR/SPLIT.jsonl names in a {"speech": path} part, once each, in order."""
    root = pathlib.Path(data_dir)
    manifest = root / f"{split}.jsonl"
    if not manifest.is_file():
        raise FileNotFoundError(f"{manifest} does not exist; data_dir must hold {split}.jsonl and its media")
    paths: dict[str, None] = {}
    with open(manifest, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                turns = json.loads(line)["turns"]
                paths.update((p["speech"], None) for turn in turns for p in turn["parts"] if "speech" in p)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{manifest}:{number}: not a manifest record ({error!r})") from error
    if not paths:
        raise ValueError(f"{manifest}: no record has a speech part, so there is nothing to train on")
    return [root / path for path in paths]


class Crops:
    """Utterances end to end as int16; batch k is a function of (seed, k) alone."""

    def __init__(self, paths: list[pathlib.Path], sample_rate: int, crop: int, batch_size: int):
        self.crop, self.batch_size = crop, batch_size
        utterances = [np.round(self._read(path, sample_rate) * 32767).astype(np.int16) for path in paths]
        self.ends = np.cumsum([len(u) for u in utterances])
        self.samples = np.concatenate(utterances)

    @staticmethod
    def _read(path: pathlib.Path, sample_rate: int) -> np.ndarray:
        try:
            return np.clip(read_audio(path, sample_rate), -1.0, 1.0)
        except AudioError as error:
            raise ValueError(f"training data: {error}") from error

    def _cut(self, rng: np.random.Generator) -> np.ndarray:
        """One crop [crop]; every sample is as likely as any other. Past an utterance's ends there is silence."""
        index = int(np.searchsorted(self.ends, rng.integers(self.ends[-1]), side="right"))
        first, last = (0 if index == 0 else int(self.ends[index - 1])), int(self.ends[index])
        slack = self.crop // 4
        start = int(rng.integers(first - slack, max(first - slack, last + slack - self.crop) + 1))
        low, high = max(start, first), min(start + self.crop, last)
        out = np.zeros(self.crop, np.float32)
        out[low - start : high - start] = self.samples[low:high] / np.float32(32768)
        return out

    def batch(self, seed: int, step: int) -> np.ndarray:
        """float32 [batch_size, crop]."""
        rng = np.random.default_rng((seed, step))
        return np.stack([self._cut(rng) for _ in range(self.batch_size)])

    def batches(self, start_step: int, seed: int) -> Iterator[np.ndarray]:
        step = start_step
        while True:
            yield self.batch(seed, step)
            step += 1
