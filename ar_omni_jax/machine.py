"""What machine this is, and what a process takes of it. JAX is imported only where it is asked."""

from __future__ import annotations

import os
import platform
import resource
import sys
from pathlib import Path

# Of a GPU's memory, for JAX's pool. What is left is for what lies beside it: CUDA context, cuBLAS, cuDNN, NCCL.
GPU_MEMORY_SHARE = 0.97
_OWN_SHARE = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")


def take_gpu_memory() -> None:
    """Lets JAX's pool on a GPU be as large as `compile_check` counts on: JAX 0.10 ends at 75 % of the memory.

    Must come before the first use of JAX's devices. A share that the user set in the environment stands.
    """
    if not any(os.environ.get(name) for name in _OWN_SHARE):
        os.environ[_OWN_SHARE[0]] = str(GPU_MEMORY_SHARE)


def machine() -> dict:
    """What a reader needs to judge a measurement: processor, accelerator, versions, and how busy it was."""
    import jax

    device = jax.devices()[0]
    return {
        "processor": _processor(),
        "cores": cores(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "device": f"{device.device_kind} ({device.platform})",
        "devices": len(jax.devices()),
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_resident_bytes(pid: int | None = None) -> int:
    """The largest resident set so far, of this process or of `pid`; 0 for one that has ended or cannot be looked at.

    Linux hands a parent's `ru_maxrss` down to the processes that it starts, so that is asked only elsewhere.
    """
    try:
        status = Path(f"/proc/{pid or 'self'}/status").read_text()
    except OSError:
        status = ""
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    if pid is not None:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def processor_vendor() -> str:
    """As Linux has it on x86 (AuthenticAMD, GenuineIntel); empty elsewhere."""
    return _cpuinfo("vendor_id")


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(field: str) -> str:
    """Of the first processor in Linux's list; empty where there is none, or it tells another kind of things."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return ""
