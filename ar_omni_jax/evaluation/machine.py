"""How fast the machine that a measurement ran on copies memory."""

from __future__ import annotations

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np

from ar_omni_jax.machine import cores


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
    bounds = np.linspace(0, count, cores() + 1).astype(int)

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
