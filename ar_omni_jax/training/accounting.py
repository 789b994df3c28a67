"""Where a run's time and memory go: useful arithmetic, memory of devices and host, goodput across restarts."""

from __future__ import annotations

import time
from collections.abc import Mapping

import jax

from ar_omni_jax.machine import peak_resident_bytes
from ar_omni_jax.model.config import TransformerConfig

# Names in metrics.jsonl that tell of the machine and of interruptions, by their start. All others are what was
# learned, and do not depend on either.
MACHINE = ("tokens_per_second", "flops_per_second", "mfu", "input_wait", "checkpoint_stall", "memory/", "goodput")
MACHINE += ("run_seconds",)


def describe_flops(model: TransformerConfig, length: int) -> str:
    """How the FLOP of a token of training are counted, with this model's numbers, as one line."""
    attention = 6 * model.num_layers * length * model.num_heads * model.head_dim
    total = model.flops_per_token(length)
    weights = (total - attention) / 6
    return (
        f"FLOP a token = 6 x {weights / 1e6:,.4g} M weights (the embedding look-up left out) + 6 x {model.num_layers} "
        f"layers x {length} tokens x {model.num_heads * model.head_dim} channels (causal attention, counted once) = "
        f"{total / 1e9:,.4g} G; recomputed work is not counted"
    )


def describe_mfu(peak: tuple[float, str] | None) -> str:
    """How the MFU follows from the FLOP a token; `peak` as of `metrics.peak_flops`."""
    if peak is None:
        kind = jax.devices()[0].device_kind
        return f"no MFU: the peak of {kind!r} is not known; FLOP/s = tokens/s (no padding) x FLOP a token is shown"
    return (
        f"MFU = tokens/s (no padding) x FLOP a token / {peak[0] / 1e12:.0f} TFLOP/s a device ({peak[1]}, dense "
        f"bfloat16) / {jax.device_count()} devices"
    )


def memory() -> dict[str, float]:
    """GiB: the largest of this process's devices now and at most so far, where they tell; the process at most."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    out = {}
    for name, key in (("device_in_use", "bytes_in_use"), ("device_peak", "peak_bytes_in_use")):
        values = [found[key] for found in stats if key in found]
        if values:
            out[f"memory/{name}_gib"] = max(values) / 2**30
    out["memory/host_peak_gib"] = peak_resident_bytes() / 2**30
    return out


class Goodput:
    """The share of a run's seconds that went into steps that counted, over all of its processes.

    Steps that counted: taken, not skipped, and not lost in a crash; waiting for input, compiling, validation, samples
    and saving are none. All seconds: those of its processes, from here to their last log line. The time between two
    processes is not known and not counted, so that no clock needs to be right.
    """

    def __init__(self):
        self._start = time.monotonic()
        self._before = self._useful = 0.0

    def resume(self, saved: Mapping[str, float], logged_seconds: float) -> None:
        """saved: of `to_json`, in the checkpoint. logged_seconds: `seconds` of the run's newest log line."""
        self._useful = saved.get("useful", 0.0)
        self._before = max(saved.get("seconds", 0.0), logged_seconds)

    def add(self, useful_seconds: float) -> None:
        """Seconds of steps that counted."""
        self._useful += useful_seconds

    @property
    def seconds(self) -> float:
        """Seconds of all processes of the run so far."""
        return self._before + time.monotonic() - self._start

    def share(self) -> float:
        """The goodput, from 0 to 1."""
        return min(self._useful / max(self.seconds, 1e-9), 1.0)

    def to_json(self, not_added_yet: float) -> dict[str, float]:
        """For the checkpoint; `not_added_yet`: useful seconds since the last `add`."""
        return {"useful": self._useful + not_added_yet, "seconds": self.seconds}
