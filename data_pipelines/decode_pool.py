"""Who decodes media: threads of this process, or processes that import neither JAX nor the program that started them.

A process has a pipe of its own, and a thread of this process that waits at the other end. So a process that dies is
noticed at once, by the end of its pipe, and what it was working on is known. The processes of concurrent.futures
share one pipe for their results: of one that is killed while it sends a picture half a message stays there, and
whoever reads it waits for the other half for ever.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import queue
import signal
import sys
import threading
import traceback
import types
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from typing import Any

from ar_omni_jax.machine import cores

MAX_DEFAULT_WORKERS = 16


class WorkerDied(RuntimeError):
    """A decoding process ended that should not have; the message names what it was working on, and what to do."""


def default_workers() -> int:
    """Processes that decode when nobody says how many: a core is left to the codecs."""
    return max(1, min(MAX_DEFAULT_WORKERS, cores() - 1))


def decode_pool(workers: int, threads: int | None = None) -> concurrent.futures.Executor:
    """An executor, to be used in a `with` block: so many processes or, for 0, `threads` threads, default one a core.

    A block that ends by an exception waits for no work that has not begun.
    """
    return ProcessPool(workers) if workers else _ThreadPool(threads or cores())


class _ThreadPool(concurrent.futures.ThreadPoolExecutor):
    def __exit__(self, kind, value, trace) -> None:
        self.shutdown(cancel_futures=kind is not None)


class ProcessPool(concurrent.futures.Executor):
    """Calls functions in `count` processes, which are started at the first call.

    Functions are named, arguments and results copied (pickle). An error in a function is a RuntimeError with the
    traceback over there; after the end of a process every call raises WorkerDied. The processes leave Ctrl-C to this
    process, and end with it, however it ends.
    """

    def __init__(self, count: int):
        self._count = count
        self._workers: list[_Worker] = []
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._threads = concurrent.futures.ThreadPoolExecutor(count, "decode")
        self._died = ""

    def submit(self, fn: Callable, /, *args: Any) -> concurrent.futures.Future:
        """A future of `fn(*args)`; `args` as text stand in messages."""
        if not self._workers:
            self._start()
        return self._threads.submit(self._call, fn, args)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the processes after what was asked of them or, with `cancel_futures`, at once."""
        if cancel_futures:
            for worker in self._workers:
                worker.process.kill()  # they keep nothing that could be lost
        self._threads.shutdown(wait, cancel_futures=cancel_futures)
        for worker in self._workers:
            worker.close(wait)

    def __exit__(self, kind, value, trace) -> None:
        self.shutdown(cancel_futures=kind is not None)

    def _start(self) -> None:
        with _without_main_module(), _interrupts_blocked():
            for _ in range(self._count):
                self._workers.append(_Worker())
        for worker in self._workers:
            self._idle.put(worker)

    def _call(self, fn: Callable, args: tuple) -> Any:
        if self._died:
            raise WorkerDied(self._died)
        worker = self._idle.get()  # there are as many threads as processes
        try:
            return worker.call(fn, args)
        except WorkerDied as e:
            self._died = self._died or str(e)
            raise
        finally:
            self._idle.put(worker)


class _Worker:
    """A process and this end of its pipe. One thread at a time may use it."""

    def __init__(self):
        context = multiprocessing.get_context("spawn")  # a fork would copy the locks of JAX's threads
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), name="decode", daemon=True)
        self.process.start()
        theirs.close()  # the pipe then ends with the process

    def call(self, fn: Callable, args: tuple) -> Any:
        try:
            self._pipe.send((fn, args))
            fine, result = self._pipe.recv()
        except (EOFError, OSError) as e:
            raise WorkerDied(self._epitaph(args)) from e
        if not fine:
            raise RuntimeError(f"{', '.join(map(str, args))}: failed in a decoding process:\n{result}")
        return result

    def close(self, wait: bool) -> None:
        self._pipe.close()
        if wait:
            self.process.join()

    def _epitaph(self, args: tuple) -> str:
        self.process.join(5)
        code = self.process.exitcode
        how = f"ended with exit code {code}"
        if code is not None and code < 0:
            how = f"was killed by signal {-code}"
            if -code == signal.SIGKILL:
                how += " (SIGKILL, as systems do when memory runs out)"
        return (
            f"a decoding process {how} while it had {', '.join(map(str, args))}. Finished shards are kept: run the "
            "same command again to go on, with a smaller --workers if memory was short; if it is this record each "
            "time, take it out"
        )


@contextlib.contextmanager
def _without_main_module() -> Iterator[None]:
    """Keeps started processes from importing the module that this program was started as, which may import JAX, or be
    a user's script that has no guard against running twice."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Processes started meanwhile never get SIGINT, which terminals send to all; here it comes a little later."""
    resource_tracker.ensure_running()  # else the first process starts it, which lets SIGINT through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# -- in the process ----------------------------------------------------------------------------------------------
def _serve(pipe) -> None:
    """Calls what comes through the pipe until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, OSError):  # nobody is there any more
        while True:
            fn, args = pipe.recv()
            try:
                answer = True, fn(*args)
            except Exception:
                answer = False, traceback.format_exc()
            pipe.send(answer)


def _end_with_parent() -> None:
    """Even in the middle of a file that takes for ever to read."""
    multiprocessing.parent_process().join()
    os._exit(1)
