"""What a run writes for people: WORKDIR/metrics.jsonl, TensorBoard events (without TensorFlow) and samples.

metrics.jsonl has one object a line: {"step", "kind": "train" | "validation", name: number, ...}. A resumed run first
drops the lines of steps that it will take again, so that each step stands there once.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ar_omni_jax.files import replace_file


@dataclasses.dataclass(frozen=True)
class Sample:
    """Something made by the model, to be looked at: any of text, image (uint8 [H, W, 3]) and audio (float32 [T])."""

    name: str
    text: str = ""
    image: np.ndarray | None = None
    audio: np.ndarray | None = None
    sample_rate: int = 0


def kept_lines(text: str, last_step: int) -> list[str]:
    """The lines of a metrics.jsonl whose step is at most `last_step`; a line that a kill cut short is dropped."""
    kept = []
    for line in text.splitlines():
        try:
            if json.loads(line)["step"] <= last_step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    return kept


class Writers:
    """All outputs of a run that continues after `start_step`. Every other process but the first writes nothing."""

    def __init__(self, workdir: Path, start_step: int, *, primary: bool = True):
        self._primary, self._workdir = primary, workdir
        if not primary:
            return
        from tensorboardX import SummaryWriter

        path = workdir / "metrics.jsonl"
        lines = kept_lines(path.read_text(), start_step) if path.exists() else []
        replace_file(path, "".join(line + "\n" for line in lines).encode())
        self._jsonl = open(path, "a", encoding="utf-8")
        # TensorBoard hides what an interrupted run wrote for the steps that follow.
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step + 1 if start_step else None)

    def scalars(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """One line of metrics.jsonl and the same numbers in TensorBoard under `kind`/."""
        if not self._primary:
            return
        # JSON has no NaN; null says that there was no number.
        record = {name: value if math.isfinite(value) else None for name, value in sorted(values.items())}
        self._jsonl.write(json.dumps({"step": step, "kind": kind} | record) + "\n")
        self._jsonl.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)

    def text(self, step: int, name: str, text: str) -> None:
        """A text for TensorBoard, such as the config."""
        if self._primary:
            self._board.add_text(name, text, step)

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Samples in TensorBoard and as files in WORKDIR/samples/step_NNNNNNN/."""
        if not self._primary:
            return
        folder = self._workdir / "samples" / f"step_{step:07d}"
        folder.mkdir(parents=True, exist_ok=True)
        for sample in samples:
            if sample.text:
                self._board.add_text(f"samples/{sample.name}", sample.text, step)
                replace_file(folder / f"{sample.name}.txt", (sample.text + "\n").encode())
            if sample.image is not None:
                self._write_image(folder, step, sample)
            if sample.audio is not None:
                self._write_audio(folder, step, sample)

    def _write_image(self, folder: Path, step: int, sample: Sample) -> None:
        from PIL import Image

        self._board.add_image(f"samples/{sample.name}", sample.image, step, dataformats="HWC")
        Image.fromarray(sample.image).save(folder / f"{sample.name}.png")

    def _write_audio(self, folder: Path, step: int, sample: Sample) -> None:
        import soundfile

        wave = np.clip(sample.audio, -1.0, 1.0)
        self._board.add_audio(f"samples/{sample.name}", wave, step, sample_rate=sample.sample_rate)
        soundfile.write(folder / f"{sample.name}.wav", wave, sample.sample_rate, subtype="PCM_16")

    def flush(self) -> None:
        """Everything written so far is on disk when this returns."""
        if self._primary:
            self._jsonl.flush()
            os.fsync(self._jsonl.fileno())
            self._board.flush()

    def close(self) -> None:
        if self._primary:
            self.flush()
            self._jsonl.close()
            self._board.close()
