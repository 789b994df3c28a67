"""Operations of a compiled step's matrix products, loops counted as often as they turn.

This is the program as compiled, recomputation included; the model's own formula (TransformerConfig.flops_per_token)
counts what is needed, once.
"""

from __future__ import annotations

import json
import math
import re

from ar_omni_jax.compile_check.hlo import Computation, Instruction, Program

# L x L products of attention kernels that the text shows as one call. Forward 2, backward with recomputed scores 5;
# splash has two kernels for the backward pass, each of which recomputes them.
_CUDNN_PRODUCTS = {"fmhaSoftmaxBackward": 5, "fmhaSoftmax": 2}
_SPLASH_PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}


def product_flops(program: Program) -> tuple[int, list[str]]:
    """(floating-point operations of all matrix products and fused attention kernels, names of kernels that could
    not be counted)."""
    total, unknown = 0, []
    for computation, times in program.running():
        for instruction in computation.instructions.values():
            if instruction.opcode == "dot":
                total += times * _dot(computation, instruction)
            elif instruction.opcode == "convolution":
                total += times * _convolution(computation, instruction)
            elif instruction.opcode == "custom-call":
                flops = _custom(computation, instruction)
                if flops is None:
                    unknown.append(instruction.name)
                else:
                    total += times * flops
    return total, unknown


def _dimensions(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def _dot(computation: Computation, instruction: Instruction) -> int:
    left = computation.operand(instruction, 0)
    summed = [left.shape[d] for d in _dimensions(instruction.attribute("lhs_contracting_dims"))]
    return 2 * instruction.results[0].size * math.prod(summed)


def _convolution(computation: Computation, instruction: Instruction) -> int:
    """The TPU writes matrix products as convolutions, batch dimensions as spatial ones.

    2 x batch x output features x input features a group x the pairs (output, tap) that meet the input, axis by axis.
    """
    labels = re.match(r"(\w+)_(\w+)->(\w+)", instruction.attribute("dim_labels"))
    image, kernel = (computation.operand(instruction, i).shape for i in (0, 1))
    out = instruction.results[0].shape
    lhs, rhs, result = labels.groups()
    window = {
        key: values.split("x") for key, values in re.findall(r"(\w+)=(-?[\dx_-]+)", instruction.attribute("window"))
    }
    total = 2 * out[result.index("b")] * out[result.index("f")] * kernel[rhs.index("i")]
    for axis in range(len(image) - 2):
        digit = str(axis)
        number = {name: int(values[axis]) for name, values in window.items() if name not in ("pad", "rhs_reversal")}
        low = int(window["pad"][axis].split("_")[0]) if "pad" in window else 0
        total *= _meetings(
            *(image[lhs.index(digit)], out[result.index(digit)], kernel[rhs.index(digit)], low),
            *(number.get(name, 1) for name in ("stride", "lhs_dilate", "rhs_dilate")),
        )
    return total


def _meetings(size: int, out: int, taps: int, low: int, stride: int, spread: int, step: int) -> int:
    """Pairs (output position, tap) whose input position exists and is no hole between spread inputs."""
    last = (size - 1) * spread
    count = 0
    for tap in range(taps):
        first = tap * step - low
        if spread == 1:  # positions first, first + stride, ...: those in [0, last]
            begin = max(0, -(first // stride)) if first < 0 else 0
            end = min(out - 1, (last - first) // stride)
            count += max(0, end - begin + 1)
        else:
            places = (first + o * stride for o in range(out))
            count += sum(0 <= place <= last and place % spread == 0 for place in places)
    return count


def _custom(computation: Computation, instruction: Instruction) -> int | None:
    """Operations of a library call; 0 for calls that multiply nothing, None for an unknown kernel."""
    target = instruction.attribute("custom_call_target").strip('"')
    if "cublas" in target or "gemm" in target.lower():
        match = re.search(r'"lhs_contracting_dimensions":\s*(\[[^\]]*\])', instruction.rest)
        if not match:
            return None
        left = computation.operand(instruction, 0)
        return 2 * instruction.results[0].size * math.prod(left.shape[int(d)] for d in json.loads(match[1]))
    if "fmha" in target:
        products = next(n for name, n in _CUDNN_PRODUCTS.items() if name in target)
        batch, length, heads, width = computation.operand(instruction, 0).shape
        causal = re.search(r'"mask_type":\s*"[A-Z_]*CAUSAL"', instruction.rest)
        return products * _attention_product(batch, heads, length, width) * (1 if causal else 2)
    if target == "tpu_custom_call":
        products = next((n for name, n in _SPLASH_PRODUCTS.items() if instruction.name.startswith(name)), None)
        shape = next((array.shape for array in reversed(instruction.results) if array.dtype == "bf16"), ())
        if products is None or len(shape) not in (3, 4):
            return None
        batch = shape[:-3] or (1,)  # which the compiler drops when it is 1
        return products * _attention_product(*batch, *shape[-3:])
    return 0


def _attention_product(batch: int, heads: int, length: int, width: int) -> int:
    """One product of L x L scores with K channels, its causal half."""
    return batch * heads * length * length * width
