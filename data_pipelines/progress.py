"""Progress of a build on standard error: documents and tokens a second and the time that is left."""

from __future__ import annotations

import sys
import time

_EVERY = {True: 0.5, False: 15.0}  # seconds between lines, on a terminal and in a log


class Progress:
    """Counts records and their tokens; a context manager, so that the last line is always ended."""

    def __init__(self, total: int, quiet: bool = False, stream=None):
        self.total, self.quiet = total, quiet
        self.done = self.tokens = self._told = 0
        self._stream = stream if stream is not None else sys.stderr
        self._terminal = self._stream.isatty()
        self._start = self._shown = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        if self.done != self._told or (self.done and self._terminal):
            self._show(last=True)

    def add(self, documents: int, tokens: int) -> None:
        """So many more records, of so many tokens together."""
        self.done += documents
        self.tokens += tokens
        if time.monotonic() - self._shown >= _EVERY[self._terminal]:
            self._show()

    def say(self, text: str) -> None:
        if not self.quiet:
            print(text, file=self._stream, flush=True)

    def line(self) -> str:
        """The state as text."""
        seconds = max(time.monotonic() - self._start, 1e-6)
        rate = self.done / seconds
        left = (self.total - self.done) / rate if rate else 0.0
        return (
            f"{self.done}/{self.total} documents, {rate:.0f} documents/s, {self.tokens / seconds:.0f} tokens/s, "
            f"{seconds:.0f} s, {left:.0f} s left"
        )

    def _show(self, last: bool = False) -> None:
        self._shown, self._told = time.monotonic(), self.done
        if self.quiet:
            return
        start, end = ("\r\x1b[K", "\n" if last else "") if self._terminal else ("", "\n")
        print(start + self.line(), end=end, file=self._stream, flush=True)
