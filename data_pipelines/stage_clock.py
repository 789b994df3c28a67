"""Where the time of a build goes: seconds by stage, over all threads and processes together."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

# "decode" runs in threads or processes beside the others, and "wait" is what of it they had to wait for.
STAGES = ("read", "decode", "wait", "codec", "tokens", "write")


class StageClock:
    """Adds up the seconds of each of STAGES; may be used by many threads at once."""

    def __init__(self):
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts what is done inside."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        """Counts seconds that were measured elsewhere."""
        with self._lock:
            self.seconds[name] += seconds

    def timed(self, name: str, function: Callable[..., T]) -> Callable[..., T]:
        """`function`, with every call counted."""

        def call(*args):
            with self.stage(name):
                return function(*args)

        return call

    def each(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """`items`, with the time that each takes to come counted."""
        iterator, end = iter(items), object()
        while True:
            with self.stage(name):
                item = next(iterator, end)
            if item is end:
                return
            yield item

    def line(self, workers: int = 0) -> str:
        """The seconds as text. workers: processes that decoded, 0 for threads."""
        s, where = self.seconds, f"{workers} process{'es' * (workers > 1)}" if workers else "threads"
        return (
            f"seconds: read {s['read']:.1f}, decode {s['decode']:.1f} in {where} ({s['wait']:.1f} waited for), "
            f"codec {s['codec']:.1f}, tokens {s['tokens']:.1f}, write {s['write']:.1f}"
        )
