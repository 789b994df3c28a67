"""What machine this is, for records of measurements."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import jax


def machine() -> dict:
    """What a reader needs to judge a measurement: processor, accelerator, versions, and how busy it was."""
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


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()
