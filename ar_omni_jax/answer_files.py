"""Answers on their way to files and to the terminal: what the `generate` command writes, and when."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import numpy as np

from ar_omni_jax.answer_stream import Piece
from ar_omni_jax.documents import Part, Turn
from ar_omni_jax.history import write_history
from ar_omni_jax.inference import Answer
from ar_omni_jax.predictor import Predictor
from ar_omni_jax.tokenizers.speech.wav import WavWriter, pcm16
from ar_omni_jax.vocabulary import Modality


class AnswerFiles:
    """Files `directory`/NAME.* of several requests.

    live: None writes everything when an answer is complete; "file" writes sound as it comes, the first speech part
    to NAME.wav, the next to NAME-1.wav ...; "-" writes it as raw samples to standard output, and messages to
    standard error. The text of a single live request is printed as it comes.
    """

    def __init__(self, directory: Path, names: Sequence[str], *, live: str | None, predictor: Predictor):
        self.directory, self.names, self.live, self.predictor = directory, list(names), live, predictor
        self.failed = 0
        self._terminal = sys.stderr if live == "-" else sys.stdout
        self._writers: dict[int, dict[int, WavWriter]] = {}  # request -> part -> its file
        self._records: dict[int, dict] = {}
        self._printing: int | None = None  # the part whose text stands on the last line
        self._player = live == "-"

    def say(self, line: str, end: str = "\n") -> None:
        _tell(self._terminal, line, end)

    def add(self, index: int, piece: Piece) -> None:
        """A piece that came before the answer was complete."""
        if piece.samples is not None and self.live == "-":
            self._play(piece.samples)
        elif piece.samples is not None:
            self._writer(index, piece.part).write(piece.samples)
        if piece.text and len(self.names) == 1:
            if self._printing not in (None, piece.part):
                self.say("")
            self._printing = piece.part
            self.say(piece.text, end="")

    def _writer(self, index: int, part: int) -> WavWriter:
        writers = self._writers.setdefault(index, {})
        if part not in writers:
            suffix = f"-{len(writers)}" if writers else ""
            path = self.directory / f"{self.names[index]}{suffix}.wav"
            writers[part] = WavWriter(path, self.predictor.sample_rate)
            self.say(f"writing {path}")
        return writers[part]

    def _play(self, samples: np.ndarray) -> None:
        if not self._player:
            return
        try:
            sys.stdout.buffer.write(pcm16(samples))
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            self._player = False
            _to_nowhere(sys.stdout)
            self.say("note: the player has stopped; the rest goes to the files only")

    def finish(self, index: int, answer: Answer, extra: dict) -> None:
        """The whole answer: files, record, and a line on each."""
        written = None
        if self.live == "file":
            writers = self._writers.pop(index, {})
            for writer in writers.values():
                writer.close()
            written = [writer.path for writer in writers.values()]
        name = self.names[index]
        record = answer.save(self.directory, name, extra=extra, written=written)
        self._records[index] = record
        if self._printing is not None:
            self.say("")
        elif answer.text:
            self.say(answer.text if len(self.names) == 1 else f"{name}: {answer.text}")
        for file in record["files"]:
            self.say(f"wrote {self.directory / file}")
        for line in (*answer.notes, *answer.problems):
            self.say(f"note: {line}")

    def remember(self, index: int, path: Path, turns: Sequence[Turn], answer: Answer) -> None:
        """Writes the dialogue `turns` and this answer to `path`; media as the files that were just written."""
        files = {
            Modality.IMAGE: [f for f in self._records[index]["files"] if f.endswith(".png")],
            Modality.SPEECH: [f for f in self._records[index]["files"] if f.endswith(".wav")],
        }
        parts = []
        for part in answer.parts:
            value = part.value if part.modality == Modality.TEXT else self.directory / files[part.modality].pop(0)
            parts.append(Part(part.modality, value))
        write_history(path, [*turns, Turn("assistant", tuple(parts))] if parts else turns)

    def fail(self, index: int, error: Exception) -> None:
        """Why a request has no answer. Sound that was written already stays."""
        self.failed += 1
        where = f"{self.names[index]}: " if len(self.names) > 1 else ""
        _tell(sys.stderr, f"error: {where}{error}")

    def stop(self) -> None:
        """The user has had enough."""
        kept = [w for writers in self._writers.values() for w in writers.values() if w.samples]
        self.say("\nstopped" + "".join(f"; {w.path} holds {w.samples / w.sample_rate:.2f} s" for w in kept))

    def close(self) -> None:
        for writers in self._writers.values():
            for writer in writers.values():
                writer.close()


def _tell(stream: TextIO, line: str, end: str = "\n") -> None:
    """Prints. Files are written all the same where nobody reads any more (a pipe that was closed), or where the
    terminal has no such character."""
    try:
        print(line, end=end, file=stream, flush=True)
    except BrokenPipeError:
        _to_nowhere(stream)
    except UnicodeEncodeError:
        known = line.encode(stream.encoding, "backslashreplace").decode(stream.encoding)
        print(known, end=end, file=stream, flush=True)


def _to_nowhere(stream: TextIO) -> None:
    """What is written to `stream` from now on is thrown away, what it still holds included: Python would complain at
    its end otherwise."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
