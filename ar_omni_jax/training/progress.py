"""What a run says on its terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

import jax

from ar_omni_jax.training.metrics import duration


def say(text: str) -> None:
    """Prints on the first process. An output that is closed or full does not end a run of days."""
    if jax.process_index() != 0:
        return
    try:
        print(text, flush=True)
    except OSError as error:
        if isinstance(error, BrokenPipeError) or error.errno == 5:  # EIO: the terminal is gone
            _into_nothing()


def _into_nothing() -> None:
    """Whatever is printed from now on, and what is still in the buffer, goes nowhere."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w")


def progress_line(step: int, steps: int, values: Mapping, rates: Mapping, seconds_left: float | None) -> str:
    """One line: loss, nll by modality, perceptual loss, gradient norm, tokens/s by modality, MFU, input wait, memory,
    goodput, time left."""
    parts = [f"step {step}/{steps}", f"loss {values.get('loss', float('nan')):.4f}"]
    parts += [f"{k.removeprefix('nll/')} {v:.3f}" for k, v in values.items() if k.startswith("nll/")]
    if values.get("perceptual"):
        parts.append(f"perceptual {values['perceptual']:.3g}")
    parts.append(f"|g| {values.get('grad_norm', float('nan')):.3g}")
    if values.get("skipped"):
        spikes = f" ({values['spikes']:.0f} spikes)" if values.get("spikes") else ""
        parts.append(f"SKIPPED {values['skipped']:.0f}{spikes}")
    if rates:
        parts += _speed(rates)
    parts += [f"{duration(seconds_left)} left"] if seconds_left is not None else []
    return "  ".join(parts)


def _speed(rates: Mapping) -> list[str]:
    per = ", ".join(
        f"{k.removeprefix('tokens_per_second/')} {v:,.0f}"
        for k, v in rates.items()
        if k.startswith("tokens_per_second/") and not k.endswith(("/all", "/marker"))
    )
    parts = [f"{rates['tokens_per_second/all']:,.0f} tokens/s ({per})"]
    useful = f"{rates['flops_per_second'] / 1e9:,.3g} GFLOP/s"
    parts.append(f"MFU {rates['mfu']:.1%}" if "mfu" in rates else useful)
    parts.append(f"input wait {rates['input_wait']:.0%}")
    if rates.get("checkpoint_stall"):
        parts.append(f"saving {rates['checkpoint_stall']:.2g} s")
    memory = rates.get("memory/device_peak_gib", rates.get("memory/host_peak_gib"))
    parts += [f"memory {memory:.3g} GiB"] if memory else []
    parts += [f"goodput {rates['goodput']:.0%}"] if "goodput" in rates else []
    return parts
