"""A thread that names what a run waits for, when it waits for long: a starved input, a hung step, another host.

It only speaks. With `exit_s` it also ends a process that nothing moves any more, so that whatever started it can
start it again; several processes hang together when one does, and none of them can say so from inside the hang.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

HUNG = 75  # exit code: sysexits' EX_TEMPFAIL, "try again"
WARN_S = 300.0
LOOK_AT_MOST_EVERY_S = 10.0


class Watchdog:
    """Watches one process's loop.

    Args:
      exit_s: seconds in one place after which the process ends with code HUNG and its stacks on stderr; 0: never.
      warn_s: seconds after which the place is named, and again after twice as long (half of exit_s, if that is less).
      process, processes: which one this is. folder: where several processes leave their places for each other.
      clock, leave: for tests.
    """

    def __init__(
        self,
        *,
        exit_s: float = 0.0,
        warn_s: float = WARN_S,
        process: int = 0,
        processes: int = 1,
        folder: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        leave: Callable[[int], None] = os._exit,
    ):
        warn_s = min(warn_s, exit_s / 2) if exit_s else warn_s
        self._warn_s, self._exit_s, self._clock, self._leave = warn_s, exit_s, clock, leave
        self._process, self._processes = process, processes
        self._folder = folder if processes > 1 else None
        self._at: tuple[str, float, bool] = ("starting", clock(), False)  # what, since, may end the process
        self._next, self.last_step = warn_s, 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    # -- what the loop tells ---------------------------------------------------------------------------------
    @contextlib.contextmanager
    def doing(self, what: str, *, patient: bool = False) -> Iterator[None]:
        """`what` begins, and ends with the block. patient: it may take any time; it is named, never ended."""
        before, self._at = self._at, (what, self._clock(), not patient)
        try:
            yield
        finally:
            seconds = self._clock() - self._at[1]
            if self._next > self._warn_s:
                logging.warning("%s: %s ended after %.0f s", self._who(), what, seconds)
            self._at, self._next = (before[0], self._clock(), before[2]), self._warn_s

    def finished(self, step: int) -> None:
        """Step `step` is done."""
        self.last_step = step

    # -- the thread ------------------------------------------------------------------------------------------
    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        self._thread.join(timeout=5.0)
        if self._folder is not None:
            with contextlib.suppress(OSError):
                self._file(self._process).unlink()

    def _run(self) -> None:
        while not self._ended.wait(min(self._warn_s / 4, LOOK_AT_MOST_EVERY_S)):
            self.look()

    def look(self) -> None:
        """Says what is waited for when it is time to, and ends the process when that is asked for."""
        what, since, may_end = self._at
        waited = self._clock() - since
        self._leave_place(what)
        if waited >= self._next:
            self._next *= 2
            logging.warning("%s", self.describe(what, waited))
        if self._exit_s and may_end and waited >= self._exit_s:
            print(
                f"error: {self.describe(what, waited)} Ending with code {HUNG} (config.train.hang_exit_s = "
                f"{self._exit_s:g}); the same command resumes from the newest checkpoint",
                file=sys.stderr,
                flush=True,
            )
            with contextlib.suppress(Exception):  # stderr may be no file
                faulthandler.dump_traceback(all_threads=True)
            self._leave(HUNG)

    def describe(self, what: str, waited: float) -> str:
        """What is waited for, since when, and which other process is behind."""
        return f"{self._who()}: {what} for {waited:.0f} s; last step finished: {self.last_step}.{self._behind()}"

    def _who(self) -> str:
        return f"process {self._process} of {self._processes}"

    # -- several processes -------------------------------------------------------------------------------------
    def _file(self, process: int) -> Path:
        return self._folder / f"{process}.json"

    def _leave_place(self, what: str) -> None:
        if self._folder is None:
            return
        with contextlib.suppress(OSError):  # a courtesy to the others
            self._folder.mkdir(parents=True, exist_ok=True)
            # In one small write: a reader that meets half of it skips it.
            self._file(self._process).write_text(json.dumps({"step": self.last_step, "doing": what}))

    def _behind(self) -> str:
        """The processes that finished fewer steps than this one, or whose thread has stopped writing its place."""
        if self._folder is None:
            return ""
        found = []
        # By number: an earlier run may have left the places of more processes.
        for path in (self._file(process) for process in range(self._processes) if process != self._process):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                place = json.loads(path.read_text())
                # Both times are of the same file server: the hosts' clocks do not matter.
                silent = self._file(self._process).stat().st_mtime - path.stat().st_mtime
                dead = f", silent for {silent:.0f} s" if silent > 6 * LOOK_AT_MOST_EVERY_S else ""
                if dead or place["step"] < self.last_step or "waiting" in place["doing"]:
                    found.append(f"process {path.stem} (last step {place['step']}, {place['doing']}{dead})")
        return f" Behind: {', '.join(found)}." if found else ""
