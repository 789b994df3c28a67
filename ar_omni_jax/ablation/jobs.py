"""Commands in processes of their own, several side by side, each on its share of this machine's cores."""

from __future__ import annotations

import concurrent.futures
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence

from ar_omni_jax.machine import cores


class JobError(ValueError):
    """A command failed, or what is asked for cannot be; the message says which and what to do."""


class Jobs:
    """Up to `count` pieces of work side by side.

    A small model's step gains little from a second core, so two runs on one core each are done before two runs on
    both cores one after the other. Raises JobError unless count is between 1 and the number of cores.
    """

    def __init__(self, count: int):
        if not 1 <= count <= cores():
            raise JobError(f"jobs={count}: between 1 and {cores()}, the cores that this process may use")
        self.count = count
        self._shares: queue.SimpleQueue[set[int] | None] = queue.SimpleQueue()
        for share in _shares(count):
            self._shares.put(share)
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen] = set()
        self._stopping = False

    def run_all(self, pieces: Sequence, work: Callable[..., None]) -> None:
        """Calls work(piece, call) for each piece, in their order; `call(command)` runs a command to its end on the
        piece's cores and raises JobError for an exit code that is not 0.

        When one fails, or this process is interrupted, the commands that run get SIGINT, are waited for, and the
        error is raised again: a training that is interrupted saves first.
        """
        pool = concurrent.futures.ThreadPoolExecutor(self.count)
        try:
            for done in concurrent.futures.as_completed([pool.submit(self._one, piece, work) for piece in pieces]):
                done.result()
        except BaseException:
            self._stop()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _stop(self) -> None:
        with self._lock:
            if not self._stopping:
                self._stopping = True
                for process in self._running:
                    process.send_signal(signal.SIGINT)

    def _one(self, piece, work: Callable[..., None]) -> None:
        share = self._shares.get()
        try:
            if not self._stopping:
                work(piece, lambda command: self.call(command, share))
        except BaseException:
            self._stop()  # before this thread takes the next piece
            raise
        finally:
            self._shares.put(share)

    def call(self, command: Sequence[str], share: set[int] | None = None) -> None:
        """Runs a command to its end, on some cores or on all; JobError for an exit code that is not 0."""
        with self._lock:
            if self._stopping:
                raise JobError("interrupted before it began")
            # A session of its own: a Ctrl-C at the terminal is this process's, which passes it on once.
            process = subprocess.Popen(command, start_new_session=True)
            self._running.add(process)
            if share is not None:
                os.sched_setaffinity(process.pid, share)
        code = process.wait()
        with self._lock:
            self._running.discard(process)
        if code:
            text = " ".join(command)
            raise JobError(f"exit code {code} of\n  {text}\nIts last lines say why; mend it, run again")


def _shares(count: int) -> list[set[int] | None]:
    """An even part of the cores for each; None, all of them, for one job or where a system has no such choice."""
    if count == 1 or not hasattr(os, "sched_getaffinity"):
        return [None] * count
    every = sorted(os.sched_getaffinity(0))
    return [set(every[n * len(every) // count : (n + 1) * len(every) // count]) for n in range(count)]
