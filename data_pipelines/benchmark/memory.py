"""Peak memory of commands, each in a process of its own, with the processes that it starts.

    python -m data_pipelines.benchmark.memory COMMAND ARGUMENT ...      # prints it in KiB

That is a small process between the one that measures and the command: Linux counts what its parent held when it was
started as the command's own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ar_omni_jax.machine import peak_resident_bytes

_EVERY = 0.2  # seconds between looks at the command's own children


class CommandFailed(RuntimeError):
    """A measured command ended with an error; the message holds the end of what it said."""


def peak_memory(module: str, arguments: Sequence[str]) -> float:
    """MiB of resident memory of `python -m module arguments`: the sum of what each of its processes held at most.

    On Linux it is of all processes, else of the first one alone. Raises CommandFailed.
    """
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run([sys.executable, "-m", __name__, *command], capture_output=True)
    if done.returncode:
        end = done.stderr.decode(errors="replace")[-2000:]
        raise CommandFailed(f"{module} {' '.join(arguments)} failed:\n{end}")
    return int(done.stdout) / 1024


def main(command: Sequence[str]) -> int:
    """Runs the command and prints its peak; returns 1 where it failed."""
    process = subprocess.Popen(command, stdout=sys.stderr)
    peaks: dict[int, int] = {}
    while True:
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        if ended:
            break
        for pid in (process.pid, *processes_below(process.pid)):
            # It never sinks: the last one seen counts.
            peaks[pid] = peak_resident_bytes(pid) // 1024 or peaks.get(pid, 0)
        time.sleep(_EVERY)
    own = peaks.pop(process.pid, 0)
    largest = usage.ru_maxrss // (1024 if sys.platform == "darwin" else 1)  # of it or of a child that it waited for
    if largest > max(peaks.values(), default=0):
        own = max(own, largest)
    print(own + sum(peaks.values()))
    return 1 if status else 0


def processes_below(root: int) -> set[int]:
    """Ids of the processes that `root` started, and those that they started; none where there is no /proc."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):  # it has just ended
            continue
    below: set[int] = {root}
    found: set[int] = set()
    while below := {pid for pid, parent in parents.items() if parent in below}:
        found |= below
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
