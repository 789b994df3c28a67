"""The machine that a measurement ran on: its name, and how fast it copies memory."""

from __future__ import annotations

import os
import platform
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np


def machine() -> dict:
    """What a reader needs to judge a measurement: processor, accelerator, versions, and how busy it was."""
    device = jax.devices()[0]
    return {
        "processor": _processor(),
        "cores": _cores(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "device": f"{device.device_kind} ({device.platform})",
        "devices": len(jax.devices()),
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


def copy_bandwidth(megabytes: int = 256, repeats: int = 8) -> float:
    """Bytes a second (read and written) of the fastest of `repeats` copies of a float32 array on the first device.

    On CPUs also by one NumPy copy a core: what XLA's own loop does not reach must not make the limit look low.
    """
    count = megabytes * 250_000
    x = jnp.arange(count, dtype=jnp.float32)
    add = jax.jit(lambda x: x + 1.0)
    best = _fastest(lambda: add(x).block_until_ready(), repeats)
    if jax.devices()[0].platform == "cpu":
        best = min(best, _fastest(_threaded_copy(count), repeats))
    return 2 * 4 * count / best


def _threaded_copy(count: int):
    source, target = np.ones(count, np.float32), np.empty(count, np.float32)
    bounds = np.linspace(0, count, _cores() + 1).astype(int)

    def copy():
        pairs = zip(bounds[:-1], bounds[1:], strict=True)
        threads = [threading.Thread(target=np.copyto, args=(target[a:b], source[a:b])) for a, b in pairs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return copy


def _fastest(run, repeats: int) -> float:
    """Seconds; the first call compiles and touches memory, and is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])
