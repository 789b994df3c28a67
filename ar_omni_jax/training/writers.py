"""What a run writes for people: WORKDIR/metrics.jsonl, TensorBoard events (without TensorFlow) and samples.

metrics.jsonl has one object a line: {"step", "kind": "train" | "validation", name: number, ...}. A resumed run first
drops the lines of steps that it will take again, so that each step stands there once. A full disk does not end
training: lines wait until they can be written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from clu import parameter_overview

from ar_omni_jax.files import replace_file
from ar_omni_jax.training.events import Events


@dataclasses.dataclass(frozen=True)
class Sample:
    """Something made by the model, to be looked at: any of text, image (uint8 [H, W, 3]) and audio (float32 [T])."""

    name: str
    text: str = ""
    image: np.ndarray | None = None
    audio: np.ndarray | None = None
    sample_rate: int = 0


def _records(text: str) -> list[tuple[str, dict]]:
    """(line, its object) of every line that is whole; a line that a kill cut short is dropped."""
    found = []
    for line in text.splitlines():
        try:
            record = json.loads(line)
            if isinstance(record["step"], int):
                found.append((line, record))
        except (ValueError, KeyError, TypeError):
            continue
    return found


def kept_lines(text: str, last_step: int, redo_validation: bool = False) -> list[str]:
    """The whole lines of a metrics.jsonl whose step is at most `last_step`.

    redo_validation: the validation of `last_step` itself will be made again, so its line goes.
    """
    again = (last_step, "validation") if redo_validation else None
    return [
        line
        for line, record in _records(text)
        if record["step"] <= last_step and (record["step"], record.get("kind")) != again
    ]


class _Lines:
    """A file that lines are added to. Those that cannot be written wait, and are written when they can be."""

    def __init__(self, path: Path, lines: Sequence[str]):
        replace_file(path, "".join(line + "\n" for line in lines).encode())
        self._path, self._waiting, self._failed = path, b"", False
        self._file = os.open(path, os.O_WRONLY)
        self._size = os.lseek(self._file, 0, os.SEEK_END)

    def add(self, line: str) -> None:
        self._waiting += line.encode() + b"\n"
        self._write()

    def _write(self) -> None:
        at = self._size
        try:
            while self._waiting:
                written = os.pwrite(self._file, self._waiting, at)
                at, self._waiting = at + written, self._waiting[written:]
            if self._failed:
                logging.warning("%s can be written again; nothing is missing in it", self._path)
            self._failed = False
        except OSError as error:
            if not self._failed:
                logging.warning(
                    "%s cannot be written (%s); training goes on, its lines wait in memory until there is room",
                    self._path,
                    error,
                )
            self._failed = True
        self._size = at  # a line of which a part was written goes on here

    def flush(self) -> None:
        self._write()
        with contextlib.suppress(OSError):
            os.fsync(self._file)

    def close(self) -> None:
        self.flush()
        os.close(self._file)
        if self._waiting:
            lines = self._waiting.count(b"\n")
            logging.warning("%s: the last %d lines could not be written and are lost", self._path, lines)


class Writers:
    """All outputs of a run that continues after `start_step`. Every other process but the first writes nothing.

    redo_validation: the validation of `start_step` will be made again. `run_seconds`: of the newest line that was
    there, also of one that is dropped; 0 for a new run.
    """

    def __init__(self, workdir: Path, start_step: int, *, primary: bool = True, redo_validation: bool = False):
        self._primary, self._workdir = primary, workdir
        self.run_seconds = 0.0
        if not primary:
            return
        path = workdir / "metrics.jsonl"
        # After a power cut a file may hold anything.
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        seconds = [record.get("run_seconds") for _, record in _records(text)]
        self.run_seconds = max((s for s in seconds if isinstance(s, float)), default=0.0)
        self._jsonl = _Lines(path, kept_lines(text, start_step, redo_validation))
        # TensorBoard hides what an interrupted run wrote for the steps that follow.
        self._board = Events(workdir / "tensorboard", purge_step=start_step + 1 if start_step else None)

    def settings(self, config: Mapping[str, Any], params: Any) -> None:
        """config.json, and parameters.txt with a line for each of `params` (arrays or their shapes)."""
        if not self._primary:
            return
        replace_file(self._workdir / "config.json", (json.dumps(config, indent=1) + "\n").encode())
        table = parameter_overview.get_parameter_overview(params, include_stats=False)
        replace_file(self._workdir / "parameters.txt", (table + "\n").encode())

    def scalars(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """One line of metrics.jsonl and the same numbers in TensorBoard under `kind`/."""
        if not self._primary:
            return
        from tensorboardX import summary

        # JSON has no NaN; null says that there was no number.
        record = {name: value if math.isfinite(value) else None for name, value in sorted(values.items())}
        self._jsonl.add(json.dumps({"step": step, "kind": kind} | record))
        for name, value in values.items():
            self._board.add(summary.scalar(f"{kind}/{name}", value), step)

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Samples in TensorBoard and as files in WORKDIR/samples/step_NNNNNNN/."""
        if not self._primary:
            return
        from tensorboardX import summary

        folder = self._workdir / "samples" / f"step_{step:07d}"
        folder.mkdir(parents=True, exist_ok=True)
        for sample in samples:
            if sample.text:
                self._board.add(summary.text(f"samples/{sample.name}", sample.text), step)
                replace_file(folder / f"{sample.name}.txt", (sample.text + "\n").encode())
            if sample.image is not None:
                self._write_image(folder, step, sample)
            if sample.audio is not None:
                self._write_audio(folder, step, sample)

    def _write_image(self, folder: Path, step: int, sample: Sample) -> None:
        from PIL import Image
        from tensorboardX import summary

        self._board.add(summary.image(f"samples/{sample.name}", sample.image, dataformats="HWC"), step)
        Image.fromarray(sample.image).save(folder / f"{sample.name}.png")

    def _write_audio(self, folder: Path, step: int, sample: Sample) -> None:
        import soundfile
        from tensorboardX import summary

        wave = np.clip(sample.audio, -1.0, 1.0)
        self._board.add(summary.audio(f"samples/{sample.name}", wave, sample_rate=sample.sample_rate), step)
        soundfile.write(folder / f"{sample.name}.wav", wave, sample.sample_rate, subtype="PCM_16")

    def flush(self) -> None:
        """Everything written so far is on disk when this returns, as far as the disk takes it."""
        if self._primary:
            self._jsonl.flush()
            self._board.flush()

    def close(self) -> None:
        if self._primary:
            self._jsonl.close()
            self._board.close()
