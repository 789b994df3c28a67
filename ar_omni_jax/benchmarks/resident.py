"""How much memory of this process a piece of work takes, as the operating system counts it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = b"5"  # proc(5): the peak begins anew at what is resident now


def added_by(work: Callable[[], object]) -> int | None:
    """Runs `work`; bytes by which the resident set rose above what it was before, at most. None where there is no
    /proc to ask (it is Linux's)."""
    try:
        _CLEAR.write_bytes(_RESET_PEAK)
        before = _bytes("VmRSS")
    except OSError:
        work()
        return None
    work()
    return max(0, _bytes("VmHWM") - before)


def _bytes(name: str) -> int:
    return next(int(line.split()[1]) << 10 for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
