"""Outputs that appear whole or not at all, and the progress of long work."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from ar_omni_jax.interop.errors import InteropError


def staging_folder(output: Path) -> Path:
    """Where the parts of `output` are collected; a killed run leaves nothing else behind."""
    return output.parent / f".{output.name}.converting"


def check_output(output: Path, size: int) -> None:
    """InteropError unless `output` is free and its disk has room for `size` bytes."""
    output = Path(output).absolute()
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise InteropError(f"--output={output} exists and is not empty; choose another folder or remove it")
    folder = output
    while not folder.exists():
        folder = folder.parent
    stale = staging_folder(output)
    freed = sum(p.stat().st_size for p in stale.rglob("*") if p.is_file()) if stale.is_dir() else 0
    free = shutil.disk_usage(folder).free + freed
    if free < size:
        raise InteropError(
            f"--output={output} needs {size / 1e9:.2f} GB, its disk has {free / 1e9:.2f} GB; choose another disk or "
            "a smaller --dtype"
        )


@contextlib.contextmanager
def staged(output: Path) -> Iterator[Path]:
    """A fresh folder beside `output` that takes its place when the block ends without an error.

    What an earlier, killed run left there is removed first; after an error nothing remains.
    """
    output = Path(output).absolute()
    folder = staging_folder(output)
    try:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
    except OSError as error:
        raise InteropError(f"{folder} cannot be made ({error}); choose another --output") from error
    try:
        yield folder
        folder.rename(output)  # replaces an empty folder, refuses any other
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


class Progress:
    """Lines on stderr: how much is done and how long the rest will take.

    Args: total: bytes to write. interval: seconds between lines.
    """

    def __init__(self, total: int, interval: float = 5.0):
        self.total, self.interval, self.done = total, interval, 0
        self.start = self.last = time.monotonic()

    def add(self, size: int) -> None:
        """`size` more bytes are written."""
        self.done += size
        now = time.monotonic()
        if now - self.last >= self.interval:
            self.last = now
            left = (now - self.start) * (self.total - self.done) / max(self.done, 1)
            sizes = f"{self.done / 1e9:.2f} of {self.total / 1e9:.2f} GB"
            print(f"{sizes}, {now - self.start:.0f} s, about {left:.0f} s left", file=sys.stderr, flush=True)
