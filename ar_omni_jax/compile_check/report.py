"""One check as plain numbers (JSON) and as a page for people."""

from __future__ import annotations

import dataclasses
from importlib import metadata
from typing import Any

import jax
from ml_collections import ConfigDict

from ar_omni_jax.compile_check import advice, collectives, hlo, roofline
from ar_omni_jax.compile_check.products import product_flops
from ar_omni_jax.compile_check.program import Compiled, compile_step
from ar_omni_jax.compile_check.targets import GIB, Target
from ar_omni_jax.compile_check.traffic import memory_bytes
from ar_omni_jax.model.attention import attention_name
from ar_omni_jax.training.step import Trainer

KINDS = {
    "parameters": "parameters",
    "moments": "optimizer state",
    "batch": "batch",
    "frozen": "frozen image codebook",
    "other": "counters, padding",
    "output": "output (metrics)",
    "temporaries": "temporaries (activations, gradients, gathered weights)",
    "code": "code",
}


def check(config: ConfigDict, target: Target) -> dict[str, Any]:
    """Compiles the training step of `config` for `target` and returns what is known of it, JSON types only.

    Keys: "target", "devices", "mesh", "settings", "fits", "over_bytes", "limit_bytes", "headroom_bytes",
    "memory_bytes" by kind with "total", "advice" (where it does not fit), "seconds" of compiling, "notes",
    "versions"; and where the compiler made a program: "collectives", "flops", "roofline".
    Errors as `program.compile_step`.
    """
    compiled = compile_step(config, target)
    trainer, memory, chip = compiled.trainer, compiled.memory, target.chip
    over = memory.over(chip)
    result = {
        "target": target.name,
        "devices": target.devices,
        "mesh": dict(trainer.mesh.shape),
        "settings": settings_of(config, trainer),
        "fits": over == 0,
        "over_bytes": over,
        "limit_bytes": chip.hbm_bytes,
        "headroom_bytes": chip.headroom_bytes,
        "memory_bytes": {kind: getattr(memory, kind) for kind in KINDS} | {"total": memory.total},
        "seconds": round(compiled.seconds, 1),
        "notes": list(compiled.notes),
        "versions": versions(target),
    }
    if over:
        result["advice"] = [dataclasses.asdict(a) for a in advice.advise(config, trainer, memory)]
    return result | (_performance(compiled, target) if compiled.text else {})


def _performance(compiled: Compiled, target: Target) -> dict[str, Any]:
    program = hlo.parse(compiled.text)
    found = collectives.find_collectives(program, target.devices, target.slices)
    products, unknown = product_flops(program)
    tokens = compiled.rows * compiled.length
    useful = compiled.trainer.model_config.flops_per_token(compiled.length) * tokens / target.devices
    notes = []
    if unknown:
        notes.append(f"products of unknown kernels are not counted: {', '.join(sorted(unknown)[:4])}")
    if again := sum(".remat" in i.name for c, _ in program.running() if not c.fused for i in c.instructions.values()):
        notes.append(f"the compiler itself runs {again} instructions again to save memory: its own limit was reached")
    if program.unknown_loops:
        notes.append(f"{program.unknown_loops} loops of unknown length counted as one turn")
    traffic = memory_bytes(program)
    limits = roofline.estimate(target, useful, products, traffic, found)
    return {
        "collectives": collectives.summarize(found),
        "flops": {
            "formula": useful,
            "formula_per_token": compiled.trainer.model_config.flops_per_token(compiled.length),
            "products": products,
            "compiler": compiled.flops,
            "traffic_bytes": traffic,
            "notes": notes,
        },
        "roofline": {
            **{name: getattr(limits, name) for name in ("compute", "memory", "links", "network")},
            "overlapped": limits.overlapped,
            "serial": limits.serial,
            "limit": limits.limit,
            "mfu_overlapped": limits.mfu(limits.overlapped),
            "mfu_serial": limits.mfu(limits.serial),
            "tokens_per_second_overlapped": tokens / limits.overlapped,
            "tokens_per_second_serial": tokens / limits.serial,
            "assumptions": roofline.assumptions(target),
        },
    }


def settings_of(config: ConfigDict, trainer: Trainer) -> dict[str, Any]:
    """What decides most; the attention by the name of the backend that "auto" chose."""
    model, data, optimizer, mesh = config.model, config.data, config.optimizer, trainer.mesh
    attention = attention_name(trainer.model_config, mesh.devices.flat[0].platform, mesh.shape["sequence"])
    return {
        "data.batch_size": data.batch_size,
        "data.length": data.length,
        "optimizer.accumulate": optimizer.accumulate,
        "optimizer.moment_dtype": optimizer.moment_dtype,
        "model.param_dtype": model.param_dtype,
        "model.attention": attention,
        "model.remat": model.remat,
        "model.scan_layers": model.scan_layers,
        "loss.chunk": config.loss.chunk,
    }


