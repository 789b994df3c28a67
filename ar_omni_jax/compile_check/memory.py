"""What lies in a device's memory during a step, by kind, and whether it fits."""

from __future__ import annotations

import dataclasses
import math
import re

import jax

from ar_omni_jax.compile_check.targets import Chip
from ar_omni_jax.training.state import TrainState

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50}
# The TPU compiler's three ways to say it: after placing everything; when temporaries alone are too many; at once.
_USED = re.compile(r"Used ([\d.]+)([KMGTP]?) of [\d.]+[KMGTP]? hbm")
_TEMPORARIES = re.compile(r"required for HLO temporaries \(([\d.]+)([KMGTP]?)\) exceeds available HBM")
_REQUIRES = re.compile(r"Requires ([\d.]+)([KMGTP]?), has [\d.]+[KMGTP]? available")


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device. The first five are the step's arguments, laid out as the state's shardings say.

    Attributes:
      parameters, moments, batch, frozen: of the model (with the perceptual projection), the optimizer's state, a
        batch, the frozen image codebook. other: counters, and the padding of tiled layouts.
      output: results that do not take an argument's place (the donated state's new values do).
      temporaries: activations, gradients, gathered weights at their common peak. code: the program itself.
      compiled: False where the compiler gave up for lack of memory: then `temporaries` is what it says it used less
        the rest.
    """

    parameters: int
    moments: int
    batch: int
    frozen: int
    other: int
    output: int
    temporaries: int
    code: int
    compiled: bool = True

    @property
    def arguments(self) -> int:
        return self.parameters + self.moments + self.batch + self.frozen + self.other

    @property
    def total(self) -> int:
        """Peak of the step."""
        return self.arguments + self.output + self.temporaries + self.code

    def over(self, chip: Chip) -> int:
        """Bytes that are missing on `chip`, its headroom kept free; 0 when it fits."""
        return max(0, self.total - (chip.hbm_bytes - chip.headroom_bytes))


def bytes_per_device(tree) -> int:
    """Bytes that one device holds of a tree of ShapeDtypeStructs with shardings."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def arguments_of(state: TrainState, batch, frozen) -> dict[str, int]:
    """{"parameters", "moments", "batch", "frozen", "counters"}: bytes of a device, by arithmetic."""
    counters = (state.step, state.skipped, state.skipped_in_row)
    return {
        "parameters": bytes_per_device(state.params),
        "moments": bytes_per_device(state.opt_state),
        "batch": bytes_per_device(batch),
        "frozen": bytes_per_device(frozen),
        "counters": bytes_per_device(counters),
    }


def from_analysis(arguments: dict[str, int], analysis) -> Memory:
    """Of `compiled.memory_analysis()`."""
    known = dict(arguments)
    counters = known.pop("counters")
    other = max(analysis.argument_size_in_bytes - sum(known.values()), counters)
    return Memory(
        **known,
        other=other,
        output=max(analysis.output_size_in_bytes - analysis.alias_size_in_bytes, 0),
        temporaries=analysis.temp_size_in_bytes,
        code=analysis.generated_code_size_in_bytes,
    )


def from_refusal(arguments: dict[str, int], message: str) -> Memory | None:
    """Of the TPU compiler's RESOURCE_EXHAUSTED message, which rounds to a hundredth of its unit; None when the message
    is about something else."""
    known = dict(arguments)
    other = known.pop("counters")
    held = sum(known.values()) + other
    if match := _TEMPORARIES.search(message):
        temporaries = _bytes(match)
    elif match := _USED.search(message) or _REQUIRES.search(message):
        temporaries = max(_bytes(match) - held, 0)
    else:
        return None
    return Memory(**known, other=other, output=0, temporaries=temporaries, code=0, compiled=False)


def _bytes(match: re.Match) -> int:
    return int(float(match[1]) * _UNITS[match[2]])
