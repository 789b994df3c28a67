"""Peak memory of commands, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

# A small process between this one and the command: Linux counts what its parent held when it was started as the
# command's own. It prints the peak, in the system's unit.
_WATCHER = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
_, status, usage = os.wait4(process.pid, 0)
print(usage.ru_maxrss)
sys.exit(1 if status else 0)
"""


class CommandFailed(RuntimeError):
    """A measured command ended with an error; the message holds the end of what it said."""


def peak_memory(module: str, arguments: Sequence[str]) -> float:
    """MiB of resident memory at the highest moment of `python -m module arguments`. Raises CommandFailed."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run([sys.executable, "-c", _WATCHER, *command], capture_output=True)
    if done.returncode:
        end = done.stderr.decode(errors="replace")[-2000:]
        raise CommandFailed(f"{module} {' '.join(arguments)} failed:\n{end}")
    return int(done.stdout) / (1 << 20 if sys.platform == "darwin" else 1 << 10)