def versions(target: Target) -> dict[str, str]:
    """Of the compiler: {"jax": ..., "libtpu" or "jax-cuda12-pjrt": ...}."""
    package = "libtpu" if target.chip.platform == "tpu" else "jax-cuda12-pjrt"
    try:
        found = metadata.version(package)
    except metadata.PackageNotFoundError:
        found = "unknown"
    return {"jax": jax.__version__, package: found}


# ------------------------------------------------------------------------------------------------ for people


def page(result: dict[str, Any], target: Target) -> str:
    """What `check` found, as text."""
    mesh = " x ".join(f"{axis}={size}" for axis, size in result["mesh"].items())
    lines = [target.describe(), f"mesh {mesh}; compiled in {result['seconds']:.0f} s ({_join(result['versions'])})"]
    lines += [_join(result["settings"])]
    lines += [f"note: {note}" for note in result["notes"]]
    lines += ["", *_memory_lines(result)]
    if "collectives" in result:
        lines += ["", *_collective_lines(result), "", *_flop_lines(result), "", *_roofline_lines(result)]
    return "\n".join(lines + ["", *_verdict_lines(result)])


def _join(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _memory_lines(result: dict[str, Any]) -> list[str]:
    found = result["memory_bytes"]
    lines = ["memory of a device"]
    lines += [f"  {label:<56}{_size(found[kind])}" for kind, label in KINDS.items() if found[kind]]
    limit = result["limit_bytes"] - result["headroom_bytes"]
    lines.append(f"  {'total':<56}{_size(found['total'])} of {limit / GIB:.2f} GiB")
    return lines


def _size(count: float) -> str:
    """Bytes in GiB, small ones in MiB."""
    return f"{count / GIB:10.2f} GiB" if count >= GIB / 10 else f"{count / 2**20:10.2f} MiB"


def _collective_lines(result: dict[str, Any]) -> list[str]:
    lines = ["collectives of a step"]
    for kind, row in result["collectives"].items():
        sizes = f"arrays of {_size(row['bytes'])}, {_size(row['wire_bytes'])} received"
        lines.append(f"  {kind:<28}{row['runs']:>7,.0f} runs, {sizes}")
    return lines if len(lines) > 1 else ["no collectives: one device"]


def _flop_lines(result: dict[str, Any]) -> list[str]:
    flops = result["flops"]
    lines = [
        "arithmetic of a step on a device",
        f"  needed: 6 N + 6 layers L heads head_dim a token, attention's causal half{_tera(flops['formula'])}",
        f"  matrix products as compiled, loops counted, recomputation included      {_tera(flops['products'])}",
    ]
    if flops["compiler"]:
        count = _tera(flops["compiler"])
        lines.append(f"  the compiler's own count, which takes a loop's body once                {count}")
    return lines + [f"  note: {note}" for note in flops["notes"]]


def _tera(flops: float) -> str:
    return f"{flops / 1e12:12.3f} TFLOP"


def _roofline_lines(result: dict[str, Any]) -> list[str]:
    found = result["roofline"]
    lines = ["least time of a step, each limit alone"]
    for name in ("compute", "memory", "links", "network"):
        if found[name]:
            lines.append(f"  {name:<20}{found[name]:10.4f} s" + ("  <- the limit" if name == found["limit"] else ""))
    for name, what in (("overlapped", "all at once"), ("serial", "one after the other")):
        lines.append(
            f"  {what:<20}{found[name]:10.4f} s = {found[f'tokens_per_second_{name}']:,.0f} tokens/s, "
            f"MFU {found[f'mfu_{name}']:.1%}"
        )
    lines.append("  a bound, not a forecast. It assumes:")
    return lines + [f"    {line}" for line in found["assumptions"]]


def _verdict_lines(result: dict[str, Any]) -> list[str]:
    limit = result["limit_bytes"] - result["headroom_bytes"]
    if result["fits"]:
        left = limit - result["memory_bytes"]["total"]
        return [f"FITS: {left:,} bytes ({left / GIB:.2f} GiB) stay free beside the headroom"]
    over = result["over_bytes"]
    lines = [f"DOES NOT FIT: {over:,} bytes ({over / GIB:.2f} GiB) over on each device. What would change it:"]
    return lines + [f"  {line}" for line in advice.describe([advice.Advice(**a) for a in result["advice"]], over)]
