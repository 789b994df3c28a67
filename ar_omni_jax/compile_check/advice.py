"""What to change when a step does not fit, with what each change would save on a device."""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from ar_omni_jax.compile_check.memory import Memory
from ar_omni_jax.model.config import TransformerConfig
from ar_omni_jax.parallel.mesh import slice_count
from ar_omni_jax.parallel.sharding import axis_product
from ar_omni_jax.training.step import Trainer

_POLICIES = ("none", "zero_recompute", "save_attention", "full")  # from the most memory to the least
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclasses.dataclass(frozen=True)
class Advice:
    """A change and what it saves, bytes of a device, by arithmetic (activations as named in model/remat.py)."""

    change: str
    saves: int


def saved_per_token(model: TransformerConfig, policy: str) -> int:
    """Bytes that a block keeps of each token for the backward pass, without the attention kernel's own residuals."""
    heads, kv = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    kept = model.d_model  # the block's input
    if policy in ("save_attention", "zero_recompute", "none"):
        kept += heads + 2 * kv + heads + model.d_model  # raw q, k, v; before and after the output projection
    if policy in ("zero_recompute", "none"):
        kept += 2 * model.d_ff + model.d_model
    if policy == "none":  # and about as much again of element-wise results
        kept *= 2
    return kept * _DTYPE_BYTES[model.dtype]


def advise(config: ConfigDict, trainer: Trainer, memory: Memory) -> list[Advice]:
    """Changes in the order to try them: those that cost least first."""
    model, mesh = trainer.model_config, trainer.mesh
    shards = axis_product(trainer.rules.batch, mesh)
    rows = config.data.batch_size // shards // config.optimizer.accumulate
    tokens = rows * config.data.length // mesh.shape["sequence"]
    kept = {policy: saved_per_token(model, policy) * tokens * model.num_layers for policy in _POLICIES}
    found = []
    for policy in _POLICIES[_POLICIES.index(model.remat) + 1 :]:
        found.append(Advice(f"--config.model.remat={policy}", kept[model.remat] - kept[policy]))
    if rows > 1:
        accumulate = config.optimizer.accumulate * 2
        while accumulate <= config.data.batch_size // shards and (config.data.batch_size // shards) % accumulate:
            accumulate += 1
        share = 1 - config.optimizer.accumulate / accumulate
        # Gradients are then kept in float32 beside those of the micro-batch.
        saves = int(kept[model.remat] * share) - memory.parameters
        found.append(Advice(f"--config.optimizer.accumulate={accumulate} (the same batch in smaller pieces)", saves))
        half = rows // 2
        batch = half * shards * config.optimizer.accumulate
        found.append(Advice(f"--config.data.batch_size={batch}", int(kept[model.remat] * (1 - half / rows))))
    if config.optimizer.moment_dtype == "float32":
        found.append(Advice("--config.optimizer.moment_dtype=bfloat16", memory.moments // 2))
    slices = slice_count(mesh.devices.flat)  # each keeps a replica: data alone crosses slices
    if mesh.shape["data"] > slices:
        replicas = mesh.shape["data"] // slices
        state = memory.parameters * 2 + memory.moments  # and the gradients
        change = f"--config.mesh.data={slices} --config.mesh.fsdp={mesh.shape['fsdp'] * replicas}"
        found.append(Advice(change, state - state // replicas))
    chunk = config.loss.chunk or tokens
    smaller = 512
    if chunk > smaller:  # logits, their gradient in float32 and in the compute dtype
        saves = (min(chunk, tokens) - smaller) * model.vocab_size * 10 // mesh.shape["tensor"]
        found.append(Advice(f"--config.loss.chunk={smaller}", max(saves, 0)))
    return [advice for advice in found if advice.saves > 0]


def describe(found: list[Advice], missing: int) -> list[str]:
    """Lines for people; each says whether it is enough by itself."""
    if not found:
        return ["nothing in the settings saves enough: take more devices or ones with more memory"]
    lines = []
    for advice in found:
        enough = "enough" if advice.saves >= missing else "not enough alone"
        lines.append(f"{advice.change}: saves about {advice.saves / 2**30:.2f} GiB, {enough}")
    most: dict[str, int] = {}  # of one setting's values only one can be had
    for advice in found:
        setting = advice.change.partition("=")[0]
        most[setting] = max(most.get(setting, 0), advice.saves)
    if sum(most.values()) < missing:
        lines.append("all of it together is not enough: take more devices or ones with more memory")
    return lines
