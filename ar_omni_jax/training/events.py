"""TensorBoard's event files, written at once and by this thread, without TensorFlow.

tensorboardX's own writer hands events to a thread; where the disk is full that thread ends, the queue to it fills,
and the training loop waits for it for ever. Here an event that cannot be written is lost, with a warning, and the
next one is tried in a new file.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from pathlib import Path
from typing import Any

FLUSH_EVERY_S = 60.0  # so that a page that is looked at during training moves


class Events:
    """Event files in `folder`. `purge_step`: TensorBoard hides what earlier files say of this step and later ones."""

    def __init__(self, folder: Path, purge_step: int | None = None):
        self._folder, self._purge_step = folder, purge_step
        self._writer: Any = None
        self._files, self._failed, self._flushed = 0, False, time.monotonic()

    def add(self, summary: Any, step: int) -> None:
        """A `Summary` of tensorboardX.summary at `step`."""
        from tensorboardX.proto.event_pb2 import Event

        with self._losing():
            self._open().write_event(Event(step=step, wall_time=time.time(), summary=summary))
        if time.monotonic() - self._flushed > FLUSH_EVERY_S:
            self.flush()

    def _open(self) -> Any:
        if self._writer is None:
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog

            self._folder.mkdir(parents=True, exist_ok=True)
            self._files += 1
            # Two files of the same second must not be one.
            self._writer = EventsWriter(str(self._folder / "events"), f".{os.getpid()}.{self._files}")
            if self._purge_step is not None:
                start = SessionLog(status=SessionLog.START)
                self._writer.write_event(Event(step=self._purge_step, session_log=start))
                self._purge_step = None
        return self._writer

    @contextlib.contextmanager
    def _losing(self):
        try:
            yield
            self._failed = False
        except OSError as error:
            if not self._failed:
                logging.warning("TensorBoard events in %s cannot be written: %s; training goes on", self._folder, error)
            self._failed, writer, self._writer = True, self._writer, None
            with contextlib.suppress(OSError):  # what is in its buffer cannot be written either
                if writer is not None:
                    writer.close()

    def flush(self) -> None:
        """What was added so far is on disk when this returns, as far as it can be."""
        self._flushed = time.monotonic()
        with self._losing():
            if self._writer is not None:
                self._writer.flush()

    def close(self) -> None:
        self.flush()
        writer, self._writer = self._writer, None
        with self._losing():
            if writer is not None:
                writer.close()
