"""The training step of a config, compiled for a target: the function that training jits, with shapes for arrays."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ar_omni_jax.compile_check import cudnn
from ar_omni_jax.compile_check.memory import Memory, arguments_of, from_analysis, from_refusal
from ar_omni_jax.compile_check.targets import Target
from ar_omni_jax.main import image_decoder, load_vocabulary, make_trainer
from ar_omni_jax.parallel.mesh import MeshError, make_mesh
from ar_omni_jax.tokenizers.image.config import VQGANConfig
from ar_omni_jax.training.losses import LossError
from ar_omni_jax.training.perceptual import FrozenImageDecoder
from ar_omni_jax.training.step import Trainer


class CompileFailed(RuntimeError):
    """The compiler refused the step for another reason than memory; the message is the compiler's."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A step and what its compiler said.

    Attributes:
      trainer, rows, length: the step, its global batch. memory: of one device.
      text: the optimized program ("" where it did not fit). flops: the compiler's own count, loop bodies once.
      seconds: of lowering and compiling. notes: what was assumed.
    """

    trainer: Trainer
    rows: int
    length: int
    memory: Memory
    text: str
    flops: float | None
    seconds: float
    notes: tuple[str, ...]


def target_devices(target: Target) -> list:
    """The target's devices, which can be compiled for and nothing else."""
    if target.chip.platform == "tpu":
        slices = {"num_slices": target.slices} if target.slices > 1 else {}
        return topologies.get_topology_desc(platform="tpu", topology_name=target.topology, **slices).devices
    return topologies.get_topology_desc(
        platform="cuda",
        topology_name=target.chip_name,
        target_config=description(target),
        topology=f"1x1x{target.devices}",
    ).devices


def description(target: Target) -> str:
    """What the compiler must know of a GPU, as XLA's GpuTargetConfig in text form."""
    return (Path(__file__).parent / f"{target.chip_name}.txtpb").read_text()


def target_mesh(sizes: Mapping[str, int], target: Target) -> Mesh:
    """The config's mesh over the target's devices, as training would make it; MeshError when impossible."""
    try:
        return make_mesh(sizes, target_devices(target))
    except (NotImplementedError, ValueError) as error:  # the torus cannot be cut that way
        if isinstance(error, MeshError):
            raise
        raise MeshError(f"{target.name} cannot be a mesh of {dict(sizes)}: {error}") from error


def abstract_trainer(config: ConfigDict, mesh: Mesh) -> tuple[Trainer, tuple[str, ...]]:
    """(the Trainer that a run of `config` would have on `mesh`, notes on what had to be assumed).

    Where the config names no image tokenizer and its loss needs one's codebook, the codebook's published shape
    stands for it: at depth "codebook" nothing else of it matters. LossError at other depths.
    """
    vocabulary, tokenizers = load_vocabulary(config)
    decoder, notes = None, ()
    if config.loss.perceptual_weight and tokenizers:
        decoder = image_decoder(tokenizers)
    elif config.loss.perceptual_weight:
        if config.loss.perceptual_depth != "codebook":
            raise LossError(
                f"loss.perceptual_depth = {config.loss.perceptual_depth!r} needs the image tokenizer itself: name it "
                "with --config.data.tokenizers=FOLDER"
            )
        shape = (vocabulary.image.count, VQGANConfig().embed_dim)
        decoder = FrozenImageDecoder(jax.ShapeDtypeStruct(shape, np.float32))
        notes = (f"no image tokenizer is named: its codebook counts with the published shape, {shape} float32",)
    return make_trainer(config, vocabulary, mesh, decoder), notes


def compile_step(config: ConfigDict, target: Target) -> Compiled:
    """Lowers and compiles the training step of `config` for `target`.

    Raises CompileFailed, or the errors of settings that do not go together (ConfigError, LossError, OptimizerError,
    MeshError, ShardingError, BatchError). Too little memory is no error: the result says so.
    """
    trainer, notes = abstract_trainer(config, target_mesh(config.mesh.to_dict(), target))
    rows, length = config.data.batch_size, config.data.length
    frozen = trainer.frozen if trainer.loss.perceptual_weight else None
    arguments = arguments_of(trainer.abstract_state(), trainer.abstract_batch(rows, length), _on(trainer, frozen))
    start = time.monotonic()
    with cudnn.pretending(description(target)) if target.chip.platform == "cuda" else contextlib.nullcontext():
        lowered = trainer.lower(rows, length)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        refused = from_refusal(arguments, str(error))
        if refused is None:
            raise CompileFailed(f"{target.name}: the compiler refused the step: {str(error)[:2000]}") from error
        return Compiled(trainer, rows, length, refused, "", None, time.monotonic() - start, notes)
    seconds = time.monotonic() - start
    memory = from_analysis(arguments, compiled.memory_analysis())
    return Compiled(trainer, rows, length, memory, compiled.as_text(), _flops(compiled), seconds, notes)


def _on(trainer: Trainer, tree):
    """The shapes of `tree`, replicated on the trainer's mesh."""
    place = trainer.state_sharding.step
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree)


def _flops(compiled) -> float | None:
    """The compiler's own count of operations; None where it has none."""
    analysis = compiled.cost_analysis()
    analysis = analysis[0] if isinstance(analysis, list) else analysis
    flops = (analysis or {}).get("flops")
    return float(flops) if flops and flops > 0 else None
